//! The queue of notifications that the watcher still has to mark as seen, or to move (the setting `after`).

use tokio::sync::oneshot;

use super::error::{Error, Result};

/// UIDs of notifications to which the setting `after` was not applied yet. The queue outlives a connection.
#[derive(Debug, Default)]
pub(super) struct AfterQueue {
    uid_validity: u32,
    /// One channel for each batch that `ingest` has not committed yet. After the commit, the channel receives the UIDs of the
    /// notifications in the batch.
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

    /// Adds a batch that is not committed yet. Returns the channel over which `ingest` sends, after the commit, the UIDs of the
    /// notifications in this batch.
    pub(super) fn expect_commit(&mut self) -> oneshot::Sender<Vec<u32>> {
        let (sender, receiver) = oneshot::channel();
        self.uncommitted.push(receiver);
        sender
    }

    /// Whether a batch waits for its commit.
    pub(super) fn is_waiting(&self) -> bool {
        !self.uncommitted.is_empty()
    }

    /// Waits until all batches in the queue are committed.
    pub(super) async fn wait_for_commits(&mut self) -> Result<()> {
        while let Some(commit) = self.uncommitted.last_mut() {
            // A batch is removed only after its commit. So the batch stays in the queue if the connection ends during this wait.
            let uids = commit.await.map_err(|_| Error::Closing)?;
            self.uncommitted.pop();
            self.committed.extend(uids);
        }
        self.committed.sort_unstable();
        Ok(())
    }

    /// The UIDs of the next committed notifications, at most `most`.
    pub(super) fn next_chunk(&self, most: usize) -> Vec<u32> {
        self.committed.iter().copied().take(most).collect()
    }

    /// Removes the UIDs of the first `count` committed notifications.
    pub(super) fn remove(&mut self, count: usize) {
        self.committed.drain(..count.min(self.committed.len()));
    }
}
