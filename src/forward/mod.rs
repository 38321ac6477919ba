//! The loop that sends each due delivery as a signed POST or as a message in a stream, and writes the result into the database.
//!
//! Each target has its own `worker`, so that a handler that hangs delays no other target. `jetstream` has the code for a target
//! that is a JetStream stream.

mod attempt;
mod breaker;
mod headers;
mod jetstream;
mod post;
mod retry;
mod settings;
mod sign;
mod target;
mod worker;

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use jetstream::{FindingKind, StreamFinding, Verification, verify};
pub use settings::{Confirm, ForwardSettings, HttpPath, StreamName, SubjectPrefix, Unresolved};
use target::TargetKind;
pub use target::{Target, TargetError};
pub use worker::Sending;
use worker::{DeliveryWorker, STORE_PAUSE};

use crate::backoff::Backoff;
use crate::db::{self, Store};

/// The pause after each failed try to hold and release deliveries.
const RETRY: Backoff = Backoff { base: STORE_PAUSE, cap: STORE_PAUSE };

/// Delivers the due events to all `targets` until `shutdown` is true or its sender is dropped. The function then waits a few
/// seconds for the responses of open requests.
///
/// # Errors
/// [`db::Error::Stopped`] if the database writer has ended, so that results cannot be written.
pub async fn run(store: Store, targets: Vec<Target>, shutdown: watch::Receiver<bool>) -> db::Result<()> {
    run_permitted(store, targets, Sending::default(), shutdown).await
}

/// Does the same as [`run`], within the limits of `sending`.
///
/// # Errors
/// The errors of [`run`].
pub async fn run_permitted(
    store: Store,
    targets: Vec<Target>,
    sending: Sending,
    shutdown: watch::Receiver<bool>,
) -> db::Result<()> {
    // No worker starts before the deliveries are held as the current configuration requires. Otherwise, a worker could send an
    // event that must now be held, for example because a `[[chain]]` was added after the previous start.
    apply_holds(&store, shutdown.clone()).await?;
    let mut workers = JoinSet::new();
    // Without a target there is no worker. This task keeps the loop running until `shutdown`, because the end of the loop would
    // end the daemon.
    let mut ending = shutdown.clone();
    workers.spawn(async move {
        let _ = ending.wait_for(|ending| *ending).await;
        Ok(())
    });
    for target in targets {
        if target.is_cleartext_remote() {
            tracing::warn!(
                callback = target.name(),
                "no TLS to another machine: others on the network can read the events; use https or tls"
            );
        }
        let worker = DeliveryWorker::new(store.clone(), target.common, sending.clone());
        match target.kind {
            TargetKind::Handler(handler) => workers.spawn(worker.run(handler, shutdown.clone())),
            TargetKind::Stream(stream) => workers.spawn(jetstream::run(worker, stream, shutdown.clone())),
        };
    }
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok(result) => result?,
            // A panic of a worker ends the process, and systemd restarts the process.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(db::Error::Stopped),
        }
    }
    Ok(())
}

/// Holds and releases deliveries as the current configuration requires.
async fn apply_holds(store: &Store, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
    let report = |error: db::Error| {
        if matches!(error, db::Error::Stopped) {
            return Err(error);
        }
        tracing::warn!(%error, "cannot hold and release deliveries, so none is sent; trying again");
        Ok(())
    };
    tokio::select! {
        biased;
        released = RETRY.retry(|| store.apply_settings(), report) => released.map(drop),
        _ = shutdown.wait_for(|ending| *ending) => Ok(()),
    }
}

/// Connects to a target, with the TLS handshake, and sends it no event. Returns lines for the operator; an error is a line about
/// something that must be corrected.
pub async fn probe(target: &Target) -> Vec<Result<String, String>> {
    match &target.kind {
        TargetKind::Handler(handler) => {
            let connected = post::check_connection(&target.common, handler).await;
            vec![connected.map(|()| format!("{} can be reached; no event was sent", handler.destination))]
        }
        TargetKind::Stream(stream) => jetstream::probe(stream).await,
    }
}
