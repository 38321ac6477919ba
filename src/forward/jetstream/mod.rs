//! A target that is a JetStream stream: each event becomes a message whose subject ends with the event's id.
//!
//! The server stores the message only if its subject has no message yet. So a message can be published any number of times, and
//! the stream has that message once. `inspect` reads the configuration of the stream and decides whether the stream is fit.
//! `connection` is one connection to a fit stream. `run` keeps a connection open and lets the worker deliver through it.
//! `republish` publishes the last events again after each connect. `verify` compares the stream with the database.
//! Both read the events through `delivered`. `losses` notices that the stream has lost messages.

mod connection;
mod delivered;
mod inspect;
mod losses;
mod republish;
mod run;
mod verify;

use async_nats::{HeaderMap, HeaderValue};
use jiff::Timestamp;

pub(super) use connection::StreamConnection;
pub(super) use inspect::probe;
pub(super) use run::run;
pub use verify::{FindingKind, StreamFinding, Verification, verify};

use super::headers::event_headers;
use super::settings::ForwardSettings;
use super::target::CommonTarget;
use crate::db::OutboundEvent;
use crate::model::Status;
use crate::nats::{NatsServers, RequiredStream};

/// The JetStream stream to which a target publishes its events.
#[derive(Debug)]
pub(super) struct StreamTarget {
    pub(super) servers: NatsServers,
    name: String,
    prefix: String,
    statuses: Vec<Status>,
}

/// Why a stream cannot be used now. Each line is a text for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamProblem {
    lines: Vec<String>,
    /// Whether an operator must correct the problem, because it does not pass by itself.
    needs_person: bool,
}

impl StreamProblem {
    fn passing(line: impl Into<String>) -> Self {
        StreamProblem { lines: vec![line.into()], needs_person: false }
    }

    fn lasting(line: impl Into<String>) -> Self {
        StreamProblem { lines: vec![line.into()], needs_person: true }
    }

    fn text(&self) -> String {
        self.lines.join("; ")
    }
}

impl StreamTarget {
    /// Creates the target from settings that were checked, so the names of the stream and of the subject are set.
    pub(super) fn new(servers: NatsServers, settings: &ForwardSettings) -> Self {
        StreamTarget {
            servers,
            name: settings.stream.as_ref().map(|name| name.0.clone()).unwrap_or_default(),
            prefix: settings.subject.as_ref().map(|prefix| prefix.0.clone()).unwrap_or_default(),
            statuses: settings.statuses.clone(),
        }
    }

    fn required(&self) -> RequiredStream<'_> {
        RequiredStream { name: &self.name, prefix: &self.prefix, statuses: &self.statuses }
    }

    /// The subject of an event. The subject identifies the message, and depends only on the id and the status of the event.
    fn subject(&self, event: &OutboundEvent) -> String {
        format!("{}.{}.{}", self.prefix, event.status, event.event_id)
    }

    /// Returns the headers of the message for an event.
    fn headers(&self, target: &CommonTarget, event: &OutboundEvent) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            let value = value.parse::<HeaderValue>().map_err(|e| format!("cannot create the header {name}: {e}"))?;
            headers.insert(name, value);
            Ok::<(), String>(())
        };
        // With the value 0, the server stores the message only if its subject has no message yet. There is no Nats-Msg-Id header,
        // because servers acknowledge a repetition with that header even if no quorum has stored the message.
        add("Nats-Expected-Last-Subject-Sequence", "0")?;
        add("Nats-Expected-Stream", &self.name)?;
        for (name, value) in event_headers(&target.signer, event, Timestamp::now()) {
            add(name, &value)?;
        }
        Ok(headers)
    }
}
