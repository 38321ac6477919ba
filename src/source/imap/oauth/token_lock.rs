//! One at a time: the daemon and a command beside it, or two accounts of one grant, must not show the endpoint the same
//! refresh token. It takes the second for a thief's, and may end the grant with it (RFC 9700, 4.14.2).

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long another one is waited for: longer than a call of the endpoint takes. Who was stopped meanwhile does not hold
/// up everybody else.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often it is looked whether it is done: the kernel tells nobody.
const LOOK: Duration = Duration::from_millis(50);

/// Lasts until it is dropped, or the process ends.
pub(super) struct Turn {
    /// Locked. `None`: no token was ever replaced, so none ends, or there can be no lock.
    _file: Option<File>,
}

/// What an attempt has led to.
enum Attempt {
    Ours(Turn),
    /// What was locked is not the file any more.
    Again,
    /// Another one has it.
    Later,
}

impl Turn {
    /// Waits for it, at the file of a token that is kept; makes none.
    pub(super) async fn at(path: &Path) -> Turn {
        Turn::within(path, PATIENCE).await
    }

    async fn within(path: &Path, patience: Duration) -> Turn {
        let until = Instant::now() + patience;
        loop {
            match attempt(path) {
                Attempt::Ours(turn) => return turn,
                Attempt::Again => {}
                Attempt::Later if Instant::now() < until => sleep(LOOK).await,
                Attempt::Later => {
                    tracing::debug!("another process asks for an access token for too long; it is not waited for");
                    return Turn { _file: None };
                }
            }
        }
    }
}

fn attempt(path: &Path) -> Attempt {
    let Ok(file) = File::open(path) else { return Attempt::Ours(Turn { _file: None }) };
    match file.try_lock() {
        Ok(()) if file.metadata().is_ok_and(|file| file.nlink() == 0) => Attempt::Again,
        Ok(()) => Attempt::Ours(Turn { _file: Some(file) }),
        Err(TryLockError::WouldBlock) => Attempt::Later,
        // Some network file systems have no locks.
        Err(TryLockError::Error(_)) => Attempt::Ours(Turn { _file: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first_also_where_the_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("oauth"), folder.path().join("new"));
        assert!(Turn::at(&path).await._file.is_none() && !path.exists(), "nothing is made");
        std::fs::write(&path, "second").unwrap();
        let first = Turn::at(&path).await;
        assert!(first._file.is_some());
        let waiting = Turn::at(&path);
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
        let first = Turn::at(&path).await;
        assert!(Turn::within(&path, Duration::ZERO).await._file.is_none());
        drop(first);
        assert!(Turn::within(&path, Duration::ZERO).await._file.is_some());
    }
}
