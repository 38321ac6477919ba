//! Watches one mailbox: connects, opens it, reads the new mails, waits, and starts over after an error.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::account::{Account, LoadResumePoint, ResumePoint, WatcherReport};
use super::after_queue::AfterQueue;
use super::arrivals::{Outstanding, PushedMails};
use super::connection::Connection;
use super::error::{Error, Result};
use super::fetch_history::FetchHistory;
use super::login::connect;
use super::mailbox::{self, MailboxStatus};
use super::progress::SyncProgress;
use super::reader::{MailboxFacts, MailboxReader};
use super::renumbering::uids_are_unchanged;
use super::selected::SelectedMailbox;
use super::settings::{After, Start};
use super::sync::UNKNOWN_UID;
use super::timing::Timing;
use crate::model::{Availability, MailboxState, Origin, StartBoundary, SyncPosition, Uid, Undelivered, same_mailbox};

/// After this number of short connections in a row, the pauses between connections grow.
const MAX_BRIEF: u32 = 5;
/// The longest pause between two connections of a watcher.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How far the clock of a mail server may be behind this machine's clock.
const SERVER_CLOCK_LAG: SignedDuration = SignedDuration::from_secs(60);

/// Watches one mailbox until `shutdown` becomes true, and sends reports to `out`.
///
/// `wanted` is the name or the special-use attribute of the mailbox. `load_resume_point` reads the stored position of a mailbox.
pub async fn watch(
    account: Arc<Account>,
    wanted: String,
    load_resume_point: LoadResumePoint,
    out: mpsc::Sender<WatcherReport>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut watcher = Watcher {
        account,
        name: wanted.clone(),
        wanted,
        load_resume_point,
        out,
        failures: FailureCounts::default(),
        first_now: None,
        hides_uid_validity: None,
        after: AfterQueue::default(),
        history: FetchHistory::default(),
        mailbox: None,
    };
    tokio::select! {
        () = watcher.run() => {}
        _ = shutdown.wait_for(|ending| *ending) => {}
    }
    let mailbox = watcher.mailbox.take();
    let log_out = async {
        if let Some(mailbox) = mailbox {
            mailbox.connection.logout().await;
        }
    };
    tokio::join!(log_out, watcher.account.login.credentials.wait_for_refresh());
}

struct Watcher {
    account: Arc<Account>,
    wanted: String,
    /// The mailbox's name on the server; `wanted` until the mailbox is found.
    name: String,
    load_resume_point: LoadResumePoint,
    out: mpsc::Sender<WatcherReport>,
    failures: FailureCounts,
    /// The start boundary for `start = "now"`, and the UIDVALIDITY at that time, from the first connection.
    first_now: Option<(u32, StartBoundary)>,
    /// The UIDVALIDITY of the mailbox when the server refused STATUS for it. Clients SHOULD NOT send STATUS for the selected
    /// mailbox (RFC 3501, 6.3.10). The server also refuses STATUS if the mailbox was deleted. If that mailbox is created again,
    /// the next connection finds another UIDVALIDITY, and uses STATUS again.
    hides_uid_validity: Option<u32>,
    /// Notifications from earlier connections that the watcher still has to mark as seen, or to move (the setting `after`).
    after: AfterQueue,
    history: FetchHistory,
    /// The open mailbox. The watcher keeps it in this field, so that the watcher can log out at any time.
    mailbox: Option<SelectedMailbox>,
}

/// Where a connection begins to read.
struct ReadingStart {
    position: SyncPosition,
    /// The database has exactly this position.
    is_stored: bool,
    /// The UIDs mean other mails than before, so the mailbox is read again.
    is_reset: bool,
    /// Undelivered mails of an earlier UIDVALIDITY, which cannot be fetched any longer.
    lost: Vec<Undelivered>,
}

/// Counts recent failures, which determine the pause before the next connection.
#[derive(Debug, Default)]
struct FailureCounts {
    /// The number of connections in a row that failed for another reason than wrong credentials. A complete sync, or a
    /// connection that moved the cursor, sets this number to 0.
    attempts: u32,
    /// The number of connections that failed because of wrong credentials, since the last complete sync.
    logins: u32,
    /// Connections that ended soon after their sync. The pauses grow for a server that always ends connections so soon.
    brief: u32,
    /// When the first sync of the connection was complete.
    synced: Option<Instant>,
    /// True from a failure on, until the next sync is complete.
    is_failing: bool,
}

impl FailureCounts {
    /// Resets `attempts` and `logins`, because a complete sync ends a series of failures.
    fn record_sync(&mut self) {
        (self.attempts, self.logins, self.synced, self.is_failing) = (0, 0, Some(Instant::now()), false);
    }

