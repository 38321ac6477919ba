//! UIDs that mean other mails than before: UIDVALIDITY changes, a mailbox is created again, or a server is restored from a
//! backup. The mailbox is read again, and each payment remains one event.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::callback::Callback;
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};

const SOON: Duration = Duration::from_secs(30);
const ADDRESS: &str = "payments@shop.example";

struct RenumberingSetup {
    dovecot: Dovecot,
    callback: Callback,
    home: Home,
    mailbox: &'static str,
}

impl RenumberingSetup {
    fn start(mailbox: &'static str) -> RenumberingSetup {
        RenumberingSetup::start_with(mailbox, "dedicated = true")
    }

    fn start_with(mailbox: &'static str, keys: &str) -> RenumberingSetup {
        let (dovecot, callback) = (Dovecot::start(), Callback::start());
        let account = account(dovecot.imap, &format!("{keys}\nmailboxes = [\"{mailbox}\"]\nidle_renew = \"1s\""));
        let home = Home::new(&format!("{account}{ACCEPT_UNSIGNED}{}", forward(&callback.url(), "")));
        let setup = RenumberingSetup { dovecot, callback, home, mailbox };
        if mailbox != "INBOX" {
            setup.doveadm(&["mailbox", "create"], &[mailbox]);
        }
        setup
    }

    fn doveadm(&self, command: &[&str], arguments: &[&str]) {
        self.dovecot.doveadm(&[command, &["-u", ADDRESS], arguments].concat());
    }

    fn deliver(&self, numbers: std::ops::RangeInclusive<usize>) {
        let mails: Vec<_> = numbers.map(payment).collect();
        self.dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
        if self.mailbox != "INBOX" {
            self.doveadm(&["move"], &[self.mailbox, "mailbox", "INBOX", "all"]);
        }
    }

    fn daemon(&self) -> Daemon {
        let daemon = self.home.start();
        self.home.until("SELECT state FROM mailboxes", "idle", SOON);
        daemon
    }

    /// Waits until the payments 1 to `payments` are stored and delivered, each once.
    fn wait_until_complete(&self, payments: usize) {
        payments::wait_until_complete(&self.home, &self.callback, payments, SOON);
    }

    fn validity(&self) -> u32 {
        self.home.ask("SELECT uid_validity FROM mailboxes").parse().unwrap()
    }

    /// Whether the mail that contains `text` has the flag \Seen on the server.
    fn is_seen(&self, text: &str) -> bool {
        let files =
            std::fs::read_dir(self.dovecot.maildir(ADDRESS).join("cur")).unwrap().map(|entry| entry.unwrap().path());
        // Dovecot renames a file when it sets a flag, so that the read may fail.
        let says = |path: &Path| std::fs::read_to_string(path).is_ok_and(|content| content.contains(text));
        files.filter(|path| says(path)).any(|path| path.to_str().unwrap().rsplit_once(":2,").unwrap().1.contains('S'))
    }

    fn failed(&self) {
        self.home.until("SELECT state FROM mailboxes", "failed", SOON);
    }
}

/// Deletes Dovecot's index files, so that it assigns new UIDs and another UIDVALIDITY.
fn renumber(dovecot: &Dovecot) {
    for entry in std::fs::read_dir(dovecot.maildir(ADDRESS)).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("dovecot") {
            std::fs::remove_file(path).unwrap();
        }
    }
    next_second();
}

