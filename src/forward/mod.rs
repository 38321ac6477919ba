//! The loop: due deliveries → signed POST → recorded.
//!
//! Each callback has a courier of its own, so that one that hangs delays no other. A courier sleeps until a commit
//! wakes it, an attempt ends, or the next delivery is due; what it sends it takes from the table, a handful at a time.

mod post;
mod schedule;
mod settings;
mod sign;
mod target;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

pub use settings::{Confirm, HttpPath, Settings, Unresolved};
pub use target::{Target, Wrong};

use crate::backoff::Backoff;
use crate::db::{self, Claimed, ClaimedBatch, FinishedAttempt, InFlight, NextStep, Store};
use crate::model::AttemptResult;

/// How many requests to one callback are under way at once.
const CONCURRENCY: usize = 16;

/// How long requests under way may go on after the order to stop. What then has no answer is posted again later.
const GRACE: Duration = Duration::from_secs(3);

/// How long after a failed store call the next is made.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The pauses between attempts to release deliveries.
const RETRY: Backoff = Backoff { base: STORE_PAUSE, cap: STORE_PAUSE };
/// How long the next delivery is waited for before it is looked again what the clock says.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Delivers until `shutdown` turns true (or its sender is gone), then lets requests under way end, for a few seconds.
///
/// # Errors
/// [`db::Error::Stopped`] if the store's writer has ended: nothing can be recorded any more.
pub async fn run(store: Store, targets: Vec<Target>, shutdown: watch::Receiver<bool>) -> db::Result<()> {
    let mut couriers = JoinSet::new();
    couriers.spawn(release(store.clone(), shutdown.clone()));
    // Without a target there is no worker. The loop runs until `shutdown` all the same: its end would end the daemon.
    let mut ending = shutdown.clone();
    couriers.spawn(async move {
        let _ = ending.wait_for(|ending| *ending).await;
        Ok(())
    });
    for target in targets {
        if target.destination.is_cleartext_remote() {
            tracing::warn!(
                callback = target.name(),
                "http to another machine: events can be read on the way; use https"
            );
        }
        couriers.spawn(Courier::new(store.clone(), target).run(shutdown.clone()));
    }
    while let Some(ended) = couriers.join_next().await {
        match ended {
            Ok(result) => result?,
            // A fault of ours must end the process, or its supervisor could not mend it.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(db::Error::Stopped),
        }
    }
    Ok(())
}

/// Holds and releases deliveries as the configuration says now.
async fn release(store: Store, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
    let report = |error: db::Error| {
        if matches!(error, db::Error::Stopped) {
            return Err(error);
        }
        tracing::warn!(%error, "cannot release held deliveries; trying again");
        Ok(())
    };
    tokio::select! {
        biased;
        released = RETRY.retry(|| store.apply_settings(), report) => released.map(drop),
        _ = shutdown.wait_for(|ending| *ending) => Ok(()),
    }
}

/// Whether a callback can be reached: connects, with TLS also greets, and asks for nothing. What was found, in lines.
///
/// # Errors
/// In words, for the operator.
pub async fn probe(target: &Target) -> Result<Vec<String>, String> {
    post::reach(target).await.map(|()| vec![format!("{} can be reached; no event was sent", target.destination)])
}

/// What brings deliveries to one callback.
struct Courier {
    store: Store,
    target: Arc<Target>,
    requests: JoinSet<FinishedAttempt>,
    under_way: HashMap<Id, UnderWay>,
    /// Attempts that ended and are not recorded yet.
    ended: Vec<FinishedAttempt>,
    /// What the clock said last.
    clock: Option<Timestamp>,
}

/// An attempt whose task runs.
struct UnderWay {
    claimed: Claimed,
    /// The request is being written, or was written.
    sent: Arc<AtomicBool>,
}

impl Courier {
    fn new(store: Store, target: Target) -> Self {
        let target = Arc::new(target);
        Courier { store, target, requests: JoinSet::new(), under_way: HashMap::new(), ended: Vec::new(), clock: None }
    }

