//! The delivery worker of one target.
//!
//! A worker sleeps until a commit wakes it, an attempt ends, or the next delivery is due. It claims a few due deliveries at a
//! time from the table, so a long outbox needs no memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::breaker::Breaker;
use super::target::Target;
use super::{post, retry};
use crate::db::{self, ClaimLimit, Claimed, ClaimedBatch, FinishedAttempt, NextStep, Store};
use crate::model::AttemptResult;

/// How many requests to one handler may be open at the same time.
const CONCURRENCY: usize = 16;

/// How long open requests may take after `shutdown`. A delivery without a response is sent again later.
const GRACE: Duration = Duration::from_secs(3);

/// The pause after a failed call of the store.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The longest sleep until a due time. After it, the worker reads the clock again, which may have been set.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Sends the deliveries of one target.
pub(super) struct DeliveryWorker {
    store: Store,
    target: Arc<Target>,
    breaker: Breaker,
    requests: JoinSet<FinishedAttempt>,
    in_flight: HashMap<Id, RunningAttempt>,
    /// Attempts that have ended and are not recorded yet.
    ended: Vec<FinishedAttempt>,
    /// The wall clock at the last call of the store.
    clock: Option<Timestamp>,
}

/// An attempt whose task runs.
struct RunningAttempt {
    claimed: Claimed,
    /// The request is being written, or was written.
    sent: Arc<AtomicBool>,
}

impl DeliveryWorker {
    pub(super) fn new(store: Store, target: Target) -> Self {
        let target = Arc::new(target);
        DeliveryWorker {
            store,
            breaker: Breaker::new(target.clone()),
            target,
            requests: JoinSet::new(),
            in_flight: HashMap::new(),
            ended: Vec::new(),
            clock: None,
        }
    }

    /// Delivers until `shutdown`.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the database writer has ended.
    pub(super) async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        let mut outbox = self.store.watch_outbox();
        while !*shutdown.borrow() {
            self.breaker.note_commits(*outbox.borrow_and_update());
            let wake_at = self.record_and_send().await?;
            tokio::select! {
                Some(ended) = self.requests.join_next_with_id() => self.collect_ended(ended),
                changed = outbox.changed() => changed.map_err(|_| db::Error::Stopped)?,
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                changed = shutdown.changed() => if changed.is_err() { break },
            }
        }
        self.stop().await
    }

    /// Records ended attempts, claims due deliveries and sends them. Returns when the next delivery is due.
    async fn record_and_send(&mut self) -> db::Result<Option<Instant>> {
        let now = Instant::now();
        let free = CONCURRENCY.saturating_sub(self.in_flight.len());
        match self.record_and_claim(self.breaker.limit(now, self.in_flight.len(), free)).await {
            Ok(batch) => {
                for claimed in batch.claimed {
                    self.send(claimed);
                }
                Ok(self.breaker.wake_at(now, self.in_flight.len(), batch.next_due.map(instant)))
            }
            Err(db::Error::Stopped) => Err(db::Error::Stopped),
            Err(error) => {
                tracing::error!(callback = self.target.name(), %error, "cannot use the outbox; trying again");
                Ok(Some(Instant::now() + STORE_PAUSE))
            }
        }
    }

    async fn record_and_claim(&mut self, limit: ClaimLimit) -> db::Result<ClaimedBatch> {
        let clock = Timestamp::now();
        // At the start, too: the clock may have been set back while no daemon ran.
        if self.clock.is_none_or(|before| clock < before) {
            self.store.requeue_after_clock_change(self.target.name()).await?;
        }
        self.clock = Some(clock);
        let in_flight = self.in_flight.values().map(|running| running.claimed.in_flight()).collect();
        let batch = self.store.record_and_claim(self.target.name(), self.ended.clone(), in_flight, limit).await?;
        self.ended.clear();
        Ok(batch)
    }

    fn send(&mut self, claimed: Claimed) {
        let (target, request, sent) = (self.target.clone(), claimed.clone(), Arc::<AtomicBool>::default());
        let is_sent = sent.clone();
        let handle = self.requests.spawn(async move { attempt(&target, &request, &is_sent).await });
        self.in_flight.insert(handle.id(), RunningAttempt { claimed, sent });
    }

    /// Collects an attempt that has ended, and all others that have ended.
    fn collect_ended(&mut self, first: Result<(Id, FinishedAttempt), JoinError>) {
        let mut next = Some(first);
        while let Some(ended) = next {
            let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
            let finished = match (ended, self.in_flight.remove(&id)) {
                (Ok((_, finished)), _) => Some(finished),
                (Err(_), Some(running)) => Some(after_panic(&self.target, &running)),
                (Err(_), None) => None,
            };
            if let Some(finished) = finished {
                self.breaker.note_result(finished.result, Instant::now());
                self.ended.push(finished);
            }
            next = self.requests.try_join_next_with_id();
        }
    }

    /// Waits up to [`GRACE`] for open requests, and records the results.
    async fn stop(mut self) -> db::Result<()> {
        let deadline = Instant::now() + GRACE;
        while let Ok(Some(ended)) = timeout_at(deadline, self.requests.join_next_with_id()).await {
            self.collect_ended(ended);
        }
        self.requests.abort_all();
        self.record_and_claim(ClaimLimit::Due(0)).await.map(drop)
    }
}

