//! The sample mails are the specification. `NAME.json` is the expected output of `parse --json` for `NAME.eml`, with the
//! reason reduced to its code. Each mail is parsed with CRLF and with LF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn find_mails(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_mails(&path, found);
        } else if path.extension().is_some_and(|e| e == "eml") {
            found.push(path);
        }
    }
}

/// The output of `parse --json`, one object for each file.
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

/// The first difference between the printed and the expected result.
fn difference(expected: &Value, printed: &Value) -> Option<String> {
    if printed["outcome"] != expected["outcome"] {
        return Some(format!("outcome {} ({}), not {}", printed["outcome"], printed["reason"], expected["outcome"]));
    }
    let code = printed["reason"].as_str().map(|r| r.split(": ").next().unwrap());
    if code != expected["reason"].as_str() {
        return Some(format!("reason {}, not {}", printed["reason"], expected["reason"]));
    }
    let Some(fields) = expected["event"].as_object() else {
        return (!printed["event"].is_null() || !printed["webhook"].is_null()).then(|| "an event".into());
    };
    let wrong = fields.iter().find(|(key, value)| printed["event"][key.as_str()] != **value);
    wrong.map(|(key, value)| format!("{key} is {}, not {value}", printed["event"][key.as_str()]))
}

#[test]
fn every_sample_parses_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-mails");
    let mut paths = Vec::new();
    find_mails(&root, &mut paths);
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
        let printed = parse(files);
        assert_eq!(printed.len(), paths.len());
        for (path, printed) in paths.iter().zip(&printed) {
            let expected: Value = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
            let name = path.strip_prefix(&root).unwrap().display();
            if let Some(difference) = difference(&expected, printed) {
                wrong.push(format!("{name} ({ends}): {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
