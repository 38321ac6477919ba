//! Decides when this host reads and writes the lease, and whether this host has the lease. Pure: the time and the answers of the
//! NATS server are arguments.
//!
//! The rules, for a lease of length L:
//!
//! - For the holder, L begins when the holder **sends** a write that succeeds. After two thirds of L without another such write,
//!   the holder begins no attempt. After L without another such write, the holder has lost the lease.
//! - For another host, L begins when that host **sees** a write of the holder. The other host takes the lease after L and a
//!   margin without a new write. At that time the holder has already lost the lease by its own clock, so the clock of the NATS
//!   server does not matter.
//! - Each write names the revision that it replaces, so only one of two hosts that write at the same time succeeds.
//! - A missing key does not prove that the lease has ended, because the clock of the NATS server may have been set. A host that
//!   has not watched the holder waits for L and the margin after the host first sees that the key is missing. If the key
//!   is missing, the host takes the lease without this wait in two cases: no host ever had the lease; or the host knows the last
//!   write of the key, and that write names the database of this host as the newest.
//! - A host becomes active, and delivers, when it has written into the key that its database is the newest. If it delivered
//!   before, and failed before this write, another host could count an older database as the newest.
//! - A host that cannot know which database is the newest writes no such database into the key before the host is active. So
//!   its old knowledge does not replace the better knowledge of another host.
//! - A released lease can be taken at once.
//! - If the holder's daemon is killed, the next daemon on the same host takes the lease again after a third of L without a new
//!   write. The lock of the standby file proves that no other process of this host has the lease.

mod last_mails;
mod lease_view;
mod newest_database;
mod standing_by;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use last_mails::LastMails;
use state::{Awaited, Certainty, Holder, HolderStage, Place, SeenEntry, StandbyHost};
pub(super) use state::{Entry, EntryContent, LeaseStep, WriteResult};
pub use state::{KnownData, Member};

use super::hashes::ConfigurationHashes;
use super::lease_value::{LeaseStage, LeaseValue};
use super::view::Takeover;
use crate::boot_clock::BootInstant;

/// Decides when this host reads and writes the key of the lease, and whether this host has the lease. The [module](self) has the
/// rules.
#[derive(Debug)]
pub(super) struct LeaseMachine {
    me: Member,
    lease: Duration,
    place: Place,
    known: KnownData,
    certainty: Certainty,
    /// Whether this process has read the key.
    has_read: bool,
    /// The other process that was active at the first read of the key, if there was one.
    active_at_start: Option<String>,
    another_became_active: bool,
    takeovers: u64,
    /// The number of times that this process has got the lease.
    term: u64,
    /// The number of writes that this process has begun. Each lease value contains the number of its write.
    count: u64,
    /// The latest time at which the next call of `next_step` is expected. If that call comes later, the process has not run for
    /// some time.
    awaited_by: BootInstant,
}

/// Whether `value` only renews the lease in `content`. A renewal has the same process and the same stage as `content`, and does
/// not release the lease. Neither `content` nor `value` contains a request to release the lease.
fn is_renewal(content: &EntryContent, value: &LeaseValue) -> bool {
    let EntryContent::Value(seen) = content else { return false };
    seen.process == value.process && seen.stage == value.stage && value.is_live() && !value.release && !seen.release
}

impl LeaseMachine {
    /// Creates the machine of a standby that has not read the key yet. `known`: the [`KnownData`] from the standby file.
    pub(super) fn new(me: Member, known: KnownData) -> Self {
        let place = Place::Standby(StandbyHost::default());
        LeaseMachine {
            me,
            lease: Duration::ZERO,
            place,
            known,
            certainty: Certainty::Uncertain,
            has_read: false,
            active_at_start: None,
            another_became_active: false,
            takeovers: 0,
            term: 0,
            count: 0,
            awaited_by: BootInstant::default(),
        }
    }

