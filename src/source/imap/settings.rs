//! `[[account]]`: the settings of a mail server and its mailboxes.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;

use super::oauth;
use crate::configured_text::configured_text;
use crate::loopback::is_loopback_host;
use crate::model::same_mailbox;
use crate::secret;
use crate::units::{ByteSize, HumanDuration};

/// One account of the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [[account]]")]
pub struct ImapSettings {
    /// The name of the account in the database and the log.
    pub name: String,
    /// The host name or the IP address of the mail server.
    pub host: String,
    /// The port. The default is 993 with implicit TLS, and 143 otherwise.
    pub port: Option<u16>,
    /// Whether and when TLS protects the connection to the mail server.
    #[serde(default)]
    pub tls: Tls,
    /// A PEM file of certificates that are trusted in addition to the system's root certificates.
    pub ca_file: Option<PathBuf>,
    /// The user name for the login.
    pub user: String,
    /// The addresses that receive Resmic's mails. The default is `user`, which must then be an address.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// The password for the login.
    pub password: Option<secret::SecretSource>,
    /// The settings for access tokens, which replace the password.
    pub oauth2: Option<oauth::OAuthSettings>,
    /// The mailboxes to read: names or special-use attributes (RFC 6154).
    #[serde(default = "default_mailboxes")]
    pub mailboxes: Vec<String>,
    /// The mailboxes receive only Resmic's mails, so the daemon fetches whole mails without checking the sender first.
    #[serde(default)]
    pub dedicated: bool,
    /// The oldest mail that the first run reads.
    #[serde(default)]
    pub start: Start,
    /// The time between IDLE renewals. Each renewal also syncs the mailbox.
    #[serde(default = "default_idle_renew")]
    pub idle_renew: HumanDuration,
    /// If no trusted notification arrives for longer than this, `status` reports a problem. `None`: silence is normal.
    pub quiet: Option<HumanDuration>,
    /// How a notification is changed on the mail server after it is stored.
    #[serde(default)]
    pub after: After,
    /// The most bytes that are kept of one mail.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,
}

impl ImapSettings {
    /// The port, or the default for `tls`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(self.tls.default_port())
    }

    /// The mailbox to which `after` moves notifications, if `mailboxes` does not name this mailbox.
    #[must_use]
    pub fn unwatched_target(&self) -> Option<&str> {
        match &self.after {
            After::Move(target) if !self.mailboxes.iter().any(|name| same_mailbox(name, target)) => Some(target),
            _ => None,
        }
    }
}

impl ImapSettings {
    /// Checks each value, and the rules that concern several keys.
    ///
    /// # Errors
    /// The key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        if !is_host(&self.host) {
            return wrong("host", "expected a host name or an IP address; the port belongs in `port`");
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
            (Some(_), Some(_)) => return wrong("oauth2", "expected either `password` or `oauth2`, not both"),
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
                "\"none\" is allowed for a server on this machine only; expected \"implicit\" or \"starttls\"",
            );
        }
        self.check_mailboxes()?;
        if self.recipients.is_empty() && !self.user.contains('@') {
            return wrong(
                "recipients",
                "expected the addresses that receive Resmic's mails, because `user` is no address",
            );
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
        if self.quiet.is_some_and(|quiet| quiet.0.as_secs() < 1) {
            return wrong("quiet", "expected at least 1s, for example \"1d\"");
        }
        if self.max_size.0 < 1024 || self.max_size.0 > 64 << 20 {
            return wrong("max_size", "expected at least 1 KiB and at most 64 MiB");
        }
        Ok(())
    }

    fn check_mailboxes(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        if self.mailboxes.is_empty() || !self.mailboxes.iter().all(|name| is_name(name)) {
            return wrong("mailboxes", "expected names like \"INBOX\", or special-use attributes like \"\\\\Junk\"");
        }
        // Two watchers of one mailbox would fetch each mail twice. With equal names, the two watchers would also share one row of
        // the table `mailboxes`, and `status` would report that one of the two mailboxes was never reached.
        let is_repeated =
            |(n, name): &(usize, &String)| self.mailboxes.iter().take(*n).any(|other| same_mailbox(other, name));
        if let Some((_, name)) = self.mailboxes.iter().enumerate().find(is_repeated) {
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

/// Whether `text` can be the name of a mailbox.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// Whether `text` is a host name or an IP address: no URL, no port, no brackets.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let is_name =
        !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace() || "/:@[]".contains(c));
    is_name || text.parse::<std::net::IpAddr>().is_ok()
}

