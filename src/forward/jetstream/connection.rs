//! One connection to a stream that `inspect` found fit. The connection publishes events until it is lost, or until an answer
//! shows that the stream cannot be relied on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::inspect::Inspection;
use super::{StreamProblem, StreamTarget, losses};
use crate::db::{DeliveredEvent, OutboundEvent, Store, StreamReceipt};
use crate::forward::attempt::{AttemptEnd, Failure, RetryRule};
use crate::forward::target::CommonTarget;
use crate::forward::worker::{CONCURRENCY, Sending};
use crate::model::{AttemptResult, NO_ANSWER, iso};
use crate::nats::{JetStreamError, NatsConnection, PublishAnswer, StoredMessage, StreamInfo};
use crate::sending_permit::NO_PERMIT;

/// A message counts as expired this long before its age reaches the stream's `max_age`, because the clocks may differ.
const EXPIRES_SOON: Duration = Duration::from_secs(3600);

/// A connection to a NATS server, for publishing events to one stream.
pub(in crate::forward) struct StreamConnection {
    stream: Arc<StreamTarget>,
    sending: Sending,
    nats: NatsConnection,
    /// The configuration and the sequence numbers of the stream at the connect.
    info: StreamInfo,
    version: String,
    /// The settings of the stream that should be changed.
    notes: watch::Sender<Vec<String>>,
    /// Whether the stream has acknowledged an event on this connection. Before the first acknowledgement, the worker makes one
    /// attempt at a time.
    is_acknowledged: AtomicBool,
    /// The highest sequence number with which the stream has acknowledged a delivery on this connection.
    highest: AtomicU64,
    /// Whether the stream has answered a publish on this connection, or no delivery was due.
    is_proven: watch::Sender<bool>,
    /// Why the stream refused the last event that it has answered, for example because the stream is full; `None` if it has
    /// acknowledged the event.
    refusal: watch::Sender<Option<String>>,
    /// Why the connection has ended; `None` while it is open.
    end: watch::Sender<Option<StreamProblem>>,
}

impl StreamConnection {
    /// Connects to a NATS server, and returns an error if the stream is not fit. Events are published within the limits of
    /// `sending`.
    pub(super) async fn open(stream: &Arc<StreamTarget>, sending: Sending) -> Result<Self, StreamProblem> {
        let (nats, inspection) = stream.connect().await?;
        let lines = stream.problems(&inspection);
        if !lines.is_empty() {
            return Err(StreamProblem { lines, needs_person: true });
        }
        Ok(StreamConnection::new(stream, sending, nats, inspection))
    }

    /// Creates the connection from the result of [`StreamTarget::connect`].
    pub(super) fn new(
        stream: &Arc<StreamTarget>,
        sending: Sending,
        nats: NatsConnection,
        inspection: Inspection,
    ) -> Self {
        let Inspection { version, info, fitness, .. } = inspection;
        StreamConnection {
            stream: stream.clone(),
            sending,
            nats,
            info,
            version,
            notes: watch::Sender::new(fitness.notes),
            is_acknowledged: AtomicBool::new(false),
            highest: AtomicU64::new(0),
            is_proven: watch::Sender::new(false),
            refusal: watch::Sender::new(None),
            end: watch::Sender::new(None),
        }
    }

    /// How many attempts may run at the same time; 0 after the end of the connection.
    pub(in crate::forward) fn concurrency(&self) -> usize {
        if self.end.borrow().is_some() {
            0
        } else if self.is_acknowledged.load(Ordering::Relaxed) {
            CONCURRENCY
        } else {
            1
        }
    }

    /// Returns when the connection has ended.
    pub(in crate::forward) async fn ended(&self) {
        let mut end = self.end.subscribe();
        tokio::select! {
            _ = end.wait_for(Option::is_some) => {}
            () = self.nats.lost() => self.end(StreamProblem::passing(format!(
                "the connection to {} was lost",
                self.stream.servers
            ))),
        }
    }

    /// Reads the stream's configuration again at each interval of [`Sending`]. Ends the connection if the stream is no longer fit,
    /// if it has lost messages, or if it cannot be read. A stream can be changed, or be deleted and created again, while the
    /// connection stays open. After a loss, the reconnect publishes the last acknowledged events again.
    pub(super) async fn watch_stream(&self, target: &str, store: &Store) -> Infallible {
        let mut before = self.info.clone();
        while self.problem().is_none() {
            tokio::time::sleep(self.sending.inspection_interval).await;
            match self.inspect_again(&before, target, store).await {
                Ok(now) => before = now,
                Err(problem) => self.end(problem),
            }
        }
        std::future::pending().await
    }

