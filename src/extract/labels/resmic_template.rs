//! Searches a mail's HTML for the list in Resmic's payment mail, visible or hidden. Resmic has published the code that writes its
//! payment mail. The HTML of this mail contains a list with one item for each field: `<li>Received: $20</li>`.
//!
//! Resmic does not escape names and tokens in the HTML of its payment mail. The creator of a token can therefore hide the list
//! and show another list, but cannot remove the original list from the HTML.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::extract::field::PaymentField;
use crate::extract::views::{is_block, lower, normalize_space};

/// The labels of the list in Resmic's payment mail. Resmic's other mails do not contain the first label, `Received:`.
const LABELS: [(&str, PaymentField); 6] = [
    ("Received:", PaymentField::Amount),
    ("Date:", PaymentField::Time),
    ("Blockchain:", PaymentField::Blockchain),
    ("Token:", PaymentField::Token),
    ("From:", PaymentField::Wallet),
    ("Transaction Hash:", PaymentField::Hash),
];

/// The finders of the labels. Building a finder takes longer than one search.
static FINDERS: LazyLock<[(Finder<'_>, PaymentField); 6]> =
    LazyLock::new(|| LABELS.map(|(label, field)| (Finder::new(label), field)));

/// The most bytes of HTML in one list item after its label. The text of a longer item is not used.
const MAX_ITEM: usize = 400;

/// Whether a mail's HTML contains the list in Resmic's payment mail, or a part of it. The labels of the list are [`LABELS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TemplateList {
    /// No list item of the HTML begins with the first label, `Received:`.
    #[default]
    Absent,
    /// A list item begins with the first label, `Received:`, but other labels are missing.
    Partial,
    /// Each label of [`LABELS`] begins a list item. A list without `Date:` also counts as complete, because Resmic's code
    /// writes no value after this label.
    Complete,
}

/// Searches HTML for the list in Resmic's payment mail, also in hidden, quoted and commented-out text.
pub(crate) fn find_template_list(html: &str) -> TemplateList {
    let has = |label: &Finder<'_>| label_positions(html, label).any(|at| starts_list_item(html, at));
    let [(received, _), rest @ ..] = &*FINDERS;
    if !has(received) {
        TemplateList::Absent
    } else if rest.iter().all(|(label, field)| *field == PaymentField::Time || has(label)) {
        TemplateList::Complete
    } else {
        TemplateList::Partial
    }
}

/// Returns the text after each label of [`LABELS`], also outside of list items, for example in a table. The result is empty
/// if no element's text begins with the first label, `Received:`.
pub(crate) fn template_items(html: &str) -> Vec<(PaymentField, String)> {
    let [(received, _), ..] = &*FINDERS;
    if label_positions(html, received).next().is_none() {
        return Vec::new();
    }
    FINDERS.iter().flat_map(|(label, field)| label_values(html, label).map(|value| (*field, value))).collect()
}

/// Returns the text after `label` at each position where this label begins the text of an element.
fn label_values<'a>(html: &'a str, label: &'a Finder<'_>) -> impl Iterator<Item = String> + 'a {
    label_positions(html, label).filter_map(|at| item_text(html.get(at + label.needle().len()..).unwrap_or_default()))
}

/// Returns the positions at which `label` begins the text of an element, because a tag precedes it.
fn label_positions<'a>(html: &'a str, label: &'a Finder<'_>) -> impl Iterator<Item = usize> + 'a {
    let begins_text = |at: &usize| html.get(..*at).is_some_and(|before| before.trim_end().ends_with('>'));
    label.find_iter(html.as_bytes()).filter(begins_text)
}

