//! A lock for the refresh token. The daemon and a command, or two accounts of one grant, must not use the same refresh token
//! twice. An endpoint treats the second use as theft, and may revoke the grant (RFC 9700, 4.14.2).

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::rotation::TRIES;
use crate::http::FORM_TIMEOUT;

/// The longest wait for the lock of a token file. All token requests of one holder together take less time. After this timeout, a
/// waiting process continues without the lock, so that a stopped holder cannot block other processes.
const LOCK_TIMEOUT: Duration = FORM_TIMEOUT.saturating_mul(TRIES + 1);
/// The pause between two attempts to lock the token file.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The lock of a token file. The lock is released when this value is dropped, or when the process ends.
pub(super) struct TokenLock {
    /// The locked file. `None` if the file cannot be opened (it does not exist before the first new refresh token is stored), if
    /// the file system has no locks, or after the timeout.
    _file: Option<File>,
}

/// The result of an attempt to lock the token file.
enum LockAttempt {
    Acquired(TokenLock),
    /// Another process replaced the file before this process locked it.
    Replaced,
    /// Another process or task has the lock.
    Held,
}

impl TokenLock {
    /// Waits for the lock of a token file. Creates no file.
    pub(super) async fn acquire(path: &Path) -> TokenLock {
        TokenLock::acquire_within(path, LOCK_TIMEOUT).await
    }

    async fn acquire_within(path: &Path, patience: Duration) -> TokenLock {
        let until = Instant::now() + patience;
        loop {
            match try_lock(path) {
                LockAttempt::Acquired(lock) => return lock,
                LockAttempt::Replaced => {}
                LockAttempt::Held if Instant::now() < until => sleep(LOCK_POLL).await,
                LockAttempt::Held => {
                    tracing::debug!(
                        "another process holds the lock of the refresh token for too long; continuing without it"
                    );
                    return TokenLock { _file: None };
                }
            }
        }
    }
}

fn try_lock(path: &Path) -> LockAttempt {
    let Ok(file) = File::open(path) else { return LockAttempt::Acquired(TokenLock { _file: None }) };
    match file.try_lock() {
        Ok(()) if file.metadata().is_ok_and(|file| file.nlink() == 0) => LockAttempt::Replaced,
        Ok(()) => LockAttempt::Acquired(TokenLock { _file: Some(file) }),
        Err(TryLockError::WouldBlock) => LockAttempt::Held,
        // Some network file systems have no locks.
        Err(TryLockError::Error(_)) => LockAttempt::Acquired(TokenLock { _file: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_file_does_not_end_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("oauth"), folder.path().join("new"));
        assert!(TokenLock::acquire(&path).await._file.is_none() && !path.exists(), "nothing is made");
        std::fs::write(&path, "second").unwrap();
        let first = TokenLock::acquire(&path).await;
        assert!(first._file.is_some());
        let waiting = TokenLock::acquire(&path);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::ZERO, &mut waiting).await.is_err(), "the first has it");
        std::fs::write(&new, "third").unwrap();
        std::fs::rename(&new, &path).unwrap();
        drop(first);
        let second = waiting.await;
        let (locked, current) = (second._file.unwrap().metadata().unwrap().ino(), path.metadata().unwrap().ino());
        assert_eq!(locked, current, "of the file that is there now");
    }

    #[tokio::test]
    async fn the_lock_has_a_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oauth");
        std::fs::write(&path, "second").unwrap();
        let first = TokenLock::acquire(&path).await;
        assert!(TokenLock::acquire_within(&path, Duration::ZERO).await._file.is_none());
        drop(first);
        assert!(TokenLock::acquire_within(&path, Duration::ZERO).await._file.is_some());
    }
}
