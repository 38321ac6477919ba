//! Limits the number of requests to Resmic's API in a minute. [`Pace`] reads no clock: the caller passes the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::http::MAX_RETRY_AFTER;

/// The limit is the number of requests in a time window of this length.
const MINUTE: Duration = Duration::from_secs(60);
/// The pauses after failed requests whose response has no `Retry-After`.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(600) };

/// The priority of a request to Resmic's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// An event waits for the answer.
    Event,
    /// No event waits for the answer: the inquiry is about a registered session without a mail. A third of the limit is reserved
    /// for [`Priority::Event`], so that inquiries about a thousand sessions cannot delay an event.
    Background,
}

/// The times of the requests in the last minute, and the end of the pause after a failed request.
///
/// A token bucket that fills continuously would allow twice the rate in some minutes, and the server counts the requests of each
/// minute. So [`Pace`] returns the token of a request one minute after the request.
#[derive(Debug)]
pub struct Pace {
    rate: usize,
    sent: VecDeque<Instant>,
    not_before: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// Allows at most `rate` requests in any minute. A rate of 0 is treated as 1.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        let rate = usize::try_from(rate.max(1)).unwrap_or(usize::MAX);
        Pace { rate, sent: VecDeque::new(), not_before: None, failures: 0 }
    }

    /// Counts a request that the caller sends at `now`.
    ///
    /// # Errors
    /// The limit or a pause allows no request at `now`. The error is the earliest time at which the caller may try again.
    pub fn start_request(&mut self, now: Instant, priority: Priority) -> Result<(), Instant> {
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Err(at);
        }
        while self.sent.front().is_some_and(|at| now.saturating_duration_since(*at) >= MINUTE) {
            self.sent.pop_front();
        }
        let limit = match priority {
            Priority::Event => self.rate,
            Priority::Background => self.rate - self.rate / 3,
        };
        // If the limit is reached, the new request may be sent when the request `blocking` is a minute old.
        let blocking = self.sent.len().checked_sub(limit).and_then(|n| self.sent.get(n));
        if let Some(at) = blocking {
            return Err(*at + MINUTE);
        }
        self.sent.push_back(now);
        Ok(())
    }

    /// Sets the count of failures to zero, because the server has answered a request. An existing pause stays, because the
    /// response to another request may have demanded this pause.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Begins a pause, because the server refused a request, failed, or did not answer. The pause is `Retry-After`, at most a
    /// day. Without `Retry-After`, the pause grows with each failure, up to ten minutes. A shorter pause never replaces a longer
    /// one.
    pub fn failed(&mut self, now: Instant, retry_after: Option<Duration>) {
        let pause = retry_after.map_or_else(|| BACKOFF.pause(self.failures), |asked| asked.min(MAX_RETRY_AFTER));
        self.failures = self.failures.saturating_add(1);
        self.not_before = self.not_before.max(Some(now + pause));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn background_requests_leave_room_for_events() {
        let (start, mut pace) = (Instant::now(), Pace::new(10));
        for _ in 0..7 {
            pace.start_request(start, Priority::Background).unwrap();
        }
        assert_eq!(pace.start_request(start, Priority::Background), Err(start + MINUTE));
        for _ in 0..3 {
            pace.start_request(start + seconds(1), Priority::Event).unwrap();
        }
        assert_eq!(pace.start_request(start + seconds(1), Priority::Event), Err(start + MINUTE));
        assert_eq!(pace.start_request(start + MINUTE, Priority::Event), Ok(()));
    }

    #[test]
    fn thousand_sessions_do_not_delay_an_event() {
        let (start, mut pace) = (Instant::now(), Pace::new(10));
        let (mut now, mut sent) = (start, 0);
        while sent < 1000 {
            match pace.start_request(now, Priority::Background) {
                Ok(()) => sent += 1,
                Err(at) => {
                    now = at;
                    assert_eq!(pace.start_request(now, Priority::Event), Ok(()), "after {sent} sessions");
                }
            }
        }
        assert!(now - start < seconds(3 * 3_600), "{:?}", now - start);
    }

    #[test]
    fn one_request_a_minute_is_possible() {
        let (start, mut pace) = (Instant::now(), Pace::new(1));
        pace.start_request(start, Priority::Background).unwrap();
        assert_eq!(pace.start_request(start + seconds(59), Priority::Event), Err(start + MINUTE));
        pace.start_request(start + MINUTE, Priority::Background).unwrap();
    }

    #[test]
    fn retry_after_stops_every_request() {
        let (start, mut pace) = (Instant::now(), Pace::new(10));
        pace.failed(start, Some(seconds(90)));
        pace.failed(start, Some(seconds(5)));
        assert_eq!(pace.start_request(start + seconds(89), Priority::Event), Err(start + seconds(90)));
        pace.start_request(start + seconds(90), Priority::Event).unwrap();
        pace.failed(start, Some(Duration::MAX));
        pace.succeeded();
        assert_eq!(pace.start_request(start, Priority::Event), Err(start + MAX_RETRY_AFTER));
    }

    #[test]
    fn pauses_grow_while_failures_last() {
        let (start, mut pace) = (Instant::now(), Pace::new(10));
        let mut pause = |n: u32| {
            pace.not_before = None;
            pace.failed(start, None);
            let pause = pace.start_request(start, Priority::Event).unwrap_err() - start;
            assert!(pause >= BACKOFF.ceiling(n) / 2 && pause <= BACKOFF.ceiling(n), "{n}: {pause:?}");
        };
        (0..12).for_each(&mut pause);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_requests(
            rate in 1..20_u32,
            steps in prop::collection::vec((0..20_000_u64, any::<bool>()), 0..200),
        ) {
            let (mut now, mut pace, mut sent) = (Instant::now(), Pace::new(rate), Vec::new());
            for (millis, is_event) in steps {
                now += Duration::from_millis(millis);
                let priority = if is_event { Priority::Event } else { Priority::Background };
                match pace.start_request(now, priority) {
                    Ok(()) => sent.push(now),
                    Err(at) => prop_assert!(at > now && at <= now + MINUTE),
                }
                let recent = sent.iter().filter(|at| now.duration_since(**at) < MINUTE).count();
                prop_assert!(recent <= rate as usize);
            }
        }
    }
}