/// Whether a list item begins with the text at this position. The text may be inside inline elements, such as `<b>`.
fn starts_list_item(html: &str, at: usize) -> bool {
    let start = html.floor_char_boundary(at.saturating_sub(MAX_WRAPPER_BYTES));
    let mut before = html.get(start..at).unwrap_or_default();
    for _ in 0..MAX_WRAPPERS {
        let Some((outside, tag)) = before.trim_end().strip_suffix('>').and_then(|b| b.rsplit_once('<')) else {
            return false;
        };
        let name = tag_name(tag);
        if name == "li" {
            return !tag.starts_with('/');
        }
        if is_block(&name) || matches!(&*name, "td" | "th") {
            return false;
        }
        before = outside;
    }
    false
}

/// The name of a tag, in lower case. `tag` begins after `<`.
fn tag_name(tag: &str) -> Cow<'_, str> {
    let tag = tag.trim_start_matches('/');
    let end = tag.bytes().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(tag.len());
    lower(tag.get(..end).unwrap_or_default())
}

/// The most inline elements, such as `<b>`, that may be around a label in its list item.
const MAX_WRAPPERS: usize = 8;

/// The most bytes before a label that are searched for inline elements. Without this limit, HTML that consists of labels
/// would take quadratic time.
const MAX_WRAPPER_BYTES: usize = 2_000;

/// Returns the text of a list item up to the item's end. `None` if elements split the text, because a part of the text may be
/// hidden. In Resmic's payment mail, no element splits the text of a list item. The result is also `None` if the item has no end
/// within [`MAX_ITEM`] bytes.
fn item_text(html: &str) -> Option<String> {
    let mut rest = html.get(..html.floor_char_boundary(MAX_ITEM)).unwrap_or(html);
    let mut out = String::new();
    while let Some((before, tag)) = rest.split_once('<') {
        if !out.is_empty() && !before.trim().is_empty() {
            return None;
        }
        out.push_str(before.trim());
        if is_block(&tag_name(tag)) {
            return Some(normalize_space(&out));
        }
        rest = tag.split_once('>').map_or("", |(_, rest)| rest);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_list_items_are_found() {
        let html = "Hi <!-- <li><b>Received:</b> <i>$20</i></li><li><b>Token:</b> DAI<LI><b>Transaction Hash:</b> <a href=>0xab</li></a>";
        let found = template_items(html);
        let expected = [(PaymentField::Amount, "$20"), (PaymentField::Token, "DAI"), (PaymentField::Hash, "0xab")];
        assert_eq!(found, expected.map(|(field, value)| (field, value.to_owned())));
        let in_pieces = "<li>Received: $2<i>0</i></li><li>Token: D<!-- -->AI</li><li>From: <li>Blockchain: B<b>ase";
        assert!(
            find_template_list(in_pieces) == TemplateList::Partial
                && template_items(in_pieces) == [(PaymentField::Wallet, String::new())]
        );
        assert_eq!(template_items("<li>Amount: $20</li><li>Token: DAI</li>"), []);
        assert_eq!(template_items("<p>We Received: nothing"), []);
    }

    #[test]
    fn a_table_is_not_the_published_list() {
        let item = |label: &str| format!("<li style='margin:0'> <strong><span>{label}</span></strong> x</li>");
        let labels = ["Received:", "Blockchain:", "Token:", "From:", "Transaction Hash:"];
        let whole: String = labels.map(item).concat();
        assert_eq!(find_template_list(&whole), TemplateList::Complete);
        assert_eq!(find_template_list(&whole.replace("Token:", "Coin:")), TemplateList::Partial);
        assert_eq!(find_template_list(&format!("<!-- {whole} -->")), TemplateList::Complete);
        assert_eq!(find_template_list("<li><!-- x --><i></i><B>Received:"), TemplateList::Partial);
        assert_eq!(find_template_list(&">Received:".repeat(200_000)), TemplateList::Absent);
        let rows: String = labels.map(|label| format!("<tr><td><b>{label}</b></td><td>x</td></tr>")).concat();
        for html in [
            rows.as_str(),
            "<li><p>Received: $20",
            "<li>Amount<b>Received: $20",
            "</li><b>Received:",
            "Received:",
            ">Received:",
        ] {
            assert_eq!(find_template_list(html), TemplateList::Absent, "{html}");
        }
    }
}
