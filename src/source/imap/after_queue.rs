//! Notifications that wait for `after`: to be marked as seen, or moved.

use tokio::sync::oneshot;

use super::error::{Error, Result};

/// UIDs of notifications that `after` has not been applied to. The queue outlives a connection.
#[derive(Debug, Default)]
pub(super) struct AfterQueue {
    uid_validity: u32,
    /// Batches that are not committed yet. Each channel will return the UIDs of the notifications in its batch.
    uncommitted: Vec<oneshot::Receiver<Vec<u32>>>,
    /// UIDs of committed notifications, sorted.
    committed: Vec<u32>,
}

impl AfterQueue {
    /// Keeps the queue for a new connection, or empties it if its UIDs no longer mean the same mails.
    pub(super) fn for_uid_validity(self, uid_validity: u32, is_reset: bool) -> Self {
        if is_reset || self.uid_validity != uid_validity {
            return AfterQueue { uid_validity, ..AfterQueue::default() };
        }
        self
    }

    /// Adds a batch. The receiver of the batch uses the returned channel to send the UIDs of the notifications, after the commit.
    pub(super) fn expect_commit(&mut self) -> oneshot::Sender<Vec<u32>> {
        let (sender, receiver) = oneshot::channel();
        self.uncommitted.push(receiver);
        sender
    }

    /// Whether a batch waits for its commit.
    pub(super) fn is_waiting(&self) -> bool {
        !self.uncommitted.is_empty()
    }

    /// Waits until all batches are committed.
    pub(super) async fn wait_for_commits(&mut self) -> Result<()> {
        while let Some(commit) = self.uncommitted.last_mut() {
            // A batch is removed only after its commit. So it stays in the queue if the connection ends during this wait.
            let uids = commit.await.map_err(|_| Error::Closing)?;
            self.uncommitted.pop();
            self.committed.extend(uids);
        }
        self.committed.sort_unstable();
        Ok(())
    }

    /// The next committed UIDs, at most `most`.
    pub(super) fn next_chunk(&self, most: usize) -> Vec<u32> {
        self.committed.iter().copied().take(most).collect()
    }

    /// Removes the first `count` committed UIDs.
    pub(super) fn remove(&mut self, count: usize) {
        self.committed.drain(..count.min(self.committed.len()));
    }
}