    async fn inspect_again(
        &self,
        before: &StreamInfo,
        target: &str,
        store: &Store,
    ) -> Result<StreamInfo, StreamProblem> {
        // An event that the stream acknowledges during the request may have a higher number than the answer.
        let acknowledged = self.highest.load(Ordering::Relaxed);
        let inspection = self.stream.inspect(&self.nats).await?;
        let lines = self.stream.problems(&inspection);
        if !lines.is_empty() {
            return Err(StreamProblem { lines, needs_person: true });
        }
        let notes = inspection.fitness.notes;
        self.notes.send_if_modified(|before| {
            let is_new = *before != notes;
            *before = notes;
            is_new
        });
        let now = inspection.info;
        if let Some(lost) = losses::lost_since(before, &now, acknowledged) {
            return Err(StreamProblem::passing(self.about(&format!("it has lost {lost}"))));
        }
        let removed = before.first_sequence().unwrap_or(0)..now.first_sequence().unwrap_or(0);
        match losses::lacks_oldest(self, removed, target, store).await {
            Ok(false) => Ok(now),
            Ok(true) => Err(StreamProblem::passing(self.about("it has lost its oldest messages"))),
            Err(error) => Err(StreamProblem::passing(format!("cannot use the outbox: {error}"))),
        }
    }

    /// Returns when the stream has answered a publish on this connection, or when no delivery was due.
    pub(super) async fn proven(&self) {
        let _ = self.is_proven.subscribe().wait_for(|proven| *proven).await;
    }

    pub(super) fn is_proven(&self) -> bool {
        *self.is_proven.borrow()
    }

    /// Sets `is_proven`, because the stream has answered a publish, or because no delivery is due.
    pub(in crate::forward) fn note_idle(&self) {
        self.is_proven.send_if_modified(|proven| !std::mem::replace(proven, true));
    }

