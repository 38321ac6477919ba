//! Parses the structure of a mail, and finds the text parts that a mail program shows.

use std::borrow::Cow;

use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders, PartType};

use super::{limits, prepare};
use crate::model::{Reason, ReasonCode};

/// A text part that a mail program shows, decoded.
pub(crate) struct TextPart<'m> {
    pub(crate) text: &'m str,
    pub(crate) format: TextFormat,
    /// The part is in UTF-7, which the parser does not decode reliably.
    pub(crate) is_utf_7: bool,
}

/// The format of a text part: text/plain or text/html.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFormat {
    Plain(Option<Flowed>),
    Html,
}

/// The parameters of `format=flowed` (RFC 3676). With `delsp=yes`, the space at the end of a line is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flowed {
    pub(crate) delete_space: bool,
}

fn malformed(message: &str) -> Reason {
    Reason::new(ReasonCode::Malformed, message)
}

/// Parses the structure of a mail. The function is pure, and the size of the mail bounds its time and memory.
pub(crate) fn parse_message(mail: &[u8]) -> Result<Message<'_>, Reason> {
    limits::check_bytes(mail)?;
    let parser = MessageParser::default();
    let message = match prepare::prepare_bytes(mail) {
        Cow::Borrowed(bytes) => parser.parse(bytes),
        Cow::Owned(bytes) => parser.parse(&bytes).map(Message::into_owned),
    };
    message.ok_or_else(|| malformed("it is empty"))
}

/// Checks that a parsed mail is within the limits, and that mail programs agree about its structure.
pub(crate) fn check_structure(message: &Message<'_>) -> Result<(), Reason> {
    // The parser accepts any bytes. A mail has at least one of the five fields below (RFC 5322, 3.6).
    if !["From", "Date", "Subject", "To", "Message-ID"].iter().any(|name| message.header_raw(*name).is_some()) {
        return Err(malformed("it has no From, Date, Subject, To or Message-ID"));
    }
    limits::check_message(message)?;
    // If a part has two fields with the same name, programs disagree about which one to use (RFC 2045, 3).
    for name in ["Content-Type", "Content-Transfer-Encoding"] {
        let count = |part: &MessagePart<'_>| part.headers.iter().filter(|h| h.name() == name).count();
        if message.parts.iter().any(|part| count(part) > 1) {
            return Err(malformed("a part has two Content-Type or two Content-Transfer-Encoding fields"));
        }
    }
    let root = message.parts.first();
    let is_announced =
        root.and_then(MimeHeaders::content_type).is_some_and(|t| t.ctype().eq_ignore_ascii_case("multipart"));
    if is_announced && !root.is_some_and(|part| matches!(part.body, PartType::Multipart(_))) {
        return Err(malformed("its Content-Type is multipart, but its parts cannot be separated"));
    }
    Ok(())
}

/// The Subject, if there is exactly one. Programs disagree about which of two Subjects they show.
pub(crate) fn only_subject<'m>(message: &'m Message<'_>) -> Option<&'m str> {
    let subjects = message.headers_raw().filter(|(name, _)| name.trim().eq_ignore_ascii_case("subject")).count();
    if subjects == 1 { message.subject() } else { None }
}

/// The HTML of all parts, shown or attached.
pub(crate) fn html_texts<'m>(message: &'m Message<'_>) -> impl Iterator<Item = &'m str> {
    message.parts.iter().filter_map(|part| if let PartType::Html(html) = &part.body { Some(&**html) } else { None })
}

/// The text parts that a mail program shows, in their order.
pub(crate) fn shown_parts<'m>(message: &'m Message<'_>) -> impl Iterator<Item = TextPart<'m>> {
    message.parts.iter().filter(|part| !is_attachment(part)).filter_map(|part| {
        let (text, format) = match &part.body {
            PartType::Text(text) if is_plain(part) => (text, TextFormat::Plain(flowed(part))),
            PartType::Html(text) => (text, TextFormat::Html),
            // A mail inside the mail has another author, so its text is not used.
            _ => return None,
        };
        Some(TextPart { text: text.trim_start_matches(prepare::BOM), format, is_utf_7: is_utf_7(part) })
    })
}

/// Whether a part is an attachment, which is not the mail's own text.
fn is_attachment(part: &MessagePart<'_>) -> bool {
    part.content_disposition().is_some_and(|d| d.is_attachment() || d.attribute("filename").is_some())
        || part.content_type().is_some_and(|t| t.attribute("name").is_some())
}

/// Whether a part is in UTF-7. The parser drops the character that ends an encoded run, unless this character is a
/// hyphen. The dropped character could be the decimal point of an amount.
fn is_utf_7(part: &MessagePart<'_>) -> bool {
    let charset = part.content_type().and_then(|kind| kind.attribute("charset")).unwrap_or_default();
    ["utf-7", "utf_7", "csutf7"].iter().any(|name| charset.eq_ignore_ascii_case(name))
}

/// Whether a text part is text/plain, which mail programs show unchanged. Mail programs show other types (`text/x-amp-html`,
/// `text/calendar`) differently or not at all.
fn is_plain(part: &MessagePart<'_>) -> bool {
    part.content_type().and_then(|t| t.subtype()).is_none_or(|subtype| subtype.eq_ignore_ascii_case("plain"))
}

fn flowed(part: &MessagePart<'_>) -> Option<Flowed> {
    let kind = part.content_type()?;
    let has = |name: &str, value: &str| kind.attribute(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    if has("format", "flowed") { Some(Flowed { delete_space: has("delsp", "yes") }) } else { None }
}
