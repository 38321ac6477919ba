//! The books: every payment that was delivered is one event, accepted by the callback, and nothing else is there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::callback::Callback;
use super::daemon::Home;

/// A payment mail of its own for each number.
pub fn payment(n: usize) -> Vec<u8> {
    format!(
        "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\
         Date: Wed, 05 Mar 2025 03:36:41 +0000\r\nMessage-ID: <{n}@resmic.com>\r\n\r\nAmount: $20\r\nBlockchain: BASE\r\n\
         Token: USDC\r\nTransaction Hash: {}\r\nSession: 591abe63-aa61-411d-a419-{n:012x}\r\n",
        hash(n)
    )
    .into_bytes()
}

/// The transaction of that payment.
pub fn hash(n: usize) -> String {
    format!("0x{n:064x}")
}

/// Waits until so many payments, from 1, are recorded and their deliveries accepted; then looks at everything.
pub fn balance(home: &Home, callback: &Callback, payments: usize, limit: Duration) {
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    home.until("SELECT count(*) FROM events", &payments.to_string(), left());
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", &payments.to_string(), left());
    look(home, callback, payments);
}

/// Looks at everything.
pub fn look(home: &Home, callback: &Callback, payments: usize) {
    let want: BTreeSet<String> = (1..=payments).map(hash).collect();
    let recorded = home.column("SELECT transaction_hash FROM events");
    assert_eq!(recorded.len(), payments, "events");
    assert_eq!(recorded.into_iter().collect::<BTreeSet<_>>(), want, "each payment is one event");
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome NOT IN ('event', 'duplicate')"), "0");
    let events = "SELECT count(DISTINCT event_id) FROM mails WHERE outcome = 'event'";
    assert_eq!(home.ask(events), payments.to_string(), "each event has the mail that made it");
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome = 'event'"), payments.to_string());
    assert_eq!(home.ask("SELECT count(*) FROM deliveries"), payments.to_string());
    let came = callback.came();
    assert_eq!(came.len(), payments, "the callback knows each event by one key");
    let mut told = BTreeSet::new();
    for (key, came) in came {
        assert_eq!(came.bodies.len(), 1, "{key} came with different words");
        assert!(came.accepted > 0, "{key} was never accepted");
        let body: Value = serde_json::from_slice(&came.bodies[0]).unwrap();
        told.insert(body["transaction_hash"].as_str().unwrap().to_owned());
    }
    assert_eq!(told, want, "no payment came under two keys");
    assert_eq!(home.ask("PRAGMA integrity_check"), "ok");
}
