//! Decides which events wait until their chain confirms the payment, and ends the wait.
//!
//! One SQLite transaction stores an event and the event's row in the table `confirmations`. The module `looks` changes this row
//! after each look at the nodes of the chain.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::stored_events::{event_from_row, related_events};
use super::{clearances, conflicts};
use crate::chain::{Claim, ConfirmationReason, ConfirmationState, Question};
use crate::db::{Error, Result, Store, StoreSettings, current_time, holds, word};
use crate::model::{Event, Reason, Status, fold_chain, iso};

/// The result of `confirm --vouch`: an operator decided that an event was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// The confirmation state of the event before the command. `None`: the event waited neither for the chain nor for Resmic.
    pub before: Option<ConfirmationState>,
    /// How many deliveries of the event were released.
    pub released: usize,
    /// How many deliveries of the event are still held, because its session is unknown or because a conflict needs review.
    pub held: i64,
}

impl Store {
    /// Records in `confirmations` and `clearances` that an operator confirms the payment of an event. Releases the event's
    /// deliveries, unless its session is unknown or a conflict needs review.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the event does not exist or is not completed.
    pub async fn vouch(&self, event_id: &str) -> Result<Vouched> {
        let (settings, event_id) = (self.settings.clone(), event_id.to_owned());
        let vouched = self.write(move |tx| vouch(tx, &settings, &event_id)).await?;
        self.wake_outbox();
        Ok(vouched)
    }
}

/// Converts a chain id of EIP-155 to an integer of SQLite, which is signed.
pub(super) fn sql_id(chain_id: u64) -> i64 {
    i64::try_from(chain_id).unwrap_or(i64::MAX)
}

/// Returns why the nodes of the chain cannot check an event. `None`: the nodes can check the event.
fn obstacle(settings: &StoreSettings, event: &Event, now: Timestamp) -> Option<ConfirmationReason> {
    Question::new(&Claim::from_event(event, now, None, now), &settings.chains).err()
}

/// The values of an event's row in `confirmations` before the first look at the event.
struct FirstState {
    state: ConfirmationState,
    reason: Option<String>,
    chain_id: Option<i64>,
    next_look_at: Option<String>,
    waits_since: String,
}

impl FirstState {
    fn new(settings: &StoreSettings, event: &Event) -> Self {
        let now = Timestamp::now();
        let obstacle = obstacle(settings, event, now);
        FirstState {
            state: obstacle.as_ref().map_or(ConfirmationState::Waiting, |reason| reason.code.state()),
            reason: obstacle.as_ref().map(ConfirmationReason::to_string),
            chain_id: chain_id(settings, event),
            next_look_at: obstacle.is_none().then(|| iso(now)),
            waits_since: iso(now),
        }
    }
}

fn chain_id(settings: &StoreSettings, event: &Event) -> Option<i64> {
    let name = fold_chain(event.payment.blockchain.as_deref()?);
    settings.chains.iter().find(|chain| fold_chain(&chain.name) == name).map(|chain| sql_id(chain.id))
}

/// Creates the row in `confirmations` for a completed event with deliveries, if a `[[chain]]` is configured. Returns whether the
/// row was created, so that the event must wait for its chain.
pub(super) fn begin(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event) -> Result<bool> {
    if settings.chains.is_empty() || event.payment.status != Status::Completed {
        return Ok(false);
    }
    let first = FirstState::new(settings, event);
    tx.prepare_cached(
        "INSERT OR FAIL INTO confirmations (event_id, state, reason, chain_id, next_look_at, waits_since)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        id,
        first.state.as_str(),
        first.reason,
        first.chain_id,
        first.next_look_at,
        first.waits_since
    ])?;
    Ok(true)
}

/// Starts the confirmation of an event again if `new` changes a value that the nodes check. The result of an earlier look does
/// not apply to the new values.
pub(super) fn restart_if_changed(tx: &Connection, settings: &StoreSettings, id: &str, new: &Event) -> Result<()> {
    let payment = &new.payment;
    let changed: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM confirmations c JOIN events e ON e.event_id = c.event_id
               WHERE c.event_id = ?1 AND c.state <> 'operator'
                 AND EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = ?1 AND d.state <> 'delivered')
                 AND (e.session_id IS NOT ?2 OR e.amount IS NOT ?3 OR e.currency IS NOT ?4 OR e.blockchain IS NOT ?5
                      OR e.token IS NOT ?6 OR e.from_wallet_address IS NOT ?7))",
        )?
        .query_row(
            params![
                id,
                payment.session_id,
                payment.amount,
                payment.currency,
                payment.blockchain,
                payment.token,
                payment.from_wallet_address
            ],
            |row| row.get(0),
        )?;
    if changed { restart(tx, settings, id, new) } else { Ok(()) }
}

