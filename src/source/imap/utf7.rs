//! Modified UTF-7, the encoding of mailbox names (RFC 3501, 5.1.3).

use base64::Engine;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &IMAP_MUTF7,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
);

/// Encodes a mailbox name in modified UTF-7.
pub(super) fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    let mut foreign = Vec::new();
    for c in name.chars() {
        if matches!(c, ' '..='~') {
            shift(&mut encoded, &mut foreign);
            match c {
                '&' => encoded.push_str("&-"),
                c => encoded.push(c),
            }
        } else {
            foreign.extend(c.encode_utf16(&mut [0; 2]).iter().flat_map(|unit| unit.to_be_bytes()));
        }
    }
    shift(&mut encoded, &mut foreign);
    encoded
}

fn shift(encoded: &mut String, foreign: &mut Vec<u8>) {
    if !foreign.is_empty() {
        encoded.push_str(&format!("&{}-", BASE64.encode(std::mem::take(foreign))));
    }
}

/// Decodes modified UTF-7; `None` if the name is not canonical, because encoding the result would give another name.
pub(super) fn decode(encoded: &str) -> Option<String> {
    let mut name = String::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((plain, shifted)) = rest.split_once('&') {
        let (coded, after) = shifted.split_once('-')?;
        name.push_str(plain);
        match coded {
            "" => name.push('&'),
            _ => name.push_str(&utf16(&BASE64.decode(coded).ok()?)?),
        }
        rest = after;
    }
    name.push_str(rest);
    (encode(&name) == encoded).then_some(name)
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    rest.is_empty().then(|| String::from_utf16(&units).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_encoding_and_decoding() {
        // The second name is the example of RFC 3501.
        for (name, encoded) in [
            ("INBOX", "INBOX"),
            ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
            ("Entwürfe", "Entw&APw-rfe"),
            ("R&D", "R&-D"),
            ("💶", "&2D3ctg-"),
        ] {
            assert_eq!(encode(name), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(name));
        }
    }

    #[test]
    fn invalid_utf7_is_not_decoded() {
        for encoded in ["R&D", "&APw", "&APx-", "&!-", "Entwürfe", "&2D0-"] {
            assert_eq!(decode(encoded), None, "{encoded}");
        }
    }
}
