//! The knowledge about the newest database: which host has it, and how certain that is. A copy that is older is refused.

use super::{Certainty, Entry, EntryContent, HolderStage, KnownData, LeaseMachine, Place};
use crate::boot_clock::BootInstant;
use crate::standby::lease_value::{DataOwner, LeaseStage, LeaseValue};

impl LeaseMachine {
    pub(super) fn is_me(&self, owner: &DataOwner) -> bool {
        owner.host == self.me.host && owner.home == self.me.home
    }

    /// Updates `known` (the last revision and the newest database) and `certainty` from `entry`, the key as it was read.
    pub(super) fn note_data(&mut self, entry: &Entry) {
        self.certainty = match &entry.content {
            EntryContent::Value(LeaseValue { data: Some(data), .. }) => {
                self.known = KnownData { revision: entry.revision, data: Some(data.clone()) };
                Certainty::Exact
            }
            EntryContent::Absent { last_revision } if *last_revision == Some(self.known.revision) => Certainty::Exact,
            EntryContent::Absent { .. } if self.has_watched() => Certainty::Watched,
            EntryContent::Value(_) | EntryContent::Absent { .. } | EntryContent::Deleted | EntryContent::Unreadable => {
                Certainty::Uncertain
            }
        };
    }

    /// Whether this host has watched an active host until the key was missing, without a break. A host that took over is not
    /// enough: it may have become active with its last write, and this host may have missed that write.
    fn has_watched(&self) -> bool {
        let Place::Standby(standby) = &self.place else { return false };
        let last = standby.seen.as_ref().map(|seen| &seen.entry.content);
        let was_active = matches!(last, Some(EntryContent::Value(value)) if value.stage == LeaseStage::Active);
        standby.live_seen > standby.blind_until && (was_active || self.certainty == Certainty::Watched)
    }

    /// The database was opened in `term`. This host becomes active when it has written that into the key. The call has no effect
    /// if this host no longer takes over in that term. `last_mail_id`: the last `mails.id` of the database.
    pub(in crate::standby) fn opened(&mut self, now: BootInstant, term: u64, last_mail_id: i64) {
        if let Place::Holder(holder) = &mut self.place
            && holder.stage == HolderStage::TakingOver
            && self.term == term
        {
            (holder.stage, holder.next_at) = (HolderStage::Opened { last_mail_id }, now);
        }
    }

    /// Notes the last `mails.id` of the database, if this host is active. This host writes the id into the key, so that the next
    /// host can recognise an older copy.
    pub(in crate::standby) fn note_last_mail(&mut self, now: BootInstant, last_mail_id: i64) {
        if let Place::Holder(holder) = &mut self.place
            && holder.stage == HolderStage::Active
        {
            holder.last_mails.note(now, last_mail_id);
        }
    }

    /// Makes a write of the key the next step if a newer `mails.id` may be written into the key.
    pub(super) fn renew_last_mail(&mut self, now: BootInstant) {
        if let Place::Holder(holder) = &mut self.place
            && holder.stage == HolderStage::Active
            && let Some(last_mail_id) = holder.last_mails.take(now)
        {
            holder.next_at = now;
            self.known.data = Some(self.owner(last_mail_id));
        }
    }

    /// This host as the owner of the newest database.
    pub(super) fn owner(&self, last_mail_id: i64) -> DataOwner {
        DataOwner { host: self.me.host.clone(), home: self.me.home.clone(), last_mail_id }
    }

    /// Forgets the known revision of the key, because that revision belongs to another bucket.
    pub(in crate::standby) fn forget_revision(&mut self) {
        self.known.revision = u64::MAX;
    }

    /// The last revision of the key and the newest database that this host knows. The driver writes both into the standby file,
    /// so that this host knows them after a restart.
    pub(in crate::standby) fn known(&self) -> &KnownData {
        &self.known
    }
}
