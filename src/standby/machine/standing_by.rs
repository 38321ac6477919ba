//! A host without the lease: what it remembers about the key, and when it may take the lease.

use super::{Entry, EntryContent, HolderStage, LeaseMachine, LeaseStep, Place, SeenEntry, StandbyHost};
use crate::boot_clock::BootInstant;
use crate::standby::lease_value::{LONGEST_LEASE, LeaseStage, LeaseValue};

impl LeaseMachine {
    pub(super) fn standby_step(&self, standby: &StandbyHost, now: BootInstant) -> LeaseStep {
        if standby.pause_until > now {
            return LeaseStep::Wait(standby.pause_until);
        }
        let Some(seen) = &standby.seen else { return LeaseStep::Read };
        let take_at = self.take_at(standby, seen);
        if standby.read_at <= now || take_at <= now && seen.is_announced {
            return LeaseStep::Read;
        }
        if take_at <= now {
            return LeaseStep::Write { expected: seen.entry.revision, value: self.value(&HolderStage::TakingOver) };
        }
        LeaseStep::Wait(take_at.min(standby.read_at))
    }

    /// When this host may take the lease, if it sees no further write of the key.
    fn take_at(&self, standby: &StandbyHost, seen: &SeenEntry) -> BootInstant {
        let lease = self.end_of_live(&seen.entry, seen.since);
        let at = match &seen.entry.content {
            EntryContent::Absent { .. } if standby.live_seen > standby.blind_until => standby.live_until,
            // Either no host ever had the lease, or this host knows the last write in the bucket, and that write names the
            // database of this host as the newest.
            EntryContent::Absent { last_revision } if self.is_last(*last_revision) => seen.since,
            // Another host may still have the lease. The key is also missing if the clock of the NATS server was set, or if an
            // operator deleted the key.
            EntryContent::Absent { .. } | EntryContent::Deleted => lease,
            EntryContent::Value(value) if !value.is_live() || value.process == self.me.process => seen.since,
            EntryContent::Value(value) if self.is_predecessor(value) => seen.since.plus(self.lease / 3),
            EntryContent::Value(_) | EntryContent::Unreadable => lease,
        };
        at.max(standby.not_before)
    }

    fn is_last(&self, last_revision: Option<u64>) -> bool {
        let known = self.known.data.as_ref();
        let is_ours = known.is_some_and(|owner| self.is_me(owner));
        last_revision.is_some_and(|last| last == 0 && known.is_none() || is_ours && last == self.known.revision)
    }

    /// When the lease in `entry` ends at the latest, if this host saw the holder's last write at `since`.
    fn end_of_live(&self, entry: &Entry, since: BootInstant) -> BootInstant {
        let theirs = match &entry.content {
            // The holder may still count with an earlier and longer TTL of the bucket.
            EntryContent::Value(value) => value.lease().min(LONGEST_LEASE),
            _ => self.lease,
        };
        // The margin covers clocks of two hosts that run at slightly different rates.
        since.plus(theirs.max(self.lease)).plus(self.lease / 40)
    }

    /// Whether an earlier process of this host wrote `value`. That process no longer runs, because this process has the lock of
    /// the standby file.
    fn is_predecessor(&self, value: &LeaseValue) -> bool {
        value.host == self.me.host && value.home == self.me.home && value.process != self.me.process
    }

    pub(super) fn standby_saw(&mut self, now: BootInstant, entry: Entry) {
        let live_until = self.live_until(&entry, now);
        let poll = now.plus(self.lease);
        let is_active = self.is_active_elsewhere(&entry.content);
        let is_taken = matches!(&entry.content, EntryContent::Value(value) if value.process != self.me.process);
        let Place::Standby(standby) = &mut self.place else { return };
        standby.awaited.take_if(|awaited| now >= awaited.until || awaited.is_in(&entry.content));
        // The announced write may not be stored yet. The holder writes its release only once, so this host reads again soon.
        standby.read_at = if standby.awaited.is_some() { now.plus(self.lease / 400) } else { poll };
        if is_active || is_taken && standby.is_for_others {
            // The pause in which this host left the lease to others is over. While another host has the lease, the lease itself
            // keeps this host from taking it. If that host fails to become active, no host delivers, and this host is the best.
            standby.not_before = BootInstant::default();
        }
        match &mut standby.seen {
            // The content is the same, so the time at which this host first saw the content stays. A later write has another
            // content, because each value contains the number of its write.
            Some(seen) if seen.entry.content == entry.content => (seen.entry, seen.is_announced) = (entry, false),
            _ => {
                if let Some(live_until) = live_until {
                    (standby.live_seen, standby.live_until) = (now, live_until);
                }
                standby.seen = Some(SeenEntry { entry, since: now, is_announced: false });
            }
        }
    }

    pub(super) fn is_active_elsewhere(&self, content: &EntryContent) -> bool {
        matches!(content, EntryContent::Value(value) if value.stage == LeaseStage::Active && value.process != self.me.process)
    }

    /// When the lease in the entry ends at the latest, if the entry was written before `since`; zero if no other host has the
    /// lease. `None`: the entry does not show whether a host has the lease.
    pub(super) fn live_until(&self, entry: &Entry, since: BootInstant) -> Option<BootInstant> {
        match &entry.content {
            EntryContent::Value(value) if !value.is_live() || value.process == self.me.process => {
                Some(BootInstant::default())
            }
            EntryContent::Value(value) if self.is_predecessor(value) => Some(since.plus(self.lease / 3)),
            EntryContent::Value(_) | EntryContent::Unreadable => Some(self.end_of_live(entry, since)),
            EntryContent::Absent { .. } | EntryContent::Deleted => None,
        }
    }
}
