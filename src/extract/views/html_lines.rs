//! Builds the visible lines of a view from the tags and texts of HTML, which the HTML parser passes in their order.

use std::borrow::Cow;

use memchr::memchr_iter;

use super::css_visibility::Appearance;
use super::html_element::{ElementPosition, Flow, OpenElement, attribute, is_block, is_formatting, is_quote, is_void};
use super::html_fast::{Attribute, HtmlSink};
use super::style_sheet::StyleSheet;
use super::view::{
    HTML, LineKind, MAX_CELLS, MAX_LINES, MAX_LINKS, ODD_MARK, TOO_MANY_LINES, View, ViewLine, normalize_space,
};
use crate::model::ReasonCode;

/// The deepest nesting of HTML elements that is tracked. Elements that are nested more deeply are not added to `open`.
const MAX_DEPTH: usize = 500;

/// The longest beginning of a line that can be a label, in bytes.
const MAX_LEAD: usize = 80;

/// Builds the lines of a view from the tags and texts of HTML.
pub(crate) struct HtmlLines<'s, 'a> {
    sheet: &'s StyleSheet,
    /// The last `style` attribute, with its effect. Mails repeat the same style on many elements.
    last_style: Option<(Cow<'a, str>, Appearance)>,
    open: Vec<OpenElement<'a>>,
    /// The names of formatting elements (`<b>`) that are hidden or `odd`, and that a misnested end tag closed. A browser opens a
    /// formatting element again after a misnested end tag, so the text up to the element's own end tag counts as hidden.
    lingering: Vec<Cow<'a, str>>,
    /// The output buffers: one for the page, and one for each open table cell.
    buffers: Vec<LineBuffer>,
    /// The finished cells of each open table row (`tr`).
    rows: Vec<Vec<Vec<ViewLine>>>,
    /// The number of open `pre` elements, which keep line breaks.
    open_pre: usize,
    /// The number of lines and cells in the view so far; the limit is [`MAX_LINES`].
    line_count: usize,
    problem: Option<(ReasonCode, &'static str)>,
}

/// The output for the page or for one table cell: the finished lines, and the current line.
#[derive(Default)]
struct LineBuffer {
    view: View,
    line: ViewLine,
    text: String,
    /// Whether the text has more than white space. With this flag, long white space is not scanned again at each tag.
    has_text: bool,
    /// Whether the font size changes between `text` and the text that is appended next.
    size_changed: bool,
}

impl LineBuffer {
    /// Appends text to the line, between `ODD_MARK`s if it is odd. A space separates digits of different font sizes, because small
    /// digits can be cents.
    fn append(&mut self, part: &str, odd: bool) {
        if part.is_empty() {
            return;
        }
        let has_text = (odd || !self.has_text) && !part.trim_start().is_empty();
        self.has_text |= has_text;
        if odd && has_text {
            self.text.push(ODD_MARK);
        }
        let digit = |c: char| c.is_ascii_digit();
        if std::mem::take(&mut self.size_changed) && self.text.ends_with(digit) && part.starts_with(digit) {
            self.text.push(' ');
        }
        self.text.push_str(part);
        if odd && has_text {
            self.text.push(ODD_MARK);
        }
    }
}

impl<'a> HtmlSink<'a> for HtmlLines<'_, 'a> {
    fn on_text(&mut self, text: &str) -> Option<()> {
        if self.is_hidden() {
            return Some(());
        }
        let odd = self.open.last().is_some_and(|o| o.odd);
        let mut start = 0;
        for end in memchr_iter(b'\n', text.as_bytes()) {
            let line = text.get(start..end)?;
            self.buffers.last_mut()?.append(line.strip_suffix('\r').unwrap_or(line), odd);
            self.end_line();
            start = end + 1;
        }
        self.buffers.last_mut()?.append(text.get(start..)?, odd);
        // Each piece of text in an `odd` element gets two `ODD_MARK`s, so the result depends on how the text is split. html5ever
        // splits text in more places than html_fast, for example at line ends. After `None`, html5ever parses all of the HTML.
        if odd { None } else { Some(()) }
    }

    fn on_start_tag(&mut self, tag: Cow<'a, str>, attributes: &[Attribute<'a>]) {
        let name = &*tag;
        let appearance = self.sheet.appearance(name, attributes).combine(self.inline_style(attributes));
        self.close_implied(name);
        let flow = Flow::of_child(self.open.last(), name, appearance);
        match flow {
            Flow::Block => self.break_line(self.kind_of_line(name)),
            Flow::Apart => self.push_space(),
            Flow::Inline => {}
        }
        if name == "br" || is_void(name) {
            return;
        }
        let is_cell = matches!(name, "td" | "th");
        if is_cell && !self.in_row() {
            self.open_element("tr".into(), Appearance::default(), Flow::Block, false);
        }
        let is_closed = name == "details" && attribute(attributes, "open").is_none();
        let is_link = name == "a";
        let is_quoted_text = is_quote(name, attributes);
        self.open_element(tag, appearance, flow, is_quoted_text);
        if is_closed && let Some(details) = self.open.last_mut() {
            details.odd = true;
        }
        if is_link && !self.is_hidden() {
            let buffer = self.buffers.last_mut().filter(|buffer| buffer.line.links.len() < MAX_LINKS);
            if let (Some(buffer), Some(href)) = (buffer, attribute(attributes, "href")) {
                buffer.line.links.push(href.to_owned());
            }
        }
    }

    fn on_end_tag(&mut self, name: &str) {
        if name == "br" || name == "p" && !self.open.iter().any(|o| o.name == "p") {
            return self.break_line(LineKind::Text);
        }
        if let Some(place) = self.lingering.iter().rposition(|l| l == name) {
            self.lingering.remove(place);
        }
        // An end tag inside a cell cannot close elements outside of its table.
        let innermost = self.open.iter().rposition(|o| o.name == name || o.name == "table");
        let Some(place) = innermost.filter(|p| self.open.get(*p).is_some_and(|o| o.name == name)) else { return };
        let outside = place.checked_sub(1).and_then(|p| self.open.get(p));
        let hidden_outside = outside.is_some_and(|o| o.hides() || o.odd);
        while self.open.len() > place {
            let innermost = self.open.len() - 1 > place;
            let Some(closed) = self.open.pop() else { return };
            let lingers = innermost && (closed.hides() || closed.odd) && !hidden_outside && is_formatting(&closed.name);
            self.close_element(&closed);
            if lingers && self.lingering.len() < MAX_DEPTH {
                self.lingering.push(closed.name);
            }
        }
    }
}

impl<'s, 'a> HtmlLines<'s, 'a> {
    pub(crate) fn new(sheet: &'s StyleSheet) -> Self {
        let mut page = LineBuffer::default();
        // Enough for most mails.
        page.view.lines.reserve(32);
        page.text.reserve(200);
        HtmlLines {
            sheet,
            last_style: None,
            open: Vec::with_capacity(16),
            lingering: Vec::new(),
            buffers: vec![page],
            rows: Vec::new(),
            open_pre: 0,
            line_count: 0,
            problem: None,
        }
    }

