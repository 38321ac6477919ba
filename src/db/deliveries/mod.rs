//! The outbox: which deliveries are due, and how each attempt ended.
//!
//! An attempt is counted and committed before it is made. After a crash the same request is sent again, with the same
//! `Idempotency-Key`. Deliveries are ordered only within a session and a target: an earlier `pending` delivery blocks
//! the later ones. A `held` or `dead` delivery does not block them.

pub(crate) mod holds;
mod in_streams;
mod outage;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

pub use self::outage::{ClaimLimit, Outage};
use crate::chain::ConfirmationState;
use crate::db::{Error, Result, Store, current_time, parse_time, word};
use crate::model::{AttemptResult, DeliveryState, Status, iso};

pub use in_streams::{DeliveredEvent, DeliveredPosition, Receipt};

/// The error in an attempt's row until its end is recorded.
const NO_END: &str = "the program stopped during this attempt, so its result is unknown";

/// A delivery whose next attempt is counted and may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The attempt's number, from 1.
    pub attempt: i64,
    /// The first attempt since the delivery last became pending, moved later by the time in which it could not be
    /// tried.
    pub first_attempt_at: Timestamp,
    /// The event.
    pub event: OutboundEvent,
}

/// An event in the form in which targets get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundEvent {
    /// The event's id.
    pub event_id: String,
    /// Its status.
    pub status: Status,
    /// Its session.
    pub session_id: Option<String>,
    /// The merchant's order reference.
    pub order_ref: Option<String>,
    /// The account of the mail that reported it. `None`: no mail did.
    pub account: Option<String>,
    /// The body, byte for byte.
    pub webhook: String,
    /// The confirmation of the event by its chain. `None`: it needs none.
    pub confirmation: Option<DeliveredConfirmation>,
}

/// The state of an event's confirmation when it is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredConfirmation {
    /// The state.
    pub state: ConfirmationState,
    /// How much arrived: `20 USDC`.
    pub received: Option<String>,
    /// The transaction in which it arrived.
    pub arrival: Option<String>,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedAttempt {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The attempt's number.
    pub attempt: i64,
    /// The result for the column `result`.
    pub result: AttemptResult,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The duration.
    pub took: Duration,
    /// The next step for the delivery.
    pub next_step: NextStep,
}

/// The next step for a delivery after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextStep {
    /// The handler accepted it.
    Delivered,
    /// A stream has it.
    Stored(Receipt),
    /// It is retried at this time; the text is the error.
    RetryAt(String, Timestamp),
    /// The same, and `give_up_after` starts over, because the target could not be reached.
    RetryUncounted(String, Timestamp),
    /// It becomes `dead`; the text is the error.
    GiveUp(String),
}

/// A delivery whose attempt is being made, so that it is not claimed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The event's session. Other deliveries of this session wait.
    pub session_id: Option<String>,
}

/// The next work of a delivery worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClaimedBatch {
    /// The attempts to make; they are counted already.
    pub claimed: Vec<Claimed>,
    /// The next time at which a delivery becomes due.
    pub next_due: Option<Timestamp>,
}

/// Which deliveries to retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetrySelection {
    /// The deliveries with these ids.
    Ids(Vec<i64>),
    /// All dead deliveries.
    Dead,
}

impl Store {
    /// Records finished attempts and claims due deliveries for `target`, in one transaction. `limit`: how many.
    ///
    /// # Errors
    ///
    /// [`Error`]. Then nothing was recorded or claimed, and the caller may retry.
    pub async fn record_and_claim(
        &self,
        target: &str,
        ended: Vec<FinishedAttempt>,
        in_flight: Vec<InFlight>,
        limit: impl Into<ClaimLimit>,
    ) -> Result<ClaimedBatch> {
        let (target, limit) = (target.to_owned(), limit.into());
        self.write(move |tx| {
            for attempted in &ended {
                record_attempt(tx, &target, attempted)?;
            }
            let claimed = claim(tx, &target, &in_flight, limit)?;
            Ok(ClaimedBatch { claimed, next_due: next_due(tx, &target)? })
        })
        .await
    }

