//! The FETCHes of one sync: which UIDs are requested, which have arrived, and how far the cursor may move.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use tokio::time::Instant;

use super::connection::PendingCommand;
use super::error::Error;
use super::fetch::{FetchKind, FetchedMail};
use super::mailbox::FINGERPRINT_UIDS;

/// The most mails of one FETCH of bodies, and the most numbers in the sequence set of any FETCH. Servers limit the length of a
/// line.
pub(super) const WINDOW: usize = 500;
/// The most mails of one window (a range of UIDs) in a shared mailbox, where most answers are short headers.
pub(super) const SHARED_WINDOW: usize = 1000;
/// How often a mail that the server lists is requested before the mail gets a row without bytes in the table `mails`.
const MAX_ATTEMPTS: u8 = 3;

/// A range of UIDs that is being fetched.
struct UidWindow {
    /// UIDs that are not settled, sorted.
    unsettled: VecDeque<u32>,
    last: u32,
    /// How many FETCHes of this window are not answered yet.
    open: usize,
}

/// A FETCH that is not answered yet.
pub(super) struct FetchCommand {
    pub(super) pending: PendingCommand,
    pub(super) window: usize,
    pub(super) kind: FetchKind,
    /// The requested UIDs whose data has not arrived, sorted.
    missing: VecDeque<u32>,
    /// UIDs of mails whose sender may be Resmic; for a listing, the listed UIDs.
    candidates: Vec<u32>,
    attempt: u8,
    sent_at: Instant,
}

/// A FETCH that has to be sent.
pub(super) struct FetchRequest {
    pub(super) kind: FetchKind,
    pub(super) uids: Vec<u32>,
    /// The number of the attempt to fetch these mails, from 1.
    pub(super) attempt: u8,
}

/// The work that follows from an answered FETCH.
pub(super) struct FollowUps {
    pub(super) window: usize,
    /// The time at which the delay of a repeated attempt begins.
    pub(super) since: Instant,
    pub(super) requests: Vec<FetchRequest>,
    /// Mails that the server lists and has not delivered in any attempt.
    pub(super) withheld: Vec<u32>,
}

/// The FETCHes of one sync.
#[derive(Default)]
pub(super) struct SyncQueue<'a> {
    /// UIDs that no window contains yet.
    waiting: &'a [u32],
    windows: VecDeque<UidWindow>,
    /// How many windows are finished and removed. The number of a window is its index in `windows` plus this count, so the number
    /// never changes.
    removed_windows: usize,
    commands: VecDeque<FetchCommand>,
    /// RFC822.SIZE and INTERNALDATE of mails, from responses that contain neither header nor body.
    reported: BTreeMap<u32, (Option<u64>, Option<Timestamp>)>,
    /// Mails that the server refused although each was requested alone. `refusal` is the error for the last of these mails.
    refused: Vec<u32>,
    refusal: Option<Error>,
    has_body: bool,
    has_content: bool,
}

impl FetchCommand {
    pub(super) fn new(pending: PendingCommand, window: usize, request: FetchRequest) -> Self {
        let FetchRequest { kind, uids, attempt } = request;
        let (missing, sent_at) = (uids.into(), Instant::now());
        FetchCommand { pending, window, kind, missing, candidates: Vec::new(), attempt, sent_at }
    }

    /// Adds a mail whose body must be fetched. In a listing, adds a mail that the server lists.
    pub(super) fn add_candidate(&mut self, uid: u32) {
        self.candidates.push(uid);
    }

    /// Removes the UID of `mail` from `missing`, if this FETCH was waiting for the data in `mail`. Returns true if the FETCH was
    /// waiting for this data.
    fn accept(&mut self, mail: &FetchedMail) -> bool {
        let has_content = match self.kind {
            FetchKind::Listing | FetchKind::Dates => mail.is_listing(),
            FetchKind::Senders | FetchKind::Headers => mail.header.is_some(),
            FetchKind::Body => mail.body.is_some(),
        };
        has_content && remove(&mut self.missing, mail.uid)
    }
}

impl<'a> SyncQueue<'a> {
    /// `uids`: the mails to fetch, sorted.
    pub(super) fn new(uids: &'a [u32]) -> Self {
        SyncQueue { waiting: uids, ..SyncQueue::default() }
    }

    /// Begins the next window with at most `most` mails. Returns the number of the window and its FETCHes; `None` if all UIDs are
    /// in windows.
    pub(super) fn next_window(&mut self, most: usize, is_dedicated: bool) -> Option<(usize, Vec<FetchRequest>)> {
        let (uids, rest) = self.waiting.split_at_checked(window_length(self.waiting, most))?;
        let last = *uids.last()?;
        self.waiting = rest;
        let parts = if is_dedicated { vec![(FetchKind::Body, uids)] } else { shared_parts(uids) };
        let requests: Vec<_> =
            parts.into_iter().map(|(kind, uids)| FetchRequest { kind, uids: uids.to_vec(), attempt: 1 }).collect();
        self.windows.push_back(UidWindow { unsettled: uids.iter().copied().collect(), last, open: requests.len() });
        Some((self.removed_windows + self.windows.len() - 1, requests))
    }

