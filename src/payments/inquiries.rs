//! The inquiries to Resmic's API about registered sessions whose mail did not arrive, and for events that wait for an answer.
//!
//! An answer is judged in the SQLite transaction that stores the answer. So a crash between inquiry and answer loses nothing, and
//! events that were stored after the inquiry are taken into account.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::clearances::{self, DueClearance, RecordedClearance};
use super::conflicts::EventSource;
use super::searches::{self, DueSearch, too_far_ahead};
use super::sessions::registered_session;
use super::stored_events::event_from_row;
use super::{events, reconcile::Reconciled};
use crate::db::{Result, Store, StoreSettings, parse_time};
use crate::model::{Event, Outcome, Reason, ReasonCode, Status, iso};
use crate::resmic::{
    ApiError, AskedSession, Finding, PaymentsOfSession, PreviousInquiries, SessionId, StatusAnswer, TransactionDetails,
    reconcile,
};

/// The greatest age of a session that was registered before `[resmic]` was configured. The daemon does not ask Resmic about older
/// sessions.
const ADOPTED: &str = "-7 days";

/// The next inquiry to Resmic's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DueInquiry {
    /// This inquiry asks whether the session of an event is completed, so that the event may be delivered.
    Clearance(DueClearance),
    /// This inquiry asks which transaction a session has, because an event without a session may have the same transaction.
    Search(DueSearch),
    /// This inquiry asks how a registered session without a completed or failed event ended.
    Session(SessionId),
}

/// The effect of Resmic's answers about a session in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedSession {
    /// The session is not registered, so nothing was stored.
    NotRegistered,
    /// The answers do not show yet how the session ended. The daemon asks Resmic about the session again.
    Waits,
    /// The stored events of the session agree with Resmic's answers.
    Agrees,
    /// Resmic reports the session as `Completed`, and its mail has not arrived yet.
    MailMissing,
    /// The payment status alone does not decide the inquiry. The caller must also ask Resmic for the transaction details.
    NeedsDetails,
    /// An operator must decide about the session, for this reason.
    NeedsReview(Reason),
    /// The answers made a new event of the session, or repeat an event that was already stored.
    Event {
        /// The id of the event.
        event_id: String,
        /// The status of the event: `failed` or `completed`.
        status: Status,
    },
}

