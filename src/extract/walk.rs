//! Walks over the tags and texts of HTML in their order and writes down the lines that a person sees.

use std::borrow::Cow;

use super::element::{FORMATTING, Flow, Open, VOID, Where, attribute, is_block, is_quote};
use super::plain::{Attribute, Reads};
use super::view::{CELLS, LINES, LINKS, Line, ODD, Sort, TOO_LONG, View, tidy};
use super::visible::{Look, Sheet};
use crate::model::ReasonCode;

/// The deepest nesting that is followed; what is deeper is read as if it stood here.
const DEPTH: usize = 500;

/// The longest text that may be a label for standing first in its line.
const LEAD: usize = 80;

/// What has been walked over.
pub(super) struct Walk<'s, 'a> {
    sheet: &'s Sheet,
    open: Vec<Open<'a>>,
    /// Hidden formatting elements whose parent was closed before them: a browser opens them again.
    lingering: Vec<Cow<'a, str>>,
    /// What is being written: the page, and each table cell inside it.
    frames: Vec<Frame>,
    /// The finished cells of each open row.
    rows: Vec<Vec<Vec<Line>>>,
    pre: usize,
    /// How many lines and cells were written.
    written: usize,
    lost: Option<(ReasonCode, &'static str)>,
}

/// A page or a cell: lines, and the one that is being written.
#[derive(Default)]
struct Frame {
    view: View,
    line: Line,
    text: String,
    /// Something is in the text beside white space, of which there may be much: it is not looked through at each tag.
    said: bool,
    /// What follows has letters of another size than what stands there.
    seam: bool,
}

impl Frame {
    /// Writes down what a line says next. Digits of another size behind digits are a number of their own, as cents may be.
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
        // Each piece is marked, and what is one is html5ever's to say: it has its own behind line ends and entities.
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
        // A cell's content cannot close what is outside of its table.
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

    /// A line's end in the source: a line of its own where that is asked for, and else a space.
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

    /// Whether the innermost table part that is open is a row.
    fn in_row(&self) -> bool {
        let part = self.open.iter().rev().find(|o| matches!(&*o.name, "tr" | "td" | "th" | "table"));
        part.is_some_and(|o| o.name == "tr")
    }

    /// End tags that may be left out (HTML, 13.1.2.4), as far as they matter here.
    fn close_implied(&mut self, name: &str) {
        let (closes, within): (&[&str], &[&str]) = match name {
            "li" => (&["li"], &["ul", "ol", "menu", "table"]),
            "dt" | "dd" => (&["dt", "dd"], &["dl", "table"]),
            "tr" => (&["tr"], &["table"]),
            "td" | "th" => (&["td", "th"], &["tr", "table"]),
            // A list item may stand in a paragraph that nobody closed, as in Resmic's own mail: the paragraph ends here.
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

    /// A row of plain cells is one line; a row that lays out a page is the lines of its cells.
    fn leave_row(&mut self) {
        self.break_line(Sort::Text);
        let (Some(cells), Some(frame)) = (self.rows.pop(), self.frames.last_mut()) else { return };
        let plain = cells.len() <= CELLS
            && cells.iter().all(|lines| lines.len() <= 1 && lines.iter().all(|l| l.cells.len() <= 1));
        // What stands in the first cell with nothing beside it is a label without a value; room before a cell is lay-out.
        let alone = cells.iter().filter(|lines| !lines.is_empty()).count() < 2
            && (cells.len() < 2 || cells.first().is_some_and(Vec::is_empty));
        if !plain || alone {
            return cells.into_iter().flatten().for_each(|line| frame.view.push(line));
        }
        let mut row = Line { sort: Sort::Row, ..Line::default() };
        for line in cells.into_iter().map(|lines| lines.into_iter().next().unwrap_or_default()) {
            row.quoted |= line.quoted;
            row.links.extend(line.links);
            // A cell with nothing in it is one, too: what stands below it in the next row is its own column's.
            row.cells.push(line.cells.into_iter().next().unwrap_or_default());
        }
        frame.view.push(row);
    }

    /// What sort of line an element begins.
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
        // Between two tags there is mostly nothing but white space.
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
