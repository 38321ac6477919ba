//! Writes the result of an attempt into `attempts` and `deliveries`, and reschedules the later deliveries of the same session.

use rusqlite::{Connection, OptionalExtension, params};

use super::{FinishedAttempt, NextStep, in_streams};
use crate::db::{Result, current_time};
use crate::model::{DeliveryState, iso};

/// Postpones the pending deliveries to target `?1` of session `?4` that come after delivery `?2`, until delivery `?2` is retried
/// at `?3`.
pub(super) const FOLLOWERS_WAIT: &str = "
    UPDATE deliveries SET next_attempt_at = ?3
    WHERE event_id IN (SELECT s.event_id FROM events s WHERE s.session_id = ?4)
      AND +target = ?1 AND +state = 'pending' AND +id > ?2 AND +next_attempt_at < ?3";

/// Sets `next_attempt_at` to `?3` for the later pending deliveries to target `?1` of session `?4` that were never attempted,
/// because delivery `?2` was delivered or given up.
pub(super) const FOLLOWERS_GO: &str = "
    UPDATE deliveries SET next_attempt_at = ?3
    WHERE event_id IN (SELECT s.event_id FROM events s WHERE s.session_id = ?4)
      AND +target = ?1 AND +state = 'pending' AND +id > ?2 AND +attempts = 0 AND +next_attempt_at > ?3";

pub(super) fn record_attempt(tx: &Connection, target: &str, attempted: &FinishedAttempt) -> Result<()> {
    let FinishedAttempt { delivery_id: id, status, next_step, .. } = attempted;
    let at = current_time();
    let (error, followers) = match next_step {
        NextStep::Delivered | NextStep::Stored(_) => {
            // The delivery becomes `delivered` from each state, because the handler or the stream has the event.
            tx.prepare_cached(
                "UPDATE OR FAIL deliveries SET state = 'delivered', delivered_at = ?2, next_attempt_at = NULL, last_status = ?3,
                   last_error = NULL WHERE id = ?1",
            )?
            .execute(params![id, at, status])?;
            if let NextStep::Stored(receipt) = next_step {
                in_streams::record_receipt(tx, target, *id, &at, receipt)?;
            }
            (None, at)
        }
        // The delivery was made due again during this attempt, usually by `deliveries retry`. So the delivery stays pending, and
        // its `give_up_after` period starts over.
        NextStep::RetryAt(error, _) | NextStep::RetryUncounted(error, _) | NextStep::GiveUp(error)
            if was_made_due(tx, *id)? =>
        {
            set_failed(tx, attempted, error, DeliveryState::Pending, Some(&at))?;
            (Some(error), at)
        }
        NextStep::RetryAt(error, next) => {
            set_failed(tx, attempted, error, DeliveryState::Pending, Some(&iso(*next)))?;
            (Some(error), iso(*next))
        }
        NextStep::RetryUncounted(error, next) => {
            set_failed(tx, attempted, error, DeliveryState::Pending, Some(&iso(*next)))?;
            let sql = "UPDATE deliveries SET first_attempt_at = NULL WHERE id = ?1 AND state = 'pending'";
            tx.prepare_cached(sql)?.execute(params![id])?;
            (Some(error), iso(*next))
        }
        NextStep::GiveUp(error) => {
            set_failed(tx, attempted, error, DeliveryState::Dead, None)?;
            (Some(error), at)
        }
    };
    tx.prepare_cached(
        "UPDATE attempts SET status = ?3, error = ?4, millis = ?5, result = ?6 WHERE delivery_id = ?1 AND attempt = ?2",
    )?
    .execute(params![
        id,
        attempted.attempt,
        status,
        error,
        i64::try_from(attempted.took.as_millis()).unwrap_or(i64::MAX),
        attempted.result.as_str()
    ])?;
    move_followers(tx, target, attempted, &followers)
}

/// Whether the delivery became due again while its attempt was being made: a person retried it, or it was held and released.
fn was_made_due(tx: &Connection, id: i64) -> Result<bool> {
    let sql = "SELECT 1 FROM deliveries WHERE id = ?1 AND state = 'pending' AND first_attempt_at IS NULL";
    Ok(tx.prepare_cached(sql)?.exists(params![id])?)
}

/// Writes the error of a failed attempt into the row of its delivery. Only a pending delivery gets the new state. A delivery that
/// was held during the attempt stays held.
fn set_failed(
    tx: &Connection,
    attempted: &FinishedAttempt,
    error: &str,
    state: DeliveryState,
    next: Option<&str>,
) -> Result<()> {
    tx.prepare_cached(
        "UPDATE OR FAIL deliveries SET last_status = ?2, last_error = ?3,
           next_attempt_at = CASE state WHEN 'pending' THEN ?5 END, state = CASE state WHEN 'pending' THEN ?4 ELSE state END
         WHERE id = ?1 AND state <> 'delivered'",
    )?
    .execute(params![attempted.delivery_id, attempted.status, error, state.as_str(), next])?;
    Ok(())
}

fn move_followers(tx: &Connection, target: &str, attempted: &FinishedAttempt, at: &str) -> Result<()> {
    let session: Option<Option<String>> = tx
        .prepare_cached("SELECT e.session_id FROM deliveries d JOIN events e USING (event_id) WHERE d.id = ?1")?
        .query_row(params![attempted.delivery_id], |row| row.get(0))
        .optional()?;
    let Some(session) = session.flatten() else { return Ok(()) };
    let is_retried = matches!(attempted.next_step, NextStep::RetryAt(..) | NextStep::RetryUncounted(..));
    let sql = if is_retried { FOLLOWERS_WAIT } else { FOLLOWERS_GO };
    tx.prepare_cached(sql)?.execute(params![target, attempted.delivery_id, at, session])?;
    Ok(())
}
