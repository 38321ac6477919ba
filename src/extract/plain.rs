//! A fast parser for the HTML of most mails: texts, tags with attributes, comments, style sheets.
//!
//! It returns `None` at the first sign of rare or invalid HTML, and html5ever parses the whole text again. For plain
//! HTML it returns the same as html5ever at a fraction of the cost; a test compares the two.

use std::borrow::Cow;

use html5ever::data::NAMED_ENTITIES;
use memchr::{memchr, memchr_iter, memchr2, memmem};

/// Receives the texts and tags of HTML, in order.
pub(super) trait Reads<'a> {
    /// Text with entities decoded. A text may come in pieces; `None` if the receiver depends on the pieces.
    fn text(&mut self, text: &str) -> Option<()>;
    /// A start tag: its name in lower case, and its attributes without repetitions.
    fn start(&mut self, name: Cow<'a, str>, attributes: &[Attribute<'a>]);
    /// An end tag.
    fn end(&mut self, name: &str);
}

/// An attribute: its name in lower case, and its value with entities decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) value: Cow<'a, str>,
}

/// A tag with more attributes is not plain, because each is compared with the others.
const ATTRIBUTES: usize = 64;

/// Parses all of the text, or returns `None`. After `None` the receiver's state is useless.
pub(super) fn read<'a>(html: &'a str, to: &mut impl Reads<'a>) -> Option<()> {
    let text = html.as_bytes();
    let lone = |at: usize| text.get(at + 1) != Some(&b'\n');
    if html.starts_with('\u{feff}') || memchr(0, text).is_some() || memchr_iter(b'\r', text).any(lone) {
        return None;
    }
    Plain::new(html).all(to)
}

struct Plain<'a> {
    rest: &'a str,
    /// The attributes of the current tag, in a reused list.
    attributes: Vec<Attribute<'a>>,
}

impl<'a> Plain<'a> {
    fn new(html: &'a str) -> Self {
        Plain { rest: html, attributes: Vec::new() }
    }

    fn all(mut self, to: &mut impl Reads<'a>) -> Option<()> {
        loop {
            let text = self.take(memchr2(b'<', b'&', self.rest.as_bytes()).unwrap_or(self.rest.len()));
            if !text.is_empty() {
                to.text(text)?;
            }
            match self.rest.as_bytes() {
                [] => return Some(()),
                [b'&', ..] => {
                    let (c, more) = self.reference(false)?;
                    for c in [Some(c), more].into_iter().flatten() {
                        to.text(c.encode_utf8(&mut [0; 4]))?;
                    }
                }
                [_, b'!', ..] => self.comment()?,
                [_, b'/', ..] => {
                    self.take(2);
                    let name = self.name()?;
                    self.space();
                    self.pass(">")?;
                    to.end(&name);
                }
                _ => self.start(to)?,
            }
        }
    }

