//! `[sessions]` of the configuration.

use serde::Deserialize;

use super::signed_address::check_mailbox;
use crate::model::Matching;
use crate::{secret, units};

/// `[sessions]`: how sessions are found for mails that do not name theirs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSettings {
    /// Signed addresses, if there are to be any.
    pub address: Option<AddressSettings>,
    /// Whether sessions are found by what was paid.
    #[serde(rename = "match")]
    pub matching: bool,
    /// How long after its registration a session may be paid.
    pub window: units::Duration,
}

/// `[sessions] address`: the addresses that carry an order reference.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: { mailbox = …, key = … }")]
pub struct AddressSettings {
    /// The mailbox behind them: `payments@shop.example`.
    pub mailbox: String,
    /// The key that they are signed with.
    pub key: secret::Source,
}

impl Default for SessionSettings {
    fn default() -> Self {
        let window = units::Duration(std::time::Duration::from_secs(45 * 60));
        SessionSettings { address: None, matching: false, window }
    }
}

impl SessionSettings {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// The key to look at, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        if self.window.0.is_zero() {
            return Err(("window".into(), "expected more than nothing".into()));
        }
        let mailbox = self.address.as_ref().map(|address| check_mailbox(&address.mailbox));
        mailbox.unwrap_or(Ok(())).map_err(|words| ("address.mailbox".into(), words))
    }

    /// As the store needs to know it.
    #[must_use]
    pub fn matching(&self) -> Matching {
        Matching { enabled: self.matching, window: self.window.0 }
    }
}
