//! Reads which event is due for a look at the nodes of a chain, and stores the result of the look.
//!
//! One SQLite transaction stores the confirmation of an event and its arrivals, and releases the event's deliveries. So a crash
//! at any moment loses nothing, and no arrival confirms two events.

use std::collections::HashSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::confirmations::{release, sql_id};
use super::stored_events::event_from_row;
use crate::chain::{
    Arrival, BlockId, Chain, Claim, Confirmation, ConfirmationCode, ConfirmationReason, ConfirmationState,
    ConfirmedArrival, Hash, Revisited,
};
use crate::db::{Result, Store, StoreSettings, current_time, holds, parse_time};
use crate::model::iso;

/// The next look at an event is at most this duration plus `settle` in the future. A later `next_look_at` was written while the
/// clock was wrong.
const FURTHEST: SignedDuration = SignedDuration::from_hours(2);

/// An event that is due for a look at the nodes, as it was read from the database before the look.
#[derive(Debug, Clone)]
pub struct DueLook {
    /// The id of the event.
    pub event_id: String,
    /// The values of the event that the nodes check.
    pub claim: Claim,
    /// The confirmation state of the event.
    pub state: ConfirmationState,
    /// When the event was stored.
    pub stored_at: Timestamp,
    /// When the event was confirmed.
    pub confirmed_at: Option<Timestamp>,
    /// The arrival that confirmed the event.
    pub arrival: Option<ConfirmedArrival>,
    /// How often the result of a look was stored or the event was changed: the column `confirmations.looks`. If this number
    /// changes during a look, the result of that look is not stored.
    pub looks: i64,
}

/// The result of a look at an event.
#[derive(Debug, Clone)]
pub struct FinishedLook {
    /// The event, as it was before the look.
    pub due: DueLook,
    /// The verdict about the payment.
    pub confirmation: Confirmation,
    /// The EIP-155 id of the chain.
    pub chain_id: u64,
    /// The configured rule for when a block is final: `finalized`, `safe`, or a number of blocks.
    pub finality: String,
    /// The hosts of the nodes, separated by spaces.
    pub nodes: String,
    /// The event is not confirmed before this time, so that a contradicting mail can still arrive.
    pub settles_at: Timestamp,
    /// The time of the next look. A confirmed event gets another look if a reorganisation can still remove its payment.
    pub next_look_at: Option<Timestamp>,
}

/// The state of an event after the result of a look was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedLook {
    /// The event has changed during the look, so the result is discarded.
    Outdated,
    /// The event still waits for its chain, or an operator must decide.
    Open(ConfirmationReason),
    /// The event is confirmed.
    Confirmed {
        /// How many deliveries of the event were released.
        released: usize,
    },
}

