//! The visible text of one text part of a mail, as lines. A line has cells, and the links in the line.

use std::borrow::Cow;

use crate::model::ReasonCode;

/// The rendering of one text/plain or text/html part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// `text/plain` or `text/html`.
    pub content_type: &'static str,
    /// The visible lines, from the top.
    pub lines: Vec<ViewLine>,
    /// The reason why the visible text is not fully known: there is too much text, its visibility is unclear, or it is
    /// in UTF-7.
    pub problem: Option<(ReasonCode, &'static str)>,
}

/// The content types of the text parts that views render.
pub(crate) const PLAIN_TEXT: &str = "text/plain";
pub(crate) const HTML: &str = "text/html";

/// The most lines of a view; in HTML, the most lines and cells together. Text beyond this limit is not parsed, and the
/// mail does not become an event.
pub(crate) const MAX_LINES: usize = 5_000;

/// The most cells of a line. A line with more cells is not treated as a row of a table.
pub(crate) const MAX_CELLS: usize = 64;

/// The most links of one line. Further links of the line are ignored.
pub(crate) const MAX_LINKS: usize = 32;

/// The problem of a view with more than [`MAX_LINES`] lines.
pub(crate) const TOO_MANY_LINES: (ReasonCode, &str) = (ReasonCode::TooLarge, "it has more than 5000 lines");

/// The mark before and after text that looks different from its characters: struck out, superscript or reversed. No
/// valid value contains this mark.
pub(crate) const ODD_MARK: char = '\u{fffd}';

/// A line of plain text, or a line that a browser shows for a block of HTML.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewLine {
    /// The cells of a table row; one cell for other lines.
    pub cells: Vec<String>,
    /// The targets (`href`) of the links in the line.
    pub links: Vec<String>,
    /// Whether the line is quoted or forwarded text.
    pub quoted: bool,
    /// The kind of the line, such as a heading or a list item.
    pub kind: LineKind,
    /// The beginning of the line, if this beginning is bold or in a separate element.
    pub lead: Option<String>,
}

/// The kind of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LineKind {
    /// A line to which no other kind applies.
    #[default]
    Text,
    /// A heading.
    Heading,
    /// The first line of a list item. Only lines of the kind `Inside` continue the item.
    Item,
    /// A further line of a list item.
    Inside,
    /// A term of a definition list. The lines below have the definitions of the term.
    Term,
    /// A definition of a term in a definition list.
    Definition,
    /// A row of a table.
    Row,
}

impl ViewLine {
    /// Returns the cells of the line as one text, separated by spaces.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.joined().into_owned()
    }

    /// The same as [`ViewLine::to_text`], without a copy if there is only one cell.
    pub(crate) fn joined(&self) -> Cow<'_, str> {
        if let [cell] = self.cells.as_slice() { cell.into() } else { self.cells.join(" ").into() }
    }
}

impl View {
    /// Adds a line, if it is not empty. In a view with [`MAX_LINES`] lines, sets `problem` instead.
    pub(crate) fn push_line(&mut self, line: ViewLine) {
        if self.lines.len() >= MAX_LINES {
            self.problem = Some(TOO_MANY_LINES);
        } else if line.cells.iter().any(|c| !c.is_empty()) || !line.links.is_empty() {
            self.lines.push(line);
        }
    }
}

/// Normalizes white space as a browser does: each run of white space becomes one space. Characters without width are
/// removed.
pub(crate) fn normalize_space(text: &str) -> String {
    // Most text between HTML tags is only white space. After `trim`, the loop has nothing to do for such text.
    let mut rest = text.trim();
    let mut out = String::with_capacity(rest.len());
    while !rest.is_empty() {
        // ASCII words are copied unchanged.
        let (word, after) = rest.split_at(rest.bytes().position(|b| !b.is_ascii_graphic()).unwrap_or(rest.len()));
        out.push_str(word);
        let mut chars = after.chars();
        match chars.next() {
            // Characters without width: zero-width space and joiners, word joiner, byte order mark, soft hyphen, combining
            // grapheme joiner. The left-to-right mark U+200E is removed too, because JavaScript writes it into dates. The mark
            // reverses no text.
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
    fn white_space_and_zero_width_are_normalized() {
        assert_eq!(normalize_space(" a\u{200b}b\u{ad}c \u{a0}\r\n\t d\u{2003}"), "abc d");
    }
}
