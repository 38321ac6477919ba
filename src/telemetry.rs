//! Sets up logging, and has the counters and histograms of the running process for `/metrics`.

use std::fmt;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use serde::Deserialize;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::configured_text::configured_text;
use crate::loopback::is_loopback;

/// `[telemetry]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: the keys below [telemetry]")]
pub struct TelemetrySettings {
    /// The least severe level that is logged.
    pub log: LogLevel,
    /// The format of log lines. The default is the journal under systemd, and plain text otherwise.
    pub format: Option<LogFormat>,
    /// The loopback address of `http://ADDRESS/metrics` and `/healthz`.
    pub metrics: Option<SocketAddr>,
}

impl TelemetrySettings {
    /// Checks the values.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        match self.metrics {
            Some(address) if !is_loopback(address.ip()) => {
                Err(("metrics".into(), "expected a loopback address, for example \"127.0.0.1:9464\"".into()))
            }
            _ => Ok(()),
        }
    }
}

/// The least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, with colours on a terminal.
    Plain,
    /// One JSON object on each line.
    Json,
    /// Entries in systemd's journal, with a journal field for each field of the log line: `MAILHOOK_EVENT_ID=…`.
    Journald,
}

configured_text!(LogLevel, "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
    "off" => Off, "error" => Error, "warn" => Warn, "info" => Info, "debug" => Debug, "trace" => Trace);
configured_text!(LogFormat, "\"plain\", \"json\" or \"journald\"",
    "plain" => Plain, "json" => Json, "journald" => Journald);

/// Changes the log level at run time.
#[derive(Debug, Clone)]
pub struct Logging(reload::Handle<Targets, Registry>);

impl Logging {
    /// Sets the log level.
    pub fn set(&self, log: LogLevel) {
        // The reload fails only if there is no subscriber. Without a subscriber, nothing is logged.
        let _ = self.0.reload(filter(log));
    }
}

/// Starts to log to the journal or to standard error.
#[must_use]
pub fn start(settings: &TelemetrySettings) -> Logging {
    let (filter, handle) = reload::Layer::new(filter(settings.log));
    let lines = lines(settings).with_filter(filter);
    // Tests call `start` repeatedly. Only the first call installs a subscriber.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Logging(handle)
}

/// Libraries log only warnings and errors. With the level `trace`, they also log the levels `info` and `debug`, but not `trace`:
/// async-imap's trace level would log the LOGIN command with the password. async-nats logs nothing, because its lines contain
/// unchanged text of the server. The room `nats` logs what an operator needs.
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
    Targets::new()
        .with_default(others)
        .with_target("async_nats", LevelFilter::OFF)
        .with_target("resmic_mailhook", level)
}

fn lines(settings: &TelemetrySettings) -> Box<dyn Layer<Registry> + Send + Sync> {
    let format = settings.format.unwrap_or(if is_journal() { LogFormat::Journald } else { LogFormat::Plain });
    let plain = tracing_subscriber::fmt::layer()
        .fmt_fields(QuotedFields)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(matches!(settings.log, LogLevel::Debug | LogLevel::Trace));
    match (format, tracing_journald::layer()) {
        (LogFormat::Journald, Ok(journal)) => journal.with_field_prefix(Some("MAILHOOK".into())).boxed(),
        (LogFormat::Json, _) => plain.json().flatten_event(true).with_ansi(false).boxed(),
        _ => plain.boxed(),
    }
}

/// Formats the fields of a plain log line, and quotes each text with spaces. The default formatter quotes a `&str`, but not the
/// `Display` of an error or of a reason. A program that parses `key=value` would take only the first word of such a text.
struct QuotedFields;

impl<'w> FormatFields<'w> for QuotedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = QuotingVisitor(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct QuotingVisitor<'w>(DefaultVisitor<'w>);

impl Visit for QuotingVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.record_str(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() != "message" && needs_quotes(&text) {
            self.0.record_str(field, &text);
        } else {
            self.0.record_debug(field, value);
        }
    }
}

/// Whether a value of a field would be ambiguous without quotes. The `Debug` of a text has quotes already.
fn needs_quotes(text: &str) -> bool {
    let has_end_quote = |inner: &str| inner.replace(r"\\", "").replace("\\\"", "").contains('"');
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let is_quoted = inner.is_some_and(|inner| !has_end_quote(inner));
    !is_quoted && text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

/// Whether standard error is the journal (systemd.exec(5), `$JOURNAL_STREAM`: device and inode of that stream).
fn is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    // After a shell redirection, the variable is unchanged and standard error is another stream.
    let stream = std::fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    stream.is_ok_and(|stream| stream == journal)
}

/// The time from the receipt of a mail by the IMAP server to the commit of the mail in the database, in seconds. Clones share one
/// histogram.
#[derive(Debug, Clone)]
pub struct PushLatency {
    histogram: Histogram,
    since: Timestamp,
}