impl Store {
    /// Reads the newest event of a chain that is due for a look, and the time at which the next event becomes due.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn due_look(&self, chain: &Chain) -> Result<(Option<DueLook>, Option<Timestamp>)> {
        let (id, settle) = (sql_id(chain.id), chain.settle);
        self.write(move |tx| {
            let now = Timestamp::now();
            let settle = SignedDuration::try_from(settle).unwrap_or(FURTHEST);
            let astray = iso(now.checked_add(FURTHEST.saturating_add(settle)).unwrap_or(Timestamp::MAX));
            let sql = format!(
                "SELECT {COLUMNS} FROM confirmations c JOIN events e ON e.event_id = c.event_id
                 WHERE c.chain_id = ?1 AND (c.next_look_at <= ?2 OR c.next_look_at > ?3)
                 ORDER BY c.rowid DESC LIMIT 1"
            );
            let due = tx.prepare_cached(&sql)?.query_row(params![id, iso(now), astray], due_look).optional()?;
            let next: Option<String> = tx
                .prepare_cached(
                    "SELECT min(next_look_at) FROM confirmations WHERE chain_id = ?1 AND next_look_at > ?2",
                )?
                .query_row(params![id, iso(now)], |row| row.get(0))?;
            Ok((due, parse_time(next)))
        })
        .await
    }

    /// Reads one event for an immediate look. The second value is whether the event has a row in `confirmations`. `None`: the
    /// event does not exist, or is not completed.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn look_of(&self, event_id: &str) -> Result<Option<(DueLook, bool)>> {
        let event_id = event_id.to_owned();
        self.write(move |tx| {
            let sql = format!(
                "SELECT {COLUMNS} FROM events e LEFT JOIN confirmations c ON c.event_id = e.event_id
                 WHERE e.event_id = ?1 AND e.status = 'completed'"
            );
            let found = tx.prepare_cached(&sql)?.query_row(params![event_id], |row| {
                Ok((due_look(row)?, row.get::<_, Option<i64>>("looks")?.is_some()))
            });
            Ok(found.optional()?)
        })
        .await
    }

    /// Reads from the table `arrivals` which logs and calls of these transactions already confirm another event than `event_id`.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn claimed_by_others(
        &self,
        chain_id: u64,
        event_id: &str,
        transactions: Vec<Hash>,
    ) -> Result<HashSet<(Hash, i64)>> {
        let event_id = event_id.to_owned();
        self.write(move |tx| {
            let sql = "SELECT log FROM arrivals WHERE chain_id = ?1 AND tx = ?2 AND event_id <> ?3";
            let mut claimed = HashSet::new();
            for hash in transactions {
                let mut statement = tx.prepare_cached(sql)?;
                let parameters = params![sql_id(chain_id), hash.to_string(), event_id];
                for log in statement.query_map(parameters, |row| row.get::<_, i64>(0))? {
                    claimed.insert((hash, log?));
                }
            }
            Ok(claimed)
        })
        .await
    }

    /// Stores the result of a look in `confirmations`, and releases the event's deliveries if the look has confirmed the event.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. After an error, nothing is stored.
    pub async fn record_look(&self, look: FinishedLook) -> Result<RecordedLook> {
        let settings = self.settings.clone();
        let recorded = self.write(move |tx| record_look(tx, &settings, &look, Timestamp::now())).await?;
        if matches!(recorded, RecordedLook::Confirmed { released, .. } if released > 0) {
            self.wake_outbox();
        }
        Ok(recorded)
    }

    /// Stores the result of a later look at an event that is already confirmed. `next`: the time of the next look, if the nodes'
    /// answers do not show yet whether a `finalized` block contains the arrival.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn record_revisit(&self, due: &DueLook, revisited: Revisited, next: Option<Timestamp>) -> Result<()> {
        let (settings, due) = (self.settings.clone(), due.clone());
        self.write(move |tx| {
            let (state, reason, next) = match &revisited {
                Revisited::Stands => (ConfirmationState::Confirmed, None, None),
                Revisited::Later => (ConfirmationState::Confirmed, None, next),
                Revisited::Lost(reason) => (ConfirmationState::Doubtful, Some(reason.to_string()), None),
            };
            tx.prepare_cached(
                "UPDATE confirmations SET state = ?3, reason = ?4, next_look_at = ?5, looked_at = ?6, looks = looks + 1
                 WHERE event_id = ?1 AND looks = ?2 AND state = 'confirmed'",
            )?
            .execute(params![
                due.event_id,
                due.looks,
                state.as_str(),
                reason,
                next.map(iso),
                current_time()
            ])?;
            holds::hold_for_chain(tx, &settings, &due.event_id).map(drop)
        })
        .await
    }
}

/// The columns of a [`DueLook`]. `sent_at` is the Date of the event's first mail. If this mail has no Date, `sent_at` is the time
/// at which the server received the mail. The payment must not be older than `registered_at`. `registered_at` is NULL if the
/// session was registered after the event was stored, or was assigned by an operator.
const COLUMNS: &str = "
    e.*, c.looks, c.state, c.waits_since, c.confirmed_at, c.arrival, c.arrival_block,
      (SELECT coalesce(m.sent_at, m.received_at) FROM mails m WHERE m.event_id = e.event_id ORDER BY m.id LIMIT 1) AS sent_at,
      (SELECT s.created_at FROM sessions s WHERE s.session_id = e.session_id AND s.created_at <= e.created_at
         AND e.session_source <> 'operator') AS registered_at";

