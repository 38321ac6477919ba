//! Claims deliveries of a target that cannot be reached: one as a probe, and those whose `give_up_after` has passed.
//!
//! The rows of the other due deliveries do not change, so a target that is down causes few writes, however many deliveries wait.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use super::claim::{ClaimTimes, DUE, due_deliveries, event_columns, select};
use super::{Claimed, InFlight};
use crate::db::Result;

/// How many due deliveries of a target may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimLimit {
    /// Up to this number of deliveries. The delivery that has been due for the longest time comes first.
    Due(usize),
    /// The target cannot be reached: one delivery may be claimed as a probe, and some for their last attempt.
    Outage(Outage),
}

impl From<usize> for ClaimLimit {
    fn from(free: usize) -> Self {
        ClaimLimit::Due(free)
    }
}

/// An outage of a target that cannot be reached, and the deliveries that may be claimed during the outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// How long this process has tried to reach the target in this outage. Time in which the daemon did not run is not included.
    pub lasted: Duration,
    /// The target's `give_up_after`: how long the attempts of a delivery go on.
    pub give_up_after: Duration,
    /// Whether one due delivery may be claimed, to find out whether the target can be reached again.
    pub probe: bool,
    /// How many deliveries may be claimed for their last attempt, after which they are given up.
    pub last_attempts: usize,
}

/// Selects the pending deliveries that had a failed attempt, and whose `give_up_after` period began at `?2` or earlier.
pub(super) const OVERDUE: &str =
    due_deliveries!("d.last_error IS NOT NULL AND d.first_attempt_at <= ?2", "d.first_attempt_at");

impl Outage {
    /// The start of the outage, which is `lasted` earlier than `now`. `lasted` includes neither changes of the clock nor the time
    /// in which the machine was suspended.
    pub(super) fn since(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.lasted).unwrap_or(Timestamp::MIN)
    }

    /// Selects deliveries for their last attempt, because `give_up_after` has passed. If no delivery is selected for its last
    /// attempt, and `probe` is set, selects one due delivery as the probe.
    pub(super) fn select(
        &self,
        tx: &Connection,
        target: &str,
        in_flight: &[InFlight],
        now: Timestamp,
    ) -> Result<Vec<Claimed>> {
        let deadline = now.checked_sub(self.give_up_after).unwrap_or(Timestamp::MIN);
        // The `give_up_after` period of a delivery that was never attempted begins when the delivery became due, or at the start
        // of the outage if that is later. So a delivery without an attempt is given up only after the outage has lasted for
        // `give_up_after`.
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
