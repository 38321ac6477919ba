//! Supervises the other loops. The supervisor pings the database writer, and checks that due deliveries are attempted. The
//! supervisor resets systemd's watchdog only while every loop makes progress, and reports the health of the daemon to systemd in
//! one line.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::db::{self, Store};
use crate::health::{self, Expected};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::model::iso;
use crate::standby::LeaseView;
use crate::systemd;

/// The pause before the supervisor's next check of the daemon's health, if nothing changes. The pause is long, because each check
/// wakes several threads.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause before the supervisor's next check, if the health has changed, or if a commit may have made deliveries due
/// ([`Store::watch_outbox`]).
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the writer may leave pings without an answer, in addition to the pause between two pings. SQLite's wait for a lock
/// and a batch of a thousand mails take less time.
const WRITER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a delivery may be due without an attempt, before the forwarding counts as stuck.
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(10 * 60);

pub(super) struct Supervisor {
    pub(super) store: Store,
    pub(super) expected: Expected,
    pub(super) heartbeats: Heartbeats,
    pub(super) lease: Option<watch::Receiver<LeaseView>>,
}

impl Supervisor {
    /// Checks again and again, until `shutdown`, that the other loops make progress.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the writer has ended; [`db::Error::Moved`]: the database file was deleted or replaced.
    pub(super) async fn run(self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        // sd_watchdog_enabled(3) recommends to reset the watchdog after half of its interval.
        let longest = systemd::watchdog_interval().map_or(LONGEST_PAUSE, |interval| (interval / 2).min(LONGEST_PAUSE));
        let shortest = SHORTEST_PAUSE.min(longest);
        let writer = self.heartbeats.begin("storing", longest + WRITER_TIMEOUT);
        let forwarding = self.heartbeats.begin("forwarding", OUTBOX_TIMEOUT);
        let mut outbox = self.store.watch_outbox();
        let mut reported = String::new();
        loop {
            outbox.mark_unchanged();
            self.ping_writer(&writer).await?;
            let (line, outbox_moves) = match self.check().await {
                Err(moved @ db::Error::Moved(_)) => return Err(moved),
                Err(error) => (error.to_string(), error.is_temporary()),
                Ok(checked) => checked,
            };
            if outbox_moves {
                forwarding.beat();
            }
            let pause = if line == reported {
                longest
            } else {
                systemd::status(&line);
                reported = line;
                // The health has changed, and more changes may follow soon.
                shortest
            };
            match self.heartbeats.late() {
                late if late.is_empty() => systemd::watchdog(),
                late => tracing::error!("no progress: {}", late.join(", ")),
            }
            let (shortest_pause, pause) = (sleep(shortest), sleep(pause));
            let change = async {
                // An error means that the store is closed. The next ping of the writer reports that.
                let _ = outbox.changed().await;
                shortest_pause.await;
            };
            tokio::select! {
                _ = shutdown.wait_for(|ending| *ending) => return Ok(()),
                () = pause => {}
                () = change => {}
            }
        }
    }

    /// Pings the database writer, and beats `heartbeat` if the writer answers in time.
    async fn ping_writer(&self, heartbeat: &Heartbeat) -> db::Result<()> {
        match timeout(ping_timeout(), self.store.ping()).await {
            Ok(Err(db::Error::Stopped)) => Err(db::Error::Stopped),
            // An error counts as an answer, because a restart would not help against a full disk or the lock of another program.
            Ok(_) => {
                heartbeat.beat();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Returns the health of the daemon in one line, and whether the outbox (the due deliveries) moves. The outbox stands still
    /// if a delivery has been due for [`OUTBOX_TIMEOUT`] without an attempt. An outbox that waits for disk space or a lock counts
    /// as moving, because a restart would not help.
    async fn check(&self) -> db::Result<(String, bool)> {
        let lease = self.lease.as_ref().map(|lease| lease.borrow().clone());
        let (reader, health) =
            health::own_health(&self.store, &self.expected, &self.heartbeats, lease.as_ref()).await?;
        let since = Timestamp::now() - OUTBOX_TIMEOUT;
        let targets = health.attempted_targets(&self.expected);
        let moves = health.waits || !reader.outbox_stands_still(&targets, &iso(since))?;
        Ok((health.line(), moves))
    }
}

/// The time limit of a ping of the database writer. The limit is so short that a slow answer does not delay the reset of the
/// watchdog.
fn ping_timeout() -> Duration {
    systemd::watchdog_interval().map_or(SHORTEST_PAUSE, |interval| (interval / 4).min(SHORTEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor of a database with a delivery that has been due for years.
    fn supervisor(folder: &tempfile::TempDir) -> Supervisor {
        let store = db::testing::store(folder);
        let due = "INSERT INTO events (event_id, webhook, created_at, status) VALUES ('e', '{}', '', 'failed');
            INSERT INTO deliveries (event_id, target, created_at, state, next_attempt_at)
              VALUES ('e', 'shop', '', 'pending', '2025-03-05T04:00:00.000Z')";
        rusqlite::Connection::open(folder.path().join("m.db")).unwrap().execute_batch(due).unwrap();
        let expected = Expected { targets: vec!["shop".into()], ..Expected::default() };
        Supervisor { store, expected, heartbeats: Heartbeats::default(), lease: None }
    }

    #[tokio::test]
    async fn a_locked_outbox_is_not_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(&folder);
        assert!(!supervisor.check().await.unwrap().1, "a delivery is due, and no worker runs");
        let other = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (line, moves) = supervisor.check().await.unwrap();
        assert!(line.contains("locked") && moves, "{line}");
    }

    #[tokio::test]
    async fn a_deleted_database_ends_the_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(&folder);
        std::fs::remove_file(folder.path().join("m.db")).unwrap();
        let (_shutdown, ending) = watch::channel(false);
        let ended = timeout(WRITER_TIMEOUT, supervisor.run(ending)).await.unwrap();
        assert!(matches!(ended, Err(db::Error::Moved(_))), "{ended:?}");
    }
}