    /// Sets the length of the lease: the TTL of the bucket. The first call must precede the first [`LeaseMachine::next_step`].
    pub(super) fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    /// The length of the lease: the TTL of the bucket; zero before the first connection.
    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// Replaces the hashes of this host's configuration, after a reload.
    pub(super) fn set_configuration(&mut self, configuration: ConfigurationHashes) {
        self.me.configuration = configuration;
    }

    /// Processes the opening of a connection. The next step reads the key, because the key may have changed while there was no
    /// connection.
    pub(super) fn connected(&mut self, now: BootInstant) {
        self.awaited_by = now;
        match &mut self.place {
            Place::Standby(standby) => {
                (standby.read_at, standby.pause_until, standby.blind_until) = (now, now, now);
            }
            Place::Holder(holder) => (holder.must_read, holder.next_at) = (true, now),
        }
    }

    /// Returns the next step for the driver. If the lease of this host has ended, this host first becomes a standby.
    pub(super) fn next_step(&mut self, now: BootInstant) -> LeaseStep {
        self.tick(now);
        self.renew_last_mail(now);
        let slack = self.lease / 4;
        if let Place::Standby(standby) = &mut self.place
            && now > self.awaited_by.plus(slack)
        {
            standby.blind_until = now;
        }
        let step = match &self.place {
            Place::Standby(standby) => self.standby_step(standby, now),
            Place::Holder(holder) if holder.next_at > now => {
                let until = holder.next_at.min(self.ends(holder));
                LeaseStep::Wait(holder.last_mails.next_at().map_or(until, |at| at.min(until)))
            }
            Place::Holder(holder) if holder.must_read => LeaseStep::Read,
            Place::Holder(holder) => LeaseStep::Write { expected: holder.revision, value: self.value(&holder.stage) },
        };
        self.count += u64::from(matches!(step, LeaseStep::Write { .. }));
        self.awaited_by = if let LeaseStep::Wait(until) = step { until } else { now };
        step
    }

    fn value(&self, stage: &HolderStage) -> LeaseValue {
        let me = &self.me;
        LeaseValue {
            host: me.host.clone(),
            process: me.process.clone(),
            home: me.home.clone(),
            count: self.count + 1,
            stage: match stage {
                HolderStage::TakingOver => LeaseStage::TakingOver,
                HolderStage::Opened { .. } | HolderStage::Active => LeaseStage::Active,
                HolderStage::Releasing { .. } => LeaseStage::Released,
            },
            release: false,
            lease_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            version: me.version.clone(),
            schema: me.schema,
            configuration: me.configuration.clone(),
            data: match stage {
                HolderStage::Opened { last_mail_id } => Some(self.owner(*last_mail_id)),
                _ => self.known.data.clone().filter(|_| self.certainty != Certainty::Uncertain),
            },
        }
    }

    /// The end of the lease, as the holder computes it.
    fn ends(&self, holder: &Holder) -> BootInstant {
        holder.sent.plus(holder.lease)
    }

    /// If this host's lease has ended, this host becomes a standby. The driver calls this function also while no NATS server can
    /// be reached.
    pub(super) fn tick(&mut self, now: BootInstant) {
        if let Place::Holder(holder) = &self.place
            && self.ends(holder) <= now
        {
            self.stand_by(now);
        }
    }

    /// Makes this host a standby, because the lease was lost or released.
    fn stand_by(&mut self, now: BootInstant) {
        let mut standby = StandbyHost { read_at: now, ..StandbyHost::default() };
        if let Place::Holder(Holder { stage: HolderStage::Releasing { pause, failure }, .. }) = &self.place {
            (standby.not_before, standby.failure) = (now.plus(*pause), failure.clone());
            // With the longest pause, the process ends, and must not take the lease again.
            standby.is_for_others = failure.is_none() && *pause < Duration::MAX;
        }
        self.place = Place::Standby(standby);
    }

