//! The health of Resmic's API.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::Expected;
use super::waiting::counted;
use crate::db::{self, StoreReader};

/// The health of Resmic's API, and the numbers of events and sessions that need Resmic's answers or a person.
#[derive(Debug, Clone, Serialize)]
pub struct ResmicHealth {
    /// The API's host; `None` before the first request.
    pub host: Option<String>,
    /// The time of the last request that is recorded in the database.
    pub asked_at: Option<String>,
    /// The last error; `None` if the last request succeeded.
    pub last_error: Option<String>,
    /// How many events wait until Resmic reports their session as `Completed`.
    pub waiting: i64,
    /// How many events an answer of Resmic's API contradicts (the state `doubtful` in the table `clearances`).
    pub doubtful: i64,
    /// How many sessions are completed at Resmic while their mail is missing.
    pub missing_mails: i64,
    /// How many sessions need review.
    pub to_review: i64,
}

/// Returns the health of Resmic's API, and adds its problems to `attention`. An error that may pass by itself is a problem only
/// after ten minutes. A waiting event is a problem after an hour.
pub(super) fn resmic(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Option<ResmicHealth>> {
    let backlog = reader.resmic_backlog()?;
    let is_older = |since: &Option<String>, minutes| {
        let since = since.as_deref().and_then(|since| since.parse::<Timestamp>().ok());
        since.is_some_and(|since| now.duration_since(since) > SignedDuration::from_mins(minutes))
    };
    let error = backlog.last_error.as_deref().filter(|_| expected.resmic);
    attention.extend(
        error
            .filter(|_| backlog.needs_person || is_older(&backlog.failing_since, 10))
            .map(|e| format!("[resmic]: {e}")),
    );
    let review = backlog.session_to_review.as_deref().unwrap_or_default();
    let review = format!("in doubt: `session check {}` shows why", crate::model::printable(review, 40));
    let waits = is_older(&backlog.waiting_since, 60);
    let lines = [
        (
            backlog.doubtful,
            "event",
            "contradicted by Resmic: `show EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
        ),
        (
            backlog.missing_mails,
            "session",
            "completed at Resmic, and the mail is missing: look for it in the mailbox's other folders",
        ),
        (backlog.to_review, "session", review.as_str()),
        (
            if waits { backlog.waiting } else { 0 },
            "event",
            "waiting for Resmic, the oldest for more than an hour: `show EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
        ),
    ];
    attention.extend(lines.into_iter().filter(|(n, ..)| *n > 0).map(|(n, noun, text)| counted(n, noun, text)));
    Ok(expected.resmic.then_some(ResmicHealth {
        host: backlog.host,
        asked_at: backlog.asked_at,
        last_error: backlog.last_error,
        waiting: backlog.waiting,
        doubtful: backlog.doubtful,
        missing_mails: backlog.missing_mails,
        to_review: backlog.to_review,
    }))
}
