//! Finds labels with their values in a view: on one line, in neighbouring cells, or with the value on the line below.

use std::borrow::Cow;

use super::label_table::{LabelTable, fold_label, with_currency};
use super::line_wrap::{join_continuation, only_text_line};
use super::link_text::{fields_of_link, is_only_link_text, split_link_text, strip_link_text};
use super::object_values::find_object_values;
use crate::extract::explain::ValuePlace;
use crate::extract::field::{FoundValue, PaymentField, ValuePosition};
use crate::extract::values;
use crate::extract::views::{LineKind, PLAIN_TEXT, View, ViewLine};

/// Finds each text in a view that is the value of a field: after a label, under a key of an object, or in a link to an explorer.
pub(crate) fn find_values(view: &View, table: &LabelTable) -> Vec<FoundValue> {
    let mut found = Vec::new();
    let object_lines = find_object_values(view, table, &mut found);
    let lines = without_mark_cells(&view.lines);
    // The index of the first line below the rows that `scan_row` has parsed as values.
    let mut first_unused = 0;
    for (n, line) in lines.iter().enumerate() {
        let below = lines.get(n + 1..).unwrap_or_default();
        let mut scanner = LineScanner { view, table, line, below, number: n + 1, found: &mut found };
        scanner.add_explorer_links();
        if object_lines.contains(&n) || n < first_unused {
            continue;
        }
        if line.cells.len() > 1 {
            first_unused = n + 1 + scanner.scan_row();
        } else {
            scanner.scan_line();
        }
    }
    found
}

/// Removes the cells that contain only the mark between a label and its value, such as `:`. A row keeps at least two cells.
fn without_mark_cells(lines: &[ViewLine]) -> Cow<'_, [ViewLine]> {
    let has_marks = |line: &ViewLine| line.cells.len() > 1 && line.cells.iter().any(|cell| is_mark(cell));
    if !lines.iter().any(has_marks) {
        return lines.into();
    }
    let mut lines = lines.to_vec();
    for line in lines.iter_mut().filter(|line| has_marks(line)) {
        line.cells.retain(|cell| !is_mark(cell));
        line.cells.resize(line.cells.len().max(2), String::new());
    }
    lines.into()
}

/// Whether a text is only the mark between a label and its value, such as a colon.
fn is_mark(text: &str) -> bool {
    matches!(text, ":" | "：" | "=" | "=>" | "→" | "->")
}

/// Finds the labels and the values in one line of a view, and adds the values to `found`.
struct LineScanner<'a> {
    view: &'a View,
    table: &'a LabelTable,
    line: &'a ViewLine,
    /// The lines of the view below `line`.
    below: &'a [ViewLine],
    /// The number of `line` in the view, from 1.
    number: usize,
    found: &'a mut Vec<FoundValue>,
}

