//! A small HTTP client: one request and one response on a new connection. The client follows no redirects and stores nothing.

mod destination;
mod form;
mod response_head;
mod url;

use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::civil::DateTime;
use jiff::fmt::{rfc2822, strtime};
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};

pub use destination::{Destination, HttpStream};
pub use form::{FORM_TIMEOUT, FormAnswer, encode_form, encode_value, post_form, query_value};
pub use response_head::{ResponseHead, StatusAndFields};
pub use url::Url;

use crate::model::{NO_ANSWER, printable};

/// The limits of a response's header section: its size in bytes, and the number of fields. hyper's default is 100 fields.
const MAX_HEAD_SIZE: usize = 64 * 1024;
const MAX_HEADER_FIELDS: usize = 2_000;

/// The longest error message, in characters.
const MAX_ERROR_LENGTH: usize = 200;

/// The longest `Retry-After` that is respected.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// Sends a request. `read_response` reads the response while the connection is polled.
///
/// # Errors
/// A message for the operator.
pub async fn exchange<T>(
    stream: Box<dyn HttpStream>,
    request: Request<Full<Bytes>>,
    read_response: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_SIZE)
        // Be lenient: if the server accepted the event, a malformed header field must not cause another delivery. Folded
        // fields have to be accepted (RFC 9112, 5.2).
        .max_headers(MAX_HEADER_FIELDS)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| describe(&e))?;
    let call = async {
        let response = sender.send_request(request).await.map_err(|e| describe(&e))?;
        Ok(read_response(response).await)
    };
    tokio::pin!(call, connection);
    // Only this future polls the connection, so the connection ends with this future.
    tokio::select! {
        answer = &mut call => answer,
        // The connection may end before the response was read.
        _ = &mut connection => call.await,
    }
}

/// hyper's error with its causes. Without the causes, the message would only be "connection error".
fn describe(error: &hyper::Error) -> String {
    let mut message = format!("{NO_ANSWER}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        message.push_str(&format!(": {e}"));
        cause = e.source();
    }
    printable(&message, MAX_ERROR_LENGTH)
}

/// The value of a header field, if the response has it.
#[must_use]
pub fn header_text(response: &Response<Incoming>, name: HeaderName) -> Option<String> {
    response.headers().get(name).map(HeaderValue::as_bytes).map(|b| String::from_utf8_lossy(b).into_owned())
}

/// Parses a `Retry-After` of seconds or with an HTTP date (RFC 9110, 10.2.3); `None` if the value is neither.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number that does not fit into 64 bits counts as the longest time.
        return Some(value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs));
    }
    Some(Duration::try_from(http_date(value, now)?.duration_since(now)).unwrap_or_default())
}

/// Parses an HTTP date in any of its three forms (RFC 9110, 5.6.7). All three forms are in UTC.
fn http_date(text: &str, now: Timestamp) -> Option<Timestamp> {
    // Sun, 06 Nov 1994 08:49:37 GMT
    if let Ok(at) = rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return Some(at);
    }
    // Sunday, 06-Nov-94 08:49:37 GMT (RFC 850). The day of the week is not checked, because the century is uncertain.
    if let Some((_, date)) = text.split_once(", ") {
        let at = strtime::parse("%d-%b-%y %H:%M:%S GMT", date).and_then(|parsed| parsed.to_datetime()).ok()?;
        return Offset::UTC.to_timestamp(in_nearest_century(at, now)?).ok();
    }
    // Sun Nov  6 08:49:37 1994 (asctime)
    let at = strtime::parse("%a %b %e %H:%M:%S %Y", text).and_then(|parsed| parsed.to_datetime()).ok()?;
    Offset::UTC.to_timestamp(at).ok()
}

/// Chooses the century of a year with two digits: the latest one in which the time is at most 50 years in the future (RFC 9110,
/// 5.6.7).
fn in_nearest_century(at: DateTime, now: Timestamp) -> Option<DateTime> {
    let now = Offset::UTC.to_datetime(now);
    let latest = now.checked_add(50.years()).ok()?;
    let next = at.checked_add(100.years()).ok()?;
    if at > latest {
        at.checked_sub(100.years()).ok()
    } else if next <= latest {
        Some(next)
    } else {
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2015-10-21T07:27:00Z".parse().unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:26:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("99999999999999999999999", now), Some(MAX_RETRY_AFTER));
        for nothing in
            ["", "soon", "-1", "1.5", "Wed, soon", "Wed Oct 21 07:28:00", "Wednesday, 31-Feb-15 07:28:00 GMT"]
        {
            assert_eq!(retry_after(nothing, now), None, "{nothing}");
        }
    }

    #[test]
    fn retry_after_may_be_an_obsolete_date() {
        let seconds = |value: &str, now: &str| retry_after(value, now.parse().unwrap()).unwrap().as_secs();
        let now = "2015-10-21T07:27:00Z";
        assert_eq!(seconds("Wednesday, 21-Oct-15 07:28:00 GMT", now), 60);
        assert_eq!(seconds("Wed Oct 21 07:28:00 2015", now), 60);
        assert_eq!(seconds("Tuesday, 06-Oct-15 07:28:00 GMT", now), 0);
        assert_eq!(seconds("Fri Nov  6 07:27:00 2015", now), 16 * 86_400);
        // A year of two digits is at most 50 years in the future.
        assert_eq!(seconds("Sunday, 06-Nov-94 08:49:37 GMT", now), 0);
        assert_eq!(seconds("Thursday, 01-Jan-70 00:01:00 GMT", "2069-12-31T23:59:00Z"), 120);
        assert_eq!(seconds("Friday, 01-Jan-99 00:00:00 GMT", "2026-01-01T00:00:00Z"), 0);
    }
}
