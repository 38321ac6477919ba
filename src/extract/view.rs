//! What a person sees: lines of text, each made of cells, with the links in them.

use std::borrow::Cow;

use crate::model::ReasonCode;

/// One rendering of a mail: its text/plain part, or its text/html part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// `text/plain` or `text/html`.
    pub kind: &'static str,
    /// From the top.
    pub lines: Vec<Line>,
    /// Why it is not known what a person sees: the rest was too much, or cannot be told.
    pub lost: Option<(ReasonCode, &'static str)>,
}

/// The most lines of a view, and cells of HTML: what is beyond is not read, and no payment is read from it.
pub(super) const LINES: usize = 5_000;

/// The most cells of a line; a line of more is no row of a table.
pub(super) const CELLS: usize = 64;

/// The most links of a line that are looked at.
pub(super) const LINKS: usize = 32;

/// What is said of a view with more.
pub(super) const TOO_LONG: (ReasonCode, &str) = (ReasonCode::TooLarge, "it has more than 5000 lines");

/// Stands where a person sees something else than the text says: struck out, raised, turned round. No value has it.
pub(super) const ODD: char = '\u{fffd}';

/// A line, or what HTML lays out as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Table cells; elsewhere one.
    pub cells: Vec<String>,
    /// The targets of its links.
    pub links: Vec<String>,
    /// Somebody else's words: quoted or forwarded.
    pub quoted: bool,
    /// What sort of line.
    pub sort: Sort,
    /// What stands first in it in letters of its own: bold, or in an element.
    pub lead: Option<String>,
}

/// What sort of line it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sort {
    /// Any.
    #[default]
    Text,
    /// A heading.
    Heading,
    /// A list item: what follows it does not belong to it.
    Item,
    /// A further line of a list item.
    Inside,
    /// A term of a definition list: its definitions follow.
    Term,
    /// A definition.
    Definition,
    /// A row of a table.
    Row,
}

impl Line {
    /// The cells as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.words().into_owned()
    }

    /// [`Line::text`], copied only where there are several cells.
    pub(super) fn words(&self) -> Cow<'_, str> {
        if let [cell] = self.cells.as_slice() { cell.into() } else { self.cells.join(" ").into() }
    }
}

impl View {
    /// Adds a line whose texts are tidy, unless there is nothing in it.
    pub(super) fn push(&mut self, line: Line) {
        if self.lines.len() >= LINES {
            self.lost = Some(TOO_LONG);
        } else if line.cells.iter().any(|c| !c.is_empty()) || !line.links.is_empty() {
            self.lines.push(line);
        }
    }
}

/// Text as the eye takes it: runs of white space are one space, characters without width are not there.
pub(super) fn tidy(text: &str) -> String {
    // Most of what HTML has between its tags is white space.
    let mut rest = text.trim();
    let mut out = String::with_capacity(rest.len());
    while !rest.is_empty() {
        // Words of ASCII stand as they are.
        let (word, behind) = rest.split_at(rest.bytes().position(|b| !b.is_ascii_graphic()).unwrap_or(rest.len()));
        out.push_str(word);
        let mut chars = behind.chars();
        match chars.next() {
            // Zero-width space and joiners, word joiner, byte order mark, soft hyphen, combining grapheme joiner.
            // The left-to-right mark stands in dates that JavaScript wrote and turns nothing round.
            Some(
                '\u{200b}'..='\u{200e}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{ad}' | '\u{34f}' | '\u{180e}',
            ) => {}
            Some(c) if !(c.is_whitespace() || c == '\u{2800}') => out.push(c),
            Some(_) if !out.is_empty() && !out.ends_with(' ') => out.push(' '),
            Some(_) => {}
            None => {}
        }
        rest = chars.as_str();
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_width_is_not_there_and_white_space_is_one_space() {
        assert_eq!(tidy(" a\u{200b}b\u{ad}c \u{a0}\r\n\t d\u{2003}"), "abc d");
    }
}
