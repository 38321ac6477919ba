//! Renders text/html as a view of the visible text.
//!
//! `html_fast` or `html_tokenizer` finds tags and texts. `html_lines` determines line breaks, hidden text and quotes.
//! No tree is built, because building one would take quadratic time on nested elements. Only the order of tags and
//! texts is needed.

use std::borrow::Cow;

use super::html_fast::{Attribute, HtmlSink, parse_fast};
use super::html_lines::HtmlLines;
use super::html_tokenizer::tokenize;
use super::quote;
use super::style_sheet::{StyleSheet, is_for_every_screen};
use super::view::View;
use crate::model::ReasonCode;

/// If `html_fast` refuses HTML, html5ever parses at most this number of bytes. html5ever compares each attribute of a tag with
/// all other attributes of that tag, so one tag of a megabyte would take seconds.
const MAX_TOKENIZED: usize = 256 << 10;

/// The problem of a view that was cut at [`MAX_TOKENIZED`].
const TOO_MUCH_RARE_HTML: (ReasonCode, &str) =
    (ReasonCode::TooLarge, "it has more than 256 KiB of HTML that is not plain");

/// The problem of a view whose style sheets have rules for more than [`MAX_RULES`](super::style_sheet::MAX_RULES) names.
const TOO_MANY_RULES: (ReasonCode, &str) =
    (ReasonCode::TooLarge, "its style sheets have rules for more than 2000 tags, classes and ids");

/// Renders HTML. The function is pure and takes linear time.
#[must_use]
pub fn html_view(html: &str) -> View {
    let mut sheet = StyleSheet::default();
    for css in style_sheets(html) {
        sheet.add_rules(&css);
    }
    let is_incomplete = sheet.is_incomplete();
    let (lines, is_complete) = feed(html, || HtmlLines::new(&sheet));
    let mut view = lines.finish();
    if !is_complete {
        view.problem = view.problem.or(Some(TOO_MUCH_RARE_HTML));
    }
    if is_incomplete {
        view.problem = view.problem.or(Some(TOO_MANY_RULES));
    }
    quote::mark_quoted(&mut view);
    view
}

/// Returns the contents of the `<style>` elements in the HTML.
pub(crate) fn style_sheets(html: &str) -> Vec<String> {
    let Some(beginning) = up_to_last_style_sheet(html) else { return Vec::new() };
    let mut collector = StyleCollector::default();
    match parse_fast(beginning, &mut collector) {
        Some(()) => collector.sheets,
        // `html_fast` refuses the beginning, for example because it ends inside a comment or a tag. So `feed` parses all of the
        // HTML.
        None => feed(html, StyleCollector::default).0.sheets,
    }
}

/// Returns the beginning of the HTML, up to the end of its last style sheet; `None` if there is no style sheet. The rest of the
/// HTML need not be searched for style sheets.
fn up_to_last_style_sheet(html: &str) -> Option<&str> {
    let text = html.as_bytes();
    let starts_at = |at: usize, tag: &[u8]| text.get(at..at + tag.len()).is_some_and(|t| t.eq_ignore_ascii_case(tag));
    // A style sheet without an end tag continues to the end.
    let mut end = None;
    for at in memchr::memrchr_iter(b'<', text) {
        match text.get(at + 1) {
            Some(b's' | b'S') if starts_at(at, b"<style") => {
                return html.get(..end.unwrap_or(html.len())).or(Some(html));
            }
            Some(b'/') if end.is_none() && starts_at(at, b"</style") => end = Some(at + b"</style>".len()),
            _ => {}
        }
    }
    None
}

/// Parses HTML into a new sink: with `html_fast` if `html_fast` accepts the HTML, otherwise with html5ever. Also returns whether
/// all of the HTML was parsed.
fn feed<'a, S: HtmlSink<'a>>(html: &'a str, new_sink: impl Fn() -> S) -> (S, bool) {
    let mut sink = new_sink();
    if parse_fast(html, &mut sink).is_some() {
        return (sink, true);
    }
    let part = html.get(..html.floor_char_boundary(MAX_TOKENIZED)).unwrap_or(html);
    (tokenize(part, new_sink()), part.len() == html.len())
}

/// A sink that collects the contents of `<style>` elements.
#[derive(Default)]
pub(crate) struct StyleCollector {
    inside: bool,
    pub(crate) sheets: Vec<String>,
}

impl<'a> HtmlSink<'a> for StyleCollector {
    fn on_text(&mut self, text: &str) -> Option<()> {
        if self.inside
            && let Some(sheet) = self.sheets.last_mut()
        {
            sheet.push_str(&text.replace("\r\n", "\n"));
        }
        Some(())
    }

