//! A target that cannot be reached, with a long outbox.

use std::collections::HashMap;

use super::*;
use testkit::receiver::{Receiver, status};

/// An address at which no program listens.
async fn unused() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn count(setup: &ForwarderSetup, sql: &str) -> i64 {
    setup.sql().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Creates an outbox with three failed events of each of 100 sessions.
async fn outbox(settings: ForwardSettings) -> ForwarderSetup {
    let setup = ForwarderSetup::new(vec![settings]);
    setup
        .record((0..3).flat_map(|minute| (1..=100).map(move |session_number| failed(session_number, minute))).collect())
        .await;
    setup
}

#[tokio::test]
async fn an_unreachable_target_is_probed() {
    let address = unused().await;
    let mut setup = outbox(shop(address, "")).await;
    setup.start();
    // If all 300 deliveries were retried, no second would pass without an attempt.
    let pause = "SELECT coalesce(julianday(max(at)) - julianday((SELECT at FROM attempts ORDER BY at DESC LIMIT 1 OFFSET 1)), 0)
        > 0.95 / 86400 FROM attempts";
    setup.until("probed", |_| count(&setup, pause) == 1).await;
    let tried = count(&setup, "SELECT count(*) FROM deliveries WHERE attempts > 0");
    assert!((32..=48).contains(&tried), "{tried} deliveries were attempted");
    let waiting =
        "SELECT count(*) FROM deliveries WHERE state = 'pending' AND attempts = 0 AND next_attempt_at <= created_at";
    assert!(count(&setup, waiting) >= 300 - 3 * 48, "the others are left alone");
    let receiver = Receiver::new(|_, _| status(200));
    receiver.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    setup.until_all("delivered").await;
    setup.stop().await;
    let mut times: HashMap<String, Vec<String>> = HashMap::new();
    for request in receiver.requests() {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        times.entry(body["session_id"].to_string()).or_default().push(body["txTime"].to_string());
    }
    assert_eq!((receiver.requests().len(), times.len()), (300, 100));
    assert!(times.values().all(|times| times.is_sorted() && times.len() == 3), "{times:#?}");
    assert!(count(&setup, "SELECT count(*) FROM attempts WHERE result = 'not_sent'") < 60);
}

#[tokio::test]
async fn an_outage_ends_with_dead_deliveries() {
    let mut setup = outbox(shop(unused().await, "give_up_after = \"2s\"")).await;
    setup.start();
    let rows = setup.until_all("dead").await;
    setup.stop().await;
    for delivery in rows {
        let error = delivery.last_error.unwrap();
        assert!(error.starts_with("given up after 2s and ") && error.contains("cannot connect to"), "{error}");
        assert!(delivery.attempts > 0, "each has its last attempt");
    }
}