    /// Adds a FETCH of [`Self::next_window`] that was sent.
    pub(super) fn push(&mut self, command: FetchCommand) {
        self.commands.push_back(command);
    }

    /// Adds a follow-up FETCH that was sent.
    pub(super) fn push_follow_up(&mut self, command: FetchCommand) {
        if let Some(window) = self.window(command.window) {
            window.open += 1;
        }
        self.commands.push_back(command);
    }

    /// Counts one FETCH of the window as answered, after the FETCHes that follow from it were sent.
    pub(super) fn close_command(&mut self, window: usize) {
        if let Some(window) = self.window(window) {
            window.open -= 1;
        }
    }

    /// Removes windows from the front if all their FETCHes are answered and all their UIDs are settled. Returns the number of
    /// removed windows.
    pub(super) fn remove_finished(&mut self, cursor: u32) -> usize {
        let before = self.removed_windows;
        while self.windows.pop_front_if(|window| window.open == 0 && window.unsettled.is_empty()).is_some() {
            self.removed_windows += 1;
            self.reported = self.reported.split_off(&cursor);
        }
        self.removed_windows - before
    }

    /// How many FETCHes are not answered yet.
    pub(super) fn open_commands(&self) -> usize {
        self.commands.len()
    }

    /// The FETCH whose answer comes next.
    pub(super) fn front(&self) -> Option<&FetchCommand> {
        self.commands.front()
    }

    /// Returns the FETCH that was waiting for the data in `mail`. If a FETCH waits for other data of this mail, keeps its size
    /// and date in `reported`.
    pub(super) fn accept(&mut self, mail: &FetchedMail) -> Option<&mut FetchCommand> {
        let Some(index) = self.commands.iter_mut().position(|command| command.accept(mail)) else {
            self.record(mail);
            return None;
        };
        let command = self.commands.get_mut(index)?;
        self.has_content |= !mail.is_listing();
        self.has_body |= command.kind == FetchKind::Body;
        Some(command)
    }

    fn record(&mut self, mail: &FetchedMail) {
        let is_awaited = self.commands.iter().any(|command| command.missing.binary_search(&mail.uid).is_ok());
        if mail.is_listing() && (mail.size.is_some() || mail.received_at.is_some()) && is_awaited {
            // Dovecot reports 1970 for a mail that is removed during the FETCH.
            let received_at = mail.received_at.filter(|at| *at != Timestamp::UNIX_EPOCH);
            self.reported.insert(mail.uid, (mail.size, received_at));
        }
    }

    /// Size and date of a mail, as far as the server reported them.
    pub(super) fn reported(&self, uid: u32) -> (Option<u64>, Option<Timestamp>) {
        self.reported.get(&uid).copied().unwrap_or_default()
    }

    /// Removes a UID from the window's `unsettled`: the mail was sent to `ingest`, is gone, or is not Resmic's.
    pub(super) fn settle(&mut self, window: usize, uid: u32) {
        if let Some(window) = self.window(window) {
            remove(&mut window.unsettled, uid);
        }
    }

    /// Does the same as [`Self::settle`], for a mail whose window is not known.
    pub(super) fn settle_anywhere(&mut self, uid: u32) {
        for window in &mut self.windows {
            remove(&mut window.unsettled, uid);
        }
    }

    /// The highest UID to which the cursor may move: the UID before the first mail that is not settled. If all mails in the
    /// windows (ranges of UIDs) are settled, the result is the last UID of the last window. The result is at least `cursor`.
    pub(super) fn proven(&self, cursor: u32) -> u32 {
        let mut proven = cursor;
        for window in &self.windows {
            match window.unsettled.front() {
                Some(uid) => return proven.max(uid.saturating_sub(1)),
                None => proven = proven.max(window.last),
            }
        }
        proven
    }

    /// The lowest UID of the requested mails that have not arrived, and the number of these mails.
    pub(super) fn missing(&self) -> (Option<u32>, usize) {
        let missing = || self.commands.iter().flat_map(|command| command.missing.iter().copied());
        (missing().min(), missing().count())
    }

    /// Whether the server has delivered at least one body in this sync.
    pub(super) fn has_body(&self) -> bool {
        self.has_body
    }

    /// Whether the server has delivered at least one body or header in this sync.
    pub(super) fn has_content(&self) -> bool {
        self.has_content
    }

    /// The mails that the server refused although each was requested alone, and the last of these refusals.
    pub(super) fn take_refusals(&mut self) -> Option<(Vec<u32>, Error)> {
        let error = self.refusal.take()?;
        Some((std::mem::take(&mut self.refused), error))
    }

