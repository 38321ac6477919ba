//! After a connect, the last acknowledged events are published again, in case the server has lost them.

use testkit::scripted_nats::{NatsAnswer, ScriptedNats};

use super::*;

#[tokio::test]
async fn events_stored_again_are_protected_again() {
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.until_all("delivered").await;
    setup.age("-120");
    lose_all(&mut server, &setup).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(1)").await;
    setup.until_connected().await;
    setup.record(vec![paid(Some(2), 2)]).await;
    setup.until_all("delivered").await;
    lose_all(&mut server, &setup).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(3)").await;
    setup.until_connected().await;
    assert_eq!(server.count(STREAM).await, 2);
    setup.stop().await;
}

#[tokio::test]
async fn a_loss_before_the_replay_is_reported() {
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=3).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    setup.age("-120");
    setup.record(vec![paid(Some(4), 4)]).await;
    setup.until_all("delivered").await;
    let gaps = "SELECT count(gap_since) FROM streams WHERE refilled > 0";
    lose_all(&mut server, &setup).await;
    setup.until_sql(gaps, "Integer(1)").await;
    setup.until_connected().await;
    assert_eq!(server.count(STREAM).await, 1, "only the last event is published again");
    for (refill, missing, gap) in [(false, 3, "Integer(1)"), (true, 0, "Integer(0)")] {
        assert_eq!(verify::verify(&setup, refill).await.unwrap().0.missing, missing);
        setup.until_sql(gaps, gap).await;
    }
    // The messages that are lost now are all published again.
    lose_all(&mut server, &setup).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(8)").await;
    setup.until_connected().await;
    setup.until_sql(gaps, "Integer(0)").await;
    setup.stop().await;
}

#[tokio::test]
async fn expired_messages_are_not_published_again() {
    let server = NatsServer::start();
    create_stream(&server, json!({"max_age": 400 * 86_400 * 1_000_000_000_i64})).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=2).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    // The last payment was 401 days ago, so its message and the one before have expired.
    setup.age("-401 * 1440");
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, json!({"max_age": 400 * 86_400 * 1_000_000_000_i64})).await;
    setup.start();
    setup.record(vec![paid(Some(3), 3)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(server.count(STREAM).await, 1, "only the new payment");
}

#[tokio::test]
async fn an_interrupted_replay_begins_again() {
    let events = [failed(1, 1), paid(Some(1), 2)];
    let second = events[1].id().unwrap().to_string();
    // Messages 0 and 1 are the deliveries. On the next connection, the server stores the first event again, and ends the
    // connection at the second event.
    let server = ScriptedNats::start(move |n, message| match n {
        0 | 2 => NatsAnswer::Store(1),
        3 => NatsAnswer::Close,
        _ if message.subject.ends_with(&second) => NatsAnswer::Store(2),
        _ => NatsAnswer::error(400, 10071),
    })
    .await;
    let url = server.url();
    let mut setup = ForwarderSetup::new(vec![paid_stream(&url, "")]);
    setup.start();
    setup.record(events.to_vec()).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    setup.age("-120");
    setup.start();
    setup.until_sql("SELECT refilled FROM streams", "Integer(2)").await;
    setup.until_connected().await;
    setup.stop().await;
    let connections: Vec<_> = server.published().iter().map(|message| message.connection).collect();
    assert_eq!(connections, [1, 1, 2, 2, 3, 3]);
}

#[tokio::test]
async fn acknowledgements_in_the_future_move_no_window() {
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=3).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    // At the first event, the clock was a year ahead. The others were acknowledged 20 minutes ago.
    setup.age("CASE id WHEN 1 THEN 525600 ELSE -20 END");
    lose_all(&mut server, &setup).await;
    setup.until_connected().await;
    assert_eq!(server.count(STREAM).await, 3);
    setup.stop().await;
}

#[tokio::test]
async fn lost_messages_get_their_numbers_back() {
    const EVENTS: u32 = 600;
    let mut server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=EVENTS).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    // Each two acknowledgements were stored in the wrong order, also the last one of the first page and the one after it.
    let swapped = "UPDATE deliveries SET acknowledged_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-60 seconds',
        ((substr(receipt, 6) + iif(substr(receipt, 6) % 2, -1, 1)) / 100.0) || ' seconds')";
    setup.sql().execute(swapped, []).unwrap();
    let receipts = || setup.deliveries().into_iter().map(|d| d.receipt.unwrap()).collect::<Vec<_>>();
    let before = receipts();
    lose_all(&mut server, &setup).await;
    setup.until_connected().await;
    assert_eq!(server.count(STREAM).await, u64::from(EVENTS));
    assert_eq!(receipts(), before);
    setup.stop().await;
}
