//! TOML → a [`Config`] that cannot be wrong.
//!
//! Each room owns its own settings; this one reads them, checks what concerns more than one of them, and says in
//! which file, in which line and at which key something is wrong. A secret is never part of what it says.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::chain::ChainSettings;
use crate::source::imap;
use crate::{extract, forward, payments, secret, telemetry, trust};

/// Where a configuration is looked for if none is named, the first there is.
const PLACES: [&str; 2] = ["config.toml", "/etc/resmic-mailhook/config.toml"];

/// Where a package puts the configuration, and where its unit keeps the state.
const ETC: &str = "/etc/resmic-mailhook";
const STATE: &str = "/var/lib/resmic-mailhook";

/// The keys at which a secret is named.
const SECRETS: [&str; 6] = ["password", "secret", "key", "client_secret", "refresh_token", "nodes"];

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[store]`
    #[serde(default)]
    pub store: StoreTable,
    /// `[[account]]`
    #[serde(default, rename = "account")]
    pub accounts: Vec<imap::Settings>,
    /// `[trust]`
    #[serde(default)]
    pub trust: trust::TrustSettings,
    /// `[dns]`
    #[serde(default)]
    pub dns: trust::dns::DnsSettings,
    /// `[extract]`
    #[serde(default)]
    pub extract: extract::ExtractSettings,
    /// `[sessions]`
    #[serde(default)]
    pub sessions: payments::SessionSettings,
    /// `[[forward]]`
    #[serde(default, rename = "forward")]
    pub forwards: Vec<forward::Settings>,
    /// `[[chain]]`
    #[serde(default, rename = "chain")]
    pub chains: Vec<ChainSettings>,
    /// `[telemetry]`
    #[serde(default)]
    pub telemetry: telemetry::TelemetrySettings,
    /// The file it was read from, for telling where something is wrong.
    #[serde(skip)]
    pub text: Text,
}

/// `[store]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreTable {
    /// The database file; by default `mailhook.db`, under systemd in `$STATE_DIRECTORY`.
    path: Option<PathBuf>,
}

/// The file that a configuration was read from.
#[derive(Debug, Clone, Default)]
pub struct Text {
    path: PathBuf,
    content: String,
}

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file, or it cannot be read.
    #[error("configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// None was named and none was found.
    #[error(
        "no configuration: name one with --config, or put one at ./config.toml or /etc/resmic-mailhook/config.toml"
    )]
    None,
    /// A key is wrong.
    #[error("{path}:{line}: {key}: {words}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, as a path: `account[1].tls`.
        key: String,
        /// What was expected.
        words: String,
    },
}

/// A key and what is wrong with it, before the line is known.
pub type Problem = (String, String);

impl Config {
    /// Reads the named file, or the first there is of the usual places.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        match named {
            Some(path) => Config::read(path),
            None => PLACES.iter().map(Path::new).find(|p| p.exists()).map_or(Err(Error::None), Config::read),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let content = std::fs::read(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let content = String::from_utf8(content).map_err(|e| Text::of(path, e.as_bytes()).no_utf8(&e.utf8_error()))?;
        Config::parse(path, content)
    }