    /// The effect of an element's `style` attribute.
    fn inline_style(&mut self, attributes: &[Attribute<'a>]) -> Appearance {
        let Some(style) = attributes.iter().find(|a| a.name == "style").map(|a| &a.value) else {
            return Appearance::default();
        };
        match &self.last_style {
            Some((last, appearance)) if last == style => *appearance,
            _ => self.last_style.insert((style.clone(), Appearance::parse(style))).1,
        }
    }

    #[inline]
    fn is_hidden(&self) -> bool {
        !self.lingering.is_empty() || self.open.last().is_some_and(OpenElement::hides)
    }

    /// Handles a line end of the source: a new line inside `pre`, a space elsewhere.
    fn end_line(&mut self) {
        if self.open_pre > 0 {
            self.break_line(LineKind::Text);
        }
        self.push_space();
    }

    fn push_space(&mut self) {
        if let Some(buffer) = self.buffers.last_mut() {
            buffer.text.push(' ');
        }
    }

    fn open_element(&mut self, name: Cow<'a, str>, appearance: Appearance, flow: Flow, is_quote: bool) {
        let at_start = self.buffers.last().is_some_and(|f| !f.has_text);
        let open = OpenElement::new(self.open.last(), name, appearance, flow, ElementPosition { is_quote, at_start });
        if self.open.len() >= MAX_DEPTH {
            if open.hides() || open.odd || open.quoted {
                let message = "its HTML is nested too deeply to determine the visible text";
                self.problem = Some((ReasonCode::Unreadable, message));
            }
            return;
        }
        self.open_pre += usize::from(open.name == "pre");
        match &*open.name {
            "tr" => self.rows.push(Vec::new()),
            "td" | "th" => self.buffers.push(LineBuffer::default()),
            _ => {}
        }
        if let Some(buffer) = self.buffers.last_mut() {
            buffer.line.quoted |= open.quoted;
        }
        self.note_font_size(&open);
        self.open.push(open);
    }

    /// Sets `size_changed` at the start or end of an element that changes the font size.
    fn note_font_size(&mut self, element: &OpenElement<'a>) {
        if let Some(buffer) = self.buffers.last_mut() {
            buffer.size_changed |= element.resized && !element.hides();
        }
    }

    /// Whether the innermost open table part is a row.
    fn in_row(&self) -> bool {
        let element = self.open.iter().rev().find(|o| matches!(&*o.name, "tr" | "td" | "th" | "table"));
        element.is_some_and(|o| o.name == "tr")
    }

    /// Closes elements whose end tag the start tag `name` implies (HTML, 13.1.2.4). Elements that do not affect lines stay open.
    fn close_implied(&mut self, name: &str) {
        let (closes, within): (&[&str], &[&str]) = match name {
            "li" => (&["li"], &["ul", "ol", "menu", "table"]),
            "dt" | "dd" => (&["dt", "dd"], &["dl", "table"]),
            "tr" => (&["tr"], &["table"]),
            "td" | "th" => (&["td", "th"], &["tr", "table"]),
            // A block ends an open paragraph. A list item does not end a paragraph, because Resmic's mail has list items inside
            // of a paragraph.
            _ if is_block(name) && name != "br" => {
                let edge = self.open.iter().rev().find(|o| o.is_edge);
                if edge.is_some_and(|o| o.name == "p") {
                    self.on_end_tag("p");
                }
                return;
            }
            _ => return,
        };
        let place = self.open.iter().rposition(|o| closes.contains(&&*o.name) || within.contains(&&*o.name));
        let found = place.and_then(|p| self.open.get(p)).filter(|o| closes.contains(&&*o.name));
        if let Some(name) = found.map(|o| o.name.clone()) {
            self.on_end_tag(&name);
        }
    }

    fn close_element(&mut self, closed: &OpenElement<'a>) {
        self.open_pre = self.open_pre.saturating_sub(usize::from(closed.name == "pre"));
        self.note_font_size(closed);
        match (&*closed.name, closed.flow) {
            ("td" | "th", _) => self.finish_cell(),
            ("tr", _) => self.finish_row(),
            (_, Flow::Block) => self.break_line(LineKind::Text),
            (_, flow) => {
                let buffer = self.buffers.last_mut().filter(|f| closed.starts_line && f.line.lead.is_none());
                if let Some(buffer) = buffer.filter(|f| f.text.len() <= MAX_LEAD && f.has_text) {
                    buffer.line.lead = Some(normalize_space(&buffer.text));
                }
                if flow == Flow::Apart {
                    self.push_space();
                }
            }
        }
    }

    fn finish_cell(&mut self) {
        self.break_line(LineKind::Text);
        self.line_count += 1;
        let cell = if self.buffers.len() > 1 { self.buffers.pop() } else { None };
        if self.line_count <= MAX_LINES
            && let (Some(cell), Some(row)) = (cell, self.rows.last_mut())
        {
            row.push(cell.view.lines);
        }
    }

    /// Adds the finished table row to the view: as one line if each cell has at most one line of text, or otherwise as the lines
    /// of its cells. If the row is used for layout, it is added as the lines of its cells, too.
    fn finish_row(&mut self) {
        self.break_line(LineKind::Text);
        let (Some(cells), Some(buffer)) = (self.rows.pop(), self.buffers.last_mut()) else { return };
        let is_simple = cells.len() <= MAX_CELLS
            && cells.iter().all(|lines| lines.len() <= 1 && lines.iter().all(|l| l.cells.len() <= 1));
        // A row with one cell is used for layout, and so is a row whose only text is not in the first cell. But a row of several
        // cells with text only in the first cell stays a row, because this text may be a label without a value.
        let is_alone = cells.iter().filter(|lines| !lines.is_empty()).count() < 2
            && (cells.len() < 2 || cells.first().is_some_and(Vec::is_empty));
        if !is_simple || is_alone {
            for line in cells.into_iter().flatten() {
                buffer.view.push_line(line);
            }
            return;
        }
        let mut row = ViewLine { kind: LineKind::Row, ..ViewLine::default() };
        for line in cells.into_iter().map(|lines| lines.into_iter().next().unwrap_or_default()) {
            row.quoted |= line.quoted;
            row.links.extend(line.links);
            // Empty cells are kept, so that all rows have the same columns.
            row.cells.push(line.cells.into_iter().next().unwrap_or_default());
        }
        buffer.view.push_line(row);
    }

    /// Returns the kind of the line that begins at the start tag `name`.
    fn kind_of_line(&self, name: &str) -> LineKind {
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => LineKind::Heading,
            "li" => LineKind::Item,
            "dt" => LineKind::Term,
            "dd" => LineKind::Definition,
            "br" if self.open.iter().rev().find(|o| o.flow == Flow::Block).is_some_and(|o| o.name == "li") => {
                LineKind::Inside
            }
            _ => LineKind::Text,
        }
    }

