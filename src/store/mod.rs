//! What is kept: one SQLite file, an interface that merchants look into.
//!
//! One thread owns the writing connection (`writer`); readers open connections of their own
//! (`query`). `schema` opens and migrates, `record` is the transaction that promise 1 rests on.

mod events;
mod known;
mod mailboxes;
mod maintain;
mod notice;
mod outbox;
mod query;
mod record;
mod register;
mod rejudge;
mod schema;
mod sessions;
mod settle;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use rusqlite::Connection;
use tokio::sync::watch;

pub use mailboxes::{Cursor, Landmarks};
pub use maintain::{Backlog, Pruned};
pub use outbox::{Attempted, Claimed, End, InFlight, Retry, Turn};
pub use query::{DeliveryRow, EventFilter, EventRow, MailRow, MailboxRow, Reader};
pub use record::{Entry, Recorded};
pub use register::{NewSession, SessionRow};
pub use rejudge::{Change, Stored};
pub use settle::{Assigned, Settled};
pub use writer::KEPT_BACK;

use crate::model::Status;
use crate::session::Matching;

/// What the store must know of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database file.
    pub path: PathBuf,
    /// The callbacks that events are for.
    pub targets: Vec<Target>,
    /// How sessions are found by what was paid.
    pub matching: Matching,
}

/// A callback, as far as the outbox needs to know it.
#[derive(Debug, Clone)]
pub struct Target {
    /// The `[[forward]]` entry's name.
    pub name: String,
    /// The statuses that it is told.
    pub statuses: Vec<Status>,
    /// Whether it is told of an event without a session (`unresolved = "send"`).
    pub send_unresolved: bool,
}

/// What can go wrong with the database. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program holds the write lock.
    #[error("database {0}: another program has held the write lock for too long; waiting for it")]
    Locked(PathBuf),
    /// The file system has no room.
    #[error("database {0}: the disk is full; free some room, nothing is lost meanwhile")]
    Full(PathBuf),
    /// A newer program made it.
    #[error(
        "database {path}: made by a newer version (schema {found}, this program knows {known}); install that version or \
         newer. The file was not touched"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// Not one of ours.
    #[error(
        "database {0}: not a database of resmic-mailhook; [store] path must name another file. The file was not touched"
    )]
    Foreign(PathBuf),
    /// There is none.
    #[error("database {0}: there is no such file; `resmic-mailhook run` or `import` makes it")]
    Absent(PathBuf),
    /// Another daemon runs on it.
    #[error("database {0}: another resmic-mailhook daemon is running on it; stop that one first")]
    Busy(PathBuf),
    /// What was given is no session id, or no amount.
    #[error("{0}")]
    Value(String),
    /// Something that was asked for is not there, or may not be done.
    #[error("{0}")]
    Refused(String),
    /// Anything else that SQLite says.
    #[error("database {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        source: Arc<rusqlite::Error>,
    },
    /// The file, or its folder, cannot be had.
    #[error("database {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Another file, or none, stands where the open one did.
    #[error(
        "database {0}: the file was removed, or another was put in its place, while it was open; the daemon must be started \
         anew, and fetches again what was recorded meanwhile"
    )]
    Moved(PathBuf),
    /// The writing thread has ended.
    #[error("database: the writer has stopped")]
    Stopped,
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything but the machine's state.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Locked(_) | Error::Full(_))
    }

    fn from_sqlite(path: &Path, source: impl Into<Arc<rusqlite::Error>>) -> Self {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, NotADatabase, SystemIoFailure};
        let (path, source) = (path.to_owned(), source.into());
        match source.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => Error::Locked(path),
            // A full disk shows as an I/O error where SQLite grows its WAL index.
            Some(DiskFull | SystemIoFailure) => Error::Full(path),
            Some(NotADatabase) => Error::Foreign(path),
            _ => Error::Sqlite { path, source },
        }
    }
}

/// For work inside the writer, which adds the path.
impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Error::Sqlite { path: PathBuf::new(), source: Arc::new(source) }
    }
}

