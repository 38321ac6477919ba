//! The loop that takes mails from `source`, examines them with `examine`, and stores them in the database.
//!
//! Mails are examined on all cores, and committed in the order in which they were fetched.

mod deferred;
mod warm_up;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::backoff::Backoff;
use crate::catch_panic::{catch_panic, catch_panic_async};
use crate::db::{self, Cursor, Store};
use crate::examine::Rules;
use crate::heartbeat::Heartbeat;
use crate::model::{Examined, Judgement, MailboxState, Outcome, RawMail, Reason, ReasonCode};
use crate::payments::{ExaminedMail, Recorded};
use crate::source::imap::{self, Batch, WatcherReport};
use crate::telemetry::PushLatency;
use crate::trust::dns::Resolver;

pub use deferred::DeferredMails;
pub use warm_up::warm_up;

/// The most batches that are examined at the same time.
const MAX_BATCHES: usize = 4;
/// The most mails in one commit, if no batch has more than 64.
const MAX_COMMIT: usize = 1_000;
/// An unchanged state of a mailbox is written into `mailboxes` again only after this time. Otherwise each mail would cause
/// another commit, which would delay the next mail.
const STATE_INTERVAL: Duration = Duration::from_secs(1);
/// The pauses between attempts to write into the database, while it is locked or the disk is full.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };

/// Examines the mails of one account, and stores them in the database.
#[derive(Clone)]
pub struct Ingest {
    /// The account's name.
    pub account: String,
    /// The rules for the account's mails.
    pub rules: Arc<Rules>,
    /// Looks up DKIM keys.
    pub resolver: Arc<Resolver>,
    /// The database.
    pub store: Store,
    /// Measures the time from the arrival of a mail at the mail server to the commit of the mail in the database.
    pub latency: PushLatency,
}

/// A report of a mailbox's watcher ([`WatcherReport`]), with the examined mails in place of the fetched mails.
enum IngestStep {
    Examined(Batch, Vec<ExaminedMail>),
    Found { attribute: String },
    State { mailbox: String, state: MailboxState, seen: bool, error: Option<String> },
}

/// The state of a mailbox that is stored in `mailboxes`, and the time of the last write of `mailboxes.last_seen_at`.
struct RecordedState {
    mailbox: String,
    state: MailboxState,
    error: Option<String>,
    seen_at: Option<Instant>,
}

impl RecordedState {
    fn is_current(&self, mailbox: &str, state: MailboxState, error: Option<&str>) -> bool {
        self.mailbox == mailbox
            && self.state == state
            && self.error.as_deref() == error
            && self.seen_at.is_some_and(|at| at.elapsed() < STATE_INTERVAL)
    }
}

impl IngestStep {
    /// Whether a long time may pass before the watcher sends its next report. If a thousand watchers connect to a server that
    /// does not answer, the last watcher may connect only after more than twenty minutes.
    fn is_pause(&self) -> bool {
        use MailboxState::{Connecting, Failed, Polling};
        matches!(self, IngestStep::State { state: Connecting | Failed | Polling, .. })
    }
}

impl Ingest {
    /// Stores the mails, cursors and states that a watcher reports, until the watcher ends. `heartbeat` beats each time that
    /// reports are stored.
    ///
    /// # Errors
    /// An error of the database that is not temporary.
    pub async fn run(self, reports: mpsc::Receiver<WatcherReport>, heartbeat: Heartbeat) -> db::Result<()> {
        let incoming = stream::unfold(reports, |mut reports| async { reports.recv().await.map(|r| (r, reports)) });
        let steps = incoming.map(|report| self.prepare(report)).buffered(MAX_BATCHES);
        let mut steps = std::pin::pin!(steps);
        let mut recorded_state = None;
        while let Some(step) = steps.next().await {
            let mut ready = vec![step];
            // Other mails that are already examined go into the same commit, up to `MAX_COMMIT` mails.
            while ready.len() < MAX_COMMIT / 64
                && let Some(Some(step)) = steps.next().now_or_never()
            {
                ready.push(step);
            }
            let pause = if ready.iter().any(IngestStep::is_pause) { imap::LONGEST_PAUSE } else { Duration::ZERO };
            self.record(ready, &mut recorded_state, &heartbeat).await?;
            heartbeat.beat_before(pause);
        }
        Ok(())
    }