impl Store {
    /// Reads the inquiry that is due, and the time at which the next inquiry becomes due. Inquiries for events go first.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn due_inquiry(&self) -> Result<(Option<DueInquiry>, Option<Timestamp>)> {
        let settings = self.settings.clone();
        let (due, next, decided) = self
            .write(move |tx| {
                let now = Timestamp::now();
                let (search, decided) = searches::due(tx, &settings, now)?;
                let due = match (clearances::due(tx, now)?, search) {
                    (Some(due), _) => Some(DueInquiry::Clearance(due)),
                    (None, Some(due)) => Some(DueInquiry::Search(due)),
                    (None, None) => due_session(tx, now)?.map(DueInquiry::Session),
                };
                let next: Option<String> = tx
                    .prepare_cached(
                        "SELECT min(at) FROM (
                       SELECT min(next_ask_at) AS at FROM clearances WHERE next_ask_at > ?1
                       UNION ALL SELECT min(next_ask_at) FROM session_searches WHERE next_ask_at > ?1
                       UNION ALL SELECT min(next_ask_at) FROM session_inquiries WHERE next_ask_at > ?1)",
                    )?
                    .query_row(params![iso(now)], |row| row.get(0))?;
                Ok((due, parse_time(next), decided))
            })
            .await?;
        if decided != Reconciled::default() {
            self.wake_outbox();
        }
        Ok((due, next))
    }

    /// Stores Resmic's answers about the session of an event that waits for Resmic.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. After an error, nothing is stored.
    pub async fn record_clearance(
        &self,
        due: DueClearance,
        status: std::result::Result<StatusAnswer, ApiError>,
        details: std::result::Result<TransactionDetails, ApiError>,
    ) -> Result<RecordedClearance> {
        let settings = self.settings.clone();
        let now = Timestamp::now();
        let recorded = self
            .write(move |tx| clearances::record(tx, &settings, &due, status.as_ref(), details.as_ref(), now))
            .await?;
        if matches!(recorded, RecordedClearance::Cleared { released } if released > 0) {
            self.wake_outbox();
        }
        Ok(recorded)
    }

    /// Stores Resmic's answer about the transaction of a session. The daemon asked for this transaction in the search for an
    /// event's session.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. After an error, nothing is stored.
    pub async fn record_transaction(
        &self,
        due: DueSearch,
        answer: std::result::Result<TransactionDetails, ApiError>,
    ) -> Result<Reconciled> {
        let settings = self.settings.clone();
        let now = Timestamp::now();
        let reconciled = self.write(move |tx| searches::record(tx, &settings, &due, answer, now)).await?;
        if reconciled != Reconciled::default() {
            self.wake_outbox();
        }
        Ok(reconciled)
    }

    /// Stores Resmic's answers about a registered session. `details`: the answer about the transaction; `None`: the caller has
    /// not asked for the transaction.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. After an error, nothing is stored.
    pub async fn record_session(
        &self,
        session: SessionId,
        status: std::result::Result<StatusAnswer, ApiError>,
        details: Option<std::result::Result<TransactionDetails, ApiError>>,
    ) -> Result<RecordedSession> {
        let settings = self.settings.clone();
        let now = Timestamp::now();
        let recorded = self
            .write(move |tx| {
                let details = details.as_ref().map(|details| details.as_ref());
                record(tx, &settings, session, status.as_ref(), details, now)
            })
            .await?;
        if matches!(recorded, RecordedSession::Event { .. }) {
            self.wake_outbox();
        }
        Ok(recorded)
    }

    /// Returns the ids of the registered sessions without a completed or failed event, the newest first.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn unsettled_sessions(&self) -> Result<Vec<SessionId>> {
        self.write(|tx| {
            let sql = format!("SELECT s.session_id FROM sessions s WHERE NOT {SETTLED} ORDER BY s.created_at DESC");
            let mut statement = tx.prepare(&sql)?;
            // The session ids are read as bytes, because SQLite accepts text that is not UTF-8.
            let ids = statement.query_map([], |row| Ok(row.get_ref(0)?.as_bytes().unwrap_or_default().to_vec()))?;
            let ids: Vec<Vec<u8>> = ids.collect::<rusqlite::Result<_>>()?;
            Ok(ids.iter().filter_map(|id| std::str::from_utf8(id).ok()?.parse().ok()).collect())
        })
        .await
    }
}

const SETTLED: &str = "EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.session_id
    AND (e.status = 'completed' OR e.status = 'failed'))";

/// The time of the first inquiry about session `s`: the session's expiry, or 40 minutes after its registration if it has no
/// expiry. Resmic expires a session 30 minutes after its creation, and tracks a payment for 10 more minutes.
const FIRST_ASK: &str = "coalesce(strftime('%Y-%m-%dT%H:%M:%fZ', s.expires_at),
    strftime('%Y-%m-%dT%H:%M:%fZ', s.created_at, '+40 minutes'))";

/// Creates the row of a registered session in `session_inquiries`, so that the daemon asks Resmic about the session. If the row
/// exists, sets its `next_ask_at` again, because the session's expiry may have changed. Keeps `next_ask_at` if Resmic has
/// answered after the session's expiry, if Resmic has reported the session as `Completed`, or if the session needs review. An
/// error that concerns all sessions is no answer.
pub(super) fn begin(tx: &Connection, settings: &StoreSettings, session_id: &str) -> Result<()> {
    if settings.resmic.is_none() {
        return Ok(());
    }
    tx.prepare_cached(&format!(
        "INSERT INTO session_inquiries (session_id, next_ask_at)
         SELECT lower(s.session_id), {FIRST_ASK} FROM sessions s WHERE s.session_id = ?1 AND NOT {SETTLED}
         ON CONFLICT DO UPDATE SET next_ask_at = excluded.next_ask_at
           WHERE first_after_expiry IS NULL AND completed_since IS NULL AND reason IS NULL"
    ))?
    .execute(params![session_id])?;
    Ok(())
}

