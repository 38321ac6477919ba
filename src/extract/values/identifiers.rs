//! Parses session ids, transaction hashes and wallet addresses by their form and checksum.

use std::borrow::Cow;

use tiny_keccak::{Hasher, Keccak};

use super::chain_and_token::ChainFamily;

/// Parses a session id, a UUID (RFC 9562) with hyphens.
pub(crate) fn parse_session_id(text: &str) -> Result<String, String> {
    let text = text.trim();
    match uuid::Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 && !id.is_nil() && !id.is_max() => Ok(id.to_string()),
        _ => Err(format!("{text:?} is not a session id (UUID)")),
    }
}

/// Returns the hexadecimal digits after `0x`, if the text contains nothing else.
fn hex_digits(text: &str) -> Option<&str> {
    text.strip_prefix("0x").filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether all digits are zero. The number zero is neither a transaction hash nor an address.
fn is_zero(digits: &str) -> bool {
    digits.bytes().all(|b| b == b'0')
}

/// The number of bytes that a base58 text encodes.
pub(crate) fn base58_length(text: &str) -> Option<usize> {
    // The longest value is a Solana signature: 64 bytes, which have at most 88 characters in base58.
    if text.len() > 90 { None } else { bs58::decode(text).into_vec().ok().map(|bytes| bytes.len()) }
}

/// Parses a transaction hash in the form of this chain family. A hexadecimal hash is returned in lower case.
pub(crate) fn parse_hash(text: &str, family: ChainFamily) -> Result<String, String> {
    let text = text.trim();
    let hex = hex_digits(text).filter(|digits| !is_zero(digits));
    let evm = hex.is_some_and(|d| d.len() == 64);
    let starknet = hex.is_some_and(|d| d.len() <= 64);
    let solana = || base58_length(text) == Some(64);
    let fits = match family {
        ChainFamily::Evm => evm,
        ChainFamily::Starknet => starknet,
        ChainFamily::Solana => solana(),
        ChainFamily::Unknown => evm || solana(),
    };
    match fits {
        true if hex.is_some() => Ok(text.to_ascii_lowercase()),
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a transaction hash{}", family_suffix(family))),
    }
}

/// Parses a transaction hash or a wallet address of any chain, with `parse_hash` or `parse_wallet` as `parse`.
pub(crate) fn parse_of_any_chain(
    parse: impl Fn(&str, ChainFamily) -> Result<String, String>,
    text: &str,
) -> Result<String, String> {
    parse(text, ChainFamily::Unknown).or_else(|_| parse(text, ChainFamily::Starknet))
}

/// Whether a word is a transaction hash of any chain. Starknet's hashes can be a little shorter, without leading zeros.
pub(crate) fn is_transaction_hash(word: &str) -> bool {
    word.len() >= 60 && parse_of_any_chain(parse_hash, word).is_ok()
}

/// Parses a wallet address in the form of this chain family, and keeps the spelling. A mixed-case EVM address must pass EIP-55.
pub(crate) fn parse_wallet(text: &str, family: ChainFamily) -> Result<String, String> {
    let text = text.trim();
    // Addresses on the XDC chain may begin with `xdc` in place of `0x`.
    let plain = match text.strip_prefix("xdc") {
        Some(digits) if matches!(family, ChainFamily::Evm | ChainFamily::Unknown) => format!("0x{digits}").into(),
        _ => Cow::Borrowed(text),
    };
    let evm = hex_digits(&plain).filter(|d| d.len() == 40 && !is_zero(d));
    let starknet = || hex_digits(text).is_some_and(|d| d.len() <= 64 && !is_zero(d));
    let solana = || base58_length(text) == Some(32);
    let fits = match family {
        ChainFamily::Evm => evm.is_some(),
        ChainFamily::Starknet => starknet(),
        ChainFamily::Solana => solana(),
        ChainFamily::Unknown => evm.is_some() || solana(),
    };
    if !fits {
        return Err(format!("{text:?} is not a wallet address{}", family_suffix(family)));
    }
    match evm {
        Some(digits) if family != ChainFamily::Starknet && !is_eip55_or_one_case(digits) => {
            Err(format!("{text:?} fails the EIP-55 checksum"))
        }
        _ => Ok(text.to_owned()),
    }
}

fn family_suffix(family: ChainFamily) -> &'static str {
    match family {
        ChainFamily::Evm => " of an EVM chain",
        ChainFamily::Starknet => " of Starknet",
        ChainFamily::Solana => " of Solana",
        ChainFamily::Unknown => "",
    }
}

/// Whether an address has letters of one case only, or passes EIP-55: the hash of the address determines the case of each letter.
fn is_eip55_or_one_case(digits: &str) -> bool {
    let has = |test: fn(&u8) -> bool| digits.as_bytes().iter().any(test);
    if !(has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase)) {
        return true;
    }
    let mut keccak = Keccak::v256();
    let mut hash = [0; 32];
    keccak.update(digits.to_ascii_lowercase().as_bytes());
    keccak.finalize(&mut hash);
    let nibbles = hash.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .bytes()
        .zip(nibbles)
        .all(|(digit, nibble)| !digit.is_ascii_alphabetic() || digit.is_ascii_uppercase() == (nibble >= 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_case_address_must_pass_eip_55() {
        let good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert!(parse_wallet(good, ChainFamily::Evm).is_ok());
        assert!(parse_wallet(&good.to_lowercase(), ChainFamily::Evm).is_ok());
        assert!(parse_wallet(&good.replace("5aA", "5Aa"), ChainFamily::Evm).is_err());
        assert!(parse_wallet("0x056397760b973BfB921Bc10Be9DA5034B1e921d7", ChainFamily::Unknown).is_ok());
    }

    #[test]
    fn hashes_have_the_form_of_their_chain() {
        let evm = format!("0x{}", "aB".repeat(32));
        assert_eq!(parse_hash(&evm, ChainFamily::Evm).unwrap(), evm.to_lowercase());
        assert!(parse_hash(&evm, ChainFamily::Solana).is_err());
        assert!(parse_hash(&evm[..65], ChainFamily::Evm).is_err());
        assert!(parse_hash(&format!("0x{}", "0".repeat(64)), ChainFamily::Evm).is_err());
        assert!(parse_hash("0x4ab", ChainFamily::Starknet).is_ok());
        assert!(parse_hash("0x4ab", ChainFamily::Unknown).is_err());
        let solana = bs58::encode([7_u8; 64]).into_string();
        assert!(parse_hash(&solana, ChainFamily::Solana).is_ok() && parse_hash(&solana, ChainFamily::Evm).is_err());
        assert!(parse_wallet(&bs58::encode([7_u8; 32]).into_string(), ChainFamily::Solana).is_ok());
        assert!(parse_hash("0xa43d…8db2", ChainFamily::Evm).is_err());
    }

    #[test]
    fn a_session_id_is_a_hyphenated_uuid() {
        assert_eq!(
            parse_session_id("591ABE63-aa61-411d-a419-0b546729bbd0").unwrap(),
            "591abe63-aa61-411d-a419-0b546729bbd0"
        );
        for bad in ["591abe63aa61411da4190b546729bbd0", "{591abe63-aa61-411d-a419-0b546729bbd0}", "591abe63", ""] {
            assert!(parse_session_id(bad).is_err(), "{bad}");
        }
    }
}
