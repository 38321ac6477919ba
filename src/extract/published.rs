//! The published layout's items as they stand in its HTML, seen or not.
//!
//! A name and a token go into that HTML as they are. Whoever chose them may hide the list and show one of their own; what
//! stands in the true one is still there.

use memchr::memmem;

use super::Field;
use super::element::is_block;
use super::view::tidy;

/// The items of the list. The first one's label stands in no other mail of Resmic's.
const LABELS: [(&str, Field); 6] = [
    ("Received:", Field::Amount),
    ("Date:", Field::Time),
    ("Blockchain:", Field::Blockchain),
    ("Token:", Field::Token),
    ("From:", Field::Wallet),
    ("Transaction Hash:", Field::Hash),
];

/// The longest item that is looked at.
const ITEM: usize = 400;

/// Whether a text, or what is hidden, quoted or commented out in it, begins as the published layout's list does.
pub(super) fn is_in(html: &str) -> bool {
    let (received, _) = LABELS[0];
    values(html, received).next().is_some()
}

/// Its items.
pub(super) fn items(html: &str) -> Vec<(Field, String)> {
    if !is_in(html) {
        return Vec::new();
    }
    LABELS.iter().flat_map(|(label, field)| values(html, label).flatten().map(|value| (*field, value))).collect()
}

/// What stands behind a label, wherever that begins an element's text.
fn values<'a>(html: &'a str, label: &'a str) -> impl Iterator<Item = Option<String>> + 'a {
    let places = memmem::find_iter(html.as_bytes(), label.as_bytes());
    let begins = |at: &usize| html.get(..*at).is_some_and(|before| before.trim_end().ends_with('>'));
    places.filter(begins).map(move |at| text(html.get(at + label.len()..).unwrap_or_default()))
}

/// The text up to the end of an item. Nothing where it is in pieces, as the layout's own is not: some of
/// them may be hidden.
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
        assert!(is_in(in_pieces) && items(in_pieces) == [(Field::Wallet, String::new())]);
        assert_eq!(items("<li>Amount: $20</li><li>Token: DAI</li>"), []);
        assert_eq!(items("<p>We Received: nothing"), []);
    }
}
