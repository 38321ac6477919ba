//! text/html → what a person sees.
//!
//! A tokenizer and a small walker: where lines break, what is hidden, what is quoted. A whole tree would cost
//! quadratic time on nested elements and knows nothing more that is needed here.

use std::cell::RefCell;

use html5ever::Attribute;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::view::{Line, Sort, View};
use super::visible::Sheet;

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
    quoted: bool,
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
    /// Something hidden stood too deep to be followed.
    lost: bool,
}

/// A page or a cell: lines, and the one that is being written.
#[derive(Default)]
struct Frame {
    view: View,
    line: Line,
    text: String,
}

/// Elements whose content nobody reads as text.
const UNSEEN: [&str; 20] = [
    "style", "script", "title", "template", "noscript", "head", "textarea", "select", "svg", "math", "object",
    "iframe", "audio", "video", "canvas", "noembed", "noframes", "datalist", "map", "applet",
];

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
            lost: false,
        }
    }

    fn hidden(&self) -> bool {
        !self.lingering.is_empty() || self.open.last().is_some_and(|o| o.gone || o.invisible || o.unsized_)
    }

    fn text(&mut self, text: &str) {
        if self.hidden() {
            return;
        }
        for (n, part) in text.split('\n').enumerate() {
            if n > 0 && self.pre > 0 {
                self.break_line(Sort::Text);
            }
            if let Some(frame) = self.frames.last_mut() {
                if n > 0 {
                    frame.text.push(' ');
                }
                frame.text.push_str(part);
            }
        }
    }

    fn start(&mut self, tag: &Tag) {
        let name = &*tag.name;
        self.close_implied(name);
        if is_block(name) {
            self.break_line(sort_of(name));
        }
        if name == "br" || VOID.contains(&name) {
            return;
        }
        let cell = matches!(name, "td" | "th");
        if cell && !self.in_row() {
            self.enter("tr", &[]);
        }
        if tag.self_closing && !cell {
            return;
        }
        self.enter(name, &tag.attrs);
        if name == "a" && !self.hidden() {
            let target = attribute(&tag.attrs, "href").map(str::to_owned);
            self.frames.last_mut().into_iter().for_each(|f| f.line.links.extend(target.clone()));
        }
    }

    fn enter(&mut self, name: &str, attributes: &[Attribute]) {
        let look = self.sheet.look(name, attributes);
        let outer = self.open.last();
        let open = Open {
            name: name.to_owned(),
            gone: outer.is_some_and(|o| o.gone) || look.gone || UNSEEN.contains(&name),
            invisible: look.visibility.map_or(outer.is_some_and(|o| o.invisible), |seen| !seen),
            unsized_: look.sized.map_or(outer.is_some_and(|o| o.unsized_), |sized| !sized),
            quoted: outer.is_some_and(|o| o.quoted) || is_quote(name, attributes),
        };
        if self.open.len() >= DEPTH {
            self.lost |= open.gone || open.invisible || open.unsized_ || open.quoted;
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
        let hidden_outside = place.checked_sub(1).and_then(|p| self.open.get(p)).is_some_and(|o| o.gone);
        while self.open.len() > place {
            let innermost = self.open.len() - 1 > place;
            let Some(closed) = self.open.pop() else { return };
            let lingers = innermost && closed.gone && !hidden_outside && FORMATTING.contains(&closed.name.as_str());
            self.leave(&closed.name);
            if lingers && self.lingering.len() < DEPTH {
                self.lingering.push(closed.name);
            }
        }
    }

    fn leave(&mut self, name: &str) {
        match name {
            "td" | "th" => self.leave_cell(),
            "tr" => self.leave_row(),
            "pre" => {
                self.pre = self.pre.saturating_sub(1);
                self.break_line(Sort::Text);
            }
            _ if is_block(name) => self.break_line(Sort::Text),
            _ => {}
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
        for line in cells.into_iter().flatten() {
            row.quoted |= line.quoted;
            row.links.extend(line.links);
            row.cells.extend(line.cells);
        }
        frame.view.push(row);
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
            self.leave(&closed.name);
        }
        self.break_line(Sort::Text);
        let mut view = self.frames.into_iter().next().unwrap_or_default().view;
        view.kind = "text/html";
        view.lost = self.lost;
        view
    }
}

fn sort_of(name: &str) -> Sort {
    match name {
        "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => Sort::Heading,
        "li" => Sort::Item,
        "dt" => Sort::Term,
        _ => Sort::Text,
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
            "<template><p>no</p></template>",
            "<img alt='no'>",
        ] {
            assert_eq!(lines(html), Vec::<String>::new(), "{html}");
        }
        assert_eq!(lines("<td style='font-size:0'><div style='font-size:13px'>yes</div></td>"), ["yes"]);
        assert_eq!(lines("<div style=visibility:hidden>a<b style=visibility:visible>yes</b></div>"), ["yes"]);
        assert_eq!(lines("<ul><li style=display:none>no<li>yes</ul>"), ["yes"]);
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
