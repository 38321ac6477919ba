//! Parses responses that imap-proto rejects although they have one clear meaning.
//!
//! Some servers write double spaces, a second pair of parentheses, or a line break after a literal. If a response in one of these
//! forms were an error, each new connection would end at the same response, and the mailbox would never be read. So this parser
//! has four outcomes: it parses the response, it waits for the rest of the response, it skips an untagged response that has no
//! clear meaning, or it returns an error. A FETCH response without a clear meaning is reduced to its UID. So the mail with this
//! UID counts as listed but not delivered, and the cursor rule of `sync` applies.

mod input;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use async_imap::imap_proto::{
    AttributeValue, Capability, MailboxDatum, MailboxListData, MessageSection, NameAttribute, Response, SectionPath,
};
use memchr::memchr_iter;

use self::input::{LenientInput, Value, parse_number};
use super::super::error::{Error, Result};
use super::framing;
use crate::catch_panic::catch_panic;

/// The FETCH items that may begin a line after a literal and a line break.
const ITEMS: [&[u8]; 6] = [b"UID ", b"FLAGS ", b"INTERNALDATE ", b"RFC822", b"BODY", b"MODSEQ "];
/// The length of the longest entry of `ITEMS`.
const LONGEST_ITEM: usize = 13;

/// Parses the next response. Returns the response and its length; `None` if the response is incomplete.
pub(super) fn parse_response(bytes: &[u8]) -> Result<Option<(Response<'static>, usize)>> {
    let Some(length) = framing::length(bytes, continues) else { return Ok(None) };
    let whole = bytes.get(..length).unwrap_or_default();
    let response = match split_fetch(whole) {
        Some((sequence_number, items)) => parse_fetch_items(sequence_number, LenientInput(items))
            .unwrap_or_else(|| without_content(sequence_number, items)),
        None => match parse_squeezed(whole).or_else(|| parse_list(whole)).or_else(|| parse_capabilities(whole)) {
            Some(response) => response,
            None if whole.starts_with(b"*") || whole.trim_ascii().is_empty() => empty_response(),
            None => return Err(Error::Protocol("sent a response that cannot be parsed".into())),
        },
    };
    Ok(Some((response, length)))
}

/// Returns a FLAGS response without flags in place of a skipped response, because FLAGS has no effect.
fn empty_response() -> Response<'static> {
    tracing::debug!("skipped an untagged response that cannot be parsed");
    Response::MailboxData(MailboxDatum::Flags(Vec::new()))
}

/// Reduces a FETCH response without a clear meaning to its UID, so that the mail counts as listed. Without one clear UID, the
/// result has no items.
fn without_content(sequence_number: u32, items: &[u8]) -> Response<'static> {
    tracing::debug!("a FETCH response cannot be parsed");
    // Text after a quote or a literal may come from the mail, so only the text before it is searched for a UID.
    let before = items.split(|byte| b"\"{\r".contains(byte)).next().unwrap_or_default();
    let mut words = before.split(|byte| b" ()".contains(byte)).filter(|word| !word.is_empty());
    let mut uids = Vec::new();
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case(b"UID") {
            uids.push(words.next().and_then(parse_number));
        }
    }
    match uids.as_slice() {
        [Some(uid)] => Response::Fetch(sequence_number, vec![AttributeValue::Uid(*uid)]),
        _ => Response::Fetch(sequence_number, Vec::new()),
    }
}

/// Whether a FETCH continues in this line. Domino writes a line break after a literal, and this line follows that line break.
/// `None` if too few bytes have arrived.
fn continues(line: &[u8]) -> Option<bool> {
    let line = line.trim_ascii_start();
    let is_item = |name: &&[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if line.starts_with(b")") || ITEMS.iter().any(is_item) {
        return Some(true);
    }
    (line.len() >= LONGEST_ITEM || line.contains(&b'\n')).then_some(false)
}

/// Parses a response of one line with imap-proto, after double spaces, and spaces inside parentheses, are removed.
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

/// The sequence number of a FETCH and the bytes after the word FETCH; `None` for another response.
fn split_fetch(whole: &[u8]) -> Option<(u32, &[u8])> {
    let mut input = LenientInput(whole);
    input.skip_word(b"*")?;
    input.skip_blanks();
    let sequence_number = parse_number(input.take_atom()?)?;
    input.skip_blanks();
    input.skip_word(b"FETCH")?;
    input.skip_blanks();
    Some((sequence_number, input.0))
}

/// Parses the items of a FETCH response, and ignores additional parentheses around them. `None` if an item cannot be parsed or
/// occurs twice, or if a closing parenthesis is missing.
fn parse_fetch_items(sequence_number: u32, mut input: LenientInput<'_>) -> Option<Response<'static>> {
    input.skip_word(b"(")?;
    let (mut open, mut attributes) = (1_i32, Vec::new());
    loop {
        input.skip_blanks();
        match input.0.first() {
            None => break,
            Some(b'(') => open += 1,
            Some(b')') => open -= 1,
            Some(_) => {
                attributes.extend(parse_item(&mut input)?);
                continue;
            }
        }
        input.take_bytes(1)?;
    }
    let mut kinds: Vec<_> = attributes.iter().map(item_kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    (open <= 0 && kinds.len() == attributes.len()).then_some(Response::Fetch(sequence_number, attributes))
}

/// A number for each kind of item, to find an item that occurs twice.
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
fn parse_item(input: &mut LenientInput<'_>) -> Option<Option<AttributeValue<'static>>> {
    let name = input.take_atom()?.to_ascii_uppercase();
    let section = input.take_section()?;
    input.skip_blanks();
    let value = input.take_value()?;
    Some(match (name.as_slice(), section) {
        (b"UID", None) => Some(AttributeValue::Uid(parse_number(&value.as_number_text()?)?)),
        // A size that needs more than four bytes, or `-1`, is an unknown size.
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

/// Parses a LIST response that imap-proto rejects: with a delimiter that is not escaped, a name that is not quoted, or extended
/// data after the name (RFC 5258).
fn parse_list(whole: &[u8]) -> Option<Response<'static>> {
    let mut input = LenientInput(whole.trim_ascii_end());
    input.skip_word(b"*")?;
    input.skip_blanks();
    input.skip_word(b"LIST")?;
    input.skip_blanks();
    let Value::Group(attributes) = input.take_value()? else { return None };
    input.skip_blanks();
    if input.skip_word(b"\"\\\" ").is_none() {
        input.take_value()?;
    }
    input.skip_blanks();
    let name = match input.0 {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'"') => inner.to_vec(),
        [b'"', ..] => {
            let name = input.take_value()?.into_bytes()?;
            input.skip_blanks();
            input.0.first().is_none_or(|byte| *byte == b'(').then_some(name)?
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

/// Parses a CAPABILITY response without `IMAP4rev1`, which imap-proto requires.
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