/// Waits until the next second, because Dovecot derives UIDVALIDITY and dates from seconds.
fn next_second() {
    let second = std::time::SystemTime::now() + Duration::from_secs(1);
    while std::time::SystemTime::now() < second {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Copies files with their owners and times.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_new_uidvalidity_duplicates_nothing() {
    let mut setup = RenumberingSetup::start("INBOX");
    let daemon = setup.daemon();
    setup.deliver(1..=10);
    setup.wait_until_complete(10);
    let before = setup.validity();
    setup.dovecot.while_down(renumber);
    setup.deliver(11..=15);
    setup.wait_until_complete(15);
    setup.home.until("SELECT last_uid FROM mailboxes", "15", SOON);
    assert_ne!(setup.validity(), before);
    assert_eq!(setup.home.ask("SELECT count(*) FROM mails WHERE outcome = 'duplicate'"), "10", "all was read anew");
    setup.deliver(16..=16);
    setup.wait_until_complete(16);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_recreated_mailbox_is_read() {
    let setup = RenumberingSetup::start("Shop");
    let daemon = setup.daemon();
    setup.deliver(1..=10);
    setup.wait_until_complete(10);
    setup.doveadm(&["mailbox", "delete"], &["Shop"]);
    setup.failed();
    setup.doveadm(&["mailbox", "create"], &["Shop"]);
    // Some mails are repeated and some are new. All have UIDs that other mails had before.
    setup.deliver(6..=15);
    setup.wait_until_complete(15);
    setup.home.until("SELECT state FROM mailboxes", "idle", SOON);
    setup.deliver(16..=20);
    setup.wait_until_complete(20);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_renamed_mailbox_is_read_after_its_return() {
    let setup = RenumberingSetup::start("Shop");
    let daemon = setup.daemon();
    setup.deliver(1..=5);
    setup.wait_until_complete(5);
    setup.doveadm(&["mailbox", "rename"], &["Shop", "Away"]);
    setup.failed();
    assert!(!setup.home.run(&["status"]).status.success(), "a mailbox that is not there needs a person");
    setup.doveadm(&["mailbox", "rename"], &["Away", "Shop"]);
    setup.deliver(6..=10);
    setup.wait_until_complete(10);
    // Another mailbox takes the name and is deleted later.
    setup.doveadm(&["mailbox", "rename"], &["Shop", "Away"]);
    setup.doveadm(&["mailbox", "create"], &["Shop"]);
    setup.deliver(11..=13);
    setup.wait_until_complete(13);
    setup.doveadm(&["mailbox", "delete"], &["Shop"]);
    setup.doveadm(&["mailbox", "rename"], &["Away", "Shop"]);
    setup.deliver(14..=15);
    setup.wait_until_complete(15);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn after_is_not_applied_to_other_mails() {
    let setup = RenumberingSetup::start_with("INBOX", "dedicated = true\nafter = \"seen\"");
    let wait_until_seen = |n: usize| {
        let deadline = std::time::Instant::now() + SOON;
        while !setup.is_seen(&payments::transaction_hash(n)) {
            assert!(std::time::Instant::now() < deadline, "payment {n} is not marked");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let daemon = setup.daemon();
    setup.dovecot.deliver(ADDRESS, b"From: A friend <friend@else.example>\r\nSubject: Hello\r\n\r\nHow are you?\r\n");
    setup.deliver(1..=1);
    wait_until_seen(1);
    assert_eq!(daemon.end(), Some(0));
    // Without its cursor, the daemon reads everything again, as after a restore of the server. Most mails have the same UIDs.
    rusqlite::Connection::open(setup.home.database()).unwrap().execute("DELETE FROM mailboxes", []).unwrap();
    let daemon = setup.daemon();
    setup.deliver(2..=2);
    wait_until_seen(2);
    assert_eq!(
        setup.home.ask("SELECT group_concat(outcome, ' ') FROM (SELECT * FROM mails ORDER BY id)"),
        "ignored event event"
    );
    assert!(!setup.is_seen("How are you?"));
    assert_eq!(daemon.end(), Some(0));
}

/// Restores a server with ten mails from a backup with five. `new` mails arrive afterwards, with UIDs that other mails
/// had. `watched`: the daemon runs during the restore.
fn restored(new: usize, watched: bool) {
    let mut setup = RenumberingSetup::start("INBOX");
    let mut daemon = Some(setup.daemon());
    setup.deliver(1..=5);
    setup.wait_until_complete(5);
    setup.dovecot.while_down(|dovecot| copy(&dovecot.maildir(ADDRESS), &dovecot.folder.path().join("backup")));
    setup.deliver(6..=10);
    setup.wait_until_complete(10);
    let before = setup.validity();
    if !watched {
        assert_eq!(daemon.take().unwrap().end(), Some(0));
    }
    setup.dovecot.while_down(|dovecot| {
        std::fs::remove_dir_all(dovecot.maildir(ADDRESS)).unwrap();
        copy(&dovecot.folder.path().join("backup"), &dovecot.maildir(ADDRESS));
        next_second();
    });
    if watched {
        setup.home.until("SELECT last_uid FROM mailboxes", "5", SOON);
    }
    setup.deliver(11..=10 + new);
    let daemon = daemon.unwrap_or_else(|| setup.daemon());
    setup.wait_until_complete(10 + new);
    assert_eq!(setup.validity(), before, "the server has not said that its numbers mean something else");
    setup.deliver(11 + new..=12 + new);
    setup.wait_until_complete(12 + new);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_restore_while_connected_loses_nothing() {
    restored(7, true);
}

#[test]
fn a_restore_with_fewer_mails_loses_nothing() {
    restored(3, false);
}

#[test]
fn a_restore_with_more_mails_loses_nothing() {
    restored(10, false);
}

/// Restores a server from its backup while the daemon is stopped. New mails arrive until their UIDs are above the cursor,
/// and the last mail that was read no longer exists. The lost mails are payments, or other people's mails if `shared`.
fn restored_and_caught_up(shared: bool) {
    let mut setup =
        RenumberingSetup::start_with("INBOX", if shared { "dedicated = false" } else { "dedicated = true" });
    let daemon = setup.daemon();
    setup.deliver(1..=5);
    setup.wait_until_complete(5);
    setup.dovecot.while_down(|dovecot| copy(&dovecot.maildir(ADDRESS), &dovecot.folder.path().join("backup")));
    let known = if shared {
        let friend = b"From: A friend <friend@else.example>\r\nSubject: Hello\r\n\r\nHello\r\n";
        setup.dovecot.deliver_all(ADDRESS, [friend.as_slice(); 5]);
        5
    } else {
        setup.deliver(6..=10);
        10
    };
    setup.home.until("SELECT last_uid FROM mailboxes", "10", SOON);
    setup.wait_until_complete(known);
    let before = setup.validity();
    assert_eq!(daemon.end(), Some(0));
    setup.dovecot.while_down(|dovecot| {
        std::fs::remove_dir_all(dovecot.maildir(ADDRESS)).unwrap();
        copy(&dovecot.folder.path().join("backup"), &dovecot.maildir(ADDRESS));
        next_second();
    });
    // The first of these mails arrives twice. The second copy gets UID 10, which is removed below.
    setup.deliver(known + 1..=known + 4);
    setup.deliver(known + 1..=known + 1);
    setup.deliver(known + 5..=known + 10);
    setup.doveadm(&["expunge"], &["mailbox", "INBOX", "uid", "10"]);
    let daemon = setup.daemon();
    setup.wait_until_complete(known + 10);
    assert_eq!(setup.validity(), before, "the server has not said that its numbers mean something else");
    setup.home.until("SELECT last_uid FROM mailboxes", "16", SOON);
    assert_eq!(daemon.end(), Some(0));
    // The renumbering is noticed only once.
    let rows = setup.home.ask("SELECT renumbered_after FROM mailboxes");
    assert_ne!(rows, "0");
    let daemon = setup.daemon();
    setup.deliver(known + 11..=known + 12);
    setup.wait_until_complete(known + 12);
    assert_eq!(setup.home.ask("SELECT renumbered_after FROM mailboxes"), rows);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_restore_past_the_cursor_loses_nothing() {
    restored_and_caught_up(false);
}

#[test]
fn a_restore_in_a_shared_mailbox_loses_nothing() {
    restored_and_caught_up(true);
}

#[test]
fn old_mails_stay_unread_after_renumbering() {
    let mut setup = RenumberingSetup::start_with("INBOX", "dedicated = true\nstart = \"now\"");
    setup.deliver(101..=105);
    // Without its index, Dovecot takes INTERNALDATE from the file's time, which is set to two hours ago.
    setup.dovecot.while_down(|dovecot| {
        renumber(dovecot);
        let new = dovecot.maildir(ADDRESS).join("new");
        let files: Vec<_> = std::fs::read_dir(new).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 5);
        assert!(Command::new("touch").args(["-d", "2 hours ago"]).args(files).status().unwrap().success());
    });
    let daemon = setup.daemon();
    setup.home.until("SELECT last_uid FROM mailboxes", "5", SOON);
    setup.deliver(1..=3);
    setup.wait_until_complete(3);
    let before = setup.validity();
    setup.dovecot.while_down(renumber);
    setup.deliver(4..=5);
    setup.wait_until_complete(5);
    setup.home.until("SELECT last_uid FROM mailboxes", "10", SOON);
    assert_ne!(setup.validity(), before);
    setup.deliver(6..=6);
    setup.wait_until_complete(6);
    assert_eq!(daemon.end(), Some(0));
}
