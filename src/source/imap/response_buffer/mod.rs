//! The bytes that have come, until they are whole answers.
//!
//! async-imap's own stream makes two blocks of zeroes for each answer: of a mailbox that is read from its beginning, that
//! was half of the work. Here only its parser is used, and not for what comes by the hundred thousand.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_imap::imap_proto::Response;
use memchr::memmem;
use tokio::io::{AsyncRead, ReadBuf};

use super::error::Result;
use crate::catch_panic::catch_panic;

mod fetch_fast_path;
mod framing;
mod lenient;

pub(super) use framing::Framing;

/// How much is read at once: what fits into a record of TLS.
const BLOCK: usize = 16 * 1024;

/// What is given back as soon as it is not needed.
const LARGE: usize = 4 * BLOCK;

/// What has come and was not used yet. While nothing has come it takes no memory: that is most of a connection's life.
#[derive(Default)]
pub(super) struct ResponseBuffer {
    bytes: Vec<u8>,
    /// How much of them was used.
    consumed: usize,
}

impl ResponseBuffer {
    /// The next answer, and how long it is; `None` if it is not all here.
    pub(super) fn parse_next(&self) -> Result<Option<(Response<'_>, usize)>> {
        let bytes = self.bytes.get(self.consumed..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Some((rest, response)) = fetch_fast_path::parse_fetch(bytes) {
            return Ok(Some((response, bytes.len() - rest.len())));
        }
        // imap-proto panics on this date, and each panic is a line in the log.
        let first_line = memchr::memchr(b'\n', bytes).and_then(|end| bytes.get(..end)).unwrap_or_default();
        if memmem::find(first_line, b"INTERNALDATE NIL").is_some() {
            return lenient::parse_response(bytes);
        }
        // Of its error nothing is kept: it embeds what was parsed, mail text and all.
        match catch_panic(|| Response::parse(bytes)) {
            Some(Ok((rest, response))) => Ok(Some((response, bytes.len() - rest.len()))),
            _ => lenient::parse_response(bytes),
        }
    }

    /// An answer of this length was used.
    pub(super) fn consume(&mut self, length: usize) {
        self.consumed += length;
        // What is left is no more than was read at once.
        if self.consumed >= self.bytes.len() || self.bytes.capacity() > LARGE {
            self.discard_consumed(&[]);
        }
    }

    fn discard_consumed(&mut self, received: &[u8]) {
        let left = self.bytes.get(self.consumed..).unwrap_or_default();
        (self.bytes, self.consumed) = ([left, received].concat(), 0);
    }

    /// Adds what has come in; how much that is: nothing is the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        net: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let mut block = [MaybeUninit::uninit(); BLOCK];
        let mut block = ReadBuf::uninit(&mut block);
        ready!(Pin::new(net).poll_read(cx, &mut block))?;
        let received = block.filled();
        if self.consumed > 0 {
            self.discard_consumed(received);
        } else {
            self.bytes.extend_from_slice(received);
        }
        Poll::Ready(Ok(received.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::error::Error;
    use super::framing::BRACKETS;
    use super::*;

    /// What comes in pieces of this length: each answer, in words, and how much is held at the end.
    fn responses(bytes: &[u8], piece: usize) -> (Vec<String>, usize) {
        let (mut buffer, mut parsed) = (ResponseBuffer::default(), Vec::new());
        for mut piece in bytes.chunks(piece) {
            while !piece.is_empty() {
                let received = buffer.poll_fill(&mut piece, &mut Context::from_waker(Waker::noop()));
                assert!(matches!(received, Poll::Ready(Ok(1..))));
            }
            while let Some((response, length)) = buffer.parse_next().unwrap() {
                parsed.push(format!("{response:?}"));
                drop(response);
                buffer.consume(length);
            }
        }
        (parsed, buffer.bytes.capacity())
    }

    #[test]
    fn answers_are_the_same_however_they_come_and_leave_nothing_behind() {
        let large = format!("* 2 FETCH (UID 8 BODY[] {{40000}}\r\n{})\r\n", "x".repeat(40_000));
        let bytes = format!(
            "* OK {{6}} well\r\n* OK {{6}}\r\n* 1 FETCH (UID 7 BODY[] {{6}}\r\n)\r\n* 2)\r\n{large}* 2 FETCH (FLAGS (\\Seen))\r\n\
             + idling\r\nA1 OK done\r\n"
        );
        let (parsed, held) = responses(bytes.as_bytes(), bytes.len());
        assert_eq!((parsed.len(), held), (7, 0));
        for piece in [1, 2, 7, 1_000, BLOCK, BLOCK + 1] {
            assert_eq!(responses(bytes.as_bytes(), piece), (parsed.clone(), 0), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_large_mail_does_not_stay() {
        let large = format!("* 2 FETCH (UID 8 BODY[] {{4000000}}\r\n{})\r\n* 3 EX", "x".repeat(4_000_000));
        let (parsed, held) = responses(large.as_bytes(), BLOCK);
        assert_eq!(parsed.len(), 1);
        assert!(held <= 2 * BLOCK, "{held}");
    }

    /// The first response of these bytes, and what is left of them.
    fn first(bytes: &str) -> (String, usize) {
        let buffer = ResponseBuffer { bytes: bytes.into(), consumed: 0 };
        let (response, length) = buffer.parse_next().unwrap().unwrap();
        (format!("{response:?}"), bytes.len() - length)
    }

    #[test]
    fn an_untagged_response_that_cannot_be_parsed_is_skipped() {
        let rest = "A1 OK done\r\n";
        // As deep as it may be, there is stack enough.
        let deep = format!("* 1 FETCH (BODYSTRUCTURE {}x)\r\n", "(".repeat(BRACKETS));
        // imap-proto waits for the second parenthesis, wherever it is.
        for (odd, left) in [
            ("* NOOP\r\n", "MailboxData(Flags([]))"),
            ("* OK [ALERT]\u{e9}\r\n", "MailboxData(Flags([]))"),
            ("* 1 FETCH (UID 1 X-ODD (1\r\n", "Fetch(1, [Uid(1)])"),
            (&deep, "Fetch(1, [])"),
        ] {
            assert_eq!(first(&format!("{odd}{rest}")), (left.into(), rest.len()), "{odd}");
        }
        let buffer = ResponseBuffer { bytes: "nonsense\r\n".into(), consumed: 0 };
        assert!(matches!(buffer.parse_next(), Err(Error::Protocol(_))));
    }

    #[test]
    fn a_date_that_is_nil_is_no_panic() {
        for odd in ["INTERNALDATE NIL UID 1", "UID 1 INTERNALDATE NIL"] {
            assert_eq!(first(&format!("* 1 FETCH ({odd})\r\n")), ("Fetch(1, [Uid(1)])".into(), 0));
        }
    }
}
