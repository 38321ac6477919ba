//! The requests to JetStream, and the errors in the answers of JetStream.

use std::time::Duration;

use async_nats::{HeaderMap, Message, Request, RequestErrorKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::interval;

use super::answer::{ApiError, PublishAnswer, check_length, parse_object};
use super::fitness::StreamInfo;
use crate::model::NO_ANSWER;
use crate::nats::NatsConnection;
use crate::units::HumanDuration;

/// How long a request to the JetStream API may take.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval and the largest number of the requests for a stream's configuration. A stream without a leader does not answer,
/// and the election of a leader takes some seconds.
const INFO_INTERVAL: Duration = Duration::from_millis(500);
const INFO_REQUESTS: usize = 20;
/// The JetStream error codes of "no message found" and "stream not found" (nats-server, errors.json).
const NO_MESSAGE: u64 = 10037;
const NO_STREAM: u64 = 10059;

/// Why a request to JetStream has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JetStreamError {
    /// No stream has this name.
    #[error("the stream does not exist")]
    NoStream,
    /// The NATS server refuses the request, or its answer cannot be parsed.
    #[error("{0}")]
    Refused(String),
    /// There was no answer in time, the connection was lost, or the NATS server is not available now.
    #[error("{0}")]
    NoAnswer(String),
}

/// The message that a stream has for a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The sequence number of the message in the stream.
    pub sequence: u64,
    /// The body of the message.
    pub body: Vec<u8>,
}

