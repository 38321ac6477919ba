//! The dashboard and the alerts ask only for what `/metrics` has.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test says what it expects by panicking

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;

fn metrics_in(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let name = Regex::new(r"resmic_mailhook_([a-z_]+)").unwrap();
    let found: BTreeSet<_> = name.captures_iter(&text).map(|c| c[1].trim_end_matches("_bucket").to_owned()).collect();
    assert!(found.len() > 5, "{file}: {found:?}");
    found
}

#[test]
fn dashboard_alerts_and_documentation_name_real_metrics() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics.rs")).unwrap();
    let register = Regex::new(r#"registry\.register\(\s*"([a-z_]+)""#).unwrap();
    let real: BTreeSet<_> = register.captures_iter(&source).map(|c| c[1].to_owned()).collect();
    for file in ["contrib/grafana-dashboard.json", "contrib/prometheus-rules.yml"] {
        let asked = metrics_in(file);
        assert!(asked.is_subset(&real), "{file}: {:?}", asked.difference(&real));
    }
    assert_eq!(metrics_in("docs/operations.md"), real);
}
