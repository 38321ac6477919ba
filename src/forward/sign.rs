//! The signatures that a handler can check: the signature of Resmic's webhook, and the signature of Standard Webhooks.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};

/// The prefix of a secret for Standard Webhooks (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md,
/// "Signature scheme").
const STANDARD_PREFIX: &str = "whsec_";

/// Base64 with or without padding, as the libraries of Standard Webhooks accept it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys derived from a target's secret. `Debug` prints none of them.
pub(super) struct Signer {
    /// The key for `X-Signature`: the text of the secret.
    resmic: hmac::Key,
    /// The key for `webhook-signature`: the decoded bytes after `whsec_`.
    standard: Option<hmac::Key>,
}

impl Signer {
    /// # Errors
    /// A message, if the text after `whsec_` is empty or not base64.
    pub(super) fn new(secret: &SecretString) -> Result<Self, String> {
        let secret = secret.expose_secret();
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let standard = match secret.strip_prefix(STANDARD_PREFIX) {
            None => None,
            Some(encoded) => match BASE64.decode(encoded) {
                Ok(bytes) if !bytes.is_empty() => Some(key(&bytes)),
                _ => return Err("a secret that begins with whsec_ must continue with base64".into()),
            },
        };
        Ok(Signer { resmic: key(secret.as_bytes()), standard })
    }

    /// The value of `X-Signature`: the hexadecimal HMAC-SHA256 of the body. The key is the text of the secret.
    pub(super) fn resmic(&self, body: &[u8]) -> String {
        HEXLOWER.encode(hmac::sign(&self.resmic, body).as_ref())
    }

    /// The value of `webhook-signature`: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`; `None` without a `whsec_`
    /// secret.
    pub(super) fn standard(&self, id: &str, at: Timestamp, body: &[u8]) -> Option<String> {
        let mut context = hmac::Context::with_key(self.standard.as_ref()?);
        context.update(format!("{id}.{}.", at.as_second()).as_bytes());
        context.update(body);
        Some(format!("v1,{}", BASE64.encode(context.sign())))
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.standard.is_some() { "Signer(whsec)" } else { "Signer" })
    }
}

/// The ASCII characters that [`header_text`] percent-encodes.
const INVISIBLE: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// Text for a header field: visible ASCII except `%` is unchanged, everything else is percent-encoded UTF-8 (RFC 3986, 2.1).
pub(super) fn header_text(text: &str) -> String {
    utf8_percent_encode(text, INVISIBLE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(secret: &str) -> Result<Signer, String> {
        Signer::new(&SecretString::from(secret))
    }

    #[test]
    fn resmic_signature_is_hmac_sha256() {
        // Test case 2 of RFC 4231.
        let signature = signer("Jefe").unwrap().resmic(b"what do ya want for nothing?");
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn standard_signature_matches_the_specification() {
        // The example of github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, "Signature scheme".
        let signer = signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = Timestamp::from_second(1_614_265_330).unwrap();
        let signature = signer.standard("msg_p5jXN8AQM9LWM0D4loKWxJek", at, br#"{"test": 2432232314}"#).unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn standard_signature_needs_a_valid_whsec_secret() {
        let plain = signer("plain").unwrap();
        assert!(plain.standard("id", Timestamp::UNIX_EPOCH, b"").is_none());
        assert!(signer("whsec_***").is_err());
        assert!(signer("whsec_").is_err());
        assert!(signer("whsec_YQ").is_ok());
        assert!(!format!("{:?}", signer("s3cret").unwrap()).contains("s3cret"));
    }

    #[test]
    fn order_reference_is_encoded_in_the_header() {
        assert_eq!(header_text("ORDER-1001"), "ORDER-1001");
        assert_eq!(header_text("50% é\r\nX: 1"), "50%25%20%C3%A9%0D%0AX:%201");
    }
}