    /// Reads the content of a file that need not exist yet.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(path: &Path, content: String) -> Result<Self, Error> {
        let text = Text { path: path.to_owned(), content };
        let mut config: Config = toml::from_str(&text.content).map_err(|e| text.explain(&e))?;
        config.text = text;
        config.check().map_err(|(key, words)| config.text.wrong(&key, words))?;
        config.resolve_paths();
        Ok(config)
    }

    /// What holds between keys.
    fn check(&self) -> Result<(), Problem> {
        if self.store.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(("store.path".into(), "expected a file's name".into()));
        }
        unique("account", self.accounts.iter().map(|a| a.name.as_str()))?;
        unique("forward", self.forwards.iter().map(|f| f.name.as_str()))?;
        for (n, account) in self.accounts.iter().enumerate() {
            account.check().map_err(|(key, words)| (format!("account[{n}].{key}"), words))?;
        }
        for (n, forward) in self.forwards.iter().enumerate() {
            forward.check().map_err(|(key, words)| (format!("forward[{n}].{key}"), words))?;
        }
        ChainSettings::check_all(&self.chains)?;
        let confirms = self.forwards.iter().position(|forward| forward.confirm.is_some());
        if let Some(n) = confirms.filter(|_| self.chains.is_empty()) {
            let words = "needs a [[chain]]: without one, nothing confirms a payment";
            return Err((format!("forward[{n}].confirm"), words.into()));
        }
        self.trust.check().map_err(|(key, words)| (format!("trust.{key}"), words))?;
        self.sessions.check().map_err(|(key, words)| (format!("sessions.{key}"), words))?;
        self.telemetry.check().map_err(|(key, words)| (format!("telemetry.{key}"), words))?;
        self.extract.check().map_err(|(key, words)| (format!("extract.{key}"), words))
    }

    /// A relative path in the file means: beside the file.
    fn resolve_paths(&mut self) {
        let base = self.text.path.parent().map(Path::to_owned).unwrap_or_default();
        for account in &mut self.accounts {
            account.ca_file = account.ca_file.take().map(|path| base.join(path));
            account.password.iter_mut().for_each(|source| source.resolve_path(&base));
            account.oauth2.iter_mut().flat_map(imap::OAuth2::secrets_mut).for_each(|source| source.resolve_path(&base));
        }
        for forward in &mut self.forwards {
            forward.secret.resolve_path(&base);
        }
        for node in self.chains.iter_mut().flat_map(|chain| &mut chain.nodes) {
            node.resolve(&base);
        }
        if let Some(address) = &mut self.sessions.address {
            address.key.resolve_path(&base);
        }
    }

    /// The file that it was read from, for reading it again.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.text.path
    }

    /// The database file. A relative path means: under systemd in `$STATE_DIRECTORY`; for a configuration in
    /// `/etc/resmic-mailhook` in `/var/lib/resmic-mailhook`, which is the same folder seen by an operator; else beside
    /// the configuration.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        let path = self.store.path.clone().unwrap_or_else(|| "mailhook.db".into());
        let base = match (std::env::var_os("STATE_DIRECTORY"), self.text.path.parent()) {
            // systemd separates several by colons; ours is the first.
            (Some(folders), _) => std::env::split_paths(&folders).next().unwrap_or_default(),
            (None, _) if is_packaged(&self.text.path) => STATE.into(),
            (None, folder) => folder.map(Path::to_owned).unwrap_or_default(),
        };
        base.join(path)
    }

    /// Fetches a secret that stands at `key`.
    ///
    /// # Errors
    /// [`Error::Wrong`], with the key's place.
    pub async fn secret(&self, key: &str, source: &secret::SecretSource) -> Result<secrecy::SecretString, Error> {
        source.load().await.map_err(|missing| self.text.wrong(key, missing.to_string()))
    }

    /// Something that turned out wrong about a key.
    #[must_use]
    pub fn wrong(&self, key: &str, words: impl Into<String>) -> Error {
        self.text.wrong(key, words.into())
    }
}

/// Whether a file is the configuration of the packaged unit, whose secrets are credentials.
#[must_use]
pub fn is_packaged(file: &Path) -> bool {
    is_packaged_from(file, &std::env::current_dir().unwrap_or_default())
}

/// Whether it is a package's configuration, seen from the folder `here`: an operator may stand right beside it.
fn is_packaged_from(file: &Path, here: &Path) -> bool {
    here.join(file).parent() == Some(Path::new(ETC))
}

fn unique<'a>(table: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Problem> {
    let mut seen = std::collections::HashSet::new();
    for (n, name) in names.enumerate() {
        let words = if name.is_empty() || name.chars().any(char::is_control) {
            "expected a name"
        } else if !seen.insert(name) {
            "another one has this name; names must differ"
        } else {
            continue;
        };
        return Err((format!("{table}[{n}].name"), words.into()));
    }
    Ok(())
}

impl Text {
    /// A key's place, for what is wrong with it.
    fn wrong(&self, key: &str, words: String) -> Error {
        let span = DeTable::parse(&self.content).ok().and_then(|table| span_of(table.get_ref(), key));
        self.at(span.map_or(0, |s| s.start), key.to_owned(), words)
    }

    /// The file as far as it is text.
    fn of(path: &Path, bytes: &[u8]) -> Self {
        Text { path: path.to_owned(), content: String::from_utf8_lossy(bytes).into_owned() }
    }

    fn no_utf8(&self, error: &std::str::Utf8Error) -> Error {
        let at = error.valid_up_to();
        let key = self.key_before(at).unwrap_or_else(|| "configuration".into());
        self.at(at, key, "expected UTF-8; an editor has saved the file in another encoding".into())
    }

    /// The library's error, without the line that it quotes: there may be a secret in it.
    fn explain(&self, error: &toml::de::Error) -> Error {
        let at = error.span().map_or(0, |span| span.start);
        let (table, broken) = DeTable::parse_recoverable(&self.content);
        let whole = key_at(table.get_ref(), at).or_else(|| self.key_before(at)).unwrap_or_default();
        let secret = secret_key(&whole);
        // Where it is no TOML, the words are of its signs and never of what stands between them.
        let words = if secret.is_some() && broken.is_empty() {
            "expected { credential = \"name\" }, { file = \"path\" }, { env = \"NAME\" } or { command = [\"program\"] }; \
             a secret never stands in the configuration itself"
                .to_owned()
        } else {
            crate::model::printable(&in_plain_words(without_value(error.message())), 300)
        };
        let key = secret.unwrap_or(&whole);
        self.at(at, if key.is_empty() { "configuration".into() } else { key.to_owned() }, words)
    }

    /// The key on the line of `offset`, as it is written there: for what is no TOML, or stands there twice.
    fn key_before(&self, offset: usize) -> Option<String> {
        let begin = self.content.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
        let key = self.content.get(begin..)?.lines().next()?.split_once('=')?.0.trim();
        let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        Some(key).filter(|key| !key.is_empty() && key.chars().all(is_key)).map(str::to_owned)
    }

