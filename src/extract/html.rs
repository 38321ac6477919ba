//! text/html → what a person sees.
//!
//! A tokenizer and a small walker: where lines break, what is hidden, what is quoted. A whole tree would cost
//! quadratic time on nested elements and knows nothing more that is needed here.

use std::cell::RefCell;

use html5ever::Attribute;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::quote;
use super::view::{Line, ODD, Sort, View};
use super::visible::{Colour, Display, Look, Sheet};

/// The deepest nesting that is followed; what is deeper is read as if it stood here.
const DEPTH: usize = 500;

/// Renders HTML. Pure and linear in the length of the text.
#[must_use]
pub fn view(html: &str) -> View {
    let mut sheet = Sheet::default();
    if html.as_bytes().windows(6).any(|w| w.eq_ignore_ascii_case(b"<style")) {
        let styles = Styles(RefCell::default());
        for css in tokenize(html, styles).0.into_inner().sheets {
            sheet.read(&css);
        }
    }
    let walker = tokenize(html, Walker(RefCell::new(Walk::new(sheet))));
    walker.0.into_inner().finish()
}

fn tokenize<S: TokenSink>(html: &str, sink: S) -> S {
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink
}

/// Elements whose text is not HTML; the tokenizer has to be told.
fn raw_text<H>(tag: &Tag) -> Option<TokenSinkResult<H>> {
    if tag.kind == TagKind::EndTag {
        return None;
    }
    match &*tag.name {
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(TokenSinkResult::RawData(Rawtext)),
        "script" => Some(TokenSinkResult::RawData(ScriptData)),
        "title" | "textarea" => Some(TokenSinkResult::RawData(Rcdata)),
        _ => None,
    }
}

/// Gathers the style sheets.
struct Styles(RefCell<Gathered>);

#[derive(Default)]
struct Gathered {
    inside: bool,
    sheets: Vec<String>,
}

