//! Normal forms for comparing values, and the formats that this program writes.

use jiff::Timestamp;

/// The chains that Resmic names, in the webhook's spelling.
pub const KNOWN_CHAINS: [&str; 9] =
    ["Ethereum", "Polygon", "BNB-Chain", "Optimism", "Sepolia", "XDC-Network", "Base", "Starknet", "Solana"];

/// A chain's name for comparing: `BNB-CHAIN`, `bnb chain` and `BNB-Chain` are equal.
#[must_use]
pub fn fold_chain(name: &str) -> String {
    fold_name(name)
}

/// A name for comparing: its letters and digits, in lower case.
#[must_use]
pub fn fold_name(name: &str) -> String {
    folded(name).collect()
}

fn folded(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase)
}

/// A chain's name in the webhook's spelling; an unknown name is not changed.
#[must_use]
pub fn spell_chain(name: &str) -> String {
    let known = KNOWN_CHAINS.iter().find(|known| folded(known).eq(folded(name)));
    known.map_or(name, |known| known).to_owned()
}

/// The tokens with several names. Resmic's backend writes the name with which it looks up the token's price, and Resmic's payment
/// page writes a symbol. Mails contain names of both kinds.
const TOKEN_NAMES: [&[&str]; 12] = [
    &["ethereum", "ETH", "SETH", "WETH"],
    &["matic-network", "MATIC"],
    &["binancecoin", "BNB", "TBNB"],
    &["xdce-crowd-sale", "XDC"],
    &["Bitcoin", "BTC", "WBTC"],
    &["BUSDT", "BUSD"],
    &["doge", "DOGE"],
    &["solana", "SOL"],
    &["starknet", "STARK"],
    &["nibiru", "NIBI"],
    &["official-trump", "TRUMP"],
    &["push", "PUSH", "ethereum-push-notification-service"],
];

/// A token's name for comparing, without case: `ETH`, `SETH` and `ethereum` are equal, as are `usdc` and `USDC`.
#[must_use]
pub fn fold_token(name: &str) -> String {
    let row = TOKEN_NAMES.iter().find(|row| row.iter().any(|known| known.eq_ignore_ascii_case(name)));
    row.and_then(|row| row.first()).map_or(name, |first| first).to_ascii_lowercase()
}

/// Whether two names are of the same token.
#[must_use]
pub fn same_token(a: &str, b: &str) -> bool {
    fold_token(a) == fold_token(b)
}

/// Whether `name` is in `TOKEN_NAMES`, with the exact case that Resmic writes.
#[must_use]
pub fn is_token_name(name: &str) -> bool {
    TOKEN_NAMES.iter().any(|row| row.contains(&name))
}

/// A transaction hash for comparing. A hexadecimal hash is a number, so case and leading zeros are removed. In Base58 the case
/// matters.
#[must_use]
pub fn fold_hash(hash: &str) -> String {
    let hex = hash.strip_prefix("0x").or_else(|| hash.strip_prefix("0X"));
    match hex {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("0x{}", digits.trim_start_matches('0').to_ascii_lowercase())
        }
        _ => hash.to_owned(),
    }
}

/// Every spelling in which the database may have this hash. A hexadecimal hash may be stored with or without leading zeros.
#[must_use]
pub fn hash_spellings(hash: &str) -> Vec<String> {
    let folded = fold_hash(hash);
    match folded.strip_prefix("0x") {
        Some(digits) => {
            (0..=64_usize.saturating_sub(digits.len())).map(|n| format!("0x{}{digits}", "0".repeat(n))).collect()
        }
        None => vec![folded],
    }
}

/// Whether two decimal texts are the same number, as `20` and `20.00` are.
#[must_use]
pub fn same_amount(a: &str, b: &str) -> bool {
    fold_amount(a) == fold_amount(b)
}

fn fold_amount(text: &str) -> (&str, &str) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    (whole.trim_start_matches('0'), fraction.trim_end_matches('0'))
}

/// Whether two names are of the same mailbox. `INBOX` (RFC 3501, 5.1) and special-use attributes are case-insensitive.
#[must_use]
pub fn same_mailbox(a: &str, b: &str) -> bool {
    let any_case = a.eq_ignore_ascii_case("INBOX") || a.starts_with('\\');
    a == b || any_case && a.eq_ignore_ascii_case(b)
}

/// Makes text of unknown origin fit for a terminal, a log line and a report. Control characters, line breaks and
/// bidirectional overrides become spaces. At most `max` characters are kept.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    // Most texts stay unchanged.
    if text.len() <= max && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len().min(max * 4));
    for (n, c) in text.chars().enumerate() {
        if n == max {
            out.push('…');
            break;
        }
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        out.push(if hidden { ' ' } else { c });
    }
    out
}

/// A time as the database and JSON contain it: ISO 8601, UTC, milliseconds.
#[must_use]
pub fn iso(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// A time as the webhook contains it: `Mar 5, 2025, 03:36`, UTC.
#[must_use]
pub fn webhook_time(at: Timestamp) -> String {
    at.strftime("%b %-d, %Y, %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_has_several_names() {
        for (a, b) in [
            ("ETH", "ethereum"),
            ("SETH", "WETH"),
            ("WBTC", "Bitcoin"),
            ("BUSD", "BUSDT"),
            ("push", "ethereum-push-notification-service"),
            ("weth", "SETH"),
            ("usdc", "USDC"),
            ("USDe", "USDE"),
            ("Pepe", "PEPE"),
        ] {
            assert!(same_token(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("ETH", "BNB"),
            ("ETH", "MATIC"),
            ("USDT", "BUSDT"),
            ("USDC", "USDT"),
            ("DAI", ""),
            ("", "ETH"),
            ("ethereum", "Polygon"),
        ] {
            assert!(!same_token(a, b), "{a} {b}");
        }
        assert!(is_token_name("solana") && !is_token_name("Solana") && !is_token_name("DAI"));
    }

    #[test]
    fn decimals_compare_as_numbers() {
        assert!(same_amount("20", "20.00"));
        assert!(same_amount("0.5", "00.50"));
        assert!(!same_amount("20", "2"));
        assert!(!same_amount("20", "20.01"));
    }

    #[test]
    fn times_are_cut_to_milliseconds() {
        let written = |text: &str| iso(text.parse().unwrap());
        assert_eq!(written("2025-03-05T03:36:00Z"), "2025-03-05T03:36:00.000Z");
        assert_eq!(written("2025-03-05T05:36:59.999999999+02:00"), "2025-03-05T03:36:59.999Z");
        assert_eq!(written("0099-12-31T23:59:59.5Z"), "0099-12-31T23:59:59.500Z");
    }

    #[test]
    fn unprintable_characters_are_replaced() {
        assert_eq!(printable("a\r\nb\u{1b}[31m\u{202e}c", 99), "a  b [31m c");
        assert_eq!(printable("abcdef", 3), "abc…");
    }
}
