//! The task of the agent: executes the steps of the [`LeaseMachine`], which are reads and writes of the lease at a NATS server.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::announcements::Subscription;
use super::bucket::LeaseBucket;
use super::connection::{LeaseConnection, LeasePlace, explain, open_connection};
use super::hashes::ConfigurationHashes;
use super::lease_value::LeaseValue;
use super::machine::{LeaseMachine, LeaseStep, WriteResult};
use super::standby_file::{Report, StandbyFile};
use super::view::{LeaseState, LeaseView, NOT_READ};
use crate::backoff::Backoff;
use crate::boot_clock::BootInstant;
use crate::heartbeat::Heartbeat;
use crate::nats::NatsConnection;

/// The longest pause between two heartbeats of the agent.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After this number of requests in a row without a valid answer, the agent opens a new connection, because another server may
/// answer.
const FAILURES: u32 = 2;
/// The pauses before the next connect to a NATS server after a failure: for the host that has the lease, and for a standby.
const HOLDER_RETRY: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(1) };
const STANDBY_RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(5) };

/// A command that a handle (`LeaseAgent`) sends to the [`Driver`].
#[derive(Debug)]
pub(crate) enum LeaseCommand {
    Opened { term: u64, last_mail_id: i64 },
    LastMail(i64),
    Configuration(ConfigurationHashes),
    Release { pause: Duration, failure: Option<String>, done: oneshot::Sender<()> },
}

/// The task that gets, renews and releases the lease. A `LeaseAgent` is a handle that sends commands to this task.
pub(super) struct Driver {
    pub(super) place: Arc<LeasePlace>,
    pub(super) machine: LeaseMachine,
    /// The creation time (`LeaseBucket::created`) of the bucket to which the revision in the machine's `KnownData` belongs.
    pub(super) known_bucket: String,
    pub(super) file: StandbyFile,
    pub(super) view: watch::Sender<LeaseView>,
    pub(super) sends_until: watch::Sender<BootInstant>,
    pub(super) commands: mpsc::UnboundedReceiver<LeaseCommand>,
    pub(super) heartbeat: Heartbeat,
    /// Why the lease cannot be read or written.
    pub(super) problem: Option<String>,
    /// Why the last write of the key failed. Such a problem is also in `problem` while the server answers reads, because only an
    /// answer to a write shows that the problem is over.
    pub(super) write_problem: Option<String>,
    pub(super) subscription: Subscription,
    /// The latest problem of the program that fetches the database ([`watch_restore`]).
    ///
    /// [`watch_restore`]: super::restore::watch_restore
    pub(super) restore_problem: watch::Receiver<Option<String>>,
    /// The subject of the key; empty before the first connection.
    pub(super) subject: String,
    pub(super) released: Option<oneshot::Sender<()>>,
}

