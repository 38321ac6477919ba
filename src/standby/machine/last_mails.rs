//! The last `mails.id` of the holder's database, which the holder writes into the lease.

use std::time::Duration;

use crate::boot_clock::BootInstant;

/// How long a copy of the database may be behind the database. An id is written into the lease after this time. If the host fails
/// earlier, its copy may lack the mail, and with the id in the lease, every other host would refuse this copy. The mail itself is
/// not lost: the next host fetches it from the mail server again.
const COPY_DELAY: Duration = Duration::from_secs(2);

/// The last ids that are not in the lease yet.
#[derive(Debug, Default)]
pub(super) struct LastMails {
    latest: Option<i64>,
    /// An id, and the time at which it may be written into the lease.
    next: Option<(i64, BootInstant)>,
}

impl LastMails {
    /// Notes the id that is in the lease when the host becomes active.
    pub(super) fn written(&mut self, id: i64) {
        self.latest = Some(id);
    }

    /// Notes the last id in the database.
    pub(super) fn note(&mut self, now: BootInstant, id: i64) {
        let is_new = self.latest != Some(id);
        self.latest = Some(id);
        if is_new && self.next.is_none() {
            self.next = Some((id, now.plus(COPY_DELAY)));
        }
    }

    /// When the next id may be written into the lease.
    pub(super) fn next_at(&self) -> Option<BootInstant> {
        self.next.map(|(_, at)| at)
    }

    /// Removes and returns the id that may be written into the lease now. An id that was noted meanwhile is the next one.
    pub(super) fn take(&mut self, now: BootInstant) -> Option<i64> {
        let (id, _) = self.next.take_if(|(_, at)| *at <= now)?;
        self.next = self.latest.filter(|latest| *latest != id).map(|latest| (latest, now.plus(COPY_DELAY)));
        Some(id)
    }

    /// The last id in the database, for the release of the lease: the copy of a host that has stopped becomes complete.
    pub(super) fn latest(&self) -> Option<i64> {
        self.latest
    }
}
