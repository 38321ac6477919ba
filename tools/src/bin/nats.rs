//! `make bench-nats`: the throughput and the latency of a stream target. Each number has a floor from the same run: a bare client
//! of the same library. It publishes the same bodies to the same server, with the same number of messages in flight.
//!
//! `cargo run --release --package tools --bin nats -- [EVENTS]`. It measures NATS 2.15 with an fsync for each message, and
//! Debian's server, which has no such setting and writes its files every two minutes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::{Client, HeaderMap, Subscriber};
use futures_util::StreamExt;
use futures_util::stream;
use resmic_mailhook::db::{self, Store};
use resmic_mailhook::forward::{self, ForwardSettings, Target};
use resmic_mailhook::model::{Event, Matching};
use serde_json::{Value, json};
use testkit::examined::{numbered_event, numbered_mail};
use testkit::nats_cluster::current_server;
use testkit::nats_server::NatsServer;
use tokio::sync::watch;

/// How many events are measured one after the other.
const SINGLE: u32 = 300;
/// How many messages wait for their acknowledgement at the same time, as in the daemon.
const IN_FLIGHT: usize = 16;
/// The figures to reach.
const EVENTS_A_SECOND: f64 = 800.0;
const MEDIAN: Duration = Duration::from_millis(3);
/// The streams of the daemon's target and of the bare client.
const OURS: &str = "PAID";
const BARE: &str = "BARE";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let events = std::env::args().nth(1).map_or(5_000, |n| n.parse().expect("a number of events"));
    // The folder of the server is its working directory.
    let fsync = "jetstream { store_dir: jetstream, max_mem: 64MB, max_file: 1GB, sync_interval: always }";
    measure(&NatsServer::start_program(&current_server(), fsync), "fsync of each message", events).await;
    measure(&NatsServer::start(), "no fsync before the acknowledgement", events).await;
}

async fn measure(server: &NatsServer, durability: &str, events: u32) {
    server.create_stream(OURS, &["shop.paid.>"], json!({})).await;
    server.create_stream(BARE, &["bare.>"], json!({})).await;
    let client = server.client().await;
    println!("NATS {}, {durability}", client.server_info().version);
    let floor = bare_burst(&client, events).await;
    let mut acks = Acks::watch(server).await;
    let ours = our_burst(server, &mut acks, events).await;
    println!("  messages a second, {events} due at once, {IN_FLIGHT} in flight");
    println!("    floor, bare client   {floor:>9.0}/s");
    println!(
        "    the target           {ours:>9.0}/s   {:.2} of the floor (at least {EVENTS_A_SECOND}/s)",
        ours / floor
    );
    let mut floor = bare_singles(&client, events).await;
    let mut ours = our_singles(server, &mut acks, events).await;
    println!(
        "  one after the other, {SINGLE} times: from the publish, or from the event's commit, to the acknowledgement"
    );
    let base = print_times("floor, bare client", &mut floor);
    let median = print_times("the target", &mut ours);
    let ratio = median.as_secs_f64() / base.as_secs_f64();
    println!("    the medians: {ratio:.1} times the floor (at most {} ms)", MEDIAN.as_millis());
    let (stored, all) = (server.count(OURS).await, u64::from(events + SINGLE));
    let acknowledged = acks.sequences.len() as u64;
    println!("  {all} events, {acknowledged} acknowledged, {stored} messages in the stream");
    assert!(stored == all && acknowledged == all, "events were lost or doubled");
}

fn print_times(what: &str, times: &mut [Duration]) -> Duration {
    times.sort();
    let (median, slow) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("    {what:<20} median {:>6} us, 99 % {:>6} us", median.as_micros(), slow.as_micros());
    median
}

/// The acknowledgements of the daemon's stream, as another client sees them on their reply subjects.
struct Acks {
    replies: Subscriber,
    /// The sequence numbers, each with the number of its acknowledgements.
    sequences: BTreeMap<u64, usize>,
}

impl Acks {
    async fn watch(server: &NatsServer) -> Acks {
        let client = server.client().await;
        let replies = client.subscribe("_INBOX.>").await.unwrap();
        client.flush().await.unwrap();
        Acks { replies, sequences: BTreeMap::new() }
    }

