//! One place that knows how TLS is done: the provider, the roots, and what may be added to them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of certificates cannot be used.
    #[error("certificates in {path}: {words}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        words: String,
    },
    /// The system has no roots, and none were given.
    #[error("the system has no root certificates; install ca-certificates, or set ca_file")]
    NoRoots,
    /// The library refuses its own defaults.
    #[error("TLS: {0}")]
    Library(#[from] tokio_rustls::rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Clients by the file that is trusted beside the system's roots: a thousand accounts share what is read once.
#[derive(Debug, Default)]
pub struct Clients(HashMap<Option<PathBuf>, Arc<ClientConfig>>);

impl Clients {
    /// As [`client`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn client(&mut self, extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
        let key = extra.map(Path::to_owned);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let made = client(extra)?;
        self.0.insert(key, made.clone());
        Ok(made)
    }
}

/// A client's side of TLS 1.2 and 1.3: the system's roots, and those of the PEM file `extra` beside them.
///
/// # Errors
/// [`Error`].
pub fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    // Single roots that do not parse are the system's affair; having none at all is ours.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = extra {
        add_file(&mut roots, path)?;
    }
    if roots.is_empty() {
        return Err(Error::NoRoots);
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    let error = |words: String| Error::CaFile { path: path.to_owned(), words };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
    let mut count = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| error(e.to_string()))?;
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
        count += 1;
    }
    if count == 0 { Err(error("no certificate in it; PEM is expected".into())) } else { Ok(()) }
}
