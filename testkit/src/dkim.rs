//! Signs mails with new keys.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_auth::common::crypto::{Algorithm, Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::{HeaderWriter, Writable, Writer};
use mail_auth::dkim::{Canonicalization, DkimSigner};

/// The header fields that are signed by default.
pub const HEADERS: [&str; 6] = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version"];

/// A key pair. Each variant has the private key (PKCS#8) and the public key.
pub enum Key {
    Rsa(Vec<u8>, Vec<u8>),
    Ed25519(Vec<u8>, Vec<u8>),
    /// An RSA key that is too short for mail-auth, so openssl signs with it.
    Weak(Vec<u8>, Vec<u8>),
}

impl Key {
    /// Creates an RSA key of this length in bits with openssl.
    pub fn rsa(bits: u32) -> Key {
        let size = format!("rsa_keygen_bits:{bits}");
        let key = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &size, "-outform", "DER"], None);
        let pkcs8 = openssl(&["pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER"], Some(&key));
        let public = openssl(&["pkey", "-inform", "DER", "-pubout", "-outform", "DER"], Some(&key));
        if bits < 2048 { Key::Weak(pkcs8, public) } else { Key::Rsa(pkcs8, public) }
    }

    pub fn ed25519() -> Key {
        use ring::signature::KeyPair;
        let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let pair = ring::signature::Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Key::Ed25519(pkcs8.as_ref().to_vec(), pair.public_key().as_ref().to_vec())
    }

    /// The key's TXT record in the syntax of a zone file, with additional tags such as `t=y; `.
    pub fn record(&self, tags: &str) -> String {
        let (kind, public) = match self {
            Key::Rsa(_, public) | Key::Weak(_, public) => ("rsa", public),
            Key::Ed25519(_, public) => ("ed25519", public),
        };
        let text = format!("v=DKIM1; k={kind}; {tags}p={}", STANDARD.encode(public));
        let pieces: Vec<_> =
            text.as_bytes().chunks(200).map(|c| format!("\"{}\"", String::from_utf8_lossy(c))).collect();
        format!("TXT {}", pieces.join(" "))
    }
}

/// Runs openssl, and returns its output.
fn openssl(arguments: &[&str], input: Option<&[u8]>) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start openssl: {e}; `apt-get install openssl`"));
    child.stdin.take().unwrap().write_all(input.unwrap_or_default()).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// A private key. openssl computes its signatures.
struct Openssl<'a>(&'a [u8]);

struct Bytes(Vec<u8>);

impl Writer for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl Writable for Bytes {
    fn write(self, writer: &mut impl Writer) {
        writer.write(&self.0);
    }
}

/// The key of a signer with a wrong clock, and the seconds by which that clock is ahead.
struct Shifted<K>(K, i64);

impl<K: SigningKey<Hasher = Sha256>> SigningKey for Shifted<K> {
    type Hasher = Sha256;

    fn sign(&self, input: impl Writable) -> mail_auth::Result<Vec<u8>> {
        let mut bytes = Bytes(Vec::new());
        input.write(&mut bytes);
        let text = String::from_utf8(bytes.0).unwrap();
        self.0.sign(Bytes(shifted(&text, self.1).into_bytes()))
    }

    fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }
}

/// Shifts the times in `t=` and `x=` of a signature.
fn shifted(text: &str, ahead: i64) -> String {
    let times = regex::Regex::new(r"\b([tx])=(\d{10})\b").unwrap();
    let later = |found: &regex::Captures<'_>| format!("{}={}", &found[1], found[2].parse::<i64>().unwrap() + ahead);
    times.replace_all(text, later).into_owned()
}

impl SigningKey for Openssl<'_> {
    type Hasher = Sha256;

    fn sign(&self, input: impl Writable) -> mail_auth::Result<Vec<u8>> {
        let mut bytes = Bytes(Vec::new());
        input.write(&mut bytes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.0).unwrap();
        let key = file.path().to_str().unwrap();
        Ok(openssl(&["dgst", "-sha256", "-keyform", "DER", "-sign", key], Some(&bytes.0)))
    }

    fn algorithm(&self) -> Algorithm {
        Algorithm::RsaSha256
    }
}

/// The options of a signature.
#[derive(Clone)]
pub struct SigningOptions<'a> {
    pub domain: &'a str,
    pub selector: &'a str,
    pub headers: &'a [&'a str],
    pub expires_in: Option<u64>,
    /// Seconds by which the signer's clock is ahead.
    pub ahead: i64,
    pub body_length: bool,
    pub canonicalization: Canonicalization,
}

impl Default for SigningOptions<'_> {
    fn default() -> Self {
        SigningOptions {
            domain: "resmic.com",
            selector: "s1",
            headers: &HEADERS,
            expires_in: None,
            ahead: 0,
            body_length: false,
            canonicalization: Canonicalization::Relaxed,
        }
    }
}

/// The mail with a signature at its top.
pub fn sign(mail: &[u8], key: &Key, options: &SigningOptions<'_>) -> Vec<u8> {
    let signature = match key {
        Key::Rsa(pkcs8, _) => {
            let pkcs8 = rustls_pkcs8(pkcs8);
            signed(RsaKey::<Sha256>::from_key_der(pkcs8).unwrap(), mail, options)
        }
        Key::Weak(pkcs8, _) => signed(Openssl(pkcs8), mail, options),
        Key::Ed25519(pkcs8, _) => signed(Ed25519Key::from_pkcs8_maybe_unchecked_der(pkcs8).unwrap(), mail, options),
    };
    [signature.as_bytes(), mail].concat()
}

fn rustls_pkcs8(der: &[u8]) -> tokio_rustls::rustls::pki_types::PrivateKeyDer<'static> {
    tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer::from(der.to_vec()).into()
}

fn signed<K: SigningKey<Hasher = Sha256>>(key: K, mail: &[u8], options: &SigningOptions<'_>) -> String {
    let mut signer = DkimSigner::from_key(Shifted(key, options.ahead))
        .domain(options.domain)
        .selector(options.selector)
        .headers(options.headers.iter().copied())
        .header_canonicalization(options.canonicalization)
        .body_canonicalization(options.canonicalization);
    if let Some(seconds) = options.expires_in {
        signer = signer.expiration(seconds);
    }
    if options.body_length {
        signer = signer.body_length(true);
    }
    shifted(&signer.sign(mail).unwrap().to_header(), options.ahead)
}
