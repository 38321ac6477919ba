//! `[resmic] require = true`: a completed event waits until Resmic reports its session as `Completed`.
//!
//! The wait for Resmic is independent of the other reasons to hold a delivery: a missing session, a conflict, and the chain.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::confirmations;
use super::searches::{next_ask, too_far_ahead};
use super::stored_events::event_from_row;
use crate::chain::ConfirmationState;
use crate::db::{Result, StoreSettings, current_time, holds, parse_time, word};
use crate::model::{Event, Reason, Status, iso};
use crate::resmic::{ApiError, Clearance, SessionId, StatusAnswer, TransactionDetails, clear_delivery};

/// An event about whose session the daemon must ask Resmic, as the event was read before the inquiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueClearance {
    /// The id of the event.
    pub event_id: String,
    /// The session of the event.
    pub session: SessionId,
    /// How often an answer about this event was stored or the event was changed: the column `clearances.asks`. Resmic's answer is
    /// stored only if this number has not changed during the inquiry.
    pub asks: i64,
}

/// The effect of Resmic's answers about an event that waits for Resmic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedClearance {
    /// The event has changed during the inquiry, so the answers were discarded.
    Outdated,
    /// The event still waits for Resmic, for this reason.
    Waits(String),
    /// Resmic's answers contradict the event, so an operator must decide.
    Contradicted(Reason),
    /// Resmic reports the event's session as `Completed`, so the event no longer waits for Resmic.
    Cleared {
        /// How many deliveries of the event were released.
        released: usize,
    },
}

/// Creates the row in `clearances` for a completed event with deliveries, if `[resmic] require` is true. Returns whether the row
/// was created, so that the event must wait for Resmic.
pub(super) fn begin(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event) -> Result<bool> {
    let is_required = settings.resmic.is_some_and(|resmic| resmic.require);
    if !is_required || event.payment.status != Status::Completed {
        return Ok(false);
    }
    let now = current_time();
    let next = event.payment.session_id.as_ref().map(|_| now.clone());
    tx.prepare_cached(
        "INSERT INTO clearances (event_id, state, next_ask_at, waits_since) VALUES (?1, 'waiting', ?2, ?3)",
    )?
    .execute(params![id, next, now])?;
    Ok(true)
}

/// Makes the daemon ask Resmic about an event again if `new` changes values that are compared with Resmic's answer. An earlier
/// answer does not apply to the new values.
pub(super) fn restart_if_changed(tx: &Connection, id: &str, new: &Event) -> Result<()> {
    let payment = &new.payment;
    let now = current_time();
    let next = payment.session_id.as_ref().map(|_| now.clone());
    let restarted = tx
        .prepare_cached(
            "UPDATE clearances SET state = 'waiting', reason = NULL, next_ask_at = ?6, waits_since = ?7, asks = asks + 1
             WHERE event_id = ?1 AND state <> 'operator'
               AND EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = ?1 AND d.state <> 'delivered')
               AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = ?1
                           AND (e.session_id IS NOT ?2 OR e.amount IS NOT ?3 OR e.blockchain IS NOT ?4 OR e.token IS NOT ?5
                                OR e.currency IS NOT ?8))",
        )?
        .execute(params![
            id,
            payment.session_id,
            payment.amount,
            payment.blockchain,
            payment.token,
            next,
            now,
            payment.currency
        ])?;
    if restarted > 0 { holds::hold_for_resmic(tx, id) } else { Ok(()) }
}

/// Applies the setting `[resmic] require` to the events that were stored before the setting was changed.
pub(super) fn adopt(tx: &Connection, settings: &StoreSettings) -> Result<()> {
    if settings.resmic.is_some_and(|resmic| resmic.require) {
        tx.execute(
            "INSERT INTO clearances (event_id, state, next_ask_at, waits_since)
             SELECT e.event_id, 'waiting', CASE WHEN e.session_id IS NULL THEN NULL ELSE ?1 END, ?1 FROM events e
             WHERE e.status = 'completed' AND e.event_id NOT IN (SELECT event_id FROM clearances)
               AND e.event_id IN (SELECT event_id FROM deliveries WHERE state <> 'delivered')",
            params![current_time()],
        )?;
    } else {
        // Only the events that wait for an answer are released. An event that contradicts Resmic's answer keeps its row in
        // `clearances`, because the event needs review.
        tx.execute("DELETE FROM clearances WHERE state = 'waiting'", [])?;
    }
    Ok(())
}

