//! The ladder: a file imports only from rooms below its own.
//!
//! ARCHITECTURE.md says why. Here every `crate::` path in `src` is read and held against it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test says what it expects by panicking

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The rooms, from the top. Rooms on one line know nothing of one another.
const LADDER: &[&[&str]] = &[
    &["cli"],
    &["app"],
    &["config"],
    &["metrics"],
    &["ingest", "forward", "health"],
    &["source", "examine"],
    &["trust", "extract"],
    &["payments"],
    &["db"],
    &["chain"],
    &["http"],
    &["contain", "telemetry", "systemd", "pulse", "tls", "backoff", "secret", "units", "vigil"],
    &["model"],
];

fn floor(room: &str) -> Option<usize> {
    LADDER.iter().position(|rooms| rooms.contains(&room)).map(|n| LADDER.len() - n)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: the first part of its path below `src`.
fn room(path: &Path, src: &Path) -> String {
    let below = path.strip_prefix(src).unwrap();
    below.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn a_file_imports_only_from_rooms_below_its_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    // `crate::{a, b::c}` and `crate::a::b` alike; a group's inner braces do not matter, only its first names.
    let single = Regex::new(r"\bcrate::([a-z_]+)").unwrap();
    let group = Regex::new(r"(?s)\bcrate::\{(.*?)\};").unwrap();
    let braces = Regex::new(r"(?s)\{[^{}]*\}").unwrap();
    let name = Regex::new(r"(?:^|,)\s*([a-z_]+)").unwrap();
    let mut imports = BTreeMap::new();
    for path in &paths {
        let from = room(path, &src);
        if from == "lib" || from == "main" {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let code: String =
            text.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
        let mut names: Vec<String> = single.captures_iter(&code).map(|c| c[1].to_owned()).collect();
        for inner in group.captures_iter(&code) {
            let outer = braces.replace_all(&inner[1], "").into_owned();
            names.extend(name.captures_iter(&outer).map(|c| c[1].to_owned()));
        }
        for to in names.into_iter().filter(|to| *to != from) {
            imports.insert((from.clone(), to), path.clone());
        }
    }
    assert!(imports.len() > 20, "the imports were not found: {imports:?}");
    for ((from, to), path) in imports {
        let (above, below) = (floor(&from), floor(&to));
        let above = above.unwrap_or_else(|| panic!("{} has no place on the ladder", path.display()));
        let below =
            below.unwrap_or_else(|| panic!("{} imports {to}, which has no place on the ladder", path.display()));
        assert!(above > below, "{} imports from {to}, which is not below {from}", path.display());
    }
}

#[test]
fn the_words_of_the_house_import_nothing_of_ours() {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model"), &mut paths);
    assert!(paths.len() > 1);
    for path in paths {
        assert!(!fs::read_to_string(&path).unwrap().contains("crate::"), "{} imports nothing of ours", path.display());
    }
}
