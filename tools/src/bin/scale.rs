//! `make bench-scale`: the cost of commands, queries and the daemon over a small database and over a large one.
//!
//! `cargo run --package tools --bin scale -- [SMALL] [LARGE]`, with the binary to be measured in `MAILHOOK_BINARY`. It
//! needs about 11 KiB of disk for each event.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use testkit::callback::Callback;
use testkit::daemon::{Daemon, Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::payment;
use testkit::process::free_port;

const PATIENCE: Duration = Duration::from_secs(600);
/// How long the daemon is watched at rest.
const REST: Duration = Duration::from_secs(20);
/// How many events the builder inserts in one SQLite transaction.
const CHUNK: usize = 50_000;
/// The size of a mail, in bytes: that of Resmic's mails with their headers.
const MAIL: usize = 6_200;
/// How often each measurement is repeated; the fastest counts.
const REPEATS: usize = 5;

/// A measurement: its name and its milliseconds.
type Cost = (String, f64);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number of events"));
    let (small, large) = (arguments.next().unwrap_or(10_000), arguments.next().unwrap_or(1_000_000));
    let (few, many) = (measure(small), measure(large));
    println!("\n{:<58} {small:>12} {large:>12}", "in milliseconds");
    for ((name, before), (_, after)) in few.iter().zip(&many) {
        println!("{name:<58} {before:>12.2} {after:>12.2}  {:.1}x", after / before);
    }
    println!("\n100,000 deliveries to a dead target, 100,000 open sessions, 10,000 quarantined mails");
    for (name, cost) in backlogs() {
        println!("{name:<58} {cost:>12.2}");
    }
}

/// Measures the daemon with many open sessions, many mails that need review, and many deliveries to a dead target. At first the
/// retries are spread over ten hours, and then all of them are due.
fn backlogs() -> Vec<Cost> {
    let dovecot = Dovecot::start_with(&sdbox());
    let home = Home::new(&format!(
        "{}[trust]\naccept = [\"none\"]\n{}[telemetry]\nlog = \"error\"\n[sessions]\nmatch = true\n",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]"),
        forward("http://127.0.0.1:1/", "")
    ));
    build(&home, 10_000);
    let connection = Connection::open(home.database()).unwrap();
    connection.execute_batch(BACKLOGS).unwrap();
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "idle", PATIENCE);
    std::thread::sleep(Duration::from_secs(5));
    let status = fastest(|| assert!(home.command(&["status"]).stdout(Stdio::null()).status().is_ok()));
    let mut costs = vec![("command status".into(), status)];
    costs.push((format!("CPU of the daemon at rest, ms in {} s", REST.as_secs()), at_rest(&daemon)));
    costs.push(("resident memory, MiB".into(), resident(&daemon)));
    let mut matched = 0.0;
    // The first mail after the start takes longer.
    for n in 1..=3 {
        let mail = String::from_utf8(payment(n)).unwrap().replace("$20", &format!("${n}77777.5"));
        let unnamed: Vec<_> = mail.split("\r\n").filter(|line| !line.starts_with("Session:")).collect();
        let mail = unnamed.join("\r\n").replace("Wed, 05 Mar 2025 03:36:41 +0000", &date_header());
        let sent = dovecot.deliver("payments@shop.example", mail.as_bytes());
        home.until("SELECT count(*) FROM events WHERE session_source = 'match'", &n.to_string(), PATIENCE);
        matched = sent.elapsed().as_secs_f64() * 1e3;
    }
    costs.push(("a mail: from the mail server to its matched session".into(), matched));
    connection.execute_batch(ALL_DUE).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    costs.push((format!("CPU of the daemon if all are due, ms in {} s", REST.as_secs()), at_rest(&daemon)));
    assert_eq!(daemon.end(), Some(0));
    costs
}