fn due_look(row: &Row) -> rusqlite::Result<DueLook> {
    let time = |column: &str| Ok::<_, rusqlite::Error>(parse_time(row.get(column)?));
    let stored_at = time("created_at")?.unwrap_or(Timestamp::UNIX_EPOCH);
    let waits_since = time("waits_since")?.unwrap_or(stored_at);
    let state: Option<String> = row.get("state")?;
    let transaction: Option<String> = row.get("arrival")?;
    let block: Option<i64> = row.get("arrival_block")?;
    let arrival = transaction.and_then(|hash| hash.parse().ok()).zip(block.and_then(|n| u64::try_from(n).ok()));
    let event = event_from_row(row)?;
    Ok(DueLook {
        event_id: row.get("event_id")?,
        claim: Claim::from_event(&event, time("sent_at")?.unwrap_or(stored_at), time("registered_at")?, waits_since),
        state: state.and_then(|state| state.parse().ok()).unwrap_or(ConfirmationState::Waiting),
        stored_at,
        confirmed_at: time("confirmed_at")?,
        arrival: arrival.map(|(transaction, block)| ConfirmedArrival { transaction, block }),
        looks: row.get::<_, Option<i64>>("looks")?.unwrap_or(0),
    })
}

fn record_look(tx: &Connection, settings: &StoreSettings, look: &FinishedLook, now: Timestamp) -> Result<RecordedLook> {
    let id = &look.due.event_id;
    let is_current: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM confirmations WHERE event_id = ?1 AND looks = ?2
               AND (state = 'waiting' OR state = 'doubtful' OR state = 'unproven'))",
        )?
        .query_row(params![id, look.due.looks], |row| row.get(0))?;
    if !is_current {
        return Ok(RecordedLook::Outdated);
    }
    let arrival = match &look.confirmation.outcome {
        Err(reason) => return record_open(tx, look, None, reason, look.next_look_at),
        Ok(arrival) => arrival,
    };
    if let Some(reason) = claimed_reason(tx, look, arrival)? {
        return record_open(tx, look, None, &reason, None);
    }
    if now < look.settles_at {
        let message =
            format!("the money has arrived; delivery waits until {} for contradicting mails", iso(look.settles_at));
        let reason = ConfirmationReason::new(ConfirmationCode::Fresh, message);
        return record_open(tx, look, Some(arrival), &reason, Some(look.settles_at));
    }
    if let Some(rival) = rival(tx, look, arrival)? {
        let claimed = |other: &str| {
            ConfirmationReason::new(ConfirmationCode::Claimed, format!("event {other} claims the same arrival"))
        };
        tx.prepare_cached(
            "UPDATE confirmations SET state = 'doubtful', reason = ?2, next_look_at = NULL, looks = looks + 1 WHERE event_id = ?1",
        )?
        .execute(params![rival, claimed(id).to_string()])?;
        return record_open(tx, look, Some(arrival), &claimed(&rival), None);
    }
    confirm(tx, settings, look, arrival)
}

/// Returns a reason that names the other event, if the arrival already confirms another event.
fn claimed_reason(tx: &Connection, look: &FinishedLook, arrival: &Arrival) -> Result<Option<ConfirmationReason>> {
    let mut statement = tx.prepare_cached(
        "SELECT event_id FROM arrivals WHERE chain_id = ?1 AND tx = ?2 AND log = ?3 AND event_id <> ?4",
    )?;
    for key in &arrival.keys {
        let parameters = params![sql_id(look.chain_id), arrival.transaction.to_string(), key, look.due.event_id];
        let other_id: Option<String> = statement.query_row(parameters, |row| row.get(0)).optional()?;
        if let Some(other_id) = other_id {
            let message = format!("the money that arrived pays event {other_id}");
            return Ok(Some(ConfirmationReason::new(ConfirmationCode::Claimed, message)));
        }
    }
    Ok(None)
}

/// Returns the id of another unconfirmed event for which a look has found the same arrival.
fn rival(tx: &Connection, look: &FinishedLook, arrival: &Arrival) -> Result<Option<String>> {
    let sql = "SELECT event_id FROM confirmations WHERE chain_id = ?1 AND arrival = ?2 AND arrival_log = ?3 AND event_id <> ?4
                 AND (state = 'waiting' OR state = 'doubtful') LIMIT 1";
    let parameters =
        params![sql_id(look.chain_id), arrival.transaction.to_string(), arrival.keys.first(), look.due.event_id];
    Ok(tx.prepare_cached(sql)?.query_row(parameters, |row| row.get(0)).optional()?)
}

