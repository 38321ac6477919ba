//! Mails that a mail server lists but does not deliver: the row, the output of the commands, and the event after the mail
//! arrives.

use std::time::Duration;

use serde_json::Value;
use testkit::callback::Callback;
use testkit::daemon::{Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::payments::{self, payment};
use testkit::scripted::{FetchFault, Scripted, other};
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(30);
const USER: &str = "payments@shop.example";
const ROWS: &str =
    "SELECT count(*) FROM mails WHERE outcome = 'quarantined' AND raw IS NULL AND reason LIKE 'unavailable: %'";

fn home(port: u16, callback: &Callback, keys: &str) -> Home {
    let account = account(port, &format!("mailboxes = [\"INBOX\"]\n{keys}"));
    Home::new(&format!("{account}[trust]\naccept = [\"none\"]\n{}", forward(&callback.url(), "")))
}

/// A scripted server with its runtime, and a callback.
fn start() -> (Runtime, Scripted, Callback) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(Scripted::start());
    (runtime, server, Callback::start())
}

/// The error output of a command that fails.
fn refusal(home: &Home, arguments: &[&str]) -> String {
    let output = home.run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn attention(home: &Home) -> Vec<String> {
    let output = home.run(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["attention"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[test]
fn rows_without_bytes_are_completed_after_a_restart() {
    for (keys, form) in [("dedicated = true", FetchFault::Nil), ("dedicated = false", FetchFault::NoItem)] {
        let (_runtime, server, callback) = start();
        server.change(|state| {
            (1..=3).for_each(|n| _ = state.deliver(&payment(n)));
            state.fetch_faults.insert(2, form);
        });
        let home = home(server.port, &callback, keys);
        let daemon = home.start();
        home.until(ROWS, "1", SOON);
        home.until("SELECT last_uid || state FROM mailboxes", "3idle", SOON);
        let reason = "unavailable: the server lists UID 2 and does not deliver it";
        let row = format!("SELECT id FROM mails WHERE uid = 2 AND reason = '{reason}' AND subject IS NULL");
        let id = home.ask(&row);
        assert!(attention(&home).iter().any(|line| line.starts_with("1 mail listed")), "{:?}", attention(&home));
        for command in [["mails", "release", &id], ["mails", "raw", &id]] {
            assert!(refusal(&home, &command).contains("has not delivered"), "{command:?}");
        }
        assert_eq!(daemon.end(), Some(0));
        home.data(&["reparse"]);
        home.data(&["prune", "--older-than", "0s", "--quarantined"]);
        assert_eq!(home.ask(&row), id);
        server.change(|state| state.fetch_faults.clear());
        let daemon = home.start();
        payments::wait_until_complete(&home, &callback, 3, SOON);
        assert_eq!(home.ask("SELECT id FROM mails WHERE uid = 2 AND length(raw) = size AND outcome = 'event'"), id);
        assert_eq!(home.ask("SELECT count(*) FROM mails"), "3");
        assert!(attention(&home).is_empty(), "{:?}", attention(&home));
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn removed_mails_close_their_rows() {
    let (_runtime, server, callback) = start();
    server.change(|state| {
        (1..=2).for_each(|n| _ = state.deliver(&payment(n)));
        state.fetch_faults.insert(2, FetchFault::Empty);
    });
    let home = home(server.port, &callback, "dedicated = true\nidle_renew = \"2s\"");
    let daemon = home.start();
    home.until(ROWS, "1", SOON);
    server.change(|state| state.mails.retain(|(uid, _)| *uid != 2));
    home.until("SELECT outcome FROM mails WHERE uid = 2", "ignored", SOON);
    assert!(home.ask("SELECT reason FROM mails WHERE uid = 2").contains("no longer lists"));
    assert!(attention(&home).is_empty(), "{:?}", attention(&home));
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_new_uidvalidity_closes_rows_without_bytes() {
    let (_runtime, server, callback) = start();
    server.change(|state| {
        (1..=2).for_each(|n| _ = state.deliver(&payment(n)));
        state.fetch_faults.insert(2, FetchFault::Empty);
    });
    let home = home(server.port, &callback, "dedicated = true");
    let daemon = home.start();
    home.until(ROWS, "1", SOON);
    assert_eq!(daemon.end(), Some(0));
    server.change(|state| {
        state.uid_validity += 1;
        state.fetch_faults.clear();
    });
    let daemon = home.start();
    home.until("SELECT count(*) FROM events", "2", SOON);
    home.until("SELECT outcome FROM mails WHERE uid = 2 AND uid_validity = 7", "ignored", SOON);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn foreign_mails_with_late_headers_leave_no_row() {
    let (_runtime, server, callback) = start();
    server.change(|state| {
        state.deliver(&other("a letter"));
        state.fetch_faults.insert(1, FetchFault::Nil);
    });
    let home = home(server.port, &callback, "idle_renew = \"2s\"");
    let daemon = home.start();
    home.until(ROWS, "1", SOON);
    server.change(|state| state.deliver(&payment(1)));
    home.until("SELECT count(*) FROM events", "1", SOON);
    server.change(|state| state.fetch_faults.clear());
    home.until("SELECT count(*) FROM mails", "1", SOON);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn an_oversized_rfc822_size_hides_no_payment() {
    let (_runtime, server, callback) = start();
    server.change(|state| {
        state.oversize = 40;
        (1..=2).for_each(|n| _ = state.deliver(&payment(n)));
    });
    for (n, keys) in ["dedicated = true", "dedicated = false"].into_iter().enumerate() {
        let home = home(server.port, &callback, keys);
        let daemon = home.start();
        home.until("SELECT count(*) FROM mails WHERE outcome = 'event' AND size = length(raw)", "2", SOON);
        assert_eq!(daemon.end(), Some(0), "{n}");
    }
}

/// Dovecot trusts the size in the file name. It closes each connection that fetches a mail with a wrong size in its file name.
#[test]
fn a_wrong_maildir_size_delays_no_other_mail() {
    for keys in ["dedicated = true", "dedicated = false"] {
        let (dovecot, callback) = (Dovecot::start(), Callback::start());
        for n in [1, 2, 4, 5] {
            if n == 4 {
                dovecot.put(USER, "1700000000.M1P1.shop,S=99999", &payment(3));
            }
            dovecot.deliver(USER, &payment(n));
        }
        let home = home(dovecot.imap, &callback, &format!("{keys}\nidle_renew = \"5s\""));
        let daemon = home.start();
        home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "4", Duration::from_secs(60));
        home.until(ROWS, "1", SOON);
        home.until("SELECT last_uid || state FROM mailboxes", "5idle", SOON);
        assert!(dovecot.log().contains("99999"), "{}", dovecot.log());
        dovecot.deliver(USER, &payment(6));
        home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "5", SOON);
        assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome <> 'event'"), "1");
        assert_eq!(callback.posts().len(), 5);
        assert_eq!(daemon.end(), Some(0));
    }
}
