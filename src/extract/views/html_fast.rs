//! A fast parser for the HTML of most mails: texts, tags with attributes, comments, style sheets.
//!
//! The parser returns `None` at the first sign of rare or invalid HTML. html5ever then parses the text again from its start. HTML
//! without any rare or invalid construct is called plain. For plain HTML, this parser gives the same result as html5ever in less
//! time. A test compares the results of the two parsers.

use std::borrow::Cow;

use html5ever::data::NAMED_ENTITIES;
use memchr::{memchr, memchr_iter, memchr2, memmem};

use super::css_visibility::lower;

/// Receives the texts and tags of HTML, in their order.
pub(crate) trait HtmlSink<'a> {
    /// Receives text with decoded entities. One text may arrive in several pieces. Returns `None` if the sink's result
    /// depends on how the text is split.
    fn on_text(&mut self, text: &str) -> Option<()>;
    /// Receives a start tag: its name in lower case, and its attributes without repetitions.
    fn on_start_tag(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]);
    /// Receives an end tag, by its name in lower case.
    fn on_end_tag(&mut self, name: &str);
}

/// An attribute: its name in lower case, and its value with entities decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) value: Cow<'a, str>,
}

/// The most attributes of a tag in plain HTML. Each attribute is compared with the others, which takes quadratic time.
const MAX_ATTRIBUTES: usize = 64;

/// Parses plain HTML into `sink`, or returns `None` for other HTML. After `None`, the contents of `sink` must not be used.
pub(crate) fn parse_fast<'a>(html: &'a str, sink: &mut impl HtmlSink<'a>) -> Option<()> {
    let text = html.as_bytes();
    let is_lone = |at: usize| text.get(at + 1) != Some(&b'\n');
    if html.starts_with('\u{feff}') || memchr(0, text).is_some() || memchr_iter(b'\r', text).any(is_lone) {
        return None;
    }
    FastParser::new(html).run(sink)
}

struct FastParser<'a> {
    rest: &'a str,
    /// The attributes of the current tag, in a reused list.
    attributes: Vec<Attribute<'a>>,
}

impl<'a> FastParser<'a> {
    fn new(html: &'a str) -> Self {
        FastParser { rest: html, attributes: Vec::new() }
    }

    fn run(mut self, sink: &mut impl HtmlSink<'a>) -> Option<()> {
        loop {
            let text = self.advance(memchr2(b'<', b'&', self.rest.as_bytes()).unwrap_or(self.rest.len()));
            if !text.is_empty() {
                sink.on_text(text)?;
            }
            match self.rest.as_bytes() {
                [] => return Some(()),
                [b'&', ..] => {
                    let (c, second) = self.parse_entity(false)?;
                    for c in [Some(c), second].into_iter().flatten() {
                        sink.on_text(c.encode_utf8(&mut [0; 4]))?;
                    }
                }
                [_, b'!', ..] => self.skip_comment()?,
                [_, b'/', ..] => {
                    self.advance(2);
                    let name = self.parse_name()?;
                    self.skip_space();
                    self.skip(">")?;
                    sink.on_end_tag(&name);
                }
                _ => self.parse_start_tag(sink)?,
            }
        }
    }