impl NatsConnection {
    /// Reads the configuration of a stream. The request is sent every half second until there is an answer, but for ten seconds
    /// at most.
    ///
    /// # Errors
    /// [`JetStreamError`].
    pub async fn stream_info(&self, stream: &str) -> Result<StreamInfo, JetStreamError> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let mut ticks = interval(INFO_INTERVAL);
        let (mut waiting, mut sent) = (FuturesUnordered::new(), 0);
        loop {
            let answer = tokio::select! {
                _ = ticks.tick(), if sent < INFO_REQUESTS => {
                    sent += 1;
                    waiting.push(self.call(&subject, ""));
                    continue;
                }
                Some(answer) = waiting.next() => answer.and_then(|answer| parse_answer::<StreamInfo>(&answer)),
            };
            let was_last = sent == INFO_REQUESTS && waiting.is_empty();
            match answer {
                Ok(found) => return Ok(found),
                Err(JetStreamError::NoAnswer(_)) if !was_last && !self.is_lost() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes a message for `stream`, and waits for the acknowledgement.
    pub async fn publish(
        &self,
        stream: &str,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> PublishAnswer {
        let request = Request::new().headers(headers).payload(body).timeout(Some(timeout));
        match self.request(subject, request).await {
            Ok(Message { status: Some(status), .. }) => {
                PublishAnswer::Unproven(format!("the answer is the status {status}, and no acknowledgement"))
            }
            Ok(answer) => PublishAnswer::parse(&answer.payload, stream),
            Err(kind) => match kind {
                RequestErrorKind::NoResponders => {
                    PublishAnswer::Refused { reason: "no stream listens on the subject (503)".into(), passes: true }
                }
                RequestErrorKind::MaxPayloadExceeded => {
                    PublishAnswer::NotSent("the event is larger than max_payload of the server".into())
                }
                RequestErrorKind::InvalidSubject => PublishAnswer::NotSent("the subject is not valid".into()),
                RequestErrorKind::TimedOut => PublishAnswer::NoAnswer(
                    self.with_last_error(format!("{NO_ANSWER} within {}", HumanDuration(timeout))),
                ),
                RequestErrorKind::Other => PublishAnswer::NoAnswer(format!("{NO_ANSWER}: {}", self.why_lost())),
            },
        }
    }

    /// Reads the message that `stream` has for a subject. With `direct`, any replica of the stream may answer. If that replica
    /// has no message, the function asks the leader, because a replica may not have the newest messages yet.
    ///
    /// # Errors
    /// [`JetStreamError`].
    pub async fn stored_message(
        &self,
        stream: &str,
        subject: &str,
        direct: bool,
    ) -> Result<Option<StoredMessage>, JetStreamError> {
        if direct {
            let answer = self.call(&format!("$JS.API.DIRECT.GET.{stream}.{subject}"), "").await?;
            if let Some(found) = direct_message(&answer, stream, subject) {
                return Ok(Some(found));
            }
        }
        let request = json!({ "last_by_subj": subject }).to_string();
        let answer = self.call(&format!("$JS.API.STREAM.MSG.GET.{stream}"), &request).await?;
        message_of_leader(&answer, subject)
    }

    async fn call(&self, subject: &str, body: &str) -> Result<Message, JetStreamError> {
        let request = Request::new().payload(Bytes::copy_from_slice(body.as_bytes())).timeout(Some(API_TIMEOUT));
        let answer = self.request(subject.to_owned(), request).await.map_err(|kind| match kind {
            RequestErrorKind::NoResponders => JetStreamError::NoAnswer(
                "JetStream does not answer; it is not enabled for this user, or has no leader".into(),
            ),
            RequestErrorKind::TimedOut => {
                let message = format!("{NO_ANSWER} to {subject} within {}", HumanDuration(API_TIMEOUT));
                JetStreamError::NoAnswer(self.with_last_error(message))
            }
            _ => JetStreamError::NoAnswer(format!("{NO_ANSWER} to {subject}: {}", self.why_lost())),
        })?;
        check_length(&answer.payload).map_err(|reason| unreadable(&reason))?;
        Ok(answer)
    }

    /// Adds the last error that the server reported to `message`. If a permission is missing, the server does not answer the
    /// request, and only reports an error on the connection.
    fn with_last_error(&self, message: String) -> String {
        match self.last_error() {
            Some(error) => format!("{message}; the server reported: {error}"),
            None => message,
        }
    }
}

fn unreadable(reason: &str) -> JetStreamError {
    JetStreamError::Refused(format!("the answer of the NATS server cannot be read: {reason}"))
}

/// Parses the error in an answer of the JetStream API; `None` if it has no error.
fn parse_error(answer: &Message) -> Result<Option<ApiError>, JetStreamError> {
    #[derive(Deserialize)]
    struct Failure {
        error: Option<ApiError>,
    }
    let Failure { error } = parse_object(&answer.payload).map_err(|reason| unreadable(&reason))?;
    Ok(error)
}

/// Parses an answer of the JetStream API. An error in the answer becomes a [`JetStreamError`].
fn parse_answer<T: DeserializeOwned>(answer: &Message) -> Result<T, JetStreamError> {
    let Some(error) = parse_error(answer)? else {
        return parse_object(&answer.payload).map_err(|reason| unreadable(&reason));
    };
    let text = error.text();
    Err(match (error.code, error.err_code) {
        (_, Some(NO_STREAM)) => JetStreamError::NoStream,
        (Some(503), _) => JetStreamError::NoAnswer(format!("the NATS server is not available: {text}")),
        (_, code) => JetStreamError::Refused(format!(
            "the NATS server refuses the request: {text} ({})",
            code.unwrap_or_default()
        )),
    })
}

/// Extracts the message from the answer to a direct read; `None` if the answer has no message of this stream and this subject.
fn direct_message(answer: &Message, stream: &str, subject: &str) -> Option<StoredMessage> {
    let headers = answer.headers.as_ref()?;
    let text = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    if answer.status.is_some() || text("Nats-Stream") != Some(stream) || text("Nats-Subject") != Some(subject) {
        return None;
    }
    let sequence = text("Nats-Sequence")?.parse().ok().filter(|sequence| *sequence > 0)?;
    Some(StoredMessage { sequence, body: answer.payload.to_vec() })
}

/// Extracts the message from the answer of the stream's leader; `None`: the leader has no message for the subject.
fn message_of_leader(answer: &Message, subject: &str) -> Result<Option<StoredMessage>, JetStreamError> {
    #[derive(Deserialize)]
    struct StoredAnswer {
        message: FoundMessage,
    }
    #[derive(Deserialize)]
    struct FoundMessage {
        subject: String,
        seq: u64,
        #[serde(default)]
        data: String,
    }
    if parse_error(answer)?.is_some_and(|error| error.err_code == Some(NO_MESSAGE)) {
        return Ok(None);
    }
    let StoredAnswer { message } = parse_answer(answer)?;
    if message.subject != subject || message.seq == 0 {
        return Err(unreadable("it has a message of another subject"));
    }
    let body = STANDARD.decode(&message.data).map_err(|e| unreadable(&e.to_string()))?;
    Ok(Some(StoredMessage { sequence: message.seq, body }))
}
