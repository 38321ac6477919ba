//! Responses that imap-proto rejects although they have one clear meaning.
//!
//! Servers write double spaces, a second pair of parentheses, a line break after a literal. A connection that ends on
//! such a response ends on it every time, and the mailbox stays closed. So this parser has four outcomes: it parses the
//! response, it waits for the rest of it, it skips an untagged response that has no clear meaning, or it gives up.
//! A FETCH without a clear meaning keeps its UID. So its mail is listed without a body, and the cursor rule covers that.

use std::borrow::Cow;

use async_imap::imap_proto::{
    AttributeValue, Capability, MailboxDatum, MailboxListData, MessageSection, NameAttribute, Response, SectionPath,
};
use memchr::memchr_iter;

use super::super::error::{Error, Result};
use super::framing;
use crate::catch_panic::catch_panic;

/// The FETCH items that may begin a line after a literal and a line break.
const ITEMS: [&[u8]; 6] = [b"UID ", b"FLAGS ", b"INTERNALDATE ", b"RFC822", b"BODY", b"MODSEQ "];
/// The longest of them.
const LONGEST_ITEM: usize = 13;

/// The next response and its length; `None` if it is incomplete.
pub(super) fn parse_response(bytes: &[u8]) -> Result<Option<(Response<'static>, usize)>> {
    let Some(length) = framing::length(bytes, continues) else { return Ok(None) };
    let whole = bytes.get(..length).unwrap_or_default();
    let response = match split_fetch(whole) {
        Some((place, items)) => {
            parse_fetch_items(place, LenientInput(items)).unwrap_or_else(|| without_content(place, items))
        }
        None => match parse_squeezed(whole).or_else(|| parse_list(whole)).or_else(|| parse_capabilities(whole)) {
            Some(response) => response,
            None if whole.starts_with(b"*") || whole.trim_ascii().is_empty() => empty_response(),
            None => return Err(Error::Protocol("sent a response that cannot be parsed".into())),
        },
    };
    Ok(Some((response, length)))
}

/// A response without content: FLAGS without flags.
fn empty_response() -> Response<'static> {
    tracing::debug!("skipped an untagged response that cannot be parsed");
    Response::MailboxData(MailboxDatum::Flags(Vec::new()))
}

/// A FETCH without a clear meaning: it keeps its UID, so that the mail is listed. Without a clear UID it is empty.
fn without_content(place: u32, items: &[u8]) -> Response<'static> {
    tracing::debug!("a FETCH response cannot be parsed");
    // Text after a quote or a literal may come from the mail.
    let before = items.split(|byte| b"\"{\r".contains(byte)).next().unwrap_or_default();
    let mut words = before.split(|byte| b" ()".contains(byte)).filter(|word| !word.is_empty());
    let mut uids = Vec::new();
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case(b"UID") {
            uids.push(words.next().and_then(parse_number));
        }
    }
    match uids.as_slice() {
        [Some(uid)] => Response::Fetch(place, vec![AttributeValue::Uid(*uid)]),
        _ => Response::Fetch(place, Vec::new()),
    }
}

/// Whether a FETCH continues in this line, which follows a literal and a line break (Domino); `None` if too few bytes have
/// arrived.
fn continues(line: &[u8]) -> Option<bool> {
    let line = line.trim_ascii_start();
    let is_item = |name: &&[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if line.starts_with(b")") || ITEMS.iter().any(is_item) {
        return Some(true);
    }
    (line.len() >= LONGEST_ITEM || line.contains(&b'\n')).then_some(false)
}

/// A response of one line, parsed by imap-proto after double spaces are removed.
fn parse_squeezed(whole: &[u8]) -> Option<Response<'static>> {
    if memchr_iter(b'\n', whole).count() != 1 {
        return None;
    }
    let mut line: Vec<u8> = Vec::with_capacity(whole.len() + 1);
    let (mut quoted, mut escaped) = (false, false);
    for &byte in whole.trim_ascii() {
        let before = line.last().copied();
        if !quoted && byte == b' ' && matches!(before, Some(b' ' | b'(')) {
            continue;
        }
        if !quoted && byte == b')' && before == Some(b' ') {
            line.pop();
        }
        quoted ^= byte == b'"' && !escaped;
        escaped = quoted && byte == b'\\' && !escaped;
        line.push(byte);
    }
    line.extend(b"\r\n");
    catch_panic(|| match Response::parse(&line) {
        Ok(([], response)) => Some(response.into_owned()),
        _ => None,
    })?
}

