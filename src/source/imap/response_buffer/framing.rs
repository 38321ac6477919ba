//! Limits for lines, literals and parentheses, checked while the bytes arrive.
//!
//! The parser parses an incomplete response again after each read, and holds a literal in memory before it is complete. Without
//! limits, one line of a hostile server could need half a gigabyte of memory, or keep a CPU busy for minutes. The parser is also
//! recursive: a few thousand nested parentheses overflow the stack, which ends the program.

use memchr::{memchr, memchr_iter, memrchr};

/// The longest response in bytes, without its literals. The parser needs more than fifty bytes of memory for each of these bytes.
/// The responses to this program's commands are much shorter.
const LINE: usize = 64 * 1024;

/// The most opening parentheses in one response. The responses to this program's commands have at most three.
pub(super) const BRACKETS: usize = 100;

/// How many bytes at the start of a response show its kind: the tag or `*`, and the next word. The tags of this program are
/// shorter.
const HEAD: usize = 64;

/// The counters for the current response, after the bytes received so far.
#[derive(Debug, Default)]
pub(in crate::source::imap) struct Framing {
    /// How many bytes of the current literal are still missing.
    literal: usize,
    /// The length of the current response so far, in bytes, without literals.
    line: usize,
    /// The number of opening parentheses in the current response so far.
    brackets: usize,
    /// The first bytes of the current response, at most [`HEAD`].
    head: Vec<u8>,
    /// How much of a literal's announcement (`{123}` and a line break) the received bytes end with.
    ending: Ending,
}

/// The state of a literal's announcement (`{123}` and a line break), if the received bytes end inside such an announcement.
#[derive(Debug, Clone, Copy, Default)]
enum Ending {
    #[default]
    Other,
    Open(usize),
    Closed(usize),
    Return(usize),
}

/// The length of the first response, including its literals; `None` if this response is incomplete.
///
/// Some servers write a line break after a literal. `continues` decides whether the response continues in the next line; it
/// returns `None` if too few bytes have arrived. The bytes of a literal are skipped, not scanned.
pub(super) fn length(bytes: &[u8], continues: impl Fn(&[u8]) -> Option<bool>) -> Option<usize> {
    let (mut at, mut behind_literal) = (0, false);
    loop {
        let rest = bytes.get(at..)?;
        let end = memchr(b'\n', rest)? + 1;
        let (line, next) = rest.split_at_checked(end)?;
        let mut framing = Framing::default();
        if framing.announces(line) {
            at = at.checked_add(end)?.checked_add(framing.literal)?;
            behind_literal = true;
            continue;
        }
        at += end;
        if !(behind_literal && line.trim_ascii().is_empty() && continues(next)?) {
            return Some(at);
        }
        behind_literal = false;
    }
}

impl Framing {
    /// Counts received bytes. Returns false if the current response exceeds a limit. `most`: the most bytes of a literal.
    ///
    /// The limits of a line do not include the bytes inside a literal. After a text that only looks like the announcement of a
    /// literal (`* OK well {12}`), all bytes are checked, because the parser parses them as a response.
    pub(in crate::source::imap) fn allows(&mut self, mut bytes: &[u8], most: usize) -> bool {
        while !bytes.is_empty() {
            let skipped = self.literal.min(bytes.len());
            self.literal -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let end = memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at_checked(end.map_or(bytes.len(), |end| end + 1)).unwrap_or_default();
            bytes = rest;
            self.line += line.len() - usize::from(end.is_some());
            self.brackets += memchr_iter(b'(', line).count();
            self.head.extend(line.iter().take(HEAD - self.head.len()));
            if self.line > LINE || self.brackets > BRACKETS {
                return false;
            }
            let mut goes_on = self.announces(line);
            if self.literal > most {
                return false;
            }
            if goes_on && is_text(&self.head) {
                (goes_on, self.literal) = (false, 0);
            }
            if end.is_some() && !goes_on {
                (self.line, self.brackets) = (0, 0);
                self.head.clear();
            }
        }
        true
    }

    /// Updates `ending` from a line, or from a received part of a line. Returns true if the line announces a literal, whose
    /// length is then in `literal`.
    fn announces(&mut self, line: &[u8]) -> bool {
        let from = match (memrchr(b'{', line), self.ending) {
            (Some(from), _) => from,
            (None, Ending::Other) => return false,
            (None, _) => 0,
        };
        for &byte in line.get(from..).unwrap_or_default() {
            self.ending = match (self.ending, byte) {
                (_, b'{') => Ending::Open(0),
                (Ending::Open(n), b'0'..=b'9') => {
                    Ending::Open(n.saturating_mul(10).saturating_add(usize::from(byte - b'0')))
                }
                (Ending::Open(n), b'}') => Ending::Closed(n),
                (Ending::Closed(n), b'\r') => Ending::Return(n),
                (Ending::Return(n), b'\n') => {
                    (self.literal, self.ending) = (n, Ending::Other);
                    return true;
                }
                _ => Ending::Other,
            };
        }
        false
    }
}

