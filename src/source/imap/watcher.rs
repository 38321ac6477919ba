//! One mailbox, for ever: connect, open, read what is new, wait; and begin anew whenever something ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::account::{Account, LoadResumePoint, ResumePoint, WatcherReport};
use super::connection::Connection;
use super::error::{Error, Result};
use super::fetch_history::FetchHistory;
use super::login::connect;
use super::mailbox::{self, MailboxStatus};
use super::selected::{AfterQueue, Outstanding, SelectedMailbox};
use super::settings::{After, Start};
use super::sync::UNKNOWN;
use super::timing::Timing;
use crate::model::{Availability, MailboxState, Origin, StartBoundary, SyncPosition, Uid, Undelivered, same_mailbox};

/// How many short-lived connections in a row are each replaced at once.
const MAX_BRIEF: u32 = 5;
/// The longest that a watcher is silent between two attempts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Watches one mailbox until `shutdown`; says everything that happens to `out`.
///
/// `wanted` is a name or a special-use attribute; `cursors` tells how far a mailbox was read before.
pub async fn watch(
    account: Arc<Account>,
    wanted: String,
    cursors: LoadResumePoint,
    out: mpsc::Sender<WatcherReport>,
    mut shutdown: watch::Receiver<bool>,
) {
    let name = wanted.clone();
    let (failures, finished) = (FailureCounts::default(), AfterQueue::default());
    let (first_now, hides_uid_validity, opened, history) = (None, None, None, FetchHistory::default());
    let mut watcher = Watcher {
        account,
        name,
        wanted,
        cursors,
        out,
        failures,
        first_now,
        hides_uid_validity,
        finished,
        history,
        opened,
    };
    tokio::select! {
        () = watcher.run() => {}
        _ = shutdown.wait_for(|ending| *ending) => {}
    }
    let opened = watcher.opened.take();
    let closing = async {
        if let Some(opened) = opened {
            opened.connection.logout().await;
        }
    };
    tokio::join!(closing, watcher.account.login.credentials.wait_for_refresh());
}

struct Watcher {
    account: Arc<Account>,
    wanted: String,
    /// The name under which the mailbox is known so far.
    name: String,
    cursors: LoadResumePoint,
    out: mpsc::Sender<WatcherReport>,
    failures: FailureCounts,
    /// Where `start` = "now" was, and the UIDVALIDITY of then.
    first_now: Option<(u32, StartBoundary)>,
    /// The numbering that the server would not tell of the open mailbox, which RFC 3501 (6.3.10) lets it refuse. Had the
    /// mailbox been deleted, the next connection would not have found it as it was.
    hides_uid_validity: Option<u32>,
    /// What the last connection did not get round to putting away.
    finished: AfterQueue,
    /// What is remembered of FETCHes that failed.
    history: FetchHistory,
    /// The connection, here so that it can be closed politely whatever was going on.
    opened: Option<SelectedMailbox>,
}

/// Where a connection goes on reading.
struct ReadingStart {
    position: SyncPosition,
    /// The database knows it so.
    is_stored: bool,
    /// The numbers mean other mails than they did.
    is_reset: bool,
    /// Mails that were not delivered, and that another UIDVALIDITY has put out of reach.
    lost: Vec<Undelivered>,
}

/// What went wrong of late, in a row.
#[derive(Debug, Default)]
struct FailureCounts {
    /// Attempts that did not get as far as a complete sync.
    attempts: u32,
    /// Refused logins.
    logins: u32,
    /// Connections that ended soon after their sync: a server that always does that is not to be stormed.
    brief: u32,
    /// When the connection's first sync was complete.
    synced: Option<Instant>,
    /// No sync was completed since the last failure.
    unsynced: bool,
}

impl FailureCounts {
    /// A sync is complete: all that went wrong before is over.
    fn synced(&mut self) {
        (self.attempts, self.logins, self.synced, self.unsynced) = (0, 0, Some(Instant::now()), false);
    }

    /// A connection ended, or did not come about: how long to wait before the next.
    fn pause(&mut self, error: &Error, timing: &Timing) -> Duration {
        self.unsynced = true;
        if error.needs_new_credentials() {
            self.logins = self.logins.saturating_add(1);
            return timing.retry_login.pause(self.logins - 1);
        }
        match self.synced.take() {
            Some(at) if at.elapsed() >= timing.steady => self.brief = 0,
            Some(_) => self.brief = self.brief.saturating_add(1),
            None => {}
        }
        let failures = self.attempts.max(self.brief.saturating_sub(MAX_BRIEF));
        self.attempts = self.attempts.saturating_add(1);
        timing.retry.pause(failures).max(error.retry_after().unwrap_or_default().min(LONGEST_PAUSE))
    }

    /// The cursor has moved, though the connection ended before its sync was complete.
    fn progressed(&mut self) {
        self.attempts = 0;
    }
}

