//! The time from a new mail to its row, and the speed of a backfill. Each number has a floor from the same run: a minimal client,
//! which fetches the same mails from the same Dovecot and discards them. The mails have the layout that Resmic published, and are
//! signed. The program authenticates, parses and stores each mail.
//!
//! `cargo bench --bench imap`. A number sets the size of the backfill: `-- 100000`. The words `near`, `far`, `backfill` and
//! `idle` select parts.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

mod raw;
mod setup;

use std::time::{Duration, Instant};

use raw::BareClient;
use setup::{BenchSetup, CommitWatcher, Disk, PATIENCE, callback, memory, start_and_wait_for, start_and_wait_for_idle};
use testkit::dovecot::Dovecot;
use testkit::proxy::{Direction, Proxy};

/// The numbers of mails that arrive one by one: at a server on this machine, and at a server with a latency.
const NEAR: usize = 100;
const FAR: usize = 20;
/// The number of mails in a backfill if no argument sets it.
const BACKFILL: usize = 10_000;
/// The bytes that a mail of the published layout, its event, its delivery and their indexes add to the WAL.
const ROW: usize = 16 * 4_096;
/// The time that Dovecot waits after a change before it announces the change.
const NOTIFY_DELAY: Duration = Duration::from_millis(500);
/// The round trip to the far server.
const ROUND_TRIP: Duration = Duration::from_millis(50);

fn main() {
    // `cargo bench` adds the argument --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let count = arguments.iter().find_map(|word| word.parse().ok()).unwrap_or(BACKFILL);
    let parts: Vec<_> = arguments.iter().filter(|word| word.parse::<usize>().is_err()).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| *p == part);
    println!("Dovecot {}, {} cores", Dovecot::version(), std::thread::available_parallelism().map_or(0, usize::from));
    if is_wanted("near") {
        near();
    }
    if is_wanted("far") {
        far();
    }
    if is_wanted("backfill") {
        backfill(count);
        shared_backfill(count);
    }
    if is_wanted("idle") {
        idle();
    }
}

/// Prints a result with its limit.
fn print_result(label: &str, value: String, holds: bool, limit: &str) {
    println!("  {label:<58} {value:>22}   limit {limit:<9} {}", if holds { "holds" } else { "MISSED" });
}

fn at_most(label: &str, value: f64, unit: &str, limit: f64) {
    print_result(label, format!("{value:.2} {unit}"), value <= limit, &format!("{limit} {unit}"));
}

fn at_least(label: &str, value: f64, unit: &str, limit: f64) {
    print_result(label, format!("{value:.2} {unit}"), value >= limit, &format!("{limit} {unit}"));
}

