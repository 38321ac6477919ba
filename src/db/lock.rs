//! The lock that prevents two daemons on one database.

use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Prevents a second daemon on the same database until this value is dropped.
#[derive(Debug)]
pub struct DaemonLock(std::fs::File);

impl DaemonLock {
    /// Locks a file in the folder of the database. The kernel releases the lock when this process ends.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another daemon has the lock.
    pub fn acquire(database: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: database.to_owned(), source };
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).to_owned();
        let file = options.open(lock_file(database)).map_err(io)?;
        let mut tries = LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DaemonLock(file)),
                // `status` takes the lock for a moment to see whether it is free.
                Err(std::fs::TryLockError::WouldBlock) if tries > 0 => std::thread::sleep(LOCK_PAUSE),
                Err(std::fs::TryLockError::WouldBlock) => return Err(Error::Busy(database.to_owned())),
                Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
            }
            tries -= 1;
        }
    }

    /// Whether this lock belongs to the database that is at this path now. A command that restores a copy may have replaced the
    /// lock file or its folder.
    #[must_use]
    pub fn is_of(&self, database: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let held = self.0.metadata().map(|file| Some((file.dev(), file.ino())));
        held.is_ok_and(|held| super::file_id::file_id(&lock_file(database)).is_ok_and(|found| found == held))
    }

    /// Whether a daemon runs on the database.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the lock file cannot be opened.
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

/// How many times the daemon tries again to lock the file, and the pause between two tries.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The path of the lock file, which is in the folder of the real database file. So all links to one database share one lock.
fn lock_file(database: &Path) -> PathBuf {
    let mut name = behind_links(database).into_os_string();
    name.push(".lock");
    name.into()
}

/// The path of the real database file. Symbolic links are followed, as SQLite does for its `-wal` file.
pub(super) fn behind_links(path: &Path) -> PathBuf {
    let folder = |path: &Path| path.parent().filter(|f| !f.as_os_str().is_empty()).map_or(".".into(), Path::to_owned);
    let mut path = path.to_owned();
    // The kernel also follows at most 40 links. The last link may lead to a file that does not exist yet.
    for _ in 0..40 {
        let Ok(next) = std::fs::read_link(&path) else { break };
        path = folder(&path).join(next);
    }
    match (std::fs::canonicalize(folder(&path)), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}
