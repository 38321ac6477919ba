//! When a failed delivery is retried. The functions are pure, except for the random number in [`pause`].

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::http::MAX_RETRY_AFTER;

/// The upper limit of the pause: 2 s after the first attempt, then doubled up to an hour.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(3_600) };

/// The pause after attempt number `attempt` (from 1): exponential backoff with full jitter.
pub(super) fn pause(attempt: i64) -> Duration {
    BACKOFF.full_jitter(u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX))
}

/// When the next attempt is made; `None` if the time `last` has passed.
///
/// The next attempt is `pause` after `now`, or `retry_after` after `now` if that is longer. The next attempt is never later than
/// `last`, the latest time for an attempt. A `retry_after` of more than one day counts as one day.
pub(super) fn next(
    now: Timestamp,
    pause: Duration,
    retry_after: Option<Duration>,
    last: Timestamp,
) -> Option<Timestamp> {
    let wait = pause.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
    (now < last).then(|| later(now, wait).min(last))
}

/// The end of an attempt that began at `at`. If the clock was set forward during the attempt, the end is `at` plus `took`, so
/// that the delivery is not given up too early.
pub(super) fn ended(at: Timestamp, took: Duration, clock: Timestamp) -> Timestamp {
    later(at, took).min(clock)
}

/// `at` plus `wait`, at most the last representable time.
pub(super) fn later(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn pauses_grow_from_seconds_to_an_hour() {
        let longest = |attempt| (0..200).map(|_| pause(attempt)).max().unwrap();
        assert!(longest(1) <= Duration::from_secs(2) && longest(1) > Duration::from_secs(1));
        assert!(longest(8) <= Duration::from_secs(256) && longest(8) > Duration::from_secs(128));
        assert!(longest(i64::MAX) <= Duration::from_secs(3_600));
    }

    #[test]
    fn retry_after_is_limited_to_a_day() {
        let wait = |pause, retry_after| {
            let now = at("2025-03-05T00:00:00Z");
            let retry_after = Some(Duration::from_secs(retry_after));
            next(now, Duration::from_secs(pause), retry_after, Timestamp::MAX).unwrap().duration_since(now).as_secs()
        };
        assert_eq!((wait(1, 30), wait(512, 0), wait(1, u64::MAX)), (30, 512, 86_400));
    }

    #[test]
    fn setting_the_clock_gives_up_no_delivery() {
        let (began, took) = (at("2025-03-05T00:00:00Z"), Duration::from_secs(10));
        assert_eq!(ended(began, took, at("2025-03-09T00:00:00Z")), at("2025-03-05T00:00:10Z"));
        assert_eq!(
            ended(began, took, at("2025-03-01T00:00:00Z")),
            at("2025-03-01T00:00:00Z"),
            "a clock set back does not postpone the next attempt"
        );
    }

    #[test]
    fn the_last_attempt_is_at_the_limit() {
        let (now, last) = (at("2025-03-05T00:00:00Z"), at("2025-03-05T00:00:10Z"));
        assert_eq!(next(now, Duration::from_secs(60), None, last), Some(last));
        assert_eq!(next(last, Duration::ZERO, None, last), None);
    }
}