    async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        let mut outbox = self.store.watch_outbox();
        while !*shutdown.borrow() {
            outbox.mark_unchanged();
            let wake_at = self.turn().await?;
            tokio::select! {
                Some(ended) = self.requests.join_next_with_id() => self.take_ended(ended),
                changed = outbox.changed() => changed.map_err(|_| db::Error::Stopped)?,
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                changed = shutdown.changed() => if changed.is_err() { break },
            }
        }
        self.stop().await
    }

    /// Records what ended, claims what is due and sends it; when to do so again.
    async fn turn(&mut self) -> db::Result<Option<Instant>> {
        let free = CONCURRENCY - self.under_way.len().min(CONCURRENCY);
        match self.record_and_claim(free).await {
            Ok(turn) => {
                turn.claimed.into_iter().for_each(|claimed| self.send(claimed));
                Ok(turn.next_due.map(instant))
            }
            Err(db::Error::Stopped) => Err(db::Error::Stopped),
            Err(error) => {
                tracing::error!(callback = self.target.name(), %error, "cannot use the outbox; trying again");
                Ok(Some(Instant::now() + STORE_PAUSE))
            }
        }
    }

    async fn record_and_claim(&mut self, free: usize) -> db::Result<ClaimedBatch> {
        let clock = Timestamp::now();
        // When nobody ran it may have been set back as well.
        if self.clock.is_none_or(|before| clock < before) {
            self.store.requeue_after_clock_change(self.target.name()).await?;
        }
        self.clock = Some(clock);
        let in_flight = self.under_way.values();
        let in_flight = in_flight
            .map(|UnderWay { claimed, .. }| InFlight {
                delivery_id: claimed.delivery_id,
                session_id: claimed.session_id.clone(),
            })
            .collect();
        let turn = self.store.record_and_claim(self.target.name(), self.ended.clone(), in_flight, free).await?;
        self.ended.clear();
        Ok(turn)
    }

    fn send(&mut self, claimed: Claimed) {
        let (target, request, sent) = (self.target.clone(), claimed.clone(), Arc::<AtomicBool>::default());
        let is_sent = sent.clone();
        let handle = self.requests.spawn(async move { attempt(&target, &request, &is_sent).await });
        self.under_way.insert(handle.id(), UnderWay { claimed, sent });
    }

    /// Takes an attempt that ended, and all others that have.
    fn take_ended(&mut self, first: Result<(Id, FinishedAttempt), JoinError>) {
        let mut next = Some(first);
        while let Some(ended) = next {
            let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
            match (ended, self.under_way.remove(&id)) {
                (Ok((_, attempted)), _) => self.ended.push(attempted),
                (Err(_), Some(under_way)) => self.ended.push(broken(&self.target, &under_way)),
                (Err(_), None) => {}
            }
            next = self.requests.try_join_next_with_id();
        }
    }

    /// Waits for requests under way, for a while, and records how they ended.
    async fn stop(mut self) -> db::Result<()> {
        let deadline = Instant::now() + GRACE;
        while let Ok(Some(ended)) = timeout_at(deadline, self.requests.join_next_with_id()).await {
            self.take_ended(ended);
        }
        self.requests.abort_all();
        self.record_and_claim(0).await.map(drop)
    }
}

/// A moment of the wall clock on the clock of timers, which does not go on while the machine sleeps, and is not set.
fn instant(at: Timestamp) -> Instant {
    let wait = at.duration_since(Timestamp::now());
    // Rounded up: a timer that fires early would find nothing due.
    let wait = Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1);
    Instant::now() + wait.min(LONGEST_WAIT)
}

