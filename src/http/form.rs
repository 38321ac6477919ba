//! A form in a POST, as OAuth endpoints take it (RFC 6749, appendix B), and the fields of a query.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::time::{Instant, timeout_at};

use super::{Destination, MAX_RETRY_AFTER, Url};

/// Time limit of [`post_form`].
pub const FORM_TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum size of an answer's body, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The response to a posted form.
pub struct FormAnswer {
    /// The status of the answer.
    pub status: StatusCode,
    /// The pause that the server demands with `Retry-After`, at most [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
    /// The target of a redirect, which this client does not follow.
    pub location: Option<String>,
    /// The body of the answer, at most 64 KiB.
    pub body: Bytes,
}

/// Posts a form to `url` at `destination`.
///
/// # Errors
/// A message for the operator: no connection, no complete answer within 20 seconds, or a body that is too long.
pub async fn post_form(destination: &Destination, url: &Url, fields: &[(&str, &str)]) -> Result<FormAnswer, String> {
    let deadline = Instant::now() + FORM_TIMEOUT;
    let request = request(url, fields).map_err(|e| format!("cannot make the request: {e}"))?;
    let exchange = async {
        let stream = destination.connect(deadline).await?;
        super::exchange(stream, request, read_answer).await?
    };
    let answer = timeout_at(deadline, exchange).await;
    answer.map_err(|_| format!("no answer within {} s", FORM_TIMEOUT.as_secs()))?
}

fn request(url: &Url, fields: &[(&str, &str)]) -> hyper::http::Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(Method::POST)
        .uri(url.path.as_str())
        .header(header::HOST, url.authority.as_str())
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(encode_form(fields))))
}

async fn read_answer(response: Response<Incoming>) -> Result<FormAnswer, String> {
    let status = response.status();
    let retry_after = super::header_text(&response, header::RETRY_AFTER)
        .and_then(|value| super::retry_after(&value, Timestamp::now()))
        .map(|pause| pause.min(MAX_RETRY_AFTER));
    let location = super::header_text(&response, header::LOCATION);
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|e| format!("{status}: its answer is not complete, or too long: {e}"))?.to_bytes();
    Ok(FormAnswer { status, retry_after, location, body })
}

/// Encodes fields as the body of a form, or as a query.
#[must_use]
pub fn encode_form(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = fields.iter().map(|(key, value)| format!("{key}={}", encode_value(value))).collect();
    pairs.join("&")
}

/// The ASCII characters that a form encodes. A space becomes a `+`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b' ');

/// Encodes one value of a form.
#[must_use]
pub fn encode_value(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string().replace(' ', "+")
}

/// The first value of a field in a query. A `%` without two hexadecimal digits stays as it is; bytes that are not UTF-8
/// become replacement characters.
#[must_use]
pub fn query_value(query: &str, key: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| decode_value(value))
}

fn decode_value(value: &str) -> String {
    percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded() {
        assert_eq!(encode_value("1//0g-._~ a+b&c=%é"), "1%2F%2F0g-._~+a%2Bb%26c%3D%25%C3%A9");
        assert_eq!(encode_form(&[("a", "1 2"), ("b", "&")]), "a=1+2&b=%26");
    }

    #[test]
    fn a_query_value_is_decoded() {
        let query = "state=s&code=4%2F0Ab%2Bc+d&code=second&bad=%zz%e9%4";
        assert_eq!(query_value(query, "code").as_deref(), Some("4/0Ab+c d"));
        assert_eq!(query_value(query, "bad").as_deref(), Some("%zz\u{fffd}%4"));
        assert_eq!(query_value(query, "tate"), None);
        let value = "1//0g-._~ a+b&c=%é";
        assert_eq!(query_value(&format!("x={}", encode_value(value)), "x").as_deref(), Some(value));
    }
}
