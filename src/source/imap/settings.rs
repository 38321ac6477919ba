//! `[[account]]`, as far as the mail server is concerned.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use super::oauth;
use crate::loopback::is_loopback_host;
use crate::model::same_mailbox;
use crate::secret;
use crate::units::{ByteSize, HumanDuration};

/// One account of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImapSettings {
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
    pub password: Option<secret::SecretSource>,
    /// Access tokens in place of it.
    pub oauth2: Option<oauth::OAuthSettings>,
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
    pub idle_renew: HumanDuration,
    /// What is done to a notification on the server once it is stored.
    #[serde(default)]
    pub after: After,
    /// The most that is fetched of one mail.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,
}

impl ImapSettings {
    /// The port, by the protection if it is not named.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            Tls::Implicit => 993,
            Tls::Starttls | Tls::None => 143,
        })
    }
}

impl ImapSettings {
    /// What holds between the keys, and what a type cannot say.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, words: &str| Err((key.to_owned(), words.to_owned()));
        if !is_host(&self.host) {
            return wrong("host", "expected a host name or an IP address, and nothing else; `port` stands by itself");
        }
        if self.port == Some(0) {
            return wrong("port", "expected a port, from 1 to 65535");
        }
        if self.user.is_empty() || self.user.chars().any(char::is_control) {
            return wrong("user", "expected a login");
        }
        match (&self.password, &self.oauth2) {
            (Some(_), None) => {}
            (None, Some(oauth2)) => oauth2.check()?,
            (Some(_), Some(_)) => return wrong("oauth2", "stands in place of `password`; expected one of the two"),
            (None, None) => {
                return wrong(
                    "password",
                    "expected { credential = \"name\" }, { file = … }, { env = … } or { command = [ … ] }; or `oauth2`",
                );
            }
        }
        if self.tls == Tls::None && !is_loopback_host(&self.host) {
            return wrong(
                "tls",
                "\"none\" is for a server on this machine only; expected \"implicit\" or \"starttls\"",
            );
        }
        self.check_mailboxes()?;
        if self.recipients.is_empty() && !self.user.contains('@') {
            return wrong("recipients", "expected the addresses that are ours: `user` is no address to take for it");
        }
        if let Some(address) = self.recipients.iter().find(|a| !is_address(a)) {
            return wrong("recipients", &format!("{address:?} is no address, like \"payments@shop.example\""));
        }
        let minutes = self.idle_renew.0.as_secs() / 60;
        if self.idle_renew.0.as_secs() < 1 || minutes >= 29 {
            return wrong(
                "idle_renew",
                "expected at least 1s and less than 29m: servers end an IDLE after 30 (RFC 2177)",
            );
        }
        if self.max_size.0 < 1024 || self.max_size.0 > 64 << 20 {
            return wrong("max_size", "expected at least 1 KiB and at most 64 MiB");
        }
        Ok(())
    }

    fn check_mailboxes(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, words: &str| Err((key.to_owned(), words.to_owned()));
        if self.mailboxes.is_empty() || !self.mailboxes.iter().all(|name| is_name(name)) {
            return wrong("mailboxes", "expected names like \"INBOX\", or special-use attributes like \"\\\\Junk\"");
        }
        // Both would have one row in the database, and one of them would look as if it were never reached.
        let again =
            |(n, name): &(usize, &String)| self.mailboxes.iter().take(*n).any(|other| same_mailbox(other, name));
        if let Some((_, name)) = self.mailboxes.iter().enumerate().find(again) {
            return wrong("mailboxes", &format!("{name:?} is named twice"));
        }
        match &self.after {
            After::Move(target) if !is_name(target) || target.starts_with('\\') => {
                wrong("after", "expected a mailbox's name, like { move = \"Resmic\" }")
            }
            _ => Ok(()),
        }
    }
}

/// What a mailbox may be called.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// What may be looked up or connected to: no URL, no port, no brackets.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let is_name =
        !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace() || "/:@[]".contains(c));
    is_name || text.parse::<std::net::IpAddr>().is_ok()
}

/// An address as a mail's To is compared with: without a name or brackets, which would make every mail somebody else's.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let whole = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty();
    let strange = |c: char| c.is_control() || c.is_whitespace() || "<>,;".contains(c);
    text.rsplit_once('@').is_some_and(whole) && !text.contains(strange)
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
#[serde(try_from = "StartValue")]
pub enum Start {
    /// With the oldest mail.
    #[default]
    All,
    /// With the next one.
    Now,
    /// With what the server received on this day or later (UTC).
    Since(Timestamp),
}

/// As it stands in the file: TOML has dates of its own.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"all\", \"now\" or a date like \"2025-03-05\"")]
enum StartValue {
    Text(String),
    Date(toml::value::Datetime),
}

impl TryFrom<StartValue> for Start {
    type Error = String;

    fn try_from(written: StartValue) -> Result<Self, String> {
        let text = match written {
            StartValue::Text(text) => text,
            StartValue::Date(date) => date.to_string(),
        };
        match text.as_str() {
            "all" => Ok(Start::All),
            "now" => Ok(Start::Now),
            date => {
                let expected = || "expected \"all\", \"now\" or a date like \"2025-03-05\"".to_owned();
                let at: jiff::civil::DateTime = date.parse().map_err(|_| expected())?;
                // A date is asked for: a time of day is better refused than passed over.
                if at.time() != jiff::civil::Time::midnight() {
                    return Err(expected());
                }
                let midnight = format!("{at}Z").parse().map_err(|e| format!("{e}"))?;
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

fn default_idle_renew() -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs(540))
}

fn default_max_size() -> ByteSize {
    ByteSize(1 << 20)
}
