//! Finds values that a line break cuts in two. The part before the line break could look like a complete value.

use std::borrow::Cow;

use super::link_text::strip_link_text;
use crate::extract::field::PaymentField;
use crate::extract::values;
use crate::extract::views::ViewLine;

/// If the value continues on the next line, returns the value, a space and the next line. The end of a value on two lines is
/// unknown. The space makes the parser refuse the joined text.
pub(crate) fn join_continuation(field: PaymentField, value: &str, next: Option<&ViewLine>) -> Option<String> {
    let next = next.map(ViewLine::joined).unwrap_or_default();
    // The next line may have the bar of a table row at its end, or the `>` of quoted text at its beginning.
    let next = next.trim_matches([' ', '|', '>']);
    let next = match field {
        PaymentField::Hash | PaymentField::Wallet => strip_link_text(next),
        _ => Cow::Borrowed(next),
    };
    let next = &*next;
    let continues = match field {
        PaymentField::Amount => looks_like_amount(next) && next != value,
        PaymentField::Hash => {
            identifier_continues(value, next)
                || (values::is_transaction_hash(next) && !value.eq_ignore_ascii_case(next))
        }
        PaymentField::Wallet => identifier_continues(value, next),
        _ => false,
    };
    if continues && !value.is_empty() { Some(format!("{value} {next}")) } else { None }
}

/// Returns the line `below`, if only one of its cells has text. The line may be quoted.
pub(crate) fn only_text_line(below: Option<&ViewLine>) -> Option<&ViewLine> {
    below.filter(|next| next.cells.iter().filter(|cell| !cell.is_empty()).count() == 1)
}

/// Whether a line looks like an amount or the end of an amount: `$30`, `250.50 USD`, `.50`.
fn looks_like_amount(next: &str) -> bool {
    next.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '$'))
        && next.len() <= 40
        && next.contains(|c: char| c.is_ascii_digit())
        && next.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ',' | ' ' | '$'))
}

/// Whether a hash or an address continues on the next line. Hashes and addresses of Starknet can have any length up to 64
/// digits, so the length does not show whether a value is complete. A base58 text of Solana without its last character can
/// still encode the right number of bytes.
fn identifier_continues(value: &str, next: &str) -> bool {
    match value.strip_prefix("0x") {
        Some(digits) => is_hex(digits) && digits.len() < 64 && digits_continue(digits, next),
        None => values::base58_length(value).is_some_and(|bytes| {
            matches!(bytes, 32 | 64) && values::base58_length(&format!("{value}{next}")) == Some(bytes)
        }),
    }
}

/// Whether the next line is hexadecimal, or begins with a hexadecimal text that is neither a word nor a decimal number.
fn digits_continue(digits: &str, next: &str) -> bool {
    let first = next.split_whitespace().next().unwrap_or_default();
    let first = first.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let has = |test: fn(&u8) -> bool| first.bytes().any(|b| test(&b));
    let is_mixed = first.len() >= 4 && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    let continuation = if is_hex(next) { next } else { first };
    // A value of 40 digits is a complete EVM address, so a few digits on the next line can be something else.
    is_hex(continuation) && (continuation == next || is_mixed) && (digits.len() != 40 || continuation.len() > 8)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_continues_on_the_next_line() {
        let is_cut = |field, value: &str, next: &str| {
            let next = ViewLine { cells: vec![String::new(), next.to_owned()], ..ViewLine::default() };
            join_continuation(field, value, Some(&next)).is_some()
        };
        let solana = bs58::encode([200_u8; 64]).into_string();
        let (most, last) = solana.split_at(solana.len() - 1);
        let evm = format!("0x{}", "ab12".repeat(16));
        for (field, value, next) in [
            (PaymentField::Hash, "0x05f3a1b2", "c3d4"),
            (PaymentField::Hash, "0x05f3a1b2", "7"),
            (PaymentField::Hash, "0x05f3a1b2", "c3d4e5f6, see above"),
            (PaymentField::Wallet, "0x05f3a1b2", "c3d4e5f6"),
            (PaymentField::Hash, most, last),
            (PaymentField::Hash, &solana, &evm),
            (PaymentField::Amount, "$1", "250.50"),
            (PaymentField::Amount, "$20", ".50"),
            (PaymentField::Amount, "$20", "$30"),
            (PaymentField::Amount, "$19", "99.99 |"),
        ] {
            assert!(is_cut(field, value, next), "{value} {next}");
        }
        for (field, value, next) in [
            (PaymentField::Hash, "0x05f3a1b2", "Date: Mar 5"),
            (PaymentField::Hash, "0x05f3a1b2", "Dec 5, 2025"),
            (PaymentField::Hash, "0x05f3a1b2", "2025 Resmic"),
            (PaymentField::Hash, &evm, "7"),
            (PaymentField::Hash, &evm, &evm),
            (PaymentField::Hash, &solana, "A"),
            (PaymentField::Wallet, "0x056397760b973BfB921Bc10Be9DA5034B1e921d7", "1234"),
            (PaymentField::Amount, "$20", "$20"),
            (PaymentField::Amount, "$20", "Token: DAI"),
            (PaymentField::Token, "DAI", "20"),
            (PaymentField::Amount, "", "$20"),
            (PaymentField::Hash, "", &evm),
        ] {
            assert!(!is_cut(field, value, next), "{value} {next}");
        }
    }
}
