//! `run`: the daemon.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::{app, telemetry};

pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    telemetry::start(config.telemetry.log);
    if config.accounts.is_empty() {
        return Err(config.wrong("account", "expected at least one [[account]]").into());
    }
    let (end, shutdown) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("ending");
        // Nobody listens only if everything has ended already.
        let _ = end.send(true);
    });
    app::run(config, shutdown).await
}
