//! Cyrus and Courier, which differ from Dovecot in IDLE, UIDs and mailbox names, over good and faulty connections.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use testkit::callback::Callback;
use testkit::client::Client;
use testkit::courier::Courier;
use testkit::cyrus::Cyrus;
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, forward};
use testkit::dovecot::{Dovecot, PASSWORD};
use testkit::lmtp;
use testkit::payments::{self, payment};
use testkit::proxy::{Direction, Proxy};

const ADDRESS: &str = "payments@shop.example";
/// Shorter than the answer timeout of 30 s, so that a lost response makes a test fail.
const SOON: Duration = Duration::from_secs(25);
/// The limit for a recovery, which includes a pause before the reconnect.
const RECOVERY: Duration = Duration::from_secs(60);

/// A real server.
trait ImapServer: Sync {
    fn start() -> Self;
    fn imap(&self) -> u16;
    /// The prefix of mailbox names other than INBOX.
    const BELOW: &'static str;
    fn deliver(&self, mails: &[&[u8]]);
    fn while_down(&mut self, work: impl FnOnce());
}

impl ImapServer for Cyrus {
    const BELOW: &'static str = "";

    fn start() -> Self {
        Cyrus::start()
    }

    fn imap(&self) -> u16 {
        self.imap
    }

    fn deliver(&self, mails: &[&[u8]]) {
        lmtp::deliver(self.lmtp, ADDRESS, mails.iter().copied());
    }

    fn while_down(&mut self, work: impl FnOnce()) {
        Cyrus::while_down(self, work);
    }
}

impl ImapServer for Courier {
    const BELOW: &'static str = "INBOX.";

    fn start() -> Self {
        Courier::start()
    }

    fn imap(&self) -> u16 {
        self.imap
    }

    fn deliver(&self, mails: &[&[u8]]) {
        Courier::deliver(self, ADDRESS, mails.iter().copied());
    }

    fn while_down(&mut self, work: impl FnOnce()) {
        Courier::while_down(self, work);
    }
}

/// A server, a proxy in front of it, the daemon, and a callback.
struct ServerSetup<S> {
    server: S,
    proxy: Proxy,
    callback: Callback,
    home: Home,
    daemon: Option<Daemon>,
}

impl<S: ImapServer> ServerSetup<S> {
    /// A setup whose daemon is idle.
    fn start(keys: &str) -> ServerSetup<S> {
        let mut setup = ServerSetup::new(keys);
        setup.run();
        setup
    }

    /// A setup whose daemon is not yet started.
    fn new(keys: &str) -> ServerSetup<S> {
        let (server, callback) = (S::start(), Callback::start());
        let proxy = Proxy::in_front_of(server.imap());
        let inbox = if keys.contains("mailboxes") { "" } else { "mailboxes = [\"INBOX\"]\n" };
        let account = account(proxy.port, &format!("{inbox}{keys}"));
        let home = Home::new(&format!("{account}{ACCEPT_UNSIGNED}{}", forward(&callback.url(), "")));
        ServerSetup { server, proxy, callback, home, daemon: None }
    }

    fn run(&mut self) {
        let daemon = self.home.start();
        // Wait for this line, because the row of a killed daemon may still say "idle". A signal before the line would
        // end the daemon at once.
        daemon.says("running", SOON);
        self.daemon = Some(daemon);
        self.home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", SOON);
    }

