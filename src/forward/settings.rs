//! `[[forward]]`: one callback, as the configuration describes it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration as StdDuration;

use hyper::http::uri::PathAndQuery;
use serde::{Deserialize, Deserializer};

use crate::db;
use crate::http::Url;
use crate::loopback::is_loopback;
use crate::model::Status;
use crate::secret;
use crate::units::HumanDuration;

/// One `[[forward]]` table. Each value is right in itself once it is read; [`Settings::check`] asks whether they go together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The callback's name in the database and in the log.
    pub name: String,
    /// Where it listens; this or `unix`.
    pub url: Option<Url>,
    /// The socket on which it listens; this or `url`.
    pub unix: Option<PathBuf>,
    /// With `unix`: the path to ask for.
    pub path: Option<HttpPath>,
    /// The key of `X-Signature`.
    pub secret: secret::SecretSource,
    /// Whether it may be on another machine.
    #[serde(default)]
    pub allow_remote: bool,
    /// How long one attempt may take, from looking up the name to the answer.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// How long after the first attempt the last one is made.
    #[serde(default = "default_give_up_after")]
    pub give_up_after: HumanDuration,
    /// The statuses that it is told.
    #[serde(default = "default_statuses", deserialize_with = "statuses")]
    pub statuses: Vec<Status>,
    /// What becomes of an event without a session.
    #[serde(default)]
    pub unresolved: Unresolved,
    /// What becomes of an event that the chain has not confirmed. Without a `[[chain]]` there must be none.
    pub confirm: Option<Confirm>,
}

/// What becomes of a completed event until its chain has confirmed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// It is held.
    #[default]
    Require,
    /// It is posted at once; a header says that it is not confirmed.
    Tell,
}

/// What becomes of an event whose session is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unresolved {
    /// It is held until it is resolved.
    #[default]
    Hold,
    /// It is posted with `session_id: null`.
    Send,
}

/// A key of the table, and what is wrong with it.
type Problem = (String, String);

fn wrong<T>(key: &str, words: impl Into<String>) -> Result<T, Problem> {
    Err((key.to_owned(), words.into()))
}

/// What is asked for over a Unix socket: `/payment-webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HttpPath(pub PathAndQuery);

impl TryFrom<String> for HttpPath {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let path: PathAndQuery =
            text.parse().map_err(|e| format!("expected a path such as \"/payment-webhook\": {e}"))?;
        if !path.as_str().starts_with('/') {
            return Err("expected a path that begins with a slash, such as \"/payment-webhook\"".into());
        }
        Ok(HttpPath(path))
    }
}

fn default_timeout() -> HumanDuration {
    HumanDuration(StdDuration::from_secs(10))
}

fn default_give_up_after() -> HumanDuration {
    HumanDuration(StdDuration::from_secs(3 * 86_400))
}

fn default_statuses() -> Vec<Status> {
    vec![Status::Completed, Status::Failed]
}

fn statuses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Status>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    words.iter().map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

