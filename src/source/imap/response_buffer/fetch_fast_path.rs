//! A fast parser for the most frequent response: an untagged FETCH with the items that this program requests, in the form of
//! most servers. imap-proto parses all other forms. A property test compares both parsers.

use std::borrow::Cow;

use async_imap::imap_proto::{AttributeValue, MessageSection, Response, SectionPath};

/// Parses one complete FETCH response, and also returns the bytes after it. `None` if the response is incomplete, or has
/// another form than most servers send.
pub(super) fn parse_fetch(bytes: &[u8]) -> Option<(&[u8], Response<'_>)> {
    let mut input = FastInput(bytes);
    input.skip(b"* ")?;
    let sequence_number = input.take_number()?;
    input.skip(b" FETCH (")?;
    // The usual response has at most four items: UID, INTERNALDATE, RFC822.SIZE and a section.
    let mut attributes = Vec::with_capacity(4);
    loop {
        attributes.push(parse_attribute(&mut input)?);
        if input.skip(b" ").is_none() {
            input.skip(b")\r\n")?;
            return Some((input.0, Response::Fetch(sequence_number, attributes)));
        }
    }
}

fn parse_attribute<'a>(input: &mut FastInput<'a>) -> Option<AttributeValue<'a>> {
    if input.skip(b"UID ").is_some() {
        return input.take_number().map(AttributeValue::Uid);
    }
    if input.skip(b"BODY[").is_some() {
        return parse_section(input);
    }
    if input.skip(b"INTERNALDATE ").is_some() {
        return input.take_quoted().map(|date| AttributeValue::InternalDate(Cow::Borrowed(date)));
    }
    input.skip(b"RFC822.SIZE ")?;
    input.take_number().map(AttributeValue::Rfc822Size)
}

/// Parses a section, from the byte after its `[`.
fn parse_section<'a>(input: &mut FastInput<'a>) -> Option<AttributeValue<'a>> {
    let fields = input.skip(b"HEADER.FIELDS (FROM)").map(|()| SectionPath::Full(MessageSection::Header));
    input.skip(b"]")?;
    let index = match input.skip(b"<") {
        Some(()) => Some(input.take_number()?),
        None => None,
    };
    input.skip(if index.is_some() { b"> " } else { b" " })?;
    let data = input.take_literal()?;
    Some(AttributeValue::BodySection { section: fields, index, data: Some(Cow::Borrowed(data)) })
}

/// The bytes that are not parsed yet.
struct FastInput<'a>(&'a [u8]);

impl<'a> FastInput<'a> {
    /// Skips the bytes `expected`; `None` if other bytes follow.
    fn skip(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// Returns and skips the next `count` bytes; `None` if there are fewer.
    fn take_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Parses a number of decimal digits.
    fn take_number(&mut self) -> Option<u32> {
        let (mut number, mut length) = (0_u32, 0);
        while let Some(digit @ b'0'..=b'9') = self.0.get(length) {
            number = number.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
            length += 1;
        }
        (length > 0).then(|| self.take_bytes(length))??;
        Some(number)
    }

    /// Parses a quoted string of printable ASCII without escapes.
    fn take_quoted(&mut self) -> Option<&'a str> {
        self.skip(b"\"")?;
        let length = self.0.iter().position(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\'))?;
        let text = self.take_bytes(length)?;
        self.skip(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    /// Parses a literal, for example `{5}`, a line break and five bytes.
    fn take_literal(&mut self) -> Option<&'a [u8]> {
        self.skip(b"{")?;
        let length = self.take_number()?;
        self.skip(b"}\r\n")?;
        self.take_bytes(usize::try_from(length).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USUAL: &[u8] = b"* 3 FETCH (UID 9 RFC822.SIZE 5 INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" \
                           BODY[HEADER.FIELDS (FROM)]<0> {6}\r\nFrom: )\r\n* 4 FETCH (UID 10 BODY[] {0}\r\n)\r\n";

    #[test]
    fn the_usual_response_is_parsed() {
        let (rest, first) = parse_fetch(USUAL).unwrap();
        assert_eq!((rest, first), Response::parse(USUAL).unwrap());
        assert_eq!(parse_fetch(rest), Response::parse(rest).ok());
        assert!((0..USUAL.len() - rest.len()).all(|end| parse_fetch(&USUAL[..end]).is_none()), "it was not all there");
        for other in
            ["* 3 FETCH (UID 9 FLAGS ())\r\n", "* 3 FETCH ()\r\n", "* 4294967296 FETCH (UID 1)\r\n", "* 3 EXISTS\r\n"]
        {
            assert_eq!(parse_fetch(other.as_bytes()), None, "{other}");
        }
    }

    /// Generates valid and invalid parts of responses, in any order.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => prop::sample::select(vec![
                "* ", "7", "0", "00012", "4294967295", "4294967296", " FETCH (", " fetch (", "UID ", "UID 9", "BODY[", "BODY[]",
                "BODY[TEXT]", "HEADER.FIELDS (FROM)", "HEADER.FIELDS (FROM TO)", "]", "<0>", "<", "> ", "RFC822.SIZE 5",
                "INTERNALDATE \"17-Jul-1996 02:44:25 -0700\"", "INTERNALDATE ", "\"a\\\"b\"", "\"\"", "\"\u{e9}\"", " ", "  ", "{3}\r\nabc",
                "{5}\r\n", "{0}\r\n", " {6}\r\n) (UID", "FLAGS (\\Seen)", ")", ")\r\n", " )\r\n", ")\n", "\r\n",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..3),
        ];
        prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
    }

    /// Generates the response `USUAL` with one change.
    fn changed_usual() -> impl Strategy<Value = Vec<u8>> {
        (0..USUAL.len(), 0..4_usize, pieces()).prop_map(|(at, removed, inserted)| {
            [&USUAL[..at], &inserted, USUAL.get(at + removed..).unwrap_or_default()].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn both_parsers_agree(bytes in prop_oneof![
            changed_usual(),
            pieces(),
            (pieces(), pieces()).prop_map(|(a, b)| [b"* 1 FETCH (UID 2 ", &a[..], b")\r\n", &b].concat()),
        ]) {
            if let Some(parsed) = parse_fetch(&bytes) {
                prop_assert_eq!(Response::parse(&bytes).unwrap(), parsed);
            }
        }
    }
}