/// Selects the newest event about whose session the daemon must ask Resmic now: a due event. SQLite reads the index over
/// `waits_since` from its newest entry, and skips events that are not due. SQLite skips only the events about which the daemon
/// asked recently, and those are few. The unary `+` keeps SQLite from using the index over `next_ask_at`. With the index over
/// `next_ask_at`, SQLite would sort all due events, which may be many. An event is also due if its `next_ask_at` is after `?2`:
/// see [`too_far_ahead`].
pub(super) const DUE: &str =
    "SELECT c.event_id, c.asks, e.session_id FROM clearances c CROSS JOIN events e ON e.event_id = c.event_id
    WHERE c.next_ask_at IS NOT NULL AND (+c.next_ask_at <= ?1 OR +c.next_ask_at > ?2)
    ORDER BY c.waits_since DESC, c.rowid DESC LIMIT 1";

/// Returns the newest event about whose session the daemon must ask Resmic now. An event whose session id is not a UUID gets the
/// state [`ConfirmationState::Doubtful`], because Resmic's session ids are UUIDs.
pub(super) fn due(tx: &Connection, now: Timestamp) -> Result<Option<DueClearance>> {
    loop {
        let newest = tx.prepare_cached(DUE)?.query_row(params![iso(now), iso(too_far_ahead(now))], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Option<String>>(2)?))
        });
        let Some((event_id, asks, session)) = newest.optional()? else { return Ok(None) };
        match session.unwrap_or_default().parse() {
            Ok(session) => return Ok(Some(DueClearance { event_id, session, asks })),
            Err(error) => write(tx, &event_id, ConfirmationState::Doubtful, Some(&error), None)?,
        }
    }
}

fn write(
    tx: &Connection,
    id: &str,
    state: ConfirmationState,
    reason: Option<&str>,
    next: Option<Timestamp>,
) -> Result<()> {
    tx.prepare_cached(
        "UPDATE clearances SET state = ?2, reason = ?3, next_ask_at = ?4, asks = asks + 1, asked_at = ?5
         WHERE event_id = ?1",
    )?
    .execute(params![id, state.as_str(), reason, next.map(iso), current_time()])?;
    Ok(())
}

/// Stores Resmic's answers about an event that waits for Resmic, and releases the event's deliveries if the answers allow the
/// delivery.
pub(super) fn record(
    tx: &Connection,
    settings: &StoreSettings,
    due: &DueClearance,
    status: std::result::Result<&StatusAnswer, &ApiError>,
    details: std::result::Result<&TransactionDetails, &ApiError>,
    now: Timestamp,
) -> Result<RecordedClearance> {
    let id = &due.event_id;
    let found = tx
        .prepare_cached(
            "SELECT e.*, c.waits_since FROM clearances c JOIN events e ON e.event_id = c.event_id
             WHERE c.event_id = ?1 AND c.asks = ?2 AND c.state = 'waiting'",
        )?
        .query_row(params![id, due.asks], |row| Ok((event_from_row(row)?, parse_time(row.get("waits_since")?))));
    let Some((event, since)) = found.optional()? else { return Ok(RecordedClearance::Outdated) };
    match clear_delivery(&event.payment, status, details) {
        Clearance::Clear => {
            write(tx, id, ConfirmationState::Confirmed, None, None)?;
            Ok(RecordedClearance::Cleared { released: confirmations::release(tx, settings, id)? })
        }
        Clearance::Wait(message) => {
            let error = status.err().or(details.err());
            let next = next_ask(since.unwrap_or(now), error.and_then(ApiError::retry_after), now);
            write(tx, id, ConfirmationState::Waiting, Some(&message), Some(next))?;
            Ok(RecordedClearance::Waits(message))
        }
        Clearance::Contradicts(reason) => {
            write(tx, id, ConfirmationState::Doubtful, Some(&reason.to_string()), None)?;
            Ok(RecordedClearance::Contradicted(reason))
        }
    }
}

/// Records in `clearances` that an operator confirms the payment of an event. Returns the earlier state of the event, if it was
/// `waiting` or `doubtful`.
pub(super) fn vouch(tx: &Connection, id: &str) -> Result<Option<ConfirmationState>> {
    let sql = "SELECT state FROM clearances WHERE event_id = ?1 AND (state = 'waiting' OR state = 'doubtful')";
    let before = tx.prepare_cached(sql)?.query_row(params![id], |row| word(row, "state")).optional()?;
    if before.is_some() {
        write(tx, id, ConfirmationState::Operator, None, None)?;
    }
    Ok(before)
}

/// Makes the daemon ask Resmic at `now` about those events of a session that wait for Resmic.
pub(super) fn hasten(tx: &Connection, session_id: &str, now: Timestamp) -> Result<()> {
    tx.prepare_cached(
        "UPDATE clearances SET next_ask_at = ?2 WHERE state = 'waiting'
           AND event_id IN (SELECT event_id FROM events WHERE session_id = ?1)",
    )?
    .execute(params![session_id, iso(now)])?;
    Ok(())
}
