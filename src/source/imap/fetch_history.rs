//! The failed FETCHes of a mailbox, kept across connections.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::error::Error;

/// After this number of failed FETCHes, a mail gets a row without bytes in the table `mails`.
const STRIKES: u8 = 3;
/// The most mails of one round. A round fetches mails again that have a row without bytes in the table `mails`.
const ROUND: usize = 20;
/// The factor by which the limit of mails in a FETCH grows after each window (a range of UIDs) whose mails are all settled.
const GROWTH: usize = 8;

/// A mail that has a row without bytes in the table `mails`, because the server lists this mail but did not deliver it.
#[derive(Debug, Clone, Copy)]
struct UndeliveredRow {
    received_at: Option<Timestamp>,
    /// A FETCH of this mail has ended a connection, so the mail is fetched alone.
    harmful: bool,
    /// The number of the most recent round that requested this mail.
    round: u64,
}

/// Failed FETCHes in one mailbox, under one UIDVALIDITY.
#[derive(Debug, Default)]
pub(super) struct FetchHistory {
    /// The UIDVALIDITY of the UIDs in `rows`; `None` until [`Self::begin`] fills `rows` from the database.
    uid_validity: Option<u32>,
    rows: BTreeMap<u32, UndeliveredRow>,
    round: u64,
    /// When the mails in `rows` are fetched again.
    due: Option<Instant>,
    /// The number of failed FETCHes of each mail, by UID. A timeout counts as two failures.
    strikes: BTreeMap<u32, u8>,
    /// The most mails of one FETCH; `None`: the usual limit of a sync.
    limit: Option<usize>,
    /// The cursor has moved since the previous call of [`Self::take_progress`].
    progress: bool,
    /// The watcher is fetching the mails in `rows` again.
    fetching: bool,
}

impl FetchHistory {
    /// Prepares the history for a new connection. `rows`: the mails that have a row without bytes in the table `mails`. If the
    /// UIDVALIDITY is the same as for the previous connection, the history is kept, and `rows` is ignored.
    pub(super) fn begin(&mut self, uid_validity: u32, rows: Vec<(u32, Option<Timestamp>)>) {
        if self.uid_validity == Some(uid_validity) {
            return;
        }
        let row = |(uid, received_at)| (uid, UndeliveredRow { received_at, harmful: false, round: 0 });
        let rows = rows.into_iter().map(row).collect();
        *self = FetchHistory { uid_validity: Some(uid_validity), rows, due: Some(Instant::now()), ..Self::default() };
    }

    /// Whether the mails in `rows` must be fetched again now. `renewed`: the IDLE was just renewed.
    pub(super) fn is_due(&self, renewed: bool) -> bool {
        !self.rows.is_empty() && (renewed || self.due.is_none_or(|due| due <= Instant::now()))
    }

    /// Sets `fetching`, because the watcher is about to fetch the mails in `rows` again. These mails are fetched once more after
    /// `pause`, even if a FETCH ends the connection.
    pub(super) fn begin_fetching(&mut self, pause: Duration) {
        (self.due, self.fetching) = (Some(Instant::now() + pause), true);
    }

    /// The UIDs of the next round, whose mails are requested together. The mails whose last request is the oldest are chosen
    /// first.
    pub(super) fn next_round(&mut self) -> Vec<u32> {
        self.next_uids(false, ROUND)
    }

    /// The UID of the next mail that is fetched alone, because a FETCH of this mail has ended a connection. Empty if no mail must
    /// be fetched alone.
    pub(super) fn next_alone(&mut self) -> Vec<u32> {
        self.next_uids(true, 1)
    }

    fn next_uids(&mut self, harmful: bool, most: usize) -> Vec<u32> {
        self.round += 1;
        let rows = self.rows.iter().filter(|(_, row)| row.harmful == harmful);
        let mut waiting: Vec<(u64, u32)> = rows.map(|(uid, row)| (row.round, *uid)).collect();
        waiting.sort_unstable();
        let mut uids: Vec<u32> = waiting.into_iter().take(most).map(|(_, uid)| uid).collect();
        uids.sort_unstable();
        for uid in &uids {
            self.rows.entry(*uid).and_modify(|row| row.round = self.round);
        }
        uids
    }

