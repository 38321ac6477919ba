//! The keys of a table that name NATS servers and the login: `nats`, `user`, `password`, …

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::connection::{NatsLogin, NatsServers, PING_INTERVAL};
use super::url::NatsUrl;
use crate::loopback::is_loopback;
use crate::secret::SecretSource;
use crate::tls::{self, ClientCertificate};

/// The keys of a configuration table that name NATS servers and the login. `[standby]` and `[[forward]]` have these keys, in
/// addition to others.
#[derive(Debug, Clone, Default)]
pub struct NatsSettings {
    /// The key `nats`: the servers of one cluster. Other servers, which a server may announce, are not used.
    pub servers: Vec<NatsUrl>,
    /// Whether the host of a `nats://` URL may be another machine. The host of a `tls://` URL may always be another machine.
    pub allow_remote: bool,
    /// The user's name, which needs `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretSource>,
    /// A token, in place of a user and a password.
    pub token: Option<SecretSource>,
    /// A PEM file with a client certificate, which may be combined with the other logins.
    pub client_certificate: Option<PathBuf>,
    /// The private key of `client_certificate`, as PEM.
    pub client_key: Option<SecretSource>,
    /// A PEM file with certificates that are trusted in addition to the system's roots.
    pub ca_file: Option<PathBuf>,
}

/// The configuration key with the wrong value, and the problem.
type KeyProblem = (String, String);

fn wrong(key: &str, message: impl Into<String>) -> KeyProblem {
    (key.to_owned(), message.into())
}

impl NatsSettings {
    /// Checks the URLs of the servers, and the keys that must be set together.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), KeyProblem> {
        if self.servers.is_empty() {
            return Err(wrong("nats", "expected at least one URL, for example [\"tls://n1.example:4222\"]"));
        }
        self.servers.iter().try_for_each(|server| self.check_host(server))?;
        match (&self.user, &self.password, &self.token) {
            (Some(_), None, _) => return Err(wrong("user", "expected a `password` with `user`")),
            (None, Some(_), _) => return Err(wrong("password", "expected a `user` with `password`")),
            (Some(_), Some(_), Some(_)) => {
                return Err(wrong("token", "expected either `token`, or `user` and `password`"));
            }
            _ => {}
        }
        match (&self.client_certificate, &self.client_key) {
            (Some(_), None) => return Err(wrong("client_certificate", "expected a `client_key` with it")),
            (None, Some(_)) => return Err(wrong("client_key", "expected a `client_certificate` with it")),
            _ => {}
        }
        let unused = [("client_certificate", &self.client_certificate), ("ca_file", &self.ca_file)];
        match unused.into_iter().find(|(_, file)| file.is_some() && !self.uses_tls()) {
            Some((key, _)) => Err(wrong(key, "belongs to tls://, and no URL of `nats` begins with it")),
            None => Ok(()),
        }
    }

    /// Checks that a `nats://` URL with an IP address is allowed. A host name is checked at each connect, by the addresses that
    /// it resolves to.
    fn check_host(&self, server: &NatsUrl) -> Result<(), KeyProblem> {
        match server.host.parse::<IpAddr>() {
            Ok(ip) if !server.tls && !self.allow_remote && !is_loopback(ip) => Err(wrong(
                "nats",
                format!(
                    "{ip} is not a loopback address, and nats:// is not encrypted; use tls://, or set allow_remote = true if it is meant"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn uses_tls(&self) -> bool {
        self.servers.iter().any(|server| server.tls)
    }

    /// Resolves relative paths against the folder `base`.
    pub fn resolve(&mut self, base: &Path) {
        for file in [&mut self.client_certificate, &mut self.ca_file] {
            *file = file.take().map(|path| base.join(path));
        }
        for secret in [&mut self.password, &mut self.token, &mut self.client_key].into_iter().flatten() {
            secret.resolve_path(base);
        }
    }

    /// Reads the secrets and the certificates for the NATS servers, and does not connect.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub async fn load(&self) -> Result<NatsServers, KeyProblem> {
        let login = match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), _) => {
                NatsLogin::Password { user: user.clone(), password: load_secret("password", password).await? }
            }
            (_, _, Some(token)) => NatsLogin::Token(load_secret("token", token).await?),
            _ => NatsLogin::None,
        };
        let certificate = match (&self.client_certificate, &self.client_key) {
            (Some(file), Some(key)) => {
                let key = load_secret("client_key", key).await?;
                let certificate = ClientCertificate::read(file, &key);
                Some(certificate.map_err(|e| wrong(certificate_key(&e), e.to_string()))?)
            }
            _ => None,
        };
        let tls = match tls::client_config_with(self.ca_file.as_deref(), certificate) {
            Ok(config) => Some(config),
            // Without a `tls://` URL, no root certificates are needed.
            Err(_) if !self.uses_tls() => None,
            Err(error) => return Err(wrong(certificate_key(&error), error.to_string())),
        };
        let urls = self.servers.clone();
        Ok(NatsServers { urls, allow_remote: self.allow_remote, login, tls, ping_interval: PING_INTERVAL })
    }
}

