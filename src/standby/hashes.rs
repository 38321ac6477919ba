//! Hashes of the configuration, which two hosts compare to notice that their configurations differ.

use std::collections::BTreeMap;

use ring::digest;
use serde::{Deserialize, Serialize};
use toml::Value;

/// The tables that decide which events exist and where they are delivered: their names in the lease, and their headers.
const TABLES: [(&str, &str); 7] = [
    ("account", "[[account]]"),
    ("trust", "[trust]"),
    ("extract", "[extract]"),
    ("sessions", "[sessions]"),
    ("chain", "[[chain]]"),
    ("resmic", "[resmic]"),
    ("forward", "[[forward]]"),
];
/// The keys of a table that says where a secret comes from.
const SECRET_SOURCES: [&str; 4] = ["credential", "file", "env", "command"];

/// Hashes of the configuration tables that decide which events exist and where they are delivered, by the names of the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationHashes(BTreeMap<String, String>);

impl ConfigurationHashes {
    /// Hashes the tables of a configuration. Comments, spaces and the order of keys do not matter, nor does the place from which
    /// a host loads a secret. The secrets themselves are not in the configuration.
    #[must_use]
    pub fn new(configuration: &toml::Table) -> Self {
        let hash = |table: &str| {
            let mut table = configuration.get(table).cloned();
            table.iter_mut().for_each(remove_secret_sources);
            // A `toml::Table` is sorted by its keys, so their order in the file does not matter.
            let text = serde_json::to_string(&table).unwrap_or_default();
            let digest = digest::digest(&digest::SHA256, text.as_bytes());
            data_encoding::HEXLOWER.encode(digest.as_ref())
        };
        ConfigurationHashes(TABLES.iter().map(|(name, _)| ((*name).to_owned(), hash(name))).collect())
    }

    /// The headers of the tables that differ from those of `other`, such as `[trust]`.
    #[must_use]
    pub fn differences(&self, other: &ConfigurationHashes) -> Vec<&'static str> {
        let differs = |name: &str| self.0.get(name) != other.0.get(name);
        TABLES.iter().filter(|(name, _)| differs(name)).map(|(_, header)| *header).collect()
    }

    /// The names and the hashes.
    pub(super) fn texts(&self) -> impl Iterator<Item = &String> {
        self.0.iter().flat_map(|(name, hash)| [name, hash])
    }
}

/// Removes the values that say where a secret comes from, also from arrays, such as the nodes of a chain.
fn remove_secret_sources(value: &mut Value) {
    match value {
        Value::Table(table) => {
            table.retain(|_, value| !is_secret_source(value));
            table.iter_mut().for_each(|(_, value)| remove_secret_sources(value));
        }
        Value::Array(values) => {
            values.retain(|value| !is_secret_source(value));
            values.iter_mut().for_each(remove_secret_sources);
        }
        _ => {}
    }
}

fn is_secret_source(value: &Value) -> bool {
    let Value::Table(table) = value else { return false };
    table.len() == 1 && table.keys().all(|key| SECRET_SOURCES.contains(&key.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &str) -> ConfigurationHashes {
        ConfigurationHashes::new(&text.parse().unwrap())
    }

    #[test]
    fn only_content_changes_a_hash() {
        let first =
            hashes("[store]\npath = \"a\"\n[sessions]\nmatch = true\nwindow = \"45m\"\n[[forward]]\nname = \"shop\"");
        let same = hashes("[[forward]]\nname    = 'shop' # ours\n[sessions]\nwindow = \"45m\"\nmatch = true\n");
        assert_eq!(first, same);
        let other = hashes("[sessions]\nmatch = false\nwindow = \"45m\"\n[[forward]]\nname = \"shop\"\n[trust]\n");
        assert_eq!(first.differences(&other), ["[trust]", "[sessions]"]);
        assert_eq!(first.differences(&hashes("")), ["[sessions]", "[[forward]]"]);
        assert!(first.texts().all(|text| text.len() <= 64));
    }

    #[test]
    fn every_decisive_table_is_compared() {
        let empty = hashes("");
        for (name, header) in TABLES {
            let filled = if header.starts_with("[[") { format!("[[{name}]]") } else { format!("[{name}]") };
            assert_eq!(hashes(&format!("{filled}\nname = \"x\"")).differences(&empty), [header]);
        }
        let older = ConfigurationHashes(BTreeMap::from([("trust".to_owned(), empty.0["trust"].clone())]));
        assert_eq!(empty.differences(&older).len(), TABLES.len() - 1, "a version that compares less");
    }

    #[test]
    fn hosts_may_load_secrets_from_other_places() {
        let chain = |nodes: &str| format!("[[chain]]\nname = \"Polygon\"\nnodes = [{nodes}]");
        let first = hashes(&chain("{ credential = \"node\" }, { env = \"NODE\" }"));
        assert_eq!(first, hashes(&chain("{ file = \"/run/node\" }")));
        let oauth = |place: &str| format!("[[account]]\nuser = \"u\"\n[account.oauth2]\nclient_secret = {place}");
        assert_eq!(hashes(&oauth("{ env = \"A\" }")), hashes(&oauth("{ command = [\"pass\", \"a\"] }")));
    }
}