impl Driver {
    /// Connects to a NATS server, executes the steps of the machine there, and connects again after each failure. Returns when
    /// every `LeaseAgent` is dropped.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let opening = open_connection(self.place.clone());
            let Some(opened) = self.while_offline(opening).await else { return };
            match opened {
                Ok(connection) => {
                    failures = 0;
                    if !self.serve(connection).await {
                        return;
                    }
                    let lost = format!("the connection to {} was lost", self.place.servers);
                    self.set_problem(Some(self.problem.clone().unwrap_or(lost)));
                }
                Err(problem) => {
                    failures += 1;
                    self.set_problem(Some(problem));
                }
            }
            let retry = if self.machine.is_holder() { HOLDER_RETRY } else { STANDBY_RETRY };
            if self.while_offline(sleep(retry.pause(failures))).await.is_none() {
                return;
            }
        }
    }

    /// Waits for `work` while there is no connection, and meanwhile executes commands and ends an expired lease. `None`: every
    /// `LeaseAgent` was dropped.
    async fn while_offline<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            self.heartbeat.beat();
            let now = BootInstant::now();
            self.machine.tick(now);
            self.publish();
            let wait = self.machine.ends_at().map_or(LONGEST_SLEEP, |ends| ends.since(now).min(LONGEST_SLEEP));
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.commands.recv() => self.execute(command?),
                () = sleep(wait) => {}
            }
        }
    }

    /// Executes the machine's steps until the connection is lost, or `FAILURES` requests in a row have no valid answer. Returns
    /// false if every `LeaseAgent` was dropped.
    async fn serve(&mut self, connection: LeaseConnection) -> bool {
        let LeaseConnection { nats, bucket, mut announcements } = connection;
        let lost = nats.lost();
        tokio::pin!(lost);
        let mut refused = nats.refused_subscriptions();
        let now = BootInstant::now();
        bucket.subject().clone_into(&mut self.subject);
        self.subscription.renew(now);
        let created = bucket.created();
        if created != self.known_bucket {
            self.machine.forget_revision();
            self.known_bucket = created;
        }
        self.machine.set_lease(bucket.lease());
        self.machine.connected(now);
        let mut failures = 0;
        while !nats.is_lost() && failures < FAILURES {
            self.heartbeat.beat();
            if self.subscription.is_retry_due(BootInstant::now()) {
                // An error means that the connection is lost.
                let Ok(renewed) = bucket.announcements().await else { return true };
                announcements = renewed;
                self.subscription.renew(BootInstant::now());
            }
            let step = self.machine.next_step(BootInstant::now());
            self.publish();
            match step {
                LeaseStep::Read => {
                    let answered = self.read_lease(&nats, &bucket).await;
                    failures = if answered { 0 } else { failures + 1 };
                }
                LeaseStep::Write { expected, value } => {
                    let answered = self.write(&nats, &bucket, expected, value).await;
                    failures = if answered { 0 } else { failures + 1 };
                }
                LeaseStep::Wait(until) => {
                    match self.wait(until, &mut announcements, &mut refused, lost.as_mut()).await {
                        ControlFlow::Continue(()) => {}
                        ControlFlow::Break(goes_on) => return goes_on,
                    }
                }
            }
        }
        true
    }

    /// Waits until `until`, or until a command, an announcement or a problem arrives, and processes it. `Break` if the connection is
    /// lost, or if every `LeaseAgent` was dropped; the value is false for the second reason.
    async fn wait(
        &mut self,
        until: BootInstant,
        announcements: &mut Subscriber,
        refused: &mut watch::Receiver<Option<String>>,
        lost: Pin<&mut impl Future<Output = ()>>,
    ) -> ControlFlow<bool> {
        let wait = until.since(BootInstant::now()).min(LONGEST_SLEEP);
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.execute(command),
                None => return ControlFlow::Break(false),
            },
            announced = announcements.next() => match announced {
                Some(message) => self.hear(announcements, message),
                None => return ControlFlow::Break(true),
            },
            Ok(()) = refused.changed() => self.note_refusal(refused),
            Ok(()) = self.restore_problem.changed() => {}
            () = lost => return ControlFlow::Break(true),
            () = sleep(wait) => {}
        }
        ControlFlow::Continue(())
    }

    /// Reads the key of the lease, and passes its content to the machine. Returns false if the NATS server gives no valid answer.
    async fn read_lease(&mut self, nats: &NatsConnection, bucket: &LeaseBucket) -> bool {
        let read = bucket.read().await;
        let now = BootInstant::now();
        match read {
            Ok(entry) => {
                self.machine.on_read(now, entry);
                // The next step of a holder is a write. Only an answer to that write shows that the lease can be renewed: a NATS
                // server that the network has cut off can still answer reads.
                if !self.machine.is_holder() {
                    if self.machine.view().ends.is_some_and(|ends| now < ends) {
                        // Another host has the lease, so this host need not write the key.
                        self.write_problem = None;
                    }
                    self.set_problem(self.write_problem.clone());
                }
            }
            Err(error) => {
                self.set_problem(Some(explain(nats, error.to_string())));
                self.machine.on_read_failure(now);
                return false;
            }
        }
        true
    }

    /// Writes the key of the lease, and passes the result to the machine. Returns false if the NATS server gives no valid answer.
    async fn write(&mut self, nats: &NatsConnection, bucket: &LeaseBucket, expected: u64, value: LeaseValue) -> bool {
        let sent = BootInstant::now();
        let (result, problem) = bucket.write(expected, &value).await;
        self.write_problem = problem.map(|problem| explain(nats, problem.to_string()));
        self.set_problem(self.write_problem.clone());
        self.machine.on_write(BootInstant::now(), sent, &value, result);
        result != WriteResult::Unknown
    }

    /// Passes the announcement of a write of the key to the machine. If several announcements wait, only the last one is passed
    /// on.
    fn hear(&mut self, announcements: &mut Subscriber, first: async_nats::Message) {
        let mut last = first;
        while let Some(Some(message)) = announcements.next().now_or_never() {
            last = message;
        }
        self.machine.on_announcement(BootInstant::now(), LeaseValue::parse(&last.payload));
    }

    /// Notes that the NATS server has refused a subscription, if it is the subscription to the key.
    fn note_refusal(&mut self, refused: &mut watch::Receiver<Option<String>>) {
        if refused.borrow_and_update().as_ref() == Some(&self.subject) {
            self.subscription.refuse(BootInstant::now(), self.machine.lease());
        }
    }

    fn execute(&mut self, command: LeaseCommand) {
        let now = BootInstant::now();
        match command {
            LeaseCommand::Opened { term, last_mail_id } => self.machine.opened(now, term, last_mail_id),
            LeaseCommand::LastMail(last_mail_id) => self.machine.note_last_mail(now, last_mail_id),
            LeaseCommand::Configuration(hashes) => self.machine.set_configuration(hashes),
            LeaseCommand::Release { pause, failure, done } => {
                self.machine.release(now, pause, failure);
                self.released = Some(done);
            }
        }
    }

    fn set_problem(&mut self, problem: Option<String>) {
        match (&self.problem, &problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                tracing::warn!("the lease cannot be read or written: {problem}; trying again");
            }
            (Some(_), None) => tracing::info!("the lease can be read and written again"),
            _ => {}
        }
        self.problem = problem;
    }

    /// Sends the machine's view of the lease to the receivers and writes the view into the standby file, if the view has changed.
    fn publish(&mut self) {
        let mut view = self.machine.view();
        let not_read = (!self.machine.has_read()).then(|| NOT_READ.to_owned());
        view.problem = self.problem.clone().or(view.problem).or(not_read);
        view.faults.extend(self.restore_problem.borrow().as_ref().map(|problem| {
            format!("restore command: {problem}; until it can be run, this host cannot take over from another host")
        }));
        view.faults.extend(self.subscription.fault(&self.subject, self.machine.lease()));
        // The end of the permission is sent before the view, because a receiver of the view may begin attempts at once.
        let sends_until = self.machine.sends_until();
        self.sends_until.send_if_modified(|before| std::mem::replace(before, sends_until) != sends_until);
        if *self.view.borrow() != view {
            log_change(&self.view.borrow(), &view);
            self.file.write(&Report::new(&view, &self.known_bucket, self.machine.known()));
            // A renewal of the lease wakes no receiver. A receiver that needs the end of the lease reads `LeaseView::ends`.
            self.view.send_if_modified(|before| {
                let is_renewal = view.is_renewal_of(before);
                *before = view;
                !is_renewal
            });
        }
        if !self.machine.is_holder()
            && let Some(released) = self.released.take()
        {
            // An error means that the caller of `LeaseAgent::release` has stopped waiting.
            let _ = released.send(());
        }
    }
}

