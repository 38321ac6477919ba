//! The handle on the open database, and what it is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use rusqlite::Connection;
use tokio::sync::watch;

use super::file_id::file_id;
use super::{Error, Result, StoreReader, schema, writer};
use crate::model::{Matching, Status};

/// What the store must know of the configuration.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The database file.
    pub path: PathBuf,
    /// The callbacks that events are for.
    pub targets: Vec<TargetRules>,
    /// How sessions are found by what was paid.
    pub matching: Matching,
}

/// A callback, as far as the outbox needs to know it.
#[derive(Debug, Clone)]
pub struct TargetRules {
    /// The `[[forward]]` entry's name.
    pub name: String,
    /// The statuses that it is told.
    pub statuses: Vec<Status>,
    /// Whether it is told of an event without a session (`unresolved = "send"`).
    pub send_unresolved: bool,
}

/// A handle on the open store: cheap to clone, shared by everyone who writes.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    pub(crate) settings: Arc<StoreSettings>,
    /// Counts the commits after which a delivery may be due.
    outbox: Arc<watch::Sender<u64>>,
    /// Counts the commits that deferred a mail.
    pub(crate) deferrals: Arc<watch::Sender<u64>>,
    /// Which file it is, by the system's numbers.
    file: Option<(u64, u64)>,
    /// The last `PRAGMA data_version` of the writing connection: it counts the commits of others.
    pub(crate) seen_version: Arc<AtomicI64>,
}

impl Store {
    /// Opens the database, making and migrating it if need be, and starts its writing thread.
    ///
    /// # Errors
    /// [`Error`]: newer, foreign, locked, or what SQLite or the system says.
    pub fn open(settings: StoreSettings) -> Result<Self> {
        let connection = schema::open(&settings.path)?;
        let file = file_id(&settings.path).unwrap_or_default();
        let writer = writer::Writer::start(connection, &settings.path, file)?;
        let count = || Arc::new(watch::Sender::new(0));
        let seen_version = Arc::new(AtomicI64::new(i64::MIN));
        Ok(Store { writer, settings: Arc::new(settings), outbox: count(), deferrals: count(), file, seen_version })
    }

    /// Lets go of the database; returns when everybody has, and it is one file again. A process that ends before that
    /// loses nothing, and leaves to the next what is in the `-wal`.
    pub async fn close(self) {
        let Store { writer, .. } = self;
        writer.close().await;
    }

    /// A connection for reading, of the caller's own.
    ///
    /// # Errors
    /// As [`StoreReader::open`]; [`Error::Moved`] if that would not show what is written here.
    pub fn reader(&self) -> Result<StoreReader> {
        if file_id(&self.settings.path).is_ok_and(|number| number != self.file) {
            return Err(Error::Moved(self.settings.path.clone()));
        }
        StoreReader::open(&self.settings.path)
    }

    /// Becomes ready when deliveries may have become due through a commit.
    #[must_use]
    pub fn watch_outbox(&self) -> watch::Receiver<u64> {
        self.outbox.subscribe()
    }

    /// Becomes ready when a mail was deferred.
    #[must_use]
    pub fn watch_deferrals(&self) -> watch::Receiver<u64> {
        self.deferrals.subscribe()
    }

    /// Says that deliveries may be due.
    pub(crate) fn wake_outbox(&self) {
        self.outbox.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Runs `work` in a transaction of the writing thread and returns once it is committed.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.run(work).await
    }
}
