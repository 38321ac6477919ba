//! Publishes the last acknowledged events again, after each connect to a stream.
//!
//! A server acknowledges a message before it is on the disk (`sync_interval`, by default two minutes). After a power failure the
//! stream may lack the last messages. The server does not store a message again if the stream still has it.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::connection::StreamConnection;
use super::delivered::DeliveredReader;
use super::{StreamProblem, StreamTarget};
use crate::db::{self, DeliveredEvent, Store};
use crate::forward::target::CommonTarget;
use crate::forward::worker::CONCURRENCY;
use crate::nats::PublishAnswer;

/// Events that were acknowledged within this time before the last delivery, or later, are published again. The server is expected
/// to have written older messages to the disk.
const WINDOW: Duration = Duration::from_secs(5 * 60);

/// Why the repeated publishing of acknowledged events has stopped.
pub(super) enum RepublishError {
    Store(db::Error),
    /// The connection to the stream has ended or must end.
    Connection(StreamProblem),
}

impl From<db::Error> for RepublishError {
    fn from(error: db::Error) -> Self {
        RepublishError::Store(error)
    }
}

/// What was published again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Replay {
    /// The highest sequence number that the stream has acknowledged before this connection, of the events that were published
    /// again.
    highest: u64,
    /// How many of the events the stream had lost. It has them again.
    pub(super) refilled: u64,
}

impl Replay {
    /// Whether the stream has lost more messages than it has got again. `last_sequence` is the last sequence number of the stream
    /// before the events were published again.
    pub(super) fn leaves_gap(&self, last_sequence: u64) -> bool {
        self.highest.saturating_sub(last_sequence) > self.refilled
    }
}

/// Publishes again the events that the stream acknowledged in the five minutes before the last delivery, or later, in the order
/// of the stream. Events of one payment session are published one after the other. `replay` is also valid after an error, and
/// when this future was dropped.
pub(super) async fn republish(
    connection: &StreamConnection,
    stream: &StreamTarget,
    target: &CommonTarget,
    store: &Store,
    replay: &mut Replay,
) -> Result<(), RepublishError> {
    let Some(position) = store.last_acknowledged(&target.name, WINDOW).await? else { return Ok(()) };
    let mut reader = DeliveredReader::new(position);
    loop {
        let page = reader.next(store, &target.name, &stream.name).await?;
        if page.is_empty() {
            return Ok(());
        }
        let mut running = FuturesUnordered::new();
        let mut sessions: Vec<Option<String>> = Vec::new();
        for delivered in page.into_iter().filter(|delivered| !connection.has_expired(delivered)) {
            while running.len() >= CONCURRENCY || is_blocked(&sessions, &delivered) {
                replay.refilled += u64::from(finish(running.next().await, &mut sessions)?);
            }
            replay.highest = replay.highest.max(delivered.sequence_in(&stream.name).unwrap_or(0));
            let session_id = delivered.event.session_id.clone();
            sessions.push(session_id.clone());
            running.push(async move { (session_id, put_again(connection, target, store, &delivered).await) });
        }
        while !running.is_empty() {
            replay.refilled += u64::from(finish(running.next().await, &mut sessions)?);
        }
    }
}

/// The payment session of an event that was published again, and whether the stream had lost the event.
type Ended = (Option<String>, Result<bool, RepublishError>);

fn finish(ended: Option<Ended>, sessions: &mut Vec<Option<String>>) -> Result<bool, RepublishError> {
    let Some((session_id, result)) = ended else { return Ok(false) };
    if let Some(n) = sessions.iter().position(|running| *running == session_id) {
        sessions.swap_remove(n);
    }
    result
}

/// Whether another event of the payment session of `delivered` is being published.
fn is_blocked(sessions: &[Option<String>], delivered: &DeliveredEvent) -> bool {
    let Some(session_id) = &delivered.event.session_id else { return false };
    sessions.iter().flatten().any(|running| running.eq_ignore_ascii_case(session_id))
}

/// Publishes an event again. Returns whether the stream had lost it.
async fn put_again(
    connection: &StreamConnection,
    target: &CommonTarget,
    store: &Store,
    delivered: &DeliveredEvent,
) -> Result<bool, RepublishError> {
    match connection.put(target, &delivered.event).await {
        PublishAnswer::SubjectTaken => Ok(false),
        PublishAnswer::Stored(sequence) => {
            let (event_id, lost) = (delivered.event.event_id.as_str(), delivered.receipt.as_str());
            let receipt = connection.receipt(sequence, false);
            tracing::warn!(callback = target.name, event_id, lost, %receipt, "the stream had lost this event; it has it again");
            store.record_refill(&target.name, delivered.delivery_id, receipt).await?;
            Ok(true)
        }
        PublishAnswer::Refused { reason, passes } => {
            let line = connection.about(&format!("cannot publish the last events again: {reason}"));
            Err(RepublishError::Connection(StreamProblem { lines: vec![line], needs_person: !passes }))
        }
        PublishAnswer::Unproven(reason) => {
            Err(RepublishError::Connection(StreamProblem::lasting(connection.about(&reason))))
        }
        PublishAnswer::NoAnswer(reason) | PublishAnswer::NotSent(reason) => {
            Err(RepublishError::Connection(StreamProblem::passing(connection.about(&reason))))
        }
    }
}
