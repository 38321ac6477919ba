//! Retries with pauses. The pauses grow up to a limit. The pauses are random, so that clients do not retry at the same time.

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
    /// The longest pause after this number of earlier failures: `base`, doubled for each failure, and at most `cap`.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(failures)).min(self.cap)
    }

    /// A random pause between half of [`Backoff::ceiling`] and the whole ceiling. So a thousand clients that failed at the same
    /// time retry at different times, and each waits for at least half of the ceiling.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let ceiling = self.ceiling(failures);
        ceiling / 2 + (ceiling / 2).mul_f64(fraction())
    }

    /// Calls `work` until it succeeds, with a [`Backoff::pause`] after each failure.
    ///
    /// `handle` gets each error, and returns `Ok` for a retry, or the error to give up.
    ///
    /// # Errors
    /// The error that `handle` returned.
    pub async fn retry<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        mut work: impl FnMut() -> F,
        mut handle: impl FnMut(E) -> Result<(), E>,
    ) -> Result<T, E> {
        let mut failures = 0_u32;
        loop {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) => handle(error)?,
            }
            tokio::time::sleep(self.pause(failures)).await;
            failures = failures.saturating_add(1);
        }
    }

    /// A random pause between zero and [`Backoff::ceiling`] ("full jitter").
    #[must_use]
    pub fn full_jitter(&self, failures: u32) -> Duration {
        self.ceiling(failures).mul_f64(fraction())
    }
}

/// A random number that is at least 0 and below 1; 1 if the system has no random numbers.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // The result 1 leads to the longest pause, which is safe.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_are_retried_until_one_is_final() {
        let backoff = Backoff { base: Duration::from_millis(1), cap: Duration::from_millis(1) };
        let mut attempts = 0;
        let mut count = || {
            attempts += 1;
            attempts
        };
        let temporary = |error: u32| if error < 3 { Ok(()) } else { Err(error) };
        let fail = |attempt: u32| async move { Err::<(), _>(attempt) };
        assert_eq!(backoff.retry(|| fail(count()), temporary).await, Err(3));
        let succeed_later = |attempt: u32| async move { if attempt < 6 { Err(0) } else { Ok(attempt) } };
        assert_eq!(backoff.retry(|| succeed_later(count()), temporary).await, Ok(6));
    }

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
