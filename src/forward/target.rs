//! A callback that is ready to be called: its settings, its keys, the way to it.

use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use secrecy::SecretString;

use super::settings::Settings;
use super::sign::Signer;
use crate::http::Destination;
use crate::tls;

/// What turned out wrong about a callback: the key to look at in its table, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {words}")]
pub struct Wrong {
    /// The key.
    pub key: String,
    /// What is wrong with it.
    pub words: String,
}

/// A callback that is ready to be called. Shows nothing of its secret.
#[derive(Debug)]
pub struct Target {
    pub(super) name: String,
    pub(super) destination: Destination,
    pub(super) host: HeaderValue,
    pub(super) path: PathAndQuery,
    pub(super) signer: Signer,
    pub(super) timeout: Duration,
    pub(super) give_up_after: Duration,
}

impl Target {
    /// Makes one of its settings and its secret. With `https` this reads the system's roots.
    ///
    /// # Errors
    /// [`Wrong`], with the key to look at.
    pub fn new(settings: Settings, secret: SecretString) -> Result<Self, Wrong> {
        let wrong = |key: &str, words: String| Wrong { key: key.to_owned(), words };
        settings.check().map_err(|(key, words)| wrong(&key, words))?;
        let signer = Signer::new(&secret).map_err(|words| wrong("secret", words))?;
        let (destination, host, path) = match (settings.url, settings.unix) {
            (Some(url), _) => {
                let roots = url.tls.then(|| tls::client_config(None)).transpose();
                let tls = roots.map_err(|e| wrong("url", e.to_string()))?;
                let host = url.authority.as_str().to_owned();
                let path = url.path.clone();
                (Destination::Net { url, allow_remote: settings.allow_remote, tls }, host, path)
            }
            (None, socket) => {
                let path = settings.path.map_or_else(|| PathAndQuery::from_static("/"), |path| path.0);
                (Destination::Unix(socket.unwrap_or_default()), "localhost".into(), path)
            }
        };
        let host = HeaderValue::try_from(host).map_err(|e| wrong("url", e.to_string()))?;
        let name = settings.name;
        Ok(Target {
            name,
            destination,
            host,
            path,
            signer,
            timeout: settings.timeout.0,
            give_up_after: settings.give_up_after.0,
        })
    }

    /// The `[[forward]]` entry's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}