/// The sequence number of a FETCH and the bytes after its name; `None` for another response.
fn split_fetch(whole: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = LenientInput(whole);
    rest.skip_word(b"*")?;
    rest.skip_blanks();
    let place = parse_number(rest.take_atom()?)?;
    rest.skip_blanks();
    rest.skip_word(b"FETCH")?;
    rest.skip_blanks();
    Some((place, rest.0))
}

/// The items of a FETCH. Parentheses around them have no meaning; an item that comes twice has two.
fn parse_fetch_items(place: u32, mut rest: LenientInput<'_>) -> Option<Response<'static>> {
    rest.skip_word(b"(")?;
    let (mut open, mut attributes) = (1_i32, Vec::new());
    loop {
        rest.skip_blanks();
        match rest.0.first() {
            None => break,
            Some(b'(') => open += 1,
            Some(b')') => open -= 1,
            Some(_) => {
                attributes.extend(parse_item(&mut rest)?);
                continue;
            }
        }
        rest.take_bytes(1)?;
    }
    let mut kinds: Vec<_> = attributes.iter().map(item_kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    (open <= 0 && kinds.len() == attributes.len()).then_some(Response::Fetch(place, attributes))
}

/// A number for each kind of item.
fn item_kind(attribute: &AttributeValue<'_>) -> u8 {
    match attribute {
        AttributeValue::Uid(_) => 0,
        AttributeValue::Rfc822Size(_) => 1,
        AttributeValue::InternalDate(_) => 2,
        AttributeValue::BodySection { section: None, .. } => 3,
        _ => 4,
    }
}

/// Parses an item and its value. `Some(None)`: an item that was not requested, or without a value.
#[allow(clippy::option_option)]
fn parse_item(rest: &mut LenientInput<'_>) -> Option<Option<AttributeValue<'static>>> {
    let name = rest.take_atom()?.to_ascii_uppercase();
    let section = rest.take_section()?;
    rest.skip_blanks();
    let value = rest.take_value()?;
    Some(match (name.as_slice(), section) {
        (b"UID", None) => Some(AttributeValue::Uid(parse_number(&value.as_number_text()?)?)),
        // More than four bytes can hold, or `-1`: unknown.
        (b"RFC822.SIZE", None) => {
            value.as_number_text().and_then(|size| parse_number(&size)).map(AttributeValue::Rfc822Size)
        }
        (b"INTERNALDATE", None) => value
            .into_bytes()
            .and_then(|date| String::from_utf8(date).ok())
            .map(|date| AttributeValue::InternalDate(Cow::Owned(date))),
        (b"BODY" | b"BODY.PEEK", Some(section)) => {
            let section = section.to_ascii_uppercase();
            let section = match section.as_slice() {
                b"" => None,
                fields if fields.starts_with(b"HEADER.FIELDS") => Some(SectionPath::Full(MessageSection::Header)),
                _ => return Some(None),
            };
            let data = match value {
                Value::Atom(atom) if !atom.eq_ignore_ascii_case(b"NIL") => return None,
                value => value.into_bytes().map(Cow::Owned),
            };
            Some(AttributeValue::BodySection { section, index: None, data })
        }
        _ => None,
    })
}

/// A LIST response: with a delimiter that is not escaped, a name that is not quoted, or extended data after the name (RFC
/// 5258).
fn parse_list(whole: &[u8]) -> Option<Response<'static>> {
    let mut rest = LenientInput(whole.trim_ascii_end());
    rest.skip_word(b"*")?;
    rest.skip_blanks();
    rest.skip_word(b"LIST")?;
    rest.skip_blanks();
    let Value::Group(attributes) = rest.take_value()? else { return None };
    rest.skip_blanks();
    if rest.skip_word(b"\"\\\" ").is_none() {
        rest.take_value()?;
    }
    rest.skip_blanks();
    let name = match rest.0 {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'"') => inner.to_vec(),
        [b'"', ..] => {
            let name = rest.take_value()?.into_bytes()?;
            rest.skip_blanks();
            rest.0.first().is_none_or(|byte| *byte == b'(').then_some(name)?
        }
        bare if bare.iter().any(|byte| matches!(byte, b'"' | b'(' | b'{' | b'\r' | b'\n')) => return None,
        bare => bare.to_vec(),
    };
    let name = String::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    let attributes = String::from_utf8(attributes.to_vec()).ok()?;
    let name_attributes =
        attributes.split_ascii_whitespace().map(|word| NameAttribute::Extension(Cow::Owned(word.to_owned()))).collect();
    let list = MailboxListData { name_attributes, delimiter: None, name: Cow::Owned(name) };
    Some(Response::MailboxData(MailboxDatum::List(list)))
}

/// A CAPABILITY response without `IMAP4rev1`, which imap-proto requires.
fn parse_capabilities(whole: &[u8]) -> Option<Response<'static>> {
    let words = std::str::from_utf8(whole).ok()?;
    let mut words = words.split_ascii_whitespace();
    let is_named = words.next() == Some("*") && words.next()?.eq_ignore_ascii_case("CAPABILITY");
    let capability = |word: &str| match word.split_at_checked(5) {
        Some((auth, mechanism)) if auth.eq_ignore_ascii_case("AUTH=") => {
            Capability::Auth(Cow::Owned(mechanism.to_owned()))
        }
        _ => Capability::Atom(Cow::Owned(word.to_owned())),
    };
    is_named.then(|| Response::Capabilities(words.map(capability).collect()))
}

