//! What the program says of itself while it runs: one line for each thing that happened, and how long mails took.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// `[telemetry]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much is logged.
    pub log: Log,
    /// How it is written; by default for the journal under systemd, else plain.
    pub format: Option<Format>,
    /// Where metrics are served: `http://ADDRESS/metrics` and `/healthz`. A loopback address.
    pub metrics: Option<SocketAddr>,
}

impl Settings {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// The key to look at, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        match self.metrics {
            Some(address) if !address.ip().is_loopback() => {
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
pub enum Log {
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
pub enum Format {
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
    pub fn set(&self, log: Log) {
        // It fails only when there is no subscriber any more, and then nothing is logged at all.
        let _ = self.0.reload(filter(log));
    }
}

/// Begins to log: to the journal, or to standard error.
#[must_use]
pub fn start(settings: &Settings) -> Logging {
    let (filter, handle) = reload::Layer::new(filter(settings.log));
    let lines = lines(settings).with_filter(filter);
    // A second call, in a test, leaves the first in force.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Logging(handle)
}

/// Libraries are heard from `warn` on, and never below `debug`: async-imap's trace has the LOGIN line in it, password
/// and all.
fn filter(log: Log) -> Targets {
    let level = match log {
        Log::Off => LevelFilter::OFF,
        Log::Error => LevelFilter::ERROR,
        Log::Warn => LevelFilter::WARN,
        Log::Info => LevelFilter::INFO,
        Log::Debug => LevelFilter::DEBUG,
        Log::Trace => LevelFilter::TRACE,
    };
    let others = level.min(if log == Log::Trace { LevelFilter::DEBUG } else { LevelFilter::WARN });
    Targets::new().with_default(others).with_target("resmic_mailhook", level)
}

fn lines(settings: &Settings) -> Box<dyn Layer<Registry> + Send + Sync> {
    let format = settings.format.unwrap_or(if is_journal() { Format::Journald } else { Format::Plain });
    let plain = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(matches!(settings.log, Log::Debug | Log::Trace));
    match (format, tracing_journald::layer()) {
        (Format::Journald, Ok(journal)) => journal.with_field_prefix(Some("MAILHOOK".into())).boxed(),
        (Format::Json, _) => plain.json().flatten_event(true).with_ansi(false).boxed(),
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

/// The label of [`NODE_REQUESTS`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeRequest {
    /// The chain's name.
    pub chain: String,
    /// `ok`, or the kind of the error.
    pub outcome: &'static str,
}

/// How many calls the nodes of each chain have answered, by outcome.
pub static NODE_REQUESTS: LazyLock<Family<NodeRequest, Counter>> = LazyLock::new(Family::default);

/// Counts a call at a node.
pub fn node_answered(chain: &str, outcome: &'static str) {
    NODE_REQUESTS.get_or_create(&NodeRequest { chain: chain.to_owned(), outcome }).inc();
}
