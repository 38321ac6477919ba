//! `run`: runs the daemon until SIGTERM or SIGINT. After SIGHUP, the daemon reads the configuration again and restarts the loops.
//! Meanwhile, the process keeps its lock on the database and, with `[standby]`, its lease. If the new configuration is invalid,
//! the daemon goes on with the old one.

use std::path::PathBuf;
use std::pin::Pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::app::{self, Listener, Prepared, Standby};
use crate::config::Config;
use crate::db::DaemonLock;
use crate::systemd;
use crate::telemetry::{self, PushLatency, RequestCounters};

use super::UsageError;

/// A request to the daemon that arrives as a signal.
enum SignalRequest {
    Shutdown,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Shutdown,
            _ = self.interrupt.recv() => SignalRequest::Shutdown,
            _ = self.hangup.recv() => SignalRequest::Reload,
        }
    }

    /// Waits for SIGTERM or SIGINT. A SIGHUP that arrives meanwhile stays pending.
    async fn shutdown(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The right of this daemon to write the database.
enum DatabaseClaim {
    /// The daemon has the lock of the database.
    Lock(#[allow(dead_code)] DaemonLock),
    /// The daemon has the lease, or waits for it.
    Lease(Box<Standby>),
}

impl DatabaseClaim {
    /// Runs the loops until `shutdown` is true.
    async fn run(
        &mut self,
        prepared: Prepared,
        latency: PushLatency,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        match self {
            DatabaseClaim::Lock(_) => app::run(prepared, latency, shutdown).await,
            DatabaseClaim::Lease(standby) => standby.run(prepared, latency, shutdown).await,
        }
    }
}

pub(super) async fn run(config: Config, fresh: bool) -> anyhow::Result<()> {
    if fresh && config.standby.is_none() {
        return Err(UsageError("--fresh is for a takeover: the configuration has no [standby]".into()).into());
    }
    let logging = telemetry::start(&config.telemetry);
    let mut signals = Signals::listen()?;
    let file = config.path().to_owned();
    // The loops get the same counters after a reload, so a reload does not reset the metrics.
    let (latency, requests) = (PushLatency::default(), RequestCounters::default());
    // A shutdown does not wait for a command that prints a secret, because that command may wait for input.
    let (mut prepared, mut claim) = tokio::select! {
        ready = prepare(config, fresh, &requests) => ready?,
        () = signals.shutdown() => return Ok(()),
    };
    let kept = Kept { file, database: prepared.database(), standby: prepared.standby() };
    loop {
        let (end, shutdown) = watch::channel(false);
        let listener = prepared.listener();
        let mut running: Pin<Box<_>> = Box::pin(claim.run(prepared, latency.clone(), shutdown));
        let next = loop {
            let request = tokio::select! {
                ended = &mut running => return ended,
                request = signals.next() => request,
            };
            let reloaded = match request {
                SignalRequest::Shutdown => break None,
                SignalRequest::Reload => tokio::select! {
                    reloaded = reload(&kept, listener.as_ref(), &requests) => reloaded,
                    ended = &mut running => return ended,
                    () = signals.shutdown() => break None,
                },
            };
            match reloaded {
                Ok((log, new)) => {
                    logging.set(log);
                    break Some(new);
                }
                Err(error) => refuse(&error),
            }
        };
        match next {
            Some(_) => tracing::info!("restarting with the new configuration"),
            None => {
                tracing::info!("shutting down");
                systemd::stopping();
            }
        }
        // Sending fails only if all loops have ended already.
        let _ = end.send(true);
        running.await?;
        match next {
            Some(new) => prepared = new,
            None => break,
        }
    }
    if let DatabaseClaim::Lease(mut standby) = claim {
        standby.leave().await;
    }
    Ok(())
}

/// Prepares the loops, and gets the lock of the database. With `[standby]`, joins the hosts that share a lease instead.
async fn prepare(config: Config, fresh: bool, requests: &RequestCounters) -> anyhow::Result<(Prepared, DatabaseClaim)> {
    let standby = config.standby.clone();
    let prepared = app::prepare(config, None, requests.clone()).await?;
    let claim = match standby {
        None => DatabaseClaim::Lock(app::lock(&prepared.database())?),
        Some(standby) => DatabaseClaim::Lease(Box::new(Standby::join(prepared.config(), &standby, fresh).await?)),
    };
    Ok((prepared, claim))
}

/// The settings that a reload must not change.
struct Kept {
    file: PathBuf,
    database: PathBuf,
    standby: String,
}

/// Reads the configuration again and prepares new loops. The running loops are not affected.
async fn reload(
    kept: &Kept,
    listener: Option<&Listener>,
    requests: &RequestCounters,
) -> anyhow::Result<(telemetry::LogLevel, Prepared)> {
    systemd::reloading();
    let config = Config::read(&kept.file)?;
    let log = config.telemetry.log;
    let prepared = app::prepare(config, listener, requests.clone()).await?;
    // This process has the lock of the old database, and does not lock another database during a reload.
    anyhow::ensure!(prepared.database() == kept.database, "a change of [store] path needs a restart");
    anyhow::ensure!(prepared.standby() == kept.standby, "a change of [standby] needs a restart");
    Ok((log, prepared))
}

fn refuse(error: &anyhow::Error) {
    tracing::error!("the new configuration is invalid, the old one stays in force: {error:#}");
    systemd::ready();
    systemd::status(&format!("new configuration is invalid, the old one stays in force: {error:#}"));
}
