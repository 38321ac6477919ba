//! A small HTTP client: one request, one answer, a connection of its own. It follows no redirect and keeps nothing.

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
pub use form::{FormAnswer, encode_form, encode_value, post_form, query_value};
pub use response_head::{ResponseHead, StatusAndFields};
pub use url::Url;

use crate::model::{NO_ANSWER, printable};

/// The largest head of an answer, and the most fields in it; hyper's own limit is a hundred.
const MAX_HEAD_SIZE: usize = 64 * 1024;
const MAX_HEADER_FIELDS: usize = 2_000;

/// The most of a failure's words that is kept.
const MAX_ERROR_LENGTH: usize = 200;

/// The longest that a `Retry-After` is believed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// Sends a request; `read_response` reads the answer, while the connection is kept going.
///
/// # Errors
/// In words, for the operator.
pub async fn exchange<T>(
    stream: Box<dyn HttpStream>,
    request: Request<Full<Bytes>>,
    read_response: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_SIZE)
        // Its status is what matters: one that was accepted and answered in an old or a careless hand must not go again. A
        // folded field is to be read (RFC 9112, 5.2).
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
    // The connection is driven by this future and ends with it: a fresh one for each request.
    tokio::select! {
        answer = &mut call => answer,
        // It may end before the answer was taken out of it.
        _ = &mut connection => call.await,
    }
}

/// Hyper's words with their causes: its first line alone says "connection error".
fn describe(error: &hyper::Error) -> String {
    let mut all = format!("{NO_ANSWER}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        all.push_str(&format!(": {e}"));
        cause = e.source();
    }
    printable(&all, MAX_ERROR_LENGTH)
}

/// A header field's text, if there is one.
#[must_use]
pub fn header_text(response: &Response<Incoming>, name: HeaderName) -> Option<String> {
    response.headers().get(name).map(HeaderValue::as_bytes).map(|b| String::from_utf8_lossy(b).into_owned())
}

/// `Retry-After`: seconds, or an HTTP date (RFC 9110, 10.2.3). What is neither is not there.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit is a very long time.
        return Some(value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs));
    }
    Some(Duration::try_from(http_date(value, now)?.duration_since(now)).unwrap_or_default())
}

/// An HTTP date in each of its three forms (RFC 9110, 5.6.7). All of them are in UTC.
fn http_date(text: &str, now: Timestamp) -> Option<Timestamp> {
    // Sun, 06 Nov 1994 08:49:37 GMT
    if let Ok(at) = rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return Some(at);
    }
    // Sunday, 06-Nov-94 08:49:37 GMT (RFC 850). The name of the day is not checked: the century is a guess.
    if let Some((_, date)) = text.split_once(", ") {
        let at = strtime::parse("%d-%b-%y %H:%M:%S GMT", date).and_then(|parsed| parsed.to_datetime()).ok()?;
        return Offset::UTC.to_timestamp(in_nearest_century(at, now)?).ok();
    }
    // Sun Nov  6 08:49:37 1994 (asctime)
    let at = strtime::parse("%a %b %e %H:%M:%S %Y", text).and_then(|parsed| parsed.to_datetime()).ok()?;
    Offset::UTC.to_timestamp(at).ok()
}

/// A year of two digits is at most 50 years ahead, and else in the past (RFC 9110, 5.6.7).
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
        // Two digits of the year: at most 50 years ahead.
        assert_eq!(seconds("Sunday, 06-Nov-94 08:49:37 GMT", now), 0);
        assert_eq!(seconds("Thursday, 01-Jan-70 00:01:00 GMT", "2069-12-31T23:59:00Z"), 120);
        assert_eq!(seconds("Friday, 01-Jan-99 00:00:00 GMT", "2026-01-01T00:00:00Z"), 0);
    }
}