/// Creates missing rows in `session_inquiries` for sessions that were registered before `[resmic]` was configured. A session that
/// is older than `ADOPTED`, or has a completed or failed event, gets no row.
pub(super) fn adopt(tx: &Connection, settings: &StoreSettings) -> Result<()> {
    if settings.resmic.is_some() {
        tx.execute(
            &format!(
                "INSERT INTO session_inquiries (session_id, next_ask_at)
                 SELECT lower(s.session_id), {FIRST_ASK} FROM sessions s
                 WHERE s.created_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{ADOPTED}') AND NOT {SETTLED}
                 ON CONFLICT DO NOTHING"
            ),
            [],
        )?;
    }
    Ok(())
}

/// Ends the inquiries about a session and the review of this session, because an operator has assigned the session to an event.
pub(super) fn settle(tx: &Connection, session_id: &str) -> Result<()> {
    tx.prepare_cached("UPDATE session_inquiries SET next_ask_at = NULL, reason = NULL WHERE session_id = ?1")?
        .execute(params![session_id])?;
    Ok(())
}

/// Makes the inquiries due whose `next_ask_at` is later than the end of every pause, and later than the session's first inquiry.
/// A `next_ask_at` so far in the future was written while the clock was ahead.
fn correct_times_ahead(tx: &Connection, now: Timestamp) -> Result<()> {
    tx.prepare_cached(&format!(
        "UPDATE session_inquiries SET next_ask_at = ?1 WHERE next_ask_at > ?2
           AND next_ask_at > (SELECT {FIRST_ASK} FROM sessions s WHERE s.session_id = session_inquiries.session_id)"
    ))?
    .execute(params![iso(now), iso(too_far_ahead(now))])?;
    Ok(())
}

/// Returns the session whose inquiry has been due for the longest time. The daemon does not ask about a session that has a
/// completed or failed event, or that was deleted.
fn due_session(tx: &Connection, now: Timestamp) -> Result<Option<SessionId>> {
    let sql = format!(
        "SELECT s.session_id, {SETTLED} OR NOT EXISTS (SELECT 1 FROM sessions r WHERE r.session_id = s.session_id)
         FROM session_inquiries s WHERE s.next_ask_at <= ?1 ORDER BY s.next_ask_at LIMIT 1"
    );
    correct_times_ahead(tx, now)?;
    loop {
        let found = tx
            .prepare_cached(&sql)?
            .query_row(params![iso(now)], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)));
        let Some((text, settled)) = found.optional()? else { return Ok(None) };
        match text.parse() {
            Ok(session) if !settled => return Ok(Some(session)),
            _ => {
                tx.prepare_cached("UPDATE session_inquiries SET next_ask_at = NULL WHERE session_id = ?1")?
                    .execute(params![text])?;
            }
        }
    }
}

