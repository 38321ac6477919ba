//! Pauses between retries. Each is longer than the one before, and random, so that clients do not retry together.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest first pause.
    pub base: Duration,
    /// The longest pause.
    pub cap: Duration,
}

impl Backoff {
    /// The longest pause after so many earlier failures: `base`, doubled for each, and at most `cap`.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(failures)).min(self.cap)
    }

    /// A random pause between half of [`Backoff::ceiling`] and all of it. A thousand clients that failed together return at
    /// different times, and none returns early.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let ceiling = self.ceiling(failures);
        ceiling / 2 + (ceiling / 2).mul_f64(fraction())
    }

    /// A random pause between zero and [`Backoff::ceiling`] ("full jitter").
    #[must_use]
    pub fn full_jitter(&self, failures: u32) -> Duration {
        self.ceiling(failures).mul_f64(fraction())
    }
}

/// A random number from 0 to 1, without 1.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers, the longest pause is the safe one.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_cap() {
        let backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(300) };
        assert_eq!(backoff.ceiling(0), Duration::from_secs(1));
        assert_eq!(backoff.ceiling(3), Duration::from_secs(8));
        assert_eq!(backoff.ceiling(u32::MAX), Duration::from_secs(300));
        for failures in 0..20 {
            let pause = backoff.pause(failures);
            assert!(pause >= backoff.ceiling(failures) / 2 && pause <= backoff.ceiling(failures));
            assert!(backoff.full_jitter(failures) <= backoff.ceiling(failures));
        }
    }
}
