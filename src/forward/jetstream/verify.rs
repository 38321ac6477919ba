//! Compares a target's stream with the delivered events in the database, for `deliveries verify`.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;

use super::StreamTarget;
use super::connection::StreamConnection;
use super::delivered::DeliveredReader;
use crate::db::{DeliveredEvent, DeliveredPosition, Store};
use crate::forward::Target;
use crate::forward::target::{CommonTarget, TargetKind};
use crate::forward::worker::{CONCURRENCY, Sending};
use crate::nats::{PublishAnswer, StoredMessage};

/// An event that the stream has lost, or has with another body than the delivered one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFinding {
    /// The event's id.
    pub event_id: String,
    /// The receipt of the delivery, as it was before the comparison.
    pub receipt: String,
    /// The problem.
    pub kind: FindingKind,
}

/// The problem of a [`StreamFinding`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FindingKind {
    /// The stream has no message for the event.
    Missing,
    /// The stream has the event with another body, in the message with this sequence number.
    Different(u64),
    /// The stream had lost the event, so the program published the event again. The text is the new receipt, `STREAM:SEQ`.
    Refilled(String),
}

/// The counts of a comparison between a stream and the delivered events in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// The settings that forbid the use of the stream, one text for each. An unfit stream can lose messages later.
    pub problems: Vec<String>,
    /// How many delivered events were compared.
    pub checked: u64,
    /// The number of compared events that the stream does not have.
    pub missing: u64,
    /// The number of compared events that the stream has with another body.
    pub different: u64,
    /// How many of the compared events were lost and are stored again.
    pub refilled: u64,
    /// How many of the compared events were published before their session was found. The message stays without the session, and
    /// is not different otherwise.
    pub without_session: u64,
    /// How many delivered events were not compared, because the stream deletes messages of their age (`max_age`).
    pub expired: u64,
}

impl Verification {
    /// Whether the stream is fit, and has every event as it was delivered, except for the expired events.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.missing == 0 && self.different == 0
    }
}

/// Reads the message of each event that the target's stream acknowledged at `since` or later, and compares the bodies. `report`
/// gets each difference. Expired events are not compared. With `refill`, missing events are published again. If an event is
/// missing in the end, the health report shows that the stream has lost messages. The health report no longer shows this loss if
/// all events of a fit stream were compared and none is missing. `None`: the target is no stream.
///
/// # Errors
/// A text for the operator, if the stream cannot be reached or must not be refilled, or if the database cannot be used.
pub async fn verify(
    target: &Target,
    store: &Store,
    since: Option<Timestamp>,
    refill: bool,
    mut report: impl FnMut(StreamFinding) -> Result<(), String>,
) -> Option<Result<Verification, String>> {
    let TargetKind::Stream(stream) = &target.kind else { return None };
    let compared = async {
        let began = Timestamp::now();
        let (connection, problems) = open(stream, refill).await?;
        let counts = Verification { problems, ..Verification::default() };
        let connection = Arc::new(connection);
        let mut comparison = StreamComparison { connection, target: &target.common, store, refill, counts };
        let ended = comparison.compare_all(since, &mut report).await;
        let counts = comparison.counts;
        if counts.missing > 0 {
            // The loss is recorded also if the rest of the comparison has failed.
            store.record_gap(target.name()).await.map_err(|e| e.to_string())?;
        }
        ended?;
        if since.is_none() && counts.missing == 0 && counts.problems.is_empty() {
            store.record_no_gap(target.name(), began).await.map_err(|e| e.to_string())?;
        }
        Ok(counts)
    };
    Some(compared.await)
}

/// Connects to the stream for the comparison. Returns the connection and the settings that forbid the use of the stream. If
/// `refill` is true, such a setting is an error.
async fn open(stream: &Arc<StreamTarget>, refill: bool) -> Result<(StreamConnection, Vec<String>), String> {
    let (nats, inspection) = stream.connect().await.map_err(|problem| problem.text())?;
    let problems = stream.problems(&inspection);
    if refill && !problems.is_empty() {
        return Err(problems.join("; "));
    }
    Ok((StreamConnection::new(stream, Sending::default(), nats, inspection), problems))
}

/// A comparison that runs.
struct StreamComparison<'a> {
    connection: Arc<StreamConnection>,
    target: &'a CommonTarget,
    store: &'a Store,
    refill: bool,
    counts: Verification,
}

