//! The bytes of a mail as its parser takes them: without byte order marks, and without the comments that RFC 2045 (6.1)
//! allows in `Content-Transfer-Encoding` and the parser does not know.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;

/// The UTF-8 byte order mark that some editors write at the start of a file.
pub(super) const BOM: &str = "\u{feff}";

const FIELD: &[u8] = b"content-transfer-encoding:";

/// The encodings of RFC 2045. A comment is removed only where one of them is left.
const ENCODINGS: [&str; 5] = ["7bit", "8bit", "binary", "quoted-printable", "base64"];

/// The mail as the parser takes it. It is copied only if something in it has to go, and keeps its length then.
pub(super) fn plain(mail: &[u8]) -> Cow<'_, [u8]> {
    let mail = mail.strip_prefix(BOM.as_bytes()).unwrap_or(mail);
    let mut plain = Cow::Borrowed(mail);
    for mark in memmem::find_iter(mail, BOM).filter(|at| begins_body(mail, *at)) {
        blank(&mut plain, mark..mark + BOM.len());
    }
    for start in memchr::memchr_iter(b'\n', mail).map(|at| at + 1).chain([0]) {
        comments(mail, start).into_iter().for_each(|comment| blank(&mut plain, comment));
    }
    plain
}

fn blank(plain: &mut Cow<'_, [u8]>, range: Range<usize>) {
    let bytes = plain.to_mut().get_mut(range).unwrap_or_default();
    bytes.iter_mut().filter(|b| !matches!(b, b'\r' | b'\n')).for_each(|b| *b = b' ');
}

/// Whether an empty line stands before this place.
fn begins_body(mail: &[u8], at: usize) -> bool {
    mail.get(..at).is_some_and(|before| before.ends_with(b"\n\n") || before.ends_with(b"\n\r\n"))
}

/// Where the comments are in the field that begins here, if it is a `Content-Transfer-Encoding` with comments.
fn comments(mail: &[u8], start: usize) -> Vec<Range<usize>> {
    let is_field = |text: &&[u8]| text.get(..FIELD.len()).is_some_and(|name| name.eq_ignore_ascii_case(FIELD));
    let Some(field) = mail.get(start..).filter(is_field) else { return Vec::new() };
    let (mut comments, mut depth, mut from, mut escaped) = (Vec::new(), 0_usize, 0, false);
    let mut word = String::new();
    let mut bytes = field.iter().enumerate().skip(FIELD.len()).peekable();
    while let Some((at, byte)) = bytes.next() {
        // A line that begins with white space continues the field (RFC 5322, 2.2.3).
        if *byte == b'\n' && !bytes.peek().is_some_and(|(_, next)| matches!(next, b' ' | b'\t')) {
            break;
        }
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' if depth > 0 => escaped = true,
            b'(' => {
                from = if depth == 0 { at } else { from };
                depth += 1;
            }
            b')' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    comments.push(start + from..start + at + 1);
                }
            }
            byte if depth == 0 => word.push(char::from(*byte)),
            _ => {}
        }
    }
    let is_known = ENCODINGS.iter().any(|known| word.trim().eq_ignore_ascii_case(known));
    if depth == 0 && is_known { comments } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_in_the_encoding_are_blanked() {
        for (field, want) in [
            ("Content-Transfer-Encoding: base64 (x)\r\n", "base64"),
            ("CONTENT-TRANSFER-ENCODING:(a (b) \\) c)Quoted-Printable\n", "Quoted-Printable"),
            ("Content-Transfer-Encoding:\r\n 8bit\r\n\t(x)\r\n", "8bit"),
        ] {
            let mail = format!("A: (b)\n{field}C: (d)\n\nContent: (e)");
            let plain = plain(mail.as_bytes()).into_owned();
            let text = String::from_utf8(plain).unwrap();
            assert_eq!(text.len(), mail.len());
            assert!(text.contains("A: (b)\n") && text.ends_with("\nC: (d)\n\nContent: (e)"), "{text}");
            assert_eq!(text.lines().filter(|line| line.contains('(')).count(), 3, "{text}");
            assert!(text.contains(want), "{text}");
        }
        for mail in [
            "Content-Transfer-Encoding: base64\n\n(x)",
            "Content-Transfer-Encoding: x-uuencode (x)\n",
            "Content-Transfer-Encoding: base64 (x\n\n)",
            "Content-Transfer-Encoding: (base64)\n",
            "X-Content-Transfer-Encoding: base64 (x)\n",
        ] {
            assert!(matches!(plain(mail.as_bytes()), Cow::Borrowed(_)), "{mail}");
        }
    }

    #[test]
    fn byte_order_marks_are_removed() {
        let text = |mail: &str| String::from_utf8(plain(mail.as_bytes()).into_owned()).unwrap();
        assert_eq!(text("\u{feff}A: b\r\n\r\n\u{feff}c"), "A: b\r\n\r\n   c");
        assert_eq!(text("A: b\n\n\u{feff}c"), "A: b\n\n   c");
        assert_eq!(text("A: b\n\nc\u{feff}\n\u{feff}d"), "A: b\n\nc\u{feff}\n\u{feff}d");
    }
}
