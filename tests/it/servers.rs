//! The same road on other servers than Dovecot: Cyrus and Courier, near and far, whole and broken. Each has its own ideas
//! of IDLE, of numbers and of names.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use testkit::callback::Callback;
use testkit::client::Client;
use testkit::courier::Courier;
use testkit::cyrus::Cyrus;
use testkit::daemon::{Daemon, Home, account, forward};
use testkit::dovecot::{Dovecot, PASSWORD};
use testkit::lmtp;
use testkit::payments::{self, payment};
use testkit::proxy::{Proxy, Way};

const NO_PROOF: &str = "[trust]\naccept = [\"none\"]\n";
const ADDRESS: &str = "payments@shop.example";
/// Less than the 30 s after which an answer counts as lost: what stands still that long has broken.
const SOON: Duration = Duration::from_secs(25);
/// A program that has found its line dead may be in a pause, and tries again at the end of it.
const RECOVERY: Duration = Duration::from_secs(60);

/// A real server.
trait Server: Sync {
    fn start() -> Self;
    fn imap(&self) -> u16;
    /// What stands before the name of a mailbox that is not the inbox.
    const BELOW: &'static str;
    fn deliver(&self, mails: &[&[u8]]);
    fn while_down(&mut self, work: impl FnOnce());
}

impl Server for Cyrus {
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

impl Server for Courier {
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

/// A server, a line to it, and who listens at the other end.
struct World<S> {
    server: S,
    proxy: Proxy,
    callback: Callback,
    home: Home,
    daemon: Option<Daemon>,
}

impl<S: Server> World<S> {
    /// The program at rest, on a mailbox of its own.
    fn start(more: &str) -> World<S> {
        let mut world = World::before(more);
        world.run();
        world
    }

    /// Before the program is started.
    fn before(more: &str) -> World<S> {
        let (server, callback) = (S::start(), Callback::start());
        let proxy = Proxy::before(server.imap());
        let inbox = if more.contains("mailboxes") { "" } else { "mailboxes = [\"INBOX\"]\n" };
        let account = account(proxy.port, &format!("{inbox}{more}"));
        let home = Home::new(&format!("{account}{NO_PROOF}{}", forward(&callback.url(), "")));
        World { server, proxy, callback, home, daemon: None }
    }

