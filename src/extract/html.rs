//! text/html → what a person sees.
//!
//! A tokenizer and a small walker: where lines break, what is hidden, what is quoted. A whole tree would cost
//! quadratic time on nested elements and knows nothing more that is needed here.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::quote;
use super::view::View;
use super::visible::Sheet;
use super::walk::Walk;

/// Renders HTML. Pure and linear in the length of the text.
#[must_use]
pub fn view(html: &str) -> View {
    let mut sheet = Sheet::default();
    if let Some(styled) = as_far_as_its_sheets(html) {
        for css in tokenize(styled, Styles(RefCell::default())).0.into_inner().sheets {
            sheet.read(&css);
        }
    }
    let walker = tokenize(html, Walker(RefCell::new(Walk::new(sheet))));
    let mut view = walker.0.into_inner().finish();
    quote::mark(&mut view);
    view
}

/// The part of it that has style sheets, from the start: what is behind them need not be looked at twice.
fn as_far_as_its_sheets(html: &str) -> Option<&str> {
    let last = |tag: &[u8]| html.as_bytes().windows(tag.len()).rposition(|w| w.eq_ignore_ascii_case(tag));
    let opened = last(b"<style")?;
    // One that nobody closes goes on to the end.
    let end =
        last(b"</style").filter(|closed| *closed > opened).map_or(html.len(), |closed| closed + b"</style>".len());
    Some(html.get(..end).unwrap_or(html))
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

#[cfg(test)]
mod tests {
    use super::super::view::ODD;
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
    fn a_sheet_counts_wherever_it_stands_and_however_it_ends() {
        for html in [
            "<p class=h>no</p><style>.h{display:none}</style>",
            "<p class=h>no</p><style>.h{display:none}",
            "<style>.a{}</style><p class=h>no</p><STYLE>.h{display:none}</STYLE >",
        ] {
            assert_eq!(lines(html), Vec::<String>::new(), "{html}");
        }
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
