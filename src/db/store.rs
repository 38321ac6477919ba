//! The handle on the open database, and the settings that it is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use rusqlite::Connection;
use tokio::sync::watch;

use super::file_id::file_id;
use super::{Error, Result, StoreReader, schema, writer};
use crate::chain::Chain;
use crate::model::{Matching, Status};

/// The part of the configuration that the store needs.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The database file.
    pub path: PathBuf,
    /// The targets that get events.
    pub targets: Vec<TargetRules>,
    /// How sessions and events are matched by amount.
    pub matching: Matching,
    /// The chains on which payments are confirmed. If the list is empty, no event waits for a chain.
    pub chains: Vec<Chain>,
    /// The rules for Resmic's API. `None`: the daemon sends no requests to the API.
    pub resmic: Option<ResmicRules>,
}

/// The part of `[resmic]` that the store needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResmicRules {
    /// Whether a completed event waits until Resmic reports its session as `Completed`.
    pub require: bool,
}

impl StoreSettings {
    /// The names of the targets that get events without a session, as JSON for `json_each`.
    pub(super) fn senders(&self) -> String {
        self.names(|target| target.send_unresolved)
    }

    /// The names of the targets that do not wait for the chain, as JSON for `json_each`.
    pub(super) fn tellers(&self) -> String {
        self.names(|target| target.send_unconfirmed)
    }

    fn names(&self, which: impl Fn(&TargetRules) -> bool) -> String {
        let names: Vec<&str> = self.targets.iter().filter(|t| which(t)).map(|t| t.name.as_str()).collect();
        serde_json::json!(names).to_string()
    }
}

/// Which events a target gets.
#[derive(Debug, Clone)]
pub struct TargetRules {
    /// The `[[forward]]` entry's name.
    pub name: String,
    /// The statuses of the events that the target gets.
    pub statuses: Vec<Status>,
    /// Whether the target gets events without a session (`unresolved = "send"`).
    pub send_unresolved: bool,
    /// Whether the target gets events that the chain has not confirmed (`confirm = "tell"`).
    pub send_unconfirmed: bool,
}

/// A handle on the open database, cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    pub(crate) settings: Arc<StoreSettings>,
    /// Counts the commits that wake the loops of [`Store::watch_outbox`], for example because a delivery may be due.
    outbox: Arc<watch::Sender<u64>>,
    /// Counts the commits that deferred a mail.
    pub(crate) deferrals: Arc<watch::Sender<u64>>,
    /// The device and inode of the open database file.
    file: Option<(u64, u64)>,
    /// The `PRAGMA data_version` that the writing connection read last. SQLite changes this number when another connection
    /// commits.
    pub(crate) seen_version: Arc<AtomicI64>,
}

impl Store {
    /// Opens the database, creates or migrates it if necessary, and starts the writer thread.
    ///
    /// # Errors
    ///
    /// [`Error::Newer`], [`Error::Foreign`], [`Error::Locked`], or an error of SQLite or the system.
    pub fn open(settings: StoreSettings) -> Result<Self> {
        let connection = schema::open(&settings.path)?;
        Store::start(settings, connection)
    }

    /// Opens the database for [`Store::prune`]. A commit does not wait for the disk, so the write lock is held for a shorter
    /// time. A power failure may undo the last commits, but leaves a consistent file.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open_to_prune(settings: StoreSettings) -> Result<Self> {
        let connection = schema::open(&settings.path)?;
        let relaxed = connection.pragma_update(None, "synchronous", "NORMAL");
        relaxed.map_err(|e| Error::from_sqlite(&settings.path, e))?;
        Store::start(settings, connection)
    }

    fn start(settings: StoreSettings, connection: Connection) -> Result<Self> {
        let file = file_id(&settings.path).unwrap_or_default();
        let writer = writer::Writer::start(connection, &settings.path, file)?;
        let count = || Arc::new(watch::Sender::new(0));
        let seen_version = Arc::new(AtomicI64::new(i64::MIN));
        Ok(Store { writer, settings: Arc::new(settings), outbox: count(), deferrals: count(), file, seen_version })
    }

    /// Releases this handle, and returns when all handles are released and the connection is closed. The database is then
    /// one file again. If the process ends earlier, nothing is lost: the next open reads the `-wal` file.
    pub async fn close(self) {
        let Store { writer, .. } = self;
        writer.close().await;
    }

    /// Opens a new read-only connection.
    ///
    /// # Errors
    ///
    /// As [`StoreReader::open`]; [`Error::Moved`] if the file that the writer has open is no longer at the path.
    pub fn reader(&self) -> Result<StoreReader> {
        if file_id(&self.settings.path).is_ok_and(|number| number != self.file) {
            return Err(Error::Moved(self.settings.path.clone()));
        }
        StoreReader::open(&self.settings.path)
    }

    /// A counter that changes after each commit that may have made a delivery, a look or a request to Resmic's API due.
    #[must_use]
    pub fn watch_outbox(&self) -> watch::Receiver<u64> {
        self.outbox.subscribe()
    }

    /// A counter that changes after each commit that deferred a mail.
    #[must_use]
    pub fn watch_deferrals(&self) -> watch::Receiver<u64> {
        self.deferrals.subscribe()
    }

    /// Wakes the loops that use [`Store::watch_outbox`]. The loops send deliveries, look at the chains, ask Resmic's API,
    /// supervise the daemon, and report the id of the last mail to the agent of the lease.
    pub(crate) fn wake_outbox(&self) {
        self.outbox.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Runs `work` in a transaction of the writer thread, and returns after the commit.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.run(work).await
    }
}