    /// Processes `entry`, the key as it was read from the bucket.
    pub(super) fn on_read(&mut self, now: BootInstant, entry: Entry) {
        self.note_active(&entry.content);
        match &mut self.place {
            Place::Standby(_) => {
                self.note_data(&entry);
                self.standby_saw(now, entry);
            }
            Place::Holder(holder) => {
                let mine = match &entry.content {
                    EntryContent::Value(value) if value.process == self.me.process => Some(value.release),
                    // The NATS server or an operator removed the key. This host keeps the lease, because no other host may take
                    // the lease yet.
                    EntryContent::Absent { .. } => Some(false),
                    EntryContent::Deleted => Some(true),
                    EntryContent::Value(_) | EntryContent::Unreadable => None,
                };
                match mine {
                    // The value can be older than what the holder knows: the database may have been opened, or may have got mails,
                    // after the write of the value. So the holder keeps its own knowledge of the newest database.
                    Some(asked) => {
                        (holder.revision, holder.must_read, holder.next_at) = (entry.revision, false, now);
                        holder.is_asked |= asked;
                        holder.is_challenged = false;
                    }
                    None => {
                        self.note_data(&entry);
                        self.stand_by(now);
                        self.standby_saw(now, entry);
                    }
                }
            }
        }
    }

    /// Notes whether another process has become active since the first read of the key.
    fn note_active(&mut self, content: &EntryContent) {
        let active = match content {
            EntryContent::Value(value) if self.is_active_elsewhere(content) => Some(value.process.clone()),
            _ => None,
        };
        self.another_became_active |= self.has_read && active.is_some() && active != self.active_at_start;
        if !self.has_read {
            (self.has_read, self.active_at_start) = (true, active);
        }
    }

    /// Postpones the next request, because the key could not be read.
    pub(super) fn on_read_failure(&mut self, now: BootInstant) {
        self.pause_until(now.plus(self.lease / 40));
    }

    fn pause_until(&mut self, again: BootInstant) {
        match &mut self.place {
            Place::Standby(standby) => standby.pause_until = again,
            Place::Holder(holder) => holder.next_at = again,
        }
    }

    /// Processes the result of a write of `value` that was sent at `sent`.
    pub(super) fn on_write(&mut self, now: BootInstant, sent: BootInstant, value: &LeaseValue, result: WriteResult) {
        match result {
            WriteResult::Stored(revision) => {
                // If the answer comes after the end of the lease, the loops of this host have already stopped. Then the write
                // begins a new term.
                self.tick(now);
                self.stored(now, sent, value, revision);
            }
            WriteResult::Conflict => self.reread(now),
            WriteResult::Unknown => {
                self.reread(now);
                self.pause_until(now.plus(self.lease / 40));
            }
        }
    }

    /// Makes a read of the key the next step, because the key's revision is uncertain.
    fn reread(&mut self, now: BootInstant) {
        match &mut self.place {
            Place::Standby(standby) => standby.read_at = now,
            Place::Holder(holder) => (holder.must_read, holder.next_at) = (true, now),
        }
        // Without this pause, a conflict that occurs again and again would cause a busy loop of reads and writes.
        self.pause_until(now.plus(self.lease / 400));
    }

    fn stored(&mut self, now: BootInstant, sent: BootInstant, value: &LeaseValue, revision: u64) {
        let before = self.known.clone();
        let is_newest_here =
            self.certainty == Certainty::Exact && before.data.as_ref().is_some_and(|owner| self.is_me(owner));
        if value.data.is_some() {
            (self.known.revision, self.certainty) = (revision, Certainty::Exact);
        }
        let next_at = sent.plus(self.lease / 4);
        match &mut self.place {
            // The lease ended before its release was stored.
            Place::Standby(_) if value.stage == LeaseStage::Released => {}
            Place::Standby(standby) => {
                let never_held = matches!(
                    standby.seen.as_ref().map(|seen| &seen.entry.content),
                    Some(EntryContent::Absent { last_revision: Some(0) })
                );
                let takeover =
                    Takeover { is_newest_here, never_held: never_held && before.data.is_none(), data: before.data };
                let stage = HolderStage::TakingOver;
                let holder = Holder {
                    revision,
                    sent,
                    lease: value.lease(),
                    stage,
                    next_at,
                    must_read: false,
                    is_asked: false,
                    is_challenged: false,
                    takeover,
                    last_mails: LastMails::default(),
                };
                self.place = Place::Holder(holder);
                self.term += 1;
                self.tick(now);
            }
            Place::Holder(holder) => {
                (holder.revision, holder.sent, holder.next_at) = (revision, sent, next_at);
                holder.lease = value.lease();
                holder.is_challenged = false;
                if value.stage == LeaseStage::Active && matches!(holder.stage, HolderStage::Opened { .. }) {
                    holder.stage = HolderStage::Active;
                    if let Some(data) = &value.data {
                        holder.last_mails.written(data.last_mail_id);
                    }
                    self.known.data.clone_from(&value.data);
                    self.takeovers += 1;
                }
                if value.stage == LeaseStage::Released {
                    self.stand_by(now);
                }
            }
        }
    }

