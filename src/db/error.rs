//! Errors of the database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{LOW_SPACE, free_space};

/// An error of the database. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program holds the write lock.
    #[error("database {0}: another program has held the write lock for too long; waiting for it")]
    Locked(PathBuf),
    /// The file system is full.
    #[error("database {0}: the disk is full; free some space. Nothing is lost, mails and deliveries wait")]
    Full(PathBuf),
    /// The disk or the network share fails.
    #[error(
        "database {path}: I/O error ({source}); check the disk, its quota and its mount (`dmesg` may name the fault). No mail \
         is lost: mails that could not be stored are fetched again"
    )]
    Disk {
        /// The database file.
        path: PathBuf,
        /// SQLite's error with its extended code.
        source: Arc<rusqlite::Error>,
    },
    /// A newer version of this program wrote the file.
    #[error(
        "database {path}: made by another version (schema {found}, this program knows {known}); install that version or a \
         newer one. The file was not changed"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The file's `user_version`: the version of its schema.
        found: i64,
        /// The newest version of the schema that this program knows.
        known: i64,
    },
    /// The file is not a database of this program.
    #[error(
        "database {0}: not a database of resmic-mailhook; set [store] path to another file. The file was not changed"
    )]
    Foreign(PathBuf),
    /// The file does not exist.
    #[error("database {0}: the file does not exist; `resmic-mailhook run` or `import` creates it")]
    Absent(PathBuf),
    /// Another daemon uses the database.
    #[error("database {0}: another resmic-mailhook daemon is running on it; stop that daemon first")]
    Busy(PathBuf),
    /// A session id or an amount is not valid.
    #[error("{0}")]
    Value(String),
    /// The row to change does not exist, or the change is not allowed.
    #[error("{0}")]
    Refused(String),
    /// Any other error of SQLite.
    #[error("database {path}: {source}")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// The error of SQLite.
        source: Arc<rusqlite::Error>,
    },
    /// The file or its folder cannot be opened, created or locked.
    #[error("database {path}: {source}")]
    Io {
        /// The database file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The database file that this program has open was removed or replaced.
    #[error(
        "database {0}: the open file was removed or replaced; restart the daemon. It fetches the mails again that were \
         recorded in the old file meanwhile"
    )]
    Moved(PathBuf),
    /// The writer thread has ended.
    #[error("database: the writer thread has stopped; restart the daemon")]
    Stopped,
}

impl Error {
    /// Whether a retry may succeed once the machine's state has changed.
    ///
    /// An I/O error is temporary, too: a network share may come back, and a quota may be raised. SQLite has rolled back the
    /// transaction, the cursor has not moved and the mails are still on the server. So a retry loses nothing, and a
    /// restart would not repair a disk.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Locked(_) | Error::Full(_) | Error::Disk { .. })
    }

    /// Adds the database's path to an error of SQLite from work in the writer thread.
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
            // On a full disk SQLite reports an I/O error when it cannot grow the WAL index. The errno is not
            // available: rusqlite has no safe call for it.
            Some(SystemIoFailure) if free_space(&path).is_some_and(|bytes| bytes < LOW_SPACE) => Error::Full(path),
            Some(SystemIoFailure) => Error::Disk { path, source },
            Some(NotADatabase) => Error::Foreign(path),
            _ => Error::Sqlite { path, source },
        }
    }
}

/// The new error has an empty path. The writer adds the path to the error of failed work.
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
