//! Finds labels with their values: on one line, in neighbouring cells, on the line below.

use std::borrow::Cow;
use std::collections::HashSet;

use super::labels::{self, Table};
use super::object::{self, Scalar};
use super::view::{Line, Sort, View};
use super::{Field, Found, How, Place, annotation, cut, links, values};

/// Everything in a view that is the value of a field.
pub(super) fn found(view: &View, table: &Table) -> Vec<Found> {
    let mut found = Vec::new();
    let in_objects = objects(view, table, &mut found);
    let lines = without_marks(&view.lines);
    let mut below_header = 0;
    for (n, line) in lines.iter().enumerate() {
        let below = lines.get(n + 1..).unwrap_or_default();
        let mut reader = Reader { view, table, line, below, place: n + 1, found: &mut found };
        reader.links();
        if in_objects.contains(&n) || n < below_header {
            continue;
        }
        if line.cells.len() > 1 {
            below_header = n + 1 + reader.row();
        } else {
            reader.text();
        }
    }
    found
}

/// The lines without cells that contain only the mark between label and value. A row keeps at least two cells.
fn without_marks(lines: &[Line]) -> Cow<'_, [Line]> {
    let has_marks = |line: &Line| line.cells.len() > 1 && line.cells.iter().any(|cell| is_mark(cell));
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

/// Whether a text is nothing but the mark between a label and its value.
fn is_mark(text: &str) -> bool {
    matches!(text, ":" | "：" | "=" | "=>" | "→" | "->")
}

struct Reader<'a> {
    view: &'a View,
    table: &'a Table,
    line: &'a Line,
    /// The lines that follow.
    below: &'a [Line],
    place: usize,
    found: &'a mut Vec<Found>,
}

