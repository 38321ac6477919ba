//! The documents: their links lead somewhere, here and where the package puts them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test says what it expects by panicking

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Where the package puts them.
const INSTALLED: &str = "usr/share/doc/resmic-mailhook/";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let of = |folder: &str| fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = of(".").chain(of("docs")).filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(|c: char| !c.is_alphanumeric() && !" -_".contains(c), "");
    kept.trim().replace(' ', "-")
}

/// What a document points to: the file, and the place in it.
fn links(document: &Path) -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string(document).unwrap();
    let link = Regex::new(r"\]\(([^)#]*)#?([^)]*)\)").unwrap();
    let ours = link.captures_iter(&text).filter(|c| !c[1].starts_with("http"));
    let of = |c: regex::Captures<'_>| {
        let file = if c[1].is_empty() { document.to_owned() } else { document.parent().unwrap().join(&c[1]) };
        (file.canonicalize().unwrap_or_else(|e| panic!("{}: {}: {e}", document.display(), &c[0])), c[2].to_owned())
    };
    ours.map(of).collect()
}

#[test]
fn every_link_leads_somewhere() {
    for document in documents() {
        for (file, place) in links(&document) {
            let headings = if place.is_empty() { String::new() } else { fs::read_to_string(&file).unwrap() };
            let mut headings =
                headings.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#')));
            assert!(place.is_empty() || headings.any(|h| h == place), "{}: #{place}", document.display());
        }
    }
}

#[test]
fn the_package_has_what_they_point_to_where_they_look_for_it() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let folder = |path: &str| path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    // The folders of the project whose files lie in the package as they do here.
    let same: Vec<String> = assets
        .iter()
        .filter_map(|asset| Some((asset[0].as_str()?, asset[1].as_str()?.strip_prefix(INSTALLED)?)))
        .filter(|(from, to)| folder(from.trim_end_matches("**/*")) == folder(to))
        .map(|(from, _)| from.replace("**/*", "*"))
        .collect();
    let is_there = |file: &Path| {
        let path = file.strip_prefix(root().canonicalize().unwrap()).unwrap().to_str().unwrap().to_owned();
        let lies = |from: &String| match from.split_once('*') {
            Some((before, after)) => path.starts_with(before) && path.ends_with(after.trim_end_matches('*')),
            None => *from == path,
        };
        same.iter().any(|from| lies(from) || file.is_dir() && from.starts_with(&format!("{path}/")))
    };
    for document in documents() {
        assert!(is_there(&document.canonicalize().unwrap()), "{}", document.display());
        for (file, _) in links(&document) {
            assert!(is_there(&file), "{}: {} is not in the package", document.display(), file.display());
        }
    }
}