impl LineScanner<'_> {
    fn add_value(
        &mut self,
        (field, label): (PaymentField, &str),
        value: &str,
        position: ValuePosition,
        layout: &'static str,
    ) {
        let place = ValuePlace::Line { view: self.view.content_type, line: self.number, layout };
        let mut value = with_currency(field, label, value);
        let is_linked = || self.line.links.iter().any(|link| values::parse_explorer_link(link).is_some());
        if field == PaymentField::Hash && is_only_link_text(&value) && is_linked() {
            // The value is only the text of a link to an explorer. `add_explorer_links` adds the hash in the link.
            return;
        }
        if let PaymentField::Hash | PaymentField::Wallet = field
            && let Some((identifier, links)) = split_link_text(&value)
        {
            value = identifier;
            for (field, value) in links.iter().flat_map(|link| fields_of_link(link, field)) {
                self.add_value((field, ""), &value, ValuePosition::Link, "the link after it");
            }
        }
        self.found.push(FoundValue {
            field,
            label: fold_label(label),
            value,
            place,
            quoted: self.line.quoted,
            position,
        });
    }

    /// Adds the chain and the transaction of each link that leads to a known explorer.
    fn add_explorer_links(&mut self) {
        for link in &self.line.links {
            if let Some((chain, hash)) = values::parse_explorer_link(link) {
                // In plain text a link can continue on the next line.
                let is_at_end = self.view.content_type == PLAIN_TEXT && self.line.joined().ends_with(link.as_str());
                let hash =
                    if is_at_end { self.with_continuation(PaymentField::Hash, &hash, 0) } else { hash.as_str().into() };
                self.add_value((PaymentField::Blockchain, ""), chain, ValuePosition::Link, "a link to an explorer");
                self.add_value((PaymentField::Hash, ""), &hash, ValuePosition::Link, "a link to an explorer");
            }
        }
    }

    fn field_of_label(&self, text: &str) -> Option<PaymentField> {
        self.table.field_of(without_trailing_colon(text))
    }

    /// Parses a table row: pairs of label and value, or labels with rows of values below. Returns the number of rows below that
    /// were parsed as values.
    fn scan_row(&mut self) -> usize {
        let line = self.line;
        let labels: Vec<_> = line.cells.iter().map(|c| self.field_of_label(c)).collect();
        let has_adjacent_labels = labels.windows(2).any(|pair| matches!(pair, [Some(_), Some(_)]));
        if has_adjacent_labels {
            let rows = self.scan_columns(&labels);
            // In the row `Status | Received`, `Received` is also a known label, but here it is the value of `Status`.
            if let ([label, value], [Some(PaymentField::Status), _], 0) =
                (line.cells.as_slice(), labels.as_slice(), rows)
                && values::parse_status(value).is_ok()
            {
                self.add_value((PaymentField::Status, label), value, ValuePosition::Adjacent, "in the next cell");
            }
            return rows;
        }
        let mut cells = line.cells.iter().zip(&labels).peekable();
        while let Some((cell, label)) = cells.next() {
            let Some(field) = label else {
                self.scan_pair(cell);
                continue;
            };
            let mut value = Vec::new();
            while let Some((part, _)) = cells.next_if(|(part, label)| label.is_none() && !self.is_pair(part)) {
                value.push(part.as_str());
            }
            let value = value.join(" ");
            let value = self.with_continuation(*field, without_leading_colon(&value), 0);
            if !value.is_empty() {
                self.add_value((*field, cell), &value, ValuePosition::Adjacent, "in the next cell");
            }
        }
        0
    }

    /// Parses the rows of values below a row of labels, and returns the number of these rows. The first row with another number
    /// of cells, or with a label, ends the values.
    fn scan_columns(&mut self, labels: &[Option<PaymentField>]) -> usize {
        let line = self.line;
        let is_values = |row: &&ViewLine| {
            row.cells.len() == labels.len()
                && row.quoted == line.quoted
                && row.cells.iter().all(|cell| self.field_of_label(cell).is_none() && !self.is_pair(cell))
        };
        let rows: Vec<&ViewLine> = self.below.iter().take_while(is_values).collect();
        for (n, row) in rows.iter().enumerate() {
            for ((field, label), value) in labels.iter().zip(&line.cells).zip(&row.cells) {
                if let Some(field) = *field
                    && !value.is_empty()
                {
                    let value = self.with_continuation(field, value, n + 1);
                    self.add_value((field, label), &value, ValuePosition::Adjacent, "below its label");
                }
            }
        }
        rows.len()
    }

    /// Parses a line with one cell: a label and its value, or a label with the value below.
    fn scan_line(&mut self) {
        let line = self.line;
        let Some(text) = line.cells.first() else { return };
        if self.scan_pair(text) || self.scan_styled_label(text) {
            return;
        }
        let Some(field) = self.field_of_label(text) else { return };
        // The colon after a label can be on a separate line.
        if let [colon, below @ ..] = self.below
            && let [cell] = colon.cells.as_slice()
            && is_mark(cell)
        {
            self.below = below;
        }
        let values = self.values_below();
        if values.is_empty() && line.kind == LineKind::Item && text.ends_with([':', '：']) {
            return self.add_value((field, text), "", ValuePosition::Empty, "after its label");
        }
        let last = values.len();
        for (n, value) in values.into_iter().enumerate() {
            // The text below a definition is the next definition, so only the last definition can continue on the next
            // line.
            let value = if n + 1 == last { self.with_continuation(field, &value, last) } else { value.as_str().into() };
            if value.len() < 500 && self.field_of_label(&value).is_none() && !self.is_pair(&value) {
                self.add_value((field, text), &value, ValuePosition::Below, "below its label");
            }
        }
    }

    /// Returns the texts below a label that may be its values. These texts are used if the label has no value on its line.
    fn values_below(&self) -> Vec<String> {
        let may_be = |below: &&ViewLine| below.quoted == self.line.quoted && below.cells.len() == 1;
        let next = self.below.first().filter(may_be);
        let below: Vec<&ViewLine> = match self.line.kind {
            // A list item ends at the next item. If a list item has no text after its label, the field is absent.
            LineKind::Item | LineKind::Inside => next.filter(|b| b.kind == LineKind::Inside).into_iter().collect(),
            // A term of a definition list can have several definitions.
            LineKind::Term if next.is_some_and(|b| b.kind == LineKind::Definition) => {
                let definitions = self.below.iter().filter(may_be);
                definitions.take_while(|b| matches!(b.kind, LineKind::Definition)).collect()
            }
            _ => next.into_iter().collect(),
        };
        below.into_iter().map(|line| without_leading_colon(&line.joined()).to_owned()).collect()
    }

    /// Parses a pair `Label: value` on one line. Returns whether the text is such a pair.
    fn scan_pair(&mut self, text: &str) -> bool {
        let Some((field, label, value)) = self.split_pair(text) else { return false };
        if value.is_empty() {
            return false;
        }
        let value = self.with_continuation(field, value, 0);
        self.add_value((field, label), &value, ValuePosition::Adjacent, "after its label");
        true
    }

    /// Returns the value. If the value continues on the line `below[distance]`, returns the value joined with that line.
    fn with_continuation<'v>(&self, field: PaymentField, value: &'v str, distance: usize) -> Cow<'v, str> {
        let next = only_text_line(self.below.get(distance));
        let joined = match field {
            PaymentField::Hash | PaymentField::Wallet => join_continuation(field, &strip_link_text(value), next),
            _ => join_continuation(field, value, next),
        };
        joined.map_or(value.into(), Cow::from)
    }

    /// Parses a label that only its font sets apart from the value: `<b>Amount</b> $20`.
    fn scan_styled_label(&mut self, text: &str) -> bool {
        let Some(lead) = self.line.lead.as_deref() else { return false };
        let Some(field) = self.field_of_label(lead) else { return false };
        let Some(value) = text.strip_prefix(lead).map(without_markup).filter(|value| !value.is_empty()) else {
            return false;
        };
        let value = self.with_continuation(field, value, 0);
        self.add_value((field, lead), &value, ValuePosition::Below, "after its label");
        true
    }

    fn is_pair(&self, text: &str) -> bool {
        self.split_pair(text).is_some()
    }

    /// Splits a text into a label and a value at the first colon or equals sign, or else at a dash or arrow between spaces.
    fn split_pair<'t>(&self, text: &'t str) -> Option<(PaymentField, &'t str, &'t str)> {
        let with_field = |(label, value)| Some((self.table.field_of(label)?, label, without_markup(value)));
        split_at_colon(text).and_then(with_field).or_else(|| split_at_dash(text).and_then(with_field))
    }
}

