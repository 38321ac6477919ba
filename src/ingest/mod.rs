//! The loop: source → examine → store. Mails are examined on all cores, and committed in the order in which they came.

mod deferred;
mod ready;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::backoff::Backoff;
use crate::catch_panic::{catch_panic, catch_panic_async};
use crate::db::{self, Cursor, Store};
use crate::examine::Rules;
use crate::model::{Examined, Judgement, MailboxState, Outcome, RawMail, Reason, ReasonCode};
use crate::payments::{ExaminedMail, Recorded};
use crate::pulse::Pulse;
use crate::source::imap::{self, Batch, Report};
use crate::telemetry::PushLatency;
use crate::trust::dns::Resolver;

pub use deferred::Deferred;
pub use ready::get_ready;

/// How many batches are examined at once.
const AHEAD: usize = 4;
/// How many mails one commit takes at most.
const COMMIT: usize = 1_000;
/// How soon it is not written once more that a mailbox is as it was: after each mail it would be a commit of its own, in
/// the way of the next.
const STILL_SO: Duration = Duration::from_secs(1);
/// How often a database that is locked, or a disk that is full, is tried again.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };

/// What an account's mails go through.
#[derive(Clone)]
pub struct Ingest {
    /// The account's name.
    pub account: String,
    /// How its mails are examined.
    pub rules: Arc<Rules>,
    /// Who is asked for keys.
    pub resolver: Arc<Resolver>,
    /// Where everything goes.
    pub store: Store,
    /// Measures how long mails take.
    pub latency: PushLatency,
}

/// What is recorded in one go.
enum Step {
    Examined(Batch, Vec<ExaminedMail>),
    Found { attribute: String },
    State { mailbox: String, state: MailboxState, seen: bool, error: Option<String> },
}

/// What the database says of how the mailbox is, and since when it says that it was seen.
struct Noted {
    mailbox: String,
    state: MailboxState,
    error: Option<String>,
    seen_at: Option<Instant>,
}

impl Noted {
    fn says(&self, mailbox: &str, state: MailboxState, error: Option<&str>) -> bool {
        self.mailbox == mailbox
            && self.state == state
            && self.error.as_deref() == error
            && self.seen_at.is_some_and(|at| at.elapsed() < STILL_SO)
    }
}

impl Step {
    /// Whether the watcher may be silent for long after it. Of a thousand who connect to a server that does not answer
    /// the last has its turn after more than twenty minutes.
    fn is_pause(&self) -> bool {
        use MailboxState::{Connecting, Failed, Polling};
        matches!(self, Step::State { state: Connecting | Failed | Polling, .. })
    }
}

impl Ingest {
    /// Takes what a watcher says until it says no more. `pulse` beats whenever something of it is recorded.
    ///
    /// # Errors
    /// What the store says, if it cannot be mended by waiting.
    pub async fn run(self, reports: mpsc::Receiver<Report>, pulse: Pulse) -> db::Result<()> {
        let incoming = stream::unfold(reports, |mut reports| async { reports.recv().await.map(|r| (r, reports)) });
        let steps = incoming.map(|report| self.prepare(report)).buffered(AHEAD);
        let mut steps = std::pin::pin!(steps);
        let mut noted = None;
        while let Some(step) = steps.next().await {
            let mut ready = vec![step];
            // All that is examined by now goes into one commit.
            while ready.len() < COMMIT / 64
                && let Some(Some(step)) = steps.next().now_or_never()
            {
                ready.push(step);
            }
            let pause = if ready.iter().any(Step::is_pause) { imap::LONGEST_PAUSE } else { Duration::ZERO };
            self.record(ready, &mut noted, &pulse).await?;
            pulse.beat_before(pause);
        }
        Ok(())
    }

    async fn prepare(&self, report: Report) -> Step {
        match report {
            Report::State { mailbox, state, seen, error } => {
                if seen {
                    self.keep_keys_ready();
                }
                Step::State { mailbox, state, seen, error }
            }
            Report::Found { attribute } => Step::Found { attribute },
            Report::Mails(mut batch) => {
                let mails = std::mem::take(&mut batch.mails);
                let undelivered = std::mem::take(&mut batch.undelivered);
                let mut entries = if mails.is_empty() { Vec::new() } else { self.examine(mails).await };
                entries.extend(undelivered.into_iter().map(ExaminedMail::undelivered));
                Step::Examined(batch, entries)
            }
        }
    }

    /// Asks again for the keys that have expired, so that the next mail need not wait for it.
    fn keep_keys_ready(&self) {
        if !self.resolver.has_cached_keys() {
            let resolver = self.resolver.clone();
            tokio::spawn(async move { resolver.prefetch_keys().await });
        }
    }

    /// Examines mails in a task of their own, so that another core can do it.
    pub async fn examine(&self, mails: Vec<RawMail>) -> Vec<ExaminedMail> {
        let mails = match <[RawMail; 1]>::try_from(mails) {
            Ok([mail]) => return vec![self.examine_alone(mail).await],
            Err(mails) => mails,
        };
        let (rules, resolver) = (self.rules.clone(), self.resolver.clone());
        let all = async move {
            let mut entries = Vec::with_capacity(mails.len());
            for mail in mails {
                let examined = examine_one(&rules, &resolver, &mail).await;
                entries.push(ExaminedMail::new(mail, examined));
            }
            entries
        };
        match tokio::spawn(all).await {
            Ok(entries) => entries,
            // Every mail's panic is contained in `examine_one`; this is a task that was cancelled at the end.
            Err(_) => std::future::pending().await,
        }
    }

