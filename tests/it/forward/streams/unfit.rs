//! Streams that do not keep what they acknowledge are refused, and the error names each problem.

use super::*;

/// Starts a forwarder for a stream whose configuration has these changes. Returns the problems that the forwarder records, and
/// checks that it publishes nothing.
async fn problems(name: &str, subjects: &[&str], changes: Value) -> String {
    let server = NatsServer::start();
    if !subjects.is_empty() {
        server.create_stream(name, subjects, changes).await;
    }
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.start();
    setup.until_sql("SELECT state || needs_person FROM streams", "failed1").await;
    let problems = setup.sql().query_row("SELECT problems FROM streams", [], |row| row.get(0)).unwrap();
    setup.stop().await;
    assert_eq!(setup.deliveries()[0].attempts, 0, "{problems}");
    if name == STREAM && !subjects.is_empty() {
        assert_eq!(server.count(STREAM).await, 0, "{problems}");
    }
    problems
}

#[tokio::test]
async fn unfit_settings_of_a_real_stream_are_named() {
    let ours = ["shop.paid.>"];
    for (subjects, changes, expected) in [
        (&ours[..], json!({"retention": "interest"}), "retention is \"interest\""),
        (&ours, json!({"retention": "workqueue"}), "retention is \"workqueue\""),
        (&ours, json!({"storage": "memory"}), "storage is \"memory\""),
        (&ours, json!({"discard": "old", "max_msgs": 10}), "max_msgs is 10"),
        (&ours, json!({"max_age": 60_000_000_000_i64}), "max_age is 1m"),
        (&ours, json!({"no_ack": true}), "no_ack is true"),
        (&ours, json!({"deny_delete": false}), "deny_delete is false"),
        (&ours, json!({"deny_purge": false}), "deny_purge is false"),
        (&["shop.>"], json!({}), "subjects are \"shop.>\""),
        (&["shop.paid.completed.*"], json!({}), "subjects are"),
    ] {
        let found = problems(STREAM, subjects, changes).await;
        assert!(found.contains(expected), "{expected}: {found}");
        let command = "nats stream add PAID --subjects='shop.paid.>' --storage=file";
        assert!(found.lines().last().unwrap().contains(command), "{found}");
    }
}

#[tokio::test]
async fn a_missing_stream_is_named_and_not_created() {
    let found = problems("OTHER", &["shop.paid.>"], json!({})).await;
    assert!(found.contains("stream PAID: the stream does not exist"), "{found}");
    assert!(found.contains("nats stream add PAID"), "{found}");
    let none = problems(STREAM, &[], json!({})).await;
    assert!(none.contains("does not exist"), "{none}");
}

#[tokio::test]
async fn a_corrected_stream_is_used() {
    let server = NatsServer::start();
    create_stream(&server, json!({"discard": "old"})).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.start();
    setup.until_sql("SELECT problems FROM streams", "discard is \\\"old\\\"").await;
    update_stream(&server, json!({"discard": "new"})).await;
    setup.until_all("delivered").await;
    setup
        .until_sql("SELECT problems IS NULL AND failing_since IS NULL AND needs_person = 0 FROM streams", "Integer(1)")
        .await;
    setup.stop().await;
}

#[tokio::test]
async fn changed_settings_are_noticed_while_connected() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.inspect_often();
    setup.start();
    setup.until_connected().await;
    update_stream(&server, json!({"max_bytes": 1_000_000})).await;
    setup.until_sql("SELECT notes FROM streams WHERE state = 'connected'", "max_bytes is 1000000").await;
    update_stream(&server, json!({"max_bytes": -1})).await;
    setup
        .until_sql("SELECT coalesce(notes, '') LIKE '%max_bytes%' FROM streams WHERE state = 'connected'", "Integer(0)")
        .await;
    update_stream(&server, json!({"discard": "old"})).await;
    setup.until_sql("SELECT state || needs_person || problems FROM streams", "failed1stream PAID: discard is").await;
    setup.record(vec![paid(Some(1), 1)]).await;
    update_stream(&server, json!({"discard": "new"})).await;
    setup.until_all("delivered").await;
    setup.until_connected().await;
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    setup
        .until_sql("SELECT state || needs_person || problems FROM streams", "failed1stream PAID: the stream does not")
        .await;
    setup.stop().await;
}
