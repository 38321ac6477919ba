//! `/metrics` for Prometheus and `/healthz` for monitors, on a loopback address.
//!
//! Each request reads the counts from the database, so the numbers survive a restart. The running process counts only the
//! takeovers, and the requests to nodes and to Resmic's API. The process also measures the time from the receipt of a mail to its
//! commit, and from a publish to its acknowledgement.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::boot_clock::BootInstant;
use crate::db::{self, Store, StoreReader};
use crate::health::{Expected, Health, OwnProgram, own_health};
use crate::heartbeat::Heartbeats;
use crate::model::{DeliveryState, MailboxState, StreamState};
use crate::standby::{LeaseState, LeaseView};
use crate::telemetry::{PublishTimes, PushLatency, RequestCounters};

/// The most connections that are served at the same time. Further connections wait.
const CONNECTIONS: usize = 8;
/// How long a client may take to send the header of its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The sources of the answers to `/metrics` and `/healthz`.
pub struct MetricsEndpoint {
    /// The source of the counts and of the health.
    pub source: MetricsSource,
    /// The lease; `None` without `[standby]`.
    pub lease: Option<watch::Receiver<LeaseView>>,
    /// The heartbeats of the loops.
    pub heartbeats: Heartbeats,
    /// The time from the receipt of a mail by the IMAP server to the commit of the mail in the database.
    pub latency: PushLatency,
    /// The requests to nodes and to Resmic's API, and the times of publishes to streams.
    pub requests: RequestCounters,
}

/// Where the counts come from.
pub enum MetricsSource {
    /// The open database.
    Database {
        /// The database with the counts.
        store: Store,
        /// The parts of the configuration whose health is reported.
        expected: Expected,
    },
    /// This host is not active, so its database is not open. The health report compares this program with the program of the
    /// lease's holder.
    Standby(OwnProgram),
}

/// Answers requests until `shutdown`. If a connection cannot be accepted, the error is logged, and the loop goes on.
pub async fn serve(listener: Arc<TcpListener>, endpoint: MetricsEndpoint, mut shutdown: watch::Receiver<bool>) {
    let endpoint = Arc::new(endpoint);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    // The set aborts the connections when this function ends. Each connection keeps the database open.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            (Ok(permit), accepted) = next => (permit, accepted),
            _ = shutdown.wait_for(|ending| *ending) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client has closed the connection, or the process has no free file descriptor.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let endpoint = endpoint.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(&endpoint, request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Errors of the client are ignored. The timeout ends a connection whose client reads nothing.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT * 2, connection).await;
            drop(permit);
        });
    }
}

