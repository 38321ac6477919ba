//! The types for the key of the lease in the bucket, for this process, and for the role of this host: standby or holder.

use std::time::Duration;

use super::last_mails::LastMails;
use crate::boot_clock::BootInstant;
use crate::standby::hashes::ConfigurationHashes;
use crate::standby::lease_value::{DataOwner, LeaseValue};
use crate::standby::view::Takeover;

/// The description of this process, which each of its lease values contains.
#[derive(Debug, Clone)]
pub struct Member {
    /// The name of this host in the lease.
    pub host: String,
    /// Random; it identifies this process.
    pub process: String,
    /// Identifies the standby file in the state folder. This process has the lock of that file.
    pub home: String,
    /// The version of this program.
    pub version: String,
    /// The database schema that this program knows (`PRAGMA user_version`).
    pub schema: i64,
    /// Hashes of this host's configuration.
    pub configuration: ConfigurationHashes,
}

/// The key of the lease in the bucket: its revision and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::standby) struct Entry {
    /// The revision that a write has to name: 0 if the key does not exist.
    pub(in crate::standby) revision: u64,
    /// The value under the key, if there is one.
    pub(in crate::standby) content: EntryContent,
}

/// The content of the key of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::standby) enum EntryContent {
    /// The key does not exist, or has expired.
    Absent {
        /// The last revision that the bucket gave to any key; `None` if it is not known.
        last_revision: Option<u64>,
    },
    /// An operator deleted the key.
    Deleted,
    /// A lease value that this version can parse.
    Value(LeaseValue),
    /// A content that this version cannot parse, which counts as the lease of another host.
    Unreadable,
}

/// The next step of the machine, which the driver executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::standby) enum LeaseStep {
    /// Read the key.
    Read,
    /// Write the key, if its revision is still `expected`.
    Write {
        /// The revision that is replaced; 0: the key does not exist.
        expected: u64,
        /// The new value.
        value: LeaseValue,
    },
    /// Wait until this time, or until an announcement or a command arrives.
    Wait(BootInstant),
}

/// The result of a [`LeaseStep::Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standby) enum WriteResult {
    /// The value is stored under this revision.
    Stored(u64),
    /// The server has not stored the value, because the key has another revision than expected.
    Conflict,
    /// There is no valid answer. The server may have stored the value, or may store it later.
    Unknown,
}

/// The last revision of the key and the newest database that this host knows. The standby file contains both, so that this host
/// knows them after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KnownData {
    /// The revision of the last value with a newest database that this host read or wrote.
    pub revision: u64,
    /// The host with the newest database; `None` if no such host is known.
    pub data: Option<DataOwner>,
}

/// How certain the [`KnownData`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// The data come from the last value that any host wrote under the key.
    Exact,
    /// This host watched the active host until its lease ended. At most the last mails of that host are not known.
    Watched,
    /// Another host may have been active without the knowledge of this host. So other hosts may know a newer database.
    Uncertain,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
pub(super) enum Place {
    Standby(StandbyHost),
    Holder(Holder),
}

#[derive(Debug, Default)]
pub(super) struct StandbyHost {
    pub(super) seen: Option<SeenEntry>,
    /// When this host last saw a new value of the key.
    pub(super) live_seen: BootInstant,
    /// The latest possible end of the lease, by the value that was seen at `live_seen`. Zero if no other process has the lease.
    pub(super) live_until: BootInstant,
    /// Until this time, this host had no connection to a NATS server, or the process did not run. So this host may have missed
    /// writes of the key before this time.
    pub(super) blind_until: BootInstant,
    /// Why this host could not take over, if it has released the lease for this reason.
    pub(super) failure: Option<String>,
    /// This host does not take the lease before this time.
    pub(super) not_before: BootInstant,
    /// An operator wants another host to have the lease, and this host waits until `not_before` for that reason. The wait ends
    /// when another process has taken the lease.
    pub(super) is_for_others: bool,
    /// When this host reads the key again, unless an announcement causes an earlier read.
    pub(super) read_at: BootInstant,
    /// The write that was announced last, if the key has not shown this write yet.
    pub(super) awaited: Option<Awaited>,
    /// After a failed request or a conflict, no request is sent before this time.
    pub(super) pause_until: BootInstant,
}

/// A write of the key that was announced. The servers of a cluster announce a write before they have stored it, so a read after
/// the announcement can still return the old content.
#[derive(Debug)]
pub(super) struct Awaited {
    /// The announced value; `None` if this version cannot parse that value.
    pub(super) value: Option<LeaseValue>,
    /// After this time, the write counts as refused.
    pub(super) until: BootInstant,
}

impl Awaited {
    /// Whether `content` shows the announced write.
    pub(super) fn is_in(&self, content: &EntryContent) -> bool {
        match (&self.value, content) {
            (Some(announced), EntryContent::Value(stored)) => announced == stored,
            (None, EntryContent::Value(_)) | (Some(_), _) => false,
            (None, _) => true,
        }
    }
}

/// The content of the key that this host last read from the bucket, or got in an announcement.
#[derive(Debug)]
pub(super) struct SeenEntry {
    pub(super) entry: Entry,
    /// When this host first saw the content of `entry`.
    pub(super) since: BootInstant,
    /// The content comes from an announcement and was not read from the bucket, so its revision is not known.
    pub(super) is_announced: bool,
}

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) revision: u64,
    /// When the last successful write was sent.
    pub(super) sent: BootInstant,
    /// The length of the lease in the last successful write. Another host expects no longer lease, also if the TTL of the bucket
    /// has become longer since that write.
    pub(super) lease: Duration,
    pub(super) stage: HolderStage,
    /// When this host sends its next read or write of the key.
    pub(super) next_at: BootInstant,
    /// The revision of the key is uncertain, so this host reads the key before its next write.
    pub(super) must_read: bool,
    /// An operator wants this host to release the lease, and has run `standby release` or deleted the key.
    pub(super) is_asked: bool,
    /// Another process has tried to write the key. No attempt begins until this host has read or written the key.
    pub(super) is_challenged: bool,
    /// The facts that this host knew about the newest database when it took the lease.
    pub(super) takeover: Takeover,
    /// The last mails that are not in the key yet.
    pub(super) last_mails: LastMails,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HolderStage {
    TakingOver,
    /// The database is open, and the key does not show yet that this is the newest database.
    Opened {
        /// The last `mails.id` of the database.
        last_mail_id: i64,
    },
    Active,
    /// This host has stopped its work, and writes the release. After the release, this host leaves the lease to others until
    /// `pause` is over, or until another host becomes active. Without a `failure`, the pause also ends when another host has taken
    /// the lease.
    Releasing {
        pause: Duration,
        failure: Option<String>,
    },
}
