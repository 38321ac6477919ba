//! The delivery worker of one target.
//!
//! A worker sleeps until a commit wakes it, an attempt ends, or the next delivery is due. The worker reads a few due deliveries
//! at a time from the database, so a long outbox needs no memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{AttemptEnd, Failure, RetryRule, after_panic};
use super::breaker::Breaker;
use super::jetstream::StreamConnection;
use super::post::{self, HandlerResponse};
use super::target::{CommonTarget, HandlerTarget};
use crate::db::{self, ClaimLimit, Claimed, ClaimedBatch, FinishedAttempt, NextStep, Store};
use crate::model::AttemptResult;
use crate::sending_permit::SendingPermit;
use crate::telemetry::PublishTimes;

/// How many requests to one target may be open at the same time.
pub(super) const CONCURRENCY: usize = 16;

/// How long open requests may take after `shutdown`, unless `Sending::grace` has another value.
const GRACE: Duration = Duration::from_secs(3);

/// How long a connected daemon waits before it reads the configuration of a stream again, unless `Sending::inspection_interval`
/// has another value. This time is shorter than the five minutes whose events are published again after a connect. So the daemon
/// publishes again what an unfit stream has lost since the last inspection that found the stream fit.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(2 * 60);

/// The pause after a failed call of the [`Store`].
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The longest sleep before a delivery is due. After this sleep, the worker reads the wall clock again, because the clock may
/// have been set.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// When attempts may begin, how long they may take after `shutdown`, how often streams are inspected, and where the durations of
/// publishes are counted.
#[derive(Debug, Clone)]
pub struct Sending {
    /// The permission to begin attempts.
    pub permit: SendingPermit,
    /// How long open requests may take after `shutdown`. A delivery without a response is sent again later.
    pub grace: Duration,
    /// How long a connected daemon waits before it reads the configuration of a stream again.
    pub inspection_interval: Duration,
    /// Where the durations of publishes are counted.
    pub publishes: PublishTimes,
}

impl Default for Sending {
    fn default() -> Self {
        Sending {
            permit: SendingPermit::default(),
            grace: GRACE,
            inspection_interval: INSPECTION_INTERVAL,
            publishes: PublishTimes::default(),
        }
    }
}

/// Sends the deliveries of one target.
pub(super) struct DeliveryWorker {
    pub(super) store: Store,
    pub(super) target: Arc<CommonTarget>,
    pub(super) sending: Sending,
    breaker: Breaker,
    requests: JoinSet<FinishedAttempt>,
    in_flight: HashMap<Id, RunningAttempt>,
    /// Attempts that have ended, and whose results are not in the database yet.
    ended: Vec<FinishedAttempt>,
    /// The time of the wall clock at the last call of [`Store::record_and_claim`].
    clock: Option<Timestamp>,
}

/// The way from the worker to its target.
#[derive(Clone)]
pub(super) enum Route {
    Handler(Arc<HandlerTarget>),
    /// A connection to a stream. The worker does not open a lost connection again.
    Stream(Arc<StreamConnection>),
}

impl Route {
    /// How many attempts may run at the same time; 0 after the connection to a stream has ended.
    fn concurrency(&self) -> usize {
        match self {
            Route::Handler(_) => CONCURRENCY,
            Route::Stream(connection) => connection.concurrency(),
        }
    }

    /// Returns when attempts can no longer reach the target by this route.
    async fn ended(&self) {
        match self {
            Route::Handler(_) => std::future::pending().await,
            Route::Stream(connection) => connection.ended().await,
        }
    }
}

/// An attempt whose task runs.
struct RunningAttempt {
    claimed: Claimed,
    /// Whether the request is being written, or was written.
    sent: Arc<AtomicBool>,
    /// Whether the [`Breaker`] gets the result of the attempt. The breaker does not get the results of publishes to a stream: a
    /// lost connection already ends all attempts, and the refusal of a message that is too large does not concern other messages.
    counts_for_breaker: bool,
}

impl DeliveryWorker {
    pub(super) fn new(store: Store, target: Arc<CommonTarget>, sending: Sending) -> Self {
        DeliveryWorker {
            store,
            breaker: Breaker::new(target.clone()),
            target,
            sending,
            requests: JoinSet::new(),
            in_flight: HashMap::new(),
            ended: Vec::new(),
            clock: None,
        }
    }

