//! Keeps a connection to a target's stream open, and lets the worker deliver events through this connection.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::watch;

use super::connection::StreamConnection;
use super::republish::{Replay, RepublishError, republish};
use super::{StreamProblem, StreamTarget, losses};
use crate::backoff::Backoff;
use crate::db::{self, Store, StreamChange};
use crate::forward::worker::{DeliveryWorker, Route};

/// The pauses after the end of a connection or a failed connect, before the next connect.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(15) };

/// Delivers the events of a target to its stream until `shutdown`.
///
/// # Errors
/// [`db::Error::Stopped`]: the database writer has ended.
pub(in crate::forward) async fn run(
    worker: DeliveryWorker,
    stream: Arc<StreamTarget>,
    mut shutdown: watch::Receiver<bool>,
) -> db::Result<()> {
    let log = StateLog { store: worker.store.clone(), target: worker.target.name.clone(), stream: stream.clone() };
    log.record(StreamChange::Connecting).await?;
    let mut keeper = ConnectionKeeper { worker, stream, log, failures: 0, refilled: 0, reported: None };
    while !*shutdown.borrow() {
        let opened = tokio::select! {
            opened = StreamConnection::open(&keeper.stream, keeper.worker.sending.clone()) => opened,
            _ = shutdown.wait_for(|ending| *ending) => break,
        };
        let ended = match opened {
            Ok(connection) => keeper.use_connection(Arc::new(connection), &mut shutdown).await?,
            Err(problem) => Some(problem),
        };
        let Some(problem) = ended else { break };
        keeper.report(problem).await?;
        tokio::select! {
            () = tokio::time::sleep(RECONNECT.pause(keeper.failures)) => {}
            _ = shutdown.wait_for(|ending| *ending) => break,
        }
        keeper.failures = keeper.failures.saturating_add(1);
    }
    keeper.worker.stop().await
}

/// The worker of a stream, and the data that outlasts a single connection.
struct ConnectionKeeper {
    worker: DeliveryWorker,
    stream: Arc<StreamTarget>,
    log: StateLog,
    /// How many connections have failed or ended since the stream last acknowledged an event.
    failures: u32,
    /// How many lost messages were published again since the number of removed messages was last written.
    refilled: u64,
    /// The problem that ended the previous connection; `None` after the stream has answered again.
    reported: Option<StreamProblem>,
}

impl ConnectionKeeper {
    /// Delivers events through a connection until the connection ends. Returns why the connection has ended; `None` after
    /// `shutdown`.
    async fn use_connection(
        &mut self,
        connection: Arc<StreamConnection>,
        shutdown: &mut watch::Receiver<bool>,
    ) -> db::Result<Option<StreamProblem>> {
        let prepared = tokio::select! {
            prepared = self.prepare(&connection) => prepared?,
            _ = shutdown.wait_for(|ending| *ending) => return Ok(None),
        };
        if let Err(problem) = prepared {
            return Ok(Some(problem));
        }
        // After a failure, the database gets the state "connected" only when the stream has answered, or when there is nothing to
        // publish. Otherwise, the stream's state in the database would change with each failed attempt.
        let (log, must_prove) = (self.log.clone(), self.reported.is_some());
        let recording = async {
            if must_prove {
                connection.proven().await;
            }
            log.follow(&connection).await
        };
        let route = Route::Stream(connection.clone());
        let delivering = self.worker.deliver(&route, shutdown);
        let watching = async {
            match select(pin!(recording), pin!(connection.watch_stream(&log.target, &log.store))).await {
                Either::Left((never, _)) | Either::Right((never, _)) => match never {},
            }
        };
        match select(pin!(delivering), pin!(watching)).await {
            Either::Left((delivered, _)) => delivered?,
            Either::Right((never, _)) => match never {},
        }
        if *shutdown.borrow() {
            return Ok(None);
        }
        if connection.is_proven() {
            self.reported = None;
        }
        if connection.has_acknowledged() {
            self.failures = 0;
        }
        // The attempts that were running end with the connection.
        self.worker.wait_for_requests().await;
        self.worker.record_ended().await?;
        Ok(Some(
            connection
                .problem()
                .unwrap_or_else(|| StreamProblem::passing(connection.about("the connection has ended"))),
        ))
    }