    /// Makes deliveries due that were scheduled while the clock was ahead. Returns their number.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn requeue_after_clock_change(&self, target: &str) -> Result<usize> {
        let target = target.to_owned();
        self.write(move |tx| {
            Ok(tx.prepare_cached(REQUEUE_AFTER_CLOCK_CHANGE)?.execute(params![target, current_time()])?)
        })
        .await
    }

    /// Makes deliveries due now and restarts their `give_up_after`. Returns their number.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if a delivery does not exist, was delivered, or is held. Then nothing is changed.
    pub async fn retry(&self, which: RetrySelection) -> Result<usize> {
        let changed = self
            .write(move |tx| match which {
                RetrySelection::Dead => retry_dead(tx),
                RetrySelection::Ids(ids) => ids.iter().map(|id| retry_one(tx, *id)).sum(),
            })
            .await?;
        self.wake_outbox();
        Ok(changed)
    }
}

/// The columns of an [`OutboundEvent`], and the tables that they are read from.
macro_rules! event_columns {
    () => {
        "e.event_id, e.status, e.session_id, e.order_ref, e.webhook, c.state AS confirmation,
         c.received || ' ' || c.received_token AS received, c.arrival,
         (SELECT m.account FROM mails m WHERE m.event_id = e.event_id ORDER BY m.id LIMIT 1) AS account
       FROM deliveries d JOIN events e ON e.event_id = d.event_id LEFT JOIN confirmations c ON c.event_id = d.event_id"
    };
}
use event_columns;

/// Selects deliveries of target `?1`, at most `?3`, without those that an earlier pending delivery of their session blocks.
macro_rules! due_deliveries {
    ($which:literal, $order:literal) => {
        concat!(
            "SELECT d.id, d.attempts, d.first_attempt_at, d.next_attempt_at, ",
            event_columns!(),
            " WHERE d.state = 'pending' AND d.target = ?1 AND ",
            $which,
            " AND NOT EXISTS (
                SELECT 1 FROM events s CROSS JOIN deliveries b ON b.event_id = s.event_id AND b.target = d.target
                WHERE s.session_id = e.session_id AND b.state = 'pending' AND b.id < d.id)
             ORDER BY ",
            $order,
            ", d.id LIMIT ?3"
        )
    };
}
use due_deliveries;

/// The deliveries that have been due since `?2`, those first that have been due for the longest time.
const DUE: &str = due_deliveries!("d.next_attempt_at <= ?2", "d.next_attempt_at");

/// The next time at which a delivery becomes due. Deliveries that are due already wait for an attempt that is being
/// made.
const NEXT_DUE: &str =
    "SELECT min(next_attempt_at) FROM deliveries WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2";

/// The later deliveries of a session wait until the earlier one is retried …
const FOLLOWERS_WAIT: &str = "
    UPDATE deliveries SET next_attempt_at = ?3
    WHERE event_id IN (SELECT s.event_id FROM events s WHERE s.session_id = ?4)
      AND +target = ?1 AND +state = 'pending' AND +id > ?2 AND +next_attempt_at < ?3";

/// … and are due at once after it was delivered or given up.
const FOLLOWERS_GO: &str = "
    UPDATE deliveries SET next_attempt_at = ?3
    WHERE event_id IN (SELECT s.event_id FROM events s WHERE s.session_id = ?4)
      AND +target = ?1 AND +state = 'pending' AND +id > ?2 AND +attempts = 0 AND +next_attempt_at > ?3";

/// A retry is at most one day ahead. A later time was written while the clock was ahead.
const FURTHEST_RETRY: SignedDuration = SignedDuration::from_hours(48);
const REQUEUE_TOO_FAR_AHEAD: &str = "
    UPDATE deliveries SET next_attempt_at = ?3 WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2";

/// For a clock that was ahead by less: the last attempt, or the creation of the delivery, lies in the future. This
/// query runs only where the clock may have been set back.
const REQUEUE_AFTER_CLOCK_CHANGE: &str = "
    UPDATE deliveries SET next_attempt_at = ?2 WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2
      AND ?2 < coalesce((SELECT max(at) FROM attempts a WHERE a.delivery_id = deliveries.id), created_at)";