impl TokenSink for Styles {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut gathered = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) => {
                gathered.inside = tag.kind == TagKind::StartTag && &*tag.name == "style";
                if gathered.inside {
                    gathered.sheets.push(String::new());
                }
                return raw_text(&tag).unwrap_or(TokenSinkResult::Continue);
            }
            Token::CharacterTokens(text) if gathered.inside => {
                if let Some(sheet) = gathered.sheets.last_mut() {
                    sheet.push_str(&text);
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

struct Walker(RefCell<Walk>);

impl TokenSink for Walker {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut walk = self.0.borrow_mut();
        match token {
            Token::CharacterTokens(text) => walk.text(&text),
            Token::TagToken(tag) => {
                match tag.kind {
                    TagKind::StartTag => walk.start(&tag),
                    TagKind::EndTag => walk.end(&tag.name),
                }
                return raw_text(&tag).unwrap_or(TokenSinkResult::Continue);
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// An open element, as far as it matters for what is inside.
struct Open {
    name: String,
    gone: bool,
    invisible: bool,
    unsized_: bool,
    /// Seen, and not as it stands in the text.
    odd: bool,
    quoted: bool,
    colour: Colour,
    background: Colour,
    flow: Flow,
    /// It begins its line.
    leads: bool,
}

impl Open {
    fn hides(&self) -> bool {
        self.gone || self.invisible || self.unsized_ || self.colour == self.background
    }
}

/// How an element stands among its neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Inline,
    Apart,
    Block,
}

impl Flow {
    fn of(name: &str, look: Look) -> Flow {
        let table = matches!(name, "table" | "tr" | "td" | "th" | "tbody" | "thead" | "tfoot");
        match look.display.filter(|_| !table) {
            Some(Display::Block) => Flow::Block,
            Some(Display::Apart) => Flow::Apart,
            Some(Display::Inline) => Flow::Inline,
            None if is_block(name) => Flow::Block,
            None if look.apart => Flow::Apart,
            None => Flow::Inline,
        }
    }
}

struct Walk {
    sheet: Sheet,
    open: Vec<Open>,
    /// Hidden formatting elements whose parent was closed before them: a browser opens them again.
    lingering: Vec<String>,
    /// What is being written: the page, and each table cell inside it.
    frames: Vec<Frame>,
    /// The finished cells of each open row.
    rows: Vec<Vec<Vec<Line>>>,
    pre: usize,
    lost: Option<&'static str>,
}

/// A page or a cell: lines, and the one that is being written.
#[derive(Default)]
struct Frame {
    view: View,
    line: Line,
    text: String,
}

/// Elements whose content nobody sees as text.
const UNSEEN: [&str; 11] =
    ["style", "script", "title", "template", "iframe", "audio", "video", "canvas", "noembed", "noframes", "datalist"];

/// Elements whose content is seen by some, or struck out, raised, lowered, turned round, drawn.
const ODDLY_SEEN: [&str; 14] = [
    "noscript", "textarea", "select", "svg", "math", "object", "applet", "s", "strike", "del", "sup", "sub", "rt",
    "bdo",
];

/// The longest text that may be a label for standing first in its line.
const LEAD: usize = 80;

/// Elements that close where HTML reopens them (the "adoption agency").
const FORMATTING: [&str; 13] =
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "u"];

const VOID: [&str; 11] = ["area", "base", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"];

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "center"
            | "dd"
            | "details"
            | "dialog"
            | "dir"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hr"
            | "html"
            | "legend"
            | "li"
            | "main"
            | "menu"
            | "nav"
            | "ol"
            | "p"
            | "pre"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "tfoot"
            | "thead"
            | "tr"
            | "ul"
            | "caption"
            | "br"
            | "optgroup"
    )
}

impl Walk {
    fn new(sheet: Sheet) -> Self {
        Walk {
            sheet,
            open: Vec::new(),
            lingering: Vec::new(),
            frames: vec![Frame::default()],
            rows: Vec::new(),
            pre: 0,
            lost: None,
        }
    }

    fn hidden(&self) -> bool {
        !self.lingering.is_empty() || self.open.last().is_some_and(Open::hides)
    }

    fn text(&mut self, text: &str) {
        if self.hidden() {
            return;
        }
        let odd = self.open.last().is_some_and(|o| o.odd);
        for (n, part) in text.split('\n').enumerate() {
            if n > 0 && self.pre > 0 {
                self.break_line(Sort::Text);
            }
            let Some(frame) = self.frames.last_mut() else { return };
            if n > 0 {
                frame.text.push(' ');
            }
            let odd = odd && !part.trim().is_empty();
            frame.text.extend(odd.then_some(ODD));
            frame.text.push_str(part);
            frame.text.extend(odd.then_some(ODD));
        }
    }

    fn space(&mut self) {
        self.frames.last_mut().into_iter().for_each(|f| f.text.push(' '));
    }

    fn start(&mut self, tag: &Tag) {
        let name = &*tag.name;
        let look = self.sheet.look(name, &tag.attrs);
        let flow = Flow::of(name, look);
        self.close_implied(name);
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
            self.enter("tr", Look::default(), Flow::Block, false);
        }
        self.enter(name, look, flow, is_quote(name, &tag.attrs));
        if name == "details" && attribute(&tag.attrs, "open").is_none() {
            self.open.last_mut().into_iter().for_each(|o| o.odd = true);
        }
        if name == "a" && !self.hidden() {
            let target = attribute(&tag.attrs, "href").map(str::to_owned);
            self.frames.last_mut().into_iter().for_each(|f| f.line.links.extend(target.clone()));
        }
    }

    fn enter(&mut self, name: &str, look: Look, flow: Flow, quote: bool) {
        let outer = self.open.last();
        // A link is blue unless somebody says otherwise.
        let ink = if name == "a" { Colour::Unknown } else { outer.map_or(Colour::BLACK, |o| o.colour) };
        let open = Open {
            name: name.to_owned(),
            gone: outer.is_some_and(|o| o.gone) || look.gone || UNSEEN.contains(&name),
            invisible: look.visibility.map_or(outer.is_some_and(|o| o.invisible), |seen| !seen),
            unsized_: look.sized.map_or(outer.is_some_and(|o| o.unsized_), |sized| !sized),
            odd: outer.is_some_and(|o| o.odd) || look.odd || ODDLY_SEEN.contains(&name),
            quoted: outer.is_some_and(|o| o.quoted) || quote,
            colour: look.colour.unwrap_or(ink),
            background: look.background.unwrap_or(outer.map_or(Colour::WHITE, |o| o.background)),
            flow,
            leads: flow != Flow::Block && self.frames.last().is_some_and(|f| f.text.trim().is_empty()),
        };
        if self.open.len() >= DEPTH {
            if open.hides() || open.odd || open.quoted {
                self.lost = Some("it is nested too deeply to know what of it can be seen");
            }
            return;
        }
        self.pre += usize::from(name == "pre");
        match name {
            "tr" => self.rows.push(Vec::new()),
            "td" | "th" => self.frames.push(Frame::default()),
            _ => {}
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.line.quoted |= open.quoted;
        }
        self.open.push(open);
    }

    /// Whether the innermost table part that is open is a row.
    fn in_row(&self) -> bool {
        let part = self.open.iter().rev().find(|o| matches!(o.name.as_str(), "tr" | "td" | "th" | "table"));
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
            _ if is_block(name) && name != "br" => (&["p"], &["table", "td", "th", "li", "div", "button"]),
            _ => return,
        };
        let place =
            self.open.iter().rposition(|o| closes.contains(&o.name.as_str()) || within.contains(&o.name.as_str()));
        let found = place.and_then(|p| self.open.get(p)).filter(|o| closes.contains(&o.name.as_str()));
        if let Some(name) = found.map(|o| o.name.clone()) {
            self.end(&name);
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
            let lingers = innermost
                && (closed.hides() || closed.odd)
                && !hidden_outside
                && FORMATTING.contains(&closed.name.as_str());
            self.leave(&closed);
            if lingers && self.lingering.len() < DEPTH {
                self.lingering.push(closed.name);
            }
        }
    }

    fn leave(&mut self, closed: &Open) {
        self.pre = self.pre.saturating_sub(usize::from(closed.name == "pre"));
        match (closed.name.as_str(), closed.flow) {
            ("td" | "th", _) => self.leave_cell(),
            ("tr", _) => self.leave_row(),
            (_, Flow::Block) => self.break_line(Sort::Text),
            (_, flow) => {
                let frame = self.frames.last_mut().filter(|f| closed.leads && f.line.lead.is_none());
                if let Some(frame) = frame.filter(|f| f.text.len() <= LEAD && !f.text.trim().is_empty()) {
                    frame.line.lead = Some(frame.text.clone());
                }
                if flow == Flow::Apart {
                    self.space();
                }
            }
        }
    }

    fn leave_cell(&mut self) {
        self.break_line(Sort::Text);
        let cell = if self.frames.len() > 1 { self.frames.pop() } else { None };
        if let (Some(cell), Some(row)) = (cell, self.rows.last_mut()) {
            row.push(cell.view.lines);
        }
    }

    /// A row of plain cells is one line; a row that lays out a page is the lines of its cells.
    fn leave_row(&mut self) {
        self.break_line(Sort::Text);
        let (Some(cells), Some(frame)) = (self.rows.pop(), self.frames.last_mut()) else { return };
        let plain = cells.iter().all(|lines| lines.len() <= 1 && lines.iter().all(|l| l.cells.len() <= 1));
        if !plain || cells.iter().filter(|lines| !lines.is_empty()).count() < 2 {
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
        line.cells.push(std::mem::take(&mut frame.text));
        frame.view.push(line);
    }

    fn finish(mut self) -> View {
        while let Some(closed) = self.open.pop() {
            self.leave(&closed);
        }
        self.break_line(Sort::Text);
        let mut view = self.frames.into_iter().next().unwrap_or_default().view;
        view.kind = "text/html";
        view.lost = self.lost;
        quote::mark(&mut view);
        view
    }
}

fn attribute<'a>(attributes: &'a [Attribute], name: &str) -> Option<&'a str> {
    attributes.iter().find(|a| &*a.name.local == name).map(|a| &*a.value)
}

