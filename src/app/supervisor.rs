//! Looks after the other loops: asks the store for a sign of life, sees whether the outbox moves, feeds the watchdog
//! only while everything makes progress, and says in a line how it goes.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::db::{self, Store};
use crate::health::{self, Expected};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::model::iso;
use crate::systemd;

/// How often it looks where nothing happens: each look wakes half the daemon.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it looks again after something was committed that it may tell of.
const REST: Duration = Duration::from_secs(10);
/// How long the store may take for an answer: longer than SQLite waits for a lock, and a batch of a thousand takes.
const ANSWER: Duration = Duration::from_secs(60);
/// How long something may be due in the outbox without any attempt being made.
const STANDSTILL: Duration = Duration::from_secs(10 * 60);

pub(super) struct Supervisor {
    pub(super) store: Store,
    pub(super) expected: Expected,
    pub(super) heartbeats: Heartbeats,
}

impl Supervisor {
    /// Looks until `shutdown`.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the writer has ended; [`db::Error::Moved`]: nobody will find what it writes.
    pub(super) async fn run(self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        // Twice as often as systemd asks for, as sd_watchdog_enabled(3) recommends.
        let longest = systemd::watchdog_interval().map_or(LOOK, |interval| (interval / 2).min(LOOK));
        let shortest = REST.min(longest);
        let (writing, sending) =
            (self.heartbeats.begin("storing", longest + ANSWER), self.heartbeats.begin("forwarding", STANDSTILL));
        let (mut outbox, mut said) = (self.store.watch_outbox(), String::new());
        loop {
            outbox.mark_unchanged();
            self.store_answers(&writing).await?;
            let (line, moves) = match self.look().await {
                Err(moved @ db::Error::Moved(_)) => return Err(moved),
                Err(error) => (error.to_string(), error.is_temporary()),
                Ok(looked) => looked,
            };
            if moves {
                sending.beat();
            }
            let pause = if line == said {
                longest
            } else {
                systemd::status(&line);
                said = line;
                // What has changed may be changing still.
                shortest
            };
            match self.heartbeats.late() {
                late if late.is_empty() => systemd::watchdog(),
                late => tracing::error!("no progress: {}", late.join(", ")),
            }
            let (rest, pause) = (sleep(shortest), sleep(pause));
            let changed = async {
                // The store is gone only with the program.
                let _ = outbox.changed().await;
                rest.await;
            };
            tokio::select! {
                _ = shutdown.wait_for(|ending| *ending) => return Ok(()),
                () = pause => {}
                () = changed => {}
            }
        }
    }

    async fn store_answers(&self, heartbeat: &Heartbeat) -> db::Result<()> {
        match timeout(ping_timeout(), self.store.ping()).await {
            Ok(Err(db::Error::Stopped)) => Err(db::Error::Stopped),
            // That another program holds the lock, or the disk is full, no restart would mend.
            Ok(_) => {
                heartbeat.beat();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// How it goes, in a line, and whether the outbox moves, or waits for what no restart would mend.
    async fn look(&self) -> db::Result<(String, bool)> {
        let (reader, health) = health::own_health(&self.store, &self.expected, &self.heartbeats).await?;
        let since = Timestamp::now() - STANDSTILL;
        let moves = health.waits || !reader.outbox_stands_still(&self.expected.targets, &iso(since))?;
        Ok((health.line(), moves))
    }
}

/// Never so long that the watchdog goes hungry for want of an answer that will come.
fn ping_timeout() -> Duration {
    systemd::watchdog_interval().map_or(REST, |interval| (interval / 4).min(REST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Matching;

    /// Over a database in which something has been due for years.
    fn supervisor(folder: &tempfile::TempDir) -> Supervisor {
        let path = folder.path().join("m.db");
        let matching = Matching { enabled: false, window: LOOK };
        let store = Store::open(db::StoreSettings { path: path.clone(), targets: Vec::new(), matching }).unwrap();
        let due = "INSERT INTO events (event_id, webhook, created_at, status) VALUES ('e', '{}', '', 'failed');
            INSERT INTO deliveries (event_id, target, created_at, state, next_attempt_at)
              VALUES ('e', 'shop', '', 'pending', '2025-03-05T04:00:00.000Z')";
        rusqlite::Connection::open(path).unwrap().execute_batch(due).unwrap();
        let expected = Expected { targets: vec!["shop".into()], ..Expected::default() };
        Supervisor { store, expected, heartbeats: Heartbeats::default() }
    }

    #[tokio::test]
    async fn an_outbox_that_waits_for_a_lock_is_not_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(&folder);
        assert!(!supervisor.look().await.unwrap().1, "nobody sends what is due");
        let other = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (line, moves) = supervisor.look().await.unwrap();
        assert!(line.contains("locked") && moves, "{line}");
    }

    #[tokio::test]
    async fn a_database_that_nobody_will_find_is_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(&folder);
        std::fs::remove_file(folder.path().join("m.db")).unwrap();
        let (_shutdown, ending) = watch::channel(false);
        let ended = timeout(ANSWER, supervisor.run(ending)).await.unwrap();
        assert!(matches!(ended, Err(db::Error::Moved(_))), "{ended:?}");
    }
}