/// Returns a percentile of the times.
fn percentile(times: &mut [f64], percent: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Milliseconds from one time to another; negative if `to` is earlier.
fn between(from: Instant, to: Instant) -> f64 {
    let forward = to.saturating_duration_since(from).as_secs_f64();
    (forward - from.saturating_duration_since(to).as_secs_f64()) * 1_000.0
}

/// Measures the time from the announcement of a mail to its row and to the callback, with a server on this machine.
///
/// Dovecot's own mailbox format is used: with a Maildir, Dovecot notifies two clients one after the other, up to 25 ms
/// apart, in an arbitrary order.
fn near() {
    let own_format = if Dovecot::version().starts_with("2.3") {
        "mail_location = sdbox:~/sdbox\n"
    } else {
        "mail_driver = sdbox\nmail_path = ~/sdbox\n"
    };
    let setup = BenchSetup::start(own_format);
    let user = "near@shop.example";
    println!("near: {NEAR} mails, one by one, dedicated mailbox, from the EXISTS that a bare client sees");
    let mut raw = BareClient::plain(setup.dovecot.imap, user);
    let mut disk = Disk::new();
    let (mut floor, mut safe) = (Vec::new(), Vec::new());
    for n in 1..=NEAR {
        raw.idle();
        setup.dovecot.deliver(user, &setup.payment(n));
        let announced = raw.wait_for_exists();
        let fetched = raw.fetch_body(n);
        floor.push(between(announced, fetched));
        disk.write_durably(ROW);
        safe.push(between(announced, Instant::now()));
    }
    let (port, called) = callback();
    let home = setup.home(user, setup.dovecot.imap, "tls = \"none\"\ndedicated = true\nstart = \"now\"", Some(port));
    let daemon = start_and_wait_for_idle(&home);
    let mut commits = CommitWatcher::new(&home);
    let (mut rows, mut calls) = (Vec::new(), Vec::new());
    for n in 1..=NEAR {
        raw.idle();
        commits.skip_to_now();
        setup.dovecot.deliver(user, &setup.payment(NEAR + n));
        let announced = raw.wait_for_exists();
        let row = commits.wait_for_mails(n);
        let call = called.recv_timeout(PATIENCE).unwrap();
        rows.push(between(announced, row));
        calls.push(between(row, call));
        raw.done();
    }
    assert_eq!(home.ask("SELECT count(*) FROM events"), NEAR.to_string());
    println!("  resident memory by then {:.2} MB", memory(&daemon, "VmRSS") as f64 / 1024.0);
    drop(daemon);
    for (percent, limit) in [(50, 1.5), (99, 2.0)] {
        let (floor, safe) = (percentile(&mut floor, percent), percentile(&mut safe, percent));
        let row = percentile(&mut rows, percent);
        println!(
            "  {percent} %: the body by a bare client {floor:.2} ms, and safe on the disk {safe:.2} ms; the row {row:.2} ms"
        );
        println!("  the row beside what is on the disk, {percent} %: {:.2} times", row / safe);
        at_most(&format!("row committed, {percent} %"), row / floor, "times", limit);
    }
    for percent in [50, 99] {
        at_most(&format!("and the callback, {percent} %"), percentile(&mut calls, percent), "ms more", 3.0);
    }
}

/// Measures how many round trips pass from the acceptance of a mail to its row, with a latency of 25 ms in each direction.
fn far() {
    let hide_2_3 = "imap_capability = IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE SORT THREAD=REFERENCES MULTIAPPEND \
                    UNSELECT CHILDREN NAMESPACE UIDPLUS LIST-EXTENDED CONDSTORE ESEARCH SPECIAL-USE MOVE\n";
    let hidden = if Dovecot::version().starts_with("2.3") { hide_2_3 } else { "imap_capability {\n  NOTIFY = no\n}\n" };
    println!("far: {FAR} mails, one by one, round trip {} ms, Dovecot's pause deducted", ROUND_TRIP.as_millis());
    for (settings, pushes, dedicated, limit) in [
        ("", "NOTIFY", true, 0.7),
        ("", "NOTIFY", false, 1.7),
        (hidden, "IDLE alone", true, 1.7),
        (hidden, "IDLE alone", false, 2.7),
    ] {
        let setup = BenchSetup::start(settings);
        let user = "far@shop.example";
        let proxy = Proxy::in_front_of(setup.dovecot.imap);
        for direction in [Direction::ToServer, Direction::ToClient] {
            proxy.set(direction, |link| link.delay = ROUND_TRIP / 2);
        }
        let home = setup.home(user, proxy.port, &format!("tls = \"none\"\ndedicated = {dedicated}"), None);
        let daemon = start_and_wait_for_idle(&home);
        let mut commits = CommitWatcher::new(&home);
        let mut trips = Vec::new();
        for n in 1..=FAR {
            let accepted = setup.dovecot.deliver(user, &setup.payment(n));
            let row = between(accepted + NOTIFY_DELAY, commits.wait_for_mails(n));
            trips.push(row / 1_000.0 / ROUND_TRIP.as_secs_f64());
        }
        drop(daemon);
        let kind = if dedicated { "dedicated" } else { "shared" };
        at_most(&format!("{kind} mailbox, {pushes}, median"), percentile(&mut trips, 50), "trips", limit);
    }
}

/// The median time in seconds that a bare client needs for a command over a whole mailbox, after Dovecot has indexed it.
fn floor(setup: &BenchSetup, user: &str, command: &str) -> f64 {
    let mut raw = BareClient::tls(setup.dovecot.imaps, &setup.dovecot.ca(), user);
    raw.command(command);
    let times = (0..5).map(|_| {
        let began = Instant::now();
        raw.command(command);
        began.elapsed().as_secs_f64()
    });
    percentile(&mut times.collect::<Vec<_>>(), 50)
}

/// Measures the backfill of a dedicated mailbox.
fn backfill(count: usize) {
    let setup = BenchSetup::start("");
    println!("backfill over TLS: {count} payment mails in a dedicated mailbox");
    let user = "backfill@shop.example";
    setup.fill(user, count, |n| setup.payment(n + 1));
    let bare = floor(&setup, user, "UID FETCH 1:* (UID INTERNALDATE RFC822.SIZE BODY.PEEK[])");
    let keys = format!("dedicated = true\n{}", setup.tls());
    let (few, _, _) = {
        let user = "few@shop.example";
        let few = count / 10;
        setup.fill(user, few, |n| setup.payment(n + 1));
        read_all(&setup, user, &keys, few)
    };
    let (memory, took, cpu) = read_all(&setup, user, &keys, count);
    let rate = |seconds: f64| count as f64 / seconds;
    println!("  a bare client that throws them away {:.0}/s; judged, read and stored {:.0}/s", rate(bare), rate(took));
    at_least("of the bare client's rate", bare / took, "times", 0.2);
    println!("  CPU for each mail {:.0} us", cpu / count as f64 * 1e6);
    println!("  resident memory at most {} KiB; with a tenth of the mails {} KiB", memory, few);
    at_most("memory, ten times the mails", memory as f64 / few as f64, "times", 1.5);
}

/// Reads a whole mailbox of payments. Returns the peak memory in KiB, the seconds, and the seconds of CPU.
fn read_all(setup: &BenchSetup, user: &str, keys: &str, count: usize) -> (usize, f64, f64) {
    let home = setup.home(user, setup.dovecot.imaps, keys, None);
    let (daemon, took, cpu) = start_and_wait_for(&home, "SELECT max(id) FROM mails", count);
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome = 'event' AND trust = 'dkim'"), count.to_string());
    (memory(&daemon, "VmHWM"), took.as_secs_f64(), cpu)
}

/// Measures the backfill of a shared mailbox with other people's mails, of which none is stored.
fn shared_backfill(count: usize) {
    let setup = BenchSetup::start("");
    println!("backfill over TLS: {count} mails of other people in a shared mailbox");
    let user = "shared@shop.example";
    setup.fill(user, count, |n| setup.other(n));
    let bare =
        floor(&setup, user, "UID FETCH 1:* (UID INTERNALDATE RFC822.SIZE BODY.PEEK[HEADER.FIELDS (FROM)]<0.16384>)");
    let home = setup.home(user, setup.dovecot.imaps, &setup.tls(), None);
    let (daemon, took, cpu) = start_and_wait_for(&home, "SELECT last_uid FROM mailboxes", count);
    let took = took.as_secs_f64();
    assert_eq!(home.ask("SELECT count(*) FROM mails"), "0");
    let rate = |seconds: f64| count as f64 / seconds;
    println!("  a bare client that fetches their From {:.0}/s; ours {:.0}/s", rate(bare), rate(took));
    at_least("of the bare client's rate", bare / took, "times", 0.9);
    println!("  CPU for each mail {:.0} us", cpu / count as f64 * 1e6);
    println!("  resident memory at most {} KiB", memory(&daemon, "VmHWM"));
}

/// Measures the memory of the daemon with one idle mailbox.
fn idle() {
    let setup = BenchSetup::start("");
    println!("idle: one mailbox over TLS");
    let home = setup.home("idle@shop.example", setup.dovecot.imaps, &setup.tls(), None);
    let daemon = start_and_wait_for_idle(&home);
    std::thread::sleep(Duration::from_secs(3));
    at_most("resident memory", memory(&daemon, "VmRSS") as f64 / 1024.0, "MB", 16.0);
}