    fn on_start_tag(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]) {
        let media = attributes.iter().find(|a| a.name == "media").map_or("", |a| &a.value);
        self.inside = name == "style" && is_for_every_screen(&format!("media {media}"));
        if self.inside {
            self.sheets.push(String::new());
        }
    }

    fn on_end_tag(&mut self, _: &str) {
        self.inside = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::style_sheet::MAX_RULES;
    use super::super::view::ODD_MARK;
    use super::*;

    fn lines(html: &str) -> Vec<String> {
        html_view(html).lines.iter().map(|l| l.cells.join(" | ")).collect()
    }

    #[test]
    fn rare_html_is_cut_at_the_limit() {
        let text = "<p>Amount: $20</p>".repeat(MAX_TOKENIZED / 100);
        let (plain, odd) =
            (format!("{text}{}", " ".repeat(MAX_TOKENIZED)), format!("<p <>{text}{}", "\u{e9}".repeat(MAX_TOKENIZED)));
        assert_eq!(html_view(&plain).problem, None);
        assert_eq!(html_view(&odd).problem, Some(TOO_MUCH_RARE_HTML));
        assert_eq!(html_view(&odd).lines.len(), html_view(&plain).lines.len() + 1);
    }

    #[test]
    fn a_style_sheet_has_a_limit() {
        let sheet = |names: usize, last: &str| {
            let rules: String = (1..names).map(|n| format!(".c{n}{{color:#fff}} ")).collect();
            html_view(&format!(
                "<style>{rules}{last}{{display:none}}</style><p class=c7>hidden</p><p class=late>late</p>"
            ))
        };
        let shown = |view: &View| view.lines.iter().map(|line| line.cells.join(" ")).collect::<Vec<_>>();
        let full = sheet(MAX_RULES, ".c7");
        assert!(full.problem.is_none() && shown(&full) == ["late"], "{full:?}");
        // A name that has a rule already can get another one.
        let full = sheet(MAX_RULES + 1, ".c7");
        assert!(full.problem.is_none() && shown(&full) == ["late"], "{full:?}");
        assert_eq!(sheet(MAX_RULES + 1, ".late").problem, Some(TOO_MANY_RULES));
    }

    #[test]
    fn blocks_break_lines_and_inline_elements_do_not() {
        assert_eq!(lines("<p>A<b>mou</b>nt: <span>$<wbr>20</span><br>x</p>y"), ["Amount: $20", "x", "y"]);
        assert_eq!(lines("<table><tr><td>a<td>b</tr><tr><th>c</th><td><p>d</p></td></tr></table>"), ["a | b", "c | d"]);
        assert_eq!(lines("<dl><dt>Token<dd>DAI<dt>x</dl>"), ["Token", "DAI", "x"]);
    }

    #[test]
    fn overlapping_tags_are_closed_like_in_browsers() {
        let html = "<p><li>Hash: <a href=>0xab</li></a><li>Token: DAI</li></p>";
        assert_eq!(lines(html), ["Hash: 0xab", "Token: DAI"]);
    }

    #[test]
    fn hidden_text_is_left_out() {
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
    fn altered_text_is_marked() {
        for html in ["<s>$50</s>", "$20<sup>50</sup>", "<bdo dir=rtl>02</bdo>", "<svg><text>x</text></svg>"] {
            assert!(lines(html)[0].contains(ODD_MARK), "{html}");
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
    fn a_bold_beginning_is_the_lead() {
        let lead = |html: &str| html_view(html).lines[0].lead.clone();
        assert_eq!(lead("<li><strong>Amount</strong> $20</li>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p><span><b>Amount</b></span><span>$20</span></p>").as_deref(), Some("Amount"));
        assert_eq!(lead("<p>Amount <b>$20</b></p>"), None);
    }

    #[test]
    fn style_sheets_apply_wherever_they_are() {
        for html in [
            "<p class=h>no</p><style>.h{display:none}</style>",
            "<p class=h>no</p><style>.h{display:none}",
            "<style>.a{}</style><p class=h>no</p><STYLE>.h{display:none}</STYLE >",
            "<p class=h>no</p><style></stylex>.h{display:none}",
        ] {
            assert_eq!(lines(html), Vec::<String>::new(), "{html}");
        }
        for end in ["", " ", "><!-- </style> --", "><p title='</style>'"] {
            let far = format!("<p class=h>no</p>{}<style>.h{{display:none}}</style{end}>", "\n".repeat(MAX_TOKENIZED));
            assert_eq!((lines(&far), html_view(&far).problem), (Vec::new(), None), "{end}");
        }
    }

    #[test]
    fn quotes_and_links_are_marked() {
        let view = html_view("<p>a</p><blockquote>b</blockquote><p><a href='https://x/y'>c</a></p>");
        let quoted: Vec<_> = view.lines.iter().map(|l| l.quoted).collect();
        assert_eq!(quoted, [false, true, false]);
        assert_eq!(view.lines[2].links, ["https://x/y"]);
    }

    #[test]
    fn white_space_between_tags_takes_linear_time() {
        for text in ["", "x"] {
            let html = format!("{text}{}{}", " \n".repeat(200_000), "<b></b>".repeat(60_000));
            assert_eq!(lines(&html), Vec::from_iter(Some(text).filter(|t| !t.is_empty())));
        }
    }

    #[test]
    fn deep_nesting_takes_linear_time() {
        let html = format!("{}x{}", "<div>".repeat(40_000), "</div>".repeat(40_000));
        assert_eq!(lines(&html), ["x"]);
    }
}