    /// Processes the announcement of a write of the key. This process or another program sent the write, and the NATS server may
    /// have refused the write. `value`: the value in the announcement, if that value can be parsed.
    pub(super) fn on_announcement(&mut self, now: BootInstant, value: Option<LeaseValue>) {
        match &mut self.place {
            Place::Standby(standby) => match (&mut standby.seen, value) {
                (Some(seen), Some(value)) if is_renewal(&seen.entry.content, &value) => {
                    if value.data.is_some() {
                        self.known.data.clone_from(&value.data);
                    }
                    seen.entry.content = EntryContent::Value(value);
                    (seen.since, seen.is_announced) = (now, true);
                    (standby.read_at, standby.awaited) = (now.plus(self.lease), None);
                    let entry = seen.entry.clone();
                    let live_until = self.live_until(&entry, now);
                    if let (Place::Standby(standby), Some(until)) = (&mut self.place, live_until) {
                        (standby.live_seen, standby.live_until) = (now, until);
                    }
                }
                (_, value) => {
                    standby.read_at = now;
                    standby.awaited = Some(Awaited { value, until: now.plus(self.lease / 10) });
                }
            },
            Place::Holder(holder) => {
                let writer = value.as_ref().map(|value| value.process == self.me.process);
                holder.is_challenged |= writer == Some(false);
                if writer != Some(true) || value.is_some_and(|value| value.release) {
                    (holder.must_read, holder.next_at) = (true, now);
                }
            }
        }
    }

    /// Makes the release of the lease the next write, because this host has stopped its work. This host then leaves the lease to
    /// others until `pause` is over, or until another host becomes active. `failure`: why this host could not take over. Without a
    /// failure, the pause also ends when another host has taken the lease. If that host cannot become active, it releases the
    /// lease, and this host takes over at once.
    pub(super) fn release(&mut self, now: BootInstant, pause: Duration, failure: Option<String>) {
        let Place::Holder(holder) = &mut self.place else { return };
        let last_mail_id = holder.last_mails.latest();
        (holder.stage, holder.next_at) = (HolderStage::Releasing { pause, failure }, now);
        if let Some(last_mail_id) = last_mail_id {
            self.known.data = Some(self.owner(last_mail_id));
        }
    }

    /// Whether this host has the lease.
    pub(super) fn is_holder(&self) -> bool {
        matches!(self.place, Place::Holder(_))
    }

    /// The end of this host's lease; `None` if this host does not have the lease.
    pub(super) fn ends_at(&self) -> Option<BootInstant> {
        match &self.place {
            Place::Holder(holder) => Some(self.ends(holder)),
            Place::Standby(_) => None,
        }
    }

    /// Whether this process has read the key.
    pub(super) fn has_read(&self) -> bool {
        self.has_read
    }

    /// The time until which this host may begin attempts; zero if this host must not begin any.
    pub(super) fn sends_until(&self) -> BootInstant {
        match &self.place {
            Place::Holder(holder)
                if holder.stage == HolderStage::Active && !holder.is_asked && !holder.is_challenged =>
            {
                holder.sent.plus(holder.lease * 2 / 3)
            }
            _ => BootInstant::default(),
        }
    }
}
