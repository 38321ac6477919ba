//! Finds the status in a response that hyper rejects.
//!
//! hyper returns a response only if it accepts the whole header section and the framing of the body. A handler that answered with
//! the status 200 has the event even if its `Content-Length` is wrong, so this module finds the status.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::StatusCode;
use hyper::header::HeaderName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::MAX_HEAD_SIZE;
use super::destination::HttpStream;

/// The first bytes that a server sent after the request.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead(Arc<Mutex<ReceivedBytes>>);

#[derive(Debug, Default)]
struct ReceivedBytes {
    /// Whether the first bytes of the request were written. A status that arrives before the request is no answer to it.
    requested: bool,
    bytes: Vec<u8>,
}

/// A complete status line and the header lines that followed it.
#[derive(Debug, PartialEq, Eq)]
pub struct StatusAndFields {
    /// The status of the final response.
    pub status: StatusCode,
    fields: Vec<u8>,
}

impl StatusAndFields {
    /// The value of a header field, if its line is complete.
    #[must_use]
    pub fn field(&self, name: &HeaderName) -> Option<String> {
        let mut rest = self.fields.as_slice();
        while let Some((line, after)) = split_line(rest).filter(|(line, _)| !line.is_empty()) {
            let text = String::from_utf8_lossy(line);
            let field = text.split_once(':').filter(|(found, _)| found.trim().eq_ignore_ascii_case(name.as_str()));
            if let Some((_, value)) = field {
                return Some(value.trim().to_owned());
            }
            rest = after;
        }
        None
    }
}

impl ResponseHead {
    /// Returns a stream that reads from `stream` and copies the first bytes of the response into this value.
    pub fn record(&self, stream: Box<dyn HttpStream>) -> Box<dyn HttpStream> {
        Box::new(RecordingStream { stream, head: self.clone() })
    }

    /// The status and the header lines of the final response; `None` until its whole status line has been read.
    #[must_use]
    pub fn status(&self) -> Option<StatusAndFields> {
        self.with(|received| find_final(&received.bytes))
    }

    fn with<T>(&self, f: impl FnOnce(&mut ReceivedBytes) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, bytes: &[u8]) {
        self.with(|received| {
            let space = if received.requested { MAX_HEAD_SIZE.saturating_sub(received.bytes.len()) } else { 0 };
            received.bytes.extend(bytes.iter().take(space));
        });
    }

    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.with(|received| received.requested = true);
        }
    }
}

/// Finds the final response: skips the responses of class 1xx (RFC 9110, 15.2). The status 101 counts as final, because HTTP on
/// the connection ends with it.
fn find_final(mut bytes: &[u8]) -> Option<StatusAndFields> {
    loop {
        let (line, rest) = split_line(bytes)?;
        bytes = rest;
        if line.is_empty() {
            continue;
        }
        let status = parse_status_line(line)?;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Some(StatusAndFields { status, fields: rest.to_vec() });
        }
        while let Some((line, rest)) = split_line(bytes) {
            bytes = rest;
            if line.is_empty() {
                break;
            }
        }
    }
}

/// Parses a status line such as `HTTP/1.1 200 OK`. The reason phrase is optional (RFC 9112, section 4).
fn parse_status_line(line: &[u8]) -> Option<StatusCode> {
    let (minor, rest) = line.strip_prefix(b"HTTP/1.")?.split_first()?;
    let (code, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let is_whole = minor.is_ascii_digit() && (reason.is_empty() || reason.starts_with(b" "));
    is_whole.then(|| StatusCode::from_bytes(code).ok()).flatten()
}

/// The first line without its CRLF or LF (RFC 9112, 2.2), and the bytes after it.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = bytes.split_at_checked(memchr::memchr(b'\n', bytes)?)?;
    Some((line.strip_suffix(b"\r").unwrap_or(line), rest.get(1..)?))
}

/// A stream that copies the first bytes that it reads into `head`.
struct RecordingStream {
    stream: Box<dyn HttpStream>,
    head: ResponseHead,
}

impl AsyncRead for RecordingStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.head.add(buf.filled().get(before..).unwrap_or_default());
        polled
    }
}

impl AsyncWrite for RecordingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.head.note_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.head.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn status(text: &str) -> Option<u16> {
        find_final(text.as_bytes()).map(|found| found.status.as_u16())
    }

    #[test]
    fn only_a_complete_final_status_line_counts() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 204\n", Some(204)),
            ("\r\nHTTP/1.1 503 Busy\r\nContent-Length: x", Some(503)),
            ("HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 201 Created\r\n", Some(201)),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\n", Some(101)),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", None),
            ("HTTP/1.1 103 Early Hints\r\nX: HTTP/1.1 200 OK\r\n", None),
            ("HTTP/1.1 200 OK", None),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/1.1 20\r\n", None),
            ("HTTP/2 200 OK\r\n", None),
            ("220 mail.example ESMTP\r\nHTTP/1.1 200 OK\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(text), expected, "{text:?}");
        }
    }

    #[test]
    fn fields_are_found_up_to_the_empty_line() {
        let found = find_final(b"HTTP/1.1 503 Busy\r\nretry-after : 7\r\n\r\nLocation: /\r\n").unwrap();
        assert_eq!(found.field(&hyper::header::RETRY_AFTER).as_deref(), Some("7"));
        assert_eq!(found.field(&hyper::header::LOCATION), None);
    }

    #[tokio::test]
    async fn a_status_before_the_request_does_not_count() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let head = ResponseHead::default();
        let mut stream = head.record(Box::new(ours));
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        stream.read_exact(&mut [0; 17]).await.unwrap();
        assert_eq!(head.status(), None);
        stream.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
        theirs.write_all(b"HTTP/1.1 202 Accepted\r\n").await.unwrap();
        stream.read_exact(&mut [0; 23]).await.unwrap();
        assert_eq!(head.status().map(|found| found.status.as_u16()), Some(202));
    }

    #[tokio::test]
    async fn endless_heads_are_truncated() {
        let head = ResponseHead::default();
        head.with(|received| received.requested = true);
        for _ in 0..100 {
            head.add(&[b'x'; 4096]);
        }
        assert_eq!(head.with(|received| received.bytes.len()), MAX_HEAD_SIZE);
    }
}
