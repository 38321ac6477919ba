//! What can go wrong with the database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    pub(super) fn from_sqlite(path: &Path, source: impl Into<Arc<rusqlite::Error>>) -> Self {
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
