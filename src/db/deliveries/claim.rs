//! Claims due deliveries: selects the deliveries that may be attempted now, reads their events, and counts the attempts.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, Row, params};

use super::{ClaimLimit, Claimed, DeliveredConfirmation, InFlight, NO_END, OutboundEvent};
use crate::chain::ConfirmationState;
use crate::db::{Result, current_time, parse_time, word};
use crate::model::iso;

/// The columns of an [`OutboundEvent`], and the tables with these columns.
macro_rules! event_columns {
    () => {
        "e.event_id, e.status, e.session_id, e.order_ref, e.webhook, c.state AS confirmation,
         c.received || ' ' || c.received_token AS received, c.arrival,
         (SELECT m.account FROM mails m WHERE m.event_id = e.event_id ORDER BY m.id LIMIT 1) AS account
       FROM deliveries d JOIN events e ON e.event_id = d.event_id LEFT JOIN confirmations c ON c.event_id = d.event_id"
    };
}
pub(super) use event_columns;

/// Selects at most `?3` pending deliveries to target `?1`. A delivery is left out if an earlier delivery of the same session to
/// this target is pending.
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
pub(super) use due_deliveries;

/// Selects deliveries that are due at `?2`. The delivery that has been due for the longest time comes first.
pub(super) const DUE: &str = due_deliveries!("d.next_attempt_at <= ?2", "d.next_attempt_at");

/// Selects the next time after `?2` at which a delivery to target `?1` becomes due. Deliveries that are due already are left
/// out, because they wait for the end of a running attempt.
pub(super) const NEXT_DUE: &str =
    "SELECT min(next_attempt_at) FROM deliveries WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2";

/// The pause before a retry is at most a day. So a `next_attempt_at` that is more than two days ahead was written while the clock
/// was ahead.
pub(super) const FURTHEST_RETRY: SignedDuration = SignedDuration::from_hours(48);
pub(super) const REQUEUE_TOO_FAR_AHEAD: &str = "
    UPDATE deliveries SET next_attempt_at = ?3 WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2";

/// Makes the deliveries due whose last attempt, or creation, lies in the future, because they were scheduled while the clock was
/// ahead by less than `FURTHEST_RETRY`. This statement runs only when the clock may have been set back.
pub(super) const REQUEUE_AFTER_CLOCK_CHANGE: &str = "
    UPDATE deliveries SET next_attempt_at = ?2 WHERE state = 'pending' AND target = ?1 AND next_attempt_at > ?2
      AND ?2 < coalesce((SELECT max(at) FROM attempts a WHERE a.delivery_id = deliveries.id), created_at)";

pub(super) fn claim(tx: &Connection, target: &str, in_flight: &[InFlight], limit: ClaimLimit) -> Result<Vec<Claimed>> {
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

/// The time of a claim, and when the outage of its target began, if there is an outage.
#[derive(Clone, Copy)]
pub(super) struct ClaimTimes {
    pub(super) now: Timestamp,
    pub(super) outage_since: Option<Timestamp>,
}

/// Selects up to `free` deliveries, without those that an attempt in flight blocks. `sql` is made by [`due_deliveries`], and
/// `target` and `until` are its parameters `?1` and `?2`.
pub(super) fn select(
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
    // Deliveries in flight are due, too, and are skipped below. So the limit of the query is higher by the number of deliveries
    // in flight.
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
pub(super) fn read_event(row: &Row) -> rusqlite::Result<OutboundEvent> {
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
    // After the money has arrived, the daemon waits for mails that contradict the event. During this wait, the row in
    // `confirmations` has an arrival, but the event is not confirmed. The arrival of an unconfirmed event is left out.
    let is_confirmed = state == ConfirmationState::Confirmed;
    let value = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(column)?.filter(|_| is_confirmed));
    Ok(Some(DeliveredConfirmation { state, received: value("received")?, arrival: value("arrival")? }))
}

/// If an attempt begins more than this time after its delivery became due, the program or the machine was off. A slow handler
/// delays other deliveries for a shorter time.
const LATE: SignedDuration = SignedDuration::from_mins(1);

/// The start of the `give_up_after` period of a delivery: usually the first attempt. If the machine was off, or its clock was
/// behind, while the delivery was due, the start is later by the length of that time. Otherwise, one failed attempt after a
/// restart would make the delivery dead if the handler starts more slowly than this program. A start in the future becomes `now`.
///
/// During an outage of the target, one due delivery is attempted in place of all due deliveries. So the length of an outage does
/// not make the start later.
fn retry_period_start(first: Option<Timestamp>, due: Timestamp, times: ClaimTimes) -> Timestamp {
    let ClaimTimes { now, outage_since } = times;
    let tried_since = outage_since.map_or(now, |since| since.max(due).min(now));
    let Some(first) = first else { return tried_since };
    let missed = tried_since.duration_since(due);
    let begun = if missed > LATE { first.checked_add(missed).unwrap_or(now) } else { first };
    begun.min(now)
}

/// Whether `delivery` must wait because `flight` is an attempt of the same delivery, or of another delivery of the same session.
/// The query lets only deliveries with higher ids wait for a pending delivery. But if an event got its session late, its delivery
/// may have a lower id than the delivery in flight of that session.
fn blocks(flight: &InFlight, delivery: &Claimed) -> bool {
    flight.delivery_id == delivery.delivery_id
        || flight
            .session_id
            .as_ref()
            .zip(delivery.event.session_id.as_ref())
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

impl Claimed {
    /// The [`InFlight`] of this delivery, for the time in which its attempt is being made.
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

pub(super) fn next_due(tx: &Connection, target: &str) -> Result<Option<Timestamp>> {
    Ok(parse_time(tx.prepare_cached(NEXT_DUE)?.query_row(params![target, current_time()], |row| row.get(0))?))
}
