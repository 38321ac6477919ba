//! Removes link text after a hash or an address: `(view)`, `[View on Etherscan]`, or the link itself. Programs that
//! convert HTML to plain text print such link text after the value.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::extract::field::PaymentField;
use crate::extract::values;

/// Words of link text. Each word has a letter that is not a hexadecimal digit, so that no piece of a hash is removed. Words
/// that put a transaction in doubt (`pending`, `failed`, `check`) are left out.
const LINK_WORDS: [&str; 50] = [
    "view",
    "see",
    "open",
    "show",
    "track",
    "inspect",
    "copy",
    "click",
    "tap",
    "here",
    "it",
    "this",
    "the",
    "on",
    "in",
    "at",
    "with",
    "via",
    "to",
    "your",
    "more",
    "transaction",
    "tx",
    "txn",
    "hash",
    "address",
    "wallet",
    "link",
    "details",
    "block",
    "blockchain",
    "chain",
    "explorer",
    "blockexplorer",
    "browser",
    "external",
    "online",
    "etherscan",
    "polygonscan",
    "bscscan",
    "basescan",
    "xdcscan",
    "starkscan",
    "voyager",
    "solscan",
    "blockscout",
    "etherscan.io",
    "polygonscan.com",
    "bscscan.com",
    "basescan.org",
];

/// Characters that mails show as the icon of a link, or of a button that copies a value.
const LINK_SIGNS: [char; 14] = ['↗', '→', '➜', '➚', '⤴', '⧉', '🔗', '🔍', '🔎', '📋', '👉', '»', '›', '\u{fe0f}'];

/// A footnote mark such as `[1]` in `0xab[1]`. The link of this footnote is at the end of the mail.
static FOOTNOTE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[[0-9]{1,2}\]").ok());

/// Separates a value from link text and links around it, and returns the value and the links. `None` if the text is only a
/// value, contains other words, or has more than 500 bytes.
pub(crate) fn split_link_text(text: &str) -> Option<(String, Vec<String>)> {
    // A hash of 66 characters, a link with this hash, and a few words are shorter than this limit.
    if text.len() > 500 || !text.contains(|c: char| c.is_whitespace() || is_bracket(c)) {
        return None;
    }
    let text = FOOTNOTE.as_ref()?.replace_all(text, " ");
    let (mut value, mut links) = (None, Vec::new());
    for word in text.split(|c: char| c.is_whitespace() || is_bracket(c)).filter(|word| !word.is_empty()) {
        if word.starts_with("https://") || word.starts_with("http://") {
            links.push(word.to_owned());
        } else if !is_link_word(word) && value.replace(word).is_some() {
            // Two words that are not link text.
            return None;
        }
    }
    match (value, links.as_slice()) {
        (Some(value), _) => Some((value.to_owned(), links)),
        // `View <https://etherscan.io/tx/0xab>`: the link is the value.
        (None, [link]) => Some((link.clone(), Vec::new())),
        (None, _) => None,
    }
}

/// Whether a text contains only words of link text, such as `View on Etherscan`, and no value.
pub(crate) fn is_only_link_text(text: &str) -> bool {
    let mut words = text.split(|c: char| c.is_whitespace() || is_bracket(c)).filter(|word| !word.is_empty()).peekable();
    words.peek().is_some() && words.all(is_link_word)
}

/// Returns the value in `text` without link text and links around it, or the whole text if [`split_link_text`] returns `None`.
pub(crate) fn strip_link_text(text: &str) -> Cow<'_, str> {
    split_link_text(text).map_or(text.into(), |(value, _)| value.into())
}

/// Returns the values in a link that follows a value of `field`. A link to a known explorer has a chain and a transaction hash;
/// other links may have a hash or an address.
pub(crate) fn fields_of_link(link: &str, field: PaymentField) -> Vec<(PaymentField, String)> {
    if let Some((chain, hash)) = values::parse_explorer_link(link) {
        return vec![(PaymentField::Blockchain, chain.to_owned()), (PaymentField::Hash, hash)];
    }
    let named: Vec<_> = match field {
        PaymentField::Wallet => values::hex_numbers_in_link(link, 40),
        _ => values::hex_numbers_in_link(link, 64).into_iter().chain(values::transaction_in_link(link)).collect(),
    };
    named.into_iter().map(|value| (field, value)).collect()
}

fn is_bracket(c: char) -> bool {
    matches!(c, '<' | '>' | '(' | ')' | '[' | ']')
}

fn is_link_word(word: &str) -> bool {
    let plain = word.trim_matches(|c: char| LINK_SIGNS.contains(&c) || matches!(c, ':' | '.' | ','));
    LINK_WORDS.iter().any(|known| plain.eq_ignore_ascii_case(known)) || word.chars().all(|c| LINK_SIGNS.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_and_their_words_are_removed() {
        let (hash, other) = (format!("0x{}", "ab12".repeat(16)), format!("0x{}", "cd34".repeat(16)));
        for suffix in [
            " (view)",
            " [view]",
            " (View on Etherscan)",
            " [Open in block explorer ↗]",
            " View on Polygonscan",
            " 🔗",
            "<https://etherscan.io/tx/0xab>",
            " <https://etherscan.io/tx/0xab>",
            " [https://etherscan.io/tx/0xab]",
            " (https://etherscan.io/tx/0xab)",
            " (View on Etherscan: https://etherscan.io/tx/0xab)",
            " https://etherscan.io/tx/0xab",
            "[1]",
            " [12]",
        ] {
            assert_eq!(strip_link_text(&format!("{hash}{suffix}")), hash, "{suffix}");
        }
        assert_eq!(strip_link_text(&format!("[{hash}](https://x.example/tx/{hash})")), hash);
        assert_eq!(strip_link_text("View <https://etherscan.io/tx/0xab>"), "https://etherscan.io/tx/0xab");
        for suffix in [
            " (failed)",
            " (pending)",
            " (not final)",
            " (example)",
            " (check)",
            " …",
            " ab",
            " [123]",
            &format!(" {other}"),
            &format!(" ({other})"),
            " (view) ab",
            "\u{fffd}(view)\u{fffd}",
        ] {
            assert_ne!(strip_link_text(&format!("{hash}{suffix}")), hash, "{suffix}");
        }
        assert_eq!(split_link_text(&hash), None);
        assert!(LINK_WORDS.iter().all(|word| word.chars().any(|c| !c.is_ascii_hexdigit())));
    }

    #[test]
    fn a_link_gives_its_transaction() {
        let hash = format!("0x{}", "ab12".repeat(16));
        let solana = bs58::encode([7_u8; 64]).into_string();
        let hashes = |link: &str| fields_of_link(link, PaymentField::Hash);
        let is = |hash: &str| (PaymentField::Hash, hash.to_owned());
        assert_eq!(
            hashes(&format!("https://basescan.org/tx/{hash}")),
            [(PaymentField::Blockchain, "Base".to_owned()), is(&hash)]
        );
        let redirect = format!("https://t.example/c?u=https%3A%2F%2Fetherscan.io%2Ftx%2F{hash}%3Fa");
        assert_eq!(hashes(&redirect), [is(&hash)]);
        assert_eq!(hashes(&format!("https://scan.example/tx/{solana}")), [is(&solana)]);
        assert_eq!(hashes("https://t.example/ls/click?upn=u001.Ab12"), []);
        let wallet = &hash[..42];
        let address = format!("https://etherscan.io/address/{wallet}");
        assert_eq!(fields_of_link(&address, PaymentField::Wallet), [(PaymentField::Wallet, wallet.to_owned())]);
    }
}
