//! A target with everything that a delivery needs: address, keys and limits.

use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use secrecy::SecretString;

use super::settings::ForwardSettings;
use super::sign::Signer;
use crate::http::Destination;
use crate::tls;

/// A wrong value in the table of a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct TargetError {
    /// The key in the table.
    pub key: String,
    /// The problem.
    pub message: String,
}

/// A target that is ready for deliveries. `Debug` does not print its secret.
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
    /// Creates a target from its settings and its secret. For `https` it reads the system's root certificates.
    ///
    /// # Errors
    /// [`TargetError`], with the wrong key.
    pub fn new(settings: ForwardSettings, secret: SecretString) -> Result<Self, TargetError> {
        let wrong = |key: &str, message: String| TargetError { key: key.to_owned(), message };
        settings.check().map_err(|(key, message)| wrong(&key, message))?;
        let signer = Signer::new(&secret).map_err(|message| wrong("secret", message))?;
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

    /// The name of its `[[forward]]` table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}
