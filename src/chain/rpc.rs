//! A JSON-RPC client for one node. The client sends one POST for each call, and refuses an answer with an unexpected form.
//!
//! The URL of a node contains the provider's key. Errors, log lines and `Debug` contain only the host of the URL.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use super::node_error::{NodeError, NodeErrorKind};
use crate::http::{self, Destination, Url};
use crate::model::printable;
use crate::secret::redact;
use crate::telemetry::NodeRequests;

/// The time limit of one call, from the lookup of the host to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest accepted answer, in bytes.
const LONGEST_ANSWER: usize = 4 * 1024 * 1024;
/// The most calls to the node in one second.
const CALLS_PER_SECOND: usize = 5;
/// Messages of a node are truncated to this number of characters.
const KEPT_WORDS: usize = 200;
/// The advice for an answer that comes from a web server and not from a node.
const CHECK_URL: &str = "check the node's URL, also its path";
/// A part of a URL's path or query with at least this number of bytes may be a key.
const SHORTEST_KEY: usize = 6;

/// The JSON-RPC error codes for a method that does not exist, or is not supported (EIP-1474).
const NO_METHOD: [i64; 2] = [-32601, -32004];
/// The JSON-RPC error code for an exceeded limit (EIP-1474).
const LIMIT_EXCEEDED: i64 = -32005;
/// The error code of geth for pruned history (EIP-4444).
const PRUNED: i64 = 4444;

/// A client for one JSON-RPC node of a chain.
pub struct Node {
    host: String,
    /// The chain's name, for the metrics.
    chain: String,
    requests: NodeRequests,
    url: Url,
    destination: Destination,
    /// Parts of the URL that may be keys, and that are removed from messages of the node.
    keys: Vec<SecretString>,
    timeout: Duration,
    next_id: AtomicU64,
    /// The times at which the newest calls were sent, at most five calls, the newest first.
    pace: Mutex<VecDeque<Instant>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("host", &self.host).finish_non_exhaustive()
    }
}

/// An HTTP response.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// A JSON-RPC response. A field with the value `null` counts as present.
#[derive(Deserialize)]
struct RpcResponse<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "present")]
    error: Option<RpcError>,
}

