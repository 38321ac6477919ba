//! `run`: runs the daemon until SIGTERM or SIGINT. SIGHUP reads the configuration again and restarts the loops; the process
//! and its lock on the database stay. If the new configuration is invalid, the daemon goes on with the old one.

use std::pin::Pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::app::{self, Listener, Prepared};
use crate::config::Config;
use crate::systemd;
use crate::telemetry::{self, NodeRequests, PushLatency};

/// A request by signal.
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

    /// Waits for SIGTERM or SIGINT. A SIGHUP meanwhile stays pending.
    async fn shutdown(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    let logging = telemetry::start(&config.telemetry);
    let mut signals = Signals::listen()?;
    let file = config.path().to_owned();
    // A reload does not reset the metrics.
    let (latency, node_requests) = (PushLatency::default(), NodeRequests::default());
    // A command that prints a secret may wait for input. A shutdown does not wait for it.
    let mut prepared = tokio::select! {
        prepared = app::prepare(config, None, node_requests.clone()) => prepared?,
        () = signals.shutdown() => return Ok(()),
    };
    let database = prepared.database();
    let lock = app::lock(&database)?;
    loop {
        let (end, shutdown) = watch::channel(false);
        let listener = prepared.listener();
        let mut running: Pin<Box<_>> = Box::pin(app::run(prepared, latency.clone(), shutdown));
        let next = loop {
            let request = tokio::select! {
                ended = &mut running => return ended,
                request = signals.next() => request,
            };
            let reloaded = match request {
                SignalRequest::Shutdown => break None,
                SignalRequest::Reload => tokio::select! {
                    reloaded = reload(&file, &database, listener.as_ref(), &node_requests) => reloaded,
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
    drop(lock);
    Ok(())
}

/// Reads the configuration again and prepares new loops. The running loops are not affected.
async fn reload(
    file: &std::path::Path,
    database: &std::path::Path,
    listener: Option<&Listener>,
    node_requests: &NodeRequests,
) -> anyhow::Result<(telemetry::LogLevel, Prepared)> {
    systemd::reloading();
    let config = Config::read(file)?;
    let log = config.telemetry.log;
    let prepared = app::prepare(config, listener, node_requests.clone()).await?;
    // The process holds the lock of the old database.
    anyhow::ensure!(prepared.database() == database, "a change of [store] path needs a restart");
    Ok((log, prepared))
}

fn refuse(error: &anyhow::Error) {
    tracing::error!("the new configuration is invalid, the old one stays in force: {error:#}");
    systemd::ready();
    systemd::status(&format!("new configuration is invalid, the old one stays in force: {error:#}"));
}