impl Reader<'_> {
    fn add(&mut self, (field, label): (Field, &str), value: &str, how: How, layout: &'static str) {
        let place = Place::Line { view: self.view.kind, line: self.place, layout };
        let mut value = labels::with_currency(field, label, value);
        let is_linked = || self.line.links.iter().any(|link| links::explorer(link).is_some());
        if field == Field::Hash && annotation::is_only_words(&value) && is_linked() {
            // The link itself is the value, see `links`.
            return;
        }
        if let Field::Hash | Field::Wallet = field
            && let Some((bare, links)) = annotation::split(&value)
        {
            value = bare;
            let said = links.iter().flat_map(|link| annotation::said_by(link, field));
            said.for_each(|(field, value)| self.add((field, ""), &value, How::Link, "the link behind it"));
        }
        self.found.push(Found { field, label: labels::fold(label), value, place, quoted: self.line.quoted, how });
    }

    fn links(&mut self) {
        for link in &self.line.links {
            if let Some((chain, hash)) = links::explorer(link) {
                // In plain text a link can continue on the next line.
                let ends = self.view.kind == "text/plain" && self.line.words().ends_with(link.as_str());
                let hash = if ends { self.whole(Field::Hash, &hash, 0) } else { hash };
                self.add((Field::Blockchain, ""), chain, How::Link, "a link to an explorer");
                self.add((Field::Hash, ""), &hash, How::Link, "a link to an explorer");
            }
        }
    }

    fn label(&self, text: &str) -> Option<Field> {
        self.table.field(without_colon(text))
    }

    /// Parses a row: pairs of label and value, or labels with rows of values below. Returns the number of rows below.
    fn row(&mut self) -> usize {
        let line = self.line;
        let labels: Vec<_> = line.cells.iter().map(|c| self.label(c)).collect();
        let neighbours = labels.windows(2).any(|pair| matches!(pair, [Some(_), Some(_)]));
        if neighbours {
            let rows = self.columns(&labels);
            // In `Status | Received`, the second cell is a label too, but here it is the value.
            if let ([label, value], [Some(Field::Status), _], 0) = (line.cells.as_slice(), labels.as_slice(), rows)
                && values::status(value).is_ok()
            {
                self.add((Field::Status, label), value, How::Beside, "in the next cell");
            }
            return rows;
        }
        let mut cells = line.cells.iter().zip(&labels).peekable();
        while let Some((cell, label)) = cells.next() {
            let Some(field) = label else {
                self.pair(cell);
                continue;
            };
            let mut value = Vec::new();
            while let Some((part, _)) = cells.next_if(|(part, label)| label.is_none() && !self.is_pair(part)) {
                value.push(part.as_str());
            }
            let value = value.join(" ");
            let value = self.whole(*field, without_leading_colon(&value), 0);
            if !value.is_empty() {
                self.add((*field, cell), &value, How::Beside, "in the next cell");
            }
        }
        0
    }

    /// Parses the rows below a row of labels, while they have the same number of cells and no label.
    fn columns(&mut self, labels: &[Option<Field>]) -> usize {
        let line = self.line;
        let is_values = |row: &&Line| {
            row.cells.len() == labels.len()
                && row.quoted == line.quoted
                && row.cells.iter().all(|cell| self.label(cell).is_none() && !self.is_pair(cell))
        };
        let rows: Vec<&Line> = self.below.iter().take_while(is_values).collect();
        for (n, row) in rows.iter().enumerate() {
            for ((field, label), value) in labels.iter().zip(&line.cells).zip(&row.cells) {
                if let Some(field) = field.filter(|_| !value.is_empty()) {
                    let value = self.whole(field, value, n + 1);
                    self.add((field, label), &value, How::Beside, "below its label");
                }
            }
        }
        rows.len()
    }

    fn text(&mut self) {
        let line = self.line;
        let Some(text) = line.cells.first() else { return };
        if self.pair(text) || self.led(text) {
            return;
        }
        let Some(field) = self.label(text) else { return };
        // The colon can be on a separate line.
        if let [colon, below @ ..] = self.below
            && let [cell] = colon.cells.as_slice()
            && is_mark(cell)
        {
            self.below = below;
        }
        let values = self.values_below();
        if values.is_empty() && line.sort == Sort::Item && text.ends_with([':', '：']) {
            return self.add((field, text), "", How::Empty, "behind its label");
        }
        let last = values.len();
        for (n, value) in values.into_iter().enumerate() {
            // The text below a definition is the next definition, so only the last one can continue.
            let value = if n + 1 == last { self.whole(field, &value, last) } else { value };
            if value.len() < 500 && self.label(&value).is_none() && !self.is_pair(&value) {
                self.add((field, text), &value, How::Below, "below its label");
            }
        }
    }

    /// The possible values of a label without a value on its line.
    fn values_below(&self) -> Vec<String> {
        let may_be = |below: &&Line| below.quoted == self.line.quoted && below.cells.len() == 1;
        let next = self.below.first().filter(may_be);
        let below: Vec<&Line> = match self.line.sort {
            // A list item ends at the next item: without text behind its label, the field is absent.
            Sort::Item | Sort::Inside => next.filter(|b| b.sort == Sort::Inside).into_iter().collect(),
            // A term can have several definitions.
            Sort::Term if next.is_some_and(|b| b.sort == Sort::Definition) => {
                let definitions = self.below.iter().filter(may_be);
                definitions.take_while(|b| matches!(b.sort, Sort::Definition)).collect()
            }
            _ => next.into_iter().collect(),
        };
        below.into_iter().map(|line| without_leading_colon(&line.words()).to_owned()).collect()
    }

    /// `Label: value` on one line.
    fn pair(&mut self, text: &str) -> bool {
        let Some((field, label, value)) = self.split(text) else { return false };
        if value.is_empty() {
            return false;
        }
        let value = self.whole(field, value, 0);
        self.add((field, label), &value, How::Beside, "behind its label");
        true
    }

    /// The value, joined with the line at this distance below if it continues there.
    fn whole(&self, field: Field, value: &str, lines: usize) -> String {
        let next = cut::next(self.below.get(lines));
        if let Field::Hash | Field::Wallet = field {
            let bare = annotation::without(value);
            let whole = cut::whole(field, &bare, next);
            return if whole == bare { value.to_owned() } else { whole };
        }
        cut::whole(field, value, next)
    }

    /// Parses a label that only its font sets apart from the value: `<b>Amount</b> $20`.
    fn led(&mut self, text: &str) -> bool {
        let Some(lead) = self.line.lead.as_deref() else { return false };
        let Some(field) = self.label(lead) else { return false };
        let Some(value) = text.strip_prefix(lead).map(bare).filter(|value| !value.is_empty()) else { return false };
        let value = self.whole(field, value, 0);
        self.add((field, lead), &value, How::Below, "behind its label");
        true
    }

    fn is_pair(&self, text: &str) -> bool {
        self.split(text).is_some()
    }

    /// Splits label and value at the first colon, or else at a dash or arrow between spaces.
    fn split<'t>(&self, text: &'t str) -> Option<(Field, &'t str, &'t str)> {
        let known = |(label, value)| Some((self.table.field(label)?, label, bare(value)));
        split(text).and_then(known).or_else(|| dashed(text).and_then(known))
    }
}

