//! A scripted server that sends each known kind of false acknowledgement.

use testkit::scripted_nats::{NatsAnswer, ScriptedNats};

use super::*;

/// Delivers one event to a server that answers the first publish with `answer`, and stores the messages of later publishes.
/// Returns the error and the result of the first attempt.
async fn first_attempt(answer: NatsAnswer) -> (String, String) {
    let first = answer.clone();
    let nats = ScriptedNats::start(move |n, _| if n == 0 { first.clone() } else { NatsAnswer::Store(9) }).await;
    let mut setup =
        ForwarderSetup::new(vec![paid_stream(&nats.url(), "timeout = \"300ms\"\ngive_up_after = \"100d\"")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!((row.attempts, row.receipt.as_deref()), (2, Some("PAID:9")), "{answer:?}");
    setup.stop().await;
    let sql = "SELECT result, error FROM attempts WHERE attempt = 1";
    setup.sql().query_row(sql, [], |row| Ok((row.get(1)?, row.get(0)?))).unwrap()
}

fn body(text: &str) -> NatsAnswer {
    NatsAnswer::Body(text.into())
}

#[tokio::test]
async fn false_acknowledgements_are_no_deliveries() {
    for (answer, error, result) in [
        (body(r#"{"stream":"PAID","seq":0}"#), "no sequence number", "no_response"),
        (body(r#"{"stream":"PAID","seq":0,"duplicate":true}"#), "no sequence number", "no_response"),
        (body(r#"{"stream":"OTHER","seq":5}"#), "stream \"OTHER\"", "no_response"),
        (body("{}"), "stream \"\"", "no_response"),
        (body(""), "no acknowledgement", "no_response"),
        (body("+OK"), "no acknowledgement", "no_response"),
        (body("{\"stream\":\"PAID\",\"seq\":\u{1b}"), "no acknowledgement", "no_response"),
        (NatsAnswer::error(400, 10_158), "(10158)", "rejected"),
        (NatsAnswer::error(400, 10_164), "(10164)", "rejected"),
        (NatsAnswer::error(503, 10_008), "(10008)", "rejected"),
        (NatsAnswer::Status(503), "503", "rejected"),
        (NatsAnswer::Status(100), "status 100", "no_response"),
        (NatsAnswer::Silence, "no answer within 300ms", "no_response"),
        (NatsAnswer::Close, "the connection was lost", "no_response"),
    ] {
        let (found, kind) = first_attempt(answer.clone()).await;
        assert!(found.contains(error) && kind == result, "{answer:?}: {kind}: {found}");
    }
}

#[tokio::test]
async fn malformed_protocol_ends_only_the_connection() {
    for bytes in [
        "-ERR\r\n",
        "-ERR 'Permissions Violation for Publish to \"shop.paid\"'\r\n",
        "NONSENSE\r\n",
        "MSG a b c d e f\r\n",
        "MSG x 0 99999999999999999999999\r\n",
        "HMSG x 0 5 1\r\nhello\r\n",
        "HMSG x 0 18446744073709551000 18446744073709551615\r\n",
        "INFO {\r\n",
    ] {
        let (found, kind) = first_attempt(NatsAnswer::Raw(bytes.into())).await;
        assert_eq!(kind, "no_response", "{bytes:?}: {found}");
    }
}

#[tokio::test]
async fn missing_permissions_are_in_the_error() {
    let denied = "-ERR 'Permissions Violation for Publish to \"shop.paid.x\"'\r\n";
    let (found, _) = first_attempt(NatsAnswer::Raw(denied.into())).await;
    assert!(found.contains("Permissions Violation"), "{found}");
}

#[tokio::test]
async fn a_message_without_an_answer_may_be_there() {
    let nats =
        ScriptedNats::start(|n, _| if n == 0 { NatsAnswer::StoreSilently(4) } else { NatsAnswer::error(400, 10_071) })
            .await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "timeout = \"300ms\"")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!(row.receipt.as_deref(), Some("there already: PAID:4"));
    setup.stop().await;
    assert_eq!(setup.results(), ["no_response", "accepted"]);
    nats.until_logins(2).await;
}

#[tokio::test]
async fn an_unreadable_repetition_is_no_delivery() {
    let nats =
        ScriptedNats::start(|n, _| if n == 0 { NatsAnswer::error(400, 10_071) } else { NatsAnswer::Store(2) }).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = setup.until_all("delivered").await.remove(0);
    assert_eq!((row.attempts, row.receipt.as_deref()), (2, Some("PAID:2")));
    setup.stop().await;
    assert_eq!(setup.results(), ["no_response", "accepted"]);
}

#[tokio::test]
async fn another_subscriber_is_named_in_status() {
    let nats = ScriptedNats::start(|_, _| body("{\"ok\":true}")).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = "SELECT needs_person || ' ' || problems FROM streams WHERE state = 'failed'";
    setup.until_sql(row, "1 stream PAID").await;
    nats.until_published(3).await;
    assert_eq!(setup.deliveries()[0].state.as_str(), "pending");
    setup.stop().await;
}

/// The stream of another node can lose messages, or be created again, while the connection stays open.
#[tokio::test]
async fn a_lower_number_means_lost_messages() {
    let nats = ScriptedNats::start(|n, _| NatsAnswer::Store([10, 11, 11, 11, 12, 13][n.min(5)])).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "")]);
    setup.start();
    for n in 1..=2 {
        setup.record(vec![paid(Some(n), n)]).await;
        setup.until_all("delivered").await;
    }
    setup.record(vec![paid(Some(3), 3)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    let subjects: Vec<_> = nats.published().into_iter().map(|message| (message.connection, message.subject)).collect();
    let [(1, first), (1, second), (1, third), again @ ..] = &subjects[..] else { panic!("{subjects:?}") };
    let expected = [first, second, third].map(|subject| (2, subject.clone()));
    assert_eq!(again, expected, "the acknowledged events are published again first");
    assert_eq!(setup.results(), ["accepted", "accepted", "no_response", "accepted"]);
}

#[tokio::test]
async fn long_answers_are_refused() {
    // An array of this length would need 64 MB as values.
    let long = format!("[{}0]", "0,".repeat(2 << 20));
    let (error, result) = first_attempt(NatsAnswer::Body(long)).await;
    assert!(error.contains("more than 1 MiB") && result == "no_response", "{result}: {error}");
    let changes = json!({"metadata": {"x": "0".repeat(2 << 20)}});
    let nats = ScriptedNats::start_with(changes, |_, _| NatsAnswer::Store(1)).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "")]);
    setup.start();
    setup.until_sql("SELECT problems FROM streams WHERE needs_person", "more than 1 MiB").await;
    setup.stop().await;
}

#[tokio::test]
async fn long_messages_are_not_read() {
    for direct in [true, false] {
        let changes = json!({"allow_direct": direct});
        let nats = ScriptedNats::start_with(changes, |_, _| NatsAnswer::error(400, 10_071)).await;
        let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "")]);
        setup.start();
        setup.record(vec![paid(Some(1), 1)]).await;
        let subject = nats.until_published(1).await.remove(0).subject;
        nats.store(&subject, 3, &vec![b'0'; 2 << 20]);
        setup.until_sql("SELECT group_concat(error) FROM attempts", "more than 1 MiB").await;
        setup.stop().await;
        assert!(setup.deliveries()[0].receipt.is_none(), "direct: {direct}");
    }
}

/// On a connection, the first message is sent alone. After that, at most sixteen messages wait for their acknowledgements.
#[tokio::test]
async fn sixteen_messages_wait_for_their_answers() {
    let nats = ScriptedNats::start(|n, _| if n == 0 { NatsAnswer::Store(1) } else { NatsAnswer::Silence }).await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&nats.url(), "timeout = \"500ms\"")]);
    setup.record((1..=40).map(|n| paid(Some(n), n)).collect()).await;
    setup.start();
    nats.until_logins(2).await;
    setup.stop().await;
    let first = nats.published().iter().filter(|message| message.connection == 1).count();
    assert_eq!(first, 17, "one, and then sixteen");
}
