//! The corpus is the specification: each mail in `sample-mails` says what must be read from it, with CRLF and with LF.
//!
//! Beside `NAME.eml` stands `NAME.json`: what `parse --json` prints, the reason by its code alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn mails(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            mails(&path, found);
        } else if path.extension().is_some_and(|e| e == "eml") {
            found.push(path);
        }
    }
}

/// What the program says of these files, one object each.
fn parse(files: &[PathBuf]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_resmic-mailhook"))
        .env_remove("RESMIC_MAILHOOK_CONFIG")
        .current_dir(std::env::temp_dir())
        .args(["parse", "--json"])
        .args(files)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// In words, where `said` is not what is `expected`.
fn differs(expected: &Value, said: &Value) -> Option<String> {
    if said["outcome"] != expected["outcome"] {
        return Some(format!("outcome {} ({}), not {}", said["outcome"], said["reason"], expected["outcome"]));
    }
    let code = said["reason"].as_str().map(|r| r.split(": ").next().unwrap());
    if code != expected["reason"].as_str() {
        return Some(format!("reason {}, not {}", said["reason"], expected["reason"]));
    }
    let Some(fields) = expected["event"].as_object() else {
        return (!said["event"].is_null() || !said["webhook"].is_null()).then(|| "an event".into());
    };
    let wrong = fields.iter().find(|(key, value)| said["event"][key.as_str()] != **value);
    wrong.map(|(key, value)| format!("{key} is {}, not {value}", said["event"][key.as_str()]))
}

#[test]
fn every_sample_says_what_stands_beside_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-mails");
    let mut paths = Vec::new();
    mails(&root, &mut paths);
    paths.sort();
    assert!(paths.len() >= 200, "only {} samples were found", paths.len());
    let unix = tempfile::tempdir().unwrap();
    let copies: Vec<PathBuf> = paths.iter().enumerate().map(|(n, _)| unix.path().join(format!("{n}.eml"))).collect();
    for (path, copy) in paths.iter().zip(&copies) {
        let mut bytes = fs::read(path).unwrap();
        bytes.retain(|b| *b != b'\r');
        fs::write(copy, bytes).unwrap();
    }
    let mut wrong = Vec::new();
    for (files, ends) in [(&paths, "CRLF"), (&copies, "LF")] {
        let said = parse(files);
        assert_eq!(said.len(), paths.len());
        for (path, said) in paths.iter().zip(&said) {
            let expected: Value = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
            let name = path.strip_prefix(&root).unwrap().display();
            wrong.extend(differs(&expected, said).map(|words| format!("{name} ({ends}): {words}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
