//! Finds the text parts of a mail that a mail program shows, and renders each as a view.

use std::borrow::Cow;

use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders, PartType};

use super::text::Flowed;
use super::view::View;
use super::{Field, bounds, encoding, html, published, text};
use crate::model::{Reason, ReasonCode};

/// The visible content of a mail.
pub(super) struct Shown {
    pub(super) subject: Option<String>,
    pub(super) views: Vec<View>,
    /// How much of the published layout's list is in its HTML, visible or not.
    pub(super) list: published::List,
    /// The items of that list.
    pub(super) items: Vec<(Field, String)>,
}

fn malformed(words: &str) -> Reason {
    Reason::new(ReasonCode::Malformed, words)
}

/// Parses the structure of a mail. Pure; the size of the mail bounds time and memory.
pub(super) fn message(mail: &[u8]) -> Result<Message<'_>, Reason> {
    bounds::before(mail)?;
    let parser = MessageParser::default();
    let message = match encoding::plain(mail) {
        Cow::Borrowed(plain) => parser.parse(plain),
        Cow::Owned(plain) => parser.parse(&plain).map(Message::into_owned),
    };
    message.ok_or_else(|| malformed("there is no mail in it"))
}

#[cfg(test)]
pub(super) fn shown(mail: &[u8]) -> Result<Shown, Reason> {
    message(mail).and_then(|message| shown_of(&message))
}

/// The visible content of a parsed mail.
pub(super) fn shown_of(message: &Message<'_>) -> Result<Shown, Reason> {
    // The parser accepts any bytes. A mail has at least one of these fields (RFC 5322, 3.6).
    if !["From", "Date", "Subject", "To", "Message-ID"].iter().any(|name| message.header_raw(*name).is_some()) {
        return Err(malformed("it has no header of a mail"));
    }
    bounds::after(message)?;
    // Programs disagree about which of two fields counts (RFC 2045, 3).
    for name in ["Content-Type", "Content-Transfer-Encoding"] {
        let times = |part: &MessagePart<'_>| part.headers.iter().filter(|h| h.name() == name).count();
        if message.parts.iter().any(|part| times(part) > 1) {
            return Err(malformed("it says twice what kind of text it is"));
        }
    }
    let root = message.parts.first();
    let announced =
        root.and_then(MimeHeaders::content_type).is_some_and(|t| t.ctype().eq_ignore_ascii_case("multipart"));
    if announced && !root.is_some_and(|part| matches!(part.body, PartType::Multipart(_))) {
        return Err(malformed("it announces parts, and they cannot be told apart"));
    }
    // Programs disagree about which of two Subjects they show.
    let subjects = message.headers_raw().filter(|(name, _)| name.trim().eq_ignore_ascii_case("subject")).count();
    let subject = message.subject().filter(|_| subjects == 1).map(super::view::tidy);
    let html = || {
        message.parts.iter().filter_map(|part| if let PartType::Html(html) = &part.body { Some(html) } else { None })
    };
    let items: Vec<_> = html().flat_map(|html| published::items(html)).collect();
    let list = html().map(|html| published::list(html)).max().unwrap_or_default();
    Ok(Shown { subject, views: views(message), list, items })
}

fn views(message: &Message<'_>) -> Vec<View> {
    let mut views = Vec::new();
    for part in &message.parts {
        // An attachment is not the mail's own text.
        let attached =
            part.content_disposition().is_some_and(|d| d.is_attachment() || d.attribute("filename").is_some());
        if attached || part.content_type().is_some_and(|t| t.attribute("name").is_some()) {
            continue;
        }
        let view = match &part.body {
            PartType::Text(content) if is_plain(part) => text::view(without_mark(content), flowed(part)),
            PartType::Html(content) => html::view(without_mark(content)),
            // A mail inside the mail has another author.
            _ => continue,
        };
        let lost = view.lost.or(is_utf_7(part).then_some(UTF_7));
        views.push(View { lost, ..view });
    }
    views
}

/// A text without the byte order mark that it may begin with.
fn without_mark(text: &str) -> &str {
    text.trim_start_matches(encoding::BOM)
}

const UTF_7: (ReasonCode, &str) = (ReasonCode::Unreadable, "it is written in UTF-7, which is not read without a doubt");

/// Whether a part is in UTF-7. The parser drops the character that ends an encoded run unless it is a hyphen; it could
/// be the point of an amount.
fn is_utf_7(part: &MessagePart<'_>) -> bool {
    let charset = part.content_type().and_then(|kind| kind.attribute("charset")).unwrap_or_default();
    ["utf-7", "utf_7", "csutf7"].iter().any(|name| charset.eq_ignore_ascii_case(name))
}

/// Whether mail programs show this text as it is. They show other types (`text/x-amp-html`, `text/calendar`)
/// differently or not at all.
fn is_plain(part: &mail_parser::MessagePart<'_>) -> bool {
    part.content_type().and_then(|t| t.subtype()).is_none_or(|subtype| subtype.eq_ignore_ascii_case("plain"))
}

fn flowed(part: &mail_parser::MessagePart<'_>) -> Option<Flowed> {
    let kind = part.content_type()?;
    let is = |name: &str, value: &str| kind.attribute(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    is("format", "flowed").then(|| Flowed { delete_space: is("delsp", "yes") })
}
