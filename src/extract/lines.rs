//! Labels and values: on one line, in neighbouring cells, below one another.

use std::collections::HashSet;

use super::labels::Table;
use super::object::{self, Scalar};
use super::view::{Line, Sort, View};
use super::{Field, Found, How, links};

/// Everything in a view that stands as a field's value.
pub(super) fn found(view: &View, table: &Table) -> Vec<Found> {
    let mut found = Vec::new();
    let in_objects = objects(view, table, &mut found);
    let mut lines = view.lines.iter().enumerate().peekable();
    while let Some((n, line)) = lines.next() {
        if in_objects.contains(&n) {
            continue;
        }
        let below = lines.peek().map(|(_, line)| *line);
        let mut reader = Reader { view, table, line, place: n + 1, found: &mut found };
        reader.links();
        if line.cells.len() > 1 {
            reader.row(below);
        } else {
            reader.text(below);
        }
    }
    found
}

struct Reader<'a> {
    view: &'a View,
    table: &'a Table,
    line: &'a Line,
    place: usize,
    found: &'a mut Vec<Found>,
}

impl Reader<'_> {
    fn add(&mut self, field: Field, value: &str, how: How, layout: &str) {
        let place = format!("{} line {}, {layout}", self.view.kind, self.place);
        self.found.push(Found { field, value: value.to_owned(), place, quoted: self.line.quoted, how });
    }

    fn links(&mut self) {
        for link in &self.line.links {
            if let Some((chain, hash)) = links::explorer(link) {
                self.add(Field::Blockchain, chain, How::Link, "a link to an explorer");
                self.add(Field::Hash, &hash, How::Link, "a link to an explorer");
            }
        }
    }

    /// A row: label and value side by side, or labels with a row of values below.
    fn row(&mut self, below: Option<&Line>) {
        let line = self.line;
        let labels: Vec<_> = line.cells.iter().map(|c| self.table.field(without_colon(c))).collect();
        if labels.iter().all(Option::is_some) {
            let values = below.filter(|b| b.cells.len() == labels.len() && b.quoted == line.quoted);
            for (field, value) in labels.iter().flatten().zip(values.into_iter().flat_map(|b| &b.cells)) {
                if self.table.field(without_colon(value)).is_none() {
                    self.add(*field, value, How::Beside, "below its label");
                }
            }
            return;
        }
        let mut cells = line.cells.iter().zip(&labels).peekable();
        while let Some((cell, label)) = cells.next() {
            match (label, cells.peek()) {
                (Some(field), Some((value, None)))
                    if split(value).is_none_or(|(l, _)| self.table.field(l).is_none()) =>
                {
                    self.add(*field, value, How::Beside, "in the next cell");
                    cells.next();
                }
                (Some(_), _) => {}
                (None, _) => {
                    self.pair(cell);
                }
            }
        }
    }

    fn text(&mut self, below: Option<&Line>) {
        let line = self.line;
        let Some(text) = line.cells.first() else { return };
        if self.pair(text) {
            return;
        }
        let Some(field) = self.table.field(without_colon(text)) else { return };
        // A list item stands for itself: with nothing behind its label, the field is not there.
        let item = line.sort == Sort::Item;
        let Some(value) = below.filter(|b| !item && b.quoted == line.quoted && b.cells.len() == 1) else { return };
        let value = value.text();
        if value.len() < 500 && self.table.field(without_colon(&value)).is_none() && !self.is_pair(&value) {
            self.add(field, &value, How::Below, "below its label");
        }
    }

    /// `Label: value` on one line.
    fn pair(&mut self, text: &str) -> bool {
        let Some((label, value)) = split(text) else { return false };
        let Some(field) = self.table.field(label) else { return false };
        if value.is_empty() {
            return false;
        }
        self.add(field, value, How::Beside, "behind its label");
        true
    }

    fn is_pair(&self, text: &str) -> bool {
        split(text).is_some_and(|(label, _)| self.table.field(label).is_some())
    }
}

/// Label and value around the first colon (or equals sign).
fn split(text: &str) -> Option<(&str, &str)> {
    let (at, mark) = text.char_indices().find(|(_, c)| matches!(c, ':' | '：' | '='))?;
    let (label, value) = text.split_at(at);
    let value = value.get(mark.len_utf8()..).unwrap_or_default();
    Some((label, bare(value)))
}

fn without_colon(text: &str) -> &str {
    text.trim().trim_end_matches(['*', '_']).trim_end_matches([':', '：', '='])
}

/// A value without the marks that mail programs write for bold text and code.
fn bare(text: &str) -> &str {
    let mut text = text.trim();
    // `*Amount:* $20` leaves the star that closes the label.
    text = text.trim_start_matches("** ").trim_start_matches("* ").trim();
    for mark in ["**", "*", "`", "_"] {
        if let Some(inner) = text.strip_prefix(mark).and_then(|t| t.strip_suffix(mark)) {
            text = inner.trim();
        }
    }
    text
}

/// Objects in the whole text: their keys are labels. Returns the lines that are part of one, and so nothing else.
fn objects(view: &View, table: &Table, found: &mut Vec<Found>) -> HashSet<usize> {
    let mut taken = HashSet::new();
    for quoted in [false, true] {
        let lines = || view.lines.iter().enumerate().filter(move |(_, l)| l.quoted == quoted);
        let texts: Vec<String> = lines().map(|(_, line)| line.text()).collect();
        for (n, object) in object::objects(&texts.join("\n")).into_iter().enumerate() {
            let mut known = 0;
            for pair in object.pairs {
                let Some(field) = table.field(&pair.key) else { continue };
                known += 1;
                let (Scalar::Text(value) | Scalar::Bare(value)) = pair.value else { continue };
                if value.trim().is_empty() {
                    continue;
                }
                let place = format!("{} object {}, key {}", view.kind, n + 1, crate::model::printable(&pair.key, 40));
                found.push(Found { field, value, place, quoted, how: How::Key });
            }
            if known > 0 {
                let mut start = 0;
                for ((line, _), text) in lines().zip(&texts) {
                    let end = start + text.len();
                    if start < object.span.end && object.span.start <= end {
                        taken.insert(line);
                    }
                    start = end + 1;
                }
            }
        }
    }
    taken
}