    /// Consumes this number of bytes. Callers pass positions between two characters only.
    #[inline]
    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    #[inline]
    fn advance_while(&mut self, test: impl Fn(&u8) -> bool) -> &'a str {
        self.advance(self.rest.bytes().position(|b| !test(&b)).unwrap_or(self.rest.len()))
    }

    #[inline]
    fn skip(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    #[inline]
    fn skip_space(&mut self) {
        self.advance_while(is_space);
    }

    /// Parses the name of a tag or an attribute, in lower case. `None` if it does not begin with an ASCII letter.
    fn parse_name(&mut self) -> Option<Cow<'a, str>> {
        let name = self.advance_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':' | b'.'));
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) { Some(lower(name)) } else { None }
    }

    /// Skips `<!-- … -->` and `<!DOCTYPE …>`.
    fn skip_comment(&mut self) -> Option<()> {
        if self.rest.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("<!doctype")) {
            self.advance(memchr(b'>', self.rest.as_bytes())? + 1);
            return Some(());
        }
        self.skip("<!--")?;
        let comment = self.advance(memmem::find(self.rest.as_bytes(), b"-->")?);
        // `<!-->`, `<!--->` and `--!>` also end a comment. HTML with such a comment is not plain.
        let ended = comment.starts_with('>') || comment.starts_with("->") || comment.contains("--!>");
        if ended { None } else { self.skip("-->") }
    }

    fn parse_start_tag(&mut self, sink: &mut impl HtmlSink<'a>) -> Option<()> {
        self.advance(1);
        let name = self.parse_name()?;
        self.attributes.clear();
        loop {
            self.skip_space();
            if self.skip(">").is_some() || self.skip("/>").is_some() {
                break;
            }
            let attribute = self.parse_attribute()?;
            // Of two attributes with the same name, HTML uses the first.
            if !self.attributes.iter().any(|known| known.name == attribute.name) {
                self.attributes.push(attribute);
            }
            if self.attributes.len() > MAX_ATTRIBUTES {
                return None;
            }
        }
        // The content of the elements below is raw text, without tags. This parser accepts only two of them: `style` and `title`.
        let raw = match &*name {
            "style" => Some("style"),
            "title" => Some("title"),
            "script" | "textarea" | "xmp" | "iframe" | "noembed" | "noframes" => return None,
            _ => None,
        };
        sink.on_start_tag(name, &self.attributes);
        raw.map_or(Some(()), |name| self.parse_raw_text(name, sink))
    }

    /// Parses the raw text of an element, with its end tag.
    fn parse_raw_text(&mut self, name: &str, sink: &mut impl HtmlSink<'a>) -> Option<()> {
        let text = self.advance(memchr(b'<', self.rest.as_bytes())?);
        if name == "title" && text.contains('&') {
            return None;
        }
        if !text.is_empty() {
            sink.on_text(text)?;
        }
        self.skip("</")?;
        let ended = self.parse_name()?;
        self.skip_space();
        self.skip(">")?;
        sink.on_end_tag(&ended);
        if ended == name { Some(()) } else { None }
    }

    fn parse_attribute(&mut self) -> Option<Attribute<'a>> {
        let name = self.parse_name()?;
        self.skip_space();
        if self.skip("=").is_none() {
            let ended = self.rest.starts_with(|c: char| matches!(c, '>' | '/') || c.is_ascii_alphabetic());
            return ended.then_some(Attribute { name, value: "".into() });
        }
        self.skip_space();
        let value = match self.rest.as_bytes() {
            [quote @ (b'"' | b'\''), ..] => {
                self.advance(1);
                let value = self.advance(memchr(*quote, self.rest.as_bytes())?);
                self.advance(1);
                value
            }
            _ => self.advance_while(|b| !is_space(b) && *b != b'>'),
        };
        Some(Attribute { name, value: decode_value(value)? })
    }

    /// Decodes `&amp;`, `&#36;`, `&#x24;`, and an `&` that starts no entity.
    fn parse_entity(&mut self, in_value: bool) -> Option<(char, Option<char>)> {
        self.advance(1);
        if self.rest.starts_with('#') {
            self.advance(1);
            let hex = self.rest.starts_with(['x', 'X']);
            self.advance(usize::from(hex));
            let digits = self.advance_while(u8::is_ascii_alphanumeric);
            self.skip(";")?;
            let number = u32::from_str_radix(digits, if hex { 16 } else { 10 }).ok()?;
            // HTML maps some numbers outside of the ranges below to other characters, or to no character.
            let is_plain = matches!(number, 0x20..=0x7e | 0xa0..=0xd7ff | 0x1_0000..=0x1_fff0);
            return if is_plain { char::from_u32(number).map(|c| (c, None)) } else { None };
        }
        let mut ahead = FastParser::new(self.rest);
        let name = ahead.advance_while(u8::is_ascii_alphanumeric);
        if name.is_empty() || (in_value && ahead.rest.starts_with('=')) {
            return Some(('&', None));
        }
        ahead.skip(";")?;
        let (first, second) = *NAMED_ENTITIES.get(self.advance(name.len() + 1))?;
        // `NAMED_ENTITIES` also contains the beginnings of names, with the value 0.
        let first = char::from_u32(first).filter(|c| *c != '\0')?;
        Some((first, char::from_u32(second).filter(|c| *c != '\0')))
    }
}

fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\x0c' | b'\r')
}

