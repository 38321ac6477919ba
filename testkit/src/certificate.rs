//! A throw-away certificate.

use std::fs;
use std::path::Path;

/// Writes a CA and a certificate for 127.0.0.1, localhost and imap.shop.example into a folder: `ca.pem`, `server.pem` and
/// `server.key`.
pub fn certificate(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // OpenSSL treats a certificate as self-signed if its subject and its issuer have the same name. So the CA gets a name that
    // differs from rcgen's default, which the server's certificate has. Python 3.13 also needs the key usage and the authority
    // key identifier.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "a CA for tests");
    ca.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign);
    let ca_certificate = ca.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(ca, key);
    let server_key = rcgen::KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", "imap.shop.example"].map(str::to_owned).to_vec();
    let mut server = rcgen::CertificateParams::new(names).unwrap();
    server.use_authority_key_identifier_extension = true;
    let server = server.signed_by(&server_key, &issuer).unwrap();
    fs::write(folder.join("ca.pem"), ca_certificate.pem()).unwrap();
    fs::write(folder.join("server.pem"), server.pem()).unwrap();
    fs::write(folder.join("server.key"), server_key.serialize_pem()).unwrap();
}
