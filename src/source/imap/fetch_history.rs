//! The failed FETCHes of a mailbox, kept across connections.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::error::Error;

/// After this number of failures, a mail gets a row without bytes.
const STRIKES: u8 = 3;
/// The most mails of one round. In a round, mails that have a row without bytes are fetched again.
const ROUND: usize = 20;
/// The factor by which the limit of a FETCH grows after each complete window.
const GROWTH: usize = 8;

/// A mail that has a row without bytes.
#[derive(Debug, Clone, Copy)]
struct UndeliveredRow {
    received_at: Option<Timestamp>,
    /// A FETCH of this mail has ended a connection, so the mail is fetched alone.
    harmful: bool,
    /// The last round that fetched this mail.
    round: u64,
}

/// Failed FETCHes in one mailbox, under one UIDVALIDITY.
#[derive(Debug, Default)]
pub(super) struct FetchHistory {
    /// `None` until the rows are loaded from the database.
    uid_validity: Option<u32>,
    rows: BTreeMap<u32, UndeliveredRow>,
    round: u64,
    /// When the mails of these rows are fetched again.
    due: Option<Instant>,
    /// How many failures each mail has caused.
    strikes: BTreeMap<u32, u8>,
    /// The most mails of one FETCH; `None`: the usual number.
    limit: Option<usize>,
    /// The cursor has moved since [`Self::take_progress`].
    progress: bool,
    /// The mails of the rows are being fetched.
    fetching: bool,
}

impl FetchHistory {
    /// Must be called for each connection. `rows`: the undelivered mails in the database. If the UIDVALIDITY is that of the last
    /// connection, the history is kept, and `rows` is ignored.
    pub(super) fn begin(&mut self, uid_validity: u32, rows: Vec<(u32, Option<Timestamp>)>) {
        if self.uid_validity == Some(uid_validity) {
            return;
        }
        let row = |(uid, received_at)| (uid, UndeliveredRow { received_at, harmful: false, round: 0 });
        let rows = rows.into_iter().map(row).collect();
        *self = FetchHistory { uid_validity: Some(uid_validity), rows, due: Some(Instant::now()), ..Self::default() };
    }

    /// Whether the mails of the rows must be fetched now. `renewed`: the IDLE was just renewed.
    pub(super) fn is_due(&self, renewed: bool) -> bool {
        !self.rows.is_empty() && (renewed || self.due.is_none_or(|due| due <= Instant::now()))
    }

    /// Begins to fetch the mails of the rows. These mails are due again after `pause`, even if a FETCH ends the connection.
    pub(super) fn begin_fetching(&mut self, pause: Duration) {
        (self.due, self.fetching) = (Some(Instant::now() + pause), true);
    }

    /// The mails of the next round, which are requested together. The mails that have waited longest are chosen first.
    pub(super) fn next_round(&mut self) -> Vec<u32> {
        self.next_uids(false, ROUND)
    }

    /// The next mail that must be fetched alone.
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

    /// How many mails have a row without bytes.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The mails of all due rows were fetched, and the connection still works.
    pub(super) fn end_fetching(&mut self) {
        self.fetching = false;
    }

    /// Whether the connection ended while the mails of the rows were fetched.
    pub(super) fn take_fetching(&mut self) -> bool {
        std::mem::take(&mut self.fetching)
    }

    /// Records that a mail gets a row without bytes. `pause`: the time until the mail is fetched again, if no other mail has such
    /// a row.
    pub(super) fn add(&mut self, uid: u32, received_at: Option<Timestamp>, harmful: bool, pause: Duration) {
        if self.rows.is_empty() {
            self.due = Some(Instant::now() + pause);
        }
        self.strikes.remove(&uid);
        self.rows.insert(uid, UndeliveredRow { received_at, harmful, round: self.round });
        self.progress = true;
    }

    /// Removes a mail that has arrived, is gone or is not Resmic's. Returns its INTERNALDATE.
    pub(super) fn remove(&mut self, uid: u32) -> Option<Timestamp> {
        self.rows.remove(&uid).and_then(|row| row.received_at)
    }

    /// Records whether a FETCH of these mails ends the connection.
    pub(super) fn mark_harmful(&mut self, uids: &[u32], harmful: bool) {
        for uid in uids {
            self.rows.entry(*uid).and_modify(|row| row.harmful = harmful);
        }
    }

    /// Records a failure of this mail. Returns true if the mail has failed often enough to get a row without bytes.
    pub(super) fn strike(&mut self, uid: u32, error: &Error) -> bool {
        // A timeout counts twice, because it has already taken half a minute.
        let weight = if matches!(error, Error::Timeout { .. }) { 2 } else { 1 };
        let strikes = self.strikes.entry(uid).or_default();
        *strikes = strikes.saturating_add(weight);
        *strikes >= STRIKES
    }

    /// The cursor has moved to this UID.
    pub(super) fn passed(&mut self, cursor: u32) {
        self.progress = true;
        self.strikes.retain(|uid, _| *uid > cursor);
    }

    /// Whether the cursor has moved since the last call.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// The most mails of one FETCH; `None`: the usual number.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// The connection ended before the cursor moved. The next FETCH requests one mail, and `grow` raises the limit again.
    pub(super) fn shrink(&mut self) {
        self.limit = Some(1);
    }

    /// A window is complete, so the next one may be larger.
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
