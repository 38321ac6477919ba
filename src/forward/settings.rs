//! `[[forward]]`: the settings of one target.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use serde::{Deserialize, Deserializer};

use crate::db;
use crate::http::Url;
use crate::loopback::is_loopback;
use crate::model::Status;
use crate::secret;
use crate::units::HumanDuration;

/// One `[[forward]]` table. Deserialization checks each value; [`ForwardSettings::check`] checks them together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSettings {
    /// The target's name in the database and in the log.
    pub name: String,
    /// The URL of the handler. Either this or `unix` is set.
    pub url: Option<Url>,
    /// The Unix socket of the handler. Either this or `url` is set.
    pub unix: Option<PathBuf>,
    /// With `unix`: the path of the request.
    pub path: Option<HttpPath>,
    /// The secret that signs the requests.
    pub secret: secret::SecretSource,
    /// Whether the handler may be on another machine.
    #[serde(default)]
    pub allow_remote: bool,
    /// How long one attempt may take, from the lookup of the host to the response.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// The time from the first attempt to the last.
    #[serde(default = "default_give_up_after")]
    pub give_up_after: HumanDuration,
    /// The statuses of the events that are delivered.
    #[serde(default = "default_statuses", deserialize_with = "statuses")]
    pub statuses: Vec<Status>,
    /// The handling of events without a session.
    #[serde(default)]
    pub unresolved: Unresolved,
    /// The handling of completed events that their chain has not confirmed. It needs a `[[chain]]`.
    pub confirm: Option<Confirm>,
}

/// The handling of a completed event that its chain has not confirmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// The event is held until it is confirmed.
    #[default]
    Require,
    /// The event is delivered at once. A header reports that it is not confirmed.
    Tell,
}

/// The handling of an event whose session is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unresolved {
    /// The event is held until it has a session.
    #[default]
    Hold,
    /// The event is delivered with `session_id: null`.
    Send,
}

/// The result of a check: an error has the key and the problem.
type Checked = Result<(), (String, String)>;

fn wrong(key: &str, message: impl Into<String>) -> Checked {
    Err((key.to_owned(), message.into()))
}

/// The path of a request over a Unix socket, for example `/payment-webhook`.
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
    HumanDuration(Duration::from_secs(10))
}

fn default_give_up_after() -> HumanDuration {
    HumanDuration(Duration::from_secs(3 * 86_400))
}

fn default_statuses() -> Vec<Status> {
    vec![Status::Completed, Status::Failed]
}

fn statuses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Status>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    words.iter().map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

impl ForwardSettings {
    /// Checks rules that concern several values.
    ///
    /// # Errors
    /// The wrong key, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return wrong("name", "expected 1 to 64 characters; the database has the target under this name");
        }
        if self.statuses.is_empty() {
            return wrong("statuses", "expected at least one of completed, failed, pending");
        }
        if self.timeout.0.is_zero() || self.timeout.0 > Duration::from_secs(600) {
            return wrong("timeout", "expected more than nothing and at most \"10m\"");
        }
        self.check_address()
    }

    fn check_address(&self) -> Checked {
        match (&self.url, &self.unix) {
            (Some(_), Some(_)) => wrong("unix", "expected either `url` or `unix`, not both"),
            (None, None) => wrong("url", "expected `url = \"http://…\"`, or `unix = \"/run/….sock\"`"),
            (Some(_), None) if self.path.is_some() => wrong("path", "belongs to `unix`; a URL contains its path"),
            (Some(url), None) => self.check_host(url),
            (None, Some(socket)) if !socket.is_absolute() => wrong("unix", "expected an absolute path"),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Checks a URL with an IP address. A host name is checked at each connect, by the addresses that it resolves to.
    fn check_host(&self, url: &Url) -> Checked {
        match url.host.parse::<IpAddr>() {
            Ok(ip) if !self.allow_remote && !is_loopback(ip) => {
                wrong("url", format!("{ip} is not a loopback address; set allow_remote = true if it is meant"))
            }
            _ => Ok(()),
        }
    }

    /// The part of the settings that the outbox needs.
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

    fn parse(text: &str) -> Result<ForwardSettings, String> {
        let settings: ForwardSettings = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, message)| format!("{key}: {message}"))?;
        Ok(settings)
    }

    const REST: &str = "\nname = \"shop\"\nsecret = { env = \"S\" }";

    #[test]
    fn missing_values_have_defaults() {
        let settings = parse(&format!("url = \"http://127.0.0.1:3000/payment-webhook\"{REST}")).unwrap();
        let url = settings.url.unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.path.as_str()),
            (false, "127.0.0.1", 3000, "/payment-webhook")
        );
        assert_eq!((settings.timeout.to_string(), settings.give_up_after.to_string()), ("10s".into(), "3d".into()));
        assert_eq!(settings.statuses, [Status::Completed, Status::Failed]);
        assert_eq!(settings.unresolved, Unresolved::Hold);
        let unix =
            parse(&format!("unix = \"/run/shop.sock\"\npath = \"/hook?a=1\"\nunresolved = \"send\"{REST}")).unwrap();
        assert_eq!(unix.path.as_ref().unwrap().0.as_str(), "/hook?a=1");
        assert!(unix.target().send_unresolved);
    }

    #[test]
    fn errors_name_the_wrong_key() {
        for (table, expected) in [
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
            let error = parse(&format!("{table}{REST}")).unwrap_err();
            assert!(error.contains(expected), "{table}: {error}");
        }
        assert!(parse("url = \"http://127.0.0.1/\"\nname = \"shop\"").unwrap_err().contains("secret"));
    }
}