    async fn prepare(&self, report: WatcherReport) -> IngestStep {
        match report {
            WatcherReport::State { mailbox, state, seen, error } => {
                if seen {
                    self.prefetch_keys();
                }
                IngestStep::State { mailbox, state, seen, error }
            }
            WatcherReport::Found { attribute } => IngestStep::Found { attribute },
            WatcherReport::Mails(mut batch) => {
                let mails = std::mem::take(&mut batch.mails);
                let undelivered = std::mem::take(&mut batch.undelivered);
                let mut entries = if mails.is_empty() { Vec::new() } else { self.examine(mails).await };
                entries.extend(undelivered.into_iter().map(ExaminedMail::undelivered));
                IngestStep::Examined(batch, entries)
            }
        }
    }

    /// Looks up recently used DKIM keys that are no longer in the cache, so that the next mail need not wait for DNS.
    fn prefetch_keys(&self) {
        if !self.resolver.has_cached_keys() {
            let resolver = self.resolver.clone();
            tokio::spawn(async move { resolver.prefetch_keys().await });
        }
    }

    /// Examines mails in a separate task, so that another core can examine them.
    pub async fn examine(&self, mails: Vec<RawMail>) -> Vec<ExaminedMail> {
        let mails = match <[RawMail; 1]>::try_from(mails) {
            Ok([mail]) => return vec![self.examine_alone(mail).await],
            Err(mails) => mails,
        };
        let (rules, resolver) = (self.rules.clone(), self.resolver.clone());
        let examining = async move {
            let mut entries = Vec::with_capacity(mails.len());
            for mail in mails {
                let examined = examine_one(&rules, &resolver, &mail).await;
                entries.push(ExaminedMail::new(mail, examined));
            }
            entries
        };
        match tokio::spawn(examining).await {
            Ok(entries) => entries,
            // `examine_one` catches panics, so this error means that the task was cancelled, because the program stops.
            Err(_) => std::future::pending().await,
        }
    }

    /// Examines a single mail on two cores, because a customer may be waiting for it. One core parses the mail while the other
    /// authenticates it.
    async fn examine_alone(&self, mail: RawMail) -> ExaminedMail {
        let mail = Arc::new(mail);
        let (rules, raw) = (self.rules.clone(), mail.clone());
        let parsing = tokio::spawn(async move { catch_panic(|| rules.parse(&raw)) });
        let (rules, resolver, raw) = (self.rules.clone(), self.resolver.clone(), mail.clone());
        // The authentication is a task, too. Otherwise the parsing task would stay on this core: tokio does not let another
        // worker steal the task that was spawned last.
        let authenticating =
            tokio::spawn(async move { catch_panic_async(rules.authenticate(&raw, &resolver, Timestamp::now())).await });
        let examined = match (authenticating.await, parsing.await) {
            (Ok(Some(authenticity)), Ok(Some(parsed))) => {
                catch_panic(|| self.rules.combine(&mail, authenticity, parsed).0)
            }
            // `catch_panic` has caught a panic in one of the tasks.
            (Ok(_), Ok(_)) => None,
            // A task was cancelled, because the program stops.
            _ => std::future::pending().await,
        };
        ExaminedMail::new(Arc::unwrap_or_clone(mail), examined.unwrap_or_else(unparsable))
    }

    /// Examines mails and stores them in the database, for `import`. No cursor changes, because the mails do not come from a mail
    /// server.
    ///
    /// # Errors
    /// See [`Ingest::run`].
    pub async fn record_now(&self, mails: Vec<RawMail>) -> db::Result<Vec<Recorded>> {
        let entries = self.examine(mails).await.into();
        self.commit(&entries, None, None).await
    }

    async fn record(
        &self,
        steps: Vec<IngestStep>,
        recorded_state: &mut Option<RecordedState>,
        heartbeat: &Heartbeat,
    ) -> db::Result<()> {
        let (mut entries, mut cursor, mut waiting, mut state) = (Vec::new(), None, Vec::new(), None);
        for step in steps {
            match step {
                IngestStep::Found { attribute } => {
                    retry_temporary(Some(heartbeat), || self.store.forget_mailbox(&self.account, &attribute)).await?;
                }
                IngestStep::State { mailbox, state: s, seen, error } => state = Some((mailbox, s, seen, error)),
                IngestStep::Examined(batch, examined) => {
                    cursor = self.cursor(&batch).or(cursor);
                    if let Some(done) = batch.done {
                        waiting.push((done, entries.len(), examined.len()));
                    }
                    entries.extend(examined);
                }
            }
        }
        if !entries.is_empty() || cursor.is_some() {
            let entries: Arc<[ExaminedMail]> = entries.into();
            let recorded = self.commit(&entries, cursor.as_ref(), Some(heartbeat)).await?;
            if let (Some(recorded_state), Some(_)) = (recorded_state.as_mut(), &cursor) {
                recorded_state.seen_at = Some(Instant::now());
            }
            for (done, first, count) in waiting {
                let uids = entries.iter().zip(&recorded).skip(first).take(count).filter_map(notification_uid).collect();
                // The watcher marks or moves the mails with these UIDs. Sending fails if the watcher has ended or the mailbox was
                // renumbered.
                let _ = done.send(uids);
            }
        }
        if let Some((mailbox, state, seen, error)) = state
            && !recorded_state
                .as_ref()
                .is_some_and(|recorded_state| recorded_state.is_current(&mailbox, state, error.as_deref()))
        {
            let note = || self.store.note_mailbox(&self.account, &mailbox, state, seen, error.clone());
            retry_temporary(Some(heartbeat), note).await?;
            *recorded_state = Some(RecordedState { mailbox, state, error, seen_at: seen.then(Instant::now) });
        }
        Ok(())
    }