fn record(
    tx: &Connection,
    settings: &StoreSettings,
    session: SessionId,
    status: std::result::Result<&StatusAnswer, &ApiError>,
    details: Option<std::result::Result<&TransactionDetails, &ApiError>>,
    now: Timestamp,
) -> Result<RecordedSession> {
    let id = session.to_string();
    let Some(registered) = registered_session(tx, &id)? else { return Ok(RecordedSession::NotRegistered) };
    let asked = AskedSession { id: session, registered };
    clearances::hasten(tx, &id, now)?;
    let inquiries = note_answer(tx, &asked, status, now)?;
    let known = payments_of(tx, &id)?;
    let finding = reconcile(&asked, &known, inquiries, status, details, now);
    let (recorded, next, reason) = match finding {
        Finding::Wait { until } => (RecordedSession::Waits, Some(until), None),
        Finding::Agrees => (RecordedSession::Agrees, None, None),
        Finding::MailMissing { until } => (RecordedSession::MailMissing, Some(until), None),
        // The caller now asks Resmic for the transaction details. If the program ends before Resmic answers, the daemon asks for
        // the status again, too.
        Finding::NeedsDetails => return Ok(RecordedSession::NeedsDetails),
        Finding::NeedsReview { reason } => (RecordedSession::NeedsReview(reason.clone()), None, Some(reason)),
        Finding::FailedEvent(event) | Finding::CompletedEvent(event) => admit(tx, settings, &event)?,
    };
    let sql = "UPDATE session_inquiries SET next_ask_at = ?2, reason = ?3 WHERE session_id = ?1";
    tx.prepare_cached(sql)?.execute(params![id, next.map(iso), reason.map(|reason| reason.to_string())])?;
    Ok(recorded)
}

type AdmittedAnswer = (RecordedSession, Option<Timestamp>, Option<Reason>);

/// Stores a completed or failed event that Resmic's answers make, because no mail has reported it.
fn admit(tx: &Connection, settings: &StoreSettings, event: &Event) -> Result<AdmittedAnswer> {
    let admitted = events::admit_from(tx, settings, event, EventSource::Resmic)?;
    Ok(match (admitted.outcome, admitted.event_id) {
        (Outcome::Event | Outcome::Duplicate, Some(event_id)) => {
            (RecordedSession::Event { event_id, status: event.payment.status }, None, None)
        }
        _ => {
            let nothing = || Reason::new(ReasonCode::Unreadable, "Resmic's answer makes no event");
            let reason = admitted.reason.unwrap_or_else(nothing);
            (RecordedSession::NeedsReview(reason.clone()), None, Some(reason))
        }
    })
}

/// Counts the inquiry in the session's row of `session_inquiries`. Returns the times of Resmic's first answer after the session's
/// expiry and of Resmic's first answer `Completed`. The new answer in `status` may be the first one. An error that concerns all
/// sessions is no answer.
fn note_answer(
    tx: &Connection,
    session: &AskedSession,
    status: std::result::Result<&StatusAnswer, &ApiError>,
    now: Timestamp,
) -> Result<PreviousInquiries> {
    let id = session.id.to_string();
    let is_answer = status.as_ref().map_or_else(|error| !error.concerns_all_sessions(), |_| true);
    let word = status.ok().map(|answer| answer.payment_status.to_string());
    let is_expired = now >= crate::resmic::expiry(session);
    let is_completed = status.is_ok_and(|answer| answer.payment_status == crate::resmic::PaymentStatus::Completed);
    let (first, completed) = tx
        .prepare_cached(
            "INSERT INTO session_inquiries (session_id, asks, asked_at, status, first_after_expiry, completed_since)
             VALUES (?1, 1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET asks = asks + 1, asked_at = excluded.asked_at,
               status = coalesce(excluded.status, status),
               first_after_expiry = coalesce(first_after_expiry, excluded.first_after_expiry),
               completed_since = coalesce(completed_since, excluded.completed_since)
             RETURNING first_after_expiry, completed_since",
        )?
        .query_row(
            params![id, iso(now), word, (is_answer && is_expired).then(|| iso(now)), is_completed.then(|| iso(now)),],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
    Ok(PreviousInquiries { first_after_expiry: parse_time(first), completed_since: parse_time(completed) })
}

fn payments_of(tx: &Connection, session_id: &str) -> Result<PaymentsOfSession> {
    let mut known = PaymentsOfSession::default();
    let mut statement = tx.prepare_cached("SELECT * FROM events WHERE session_id = ?1 LIMIT 100")?;
    for event in statement.query_map(params![session_id], event_from_row)? {
        let payment = event?.payment;
        match payment.status {
            Status::Completed => known.completed.push(payment),
            Status::Failed => known.has_failed = true,
            Status::Pending => {}
        }
    }
    Ok(known)
}
