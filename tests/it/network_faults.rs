//! A faulty connection between the program and a real Dovecot. Each mail becomes one event, which is delivered once, and
//! the program recovers by itself.

use std::time::{Duration, Instant};

use testkit::callback::Callback;
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};
use testkit::proxy::{Direction, LinkFaults, Proxy};

const SOON: Duration = Duration::from_secs(20);
/// The limit for a recovery, which includes a pause before the reconnect.
const RECOVERY: Duration = Duration::from_secs(60);
/// The timeout of an ordinary answer, as in src/source/imap/timing.rs.
const ANSWER: Duration = Duration::from_secs(30);
const ADDRESS: &str = "payments@shop.example";

/// Whether the connection is encrypted. With TLS, a lost byte breaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProxyTls {
    Plain,
    Implicit,
}

/// A Dovecot, a proxy in front of it, the daemon, and a callback.
struct ProxySetup {
    dovecot: Dovecot,
    proxy: Proxy,
    callback: Callback,
    home: Home,
    daemon: Daemon,
    sent: usize,
}

impl ProxySetup {
    fn start(tls: ProxyTls, renew: &str) -> ProxySetup {
        let (dovecot, callback) = (Dovecot::start(), Callback::start());
        let proxy = Proxy::in_front_of(if tls == ProxyTls::Plain { dovecot.imap } else { dovecot.imaps });
        let keys = format!("dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"{renew}\"");
        let mut config = account(proxy.port, &keys);
        if tls == ProxyTls::Implicit {
            let ca = format!("tls = \"implicit\"\nca_file = \"{}\"", dovecot.ca().display());
            config = config.replace("tls = \"none\"", &ca);
        }
        let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}{}", forward(&callback.url(), "")));
        let daemon = home.start();
        home.until("SELECT state FROM mailboxes", "idle", SOON);
        ProxySetup { dovecot, proxy, callback, home, daemon, sent: 0 }
    }

    fn deliver(&mut self, count: usize) {
        let mails: Vec<_> = (self.sent + 1..=self.sent + count).map(payment).collect();
        self.dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
        self.sent += count;
    }

    fn wait_until_recorded(&self, limit: Duration) {
        self.home.until("SELECT count(*) FROM events", &self.sent.to_string(), limit);
    }

    /// Checks that each payment was delivered once and that the daemon is idle again, and stops it.
    fn end(self) {
        payments::wait_until_complete(&self.home, &self.callback, self.sent, RECOVERY);
        assert!(self.callback.repeated().is_empty(), "no delivery was repeated: {:?}", self.callback.repeated());
        assert_eq!(self.home.ask("SELECT count(*) FROM mails"), self.sent.to_string(), "no mail was recorded twice");
        self.home.until("SELECT state FROM mailboxes", "idle", RECOVERY);
        assert_eq!(self.home.ask("SELECT last_error FROM mailboxes"), "NULL");
        assert_eq!(self.daemon.end(), Some(0));
    }
}

/// Delivers mails before, during and after a fault of these directions. The fault lasts until it has affected bytes.
fn survives_fault(tls: ProxyTls, directions: &[Direction], fault: fn(&mut LinkFaults)) {
    let mut setup = ProxySetup::start(tls, "1s");
    setup.deliver(10);
    setup.wait_until_recorded(SOON);
    for direction in directions {
        setup.proxy.set(*direction, fault);
    }
    setup.deliver(10);
    setup.proxy.until_affected(SOON);
    setup.deliver(1);
    setup.proxy.heal();
    setup.deliver(10);
    setup.wait_until_recorded(RECOVERY);
    setup.deliver(1);
    setup.end();
}

/// Delivers mails before and after a momentary fault, several times.
fn survives_repeated(tls: ProxyTls, fault: impl Fn(&Proxy)) {
    let mut setup = ProxySetup::start(tls, "1s");
    for _ in 0..4 {
        let before = setup.proxy.accepted();
        setup.deliver(5);
        fault(&setup.proxy);
        setup.deliver(5);
        setup.proxy.until_reconnected(before, RECOVERY);
    }
    setup.wait_until_recorded(RECOVERY);
    setup.end();
}

/// Runs these functions in parallel, because they mostly wait.
fn in_parallel(works: &[&(dyn Fn() + Sync)]) {
    std::thread::scope(|scope| {
        for work in works {
            scope.spawn(work);
        }
    });
}

#[test]
fn cut_connections_lose_nothing() {
    in_parallel(&[&|| survives_repeated(ProxyTls::Plain, Proxy::cut), &|| {
        survives_repeated(ProxyTls::Implicit, Proxy::cut)
    }]);
}

#[test]
fn reset_connections_lose_nothing() {
    in_parallel(&[&|| survives_repeated(ProxyTls::Plain, Proxy::reset), &|| {
        survives_repeated(ProxyTls::Implicit, Proxy::reset)
    }]);
}