/// Where mail programs put what they quote.
fn is_quote(name: &str, attributes: &[Attribute]) -> bool {
    let marked = |name: &str, words: &[&str]| {
        attribute(attributes, name).is_some_and(|value| {
            value.split_ascii_whitespace().any(|w| words.iter().any(|word| w.eq_ignore_ascii_case(word)))
        })
    };
    name == "blockquote"
        || marked("class", &["gmail_quote", "gmail_attr", "yahoo_quoted", "moz-cite-prefix", "OutlookMessageHeader"])
        || marked("id", &["divRplyFwdMsg", "appendonsend", "mail-editor-reference-message-container"])
        || marked("type", &["cite"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(html: &str) -> Vec<String> {
        view(html).lines.iter().map(|l| l.cells.join(" | ")).collect()
    }

    #[test]
    fn blocks_break_lines_and_inline_elements_do_not() {
        assert_eq!(lines("<p>A<b>mou</b>nt: <span>$<wbr>20</span><br>x</p>y"), ["Amount: $20", "x", "y"]);
        assert_eq!(lines("<table><tr><td>a<td>b</tr><tr><th>c</th><td><p>d</p></td></tr></table>"), ["a | b", "c | d"]);
        assert_eq!(lines("<dl><dt>Token<dd>DAI<dt>x</dl>"), ["Token", "DAI", "x"]);
    }

    #[test]
    fn tags_that_overlap_are_read_as_a_browser_shows_them() {
        let html = "<p><li>Hash: <a href=>0xab</li></a><li>Token: DAI</li></p>";
        assert_eq!(lines(html), ["Hash: 0xab", "Token: DAI"]);
    }

    #[test]
    fn what_is_hidden_is_not_there() {
        for html in [
            "<div style='display:none'>no</div>",
            "<!-- no -->",
            "<style>no</style>",
            "<title>no</title>",
            "<script>'<p>no</p>'</script>",
            "<p hidden>no</p>",
            "<style>.h{display:none}</style><p class='a h'>no",
            "<div style='font-size:0'><p>no</p></div>",
            "<div style='visibility:hidden'>no</div>",
            "<p><b style='display:none'>no</p>no</b>",
            "<p style='color:#fff'>no</p>",
            "<table bgcolor=#000000><tr><td><font color=black>no</font></td></tr></table>",
            "<style>@media screen { .h { display: none } }</style><p class=h>no",
            "<template><p>no</p></template>",
            "<img alt='no'>",
        ] {
            assert_eq!(lines(html), Vec::<String>::new(), "{html}");
        }
        assert_eq!(
            lines("<p style='background:#333'><a style='color:#fff'>yes</a></p><a href=x>yes</a>"),
            ["yes", "yes"]
        );
        assert_eq!(lines("<style>.b a{color:#fff} a:hover{color:white}</style><p><a>yes</a></p>"), ["yes"]);
        assert_eq!(lines("<td style='font-size:0'><div style='font-size:13px'>yes</div></td>"), ["yes"]);
        assert_eq!(lines("<div style=visibility:hidden>a<b style=visibility:visible>yes</b></div>"), ["yes"]);
        assert_eq!(lines("<ul><li style=display:none>no<li>yes</ul>"), ["yes"]);
    }

    #[test]
    fn what_is_seen_otherwise_than_it_stands_is_marked() {
        for html in ["<s>$50</s>", "$20<sup>50</sup>", "<bdo dir=rtl>02</bdo>", "<svg><text>x</text></svg>"] {
            assert!(lines(html)[0].contains(ODD), "{html}");
        }
        assert_eq!(lines("<b>$20</b><span style='padding-left:9px'>30</span>"), ["$20 30"]);
        assert_eq!(lines("<span style='display:block'>$20</span><span style='display:block'>30</span>"), ["$20", "30"]);
        assert_eq!(lines("<div style='display:inline'>$20</div><div style='display:inline'>30</div>"), ["$2030"]);
    }

    #[test]
    fn what_stands_first_in_a_line_is_known() {
        let lead = |html: &str| view(html).lines[0].lead.clone();
        assert_eq!(lead("<li><strong>Amount</strong> $20</li>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p><span><b>Amount</b></span><span>$20</span></p>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p>Amount <b>$20</b></p>"), None);
    }

    #[test]
    fn quotes_and_links_are_marked() {
        let view = view("<p>a</p><blockquote>b</blockquote><p><a href='https://x/y'>c</a></p>");
        let quoted: Vec<_> = view.lines.iter().map(|l| l.quoted).collect();
        assert_eq!(quoted, [false, true, false]);
        assert_eq!(view.lines[2].links, ["https://x/y"]);
    }

    #[test]
    fn deep_nesting_costs_no_more_than_its_length() {
        let html = format!("{}x{}", "<div>".repeat(40_000), "</div>".repeat(40_000));
        assert_eq!(lines(&html), ["x"]);
    }
}