    /// Delivers to a handler until `shutdown`.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the database writer has ended.
    pub(super) async fn run(
        mut self,
        handler: Arc<HandlerTarget>,
        mut shutdown: watch::Receiver<bool>,
    ) -> db::Result<()> {
        self.deliver(&Route::Handler(handler), &mut shutdown).await?;
        self.stop().await
    }

    /// Delivers until `shutdown`, or until the route to the target has ended.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the database writer has ended.
    pub(super) async fn deliver(&mut self, route: &Route, shutdown: &mut watch::Receiver<bool>) -> db::Result<()> {
        let mut outbox = self.store.watch_outbox();
        let ended = route.ended();
        tokio::pin!(ended);
        let mut permit = self.sending.permit.clone();
        while !*shutdown.borrow() {
            self.breaker.note_commits(*outbox.borrow_and_update());
            let may_send = permit.is_valid();
            let wake_at = self.record_and_send(route).await?;
            tokio::select! {
                Some(ended) = self.requests.join_next_with_id() => self.collect_ended(ended),
                changed = outbox.changed() => changed.map_err(|_| db::Error::Stopped)?,
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                changed = shutdown.changed() => if changed.is_err() { break },
                () = &mut ended => break,
                () = permit.changed(), if !may_send => {}
            }
        }
        Ok(())
    }

    /// Writes the results of ended attempts into the database, reads due deliveries and sends them. Returns the time at which the
    /// worker must call this function again.
    async fn record_and_send(&mut self, route: &Route) -> db::Result<Option<Instant>> {
        let now = Instant::now();
        let free = route.concurrency().saturating_sub(self.in_flight.len());
        let limit = match self.sending.permit.is_valid() {
            true => self.breaker.limit(now, self.in_flight.len(), free),
            false => ClaimLimit::Due(0),
        };
        match self.record_and_claim(limit).await {
            Ok(batch) => {
                if let Route::Stream(connection) = route
                    && free > 0
                    && batch.claimed.is_empty()
                    && self.in_flight.is_empty()
                {
                    connection.note_idle();
                }
                for claimed in batch.claimed {
                    self.send(route.clone(), claimed);
                }
                Ok(self.breaker.wake_at(now, self.in_flight.len(), batch.next_due.map(instant)))
            }
            Err(db::Error::Stopped) => Err(db::Error::Stopped),
            Err(error) => {
                tracing::error!(callback = self.target.name, %error, "cannot use the outbox; trying again");
                Ok(Some(Instant::now() + STORE_PAUSE))
            }
        }
    }

    async fn record_and_claim(&mut self, limit: ClaimLimit) -> db::Result<ClaimedBatch> {
        let clock = Timestamp::now();
        // If the clock was set back, deliveries that were scheduled by the later clock become due. The first call does this too,
        // because the clock may have been set back while no daemon ran.
        if self.clock.is_none_or(|before| clock < before) {
            self.store.requeue_after_clock_change(&self.target.name).await?;
        }
        self.clock = Some(clock);
        let in_flight = self.in_flight.values().map(|running| running.claimed.in_flight()).collect();
        let batch = self.store.record_and_claim(&self.target.name, self.ended.clone(), in_flight, limit).await?;
        self.ended.clear();
        Ok(batch)
    }

    fn send(&mut self, route: Route, claimed: Claimed) {
        let (target, request, sent) = (self.target.clone(), claimed.clone(), Arc::<AtomicBool>::default());
        let (is_sent, permit) = (sent.clone(), self.sending.permit.clone());
        let counts_for_breaker = matches!(route, Route::Handler(_));
        let handle = self.requests.spawn(async move { attempt(&target, &route, &request, &permit, &is_sent).await });
        self.in_flight.insert(handle.id(), RunningAttempt { claimed, sent, counts_for_breaker });
    }

