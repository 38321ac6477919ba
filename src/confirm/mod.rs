//! The loop that confirms payments. The loop takes a waiting event, asks the nodes of the event's chain, and writes the verdict
//! into the table `confirmations`.
//!
//! Each chain has one loop, so a slow node does not delay other chains. The loop looks at the newest event first. The loop sleeps
//! until a commit wakes it, or until the time of the next look. Without a `[[chain]]` there is no loop and no connection.

mod chain_status;
mod looking;
mod probe;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub use looking::{NodeAnswers, look_now};
pub use probe::probe;

use crate::backoff::Backoff;
use crate::chain::{Chain, ConfirmationReason, ConfirmationState, Finality, Node, Observation, Revisited, revisit};
use crate::db::{self, Store, TurnWorker, turn_at};
use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::payments::{DueLook, RecordedLook, next_look};
use chain_status::ChainStatus;
use looking::{LONGEST_LOOK, claimed, finish, look_at, question};

/// The pauses of the loop after an error of a node.
const AFTER_ERRORS: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(300) };
/// The longest pause that a node can demand with `Retry-After`.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// A configured chain, with the clients of its nodes.
#[derive(Debug)]
pub struct WatchedChain {
    /// The chain.
    pub chain: Chain,
    /// The clients of the chain's nodes.
    pub nodes: Vec<Node>,
}

impl WatchedChain {
    /// The hosts of the nodes, separated by spaces.
    #[must_use]
    pub fn hosts(&self) -> String {
        self.nodes.iter().map(Node::host).collect::<Vec<_>>().join(" ")
    }
}

/// Confirms the events of one chain until `shutdown` is true.
///
/// # Errors
/// [`db::Error::Stopped`] if the database's writer thread has ended.
pub async fn run(
    store: Store,
    watched: WatchedChain,
    heartbeats: &Heartbeats,
    mut shutdown: watch::Receiver<bool>,
) -> db::Result<()> {
    let heartbeat = heartbeats.begin(format!("confirming on {}", watched.chain.name), LONGEST_LOOK * 2);
    let status = ChainStatus::new(store.clone(), &watched);
    let mut worker =
        ConfirmationWorker { store: store.clone(), watched, status, heartbeat, failures: 0, not_before: None };
    let mut ending = shutdown.clone();
    let work = async {
        // A node of the wrong chain is reported at the start, not only with the first payment.
        match worker.status.refresh(&worker.watched, false).await {
            Err(db::Error::Stopped) => return Err(db::Error::Stopped),
            Err(error) => {
                tracing::warn!(chain = worker.watched.chain.name, %error, "cannot record the state of the nodes")
            }
            Ok(()) => {}
        }
        store.work_in_turns(&mut worker).await
    };
    tokio::select! {
        // A look stores nothing before its end, so it can be cancelled at any moment.
        _ = ending.wait_for(|ending| *ending) => {}
        ended = work => ended?,
    }
    let _ = shutdown.wait_for(|ending| *ending).await;
    Ok(())
}

struct ConfirmationWorker {
    store: Store,
    watched: WatchedChain,
    status: ChainStatus,
    heartbeat: Heartbeat,
    /// The number of looks in a row that failed because of a node.
    failures: u32,
    /// The loop sends no calls before this time.
    not_before: Option<Instant>,
}

impl TurnWorker for ConfirmationWorker {
    async fn turn(&mut self) -> db::Result<Option<Instant>> {
        if let Some(at) = self.not_before.take() {
            self.heartbeat.beat_before(at.saturating_duration_since(Instant::now()));
            sleep_until(at).await;
            self.heartbeat.beat();
        }
        self.look_at_next().await
    }

    fn report(&self, error: &db::Error) {
        let chain = &self.watched.chain.name;
        tracing::error!(chain, %error, "cannot read or record confirmations; trying again");
    }

    fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }
}

impl ConfirmationWorker {
    /// Looks at the next due event, and returns `None`, because another event may be due. If no event is due, returns the time of
    /// the next search for due events.
    async fn look_at_next(&mut self) -> db::Result<Option<Instant>> {
        let (due, next) = self.store.due_look(&self.watched.chain).await?;
        let Some(due) = due else { return Ok(Some(turn_at(next))) };
        self.status.refresh(&self.watched, true).await?;
        if due.state == ConfirmationState::Confirmed {
            self.revisit(due).await?
        } else {
            self.look_at_event(due).await?
        }
        Ok(None)
    }

