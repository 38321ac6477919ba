//! Heartbeats: each loop reports its progress, and when its next report is due.
//!
//! The supervisor resets systemd's watchdog only while no heartbeat is late. So if a loop hangs, systemd kills the process and
//! starts it again.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The heartbeats of all loops. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<Weak<Monitored>>>>);

/// The heartbeat of one loop. The loop is monitored until its heartbeat is dropped.
#[derive(Debug)]
pub struct Heartbeat {
    monitored: Arc<Monitored>,
    interval: Duration,
}

#[derive(Debug)]
struct Monitored {
    name: String,
    due: Mutex<Instant>,
}

impl Heartbeats {
    /// Begins to monitor a loop that beats at least once in each `interval`.
    #[must_use]
    pub fn begin(&self, name: impl Into<String>, interval: Duration) -> Heartbeat {
        let monitored = Arc::new(Monitored { name: name.into(), due: Mutex::new(Instant::now() + interval) });
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.strong_count() > 0);
        entries.push(Arc::downgrade(&monitored));
        Heartbeat { monitored, interval }
    }

    /// The names of the loops whose heartbeat is late.
    #[must_use]
    pub fn late(&self) -> Vec<String> {
        let now = Instant::now();
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = entries.iter().filter_map(Weak::upgrade).filter(|entry| entry.is_late(now));
        late.map(|entry| entry.name.clone()).collect()
    }
}

impl Monitored {
    fn is_late(&self, now: Instant) -> bool {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) < now
    }
}

impl Heartbeat {
    /// Reports progress: the next beat is due after the interval.
    pub fn beat(&self) {
        self.beat_before(Duration::ZERO);
    }

    /// Reports progress before a pause. The next beat is due after `pause` and the interval.
    pub fn beat_before(&self, pause: Duration) {
        *self.monitored.due.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + pause + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_without_beats_is_late() {
        let heartbeats = Heartbeats::default();
        let (alive, stuck) =
            (heartbeats.begin("alive", Duration::from_secs(60)), heartbeats.begin("stuck", Duration::ZERO));
        alive.beat();
        assert_eq!(heartbeats.late(), ["stuck"]);
        stuck.beat_before(Duration::from_secs(60));
        assert!(heartbeats.late().is_empty());
        stuck.monitored.due.lock().unwrap().clone_from(&Instant::now().checked_sub(Duration::from_secs(1)).unwrap());
        assert_eq!(heartbeats.late(), ["stuck"]);
        drop(stuck);
        assert!(heartbeats.late().is_empty());
    }
}
