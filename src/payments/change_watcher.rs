//! Others write into the database too: a shop its sessions, `import` its mails, a person a retry. Taking notice of it.
//!
//! Every commit is a write to the database's `-wal` file, which the kernel tells of; so an idle daemon costs nothing. It
//! tells of our own commits as well, and `PRAGMA data_version` knows them apart. It is asked to tell one time only, and
//! asked anew before each look: to be told of each of a backfill's thousands of writes would cost as much as they do.
//! Where the kernel cannot be asked (or does not know, as for some shared folders), the version is asked for from time
//! to time.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::reconcile;
use crate::db::{Error, Result, Store};

/// The shortest time between two looks: others may write as often as they like.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a commit may take from its first write: it is told of then, and most of what is told of are our own, which
/// need neither a look before they are done nor one for each of their writes.
const COMMIT_TIME: Duration = Duration::from_millis(5);

/// The longest time between two looks, for what the kernel failed to tell: that the folder was replaced, for one.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How often to look where the kernel tells nothing at all.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Store {
    /// Takes notice of what other programs commit, until `shutdown`: settles sessions, wakes who waits for deliveries.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the writer has ended.
    pub async fn watch_changes(&self, mut shutdown: watch::Receiver<bool>) -> Result<()> {
        let mut changes = Changes::new(&self.settings.path);
        loop {
            // Before the look: what is written after it is told of.
            changes.arm();
            let checked = self.check().await;
            match &checked {
                Err(Error::Stopped) => return checked,
                Err(error) => tracing::warn!(%error, "cannot look for what other programs wrote; trying again"),
                Ok(()) => {}
            }
            let next = async {
                sleep(SHORTEST_PAUSE).await;
                // What could not be checked at is not told of a second time.
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

    /// Looks once. It takes the write lock, and so waits for a commit that is being written while we hear of it.
    async fn check(&self) -> Result<()> {
        let version =
            self.write(|tx| Ok(tx.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)).await?;
        if self.seen_version.swap(version, Ordering::Relaxed) != version {
            let reconciled = self.reconcile().await.inspect_err(|_| {
                // What is not reconciled is checked at again.
                self.seen_version.store(i64::MIN, Ordering::Relaxed);
            })?;
            if reconciled != reconcile::Reconciled::default() {
                let reconcile::Reconciled { resolved, released, held, too_late } = reconciled;
                tracing::info!(resolved, released, held, too_late = too_late.len(), "sessions were registered");
            }
            self.wake_outbox();
        }
        Ok(())
    }
}

/// The kernel's word that somebody wrote.
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
            Err(error) => tracing::warn!(%error, "no inotify; looking every {} ms instead", POLL_INTERVAL.as_millis()),
        }
        Changes::Polling
    }

    /// Wants to be told of the next write.
    fn arm(&mut self) {
        #[cfg(target_os = "linux")]
        if let Changes::Inotify(watch) = self
            && let Err(error) = watch.arm()
        {
            tracing::warn!(%error, "inotify has failed; looking every {} ms instead", POLL_INTERVAL.as_millis());
            *self = Changes::Polling;
        }
    }

    /// Returns when it is time to look.
    async fn next(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Changes::Inotify(watch) => {
                if let Ok(Err(error)) = timeout(LONGEST_PAUSE, watch.next()).await {
                    tracing::warn!(%error, "inotify has failed; looking every {} ms instead", POLL_INTERVAL.as_millis());
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

    /// Room for some dozen events.
    const BUFFER: usize = 4096;

    /// Watches the database's folder, not the files: SQLite may remove the `-wal` file and make it anew.
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

        /// Asks to be told of the next write.
        pub(super) fn arm(&mut self) -> io::Result<()> {
            self.events.watches().add(&self.folder, WatchMask::MODIFY | WatchMask::ONESHOT)?;
            Ok(())
        }

        /// Returns when something was written since it was last asked: ours, or another file in the same folder, which
        /// costs a look in vain.
        pub(super) async fn next(&mut self) -> io::Result<()> {
            loop {
                let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
                // That it tells no more, having told once.
                if event.mask != EventMask::IGNORED {
                    return Ok(());
                }
            }
        }
    }
}
