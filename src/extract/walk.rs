//! Walks over the tags and texts of HTML in order, and builds the visible lines.

use std::borrow::Cow;

use super::element::{FORMATTING, Flow, Open, VOID, Where, attribute, is_block, is_quote};
use super::plain::{Attribute, Reads};
use super::view::{CELLS, LINES, LINKS, Line, ODD, Sort, TOO_LONG, View, tidy};
use super::visible::{Look, Sheet};
use crate::model::ReasonCode;

/// The deepest nesting that is tracked. Deeper elements count as children of this level.
const DEPTH: usize = 500;

/// The longest beginning of a line that can be a label.
const LEAD: usize = 80;

/// The state of the walk.
pub(super) struct Walk<'s, 'a> {
    sheet: &'s Sheet,
    open: Vec<Open<'a>>,
    /// Hidden formatting elements whose parent ended before them. A browser opens them again.
    lingering: Vec<Cow<'a, str>>,
    /// The output: the page, and each open table cell inside it.
    frames: Vec<Frame>,
    /// The finished cells of each open row.
    rows: Vec<Vec<Vec<Line>>>,
    pre: usize,
    /// The number of lines and cells so far.
    written: usize,
    lost: Option<(ReasonCode, &'static str)>,
}

/// A page or a cell: its finished lines and the current line.
#[derive(Default)]
struct Frame {
    view: View,
    line: Line,
    text: String,
    /// Whether the text has more than white space. A flag saves a scan of long white space at each tag.
    said: bool,
    /// Whether the next text has another font size.
    seam: bool,
}

impl Frame {
    /// Appends text to the line. Digits of another font size are a separate number, as superscript cents are.
    fn write(&mut self, part: &str) {
        if part.is_empty() {
            return;
        }
        let digit = |c: char| c.is_ascii_digit();
        if std::mem::take(&mut self.seam) && self.text.ends_with(digit) && part.starts_with(digit) {
            self.text.push(' ');
        }
        self.text.push_str(part);
    }
}

impl<'a> Reads<'a> for Walk<'_, 'a> {
    fn text(&mut self, text: &str) -> Option<()> {
        if self.hidden() {
            return Some(());
        }
        let odd = self.open.last().is_some_and(|o| o.odd);
        for line in text.split_inclusive('\n') {
            let frame = self.frames.last_mut()?;
            let ended = line.strip_suffix('\n');
            let part = ended.map_or(line, |part| part.strip_suffix('\r').unwrap_or(part));
            let says = !part.trim_start().is_empty();
            frame.said |= says;
            let marked = odd && says;
            frame.text.extend(marked.then_some(ODD));
            frame.write(part);
            frame.text.extend(marked.then_some(ODD));
            if ended.is_some() {
                self.end_line();
            }
        }
        // Each piece of odd text gets marks, so the pieces matter. html5ever splits text at line ends and entities;
        // only it knows the pieces.
        (!odd).then_some(())
    }

    fn start(&mut self, tag: Cow<'a, str>, attributes: &[Attribute<'a>]) {
        let name = &*tag;
        let look = self.sheet.look(name, attributes);
        self.close_implied(name);
        let flow = Flow::of(self.open.last(), name, look);
        match flow {
            Flow::Block => self.break_line(self.sort_of(name)),
            Flow::Apart => self.space(),
            Flow::Inline => {}
        }
        if name == "br" || VOID.contains(&name) {
            return;
        }
        let cell = matches!(name, "td" | "th");
        if cell && !self.in_row() {
            self.enter("tr".into(), Look::default(), Flow::Block, false);
        }
        let closed = name == "details" && attribute(attributes, "open").is_none();
        let link = name == "a";
        let quote = is_quote(name, attributes);
        self.enter(tag, look, flow, quote);
        if closed {
            self.open.last_mut().into_iter().for_each(|o| o.odd = true);
        }
        if link && !self.hidden() {
            let frame = self.frames.last_mut().filter(|frame| frame.line.links.len() < LINKS);
            if let (Some(frame), Some(target)) = (frame, attribute(attributes, "href")) {
                frame.line.links.push(target.to_owned());
            }
        }
    }