    fn deliver(&self, numbers: RangeInclusive<usize>) {
        let mails: Vec<_> = numbers.map(payment).collect();
        self.server.deliver(&mails.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    fn client(&self) -> Client {
        Client::login(self.server.imap(), ADDRESS)
    }

    fn wait_until_recorded(&self, payments: usize) {
        self.home.until("SELECT count(*) FROM events", &payments.to_string(), SOON);
    }

    fn wait_until_complete(&self, payments: usize) {
        payments::wait_until_complete(&self.home, &self.callback, payments, RECOVERY);
    }

    /// Waits for all payments and stops the idle daemon, which must still have its first connection.
    fn end_undisturbed(mut self, payments: usize) {
        self.wait_until_complete(payments);
        assert_eq!(self.proxy.accepted(), 1, "{}", self.daemon.as_ref().unwrap().log());
        self.end();
    }

    fn end(&mut self) {
        self.home.until("SELECT state || coalesce(last_error, '') FROM mailboxes", "idle", RECOVERY);
        assert_eq!(self.daemon.take().unwrap().end(), Some(0));
    }
}

/// Declares these tests for each server.
macro_rules! on_each {
    ($($test:ident),* $(,)?) => {
        mod cyrus {
            $(#[test] fn $test() { super::$test::<super::Cyrus>(); })*
        }
        mod courier {
            $(#[test] fn $test() { super::$test::<super::Courier>(); })*
        }
    };
}

on_each! {
    existing_and_new_mails_are_read,
    new_mails_are_marked_or_moved,
    a_burst_during_the_first_sync_is_read,
    shared_mailbox_stores_only_notifications,
    broken_connections_lose_nothing,
    stalled_connections_lose_nothing,
    a_server_restart_loses_nothing,
    removals_by_another_client_are_harmless,
    a_recreated_mailbox_is_read,
    a_large_mail_is_quarantined,
    a_killed_daemon_loses_nothing,
}

fn existing_and_new_mails_are_read<S: ImapServer>() {
    let mut setup = ServerSetup::<S>::new("dedicated = true");
    setup.deliver(1..=100);
    setup.run();
    setup.wait_until_recorded(100);
    for n in 101..=105 {
        setup.deliver(n..=n);
        setup.wait_until_recorded(n);
    }
    setup.proxy.set_both(|link| link.delay = Duration::from_millis(25));
    for n in 106..=110 {
        setup.deliver(n..=n);
        setup.wait_until_recorded(n);
    }
    setup.proxy.set_both(|link| link.single_bytes = true);
    setup.deliver(111..=115);
    let checked = setup.home.data(&["check", "--connect"]);
    // Cyrus supports NOTIFY since 3.10.
    let ways = ["it announces new mail (IDLE)", "it pushes new mail (NOTIFY, IDLE)"];
    assert!(ways.iter().any(|way| checked.contains(way)) && checked.contains("INBOX: 115 mails"), "{checked}");
    setup.wait_until_complete(115);
    // After a restart nothing is read again.
    assert_eq!(setup.daemon.take().unwrap().end(), Some(0));
    setup.run();
    setup.deliver(116..=116);
    setup.wait_until_complete(116);
    assert_eq!(setup.home.ask("SELECT count(*) FROM mails"), "116");
    setup.end();
}

/// With `after`, the watcher ends the next IDLE before the server has confirmed its start.
fn new_mails_are_marked_or_moved<S: ImapServer>() {
    let moved = format!("{}Resmic", S::BELOW);
    for after in ["\"seen\"".to_owned(), format!("{{ move = \"{moved}\" }}")] {
        let setup = ServerSetup::<S>::start(&format!("dedicated = true\nafter = {after}"));
        setup.deliver(1..=5);
        setup.wait_until_recorded(5);
        setup.deliver(6..=30);
        setup.wait_until_recorded(30);
        let (mut client, deadline) = (setup.client(), Instant::now() + SOON);
        loop {
            let done = if after.contains("seen") {
                client.command("EXAMINE INBOX");
                client.command("SEARCH SEEN").contains(" 30\r")
            } else {
                client.command(&format!("STATUS {moved} (MESSAGES)")).contains("MESSAGES 30)")
            };
            if done {
                break;
            }
            assert!(Instant::now() < deadline, "after = {after}: {}", client.command("STATUS INBOX (MESSAGES UNSEEN)"));
            std::thread::sleep(Duration::from_millis(20));
        }
        setup.end_undisturbed(30);
    }
}

fn a_burst_during_the_first_sync_is_read<S: ImapServer>() {
    let mut setup = ServerSetup::<S>::new("dedicated = true");
    setup.proxy.set_both(|link| link.delay = Duration::from_millis(25));
    setup.deliver(1..=50);
    setup.daemon = Some(setup.home.start());
    for n in (51..=150).step_by(10) {
        setup.deliver(n..=n + 9);
    }
    setup.wait_until_recorded(150);
    setup.end_undisturbed(150);
}

fn shared_mailbox_stores_only_notifications<S: ImapServer>() {
    let private = |n: usize| format!("From: Aunt <aunt{n}@family.example>\r\nTo: {ADDRESS}\r\n\r\nAmount: ${n}\r\n");
    let mut setup = ServerSetup::<S>::new("mailboxes = [\"INBOX\", \"\\\\Junk\"]");
    setup.proxy.set_both(|link| link.delay = Duration::from_millis(25));
    setup.server.deliver(&[private(1).as_bytes(), payment(1).as_slice(), private(2).as_bytes()]);
    setup.daemon = Some(setup.home.start());
    setup.wait_until_recorded(1);
    setup.server.deliver(&[private(3).as_bytes(), payment(2).as_slice()]);
    setup.wait_until_recorded(2);
    setup.home.until("SELECT last_uid FROM mailboxes WHERE mailbox = 'INBOX'", "5", SOON);
    assert_eq!(setup.home.ask("SELECT count(*) FROM mails"), "2", "of others' mails nothing is kept");
    if S::BELOW.is_empty() {
        setup.client().append("Junk", &payment(3));
        setup.wait_until_recorded(3);
        assert_eq!(setup.home.ask("SELECT mailbox FROM mails ORDER BY id DESC"), "Junk");
        setup.wait_until_complete(3);
    } else {
        // Courier has no special-use mailboxes.
        let query = "SELECT state || ': ' || last_error FROM mailboxes WHERE mailbox = '\\Junk'";
        setup.home.until(query, "polling: no mailbox is marked \\Junk", SOON);
        setup.wait_until_complete(2);
    }
    assert_eq!(setup.daemon.take().unwrap().end(), Some(0));
}

fn broken_connections_lose_nothing<S: ImapServer>() {
    for fault in [Proxy::cut, Proxy::reset] {
        let mut setup = ServerSetup::<S>::start("dedicated = true\nidle_renew = \"1s\"");
        for n in (0..30).step_by(10) {
            let before = setup.proxy.accepted();
            setup.deliver(n + 1..=n + 5);
            fault(&setup.proxy);
            setup.deliver(n + 6..=n + 10);
            setup.proxy.until_reconnected(before, RECOVERY);
        }
        setup.wait_until_complete(30);
        assert_eq!(setup.home.ask("SELECT count(*) FROM mails"), "30", "no mail was recorded twice");
        setup.end();
    }
}

fn stalled_connections_lose_nothing<S: ImapServer>() {
    let mut setup = ServerSetup::<S>::start("dedicated = true\nidle_renew = \"1s\"");
    setup.deliver(1..=5);
    setup.proxy.set_both(|link| link.stalled = true);
    setup.deliver(6..=10);
    setup.proxy.until_affected(SOON);
    setup.proxy.heal();
    setup.deliver(11..=15);
    setup.wait_until_recorded(15);
    // The program would notice the lost bytes only by the timeout of an answer. So the proxy also ends the connection.
    setup.proxy.set(Direction::ToClient, |link| link.swallows = true);
    setup.deliver(16..=20);
    setup.proxy.until_affected(SOON);
    setup.proxy.heal();
    setup.proxy.cut();
    setup.wait_until_complete(20);
    setup.end();
}

fn a_server_restart_loses_nothing<S: ImapServer>() {
    let mut setup = ServerSetup::<S>::start("dedicated = true");
    setup.deliver(1..=10);
    let (home, daemon) = (&setup.home, setup.daemon.as_ref().unwrap());
    setup.server.while_down(|| {
        home.until("SELECT state FROM mailboxes", "failed", SOON);
        daemon.says("connection lost", SOON);
    });
    setup.deliver(11..=20);
    setup.wait_until_complete(20);
    assert_eq!(setup.home.ask("SELECT count(*) FROM mails"), "20", "no mail was recorded twice");
    setup.end();
}

fn removals_by_another_client_are_harmless<S: ImapServer>() {
    let setup = ServerSetup::<S>::start("dedicated = true\nidle_renew = \"2s\"");
    let mut client = setup.client();
    client.command("SELECT INBOX");
    setup.deliver(1..=20);
    setup.wait_until_recorded(20);
    for n in [21, 23, 25] {
        client.command("NOOP");
        client.command("STORE 1:5 +FLAGS (\\Deleted)");
        setup.deliver(n..=n);
        client.command("EXPUNGE");
        setup.deliver(n + 1..=n + 1);
    }
    setup.wait_until_recorded(26);
    // The client removes all mails.
    client.command("NOOP");
    client.command("STORE 1:* +FLAGS (\\Deleted)");
    client.command("EXPUNGE");
    setup.deliver(27..=28);
    setup.end_undisturbed(28);
}

fn a_recreated_mailbox_is_read<S: ImapServer>() {
    let shop = format!("{}Shop", S::BELOW);
    let mut setup = ServerSetup::<S>::new(&format!("dedicated = true\nmailboxes = [\"{shop}\"]\nidle_renew = \"1s\""));
    let mut client = setup.client();
    let append = |client: &mut Client, numbers: RangeInclusive<usize>| {
        numbers.for_each(|n| client.append(&shop, &payment(n)));
    };
    client.command(&format!("CREATE {shop}"));
    append(&mut client, 1..=10);
    setup.run();
    setup.wait_until_recorded(10);
    client.command(&format!("DELETE {shop}"));
    setup.home.until("SELECT state FROM mailboxes", "failed", SOON);
    assert!(!setup.home.run(&["status"]).status.success(), "a mailbox that is not there needs a person");
    client.command(&format!("CREATE {shop}"));
    // Some mails are repeated and some are new. All have UIDs that other mails had before.
    append(&mut client, 6..=15);
    setup.wait_until_complete(15);
    setup.home.until("SELECT state FROM mailboxes", "idle", RECOVERY);
    // A UIDVALIDITY may be a time in seconds, so wait for the next second.
    let second = Instant::now() + Duration::from_millis(1100);
    while Instant::now() < second {
        std::thread::sleep(Duration::from_millis(50));
    }
    client.command(&format!("DELETE {shop}"));
    client.command(&format!("CREATE {shop}"));
    append(&mut client, 16..=18);
    setup.wait_until_complete(18);
    client.command(&format!("RENAME {shop} {}Away", S::BELOW));
    client.command(&format!("CREATE {shop}"));
    append(&mut client, 19..=25);
    setup.wait_until_complete(25);
    setup.end();
}

fn a_large_mail_is_quarantined<S: ImapServer>() {
    let setup = ServerSetup::<S>::start("dedicated = true\nmax_size = \"100 KiB\"");
    let large = [payment(9), b"x\r\n".repeat(1_000_000)].concat();
    setup.server.deliver(&[payment(1).as_slice(), &large, payment(2).as_slice()]);
    setup.home.until("SELECT last_uid FROM mailboxes", "3", SOON);
    assert!(setup.home.ask("SELECT reason FROM mails WHERE outcome = 'quarantined'").starts_with("too-large: "));
    assert_eq!(setup.home.ask("SELECT size > 3000000 FROM mails WHERE outcome = 'quarantined'"), "1");
    assert_eq!(setup.home.ask("SELECT count(*) FROM events"), "2");
    assert_eq!(setup.proxy.accepted(), 1);
    assert_eq!(setup.daemon.unwrap().end(), Some(0));
}

fn a_killed_daemon_loses_nothing<S: ImapServer>() {
    let mut setup = ServerSetup::<S>::new("dedicated = true");
    setup.deliver(1..=20);
    for n in [20, 50, 80] {
        let daemon = setup.home.start();
        std::thread::scope(|scope| {
            scope.spawn(|| setup.deliver(n + 1..=n + 30));
            setup.home.until(&format!("SELECT count(*) > {n} FROM events"), "1", SOON);
        });
        daemon.kill();
    }
    setup.run();
    setup.wait_until_complete(110);
    assert_eq!(setup.home.ask("SELECT count(*) FROM mails"), "110", "no mail was recorded twice");
    setup.end();
}

/// This test exists only for Cyrus, because Courier uses a separate program for TLS.
#[test]
fn cyrus_in_tls() {
    let cyrus = Cyrus::start();
    for (tls, port) in [("implicit", cyrus.imaps), ("starttls", cyrus.imap)] {
        let proxy = Proxy::in_front_of(port);
        let config = account(proxy.port, "dedicated = true\nmailboxes = [\"INBOX\"]")
            .replace("tls = \"none\"", &format!("tls = \"{tls}\"\nca_file = \"{}\"", cyrus.ca().display()));
        let callback = Callback::start();
        let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}{}", forward(&callback.url(), "")));
        let daemon = home.start();
        home.until("SELECT state FROM mailboxes", "idle", SOON);
        let already: usize = home.ask("SELECT count(*) FROM events").parse().unwrap();
        let mails: Vec<_> = (already + 1..=already + 10).map(payment).collect();
        for mail in &mails {
            lmtp::deliver(cyrus.lmtp, ADDRESS, [mail.as_slice()]);
        }
        home.until("SELECT count(*) FROM events", &(already + 10).to_string(), SOON);
        proxy.cut();
        lmtp::deliver(cyrus.lmtp, ADDRESS, [payment(already + 11).as_slice()]);
        payments::wait_until_complete(&home, &callback, already + 11, RECOVERY);
        assert_eq!(daemon.end(), Some(0));
    }
}

/// Checks that the daemon logs in with this password and reads a mail.
fn logs_in(dovecot: &Dovecot, password: &str) {
    let config = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]")
        .replace("{ env = \"MAILHOOK_PASSWORD\" }", "{ file = \"password\" }");
    let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}"));
    std::fs::write(home.folder.path().join("password"), password).unwrap();
    let checked = home.data(&["check", "--connect"]);
    assert!(checked.contains("logged in at 127.0.0.1"), "{checked}");
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "idle", SOON);
    dovecot.deliver(ADDRESS, &payment(1));
    home.until("SELECT count(*) FROM events", "1", SOON);
    assert!(!daemon.log().contains(password));
    assert_eq!(daemon.end(), Some(0));
}

fn greeting(port: u16) -> String {
    let mut line = String::new();
    BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap()).read_line(&mut line).unwrap();
    line
}

#[test]
fn dovecot_without_login() {
    let dovecot = Dovecot::start_without_login();
    let greeting = greeting(dovecot.imap);
    assert!(greeting.contains(" LOGINDISABLED") && greeting.contains(" AUTH=PLAIN"), "{greeting}");
    logs_in(&dovecot, PASSWORD);
}

#[test]
fn dovecot_without_cleartext_login() {
    let dovecot = Dovecot::start_with_tls_logins_only();
    let config = account(dovecot.imap, "mailboxes = [\"INBOX\"]").replace("127.0.0.1", "127.0.0.2");
    let output = Home::new(&format!("{config}{ACCEPT_UNSIGNED}")).run(&["check", "--connect"]);
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        !output.status.success() && printed.contains("LOGINDISABLED") && printed.contains("set `tls`"),
        "{printed}"
    );
}

#[test]
fn dovecot_with_a_password_beyond_ascii() {
    let password = "p\u{e4}ss-w\u{f6}rd-\u{1f4b6}";
    logs_in(&Dovecot::start_with_password(password), password);
}
