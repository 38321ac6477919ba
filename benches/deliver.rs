//! The throughput and the latency of deliveries. Each number has a floor from the same run: the same requests made by a
//! plain hyper client without a database.
//!
//! `cargo bench --bench deliver`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use resmic_mailhook::db::{self, Store};
use resmic_mailhook::forward::{self, ForwardSettings, Target};
use resmic_mailhook::model::Matching;
use testkit::examined::{numbered_event, numbered_mail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const BURST: u32 = 10_000;
const SINGLE: u32 = 300;
const CONCURRENCY: usize = 16;
const IDLE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (address, mut seen) = receiver().await;
    let floor = bare_burst(address, &mut seen).await;
    let ours = our_burst(address, &mut seen).await;
    println!("deliveries a second, {BURST} due at once, {CONCURRENCY} at a time");
    println!("  floor, bare client   {floor:>9.0}/s");
    println!("  the forwarder        {ours:>9.0}/s   {:.2} of the floor", ours / floor);
    let mut bare = bare_singles(address, &mut seen).await;
    let mut single = our_singles(address, &mut seen).await;
    println!("from the commit of one event to its request received, {SINGLE} times");
    print_times("floor, bare client", &mut bare, 1.0);
    let base = bare[bare.len() / 2].as_secs_f64();
    print_times("the forwarder", &mut single, base);
    print_times("floor, one commit", &mut commits(address).await, base);
    println!("resident memory, at most {} KiB", peak());
    let (wakes, micros) = idle(address).await;
    println!("idle for {} s: {wakes} wake-ups, {micros} us of CPU", IDLE.as_secs());
}

/// Measures the commit of one row, which is the least cost of recording an attempt.
async fn commits(address: SocketAddr) -> Vec<Duration> {
    let (_folder, store, _) = open(address).await;
    let mut times = Vec::new();
    for n in 0..SINGLE {
        let began = Instant::now();
        let state = resmic_mailhook::model::MailboxState::Idle;
        store.note_mailbox("shop", "INBOX", state, true, Some(n.to_string())).await.unwrap();
        times.push(began.elapsed());
    }
    times
}

/// Measures an idle forwarder, which watches the database for rows of other programs: wake-ups and microseconds of CPU.
async fn idle(address: SocketAddr) -> (u64, u64) {
    let (_folder, store, target) = open(address).await;
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(forward::run(store, vec![target], stopped));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = wakeups_and_cpu();
    tokio::time::sleep(IDLE).await;
    let after = wakeups_and_cpu();
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    (after.0 - before.0, (after.1 - before.1) / 1_000)
}

/// The wake-ups and the CPU time in nanoseconds of all threads (proc(5): status, schedstat).
fn wakeups_and_cpu() -> (u64, u64) {
    let (mut sleeps, mut nanos) = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()) {
        let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        let schedstat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        nanos += schedstat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    (sleeps, nanos)
}

fn print_times(label: &str, times: &mut [Duration], base: f64) {
    times.sort();
    let (median, slow) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let ratio = if label.starts_with("floor") {
        String::new()
    } else {
        format!("   {:.1} times the floor", median.as_secs_f64() / base)
    };
    println!("  {label:<20} median {:>6} us, 99 % {:>6} us{ratio}", median.as_micros(), slow.as_micros());
}

/// The peak of the resident memory in KiB (proc(5)).
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim().trim_end_matches(" kB").to_owned()
}

/// Starts a handler that accepts everything. The channel gets the time at which each request arrives.
async fn receiver() -> (SocketAddr, mpsc::UnboundedReceiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (times, seen) = mpsc::unbounded_channel();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(handle(stream, times.clone()));
        }
    });
    (address, seen)
}

async fn handle(mut stream: TcpStream, times: mpsc::UnboundedSender<Instant>) {
    let mut request = Vec::new();
    // Only the body ends in a brace.
    while !request.ends_with(b"}") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    times.send(Instant::now()).unwrap();
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
}

async fn bare_post(address: SocketAddr, body: String) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let request = hyper::Request::post("/").header("host", "localhost").body(Full::new(Bytes::from(body))).unwrap();
    let call = async { sender.send_request(request).await.unwrap().into_body().collect().await.unwrap() };
    tokio::pin!(call, connection);
    tokio::select! {
        _ = &mut call => {}
        _ = &mut connection => { call.await; }
    }
}

async fn bare_burst(address: SocketAddr, seen: &mut mpsc::UnboundedReceiver<Instant>) -> f64 {
    let began = Instant::now();
    let workers = (0..CONCURRENCY).map(|worker| {
        tokio::spawn(async move {
            for n in (worker..BURST as usize).step_by(CONCURRENCY) {
                bare_post(address, numbered_event(u32::try_from(n).unwrap()).webhook()).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    drain(seen);
    f64::from(BURST) / began.elapsed().as_secs_f64()
}

async fn bare_singles(address: SocketAddr, seen: &mut mpsc::UnboundedReceiver<Instant>) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..SINGLE {
        let began = Instant::now();
        bare_post(address, numbered_event(n).webhook()).await;
        times.push(seen.recv().await.unwrap() - began);
    }
    times
}

fn drain(seen: &mut mpsc::UnboundedReceiver<Instant>) {
    while seen.try_recv().is_ok() {}
}

async fn open(address: SocketAddr) -> (tempfile::TempDir, Store, Target) {
    let folder = tempfile::tempdir().unwrap();
    let table = format!("name = \"shop\"\nurl = \"http://{address}/\"\nsecret = {{ env = \"S\" }}");
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

async fn our_burst(address: SocketAddr, seen: &mut mpsc::UnboundedReceiver<Instant>) -> f64 {
    let (_folder, store, target) = open(address).await;
    for n in (0..BURST).step_by(500) {
        store.record((n..n + 500).map(numbered_mail).collect::<Vec<_>>(), None).await.unwrap();
    }
    let (stop, stopped) = watch::channel(false);
    let began = Instant::now();
    let running = tokio::spawn(forward::run(store.clone(), vec![target], stopped));
    for _ in 0..BURST {
        seen.recv().await.unwrap();
    }
    let took = began.elapsed();
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    f64::from(BURST) / took.as_secs_f64()
}

async fn our_singles(address: SocketAddr, seen: &mut mpsc::UnboundedReceiver<Instant>) -> Vec<Duration> {
    let (_folder, store, target) = open(address).await;
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(forward::run(store.clone(), vec![target], stopped));
    let mut times = Vec::new();
    for n in 0..SINGLE {
        store.record(vec![numbered_mail(n)], None).await.unwrap();
        let committed = Instant::now();
        // The request may arrive before `record` returns.
        times.push(seen.recv().await.unwrap().saturating_duration_since(committed));
    }
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    times
}
