//! A file imports only from rooms in layers below its own.
//!
//! ARCHITECTURE.md has the layers as a table. This test compares every `crate::` path in `src` with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The layers of the table in ARCHITECTURE.md, the highest first, each with its rooms.
fn layers() -> Vec<Vec<String>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(document).unwrap();
    let table = text.split("\n## ").find_map(|section| section.strip_prefix("Rooms\n")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| row.split('|').next().unwrap());
    rows.map(|rooms| rooms.split('·').map(|room| room.trim().trim_matches('`').to_owned()).collect()).collect()
}

fn height(layers: &[Vec<String>], room: &str) -> Option<usize> {
    layers.iter().position(|rooms| rooms.iter().any(|r| r == room)).map(|n| layers.len() - n)
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
fn files_import_only_from_rooms_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    // Both `crate::{a, b::c}` and `crate::a::b` count. In a group, only the first name of each path matters.
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
    let layers = layers();
    for ((from, to), path) in imports {
        let (above, below) = (height(&layers, &from), height(&layers, &to));
        let above = above.unwrap_or_else(|| panic!("{} is in no layer", path.display()));
        let below = below.unwrap_or_else(|| panic!("{} imports {to}, which is in no layer", path.display()));
        assert!(above > below, "{} imports from {to}, which is not below {from}", path.display());
    }
}

#[test]
fn every_room_has_one_layer() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    let rooms: BTreeSet<String> = paths.iter().map(|path| room(path, &src)).collect();
    let mut named: Vec<String> = layers().into_iter().flatten().collect();
    named.sort();
    let expected: Vec<String> = rooms.into_iter().filter(|room| room != "lib" && room != "main").collect();
    assert_eq!(named, expected);
}

#[test]
fn the_pure_payment_rules_import_no_database() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payments");
    for name in ["conflicts/mod.rs", "conflicts/compare.rs", "matching.rs", "signed_address.rs"] {
        let text = fs::read_to_string(folder.join(name)).unwrap();
        for word in ["rusqlite", "crate::db", "SELECT", "async fn", "Timestamp::now"] {
            assert!(!text.contains(word), "{name} contains {word}");
        }
    }
}

#[test]
fn the_model_imports_no_other_room() {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model"), &mut paths);
    assert!(paths.len() > 1);
    for path in paths {
        assert!(!fs::read_to_string(&path).unwrap().contains("crate::"), "{} imports nothing of ours", path.display());
    }
}