fn claim(tx: &Connection, target: &str, in_flight: &[InFlight], limit: ClaimLimit) -> Result<Vec<Claimed>> {
    if limit == ClaimLimit::Due(0) {
        return Ok(Vec::new());
    }
    let now = Timestamp::now();
    let at = iso(now);
    tx.prepare_cached(REQUEUE_TOO_FAR_AHEAD)?.execute(params![target, iso(now + FURTHEST_RETRY), at])?;
    let claimed = match limit {
        ClaimLimit::Due(free) => {
            select(tx, DUE, (target, now), in_flight, free, ClaimTimes { now, outage_since: None })?
        }
        ClaimLimit::Outage(outage) => outage.select(tx, target, in_flight, now)?,
    };
    for delivery in &claimed {
        count_attempt(tx, delivery, &at)?;
    }
    Ok(claimed)
}

/// The time of a claim, and when the outage of its target began, if there is one.
#[derive(Clone, Copy)]
struct ClaimTimes {
    now: Timestamp,
    outage_since: Option<Timestamp>,
}

/// Selects up to `free` deliveries that no attempt in flight blocks. `sql`: [`due_deliveries`] with its parameters `?1` and `?2`.
fn select(
    tx: &Connection,
    sql: &str,
    (target, until): (&str, Timestamp),
    in_flight: &[InFlight],
    free: usize,
    times: ClaimTimes,
) -> Result<Vec<Claimed>> {
    if free == 0 {
        return Ok(Vec::new());
    }
    // Deliveries that are in flight are due as well. They are skipped below, so the query asks for as many more.
    let limit = i64::try_from(free + in_flight.len()).unwrap_or(i64::MAX);
    let mut statement = tx.prepare_cached(sql)?;
    let due = statement.query_map(params![target, iso(until), limit], |row| read_claimed(row, times))?;
    let mut claimed: Vec<Claimed> = Vec::new();
    for delivery in due {
        let delivery = delivery?;
        if claimed.len() < free && !in_flight.iter().any(|f| blocks(f, &delivery)) {
            claimed.push(delivery);
        }
    }
    Ok(claimed)
}

fn read_claimed(row: &Row, times: ClaimTimes) -> rusqlite::Result<Claimed> {
    let first = parse_time(row.get("first_attempt_at")?);
    let due = parse_time(row.get("next_attempt_at")?).unwrap_or(times.now);
    Ok(Claimed {
        delivery_id: row.get("id")?,
        attempt: row.get::<_, i64>("attempts")? + 1,
        first_attempt_at: retry_period_start(first, due, times),
        event: read_event(row)?,
    })
}

/// Reads the columns of [`event_columns`].
fn read_event(row: &Row) -> rusqlite::Result<OutboundEvent> {
    Ok(OutboundEvent {
        event_id: row.get("event_id")?,
        status: word(row, "status")?,
        session_id: row.get("session_id")?,
        order_ref: row.get("order_ref")?,
        account: row.get("account")?,
        webhook: row.get("webhook")?,
        confirmation: read_confirmation(row)?,
    })
}

fn read_confirmation(row: &Row) -> rusqlite::Result<Option<DeliveredConfirmation>> {
    let state: Option<String> = row.get("confirmation")?;
    let Some(state) = state.and_then(|state| state.parse::<ConfirmationState>().ok()) else { return Ok(None) };
    // While it waits for contradicting mails, the arrival is not confirmed yet.
    let is_confirmed = state == ConfirmationState::Confirmed;
    let value = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(column)?.filter(|_| is_confirmed));
    Ok(Some(DeliveredConfirmation { state, received: value("received")?, arrival: value("arrival")? }))
}

/// An attempt that is later than this shows that the program or the machine was off. A slow handler delays others by
/// less.
const LATE: SignedDuration = SignedDuration::from_mins(1);

/// The start of the `give_up_after` period: the first attempt. Time in which the delivery was due and could not be tried is
/// left out: the machine was off, or its clock was behind. Otherwise one failed attempt after a restart would make the
/// delivery dead, for a handler that starts more slowly than this program. A start in the future counts as now.
///
/// During an outage of the target, the program tries all due deliveries with one of them. So this time counts.
fn retry_period_start(first: Option<Timestamp>, due: Timestamp, times: ClaimTimes) -> Timestamp {
    let ClaimTimes { now, outage_since } = times;
    let tried_since = outage_since.map_or(now, |since| since.max(due).min(now));
    let Some(first) = first else { return tried_since };
    let missed = tried_since.duration_since(due);
    let begun = if missed > LATE { first.checked_add(missed).unwrap_or(now) } else { first };
    begun.min(now)
}

