//! The loop: due deliveries → signed POST → recorded.
//!
//! Each target has its own `worker`, so that a handler that hangs delays no other target.

mod breaker;
mod post;
mod retry;
mod settings;
mod sign;
mod target;
mod worker;

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use settings::{Confirm, ForwardSettings, HttpPath, Unresolved};
pub use target::{Target, TargetError};
use worker::{DeliveryWorker, STORE_PAUSE};

use crate::backoff::Backoff;
use crate::db::{self, Store};

/// The pauses between attempts to release deliveries.
const RETRY: Backoff = Backoff { base: STORE_PAUSE, cap: STORE_PAUSE };

/// Delivers until `shutdown` is true or its sender is dropped. It then waits a few seconds for the responses of open requests.
///
/// # Errors
/// [`db::Error::Stopped`] if the database writer has ended, so that results cannot be recorded.
pub async fn run(store: Store, targets: Vec<Target>, shutdown: watch::Receiver<bool>) -> db::Result<()> {
    let mut workers = JoinSet::new();
    workers.spawn(release(store.clone(), shutdown.clone()));
    // Without a target there is no worker. The loop runs until `shutdown` all the same: its end would end the daemon.
    let mut ending = shutdown.clone();
    workers.spawn(async move {
        let _ = ending.wait_for(|ending| *ending).await;
        Ok(())
    });
    for target in targets {
        if target.destination.is_cleartext_remote() {
            tracing::warn!(
                callback = target.name(),
                "http to another machine: others on the network can read the events; use https"
            );
        }
        workers.spawn(DeliveryWorker::new(store.clone(), target).run(shutdown.clone()));
    }
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok(result) => result?,
            // A panic ends the process, and systemd restarts it.
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

/// Connects to the handler of a target, with the TLS handshake, and sends no request. Returns lines for the operator.
///
/// # Errors
/// The reason why the connection failed, for the operator.
pub async fn probe(target: &Target) -> Result<Vec<String>, String> {
    let connected = post::check_connection(target).await;
    connected.map(|()| vec![format!("{} can be reached; no event was sent", target.destination)])
}
