//! `make soak MINUTES=n`: signed mails arrive under random faults of the connections, the callback, the database and the
//! daemon. At the end, each payment must be one event, which the callback has accepted.
//!
//! `MAILHOOK_SEED` repeats the random choices of an earlier run, but not their timing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testkit::callback::{Callback, HandlerReply};
use testkit::daemon::{Daemon, Home, account, forward};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};
use testkit::proxy::{Direction, LinkFaults, Proxy};
use testkit::random::Random;

/// The users of a dedicated mailbox and of a shared one.
const ADDRESSES: [&str; 2] = ["payments@shop.example", "everything@shop.example"];
/// The longest time for the last deliveries, whose retries back off.
const COMPLETION: Duration = Duration::from_secs(180);

struct Soak {
    dovecot: Dovecot,
    proxies: [Proxy; 2],
    callback: Callback,
    home: Home,
    key: Key,
    random: Arc<Random>,
    sent: AtomicUsize,
    /// The faults so far, with their counts.
    done: Mutex<BTreeMap<&'static str, usize>>,
    /// The peak of the sampled resident memory in KiB.
    resident: AtomicUsize,
    over: AtomicBool,
    _dns: Dns,
}

fn main() {
    let minutes: u64 = std::env::args().nth(1).map_or(10, |n| n.parse().expect("minutes"));
    let soak = Soak::new();
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    std::thread::scope(|scope| {
        let over = StopOnDrop(&soak.over);
        scope.spawn(|| soak.deliver());
        scope.spawn(|| soak.disturb(0));
        scope.spawn(|| soak.disturb(1));
        scope.spawn(|| soak.lock_database());
        soak.restart_until(until);
        drop(over);
    });
    soak.proxies.iter().for_each(Proxy::heal);
    let daemon = soak.home.start();
    let sent = soak.sent.load(Ordering::SeqCst);
    payments::wait_until_complete(&soak.home, &soak.callback, sent, COMPLETION);
    soak.print_progress(&daemon);
    let (repeated, resident) = (soak.callback.repeated().len(), soak.resident.load(Ordering::SeqCst));
    println!("{:?}", soak.done.lock().unwrap());
    println!(
        "{sent} payments, {sent} events, {sent} deliveries acknowledged, {repeated} of them posted more than once"
    );
    println!("resident memory: {} KiB now, {resident} KiB at most", memory(&daemon));
    assert_eq!(daemon.end(), Some(0));
}

