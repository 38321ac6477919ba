//! Limits of the parser. A mail that exceeds a limit is refused with a reason, if possible before parsing.

use mail_parser::{Message, PartType};

use crate::model::{Reason, ReasonCode};

/// The most lines of a mail's header.
const MAX_HEADER_LINES: usize = 1_000;
/// The most MIME parts of a mail.
const MAX_PARTS: usize = 200;
/// The deepest nesting of a mail's MIME parts.
const MAX_DEPTH: usize = 20;
/// The most text in all parts of a mail together, in bytes. This sum includes attachments that are valid UTF-8.
const MAX_TEXT: usize = 4 << 20;

fn too_large(message: String) -> Reason {
    Reason::new(ReasonCode::TooLarge, message)
}

/// Checks the limits that can be checked before parsing. These limits bound the time of the MIME parser, which compares each
/// line with each open boundary.
pub(crate) fn check_bytes(mail: &[u8]) -> Result<(), Reason> {
    let rest = |at: usize| mail.get(at..).unwrap_or_default();
    let lines = || std::iter::once(0).chain(memchr::memchr_iter(b'\n', mail).map(|at| at + 1)).map(rest);
    let header = lines().skip(1).take_while(|line| !line.starts_with(b"\n") && !line.starts_with(b"\r"));
    if header.take(MAX_HEADER_LINES + 1).count() > MAX_HEADER_LINES {
        return Err(too_large(format!("its header has more than {MAX_HEADER_LINES} lines")));
    }
    let boundaries = memchr::memchr2_iter(b'b', b'B', mail).filter(|at| begins_with(rest(*at), b"boundary="));
    if boundaries.count() > 4 * MAX_DEPTH {
        return Err(too_large(format!("its parts are nested more than {MAX_DEPTH} deep")));
    }
    let (mut boundary_lines, mut type_fields) = (0, 0);
    for line in lines() {
        boundary_lines += usize::from(line.starts_with(b"--"));
        type_fields += usize::from(begins_with(line, b"content-type:"));
    }
    if boundary_lines > 4 * MAX_PARTS || type_fields > 2 * MAX_PARTS {
        return Err(too_large(format!("it has more than {MAX_PARTS} parts")));
    }
    Ok(())
}

/// Whether a text begins with a word, in upper or lower case.
#[inline]
pub(super) fn begins_with(text: &[u8], word: &[u8]) -> bool {
    // Most texts differ in the first byte.
    let has_first_byte = text.first().zip(word.first()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
    has_first_byte && text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// Checks the number, the nesting and the text of a parsed mail's parts.
pub(crate) fn check_message(message: &Message<'_>) -> Result<(), Reason> {
    if message.parts.len() > MAX_PARTS {
        return Err(too_large(format!("it has more than {MAX_PARTS} parts")));
    }
    let mut level = vec![0];
    for _ in 0..MAX_DEPTH {
        level = level.iter().flat_map(|id| children(message, *id)).copied().collect();
        if level.is_empty() {
            break;
        }
    }
    if !level.is_empty() {
        return Err(too_large(format!("its parts are nested more than {MAX_DEPTH} deep")));
    }
    let text: usize = message.parts.iter().filter_map(|part| part.text_contents()).map(str::len).sum();
    if text > MAX_TEXT {
        return Err(too_large(format!("its parts have more than {MAX_TEXT} bytes of text")));
    }
    Ok(())
}

fn children<'m>(message: &'m Message<'_>, id: u32) -> &'m [u32] {
    match message.parts.get(id as usize).map(|part| &part.body) {
        Some(PartType::Multipart(children)) => children,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check_structure, parse_message};

    fn refused(mail: &str) -> String {
        let checked = parse_message(mail.as_bytes()).and_then(|message| check_structure(&message));
        checked.err().map(|reason| reason.to_string()).unwrap_or_default()
    }

    fn nested(depth: usize) -> String {
        let mut mail = "From: a@b\r\n".to_owned();
        for n in 0..depth {
            mail += &format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n");
        }
        mail + "\r\nx"
    }

    #[test]
    fn mails_beyond_a_limit_are_refused() {
        let mail = format!("From: a@b\r\n{}\r\nx", "X-A: b\r\n".repeat(1_001));
        assert_eq!(refused(&mail), "too-large: its header has more than 1000 lines");
        let head = "From: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n";
        let mail = format!("{head}{}", "--b\r\n\r\nx\r\n".repeat(250));
        assert_eq!(refused(&mail), "too-large: it has more than 200 parts");
        let mail = format!("{head}{}", "--b\r\n\r\nx\r\n".repeat(1_000));
        assert_eq!(refused(&mail), "too-large: it has more than 200 parts");
        assert_eq!(refused(&nested(25)), "too-large: its parts are nested more than 20 deep");
        assert_eq!(refused(&nested(5_000)), "too-large: its parts are nested more than 20 deep");
        assert_eq!(refused(&nested(10)), "");
        let mail = format!("From: a@b\r\n\r\n{}", "text ".repeat(1 << 20));
        assert_eq!(refused(&mail), "too-large: its parts have more than 4194304 bytes of text");
    }
}
