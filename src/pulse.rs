//! Proof of progress: each loop says when it has done something, and until when the next sign of life may take.
//!
//! The watchdog is fed only while no pulse is late, so a loop that hangs ends the process and its supervisor mends it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The pulses of all loops. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pulses(Arc<Mutex<Vec<Weak<Loop>>>>);

/// One loop's pulse; it ends when it is dropped.
#[derive(Debug)]
pub struct Pulse {
    of: Arc<Loop>,
    usual: Duration,
}

#[derive(Debug)]
struct Loop {
    name: String,
    due: Mutex<Instant>,
}

impl Pulses {
    /// A new pulse for a loop that beats at least once in `usual`.
    #[must_use]
    pub fn begin(&self, name: impl Into<String>, usual: Duration) -> Pulse {
        let of = Arc::new(Loop { name: name.into(), due: Mutex::new(Instant::now() + usual) });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&of));
        Pulse { of, usual }
    }

    /// The names of the loops that are late.
    #[must_use]
    pub fn late(&self) -> Vec<String> {
        let now = Instant::now();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = all.iter().filter_map(Weak::upgrade).filter(|known| known.is_late(now));
        late.map(|known| known.name.clone()).collect()
    }
}

impl Loop {
    fn is_late(&self, now: Instant) -> bool {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) < now
    }
}

impl Pulse {
    /// Something was done.
    pub fn beat(&self) {
        self.beat_before(Duration::ZERO);
    }

    /// Something was done, and a pause of up to `pause` follows.
    pub fn beat_before(&self, pause: Duration) {
        *self.of.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + pause + self.usual;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_beat_is_late_until_it_ends() {
        let pulses = Pulses::default();
        let (alive, stuck) = (pulses.begin("alive", Duration::from_secs(60)), pulses.begin("stuck", Duration::ZERO));
        alive.beat();
        assert_eq!(pulses.late(), ["stuck"]);
        stuck.beat_before(Duration::from_secs(60));
        assert!(pulses.late().is_empty());
        stuck.of.due.lock().unwrap().clone_from(&Instant::now().checked_sub(Duration::from_secs(1)).unwrap());
        assert_eq!(pulses.late(), ["stuck"]);
        drop(stuck);
        assert!(pulses.late().is_empty());
    }
}
