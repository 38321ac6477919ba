//! The table `[sessions]` of the configuration.

use serde::Deserialize;

use super::signed_address::check_mailbox;
use crate::model::Matching;
use crate::{secret, units};

/// `[sessions]`: how the session of a mail is found if the mail does not name the session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: the keys below [sessions]")]
pub struct SessionSettings {
    /// The settings for signed addresses. `None`: the merchant uses no signed addresses.
    pub address: Option<AddressSettings>,
    /// Whether an event without a session is matched with the registered sessions by amount.
    #[serde(rename = "match")]
    pub matching: bool,
    /// How long after its registration a session may be paid.
    pub window: units::HumanDuration,
}

/// `[sessions] address`: the settings for signed addresses, which contain an order reference.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: { mailbox = …, key = … }")]
pub struct AddressSettings {
    /// The address of the mailbox, such as `payments@shop.example`. A signed address is this address with a `+` tag.
    pub mailbox: String,
    /// The key of the MAC in signed addresses.
    pub key: secret::SecretSource,
}

impl Default for SessionSettings {
    fn default() -> Self {
        let window = units::HumanDuration(std::time::Duration::from_secs(45 * 60));
        SessionSettings { address: None, matching: false, window }
    }
}

impl SessionSettings {
    /// Checks the values of `[sessions]` that deserialization does not check.
    ///
    /// # Errors
    ///
    /// The configuration key with the wrong value, and a message about the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        if self.window.0.is_zero() {
            return Err(("window".into(), "expected a duration longer than zero".into()));
        }
        let mailbox = self.address.as_ref().map(|address| check_mailbox(&address.mailbox));
        mailbox.unwrap_or(Ok(())).map_err(|message| ("address.mailbox".into(), message))
    }

    /// Returns the settings for matching by amount, which the store needs.
    #[must_use]
    pub fn matching(&self) -> Matching {
        Matching { enabled: self.matching, window: self.window.0 }
    }
}
