//! Mails that a server has pushed (NOTIFY) or announced (`EXISTS`) since the last sync.

use std::collections::BTreeSet;

use super::fetch::FetchedMail;

/// The most mails, and the most bytes, that are kept from unsolicited FETCH responses. A later FETCH or sync requests the mails
/// beyond these limits.
const MAX_PUSHED: usize = 256;
const MAX_PUSHED_BYTES: usize = 8 << 20;

/// Mails from unsolicited FETCH responses of the server.
#[derive(Debug, Default)]
pub(super) struct PushedMails(Vec<FetchedMail>);

impl PushedMails {
    /// Keeps a mail if it has a header or a body, and the limits are not reached. A FETCH response about changed flags has
    /// neither.
    pub(super) fn keep(&mut self, mail: FetchedMail) {
        let bytes: usize = self.0.iter().map(FetchedMail::bytes).sum();
        if !mail.is_listing() && bytes < MAX_PUSHED_BYTES && self.0.len() < MAX_PUSHED {
            self.0.push(mail);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all pushed mails, and leaves the list empty.
    pub(super) fn take_all(&mut self) -> Vec<FetchedMail> {
        std::mem::take(&mut self.0)
    }
}

/// Mails that the server has announced and not delivered yet, and delivered mails whose UIDs are higher than the UID of a missing
/// mail.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// How many mails the server has announced with `EXISTS` and not delivered yet.
    announced: usize,
    /// UIDs above the cursor whose mails were sent to `ingest`. A mail with a lower UID is missing, so the cursor has not passed
    /// these UIDs.
    ahead: BTreeSet<u32>,
    /// There are UIDs between the cursor and UIDNEXT that the server has not listed. One of these UIDs may belong to a mail.
    below_uid_next: bool,
}

impl Outstanding {
    /// Creates the state after a sync. `below_uid_next`: there are UIDs between the cursor and UIDNEXT. Only such a UID can
    /// belong to a mail that the sync has missed.
    pub(super) fn after_sync(below_uid_next: bool) -> Self {
        Outstanding { below_uid_next, ..Outstanding::default() }
    }

    /// Adds `count` mails that the server has announced with `EXISTS`.
    pub(super) fn announce(&mut self, count: usize) {
        self.announced += count;
    }

    /// How many mails the server has announced with `EXISTS` and not delivered yet.
    pub(super) fn announced(&self) -> usize {
        self.announced
    }

    /// Returns how many announced mails the server has not delivered yet, and sets this number to 0.
    pub(super) fn take_announced(&mut self) -> usize {
        std::mem::take(&mut self.announced)
    }

    /// Whether the mailbox may have a mail that the server has not delivered yet.
    pub(super) fn is_incomplete(&self) -> bool {
        self.announced > 0 || self.below_uid_next
    }

    /// Whether there are UIDs between the cursor and UIDNEXT that the server has not listed.
    pub(super) fn is_below_uid_next(&self) -> bool {
        self.below_uid_next
    }

    /// Subtracts the delivered `mails`, sorted by UID, from the number of announced mails. `uid_next`: the highest UIDNEXT that
    /// the server has reported.
    pub(super) fn settle(&mut self, mails: &[FetchedMail], uid_next: Option<u32>) {
        let new = mails.iter().filter(|mail| !self.ahead.contains(&mail.uid)).count();
        self.announced = self.announced.saturating_sub(new);
        let last_uid = uid_next.map_or(0, |next| next.saturating_sub(1));
        if mails.last().is_some_and(|mail| mail.uid >= last_uid) {
            self.below_uid_next = false;
        }
    }

    /// Adds the UID of a mail that was sent to `ingest` while a mail with a lower UID was missing.
    pub(super) fn add_ahead(&mut self, uid: u32) {
        self.ahead.insert(uid);
    }

    /// Whether the mail `uid` was sent to `ingest` although the cursor is below this UID.
    pub(super) fn is_ahead(&self, uid: u32) -> bool {
        self.ahead.contains(&uid)
    }

    /// Removes a UID that the cursor has passed.
    pub(super) fn pass(&mut self, uid: u32) {
        self.ahead.remove(&uid);
    }

    /// The highest UID above the cursor whose mail was sent to `ingest`; 0 if there is none.
    pub(super) fn highest_ahead(&self) -> u32 {
        self.ahead.last().copied().unwrap_or(0)
    }
}