#[test]
fn refused_connections_lose_nothing() {
    let mut setup = ProxySetup::start(ProxyTls::Plain, "1s");
    setup.deliver(10);
    setup.wait_until_recorded(SOON);
    setup.proxy.refuse(true);
    setup.proxy.cut();
    setup.deliver(10);
    setup.daemon.says("connection lost", SOON);
    let before = setup.proxy.accepted();
    while setup.proxy.accepted() < before + 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(setup.home.ask("SELECT state FROM mailboxes"), "failed");
    setup.proxy.heal();
    setup.deliver(10);
    setup.end();
}

#[test]
fn a_stall_loses_nothing() {
    let stall = |link: &mut LinkFaults| link.stalled = true;
    in_parallel(&[
        &|| survives_fault(ProxyTls::Plain, &[Direction::ToServer], stall),
        &|| survives_fault(ProxyTls::Plain, &[Direction::ToClient], stall),
        &|| survives_fault(ProxyTls::Implicit, &[Direction::ToServer, Direction::ToClient], stall),
    ]);
}

#[test]
fn lost_bytes_lose_no_mail() {
    let swallow = |link: &mut LinkFaults| link.swallows = true;
    in_parallel(&[
        &|| survives_fault(ProxyTls::Plain, &[Direction::ToServer], swallow),
        &|| survives_fault(ProxyTls::Plain, &[Direction::ToClient], swallow),
        &|| survives_fault(ProxyTls::Plain, &[Direction::ToServer, Direction::ToClient], swallow),
        // With TLS, the bytes after the gap are unreadable, too.
        &|| survives_fault(ProxyTls::Implicit, &[Direction::ToServer], swallow),
        &|| survives_fault(ProxyTls::Implicit, &[Direction::ToClient], swallow),
    ]);
}

#[test]
fn single_bytes_are_read() {
    for tls in [ProxyTls::Plain, ProxyTls::Implicit] {
        let mut setup = ProxySetup::start(tls, "1s");
        setup.proxy.set_both(|link| link.single_bytes = true);
        setup.deliver(10);
        setup.wait_until_recorded(SOON);
        setup.proxy.cut();
        setup.deliver(10);
        setup.wait_until_recorded(RECOVERY);
        setup.end();
    }
}

#[test]
fn latency_does_not_reduce_throughput() {
    let mut setup = ProxySetup::start(ProxyTls::Plain, "9m");
    setup.proxy.set(Direction::ToServer, |link| link.delay = Duration::from_millis(150));
    setup.proxy.set(Direction::ToClient, |link| link.delay = Duration::from_millis(100));
    for _ in 0..5 {
        let began = Instant::now();
        setup.deliver(1);
        setup.wait_until_recorded(SOON);
        // A pushed mail passes only one direction, which takes 100 ms. A command would take a round trip of 250 ms.
        assert!(began.elapsed() >= Duration::from_millis(100), "there is no delay");
    }
    setup.proxy.cut();
    let began = Instant::now();
    setup.deliver(400);
    setup.wait_until_recorded(RECOVERY);
    assert!(began.elapsed() < SOON, "400 mails took {:?}", began.elapsed());
    setup.end();
}

#[test]
fn a_half_open_connection_is_noticed() {
    let renew = Duration::from_secs(2);
    let mut setup = ProxySetup::start(ProxyTls::Plain, "2s");
    setup.deliver(5);
    setup.wait_until_recorded(SOON);
    // From now on, the open connection receives no byte and no FIN. New connections work.
    setup.proxy.forget();
    let began = Instant::now();
    setup.deliver(5);
    setup.wait_until_recorded(renew + Duration::from_secs(60));
    // The renewal gets no answer. After the timeout the program reconnects.
    assert!(began.elapsed() < renew + ANSWER + Duration::from_secs(10), "it took {:?}", began.elapsed());
    setup.daemon.says("no answer to", SOON);
    setup.end();
}

#[test]
fn silent_servers_do_not_disturb_other_accounts() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let silent = Proxy::in_front_of(dovecot.imap);
    silent.set_both(|link| link.stalled = true);
    let mut config = String::new();
    for n in 0..20 {
        config += &account(silent.port, "").replace("name = \"shop\"", &format!("name = \"silent{n}\""));
    }
    config += &account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]");
    let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}{}", forward(&callback.url(), "")));
    let daemon = home.start();
    let mails: Vec<_> = (1..=20).map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
    payments::wait_until_complete(&home, &callback, mails.len(), SOON);
    assert!(silent.accepted() > 0, "nobody asked the silent server");
    assert_eq!(home.ask("SELECT count(*) FROM mailboxes WHERE state = 'idle'"), "1");
    assert_eq!(daemon.end(), Some(0));
}