/// Whether `text` is a bare address, without display name and angle brackets. Only a bare address can equal an address that the
/// program takes from a mail's To field.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let is_complete = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty();
    let is_forbidden = |c: char| c.is_control() || c.is_whitespace() || "<>,;".contains(c);
    text.rsplit_once('@').is_some_and(is_complete) && !text.contains(is_forbidden)
}

/// Whether and when TLS protects the connection to the mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// TLS from the first byte (RFC 8314).
    #[default]
    Implicit,
    /// TLS after STARTTLS (RFC 3501, 6.2.1).
    Starttls,
    /// No TLS, for a server on this machine only.
    None,
}

configured_text!(Tls, "\"implicit\", \"starttls\" or \"none\"",
    "implicit" => Implicit, "starttls" => Starttls, "none" => None);

impl Tls {
    /// The default port of an IMAP server with this kind of TLS (RFC 8314, 3.2; RFC 3501, 2.1).
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Tls::Implicit => 993,
            Tls::Starttls | Tls::None => 143,
        }
    }
}

/// The oldest mail that the first run reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "StartValue")]
pub enum Start {
    /// The first run begins with the oldest mail of the mailbox.
    #[default]
    All,
    /// The first run begins with the next mail that arrives.
    Now,
    /// The first run begins with the first mail that the server received on or after this day (UTC).
    Since(Timestamp),
}

/// The value of `start` in the configuration file: text, or a date, because TOML has a type for dates.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"all\", \"now\" or a date like \"2025-03-05\"")]
enum StartValue {
    Text(String),
    Date(toml::value::Datetime),
}

impl TryFrom<StartValue> for Start {
    type Error = String;

    fn try_from(value: StartValue) -> Result<Self, String> {
        let text = match value {
            StartValue::Text(text) => text,
            StartValue::Date(date) => date.to_string(),
        };
        match text.as_str() {
            "all" => Ok(Start::All),
            "now" => Ok(Start::Now),
            date => {
                let expected = || "expected \"all\", \"now\" or a date like \"2025-03-05\"".to_owned();
                let at: jiff::civil::DateTime = date.parse().map_err(|_| expected())?;
                // A time of day is an error, because `start` is a whole day.
                if at.time() != jiff::civil::Time::midnight() {
                    return Err(expected());
                }
                let midnight = format!("{at}Z").parse().map_err(|e| format!("{e}"))?;
                Ok(Start::Since(midnight))
            }
        }
    }
}

/// How a notification is changed on the mail server after it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "AfterValue")]
pub enum After {
    /// No change. The mailbox is opened read-only if the server supports that.
    #[default]
    Leave,
    /// Mark the notification as seen.
    Seen,
    /// Move the notification to this mailbox.
    Move(String),
}

/// The value of `after` in the configuration file. This enum replaces the error of serde for [`AfterVariant`].
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"leave\", \"seen\" or { move = \"Resmic\" }")]
enum AfterValue {
    Variant(AfterVariant),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AfterVariant {
    Leave,
    Seen,
    Move(String),
}

impl From<AfterValue> for After {
    fn from(AfterValue::Variant(variant): AfterValue) -> Self {
        match variant {
            AfterVariant::Leave => After::Leave,
            AfterVariant::Seen => After::Seen,
            AfterVariant::Move(target) => After::Move(target),
        }
    }
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
