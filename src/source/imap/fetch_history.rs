//! What a watcher remembers of FETCHes that failed. It outlives a connection.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::error::Error;

/// How many failures one mail may cause before it gets a row without bytes.
const STRIKES: u8 = 3;
/// How many mails that have such a row are fetched again in one round.
const ROUND: usize = 20;
/// How much larger a window may be than the one that came before it.
const GROWTH: usize = 8;

/// A mail that has a row without bytes.
#[derive(Debug, Clone, Copy)]
struct UndeliveredRow {
    received_at: Option<Timestamp>,
    /// A FETCH of it has ended a connection: it is asked for alone.
    harmful: bool,
    /// In which round it was last asked for.
    round: u64,
}

/// Memory of FETCHes that failed in one mailbox, under one UIDVALIDITY.
#[derive(Debug, Default)]
pub(super) struct FetchHistory {
    /// `None`: the database was not asked yet.
    uid_validity: Option<u32>,
    rows: BTreeMap<u32, UndeliveredRow>,
    round: u64,
    /// When they are fetched again.
    due: Option<Instant>,
    /// How many failures each mail has caused.
    strikes: BTreeMap<u32, u8>,
    /// How many mails one FETCH may ask for; `None`: as many as usual.
    limit: Option<usize>,
    /// The cursor has moved since this was last asked.
    progress: bool,
    /// Such mails are being fetched.
    asking: bool,
}

impl FetchHistory {
    /// Begins a connection. `rows`: the mails that the database knows as undelivered; taken over one time for each UIDVALIDITY.
    pub(super) fn begin(&mut self, uid_validity: u32, rows: Vec<(u32, Option<Timestamp>)>) {
        if self.uid_validity == Some(uid_validity) {
            return;
        }
        let row = |(uid, received_at)| (uid, UndeliveredRow { received_at, harmful: false, round: 0 });
        let rows = rows.into_iter().map(row).collect();
        *self = FetchHistory { uid_validity: Some(uid_validity), rows, due: Some(Instant::now()), ..Self::default() };
    }

    /// Whether it is time to fetch them again. `renewed`: the IDLE was renewed just now.
    pub(super) fn is_due(&self, renewed: bool) -> bool {
        !self.rows.is_empty() && (renewed || self.due.is_none_or(|due| due <= Instant::now()))
    }

    /// Begins to fetch again. The next time is due after `pause`, also if this one ends the connection.
    pub(super) fn begin_fetching(&mut self, pause: Duration) {
        (self.due, self.asking) = (Some(Instant::now() + pause), true);
    }

    /// The mails of the next round, which are fetched together: those that were not asked for longest.
    pub(super) fn next_round(&mut self) -> Vec<u32> {
        self.next(false, ROUND)
    }

    /// A mail that has to be asked for alone.
    pub(super) fn next_alone(&mut self) -> Vec<u32> {
        self.next(true, 1)
    }

    fn next(&mut self, harmful: bool, most: usize) -> Vec<u32> {
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

    /// All that is due was fetched.
    pub(super) fn end_fetching(&mut self) {
        self.asking = false;
    }

    /// Whether the connection ended while such mails were fetched.
    pub(super) fn take_asking(&mut self) -> bool {
        std::mem::take(&mut self.asking)
    }

    /// A mail gets a row without bytes. `pause`: until it is fetched again.
    pub(super) fn add(&mut self, uid: u32, received_at: Option<Timestamp>, harmful: bool, pause: Duration) {
        if self.rows.is_empty() {
            self.due = Some(Instant::now() + pause);
        }
        self.strikes.remove(&uid);
        self.rows.insert(uid, UndeliveredRow { received_at, harmful, round: self.round });
        self.progress = true;
    }

    /// Its row is closed; when the server took it.
    pub(super) fn remove(&mut self, uid: u32) -> Option<Timestamp> {
        self.rows.remove(&uid).and_then(|row| row.received_at)
    }

    /// Whether a FETCH of these mails ends the connection.
    pub(super) fn mark_harmful(&mut self, uids: &[u32], harmful: bool) {
        for uid in uids {
            self.rows.entry(*uid).and_modify(|row| row.harmful = harmful);
        }
    }

    /// A FETCH of this mail failed; true: it has failed often enough.
    pub(super) fn strike(&mut self, uid: u32, error: &Error) -> bool {
        // A timeout has taken half a minute already.
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

    /// Whether the cursor has moved since this was last asked.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// How many mails one FETCH may ask for; `None`: as many as usual.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// A connection ended before anything came of the first mail: from here on mails are asked for one by one.
    pub(super) fn shrink(&mut self) {
        self.limit = Some(1);
    }

    /// A window is read to its end.
    pub(super) fn grow(&mut self, usual: usize) {
        self.limit = self.limit.map(|limit| limit.saturating_mul(GROWTH)).filter(|limit| *limit < usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_bounded_and_leaves_nothing_out() {
        let mut history = FetchHistory::default();
        history.begin(7, (1..=50).map(|uid| (uid, None)).collect());
        history.mark_harmful(&[1, 2], true);
        let mut asked = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let (together, alone) = (history.next_round(), history.next_alone());
            assert!(together.len() <= ROUND && alone.len() <= 1);
            asked.extend(together.into_iter().chain(alone));
        }
        assert_eq!(asked.len(), 50);
    }

    #[test]
    fn a_database_is_asked_once_for_each_uidvalidity() {
        let mut history = FetchHistory::default();
        history.begin(7, vec![(1, None)]);
        history.remove(1);
        history.begin(7, vec![(1, None)]);
        assert!(!history.is_due(true));
        history.begin(8, vec![(1, None)]);
        assert!(history.is_due(false));
    }
}