/// A delivery whose event got its session late may have a lower id than one of that session in flight.
fn blocks(flight: &InFlight, delivery: &Claimed) -> bool {
    flight.delivery_id == delivery.delivery_id
        || flight
            .session_id
            .as_ref()
            .zip(delivery.event.session_id.as_ref())
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

impl Claimed {
    /// The delivery, while its attempt is being made.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        InFlight { delivery_id: self.delivery_id, session_id: self.event.session_id.clone() }
    }
}

fn count_attempt(tx: &Connection, claimed: &Claimed, at: &str) -> Result<()> {
    tx.prepare_cached("UPDATE deliveries SET attempts = ?2, first_attempt_at = ?3 WHERE id = ?1")?.execute(params![
        claimed.delivery_id,
        claimed.attempt,
        iso(claimed.first_attempt_at)
    ])?;
    tx.prepare_cached("INSERT OR REPLACE INTO attempts (delivery_id, attempt, at, error) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![claimed.delivery_id, claimed.attempt, at, NO_END])?;
    Ok(())
}

fn next_due(tx: &Connection, target: &str) -> Result<Option<Timestamp>> {
    Ok(parse_time(tx.prepare_cached(NEXT_DUE)?.query_row(params![target, current_time()], |row| row.get(0))?))
}

fn record_attempt(tx: &Connection, target: &str, attempted: &FinishedAttempt) -> Result<()> {
    let FinishedAttempt { delivery_id: id, status, next_step, .. } = attempted;
    let at = current_time();
    let (error, followers) = match next_step {
        NextStep::Delivered | NextStep::Stored(_) => {
            // In any state: the handler has the event.
            tx.prepare_cached(
                "UPDATE OR FAIL deliveries SET state = 'delivered', delivered_at = ?2, next_attempt_at = NULL, last_status = ?3,
                   last_error = NULL WHERE id = ?1",
            )?
            .execute(params![id, at, status])?;
            if let NextStep::Stored(receipt) = next_step {
                in_streams::record_receipt(tx, target, *id, receipt)?;
            }
            (None, at)
        }
        // A person has retried it meanwhile: the period starts now.
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

/// Whether a person retried the delivery while its attempt was being made.
fn was_made_due(tx: &Connection, id: i64) -> Result<bool> {
    let sql = "SELECT 1 FROM deliveries WHERE id = ?1 AND state = 'pending' AND first_attempt_at IS NULL";
    Ok(tx.prepare_cached(sql)?.exists(params![id])?)
}

/// A failure changes only a pending delivery. A delivery that was held meanwhile stays held.
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

const MAKE_DUE: &str = "UPDATE deliveries SET state = 'pending', next_attempt_at = ?1, first_attempt_at = NULL";

fn retry_dead(tx: &Connection) -> Result<usize> {
    Ok(tx.execute(&format!("{MAKE_DUE} WHERE state = 'dead'"), params![current_time()])?)
}

fn retry_one(tx: &Connection, id: i64) -> Result<usize> {
    let found: Option<(DeliveryState, Option<String>)> = tx
        .query_row("SELECT state, delivered_at FROM deliveries WHERE id = ?1", params![id], |row| {
            Ok((word(row, "state")?, row.get("delivered_at")?))
        })
        .optional()?;
    let refuse = |words: String| Err(Error::Refused(format!("delivery {id} {words}")));
    match found {
        None => refuse("is not there; `resmic-mailhook deliveries` lists them".into()),
        Some((DeliveryState::Delivered, at)) => {
            refuse(format!("was accepted by its handler at {}", at.as_deref().unwrap_or("?")))
        }
        Some((DeliveryState::Held, _)) => {
            refuse("is held; `resmic-mailhook show EVENT_ID` shows why. `session assign EVENT_ID SESSION_ID` releases it from a conflict or a missing session, `confirm EVENT_ID --vouch` from the chain and from Resmic".into())
        }
        Some((DeliveryState::Pending | DeliveryState::Dead, _)) => {
            Ok(tx.execute(&format!("{MAKE_DUE} WHERE id = ?2"), params![current_time(), id])?)
        }
    }
}
