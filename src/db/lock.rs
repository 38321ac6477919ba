//! The lock that keeps a second daemon off the same database.

use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Keeps a second daemon off the same database for as long as it lives.
#[derive(Debug)]
pub struct DaemonLock(#[allow(dead_code)] std::fs::File);

impl DaemonLock {
    /// Takes the lock: a file beside the database, held by the kernel until this process ends, however it ends.
    ///
    /// # Errors
    /// [`Error::Busy`] if another daemon has it.
    pub fn acquire(database: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: database.to_owned(), source };
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).to_owned();
        let file = options.open(lock_file(database)).map_err(io)?;
        let mut tries = LOCK_TRIES;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DaemonLock(file)),
                // `status` holds it for a parse_time, to see whether it is free.
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
