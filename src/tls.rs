//! One place that knows how TLS is done: the provider, the roots, and what may be added to them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of certificates cannot be used.
    #[error("certificates in {path}: {detail}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The system has no roots, and none were configured.
    #[error("the system has no root certificates; install ca-certificates, or set ca_file")]
    NoRoots,
    /// The library refuses its own defaults.
    #[error("TLS: {0}")]
    Library(#[from] rustls::Error),
    /// The roots cannot be used.
    #[error("TLS: {0}")]
    Roots(#[from] rustls::client::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TlsClients by the file that is trusted beside the system's roots: a thousand accounts share what is read once.
#[derive(Debug, Default)]
pub struct TlsClients(HashMap<Option<PathBuf>, Arc<ClientConfig>>);

impl TlsClients {
    /// As [`client_config`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn client(&mut self, extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
        let key = extra.map(Path::to_owned);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let made = client_config(extra)?;
        self.0.insert(key, made.clone());
        Ok(made)
    }
}

/// A client's side of TLS 1.2 and 1.3: the system's roots, and those of the PEM file `extra` beside them.
///
/// # Errors
/// [`Error`].
pub fn client_config(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    // Single roots that do not parse are the system's affair; having none at all is ours.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let configured = extra.map(|path| add_file(&mut roots, path)).transpose()?.unwrap_or_default();
    if roots.is_empty() {
        return Err(Error::NoRoots);
    }
    let standard = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { standard, configured }))
        .with_no_client_auth();
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
    if configured.is_empty() { Err(error("no certificate in it; PEM is expected".into())) } else { Ok(configured) }
}

/// The standard rules, and one exception: a server may show a certificate that was configured itself, though it says that it is
/// a CA's. `openssl req -x509` makes such ones, and whoever has one in a `ca_file` means just that server.
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
            // Its times are looked at before that.
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

/// Whether this alone is wrong with a server's certificate: that it is a CA's. rustls has no name for it.
fn is_ca_certificate(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string() == "CaUsedAsEndEntity")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// What is said of a server `mail.example` that shows `shown`, where `configured` is trusted, so long after now.
    fn verdict(configured: &rcgen::Certificate, shown: &rcgen::Certificate, name: &str, later: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, configured.pem()).unwrap();
        let mut roots = RootCertStore::empty();
        let configured = add_file(&mut roots, &path).unwrap();
        let standard = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + later);
        let name = ServerName::try_from(name).unwrap();
        match (ServerVerifier { standard, configured }).verify_server_cert(shown.der(), &[], &name, &[], now) {
            Ok(_) => "trusted".into(),
            Err(error) => error.to_string(),
        }
    }

    /// As `openssl req -x509` makes it.
    fn self_signed() -> rcgen::Certificate {
        let mut parameters = rcgen::CertificateParams::new(vec!["mail.example".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.not_after = rcgen::date_time_ymd(2999, 1, 1);
        parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_certificate_that_was_given_is_trusted_even_if_it_is_a_ca_s_own() {
        let (ours, other) = (self_signed(), self_signed());
        let (now, centuries) = (Duration::ZERO, Duration::from_secs(365 * 24 * 3600 * 1000));
        assert_eq!(verdict(&ours, &ours, "mail.example", now), "trusted");
        assert!(verdict(&ours, &ours, "elsewhere.example", now).contains("not valid for name"));
        assert!(verdict(&ours, &ours, "mail.example", centuries).contains("expired"));
        assert_ne!(verdict(&other, &ours, "mail.example", now), "trusted");
    }
}
