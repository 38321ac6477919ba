//! The outbox: which deliveries are due, and how each attempt ended.
//!
//! An attempt is counted and committed before it is made. After a crash the same request is sent again, with the same
//! `Idempotency-Key`. Deliveries are ordered only within a session and a target: an earlier `pending` delivery blocks
//! the later ones. A `held` or `dead` delivery does not block them.

mod claim;
mod finish;
pub(crate) mod holds;
mod in_streams;
mod outage;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use self::claim::{REQUEUE_AFTER_CLOCK_CHANGE, claim, next_due};
use self::finish::record_attempt;
pub use self::in_streams::{DeliveredEvent, DeliveredPosition, StreamReceipt};
pub use self::outage::{ClaimLimit, Outage};
use crate::chain::ConfirmationState;
use crate::db::{Error, Result, Store, current_time, word};
use crate::model::{AttemptResult, DeliveryState, Status};

/// The text of `attempts.error` until the result of the attempt is stored. If the program stops before the result is stored, this
/// text stays.
const NO_END: &str = "the program stopped during this attempt, so its result is unknown";

/// A delivery that the worker may attempt now. The attempt is already counted in `deliveries.attempts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The attempt's number, from 1.
    pub attempt: i64,
    /// The start of the `give_up_after` period: usually the first attempt since the delivery last became pending. If the program
    /// could not try the due delivery for some time, the start is later by the length of that time.
    pub first_attempt_at: Timestamp,
    /// The event.
    pub event: OutboundEvent,
}

/// An event in the form in which targets get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundEvent {
    /// The event's id.
    pub event_id: String,
    /// The event's status.
    pub status: Status,
    /// The event's session.
    pub session_id: Option<String>,
    /// The merchant's order reference.
    pub order_ref: Option<String>,
    /// The account of the mail that reported the event. `None`: no mail reported it.
    pub account: Option<String>,
    /// The JSON body that the target gets, byte for byte.
    pub webhook: String,
    /// The confirmation of the event by its chain. `None`: the event needs no confirmation.
    pub confirmation: Option<DeliveredConfirmation>,
}

/// The confirmation of an event by its chain, as read for an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredConfirmation {
    /// The state of the confirmation.
    pub state: ConfirmationState,
    /// How much money arrived, for example `20 USDC`. `None`: the chain has not confirmed the event.
    pub received: Option<String>,
    /// The transaction in which the money arrived. `None`: the chain has not confirmed the event.
    pub arrival: Option<String>,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedAttempt {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The attempt's number.
    pub attempt: i64,
    /// The result of the attempt, for `attempts.result`.
    pub result: AttemptResult,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// The duration of the attempt.
    pub took: Duration,
    /// The next step for the delivery.
    pub next_step: NextStep,
}

/// The next step for a delivery after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextStep {
    /// The handler accepted the event.
    Delivered,
    /// The target's stream has acknowledged the event.
    Stored(StreamReceipt),
    /// The delivery is retried at this time; the text is the error of the attempt.
    RetryAt(String, Timestamp),
    /// The delivery is retried at this time. The `give_up_after` period starts over, because the stream could not be reached or
    /// used, or because this host does not have the lease and may not send.
    RetryUncounted(String, Timestamp),
    /// The delivery becomes `dead`; the text is the error of the attempt.
    GiveUp(String),
}

/// A delivery whose attempt is being made. The delivery is not claimed again during the attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The event's session. Other deliveries of this session to the same target wait for the end of the attempt.
    pub session_id: Option<String>,
}

/// The next work of the worker that makes the attempts of one target.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClaimedBatch {
    /// The deliveries to attempt now. Their attempts are already counted in `deliveries.attempts`.
    pub claimed: Vec<Claimed>,
    /// The next time in the future at which a delivery to the target becomes due.
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
    /// Writes the results of finished attempts, and claims due deliveries to `target`, in one transaction. `limit`: how many
    /// deliveries may be claimed.
    ///
    /// # Errors
    ///
    /// [`Error`]. After an error, no result is stored and no delivery is claimed, and the caller may retry.
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

    /// Finds the deliveries to `target` whose next attempt was scheduled while the clock was ahead, and makes these deliveries
    /// due. Returns their number.
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

    /// Makes the selected deliveries due now, and restarts the `give_up_after` period of each. Returns the number of these
    /// deliveries.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if a delivery does not exist, was delivered, or is held. After an error, no delivery is changed.
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
    let refuse = |problem: String| Err(Error::Refused(format!("delivery {id} {problem}")));
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
