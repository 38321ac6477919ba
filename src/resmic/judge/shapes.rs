//! Checks the form of hashes and wallets. Resmic's answers become an event only if these values have the form of their chain.

use crate::model::fold_chain;

/// Whether a text has the form of a transaction hash on the chain with the name `chain`.
pub(super) fn is_hash(text: &str, chain: &str) -> bool {
    match fold_chain(chain).as_str() {
        "starknet" => is_hex(text, 1..=64),
        "solana" => base58_length(text) == Some(64),
        _ => is_hex(text, 64..=64),
    }
}

/// Whether a text has the form of a wallet address on the chain with the name `chain`.
pub(super) fn is_wallet(text: &str, chain: &str) -> bool {
    match fold_chain(chain).as_str() {
        "starknet" => is_hex(text, 1..=64),
        "solana" => base58_length(text) == Some(32),
        // XDC addresses may have the prefix `xdc` instead of `0x`.
        "xdcnetwork" => is_hex(&text.replacen("xdc", "0x", 1), 40..=40),
        _ => is_hex(text, 40..=40),
    }
}

/// Whether a text is `0x` and hexadecimal digits that are not all zero. `length` is the allowed number of digits.
fn is_hex(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    length.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) && digits.bytes().any(|b| b != b'0')
}

fn base58_length(text: &str) -> Option<usize> {
    // In base58, 64 bytes have at most 88 characters.
    if text.len() > 88 { None } else { bs58::decode(text).into_vec().ok().map(|bytes| bytes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_the_chain() {
        let evm = format!("0x{}", "aB".repeat(32));
        assert!(is_hash(&evm, "Base") && is_hash(&evm, "STARKNET") && is_hash(&evm, "Some new chain"));
        assert!(!is_hash(&evm, "Solana") && !is_hash(&evm[..65], "Base") && !is_hash(&evm[2..], "Base"));
        assert!(is_hash("0x4ab", "Starknet") && !is_hash("0x4ab", "Base"));
        assert!(!is_hash(&format!("0x{}", "0".repeat(64)), "Base"));
        let solana = |n: usize| bs58::encode(vec![7; n]).into_string();
        assert!(is_hash(&solana(64), "Solana") && !is_hash(&solana(64), "Base"));
        assert!(is_wallet(&solana(32), "solana") && !is_wallet(&solana(64), "solana"));
        let digits = "056397760b973BfB921Bc10Be9DA5034B1e921d7";
        assert!(is_wallet(&format!("0x{digits}"), "Sepolia") && is_wallet(&format!("xdc{digits}"), "XDC-Network"));
        assert!(!is_wallet(&format!("xdc{digits}"), "Base") && !is_wallet(&evm, "Base"));
    }
}
