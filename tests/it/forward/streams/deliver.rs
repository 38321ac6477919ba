//! A real server: messages, repetitions, restarts and losses.

use std::collections::HashMap;

use super::*;

#[tokio::test]
async fn an_event_becomes_a_message_with_its_id() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start_with("whsec_YQ");
    let mut event = paid(Some(1), 1);
    event.order_ref = Some("order 7".into());
    let (id, body) = (event.id().unwrap().to_string(), event.webhook());
    setup.record(vec![event]).await;
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!((row.attempts, row.last_status, row.receipt.as_deref()), (1, None, Some("PAID:1")));
    let message = messages(&server).await.remove(0);
    assert_eq!(
        (message.subject.as_str(), message.body),
        (format!("shop.paid.completed.{id}").as_str(), body.into_bytes())
    );
    let message = messages(&server).await.remove(0);
    for (name, value) in [
        ("Idempotency-Key", id.as_str()),
        ("webhook-id", &id),
        ("X-Mailhook-Order-Ref", "order%207"),
        ("X-Mailhook-Account", "shop"),
        ("Nats-Expected-Stream", STREAM),
        ("Nats-Expected-Last-Subject-Sequence", "0"),
    ] {
        assert_eq!(message.header(name), Some(value), "{name}: {}", message.headers);
    }
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"whsec_YQ");
    let signature = data_encoding::HEXLOWER.encode(ring::hmac::sign(&key, &message.body).as_ref());
    assert_eq!(message.header("X-Signature"), Some(signature.as_str()));
    assert!(message.header("webhook-signature").is_some_and(|signature| signature.starts_with("v1,")));
    assert_eq!(message.header("Nats-Msg-Id"), None);
    setup.stop().await;
    assert_eq!(setup.results(), ["accepted"]);
}

#[tokio::test]
async fn existing_events_are_not_published_again() {
    let server = server_with_stream().await;
    let (same, other) = (paid(Some(1), 1), failed(2, 1));
    let client = server.client().await;
    let subject = |event: &Event, status: &str| format!("shop.paid.{status}.{}", event.id().unwrap());
    for (subject, body) in
        [(subject(&same, "completed"), same.webhook()), (subject(&other, "failed"), "{\"other\":1}".into())]
    {
        client.request(subject, body.into()).await.unwrap();
    }
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record(vec![same, other]).await;
    let rows = setup.until_all("delivered").await;
    let receipts: Vec<_> = rows.iter().map(|row| row.receipt.as_deref().unwrap()).collect();
    assert_eq!(receipts, ["there already: PAID:1", "there already: PAID:2"]);
    assert_eq!(messages(&server).await[1].body, b"{\"other\":1}", "the message that was there stays");
    setup.until_sql("SELECT there_already FROM streams", "Integer(2)").await;
    setup.stop().await;
}

/// Delivers sessions of several failed events and one completed event at the end, while the server is killed and restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_arrives_once_despite_restarts() {
    const SESSIONS: u32 = 150;
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "timeout = \"2s\"")]);
    setup.inspect_often();
    let mut events: Vec<Event> =
        (0..3).flat_map(|minute| (0..SESSIONS).map(move |session_number| failed(session_number, minute))).collect();
    events.extend((0..SESSIONS).map(|session_number| paid(Some(session_number), session_number)));
    let count = events.len() as u64;
    setup.record(events).await;
    setup.start();
    for part in 1..=2 {
        let done = count / 3 * part;
        let enough =
            |rows: &[DeliveryRow]| rows.iter().filter(|d| d.state.as_str() == "delivered").count() as u64 >= done;
        setup.until("partly delivered", enough).await;
        if part == 1 {
            server.kill()
        } else {
            server.stop()
        }
        server.restart();
    }
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(server.count(STREAM).await, count, "each event once");
    setup.until_sql("SELECT count(gap_since) FROM streams", "Integer(0)").await;
    let mut steps: HashMap<String, Vec<String>> = HashMap::new();
    for message in messages(&server).await {
        let body = message.json();
        let step = if body["status"] == true { "paid".into() } else { body["txTime"].to_string() };
        steps.entry(body["session_id"].to_string()).or_default().push(step);
    }
    assert_eq!(steps.len(), SESSIONS as usize);
    for (session_number, steps) in steps {
        let mut sorted = steps.clone();
        sorted.sort();
        assert_eq!((steps.len(), steps.last().unwrap().as_str(), &steps), (4, "paid", &sorted), "{session_number}");
    }
}

