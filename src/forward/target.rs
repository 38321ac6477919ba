//! A target with everything that a delivery needs: address, keys and limits.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use secrecy::SecretString;

use super::jetstream::StreamTarget;
use super::settings::ForwardSettings;
use super::sign::Signer;
use crate::http::Destination;
use crate::tls;

/// A wrong value in a `[[forward]]` table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct TargetError {
    /// The key in the `[[forward]]` table.
    pub key: String,
    /// The problem.
    pub message: String,
}

/// A target that is ready for deliveries. `Debug` does not print its secrets.
#[derive(Debug)]
pub struct Target {
    pub(super) common: Arc<CommonTarget>,
    pub(super) kind: TargetKind,
}

/// The settings that targets of every kind have.
#[derive(Debug)]
pub(super) struct CommonTarget {
    pub(super) name: String,
    pub(super) signer: Signer,
    pub(super) timeout: Duration,
    pub(super) give_up_after: Duration,
}

/// Where a target's events go.
#[derive(Debug)]
pub(super) enum TargetKind {
    /// A program that accepts POST requests.
    Handler(Arc<HandlerTarget>),
    /// A stream of a NATS server.
    Stream(Arc<StreamTarget>),
}

/// The address of a handler.
#[derive(Debug)]
pub(super) struct HandlerTarget {
    pub(super) destination: Destination,
    pub(super) host: HeaderValue,
    pub(super) path: PathAndQuery,
}

fn wrong(key: &str, message: impl Into<String>) -> TargetError {
    TargetError { key: key.to_owned(), message: message.into() }
}

impl Target {
    /// Creates a target from its settings and its secret, without connecting to the target. This function reads the other secrets
    /// and the certificates of a stream, and the system's root certificates for `https` and `tls`.
    ///
    /// # Errors
    /// [`TargetError`], which names the setting whose value is wrong.
    pub async fn load(settings: ForwardSettings, secret: SecretString) -> Result<Self, TargetError> {
        settings.check().map_err(|(key, message)| wrong(&key, message))?;
        let signer = Signer::new(&secret).map_err(|message| wrong("secret", message))?;
        let kind = match settings.nats_settings() {
            Some(nats) => {
                let servers = nats.load().await.map_err(|(key, message)| wrong(&key, message))?;
                TargetKind::Stream(Arc::new(StreamTarget::new(servers, &settings)))
            }
            None => TargetKind::Handler(Arc::new(HandlerTarget::new(&settings)?)),
        };
        let (timeout, give_up_after) = (settings.timeout().0, settings.give_up_after.0);
        let common = CommonTarget { name: settings.name, signer, timeout, give_up_after };
        Ok(Target { common: Arc::new(common), kind })
    }

    /// The name of the target in its `[[forward]]` table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.common.name
    }

    /// Whether events may travel unencrypted to another machine.
    pub(super) fn is_cleartext_remote(&self) -> bool {
        match &self.kind {
            TargetKind::Handler(handler) => handler.destination.is_cleartext_remote(),
            TargetKind::Stream(stream) => stream.servers.is_cleartext_remote(),
        }
    }
}

impl HandlerTarget {
    fn new(settings: &ForwardSettings) -> Result<Self, TargetError> {
        let (destination, host, path) = match (&settings.url, &settings.unix) {
            (Some(url), _) => {
                let roots = url.tls.then(|| tls::client_config(None)).transpose();
                let tls = roots.map_err(|e| wrong("url", e.to_string()))?;
                let (host, path) = (url.authority.as_str().to_owned(), url.path.clone());
                (Destination::Net { url: url.clone(), allow_remote: settings.allow_remote, tls }, host, path)
            }
            (None, socket) => {
                let path = settings.path.clone().map_or_else(|| PathAndQuery::from_static("/"), |path| path.0);
                (Destination::Unix(socket.clone().unwrap_or_default()), "localhost".into(), path)
            }
        };
        let host = HeaderValue::try_from(host).map_err(|e| wrong("url", e.to_string()))?;
        Ok(HandlerTarget { destination, host, path })
    }
}
