//! The key in the bucket, this host, and its place: standby or holder.

use std::time::Duration;

use crate::boot_clock::BootInstant;
use crate::standby::lease_value::{ConfigurationHashes, DataOwner, LeaseValue};
use crate::standby::view::Takeover;

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
pub(in crate::standby) struct Entry {
    /// The revision that a write has to name: 0 if the key does not exist.
    pub(in crate::standby) revision: u64,
    /// The content.
    pub(in crate::standby) content: EntryContent,
}

/// The content of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few of them exist at a time")]
pub(in crate::standby) enum EntryContent {
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
pub(in crate::standby) enum Step {
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
pub(in crate::standby) enum WriteResult {
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

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "few of them exist at a time")]
pub(super) enum Place {
    Standby(Standby),
    Holder(Holder),
}

#[derive(Debug, Default)]
pub(super) struct Standby {
    pub(super) seen: Option<Seen>,
    /// When the last write of a live holder was seen, and when its lease ends at the latest.
    pub(super) live_seen: BootInstant,
    pub(super) live_until: BootInstant,
    /// Later writes may not have been announced: there was no connection until then, or the process did not run.
    pub(super) blind_until: BootInstant,
    /// Why this host did not take over, and until when it does not try again.
    pub(super) failure: Option<String>,
    pub(super) not_before: BootInstant,
    /// When the key is read again without a reason.
    pub(super) read_at: BootInstant,
    /// No request before this time, after one has failed.
    pub(super) pause_until: BootInstant,
}

/// The key when it was last read.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) entry: Entry,
    /// When this write was first seen.
    pub(super) since: BootInstant,
    /// The content is one that was announced. Its revision is not known.
    pub(super) is_announced: bool,
}

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) revision: u64,
    /// When the last successful write was sent.
    pub(super) sent: BootInstant,
    pub(super) stage: HolderStage,
    /// When the next request is due.
    pub(super) next_at: BootInstant,
    /// The revision is uncertain: the key is read before the next write.
    pub(super) must_read: bool,
    /// `standby release` was called.
    pub(super) is_asked: bool,
    /// Another process wrote the key, perhaps without success. Nothing is sent until the key was read.
    pub(super) is_challenged: bool,
    /// The knowledge about the database when the lease was taken.
    pub(super) takeover: Takeover,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HolderStage {
    TakingOver,
    Active,
    /// The loops have ended. The lease is not taken again before the pause is over.
    Releasing {
        pause: Duration,
        failure: Option<String>,
    },
}
