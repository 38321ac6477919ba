//! From the mail to the callback with real parts: Dovecot, the daemon and a handler, with failures between them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use testkit::daemon::{ACCEPT_UNSIGNED, Home, account, forward, samples};
use testkit::dovecot::Dovecot;
use testkit::handlers::Handler;
use testkit::payments::payment;

const SOON: Duration = Duration::from_secs(20);

/// The sample mails that become events, each with the expected fields.
fn events(folder: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(samples().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "eml") {
            let expected: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
            if expected["outcome"] == "event" && expected["event"]["status"] != "pending" {
                found.push((path, expected["event"].clone()));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() > 5);
    found
}

fn read_file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn home(dovecot: &Dovecot, keys: &str) -> Home {
    Home::new(&format!("{}{ACCEPT_UNSIGNED}{keys}", account(dovecot.imap, "dedicated = true")))
}

#[test]
fn webhook_handler_accepts_every_event() {
    let (dovecot, handler) = (Dovecot::start(), Handler::express());
    let home = home(&dovecot, &forward(&handler.url(), "unresolved = \"send\""));
    let mails: Vec<_> = events("published").into_iter().chain(events("documented")).collect();
    let daemon = home.start();
    let bytes: Vec<_> = mails.iter().map(|(path, _)| read_file(path)).collect();
    dovecot.deliver_all("payments@shop.example", bytes.iter().map(Vec::as_slice));
    let accepted = handler.accepted(mails.len());
    assert_eq!(accepted.len(), mails.len(), "each once");
    for (path, event) in &mails {
        let body = accepted.iter().map(|b| serde_json::from_str::<Value>(b).unwrap()).find(|body| {
            body["session_id"] == event["session_id"]
                && (body["status"] == false || body["transaction_hash"] == event["transaction_hash"])
        });
        let body = body.unwrap_or_else(|| panic!("{} was not posted", path.display()));
        let keys: Vec<_> = if body["status"] == true {
            vec!["amount", "blockchain", "token", "from_wallet_address"]
        } else {
            Vec::new()
        };
        for key in keys {
            assert_eq!(body[key], event[key], "{}: {key}", path.display());
        }
        let hash = event["transaction_hash"].as_str().or(event["session_id"].as_str()).unwrap();
        let row = home.ask(&format!(
            "SELECT status || ' ' || coalesce(amount, '-') || ' ' || coalesce(tx_time, '-') FROM events
             WHERE transaction_hash = '{hash}' OR (transaction_hash IS NULL AND session_id = '{hash}')"
        ));
        let want = ["status", "amount", "tx_time"].map(|k| event[k].as_str().unwrap_or("-")).join(" ");
        assert_eq!(row, want, "{}", path.display());
    }
    home.until("SELECT count(*) FROM deliveries WHERE state <> 'delivered'", "0", SOON);
    assert_eq!(daemon.end(), Some(0));
    assert!(dovecot.log().contains("Logged out"), "{}", dovecot.log());
}

#[test]
fn an_imported_and_received_mail_is_one_event() {
    let dovecot = Dovecot::start();
    let home = home(&dovecot, "");
    let sample = samples().join("published/sepolia.eml");
    let imported = home.data(&["import", "--json", sample.to_str().unwrap()]);
    let imported: Value = serde_json::from_str(&imported).unwrap();
    assert_eq!(imported["outcome"], "event");
    let daemon = home.start();
    dovecot.deliver("payments@shop.example", &read_file(&sample));
    home.until("SELECT outcome FROM mails WHERE uid IS NOT NULL", "duplicate", SOON);
    assert_eq!(home.ask("SELECT event_id FROM mails WHERE uid IS NOT NULL"), imported["event_id"].as_str().unwrap());
    let second_import: Value =
        serde_json::from_str(&home.data(&["import", "--json", sample.to_str().unwrap()])).unwrap();
    assert_eq!((second_import["outcome"].as_str(), second_import["mail_id"].is_null()), (Some("duplicate"), true));
    assert_eq!(home.ask("SELECT count(*) FROM mails"), "2");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn handler_deduplicates_by_signed_fields_only() {
    let body = |order: u32, hash: &str| {
        format!(
            "{{\"session_id\":\"{order}\",{hash}\"txTime\":\"Mar 5, 2025, 03:36\",\"status\":{}}}",
            !hash.is_empty()
        )
    };
    let (first, second) = (body(1, "\"transaction_hash\":\"0x1\","), body(2, "\"transaction_hash\":\"0x2\","));
    for handler in [Handler::express(), Handler::python()] {
        // The signature does not cover `Idempotency-Key`, which may be wrong, missing, or the key of the next event.
        for key in ["Idempotency-Key: 1\r\n", "Idempotency-Key: 2\r\n", ""] {
            assert_eq!(handler.post_signed(&first, key), "200");
        }
        assert_eq!(handler.post_signed(&second, "Idempotency-Key: 2\r\n"), "200");
        // A failed payment has no transaction hash. Resmic's webhook sends no `Idempotency-Key`.
        assert_eq!(
            (handler.post_signed(&body(3, ""), ""), handler.post_signed(&body(4, ""), "")),
            ("200".into(), "200".into())
        );
        for wrong in [
            &b"Content-Type: application/json\r\nX-Signature: \xe9\xe9\r\n"[..],
            b"Content-Type: text/plain\r\nX-Signature: 00\r\n",
            b"",
        ] {
            assert_eq!(handler.post(&body(5, ""), wrong), "401", "{}", wrong.escape_ascii());
        }
        assert_eq!(handler.post_signed(&body(6, ""), ""), "200");
        let sessions: Vec<Value> = handler.accepted(5).iter().map(|b| serde_json::from_str(b).unwrap()).collect();
        let sessions: Vec<_> = sessions.iter().map(|b| b["session_id"].as_str().unwrap()).collect();
        assert_eq!(sessions, ["1", "2", "3", "4", "6"]);
    }
}

#[test]
fn five_hundred_mails_survive_a_kill() {
    let (dovecot, handler) = (Dovecot::start(), Handler::express());
    let home = home(&dovecot, &forward(&handler.url(), ""));
    let mails: Vec<_> = (1..=500).map(payment).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| dovecot.deliver_all("payments@shop.example", mails.iter().map(Vec::as_slice)));
        for want in [1, 120, 300] {
            let daemon = home.start();
            home.until(&format!("SELECT count(*) >= {want} FROM events"), "1", SOON);
            daemon.kill();
        }
    });
    let daemon = home.start();
    home.until("SELECT count(*) FROM events", "500", SOON);
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "500", SOON);
    assert_eq!(home.ask("SELECT count(*) FROM mails"), "500");
    // The handler drops duplicates. The daemon repeats a POST if its response was lost.
    assert_eq!(handler.accepted(500).len(), 500);
    assert_eq!(home.ask("PRAGMA integrity_check"), "ok");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_handler_that_was_down_misses_nothing() {
    let (dovecot, handler) = (Dovecot::start(), Handler::express());
    let (url, port) = (handler.url(), handler.port);
    let home = home(&dovecot, &forward(&url, ""));
    drop(handler);
    let daemon = home.start();
    dovecot.deliver("payments@shop.example", &payment(1));
    home.until("SELECT state || (attempts > 0) FROM deliveries", "pending1", SOON);
    assert_eq!(daemon.end(), Some(0));
    let handler = Handler::express_on(port);
    let daemon = home.start();
    assert_eq!(handler.accepted(1).len(), 1);
    home.until("SELECT state FROM deliveries", "delivered", SOON);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_second_daemon_is_refused() {
    let dovecot = Dovecot::start();
    let home = home(&dovecot, "");
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "2", SOON);
    let second = home.run(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("another resmic-mailhook daemon is running"), "{error}");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn connection_problems_are_reported_and_retried() {
    let dovecot = Dovecot::start();
    let cases = [
        ("password = { env = \"MAILHOOK_SECRET\" }", "login refused"),
        ("host = \"no-such-host.invalid\"\ntls = \"starttls\"", "unknown host"),
        ("port = 1", "cannot connect"),
        ("tls = \"implicit\"\nport = IMAPS", "TLS with 127.0.0.1 failed"),
    ];
    for (change, expected) in cases {
        let mut config = account(dovecot.imap, "mailboxes = [\"INBOX\"]");
        for line in change.replace("IMAPS", &dovecot.imaps.to_string()).lines() {
            let key = line.split(' ').next().unwrap();
            let kept: Vec<_> = config.lines().filter(|l| !l.starts_with(&format!("{key} "))).collect();
            config = format!("{}\n{line}\n", kept.join("\n"));
        }
        let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}"));
        let daemon = home.start();
        daemon.says(expected, SOON);
        home.until("SELECT state FROM mailboxes", "failed", SOON);
        assert!(home.ask("SELECT last_error FROM mailboxes").contains(expected));
        assert_eq!(daemon.end(), Some(0), "{expected}");
    }
}