impl RpcResponse<'_> {
    /// Whether it has a member that each response has (JSON-RPC 2.0, 5).
    fn is_response(&self) -> bool {
        self.result.is_some() || self.error.is_some()
    }
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    #[serde(default)]
    message: String,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl Node {
    /// Creates a client for a URL: https, or http on this machine. `tls` is needed for https.
    ///
    /// # Errors
    /// A message that does not contain the URL.
    pub fn new(url: &SecretString, tls: Option<Arc<ClientConfig>>) -> Result<Node, String> {
        let url: Url = url.expose_secret().trim().parse().map_err(|_| {
            "expected the URL of a JSON-RPC node, such as \"https://node.example/v2/KEY\", without a user and a password"
                .to_owned()
        })?;
        if !url.tls && !url.is_loopback() {
            return Err(format!("the node {:?} is on another machine: its URL must begin with https://", url.host));
        }
        if url.tls && tls.is_none() {
            return Err("TLS is not available for an https URL".into());
        }
        let tls = tls.filter(|_| url.tls);
        let destination = Destination::Net { url: url.clone(), allow_remote: url.tls, tls };
        let keys = keys(url.path.as_str());
        let (host, next_id, pace) = (url.host.clone(), AtomicU64::new(1), Mutex::new(VecDeque::new()));
        Ok(Node {
            host,
            chain: String::new(),
            requests: NodeRequests::default(),
            url,
            destination,
            keys,
            timeout: TIMEOUT,
            next_id,
            pace,
        })
    }

    /// Changes the time limit of a call, which is ten seconds by default.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes the client count its calls in `requests`, under the name of the chain.
    #[must_use]
    pub(super) fn counted_in(mut self, requests: &NodeRequests, chain: &str) -> Self {
        self.requests = requests.clone();
        self.chain = chain.to_owned();
        self
    }

    /// The host of the node. No other part of its URL may be shown.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether both nodes have the same URL.
    #[must_use]
    pub(super) fn has_url_of(&self, other: &Node) -> bool {
        let of = |url: &Url| (url.tls, url.host.to_ascii_lowercase(), url.port, url.path.clone());
        of(&self.url) == of(&other.url)
    }

    /// Sends a call and parses its result. If five calls were sent in the last second, the function waits first.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn call<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, NodeError> {
        let result = self.exchange(method, params).await;
        let outcome = result.as_ref().map_or_else(|error: &NodeError| error.kind.label(), |_| "ok");
        self.requests.count(&self.chain, outcome);
        result
    }

    async fn exchange<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, NodeError> {
        let fail = |kind| NodeError { host: self.host.clone(), method, kind };
        self.wait_for_turn().await;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(id, method, params).await.map_err(|words| fail(self.unreachable(&words)))?;
        let result = read_answer(&answer, id).map_err(|kind| fail(self.without_keys(kind)))?;
        serde_json::from_str(result.get())
            .map_err(|e| fail(self.without_keys(NodeErrorKind::BadAnswer(printable(&e.to_string(), KEPT_WORDS)))))
    }

    /// Waits until fewer than five calls were sent in the last second.
    async fn wait_for_turn(&self) {
        let mut newest_first = self.pace.lock().await;
        if let Some(oldest) = newest_first.get(CALLS_PER_SECOND - 1) {
            sleep_until(*oldest + Duration::from_secs(1)).await;
        }
        newest_first.push_front(Instant::now());
        newest_first.truncate(CALLS_PER_SECOND);
    }

    async fn post(&self, id: u64, method: &str, params: Value) -> Result<Answer, String> {
        let deadline = Instant::now() + self.timeout;
        let body = serde_json::json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        let request = self.request(body).map_err(|e| format!("cannot make the request: {e}"))?;
        let exchange = async {
            let stream = self.destination.connect(deadline).await?;
            http::exchange(stream, request, read_body).await?
        };
        let timed_out = |_| format!("no answer within {}", crate::units::HumanDuration(self.timeout));
        timeout_at(deadline, exchange).await.map_err(timed_out)?
    }

    fn request(&self, body: String) -> hyper::http::Result<Request<Full<Bytes>>> {
        Request::builder()
            .method(Method::POST)
            .uri(self.url.path.as_str())
            .header(header::HOST, self.url.authority.as_str())
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
    }

    fn unreachable(&self, words: &str) -> NodeErrorKind {
        self.without_keys(match words.strip_prefix(TOO_LONG) {
            Some(_) => NodeErrorKind::BadAnswer(words.to_owned()),
            None => NodeErrorKind::Unreachable(printable(words, KEPT_WORDS)),
        })
    }

    /// Removes the keys in the URL from the text of an error, because the node may have quoted the keys.
    fn without_keys(&self, mut kind: NodeErrorKind) -> NodeErrorKind {
        let words = kind.words_mut();
        for key in &self.keys {
            *words = redact(std::mem::take(words), key.expose_secret());
        }
        kind
    }
}

/// The whole path of a URL, and each part of it that may be a key.
fn keys(path: &str) -> Vec<SecretString> {
    let parts = path.split(['/', '?', '&', '=', '#']);
    let long = [path].into_iter().chain(parts).filter(|part| part.len() >= SHORTEST_KEY);
    long.map(SecretString::from).collect()
}

/// The beginning of the error for an answer that is too long or incomplete.
const TOO_LONG: &str = "the answer is not complete, or longer than 4 MiB";

async fn read_body(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status();
    let retry_after =
        http::header_text(&response, header::RETRY_AFTER).and_then(|value| http::retry_after(&value, Timestamp::now()));
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|e| printable(&format!("{TOO_LONG}: {e}"), KEPT_WORDS))?.to_bytes();
    Ok(Answer { status, retry_after, body })
}

