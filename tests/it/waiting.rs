//! The daemon waits while the disk is full or another program has locked the database, and reports it.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use testkit::callback::Callback;
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, forward};
use testkit::disk::SmallDisk;
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};
use testkit::process::Process;

const SOON: Duration = Duration::from_secs(20);
/// Longer than the pause between two attempts, which grows up to 30 s.
const LATER: Duration = Duration::from_secs(60);
const ADDRESS: &str = "payments@shop.example";

fn deliver(dovecot: &Dovecot, numbers: std::ops::RangeInclusive<usize>) {
    let mails: Vec<_> = numbers.map(payment).collect();
    dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
}

fn config(dovecot: &Dovecot, callback: &Callback) -> String {
    format!(
        "{}{ACCEPT_UNSIGNED}{}",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"1s\""),
        forward(&callback.url(), "")
    )
}

/// Checks that the daemon has stored and delivered the payments 1 to `count`, and that `status` is green.
fn assert_recovered(home: &Home, callback: &Callback, daemon: Daemon, count: usize) {
    payments::wait_until_complete(home, callback, count, LATER);
    assert_eq!(home.ask("SELECT count(*) FROM mails"), count.to_string());
    assert!(home.run(&["status"]).status.success());
    assert_eq!(daemon.end(), Some(0));
}

/// A write beyond the file size limit of the process fails with EFBIG, which SQLite reports as an I/O error.
#[test]
fn io_errors_are_not_reported_as_full_disk() {
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}{}", account(1, ""), forward("http://127.0.0.1:1/", "")));
    let add = ["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0", "--order", "A-1"];
    home.data(&["session", "add", "0b1cbe2e-5d0f-4a52-9d0c-3f6f5a0e9c11"]);
    let plain = home.command(&add);
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args());
    limited.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = limited.output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("I/O error") && !printed.contains("full"), "{printed}");
    // The failed command has written nothing.
    assert_eq!(home.data(&["session", "list", "--json"]).lines().count(), 1);
    home.data(&add);
}

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let config = config(&dovecot, &callback);
    let home = Home::new(&config);
    let disk = SmallDisk::over(home.folder.path(), 16);
    std::fs::write(home.folder.path().join("config.toml"), &config).unwrap();
    let mut daemon = home.start();
    deliver(&dovecot, 1..=10);
    payments::wait_until_complete(&home, &callback, 10, SOON);
    disk.fill();
    deliver(&dovecot, 11..=60);
    daemon.says("the disk is full", LATER);
    let status = home.run(&["status"]);
    let printed = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.code() == Some(1) && printed.contains("the disk is full"), "{printed}");
    assert!(!daemon.process.has_ended());
    // The daemon is killed and started again on the full disk.
    daemon.kill();
    let mut daemon = home.start();
    daemon.says("the disk is full", LATER);
    assert!(!daemon.process.has_ended());
    disk.free();
    deliver(&dovecot, 61..=70);
    assert_recovered(&home, &callback, daemon, 70);
}

#[test]
fn a_start_waits_for_disk_space() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let config = config(&dovecot, &callback);
    let home = Home::new(&config);
    let disk = SmallDisk::over(home.folder.path(), 16);
    std::fs::write(home.folder.path().join("config.toml"), &config).unwrap();
    // In the first run, there is no database. In the second run, the daemon has closed the database.
    for known in [0, 10] {
        disk.fill();
        deliver(&dovecot, known + 1..=known + 10);
        let daemon = home.start();
        daemon.says("the disk is full", SOON);
        disk.free();
        payments::wait_until_complete(&home, &callback, known + 10, LATER);
        assert_eq!(daemon.end(), Some(0));
        // Without a WAL file, the next start needs disk space to open the database.
        assert!(!home.folder.path().join("mailhook.db-wal").exists(), "it was not closed");
    }
    // The daemon ends while it waits.
    disk.fill();
    let daemon = home.start();
    daemon.says("the disk is full", SOON);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn systemd_receives_the_start_status() {
    let config = account(1, "mailboxes = [\"INBOX\"]");
    let (home, outside) = (Home::new(&config), tempfile::tempdir().unwrap());
    let disk = SmallDisk::over(home.folder.path(), 1);
    std::fs::write(home.folder.path().join("config.toml"), &config).unwrap();
    disk.fill();
    let socket = outside.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(SOON)).unwrap();
    let mut command = home.command(&["run"]);
    command.env("NOTIFY_SOCKET", &socket).stderr(std::process::Stdio::null());
    let mut daemon = Process::start("resmic-mailhook", "", &mut command);
    let mut messages = String::new();
    while !(messages.contains("STATUS=") && messages.contains("WATCHDOG=1")) {
        let mut message = [0; 1024];
        let length = supervisor.recv(&mut message).unwrap();
        messages += std::str::from_utf8(&message[..length]).unwrap();
    }
    assert!(messages.contains("the disk is full") && !messages.contains("READY=1"), "{messages}");
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(SOON), Some(0));
}

#[test]
fn a_locked_database_delays_and_loses_nothing() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let home = Home::new(&config(&dovecot, &callback));
    let mut daemon = home.start();
    deliver(&dovecot, 1..=10);
    payments::wait_until_complete(&home, &callback, 10, SOON);
    let other = rusqlite::Connection::open(home.database()).unwrap();
    other.busy_timeout(SOON).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    deliver(&dovecot, 11..=60);
    daemon.says("another program has held the write lock", SOON);
    assert_eq!(home.ask("SELECT count(*) FROM events"), "10");
    assert!(!daemon.process.has_ended());
    let status = home.run(&["status"]);
    let printed = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.status.code() == Some(1) && printed.contains("another program has locked the database"),
        "{printed}"
    );
    // The daemon also starts while the database is locked.
    daemon.kill();
    let daemon = home.start();
    daemon.says("another program has held the write lock", SOON);
    other.execute_batch("ROLLBACK").unwrap();
    deliver(&dovecot, 61..=70);
    assert_recovered(&home, &callback, daemon, 70);
}

#[test]
fn shutdown_does_not_wait_for_a_locked_database() {
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let home = Home::new(&config(&dovecot, &callback));
    let daemon = home.start();
    home.until("SELECT state FROM mailboxes", "idle", SOON);
    let other = rusqlite::Connection::open(home.database()).unwrap();
    other.busy_timeout(SOON).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    deliver(&dovecot, 1..=10);
    daemon.says("another program has held the write lock", SOON);
    assert_eq!(daemon.end(), Some(0));
    other.execute_batch("ROLLBACK").unwrap();
    let daemon = home.start();
    payments::wait_until_complete(&home, &callback, 10, LATER);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn unanswered_dns_does_not_block_shutdown() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    let dns = format!("[dns]\nservers = [\"{}\"]\n", silent.local_addr().unwrap());
    let home = Home::new(&format!("{}{dns}", account(1, "mailboxes = [\"INBOX\"]")));
    home.data(&["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0"]);
    // The daemon looks up the DKIM keys of earlier mails at its start.
    let mail =
        "INSERT INTO mails (account, mailbox, size, sha256, outcome, trust, trust_domain, trust_selector, judged_at)
        VALUES ('shop', 'import', 0, 'x', 'ignored', 'dkim', 'resmic.com', 's1', '2025-03-05T03:36:00.000Z')";
    rusqlite::Connection::open(home.database()).unwrap().execute(mail, []).unwrap();
    let daemon = home.start();
    silent.recv(&mut [0; 512]).unwrap();
    assert_eq!(daemon.end(), Some(0));
    assert!(!home.folder.path().join("mailhook.db-wal").exists(), "it was closed");
}