/// Makes one attempt, and says what follows from it.
async fn attempt(target: &Target, claimed: &Claimed, sent: &AtomicBool) -> FinishedAttempt {
    let (began, at) = (Instant::now(), Timestamp::now());
    let answer = post::post(target, claimed, sent).await;
    let took = began.elapsed();
    let result = match (answer.status, &answer.error) {
        (_, None) => AttemptResult::Accepted,
        (Some(_), Some(_)) => AttemptResult::Rejected,
        (None, Some(_)) if sent.load(Ordering::Relaxed) => AttemptResult::NoResponse,
        (None, Some(_)) => AttemptResult::NotSent,
    };
    let end = match answer.error {
        None => NextStep::Delivered,
        Some(error) => {
            let now = schedule::ended(at, took, Timestamp::now());
            after_failure(target, claimed, now, error, answer.retry_after)
        }
    };
    tell(target, claimed, answer.status, took, &end);
    FinishedAttempt {
        delivery_id: claimed.delivery_id,
        attempt: claimed.attempt,
        result,
        status: answer.status,
        took,
        next_step: end,
    }
}

fn after_failure(
    target: &Target,
    claimed: &Claimed,
    now: Timestamp,
    error: String,
    asked: Option<Duration>,
) -> NextStep {
    let last = schedule::later(claimed.first_attempt_at, target.give_up_after);
    match schedule::next(now, schedule::pause(claimed.attempt), asked, last) {
        Some(at) => NextStep::RetryAt(error, at),
        None => {
            let after = crate::units::HumanDuration(target.give_up_after);
            NextStep::GiveUp(format!("given up after {after} and {} attempts; the last: {error}", claimed.attempt))
        }
    }
}

/// The end of an attempt whose task panicked. The handler may have the event if the request was sent.
fn broken(target: &Target, under_way: &UnderWay) -> FinishedAttempt {
    let UnderWay { claimed, sent } = under_way;
    let result = if sent.load(Ordering::Relaxed) { AttemptResult::Interrupted } else { AttemptResult::NotSent };
    let end = after_failure(target, claimed, Timestamp::now(), "internal error during the attempt".into(), None);
    FinishedAttempt {
        delivery_id: claimed.delivery_id,
        attempt: claimed.attempt,
        result,
        status: None,
        took: Duration::ZERO,
        next_step: end,
    }
}

fn tell(target: &Target, claimed: &Claimed, status: Option<u16>, took: Duration, end: &NextStep) {
    let (callback, attempt) = (target.name(), claimed.attempt);
    let (event_id, session_id) = (claimed.event_id.as_str(), claimed.session_id.as_deref());
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match end {
        NextStep::Delivered => {
            tracing::info!(callback, event_id, session_id, attempt, status, millis, "delivered");
        }
        NextStep::RetryAt(error, at) => {
            let again = at.to_string();
            tracing::warn!(callback, event_id, session_id, attempt, status, millis, %error, again, "not delivered yet");
        }
        NextStep::GiveUp(error) => {
            tracing::error!(callback, event_id, session_id, attempt, status, millis, %error, "delivery is dead");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Matching;

    #[tokio::test]
    async fn a_panic_after_the_request_is_an_interruption() {
        let folder = tempfile::tempdir().unwrap();
        let matching = Matching { enabled: false, window: STORE_PAUSE };
        let settings =
            db::StoreSettings { path: folder.path().join("m.db"), targets: Vec::new(), matching, chains: Vec::new() };
        let store = Store::open(settings).unwrap();
        let claimed = Claimed {
            delivery_id: 1,
            attempt: 1,
            first_attempt_at: Timestamp::now(),
            event_id: "e".into(),
            session_id: None,
            order_ref: None,
            webhook: "{}".into(),
            confirmation: None,
        };
        for (sent, result) in [(true, AttemptResult::Interrupted), (false, AttemptResult::NotSent)] {
            let settings = "name = \"shop\"\nurl = \"http://127.0.0.1:1/\"\nsecret = { env = \"S\" }";
            let target = Target::new(toml::from_str(settings).unwrap(), "secret".into()).unwrap();
            let mut courier = Courier::new(store.clone(), target);
            let handle = courier.requests.spawn(async { panic!("this test panics on purpose") });
            let under_way = UnderWay { claimed: claimed.clone(), sent: Arc::new(AtomicBool::new(sent)) };
            courier.under_way.insert(handle.id(), under_way);
            let ended = courier.requests.join_next_with_id().await.unwrap();
            courier.take_ended(ended);
            assert_eq!(courier.ended[0].result, result);
        }
    }
}
