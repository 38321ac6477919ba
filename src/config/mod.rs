//! Parses TOML into a valid [`Config`].
//!
//! Each room defines and checks its settings. This module reads the file, and checks rules that concern several keys. An error
//! names the file, the line and the key, but does not quote a value that may be a secret.

mod file;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use self::file::ConfigFile;
use crate::chain::ChainSettings;
use crate::resmic::ResmicSettings;
use crate::source::imap;
use crate::standby::{ConfigurationHashes, StandbySettings};
use crate::{extract, forward, payments, secret, telemetry, trust};

/// The paths that are tried if no configuration is named. The first that exists is used.
const DEFAULT_PATHS: [&str; 2] = ["config.toml", "/etc/resmic-mailhook/config.toml"];

/// The configuration folder and the state folder of the packaged unit.
const ETC: &str = "/etc/resmic-mailhook";
const STATE: &str = "/var/lib/resmic-mailhook";

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[store]`
    #[serde(default)]
    pub store: StoreTable,
    /// `[[account]]`
    #[serde(default, rename = "account")]
    pub accounts: Vec<imap::ImapSettings>,
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
    pub forwards: Vec<forward::ForwardSettings>,
    /// `[[chain]]`
    #[serde(default, rename = "chain")]
    pub chains: Vec<ChainSettings>,
    /// `[resmic]`
    pub resmic: Option<ResmicSettings>,
    /// `[standby]`
    pub standby: Option<StandbySettings>,
    /// `[telemetry]`
    #[serde(default)]
    pub telemetry: telemetry::TelemetrySettings,
    /// The path and the content of the configuration file. Errors find the line of a key in this content.
    #[serde(skip)]
    pub file: ConfigFile,
}

/// `[store]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [store]")]
pub struct StoreTable {
    /// The database file, by default `mailhook.db`. [`Config::database`] resolves a relative path.
    path: Option<PathBuf>,
}

/// An error in a configuration. [`Error::Wrong`] has the file, the line and the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not exist or cannot be read.
    #[error("configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// No path was given, and none of the default paths exists.
    #[error(
        "no configuration: name one with --config, or put one at ./config.toml or /etc/resmic-mailhook/config.toml"
    )]
    None,
    /// The value of a key is wrong.
    #[error("{path}:{line}: {key}: {message}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// The key, as a path: `account[1].tls`.
        key: String,
        /// The expected value, or the problem.
        message: String,
    },
}

/// A key and its problem, before the line of the key is known.
type KeyProblem = (String, String);

impl Config {
    /// Reads the given file, or the first of the default paths that exists.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find(path: Option<&Path>) -> Result<Self, Error> {
        match path {
            Some(path) => Config::read(path),
            None => DEFAULT_PATHS.iter().map(Path::new).find(|p| p.exists()).map_or(Err(Error::None), Config::read),
        }
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let content = std::fs::read(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let content = String::from_utf8(content)
            .map_err(|e| ConfigFile::from_bytes(path, e.as_bytes()).not_utf8(&e.utf8_error()))?;
        Config::parse(path, content)
    }

