//! Decides when to read and write the lease, and whether this host has it. Pure: the time and the answers are arguments.
//!
//! The rules, for a lease of length L:
//!
//! - The holder counts from when it **sent** its last successful write. After two thirds of L it begins no attempt. After L it
//!   has lost the lease.
//! - Another host counts from when it **saw** a write. It takes the lease after L and a margin without a new one. So its end is
//!   later than the holder's, whatever clock the engine has.
//! - Each write names the revision that it replaces, so of two hosts that write at the same time only one succeeds.
//! - A key that is missing proves little: the engine's clock may have been set. A host that has not watched the holder until then
//!   waits for L, too. It takes the lease at once if no host had it before, or if nothing was written after this host's last write.
//! - A released lease can be taken at once.
//! - A daemon that was killed takes its lease again after a third of L without a new write. Its state folder proves that no other
//!   process of this host has the lease.

use std::time::Duration;

use super::lease_value::{ConfigurationHashes, DataOwner, LeaseStage, LeaseValue};
use super::view::{LeaseState, LeaseView, Takeover};
use crate::boot_clock::BootInstant;

#[cfg(test)]
mod tests;

/// The constants of a process.
#[derive(Debug, Clone)]
pub struct Member {
    /// This host.
    pub host: String,
    /// Random; it identifies this process.
    pub process: String,
    /// Identifies the state folder, which this process has locked.
    pub home: String,
    /// The version of this program.
    pub version: String,
    /// The schema that this program knows.
    pub schema: i64,
    /// Hashes of the configuration.
    pub configuration: ConfigurationHashes,
}

/// The key in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The revision that a write has to name: 0 if the key does not exist.
    pub(super) revision: u64,
    /// The content.
    pub(super) content: EntryContent,
}

/// The content of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few of them exist at a time")]
pub(super) enum EntryContent {
    /// The key does not exist, or has expired. With the last revision that the bucket gave to any key.
    Absent {
        /// The bucket's last revision; `None` if it is not known.
        last_revision: Option<u64>,
    },
    /// An operator deleted the key.
    Deleted,
    /// A value of this program.
    Value(LeaseValue),
    /// Anything else. It counts as an active holder.
    Unreadable,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few of them exist at a time")]
pub(super) enum Step {
    /// Read the key.
    Read,
    /// Write the key, if its revision is still `expected`.
    Write {
        /// The revision that is replaced; 0: the key does not exist.
        expected: u64,
        /// The new value.
        value: LeaseValue,
    },
    /// Nothing until then, or until something happens.
    Wait(BootInstant),
}

/// The result of a [`Step::Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteResult {
    /// It is stored, under this revision.
    Stored(u64),
    /// The key has another revision.
    Conflict,
    /// There is no valid answer. The write may be stored, or may still be.
    Unknown,
}

/// The last database and lease that this host knows. It survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KnownData {
    /// The revision of the value in which it was.
    pub revision: u64,
    /// The host with the newest database.
    pub data: Option<DataOwner>,
}

/// Decides about the lease. See the [module](self).
#[derive(Debug)]
pub(super) struct LeaseMachine {
    me: Member,
    lease: Duration,
    place: Place,
    known: KnownData,
    /// Whether `known` is the last value that any host wrote.
    is_exact: bool,
    takeovers: u64,
    /// The number of the last write.
    count: u64,
    /// When the next call is expected at the latest. A later one means that the process did not run meanwhile.
    awaited_by: BootInstant,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "few of them exist at a time")]
enum Place {
    Standby(Standby),
    Holder(Holder),
}

#[derive(Debug, Default)]
struct Standby {
    seen: Option<Seen>,
    /// When the last write of a live holder was seen, and when its lease ends at the latest.
    live_seen: BootInstant,
    live_until: BootInstant,
    /// Later writes may not have been announced: there was no connection until then, or the process did not run.
    blind_until: BootInstant,
    /// Why this host did not take over, and until when it does not try again.
    failure: Option<String>,
    not_before: BootInstant,
    /// When the key is read again without a reason.
    read_at: BootInstant,
    /// No request before this time, after one has failed.
    pause_until: BootInstant,
}

/// The key when it was last read.
#[derive(Debug)]
struct Seen {
    entry: Entry,
    /// When this write was first seen.
    since: BootInstant,
    /// The content is one that was announced. Its revision is not known.
    is_announced: bool,
}