    /// How many mails of the mailbox have a row without bytes in the table `mails`.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Clears `fetching`. The caller has fetched the mails in `rows` again, and the connection is still open.
    pub(super) fn end_fetching(&mut self) {
        self.fetching = false;
    }

    /// Whether the connection ended while the mails in `rows` were fetched again. Clears `fetching`.
    pub(super) fn take_fetching(&mut self) -> bool {
        std::mem::take(&mut self.fetching)
    }

    /// Adds a mail that gets a row without bytes in the table `mails`. `pause`: the time until the mail is fetched again, if
    /// `rows` was empty.
    pub(super) fn add(&mut self, uid: u32, received_at: Option<Timestamp>, harmful: bool, pause: Duration) {
        if self.rows.is_empty() {
            self.due = Some(Instant::now() + pause);
        }
        self.strikes.remove(&uid);
        self.rows.insert(uid, UndeliveredRow { received_at, harmful, round: self.round });
        self.progress = true;
    }

    /// Removes a mail from `rows` that was delivered, is gone or is not Resmic's. Returns the INTERNALDATE of the mail, if it is
    /// known.
    pub(super) fn remove(&mut self, uid: u32) -> Option<Timestamp> {
        self.rows.remove(&uid).and_then(|row| row.received_at)
    }

    /// Sets in `rows` whether a FETCH of the mails `uids` has ended a connection.
    pub(super) fn mark_harmful(&mut self, uids: &[u32], harmful: bool) {
        for uid in uids {
            self.rows.entry(*uid).and_modify(|row| row.harmful = harmful);
        }
    }

    /// Counts a failed FETCH of the mail `uid`. Returns true if enough FETCHes have failed to give the mail a row without bytes
    /// in the table `mails`.
    pub(super) fn strike(&mut self, uid: u32, error: &Error) -> bool {
        // A timeout counts as two failures, because the watcher has waited half a minute for the answer.
        let weight = if matches!(error, Error::Timeout { .. }) { 2 } else { 1 };
        let strikes = self.strikes.entry(uid).or_default();
        *strikes = strikes.saturating_add(weight);
        *strikes >= STRIKES
    }

    /// Removes the failures of the mails up to the UID `cursor`, because the cursor has moved to this UID.
    pub(super) fn passed(&mut self, cursor: u32) {
        self.progress = true;
        self.strikes.retain(|uid, _| *uid > cursor);
    }

    /// Whether the cursor has moved since the previous call of this method.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// The most mails of one FETCH; `None`: the usual limit of a sync.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Limits the next FETCH to one mail, because the connection ended before the cursor moved. [`Self::grow`] raises this limit
    /// again.
    pub(super) fn shrink(&mut self) {
        self.limit = Some(1);
    }

    /// Raises the limit of mails in a FETCH, because all mails of a window (a range of UIDs) are settled. When the limit reaches
    /// `usual`, the limit is removed.
    pub(super) fn grow(&mut self, usual: usize) {
        self.limit = self.limit.map(|limit| limit.saturating_mul(GROWTH)).filter(|limit| *limit < usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_bounded_and_reach_all_rows() {
        let mut history = FetchHistory::default();
        history.begin(7, (1..=50).map(|uid| (uid, None)).collect());
        history.mark_harmful(&[1, 2], true);
        let mut fetched = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let (together, alone) = (history.next_round(), history.next_alone());
            assert!(together.len() <= ROUND && alone.len() <= 1);
            fetched.extend(together.into_iter().chain(alone));
        }
        assert_eq!(fetched.len(), 50);
    }

    #[test]
    fn rows_are_loaded_once_per_uidvalidity() {
        let mut history = FetchHistory::default();
        history.begin(7, vec![(1, None)]);
        history.remove(1);
        history.begin(7, vec![(1, None)]);
        assert!(!history.is_due(true));
        history.begin(8, vec![(1, None)]);
        assert!(history.is_due(false));
    }
}