async fn load_secret(key: &str, source: &SecretSource) -> Result<secrecy::SecretString, KeyProblem> {
    source.load().await.map_err(|missing| wrong(key, missing.to_string()))
}

/// The configuration key whose value caused `error`.
fn certificate_key(error: &tls::Error) -> &'static str {
    match error {
        tls::Error::ClientCertificate { .. } => "client_certificate",
        tls::Error::ClientKey(_) => "client_key",
        _ => "ca_file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(urls: &[&str], change: impl FnOnce(&mut NatsSettings)) -> Result<(), String> {
        let servers = urls.iter().map(|url| url.parse().unwrap()).collect();
        let mut settings = NatsSettings { servers, ..NatsSettings::default() };
        change(&mut settings);
        settings.check().map_err(|(key, message)| format!("{key}: {message}"))
    }

    const LOCAL: &[&str] = &["nats://127.0.0.1"];
    const REMOTE: &[&str] = &["tls://n1.example", "tls://n2.example"];

    fn secret() -> Option<SecretSource> {
        Some(SecretSource::Env("S".into()))
    }

    #[test]
    fn unencrypted_remote_servers_need_permission() {
        settings(LOCAL, |_| {}).unwrap();
        settings(&["tls://10.0.0.1"], |_| {}).unwrap();
        let refused = settings(&["tls://10.0.0.1", "nats://10.0.0.2"], |_| {}).unwrap_err();
        assert!(refused.starts_with("nats: 10.0.0.2 is not a loopback address"), "{refused}");
        settings(&["nats://10.0.0.2"], |s| s.allow_remote = true).unwrap();
        assert!(settings(&[], |_| {}).unwrap_err().starts_with("nats: expected at least one"));
    }

    #[test]
    fn a_login_is_complete() {
        settings(REMOTE, |s| (s.user, s.password) = (Some("u".into()), secret())).unwrap();
        settings(REMOTE, |s| s.token = secret()).unwrap();
        settings(REMOTE, |s| (s.client_certificate, s.client_key) = (Some("c".into()), secret())).unwrap();
        let wrong = |key: &str, change: fn(&mut NatsSettings)| {
            let error = settings(REMOTE, change).unwrap_err();
            assert!(error.starts_with(&format!("{key}: ")), "{error}");
        };
        wrong("user", |s| s.user = Some("u".into()));
        wrong("password", |s| s.password = secret());
        wrong("token", |s| (s.user, s.password, s.token) = (Some("u".into()), secret(), secret()));
        wrong("client_certificate", |s| s.client_certificate = Some("c".into()));
        wrong("client_key", |s| s.client_key = secret());
        let unused = settings(LOCAL, |s| s.ca_file = Some("ca.pem".into())).unwrap_err();
        assert!(unused.starts_with("ca_file: belongs to tls://"), "{unused}");
    }

    #[tokio::test]
    async fn secrets_are_loaded_and_not_printed() {
        let mut settings =
            NatsSettings { servers: vec!["nats://127.0.0.1".parse().unwrap()], ..NatsSettings::default() };
        settings.token = Some(SecretSource::Command(vec!["printf".into(), "s3cret".into()]));
        let servers = settings.load().await.unwrap();
        assert!(!format!("{servers:?}").contains("s3cret"));
        settings.token = Some(SecretSource::File("/nowhere/token".into()));
        assert_eq!(settings.load().await.unwrap_err().0, "token");
    }
}
