//! Finds values that a line break cuts in two. The first part could look like a whole value.

use std::borrow::Cow;

use super::view::Line;
use super::{Field, annotation, values};

/// Returns the value, or the value joined with the next line if it continues there. The joined text is unreadable on
/// purpose: the end of the value is unknown.
pub(super) fn whole(field: Field, value: &str, next: Option<&Line>) -> String {
    let next = next.map(Line::words).unwrap_or_default();
    // Ignore the bar at the end of a table row and a mail program's quote mark.
    let next = next.trim_matches([' ', '|', '>']);
    let next = match field {
        Field::Hash | Field::Wallet => annotation::without(next).into(),
        _ => Cow::Borrowed(next),
    };
    let next = &*next;
    let goes_on = match field {
        Field::Amount => is_amount(next) && next != value,
        Field::Hash => name_goes_on(value, next) || (values::is_transaction(next) && !value.eq_ignore_ascii_case(next)),
        Field::Wallet => name_goes_on(value, next),
        _ => false,
    };
    if goes_on && !value.is_empty() { format!("{value} {next}") } else { value.to_owned() }
}

/// The next line, if it has only one text; quoted lines count, too.
pub(super) fn next(below: Option<&Line>) -> Option<&Line> {
    below.filter(|next| next.cells.iter().filter(|cell| !cell.is_empty()).count() == 1)
}

/// Whether a line begins like a number: `.50`, `250.50 USD`, `$30`.
fn is_amount(next: &str) -> bool {
    next.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '$'))
        && next.len() <= 40
        && next.contains(|c: char| c.is_ascii_digit())
        && next.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ',' | ' ' | '$'))
}

/// Whether a hash or an address continues. Starknet's have any length; Solana's can lack the last letter.
fn name_goes_on(value: &str, next: &str) -> bool {
    match value.strip_prefix("0x") {
        Some(digits) => is_hex(digits) && digits.len() < 64 && digits_go_on(digits, next),
        None => values::base58_bytes(value).is_some_and(|bytes| {
            matches!(bytes, 32 | 64) && values::base58_bytes(&format!("{value}{next}")) == Some(bytes)
        }),
    }
}

/// Whether the next line is hexadecimal, or begins with hexadecimal that is neither a word nor a number.
fn digits_go_on(digits: &str, next: &str) -> bool {
    let first = next.split_whitespace().next().unwrap_or_default();
    let first = first.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let has = |test: fn(&u8) -> bool| first.bytes().any(|b| test(&b));
    let mixed = first.len() >= 4 && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    let more = if is_hex(next) { next } else { first };
    // An EVM address is complete, so a few digits below it can be something else.
    is_hex(more) && (more == next || mixed) && (digits.len() != 40 || more.len() > 8)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_what_goes_on_is_none_and_one_that_is_whole_stays() {
        let cut = |field, value: &str, next: &str| {
            let next = Line { cells: vec![String::new(), next.to_owned()], ..Line::default() };
            whole(field, value, Some(&next)) != value
        };
        let solana = bs58::encode([200_u8; 64]).into_string();
        let (most, last) = solana.split_at(solana.len() - 1);
        let evm = format!("0x{}", "ab12".repeat(16));
        for (field, value, next) in [
            (Field::Hash, "0x05f3a1b2", "c3d4"),
            (Field::Hash, "0x05f3a1b2", "7"),
            (Field::Hash, "0x05f3a1b2", "c3d4e5f6, see above"),
            (Field::Wallet, "0x05f3a1b2", "c3d4e5f6"),
            (Field::Hash, most, last),
            (Field::Hash, &solana, &evm),
            (Field::Amount, "$1", "250.50"),
            (Field::Amount, "$20", ".50"),
            (Field::Amount, "$20", "$30"),
            (Field::Amount, "$19", "99.99 |"),
        ] {
            assert!(cut(field, value, next), "{value} {next}");
        }
        for (field, value, next) in [
            (Field::Hash, "0x05f3a1b2", "Date: Mar 5"),
            (Field::Hash, "0x05f3a1b2", "Dec 5, 2025"),
            (Field::Hash, "0x05f3a1b2", "2025 Resmic"),
            (Field::Hash, &evm, "7"),
            (Field::Hash, &evm, &evm),
            (Field::Hash, &solana, "A"),
            (Field::Wallet, "0x056397760b973BfB921Bc10Be9DA5034B1e921d7", "1234"),
            (Field::Amount, "$20", "$20"),
            (Field::Amount, "$20", "Token: DAI"),
            (Field::Token, "DAI", "20"),
            (Field::Amount, "", "$20"),
            (Field::Hash, "", &evm),
        ] {
            assert!(!cut(field, value, next), "{value} {next}");
        }
    }
}