    /// Ends the current line of the current cell or page. The line after it has the kind `next`.
    fn break_line(&mut self, next: LineKind) {
        let quoted = self.open.last().is_some_and(|o| o.quoted);
        let Some(buffer) = self.buffers.last_mut() else { return };
        // There is usually only white space between two tags, so the current line is usually empty. `push_line` would drop an
        // empty line. So the line is reset here, and its memory is reused.
        let is_empty = buffer.line.links.is_empty() && !buffer.has_text;
        if is_empty && self.line_count <= MAX_LINES && buffer.view.lines.len() < MAX_LINES {
            (buffer.line.quoted, buffer.line.kind) = (quoted, next);
            buffer.text.clear();
            return;
        }
        let mut line = std::mem::replace(&mut buffer.line, ViewLine { quoted, kind: next, ..ViewLine::default() });
        if !is_empty {
            line.cells = vec![normalize_space(&buffer.text)];
            self.line_count += 1;
        }
        buffer.text.clear();
        buffer.has_text = false;
        if self.line_count > MAX_LINES {
            self.problem = Some(TOO_MANY_LINES);
        } else {
            buffer.view.push_line(line);
        }
    }

    /// Closes all open elements, and returns the view.
    pub(crate) fn finish(mut self) -> View {
        while let Some(closed) = self.open.pop() {
            self.close_element(&closed);
        }
        self.break_line(LineKind::Text);
        let mut view = self.buffers.into_iter().next().unwrap_or_default().view;
        view.content_type = HTML;
        view.problem = view.problem.or(self.problem);
        view
    }
}