/// Converts a time of the wall clock to the monotonic clock of the timers, at most [`LONGEST_WAIT`] from now.
fn instant(at: Timestamp) -> Instant {
    let wait = at.duration_since(Timestamp::now());
    // Rounded up: if the timer fired early, no delivery would be due.
    let wait = Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1);
    Instant::now() + wait.min(LONGEST_WAIT)
}

/// Makes one attempt. The result contains the next step for the delivery.
async fn attempt(target: &Target, claimed: &Claimed, sent: &AtomicBool) -> FinishedAttempt {
    let (began, at) = (Instant::now(), Timestamp::now());
    let response = post::post(target, claimed, sent).await;
    let took = began.elapsed();
    let result = match (response.status, &response.error) {
        (_, None) => AttemptResult::Accepted,
        (Some(_), Some(_)) => AttemptResult::Rejected,
        (None, Some(_)) if sent.load(Ordering::Relaxed) => AttemptResult::NoResponse,
        (None, Some(_)) => AttemptResult::NotSent,
    };
    let next_step = match response.error {
        None => NextStep::Delivered,
        Some(error) => {
            let now = retry::ended(at, took, Timestamp::now());
            after_failure(target, claimed, now, error, response.retry_after)
        }
    };
    log_attempt(target, claimed, response.status, took, &next_step);
    FinishedAttempt {
        delivery_id: claimed.delivery_id,
        attempt: claimed.attempt,
        result,
        status: response.status,
        took,
        next_step,
    }
}

fn after_failure(
    target: &Target,
    claimed: &Claimed,
    now: Timestamp,
    error: String,
    retry_after: Option<Duration>,
) -> NextStep {
    let last = retry::later(claimed.first_attempt_at, target.give_up_after);
    match retry::next(now, retry::pause(claimed.attempt), retry_after, last) {
        Some(at) => NextStep::RetryAt(error, at),
        None => {
            let after = crate::units::HumanDuration(target.give_up_after);
            NextStep::GiveUp(format!("given up after {after} and {} attempts; the last: {error}", claimed.attempt))
        }
    }
}

/// The result of an attempt whose task panicked. The handler may have the event if the request was sent.
fn after_panic(target: &Target, running: &RunningAttempt) -> FinishedAttempt {
    let RunningAttempt { claimed, sent } = running;
    let result = if sent.load(Ordering::Relaxed) { AttemptResult::Interrupted } else { AttemptResult::NotSent };
    let next_step = after_failure(target, claimed, Timestamp::now(), "internal error during the attempt".into(), None);
    FinishedAttempt {
        delivery_id: claimed.delivery_id,
        attempt: claimed.attempt,
        result,
        status: None,
        took: Duration::ZERO,
        next_step,
    }
}

fn log_attempt(target: &Target, claimed: &Claimed, status: Option<u16>, took: Duration, next_step: &NextStep) {
    // Names of journal fields are an interface.
    let (callback, attempt) = (target.name(), claimed.attempt);
    let (event_id, session_id) = (claimed.event_id.as_str(), claimed.session_id.as_deref());
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match next_step {
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

    #[tokio::test]
    async fn a_panic_after_the_request_is_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let store = db::testing::store(&folder);
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
            let mut worker = DeliveryWorker::new(store.clone(), target);
            let handle = worker.requests.spawn(async { panic!("this test panics on purpose") });
            let running = RunningAttempt { claimed: claimed.clone(), sent: Arc::new(AtomicBool::new(sent)) };
            worker.in_flight.insert(handle.id(), running);
            let ended = worker.requests.join_next_with_id().await.unwrap();
            worker.collect_ended(ended);
            assert_eq!(worker.ended[0].result, result);
        }
    }
}
