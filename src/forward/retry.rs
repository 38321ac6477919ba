//! When is a failed delivery tried again? Pure: a moment and a random number in, a moment out.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::http::MAX_RETRY_AFTER;

/// From seconds to an hour.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(3_600) };

/// How long to wait after attempt number `attempt` (from 1): exponential, with full jitter.
pub(super) fn pause(attempt: i64) -> Duration {
    BACKOFF.full_jitter(u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX))
}

/// When the next attempt is made; `None`: there is none.
///
/// `pause` from now, but not sooner than the callback asked for, nor later than `last`: that moment sees the last attempt.
pub(super) fn next(now: Timestamp, pause: Duration, asked: Option<Duration>, last: Timestamp) -> Option<Timestamp> {
    let wait = pause.max(asked.unwrap_or_default().min(MAX_RETRY_AFTER));
    (now < last).then(|| later(now, wait).min(last))
}

/// When an attempt ended that began at `at`. Of a clock that was put forward meanwhile it is not believed that the time is over.
pub(super) fn ended(at: Timestamp, took: Duration, clock: Timestamp) -> Timestamp {
    later(at, took).min(clock)
}

/// `at` and `wait` more; the end of time if that is too much.
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
    fn a_callback_may_ask_for_more_but_not_for_ever() {
        let wait = |pause, asked| {
            let now = at("2025-03-05T00:00:00Z");
            let asked = Some(Duration::from_secs(asked));
            next(now, Duration::from_secs(pause), asked, Timestamp::MAX).unwrap().duration_since(now).as_secs()
        };
        assert_eq!((wait(1, 30), wait(512, 0), wait(1, u64::MAX)), (30, 512, 86_400));
    }

    #[test]
    fn a_clock_that_is_set_during_an_attempt_ends_nothing() {
        let (began, took) = (at("2025-03-05T00:00:00Z"), Duration::from_secs(10));
        assert_eq!(ended(began, took, at("2025-03-09T00:00:00Z")), at("2025-03-05T00:00:10Z"));
        assert_eq!(
            ended(began, took, at("2025-03-01T00:00:00Z")),
            at("2025-03-01T00:00:00Z"),
            "nor puts it off for days"
        );
    }

    #[test]
    fn the_last_attempt_is_at_the_end_and_none_after_it() {
        let (now, last) = (at("2025-03-05T00:00:00Z"), at("2025-03-05T00:00:10Z"));
        assert_eq!(next(now, Duration::from_secs(60), None, last), Some(last));
        assert_eq!(next(last, Duration::ZERO, None, last), None);
    }
}