    /// Waits for the acknowledgement of the next message, and returns the time of its arrival.
    async fn next(&mut self) -> Instant {
        loop {
            let reply = self.replies.next().await.unwrap();
            let now = Instant::now();
            let Ok(Value::Object(answer)) = serde_json::from_slice(&reply.payload) else { continue };
            let sequence = answer.get("seq").and_then(Value::as_u64).unwrap_or(0);
            if answer.get("stream").and_then(Value::as_str) == Some(OURS) && sequence > 0 {
                *self.sequences.entry(sequence).or_default() += 1;
                return now;
            }
        }
    }
}

/// Publishes a message if its subject has none, and waits for the acknowledgement.
async fn publish(stream: &Context, event: &Event) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    headers.insert("Nats-Expected-Stream", BARE);
    // These headers are as long as those of the daemon.
    headers.insert("X-Signature", "0".repeat(64));
    headers.insert("Idempotency-Key", "0".repeat(36));
    headers.insert("webhook-id", "0".repeat(36));
    let subject = format!("bare.completed.{}", event.id().unwrap());
    stream.publish_with_headers(subject, headers, event.webhook().into()).await.unwrap().await.unwrap();
}

async fn bare_burst(client: &Client, events: u32) -> f64 {
    let context = async_nats::jetstream::new(client.clone());
    let began = Instant::now();
    let publishing = stream::iter(0..events).map(|n| {
        let context = &context;
        async move { publish(context, &numbered_event(n)).await }
    });
    publishing.buffer_unordered(IN_FLIGHT).for_each(|()| std::future::ready(())).await;
    f64::from(events) / began.elapsed().as_secs_f64()
}

async fn bare_singles(client: &Client, first: u32) -> Vec<Duration> {
    let context = async_nats::jetstream::new(client.clone());
    let mut times = Vec::new();
    for n in first..first + SINGLE {
        let event = numbered_event(n);
        let began = Instant::now();
        publish(&context, &event).await;
        times.push(began.elapsed());
    }
    times
}

/// A database with the target of this server.
async fn open(server: &NatsServer) -> (tempfile::TempDir, Store, Target) {
    let folder = tempfile::tempdir().unwrap();
    let table = format!(
        "name = \"stream\"\nnats = [\"{}\"]\nstream = \"{OURS}\"\nsubject = \"shop.paid\"\nsecret = {{ env = \"S\" }}",
        server.url()
    );
    let settings: ForwardSettings = toml::from_str(&table).unwrap();
    let store = Store::open(db::StoreSettings {
        path: folder.path().join("m.db"),
        targets: vec![settings.target()],
        matching: Matching { enabled: false, window: Duration::from_secs(60) },
        chains: Vec::new(),
        resmic: None,
    });
    (folder, store.unwrap(), Target::load(settings, "secret".into()).await.unwrap())
}

async fn our_burst(server: &NatsServer, acks: &mut Acks, events: u32) -> f64 {
    let (_folder, store, target) = open(server).await;
    for first in (0..events).step_by(500) {
        store.record((first..events.min(first + 500)).map(numbered_mail).collect::<Vec<_>>(), None).await.unwrap();
    }
    let (stop, stopped) = watch::channel(false);
    let began = Instant::now();
    let running = tokio::spawn(forward::run(store.clone(), vec![target], stopped));
    let mut last = began;
    for _ in 0..events {
        last = acks.next().await;
    }
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    f64::from(events) / (last - began).as_secs_f64()
}

async fn our_singles(server: &NatsServer, acks: &mut Acks, first: u32) -> Vec<Duration> {
    let (_folder, store, target) = open(server).await;
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(forward::run(store.clone(), vec![target], stopped));
    let mut times = Vec::new();
    for n in first..first + SINGLE {
        store.record(vec![numbered_mail(n)], None).await.unwrap();
        let committed = Instant::now();
        // The acknowledgement may come before `record` returns.
        times.push(acks.next().await.saturating_duration_since(committed));
    }
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    times
}