/// The result of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// A handle on the open store: cheap to clone, shared by everyone who writes.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    settings: Arc<Settings>,
    /// Counts the commits after which a delivery may be due.
    outbox: Arc<watch::Sender<u64>>,
    /// Counts the commits that deferred a mail.
    deferrals: Arc<watch::Sender<u64>>,
    /// Which file it is, by the system's numbers.
    file: Option<(u64, u64)>,
    /// The last `PRAGMA data_version` of the writing connection: it counts the commits of others.
    seen_version: Arc<AtomicI64>,
}

impl Store {
    /// Opens the database, making and migrating it if need be, and starts its writing thread.
    ///
    /// # Errors
    /// [`Error`]: newer, foreign, locked, or what SQLite or the system says.
    pub fn open(settings: Settings) -> Result<Self> {
        let connection = schema::open(&settings.path)?;
        let file = number(&settings.path).unwrap_or_default();
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
    /// As [`Reader::open`]; [`Error::Moved`] if that would not show what is written here.
    pub fn reader(&self) -> Result<Reader> {
        if number(&self.settings.path).is_ok_and(|number| number != self.file) {
            return Err(Error::Moved(self.settings.path.clone()));
        }
        Reader::open(&self.settings.path)
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
    fn wake_outbox(&self) {
        self.outbox.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Runs `work` in a transaction of the writing thread and returns once it is committed.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.run(work).await
    }
}

/// Keeps a second daemon off the same database for as long as it lives.
#[derive(Debug)]
pub struct DaemonLock(#[allow(dead_code)] std::fs::File);

impl DaemonLock {
    /// Takes the lock: a file beside the database, held by the kernel until this process ends, however it ends.
    ///
    /// # Errors
    /// [`Error::Busy`] if another daemon has it.
    pub fn take(database: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: database.to_owned(), source };
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).to_owned();
        let file = options.open(lock_file(database)).map_err(io)?;
        let mut tries = LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DaemonLock(file)),
                // `status` holds it for a moment, to see whether it is free.
                Err(std::fs::TryLockError::WouldBlock) if tries > 0 => std::thread::sleep(LOCK_PAUSE),
                Err(std::fs::TryLockError::WouldBlock) => return Err(Error::Busy(database.to_owned())),
                Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
            }
            tries -= 1;
        }
    }

    /// Whether a daemon runs on the database.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be found out.
    pub fn is_held(database: &Path) -> Result<bool> {
        let io = |source| Error::Io { path: database.to_owned(), source };
        let file = match std::fs::File::open(lock_file(database)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(io)?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(std::fs::TryLockError::WouldBlock) => Ok(true),
            Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

/// How often, and after which pause, a daemon asks again for the lock.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// By whatever name the database is called, it has one lock: where the file itself is, or will be.
fn lock_file(database: &Path) -> PathBuf {
    let mut name = behind_links(database).into_os_string();
    name.push(".lock");
    name.into()
}

/// As SQLite does with what it keeps beside the file.
fn behind_links(path: &Path) -> PathBuf {
    let folder = |path: &Path| path.parent().filter(|f| !f.as_os_str().is_empty()).map_or(".".into(), Path::to_owned);
    let mut path = path.to_owned();
    // As far as the kernel goes. The last may lead to a file that is not made yet.
    for _ in 0..40 {
        let Ok(next) = std::fs::read_link(&path) else { break };
        path = folder(&path).join(next);
    }
    match (std::fs::canonicalize(folder(&path)), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// By which numbers the system knows a file. Asked without opening it: to close it would end SQLite's locks on it.
/// `None`: there is none.
fn number(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        of => of.map(|of| Some((of.dev(), of.ino()))),
    }
}

/// The current moment in the database's form.
fn now() -> String {
    crate::model::iso(jiff::Timestamp::now())
}

/// A moment that the database tells; `None` for what a person wrote there and is none.
fn moment(text: Option<String>) -> Option<jiff::Timestamp> {
    text.and_then(|t| t.parse().ok())
}