/// Splits at the first colon or equals sign.
fn split(text: &str) -> Option<(&str, &str)> {
    let is_mark = |at: &usize| text.get(*at..).is_some_and(|rest| rest.starts_with([':', '=', '：']));
    let at = memchr::memchr3_iter(b':', b'=', FIRST_BYTE_OF_WIDE_COLON, text.as_bytes()).find(is_mark)?;
    let (label, rest) = text.split_at_checked(at)?;
    // `=>` is one mark.
    let value = rest.strip_prefix("=>").or_else(|| rest.strip_prefix([':', '=', '：']))?;
    Some((label, value))
}

/// The first byte of `：` in UTF-8.
const FIRST_BYTE_OF_WIDE_COLON: u8 = 0xef;

/// The first byte of `–`, `—` and `→` in UTF-8.
const FIRST_BYTE_OF_DASHES: u8 = 0xe2;

/// Splits at a dash or an arrow.
fn dashed(text: &str) -> Option<(&str, &str)> {
    // Every mark contains one of these bytes, and few lines do.
    memchr::memchr2(b'-', FIRST_BYTE_OF_DASHES, text.as_bytes())?;
    [" - ", " – ", " — ", " → ", " -> "].iter().find_map(|mark| text.split_once(mark))
}

/// Removes the colon from a value that has it in its cell or line: `: $20`.
fn without_leading_colon(text: &str) -> &str {
    text.trim().trim_start_matches([':', '：']).trim_start()
}

fn without_colon(text: &str) -> &str {
    text.trim().trim_end_matches(['*', '_']).trim_end_matches([':', '：', '='])
}

/// Removes the marks that mail programs write for bold text and code.
fn bare(text: &str) -> &str {
    let mut text = text.trim();
    // Of `*Amount:* $20`, the value keeps the star that closes the label.
    text = text.trim_start_matches("** ").trim_start_matches("* ").trim();
    for (open, close) in [("**", "**"), ("*", "*"), ("`", "`"), ("_", "_"), ("\"", "\""), ("'", "'"), ("“", "”")] {
        if let Some(inner) = text.strip_prefix(open).and_then(|t| t.strip_suffix(close)) {
            text = inner.trim();
        }
    }
    text
}

/// Parses the objects in the whole text, with their keys as labels. Returns the lines of these objects, which are not
/// parsed again.
fn objects(view: &View, table: &Table, found: &mut Vec<Found>) -> HashSet<usize> {
    let mut taken = HashSet::new();
    if !view.lines.iter().flat_map(|line| &line.cells).any(|cell| cell.contains('{')) {
        return taken;
    }
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
                let value = labels::with_currency(field, &pair.key, &value);
                let label = labels::fold(&pair.key);
                let place = Place::Key { view: view.kind, object: n + 1, key: pair.key };
                found.push(Found { field, label, value, place, quoted, how: How::Key });
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
