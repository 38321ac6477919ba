//! The health of the targets that are JetStream streams.

use jiff::{SignedDuration, Timestamp};

use super::Expected;
use crate::db::{self, StoreReader, StreamRow};

/// How long a stream may be unreachable before the health report shows a problem.
const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);

/// Returns the targets that are streams, and adds their problems to `attention`. An unreachable server is a problem
/// after half a minute, which is longer than a restart of the server or an election in its cluster takes.
pub(super) fn streams(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<StreamRow>> {
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
        streams.push(row);
    }
    Ok(streams)
}