/// Whether a response that begins like this is a continuation request (RFC 3501, 7.5) or a status response (7.1). Both end with
/// text for people, which contains no literals.
fn is_text(head: &[u8]) -> bool {
    const STATUS: [&[u8]; 5] = [b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"];
    let word = head.split(|byte| *byte == b' ').nth(1).map(<[u8]>::trim_ascii);
    head.starts_with(b"+")
        // No tag of this program has so many bytes, so no literal is expected.
        || word.is_none() && head.len() == HEAD
        || word.is_some_and(|word| STATUS.iter().any(|status| word.eq_ignore_ascii_case(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks all bytes in one call, and once more byte by byte. Both checks must have the same result, which is returned.
    fn allows(bytes: &[u8], most: usize) -> bool {
        let (mut whole, mut parts) = (Framing::default(), Framing::default());
        let together = whole.allows(bytes, most);
        assert_eq!(bytes.chunks(1).all(|byte| parts.allows(byte, most)), together);
        together
    }

    #[test]
    fn literals_have_a_limit() {
        assert!(allows(b"* 1 FETCH (BODY[] {5}\r\nhello UID 1)\r\n", 5));
        assert!(!allows(b"* 1 FETCH (BODY[] {6}\r\n", 5));
        assert!(!allows(b"* 1 FETCH (BODY[] {99999999999999999999999}\r\n", 5));
        assert!(allows(
            b"* 1 FETCH (BODY[] {000000000000000000000000000000000005}\r\nhello {1}\r\nx BODY[1] {5}\r\n",
            5
        ));
        assert!(!allows(b"* 1 FETCH (BODY[] {000000000000000000000000000000000006}\r\n", 5));
        assert!(!allows(b"* 1 FETCH (BODY[] {{5}{6}\r\n", 5));
        assert!(allows(b"* OK {6} is no literal\r\n* OK {6\r\n* OK }\r\n", 5));
    }

    #[test]
    fn literals_contain_no_announcements() {
        assert!(allows(b"* 1 FETCH (BODY[] {8}\r\n{999}\r\nx BODY[1] {1}\r\n \r\n)", 10));
        assert!(!allows(b"* 1 FETCH (BODY[] {7}\r\n{999}\r\n BODY[1] {999}\r\n", 10));
    }

    #[test]
    fn parentheses_are_limited_outside_literals() {
        let many = "(".repeat(BRACKETS);
        assert!(allows(format!("* 1 FETCH {many}\r\n* 2 FETCH {many}\r\n").as_bytes(), 5));
        assert!(!allows(format!("* 1 FETCH ({many}").as_bytes(), 5));
        assert!(!allows("({0}\r\n ".repeat(BRACKETS + 1).as_bytes(), 5));
        assert!(allows(format!("* 1 FETCH (BODY[] {{1000}}\r\n{})\r\n", "(".repeat(1_000)).as_bytes(), 1_000));
    }

    #[test]
    fn text_announces_no_literals() {
        let many = "(".repeat(BRACKETS + 1);
        let tag = "x".repeat(HEAD);
        for start in ["* OK x", "* ok", "A0001 NO [ALERT] x", "* BYE", "* PREAUTH (", "A1 BAD", "+", "+ idling", &tag] {
            let text = format!("{start} {{1000}}\r\n* 1 FETCH {many}");
            assert!(!allows(text.as_bytes(), 1_000), "{start}");
            assert!(allows(format!("{start} {{1000}}\r\n* 2 EXISTS\r\n").repeat(1_000).as_bytes(), 1_000), "{start}");
        }
        assert!(allows(format!("* LIST () \"/\" {{1000}}\r\n{many}").as_bytes(), 1_000));
        assert!(!allows(b"* OK {6}\r\n", 5), "the parser could wait for it");
    }

    #[test]
    fn lines_are_limited_without_their_literals() {
        let long = vec![b'x'; LINE + 1];
        assert!(!allows(&long, 5));
        assert!(allows(&[&b"{70000}\r\n"[..], &vec![b'x'; 70_000], b"\r\n"].concat(), 70_000));
        assert!(allows(&b"* OK still here\r\n".repeat(10_000), 5));
        assert!(!allows(&b"BODY[] {0}\r\n ".repeat(10_000), 5), "it is one answer");
    }
}
