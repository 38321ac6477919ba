//! One at a time: the daemon and a command beside it, or two accounts of one grant, must not show the endpoint the same
//! refresh token. It takes the second for a thief's, and may end the grant with it (RFC 9700, 4.14.2).

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long another one is waited for: longer than a call of the endpoint takes. Who was stopped meanwhile does not hold
/// up everybody else.
const LOCK_TIMEOUT: Duration = Duration::from_secs(25);
/// How often it is looked whether it is done: the kernel tells nobody.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Lasts until it is dropped, or the process ends.
pub(super) struct TokenLock {
    /// Locked. `None`: no token was ever replaced, so none ends, or there can be no lock.
    _file: Option<File>,
}

/// What an attempt has led to.
enum LockAttempt {
    Acquired(TokenLock),
    /// What was locked is not the file any more.
    Replaced,
    /// Another one has it.
    Held,
}

impl TokenLock {
    /// Waits for it, at the file of a token that is kept; makes none.
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
                    tracing::debug!("another process asks for an access token for too long; it is not waited for");
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
    async fn the_second_waits_for_the_first_also_where_the_file_is_replaced() {
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
        let (locked, now) = (second._file.unwrap().metadata().unwrap().ino(), path.metadata().unwrap().ino());
        assert_eq!(locked, now, "of the file that is there now");
    }

    #[tokio::test]
    async fn one_that_never_ends_is_not_waited_for_any_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oauth");
        std::fs::write(&path, "second").unwrap();
        let first = TokenLock::acquire(&path).await;
        assert!(TokenLock::acquire_within(&path, Duration::ZERO).await._file.is_none());
        drop(first);
        assert!(TokenLock::acquire_within(&path, Duration::ZERO).await._file.is_some());
    }
}
