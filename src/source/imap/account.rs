//! What a watcher is told, and what it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};

use super::login::Login;
use super::settings::ImapSettings;
use super::timing::Timing;
use crate::model::{MailboxState, RawMail, SyncPosition, Undelivered};

/// Whether a mail may be Resmic's, by its From field.
pub type IsCandidate = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// An account, with all that its watchers share.
pub struct Account {
    /// Its settings.
    pub settings: ImapSettings,
    /// How it logs in.
    pub login: Login,
    /// Whether a mail in a shared mailbox may be Resmic's, by its header's From field.
    pub is_candidate: IsCandidate,
    /// How many connections may be on their way at once; shared by all accounts of a server.
    pub pace: Arc<Semaphore>,
    /// How long its watchers wait, and for what.
    pub timing: Timing,
    /// Quirks of the server; shared by all its accounts.
    pub quirks: Quirks,
}

/// Quirks of a server that its watchers find out while the program runs.
#[derive(Debug, Clone, Default)]
pub struct Quirks {
    drops_after_done: Arc<AtomicBool>,
}

impl Quirks {
    /// Whether the server drops commands that come in one packet with a DONE (Stalwart before 0.10).
    pub(super) fn drops_after_done(&self) -> bool {
        self.drops_after_done.load(Ordering::Relaxed)
    }

    pub(super) fn set_drops_after_done(&self) {
        self.drops_after_done.store(true, Ordering::Relaxed);
    }
}

/// What a watcher says.
pub enum WatcherReport {
    /// Mails, and how far the mailbox is read with them.
    Mails(Batch),
    /// The mailbox that was looked for by this attribute is found, and has a name of its own.
    Found {
        /// The attribute.
        attribute: String,
    },
    /// How the mailbox is.
    State {
        /// Its name on the server, or the attribute it is looked for by.
        mailbox: String,
        /// What the watcher does.
        state: MailboxState,
        /// Whether a round trip was completed just now.
        seen: bool,
        /// What is wrong, in words.
        error: Option<String>,
    },
}

/// Mails in the order in which they must be committed.
pub struct Batch {
    /// The mailbox's name on the server.
    pub mailbox: String,
    /// The mails.
    pub mails: Vec<RawMail>,
    /// Mails that the server did not deliver, and what has become known of such mails.
    pub undelivered: Vec<Undelivered>,
    /// How far the mailbox is read, once these mails are committed; `None`: leave it.
    pub cursor: Option<SyncPosition>,
    /// Wants the UIDs of those that turned out to be notifications, once they are committed.
    pub done: Option<oneshot::Sender<Vec<u32>>>,
}

/// What is known of a mailbox that was read before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// How far it was read.
    pub position: SyncPosition,
    /// Of the last [`super::REACH`] UIDs those that were recorded, and when the server took each.
    pub uid_fingerprints: Vec<(u32, Timestamp)>,
    /// The last row that is recorded; see [`SyncPosition::renumbered_after`].
    pub last_row: i64,
    /// The UIDs of the mails that the server did not deliver, and when it took each.
    pub undelivered: Vec<(u32, Option<Timestamp>)>,
}

impl From<(u32, u32)> for ResumePoint {
    fn from(position: (u32, u32)) -> Self {
        ResumePoint { position: position.into(), uid_fingerprints: Vec::new(), last_row: 0, undelivered: Vec::new() }
    }
}

/// What is known of a mailbox, asked for by name once the name is known.
///
/// An error ends the connection: to go on without the cursor could mean to begin behind what was not read.
pub type LoadResumePoint =
    Box<dyn Fn(String) -> BoxFuture<'static, std::result::Result<Option<ResumePoint>, String>> + Send + Sync>;