    /// Moves the ended attempt `first`, and all other attempts that have ended, from `in_flight` to `ended`.
    fn collect_ended(&mut self, first: Result<(Id, FinishedAttempt), JoinError>) {
        let mut next = Some(first);
        while let Some(ended) = next {
            let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
            if let Some(running) = self.in_flight.remove(&id) {
                let finished = match ended {
                    Ok((_, finished)) => finished,
                    Err(_) => after_panic(&self.target, &running.claimed, running.sent.load(Ordering::Relaxed)),
                };
                // If this host had no permission to send, the attempt says nothing about the handler, so the breaker does not get
                // its result.
                if running.counts_for_breaker && !matches!(finished.next_step, NextStep::RetryUncounted(..)) {
                    self.breaker.note_result(finished.result, Instant::now());
                }
                self.ended.push(finished);
            }
            next = self.requests.try_join_next_with_id();
        }
    }

    /// Waits for open requests, at most for the time that [`Sending`] allows. The next call of `record_and_claim` writes the
    /// results into the database.
    pub(super) async fn wait_for_requests(&mut self) {
        let deadline = Instant::now() + self.sending.grace;
        while let Ok(Some(ended)) = timeout_at(deadline, self.requests.join_next_with_id()).await {
            self.collect_ended(ended);
        }
    }

    /// Writes the results of the attempts that have ended into the database.
    ///
    /// # Errors
    /// [`db::Error::Stopped`]: the database writer has ended. After another error, the next call of `record_and_claim` writes the
    /// results.
    pub(super) async fn record_ended(&mut self) -> db::Result<()> {
        match self.record_and_claim(ClaimLimit::Due(0)).await {
            Err(db::Error::Stopped) => Err(db::Error::Stopped),
            _ => Ok(()),
        }
    }

    /// Waits for open requests, at most for the time that [`Sending`] allows. Then aborts the requests that are still open, and
    /// writes the results of the ended requests into the database.
    pub(super) async fn stop(mut self) -> db::Result<()> {
        self.wait_for_requests().await;
        self.requests.abort_all();
        self.record_and_claim(ClaimLimit::Due(0)).await.map(drop)
    }
}

/// Converts a time of the wall clock to the monotonic clock of the timers, at most [`LONGEST_WAIT`] from now.
fn instant(at: Timestamp) -> Instant {
    let wait = at.duration_since(Timestamp::now());
    // The wait is rounded up, because no delivery would be due if the timer fired early.
    let wait = Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1);
    Instant::now() + wait.min(LONGEST_WAIT)
}

/// Makes one attempt. The result contains the next step for the delivery.
async fn attempt(
    target: &CommonTarget,
    route: &Route,
    claimed: &Claimed,
    permit: &SendingPermit,
    sent: &AtomicBool,
) -> FinishedAttempt {
    let (began, at) = (Instant::now(), Timestamp::now());
    let end = match route {
        Route::Handler(handler) => {
            evaluate(post::post(target, handler, &claimed.event, permit, sent).await, permit, sent)
        }
        Route::Stream(connection) => connection.deliver(target, &claimed.event, sent).await,
    };
    end.finish(target, claimed, at, began.elapsed())
}

