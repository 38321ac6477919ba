//! Connects to a server. Each address is checked right before it is used, so that DNS cannot change it in between.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::url::Url;
use crate::loopback::is_loopback;

/// The address at which a server listens.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A host and a port.
    Net {
        /// The URL with the host and the port.
        url: Url,
        /// Whether the server may be on another machine.
        allow_remote: bool,
        /// The TLS client, for `https`.
        tls: Option<Arc<ClientConfig>>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Net { url, .. } => url.fmt(f),
            Destination::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A connection of any kind: TCP, TLS or a Unix socket.
pub trait HttpStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> HttpStream for T {}

impl Destination {
    /// Whether requests travel unencrypted to another machine.
    #[must_use]
    pub fn is_cleartext_remote(&self) -> bool {
        matches!(self, Destination::Net { url, allow_remote: true, tls: None } if !url.is_loopback())
    }

    /// Connects, including the TLS handshake. Each address of the host gets a share of the time until `deadline`. The caller must
    /// limit the time of the whole call, because the lookup and the handshake have no limit here.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn connect(&self, deadline: Instant) -> Result<Box<dyn HttpStream>, String> {
        match self {
            Destination::Unix(path) => Ok(Box::new(connect_unix(path).await?)),
            Destination::Net { url, allow_remote, tls } => {
                let stream = connect_tcp(url, *allow_remote, deadline).await?;
                match tls {
                    None => Ok(Box::new(stream)),
                    Some(config) => Ok(Box::new(handshake(config.clone(), &url.host, stream).await?)),
                }
            }
        }
    }
}

async fn connect_unix(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).await.map_err(|e| format!("cannot connect to {}: {e}", path.display()))
}

async fn connect_tcp(url: &Url, allow_remote: bool, deadline: Instant) -> Result<TcpStream, String> {
    let addresses = lookup_host((url.host.as_str(), url.port)).await;
    let addresses: Vec<SocketAddr> = addresses.map_err(|e| format!("cannot look up {:?}: {e}", url.host))?.collect();
    let allowed = allowed(&url.host, &addresses, allow_remote)?;
    let mut error = String::new();
    for (n, address) in allowed.iter().enumerate() {
        // An address that does not answer must leave time for the next ones.
        let share = deadline.saturating_duration_since(Instant::now()) / u32::try_from(allowed.len() - n).unwrap_or(1);
        match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return without_nagle(stream).map_err(|e| format!("cannot connect to {address}: {e}")),
            Ok(Err(e)) => error = format!("cannot connect to {address}: {e}"),
            Err(_) => error = format!("cannot connect to {address}: no answer"),
        }
    }
    Err(error)
}

/// The addresses that may be used: without `allow_remote`, loopback addresses only.
fn allowed(host: &str, addresses: &[SocketAddr], allow_remote: bool) -> Result<Vec<SocketAddr>, String> {
    let allowed: Vec<_> = addresses.iter().copied().filter(|a| allow_remote || is_loopback(a.ip())).collect();
    match addresses.first() {
        None => Err(format!("{host:?} has no address")),
        Some(other) if allowed.is_empty() => {
            Err(format!("{host:?} is {}, which is no loopback address, and allow_remote is not set", other.ip()))
        }
        Some(_) => Ok(allowed),
    }
}

fn without_nagle(stream: TcpStream) -> io::Result<TcpStream> {
    // A request is one write. Nagle's algorithm (RFC 896) would only delay it.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake(
    config: Arc<ClientConfig>,
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("TLS: {host:?} is no server name: {e}"))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|e| format!("TLS with {host:?}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_addresses_need_permission() {
        let addresses: Vec<SocketAddr> =
            ["10.0.0.1:80", "127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.2]:80", "0.0.0.0:80"]
                .map(|a| a.parse().unwrap())
                .into();
        assert_eq!(allowed("shop", &addresses, false).unwrap(), addresses[1..4]);
        assert_eq!(allowed("shop", &addresses, true).unwrap(), addresses);
        let refused = allowed("shop", &addresses[..1], false).unwrap_err();
        assert_eq!(refused, "\"shop\" is 10.0.0.1, which is no loopback address, and allow_remote is not set");
        assert!(allowed("shop", &[], true).is_err());
    }

    /// Starts an https server with a self-signed certificate for `localhost`. Returns the certificate as PEM, and the port.
    async fn https() -> (String, u16) {
        use tokio_rustls::rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
            }
        });
        (certificate.cert.pem(), port)
    }

    #[tokio::test]
    async fn https_requires_a_trusted_certificate() {
        let (pem, port) = https().await;
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, pem).unwrap();
        let connect = async |host: &str, tls: Arc<ClientConfig>| {
            let url = format!("https://{host}:{port}/").parse().unwrap();
            let deadline = Instant::now() + std::time::Duration::from_secs(5);
            Destination::Net { url, allow_remote: false, tls: Some(tls) }.connect(deadline).await.map(drop)
        };
        connect("localhost", crate::tls::client_config(Some(&ca)).unwrap()).await.unwrap();
        let unknown = connect("localhost", crate::tls::client_config(None).unwrap()).await.unwrap_err();
        assert!(unknown.contains("TLS with \"localhost\"") && unknown.contains("certificate"), "{unknown}");
        let misnamed = connect("127.0.0.1", crate::tls::client_config(Some(&ca)).unwrap()).await.unwrap_err();
        assert!(misnamed.contains("certificate"), "{misnamed}");
    }
}