fn record_open(
    tx: &Connection,
    look: &FinishedLook,
    arrival: Option<&Arrival>,
    reason: &ConfirmationReason,
    next: Option<Timestamp>,
) -> Result<RecordedLook> {
    let state = reason.code.state();
    let next = (state == ConfirmationState::Waiting).then(|| next.unwrap_or_else(Timestamp::now));
    write(tx, look, state, Some(reason), arrival, next, None)?;
    Ok(RecordedLook::Open(reason.clone()))
}

fn confirm(tx: &Connection, settings: &StoreSettings, look: &FinishedLook, arrival: &Arrival) -> Result<RecordedLook> {
    let id = &look.due.event_id;
    for key in &arrival.keys {
        tx.prepare_cached("INSERT INTO arrivals (chain_id, tx, log, event_id) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![sql_id(look.chain_id), arrival.transaction.to_string(), key, id])?;
    }
    let at = Timestamp::now();
    write(tx, look, ConfirmationState::Confirmed, None, Some(arrival), look.next_look_at, Some(at))?;
    Ok(RecordedLook::Confirmed { released: release(tx, settings, id)? })
}

fn write(
    tx: &Connection,
    look: &FinishedLook,
    state: ConfirmationState,
    reason: Option<&ConfirmationReason>,
    arrival: Option<&Arrival>,
    next: Option<Timestamp>,
    confirmed_at: Option<Timestamp>,
) -> Result<()> {
    let block = |block: Option<BlockId>| block.map(|block| i64::try_from(block.number).unwrap_or(i64::MAX));
    let paid = look.confirmation.paid;
    tx.prepare_cached(
        "UPDATE confirmations SET state = :state, reason = :reason, chain_id = :chain_id, paid_block = :paid_block,
           paid_block_hash = :paid_block_hash, arrival = :arrival, arrival_log = :arrival_log, arrival_block = :arrival_block,
           received = :received, received_token = :received_token, amount_checked = :amount_checked, final = :final,
           nodes = :nodes, looks = looks + 1, looked_at = :looked_at, next_look_at = :next, confirmed_at = :confirmed_at
         WHERE event_id = :event_id",
    )?
    .execute(named_params! {
        ":event_id": look.due.event_id,
        ":state": state.as_str(),
        ":reason": reason.map(ConfirmationReason::to_string),
        ":chain_id": sql_id(look.chain_id),
        ":paid_block": block(paid),
        ":paid_block_hash": paid.map(|block| block.hash.to_string()),
        ":arrival": arrival.map(|a| a.transaction.to_string()),
        ":arrival_log": arrival.and_then(|a| a.keys.first()),
        ":arrival_block": block(arrival.map(|a| a.block)),
        ":received": arrival.map(|a| a.received.as_str()),
        ":received_token": arrival.map(|a| a.token.as_str()),
        ":amount_checked": arrival.map(|a| a.amount_checked),
        ":final": look.finality,
        ":nodes": look.nodes,
        ":looked_at": current_time(),
        ":next": next.map(iso),
        ":confirmed_at": confirmed_at.map(iso),
    })?;
    Ok(())
}

/// Returns the pause before the next look at a waiting event. The pause is a tenth of the time that the event has waited, but not
/// shorter than the time between two blocks. The pause is always between 2 and 60 seconds.
#[must_use]
pub fn next_look(waited: Duration, block_time: Duration) -> Duration {
    const SHORTEST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(60);
    let block_time = block_time.clamp(SHORTEST, LONGEST);
    (waited / 10).clamp(block_time, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer_with_the_age() {
        let seconds = |waited, block| next_look(Duration::from_secs(waited), Duration::from_millis(block)).as_secs();
        assert_eq!([seconds(0, 750), seconds(0, 12_000), seconds(0, 100_000)], [2, 12, 60]);
        assert_eq!([seconds(60, 2_000), seconds(600, 2_000), seconds(86_400, 2_000)], [6, 60, 60]);
    }
}
