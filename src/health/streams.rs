//! The health of the targets that are JetStream streams.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::Expected;
use crate::db::{self, StoreReader, StreamRow};
use crate::model::StreamState;

/// How long a stream may be unreachable before the health report shows a problem.
const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);

/// A target that is a JetStream stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamHealth {
    /// The target's name.
    pub target: String,
    /// The stream's name.
    pub stream: String,
    /// `connecting`, `connected` or `failed`.
    pub state: StreamState,
    /// The configured URLs of the NATS servers, separated by commas.
    pub servers: String,
    /// The version of the server to which the daemon connected last.
    pub version: Option<String>,
    /// Why the daemon cannot publish.
    pub problems: Vec<String>,
    /// Advice about settings of the stream that should be changed.
    pub notes: Vec<String>,
    /// For how many deliveries the stream already had the message.
    pub there_already: i64,
    /// How many messages the stream had lost, and the daemon has published again.
    pub refilled: i64,
    /// When the daemon found that the stream has lost messages that were not published again; `None`: there is no such loss.
    pub gap_since: Option<String>,
}

/// Returns the health of the targets that are streams, and adds their problems to `attention`. An unreachable server is a problem
/// after half a minute, which is longer than a restart of the server or an election in its cluster takes.
pub(super) fn streams(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<StreamHealth>> {
    if expected.streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut streams = Vec::new();
    for row in reader.streams()?.into_iter().filter(|row| expected.streams.contains(&row.target)) {
        let since = row.failing_since.as_deref().and_then(|since| since.parse::<Timestamp>().ok());
        let is_late = since.is_some_and(|since| now.duration_since(since) > UNREACHABLE);
        if row.needs_person || is_late {
            attention.extend(row.problems.iter().map(|problem| format!("target {}: {problem}", row.target)));
        }
        if let Some(since) = &row.gap_since {
            attention.push(format!(
                "target {0}: stream {1} has lost messages, noticed at {since}: deliveries verify --refill --target {0}",
                row.target, row.stream
            ));
        }
        let StreamRow {
            target,
            stream,
            state,
            servers,
            version,
            problems,
            notes,
            there_already,
            refilled,
            gap_since,
            ..
        } = row;
        streams.push(StreamHealth {
            target,
            stream,
            state,
            servers,
            version,
            problems,
            notes,
            there_already,
            refilled,
            gap_since,
        });
    }
    Ok(streams)
}
