//! What a line and a literal may measure, found out while the bytes come in.
//!
//! The parser looks through an unfinished answer again at each read, and a literal is in memory before it is whole: one
//! line of a hostile server could take half a gigabyte, or a processor for minutes. And the parser calls itself for each
//! bracket that is opened in another: some thousand of them, and there is no stack left, which ends the program.

use memchr::{memchr, memchr_iter, memrchr};

/// The longest line, with those that literals join to it: the parser makes fifty bytes and more of one. Nothing that is asked
/// for comes near it outside of a literal.
const LINE: usize = 64 * 1024;

/// How many brackets one answer may open. What is asked for takes three.
pub(super) const BRACKETS: usize = 100;

/// Where in the server's answers the bytes are.
#[derive(Debug, Default)]
pub(in crate::source::imap) struct Framing {
    /// How much of a literal is still to come.
    literal: usize,
    /// How long the line is so far, literals aside.
    line: usize,
    /// How many brackets were opened in the answer so far.
    brackets: usize,
    /// What the end of the line may announce.
    ending: Ending,
}

/// The end of a line, as far as it looks like `{123}` and a line break.
#[derive(Debug, Clone, Copy, Default)]
enum Ending {
    #[default]
    Other,
    Open(usize),
    Closed(usize),
    Return(usize),
}

/// How long the first response of these bytes is, its literals included; `None` if it is not here to its end.
///
/// `continues`: whether the response goes on in the line behind a literal and a line break; `None` if that cannot be told
/// yet. Takes one look at each line, whatever a literal holds.
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
    /// Takes note of bytes that came in; false: the server is to be cut off. `most`: what a literal may measure.
    ///
    /// Words that look like a literal's announcement (`* OK well {12}`) make it skip what follows, which does no harm.
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
            if self.line > LINE || self.brackets > BRACKETS {
                return false;
            }
            let goes_on = self.announces(line);
            if end.is_some() && !goes_on {
                (self.line, self.brackets) = (0, 0);
            }
            if self.literal > most {
                return false;
            }
        }
        true
    }

    /// Takes note of what the end of a line, or of a part of one, announces; true: a literal.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed at once, and byte by byte.
    fn allows(bytes: &[u8], most: usize) -> bool {
        let (mut whole, mut parts) = (Framing::default(), Framing::default());
        let together = whole.allows(bytes, most);
        assert_eq!(bytes.chunks(1).all(|byte| parts.allows(byte, most)), together);
        together
    }

    #[test]
    fn a_literal_may_be_as_long_as_was_asked_for_and_no_longer() {
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
    fn what_is_inside_a_literal_announces_nothing() {
        assert!(allows(b"* 1 FETCH (BODY[] {8}\r\n{999}\r\nx BODY[1] {1}\r\n \r\n)", 10));
        assert!(!allows(b"* 1 FETCH (BODY[] {7}\r\n{999}\r\n BODY[1] {999}\r\n", 10));
    }

    #[test]
    fn an_answer_opens_few_brackets_however_many_there_are_in_a_mail() {
        let many = "(".repeat(BRACKETS);
        assert!(allows(format!("* 1 FETCH {many}\r\n* 2 FETCH {many}\r\n").as_bytes(), 5));
        assert!(!allows(format!("* 1 FETCH ({many}").as_bytes(), 5));
        assert!(!allows("({0}\r\n ".repeat(BRACKETS + 1).as_bytes(), 5));
        assert!(allows(format!("* 1 FETCH (BODY[] {{1000}}\r\n{})\r\n", "(".repeat(1_000)).as_bytes(), 1_000));
    }

    #[test]
    fn a_line_has_an_end_and_a_literal_may_be_longer_than_a_line() {
        let long = vec![b'x'; LINE + 1];
        assert!(!allows(&long, 5));
        assert!(allows(&[&b"{70000}\r\n"[..], &vec![b'x'; 70_000], b"\r\n"].concat(), 70_000));
        assert!(allows(&b"* OK still here\r\n".repeat(10_000), 5));
        assert!(!allows(&b"BODY[] {0}\r\n ".repeat(10_000), 5), "it is one answer");
    }
}