impl Default for PushLatency {
    /// Creates an empty histogram for mails that a server receives from now on.
    fn default() -> Self {
        let histogram = Histogram::new([0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0]);
        PushLatency { histogram, since: Timestamp::now() }
    }
}

impl PushLatency {
    /// Counts a mail that was committed at `now`, unless the server received it before this program started.
    pub fn observe(&self, received: Timestamp, now: Timestamp) {
        // INTERNALDATE has whole seconds, rounded down. So the start is compared in whole seconds, too.
        if received.as_second() >= self.since.as_second() {
            let latency = Duration::try_from(now.duration_since(received)).unwrap_or_default();
            self.histogram.observe(latency.as_secs_f64());
        }
    }

    /// The histogram of the latencies, for `/metrics`.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        self.histogram.clone()
    }
}

/// The labels of a counter in [`NodeRequests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeRequest {
    /// The chain's name.
    pub chain: String,
    /// `ok`, or the kind of the error.
    pub outcome: &'static str,
}

/// The number of calls to the nodes of each chain, by outcome. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct NodeRequests(Family<NodeRequest, Counter>);

impl NodeRequests {
    /// Adds a call that has ended to the counter of `chain` and `outcome`.
    pub fn count(&self, chain: &str, outcome: &'static str) {
        self.0.get_or_create(&NodeRequest { chain: chain.to_owned(), outcome }).inc();
    }

    /// The counters of the calls, for `/metrics`.
    #[must_use]
    pub fn counters(&self) -> Family<NodeRequest, Counter> {
        self.0.clone()
    }
}

/// The time from a publish to a stream to its acknowledgement, in seconds. Clones share one histogram.
#[derive(Debug, Clone)]
pub struct PublishTimes(Histogram);

impl Default for PublishTimes {
    fn default() -> Self {
        let bounds = [0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        PublishTimes(Histogram::new(bounds))
    }
}

impl PublishTimes {
    /// Counts a publish that was acknowledged after `took`.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }

    /// The histogram of the publish times, for `/metrics`.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        self.0.clone()
    }
}

/// The label of a counter in [`ResmicRequests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResmicRequest {
    /// `ok`, or the kind of the error.
    pub outcome: &'static str,
}

/// The number of requests to Resmic's API, by outcome. Clones share the counters.
#[derive(Debug, Clone)]
pub struct ResmicRequests(Family<ResmicRequest, Counter>);

impl Default for ResmicRequests {
    /// Creates the counter of `ok` with zero, so that Prometheus sees the first success as an increase.
    fn default() -> Self {
        let requests = Family::<ResmicRequest, Counter>::default();
        drop(requests.get_or_create(&ResmicRequest { outcome: "ok" }));
        ResmicRequests(requests)
    }
}

impl ResmicRequests {
    /// Adds a request that has ended to the counter of `outcome`.
    pub fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&ResmicRequest { outcome }).inc();
    }

    /// The counters of the requests, for `/metrics`.
    #[must_use]
    pub fn counters(&self) -> Family<ResmicRequest, Counter> {
        self.0.clone()
    }
}

/// The counters and the times of requests to other servers. A reload does not reset these counters and times.
#[derive(Debug, Clone, Default)]
pub struct RequestCounters {
    /// The calls to nodes of chains.
    pub nodes: NodeRequests,
    /// The requests to Resmic's API.
    pub resmic: ResmicRequests,
    /// The times of publishes to streams.
    pub publishes: PublishTimes,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn texts_with_spaces_are_quoted_in_fields() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .fmt_fields(QuotedFields)
            .with_ansi(false)
            .without_time()
            .with_writer(Mutex::new(log.reopen().unwrap()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let (reason, path, said) = ("reverted: it \"failed\"\nlast=1", "/run/a", "no answer");
            tracing::info!(%reason, %path, said, ?said, attempt = 2, status = ?Some(3), "not sent yet: {said}");
        });
        let line = std::fs::read_to_string(log.path()).unwrap();
        let fields = r#"reason="reverted: it \"failed\"\nlast=1" path=/run/a said="no answer" said="no answer" attempt=2 status=Some(3)"#;
        assert_eq!(line.trim(), format!("INFO resmic_mailhook::telemetry::tests: not sent yet: no answer {fields}"));
    }

    #[test]
    fn quoted_texts_get_no_second_quotes() {
        for text in ["a", "\"a b\"", r#""a \" b""#, r#""a b\\""#, "17", "Some(3)"] {
            assert!(!needs_quotes(text), "{text}");
        }
        for text in ["a b", "a=b", "say \"a\"", "\"a\" or \"b\"", "a\tb"] {
            assert!(needs_quotes(text), "{text}");
        }
    }
}