/// The current time in the form of a Date header.
fn date_header() -> String {
    let date = std::process::Command::new("date").args(["-u", "-R"]).output().unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

const BACKLOGS: &str = "BEGIN;
    CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
      SELECT i, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS at FROM n;
    INSERT INTO events (event_id, status, session_id, session_source, amount, transaction_hash, webhook, created_at)
      SELECT 'due-' || i, 'completed', 'due-session-' || i, 'mail', 20, lower(hex(randomblob(32))), '{}', at FROM n;
    INSERT INTO deliveries (event_id, target, state, attempts, next_attempt_at, created_at, first_attempt_at)
      SELECT 'due-' || i, 'shop', 'pending', 9, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (0.36 * i) || ' seconds'), at, at FROM n;
    INSERT INTO sessions (session_id, order_ref, amount, created_at)
      SELECT printf('591abe63-aa61-411d-a419-%012d', i), 'open-' || i, 1000 + i, at FROM n;
    UPDATE sessions SET amount = substr(order_ref, 6) || '77777.50' WHERE order_ref IN ('open-1', 'open-2', 'open-3');
    DELETE FROM sessions_to_reconcile;
    INSERT INTO mails (account, mailbox, size, sha256, outcome, reason, judged_at, raw)
      SELECT 'shop', 'import', 6200, lower(hex(randomblob(32))), 'quarantined', 'untrusted: no proof', at, randomblob(6200)
      FROM n WHERE i <= 10000;
    COMMIT;";

const ALL_DUE: &str =
    "UPDATE deliveries SET next_attempt_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE state = 'pending'";

/// Makes all measurements over a database with this number of events.
fn measure(events: usize) -> Vec<Cost> {
    let (dovecot, callback, metrics) = (Dovecot::start_with(&sdbox()), Callback::start(), free_port());
    let home = Home::new(&format!(
        "{}[trust]\naccept = [\"none\"]\n{}[telemetry]\nlog = \"warn\"\nmetrics = \"127.0.0.1:{metrics}\"\n",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]"),
        forward(&callback.url(), "")
    ));
    let begun = Instant::now();
    build(&home, events);
    // Without this sync, the measured commits would wait until the disk has written the file.
    fs::File::open(home.database()).unwrap().sync_all().unwrap();
    println!("{events} events: {} MiB, built in {:.0} s", size(&home) >> 20, begun.elapsed().as_secs_f64());
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "idle", PATIENCE);
    let mut costs = commands(&home);
    costs.extend(queries(&home));
    for path in ["/healthz", "/metrics"] {
        costs.push((path.into(), fastest(|| get(metrics, path))));
    }
    costs.push(("a mail: from the mail server to its row, median of 20".into(), arrival(&home, &dovecot, events)));
    costs.push((format!("CPU of the daemon at rest, in {} s", REST.as_secs()), at_rest(&daemon)));
    costs.push(("resident memory, MiB".into(), resident(&daemon)));
    costs.extend(prune(&home));
    assert_eq!(daemon.end(), Some(0));
    costs
}

/// The setting for Dovecot's format sdbox. Two clients of a Maildir would delay each other.
fn sdbox() -> String {
    let is_old = Dovecot::version().starts_with("2.3");
    if is_old { "mail_location = sdbox:~/sdbox\n".into() } else { "mail_driver = sdbox\nmail_path = ~/sdbox\n".into() }
}

/// Fills the database with events over three years. Each event has a mail, a delivery and an attempt. No delivery is
/// pending, and no mail needs review.
fn build(home: &Home, events: usize) {
    // This command creates the database file with its tables.
    drop(home.run(&["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0"]));
    let connection = Connection::open(home.database()).unwrap();
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -200000").unwrap();
    for first in (0..events).step_by(CHUNK) {
        let count = CHUNK.min(events - first);
        connection.execute_batch(&rows(first, count, events)).unwrap();
    }
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}