#[tokio::test]
async fn a_paused_server_has_the_event_once() {
    let server = server_with_stream().await;
    let mut setup =
        ForwarderSetup::new(vec![paid_stream(&server.url(), "timeout = \"300ms\"\ngive_up_after = \"100ms\"")]);
    setup.start();
    setup.until_connected().await;
    server.pause();
    setup.record(vec![paid(Some(1), 1)]).await;
    // The message is in the socket of the paused server. An attempt without an answer does not count towards give_up_after.
    setup.until("tried", |rows| rows[0].attempts >= 1 && rows[0].last_error.is_some()).await;
    assert_eq!(setup.results()[0], "no_response");
    assert!(setup.deliveries()[0].last_error.as_ref().unwrap().contains("no answer within 300ms"));
    setup.until_sql("SELECT state || ' ' || problems FROM streams", "failed").await;
    server.resume();
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!(row.receipt.as_deref(), Some("there already: PAID:1"));
    assert_eq!(server.count(STREAM).await, 1);
    setup.stop().await;
}

#[tokio::test]
async fn an_unreachable_server_makes_no_delivery_dead() {
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "give_up_after = \"1ms\"")]);
    setup.start();
    setup.until_connected().await;
    server.stop();
    setup.until_sql("SELECT state FROM streams", "failed").await;
    setup.record(vec![paid(Some(1), 1)]).await;
    // An earlier attempt was refused, longer ago than give_up_after.
    let tried =
        "UPDATE deliveries SET attempts = 3, first_attempt_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour'),
        next_attempt_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 hour')";
    setup.sql().execute(tried, []).unwrap();
    server.restart();
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!((row.attempts, row.receipt.as_deref()), (4, Some("PAID:1")), "at once after the reconnect");
    setup.stop().await;
}

#[tokio::test]
async fn lost_messages_are_published_again_after_a_reconnect() {
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    let events: Vec<_> = (1..=3).map(|n| paid(Some(n), n)).collect();
    let bodies: Vec<_> = events.iter().map(|event| event.webhook().into_bytes()).collect();
    setup.record(events).await;
    setup.until_all("delivered").await;
    // The third event was acknowledged an hour ago, the second one four minutes earlier, and the first one ten minutes earlier.
    setup.age("CASE id WHEN 1 THEN -70 WHEN 2 THEN -64 ELSE -60 END");
    lose_all(&mut server, &setup).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(2)").await;
    setup.until_connected().await;
    let found: Vec<_> = messages(&server).await.into_iter().map(|message| message.body).collect();
    assert_eq!(found, bodies[1..], "those of the last five minutes in which any was acknowledged");
    let receipts: Vec<_> = setup.deliveries().into_iter().map(|d| d.receipt.unwrap()).collect();
    assert_eq!(receipts, ["PAID:1", "PAID:1", "PAID:2"]);
    setup.stop().await;
}

#[tokio::test]
async fn a_stop_completes_the_running_publishes() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.until_connected().await;
    setup.record((1..=50).map(|n| paid(Some(n), n)).collect()).await;
    setup.until("begun", |rows| rows.iter().any(|d| d.state.as_str() == "delivered")).await;
    setup.stop().await;
    let delivered = setup.deliveries().iter().filter(|d| d.state.as_str() == "delivered").count();
    assert_eq!(server.count(STREAM).await, delivered as u64, "what was sent is recorded");
    assert!(setup.results().iter().all(|result| result == "accepted"));
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(server.count(STREAM).await, 50);
}

#[tokio::test]
async fn a_full_stream_is_retried_and_given_up() {
    let server = NatsServer::start();
    create_stream(&server, json!({"max_bytes": 100})).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "give_up_after = \"1ms\"")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = setup.until_all("dead").await.remove(0);
    let error = row.last_error.unwrap();
    assert!(error.contains("given up after 1ms") && error.contains("refuses the message"), "{error}");
    let status = "SELECT state || needs_person || problems FROM streams";
    setup.until_sql(status, "failed1stream PAID").await;
    // The operator makes the stream larger. The next event is acknowledged.
    server
        .api(
            &format!("STREAM.UPDATE.{STREAM}"),
            json!({
                "name": STREAM, "subjects": ["shop.paid.>"], "storage": "file", "retention": "limits", "discard": "new",
                "max_bytes": -1, "deny_delete": true, "deny_purge": true, "allow_direct": true, "num_replicas": 1,
            }),
        )
        .await;
    setup.record(vec![paid(Some(2), 2)]).await;
    setup.until_connected().await;
    setup.stop().await;
    let results = setup.results();
    let (last, earlier) = results.split_last().unwrap();
    assert!(last == "accepted" && earlier.iter().all(|result| result == "rejected"), "{results:?}");
}