impl Watcher {
    async fn run(&mut self) {
        loop {
            let ended = self.run_connection().await;
            if let Some(opened) = self.opened.take() {
                if matches!(ended, Err(Error::Refused { command: "STATUS", .. })) {
                    self.hides_uid_validity = Some(opened.selected.uid_validity);
                }
                self.finished = opened.finished;
                self.history = opened.history;
            }
            if self.history.take_progress() {
                self.failures.progressed();
            }
            let pause = match ended {
                Ok(()) => self.account.timing.retry_absent,
                Err(Error::Closing) => return,
                // A mail that has a row has ended the connection once more. The mailbox itself is well.
                Err(error) if self.history.take_asking() => {
                    let (account, mailbox) = (&self.account.settings.name, &self.name);
                    tracing::info!(
                        account,
                        mailbox,
                        "fetching an undelivered mail again ended the connection: {error}"
                    );
                    self.account.timing.retry.pause(0)
                }
                Err(error) => {
                    let pause = self.failures.pause(&error, &self.account.timing);
                    let (account, mailbox) = (&self.account.settings.name, &self.name);
                    tracing::warn!(account, mailbox, retry_in_s = pause.as_secs(), "{error}");
                    if self.report(MailboxState::Failed, false, Some(error.to_string())).await.is_err() {
                        return;
                    }
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection's life. Ok: there is no such mailbox, for now.
    async fn run_connection(&mut self) -> Result<()> {
        // What is wrong is still wrong until a sync is complete.
        if !self.failures.unsynced {
            self.report(MailboxState::Connecting, false, None).await?;
        }
        if let Some(words) = self.open().await? {
            self.failures.synced();
            return self.report(MailboxState::Polling, true, Some(words)).await;
        }
        let Some(opened) = &mut self.opened else { return Ok(()) };
        if !self.failures.unsynced {
            opened.report(MailboxState::Syncing).await?;
        }
        let mode = opened.ask_for_pushes().await?;
        opened.sync().await?;
        self.failures.synced();
        if opened.history.is_due(false) {
            opened.refetch_undelivered().await?;
        }
        opened.watch(mode).await
    }

    /// Connects and opens the mailbox; else, in words, why there is none to open.
    async fn open(&mut self) -> Result<Option<String>> {
        // The place is given back when the mailbox is open: a thousand watchers start in turns.
        let _permit = self.account.pace.clone().acquire_owned().await.map_err(|_| Error::Closing)?;
        let settings = &self.account.settings;
        let (mut connection, capabilities) = connect(settings, &self.account.login, &self.account.timing).await?;
        let Some(mailbox_name) = mailbox::find_mailbox(&mut connection, capabilities, &self.wanted).await? else {
            connection.logout().await;
            return Ok(Some(format!("no mailbox is marked {}", self.wanted)));
        };
        let name = mailbox_name.name.clone();
        // What is watched by its own name needs no second connection, and has its row in the database already.
        if name != self.wanted && settings.mailboxes.iter().any(|other| same_mailbox(other, &name)) {
            connection.logout().await;
            return Ok(Some(format!("the mailbox marked {} is watched by its name, {name}", self.wanted)));
        }
        if self.name != name {
            self.name.clone_from(&name);
            (self.finished, self.first_now, self.hides_uid_validity) = (AfterQueue::default(), None, None);
            self.history = FetchHistory::default();
            let found = WatcherReport::Found { attribute: self.wanted.clone() };
            self.out.send(found).await.map_err(|_| Error::Closing)?;
        }
        let now = self.account.timing.now();
        let mut selected = mailbox::select(&mut connection, &mailbox_name, settings.after != After::Leave).await?;
        let ReadingStart { position, is_stored, is_reset, lost } =
            self.find_start(&mut connection, &mut selected, now).await?;
        let uid_validity = selected.uid_validity;
        let finished = match std::mem::take(&mut self.finished) {
            // The numbers would mean other mails.
            known if is_reset || known.uid_validity != uid_validity => {
                AfterQueue { uid_validity, ..AfterQueue::default() }
            }
            known => known,
        };
        self.opened = Some(SelectedMailbox {
            connection,
            capabilities,
            account: self.account.clone(),
            name,
            wire_name: mailbox_name.connection,
            selected,
            cursor: position.last_uid.0,
            handed: is_stored.then_some(position.last_uid.0),
            start_boundary: position.start_boundary,
            renumbered_after: position.renumbered_after,
            reports_uid_validity: self.hides_uid_validity != Some(uid_validity),
            out: self.out.clone(),
            pushed: Vec::new(),
            outstanding: Outstanding::default(),
            finished,
            history: std::mem::take(&mut self.history),
        });
        if let Some(opened) = &mut self.opened {
            opened.hand_over_all(Vec::new(), lost, None).await?;
        }
        Ok(None)
    }

    /// Where to go on reading, or to begin. `now`: before the mailbox was opened.
    async fn find_start(
        &mut self,
        connection: &mut Connection,
        selected: &mut MailboxStatus,
        now: Timestamp,
    ) -> Result<ReadingStart> {
        let Some(known) = (self.cursors)(self.name.clone()).await.map_err(Error::ResumePoint)? else {
            self.history.begin(selected.uid_validity, Vec::new());
            let position = self.first_position(selected, now);
            return Ok(ReadingStart { position, is_stored: false, is_reset: false, lost: Vec::new() });
        };
        let lost = self.load_history(selected.uid_validity, &known);
        if !mailbox::uids_are_unchanged(connection, selected, &known, &self.account.timing, now).await? {
            return Ok(ReadingStart {
                position: self.reset_position(selected, &known),
                is_stored: false,
                is_reset: true,
                lost,
            });
        }
        // What a database did not know, and was only learned now, is to be written down.
        let is_stored = known.position.newest_at == selected.newest_at;
        Ok(ReadingStart { position: known.position, is_stored, is_reset: false, lost })
    }

    /// Takes over which mails were not delivered, from the database; those of another UIDVALIDITY are lost.
    fn load_history(&mut self, uid_validity: u32, known: &ResumePoint) -> Vec<Undelivered> {
        if known.position.uid_validity.0 == uid_validity {
            self.history.begin(uid_validity, known.undelivered.clone());
            return Vec::new();
        }
        self.history.begin(uid_validity, Vec::new());
        let lost = |&(uid, received_at): &(u32, Option<Timestamp>)| {
            let uid = Some((known.position.uid_validity, Uid(uid)));
            let origin = Origin { account: self.account.settings.name.clone(), mailbox: self.name.clone(), uid };
            Undelivered { origin, size: 0, received_at, state: Availability::Gone }
        };
        known.undelivered.iter().map(lost).collect()
    }

    /// Where to begin in a mailbox that never was read.
    ///
    /// What "now" was first stays so: until it is written down a connection may end, mails may come, and the server may
    /// begin another numbering.
    fn first_position(&mut self, selected: &MailboxStatus, now: Timestamp) -> SyncPosition {
        let uid = Uid(last_uid(selected));
        let (last_uid, start_boundary) = match self.account.settings.start {
            Start::All => (0, None),
            Start::Since(at) => (0, Some(StartBoundary { at, uid })),
            Start::Now => {
                let (validity, first) = *self
                    .first_now
                    .get_or_insert((selected.uid_validity, StartBoundary { at: before_server_clock(now), uid }));
                let same = validity == selected.uid_validity && first.uid <= uid && first.uid != Uid(UNKNOWN);
                if same { (first.uid.0, Some(first)) } else { (0, Some(StartBoundary { uid, ..first })) }
            }
        };
        SyncPosition { start_boundary, ..(selected.uid_validity, last_uid).into() }
    }

    /// Where to begin in a mailbox that was read, and whose numbers mean other mails by now: with all, but for what was
    /// too old the first time.
    fn reset_position(&self, selected: &MailboxStatus, known: &ResumePoint) -> SyncPosition {
        let (account, mailbox) = (&self.account.settings.name, &self.name);
        tracing::warn!(account, mailbox, "the server's numbers mean other mails than they did; all is read anew");
        let at = match self.account.settings.start {
            Start::Since(at) => Some(at),
            Start::All | Start::Now => known.position.start_boundary.map(|start_boundary| start_boundary.at),
        };
        let start_boundary = at.map(|at| StartBoundary { at, uid: Uid(last_uid(selected)) });
        SyncPosition { start_boundary, renumbered_after: known.last_row, ..(selected.uid_validity, 0).into() }
    }

    async fn report(&self, state: MailboxState, seen: bool, error: Option<String>) -> Result<()> {
        let report = WatcherReport::State { mailbox: self.name.clone(), state, seen, error };
        self.out.send(report).await.map_err(|_| Error::Closing)
    }
}

/// The last UID that is given to a mail. Where the server does not say, the first listing does.
fn last_uid(selected: &MailboxStatus) -> u32 {
    selected.uid_next.map_or(UNKNOWN, |next| next.saturating_sub(1))
}

/// By how much a server's clock may be behind ours.
const SERVER_CLOCK_LAG: SignedDuration = SignedDuration::from_secs(60);

/// A moment from which on the server's dates are later, in its whole seconds. Its clock may be slow: that a mail of the
/// minute before is read, after a new numbering, is better than that one of the minute after is not.
fn before_server_clock(now: Timestamp) -> Timestamp {
    Timestamp::from_second((now - SERVER_CLOCK_LAG).as_second()).unwrap_or(Timestamp::MIN)
}