#[derive(Debug)]
struct Holder {
    revision: u64,
    /// When the last successful write was sent.
    sent: BootInstant,
    stage: HolderStage,
    /// When the next request is due.
    next_at: BootInstant,
    /// The revision is uncertain: the key is read before the next write.
    must_read: bool,
    /// `standby release` was called.
    is_asked: bool,
    /// Another process wrote the key, perhaps without success. Nothing is sent until the key was read.
    is_challenged: bool,
    /// The knowledge about the database when the lease was taken.
    takeover: Takeover,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HolderStage {
    TakingOver,
    Active,
    /// The loops have ended. The lease is not taken again before the pause is over.
    Releasing {
        pause: Duration,
        failure: Option<String>,
    },
}

/// Whether a value is a later write of the process that wrote the content, with the same meaning.
fn is_renewal(content: &EntryContent, value: &LeaseValue) -> bool {
    let EntryContent::Value(seen) = content else { return false };
    seen.process == value.process && seen.stage == value.stage && value.is_live() && !value.release && !seen.release
}

impl LeaseMachine {
    /// A machine that has read nothing yet. `known`: what this host knew before its restart.
    pub(super) fn new(me: Member, known: KnownData) -> Self {
        let place = Place::Standby(Standby::default());
        LeaseMachine {
            me,
            lease: Duration::ZERO,
            place,
            known,
            is_exact: false,
            takeovers: 0,
            count: 0,
            awaited_by: BootInstant::default(),
        }
    }

    /// Sets the length of the lease: the TTL of the bucket. The first call must precede the first [`LeaseMachine::next_step`].
    pub(super) fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    /// Replaces the hashes of the configuration, after a reload.
    pub(super) fn set_configuration(&mut self, configuration: ConfigurationHashes) {
        self.me.configuration = configuration;
    }

    /// A connection was opened. Something may have changed while there was none.
    pub(super) fn connected(&mut self, now: BootInstant) {
        self.awaited_by = now;
        match &mut self.place {
            Place::Standby(standby) => {
                (standby.read_at, standby.pause_until, standby.blind_until) = (now, now, now);
            }
            Place::Holder(holder) => (holder.must_read, holder.next_at) = (true, now),
        }
    }

    /// The next step. It also notices the end of the lease.
    pub(super) fn next_step(&mut self, now: BootInstant) -> Step {
        self.tick(now);
        let slack = self.lease / 4;
        if let Place::Standby(standby) = &mut self.place
            && now > self.awaited_by.plus(slack)
        {
            standby.blind_until = now;
        }
        let step = match &self.place {
            Place::Standby(standby) => self.standby_step(standby, now),
            Place::Holder(holder) if holder.next_at > now => Step::Wait(holder.next_at.min(self.ends(holder))),
            Place::Holder(holder) if holder.must_read => Step::Read,
            Place::Holder(holder) => Step::Write { expected: holder.revision, value: self.value(&holder.stage) },
        };
        self.count += u64::from(matches!(step, Step::Write { .. }));
        self.awaited_by = if let Step::Wait(until) = step { until } else { now };
        step
    }

    fn standby_step(&self, standby: &Standby, now: BootInstant) -> Step {
        if standby.pause_until > now {
            return Step::Wait(standby.pause_until);
        }
        let Some(seen) = &standby.seen else { return Step::Read };
        let take_at = self.take_at(standby, seen);
        if standby.read_at <= now || take_at <= now && seen.is_announced {
            return Step::Read;
        }
        if take_at <= now {
            return Step::Write { expected: seen.entry.revision, value: self.value(&HolderStage::TakingOver) };
        }
        Step::Wait(take_at.min(standby.read_at))
    }

