//! What can go wrong with the database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{LOW_SPACE, free_space};

/// What can go wrong with the database. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program holds the write lock.
    #[error("database {0}: another program has held the write lock for too long; waiting for it")]
    Locked(PathBuf),
    /// The file system has no room.
    #[error("database {0}: the disk is full; free some room, nothing is lost meanwhile")]
    Full(PathBuf),
    /// The disk, or the network share, fails.
    #[error(
        "database {path}: I/O error ({source}); check the disk, its quota and its mount (`dmesg` may name the fault). No mail \
         is lost: mails that could not be stored are fetched again"
    )]
    Disk {
        /// The file.
        path: PathBuf,
        /// SQLite's error with its extended code.
        source: Arc<rusqlite::Error>,
    },
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
    /// Whether the same call may succeed later, once the machine's state has changed.
    ///
    /// An I/O error is temporary, too: a share may come back, and a quota may be raised. SQLite has rolled the transaction
    /// back, the cursor has not moved and the mails are still on the server, so a retry loses nothing. A restart would not
    /// repair a disk.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Locked(_) | Error::Full(_) | Error::Disk { .. })
    }

    /// Adds the path to an error of work inside the writer.
    pub(super) fn with_path(self, path: &Path) -> Self {
        match self {
            Error::Sqlite { source, .. } => Error::from_sqlite(path, source),
            other => other,
        }
    }

    pub(super) fn from_sqlite(path: &Path, source: impl Into<Arc<rusqlite::Error>>) -> Self {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, NotADatabase, SystemIoFailure};
        let (path, source) = (path.to_owned(), source.into());
        match source.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => Error::Locked(path),
            Some(DiskFull) => Error::Full(path),
            // On a full disk SQLite reports an I/O error when it cannot grow the WAL index. The errno is not available
            // here: rusqlite has no safe call for it.
            Some(SystemIoFailure) if free_space(&path).is_some_and(|bytes| bytes < LOW_SPACE) => Error::Full(path),
            Some(SystemIoFailure) => Error::Disk { path, source },
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

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn error(code: i32) -> Error {
        let folder = tempfile::tempdir().unwrap();
        let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        Error::from_sqlite(&folder.path().join("m.db"), failure)
    }

    #[test]
    fn an_io_error_is_no_full_disk() {
        assert!(matches!(error(ffi::SQLITE_FULL), Error::Full(_)));
        for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_SHMSIZE] {
            let error = error(code);
            assert!(matches!(error, Error::Disk { .. }) && error.is_temporary(), "{error:?}");
            assert!(!error.to_string().contains("full"), "{error}");
        }
    }
}
