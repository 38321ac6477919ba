//! `run`: the daemon, the whole life of the process. SIGHUP reads the configuration again: the loops end and begin
//! anew, the process and its hold on the database stay. A configuration that is wrong is refused, and the old goes on.

use std::pin::Pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::app::{self, Listener, Prepared};
use crate::config::Config;
use crate::systemd;
use crate::telemetry::{self, PushLatency};

/// What a person or a supervisor asks for.
enum Wish {
    End,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let of = |kind| signal(kind);
        Ok(Signals {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }

    /// Returns when the end is asked for; who wants the configuration to be read again is heard later.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    let logging = telemetry::start(&config.telemetry);
    let mut signals = Signals::listen()?;
    let file = config.file().to_owned();
    // A program that prints a secret may take its time, also for want of somebody who types; the end does not wait for it.
    let mut prepared = tokio::select! {
        prepared = app::prepare(config, None) => prepared?,
        () = signals.end() => return Ok(()),
    };
    let database = prepared.database();
    let lock = app::lock(&database)?;
    // A reload does not reset it.
    let latency = PushLatency::default();
    loop {
        let (end, shutdown) = watch::channel(false);
        let listener = prepared.listener();
        let mut running: Pin<Box<_>> = Box::pin(app::run(prepared, latency.clone(), shutdown));
        let next = loop {
            let wish = tokio::select! {
                ended = &mut running => return ended,
                wish = signals.next() => wish,
            };
            let read = match wish {
                Wish::End => break None,
                Wish::Reload => tokio::select! {
                    read = reload(&file, &database, listener.as_ref()) => read,
                    ended = &mut running => return ended,
                    () = signals.end() => break None,
                },
            };
            match read {
                Ok((log, new)) => {
                    logging.set(log);
                    break Some(new);
                }
                Err(error) => refuse(&error),
            }
        };
        match next {
            Some(_) => tracing::info!("the configuration is read again"),
            None => {
                tracing::info!("ending");
                systemd::stopping();
            }
        }
        // Nobody listens only if everything has ended already.
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

/// Reads the configuration again. Nothing that runs is touched.
async fn reload(
    file: &std::path::Path,
    database: &std::path::Path,
    listener: Option<&Listener>,
) -> anyhow::Result<(telemetry::LogLevel, Prepared)> {
    systemd::reloading();
    let config = Config::read(file)?;
    let log = config.telemetry.log;
    let prepared = app::prepare(config, listener).await?;
    // The lock that is held is that database's.
    anyhow::ensure!(prepared.database() == database, "[store] path changes with a restart only");
    Ok((log, prepared))
}

fn refuse(error: &anyhow::Error) {
    tracing::error!("the new configuration is refused, the old one goes on: {error:#}");
    systemd::ready();
    systemd::status(&format!("new configuration refused, the old one goes on: {error:#}"));
}