    /// Parses and checks `content`. The file at `path` need not exist yet.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parse(path: &Path, content: String) -> Result<Self, Error> {
        let file = ConfigFile { path: path.to_owned(), content };
        let mut config: Config = toml::from_str(&file.content).map_err(|e| file.explain(&e))?;
        config.file = file;
        config.check().map_err(|(key, message)| config.file.wrong(&key, message))?;
        config.resolve_paths();
        Ok(config)
    }

    /// Checks the settings of each room, and the rules that concern several keys.
    fn check(&self) -> Result<(), KeyProblem> {
        if self.store.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(("store.path".into(), "expected a path".into()));
        }
        unique("account", self.accounts.iter().map(|a| a.name.as_str()))?;
        unique("forward", self.forwards.iter().map(|f| f.name.as_str()))?;
        for (n, account) in self.accounts.iter().enumerate() {
            account.check().map_err(|(key, problem)| (format!("account[{n}].{key}"), problem))?;
        }
        for (n, forward) in self.forwards.iter().enumerate() {
            forward.check().map_err(|(key, problem)| (format!("forward[{n}].{key}"), problem))?;
        }
        separate_streams(&self.forwards)?;
        ChainSettings::check_all(&self.chains)?;
        let confirms = self.forwards.iter().position(|forward| forward.confirm.is_some());
        if let Some(n) = confirms.filter(|_| self.chains.is_empty()) {
            let problem = "needs a [[chain]]: without one, nothing confirms a payment";
            return Err((format!("forward[{n}].confirm"), problem.into()));
        }
        self.trust.check().map_err(|(key, problem)| (format!("trust.{key}"), problem))?;
        self.sessions.check().map_err(|(key, problem)| (format!("sessions.{key}"), problem))?;
        if let Some(resmic) = &self.resmic {
            resmic.check().map_err(|(key, problem)| (format!("resmic.{key}"), problem))?;
        }
        if let Some(standby) = &self.standby {
            standby.check().map_err(|(key, problem)| (format!("standby.{key}"), problem))?;
            if standby.restore.is_some() {
                self.check_moves()?;
            }
        }
        self.telemetry.check().map_err(|(key, problem)| (format!("telemetry.{key}"), problem))?;
        self.extract.check().map_err(|(key, problem)| (format!("extract.{key}"), problem))
    }

    /// Checks that each target of a move is watched. A host moves a mail right after the commit. If the host then fails, the copy
    /// that the next host restores may lack this commit, and the mail is no longer in its first mailbox. The next host fetches
    /// the mail from the target, because the cursor of the target in the copy is older than the move. The check cannot find out
    /// whether `restore` fetches a copy or waits for a volume, which lacks nothing.
    fn check_moves(&self) -> Result<(), KeyProblem> {
        for (n, account) in self.accounts.iter().enumerate() {
            if let Some(target) = account.unwatched_target() {
                let problem = format!(
                    "with `restore` in [standby], add {target:?} to `mailboxes` of this account: the copy of the database may \
                     lack the mails that were moved last, and the new host then fetches them from there"
                );
                return Err((format!("account[{n}].after"), problem));
            }
        }
        Ok(())
    }

    /// Makes relative paths relative to the folder of the configuration.
    fn resolve_paths(&mut self) {
        let base = self.file.path.parent().map(Path::to_owned).unwrap_or_default();
        for account in &mut self.accounts {
            account.ca_file = account.ca_file.take().map(|path| base.join(path));
            if let Some(password) = &mut account.password {
                password.resolve_path(&base);
            }
            for secret in account.oauth2.iter_mut().flat_map(imap::OAuthSettings::secrets_mut) {
                secret.resolve_path(&base);
            }
        }
        for forward in &mut self.forwards {
            forward.complete(&base);
        }
        for node in self.chains.iter_mut().flat_map(|chain| &mut chain.nodes) {
            node.resolve(&base);
        }
        if let Some(resmic) = &mut self.resmic {
            resmic.resolve(&base);
        }
        if let Some(standby) = &mut self.standby {
            standby.resolve(&base);
        }
        if let Some(address) = &mut self.sessions.address {
            address.key.resolve_path(&base);
        }
    }

    /// The path of the configuration file, for a reload.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The database file. A relative path is relative to the first of these:
    ///
    /// 1. under systemd, `$STATE_DIRECTORY`;
    /// 2. `/var/lib/resmic-mailhook`, if the configuration is in `/etc/resmic-mailhook`. The packaged unit has the same folder as
    ///    `$STATE_DIRECTORY`, so an operator's commands use the daemon's database;
    /// 3. the folder of the configuration.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        let path = self.store.path.clone().unwrap_or_else(|| "mailhook.db".into());
        self.state_folder().join(path)
    }

    /// The folder for files of this host. A relative path of the database starts at this folder; see [`Config::database`].
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        match (std::env::var_os("STATE_DIRECTORY"), self.file.path.parent()) {
            // systemd separates several folders by colons. The packaged unit has only one folder.
            (Some(folders), _) => std::env::split_paths(&folders).next().unwrap_or_default(),
            (None, _) if is_packaged(&self.file.path) => STATE.into(),
            (None, folder) => folder.map(Path::to_owned).unwrap_or_default(),
        }
    }

    /// Hashes of the tables that must be the same on all hosts of a `[standby]`.
    #[must_use]
    pub fn hashes(&self) -> ConfigurationHashes {
        // The content was parsed before, so `parse` cannot fail here.
        ConfigurationHashes::new(&self.file.content.parse().unwrap_or_default())
    }

    /// Loads the secret from `source`, which is the value of `key`.
    ///
    /// # Errors
    /// [`Error::Wrong`], with the line of the key.
    pub async fn secret(&self, key: &str, source: &secret::SecretSource) -> Result<secrecy::SecretString, Error> {
        source.load().await.map_err(|missing| self.file.wrong(key, missing.to_string()))
    }

    /// The error for a wrong value at `key`.
    #[must_use]
    pub fn wrong(&self, key: &str, message: impl Into<String>) -> Error {
        self.file.wrong(key, message.into())
    }
}

/// Whether a file is in the configuration folder of the packaged unit. The secrets of that unit are credentials.
#[must_use]
pub fn is_packaged(file: &Path) -> bool {
    is_packaged_from(file, &std::env::current_dir().unwrap_or_default())
}

/// Does the same as [`is_packaged`] for a path relative to `folder`.
fn is_packaged_from(file: &Path, folder: &Path) -> bool {
    folder.join(file).parent() == Some(Path::new(ETC))
}

/// Checks that no two targets publish the same events under the same subjects. A stream has one message for each subject, so the
/// second target would count the message of the first as its own, although the signature differs.
fn separate_streams(forwards: &[forward::ForwardSettings]) -> Result<(), KeyProblem> {
    for (n, later) in forwards.iter().enumerate() {
        let repeats = |earlier: &&forward::ForwardSettings| later.publishes_like(earlier);
        if let Some(earlier) = forwards.iter().take(n).find(repeats) {
            let problem = format!(
                "target {} publishes under the same subjects to this stream; expected another subject",
                earlier.name
            );
            return Err((format!("forward[{n}].subject"), problem));
        }
    }
    Ok(())
}

fn unique<'a>(table: &str, names: impl Iterator<Item = &'a str>) -> Result<(), KeyProblem> {
    let mut seen = std::collections::HashSet::new();
    for (n, name) in names.enumerate() {
        let problem = if name.is_empty() || name.chars().any(char::is_control) {
            "expected a name"
        } else if !seen.insert(name) {
            "this name is used twice; each needs its own name"
        } else {
            continue;
        };
        return Err((format!("{table}[{n}].name"), problem.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaged_configuration_is_recognised_by_relative_path() {
        for (file, folder) in [
            ("/etc/resmic-mailhook/config.toml", "/root"),
            ("config.toml", "/etc/resmic-mailhook"),
            ("./config.toml", "/etc/resmic-mailhook/"),
            ("resmic-mailhook/other.toml", "/etc"),
        ] {
            assert!(is_packaged_from(Path::new(file), Path::new(folder)), "{file} {folder}");
        }
        for (file, folder) in [("config.toml", "/root"), ("/srv/config.toml", "/etc/resmic-mailhook"), ("", "")] {
            assert!(!is_packaged_from(Path::new(file), Path::new(folder)), "{file} {folder}");
        }
    }
}
