//! Notices commits of other programs, for example new sessions of a shop, mails of `import`, or a retry by an operator.
//!
//! Every commit writes to the database's `-wal` file. inotify reports that write, so an idle daemon uses no processor time.
//! inotify also reports the daemon's commits. `PRAGMA data_version` changes only for commits of other programs. The inotify watch
//! is one-shot and is armed before each check. A permanent watch would report each of the thousands of writes while a mailbox is
//! fetched for the first time, and handling these reports would cost as much as the writes. If inotify fails, the daemon polls
//! `PRAGMA data_version`.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::reconcile;
use crate::db::{Error, Result, Store};

/// The shortest pause between two checks for commits, even if other programs commit more often.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The pause between a report of inotify and the check. inotify reports the first write of a commit. Most commits are the
/// daemon's, and end within this pause, so that one check after the commit is enough.
const COMMIT_TIME: Duration = Duration::from_millis(5);

/// The longest pause between two checks for commits. Even without a report of inotify, a check is needed, because inotify misses
/// some changes, such as a replaced folder.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The pause between two checks for commits if inotify cannot be used.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Store {
    /// Checks for commits of other programs until `shutdown` is true. After a commit of another program, the function reconciles
    /// sessions and wakes the delivery loops.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the database's writer thread has ended.
    pub async fn watch_changes(&self, mut shutdown: watch::Receiver<bool>) -> Result<()> {
        let mut changes = Changes::new(&self.settings.path);
        loop {
            // Arm the inotify watch before the check, so that inotify also reports a write during the check.
            changes.arm();
            let checked = self.check().await;
            match &checked {
                Err(Error::Stopped) => return checked,
                Err(error) => tracing::warn!(%error, "cannot check for changes by other programs; trying again"),
                Ok(()) => {}
            }
            let next = async {
                sleep(SHORTEST_PAUSE).await;
                // After a failed check, do not wait for inotify, because inotify does not report the same write again.
                if checked.is_ok() {
                    changes.next().await;
                    sleep(COMMIT_TIME).await;
                }
            };
            tokio::select! {
                _ = shutdown.wait_for(|ending| *ending) => return Ok(()),
                () = next => {}
            }
        }
    }

    /// Checks once whether another program has committed. The check takes SQLite's write lock, so the check waits for a commit
    /// that inotify has reported and that is not complete.
    async fn check(&self) -> Result<()> {
        let version =
            self.write(|tx| Ok(tx.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)).await?;
        if self.seen_version.swap(version, Ordering::Relaxed) != version {
            let reconciled = self.reconcile().await.inspect_err(|_| {
                // With this value of `seen_version`, the next check finds a change, and reconciles the remaining sessions.
                self.seen_version.store(i64::MIN, Ordering::Relaxed);
            })?;
            if reconciled != reconcile::Reconciled::default() {
                let reconcile::Reconciled { resolved, released, held, too_late } = reconciled;
                tracing::info!(
                    resolved,
                    released,
                    held,
                    too_late = too_late.len(),
                    "reconciled sessions that another program registered"
                );
            }
            self.wake_outbox();
        }
        Ok(())
    }
}

/// How the daemon notices commits to the database.
enum Changes {
    #[cfg(target_os = "linux")]
    Inotify(Box<kernel::FolderWatch>),
    Polling,
}

impl Changes {
    fn new(database: &Path) -> Self {
        #[cfg(target_os = "linux")]
        match kernel::FolderWatch::new(database) {
            Ok(watch) => return Changes::Inotify(Box::new(watch)),
            Err(error) => {
                tracing::warn!(%error, "no inotify; polling the database every {} ms instead", POLL_INTERVAL.as_millis())
            }
        }
        Changes::Polling
    }

    /// Arms the inotify watch, so that inotify reports the next write to the database's folder.
    fn arm(&mut self) {
        #[cfg(target_os = "linux")]
        if let Changes::Inotify(watch) = self
            && let Err(error) = watch.arm()
        {
            tracing::warn!(%error, "inotify failed; polling the database every {} ms instead", POLL_INTERVAL.as_millis());
            *self = Changes::Polling;
        }
    }

    /// Waits until the next check for commits is due.
    async fn next(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Changes::Inotify(watch) => {
                if let Ok(Err(error)) = timeout(LONGEST_PAUSE, watch.next()).await {
                    tracing::warn!(%error, "inotify failed; polling the database every {} ms instead", POLL_INTERVAL.as_millis());
                    *self = Changes::Polling;
                }
            }
            Changes::Polling => sleep(POLL_INTERVAL).await,
        }
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::io;
    use std::path::{Path, PathBuf};

    use futures_util::StreamExt;
    use inotify::{EventMask, EventStream, Inotify, WatchMask};

    /// The size of the buffer for inotify events, in bytes. Dozens of events fit into the buffer.
    const BUFFER: usize = 4096;

    /// Watches the database's folder with inotify. Watching the files is not enough, because SQLite may delete the `-wal` file
    /// and create it again.
    pub(super) struct FolderWatch {
        events: EventStream<Box<[u8]>>,
        folder: PathBuf,
    }

    impl FolderWatch {
        pub(super) fn new(database: &Path) -> io::Result<Self> {
            let database = std::fs::canonicalize(database)?;
            let folder = database.parent().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
            let events = Inotify::init()?.into_event_stream(vec![0; BUFFER].into_boxed_slice())?;
            Ok(FolderWatch { events, folder })
        }

        /// Arms the one-shot watch for the next write to a file in the folder.
        pub(super) fn arm(&mut self) -> io::Result<()> {
            self.events.watches().add(&self.folder, WatchMask::MODIFY | WatchMask::ONESHOT)?;
            Ok(())
        }

        /// Waits until a file in the folder is written after the watch was armed. If this file does not belong to the database,
        /// the next check for commits finds no change.
        pub(super) async fn next(&mut self) -> io::Result<()> {
            loop {
                let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
                // The kernel sends the event IGNORED after the report of a one-shot watch.
                if event.mask != EventMask::IGNORED {
                    return Ok(());
                }
            }
        }
    }
}
