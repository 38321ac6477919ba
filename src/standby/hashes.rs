//! Hashes of the configuration, which two hosts compare to notice that their configurations differ.

use ring::digest;

use super::lease_value::ConfigurationHashes;

impl ConfigurationHashes {
    /// Hashes `[trust]`, `[sessions]` and `[[forward]]` of a configuration. Comments, spaces and the order of keys do not matter.
    /// The tables contain no secrets, only the places from which secrets are loaded.
    #[must_use]
    pub fn new(configuration: &toml::Table) -> Self {
        let hash = |table: &str| {
            // A `toml::Table` is sorted by its keys, so their order in the file does not matter.
            let text = serde_json::to_string(&configuration.get(table)).unwrap_or_default();
            let digest = digest::digest(&digest::SHA256, text.as_bytes());
            data_encoding::HEXLOWER.encode(digest.as_ref())
        };
        ConfigurationHashes { trust: hash("trust"), sessions: hash("sessions"), forward: hash("forward") }
    }

    /// The headers of the tables that differ from those of `other`, such as `[trust]`.
    #[must_use]
    pub fn differences(&self, other: &ConfigurationHashes) -> Vec<&'static str> {
        let tables = [
            ("[trust]", self.trust == other.trust),
            ("[sessions]", self.sessions == other.sessions),
            ("[[forward]]", self.forward == other.forward),
        ];
        tables.into_iter().filter(|(_, same)| !same).map(|(table, _)| table).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_changes_a_hash() {
        let hashes = |text: &str| ConfigurationHashes::new(&text.parse().unwrap());
        let first =
            hashes("[store]\npath = \"a\"\n[sessions]\nmatch = true\nwindow = \"45m\"\n[[forward]]\nname = \"shop\"");
        let same = hashes("[[forward]]\nname    = 'shop' # ours\n[sessions]\nwindow = \"45m\"\nmatch = true\n");
        assert_eq!(first, same);
        let other = hashes("[sessions]\nmatch = false\nwindow = \"45m\"\n[[forward]]\nname = \"shop\"\n[trust]\n");
        assert_eq!(first.differences(&other), ["[trust]", "[sessions]"]);
        assert_eq!(first.differences(&hashes("")), ["[sessions]", "[[forward]]"]);
        assert_eq!(first.forward.len(), 64);
    }
}
