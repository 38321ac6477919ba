//! One POST: connect, ask, listen; within one deadline, believing nothing of the answer but its status.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::sign;
use super::target::Target;
use crate::db::{Claimed, DeliveredConfirmation};
use crate::http::{self, ResponseHead, header_text};
use crate::model::{NO_ANSWER, printable};

/// The most of an answer that is read; then the connection is closed.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The most of an answer's text that is kept for people.
const KEPT_WORDS: usize = 200;

/// How long the rest of an answer is listened to once its status has said it all.
const LISTEN: Duration = Duration::from_secs(1);

/// What a callback answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status, if one came.
    pub(super) status: Option<u16>,
    /// Why it is no success, in words; `None`: it is one.
    pub(super) error: Option<String>,
    /// `Retry-After`.
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    fn none(error: String) -> Self {
        Answer { status: None, error: Some(error), retry_after: None }
    }
}

/// Posts an event to its target. `sent` is set before the first byte of the request is written.
pub(super) async fn post(target: &Target, claimed: &Claimed, sent: &AtomicBool) -> Answer {
    let deadline = Instant::now() + target.timeout;
    let request = match request(target, claimed, Timestamp::now()) {
        Ok(request) => request,
        Err(e) => return Answer::none(format!("cannot make the request: {e}")),
    };
    let (head, mut heard) = (ResponseHead::default(), None);
    let ended = timeout_at(deadline, exchange(target, request, deadline, sent, &head, &mut heard)).await;
    // Once its status is there it has answered, however long the rest takes, and however it is framed.
    heard.or_else(|| salvage(&head)).unwrap_or_else(|| {
        Answer::none(match ended {
            Ok(Err(words)) => words,
            _ => format!("{NO_ANSWER} within {}", crate::units::HumanDuration(target.timeout)),
        })
    })
}

/// The request as Resmic would make it, with what is ours beside it.
fn request(target: &Target, claimed: &Claimed, now: Timestamp) -> hyper::http::Result<Request<Full<Bytes>>> {
    let body = claimed.webhook.as_bytes();
    let named = |name: &'static str| HeaderName::from_static(name);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(target.path.as_str())
        .header(header::HOST, &target.host)
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, "application/json")
        .header(named("x-signature"), target.signer.resmic(body))
        .header(named("idempotency-key"), &claimed.event_id)
        .header(named("webhook-id"), &claimed.event_id);
    if let Some(signature) = target.signer.standard(&claimed.event_id, now, body) {
        request =
            request.header(named("webhook-timestamp"), now.as_second()).header(named("webhook-signature"), signature);
    }
    if let Some(order_ref) = &claimed.order_ref {
        request = request.header(named("x-mailhook-order-ref"), sign::header_text(order_ref));
    }
    if let Some(DeliveredConfirmation { state, received, arrival }) = &claimed.confirmation {
        request = request.header(named("x-mailhook-chain"), state.as_str());
        let arrived = received.iter().map(|value| ("x-mailhook-received", value));
        for (name, value) in arrived.chain(arrival.iter().map(|value| ("x-mailhook-arrival", value))) {
            // Symbols of tokens are visible ASCII, as the configuration requires.
            if let Ok(value) = HeaderValue::from_str(value) {
                request = request.header(named(name), value);
            }
        }
    }
    request.body(Full::new(Bytes::from(claimed.webhook.clone())))
}

async fn exchange(
    target: &Target,
    request: Request<Full<Bytes>>,
    deadline: Instant,
    sent: &AtomicBool,
    head: &ResponseHead,
    heard: &mut Option<Answer>,
) -> Result<(), String> {
    let stream = head.record(target.destination.connect(deadline).await?);
    sent.store(true, Ordering::Relaxed);
    http::exchange(stream, request, async |response| hear(response, heard).await).await
}

/// Judges an answer by its status; listens to the rest so that the callback can finish, but not for long.
async fn hear(response: Response<Incoming>, heard: &mut Option<Answer>) {
    let heard = heard.insert(judge(response.status(), |name| header_text(&response, name)));
    let mut said = Vec::new();
    let _ = timeout_at(Instant::now() + LISTEN, read_some(response.into_body(), &mut said)).await;
    heard.error = heard.error.take().map(|error| with_words(error, &said));
}

/// The status of a response that hyper rejects, or does not see complete.
fn salvage(head: &ResponseHead) -> Option<Answer> {
    let found = head.status()?;
    Some(judge(found.status, |name| found.field(&name)))
}

fn judge(status: StatusCode, field: impl Fn(HeaderName) -> Option<String>) -> Answer {
    let retry_after = field(header::RETRY_AFTER).and_then(|value| http::retry_after(&value, Timestamp::now()));
    let error = (!status.is_success()).then(|| failure(status, field));
    Answer { status: Some(status.as_u16()), error, retry_after }
}

fn failure(status: StatusCode, field: impl Fn(HeaderName) -> Option<String>) -> String {
    if status.is_redirection() {
        let to = field(header::LOCATION).unwrap_or_default();
        return format!("{status}: a redirect to {:?}, which is not followed", printable(&to, KEPT_WORDS));
    }
    status.to_string()
}

/// An answer often says what is wrong; its first line is worth keeping.
fn with_words(error: String, said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!("{error}: {}", printable(line, KEPT_WORDS)),
        None => error,
    }
}

/// Reads up to [`LONGEST_ANSWER`], keeping the beginning.
async fn read_some(mut body: Incoming, said: &mut Vec<u8>) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        read += data.len();
        said.extend(data.iter().take(4 * KEPT_WORDS - said.len().min(4 * KEPT_WORDS)));
        if read >= LONGEST_ANSWER {
            return;
        }
    }
}

/// Whether the callback can be reached: connects, and asks for nothing.
pub(super) async fn reach(target: &Target) -> Result<(), String> {
    let deadline = Instant::now() + target.timeout;
    match timeout_at(deadline, target.destination.connect(deadline)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(format!("no connection within {}", crate::units::HumanDuration(target.timeout))),
    }
}
