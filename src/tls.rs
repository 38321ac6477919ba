//! Creates the rustls configurations of TLS clients, with the system's root certificates and the certificates of a `ca_file`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Why a TLS client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A `ca_file` cannot be used.
    #[error("certificates in {path}: {detail}")]
    CaFile {
        /// The path of the `ca_file`.
        path: PathBuf,
        /// The problem with the `ca_file`.
        detail: String,
    },
    /// A `client_certificate` cannot be used.
    #[error("certificate in {path}: {detail}")]
    ClientCertificate {
        /// The path of the `client_certificate`.
        path: PathBuf,
        /// The problem with the `client_certificate`.
        detail: String,
    },
    /// A `client_key` is no key, or belongs to another certificate. The error text does not show the key.
    #[error("{0}")]
    ClientKey(&'static str),
    /// The system has no root certificates, and none are configured.
    #[error("the system has no root certificates; install ca-certificates, or set ca_file")]
    NoRoots,
    /// rustls cannot use TLS 1.2 and 1.3 with the crypto provider.
    #[error("TLS: {0}")]
    Library(#[from] rustls::Error),
    /// rustls cannot use the root certificates.
    #[error("TLS: {0}")]
    Roots(#[from] rustls::client::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Caches one client configuration for each `ca_file`. So accounts with the same `ca_file` read the root certificates only once.
#[derive(Debug, Default)]
pub struct TlsClients(HashMap<Option<PathBuf>, Arc<ClientConfig>>);

impl TlsClients {
    /// Returns the client configuration for the `ca_file` `extra` from the cache, or creates it with [`client_config`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn client(&mut self, extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
        let key = extra.map(Path::to_owned);
        if let Some(cached) = self.0.get(&key) {
            return Ok(cached.clone());
        }
        let config = client_config(extra)?;
        self.0.insert(key, config.clone());
        Ok(config)
    }
}

/// The certificate with which this program logs in at a server, and its private key. `Debug` prints neither the certificate nor
/// the key.
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// Reads the PEM file `path` with the certificate and its intermediate certificates. `key` is the private key as PEM.
    ///
    /// # Errors
    /// [`Error::ClientCertificate`] and [`Error::ClientKey`].
    pub fn read(path: &Path, key: &SecretString) -> Result<Self, Error> {
        let error = |detail: String| Error::ClientCertificate { path: path.to_owned(), detail };
        let chain = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|e| error(e.to_string()))?;
        if chain.is_empty() {
            return Err(error("it has no certificate; PEM is expected".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes());
        let key = key.map_err(|_| Error::ClientKey("expected a private key as PEM, without a password"))?;
        Ok(ClientCertificate { chain, key })
    }
}

/// Creates a client configuration for TLS 1.2 and 1.3. The client trusts the system's root certificates, and the certificates in
/// the PEM file `extra`.
///
/// # Errors
/// [`Error`].
pub fn client_config(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    client_config_with(extra, None)
}

/// Does the same as [`client_config`]. If `certificate` is given, the client presents it to servers that ask for one.
///
/// # Errors
/// [`Error`].
pub fn client_config_with(
    extra: Option<&Path>,
    certificate: Option<ClientCertificate>,
) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    // A root certificate of the system that cannot be parsed is skipped. If no root certificate is left, and `extra` is `None`,
    // the result is `Error::NoRoots`.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let configured = extra.map(|path| add_file(&mut roots, path)).transpose()?.unwrap_or_default();
    if roots.is_empty() {
        return Err(Error::NoRoots);
    }
    let standard = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { standard, configured }));
    let config = match certificate {
        None => config.with_no_client_auth(),
        Some(ClientCertificate { chain, key }) => config
            .with_client_auth_cert(chain, key)
            .map_err(|_| Error::ClientKey("this key belongs to another certificate, or its kind is not supported"))?,
    };
    Ok(Arc::new(config))
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |detail: String| Error::CaFile { path: path.to_owned(), detail };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
    let mut configured = Vec::new();
    for certificate in certificates {
        let certificate = certificate.map_err(|e| error(e.to_string()))?;
        roots.add(certificate.clone()).map_err(|e| error(e.to_string()))?;
        configured.push(certificate);
    }
    if configured.is_empty() { Err(error("it has no certificate; PEM is expected".into())) } else { Ok(configured) }
}

/// Verifies a server's certificate by the standard rules, with one exception. A server may present a CA certificate if the
/// `ca_file` contains exactly this certificate. The exception is needed for servers with a certificate of `openssl req -x509`,
/// which is a CA certificate.
#[derive(Debug)]
struct ServerVerifier {
    standard: Arc<WebPkiServerVerifier>,
    configured: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.standard.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Before the standard verifier returns `CaUsedAsEndEntity`, it checks the validity period, but not the server's name.
            Err(error) if is_ca_certificate(&error) && self.configured.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.standard.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.standard.supported_verify_schemes()
    }
}

/// Whether the verifier rejected the server's certificate because it is a CA certificate. rustls has no variant for
/// `CaUsedAsEndEntity`, so the text of webpki's error is compared. A test below fails if webpki renames this error.
fn is_ca_certificate(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string() == "CaUsedAsEndEntity")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Verifies the certificate `presented` for the server `name`, with `configured` in the `ca_file`. The certificate is
    /// verified as if the time were `later` past the current time.
    fn verify(configured: &rcgen::Certificate, presented: &rcgen::Certificate, name: &str, later: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, configured.pem()).unwrap();
        let mut roots = RootCertStore::empty();
        let configured = add_file(&mut roots, &path).unwrap();
        let standard = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + later);
        let name = ServerName::try_from(name).unwrap();
        match (ServerVerifier { standard, configured }).verify_server_cert(presented.der(), &[], &name, &[], now) {
            Ok(_) => "trusted".into(),
            Err(error) => error.to_string(),
        }
    }

    /// Creates a self-signed CA certificate for the server `mail.example`, like the certificates of `openssl req -x509`.
    fn self_signed() -> rcgen::Certificate {
        let mut parameters = rcgen::CertificateParams::new(vec!["mail.example".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.not_after = rcgen::date_time_ymd(2999, 1, 1);
        parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn configured_ca_certificates_are_trusted_as_servers() {
        let (ours, other) = (self_signed(), self_signed());
        let (now, centuries) = (Duration::ZERO, Duration::from_secs(365 * 24 * 3600 * 1000));
        assert_eq!(verify(&ours, &ours, "mail.example", now), "trusted");
        assert!(verify(&ours, &ours, "elsewhere.example", now).contains("not valid for name"));
        assert!(verify(&ours, &ours, "mail.example", centuries).contains("expired"));
        assert_ne!(verify(&other, &ours, "mail.example", now), "trusted");
    }
}