fn restart(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event) -> Result<()> {
    let first = FirstState::new(settings, event);
    tx.prepare_cached("DELETE FROM arrivals WHERE event_id = ?1")?.execute(params![id])?;
    tx.prepare_cached(
        "UPDATE confirmations SET state = ?2, reason = ?3, chain_id = ?4, next_look_at = ?5, waits_since = ?6,
           arrival = NULL, arrival_log = NULL, arrival_block = NULL, received = NULL, received_token = NULL,
           amount_checked = NULL, confirmed_at = NULL, looks = looks + 1
         WHERE event_id = ?1",
    )?
    .execute(params![
        id,
        first.state.as_str(),
        first.reason,
        first.chain_id,
        first.next_look_at,
        first.waits_since
    ])?;
    holds::hold_for_chain(tx, settings, id).map(drop)
}

/// Applies the configured chains to stored completed events with a delivery that no handler has accepted. Creates the missing
/// rows of these events in `confirmations`. If a chain or a token was added or removed, starts the confirmation of the affected
/// events again.
pub(super) fn adopt(tx: &Connection, settings: &StoreSettings) -> Result<()> {
    if settings.chains.is_empty() {
        return Ok(());
    }
    let select = |condition: &str| {
        format!(
            "SELECT e.*, c.state AS confirmation FROM events e LEFT JOIN confirmations c ON c.event_id = e.event_id
             WHERE e.event_id IN (SELECT event_id FROM deliveries WHERE state <> 'delivered')
               AND e.status = 'completed' AND ({condition})"
        )
    };
    let tracing: Vec<String> =
        settings.chains.iter().filter(|chain| chain.trace).map(|chain| sql_id(chain.id).to_string()).collect();
    let sql = select(&format!(
        "c.event_id IS NULL OR c.state = 'waiting' OR c.state = 'unproven' AND (c.reason LIKE 'no-node:%' OR c.reason LIKE 'no-token:%'
         OR c.reason LIKE 'no-hash:%' OR c.reason LIKE 'no-trace:%' AND c.chain_id IN ({}))",
        tracing.join(", ")
    ));
    let mut statement = tx.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>("event_id")?, event_from_row(row)?, row.get::<_, Option<String>>("confirmation")?))
    })?;
    for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
        let (id, event, state) = row;
        let is_askable = obstacle(settings, &event, Timestamp::now()).is_none();
        match state.as_deref() {
            None => drop(begin(tx, settings, &id, &event)?),
            // The configuration has changed: the chain or the token was added or removed, or `trace` was changed.
            Some(state) if (state == ConfirmationState::Waiting.as_str()) != is_askable => {
                restart(tx, settings, &id, &event)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Holds the deliveries of an event that no handler has accepted, because another mail reports the event's transaction with other
/// values. Does nothing for an event that never had to wait for the chain or for Resmic.
pub(super) fn contest(tx: &Connection, id: &str, reason: &Reason) -> Result<()> {
    let waits: bool = tx
        .prepare_cached(
            "SELECT (EXISTS (SELECT 1 FROM confirmations WHERE event_id = ?1)
                     OR EXISTS (SELECT 1 FROM clearances WHERE event_id = ?1))
               AND EXISTS (SELECT 1 FROM deliveries WHERE event_id = ?1 AND state <> 'delivered')",
        )?
        .query_row(params![id], |row| row.get(0))?;
    if waits {
        tracing::warn!(event_id = id, %reason, "held: two mails claim one transaction");
        holds::hold(tx, id, reason)?;
    }
    Ok(())
}

/// Releases the deliveries of an event that the chain, Resmic or a person has confirmed. If the event's session has another
/// payment that is confirmed or delivered, holds the deliveries for review instead.
pub(super) fn release(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<usize> {
    let event =
        tx.prepare_cached("SELECT * FROM events WHERE event_id = ?1")?.query_row(params![id], event_from_row)?;
    let known = related_events(tx, id, &event)?;
    if let Some(reason) = conflicts::second_payment(id, &event, &known) {
        holds::hold(tx, id, &reason)?;
        return Ok(0);
    }
    holds::release(tx, settings, id)
}

fn vouch(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<Vouched> {
    let status: Option<Status> = tx
        .query_row("SELECT status FROM events WHERE event_id = ?1", params![id], |row| word(row, "status"))
        .optional()?;
    match status {
        None => return Err(Error::Refused(format!("event {id} is not there; `resmic-mailhook events` lists them"))),
        Some(Status::Completed) => {}
        Some(status) => {
            return Err(Error::Refused(format!("event {id} is {status}; only a completed one is confirmed")));
        }
    }
    let before: Option<ConfirmationState> = tx
        .query_row("SELECT state FROM confirmations WHERE event_id = ?1", params![id], |row| word(row, "state"))
        .optional()?;
    if before.is_some() && before != Some(ConfirmationState::Confirmed) {
        tx.execute(
            "UPDATE confirmations SET state = 'operator', reason = NULL, next_look_at = NULL, confirmed_at = ?2, looks = looks + 1
             WHERE event_id = ?1",
            params![id, current_time()],
        )?;
    }
    let before = clearances::vouch(tx, id)?.or(before);
    let released = if before.is_some() { release(tx, settings, id)? } else { 0 };
    let sql = "SELECT count(*) FROM deliveries WHERE event_id = ?1 AND state = 'held'";
    let held = tx.query_row(sql, params![id], |row| row.get(0))?;
    Ok(Vouched { before, released, held })
}
