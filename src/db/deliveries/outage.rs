//! Claims deliveries of a target that cannot be reached: one as a probe, and those whose `give_up_after` has passed.
//!
//! Nothing is written about the other due deliveries, so a long outbox costs nothing while its target is down.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use super::claim::{ClaimTimes, DUE, due_deliveries, event_columns, select};
use super::{Claimed, InFlight};
use crate::db::Result;

/// How many due deliveries of a target may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimLimit {
    /// Up to this number of deliveries. Those that have been due for the longest time come first.
    Due(usize),
    /// The target cannot be reached.
    Outage(Outage),
}

impl From<usize> for ClaimLimit {
    fn from(free: usize) -> Self {
        ClaimLimit::Due(free)
    }
}

/// The time in which a target cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// How long the outage has lasted while the program was trying to reach the target.
    pub lasted: Duration,
    /// How long a delivery is tried.
    pub give_up_after: Duration,
    /// Whether one due delivery may be claimed, to find out whether the target can be reached again.
    pub probe: bool,
    /// How many deliveries may be claimed for their last attempt.
    pub last_attempts: usize,
}

/// The deliveries that have failed, and whose `give_up_after` period began at `?2` or earlier.
pub(super) const OVERDUE: &str =
    due_deliveries!("d.last_error IS NOT NULL AND d.first_attempt_at <= ?2", "d.first_attempt_at");

impl Outage {
    /// The start of the outage: `lasted` before `now`. A change of the clock, and time in which the machine was suspended, do not
    /// count.
    pub(super) fn since(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.lasted).unwrap_or(Timestamp::MIN)
    }

    /// Selects deliveries for their last attempt. If it finds no such delivery, it selects one due delivery as the probe.
    pub(super) fn select(
        &self,
        tx: &Connection,
        target: &str,
        in_flight: &[InFlight],
        now: Timestamp,
    ) -> Result<Vec<Claimed>> {
        let deadline = now.checked_sub(self.give_up_after).unwrap_or(Timestamp::MIN);
        // A delivery that was never attempted has waited since it was due, or since the outage began if that is later. So no such
        // delivery is given up before the outage has lasted for `give_up_after`.
        let never_attempted = if self.lasted >= self.give_up_after { self.last_attempts } else { 0 };
        let times = ClaimTimes { now, outage_since: Some(self.since(now)) };
        let (mut claimed, mut in_flight) = (Vec::new(), in_flight.to_vec());
        for (sql, until, free) in [
            (OVERDUE, deadline, self.last_attempts),
            (DUE, deadline, never_attempted),
            (DUE, now, usize::from(self.probe)),
        ] {
            let found = select(tx, sql, (target, until), &in_flight, free.saturating_sub(claimed.len()), times)?;
            in_flight.extend(found.iter().map(Claimed::in_flight));
            claimed.extend(found);
        }
        Ok(claimed)
    }
}
