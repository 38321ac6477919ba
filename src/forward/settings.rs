//! `[[forward]]`: the settings of one target.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use serde::{Deserialize, Deserializer};

use crate::configured_text::configured_text;
use crate::db;
use crate::http::Url;
use crate::loopback::is_loopback;
use crate::model::Status;
use crate::nats::{NatsSettings, NatsUrl};
use crate::secret;
use crate::units::HumanDuration;

/// One `[[forward]]` table. Deserialization checks the form of each value; [`ForwardSettings::check`] checks the other rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [[forward]]")]
pub struct ForwardSettings {
    /// The target's name in the database and in the log.
    pub name: String,
    /// The URL of the handler. Exactly one of `url`, `unix` and `nats` is set.
    pub url: Option<Url>,
    /// The Unix socket of the handler.
    pub unix: Option<PathBuf>,
    /// With `unix`: the path of the request.
    pub path: Option<HttpPath>,
    /// The servers of a NATS cluster, in place of a handler.
    pub nats: Option<Vec<NatsUrl>>,
    /// With `nats`: the stream's name.
    pub stream: Option<StreamName>,
    /// With `nats`: the beginning of each subject; the status and the event's id follow.
    pub subject: Option<SubjectPrefix>,
    /// With `nats`: the user's name.
    pub user: Option<String>,
    /// With `nats`: the user's password.
    pub password: Option<secret::SecretSource>,
    /// With `nats`: a token, in place of `user` and `password`.
    #[serde(default, deserialize_with = "secret::deserialize_optional")]
    pub token: Option<secret::SecretSource>,
    /// With `nats`: a PEM file with a client certificate.
    pub client_certificate: Option<PathBuf>,
    /// With `nats`: the private key of `client_certificate`.
    #[serde(default, deserialize_with = "secret::deserialize_optional")]
    pub client_key: Option<secret::SecretSource>,
    /// With `nats`: a PEM file with certificates that are trusted besides the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The secret that signs the requests.
    pub secret: secret::SecretSource,
    /// Whether the handler, or a NATS server that is reached without TLS, may be on another machine.
    #[serde(default)]
    pub allow_remote: bool,
    /// How long one attempt may take, from the lookup of the host to the response; see [`ForwardSettings::timeout`].
    pub timeout: Option<HumanDuration>,
    /// The longest time from the first attempt of a delivery to its last attempt.
    #[serde(default = "default_give_up_after")]
    pub give_up_after: HumanDuration,
    /// The statuses of the events that are delivered.
    #[serde(default = "default_statuses", deserialize_with = "statuses")]
    pub statuses: Vec<Status>,
    /// The handling of events without a session.
    #[serde(default)]
    pub unresolved: Unresolved,
    /// The handling of completed events that their chain has not confirmed. This setting needs a `[[chain]]`.
    pub confirm: Option<Confirm>,
}

/// The handling of a completed event that its chain has not confirmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Confirm {
    /// The event is held until its chain has confirmed it.
    #[default]
    Require,
    /// The event is delivered at once. The header `X-Mailhook-Chain` reports that the event is not confirmed.
    Tell,
}

/// The handling of an event whose session is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unresolved {
    /// The event is held until it has a session.
    #[default]
    Hold,
    /// The event is delivered with `session_id: null`.
    Send,
}

configured_text!(Confirm, "\"require\" or \"tell\"", "require" => Require, "tell" => Tell);
configured_text!(Unresolved, "\"hold\" or \"send\"", "hold" => Hold, "send" => Send);

/// The result of a check. An error contains the name of the setting whose value is wrong, and the problem.
type Checked = Result<(), (String, String)>;

fn wrong(key: &str, message: impl Into<String>) -> Checked {
    Err((key.to_owned(), message.into()))
}

/// The path of a request over a Unix socket, for example `/payment-webhook`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPath(pub PathAndQuery);

configured_text!(HttpPath, "a path in quotes, for example \"/payment-webhook\"");

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

/// The name of a stream. The name occurs in subjects and in a command for the operator's shell, so few characters are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamName(pub String);

configured_text!(StreamName, "the name of a stream in quotes, for example \"RESMIC_EVENTS\"");

impl TryFrom<String> for StreamName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if is_token(&text) && text.len() <= MAX_STREAM_NAME {
            return Ok(StreamName(text));
        }
        Err("expected the name of a stream, of letters, digits, - and _, for example \"RESMIC_EVENTS\"".into())
    }
}