/// Returns the `result` of the JSON-RPC response in `answer`, which must answer the call `id`.
fn read_answer(answer: &Answer, id: u64) -> Result<&RawValue, NodeErrorKind> {
    let Answer { status, retry_after, .. } = answer;
    let envelope: Result<RpcResponse<'_>, _> = serde_json::from_slice(&answer.body);
    let said = envelope.as_ref().ok().and_then(|envelope| envelope.error.as_ref());
    let words = said.map_or_else(|| status.to_string(), |error| format!("{status}: {}", error.message.trim()));
    let words = printable(&words, KEPT_WORDS);
    match *status {
        StatusCode::TOO_MANY_REQUESTS => return Err(throttled(*retry_after, true, words)),
        StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN => {
            return Err(NodeErrorKind::Refused(words));
        }
        // The Location of a redirect may contain the key, so the error does not quote it.
        status if status.is_redirection() => {
            return Err(NodeErrorKind::BadAnswer(format!("{status}: a redirect, which is not followed; {CHECK_URL}")));
        }
        _ => {}
    }
    match envelope {
        // The gateway before a node may send an error status and a JSON object that is no JSON-RPC response. So with an error
        // status, the object must have `result` or `error`.
        Ok(envelope) if status.is_success() || envelope.is_response() => {
            open_envelope(envelope, status, *retry_after, id)
        }
        _ if *status == StatusCode::SERVICE_UNAVAILABLE => Err(throttled(*retry_after, true, words)),
        _ if status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT => {
            Err(NodeErrorKind::Unreachable(words))
        }
        Err(e) if status.is_success() => {
            Err(NodeErrorKind::BadAnswer(printable(&format!("no JSON-RPC response: {e}; {CHECK_URL}"), KEPT_WORDS)))
        }
        _ => {
            // The Display of `Rejected` begins with the number of the status.
            let reason = status.canonical_reason().unwrap_or("an HTTP error without a name");
            Err(NodeErrorKind::Rejected { code: status.as_u16().into(), words: format!("{reason}; {CHECK_URL}") })
        }
    }
}

fn throttled(retry_after: Option<Duration>, by_http: bool, words: String) -> NodeErrorKind {
    NodeErrorKind::Throttled { retry_after, by_http, words }
}

fn open_envelope<'a>(
    envelope: RpcResponse<'a>,
    status: &StatusCode,
    retry_after: Option<Duration>,
    id: u64,
) -> Result<&'a RawValue, NodeErrorKind> {
    let bad = |words: &str| Err(NodeErrorKind::BadAnswer(words.to_owned()));
    let answered = envelope.id.map(RawValue::get);
    let is_ours = answered == Some(id.to_string().as_str());
    match (envelope.result, envelope.error) {
        // A node that cannot parse the id of a request answers with an error without an id (JSON-RPC 2.0, 5).
        (None, Some(error)) if is_ours || matches!(answered, None | Some("null")) => {
            Err(rpc_error(&error, retry_after))
        }
        (None, Some(_)) | (Some(_), None) if !is_ours => bad("it has the id of another call"),
        (Some(_), None) if !status.is_success() => bad(&format!("{status} with a result")),
        (Some(result), None) => Ok(result),
        (Some(_), Some(_)) => bad("it has both a result and an error"),
        (None, _) => bad("it has neither a result nor an error"),
    }
}

