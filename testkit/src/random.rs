//! Reproducible random numbers: SplitMix64 with a printed seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A random number generator that threads can share.
#[derive(Debug)]
pub struct Random(AtomicU64);

impl Random {
    /// Takes the seed from `MAILHOOK_SEED`, or a new one, and prints it.
    pub fn from_environment() -> Random {
        let seed = match std::env::var("MAILHOOK_SEED") {
            Ok(seed) => seed.parse().expect("MAILHOOK_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64,
        };
        println!("MAILHOOK_SEED={seed}");
        Random(AtomicU64::new(seed))
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// True with the probability 1 / `n`.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A random duration below `limit`.
    pub fn moment(&self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64))
    }
}
