//! Mails that a server has pushed or announced, and that a sync has not confirmed yet.

use std::collections::BTreeSet;

use super::fetch::FetchedMail;

/// After this number of mails, or of bytes, no more mails from unsolicited FETCH responses are kept. A sync fetches the other
/// mails.
const MAX_PUSHED: usize = 256;
const MAX_PUSHED_BYTES: usize = 8 << 20;

/// Mails that the server sent without a request.
#[derive(Debug, Default)]
pub(super) struct PushedMails(Vec<FetchedMail>);

impl PushedMails {
    /// Keeps a mail if it has content and the limits are not reached. A change of flags has no content.
    pub(super) fn keep(&mut self, mail: FetchedMail) {
        let bytes: usize = self.0.iter().map(FetchedMail::bytes).sum();
        if !mail.is_listing() && bytes < MAX_PUSHED_BYTES && self.0.len() < MAX_PUSHED {
            self.0.push(mail);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the mails and forgets them.
    pub(super) fn take_all(&mut self) -> Vec<FetchedMail> {
        std::mem::take(&mut self.0)
    }
}

/// Mails that the server has announced and that have not arrived, and mails with higher UIDs that have arrived already.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// How many announced mails have not arrived.
    announced: usize,
    /// UIDs above the cursor whose mails are handed over. A mail with a lower UID is missing, so the cursor has not passed them.
    ahead: BTreeSet<u32>,
    /// Between the cursor and UIDNEXT there are UIDs that the server has not listed. A mail may have one of them.
    below_uid_next: bool,
}

impl Outstanding {
    /// The state after a sync. Mails can still be missing only if there are UIDs between the cursor and UIDNEXT.
    pub(super) fn after_sync(below_uid_next: bool) -> Self {
        Outstanding { below_uid_next, ..Outstanding::default() }
    }

    /// The server has announced this number of additional mails.
    pub(super) fn announce(&mut self, count: usize) {
        self.announced += count;
    }

    /// How many announced mails have not arrived.
    pub(super) fn announced(&self) -> usize {
        self.announced
    }

    /// Returns how many announced mails have not arrived, and forgets the number.
    pub(super) fn take_announced(&mut self) -> usize {
        std::mem::take(&mut self.announced)
    }

    /// Whether a mail may be missing.
    pub(super) fn is_incomplete(&self) -> bool {
        self.announced > 0 || self.below_uid_next
    }

    /// Whether there are UIDs between the cursor and UIDNEXT that the server has not listed.
    pub(super) fn is_below_uid_next(&self) -> bool {
        self.below_uid_next
    }

    /// Subtracts the mails that have arrived from the number of announced mails. `mails` are sorted by UID; `uid_next` is the
    /// highest UIDNEXT known.
    pub(super) fn settle(&mut self, mails: &[FetchedMail], uid_next: Option<u32>) {
        let new = mails.iter().filter(|mail| !self.ahead.contains(&mail.uid)).count();
        self.announced = self.announced.saturating_sub(new);
        let last_uid = uid_next.map_or(0, |next| next.saturating_sub(1));
        if mails.last().is_some_and(|mail| mail.uid >= last_uid) {
            self.below_uid_next = false;
        }
    }

    /// Records that the mail was handed over while a mail with a lower UID was missing.
    pub(super) fn add_ahead(&mut self, uid: u32) {
        self.ahead.insert(uid);
    }

    /// Whether the mail was handed over although the cursor is below it.
    pub(super) fn is_ahead(&self, uid: u32) -> bool {
        self.ahead.contains(&uid)
    }

    /// The cursor has passed this UID.
    pub(super) fn pass(&mut self, uid: u32) {
        self.ahead.remove(&uid);
    }

    /// The highest UID that was handed over above the cursor.
    pub(super) fn highest_ahead(&self) -> u32 {
        self.ahead.last().copied().unwrap_or(0)
    }
}
