//! From the MIME tree to what a person sees: the text parts that a mail program shows, each as a view.

use mail_parser::{Message, MessageParser, MimeHeaders, PartType};

use super::text::Flowed;
use super::view::View;
use super::{html, text};
use crate::model::{Reason, ReasonCode};

/// The most parts and header lines that a mail may have, and the longest text of one part, in bytes.
const PARTS: usize = 200;
const HEADERS: usize = 1_000;
const TEXT: usize = 4 << 20;

/// What is shown of a mail.
pub(super) struct Shown {
    pub(super) subject: Option<String>,
    pub(super) views: Vec<View>,
}

/// Takes a mail apart; pure, bounded in time and memory by its size.
pub(super) fn shown(mail: &[u8]) -> Result<Shown, Reason> {
    bounds(mail)?;
    let malformed = |words: &str| Reason::new(ReasonCode::Malformed, words);
    let message = MessageParser::default().parse(mail).ok_or_else(|| malformed("there is no mail in it"))?;
    // Any bytes parse as a mail; one that has none of these is none (RFC 5322, 3.6).
    if !["From", "Date", "Subject", "To", "Message-ID"].iter().any(|name| message.header_raw(*name).is_some()) {
        return Err(malformed("it has no header of a mail"));
    }
    if message.parts.len() > PARTS {
        return Err(Reason::new(ReasonCode::TooLarge, format!("it has more than {PARTS} parts")));
    }
    let root = message.parts.first();
    let announced =
        root.and_then(MimeHeaders::content_type).is_some_and(|t| t.ctype().eq_ignore_ascii_case("multipart"));
    if announced && !root.is_some_and(|part| matches!(part.body, PartType::Multipart(_))) {
        return Err(malformed("it announces parts, and they cannot be told apart"));
    }
    let views = views(&message)?;
    Ok(Shown { subject: message.subject().map(super::view::tidy), views })
}

/// Refuses, before anything is parsed, what costs more than it can be worth.
fn bounds(mail: &[u8]) -> Result<(), Reason> {
    let too_large = |words: String| Err(Reason::new(ReasonCode::TooLarge, words));
    let end = mail.windows(2).position(|w| w == b"\n\n" || w == b"\n\r").unwrap_or(mail.len());
    let lines = mail.get(..end).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
    if lines > HEADERS {
        return too_large(format!("its header has more than {HEADERS} lines"));
    }
    let boundaries = mail.windows(3).filter(|w| *w == b"\n--").count();
    if boundaries > 4 * PARTS {
        return too_large(format!("it has more than {PARTS} parts"));
    }
    Ok(())
}

fn views(message: &Message<'_>) -> Result<Vec<View>, Reason> {
    let mut views = Vec::new();
    for part in &message.parts {
        // What is attached is not what the mail says.
        let attached =
            part.content_disposition().is_some_and(|d| d.is_attachment() || d.attribute("filename").is_some());
        if attached || part.content_type().is_some_and(|t| t.attribute("name").is_some()) {
            continue;
        }
        match &part.body {
            PartType::Text(content) => {
                bound(content)?;
                views.push(text::view(content, flowed(part)));
            }
            PartType::Html(content) => {
                bound(content)?;
                views.push(html::view(content));
            }
            // A mail inside the mail is somebody else's.
            _ => {}
        }
    }
    Ok(views)
}

fn bound(content: &str) -> Result<(), Reason> {
    if content.len() > TEXT {
        return Err(Reason::new(ReasonCode::TooLarge, format!("a part has more than {TEXT} bytes of text")));
    }
    Ok(())
}

fn flowed(part: &mail_parser::MessagePart<'_>) -> Option<Flowed> {
    let kind = part.content_type()?;
    let is = |name: &str, value: &str| kind.attribute(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    is("format", "flowed").then(|| Flowed { delete_space: is("delsp", "yes") })
}