    fn run(&mut self) {
        let daemon = self.home.start();
        // One that was killed before may have left the mailbox idle, and a signal that comes too soon just ends it.
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

    fn recorded(&self, payments: usize) {
        self.home.until("SELECT count(*) FROM events", &payments.to_string(), SOON);
    }

    fn balance(&self, payments: usize) {
        payments::balance(&self.home, &self.callback, payments, RECOVERY);
    }

    /// The books are right and the program is at rest, on the connection that it began with.
    fn end_undisturbed(mut self, payments: usize) {
        self.balance(payments);
        assert_eq!(self.proxy.accepted(), 1, "{}", self.daemon.as_ref().unwrap().log());
        self.end();
    }

    fn end(&mut self) {
        self.home.until("SELECT state || coalesce(last_error, '') FROM mailboxes", "idle", RECOVERY);
        assert_eq!(self.daemon.take().unwrap().end(), Some(0));
    }
}

/// Each of these tests on each of these servers.
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

fn existing_and_new_mails_are_read<S: Server>() {
    let mut world = World::<S>::before("dedicated = true");
    world.deliver(1..=100);
    world.run();
    world.recorded(100);
    for n in 101..=105 {
        world.deliver(n..=n);
        world.recorded(n);
    }
    world.proxy.set_both(|line| line.delay = Duration::from_millis(25));
    for n in 106..=110 {
        world.deliver(n..=n);
        world.recorded(n);
    }
    world.proxy.set_both(|line| line.single_bytes = true);
    world.deliver(111..=115);
    let checked = world.home.data(&["check", "--connect"]);
    // Cyrus pushes from 3.10 on.
    let ways = ["it announces new mail (IDLE)", "it pushes new mail (NOTIFY, IDLE)"];
    assert!(ways.iter().any(|way| checked.contains(way)) && checked.contains("INBOX: 115 mails"), "{checked}");
    world.balance(115);
    // What was read is not read again.
    assert_eq!(world.daemon.take().unwrap().end(), Some(0));
    world.run();
    world.deliver(116..=116);
    world.balance(116);
    assert_eq!(world.home.ask("SELECT count(*) FROM mails"), "116");
    world.end();
}

/// After a FETCH nobody waits for the next IDLE to begin: the end of it follows at once.
fn new_mails_are_marked_or_moved<S: Server>() {
    let moved = format!("{}Resmic", S::BELOW);
    for after in ["\"seen\"".to_owned(), format!("{{ move = \"{moved}\" }}")] {
        let world = World::<S>::start(&format!("dedicated = true\nafter = {after}"));
        world.deliver(1..=5);
        world.recorded(5);
        world.deliver(6..=30);
        world.recorded(30);
        let (mut client, deadline) = (world.client(), Instant::now() + SOON);
        loop {
            let done = if after.contains("seen") {
                client.say("EXAMINE INBOX");
                client.say("SEARCH SEEN").contains(" 30\r")
            } else {
                client.say(&format!("STATUS {moved} (MESSAGES)")).contains("MESSAGES 30)")
            };
            if done {
                break;
            }
            assert!(Instant::now() < deadline, "after = {after}: {}", client.say("STATUS INBOX (MESSAGES UNSEEN)"));
            std::thread::sleep(Duration::from_millis(20));
        }
        world.end_undisturbed(30);
    }
}

fn a_burst_during_the_first_sync_is_read<S: Server>() {
    let mut world = World::<S>::before("dedicated = true");
    world.proxy.set_both(|line| line.delay = Duration::from_millis(25));
    world.deliver(1..=50);
    world.daemon = Some(world.home.start());
    for n in (51..=150).step_by(10) {
        world.deliver(n..=n + 9);
    }
    world.recorded(150);
    world.end_undisturbed(150);
}

fn shared_mailbox_stores_only_notifications<S: Server>() {
    let private = |n: usize| format!("From: Aunt <aunt{n}@family.example>\r\nTo: {ADDRESS}\r\n\r\nAmount: ${n}\r\n");
    let mut world = World::<S>::before("mailboxes = [\"INBOX\", \"\\\\Junk\"]");
    world.proxy.set_both(|line| line.delay = Duration::from_millis(25));
    world.server.deliver(&[private(1).as_bytes(), payment(1).as_slice(), private(2).as_bytes()]);
    world.daemon = Some(world.home.start());
    world.recorded(1);
    world.server.deliver(&[private(3).as_bytes(), payment(2).as_slice()]);
    world.recorded(2);
    world.home.until("SELECT last_uid FROM mailboxes WHERE mailbox = 'INBOX'", "5", SOON);
    assert_eq!(world.home.ask("SELECT count(*) FROM mails"), "2", "of others' mails nothing is kept");
    if S::BELOW.is_empty() {
        world.client().append("Junk", &payment(3));
        world.recorded(3);
        assert_eq!(world.home.ask("SELECT mailbox FROM mails ORDER BY id DESC"), "Junk");
        world.balance(3);
    } else {
        // Courier marks none.
        let words = "SELECT state || ': ' || last_error FROM mailboxes WHERE mailbox = '\\Junk'";
        world.home.until(words, "polling: no mailbox is marked \\Junk", SOON);
        world.balance(2);
    }
    assert_eq!(world.daemon.take().unwrap().end(), Some(0));
}

fn broken_connections_lose_nothing<S: Server>() {
    for fault in [Proxy::cut, Proxy::reset] {
        let mut world = World::<S>::start("dedicated = true\nidle_renew = \"1s\"");
        for n in (0..30).step_by(10) {
            let before = world.proxy.accepted();
            world.deliver(n + 1..=n + 5);
            fault(&world.proxy);
            world.deliver(n + 6..=n + 10);
            let deadline = Instant::now() + RECOVERY;
            while world.proxy.accepted() == before {
                assert!(Instant::now() < deadline, "the program did not come back");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        world.balance(30);
        assert_eq!(world.home.ask("SELECT count(*) FROM mails"), "30", "no mail was recorded twice");
        world.end();
    }
}

fn stalled_connections_lose_nothing<S: Server>() {
    let mut world = World::<S>::start("dedicated = true\nidle_renew = \"1s\"");
    world.deliver(1..=5);
    world.proxy.set_both(|line| line.stalled = true);
    world.deliver(6..=10);
    world.proxy.until_hit(SOON);
    world.proxy.heal();
    world.deliver(11..=15);
    world.recorded(15);
    // What is lost from here on is found missing when no answer comes.
    world.proxy.set(Way::ToClient, |line| line.swallows = true);
    world.deliver(16..=20);
    world.proxy.until_hit(SOON);
    world.proxy.heal();
    world.proxy.cut();
    world.balance(20);
    world.end();
}

fn a_server_restart_loses_nothing<S: Server>() {
    let mut world = World::<S>::start("dedicated = true");
    world.deliver(1..=10);
    let (home, daemon) = (&world.home, world.daemon.as_ref().unwrap());
    world.server.while_down(|| {
        home.until("SELECT state FROM mailboxes", "failed", SOON);
        daemon.says("connection lost", SOON);
    });
    world.deliver(11..=20);
    world.balance(20);
    assert_eq!(world.home.ask("SELECT count(*) FROM mails"), "20", "no mail was recorded twice");
    world.end();
}

fn removals_by_another_client_are_harmless<S: Server>() {
    let world = World::<S>::start("dedicated = true\nidle_renew = \"2s\"");
    let mut client = world.client();
    client.say("SELECT INBOX");
    world.deliver(1..=20);
    world.recorded(20);
    for n in [21, 23, 25] {
        client.say("NOOP");
        client.say("STORE 1:5 +FLAGS (\\Deleted)");
        world.deliver(n..=n);
        client.say("EXPUNGE");
        world.deliver(n + 1..=n + 1);
    }
    world.recorded(26);
    // Also all of them.
    client.say("NOOP");
    client.say("STORE 1:* +FLAGS (\\Deleted)");
    client.say("EXPUNGE");
    world.deliver(27..=28);
    world.end_undisturbed(28);
}

fn a_recreated_mailbox_is_read<S: Server>() {
    let shop = format!("{}Shop", S::BELOW);
    let mut world = World::<S>::before(&format!("dedicated = true\nmailboxes = [\"{shop}\"]\nidle_renew = \"1s\""));
    let mut client = world.client();
    let append = |client: &mut Client, numbers: RangeInclusive<usize>| {
        numbers.for_each(|n| client.append(&shop, &payment(n)));
    };
    client.say(&format!("CREATE {shop}"));
    append(&mut client, 1..=10);
    world.run();
    world.recorded(10);
    client.say(&format!("DELETE {shop}"));
    world.home.until("SELECT state FROM mailboxes", "failed", SOON);
    assert!(!world.home.run(&["status"]).status.success(), "a mailbox that is not there needs a person");
    client.say(&format!("CREATE {shop}"));
    // Some come again, some are new, and all have UIDs that others had.
    append(&mut client, 6..=15);
    world.balance(15);
    world.home.until("SELECT state FROM mailboxes", "idle", RECOVERY);
    // A validity may be a second: the next one is another.
    let second = Instant::now() + Duration::from_millis(1100);
    while Instant::now() < second {
        std::thread::sleep(Duration::from_millis(50));
    }
    client.say(&format!("DELETE {shop}"));
    client.say(&format!("CREATE {shop}"));
    append(&mut client, 16..=18);
    world.balance(18);
    client.say(&format!("RENAME {shop} {}Away", S::BELOW));
    client.say(&format!("CREATE {shop}"));
    append(&mut client, 19..=25);
    world.balance(25);
    world.end();
}

fn a_large_mail_is_quarantined<S: Server>() {
    let world = World::<S>::start("dedicated = true\nmax_size = \"100 KiB\"");
    let large = [payment(9), b"x\r\n".repeat(1_000_000)].concat();
    world.server.deliver(&[payment(1).as_slice(), &large, payment(2).as_slice()]);
    world.home.until("SELECT last_uid FROM mailboxes", "3", SOON);
    assert!(world.home.ask("SELECT reason FROM mails WHERE outcome = 'quarantined'").starts_with("too-large: "));
    assert_eq!(world.home.ask("SELECT size > 3000000 FROM mails WHERE outcome = 'quarantined'"), "1");
    assert_eq!(world.home.ask("SELECT count(*) FROM events"), "2");
    assert_eq!(world.proxy.accepted(), 1);
    assert_eq!(world.daemon.unwrap().end(), Some(0));
}

fn a_killed_daemon_loses_nothing<S: Server>() {
    let mut world = World::<S>::before("dedicated = true");
    world.deliver(1..=20);
    for n in [20, 50, 80] {
        let daemon = world.home.start();
        std::thread::scope(|scope| {
            scope.spawn(|| world.deliver(n + 1..=n + 30));
            world.home.until(&format!("SELECT count(*) > {n} FROM events"), "1", SOON);
        });
        daemon.kill();
    }
    world.run();
    world.balance(110);
    assert_eq!(world.home.ask("SELECT count(*) FROM mails"), "110", "no mail was recorded twice");
    world.end();
}

/// Courier's TLS is a program of its own, between it and the network.
#[test]
fn cyrus_in_tls() {
    let cyrus = Cyrus::start();
    for (tls, port) in [("implicit", cyrus.imaps), ("starttls", cyrus.imap)] {
        let proxy = Proxy::before(port);
        let config = account(proxy.port, "dedicated = true\nmailboxes = [\"INBOX\"]")
            .replace("tls = \"none\"", &format!("tls = \"{tls}\"\nca_file = \"{}\"", cyrus.ca().display()));
        let callback = Callback::start();
        let home = Home::new(&format!("{config}{NO_PROOF}{}", forward(&callback.url(), "")));
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
        payments::balance(&home, &callback, already + 11, RECOVERY);
        assert_eq!(daemon.end(), Some(0));
    }
}

/// Logs in with this password through the program, and reads a mail.
fn logs_in(dovecot: &Dovecot, password: &str) {
    let config = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]")
        .replace("{ env = \"MAILHOOK_PASSWORD\" }", "{ file = \"password\" }");
    let home = Home::new(&format!("{config}{NO_PROOF}"));
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
    let dovecot = Dovecot::start_that_wants_tls();
    let config = account(dovecot.imap, "mailboxes = [\"INBOX\"]").replace("127.0.0.1", "127.0.0.2");
    let output = Home::new(&format!("{config}{NO_PROOF}")).run(&["check", "--connect"]);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success() && said.contains("LOGINDISABLED") && said.contains("set `tls`"), "{said}");
}

#[test]
fn dovecot_with_a_password_beyond_ascii() {
    let password = "p\u{e4}ss-w\u{f6}rd-\u{1f4b6}";
    logs_in(&Dovecot::start_with_password(password), password);
}