    fn at(&self, offset: usize, key: String, words: String) -> Error {
        let line = 1 + self.content.bytes().take(offset).filter(|b| *b == b'\n').count();
        Error::Wrong { path: self.path.clone(), line, key, words }
    }
}

/// The key at which a secret is named, if this one is there or within: what stands within may be the secret, taken for a
/// key.
fn secret_key(key: &str) -> Option<&str> {
    let mut ends = key.match_indices('.').map(|(dot, _)| dot).chain([key.len()]).filter_map(|end| key.get(..end));
    ends.find(|key| SECRETS.contains(&key.rsplit('.').next().unwrap_or_default()))
}

/// The library's words without the value that they quote: it may be a secret that stands where none is looked for.
fn without_value(message: &str) -> &str {
    match message.strip_prefix("invalid type: ").and_then(|rest| rest.rfind(", expected ")) {
        Some(at) => message.get("invalid type: ".len() + at + 2..).unwrap_or(message),
        None => message,
    }
}

/// Parts of the library's messages, and plainer ones instead of them. The library has no codes, so a test compares the messages.
const PLAIN: [(&str, &str); 6] = [
    ("expected u16", "expected a port, from 1 to 65535, without quotes"),
    ("expected a sequence", "expected a list, in brackets: [\"…\"]"),
    ("expected path string", "expected a file's name"),
    ("expected socket address", "expected an address and a port, for example \"127.0.0.1:9464\""),
    ("invalid socket address syntax", "expected an address, no name, and a port, for example \"127.0.0.1:9464\""),
    ("wanted string or table", "expected a text, or a table"),
];

fn in_plain_words(words: &str) -> String {
    PLAIN.iter().fold(words.to_owned(), |words, (library, ours)| words.replace(library, ours))
}

/// The innermost key whose name or value stands at `offset`.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    let within = |span: Range<usize>| span.start <= offset && offset < span.end.max(span.start + 1);
    for (key, value) in table {
        if within(key.span()) {
            return Some(key.get_ref().to_string());
        }
        if let Some(rest) = value_at(value, offset) {
            return Some(format!("{}{rest}", key.get_ref()));
        }
    }
    None
}

/// What has to be added to a key's name if `offset` is inside its value.
fn value_at(value: &Spanned<DeValue<'_>>, offset: usize) -> Option<String> {
    let span = value.span();
    let here = || (span.start <= offset && offset < span.end.max(span.start + 1)).then(String::new);
    match value.get_ref() {
        DeValue::Table(table) => key_at(table, offset).map(|rest| format!(".{rest}")).or_else(here),
        DeValue::Array(array) => {
            let inner =
                array.iter().enumerate().find_map(|(n, v)| value_at(v, offset).map(|rest| format!("[{n}]{rest}")));
            inner.or_else(here)
        }
        _ => here(),
    }
}

/// Where a key (or, if it is not there, the innermost table that should have it) stands.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(a, b)| (a, Some(b)));
    let (name, index) = match first.split_once('[') {
        Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
        None => (first, None),
    };
    let (found, mut value) = table.iter().find(|(k, _)| k.get_ref().as_ref() == name)?;
    let mut span = found.span();
    if let (DeValue::Array(array), Some(n)) = (value.get_ref(), index) {
        value = array.get(n)?;
        span = value.span();
    }
    match (value.get_ref(), rest) {
        (DeValue::Table(inner), Some(rest)) => span_of(inner, rest).or(Some(span)),
        _ => Some(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_library_are_unchanged() {
        let message = |text: &str| toml::from_str::<Config>(text).unwrap_err().message().to_owned();
        let files = [
            "[[account]]\nport = \"s3cret\"",
            "[[account]]\nmailboxes = \"s3cret\"",
            "[store]\npath = 1",
            "[telemetry]\nmetrics = 1",
            "[telemetry]\nmetrics = \"s3cret:1\"",
            "[telemetry]\nlog = 1",
        ];
        for (file, (part, _)) in files.into_iter().zip(PLAIN) {
            let message = message(file);
            assert!(message.contains(part), "{file}: {message}");
            assert!(!without_value(&message).contains("s3cret"), "{file}: {message}");
        }
        let wrong_type = message(files[0]);
        assert_eq!(wrong_type, "invalid type: string \"s3cret\", expected u16", "`without_value` needs this form");
    }

    #[test]
    fn a_package_s_configuration_is_known_also_by_who_stands_beside_it() {
        for (file, here) in [
            ("/etc/resmic-mailhook/config.toml", "/root"),
            ("config.toml", "/etc/resmic-mailhook"),
            ("./config.toml", "/etc/resmic-mailhook/"),
            ("resmic-mailhook/other.toml", "/etc"),
        ] {
            assert!(is_packaged_from(Path::new(file), Path::new(here)), "{file} {here}");
        }
        for (file, here) in [("config.toml", "/root"), ("/srv/config.toml", "/etc/resmic-mailhook"), ("", "")] {
            assert!(!is_packaged_from(Path::new(file), Path::new(here)), "{file} {here}");
        }
    }
}