    /// Consumes this many bytes. Every position found is between two characters.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, test: impl Fn(&u8) -> bool) -> &'a str {
        self.take(self.rest.bytes().position(|b| !test(&b)).unwrap_or(self.rest.len()))
    }

    fn pass(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn space(&mut self) {
        self.take_while(is_space);
    }

    /// Parses the name of a tag or an attribute, of characters without another meaning.
    fn name(&mut self) -> Option<Cow<'a, str>> {
        let name = self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':' | b'.'));
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return None;
        }
        let upper = name.bytes().any(|b| b.is_ascii_uppercase());
        Some(if upper { name.to_ascii_lowercase().into() } else { name.into() })
    }

    /// `<!-- … -->`, `<!DOCTYPE …>`.
    fn comment(&mut self) -> Option<()> {
        if self.rest.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("<!doctype")) {
            self.take(memchr(b'>', self.rest.as_bytes())? + 1);
            return Some(());
        }
        self.pass("<!--")?;
        let comment = self.take(memmem::find(self.rest.as_bytes(), b"-->")?);
        // These sequences end a comment, too.
        let ended = comment.starts_with('>') || comment.starts_with("->") || comment.contains("--!>");
        if ended { None } else { self.pass("-->") }
    }

    fn start(&mut self, to: &mut impl Reads<'a>) -> Option<()> {
        self.take(1);
        let name = self.name()?;
        self.attributes.clear();
        loop {
            self.space();
            if self.pass(">").is_some() || self.pass("/>").is_some() {
                break;
            }
            let attribute = self.attribute()?;
            // The first of two equal attributes counts.
            if !self.attributes.iter().any(|known| known.name == attribute.name) {
                self.attributes.push(attribute);
            }
            if self.attributes.len() > ATTRIBUTES {
                return None;
            }
        }
        // Elements with raw text.
        let raw = match &*name {
            "style" => Some("style"),
            "title" => Some("title"),
            "script" | "textarea" | "xmp" | "iframe" | "noembed" | "noframes" => return None,
            _ => None,
        };
        to.start(name, &self.attributes);
        raw.map_or(Some(()), |name| self.raw(name, to))
    }

    /// The raw text of an element, with its end tag.
    fn raw(&mut self, name: &str, to: &mut impl Reads<'a>) -> Option<()> {
        let text = self.take(memchr(b'<', self.rest.as_bytes())?);
        if name == "title" && text.contains('&') {
            return None;
        }
        if !text.is_empty() {
            to.text(text)?;
        }
        self.pass("</")?;
        let ended = self.name()?;
        self.space();
        self.pass(">")?;
        to.end(&ended);
        (ended == name).then_some(())
    }

    fn attribute(&mut self) -> Option<Attribute<'a>> {
        let name = self.name()?;
        self.space();
        if self.pass("=").is_none() {
            let ended = self.rest.starts_with(|c: char| matches!(c, '>' | '/') || c.is_ascii_alphabetic());
            return ended.then_some(Attribute { name, value: "".into() });
        }
        self.space();
        let value = match self.rest.as_bytes() {
            [quote @ (b'"' | b'\''), ..] => {
                self.take(1);
                let value = self.take(memchr(*quote, self.rest.as_bytes())?);
                self.take(1);
                value
            }
            _ => self.take_while(|b| !is_space(b) && *b != b'>'),
        };
        if value.contains('\r') { None } else { Some(Attribute { name, value: without_references(value)? }) }
    }

    /// Decodes `&amp;`, `&#36;`, `&#x24;`, and an `&` that starts no entity.
    fn reference(&mut self, in_value: bool) -> Option<(char, Option<char>)> {
        self.take(1);
        if self.rest.starts_with('#') {
            self.take(1);
            let hex = self.rest.starts_with(['x', 'X']);
            self.take(usize::from(hex));
            let digits = self.take_while(u8::is_ascii_alphanumeric);
            self.pass(";")?;
            let number = u32::from_str_radix(digits, if hex { 16 } else { 10 }).ok()?;
            // Other numbers mean other characters, or none.
            let plain = matches!(number, 0x20..=0x7e | 0xa0..=0xd7ff | 0x1_0000..=0x1_fff0);
            return char::from_u32(number).filter(|_| plain).map(|c| (c, None));
        }
        let mut behind = Plain::new(self.rest);
        let name = behind.take_while(u8::is_ascii_alphanumeric);
        if name.is_empty() || (in_value && behind.rest.starts_with('=')) {
            return Some(('&', None));
        }
        behind.pass(";")?;
        let (first, second) = *NAMED_ENTITIES.get(self.take(name.len() + 1))?;
        // The map has an empty entry for the beginning of a name.
        let first = char::from_u32(first).filter(|c| *c != '\0')?;
        Some((first, char::from_u32(second).filter(|c| *c != '\0')))
    }
}

fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\x0c' | b'\r')
}

fn without_references(value: &str) -> Option<Cow<'_, str>> {
    let mut rest = Plain::new(value);
    let mut out = String::new();
    while let Some(at) = memchr(b'&', rest.rest.as_bytes()) {
        out.push_str(rest.take(at));
        let (c, more) = rest.reference(true)?;
        out.extend([Some(c), more].into_iter().flatten());
    }
    if rest.rest.len() == value.len() {
        return Some(value.into());
    }
    out.push_str(rest.rest);
    Some(out.into())
}