    /// When this host may take the lease, if nothing new is seen.
    fn take_at(&self, standby: &Standby, seen: &Seen) -> BootInstant {
        let lease = self.end_of_live(&seen.entry, seen.since);
        let at = match &seen.entry.content {
            EntryContent::Absent { .. } if standby.live_seen > standby.blind_until => standby.live_until,
            // The bucket was never used, or nothing was written after the last value of this host.
            EntryContent::Absent { last_revision } if self.is_last(*last_revision) => seen.since,
            // A holder may still count on its lease: it was not seen, and the engine's clock may have been set.
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

    fn is_me(&self, owner: &DataOwner) -> bool {
        owner.host == self.me.host && owner.home == self.me.home
    }

    /// When the lease of a live holder ends at the latest, if its last write was seen at `since`.
    fn end_of_live(&self, entry: &Entry, since: BootInstant) -> BootInstant {
        let theirs = match &entry.content {
            EntryContent::Value(value) => Duration::from_millis(value.lease_ms).min(self.lease * 4),
            _ => self.lease,
        };
        // The margin covers clocks that run at slightly different rates.
        since.plus(theirs.max(self.lease)).plus(self.lease / 40)
    }

    /// Whether a process of this host wrote the value that does not run any longer: this process has locked its state folder.
    fn is_predecessor(&self, value: &LeaseValue) -> bool {
        value.host == self.me.host && value.home == self.me.home && value.process != self.me.process
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
                HolderStage::Active => LeaseStage::Active,
                HolderStage::Releasing { .. } => LeaseStage::Released,
            },
            release: false,
            lease_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            version: me.version.clone(),
            schema: me.schema,
            configuration: me.configuration.clone(),
            data: self.known.data.clone(),
        }
    }

    /// The end of the lease, as its holder counts it.
    fn ends(&self, holder: &Holder) -> BootInstant {
        holder.sent.plus(self.lease)
    }

    /// The holder becomes a standby at the end of its lease, also while no server can be reached.
    pub(super) fn tick(&mut self, now: BootInstant) {
        if let Place::Holder(holder) = &self.place
            && self.ends(holder) <= now
        {
            self.stand_by(now);
        }
    }

    /// The lease is lost or given up.
    fn stand_by(&mut self, now: BootInstant) {
        let mut standby = Standby { read_at: now, ..Standby::default() };
        if let Place::Holder(Holder { stage: HolderStage::Releasing { pause, failure }, .. }) = &self.place {
            (standby.not_before, standby.failure) = (now.plus(*pause), failure.clone());
        }
        self.place = Place::Standby(standby);
    }

    /// The key was read.
    pub(super) fn on_read(&mut self, now: BootInstant, entry: Entry) {
        self.note_data(&entry);
        match &mut self.place {
            Place::Standby(_) => self.standby_saw(now, entry),
            Place::Holder(holder) => {
                let mine = match &entry.content {
                    EntryContent::Value(value) if value.process == self.me.process => Some(value.release),
                    // The engine or an operator removed the key. The lease lasts: no other host may have it yet.
                    EntryContent::Absent { .. } => Some(false),
                    EntryContent::Deleted => Some(true),
                    EntryContent::Value(_) | EntryContent::Unreadable => None,
                };
                match mine {
                    Some(asked) => {
                        (holder.revision, holder.must_read, holder.next_at) = (entry.revision, false, now);
                        holder.is_asked |= asked;
                        holder.is_challenged = false;
                    }
                    None => {
                        self.stand_by(now);
                        self.standby_saw(now, entry);
                    }
                }
            }
        }
    }

    /// Remembers which database is the newest.
    fn note_data(&mut self, entry: &Entry) {
        match &entry.content {
            EntryContent::Value(value) => {
                self.known = KnownData { revision: entry.revision, data: value.data.clone() };
                self.is_exact = true;
            }
            EntryContent::Absent { last_revision } => {
                self.is_exact = *last_revision == Some(self.known.revision);
            }
            EntryContent::Deleted | EntryContent::Unreadable => self.is_exact = false,
        }
    }

    fn standby_saw(&mut self, now: BootInstant, entry: Entry) {
        let live_until = self.live_until(&entry, now);
        let poll = now.plus(self.lease);
        let is_active = self.is_active_elsewhere(&entry.content);
        let Place::Standby(standby) = &mut self.place else { return };
        standby.read_at = poll;
        if is_active {
            // This host has left the lease to others for long enough.
            standby.not_before = BootInstant::default();
        }
        match &mut standby.seen {
            // The same write: its time stays. A value has the number of its write.
            Some(seen) if seen.entry.content == entry.content => (seen.entry, seen.is_announced) = (entry, false),
            _ => {
                if let Some(live_until) = live_until {
                    (standby.live_seen, standby.live_until) = (now, live_until);
                }
                standby.seen = Some(Seen { entry, since: now, is_announced: false });
            }
        }
    }