impl Settings {
    /// Whether the values go together.
    ///
    /// # Errors
    /// The key to look at, and what is wrong with it.
    pub fn check(&self) -> Result<(), Problem> {
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return wrong("name", "expected 1 to 64 characters; it names the callback in the database");
        }
        if self.statuses.is_empty() {
            return wrong("statuses", "expected at least one of completed, failed, pending");
        }
        if self.timeout.0.is_zero() || self.timeout.0 > StdDuration::from_secs(600) {
            return wrong("timeout", "expected more than nothing and at most \"10m\"");
        }
        self.check_address()
    }

    fn check_address(&self) -> Result<(), Problem> {
        match (&self.url, &self.unix) {
            (Some(_), Some(_)) => wrong("unix", "expected either `url` or `unix`, not both"),
            (None, None) => wrong("url", "expected `url = \"http://…\"`, or `unix = \"/run/….sock\"`"),
            (Some(_), None) if self.path.is_some() => wrong("path", "belongs to `unix`; a URL has its path in it"),
            (Some(url), None) => self.check_host(url),
            (None, Some(socket)) if !socket.is_absolute() => wrong("unix", "expected an absolute path"),
            (None, Some(_)) => Ok(()),
        }
    }

    /// An address can be judged at once; a name is judged by what it resolves to, at each connect.
    fn check_host(&self, url: &Url) -> Result<(), Problem> {
        match url.host.parse::<IpAddr>() {
            Ok(ip) if !self.allow_remote && !is_loopback(ip) => {
                wrong("url", format!("{ip} is not a loopback address; set allow_remote = true if it is meant"))
            }
            _ => Ok(()),
        }
    }

    /// As the outbox needs to know it.
    #[must_use]
    pub fn target(&self) -> db::TargetRules {
        db::TargetRules {
            name: self.name.clone(),
            statuses: self.statuses.clone(),
            send_unresolved: self.unresolved == Unresolved::Send,
            send_unconfirmed: self.confirm == Some(Confirm::Tell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let settings: Settings = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, words)| format!("{key}: {words}"))?;
        Ok(settings)
    }

    const REST: &str = "\nname = \"shop\"\nsecret = { env = \"S\" }";

    #[test]
    fn the_contract_s_table_is_read_and_the_rest_is_default() {
        let settings = read(&format!("url = \"http://127.0.0.1:3000/payment-webhook\"{REST}")).unwrap();
        let url = settings.url.unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.path.as_str()),
            (false, "127.0.0.1", 3000, "/payment-webhook")
        );
        assert_eq!((settings.timeout.to_string(), settings.give_up_after.to_string()), ("10s".into(), "3d".into()));
        assert_eq!(settings.statuses, [Status::Completed, Status::Failed]);
        assert_eq!(settings.unresolved, Unresolved::Hold);
        let unix =
            read(&format!("unix = \"/run/shop.sock\"\npath = \"/hook?a=1\"\nunresolved = \"send\"{REST}")).unwrap();
        assert_eq!(unix.path.as_ref().unwrap().0.as_str(), "/hook?a=1");
        assert!(unix.target().send_unresolved);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (table, words) in [
            ("url = \"ftp://127.0.0.1/\"", "http://"),
            ("url = \"/only/a/path\"", "http://"),
            ("url = \"http://me:pw@127.0.0.1/\"", "user or a password"),
            ("url = \"http://127.0.0.1:99999/\"", "port"),
            ("url = \"http://127.0.0.1:/\"", "port"),
            ("url = \"http://10.0.0.1/\"", "url: 10.0.0.1 is not a loopback"),
            ("url = \"http://[::ffff:10.0.0.1]/\"", "url: ::ffff:10.0.0.1 is not a loopback"),
            ("url = \"http://127.0.0.1/\"\nunix = \"/run/s\"", "unix: expected either"),
            ("allow_remote = true", "url: expected `url"),
            ("url = \"http://127.0.0.1/\"\npath = \"/x\"", "path: belongs to"),
            ("unix = \"run/s\"", "unix: expected an absolute"),
            ("unix = \"/run/s\"\npath = \"x\"", "slash"),
            ("url = \"http://127.0.0.1/\"\nstatuses = []", "statuses: "),
            ("url = \"http://127.0.0.1/\"\nstatuses = [\"paid\"]", "completed, failed, pending"),
            ("url = \"http://127.0.0.1/\"\ntimeout = \"0s\"", "timeout: "),
            ("url = \"http://127.0.0.1/\"\nunresolved = \"drop\"", "hold"),
            ("url = \"http://127.0.0.1/\"\nconfirm = \"maybe\"", "require"),
            ("url = \"http://127.0.0.1/\"\ncolour = \"red\"", "colour"),
        ] {
            let said = read(&format!("{table}{REST}")).unwrap_err();
            assert!(said.contains(words), "{table}: {said}");
        }
        assert!(read("url = \"http://127.0.0.1/\"\nname = \"shop\"").unwrap_err().contains("secret"));
    }
}
