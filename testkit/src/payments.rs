//! Numbered payment mails, and the check that each one became one event, which the callback accepted at least once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::callback::Callback;
use super::daemon::Home;

/// The payment mail with number `n`; each number is another payment.
pub fn payment(n: usize) -> Vec<u8> {
    format!(
        "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\
         Date: Wed, 05 Mar 2025 03:36:41 +0000\r\nMessage-ID: <{n}@resmic.com>\r\n\r\nAmount: $20\r\nBlockchain: BASE\r\n\
         Token: USDC\r\nTransaction Hash: {}\r\nSession: 591abe63-aa61-411d-a419-{n:012x}\r\n",
        transaction_hash(n)
    )
    .into_bytes()
}

/// The transaction hash of payment `n`.
pub fn transaction_hash(n: usize) -> String {
    format!("0x{n:064x}")
}

/// Waits until the payments 1 to `payments` are stored and delivered, then calls [`assert_complete`].
pub fn wait_until_complete(home: &Home, callback: &Callback, payments: usize, limit: Duration) {
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    home.until("SELECT count(*) FROM events", &payments.to_string(), left());
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", &payments.to_string(), left());
    assert_complete(home, callback, payments);
}

/// Checks that the database has the payments 1 to `payments`, each once, and nothing else. The callback must have accepted each
/// payment at least once, with one `Idempotency-Key` and one body. It must have accepted no other event.
pub fn assert_complete(home: &Home, callback: &Callback, payments: usize) {
    let want: BTreeSet<String> = (1..=payments).map(transaction_hash).collect();
    let recorded = home.column("SELECT transaction_hash FROM events");
    assert_eq!(recorded.len(), payments, "events");
    assert_eq!(recorded.into_iter().collect::<BTreeSet<_>>(), want, "each payment is one event");
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome NOT IN ('event', 'duplicate')"), "0");
    let events = "SELECT count(DISTINCT event_id) FROM mails WHERE outcome = 'event'";
    assert_eq!(home.ask(events), payments.to_string(), "each event has the mail that made it");
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome = 'event'"), payments.to_string());
    assert_eq!(home.ask("SELECT count(*) FROM deliveries"), payments.to_string());
    crate::counts::check(&home.sqlite());
    let posts = callback.posts();
    assert_eq!(posts.len(), payments, "the callback knows each event by one key");
    let mut posted = BTreeSet::new();
    for (key, posts) in posts {
        assert_eq!(posts.bodies.len(), 1, "{key} was posted with different bodies");
        assert!(posts.accepted > 0, "{key} was never accepted");
        let body: Value = serde_json::from_slice(&posts.bodies[0]).unwrap();
        posted.insert(body["transaction_hash"].as_str().unwrap().to_owned());
    }
    assert_eq!(posted, want, "no payment was posted under two keys");
    assert_eq!(home.ask("PRAGMA integrity_check"), "ok");
}