    fn end(&mut self, name: &str) {
        if name == "br" || name == "p" && !self.open.iter().any(|o| o.name == "p") {
            return self.break_line(Sort::Text);
        }
        if let Some(place) = self.lingering.iter().rposition(|l| l == name) {
            self.lingering.remove(place);
        }
        // An end tag inside a cell cannot close elements outside of its table.
        let barrier = self.open.iter().rposition(|o| o.name == "table").filter(|_| name != "table").unwrap_or(0);
        let Some(place) = self.open.iter().rposition(|o| o.name == name).filter(|p| *p >= barrier) else { return };
        let outside = place.checked_sub(1).and_then(|p| self.open.get(p));
        let hidden_outside = outside.is_some_and(|o| o.hides() || o.odd);
        while self.open.len() > place {
            let innermost = self.open.len() - 1 > place;
            let Some(closed) = self.open.pop() else { return };
            let lingers =
                innermost && (closed.hides() || closed.odd) && !hidden_outside && FORMATTING.contains(&&*closed.name);
            self.leave(&closed);
            if lingers && self.lingering.len() < DEPTH {
                self.lingering.push(closed.name);
            }
        }
    }
}

impl<'s, 'a> Walk<'s, 'a> {
    pub(super) fn new(sheet: &'s Sheet) -> Self {
        Walk {
            sheet,
            open: Vec::new(),
            lingering: Vec::new(),
            frames: vec![Frame::default()],
            rows: Vec::new(),
            pre: 0,
            written: 0,
            lost: None,
        }
    }

    fn hidden(&self) -> bool {
        !self.lingering.is_empty() || self.open.last().is_some_and(Open::hides)
    }

    /// A line end in the source: a new line inside `pre`, and else a space.
    fn end_line(&mut self) {
        if self.pre > 0 {
            self.break_line(Sort::Text);
        }
        self.space();
    }

    fn space(&mut self) {
        self.frames.last_mut().into_iter().for_each(|f| f.text.push(' '));
    }

    fn enter(&mut self, name: Cow<'a, str>, look: Look, flow: Flow, quote: bool) {
        let at_start = self.frames.last().is_some_and(|f| !f.said);
        let open = Open::new(self.open.last(), name, look, flow, Where { quote, at_start });
        if self.open.len() >= DEPTH {
            if open.hides() || open.odd || open.quoted {
                let words = "it is nested too deeply to know what of it can be seen";
                self.lost = Some((ReasonCode::Unreadable, words));
            }
            return;
        }
        self.pre += usize::from(open.name == "pre");
        match &*open.name {
            "tr" => self.rows.push(Vec::new()),
            "td" | "th" => self.frames.push(Frame::default()),
            _ => {}
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.line.quoted |= open.quoted;
        }
        self.seam(&open);
        self.open.push(open);
    }

    fn seam(&mut self, element: &Open<'a>) {
        self.frames.last_mut().into_iter().for_each(|frame| frame.seam |= element.resized && !element.hides());
    }

    /// Whether the innermost open table part is a row.
    fn in_row(&self) -> bool {
        let part = self.open.iter().rev().find(|o| matches!(&*o.name, "tr" | "td" | "th" | "table"));
        part.is_some_and(|o| o.name == "tr")
    }

    /// Implied end tags (HTML, 13.1.2.4), as far as they affect lines.
    fn close_implied(&mut self, name: &str) {
        let (closes, within): (&[&str], &[&str]) = match name {
            "li" => (&["li"], &["ul", "ol", "menu", "table"]),
            "dt" | "dd" => (&["dt", "dd"], &["dl", "table"]),
            "tr" => (&["tr"], &["table"]),
            "td" | "th" => (&["td", "th"], &["tr", "table"]),
            // A block ends an open paragraph. Resmic's mail has list items inside of one.
            _ if is_block(name) && name != "br" => {
                let edge = self.open.iter().rev().find(|o| o.is_edge);
                return if edge.is_some_and(|o| o.name == "p") {
                    self.end("p")
                };
            }
            _ => return,
        };
        let place = self.open.iter().rposition(|o| closes.contains(&&*o.name) || within.contains(&&*o.name));
        let found = place.and_then(|p| self.open.get(p)).filter(|o| closes.contains(&&*o.name));
        if let Some(name) = found.map(|o| o.name.clone()) {
            self.end(&name);
        }
    }