    fn cursor(&self, batch: &Batch) -> Option<Cursor> {
        let position = batch.cursor?;
        Some(Cursor { account: self.account.clone(), mailbox: batch.mailbox.clone(), position })
    }

    /// Stores mails and the cursor in one commit, and retries after temporary errors of the database.
    async fn commit(
        &self,
        entries: &Arc<[ExaminedMail]>,
        cursor: Option<&Cursor>,
        heartbeat: Option<&Heartbeat>,
    ) -> db::Result<Vec<Recorded>> {
        let recorded = retry_temporary(heartbeat, || self.store.record(entries.clone(), cursor.cloned())).await?;
        for (entry, recorded) in entries.iter().zip(&recorded) {
            log(entry, recorded);
            if let (true, Some(received), Some(_)) =
                (entry.is_delivered(), entry.mail.received_at, entry.mail.origin.uid)
            {
                self.latency.observe(received, Timestamp::now());
            }
        }
        Ok(recorded)
    }
}

/// Examines a mail. After a panic in a parser, this mail is quarantined, and the program goes on.
async fn examine_one(rules: &Rules, resolver: &Resolver, mail: &RawMail) -> Examined {
    let examining = rules.examine(mail, resolver, Timestamp::now());
    catch_panic_async(examining).await.unwrap_or_else(unparsable)
}

fn unparsable() -> Examined {
    Examined {
        judgement: Judgement::Quarantined(Reason::new(ReasonCode::Malformed, "it could not be taken apart")),
        proof: None,
        envelope: crate::model::Envelope::default(),
    }
}

fn notification_uid((entry, recorded): (&ExaminedMail, &Recorded)) -> Option<u32> {
    // The outcome does not show whether a mail is a notification. If a mail was already stored, its outcome here is `duplicate`,
    // even if the mail is not a notification. But only a notification has an event.
    entry.mail.origin.uid.filter(|_| recorded.event_id.is_some()).map(|(_, uid)| uid.0)
}

/// Retries a database operation after temporary errors, such as a full disk. Each retry is a heartbeat, because a restart
/// by the watchdog would not free disk space.
async fn retry_temporary<T, F: Future<Output = db::Result<T>>>(
    heartbeat: Option<&Heartbeat>,
    work: impl FnMut() -> F,
) -> db::Result<T> {
    let report = |error: db::Error| {
        if !error.is_temporary() {
            return Err(error);
        }
        tracing::error!("{error}");
        if let Some(heartbeat) = heartbeat {
            heartbeat.beat_before(RETRY.cap);
        }
        Ok(())
    };
    RETRY.retry(work, report).await
}

fn log(entry: &ExaminedMail, recorded: &Recorded) {
    let origin = &entry.mail.origin;
    let uid = origin.uid.map(|(_, uid)| uid.0);
    let (event_id, session_id) = (recorded.event_id.as_deref(), recorded.session_id.as_deref());
    let reason = recorded.reason.as_ref().map(ToString::to_string);
    let (account, mailbox, outcome) = (&origin.account, &origin.mailbox, recorded.outcome.as_str());
    if matches!(recorded.outcome, Outcome::Quarantined | Outcome::Deferred) {
        tracing::warn!(account, mailbox, uid, mail_id = recorded.mail_id, reason, "mail {outcome}");
    } else {
        let mail_id = recorded.mail_id;
        tracing::info!(account, mailbox, uid, mail_id, event_id, session_id, reason, "mail: {outcome}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heartbeat::Heartbeats;

    #[tokio::test]
    async fn retries_on_a_full_disk_are_heartbeats() {
        let heartbeats = Heartbeats::default();
        let heartbeat = heartbeats.begin("watching", Duration::ZERO);
        let full = || async { Err::<(), _>(db::Error::Full("m.db".into())) };
        assert!(retry_temporary(Some(&heartbeat), full).now_or_never().is_none(), "it tries again");
        assert!(heartbeats.late().is_empty());
    }
}
