//! Messages that a stream loses without a trace in its last sequence number, because its settings were changed for a moment.

use super::*;

const GAPS: &str = "SELECT count(gap_since) FROM streams";

/// Lets the stream delete all messages except for the last two, and makes it fit again.
async fn limit_for_a_moment(server: &NatsServer) {
    update_stream(server, json!({"discard": "old", "max_msgs": 2})).await;
    assert_eq!(server.count(STREAM).await, 2);
    update_stream(server, json!({"discard": "new", "max_msgs": -1})).await;
}

/// Starts a forwarder that inspects its stream often, and delivers five events to this server.
async fn with_five_messages(server: &NatsServer) -> ForwarderSetup {
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.inspect_often();
    setup.start();
    setup.record((1..=5).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    setup
}

/// Waits until the running forwarder has inspected the stream.
async fn until_inspected(setup: &ForwarderSetup, server: &NatsServer) {
    update_stream(server, json!({"max_bytes": 1_000_000})).await;
    setup.until_sql("SELECT notes FROM streams WHERE state = 'connected'", "max_bytes").await;
}

#[tokio::test]
async fn a_loss_is_noticed_while_connected() {
    let server = server_with_stream().await;
    let mut setup = with_five_messages(&server).await;
    setup.age("CASE id WHEN 5 THEN -60 ELSE -70 END");
    limit_for_a_moment(&server).await;
    setup.until_sql(GAPS, "Integer(1)").await;
    setup.until_connected().await;
    assert_eq!(verify::verify(&setup, false).await.unwrap().0.missing, 3);
    setup.until_sql(GAPS, "Integer(1)").await;
    assert_eq!(verify::verify(&setup, true).await.unwrap().0.refilled, 3);
    setup.until_sql(GAPS, "Integer(0)").await;
    until_inspected(&setup, &server).await;
    setup.stop().await;
    setup.start();
    setup.record(vec![paid(Some(6), 6)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    setup.until_sql(GAPS, "Integer(0)").await;
    assert_eq!(server.count(STREAM).await, 6);
}

#[tokio::test]
async fn a_loss_before_the_start_is_noticed() {
    let server = server_with_stream().await;
    let mut setup = with_five_messages(&server).await;
    setup.stop().await;
    setup.age("CASE id WHEN 5 THEN -60 ELSE -70 END");
    limit_for_a_moment(&server).await;
    // Only the number of removed messages shows the loss.
    setup.sql().execute("UPDATE deliveries SET receipt = 'there already: ' || receipt", []).unwrap();
    setup.start();
    setup.until_sql(GAPS, "Integer(1)").await;
    setup.stop().await;
}

#[tokio::test]
async fn recent_messages_are_published_again_without_a_gap() {
    let server = server_with_stream().await;
    let mut setup = with_five_messages(&server).await;
    limit_for_a_moment(&server).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(3)").await;
    setup.until_connected().await;
    setup.until_sql(GAPS, "Integer(0)").await;
    setup.stop().await;
    assert_eq!(server.count(STREAM).await, 5);
}

#[tokio::test]
async fn an_idle_stream_created_again_is_refilled() {
    let server = server_with_stream().await;
    let mut setup = with_five_messages(&server).await;
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, json!({})).await;
    setup.until_sql("SELECT refilled FROM streams", "Integer(5)").await;
    setup.until_connected().await;
    setup.until_sql(GAPS, "Integer(0)").await;
    setup.stop().await;
}

/// In a stream with `max_age`, only the loss of messages that have not expired is a loss.
#[tokio::test]
async fn expired_messages_are_no_loss() {
    let server = NatsServer::start();
    create_stream(&server, json!({"max_age": 400 * 86_400 * 1_000_000_000_i64})).await;
    let mut setup = with_five_messages(&server).await;
    setup.age("CASE WHEN id <= 3 THEN -401 * 1440 ELSE -10 END");
    limit_for_a_moment(&server).await;
    until_inspected(&setup, &server).await;
    setup.stop().await;
    setup.until_sql(GAPS, "Integer(0)").await;
    setup.age("CASE WHEN id <= 2 THEN -401 * 1440 WHEN id = 3 THEN -30 ELSE -10 END");
    setup.start();
    setup.until_sql(GAPS, "Integer(1)").await;
    setup.stop().await;
}

#[tokio::test]
async fn unexpired_messages_are_missed_while_connected() {
    let server = NatsServer::start();
    create_stream(&server, json!({"max_age": 400 * 86_400 * 1_000_000_000_i64})).await;
    let mut setup = with_five_messages(&server).await;
    setup.age("CASE id WHEN 5 THEN -60 ELSE -70 END");
    limit_for_a_moment(&server).await;
    setup.until_sql(GAPS, "Integer(1)").await;
    setup.stop().await;
}