    async fn look_at_event(&mut self, due: DueLook) -> db::Result<()> {
        let WatchedChain { chain, nodes } = &self.watched;
        let seen = match question(&due.claim, chain) {
            Ok(question) => look_at(nodes, &question).await,
            Err(_) => Vec::new(),
        };
        let claimed = claimed(&self.store, chain, &due, &seen).await?;
        let mut finished = finish(chain, &self.watched.hosts(), due.clone(), &seen, &claimed);
        let pause = self.pause(&due, &seen);
        let next =
            if finished.confirmation.outcome.is_ok() { revisit_pause(&self.watched.chain, &due) } else { Some(pause) };
        finished.next_look_at = next.map(from_now);
        let recorded = self.store.record_look(finished).await?;
        self.status.looked(&self.watched, &seen).await?;
        log_look(&self.watched.chain.name, &due, &recorded);
        Ok(())
    }

    /// Looks again at an event that was confirmed before the block of its arrival was `finalized`. A reorganisation may have
    /// removed that block.
    async fn revisit(&mut self, due: DueLook) -> db::Result<()> {
        let chain = Chain { finality: Finality::Finalized, ..self.watched.chain.clone() };
        let (Ok(question), Some(arrival)) = (question(&due.claim, &chain), due.arrival) else {
            return self.store.record_revisit(&due, Revisited::Later, None).await;
        };
        let seen = look_at(&self.watched.nodes, &question).await;
        let claimed = claimed(&self.store, &chain, &due, &seen).await?;
        let revisited = revisit(&question, &seen, &arrival, &|hash, log| claimed.contains(&(hash, log)));
        if let Revisited::Lost(reason) = &revisited {
            tracing::error!(chain = chain.name, event_id = due.event_id, %reason,
                "a confirmed payment has disappeared from the chain; nothing was taken back, a person must decide");
        }
        let pause = self.pause(&due, &seen);
        let age = Timestamp::now().duration_since(due.confirmed_at.unwrap_or(due.stored_at));
        let is_over = age > SignedDuration::try_from(chain.give_up_after).unwrap_or(SignedDuration::MAX);
        self.store.record_revisit(&due, revisited, (!is_over).then(|| from_now(pause))).await?;
        self.status.looked(&self.watched, &seen).await
    }

    /// The pause before the next look at this event. An error of a node delays all events of the chain.
    fn pause(&mut self, due: &DueLook, seen: &[Observation]) -> Duration {
        let waited = Duration::try_from(Timestamp::now().duration_since(due.claim.waits_since)).unwrap_or_default();
        let errors: Vec<_> = seen.iter().filter_map(|node| node.error.as_ref()).collect();
        if !errors.iter().any(|error| error.is_of_node()) {
            self.failures = 0;
            let pause = next_look(waited, self.watched.chain.block_time);
            return if errors.is_empty() { pause } else { pause.max((waited / 10).min(AFTER_ERRORS.cap)) };
        }
        let asked = errors.iter().filter_map(|error| error.retry_after()).max().unwrap_or_default();
        let pause = AFTER_ERRORS.pause(self.failures).max(asked.min(LONGEST_RETRY_AFTER));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        // This event waits longer than the other events of the chain, because it may be the only event that causes the error.
        pause + (waited / 10).min(AFTER_ERRORS.cap)
    }
}

/// The pause before the next look at a confirmed event. `None`: the chain confirms events only in `finalized` blocks, which a
/// reorganisation cannot remove.
fn revisit_pause(chain: &Chain, due: &DueLook) -> Option<Duration> {
    let waited = Duration::try_from(Timestamp::now().duration_since(due.claim.waits_since)).unwrap_or_default();
    (chain.finality != Finality::Finalized).then(|| next_look(waited, chain.block_time))
}

fn from_now(pause: Duration) -> Timestamp {
    Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX)
}

fn log_look(chain: &str, due: &DueLook, recorded: &RecordedLook) {
    let event_id = due.event_id.as_str();
    match recorded {
        RecordedLook::Confirmed { released } => {
            tracing::info!(chain, event_id, released, "the chain has confirmed the payment");
        }
        RecordedLook::Open(reason) => log_open(chain, event_id, reason),
        RecordedLook::Outdated => tracing::debug!(chain, event_id, "the event changed during the look"),
    }
}

fn log_open(chain: &str, event_id: &str, reason: &ConfirmationReason) {
    match reason.code.state() {
        ConfirmationState::Waiting => tracing::debug!(chain, event_id, %reason, "waiting for the chain"),
        _ => {
            tracing::warn!(chain, event_id, %reason, "not confirmed; `confirm EVENT_ID --explain` shows what each node answers")
        }
    }
}
