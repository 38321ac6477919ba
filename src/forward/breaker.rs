//! The circuit breaker of a target: while no connection to it can be made, few deliveries are attempted.
//!
//! Without the breaker, each of 100,000 due deliveries would fail by itself, again and again. The breaker opens after many failed
//! connections in a row. Then one delivery at a time is attempted as a probe, with growing pauses. The other deliveries stay due,
//! and nothing is written about them in the database. But each delivery still gets its last attempt before it counts as dead. The
//! first connection that succeeds closes the breaker. The state of the breaker is not stored, so the first attempts after a
//! restart fail again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::target::CommonTarget;
use crate::backoff::Backoff;
use crate::db::{ClaimLimit, Outage};
use crate::model::AttemptResult;

/// The number of failed connections in a row that opens the breaker. The number is larger than the number of requests that may be
/// open at the same time, so that a restart of the handler does not open the breaker.
const FAILURES: u32 = 32;

/// The pauses between probes. The pauses stay short, because all deliveries wait for the probe that succeeds.
const PROBES: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(30) };

/// If a commit may have stored an event, the next probe is made at most this long after the last failure. So the event does not
/// wait for a longer pause.
const AFTER_COMMIT: Duration = Duration::from_secs(1);

/// Decides how many deliveries of one target may be attempted.
pub(super) struct Breaker {
    target: Arc<CommonTarget>,
    state: BreakerState,
    /// The value of `Store::watch_outbox`: a counter of commits that may have made deliveries due.
    commits: u64,
}

enum BreakerState {
    /// The number of connections that have failed since a connection succeeded.
    Closed(u32),
    Open(OpenBreaker),
}

struct OpenBreaker {
    since: Instant,
    /// The number of failed probes.
    probes: u32,
    last_failure: Instant,
    next_probe: Instant,
}

impl Breaker {
    pub(super) fn new(target: Arc<CommonTarget>) -> Self {
        Breaker { target, state: BreakerState::Closed(0), commits: 0 }
    }

    /// How many due deliveries the worker may attempt now. `in_flight`: the number of attempts that run; `free`: the number of
    /// further attempts that may begin.
    pub(super) fn limit(&self, now: Instant, in_flight: usize, free: usize) -> ClaimLimit {
        match &self.state {
            BreakerState::Closed(_) => ClaimLimit::Due(free),
            BreakerState::Open(open) => ClaimLimit::Outage(Outage {
                lasted: now.saturating_duration_since(open.since),
                give_up_after: self.target.give_up_after,
                probe: in_flight == 0 && now >= open.next_probe,
                last_attempts: free,
            }),
        }
    }

    /// When the worker must read the due deliveries again, if nothing wakes the worker earlier. `now` must be the time that was
    /// passed to [`Breaker::limit`]. `next_due`: when a delivery becomes due.
    pub(super) fn wake_at(&self, now: Instant, in_flight: usize, next_due: Option<Instant>) -> Option<Instant> {
        match &self.state {
            // The end of a running attempt wakes the worker.
            BreakerState::Open(_) if in_flight > 0 => None,
            BreakerState::Open(open) if now < open.next_probe => Some(open.next_probe),
            _ => next_due,
        }
    }

    /// Opens or closes the breaker, or postpones the next probe, according to the result of an attempt.
    pub(super) fn note_result(&mut self, result: AttemptResult, now: Instant) {
        let callback = self.target.name.as_str();
        match &mut self.state {
            BreakerState::Closed(failures) if result == AttemptResult::NotSent => {
                *failures += 1;
                if *failures >= FAILURES {
                    tracing::warn!(callback, "no connection can be made; trying one delivery at a time until it can");
                    let next_probe = now + PROBES.pause(0);
                    self.state =
                        BreakerState::Open(OpenBreaker { since: now, probes: 0, last_failure: now, next_probe });
                }
            }
            BreakerState::Open(open) if result == AttemptResult::NotSent => {
                open.last_failure = now;
                // Probes begin at `next_probe`. A failure before `next_probe` belongs to the last attempt of a delivery that is
                // about to be dead, or to an attempt that began before the breaker opened. A failure of such an attempt after
                // `next_probe` counts as a failed probe, because it also proves that no connection can be made.
                if now >= open.next_probe {
                    open.probes = open.probes.saturating_add(1);
                    open.next_probe = now + PROBES.pause(open.probes);
                }
            }
            BreakerState::Closed(_) => self.state = BreakerState::Closed(0),
            BreakerState::Open(_) => {
                tracing::info!(callback, "a connection was made; all due deliveries are sent");
                self.state = BreakerState::Closed(0);
            }
        }
    }