impl StreamComparison<'_> {
    async fn compare_all(
        &mut self,
        since: Option<Timestamp>,
        report: &mut impl FnMut(StreamFinding) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut reader = DeliveredReader::new(DeliveredPosition::before(since));
        loop {
            let page = reader.next(self.store, &self.target.name, self.connection.stream_name()).await;
            let mut page = page.map_err(|e| e.to_string())?;
            if page.is_empty() {
                return Ok(());
            }
            let read = page.len();
            page.retain(|delivered| !self.connection.has_expired(delivered));
            self.counts.expired += (read - page.len()) as u64;
            let connection = self.connection.clone();
            let mut reading = stream::iter(page)
                .map(|delivered| async { (connection.stored(&delivered.event).await, delivered) })
                .buffered(CONCURRENCY);
            while let Some((found, delivered)) = reading.next().await {
                let found = found.map_err(|error| connection.about(&error.to_string()))?;
                if let Some(finding) = self.compare_event(found, delivered).await? {
                    report(finding)?;
                }
            }
        }
    }

    /// Compares one event with its message `found`, and counts the result.
    async fn compare_event(
        &mut self,
        found: Option<StoredMessage>,
        delivered: DeliveredEvent,
    ) -> Result<Option<StreamFinding>, String> {
        let (connection, counts) = (&self.connection, &mut self.counts);
        counts.checked += 1;
        if let Some(found) = &found {
            correct_receipt(connection, self.store, &delivered, found.sequence).await?;
        }
        let kind = match compare(found.as_ref(), &delivered) {
            Comparison::Same => return Ok(None),
            Comparison::WithoutSession => {
                counts.without_session += 1;
                return Ok(None);
            }
            Comparison::Finding(FindingKind::Missing) if self.refill => {
                let refilled = put_again(connection, self.target, self.store, &delivered).await;
                refilled.inspect_err(|_| counts.missing += 1)?
            }
            Comparison::Finding(kind) => kind,
        };
        match kind {
            FindingKind::Missing => counts.missing += 1,
            FindingKind::Different(_) => counts.different += 1,
            FindingKind::Refilled(_) => counts.refilled += 1,
        }
        let DeliveredEvent { receipt, event, .. } = delivered;
        Ok(Some(StreamFinding { event_id: event.event_id, receipt, kind }))
    }
}

/// Writes the receipt again if the stream has the event in another message than the receipt says. Otherwise, the next connect
/// could take the message of the old receipt for lost.
async fn correct_receipt(
    connection: &StreamConnection,
    store: &Store,
    delivered: &DeliveredEvent,
    sequence: u64,
) -> Result<(), String> {
    if delivered.sequence_in(connection.stream_name()) == Some(sequence) {
        return Ok(());
    }
    let receipt = connection.receipt(sequence, true);
    store.correct_receipt(delivered.delivery_id, receipt).await.map_err(|e| e.to_string())
}

/// The result of the comparison of one event with its message.
enum Comparison {
    Same,
    /// The body of the message differs only in the session, which is `null` there.
    WithoutSession,
    Finding(FindingKind),
}

fn compare(found: Option<&StoredMessage>, delivered: &DeliveredEvent) -> Comparison {
    match found {
        None => Comparison::Finding(FindingKind::Missing),
        Some(found) if found.body == delivered.event.webhook.as_bytes() => Comparison::Same,
        Some(found) if lacks_session(&found.body, &delivered.event.webhook) => Comparison::WithoutSession,
        Some(found) => Comparison::Finding(FindingKind::Different(found.sequence)),
    }
}

/// Whether `published` is the body `webhook` without its session. If another target waits for the session, a session that is found
/// later is added to the body in the database, after this target has published it.
fn lacks_session(published: &[u8], webhook: &str) -> bool {
    let rest = webhook.strip_prefix(r#"{"session_id":""#).and_then(|rest| rest.split_once("\","));
    rest.is_some_and(|(_, rest)| published.strip_prefix(br#"{"session_id":null,"#) == Some(rest.as_bytes()))
}

async fn put_again(
    connection: &StreamConnection,
    target: &CommonTarget,
    store: &Store,
    delivered: &DeliveredEvent,
) -> Result<FindingKind, String> {
    let sequence = match connection.put(target, &delivered.event).await {
        PublishAnswer::Stored(sequence) => sequence,
        // The daemon has published the event after this command found it missing.
        PublishAnswer::SubjectTaken => match connection.stored(&delivered.event).await {
            Ok(Some(found)) => found.sequence,
            Ok(None) => return Err(connection.about("the event is refused as a repetition, and is not in the stream")),
            Err(error) => return Err(connection.about(&error.to_string())),
        },
        PublishAnswer::Refused { reason, .. }
        | PublishAnswer::Unproven(reason)
        | PublishAnswer::NoAnswer(reason)
        | PublishAnswer::NotSent(reason) => return Err(connection.about(&reason)),
    };
    let receipt = connection.receipt(sequence, false);
    let text = receipt.to_string();
    store.record_refill(&target.name, delivered.delivery_id, receipt).await.map_err(|e| e.to_string())?;
    Ok(FindingKind::Refilled(text))
}
