//! Renders text/html as a view of the visible text.
//!
//! A tokenizer and a small walker determine line breaks, hidden text and quotes. A full tree would cost quadratic time
//! on nested elements, and would add nothing that is needed here.

use std::borrow::Cow;
use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::plain::{self, Attribute, Reads};
use super::quote;
use super::view::View;
use super::visible::{Sheet, is_for_all};
use super::walk::Walk;
use crate::model::ReasonCode;

/// The kind of a view of HTML.
pub(super) const KIND: &str = "text/html";

/// The most bytes of HTML that is not plain. html5ever compares each attribute of a tag with all others of that tag:
/// one tag of a megabyte would take seconds.
const NOT_PLAIN: usize = 256 << 10;

/// The problem of a view that was cut there.
const TOO_MUCH: (ReasonCode, &str) = (ReasonCode::TooLarge, "it has more than 256 KiB of HTML that is not plain");

/// Renders HTML. The function is pure and takes linear time.
#[must_use]
pub fn view(html: &str) -> View {
    let mut sheet = Sheet::default();
    sheets(html).iter().for_each(|css| sheet.read(css));
    let (walk, all) = read(html, || Walk::new(&sheet));
    let mut view = walk.finish();
    if !all {
        view.lost = view.lost.or(Some(TOO_MUCH));
    }
    quote::mark(&mut view);
    view
}

/// The style sheets of the mail.
fn sheets(html: &str) -> Vec<String> {
    let Some(styled) = as_far_as_its_sheets(html) else { return Vec::new() };
    let mut styles = Styles::default();
    match plain::read(styled, &mut styles) {
        Some(()) => styles.sheets,
        // The cut may be inside a comment or a tag. The whole text determines how much of it is parsed.
        None => read(html, Styles::default).0.sheets,
    }
}

/// The beginning of the text up to the last style sheet. The rest need not be scanned twice.
fn as_far_as_its_sheets(html: &str) -> Option<&str> {
    let text = html.as_bytes();
    let is = |at: &usize, tag: &[u8]| text.get(*at..at + tag.len()).is_some_and(|t| t.eq_ignore_ascii_case(tag));
    let last = |tag: &[u8]| memchr::memrchr_iter(b'<', text).find(|at| is(at, tag));
    let opened = last(b"<style")?;
    // A style sheet without an end tag continues to the end.
    let end =
        last(b"</style").filter(|closed| *closed > opened).map_or(html.len(), |closed| closed + b"</style>".len());
    Some(html.get(..end).unwrap_or(html))
}

/// Feeds HTML to a reader, through the fast parser if the HTML is plain. Also returns whether all of it was parsed.
fn read<'a, R: Reads<'a>>(html: &'a str, new: impl Fn() -> R) -> (R, bool) {
    let mut reader = new();
    if plain::read(html, &mut reader).is_some() {
        return (reader, true);
    }
    let part = html.get(..html.floor_char_boundary(NOT_PLAIN)).unwrap_or(html);
    (tokenize(part, new()), part.len() == html.len())
}