/// The beginning of subjects: tokens that are separated by dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPrefix(pub String);

configured_text!(SubjectPrefix, "the beginning of the subjects in quotes, for example \"resmic.events\"");

impl TryFrom<String> for SubjectPrefix {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        // The server sends answers on subjects below _INBOX.
        if text.split('.').all(is_token) && text.len() <= MAX_PREFIX && !text.starts_with("_INBOX") {
            return Ok(SubjectPrefix(text));
        }
        Err("expected the beginning of a subject: words of letters, digits, - and _, separated by dots, for example \
             \"resmic.events\"; the status and the event's id are appended"
            .into())
    }
}

/// The longest name of a stream, and the longest prefix of subjects, in bytes.
const MAX_STREAM_NAME: usize = 200;
const MAX_PREFIX: usize = 200;

/// The default time limits of an attempt. The limit for a stream is short, because a leader that has died never answers. The
/// election of another leader takes about as long as this limit.
const HANDLER_TIMEOUT: HumanDuration = HumanDuration(Duration::from_secs(10));
const STREAM_TIMEOUT: HumanDuration = HumanDuration(Duration::from_secs(5));

/// Whether a text can be one token of a subject. A token has no character that NATS or a shell would interpret.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn default_give_up_after() -> HumanDuration {
    HumanDuration(Duration::from_secs(3 * 86_400))
}

fn default_statuses() -> Vec<Status> {
    vec![Status::Completed, Status::Failed]
}

fn statuses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Status>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

impl ForwardSettings {
    /// Whether this target and `other` publish events under the same subjects to the same stream.
    #[must_use]
    pub fn publishes_like(&self, other: &ForwardSettings) -> bool {
        let shares =
            |servers: &Vec<NatsUrl>| servers.iter().any(|server| other.nats.iter().flatten().any(|o| o == server));
        self.nats.as_ref().is_some_and(shares)
            && (&self.stream, &self.subject) == (&other.stream, &other.subject)
            && self.statuses.iter().any(|status| other.statuses.contains(status))
    }