fn parse_number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// The value of an item.
enum Value<'a> {
    Atom(&'a [u8]),
    /// A quoted string, without its escapes.
    Quoted(Vec<u8>),
    Literal(&'a [u8]),
    /// The text between parentheses.
    Group(&'a [u8]),
}

impl Value<'_> {
    /// The bytes of a string; `None` for NIL.
    fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Value::Quoted(bytes) => Some(bytes),
            Value::Literal(bytes) => Some(bytes.to_vec()),
            Value::Atom(_) | Value::Group(_) => None,
        }
    }

    /// The text of an atom or a quoted string.
    fn as_number_text(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Value::Quoted(bytes) => Some(Cow::Borrowed(bytes)),
            Value::Atom(bytes) => Some(Cow::Borrowed(bytes)),
            Value::Literal(_) | Value::Group(_) => None,
        }
    }
}

/// The part of a response that is not parsed yet.
struct LenientInput<'a>(&'a [u8]);

impl<'a> LenientInput<'a> {
    /// Skips this word, in any case.
    fn skip_word(&mut self, word: &[u8]) -> Option<()> {
        let start = self.0.get(..word.len())?;
        start.eq_ignore_ascii_case(word).then(|| self.take_bytes(word.len()))??;
        Some(())
    }

    fn take_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Skips spaces and line breaks.
    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }

    /// Returns and skips everything before the first of these bytes; `None` if none of them follows.
    fn take_until(&mut self, ends: &[u8]) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| ends.contains(byte))?;
        self.take_bytes(length)
    }

    fn take_atom(&mut self) -> Option<&'a [u8]> {
        self.take_until(b" ()[]\"{\r\n").filter(|atom| !atom.is_empty())
    }

    /// Parses `[section]<origin>`, if it is here; `None` if it is incomplete.
    #[allow(clippy::option_option)]
    fn take_section(&mut self) -> Option<Option<&'a [u8]>> {
        if self.skip_word(b"[").is_none() {
            return Some(None);
        }
        let section = self.take_until(b"]\r\n")?;
        self.skip_word(b"]")?;
        if self.skip_word(b"<").is_some() {
            self.take_until(b">\r\n")?;
            self.skip_word(b">")?;
        }
        Some(Some(section))
    }

    fn take_value(&mut self) -> Option<Value<'a>> {
        match self.0 {
            [b'"', ..] => self.take_quoted().map(Value::Quoted),
            [b'(', ..] => self.take_group().map(Value::Group),
            [b'{', ..] | [b'~', b'{', ..] => self.take_literal().map(Value::Literal),
            _ => self.take_atom().map(Value::Atom),
        }
    }

    fn take_quoted(&mut self) -> Option<Vec<u8>> {
        self.skip_word(b"\"")?;
        let mut text = Vec::new();
        loop {
            text.extend(self.take_until(b"\"\\\r\n")?);
            match self.take_bytes(1)? {
                b"\"" => return Some(text),
                b"\\" => text.extend(self.take_bytes(1)?),
                _ => return None,
            }
        }
    }

    /// A literal, or a literal8 (RFC 3516).
    fn take_literal(&mut self) -> Option<&'a [u8]> {
        let _ = self.skip_word(b"~");
        self.skip_word(b"{")?;
        let length = parse_number(self.take_until(b"}\r\n")?)?;
        self.skip_word(b"}\r\n")?;
        self.take_bytes(usize::try_from(length).ok()?)
    }

    /// Skips a pair of parentheses, which may contain others. Returns the text inside.
    fn take_group(&mut self) -> Option<&'a [u8]> {
        let whole = self.0;
        let mut open = 0_u32;
        loop {
            match self.0.first()? {
                b'"' => {
                    self.take_quoted()?;
                    continue;
                }
                b'{' => {
                    self.take_literal()?;
                    continue;
                }
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            self.take_bytes(1)?;
            if open == 0 {
                let length = whole.len() - self.0.len();
                return whole.get(1..length - 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_all(text: &str) -> Response<'static> {
        let rest = "A1 OK done\r\n";
        let bytes = format!("{text}{rest}");
        let (response, length) = parse_response(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len(), "{text}");
        response
    }

    fn parsed(text: &str) -> Response<'_> {
        Response::parse(text.as_bytes()).unwrap().1
    }

    const USUAL: &str =
        "* 3 FETCH (UID 9 RFC822.SIZE 5 INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" BODY[] {5}\r\nhello)\r\n";

    #[test]
    fn odd_fetch_responses_parse_like_usual_ones() {
        for odd in [
            USUAL.replace("BODY[]", "BODY[]<0.1048576>"),
            USUAL.replace("BODY[]", "BODY.PEEK[]<0>"),
            USUAL.replace("hello)", "hello\r\n)"),
            USUAL.replace("{5}", "~{5}"),
            USUAL.replace(' ', "  ").replace("17-Jul-1996  02:44:25  -0700", "17-Jul-1996 02:44:25 -0700"),
            USUAL.replace("(UID", "( UID").replace("hello)", "hello )"),
            USUAL.replace("hello)", "hello))"),
            USUAL.replace("BODY[] {5}\r\nhello", "(BODY[] {5}\r\nhello)"),
            USUAL.replace("UID 9 ", "").replace("hello)", "hello\r\n UID 9)"),
            USUAL.replace("UID 9 ", "").replace("hello)", "helloUID 9 FLAGS (\\Seen \"odd\\\"\" {1}\r\n)))"),
            USUAL.replace("BODY[] {5}\r\nhello", "BODY[] \"hello\""),
        ] {
            let Response::Fetch(3, mut items) = parse_all(&odd) else { panic!("{odd}") };
            items.sort_by_key(item_kind);
            let Response::Fetch(3, mut usual) = parsed(USUAL) else { panic!() };
            usual.sort_by_key(item_kind);
            assert_eq!(items, usual, "{odd}");
        }
        for (odd, without) in
            [("INTERNALDATE \"17-Jul-1996 02:44:25 -0700\"", "INTERNALDATE NIL"), ("RFC822.SIZE 5", "RFC822.SIZE -1")]
        {
            let Response::Fetch(3, items) = parse_all(&USUAL.replace(odd, without)) else { panic!("{odd}") };
            assert_eq!(items.len(), 3, "{without}");
        }
    }

    #[test]
    fn unclear_fetch_responses_keep_their_uid() {
        let listed = parsed("* 3 FETCH (UID 9)\r\n");
        for odd in [
            USUAL.replace("hello)", "hello BODY[] {5}\r\nother)"),
            USUAL.replace("hello)", "hello"),
            USUAL.replace("hello)", "hello UID 10)"),
            USUAL.replace("BODY[] {5}\r\nhello", "BODY[] hello"),
            USUAL.replace("BODY[] {5}\r\nhello", "BODY[ hello"),
        ] {
            assert_eq!(parse_all(&odd), listed, "{odd}");
        }
        let nameless = Response::Fetch(3, Vec::new());
        for odd in [
            USUAL.replace("UID 9", "UID 9 UID 10"),
            USUAL.replace("UID 9", "UID nine"),
            USUAL.replace("UID 9 ", "X \" UID 9 "),
            USUAL.replace("UID 9 ", "((((").replace("hello)", "hello UID 9)"),
        ] {
            assert_eq!(parse_all(&odd), nameless, "{odd}");
        }
    }

    #[test]
    fn odd_list_lines_give_a_name_or_nothing() {
        for (odd, name) in [
            (r#"* LIST (\Junk)  "/" Spam"#, "Spam"),
            (r#"* LIST (\Junk) "\" "Mail\Spam""#, r"Mail\Spam"),
            (r#"* LIST (\Junk) "\" Spam"#, "Spam"),
            (r#"* LIST (\Junk) "/" 50% off"#, "50% off"),
            (r#"* LIST (\Junk) "/" "Spam" ("OLDNAME" ("Junk"))"#, "Spam"),
            (r#"* LIST ( \Junk ) NIL  "Spam" "#, "Spam"),
        ] {
            let Response::MailboxData(MailboxDatum::List(list)) = parse_all(&format!("{odd}\r\n")) else {
                panic!("{odd}")
            };
            assert_eq!((&*list.name, list.name_attributes.len()), (name, 1), "{odd}");
        }
        for odd in [r#"* LIST () "/" "a "b" c""#, r#"* LIST () "/" a"b"#, r#"* LIST () "/""#, "* LIST", "* LIST (\\x"] {
            assert_eq!(parse_all(&format!("{odd}\r\n")), empty_response(), "{odd}");
        }
    }

    #[test]
    fn other_odd_lines_are_read_or_empty_response() {
        assert_eq!(parse_all("*  5  EXISTS \r\n"), parsed("* 5 EXISTS\r\n"));
        assert_eq!(parse_all("A7  OK  done\r\n"), parsed("A7 OK done\r\n"));
        let offered = [Capability::Atom("IMAP4rev2".into()), Capability::Auth("PLAIN".into())];
        assert_eq!(parse_all("* CAPABILITY IMAP4rev2 auth=PLAIN\r\n"), Response::Capabilities(offered.into()));
        for odd in ["* NOOP\r\n", "\r\n", "* \r\n", "*\r\n", "* 5 FOO (\r\n", "* CAPABILITY\u{e9}\r\n"] {
            assert_eq!(parse_all(odd), empty_response(), "{odd}");
        }
        for wrong in ["nonsense\r\n", "UID 5)\r\n", "\0\r\n"] {
            assert!(parse_response(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn incomplete_responses_are_not_parsed() {
        for odd in [USUAL.replace("hello)", "hello\r\n UID 9)"), USUAL.replace("BODY[]", "BODY[]<0.7>")] {
            for end in 0..odd.len() {
                assert_eq!(parse_response(&odd.as_bytes()[..end]).unwrap(), None, "{:?}", &odd[..end]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn both_parsers_agree(
            place in any::<u32>(), uid in 1..u32::MAX, size in any::<u32>(), body in "[ -~\r\n]{0,40}", more in 0..4_usize
        ) {
            let more = ["", " FLAGS (\\Seen)", " MODSEQ (5)", " X-GM-MSGID 7"][more];
            let text = format!("* {place} FETCH (UID {uid} RFC822.SIZE {size}{more} BODY[]<0> {{{}}}\r\n{body})\r\n", body.len());
            let Response::Fetch(_, usual) = parsed(&text) else { panic!() };
            let (place_read, rest) = split_fetch(text.as_bytes()).unwrap();
            let Response::Fetch(at, items) = parse_fetch_items(place_read, LenientInput(rest)).unwrap() else { panic!() };
            prop_assert_eq!(at, place);
            prop_assert_eq!(items.len(), 3);
            for item in items {
                let with_index = match item {
                    AttributeValue::BodySection { section, data, .. } =>
                        AttributeValue::BodySection { section, index: Some(0), data },
                    other => other,
                };
                prop_assert!(usual.contains(&with_index));
            }
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(prop_oneof![
            prop::sample::select(b"* 1FETCH(UIDBODY[]<>{}~\"\\\r\n)".to_vec()), any::<u8>()
        ], 0..80)) {
            for bytes in [bytes.clone(), [b"* 1 FETCH (UID 2 ", &bytes[..]].concat(), [b"* LIST (", &bytes[..]].concat()] {
                if let Ok(Some((_, length))) = parse_response(&bytes) {
                    prop_assert!(length > 0 && length <= bytes.len());
                }
            }
        }
    }
}
