//! Holds, releases and withdraws deliveries.

use rusqlite::{Connection, params};

use crate::db::{Result, current_time};
use crate::model::Reason;

/// Holds the pending and dead deliveries of an event until a person decides; returns their number. Dead ones are
/// included because `deliveries retry --dead` retries all of them without a review. Later deliveries of the session
/// no longer wait for them.
pub(crate) fn hold(tx: &Connection, id: &str, reason: &Reason) -> Result<usize> {
    tx.prepare_cached("UPDATE events SET hold = coalesce(hold, ?2) WHERE event_id = ?1")?
        .execute(params![id, reason.to_string()])?;
    let held = tx
        .prepare_cached(
            "UPDATE deliveries SET state = 'held', next_attempt_at = NULL WHERE event_id = ?1 AND state IN ('pending', 'dead')",
        )?
        .execute(params![id])?;
    tx.prepare_cached(
        "UPDATE deliveries SET next_attempt_at = ?2
         WHERE event_id IN (SELECT s.event_id FROM events e JOIN events s USING (session_id) WHERE e.event_id = ?1)
           AND +state = 'pending' AND +attempts = 0 AND +next_attempt_at > ?2",
    )?
    .execute(params![id, current_time()])?;
    Ok(held)
}

/// Deletes the deliveries of an event that were never attempted.
pub(crate) fn withdraw(tx: &Connection, id: &str) -> Result<()> {
    let sql = "DELETE FROM deliveries WHERE event_id = ?1 AND state IN ('held', 'pending') AND attempts = 0";
    tx.prepare_cached(sql)?.execute(params![id])?;
    Ok(())
}

/// Releases the held deliveries of an event, if its session is known and it needs no review; returns their number.
pub(crate) fn release(tx: &Connection, id: &str) -> Result<usize> {
    Ok(tx
        .prepare_cached(
            "UPDATE deliveries SET state = 'pending', next_attempt_at = ?2, first_attempt_at = NULL
             WHERE event_id = ?1 AND state = 'held'
               AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = ?1 AND e.session_id IS NOT NULL AND e.hold IS NULL)",
        )?
        .execute(params![id, current_time()])?)
}

/// Releases the deliveries that wait for a session, for a target that now gets events without one; returns their
/// number.
pub(crate) fn release_unresolved(tx: &Connection, target: &str) -> Result<usize> {
    Ok(tx.execute(
        "UPDATE deliveries SET state = 'pending', next_attempt_at = ?2, first_attempt_at = NULL
         WHERE state = 'held' AND target = ?1
           AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = deliveries.event_id AND e.session_id IS NULL AND e.hold IS NULL)",
        params![target, current_time()],
    )?)
}