/// Splits a text at the first colon or equals sign, into a label and a value.
fn split_at_colon(text: &str) -> Option<(&str, &str)> {
    let is_mark = |at: &usize| text.get(*at..).is_some_and(|rest| rest.starts_with([':', '=', '：']));
    let at = memchr::memchr3_iter(b':', b'=', FIRST_BYTE_OF_WIDE_COLON, text.as_bytes()).find(is_mark)?;
    let (label, rest) = text.split_at_checked(at)?;
    // `=>` is one mark between a label and its value.
    let value = rest.strip_prefix("=>").or_else(|| rest.strip_prefix([':', '=', '：']))?;
    Some((label, value))
}

/// The first byte of `：` in UTF-8.
const FIRST_BYTE_OF_WIDE_COLON: u8 = 0xef;

/// The first byte of `–`, `—` and `→` in UTF-8.
const FIRST_BYTE_OF_DASHES: u8 = 0xe2;

/// Splits a text at a dash or an arrow between spaces, into a label and a value.
fn split_at_dash(text: &str) -> Option<(&str, &str)> {
    // Each mark below contains one of these two bytes. A line with neither byte, like most lines, needs no further search.
    memchr::memchr2(b'-', FIRST_BYTE_OF_DASHES, text.as_bytes())?;
    [" - ", " – ", " — ", " → ", " -> "].iter().find_map(|mark| text.split_once(mark))
}

/// Removes the colon from a value that begins with it: `: $20`.
fn without_leading_colon(text: &str) -> &str {
    text.trim().trim_start_matches([':', '：']).trim_start()
}

fn without_trailing_colon(text: &str) -> &str {
    text.trim().trim_end_matches(['*', '_']).trim_end_matches([':', '：', '='])
}

/// Removes quotation marks around a value, and the marks of plain text for bold text and code: `*`, `_`, `` ` ``.
fn without_markup(text: &str) -> &str {
    let mut text = text.trim();
    if !text.starts_with(['*', '`', '_', '"', '\'', '“']) {
        return text;
    }
    // The split of `*Amount:* $20` at the colon leaves the label's closing star in the value.
    text = text.trim_start_matches("** ").trim_start_matches("* ").trim();
    for (open, close) in [("**", "**"), ("*", "*"), ("`", "`"), ("_", "_"), ("\"", "\""), ("'", "'"), ("“", "”")] {
        if let Some(inner) = text.strip_prefix(open).and_then(|t| t.strip_suffix(close)) {
            text = inner.trim();
        }
    }
    text
}
