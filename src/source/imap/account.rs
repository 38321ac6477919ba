//! The inputs of a watcher (the task that reads one mailbox), and the reports that a watcher sends to `ingest`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};

use super::login::Login;
use super::settings::ImapSettings;
use super::timing::Timing;
use crate::model::{MailboxState, RawMail, SyncPosition, Undelivered};

/// Decides from the header of a mail whether its sender may be Resmic.
pub type IsCandidate = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// An account, with everything that its watchers share.
pub struct Account {
    /// The account's settings.
    pub settings: ImapSettings,
    /// The TLS configuration and the credentials for the login.
    pub login: Login,
    /// Decides in a shared mailbox which mails are fetched.
    pub is_candidate: IsCandidate,
    /// Limits how many watchers connect at the same time. All accounts of a server share this semaphore.
    pub pace: Arc<Semaphore>,
    /// Timeouts and pauses.
    pub timing: Timing,
    /// Quirks of the server. All accounts of a server share these flags.
    pub quirks: Quirks,
}

/// Quirks of a server that watchers detect at run time.
#[derive(Debug, Clone, Default)]
pub struct Quirks {
    drops_after_done: Arc<AtomicBool>,
}

impl Quirks {
    /// Whether the server drops commands that arrive in one packet with a DONE (Stalwart before 0.10).
    pub(super) fn drops_after_done(&self) -> bool {
        self.drops_after_done.load(Ordering::Relaxed)
    }

    pub(super) fn set_drops_after_done(&self) {
        self.drops_after_done.store(true, Ordering::Relaxed);
    }
}

/// A report that a watcher sends to `ingest`.
pub enum WatcherReport {
    /// Mails, and the cursor that is valid after their commit.
    Mails(Batch),
    /// The mailbox with this special-use attribute is found. Later reports contain the name of the mailbox.
    Found {
        /// The special-use attribute, for example `\Junk`.
        attribute: String,
    },
    /// The state of the watcher.
    State {
        /// The name of the mailbox; until it is found, the special-use attribute.
        mailbox: String,
        /// The state that `status` shows for the mailbox.
        state: MailboxState,
        /// The server has just answered, so `last_seen_at` in the table `mailboxes` is set to the current time.
        seen: bool,
        /// The reason why the watcher cannot read the mailbox, as text for `status`.
        error: Option<String>,
    },
}

/// Mails in the order in which they must be committed.
pub struct Batch {
    /// The mailbox's real name, even if a special-use attribute is configured.
    pub mailbox: String,
    /// The mails with their bytes.
    pub mails: Vec<RawMail>,
    /// Mails whose bytes the server did not deliver, each with its new state.
    pub undelivered: Vec<Undelivered>,
    /// The position after the commit of these mails; `None` leaves the stored position unchanged.
    pub cursor: Option<SyncPosition>,
    /// After the commit, `ingest` sends the UIDs of the notifications among these mails over this channel.
    pub done: Option<oneshot::Sender<Vec<u32>>>,
}

/// The stored state of a mailbox that was read before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// The stored cursor.
    pub position: SyncPosition,
    /// UID and INTERNALDATE of the stored mails among the last [`super::FINGERPRINT_UIDS`] UIDs up to the cursor.
    pub uid_fingerprints: Vec<(u32, Timestamp)>,
    /// The highest id in the table `mails`; see [`SyncPosition::renumbered_after`].
    pub last_row: i64,
    /// UID and INTERNALDATE of the mails that the server lists and has not delivered. Each of these mails has a row without bytes
    /// in the table `mails`.
    pub undelivered: Vec<(u32, Option<Timestamp>)>,
}

impl From<(u32, u32)> for ResumePoint {
    fn from(position: (u32, u32)) -> Self {
        ResumePoint { position: position.into(), uid_fingerprints: Vec::new(), last_row: 0, undelivered: Vec::new() }
    }
}

/// Reads the stored state of a mailbox, given its name; `None` for a mailbox that was never read.
///
/// An error ends the connection, because without the cursor the watcher could skip mails.
pub type LoadResumePoint =
    Box<dyn Fn(String) -> BoxFuture<'static, std::result::Result<Option<ResumePoint>, String>> + Send + Sync>;
