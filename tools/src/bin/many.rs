//! `make bench-many`: measures a standby, and one process with a thousand mailboxes over TLS: memory, descriptors, processor time,
//! and the time until all mailboxes are connected.
//!
//! `cargo run --package tools --bin many -- [MAILBOXES] [IDLE SECONDS]`; `MAILHOOK_BINARY` is the binary to measure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::callback::Callback;
use testkit::daemon::{Daemon, Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::nats_server::NatsServer;
use testkit::payments::payment;

/// The memory limits in KiB for the first mailbox, and for each further mailbox over TLS.
const ONE_KIB: u64 = 16 * 1024;
const FURTHER_KIB: u64 = 100;
/// The limits for a standby: KiB of memory, and wake-ups a second.
const STANDBY_KIB: u64 = 9 * 1024;
const STANDBY_WAKE_UPS: f64 = 1.0;
/// The length of the lease, as in the documentation.
const LEASE: Duration = Duration::from_secs(20);
/// The longest wait: on a small machine, Dovecot creates the homes of a thousand users at their first logins.
const PATIENCE: Duration = Duration::from_secs(300);
/// Dovecot's limits for a thousand connections. Dovecot starts a process for each of them. By default, it sends a "still here"
/// line every two minutes. With the longer notify interval, these lines do not wake the daemon.
const LIMITS: &str = "default_client_limit = 8192\ndefault_process_limit = 4096\nservice imap-login {\n  service_count = 0\n  \
                      client_limit = 8192\n}\nservice anvil {\n  client_limit = 8192\n}\nservice auth {\n  client_limit = 8192\n}\n\
                      imap_idle_notify_interval = 25 mins\n";

fn main() {
    let mut arguments = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number"));
    let (many, seconds) = (arguments.next().unwrap_or(1_000), arguments.next().unwrap_or(60));
    let (standby, wake_ups) = measure_standby(seconds as u64);
    let one = measure(1, 5);
    let all = measure(many, seconds as u64);
    let further = all.saturating_sub(one) / (many as u64 - 1).max(1);
    println!(
        "a standby {standby} KiB (at most {STANDBY_KIB}), {wake_ups:.1} wake-ups a second (at most {STANDBY_WAKE_UPS})"
    );
    println!("one mailbox {one} KiB (at most {ONE_KIB}); each further one {further} KiB (at most {FURTHER_KIB})");
    if standby > STANDBY_KIB || wake_ups > STANDBY_WAKE_UPS || one > ONE_KIB || further > FURTHER_KIB {
        println!("that is too much");
        std::process::exit(1);
    }
}

/// Runs the daemon with this many mailboxes and returns its resident memory in KiB after each has received a mail.
fn measure(mailboxes: usize, seconds: u64) -> u64 {
    let (dovecot, callback) = (Dovecot::start_with(LIMITS), Callback::start());
    let home = Home::new(&config(&dovecot, &callback, mailboxes));
    let began = Instant::now();
    let daemon = home.start();
    let idle = "SELECT count(*) FROM mailboxes WHERE state = 'idle'";
    home.until(idle, &mailboxes.to_string(), PATIENCE);
    let took = began.elapsed();
    println!("{mailboxes} mailboxes");
    println!(
        "  at rest after {:.1} s, {:.0} a second; logins in the busiest second: {}",
        took.as_secs_f64(),
        mailboxes as f64 / took.as_secs_f64(),
        busiest_second(&dovecot)
    );
    print_usage("at rest", &daemon);
    for n in 1..=mailboxes {
        dovecot.deliver(&user(n), &mail(n));
    }
    let events = mailboxes.to_string();
    home.until("SELECT count(*) FROM events", &events, PATIENCE);
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", &events, PATIENCE);
    println!("  mail to recorded, in ms: {}", latencies(&home));
    let without_inotify = dovecot.log().lines().filter(|line| line.contains("inotify")).count();
    if without_inotify > 0 {
        println!(
            "  (the kernel tells {without_inotify} of Dovecot's processes of no change, fs.inotify has its limits: they look twice a minute)"
        );
    }
    rest(&daemon, seconds);
    print_usage("after a mail to each", &daemon);
    let resident = status(&daemon, "VmRSS:");
    assert_eq!(daemon.end(), Some(0));
    resident
}

/// Runs an active host and a standby. Returns the resident memory of the standby in KiB, and its wake-ups a second.
fn measure_standby(seconds: u64) -> (u64, f64) {
    let (dovecot, callback, nats) = (Dovecot::start(), Callback::start(), NatsServer::start());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(nats.create_bucket("leases", LEASE, serde_json::json!({})));
    let homes = ["a", "b"].map(|host| {
        let keys = format!("nats = [\"{}\"]\nbucket = \"leases\"\nname = \"shop\"\nhost = \"{host}\"", nats.url());
        Home::new(&format!("{}[standby]\n{keys}\n", config(&dovecot, &callback, 1)))
    });
    let active = homes[0].start();
    active.says("this host is active", PATIENCE);
    let standby = homes[1].start();
    standby.says("standing by", PATIENCE);
    println!("a standby");
    let woken = rest(&standby, seconds);
    print_usage("afterwards", &standby);
    let resident = status(&standby, "VmRSS:");
    assert_eq!((standby.end(), active.end()), (Some(0), Some(0)));
    (resident, woken as f64 / seconds as f64)
}

/// Leaves the daemon at rest for this time. Prints its processor time, and returns its wake-ups.
fn rest(daemon: &Daemon, seconds: u64) -> u64 {
    let before = processor(daemon);
    std::thread::sleep(Duration::from_secs(seconds));
    let (mut nanos, mut woken) = (0, 0);
    // A thread that has ended in the meantime is not counted.
    for (task, (ran, slept)) in processor(daemon) {
        let (ran_before, slept_before) = before.get(&task).copied().unwrap_or_default();
        (nanos, woken) = (nanos + ran - ran_before, woken + slept - slept_before);
    }
    println!("  idle for {seconds} s: {} ms of processor, woken {woken} times", nanos / 1_000_000);
    woken
}

fn user(n: usize) -> String {
    format!("shop{n}@shop.example")
}

/// Payment `n`, addressed to user `n`.
fn mail(n: usize) -> Vec<u8> {
    String::from_utf8(payment(n)).unwrap().replace("payments@shop.example", &user(n)).into_bytes()
}

fn config(dovecot: &Dovecot, callback: &Callback, mailboxes: usize) -> String {
    let mut config = forward(&callback.url(), "");
    config += "[trust]\naccept = [\"none\"]\n";
    for n in 1..=mailboxes {
        let tls = format!("tls = \"implicit\"\nca_file = \"{}\"", dovecot.ca().display());
        config += &account(dovecot.imaps, "dedicated = true\nmailboxes = [\"INBOX\"]")
            .replace("tls = \"none\"", &tls)
            .replace("name = \"shop\"", &format!("name = \"shop{n}\""))
            .replace("payments@shop.example", &user(n));
    }
    config
}

/// The largest number of logins within a second in Dovecot's log.
fn busiest_second(dovecot: &Dovecot) -> usize {
    let log = dovecot.log();
    let mut most = (0, "", 0);
    for second in log.lines().filter(|line| line.contains("Login: ")).filter_map(|line| line.get(..15)) {
        most = if second == most.1 { (most.0, second, most.2 + 1) } else { (most.0, second, 1) };
        most.0 = most.0.max(most.2);
    }
    most.0
}

/// The times from the server's INTERNALDATE, which has whole seconds, to the row.
fn latencies(home: &Home) -> String {
    let sql = "SELECT CAST(max(0, 1000 * (julianday(judged_at) - julianday(received_at)) * 86400) AS INTEGER)
               FROM mails ORDER BY 1";
    let sqlite = home.sqlite();
    let mut statement = sqlite.prepare(sql).unwrap();
    let all: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    format!("median {}, slowest {} (of these up to 1000 are rounding)", all[all.len() / 2], all[all.len() - 1])
}

fn print_usage(when: &str, daemon: &Daemon) {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.process.id())).unwrap().count();
    let (resident, peak, threads) = (status(daemon, "VmRSS:"), status(daemon, "VmHWM:"), status(daemon, "Threads:"));
    let own = status(daemon, "RssAnon:");
    println!(
        "  {when}: resident {resident} KiB (peak {peak}; {own} of it its own, the rest are pages of files), {descriptors} \
         descriptors, {threads} threads"
    );
}

/// A number in /proc/PID/status (proc(5)).
fn status(daemon: &Daemon, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The CPU time in nanoseconds and the number of wake-ups of each thread.
fn processor(daemon: &Daemon) -> BTreeMap<PathBuf, (u64, u64)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap().map(|task| task.unwrap().path());
    let usage = |task: &Path| {
        let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let nanos = schedstat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        (nanos, line.and_then(|n| n.trim().parse().ok()).unwrap_or(0))
    };
    tasks.map(|task| (task.clone(), usage(&task))).collect()
}