fn rows(first: usize, count: usize, events: usize) -> String {
    let end = first + count;
    format!(
        "BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {end})
           SELECT i, lower(hex(randomblob(16))) AS a, lower(hex(randomblob(32))) AS hash,
             strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (-1095.0 * ({events} - i) / {events}) || ' days') AS at FROM n;
         CREATE TEMP TABLE m AS SELECT i, hash, at,
           substr(a, 1, 8) || '-' || substr(a, 9, 4) || '-5' || substr(a, 14, 3) || '-a' || substr(a, 18, 3) || '-' || substr(a, 21, 12)
             AS event_id,
           substr(hash, 1, 8) || '-' || substr(hash, 9, 4) || '-4' || substr(hash, 14, 3) || '-b' || substr(hash, 18, 3) || '-'
             || substr(hash, 21, 12) AS session_id FROM n;
         INSERT INTO events (event_id, status, session_id, session_source, order_ref, amount, currency, blockchain, token,
             from_wallet_address, transaction_hash, tx_time, tx_time_source, webhook, created_at)
           SELECT event_id, iif(i % 20, 'completed', 'failed'), session_id, 'mail', 'A-' || i, 5 + i % 200, 'USD',
             iif(i % 3, 'BASE', 'Polygon'), iif(i % 5, 'USDC', 'DAI'), '0x' || substr(hash, 1, 40), '0x' || hash,
             substr(at, 1, 16) || ':00.000Z', 'mail',
             json_object('session_id', session_id, 'amount', 5 + i % 200, 'transaction_hash', '0x' || hash, 'status', 1), at FROM m;
         INSERT INTO deliveries (event_id, target, state, attempts, last_status, delivered_at, created_at, first_attempt_at)
           SELECT event_id, 'shop', 'delivered', 1, 200, at, at, at FROM m ORDER BY i;
         INSERT INTO attempts (delivery_id, attempt, at, status, millis, result)
           SELECT d.id, 1, at, 200, 3, 'accepted' FROM m JOIN deliveries d USING (event_id);
         INSERT INTO mails (account, mailbox, uid_validity, uid, message_id, sender, recipient, subject, sent_at, received_at,
             size, sha256, outcome, trust, event_id, trust_domain, trust_selector, trust_covers, trust_to, judged_at, raw)
           SELECT 'shop', 'INBOX', 1, i + 1, '<' || hash || '@resmic.com>', 'Resmic <no-reply@resmic.com>',
             'payments@shop.example', 'Payment received', at, at, {MAIL}, hash, 'event', 'dkim', event_id, 'resmic.com', 's1',
             'from to subject date', 'payments@shop.example', at, randomblob({MAIL}) FROM m ORDER BY i;
         INSERT INTO sessions (session_id, order_ref, amount, blockchain, token, created_at)
           SELECT session_id, 'A-' || i, 5 + i % 200, 'BASE', 'USDC', at FROM m WHERE i % 10 = 0;
         DELETE FROM sessions_to_reconcile;
         DROP TABLE m; DROP TABLE n;
         COMMIT;"
    )
}

fn size(home: &Home) -> u64 {
    fs::metadata(home.database()).unwrap().len()
}

/// The milliseconds of the fastest run.
fn fastest(mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed().as_secs_f64() * 1e3
    };
    (0..REPEATS).map(run).fold(f64::INFINITY, f64::min)
}

fn commands(home: &Home) -> Vec<Cost> {
    let commands: [&[&str]; 8] = [
        &["--version"],
        &["status", "--json"],
        &["events", "--limit", "50"],
        &["events", "--status", "failed", "--limit", "50"],
        &["events", "--since", "1h", "--json"],
        &["mails", "--limit", "50"],
        &["deliveries", "--limit", "50"],
        &["session", "list", "--limit", "50"],
    ];
    let cost = |arguments: &&[&str]| {
        let run = || assert!(home.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok());
        (format!("command {}", arguments.join(" ")), fastest(run))
    };
    commands.iter().map(cost).collect()
}