    /// Removes the first FETCH, whose answer is complete, and returns the work that follows from this answer.
    pub(super) fn finish_front(&mut self, refusal: Option<Error>) -> Option<FollowUps> {
        let FetchCommand { window, kind, missing, mut candidates, attempt, sent_at, .. } = self.commands.pop_front()?;
        // After a refusal, the delay before the next attempt begins when the refused FETCH was sent. So the delays of a
        // thousand refused mails pass at the same time.
        let since = if refusal.is_some() { sent_at } else { Instant::now() };
        let missing = Vec::from(missing);
        // A server may return the mails of a FETCH in any order.
        candidates.sort_unstable();
        let is_listing = kind == FetchKind::Listing;
        let withheld = if is_listing { std::mem::take(&mut candidates) } else { Vec::new() };
        let mut requests = chunks(FetchKind::Body, &candidates, 1);
        match (missing.len(), refusal) {
            (0, _) => {}
            // One unreadable mail makes Exchange refuse the whole FETCH. Two FETCHes of half the mails each lead to that mail.
            (count @ 2.., Some(_)) => {
                let (a, b) = missing.split_at(count / 2);
                requests.extend([a, b].map(|uids| FetchRequest { kind, uids: uids.to_vec(), attempt: 1 }));
            }
            // The tagged OK of a listing proves that the mails it does not name are gone.
            (_, None) if is_listing => missing.iter().for_each(|uid| self.settle(window, *uid)),
            (_, refusal) if attempt < MAX_ATTEMPTS => {
                drop(refusal);
                requests.extend(chunks(kind, &missing, attempt + 1));
            }
            (_, Some(error)) => {
                self.refused.extend(missing);
                self.refusal = Some(error);
            }
            (_, None) => requests.extend(chunks(FetchKind::Listing, &missing, 1)),
        }
        Some(FollowUps { window, since, requests, withheld })
    }

    fn window(&mut self, number: usize) -> Option<&mut UidWindow> {
        self.windows.get_mut(number.checked_sub(self.removed_windows)?)
    }
}

fn chunks(kind: FetchKind, uids: &[u32], attempt: u8) -> Vec<FetchRequest> {
    uids.chunks(WINDOW).map(|uids| FetchRequest { kind, uids: uids.to_vec(), attempt }).collect()
}

/// Removes a UID from a sorted list. Returns whether the list contained it.
fn remove(uids: &mut VecDeque<u32>, uid: u32) -> bool {
    uids.binary_search(&uid).ok().and_then(|index| uids.remove(index)).is_some()
}

/// How many of these mails fit into one window: at most `most` mails, and at most [`WINDOW`] numbers in a sequence set.
fn window_length(uids: &[u32], most: usize) -> usize {
    let mut numbers = 0;
    let fits = |&(n, &uid): &(usize, &u32)| {
        // The UIDs inside a range like `4:9` add no number.
        let before = n.checked_sub(2).and_then(|before| uids.get(before));
        numbers += usize::from(before.is_none_or(|before| uid - before > 2));
        numbers <= WINDOW
    };
    uids.iter().enumerate().take(most).take_while(fits).count()
}

/// The FETCHes of a window in a shared mailbox. Only the last UIDs need their date, as fingerprints (see
/// [`renumbering`](super::renumbering)): for Dovecot the date costs as much as all other items together.
fn shared_parts(uids: &[u32]) -> Vec<(FetchKind, &[u32])> {
    let last = uids.last().copied().unwrap_or(0);
    let (before, fingerprints) = uids.split_at(uids.partition_point(|uid| last - uid >= FINGERPRINT_UIDS));
    let parts = [(FetchKind::Senders, before), (FetchKind::Headers, fingerprints)];
    parts.into_iter().filter(|(_, uids)| !uids.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::selected::uid_set;
    use super::*;

    #[test]
    fn windows_fill_one_command() {
        let scattered: Vec<u32> = (0..2_000).map(|n| 4_000_000_000 + 2 * n).collect();
        let pairs: Vec<u32> = (0..1_000).flat_map(|n| [4_000_000_000 + 3 * n, 4_000_000_001 + 3 * n]).collect();
        let row: Vec<u32> = (4_000_000_000..4_000_002_000).collect();
        for (uids, count) in [(&scattered, WINDOW), (&pairs, WINDOW), (&row, SHARED_WINDOW)] {
            assert_eq!(window_length(uids, SHARED_WINDOW), count);
            assert!(uid_set(&uids[..count]).len() <= WINDOW * "4000000000,".len());
        }
        assert_eq!(window_length(&row, WINDOW), WINDOW);
        assert_eq!((window_length(&[7], WINDOW), window_length(&[], WINDOW)), (1, 0));
    }

    #[test]
    fn dates_are_fetched_only_for_fingerprints() {
        let row: Vec<u32> = (1..=1_000).collect();
        assert_eq!(shared_parts(&row), [(FetchKind::Senders, &row[..800]), (FetchKind::Headers, &row[800..])]);
        // A mail gets a fingerprint only if its UID is one of the 200 UIDs up to the last UID (here, 101 to 300).
        assert_eq!(
            shared_parts(&[1, 100, 101, 300]),
            [(FetchKind::Senders, &[1, 100][..]), (FetchKind::Headers, &[101, 300])]
        );
        assert_eq!(shared_parts(&[4, 5]), [(FetchKind::Headers, &[4, 5][..])]);
    }
}