    /// Examines the one mail that somebody may be waiting for: one core reads it while another judges it.
    async fn examine_alone(&self, mail: RawMail) -> ExaminedMail {
        let mail = Arc::new(mail);
        let (rules, it) = (self.rules.clone(), mail.clone());
        let reading = tokio::spawn(async move { catch_panic(|| rules.parse(&it)) });
        let (rules, resolver, it) = (self.rules.clone(), self.resolver.clone(), mail.clone());
        // In a task, too: what a task spawns last no other core takes from it.
        let judging =
            tokio::spawn(async move { catch_panic_async(rules.authenticate(&it, &resolver, Timestamp::now())).await });
        let examined = match (judging.await, reading.await) {
            (Ok(verdict), Ok(read)) => {
                verdict.zip(read).and_then(|(verdict, read)| catch_panic(|| self.rules.combine(&mail, verdict, read).0))
            }
            // Every panic is contained; this is a task that was cancelled at the end.
            _ => std::future::pending().await,
        };
        ExaminedMail::new(Arc::unwrap_or_clone(mail), examined.unwrap_or_else(not_taken_apart))
    }

    /// Examines mails and records them, without a cursor: what `import` hands over.
    ///
    /// # Errors
    /// As [`Ingest::run`].
    pub async fn record_now(&self, mails: Vec<RawMail>) -> db::Result<Vec<Recorded>> {
        let entries = self.examine(mails).await.into();
        self.commit(&entries, None, None).await
    }

    async fn record(&self, steps: Vec<Step>, noted: &mut Option<Noted>, pulse: &Pulse) -> db::Result<()> {
        let (mut entries, mut cursor, mut answers, mut state) = (Vec::new(), None, Vec::new(), None);
        for step in steps {
            match step {
                Step::Found { attribute } => {
                    retry_temporary(Some(pulse), || self.store.forget_mailbox(&self.account, &attribute)).await?;
                }
                Step::State { mailbox, state: s, seen, error } => state = Some((mailbox, s, seen, error)),
                Step::Examined(batch, examined) => {
                    cursor = self.cursor(&batch).or(cursor);
                    answers.extend(batch.done.map(|done| (done, entries.len(), examined.len())));
                    entries.extend(examined);
                }
            }
        }
        if !entries.is_empty() || cursor.is_some() {
            let entries: Arc<[ExaminedMail]> = entries.into();
            let recorded = self.commit(&entries, cursor.as_ref(), Some(pulse)).await?;
            if let (Some(noted), Some(_)) = (noted.as_mut(), &cursor) {
                noted.seen_at = Some(Instant::now());
            }
            for (done, from, count) in answers {
                let uids = entries.iter().zip(&recorded).skip(from).take(count).filter_map(notification_uid).collect();
                // The watcher may have lost its connection meanwhile; what is not put away now stays where it is.
                let _ = done.send(uids);
            }
        }
        if let Some((mailbox, state, seen, error)) = state
            && !noted.as_ref().is_some_and(|noted| noted.says(&mailbox, state, error.as_deref()))
        {
            let note = || self.store.note_mailbox(&self.account, &mailbox, state, seen, error.clone());
            retry_temporary(Some(pulse), note).await?;
            *noted = Some(Noted { mailbox, state, error, seen_at: seen.then(Instant::now) });
        }
        Ok(())
    }

    fn cursor(&self, batch: &Batch) -> Option<Cursor> {
        let reached = batch.cursor?;
        Some(Cursor { account: self.account.clone(), mailbox: batch.mailbox.clone(), reached })
    }

    /// Records mails, however long the database has to be waited for.
    async fn commit(
        &self,
        entries: &Arc<[ExaminedMail]>,
        cursor: Option<&Cursor>,
        pulse: Option<&Pulse>,
    ) -> db::Result<Vec<Recorded>> {
        let recorded = retry_temporary(pulse, || self.store.record(entries.clone(), cursor.cloned())).await?;
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

/// A panic in a parser costs the mail that caused it, not the daemon.
async fn examine_one(rules: &Rules, resolver: &Resolver, mail: &RawMail) -> Examined {
    let examining = rules.examine(mail, resolver, Timestamp::now());
    catch_panic_async(examining).await.unwrap_or_else(not_taken_apart)
}

fn not_taken_apart() -> Examined {
    Examined {
        judgement: Judgement::Quarantined(Reason::new(ReasonCode::Malformed, "it could not be taken apart")),
        proof: None,
        envelope: crate::model::Envelope::default(),
    }
}

fn notification_uid((entry, recorded): (&ExaminedMail, &Recorded)) -> Option<u32> {
    // A mail that was recorded before is a duplicate as well, whatever it was then.
    entry.mail.origin.uid.filter(|_| recorded.event_id.is_some()).map(|(_, uid)| uid.0)
}

/// Retries a database operation after temporary errors, such as a full disk. Each retry is a heartbeat: a restart by the
/// watchdog would not free disk space.
async fn retry_temporary<T, F: Future<Output = db::Result<T>>>(
    pulse: Option<&Pulse>,
    work: impl FnMut() -> F,
) -> db::Result<T> {
    let report = |error: db::Error| {
        if !error.is_temporary() {
            return Err(error);
        }
        tracing::error!("{error}");
        if let Some(pulse) = pulse {
            pulse.beat_before(RETRY.cap);
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
    use crate::pulse::Pulses;

    #[tokio::test]
    async fn whoever_waits_for_room_on_the_disk_is_not_stuck() {
        let pulses = Pulses::default();
        let pulse = pulses.begin("watching", Duration::ZERO);
        let full = || async { Err::<(), _>(db::Error::Full("m.db".into())) };
        assert!(retry_temporary(Some(&pulse), full).now_or_never().is_none(), "it tries again");
        assert!(pulses.late().is_empty());
    }
}
