//! `[[account]]`, as far as the mail server is concerned.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use crate::secret;
use crate::units::{Duration, Size};

/// One account of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name in the database and the log.
    pub name: String,
    /// The mail server.
    pub host: String,
    /// Its port; by default 993, or 143 where TLS is not implicit.
    pub port: Option<u16>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: Tls,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The login.
    pub user: String,
    /// Addresses that are ours; empty: the user, if it is an address.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// The password.
    pub password: Option<secret::Source>,
    /// Names or special-use attributes (RFC 6154).
    #[serde(default = "default_mailboxes")]
    pub mailboxes: Vec<String>,
    /// Every mail here may be Resmic's: fetch the body at once.
    #[serde(default)]
    pub dedicated: bool,
    /// Where to begin on the first run.
    #[serde(default)]
    pub start: Start,
    /// How often IDLE is renewed and the mailbox swept.
    #[serde(default = "default_idle_renew")]
    pub idle_renew: Duration,
    /// What is done to a notification on the server once it is stored.
    #[serde(default)]
    pub after: After,
    /// The most that is fetched of one mail.
    #[serde(default = "default_max_size")]
    pub max_size: Size,
}

impl Settings {
    /// The port, by the protection if it is not named.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            Tls::Implicit => 993,
            Tls::Starttls | Tls::None => 143,
        })
    }
}

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// TLS from the first byte (RFC 8314).
    #[default]
    Implicit,
    /// TLS after STARTTLS (RFC 3501, 6.2.1).
    Starttls,
    /// Not at all; to this machine only.
    None,
}

/// Where the first run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Start {
    /// With the oldest mail.
    #[default]
    All,
    /// With the next one.
    Now,
    /// With what the server received on this day or later (UTC).
    Since(Timestamp),
}

impl TryFrom<String> for Start {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "all" => Ok(Start::All),
            "now" => Ok(Start::Now),
            date => {
                let day: jiff::civil::Date =
                    date.parse().map_err(|_| "expected \"all\", \"now\" or a date like \"2025-03-05\"".to_owned())?;
                let midnight = format!("{day}T00:00:00Z").parse().map_err(|e| format!("{e}"))?;
                Ok(Start::Since(midnight))
            }
        }
    }
}

/// What is done to a notification on the server once it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// Nothing: the mailbox is opened read-only.
    #[default]
    Leave,
    /// It is marked as seen.
    Seen,
    /// It is moved to this mailbox.
    Move(String),
}

fn default_mailboxes() -> Vec<String> {
    vec!["INBOX".into(), "\\Junk".into()]
}

fn default_idle_renew() -> Duration {
    Duration(std::time::Duration::from_secs(540))
}

fn default_max_size() -> Size {
    Size(1 << 20)
}