    /// Counts a failure, and returns the pause before the next attempt.
    fn record_failure(&mut self, error: &Error, timing: &Timing) -> Duration {
        self.is_failing = true;
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

    /// Resets `attempts`, because the cursor has moved, although the connection ended before its sync was complete.
    fn record_progress(&mut self) {
        self.attempts = 0;
    }
}

impl Watcher {
    async fn run(&mut self) {
        loop {
            let ended = self.run_connection().await;
            if let Some(mailbox) = self.mailbox.take() {
                let reader = mailbox.reader;
                if matches!(ended, Err(Error::Refused { command: "STATUS", .. })) {
                    self.hides_uid_validity = Some(reader.status.uid_validity);
                }
                self.after = reader.after;
                self.history = reader.history;
            }
            if self.history.take_progress() {
                self.failures.record_progress();
            }
            let pause = match ended {
                Ok(()) => self.account.timing.retry_absent,
                Err(Error::Closing) => return,
                // The end of a connection is not counted as a failure if the watcher was fetching undelivered mails again,
                // because such a FETCH has probably ended the connection.
                Err(error) if self.history.take_fetching() && error.retry_after().is_none() => {
                    let (account, mailbox) = (&self.account.settings.name, &self.name);
                    tracing::info!(
                        account,
                        mailbox,
                        "fetching an undelivered mail again ended the connection: {error}"
                    );
                    self.account.timing.retry.pause(0)
                }
                Err(error) => {
                    let pause = self.failures.record_failure(&error, &self.account.timing);
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

    /// Runs one connection until it fails. Returns Ok if the mailbox does not exist yet, or if another watcher reads it.
    async fn run_connection(&mut self) -> Result<()> {
        // After a failure, `status` shows the error until a sync is complete.
        if !self.failures.is_failing {
            self.report(MailboxState::Connecting, false, None).await?;
        }
        if let Some(reason) = self.open().await? {
            self.failures.record_sync();
            return self.report(MailboxState::Polling, true, Some(reason)).await;
        }
        let Some(mailbox) = &mut self.mailbox else { return Ok(()) };
        if !self.failures.is_failing {
            mailbox.reader.report(MailboxState::Syncing).await?;
        }
        let mode = mailbox.request_pushes().await?;
        mailbox.sync().await?;
        self.failures.record_sync();
        if mailbox.reader.history.is_due(false) {
            mailbox.refetch_undelivered().await?;
        }
        mailbox.watch(mode).await
    }

    /// Connects and opens the mailbox. Returns the reason, as text for `status`, if there is no mailbox to open.
    async fn open(&mut self) -> Result<Option<String>> {
        // The permit is returned when the mailbox is open. So of a thousand watchers, only a few connect at the same time.
        let _permit = self.account.pace.clone().acquire_owned().await.map_err(|_| Error::Closing)?;
        let settings = &self.account.settings;
        let (mut connection, capabilities) = connect(settings, &self.account.login, &self.account.timing).await?;
        let Some(name) = mailbox::find_mailbox(&mut connection, capabilities, &self.wanted).await? else {
            connection.logout().await;
            return Ok(Some(format!("no mailbox is marked {}", self.wanted)));
        };
        // A mailbox that is also configured by its name already has a watcher, and a row in the table `mailboxes`.
        let is_watched = settings.mailboxes.iter().any(|other| same_mailbox(other, &name.display));
        if name.display != self.wanted && is_watched {
            connection.logout().await;
            let name = name.display;
            return Ok(Some(format!("the mailbox marked {} is watched by its name, {name}", self.wanted)));
        }
        let is_writable = settings.after != After::Leave;
        if self.name != name.display {
            self.begin_mailbox(&name.display).await?;
        }
        let now = self.account.timing.now();
        let mut status = mailbox::select(&mut connection, &name, is_writable).await?;
        let ReadingStart { position, is_stored, is_reset, lost } =
            self.find_start(&mut connection, &mut status, now).await?;
        let reports_uid_validity = self.hides_uid_validity != Some(status.uid_validity);
        let reader = MailboxReader {
            facts: MailboxFacts { account: self.account.clone(), name, capabilities, reports_uid_validity },
            status,
            progress: SyncProgress::new(position, is_stored),
            pushed: PushedMails::default(),
            outstanding: Outstanding::default(),
            after: std::mem::take(&mut self.after).for_uid_validity(status.uid_validity, is_reset),
            history: std::mem::take(&mut self.history),
            out: self.out.clone(),
        };
        let mailbox = self.mailbox.insert(SelectedMailbox { connection, reader });
        mailbox.reader.hand_over_undelivered(lost, false).await?;
        Ok(None)
    }

    /// Forgets the state of the mailbox that was open before, and reports to `ingest` that the wanted mailbox is found.
    async fn begin_mailbox(&mut self, name: &str) -> Result<()> {
        name.clone_into(&mut self.name);
        (self.after, self.first_now, self.hides_uid_validity) = (AfterQueue::default(), None, None);
        self.history = FetchHistory::default();
        let found = WatcherReport::Found { attribute: self.wanted.clone() };
        self.out.send(found).await.map_err(|_| Error::Closing)
    }

    /// Finds the position at which this connection begins to read. `now`: the time before the mailbox was selected.
    async fn find_start(
        &mut self,
        connection: &mut Connection,
        status: &mut MailboxStatus,
        now: Timestamp,
    ) -> Result<ReadingStart> {
        let known = (self.load_resume_point)(self.name.clone()).await.map_err(Error::ResumePoint)?;
        let Some(known) = known else {
            self.history.begin(status.uid_validity, Vec::new());
            let position = self.first_position(status, now);
            return Ok(ReadingStart { position, is_stored: false, is_reset: false, lost: Vec::new() });
        };
        let lost = self.load_history(status.uid_validity, &known);
        if !uids_are_unchanged(connection, status, &known, &self.account.timing, now).await? {
            let position = self.reset_position(status, &known);
            return Ok(ReadingStart { position, is_stored: false, is_reset: true, lost });
        }
        // If the server has reported a newer INTERNALDATE than the stored `newest_at`, the position has to be stored again.
        let is_stored = known.position.newest_at == status.newest_at;
        Ok(ReadingStart { position: known.position, is_stored, is_reset: false, lost })
    }

    /// Loads into `history` the mails of this UIDVALIDITY that have a row without bytes in the table `mails`. If the stored rows
    /// are of an earlier UIDVALIDITY, returns their mails, which cannot be fetched any longer.
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

    /// The position at which reading begins in a mailbox that was never read.
    ///
    /// The first connection decides where "now" is, and `first_now` keeps this position. `first_now` is necessary because the
    /// connection may end before the position is stored. Before the next connection, mails may arrive, and the UIDVALIDITY may
    /// change.
    fn first_position(&mut self, status: &MailboxStatus, now: Timestamp) -> SyncPosition {
        let uid = Uid(last_uid(status));
        let (last_uid, start_boundary) = match self.account.settings.start {
            Start::All => (0, None),
            Start::Since(at) => (0, Some(StartBoundary { at, uid })),
            Start::Now => {
                let boundary = StartBoundary { at: before_server_clock(now), uid };
                let (validity, first) = *self.first_now.get_or_insert((status.uid_validity, boundary));
                let is_same = validity == status.uid_validity && first.uid <= uid && first.uid != Uid(UNKNOWN_UID);
                if is_same { (first.uid.0, Some(first)) } else { (0, Some(StartBoundary { uid, ..first })) }
            }
        };
        SyncPosition { start_boundary, ..(status.uid_validity, last_uid).into() }
    }

    /// The position at which a renumbered mailbox is read again: from the day in `start`, from the start boundary of the first
    /// run, or from the oldest mail.
    fn reset_position(&self, status: &MailboxStatus, known: &ResumePoint) -> SyncPosition {
        let (account, mailbox) = (&self.account.settings.name, &self.name);
        tracing::warn!(
            account,
            mailbox,
            "mailbox was renumbered (UIDVALIDITY or UIDs changed); reading it again from the start"
        );
        let at = match self.account.settings.start {
            Start::Since(at) => Some(at),
            Start::All | Start::Now => known.position.start_boundary.map(|boundary| boundary.at),
        };
        let start_boundary = at.map(|at| StartBoundary { at, uid: Uid(last_uid(status)) });
        SyncPosition { start_boundary, renumbered_after: known.last_row, ..(status.uid_validity, 0).into() }
    }

    async fn report(&self, state: MailboxState, seen: bool, error: Option<String>) -> Result<()> {
        let report = WatcherReport::State { mailbox: self.name.clone(), state, seen, error };
        self.out.send(report).await.map_err(|_| Error::Closing)
    }
}

/// The highest UID that an existing mail can have. If the server does not report UIDNEXT, the result is `UNKNOWN_UID`, and the
/// first listing shows the highest UID.
fn last_uid(status: &MailboxStatus) -> u32 {
    status.uid_next.map_or(UNKNOWN_UID, |next| next.saturating_sub(1))
}

/// The date from which mails count as new if `start` is "now", in whole seconds. This date is one minute before `now`: if the
/// server's clock is behind, a mail that arrives after `now` can have an older date. After a renumbering, mails that arrived in
/// this minute may be read, too, which is better than to miss later mails.
fn before_server_clock(now: Timestamp) -> Timestamp {
    Timestamp::from_second((now - SERVER_CLOCK_LAG).as_second()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::super::throttling::SuggestedPause;
    use super::*;

    #[test]
    fn a_suggested_pause_has_an_upper_limit() {
        let pause = |millis: u64| {
            let text = format!("Request is throttled. Suggested Backoff Time: {millis} milliseconds");
            let pause = SuggestedPause::from_text(&text).unwrap();
            FailureCounts::default()
                .record_failure(&Error::Throttled { message: String::new(), pause }, &Timing::default())
        };
        assert_eq!(pause(299_961), Duration::from_millis(299_961));
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
        assert!(pause(1) >= Timing::default().retry.ceiling(0) / 2, "not shorter than without");
    }
}
