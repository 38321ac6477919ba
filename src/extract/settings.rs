//! `[extract]`: settings of the parser.

use serde::Deserialize;

use super::labels::LabelSettings;

/// `[extract]`: settings of the parser.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct ExtractSettings {
    /// `[extract.labels]`: more spellings of the labels of each field.
    pub labels: LabelSettings,
}

impl ExtractSettings {
    /// Checks that each label has a letter or digit and belongs to one field.
    ///
    /// # Errors
    /// The key below `[extract]` whose labels are wrong, and the reason.
    pub fn check(&self) -> Result<(), (String, String)> {
        self.labels.check().map_err(|(key, message)| (format!("labels.{key}"), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_belongs_to_one_field() {
        let check = |labels: &str| {
            let settings: ExtractSettings = toml::from_str(&format!("[labels]\n{labels}")).unwrap();
            settings.check().map_err(|(key, message)| format!("{key}: {message}"))
        };
        check("amount = [\"Sum paid\", \"sum  PAID\"]\ntoken = [\"Coin\"]").unwrap();
        for wrong in ["amount = [\"Foo\"]\ntoken = [\"foo:\"]", "amount = [\"Token\"]", "amount = [\"--\"]"] {
            assert!(check(wrong).unwrap_err().starts_with("labels."), "{wrong}");
        }
    }
}