    /// Makes the target's pending deliveries due, and publishes the last acknowledged events again. If the stream has lost more
    /// than these events, the loss is recorded.
    async fn prepare(&mut self, connection: &StreamConnection) -> db::Result<Result<(), StreamProblem>> {
        let mut replay = Replay::default();
        let prepared = tokio::select! {
            prepared = self.repair(connection, &mut replay) => prepared,
            () = connection.ended() => Err(RepublishError::Connection(
                connection.problem().unwrap_or_else(|| StreamProblem::passing(connection.about("the connection has ended"))),
            )),
        };
        self.refilled = if prepared.is_ok() { 0 } else { self.refilled + replay.refilled };
        match prepared {
            Ok(()) => Ok(Ok(())),
            Err(RepublishError::Connection(problem)) => Ok(Err(problem)),
            Err(RepublishError::Store(db::Error::Stopped)) => Err(db::Error::Stopped),
            Err(RepublishError::Store(error)) => {
                Ok(Err(StreamProblem::passing(format!("cannot use the outbox: {error}"))))
            }
        }
    }

    async fn repair(&self, connection: &StreamConnection, replay: &mut Replay) -> Result<(), RepublishError> {
        let (store, target, info) = (&self.worker.store, &self.worker.target, connection.info());
        store.restart_periods(&target.name).await?;
        republish(connection, &self.stream, target, store, replay).await?;
        let removed = 0..info.first_sequence().unwrap_or(0);
        let has_gap = info.last_sequence().is_some_and(|last| replay.leaves_gap(last))
            || losses::lacks_oldest(connection, removed, &target.name, store).await?;
        let refilled = self.refilled + replay.refilled;
        if store.record_removed(&target.name, info.removed(), refilled, has_gap).await? {
            tracing::error!(
                callback = target.name,
                "the stream has lost messages that were not published again: run `deliveries verify --refill`"
            );
        }
        Ok(())
    }

    /// Writes `problem`, which ended the previous connection, into the database. Logs `problem` only if it differs from the
    /// problem before.
    async fn report(&mut self, problem: StreamProblem) -> db::Result<()> {
        let callback = self.worker.target.name.as_str();
        if self.reported.as_ref() != Some(&problem) {
            let error = problem.text();
            if problem.needs_person {
                tracing::error!(callback, error, "cannot publish");
            } else {
                tracing::warn!(callback, error, "cannot publish now; trying again");
            }
        }
        let StreamProblem { lines, needs_person } = problem.clone();
        self.reported = Some(problem);
        self.log.record(StreamChange::Failed { problems: lines, needs_person }).await
    }
}

/// Writes the state of the stream into the database.
#[derive(Clone)]
struct StateLog {
    store: Store,
    target: String,
    stream: Arc<StreamTarget>,
}

impl StateLog {
    /// Writes that the stream is connected. Then, until this future is dropped, writes when the stream refuses events, when it
    /// acknowledges them again, and when the notes about its settings change.
    async fn follow(&self, connection: &StreamConnection) -> Infallible {
        let (version, mut notes) = (connection.version(), connection.notes());
        tracing::info!(callback = self.target, version, "connected to {}", self.stream.servers);
        let mut refusals = connection.refusals();
        loop {
            let (refusal, notes_now) = (refusals.borrow_and_update().clone(), notes.borrow_and_update().clone());
            let change = match refusal {
                None => StreamChange::Connected { version: version.to_owned(), notes: notes_now },
                Some(reason) => StreamChange::Failed { problems: vec![connection.about(&reason)], needs_person: true },
            };
            // The only error is the end of the database writer, which the worker reports.
            let _ = self.record(change).await;
            // `connection` has the senders, so these receivers return no error.
            tokio::select! {
                _ = refusals.changed() => {}
                _ = notes.changed() => {}
            }
        }
    }

    /// # Errors
    /// [`db::Error::Stopped`] only. After another error the state of the stream is not written, and the deliveries go on.
    async fn record(&self, change: StreamChange) -> db::Result<()> {
        let StreamTarget { name, servers, .. } = &*self.stream;
        match self.store.record_stream(&self.target, name, &servers.to_string(), change).await {
            Err(db::Error::Stopped) => Err(db::Error::Stopped),
            Err(error) => {
                tracing::warn!(callback = self.target, %error, "cannot record the state of the stream");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