    fn is_active_elsewhere(&self, content: &EntryContent) -> bool {
        matches!(content, EntryContent::Value(value) if value.stage == LeaseStage::Active && value.process != self.me.process)
    }

    /// When the lease of a live holder ends at the latest, if the entry was written before `since`. `None`: the entry does not
    /// say whether there is a live holder.
    fn live_until(&self, entry: &Entry, since: BootInstant) -> Option<BootInstant> {
        match &entry.content {
            EntryContent::Value(value) if !value.is_live() || value.process == self.me.process => {
                Some(BootInstant::default())
            }
            EntryContent::Value(value) if self.is_predecessor(value) => Some(since.plus(self.lease / 3)),
            EntryContent::Value(_) | EntryContent::Unreadable => Some(self.end_of_live(entry, since)),
            EntryContent::Absent { .. } | EntryContent::Deleted => None,
        }
    }

    /// The key could not be read. The next request follows after a pause.
    pub(super) fn on_read_failure(&mut self, now: BootInstant) {
        self.pause(now);
    }

    fn pause(&mut self, now: BootInstant) {
        let again = now.plus(self.lease / 40);
        match &mut self.place {
            Place::Standby(standby) => standby.pause_until = again,
            Place::Holder(holder) => holder.next_at = again,
        }
    }

    /// The result of a write that was sent at `sent`.
    pub(super) fn on_write(&mut self, now: BootInstant, sent: BootInstant, value: &LeaseValue, result: WriteResult) {
        match result {
            WriteResult::Stored(revision) => self.stored(now, sent, value, revision),
            WriteResult::Conflict => self.reread(now),
            WriteResult::Unknown => {
                self.reread(now);
                self.pause(now);
            }
        }
    }

    /// The revision is uncertain.
    fn reread(&mut self, now: BootInstant) {
        match &mut self.place {
            Place::Standby(standby) => standby.read_at = now,
            Place::Holder(holder) => (holder.must_read, holder.next_at) = (true, now),
        }
        // A conflict without a visible cause must not become a busy loop.
        self.pause_shortly(now);
    }

    fn pause_shortly(&mut self, now: BootInstant) {
        let again = now.plus(self.lease / 400);
        match &mut self.place {
            Place::Standby(standby) => standby.pause_until = again,
            Place::Holder(holder) => holder.next_at = again,
        }
    }

