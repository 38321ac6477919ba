//! Holds received bytes until they form complete responses.
//!
//! async-imap's own stream allocates and zeroes two blocks for each response. Allocating and zeroing took half of the time of the
//! first sync of a large mailbox. This module uses only the parser of async-imap. `fetch_fast_path` parses the most frequent form
//! of FETCH responses in place of imap-proto. `lenient` parses responses that imap-proto rejects. `framing` limits the size of
//! all responses.

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

/// The size of one read, in bytes: the most that a TLS record contains.
const BLOCK: usize = 16 * 1024;

/// A buffer above this capacity is freed as soon as possible.
const LARGE: usize = 4 * BLOCK;

/// Received bytes that are not parsed yet. An empty buffer needs no memory: most connections are idle most of the time.
#[derive(Default)]
pub(super) struct ResponseBuffer {
    bytes: Vec<u8>,
    /// How many bytes at the start of `bytes` belong to responses that were parsed.
    consumed: usize,
}

impl ResponseBuffer {
    /// Parses the next response. Returns the response and its length; `None` if the response is incomplete.
    pub(super) fn parse_next(&self) -> Result<Option<(Response<'_>, usize)>> {
        let bytes = self.bytes.get(self.consumed..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Some((rest, response)) = fetch_fast_path::parse_fetch(bytes) {
            return Ok(Some((response, bytes.len() - rest.len())));
        }
        // imap-proto panics if an INTERNALDATE is NIL. `lenient` parses such a response, because each panic would write a line
        // into the log.
        let first_line = memchr::memchr(b'\n', bytes).and_then(|end| bytes.get(..end)).unwrap_or_default();
        if memmem::find(first_line, b"INTERNALDATE NIL").is_some() {
            return lenient::parse_response(bytes);
        }
        // The error of imap-proto is dropped, because it contains the input, which may be text of a mail.
        match catch_panic(|| Response::parse(bytes)) {
            Some(Ok((rest, response))) => Ok(Some((response, bytes.len() - rest.len()))),
            _ => lenient::parse_response(bytes),
        }
    }

    /// Removes the first response, which has `length` bytes.
    pub(super) fn consume(&mut self, length: usize) {
        self.consumed += length;
        // At most one block of bytes follows this response, so these bytes are cheap to copy.
        if self.consumed >= self.bytes.len() || self.bytes.capacity() > LARGE {
            self.discard_consumed(&[]);
        }
    }

    fn discard_consumed(&mut self, received: &[u8]) {
        let unparsed = self.bytes.get(self.consumed..).unwrap_or_default();
        (self.bytes, self.consumed) = ([unparsed, received].concat(), 0);
    }

    /// Reads a block. Returns the number of bytes; 0 is the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        transport: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let mut block = [MaybeUninit::uninit(); BLOCK];
        let mut block = ReadBuf::uninit(&mut block);
        ready!(Pin::new(transport).poll_read(cx, &mut block))?;
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

    /// Parses `bytes`, which arrive in pieces of `piece` bytes. Returns the responses, and the capacity of the buffer at the end.
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
    fn split_responses_parse_alike_and_leave_nothing() {
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
    fn large_mails_are_freed() {
        let large = format!("* 2 FETCH (UID 8 BODY[] {{4000000}}\r\n{})\r\n* 3 EX", "x".repeat(4_000_000));
        let (parsed, held) = responses(large.as_bytes(), BLOCK);
        assert_eq!(parsed.len(), 1);
        assert!(held <= 2 * BLOCK, "{held}");
    }

    /// Returns the first response in `bytes`, and the number of bytes after this response.
    fn first(bytes: &str) -> (String, usize) {
        let buffer = ResponseBuffer { bytes: bytes.into(), consumed: 0 };
        let (response, length) = buffer.parse_next().unwrap().unwrap();
        (format!("{response:?}"), bytes.len() - length)
    }

    #[test]
    fn unparsable_untagged_responses_are_skipped() {
        let rest = "A1 OK done\r\n";
        // The deepest nesting allowed does not overflow the stack.
        let deep = format!("* 1 FETCH (BODYSTRUCTURE {}x)\r\n", "(".repeat(BRACKETS));
        // For the response with `X-ODD`, imap-proto would wait for another closing parenthesis without end.
        for (odd, expected) in [
            ("* NOOP\r\n", "MailboxData(Flags([]))"),
            ("* OK [ALERT]\u{e9}\r\n", "MailboxData(Flags([]))"),
            ("* 1 FETCH (UID 1 X-ODD (1\r\n", "Fetch(1, [Uid(1)])"),
            (&deep, "Fetch(1, [])"),
        ] {
            assert_eq!(first(&format!("{odd}{rest}")), (expected.into(), rest.len()), "{odd}");
        }
        let buffer = ResponseBuffer { bytes: "nonsense\r\n".into(), consumed: 0 };
        assert!(matches!(buffer.parse_next(), Err(Error::Protocol(_))));
    }

    #[test]
    fn a_nil_date_causes_no_panic() {
        for odd in ["INTERNALDATE NIL UID 1", "UID 1 INTERNALDATE NIL"] {
            assert_eq!(first(&format!("* 1 FETCH ({odd})\r\n")), ("Fetch(1, [Uid(1)])".into(), 0));
        }
    }
}