/// Decodes the entities in the value of an attribute. A value with a CR is not plain, because HTML changes CR LF to LF.
fn decode_value(value: &str) -> Option<Cow<'_, str>> {
    let next_special = |rest: &str| memchr2(b'&', b'\r', rest.as_bytes());
    if next_special(value).is_none() {
        return Some(value.into());
    }
    let mut parser = FastParser::new(value);
    let mut out = String::new();
    while let Some(at) = next_special(parser.rest) {
        out.push_str(parser.advance(at));
        if parser.rest.starts_with('\r') {
            return None;
        }
        let (c, second) = parser.parse_entity(true)?;
        out.extend([Some(c), second].into_iter().flatten());
    }
    out.push_str(parser.rest);
    Some(out.into())
}

#[cfg(test)]
mod tests {
    use super::super::html::{StyleCollector, style_sheets};
    use super::super::html_lines::HtmlLines;
    use super::super::html_tokenizer::tokenize;
    use super::super::style_sheet::StyleSheet;
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Call {
        Text(String),
        Start(String, Vec<(String, String)>),
        End(String),
    }

    /// A sink that stores the calls that it receives, with adjacent texts joined.
    #[derive(Debug, Default, PartialEq)]
    struct CallLog(Vec<Call>);

    impl<'a> HtmlSink<'a> for CallLog {
        fn on_text(&mut self, text: &str) -> Option<()> {
            let text = text.replace("\r\n", "\n");
            match self.0.last_mut() {
                Some(Call::Text(last)) => last.push_str(&text),
                _ => self.0.push(Call::Text(text)),
            }
            Some(())
        }

        fn on_start_tag(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]) {
            let attributes = attributes.iter().map(|a| (a.name.to_string(), a.value.to_string())).collect();
            self.0.push(Call::Start(name.into_owned(), attributes));
        }

        fn on_end_tag(&mut self, name: &str) {
            self.0.push(Call::End(name.to_owned()));
        }
    }

    /// Parses HTML with `parse_fast`. If `parse_fast` accepts it, asserts that html5ever finds the same texts and tags, and that
    /// both parsers give the same view.
    fn parse_both(html: &str) -> Option<CallLog> {
        let mut log = CallLog::default();
        parse_fast(html, &mut log)?;
        assert_eq!(log, tokenize(html, CallLog::default()), "{html:?}");
        let sheet = StyleSheet::default();
        let mut lines = HtmlLines::new(&sheet);
        if parse_fast(html, &mut lines).is_some() {
            assert_eq!(lines.finish(), tokenize(html, HtmlLines::new(&sheet)).finish(), "{html:?}");
        }
        Some(log)
    }

    #[test]
    fn the_fast_parser_accepts_common_html() {
        for html in [
            "<!DOCTYPE html>\r\n<html lang=en><head><title>A</title><style>p > a{}</style></head>",
            "<!--[if mso]><table><![endif]--><!--[if !mso]><!--><p>x</p><!--<![endif]-->",
            "<a href= target=\"_blank\">x</a><IMG SRC='y' alt/><br/><o:p></o:p><p a=b a=c d>",
            "&copy; 2025 &amp; &#36;20&nbsp;&#x1F4B8; & &NotEqualTilde;<a href='?a=b&amp;c&d=e&copy=f'>",
        ] {
            assert!(parse_both(html).is_some(), "{html}");
        }
    }

    #[test]
    fn the_fast_parser_refuses_rare_html() {
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
            assert_eq!(parse_both(html), None, "{html}");
        }
        let attributes: String = (0..70).map(|n| format!(" a{n}=b")).collect();
        assert_eq!(parse_both(&format!("<p{attributes}>")), None);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 2_000, failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn the_fast_parser_agrees_with_html5ever(html in "([a-z ]{1,3}|</?[a-zA-Z]{1,2}[ />\"'=a-b]{0,6}>?|<(title|style|s)>|</(title|style|s)>|<p [a-c]{1,2} ?= ?[\"']?[ a-b&;>\n]{0,4}[\"']?>|&(amp|lt|copy|not|notin|a)[;= ]?|&#x?[0-9]{1,4};|[&<>!\"'=/;-]|<!--|-->|<!doctype|\r?\n){0,12}") {
            parse_both(&html);
            assert_eq!(style_sheets(&html), tokenize(&html, StyleCollector::default()).sheets, "{html:?}");
        }
    }
}
