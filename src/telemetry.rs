//! What the program says of itself while it runs: one line for each thing that happened, and how long mails took.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::loopback::is_loopback;

/// `[telemetry]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// How much is logged.
    pub log: LogLevel,
    /// How it is written; by default for the journal under systemd, else plain.
    pub format: Option<LogFormat>,
    /// Where metrics are served: `http://ADDRESS/metrics` and `/healthz`. A loopback address.
    pub metrics: Option<SocketAddr>,
}

impl TelemetrySettings {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// The key to look at, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        match self.metrics {
            Some(address) if !is_loopback(address.ip()) => {
                Err(("metrics".into(), "expected a loopback address, for example \"127.0.0.1:9464\"".into()))
            }
            _ => Ok(()),
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; colours on a terminal only.
    Plain,
    /// An object on each line.
    Json,
    /// To systemd's journal, each field as one of its own: `MAILHOOK_EVENT_ID=…`.
    Journald,
}

/// Changes how much is logged while the program runs.
#[derive(Debug, Clone)]
pub struct Logging(reload::Handle<Targets, Registry>);

impl Logging {
    /// From now on this much.
    pub fn set(&self, log: LogLevel) {
        // It fails only when there is no subscriber any more, and then nothing is logged at all.
        let _ = self.0.reload(filter(log));
    }
}

/// Begins to log: to the journal, or to standard error.
#[must_use]
pub fn start(settings: &TelemetrySettings) -> Logging {
    let (filter, handle) = reload::Layer::new(filter(settings.log));
    let lines = lines(settings).with_filter(filter);
    // A second call, in a test, leaves the first in force.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Logging(handle)
}

/// Libraries are heard from `warn` on, and never below `debug`: async-imap's trace has the LOGIN line in it, password
/// and all.
fn filter(log: LogLevel) -> Targets {
    let level = match log {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = level.min(if log == LogLevel::Trace { LevelFilter::DEBUG } else { LevelFilter::WARN });
    Targets::new().with_default(others).with_target("resmic_mailhook", level)
}

fn lines(settings: &TelemetrySettings) -> Box<dyn Layer<Registry> + Send + Sync> {
    let format = settings.format.unwrap_or(if is_journal() { LogFormat::Journald } else { LogFormat::Plain });
    let plain = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(matches!(settings.log, LogLevel::Debug | LogLevel::Trace));
    match (format, tracing_journald::layer()) {
        (LogFormat::Journald, Ok(journal)) => journal.with_field_prefix(Some("MAILHOOK".into())).boxed(),
        (LogFormat::Json, _) => plain.json().flatten_event(true).with_ansi(false).boxed(),
        _ => plain.boxed(),
    }
}

/// Whether standard error is the journal (systemd.exec(5), `$JOURNAL_STREAM`: device and inode of that stream).
fn is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(said) = std::env::var("JOURNAL_STREAM") else { return false };
    // A shell's redirection keeps the variable and changes the stream.
    let stream = std::fs::metadata("/proc/self/fd/2").map(|of| format!("{}:{}", of.dev(), of.ino()));
    stream.is_ok_and(|stream| stream == said)
}

/// How long mails took from the mail server's acceptance to the commit, in seconds. The server tells whole seconds.
pub static PUSH_LATENCY: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0]));

/// Counts a mail that came while the program ran.
pub fn pushed(took: Duration) {
    PUSH_LATENCY.observe(took.as_secs_f64());
}