async fn answer(endpoint: &MetricsEndpoint, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".into()));
    }
    let (reader, health) = match assess(endpoint).await {
        Ok(health) => health,
        Err(error) => return Ok(response(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n"))),
    };
    Ok(match request.uri().path() {
        "/healthz" => healthz(&health),
        "/metrics" => match metrics(reader.as_ref(), &health, endpoint) {
            Ok(text) => response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
        },
        _ => response(StatusCode::NOT_FOUND, "text/plain", "/metrics or /healthz\n".into()),
    })
}

/// The health, and the reader of the database if the daemon has opened the database.
async fn assess(endpoint: &MetricsEndpoint) -> db::Result<(Option<StoreReader>, Health)> {
    let lease = endpoint.lease.as_ref().map(|lease| lease.borrow().clone());
    match &endpoint.source {
        MetricsSource::Database { store, expected } => {
            let (reader, health) = own_health(store, expected, &endpoint.heartbeats, lease.as_ref()).await?;
            Ok((Some(reader), health))
        }
        MetricsSource::Standby(own) => {
            let mut health = Health::of_standby(&lease.unwrap_or_default(), own, BootInstant::now());
            health.add_late(&endpoint.heartbeats);
            Ok((None, health))
        }
    }
}

fn healthz(health: &Health) -> Response<Full<Bytes>> {
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = if health.ok { "ok\n".to_owned() } else { String::new() };
    for problem in &health.attention {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{problem}");
    }
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    outcome: String,
    /// The code of the reason; empty if there is none.
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAccount {
    account: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTarget {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByChain {
    chain: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMailbox {
    account: String,
    mailbox: String,
}

/// The text of `/metrics`. If this host is not active, `reader` is `None`, and the counts are left out.
fn metrics(reader: Option<&StoreReader>, health: &Health, endpoint: &MetricsEndpoint) -> db::Result<String> {
    let mut registry = Registry::with_prefix("resmic_mailhook");
    let ok: Gauge = Gauge::default();
    ok.set(health.ok.into());
    registry.register("healthy", "1 if nothing needs attention, as in /healthz and `status`", ok);
    if let Some(lease) = &endpoint.lease {
        role(&mut registry, &lease.borrow(), BootInstant::now());
    }
    if let Some(reader) = reader {
        counts(&mut registry, reader, health, endpoint)?;
    }
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => Ok(text),
        Err(error) => Err(db::Error::Refused(error.to_string())),
    }
}

fn role(registry: &mut Registry, lease: &LeaseView, now: BootInstant) {
    let is_active = lease.state == LeaseState::Active;
    let left = lease.ends.filter(|_| lease.is_held(now)).map_or(Duration::ZERO, |ends| ends.since(now));
    let active: Gauge = Gauge::default();
    active.set(is_active.into());
    registry.register("active", "1 if this host has the lease, watches the mailboxes and delivers", active);
    let seconds = Gauge::<f64, AtomicU64>::default();
    seconds.set(left.as_secs_f64());
    registry.register("lease_seconds_left", "How long the lease of this host lasts unless it is renewed", seconds);
    let takeovers: Counter = Counter::default();
    takeovers.inc_by(lease.takeovers);
    // `prometheus_client` adds `_total`.
    registry.register("takeovers", "How often this process became active", takeovers);
}

fn counts(
    registry: &mut Registry,
    reader: &StoreReader,
    health: &Health,
    endpoint: &MetricsEndpoint,
) -> db::Result<()> {
    let size: Gauge = Gauge::default();
    size.set(reader.size()?);
    registry.register("database_size_bytes", "Size of the database file", size);
    mails(registry, reader, health)?;
    let events = Family::<ByStatus, Gauge>::default();
    for (status, n) in &health.events {
        events.get_or_create(&ByStatus { status: status.clone() }).set(*n);
    }
    registry.register("events", "Events, by status", events);
    deliveries(registry, reader, health)?;
    mailboxes(registry, health);
    streams(registry, health, &endpoint.requests.publishes);
    accounts(registry, health);
    chains(registry, health, &endpoint.requests);
    resmic(registry, health, &endpoint.requests);
    registry.register(
        "push_latency_seconds",
        "Time from the receipt of a mail by its server to its commit in the database",
        endpoint.latency.histogram(),
    );
    Ok(())
}

/// Registers a series for each outcome without a reason, and for each outcome with each code that it can have. So a series exists
/// before its first mail.
fn mails(registry: &mut Registry, reader: &StoreReader, health: &Health) -> db::Result<()> {
    let mails = Family::<ByReason, Gauge>::default();
    let mut without_reason = health.mails.clone();
    for (outcome, reason, n) in reader.mail_reasons()? {
        if let Some(rest) = without_reason.get_mut(&outcome) {
            *rest -= n;
        }
        mails.get_or_create(&ByReason { outcome, reason }).set(n);
    }
    for (outcome, n) in without_reason {
        // A commit between the two queries is in one result only, so the difference may be negative.
        mails.get_or_create(&ByReason { outcome, reason: String::new() }).set(n.max(0));
    }
    registry.register("mails", "Stored mails, by outcome and code of the reason", mails);
    Ok(())
}

fn deliveries(registry: &mut Registry, reader: &StoreReader, health: &Health) -> db::Result<()> {
    let (counts, ages) = (Family::<ByState, Gauge>::default(), Family::<ByState, Gauge>::default());
    for (state, n) in &health.deliveries {
        counts.get_or_create(&ByState { state: state.clone() }).set(*n);
        if state != DeliveryState::Delivered.as_str() {
            ages.get_or_create(&ByState { state: state.clone() }).set(0);
        }
    }
    for (state, since) in reader.oldest_deliveries()? {
        ages.get_or_create(&ByState { state: state.to_string() }).set(age(&since).unwrap_or(0));
    }
    registry.register("deliveries", "Deliveries, by state", counts);
    registry.register("delivery_oldest_age_seconds", "Age of the oldest delivery in a state; 0 if there is none", ages);
    Ok(())
}

/// Registers the metrics of streams, if a target is a stream.
fn streams(registry: &mut Registry, health: &Health, publishes: &PublishTimes) {
    if health.streams.is_empty() {
        return;
    }
    let connected = Family::<ByTarget, Gauge>::default();
    let (there_already, refilled) = (Counter::<u64>::default(), Counter::<u64>::default());
    for stream in &health.streams {
        let label = ByTarget { target: stream.target.clone() };
        connected.get_or_create(&label).set((stream.state == StreamState::Connected).into());
        there_already.inc_by(u64::try_from(stream.there_already).unwrap_or(0));
        refilled.inc_by(u64::try_from(stream.refilled).unwrap_or(0));
    }
    registry.register("nats_connected", "1 if the daemon can publish to the target's stream", connected);
    registry.register("publish_seconds", "Time from a publish to its acknowledgement", publishes.histogram());
    // `prometheus_client` adds `_total`.
    registry.register("there_already", "Deliveries whose message was in the stream already", there_already);
    registry.register("refilled", "Messages that the stream had lost and got again", refilled);
}

fn chains(registry: &mut Registry, health: &Health, requests: &RequestCounters) {
    let (confirmations, lags) = (Family::<ByState, Gauge>::default(), Family::<ByChain, Gauge>::default());
    for (state, n) in &health.confirmations {
        confirmations.get_or_create(&ByState { state: state.clone() }).set(*n);
    }
    for chain in &health.chains {
        if let Some(lag) = chain.final_lag_s {
            lags.get_or_create(&ByChain { chain: chain.name.clone() }).set(lag);
        }
    }
    registry.register("confirmations", "Events that were to be confirmed by a chain, by state", confirmations);
    registry.register("chain_final_lag_seconds", "How much older the last final block is than the newest", lags);
    // `prometheus_client` adds `_total`.
    registry.register("node_requests", "Calls at the nodes of a chain, by outcome", requests.nodes.counters());
}

fn resmic(registry: &mut Registry, health: &Health, requests: &RequestCounters) {
    let Some(resmic) = &health.resmic else { return };
    for (name, help, n) in [
        ("resmic_waiting", "Events that wait until Resmic reports their session as Completed", resmic.waiting),
        (
            "resmic_missing_mails",
            "Sessions that are completed at Resmic and whose mail is missing",
            resmic.missing_mails,
        ),
        ("resmic_sessions_to_review", "Sessions about which Resmic's answers need review", resmic.to_review),
    ] {
        let gauge: Gauge = Gauge::default();
        gauge.set(n);
        registry.register(name, help, gauge);
    }
    registry.register("resmic_requests", "Requests to Resmic's API, by outcome", requests.resmic.counters());
}

fn mailboxes(registry: &mut Registry, health: &Health) {
    let (connected, ages) = (Family::<ByMailbox, Gauge>::default(), Family::<ByMailbox, Gauge>::default());
    for row in &health.mailboxes {
        let label = ByMailbox { account: row.account.clone(), mailbox: row.mailbox.clone() };
        let unconnected = [MailboxState::Connecting, MailboxState::Failed].map(MailboxState::as_str);
        connected.get_or_create(&label).set((!unconnected.contains(&row.state.as_str())).into());
        if let Some(age) = row.last_seen_at.as_deref().and_then(age) {
            ages.get_or_create(&label).set(age);
        }
    }
    registry.register("mailbox_connected", "1 if the mailbox is connected", connected);
    registry.register("mailbox_last_seen_age_seconds", "Age of the last completed round trip", ages);
}

fn accounts(registry: &mut Registry, health: &Health) {
    let (ages, quiet) = (Family::<ByAccount, Gauge>::default(), Family::<ByAccount, Gauge>::default());
    for row in &health.accounts {
        let label = ByAccount { account: row.account.clone() };
        if let Some(age) = row.last_notification_at.as_deref().and_then(age) {
            ages.get_or_create(&label).set(age);
        }
        if row.is_limited {
            quiet.get_or_create(&label).set(row.quiet.into());
        }
    }
    registry.register(
        "last_notification_age_seconds",
        "Age of the newest proven notification of an account; absent if there is none",
        ages,
    );
    registry.register("quiet", "1 if an account had no proven notification for longer than its `quiet`", quiet);
}

/// Seconds since a time in the database's format.
fn age(since: &str) -> Option<i64> {
    Some(Timestamp::now().duration_since(since.parse().ok()?).as_secs().max(0))
}
