//! Repairs bytes that the MIME parser does not accept: byte order marks, and comments in `Content-Transfer-Encoding`
//! (RFC 2045, 6.1).

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;

use super::limits::begins_with;

/// The UTF-8 byte order mark that some editors write at the start of a file.
pub(crate) const BOM: &str = "\u{feff}";

const FIELD: &[u8] = b"content-transfer-encoding:";

/// The encodings of RFC 2045. A comment in `Content-Transfer-Encoding` is overwritten with spaces only if the rest of the field
/// is one of these encodings.
const ENCODINGS: [&str; 5] = ["7bit", "8bit", "binary", "quoted-printable", "base64"];

/// Removes a byte order mark at the start of the mail. Overwrites byte order marks at the start of a body, and comments in
/// `Content-Transfer-Encoding`, with spaces. The mail is copied only if something is overwritten.
pub(crate) fn prepare_bytes(mail: &[u8]) -> Cow<'_, [u8]> {
    let mail = mail.strip_prefix(BOM.as_bytes()).unwrap_or(mail);
    let mut prepared = Cow::Borrowed(mail);
    for mark in memmem::find_iter(mail, BOM).filter(|at| begins_body(mail, *at)) {
        blank(&mut prepared, mark..mark + BOM.len());
    }
    let is_field = |start: &usize| mail.get(*start..).is_some_and(|text| begins_with(text, FIELD));
    for start in memchr::memchr_iter(b'\n', mail).map(|at| at + 1).chain([0]).filter(is_field) {
        for comment in encoding_comments(mail, start) {
            blank(&mut prepared, comment);
        }
    }
    prepared
}

/// Overwrites bytes with spaces, except for line ends.
fn blank(prepared: &mut Cow<'_, [u8]>, range: Range<usize>) {
    let bytes = prepared.to_mut().get_mut(range).unwrap_or_default();
    for byte in bytes.iter_mut().filter(|b| !matches!(b, b'\r' | b'\n')) {
        *byte = b' ';
    }
}

/// Whether an empty line precedes position `at`, so that a body may begin there.
fn begins_body(mail: &[u8], at: usize) -> bool {
    mail.get(..at).is_some_and(|before| before.ends_with(b"\n\n") || before.ends_with(b"\n\r\n"))
}

/// The positions of the comments in the [`FIELD`] that begins at `start`. The result is empty if a comment does not end, or if
/// the encoding is not one of the [`ENCODINGS`].
fn encoding_comments(mail: &[u8], start: usize) -> Vec<Range<usize>> {
    let field = mail.get(start..).unwrap_or_default();
    let (mut comments, mut depth, mut comment_start, mut escaped) = (Vec::new(), 0_usize, 0, false);
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
                comment_start = if depth == 0 { at } else { comment_start };
                depth += 1;
            }
            b')' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    comments.push(start + comment_start..start + at + 1);
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
        for (field, expected) in [
            ("Content-Transfer-Encoding: base64 (x)\r\n", "base64"),
            ("CONTENT-TRANSFER-ENCODING:(a (b) \\) c)Quoted-Printable\n", "Quoted-Printable"),
            ("Content-Transfer-Encoding:\r\n 8bit\r\n\t(x)\r\n", "8bit"),
        ] {
            let mail = format!("A: (b)\n{field}C: (d)\n\nContent: (e)");
            let text = String::from_utf8(prepare_bytes(mail.as_bytes()).into_owned()).unwrap();
            assert_eq!(text.len(), mail.len());
            assert!(text.contains("A: (b)\n") && text.ends_with("\nC: (d)\n\nContent: (e)"), "{text}");
            assert_eq!(text.lines().filter(|line| line.contains('(')).count(), 3, "{text}");
            assert!(text.contains(expected), "{text}");
        }
        for mail in [
            "Content-Transfer-Encoding: base64\n\n(x)",
            "Content-Transfer-Encoding: x-uuencode (x)\n",
            "Content-Transfer-Encoding: base64 (x\n\n)",
            "Content-Transfer-Encoding: (base64)\n",
            "X-Content-Transfer-Encoding: base64 (x)\n",
        ] {
            assert!(matches!(prepare_bytes(mail.as_bytes()), Cow::Borrowed(_)), "{mail}");
        }
    }

    #[test]
    fn byte_order_marks_are_removed() {
        let text = |mail: &str| String::from_utf8(prepare_bytes(mail.as_bytes()).into_owned()).unwrap();
        assert_eq!(text("\u{feff}A: b\r\n\r\n\u{feff}c"), "A: b\r\n\r\n   c");
        assert_eq!(text("A: b\n\n\u{feff}c"), "A: b\n\n   c");
        assert_eq!(text("A: b\n\nc\u{feff}\n\u{feff}d"), "A: b\n\nc\u{feff}\n\u{feff}d");
    }
}