    /// Checks the rules that deserialization does not check, such as rules that concern several values.
    ///
    /// # Errors
    /// The name of the setting whose value is wrong, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return wrong("name", "expected 1 to 64 characters; the database has the target under this name");
        }
        if self.statuses.is_empty() {
            return wrong("statuses", "expected at least one of completed, failed, pending");
        }
        let timeout = self.timeout().0;
        if timeout.is_zero() || timeout > Duration::from_secs(600) {
            return wrong("timeout", "expected more than nothing and at most \"10m\"");
        }
        self.check_address()
    }

    /// The time limit of one attempt.
    #[must_use]
    pub fn timeout(&self) -> HumanDuration {
        self.timeout.unwrap_or(if self.nats.is_some() { STREAM_TIMEOUT } else { HANDLER_TIMEOUT })
    }

    fn check_address(&self) -> Checked {
        if let Some(nats) = self.nats_settings() {
            return self.check_stream(&nats);
        }
        let foreign = [
            ("stream", self.stream.is_some()),
            ("subject", self.subject.is_some()),
            ("user", self.user.is_some()),
            ("password", self.password.is_some()),
            ("token", self.token.is_some()),
            ("client_certificate", self.client_certificate.is_some()),
            ("client_key", self.client_key.is_some()),
            ("ca_file", self.ca_file.is_some()),
        ];
        if let Some((key, _)) = foreign.into_iter().find(|(_, is_set)| *is_set) {
            return wrong(key, "belongs to `nats`, which is not set");
        }
        match (&self.url, &self.unix) {
            (Some(_), Some(_)) => wrong("unix", "expected either `url` or `unix`, not both"),
            (None, None) => {
                wrong("url", "expected `url = \"http://…\"`, `unix = \"/run/….sock\"`, or `nats = [\"tls://…\"]`")
            }
            (Some(_), None) if self.path.is_some() => wrong("path", "belongs to `unix`; a URL contains its path"),
            (Some(url), None) => self.check_host(url),
            (None, Some(socket)) if !socket.is_absolute() => wrong("unix", "expected an absolute path"),
            (None, Some(_)) => Ok(()),
        }
    }

    fn check_stream(&self, nats: &NatsSettings) -> Checked {
        let foreign = [("url", self.url.is_some()), ("unix", self.unix.is_some()), ("path", self.path.is_some())];
        if let Some((key, _)) = foreign.into_iter().find(|(_, is_set)| *is_set) {
            return wrong(key, "expected one of `url`, `unix` and `nats`");
        }
        if self.stream.is_none() {
            return wrong("stream", "expected the name of a stream with `nats`, for example \"RESMIC_EVENTS\"");
        }
        if self.subject.is_none() {
            return wrong(
                "subject",
                "expected the beginning of the subjects with `nats`, for example \"resmic.events\"",
            );
        }
        nats.check()
    }

    /// The servers and the login, if the target is a stream.
    #[must_use]
    pub fn nats_settings(&self) -> Option<NatsSettings> {
        Some(NatsSettings {
            servers: self.nats.clone()?,
            allow_remote: self.allow_remote,
            user: self.user.clone(),
            password: self.password.clone(),
            token: self.token.clone(),
            client_certificate: self.client_certificate.clone(),
            client_key: self.client_key.clone(),
            ca_file: self.ca_file.clone(),
        })
    }

    /// Resolves relative paths against the folder `base`, and sets the time limit of an attempt if it is not configured.
    pub fn complete(&mut self, base: &Path) {
        self.timeout = Some(self.timeout());
        for file in [&mut self.client_certificate, &mut self.ca_file].into_iter().flatten() {
            *file = base.join(&*file);
        }
        let optional = [&mut self.password, &mut self.token, &mut self.client_key];
        for secret in optional.into_iter().flatten().chain([&mut self.secret]) {
            secret.resolve_path(base);
        }
    }

    /// If the URL's host is an IP address, it must be a loopback address, unless `allow_remote` is set. A host name is checked at
    /// each connect, by the addresses that it resolves to.
    fn check_host(&self, url: &Url) -> Checked {
        match url.host.parse::<IpAddr>() {
            Ok(ip) if !self.allow_remote && !is_loopback(ip) => {
                wrong("url", format!("{ip} is not a loopback address; set allow_remote = true if it is meant"))
            }
            _ => Ok(()),
        }
    }

    /// The settings that the database needs to create and hold the deliveries of this target.
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
        let url = settings.url.as_ref().unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.path.as_str()),
            (false, "127.0.0.1", 3000, "/payment-webhook")
        );
        assert_eq!((settings.timeout().to_string(), settings.give_up_after.to_string()), ("10s".into(), "3d".into()));
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

    #[test]
    fn streams_have_a_name_and_a_subject() {
        const STREAM: &str = "nats = [\"tls://n1.example\"]\nstream = \"PAID\"\nsubject = \"shop.paid\"";
        let settings = parse(&format!("{STREAM}{REST}")).unwrap();
        assert_eq!(settings.timeout().to_string(), "5s");
        assert_eq!(settings.nats_settings().unwrap().servers[0].to_string(), "tls://n1.example:4222");
        for (table, expected) in [
            ("nats = [\"tls://n1.example\"]\nsubject = \"x\"", "stream: expected the name"),
            ("nats = [\"tls://n1.example\"]\nstream = \"X\"", "subject: expected the beginning"),
            ("nats = []\nstream = \"X\"\nsubject = \"x\"", "nats: expected at least one"),
            ("nats = [\"nats://10.0.0.1\"]\nstream = \"X\"\nsubject = \"x\"", "nats: 10.0.0.1 is not a loopback"),
            (&format!("{STREAM}\nurl = \"http://127.0.0.1/\""), "url: expected one of"),
            (&format!("{STREAM}\npath = \"/x\""), "path: expected one of"),
            (&format!("{STREAM}\nuser = \"me\""), "user: expected a `password`"),
            ("url = \"http://127.0.0.1/\"\nstream = \"X\"", "stream: belongs to `nats`"),
            ("url = \"http://127.0.0.1/\"\ntoken = { env = \"T\" }", "token: belongs to `nats`"),
            (&format!("{STREAM}\ntoken = \"s3cret\""), "must not contain a secret"),
        ] {
            let error = parse(&format!("{table}{REST}")).unwrap_err();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{table}: {error}");
        }
        for name in ["", "a b", "a.b", "a*", ">", "$(x)", "é"] {
            assert!(StreamName::try_from(name.to_owned()).is_err(), "{name}");
        }
        for prefix in ["", ".", "a.", "a..b", "a.*", "a.>", "_INBOX.x", "$JS.x", "a b"] {
            assert!(SubjectPrefix::try_from(prefix.to_owned()).is_err(), "{prefix}");
        }
    }
}