fn queries(home: &Home) -> Vec<Cost> {
    let middle = "(SELECT rowid FROM events ORDER BY rowid DESC LIMIT 1) / 2";
    let known = |column: &str| home.ask(&format!("SELECT {column} FROM events WHERE rowid = {middle}"));
    let payments = |condition: String| format!("SELECT * FROM payments {condition}");
    let all = [
        payments(format!("WHERE session_id = '{}'", known("session_id"))),
        payments(format!("WHERE order_ref = '{}'", known("order_ref"))),
        payments(format!("WHERE event_id = '{}'", known("event_id"))),
        payments(format!("WHERE transaction_hash = '{}'", known("transaction_hash"))),
        payments("ORDER BY created_at DESC LIMIT 20".into()),
        payments("ORDER BY tx_time DESC LIMIT 20".into()),
        "SELECT * FROM events WHERE created_at >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour')".into(),
        "SELECT * FROM mails WHERE outcome = 'quarantined' ORDER BY id DESC".into(),
        "SELECT * FROM deliveries WHERE state <> 'delivered'".into(),
        "SELECT name, key, n FROM counts".into(),
        "SELECT * FROM paid_by_day".into(),
    ];
    let run = |sql: &String| {
        let connection = home.sqlite();
        let mut statement = connection.prepare(sql).unwrap();
        let mut rows = statement.raw_query();
        while rows.next().unwrap().is_some() {}
    };
    let name = |sql: &String| sql.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(58).collect();
    all.iter().map(|sql| (name(sql), fastest(|| run(sql)))).collect()
}

fn get(port: u16, path: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

/// The median time in milliseconds from the delivery to the mail server to the committed row.
fn arrival(home: &Home, dovecot: &Dovecot, events: usize) -> f64 {
    let sqlite = home.sqlite();
    let mut found = sqlite.prepare("SELECT 1 FROM events WHERE transaction_hash = ?1").unwrap();
    let mut times: Vec<f64> = (0..20)
        .map(|n| {
            let n = events + n;
            let sent = dovecot.deliver("payments@shop.example", &payment(n));
            while !found.exists([testkit::payments::transaction_hash(n)]).unwrap() {
                assert!(sent.elapsed() < PATIENCE, "mail {n} has no row");
                std::thread::sleep(Duration::from_micros(200));
            }
            sent.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The milliseconds of CPU that the daemon uses in [`REST`].
fn at_rest(daemon: &Daemon) -> f64 {
    let before = processor(daemon);
    std::thread::sleep(REST);
    // A thread that has ended meanwhile is not counted.
    let ran = |(task, nanos): (PathBuf, f64)| nanos - before.get(&task).copied().unwrap_or(0.0);
    processor(daemon).into_iter().map(ran).sum::<f64>() / 1e6
}

/// The nanoseconds of CPU of each thread.
fn processor(daemon: &Daemon) -> BTreeMap<PathBuf, f64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap();
    let ran = |task: std::io::Result<fs::DirEntry>| {
        let task = task.unwrap().path();
        let stat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        (task, stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0.0))
    };
    tasks.map(ran).collect()
}

fn resident(daemon: &Daemon) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Prunes everything while the daemon runs, and another thread takes the write lock again and again.
fn prune(home: &Home) -> Vec<Cost> {
    let ended = AtomicBool::new(false);
    let (before, begun) = (size(home), Instant::now());
    let mut waits = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock_waits(home, &ended));
        home.data(&["prune", "--older-than", "1h"]);
        ended.store(true, Ordering::SeqCst);
        waiting.join().unwrap()
    });
    let took = begun.elapsed().as_secs_f64() * 1e3;
    waits.sort_by(f64::total_cmp);
    let slowest = waits.last().copied().unwrap_or_default();
    let too_long = waits.iter().filter(|wait| **wait > 50.0).count();
    println!("prune: {} waits for the write lock, {too_long} of them above 50 ms", waits.len());
    vec![
        ("prune: the whole time".into(), took),
        ("prune: longest hold of the write lock seen".into(), slowest),
        ("prune: size of the file afterwards, in percent".into(), 100.0 * size(home) as f64 / before as f64),
    ]
}

/// How long each attempt to get the write lock had to wait, in milliseconds.
fn lock_waits(home: &Home, ended: &AtomicBool) -> Vec<f64> {
    let connection = Connection::open(home.database()).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    let mut waits = Vec::new();
    while !ended.load(Ordering::SeqCst) {
        let begun = Instant::now();
        while connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err() && !ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(200));
        }
        waits.push(begun.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(3));
    }
    waits
}