/// Converts the response of a handler to the end of the attempt.
fn evaluate(response: HandlerResponse, permit: &SendingPermit, sent: &AtomicBool) -> AttemptEnd {
    let HandlerResponse { status, error, retry_after } = response;
    let Some(error) = error else { return AttemptEnd::Accepted(status) };
    let (result, retry) = match status {
        Some(_) => (AttemptResult::Rejected, RetryRule::Counted(retry_after)),
        None if sent.load(Ordering::Relaxed) => (AttemptResult::NoResponse, RetryRule::Counted(retry_after)),
        // This host has no permission to send, so the handler is not the cause.
        None if !permit.is_valid() => (AttemptResult::NotSent, RetryRule::WhenReachable),
        None => (AttemptResult::NotSent, RetryRule::Counted(retry_after)),
    };
    AttemptEnd::Failed(Failure { result, status, error, retry })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::boot_clock::BootInstant;
    use crate::db::{NextStep, OutboundEvent};
    use crate::forward::Target;
    use crate::forward::target::TargetKind;
    use crate::model::Status;

    fn claimed(first_attempt_at: Timestamp) -> Claimed {
        let event = OutboundEvent {
            event_id: "e".into(),
            status: Status::Failed,
            session_id: None,
            order_ref: None,
            account: None,
            webhook: "{}".into(),
            confirmation: None,
        };
        Claimed { delivery_id: 1, attempt: 1, first_attempt_at, event }
    }

    #[tokio::test]
    async fn no_request_is_written_after_the_permit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let settings = format!("name = \"shop\"\nurl = \"{url}\"\nsecret = {{ env = \"S\" }}\ngive_up_after = \"1ms\"");
        let target = Target::load(toml::from_str(&settings).unwrap(), "secret".into()).await.unwrap();
        let TargetKind::Handler(handler) = target.kind else { panic!("a handler") };
        let (target, route) = (target.common, Route::Handler(handler));
        let (until, permit) = watch::channel(BootInstant::default());
        let (permit, sent) = (SendingPermit::until(permit), AtomicBool::default());
        // The first attempt of the delivery was a year ago.
        let claimed = claimed(Timestamp::now() - jiff::SignedDuration::from_hours(24 * 365));
        let finished = attempt(&target, &route, &claimed, &permit, &sent).await;
        assert_eq!(finished.result, AttemptResult::NotSent);
        assert!(
            matches!(finished.next_step, NextStep::RetryUncounted(_, at) if at <= Timestamp::now()),
            "{finished:?}"
        );
        let mut received = Vec::new();
        listener.accept().await.unwrap().0.read_to_end(&mut received).await.unwrap();
        assert!(received.is_empty(), "{received:?}");
        until.send(BootInstant::now().plus(STORE_PAUSE * 60)).unwrap();
        let (_, accepted) = tokio::join!(attempt(&target, &route, &claimed, &permit, &sent), async {
            listener.accept().await.unwrap().0.read(&mut [0; 64]).await.unwrap()
        });
        assert!(accepted > 0);
    }

    #[tokio::test]
    async fn the_breaker_ignores_attempts_at_streams() {
        let folder = tempfile::tempdir().unwrap();
        let store = db::testing::store(&folder);
        let settings = "name = \"shop\"\nurl = \"http://127.0.0.1:1/\"\nsecret = { env = \"S\" }";
        let target = Target::load(toml::from_str(settings).unwrap(), "secret".into()).await.unwrap();
        for counts_for_breaker in [false, true] {
            let mut worker = DeliveryWorker::new(store.clone(), target.common.clone(), Sending::default());
            for _ in 0..100 {
                let (claimed, sent) = (claimed(Timestamp::now()), Arc::default());
                let not_sent = after_panic(&target.common, &claimed, false);
                let handle = worker.requests.spawn(async { not_sent });
                worker.in_flight.insert(handle.id(), RunningAttempt { claimed, sent, counts_for_breaker });
            }
            while let Some(ended) = worker.requests.join_next_with_id().await {
                worker.collect_ended(ended);
            }
            assert_eq!(worker.ended.len(), 100);
            let is_open = worker.breaker.limit(Instant::now(), 0, 16) != ClaimLimit::Due(16);
            assert_eq!(is_open, counts_for_breaker);
        }
    }

    #[tokio::test]
    async fn a_panic_after_the_request_is_interrupted() {
        let folder = tempfile::tempdir().unwrap();
        let store = db::testing::store(&folder);
        let claimed = claimed(Timestamp::now());
        for (sent, result) in [(true, AttemptResult::Interrupted), (false, AttemptResult::NotSent)] {
            let settings = "name = \"shop\"\nurl = \"http://127.0.0.1:1/\"\nsecret = { env = \"S\" }";
            let target = Target::load(toml::from_str(settings).unwrap(), "secret".into()).await.unwrap();
            let mut worker = DeliveryWorker::new(store.clone(), target.common, Sending::default());
            let handle = worker.requests.spawn(async { panic!("this test panics on purpose") });
            let sent = Arc::new(AtomicBool::new(sent));
            let running = RunningAttempt { claimed: claimed.clone(), sent, counts_for_breaker: true };
            worker.in_flight.insert(handle.id(), running);
            let ended = worker.requests.join_next_with_id().await.unwrap();
            worker.collect_ended(ended);
            assert_eq!(worker.ended[0].result, result);
        }
    }
}
