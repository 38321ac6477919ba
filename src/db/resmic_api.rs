//! Stores the result of the last request to Resmic's API, and counts the events and sessions that wait for Resmic.

use rusqlite::params;

use super::{Result, Store, StoreReader, current_time};

/// Counts of the events and sessions that wait for Resmic, or need review.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResmicBacklog {
    /// The API's host; `None` if no request was recorded.
    pub host: Option<String>,
    /// The time of the last recorded request.
    pub asked_at: Option<String>,
    /// Since when all requests have failed; `None` if the last recorded request succeeded.
    pub failing_since: Option<String>,
    /// The error of the last recorded request; `None` if that request succeeded.
    pub last_error: Option<String>,
    /// Whether a person must correct the cause of the error.
    pub needs_person: bool,
    /// Events that wait until Resmic reports their session as `Completed`.
    pub waiting: i64,
    /// Since when the oldest of these events has waited.
    pub waiting_since: Option<String>,
    /// Events that Resmic's API contradicts.
    pub doubtful: i64,
    /// Sessions that are completed at Resmic and whose mail is missing.
    pub missing_mails: i64,
    /// Sessions in `session_inquiries` that need review.
    pub to_review: i64,
    /// One of the sessions that need review.
    pub session_to_review: Option<String>,
}

impl Store {
    /// Writes the result of a request to Resmic's API into `resmic_api`. `Err`: the text of the error, and whether a person must
    /// correct the cause of the error.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_api(&self, host: String, result: std::result::Result<(), (String, bool)>) -> Result<()> {
        self.write(move |tx| {
            let now = current_time();
            let (error, needs_person) = result.err().map_or((None, false), |(message, person)| (Some(message), person));
            tx.prepare_cached(
                "INSERT INTO resmic_api (id, host, asked_at, failing_since, last_error, needs_person)
                 VALUES (1, ?1, ?2, CASE WHEN ?3 IS NULL THEN NULL ELSE ?2 END, ?3, ?4)
                 ON CONFLICT DO UPDATE SET host = excluded.host, asked_at = excluded.asked_at,
                   failing_since = CASE WHEN excluded.last_error IS NULL THEN NULL
                                        ELSE coalesce(failing_since, excluded.asked_at) END,
                   last_error = excluded.last_error, needs_person = excluded.needs_person",
            )?
            .execute(params![host, now, error, needs_person])?;
            Ok(())
        })
        .await
    }
}

impl StoreReader {
    /// The result of the last recorded request to Resmic's API, and the counts of the events and sessions that wait for Resmic.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn resmic_backlog(&self) -> Result<ResmicBacklog> {
        let sql = "SELECT a.host, a.asked_at, a.failing_since, a.last_error, coalesce(a.needs_person, 0),
            (SELECT count(*) FROM clearances WHERE state = 'waiting'),
            (SELECT min(waits_since) FROM clearances WHERE state = 'waiting'),
            (SELECT count(*) FROM clearances WHERE state = 'doubtful'),
            (SELECT count(*) FROM session_inquiries s WHERE completed_since IS NOT NULL AND next_ask_at IS NOT NULL
               AND NOT EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.session_id AND e.status = 'completed')),
            (SELECT count(*) FROM session_inquiries WHERE reason IS NOT NULL),
            (SELECT session_id FROM session_inquiries WHERE reason IS NOT NULL LIMIT 1)
          FROM (SELECT 1) LEFT JOIN resmic_api a ON a.id = 1";
        let found = self.query_one(sql, &[], |row| {
            Ok(ResmicBacklog {
                host: row.get(0)?,
                asked_at: row.get(1)?,
                failing_since: row.get(2)?,
                last_error: row.get(3)?,
                needs_person: row.get(4)?,
                waiting: row.get(5)?,
                waiting_since: row.get(6)?,
                doubtful: row.get(7)?,
                missing_mails: row.get(8)?,
                to_review: row.get(9)?,
                session_to_review: row.get(10)?,
            })
        })?;
        Ok(found.unwrap_or_default())
    }
}
