//! Holds and releases deliveries, and deletes the deliveries of an event that must not be delivered.

use std::collections::BTreeSet;

use rusqlite::{Connection, Params, params};

use crate::db::{Result, StoreSettings, current_time};
use crate::model::Reason;

/// Writes `reason` into `events.hold` of an event, and holds the event's pending and dead deliveries until a person decides.
/// Returns the number of these deliveries. Dead deliveries are included, because `deliveries retry --dead` would otherwise retry
/// them without a review. Later deliveries of the session do not wait for held deliveries.
pub(crate) fn hold(tx: &Connection, id: &str, reason: &Reason) -> Result<usize> {
    tx.prepare_cached("UPDATE events SET hold = coalesce(hold, ?2) WHERE event_id = ?1")?
        .execute(params![id, reason.to_string()])?;
    let held = tx
        .prepare_cached(
            "UPDATE deliveries SET state = 'held', next_attempt_at = NULL WHERE event_id = ?1 AND state IN ('pending', 'dead')",
        )?
        .execute(params![id])?;
    free_followers(tx, id)?;
    Ok(held)
}

/// Deletes the held and pending deliveries of an event if they were never attempted.
pub(crate) fn withdraw(tx: &Connection, id: &str) -> Result<()> {
    let sql = "DELETE FROM deliveries WHERE event_id = ?1 AND state IN ('held', 'pending') AND attempts = 0";
    tx.prepare_cached(sql)?.execute(params![id])?;
    Ok(())
}

/// Releases held deliveries if three independent conditions are met. First, the event needs no review, and its session is
/// known; `?2` are the targets that do not wait for a session. Second, the chain or an operator has confirmed the event, or the
/// event needs no confirmation; `?3` are the targets that do not wait for the chain. Third, Resmic's API or an operator has
/// confirmed the event (`clearances.state`), or the event does not wait for Resmic.
const RELEASE: &str = "
    UPDATE deliveries SET state = 'pending', next_attempt_at = ?1, first_attempt_at = NULL
    WHERE state = 'held'
      AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = deliveries.event_id AND e.hold IS NULL
                  AND (e.session_id IS NOT NULL OR deliveries.target IN (SELECT value FROM json_each(?2))))
      AND (target IN (SELECT value FROM json_each(?3))
           OR NOT EXISTS (SELECT 1 FROM confirmations c WHERE c.event_id = deliveries.event_id
                          AND c.state <> 'confirmed' AND c.state <> 'operator'))
      AND NOT EXISTS (SELECT 1 FROM clearances r WHERE r.event_id = deliveries.event_id
                      AND r.state <> 'confirmed' AND r.state <> 'operator')";

/// Holds the pending and dead deliveries of events that wait for Resmic's API, because neither the API nor an operator has
/// confirmed the event (`clearances.state`).
const HOLD_FOR_RESMIC: &str = "
    UPDATE deliveries SET state = 'held', next_attempt_at = NULL
    WHERE (state = 'pending' OR state = 'dead')
      AND EXISTS (SELECT 1 FROM clearances r WHERE r.event_id = deliveries.event_id
                  AND r.state <> 'confirmed' AND r.state <> 'operator')";

/// Holds the pending and dead deliveries of events that neither the chain nor an operator has confirmed. `?1` are the targets
/// that do not wait for the chain.
const HOLD_FOR_CHAIN: &str = "
    UPDATE deliveries SET state = 'held', next_attempt_at = NULL
    WHERE (state = 'pending' OR state = 'dead') AND target NOT IN (SELECT value FROM json_each(?1))
      AND EXISTS (SELECT 1 FROM confirmations c WHERE c.event_id = deliveries.event_id
                  AND c.state <> 'confirmed' AND c.state <> 'operator')";

/// Releases the held deliveries of an event that meet the conditions of [`RELEASE`]; returns the number of released deliveries.
pub(crate) fn release(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<usize> {
    let given = params![current_time(), settings.senders(), settings.tellers(), id];
    Ok(tx.prepare_cached(&format!("{RELEASE} AND event_id = ?4"))?.execute(given)?)
}

/// Releases all held deliveries that meet the conditions of [`RELEASE`], because the configuration may have changed. Returns the
/// number of released deliveries.
pub(crate) fn release_all(tx: &Connection, settings: &StoreSettings) -> Result<usize> {
    Ok(tx.execute(RELEASE, params![current_time(), settings.senders(), settings.tellers()])?)
}

/// Holds the pending and dead deliveries of one event if the chain has not confirmed the event. Returns the number of these
/// deliveries.
pub(crate) fn hold_for_chain(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<usize> {
    hold_where(tx, &format!("{HOLD_FOR_CHAIN} AND event_id = ?2"), params![settings.tellers(), id])
}

/// Holds the pending and dead deliveries of all events that the chain has not confirmed, because the configuration may have
/// changed.
pub(crate) fn hold_all_for_chain(tx: &Connection, settings: &StoreSettings) -> Result<usize> {
    hold_where(tx, HOLD_FOR_CHAIN, params![settings.tellers()])
}

/// Holds the pending and dead deliveries of one event if the event still waits for Resmic's API (see [`HOLD_FOR_RESMIC`]).
pub(crate) fn hold_for_resmic(tx: &Connection, id: &str) -> Result<()> {
    hold_where(tx, &format!("{HOLD_FOR_RESMIC} AND event_id = ?1"), params![id]).map(drop)
}

/// Holds the pending and dead deliveries of all events that still wait for Resmic's API (see [`HOLD_FOR_RESMIC`]), because the
/// configuration may have changed.
pub(crate) fn hold_all_for_resmic(tx: &Connection) -> Result<usize> {
    hold_where(tx, HOLD_FOR_RESMIC, [])
}

/// Runs a statement that begins with [`HOLD_FOR_CHAIN`] or [`HOLD_FOR_RESMIC`]; returns the number of held deliveries.
fn hold_where(tx: &Connection, sql: &str, given: impl Params) -> Result<usize> {
    let mut statement = tx.prepare_cached(&format!("{sql} RETURNING event_id"))?;
    let held: Vec<String> = statement.query_map(given, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for id in held.iter().collect::<BTreeSet<_>>() {
        free_followers(tx, id)?;
    }
    Ok(held.len())
}

/// Makes the pending deliveries of an event's session due if they were never attempted, because deliveries do not wait for a held
/// delivery of their session.
fn free_followers(tx: &Connection, id: &str) -> Result<()> {
    tx.prepare_cached(
        "UPDATE deliveries SET next_attempt_at = ?2
         WHERE event_id IN (SELECT s.event_id FROM events e JOIN events s USING (session_id) WHERE e.event_id = ?1)
           AND +state = 'pending' AND +attempts = 0 AND +next_attempt_at > ?2",
    )?
    .execute(params![id, current_time()])?;
    Ok(())
}
