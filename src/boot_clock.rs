//! A clock that goes on while the machine sleeps, and that no program can set.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock that measures the time of a lease. Linux stops the monotonic clock during a suspend, but not this clock
/// (clock_gettime(2)).
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// A point in time, as the time since the start of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// The current time.
    #[must_use]
    pub fn now() -> Self {
        let at = clock_gettime(CLOCK);
        let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
        BootInstant(Duration::new(seconds, u32::try_from(at.tv_nsec).unwrap_or_default()))
    }

    /// This point in time plus the duration `later`.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        BootInstant(self.0.saturating_add(later))
    }

    /// The time from `earlier` to this point in time; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: BootInstant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The milliseconds since the start of the machine.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// The inverse of [`BootInstant::as_millis`].
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        BootInstant(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_differences_are_never_negative() {
        let (first, second) = (BootInstant::from_millis(1_000), BootInstant::from_millis(3_500));
        assert_eq!(second.since(first), Duration::from_millis(2_500));
        assert_eq!(first.since(second), Duration::ZERO);
        assert_eq!(first.plus(Duration::from_millis(2_500)), second);
        assert!(BootInstant::now() > BootInstant::default());
        assert_eq!(BootInstant::from_millis(7).as_millis(), 7);
    }
}