    fn stored(&mut self, now: BootInstant, sent: BootInstant, value: &LeaseValue, revision: u64) {
        let was_exact = std::mem::replace(&mut self.is_exact, true);
        let before = self.known.clone();
        self.known.revision = revision;
        let is_newest_here = was_exact && before.data.as_ref().is_some_and(|owner| self.is_me(owner));
        let next_at = sent.plus(self.lease / 4);
        match &mut self.place {
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
                    stage,
                    next_at,
                    must_read: false,
                    is_asked: false,
                    is_challenged: false,
                    takeover,
                };
                self.place = Place::Holder(holder);
                self.tick(now);
            }
            Place::Holder(holder) => {
                (holder.revision, holder.sent, holder.next_at) = (revision, sent, next_at);
                holder.is_challenged = false;
                if value.stage == LeaseStage::Released {
                    self.stand_by(now);
                }
            }
        }
    }

    /// Another program or this one wrote the key, perhaps without success. `value`: what was written, if it can be parsed.
    pub(super) fn on_announcement(&mut self, now: BootInstant, value: Option<LeaseValue>) {
        match &mut self.place {
            Place::Standby(standby) => match (&mut standby.seen, value) {
                (Some(seen), Some(value)) if is_renewal(&seen.entry.content, &value) => {
                    self.known.data.clone_from(&value.data);
                    seen.entry.content = EntryContent::Value(value);
                    (seen.since, seen.is_announced) = (now, true);
                    standby.read_at = now.plus(self.lease);
                    let entry = seen.entry.clone();
                    let live_until = self.live_until(&entry, now);
                    if let (Place::Standby(standby), Some(until)) = (&mut self.place, live_until) {
                        (standby.live_seen, standby.live_until) = (now, until);
                    }
                }
                _ => standby.read_at = now,
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

    /// The database is open, and its last mail has this id: this host is active.
    pub(super) fn opened(&mut self, now: BootInstant, last_mail_id: i64) {
        if let Place::Holder(holder) = &mut self.place
            && holder.stage == HolderStage::TakingOver
        {
            (holder.stage, holder.next_at) = (HolderStage::Active, now);
            self.takeovers += 1;
            self.note_last_mail(now, last_mail_id);
        }
    }

    /// The last mail in the database of the active host has this id. It is written at once, for the next host.
    pub(super) fn note_last_mail(&mut self, now: BootInstant, last_mail_id: i64) {
        let Place::Holder(holder) = &mut self.place else { return };
        if holder.stage != HolderStage::Active {
            return;
        }
        let (host, home) = (self.me.host.clone(), self.me.home.clone());
        let data = Some(DataOwner { host, home, last_mail_id });
        if self.known.data != data {
            self.known.data = data;
            holder.next_at = holder.next_at.min(now);
        }
    }

    /// This host has stopped, and releases the lease. It does not take it again before `pause` is over. `failure`: why it
    /// could not take over.
    pub(super) fn release(&mut self, now: BootInstant, pause: Duration, failure: Option<String>) {
        if let Place::Holder(holder) = &mut self.place {
            (holder.stage, holder.next_at) = (HolderStage::Releasing { pause, failure }, now);
        }
    }

    /// Whether this host has the lease.
    pub(super) fn is_holder(&self) -> bool {
        matches!(self.place, Place::Holder(_))
    }

    /// When this host's lease ends, if it has it.
    pub(super) fn ends_at(&self) -> Option<BootInstant> {
        match &self.place {
            Place::Holder(holder) => Some(self.ends(holder)),
            Place::Standby(_) => None,
        }
    }

    /// The bucket is another one than before, so its revisions mean nothing.
    pub(super) fn forget_revision(&mut self) {
        self.known.revision = u64::MAX;
    }

    /// The last revision and database that this host knows, to be kept for the next start.
    pub(super) fn known(&self) -> &KnownData {
        &self.known
    }

    /// Until when attempts may begin.
    pub(super) fn sends_until(&self) -> BootInstant {
        match &self.place {
            Place::Holder(holder)
                if holder.stage == HolderStage::Active && !holder.is_asked && !holder.is_challenged =>
            {
                holder.sent.plus(self.lease * 2 / 3)
            }
            _ => BootInstant::default(),
        }
    }

    /// Why the content of the key needs a person.
    fn oddity(&self, content: &EntryContent) -> Option<String> {
        match content {
            EntryContent::Unreadable => {
                Some("its content is not known to this version; it counts as another host".into())
            }
            EntryContent::Value(value) if value.host == self.me.host && value.home != self.me.home => Some(format!(
                "another daemon uses the name of this host, {}; give each host its name with [standby] host",
                value.host
            )),
            _ => None,
        }
    }

    /// The lease as the rest of the program sees it.
    pub(super) fn view(&self) -> LeaseView {
        let mut view = LeaseView { takeovers: self.takeovers, ..LeaseView::default() };
        match &self.place {
            Place::Holder(holder) => {
                view.state = match &holder.stage {
                    HolderStage::TakingOver => LeaseState::TakingOver,
                    HolderStage::Active => LeaseState::Active,
                    HolderStage::Releasing { failure: Some(_), .. } => LeaseState::Waiting,
                    HolderStage::Releasing { .. } => LeaseState::Standby,
                };
                if let HolderStage::Releasing { failure, .. } = &holder.stage {
                    view.failure.clone_from(failure);
                    view.is_releasing = true;
                } else {
                    view.holder = Some(self.value(&holder.stage));
                    view.ends = Some(self.ends(holder));
                    view.takeover = Some(holder.takeover.clone());
                    view.is_asked_to_release = holder.is_asked;
                }
            }
            Place::Standby(standby) => {
                let live = standby.seen.as_ref().and_then(|seen| match &seen.entry.content {
                    EntryContent::Value(value) if value.is_live() && value.process != self.me.process => Some(value),
                    _ => None,
                });
                view.problem = standby.seen.as_ref().and_then(|seen| self.oddity(&seen.entry.content));
                view.holder = live.cloned();
                view.ends = live.map(|_| standby.live_until);
                view.failure.clone_from(&standby.failure);
                let waits = standby.failure.is_some() && live.is_none();
                view.state = if waits { LeaseState::Waiting } else { LeaseState::Standby };
            }
        }
        view
    }
}