impl Soak {
    fn new() -> Soak {
        let (random, key) = (Arc::new(Random::from_environment()), Key::ed25519());
        let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), key.record(""))]);
        let dovecot = Dovecot::start();
        let proxies = [Proxy::in_front_of(dovecot.imaps), Proxy::in_front_of(dovecot.imap)];
        let chance = random.clone();
        // The callback accepts each event at the third attempt at the latest, so that the run ends soon.
        let callback = Callback::replying(move |_, before| match chance.below(20) {
            0..2 if before < 2 => HandlerReply::Refuse,
            2 if before < 2 => HandlerReply::HangUp,
            3..6 => HandlerReply::AcceptLate(chance.moment(Duration::from_millis(500))),
            _ => HandlerReply::Accept,
        });
        let tls = format!("tls = \"implicit\"\nca_file = \"{}\"", dovecot.ca().display());
        let ours = account(proxies[0].port, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"5s\"")
            .replace("tls = \"none\"", &tls);
        let shared = account(proxies[1].port, "mailboxes = [\"INBOX\"]\nidle_renew = \"5s\"")
            .replace("name = \"shop\"", "name = \"shared\"")
            .replace(ADDRESSES[0], ADDRESSES[1]);
        let home = Home::new(&format!(
            "{ours}{shared}[dns]\nservers = [\"{}\"]\n{}",
            dns.address,
            forward(&callback.url(), "")
        ));
        let (sent, resident, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        Soak { dovecot, proxies, callback, home, key, random, sent, done: Mutex::default(), resident, over, _dns: dns }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn count(&self, what: &'static str) {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
    }

    /// Waits for a random time, up to `limit` milliseconds.
    fn rest(&self, limit: u64) {
        let until = Instant::now() + self.random.moment(Duration::from_millis(limit));
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Delivers bursts of payments to one mailbox or the other. The shared mailbox also gets some private mails.
    fn deliver(&self) {
        while !self.is_over() {
            let to = self.random.below(2) as usize;
            let first = self.sent.load(Ordering::SeqCst) + 1;
            let count = 1 + self.random.below(10) as usize;
            let mails: Vec<_> = (first..first + count).map(|n| self.mail(n, ADDRESSES[to])).collect();
            self.dovecot.deliver_all(ADDRESSES[to], mails.iter().map(Vec::as_slice));
            self.sent.fetch_add(count, Ordering::SeqCst);
            if to == 1 && self.random.one_in(3) {
                let private = b"From: Aunt <aunt@family.example>\r\nTo: you\r\nSubject: Hi\r\n\r\nAmount: $20\r\n";
                self.dovecot.deliver(ADDRESSES[1], private);
                self.count("private mail");
            }
            self.rest(1_000);
        }
    }

    fn mail(&self, n: usize, to: &str) -> Vec<u8> {
        let mail = String::from_utf8(payment(n)).unwrap().replace(ADDRESSES[0], to);
        sign(mail.as_bytes(), &self.key, &SigningOptions::default())
    }

    /// Disturbs the connections of one proxy again and again, with pauses.
    fn disturb(&self, proxy: usize) {
        let proxy = &self.proxies[proxy];
        while !self.is_over() {
            self.rest(8_000);
            let direction = if self.random.one_in(2) { Direction::ToServer } else { Direction::ToClient };
            let (name, fault): (_, fn(&mut LinkFaults)) = match self.random.below(8) {
                0 => {
                    proxy.cut();
                    self.count("cut");
                    continue;
                }
                1 => {
                    proxy.reset();
                    self.count("reset");
                    continue;
                }
                2 => {
                    proxy.forget();
                    self.count("forgotten");
                    continue;
                }
                3 => {
                    proxy.refuse(true);
                    proxy.cut();
                    ("refused", |_| ())
                }
                4 => ("stalled", |link| link.stalled = true),
                5 => ("swallowed", |link| link.swallows = true),
                6 => ("single bytes", |link| link.single_bytes = true),
                _ => ("delayed", |link| link.delay = Duration::from_millis(200)),
            };
            proxy.set(direction, fault);
            self.count(name);
            self.rest(4_000);
            proxy.heal();
        }
    }

    /// Locks the database repeatedly, like another slow program.
    fn lock_database(&self) {
        while !self.is_over() {
            self.rest(20_000);
            let Ok(other) = rusqlite::Connection::open_with_flags(
                self.home.database(),
                rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE,
            ) else {
                continue;
            };
            if other.execute_batch("BEGIN IMMEDIATE").is_ok() {
                self.rest(7_000);
                other.execute_batch("ROLLBACK").unwrap();
                self.count("database locked");
            }
        }
    }

    /// Starts the daemon again and again, and kills or stops it after a random time.
    fn restart_until(&self, until: Instant) {
        let mut printed_at = Instant::now();
        while Instant::now() < until {
            let daemon = self.home.start();
            let death = Instant::now() + self.random.moment(Duration::from_secs(45));
            while Instant::now() < death.min(until) {
                std::thread::sleep(Duration::from_millis(100));
                self.resident.fetch_max(memory(&daemon), Ordering::SeqCst);
                if printed_at.elapsed() > Duration::from_secs(30) {
                    printed_at = Instant::now();
                    self.print_progress(&daemon);
                }
            }
            if self.random.one_in(4) {
                assert_eq!(daemon.end(), Some(0), "asked to end");
                self.count("ended");
            } else {
                daemon.kill();
                self.count("killed");
            }
        }
    }

    fn print_progress(&self, daemon: &Daemon) {
        let count = |sql: &str| self.home.try_ask(sql).unwrap_or_default();
        println!(
            "sent {}, events {}, delivered {}, resident {} KiB",
            self.sent.load(Ordering::SeqCst),
            count("SELECT count(*) FROM events"),
            count("SELECT count(*) FROM deliveries WHERE state = 'delivered'"),
            memory(daemon)
        );
    }
}

/// The resident memory in KiB (proc(5)).
fn memory(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Sets the flag when it is dropped, so that the threads also end if an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
