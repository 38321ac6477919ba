//! Deliveries to a handler that works.

use std::collections::HashMap;
use std::time::Duration;

use ring::hmac;

use super::*;
use testkit::receiver::{Receiver, ReceiverAnswer, status};

#[tokio::test]
async fn an_event_has_the_form_of_the_webhook() {
    let receiver = Receiver::new(|_, _| status(204));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.start();
    let mut event = paid(Some(1), 1);
    event.order_ref = Some("Größe 5".into());
    let (id, body) = (event.id().unwrap().to_string(), event.webhook());
    setup.record(vec![event]).await;
    let row = setup.until_all("delivered").await.remove(0);
    let request = receiver.requests().remove(0);
    assert_eq!((request.line.as_str(), request.text()), ("POST /hook HTTP/1.1", body.as_str()));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    let hex: String = hmac::sign(&key, body.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(request.header("x-signature"), Some(hex.as_str()));
    assert_eq!(
        (request.header("idempotency-key"), request.header("webhook-id")),
        (Some(id.as_str()), Some(id.as_str()))
    );
    assert_eq!((request.header("webhook-signature"), request.header("webhook-timestamp")), (None, None));
    assert_eq!(request.header("x-mailhook-order-ref"), Some("Gr%C3%B6%C3%9Fe%205"));
    assert_eq!(request.header("x-mailhook-account"), Some("shop"));
    assert_eq!(request.header("user-agent"), Some(concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION"))));
    assert_eq!((row.attempts, row.last_status, row.last_error), (1, Some(204), None));
    assert!(row.delivered_at.is_some());
    setup.stop().await;
}

#[tokio::test]
async fn events_of_a_session_keep_their_order() {
    let receiver = Receiver::new(|n, request| {
        // The handler refuses session 1 until it has received 40 requests. The other sessions are delivered in the meantime.
        if n < 40 && request.text().contains(&session(1)) { status(503) } else { status(200) }
    });
    let events = (0..10).flat_map(|minute| (1..=5).map(move |session_number| failed(session_number, minute))).collect();
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record(events).await;
    setup.start();
    setup.until_all("delivered").await;
    let mut times: HashMap<String, Vec<String>> = HashMap::new();
    for request in receiver.requests() {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        times.entry(body["session_id"].to_string()).or_default().push(body["txTime"].to_string());
    }
    for (session_number, mut times) in times {
        times.dedup();
        let mut sorted = times.clone();
        sorted.sort();
        assert_eq!((times.len(), &times), (10, &sorted), "{session_number}");
    }
    setup.stop().await;
}

#[tokio::test]
async fn targets_are_independent_of_each_other() {
    let (good, bad) = (Receiver::new(|_, _| status(200)), Receiver::new(|_, _| ReceiverAnswer::Hang));
    let table =
        |name: &str, address, keys: &str| settings(&format!("name = \"{name}\"\nurl = \"http://{address}/\"\n{keys}"));
    let mut setup = ForwarderSetup::new(vec![
        table("bad", bad.listen().await, "timeout = \"200ms\""),
        table("good", good.listen().await, "statuses = [\"completed\"]\nunresolved = \"send\""),
    ]);
    setup.start();
    setup.record(vec![paid(None, 1), failed(2, 1), paid(Some(3), 2)]).await;
    let requests = good.wait_for(2).await;
    assert!(requests.iter().any(|r| r.text().starts_with("{\"session_id\":null,")));
    bad.wait_for(2).await;
    let rows = setup.until("recorded", |rows| rows.iter().filter(|d| d.last_error.is_some()).count() == 2).await;
    assert_eq!(rows.iter().filter(|d| d.state.as_str() == "delivered").count(), 2);
    assert_eq!(rows.iter().filter(|d| d.target == "bad" && d.state.as_str() == "held").count(), 1);
    assert!(rows.iter().any(|d| d.last_error.as_deref() == Some("no answer within 200ms")));
    setup.stop().await;
}

#[tokio::test]
async fn a_unix_socket_target_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let receiver = Receiver::new(|_, _| status(200));
    let serving = receiver.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serving.serve_connection(stream).await;
    });
    let table = format!("name = \"shop\"\nunix = {path:?}\npath = \"/pay?x=1\"");
    let mut setup = ForwarderSetup::new(vec![settings(&table)]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.until_all("delivered").await;
    let request = receiver.requests().remove(0);
    assert_eq!((request.line.as_str(), request.header("host")), ("POST /pay?x=1 HTTP/1.1", Some("localhost")));
    setup.stop().await;
}

#[tokio::test]
async fn a_stop_completes_the_running_request() {
    let receiver = Receiver::new(|_, _| ReceiverAnswer::Slowly(Duration::from_millis(300)));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    receiver.wait_for(1).await;
    setup.stop().await;
    assert_eq!(setup.deliveries()[0].state.as_str(), "delivered");
    setup.start();
    setup.record(vec![paid(Some(2), 2)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn downtime_does_not_count_towards_give_up_after() {
    let receiver = Receiver::new(|n, _| if n == 0 { status(503) } else { status(200) });
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    // There was one attempt. Then the machine was off for a long time, or its clock was corrected. At the next start the
    // handler refuses the first request, because it starts more slowly than the daemon.
    let tried = "UPDATE deliveries SET attempts = 1, first_attempt_at = '2025-03-05T03:36:00.000Z',
        next_attempt_at = '2025-03-05T03:36:02.000Z'";
    setup.sql().execute(tried, []).unwrap();
    setup.start();
    setup.until("tried once more", |rows| rows[0].state.as_str() != "pending" || rows[0].attempts > 2).await;
    setup.until_all("delivered").await;
    setup.stop().await;
}

#[tokio::test]
async fn a_retry_after_a_clock_change_is_immediate() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    // An attempt failed while the clock was five hours ahead.
    let ahead =
        "UPDATE deliveries SET attempts = 1, next_attempt_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+5 hours');
        INSERT INTO attempts (delivery_id, attempt, at) SELECT id, 1, next_attempt_at FROM deliveries";
    setup.sql().execute_batch(ahead).unwrap();
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
}

/// Each session has several failed events, and the completed event at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_arrives_once_and_in_order() {
    const SESSIONS: u32 = 2_000;
    const EACH: u32 = 5;
    let receiver = Receiver::new(|n, _| if n % 97 == 13 { status(500) } else { status(200) });
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    let mut events = Vec::new();
    for minute in 0..EACH - 1 {
        events.extend((0..SESSIONS).map(|session_number| failed(session_number, i64::from(minute))));
    }
    events.extend((0..SESSIONS).map(|session_number| paid(Some(session_number), session_number)));
    setup.record(events).await;
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
    let mut accepted: HashMap<String, Vec<String>> = HashMap::new();
    for (n, request) in receiver.requests().iter().enumerate().filter(|(n, _)| n % 97 != 13) {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let step = if body["status"] == true { "paid".into() } else { format!("{}", body["txTime"]) };
        accepted.entry(body["session_id"].to_string()).or_default().push(step);
        assert!(n > 0 || body["status"] == false);
    }
    assert_eq!(accepted.len(), SESSIONS as usize);
    for (session_number, steps) in accepted {
        let mut sorted = steps.clone();
        sorted.sort();
        assert_eq!(
            (steps.len(), steps.last().unwrap().as_str(), &steps),
            (EACH as usize, "paid", &sorted),
            "{session_number}"
        );
    }
}