#[test]
fn tls_needs_a_trusted_certificate() {
    let dovecot = Dovecot::start();
    for (tls, port) in [("implicit", dovecot.imaps), ("starttls", dovecot.imap)] {
        let config = account(port, "dedicated = true")
            .replace("tls = \"none\"", &format!("tls = \"{tls}\"\nca_file = \"{}\"", dovecot.ca().display()));
        let home = Home::new(&format!("{config}{ACCEPT_UNSIGNED}"));
        let checked = home.data(&["check", "--connect"]);
        assert!(checked.contains("logged in at 127.0.0.1") && checked.contains("mailbox INBOX"), "{checked}");
        let daemon = home.start();
        home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "2", SOON);
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn shared_mailbox_stores_only_candidates() {
    let dovecot = Dovecot::start();
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}", account(dovecot.imap, "")));
    let private = |n: usize| {
        format!(
            "From: Aunt <aunt{n}@family.example>\r\nTo: payments@shop.example\r\nSubject: Hi\r\n\r\nAmount: $20\r\n"
        )
        .into_bytes()
    };
    for n in 0..3 {
        dovecot.deliver("payments@shop.example", &private(n));
    }
    dovecot.deliver("payments@shop.example", &payment(1));
    let daemon = home.start();
    home.until("SELECT count(*) FROM events", "1", SOON);
    dovecot.deliver("payments@shop.example", &private(3));
    dovecot.deliver("payments@shop.example", &payment(2));
    home.until("SELECT count(*) FROM events", "2", SOON);
    home.until("SELECT last_uid FROM mailboxes WHERE mailbox = 'INBOX'", "6", SOON);
    assert_eq!(home.ask("SELECT count(*) FROM mails"), "2");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_newer_database_is_refused_and_unchanged() {
    let dovecot = Dovecot::start();
    let home = home(&dovecot, "");
    home.data(&["import", samples().join("published").to_str().unwrap()]);
    let writing = rusqlite::Connection::open(home.database()).unwrap();
    writing.pragma_update(None, "user_version", 999).unwrap();
    drop(writing);
    let before = read_file(&home.database());
    let output = home.run(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("made by another version"));
    assert_eq!(before, read_file(&home.database()));
}