    /// Makes the next probe earlier if `commits` has changed, because a commit may have stored an event. `commits`: the value of
    /// `Store::watch_outbox`.
    pub(super) fn note_commits(&mut self, commits: u64) {
        let is_new = std::mem::replace(&mut self.commits, commits) != commits;
        if let BreakerState::Open(open) = &mut self.state
            && is_new
        {
            open.next_probe = open.next_probe.min(open.last_failure + AFTER_COMMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::sign::Signer;

    const SECOND: Duration = Duration::from_secs(1);
    const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 86_400);

    fn closed() -> Breaker {
        let signer = Signer::new(&"secret".into()).unwrap();
        let target = CommonTarget { name: "shop".into(), signer, timeout: SECOND, give_up_after: GIVE_UP_AFTER };
        Breaker::new(Arc::new(target))
    }

    fn open(now: Instant) -> Breaker {
        let mut breaker = closed();
        (0..FAILURES).for_each(|_| breaker.note_result(AttemptResult::NotSent, now));
        breaker
    }

    fn outage(lasted: Duration, probe: bool, last_attempts: usize) -> ClaimLimit {
        ClaimLimit::Outage(Outage { lasted, give_up_after: GIVE_UP_AFTER, probe, last_attempts })
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let now = Instant::now();
        for result in [AttemptResult::Accepted, AttemptResult::Rejected, AttemptResult::NoResponse] {
            let mut breaker = closed();
            for n in 1..10 * FAILURES {
                breaker.note_result(if n % FAILURES == 0 { result } else { AttemptResult::NotSent }, now);
            }
            assert_eq!(breaker.limit(now, 3, 13), ClaimLimit::Due(13), "{result:?}");
        }
        assert_eq!(open(now).limit(now, 3, 13), outage(Duration::ZERO, false, 13));
    }

    #[test]
    fn one_probe_at_a_time_is_made() {
        let now = Instant::now();
        let breaker = open(now);
        let later = now + 2 * SECOND;
        assert_eq!(breaker.limit(now, 0, 16), outage(Duration::ZERO, false, 16));
        assert_eq!(breaker.limit(later, 0, 16), outage(2 * SECOND, true, 16));
        assert_eq!(breaker.limit(later, 1, 15), outage(2 * SECOND, false, 15));
        let due = Some(now + Duration::from_millis(1));
        assert!(breaker.wake_at(now, 0, due).is_some_and(|at| at >= now + SECOND && at <= later), "for the probe");
        assert_eq!(breaker.wake_at(later, 1, due), None, "the end of the probe wakes the worker");
        assert_eq!(breaker.wake_at(later, 0, due), due, "no delivery is due");
        assert_eq!(closed().wake_at(now, 9, due), due);
    }

    #[test]
    fn pauses_between_probes_grow_to_half_a_minute() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        for longest in [2, 4, 8, 16, 30, 30, 30] {
            let next = breaker.wake_at(now, 0, None).unwrap();
            let pause = next - now;
            assert!(pause >= longest * SECOND / 2 && pause <= longest * SECOND, "{pause:?} of {longest} s");
            // An attempt that began earlier fails before the time of the next probe.
            breaker.note_result(AttemptResult::NotSent, now);
            assert_eq!(breaker.wake_at(now, 0, None), Some(next));
            now = next;
            breaker.note_result(AttemptResult::NotSent, now);
        }
    }

    #[test]
    fn a_connection_closes_it() {
        let now = Instant::now();
        for result in [AttemptResult::Accepted, AttemptResult::Rejected, AttemptResult::NoResponse] {
            let mut breaker = open(now);
            breaker.note_result(result, now);
            assert_eq!(breaker.limit(now, 1, 15), ClaimLimit::Due(15));
            breaker.note_result(AttemptResult::NotSent, now);
            assert_eq!(breaker.limit(now, 1, 15), ClaimLimit::Due(15), "the failures are counted from the start");
        }
    }

    #[test]
    fn a_commit_makes_the_probe_early() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        for _ in 0..9 {
            now = breaker.wake_at(now, 0, None).unwrap();
            breaker.note_result(AttemptResult::NotSent, now);
        }
        let planned = breaker.wake_at(now, 0, None).unwrap();
        breaker.note_commits(0);
        assert_eq!(breaker.wake_at(now, 0, None), Some(planned), "there was no commit");
        breaker.note_commits(1);
        assert_eq!(breaker.wake_at(now, 0, None), Some(now + SECOND));
        breaker.note_commits(2);
        assert_eq!(breaker.wake_at(now, 0, None), Some(now + SECOND), "not even earlier");
    }
}
