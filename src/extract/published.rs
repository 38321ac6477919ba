//! Finds the list of the published layout in HTML, visible or not.
//!
//! Resmic does not escape names and tokens in that HTML. Their creator can hide the list and show another one, but
//! cannot remove the original from the HTML.

use memchr::memmem;

use super::Field;
use super::element::is_block;
use super::view::tidy;

/// The labels of the list. No other mail of Resmic has the first one.
const LABELS: [(&str, Field); 6] = [
    ("Received:", Field::Amount),
    ("Date:", Field::Time),
    ("Blockchain:", Field::Blockchain),
    ("Token:", Field::Token),
    ("From:", Field::Wallet),
    ("Transaction Hash:", Field::Hash),
];

/// The most bytes of an item.
const ITEM: usize = 400;

/// How much of the published layout's list is in a mail's HTML.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    /// No list item has its first label.
    #[default]
    Absent,
    /// A list item begins with its first label.
    Begun,
    /// List items begin with each of its labels. `Date:` may be missing: the published code leaves it empty.
    Whole,
}

/// Looks for the list in HTML, also where that is hidden, quoted or commented out.
pub(super) fn list(html: &str) -> List {
    let has = |label: &str| starts(html, label).any(|at| begins_item(html, at));
    let [(received, _), rest @ ..] = LABELS;
    if !has(received) {
        List::Absent
    } else if rest.iter().all(|(label, field)| *field == Field::Time || has(label)) {
        List::Whole
    } else {
        List::Begun
    }
}

/// The items of the list, and of a table with the same first label.
pub(super) fn items(html: &str) -> Vec<(Field, String)> {
    let [(received, _), ..] = LABELS;
    if starts(html, received).next().is_none() {
        return Vec::new();
    }
    LABELS.iter().flat_map(|(label, field)| values(html, label).map(|value| (*field, value))).collect()
}

/// The values behind a label, wherever that begins an element's text.
fn values<'a>(html: &'a str, label: &'a str) -> impl Iterator<Item = String> + 'a {
    starts(html, label).filter_map(|at| text(html.get(at + label.len()..).unwrap_or_default()))
}

/// Where a label begins an element's text.
fn starts<'a>(html: &'a str, label: &'a str) -> impl Iterator<Item = usize> + 'a {
    let begins = |at: &usize| html.get(..*at).is_some_and(|before| before.trim_end().ends_with('>'));
    memmem::find_iter(html.as_bytes(), label.as_bytes()).filter(begins)
}

/// Whether the text that starts at `at` is the first of a list item, perhaps in bold letters.
fn begins_item(html: &str, at: usize) -> bool {
    let start = html.floor_char_boundary(at.saturating_sub(WRAPPING));
    let mut before = html.get(start..at).unwrap_or_default();
    for _ in 0..WRAPPERS {
        let Some((outside, tag)) = before.trim_end().strip_suffix('>').and_then(|b| b.rsplit_once('<')) else {
            return false;
        };
        let name = tag.trim_start_matches('/').split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        if name == "li" {
            return !tag.starts_with('/');
        }
        if is_block(&name) || matches!(name.as_str(), "td" | "th") {
            return false;
        }
        before = outside;
    }
    false
}

/// The most inline elements that may stand around a label in its list item.
const WRAPPERS: usize = 8;

/// The most bytes of their tags. Without a limit, a text of labels alone would take quadratic time.
const WRAPPING: usize = 2_000;

/// The text of an item up to its end. `None` if elements split it: some of them may be hidden, and Resmic's list has
/// none.
fn text(html: &str) -> Option<String> {
    let mut rest = html.get(..html.floor_char_boundary(ITEM)).unwrap_or(html);
    let mut out = String::new();
    while let Some((before, tag)) = rest.split_once('<') {
        if !out.is_empty() && !before.trim().is_empty() {
            return None;
        }
        out.push_str(before.trim());
        let name = tag.trim_start_matches('/').split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        if is_block(&name.to_ascii_lowercase()) {
            return Some(tidy(&out));
        }
        rest = tag.split_once('>').map_or("", |(_, rest)| rest);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_items_are_found_wherever_they_hide() {
        let html = "Hi <!-- <li><b>Received:</b> <i>$20</i></li><li><b>Token:</b> DAI<LI><b>Transaction Hash:</b> <a href=>0xab</li></a>";
        let found = items(html);
        let want = [(Field::Amount, "$20"), (Field::Token, "DAI"), (Field::Hash, "0xab")];
        assert_eq!(found, want.map(|(field, value)| (field, value.to_owned())));
        let in_pieces = "<li>Received: $2<i>0</i></li><li>Token: D<!-- -->AI</li><li>From: <li>Blockchain: B<b>ase";
        assert!(list(in_pieces) == List::Begun && items(in_pieces) == [(Field::Wallet, String::new())]);
        assert_eq!(items("<li>Amount: $20</li><li>Token: DAI</li>"), []);
        assert_eq!(items("<p>We Received: nothing"), []);
    }

    #[test]
    fn a_table_is_not_the_published_list() {
        let item = |label: &str| format!("<li style='margin:0'> <strong><span>{label}</span></strong> x</li>");
        let labels = ["Received:", "Blockchain:", "Token:", "From:", "Transaction Hash:"];
        let whole: String = labels.map(item).concat();
        assert_eq!(list(&whole), List::Whole);
        assert_eq!(list(&whole.replace("Token:", "Coin:")), List::Begun);
        assert_eq!(list(&format!("<!-- {whole} -->")), List::Whole);
        assert_eq!(list("<li><!-- x --><i></i><B>Received:"), List::Begun);
        assert_eq!(list(&">Received:".repeat(200_000)), List::Absent);
        let rows: String = labels.map(|label| format!("<tr><td><b>{label}</b></td><td>x</td></tr>")).concat();
        for html in [
            rows.as_str(),
            "<li><p>Received: $20",
            "<li>Amount<b>Received: $20",
            "</li><b>Received:",
            "Received:",
            ">Received:",
        ] {
            assert_eq!(list(html), List::Absent, "{html}");
        }
    }
}