    fn leave(&mut self, closed: &Open<'a>) {
        self.pre = self.pre.saturating_sub(usize::from(closed.name == "pre"));
        self.seam(closed);
        match (&*closed.name, closed.flow) {
            ("td" | "th", _) => self.leave_cell(),
            ("tr", _) => self.leave_row(),
            (_, Flow::Block) => self.break_line(Sort::Text),
            (_, flow) => {
                let frame = self.frames.last_mut().filter(|f| closed.leads && f.line.lead.is_none());
                if let Some(frame) = frame.filter(|f| f.text.len() <= LEAD && f.said) {
                    frame.line.lead = Some(tidy(&frame.text));
                }
                if flow == Flow::Apart {
                    self.space();
                }
            }
        }
    }

    fn leave_cell(&mut self) {
        self.break_line(Sort::Text);
        self.written += 1;
        let cell = if self.frames.len() > 1 { self.frames.pop() } else { None };
        if let (Some(cell), Some(row)) = (cell, self.rows.last_mut()) {
            row.extend(Some(cell.view.lines).filter(|_| self.written <= LINES));
        }
    }

    /// A row of simple cells becomes one line. A row that is used for layout becomes the lines of its cells.
    fn leave_row(&mut self) {
        self.break_line(Sort::Text);
        let (Some(cells), Some(frame)) = (self.rows.pop(), self.frames.last_mut()) else { return };
        let plain = cells.len() <= CELLS
            && cells.iter().all(|lines| lines.len() <= 1 && lines.iter().all(|l| l.cells.len() <= 1));
        // A first cell without neighbours is a label without a value. An empty first cell is indentation.
        let alone = cells.iter().filter(|lines| !lines.is_empty()).count() < 2
            && (cells.len() < 2 || cells.first().is_some_and(Vec::is_empty));
        if !plain || alone {
            return cells.into_iter().flatten().for_each(|line| frame.view.push(line));
        }
        let mut row = Line { sort: Sort::Row, ..Line::default() };
        for line in cells.into_iter().map(|lines| lines.into_iter().next().unwrap_or_default()) {
            row.quoted |= line.quoted;
            row.links.extend(line.links);
            // Empty cells count: they keep the columns of the next rows in place.
            row.cells.push(line.cells.into_iter().next().unwrap_or_default());
        }
        frame.view.push(row);
    }

    /// The kind of line that an element starts.
    fn sort_of(&self, name: &str) -> Sort {
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => Sort::Heading,
            "li" => Sort::Item,
            "dt" => Sort::Term,
            "dd" => Sort::Definition,
            "br" if self.open.iter().rev().find(|o| o.flow == Flow::Block).is_some_and(|o| o.name == "li") => {
                Sort::Inside
            }
            _ => Sort::Text,
        }
    }

    fn break_line(&mut self, next: Sort) {
        let quoted = self.open.last().is_some_and(|o| o.quoted);
        let Some(frame) = self.frames.last_mut() else { return };
        let mut line = std::mem::replace(&mut frame.line, Line { quoted, sort: next, ..Line::default() });
        // Between two tags there is mostly only white space.
        if !line.links.is_empty() || frame.said {
            line.cells = vec![tidy(&frame.text)];
            self.written += 1;
        }
        frame.text.clear();
        frame.said = false;
        if self.written > LINES {
            self.lost = Some(TOO_LONG);
        } else {
            frame.view.push(line);
        }
    }

    pub(super) fn finish(mut self) -> View {
        while let Some(closed) = self.open.pop() {
            self.leave(&closed);
        }
        self.break_line(Sort::Text);
        let mut view = self.frames.into_iter().next().unwrap_or_default().view;
        view.kind = super::html::KIND;
        view.lost = view.lost.or(self.lost);
        view
    }
}