/// Logs a new fault, and a change of this host's state or of the host that has the lease.
fn log_change(before: &LeaseView, after: &LeaseView) {
    for fault in after.faults.iter().filter(|fault| !before.faults.contains(fault)) {
        tracing::warn!("{fault}");
    }
    let host = |view: &LeaseView| view.holder.as_ref().map(|holder| holder.host.clone());
    let (holder_before, holder) = (host(before), host(after));
    match (before.state, after.state) {
        (old, new) if old == new => {
            if let (LeaseState::Standby, Some(holder)) = (new, holder.filter(|_| holder_before != host(after))) {
                tracing::info!(holder, "standing by");
            }
        }
        (_, LeaseState::TakingOver) => tracing::info!("this host has the lease and takes over"),
        (_, LeaseState::Active) => tracing::info!("this host is active"),
        (_, LeaseState::Waiting) => {
            let failure = after.failure.as_deref().unwrap_or_default();
            tracing::error!("this host cannot take over: {failure}; it tries again later");
        }
        (LeaseState::Active | LeaseState::TakingOver, LeaseState::Standby) if after.is_releasing => {
            tracing::info!("this host releases the lease");
        }
        (LeaseState::Active | LeaseState::TakingOver, LeaseState::Standby) => {
            tracing::warn!(holder, "this host has lost the lease; it stops and stands by");
        }
        (_, LeaseState::Standby) => tracing::info!(holder, "standing by"),
    }
}
