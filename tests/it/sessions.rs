//! Sessions as a merchant uses them: registered by a command or by SQL, found by a signed address, or assigned.

use std::time::Duration;

use serde_json::Value;
use testkit::daemon::{Home, account, forward};
use testkit::dovecot::Dovecot;
use testkit::handlers::Handler;

const SOON: Duration = Duration::from_secs(20);
const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
const SETTINGS: &str = "[trust]\naccept = [\"none\"]\n[sessions]\n\
     address = { mailbox = \"payments@shop.example\", key = { env = \"MAILHOOK_SECRET\" } }\n";

/// A mail without a session, in the published layout.
fn payment(n: usize, to: &str) -> Vec<u8> {
    format!(
        "From: Resmic <no-reply@resmic.com>\r\nTo: {to}\r\nSubject: Payment received\r\n\
         Date: Wed, 05 Mar 2025 03:36:41 +0000\r\nMessage-ID: <{n}@resmic.com>\r\n\r\nReceived: $20\r\nBlockchain: BASE\r\n\
         Token: USDC\r\nTransaction Hash: 0x{n:064x}\r\n"
    )
    .into_bytes()
}

#[test]
fn only_signed_addresses_name_an_order() {
    let (dovecot, handler) = (Dovecot::start(), Handler::express());
    let home =
        Home::new(&format!("{}{SETTINGS}{}", account(dovecot.imap, "dedicated = true"), forward(&handler.url(), "")));
    let address = home.data(&["address", "order-1"]);
    let forged = address.trim().replace("order-1", "order-2");
    let daemon = home.start();
    dovecot.deliver(address.trim(), &payment(1, address.trim()));
    dovecot.deliver(&forged, &payment(2, &forged));
    // The recipient of the envelope names an order, but To does not. The envelope is not signed, so it does not count.
    dovecot.deliver(address.trim(), &payment(3, "payments@shop.example"));
    home.until(
        "SELECT group_concat(coalesce(order_ref, '-'), ' ') FROM (SELECT * FROM events ORDER BY transaction_hash)",
        "order-1 - -",
        SOON,
    );
    home.until("SELECT count(*) FROM deliveries WHERE state = 'held'", "3", SOON);
    let status: Value = serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!((status["ok"].as_bool(), status["deliveries"]["held"].as_i64()), (Some(false), Some(3)), "{status}");
    home.data(&["session", "add", SESSION, "--order", "order-1", "--amount", "20.00"]);
    let body: Value = serde_json::from_str(&handler.accepted(1)[0]).unwrap();
    assert_eq!(body["session_id"], SESSION);
    assert_eq!(home.ask("SELECT session_source FROM events WHERE order_ref = 'order-1'"), "address");
    // An operator assigns the second event to a session.
    let event = home.ask("SELECT event_id FROM events WHERE transaction_hash LIKE '%2'");
    home.data(&["session", "assign", &event, "11111111-aa61-411d-a419-0b546729bbd0"]);
    assert_eq!(handler.accepted(2).len(), 2);
    let listed: Value =
        serde_json::from_str(home.data(&["session", "list", "--json"]).lines().next().unwrap()).unwrap();
    assert_eq!((listed["order_ref"].as_str(), listed["status"].as_str()), (Some("order-1"), Some("completed")));
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn an_underpaid_order_waits_for_an_operator() {
    let (dovecot, handler) = (Dovecot::start(), Handler::express());
    let home =
        Home::new(&format!("{}{SETTINGS}{}", account(dovecot.imap, "dedicated = true"), forward(&handler.url(), "")));
    let address = home.data(&["address", "dear order №7"]);
    home.data(&["import", "/dev/null"]);
    home.data(&["session", "add", SESSION, "--order", "dear order №7", "--amount", "2000"]);
    let daemon = home.start();
    dovecot.deliver(address.trim(), &payment(1, address.trim()));
    home.until("SELECT state FROM deliveries", "held", SOON);
    assert!(
        home.ask("SELECT hold FROM events").starts_with("conflict: amount"),
        "{}",
        home.ask("SELECT hold FROM events")
    );
    // The merchant corrects the amount with SQL.
    let writing = rusqlite::Connection::open(home.database()).unwrap();
    writing.busy_timeout(Duration::from_secs(5)).unwrap();
    writing.execute("UPDATE sessions SET amount = '20' WHERE session_id = ?1", [SESSION]).unwrap();
    drop(writing);
    let event = home.ask("SELECT event_id FROM events");
    home.data(&["session", "assign", &event, SESSION]);
    assert_eq!(handler.accepted(1).len(), 1);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_finished_command_leaves_no_wal() {
    let home = Home::new(&format!("{}{SETTINGS}", account(1, "dedicated = true")));
    let eml = home.database().with_file_name("1.eml");
    std::fs::write(&eml, payment(1, "payments@shop.example")).unwrap();
    let log = home.database().with_file_name("mailhook.db-wal");
    let commands: [&[&str]; 4] = [
        &["import", eml.to_str().unwrap()],
        &["session", "add", SESSION, "--amount", "20"],
        &["reparse"],
        &["prune", "--older-than", "1d"],
    ];
    for command in commands {
        home.data(command);
        assert!(home.database().exists() && !log.exists(), "{command:?}");
    }
    assert_eq!(home.ask("SELECT (SELECT count(*) FROM mails) + (SELECT count(*) FROM sessions)"), "2");
}