fn rpc_error(error: &RpcError, retry_after: Option<Duration>) -> NodeErrorKind {
    let words = printable(error.message.trim(), KEPT_WORDS);
    match error.code {
        code if NO_METHOD.contains(&code) => NodeErrorKind::NoMethod(words),
        LIMIT_EXCEEDED => throttled(retry_after, false, words),
        PRUNED => NodeErrorKind::Pruned(words),
        _ if words.to_ascii_lowercase().contains("pruned") => NodeErrorKind::Pruned(words),
        code => NodeErrorKind::Rejected { code, words },
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn read(status: u16, body: &str) -> Result<String, NodeErrorKind> {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, retry_after: None, body: Bytes::from(body.to_owned()) };
        read_answer(&answer, 7).map(|raw| raw.get().to_owned())
    }

    #[test]
    fn a_result_has_our_id_and_no_error() {
        assert_eq!(read(200, "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":\"0x1\"}").unwrap(), "\"0x1\"");
        assert_eq!(read(200, "{\"id\":7,\"result\":null,\"more\":[1]}").unwrap(), "null");
        for bad in [
            "{\"id\":8,\"result\":1}",
            "{\"id\":\"7\",\"result\":1}",
            "{\"id\":7.0,\"result\":1}",
            "{\"id\":null,\"result\":1}",
            "{\"result\":1}",
            "{\"id\":7}",
            "{\"id\":7,\"result\":1,\"error\":{\"code\":1,\"message\":\"x\"}}",
            "{\"id\":7,\"result\":1,\"error\":null}",
            "{\"id\":7,\"result\":1,\"result\":2}",
            "{\"id\":8,\"error\":{\"code\":-32601,\"message\":\"x\"}}",
            "{\"id\":7,\"result\":1",
            "[{\"id\":7,\"result\":1}]",
            "",
            "<html>",
        ] {
            assert!(matches!(read(200, bad), Err(NodeErrorKind::BadAnswer(_))), "{bad}: {:?}", read(200, bad));
        }
        assert!(matches!(read(500, "{\"id\":7,\"result\":1}"), Err(NodeErrorKind::BadAnswer(_))));
    }

    #[test]
    fn errors_are_told_apart_by_status_and_code() {
        type Is = fn(&NodeErrorKind) -> bool;
        let error = |code: i64| format!("{{\"id\":7,\"error\":{{\"code\":{code},\"message\":\"words\"}}}}");
        let cases: [(u16, String, Is); 18] = [
            (429, "<html>".into(), |k| matches!(k, NodeErrorKind::Throttled { by_http: true, .. })),
            (503, "".into(), |k| matches!(k, NodeErrorKind::Throttled { by_http: true, .. })),
            (503, "{\"message\":\"busy\"}".into(), |k| matches!(k, NodeErrorKind::Throttled { by_http: true, .. })),
            (502, "{\"message\":\"busy\"}".into(), |k| matches!(k, NodeErrorKind::Unreachable(_))),
            (404, "{\"id\":7}".into(), |k| matches!(k, NodeErrorKind::Rejected { code: 404, .. })),
            (200, error(-32005), |k| matches!(k, NodeErrorKind::Throttled { by_http: false, .. })),
            (401, "".into(), |k| matches!(k, NodeErrorKind::Refused(_))),
            (402, error(1), |k| matches!(k, NodeErrorKind::Refused(w) if w.contains("words"))),
            (403, "".into(), |k| matches!(k, NodeErrorKind::Refused(_))),
            (200, error(-32601), |k| matches!(k, NodeErrorKind::NoMethod(_))),
            (404, error(-32601), |k| matches!(k, NodeErrorKind::NoMethod(_))),
            (200, error(4444), |k| matches!(k, NodeErrorKind::Pruned(_))),
            (400, error(-32602), |k| matches!(k, NodeErrorKind::Rejected { code: -32602, .. })),
            (200, error(-32000).replace('7', "null"), |k| matches!(k, NodeErrorKind::Rejected { code: -32000, .. })),
            (404, "not here".into(), |k| k.to_string() == format!("error 404: Not Found; {CHECK_URL}")),
            (502, "<html>".into(), |k| matches!(k, NodeErrorKind::Unreachable(_))),
            (302, "".into(), |k| matches!(k, NodeErrorKind::BadAnswer(w) if w.ends_with(CHECK_URL))),
            (200, "<html>".into(), |k| matches!(k, NodeErrorKind::BadAnswer(w) if w.ends_with(CHECK_URL))),
        ];
        for (status, body, is) in cases {
            let kind = read(status, &body).unwrap_err();
            assert!(is(&kind), "{status} {body}: {kind:?}");
        }
    }

    #[tokio::test]
    async fn a_cancelled_call_keeps_the_pace() {
        let node = Node::new(&SecretString::from("http://127.0.0.1:1"), None).unwrap();
        for _ in 0..CALLS_PER_SECOND {
            node.wait_for_turn().await;
        }
        // Each of these futures is dropped while it waits.
        for _ in 0..2 {
            assert!(node.wait_for_turn().now_or_never().is_none());
        }
    }

    #[test]
    fn a_remote_node_needs_https() {
        let new = |url: &str| Node::new(&SecretString::from(url), None).map(drop);
        assert!(new("http://127.0.0.1:8545").is_ok() && new("http://localhost:8545/").is_ok());
        assert!(new("http://10.0.0.1:8545/s3cretkey").unwrap_err().contains("https://"));
        for bad in ["s3cretkey", "ftp://node/s3cretkey", "https://user:s3cretkey@node/", "http://node/s3cretkey"] {
            let words = new(bad).unwrap_err();
            assert!(!words.contains("s3cretkey"), "{bad}: {words}");
        }
    }

    #[test]
    fn a_key_that_a_node_quotes_is_removed() {
        let url = SecretString::from("http://127.0.0.1:1/v2/s3cretkey?token=an0therkey");
        let node = Node::new(&url, None).unwrap();
        for quoted in ["s3cretkey", "an0therkey", "/v2/s3cretkey?token=an0therkey"] {
            let kind = node.without_keys(NodeErrorKind::Refused(format!("unknown key {quoted} of v2")));
            assert_eq!(kind, NodeErrorKind::Refused("unknown key (secret) of v2".into()));
        }
    }
}
