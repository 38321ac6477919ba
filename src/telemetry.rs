//! What the program says of itself while it runs: one line for each thing that happened.

use std::io::IsTerminal;
use std::net::SocketAddr;

use serde::Deserialize;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `[telemetry]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much is logged.
    pub log: Log,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Log {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Begins to log to standard error. Libraries are heard from `warn` on, and never below `debug`: async-imap's trace
/// has the LOGIN line in it, password and all.
pub fn start(log: Log) {
    let level = match log {
        Log::Off => LevelFilter::OFF,
        Log::Error => LevelFilter::ERROR,
        Log::Warn => LevelFilter::WARN,
        Log::Info => LevelFilter::INFO,
        Log::Debug => LevelFilter::DEBUG,
        Log::Trace => LevelFilter::TRACE,
    };
    let others = level.min(if log == Log::Trace { LevelFilter::DEBUG } else { LevelFilter::WARN });
    let filter = Targets::new().with_default(others).with_target("resmic_mailhook", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(matches!(log, Log::Debug | Log::Trace));
    // A second call, in a test, leaves the first in force.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
    tracing::event!(Level::DEBUG, "logging begins");
}
