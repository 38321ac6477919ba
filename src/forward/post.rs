//! Sends one POST within one deadline. Only the status of the response decides about success.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::headers::event_headers;
use super::target::{CommonTarget, HandlerTarget};
use crate::db::OutboundEvent;
use crate::http::{self, ResponseHead, header_text};
use crate::model::{NO_ANSWER, printable};
use crate::sending_permit::{NO_PERMIT, SendingPermit};

/// How many bytes of a response body are read. Then the connection is closed.
const MAX_BODY: usize = 64 * 1024;

/// How many characters of a response are stored with an error.
const MAX_EXCERPT: usize = 200;

/// How long the body is read after the status was received.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The response of a handler, or the reason for its absence.
#[derive(Debug)]
pub(super) struct HandlerResponse {
    /// The HTTP status, if one was received.
    pub(super) status: Option<u16>,
    /// The reason for a failure; `None`: the handler accepted the event.
    pub(super) error: Option<String>,
    /// The pause until the next attempt that the handler requests in `Retry-After`.
    pub(super) retry_after: Option<Duration>,
}

impl HandlerResponse {
    fn without_status(error: String) -> Self {
        HandlerResponse { status: None, error: Some(error), retry_after: None }
    }
}

/// Posts an event to a handler, if `permit` is still valid when the connection is open. `sent` is set before the first byte of
/// the request is written.
pub(super) async fn post(
    target: &CommonTarget,
    handler: &HandlerTarget,
    event: &OutboundEvent,
    permit: &SendingPermit,
    sent: &AtomicBool,
) -> HandlerResponse {
    let deadline = Instant::now() + target.timeout;
    let request = match request(target, handler, event, Timestamp::now()) {
        Ok(request) => request,
        Err(e) => return HandlerResponse::without_status(format!("cannot create the request: {e}")),
    };
    let (head, mut received) = (ResponseHead::default(), None);
    let write = WriteOnce { permit, sent };
    let ended = timeout_at(deadline, exchange(handler, request, deadline, write, &head, &mut received)).await;
    // A status counts as a response, even if the body takes too long or violates HTTP.
    received.or_else(|| recover_status(&head)).unwrap_or_else(|| {
        HandlerResponse::without_status(match ended {
            Ok(Err(error)) => error,
            _ => format!("{NO_ANSWER} within {}", crate::units::HumanDuration(target.timeout)),
        })
    })
}

/// The request: the headers and the body of Resmic's webhook, and the headers that this program adds.
fn request(
    target: &CommonTarget,
    handler: &HandlerTarget,
    event: &OutboundEvent,
    now: Timestamp,
) -> hyper::http::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(handler.path.as_str())
        .header(header::HOST, &handler.host)
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in event_headers(&target.signer, event, now) {
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::from(event.webhook.clone())))
}

/// Whether a request may be written, and whether it was written.
struct WriteOnce<'a> {
    permit: &'a SendingPermit,
    sent: &'a AtomicBool,
}

async fn exchange(
    handler: &HandlerTarget,
    request: Request<Full<Bytes>>,
    deadline: Instant,
    write: WriteOnce<'_>,
    head: &ResponseHead,
    received: &mut Option<HandlerResponse>,
) -> Result<(), String> {
    let stream = head.record(handler.destination.connect(deadline).await?);
    // The process may have been suspended since the worker read this delivery from the database, so `write.permit` may have
    // ended.
    if !write.permit.is_valid() {
        return Err(NO_PERMIT.into());
    }
    write.sent.store(true, Ordering::Relaxed);
    http::exchange(stream, request, async |response| receive(response, received).await).await
}

/// Evaluates a response by its status, and then reads the body for a short time, so that the handler can finish.
async fn receive(response: Response<Incoming>, received: &mut Option<HandlerResponse>) {
    let received = received.insert(evaluate(response.status(), |name| header_text(&response, name)));
    let mut excerpt = Vec::new();
    let _ = timeout_at(Instant::now() + BODY_TIMEOUT, read_body(response.into_body(), &mut excerpt)).await;
    received.error = received.error.take().map(|error| with_excerpt(error, &excerpt));
}

/// Evaluates the status of a response that hyper rejects, or that is incomplete.
fn recover_status(head: &ResponseHead) -> Option<HandlerResponse> {
    let found = head.status()?;
    Some(evaluate(found.status, |name| found.field(&name)))
}

fn evaluate(status: StatusCode, field: impl Fn(HeaderName) -> Option<String>) -> HandlerResponse {
    let retry_after = field(header::RETRY_AFTER).and_then(|value| http::retry_after(&value, Timestamp::now()));
    let error = (!status.is_success()).then(|| failure(status, field));
    HandlerResponse { status: Some(status.as_u16()), error, retry_after }
}

fn failure(status: StatusCode, field: impl Fn(HeaderName) -> Option<String>) -> String {
    if status.is_redirection() {
        let location = field(header::LOCATION).unwrap_or_default();
        return format!("{status}: a redirect to {:?}, which is not followed", printable(&location, MAX_EXCERPT));
    }
    status.to_string()
}

/// Adds the first line of the response body to `error`, because this line often names the problem.
fn with_excerpt(error: String, excerpt: &[u8]) -> String {
    let text = String::from_utf8_lossy(excerpt);
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!("{error}: {}", printable(line, MAX_EXCERPT)),
        None => error,
    }
}

/// Reads up to [`MAX_BODY`] bytes. The beginning of the body goes to `excerpt`.
async fn read_body(mut body: Incoming, excerpt: &mut Vec<u8>) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        read += data.len();
        // `MAX_EXCERPT` is a number of characters, and a character has up to four bytes in UTF-8.
        excerpt.extend(data.iter().take((4 * MAX_EXCERPT).saturating_sub(excerpt.len())));
        if read >= MAX_BODY {
            return;
        }
    }
}

/// Connects to the handler and sends no request.
pub(super) async fn check_connection(target: &CommonTarget, handler: &HandlerTarget) -> Result<(), String> {
    let deadline = Instant::now() + target.timeout;
    match timeout_at(deadline, handler.destination.connect(deadline)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(format!("no connection within {}", crate::units::HumanDuration(target.timeout))),
    }
}