/// Feeds any HTML to a reader, through html5ever.
fn tokenize<'a, R: Reads<'a>>(html: &str, reader: R) -> R {
    let tokenizer = Tokenizer::new(Sink(RefCell::new(reader)), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner()
}

struct Sink<R>(RefCell<R>);

impl<'a, R: Reads<'a>> TokenSink for Sink<R> {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut reader = self.0.borrow_mut();
        match token {
            // The pieces of text matter to `Walk`.
            Token::CharacterTokens(text) => reader.text(&text).unwrap_or(()),
            Token::TagToken(tag) if tag.kind == TagKind::EndTag => reader.end(&tag.name),
            Token::TagToken(tag) => {
                let attribute = |a: &html5ever::Attribute| Attribute {
                    name: a.name.local.to_string().into(),
                    value: a.value.to_string().into(),
                };
                let attributes: Vec<_> = tag.attrs.iter().map(attribute).collect();
                reader.start(tag.name.to_string().into(), &attributes);
                return raw_text(&tag).unwrap_or(TokenSinkResult::Continue);
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// Elements with raw text. The tokenizer does not know them itself.
fn raw_text<H>(tag: &Tag) -> Option<TokenSinkResult<H>> {
    match &*tag.name {
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(TokenSinkResult::RawData(Rawtext)),
        "script" => Some(TokenSinkResult::RawData(ScriptData)),
        "title" | "textarea" => Some(TokenSinkResult::RawData(Rcdata)),
        _ => None,
    }
}

/// Collects the style sheets.
#[derive(Default)]
struct Styles {
    inside: bool,
    sheets: Vec<String>,
}

impl<'a> Reads<'a> for Styles {
    fn text(&mut self, text: &str) -> Option<()> {
        if let Some(sheet) = self.sheets.last_mut().filter(|_| self.inside) {
            sheet.push_str(&text.replace("\r\n", "\n"));
        }
        Some(())
    }

    fn start(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]) {
        let media = attributes.iter().find(|a| a.name == "media").map_or("", |a| &a.value);
        self.inside = name == "style" && is_for_all(&format!("media {media}"));
        if self.inside {
            self.sheets.push(String::new());
        }
    }

    fn end(&mut self, _: &str) {
        self.inside = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::ODD;
    use super::*;

    fn lines(html: &str) -> Vec<String> {
        view(html).lines.iter().map(|l| l.cells.join(" | ")).collect()
    }

    #[test]
    fn of_what_is_not_plain_a_part_is_read_and_of_what_is_plain_all() {
        let text = "<p>Amount: $20</p>".repeat(NOT_PLAIN / 100);
        let (plain, odd) =
            (format!("{text}{}", " ".repeat(NOT_PLAIN)), format!("<p <>{text}{}", "\u{e9}".repeat(NOT_PLAIN)));
        assert_eq!(view(&plain).lost, None);
        assert_eq!(view(&odd).lost, Some(TOO_MUCH));
        assert_eq!(view(&odd).lines.len(), view(&plain).lines.len() + 1);
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
            "<style media=screen>.h { display: none }</style><p class=h>no",
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
        assert_eq!(lines("<style media='(max-width: 9px)'>.w{display:none}</style><p class=w>yes"), ["yes"]);
    }

    #[test]
    fn what_is_seen_otherwise_than_it_stands_is_marked() {
        for html in ["<s>$50</s>", "$20<sup>50</sup>", "<bdo dir=rtl>02</bdo>", "<svg><text>x</text></svg>"] {
            assert!(lines(html)[0].contains(ODD), "{html}");
        }
        assert_eq!(lines("<b>$20</b><span style='padding-left:9px'>30</span>"), ["$20 30"]);
        assert_eq!(lines("<span style='display:block'>$20</span><span style='display:block'>30</span>"), ["$20", "30"]);
        assert_eq!(lines("<div style='display:inline'>$20</div><div style='display:inline'>30</div>"), ["$2030"]);
        for html in [
            "<div style='display:flex'><span>$20</span><span>30</span></div>",
            "<style>.row { display: inline-grid }</style><b class=row><i style='display:inline'>$20</i><i>30</i></b>",
            "$20<span style='vertical-align:top'>30</span>",
            "$20<span style='position:relative;top:-1ex'>30</span>",
            "$20<span style='border-left:1px solid'>30</span>",
            "$20<img src=x>30",
            "<button>$20</button>30",
        ] {
            assert_eq!(lines(html), ["$20 30"], "{html}");
        }
        assert_eq!(lines("<div style='display:flex'><p><span>$20</span><span>30</span></p></div>"), ["$2030"]);
        assert_eq!(lines("$20<span style='vertical-align:baseline;border:0'>30</span>"), ["$2030"]);
        for html in [
            "$20<small>30</small>",
            "<big>$20</big>30",
            "$20<b><font size=1>30</font></b>",
            "$20<span style='font-size:60%'>30</span>",
            "<style>p .c { font-size: 8px }</style><p>$20<i class=c>30</i></p>",
        ] {
            assert_eq!(lines(html), ["$20 30"], "{html}");
        }
        for html in ["<small>$</small>20<small>.30</small>", "$2<i style='font-size:0'>9</i>0.30"] {
            assert_eq!(lines(html), ["$20.30"], "{html}");
        }
    }

    #[test]
    fn what_stands_first_in_a_line_is_known() {
        let lead = |html: &str| view(html).lines[0].lead.clone();
        assert_eq!(lead("<li><strong>Amount</strong> $20</li>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p><span><b>Amount</b></span><span>$20</span></p>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p>Amount <b>$20</b></p>"), None);
    }

    #[test]
    fn a_sheet_counts_wherever_it_stands_and_however_it_ends() {
        for html in [
            "<p class=h>no</p><style>.h{display:none}</style>",
            "<p class=h>no</p><style>.h{display:none}",
            "<style>.a{}</style><p class=h>no</p><STYLE>.h{display:none}</STYLE >",
            "<p class=h>no</p><style></stylex>.h{display:none}",
        ] {
            assert_eq!(lines(html), Vec::<String>::new(), "{html}");
        }
        for end in ["", " ", "><!-- </style> --", "><p title='</style>'"] {
            let far = format!("<p class=h>no</p>{}<style>.h{{display:none}}</style{end}>", "\n".repeat(NOT_PLAIN));
            assert_eq!((lines(&far), view(&far).lost), (Vec::new(), None), "{end}");
        }
    }

    #[test]
    fn quotes_and_links_are_marked() {
        let view = view("<p>a</p><blockquote>b</blockquote><p><a href='https://x/y'>c</a></p>");
        let quoted: Vec<_> = view.lines.iter().map(|l| l.quoted).collect();
        assert_eq!(quoted, [false, true, false]);
        assert_eq!(view.lines[2].links, ["https://x/y"]);
    }

    #[derive(Debug, PartialEq)]
    enum Told {
        Text(String),
        Start(String, Vec<(String, String)>),
        End(String),
    }

    /// The calls of a reader, with adjacent texts joined.
    #[derive(Debug, Default, PartialEq)]
    struct Log(Vec<Told>);

    impl<'a> Reads<'a> for Log {
        fn text(&mut self, text: &str) -> Option<()> {
            let text = text.replace("\r\n", "\n");
            match self.0.last_mut() {
                Some(Told::Text(known)) => known.push_str(&text),
                _ => self.0.push(Told::Text(text)),
            }
            Some(())
        }

        fn start(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]) {
            let attributes = attributes.iter().map(|a| (a.name.to_string(), a.value.to_string())).collect();
            self.0.push(Told::Start(name.into_owned(), attributes));
        }

        fn end(&mut self, name: &str) {
            self.0.push(Told::End(name.to_owned()));
        }
    }

    /// Parses plain HTML. Asserts that html5ever finds the same, and that both give the same view.
    fn plainly(html: &str) -> Option<Log> {
        let mut log = Log::default();
        plain::read(html, &mut log)?;
        assert_eq!(log, tokenize(html, Log::default()), "{html:?}");
        let sheet = Sheet::default();
        let mut walk = Walk::new(&sheet);
        if plain::read(html, &mut walk).is_some() {
            assert_eq!(walk.finish(), tokenize(html, Walk::new(&sheet)).finish(), "{html:?}");
        }
        Some(log)
    }

    #[test]
    fn what_mails_have_is_plain() {
        for html in [
            "<!DOCTYPE html>\r\n<html lang=en><head><title>A</title><style>p > a{}</style></head>",
            "<!--[if mso]><table><![endif]--><!--[if !mso]><!--><p>x</p><!--<![endif]-->",
            "<a href= target=\"_blank\">x</a><IMG SRC='y' alt/><br/><o:p></o:p><p a=b a=c d>",
            "&copy; 2025 &amp; &#36;20&nbsp;&#x1F4B8; & &NotEqualTilde;<a href='?a=b&amp;c&d=e&copy=f'>",
        ] {
            assert!(plainly(html).is_some(), "{html}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_alone() {
        for html in [
            "\u{feff}<p>",
            "a\0b",
            "a\rb",
            "a < b",
            "<p",
            "<!-->x",
            "<!--->x-->",
            "<!--a--!>b-->",
            "<!--",
            "<![CDATA[x]]>",
            "<?xml?>",
            "</p a=b>",
            "</ p>",
            "<p/a>",
            "<p =a>",
            "<p \"a\">",
            "<p a='b>",
            "<b\u{e9}>",
            "<1>",
            "&notit;",
            "&amp",
            "&#128;",
            "&#0;",
            "&#xd800;",
            "&#;",
            "&bogus;",
            "<style>a",
            "<style><b></style>",
            "<style></b></style>",
            "<title>a&b</title>",
            "<script></script>",
            "<textarea>",
            "<a href='&amp'>",
            "<a href=&x>",
        ] {
            assert_eq!(plainly(html), None, "{html}");
        }
        let attributes: String = (0..70).map(|n| format!(" a{n}=b")).collect();
        assert_eq!(plainly(&format!("<p{attributes}>")), None);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 2_000, failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn plain_html_says_what_html5ever_says(html in "([a-z ]{1,3}|</?[a-zA-Z]{1,2}[ />\"'=a-b]{0,6}>?|<(title|style|s)>|</(title|style|s)>|<p [a-c]{1,2} ?= ?[\"']?[ a-b&;>\n]{0,4}[\"']?>|&(amp|lt|copy|not|notin|a)[;= ]?|&#x?[0-9]{1,4};|[&<>!\"'=/;-]|<!--|-->|<!doctype|\r?\n){0,12}") {
            plainly(&html);
            assert_eq!(sheets(&html), tokenize(&html, Styles::default()).sheets, "{html:?}");
        }
    }

    #[test]
    fn white_space_between_tags_costs_no_more_than_its_length() {
        for text in ["", "x"] {
            let html = format!("{text}{}{}", " \n".repeat(200_000), "<b></b>".repeat(60_000));
            assert_eq!(lines(&html), Vec::from_iter(Some(text).filter(|t| !t.is_empty())));
        }
    }

    #[test]
    fn deep_nesting_costs_no_more_than_its_length() {
        let html = format!("{}x{}", "<div>".repeat(40_000), "</div>".repeat(40_000));
        assert_eq!(lines(&html), ["x"]);
    }
}