    /// Ends the connection for the reason `problem`. If the connection has ended already, the first reason stays.
    pub(super) fn end(&self, problem: StreamProblem) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(problem);
            is_first
        });
    }

    /// Why the connection has ended; `None` while it is open.
    pub(super) fn problem(&self) -> Option<StreamProblem> {
        self.end.borrow().clone()
    }

    pub(super) fn has_acknowledged(&self) -> bool {
        self.is_acknowledged.load(Ordering::Relaxed)
    }

    /// The configuration and the sequence numbers of the stream at the connect.
    pub(super) fn info(&self) -> &StreamInfo {
        &self.info
    }

    /// The name of the stream.
    pub(super) fn stream_name(&self) -> &str {
        &self.stream.name
    }

    /// Whether the stream has deleted the message of an event because of its age, or will do so within an hour. Such an event must
    /// not be published again: the stream would store it a second time.
    pub(super) fn has_expired(&self, delivered: &DeliveredEvent) -> bool {
        self.expired_until().is_some_and(|expired_until| delivered.acknowledged_at <= expired_until)
    }

    /// The time of the last acknowledgement whose message counts as expired, in the form of [`iso`]. `None`: messages do not expire.
    pub(super) fn expired_until(&self) -> Option<String> {
        let age = self.info.max_age()?.saturating_sub(EXPIRES_SOON);
        Timestamp::now().checked_sub(age).ok().map(iso)
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Returns a receiver of the settings of the stream that should be changed, one text for each.
    pub(super) fn notes(&self) -> watch::Receiver<Vec<String>> {
        self.notes.subscribe()
    }

    /// Publishes an event and waits for the answer, or for the end of the connection.
    pub(super) async fn put(&self, target: &CommonTarget, event: &OutboundEvent) -> PublishAnswer {
        let headers = match self.stream.headers(target, event) {
            Ok(headers) => headers,
            Err(error) => return PublishAnswer::NotSent(error),
        };
        if self.problem().is_some() || self.nats.is_lost() {
            self.end(StreamProblem::passing(format!("the connection to {} was lost", self.stream.servers)));
            return PublishAnswer::NotSent("the connection was lost before the attempt".into());
        }
        if !self.sending.permit.is_valid() {
            return PublishAnswer::NotSent(NO_PERMIT.into());
        }
        let (subject, body) = (self.stream.subject(event), Bytes::copy_from_slice(event.webhook.as_bytes()));
        let publishing = self.nats.publish(&self.stream.name, subject, headers, body, target.timeout);
        let mut end = self.end.subscribe();
        let ended = async {
            let _ = end.wait_for(Option::is_some).await;
        };
        tokio::select! {
            biased;
            answer = publishing => answer,
            () = ended => PublishAnswer::NoAnswer(format!("{NO_ANSWER}: the connection was lost")),
        }
    }

    /// Publishes an event as one attempt of its delivery. `sent` is set before the message is written.
    pub(in crate::forward) async fn deliver(
        &self,
        target: &CommonTarget,
        event: &OutboundEvent,
        sent: &AtomicBool,
    ) -> AttemptEnd {
        sent.store(true, Ordering::Relaxed);
        let (began, before) = (Instant::now(), self.highest.load(Ordering::Relaxed));
        let answer = self.put(target, event).await;
        match answer {
            // A stream numbers its messages in ascending order. Another server of the cluster may have lost messages in a power
            // failure, or the stream was deleted and created again, while the connection to this server stayed open. After the
            // reconnect, the last acknowledged events are published again.
            PublishAnswer::Stored(sequence) if sequence <= before => {
                let reason = format!("it has lost messages: message {sequence} was stored after message {before}");
                self.end(StreamProblem::passing(self.about(&reason)));
                failed(AttemptResult::NoResponse, reason, RetryRule::WhenReachable)
            }
            PublishAnswer::Stored(sequence) => {
                self.highest.fetch_max(sequence, Ordering::Relaxed);
                self.note_acknowledgement(began.elapsed());
                AttemptEnd::Stored(self.receipt(sequence, false))
            }
            PublishAnswer::SubjectTaken => self.read_back(event, began).await,
            PublishAnswer::Refused { reason, passes: false } => {
                self.note_refusal(Some(&reason));
                self.note_idle();
                failed(AttemptResult::Rejected, reason, RetryRule::Counted(None))
            }
            PublishAnswer::Refused { reason, passes: true } => {
                self.end(StreamProblem::passing(self.about(&reason)));
                failed(AttemptResult::Rejected, reason, RetryRule::WhenReachable)
            }
            PublishAnswer::Unproven(reason) => {
                self.end(StreamProblem::lasting(self.about(&reason)));
                failed(AttemptResult::NoResponse, reason, RetryRule::WhenReachable)
            }
            PublishAnswer::NoAnswer(reason) => {
                self.end(StreamProblem::passing(self.about(&reason)));
                failed(AttemptResult::NoResponse, reason, RetryRule::WhenReachable)
            }
            PublishAnswer::NotSent(reason) if self.problem().is_some() || !self.sending.permit.is_valid() => {
                failed(AttemptResult::NotSent, reason, RetryRule::WhenReachable)
            }
            PublishAnswer::NotSent(reason) => failed(AttemptResult::NotSent, reason, RetryRule::Counted(None)),
        }
    }

    /// Reads the message that the event's subject already has. The event counts as delivered only if that message can be read.
    async fn read_back(&self, event: &OutboundEvent, began: Instant) -> AttemptEnd {
        match self.stored(event).await {
            Ok(Some(found)) => {
                self.note_acknowledgement(began.elapsed());
                if found.body != event.webhook.as_bytes() {
                    let (event_id, sequence) = (event.event_id.as_str(), found.sequence);
                    tracing::warn!(
                        event_id,
                        sequence,
                        stream = self.stream.name,
                        "the stream already has this event with another body; it stays as it is"
                    );
                }
                AttemptEnd::Stored(self.receipt(found.sequence, true))
            }
            Ok(None) => {
                let error = "the stream refuses the event as a repetition, and has no such message".into();
                failed(AttemptResult::NoResponse, error, RetryRule::Uncounted)
            }
            Err(error) => {
                let reason = format!("the stream has the event already, and it cannot be read: {error}");
                if matches!(error, JetStreamError::NoAnswer(_)) {
                    self.end(StreamProblem::passing(self.about(&reason)));
                    return failed(AttemptResult::NoResponse, reason, RetryRule::WhenReachable);
                }
                failed(AttemptResult::NoResponse, reason, RetryRule::Uncounted)
            }
        }
    }

    /// Reads the message that the stream has for an event.
    pub(super) async fn stored(&self, event: &OutboundEvent) -> Result<Option<StoredMessage>, JetStreamError> {
        self.nats.stored_message(&self.stream.name, &self.stream.subject(event), self.info.allows_direct()).await
    }

    pub(super) fn receipt(&self, sequence: u64, was_there: bool) -> StreamReceipt {
        StreamReceipt { stream: self.stream.name.clone(), sequence, was_there }
    }

    fn note_acknowledgement(&self, took: Duration) {
        self.sending.publishes.observe(took);
        self.is_acknowledged.store(true, Ordering::Relaxed);
        self.note_refusal(None);
        self.note_idle();
    }

    fn note_refusal(&self, reason: Option<&str>) {
        self.refusal.send_if_modified(|refusal| {
            let is_new = refusal.as_deref() != reason;
            *refusal = reason.map(str::to_owned);
            is_new
        });
    }

    /// Returns a receiver of the reason why the stream refused the last event; `None` if it has acknowledged the event.
    pub(super) fn refusals(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }

    /// Returns a line for the operator: the name of the stream, its servers and `reason`.
    pub(super) fn about(&self, reason: &str) -> String {
        format!("stream {} at {}: {reason}", self.stream.name, self.stream.servers)
    }
}

fn failed(result: AttemptResult, error: String, retry: RetryRule) -> AttemptEnd {
    AttemptEnd::Failed(Failure { result, status: None, error, retry })
}
