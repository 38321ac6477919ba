//! Handlers that fail, hang, redirect, send megabytes, or restart.

use std::time::{Duration, Instant};

use resmic_mailhook::db::RetrySelection;

use super::*;
use testkit::receiver::{Receiver, ReceiverAnswer, status};

/// The delivery after its first attempt at a handler with this response.
async fn first_failure(answer: ReceiverAnswer) -> DeliveryRow {
    let receiver = Receiver::new(move |_, _| answer.clone());
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "timeout = \"1s\"")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    let row = setup.until("recorded", |rows| rows[0].last_error.is_some()).await.remove(0);
    assert_eq!(row.state.as_str(), "pending");
    setup.stop().await;
    row
}

#[tokio::test]
async fn failures_have_different_errors() {
    let bytes = |text: &str| ReceiverAnswer::Bytes(text.as_bytes().to_vec());
    for (answer, status, expected) in [
        (status(500), Some(500), "500"),
        (
            bytes("HTTP/1.1 400 Bad\r\n\r\n\n \x1b[31mno such order\nat line 1"),
            Some(400),
            "400 Bad Request:  [31mno such order",
        ),
        (
            bytes("HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n"),
            Some(302),
            "a redirect to \"http://10.0.0.1/\", which is not",
        ),
        (bytes("HTTP/1.1 304 Not Modified\r\n\r\n"), Some(304), "304"),
        (bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), Some(101), "101"),
        (bytes("220 mail.example ESMTP\r\n"), None, "no answer: "),
        // An interim status or a part of a status line is no response.
        (bytes("HTTP/1.1 103 Early Hints\r\nX: HTTP/1.1 200 OK\r\n\r\n"), None, "no answer: "),
        (bytes("HTTP/1.1 200"), None, "no answer: "),
        (bytes("HTTP/1.1 2000 OK\r\n\r\n"), None, "no answer: "),
        (ReceiverAnswer::Unended("HTTP/1.1 200 OK"), None, "no answer within 1s"),
        (bytes("HTTP/1.1 503 Busy\r\nContent-Length: x\r\n\r\n"), Some(503), "503 Service Unavailable"),
        (
            bytes("HTTP/1.1 307 There\r\nLocation: http://10.0.0.1/\r\nContent-Length: -1\r\n\r\n"),
            Some(307),
            "a redirect to \"http://10.0.0.1/\", which is not",
        ),
        (ReceiverAnswer::Close, None, "no answer: "),
        (ReceiverAnswer::Unended("HTTP/1.1 503 Busy\r\n\r\n"), Some(503), "503"),
        (ReceiverAnswer::Hang, None, "no answer within 1s"),
    ] {
        let row = first_failure(answer).await;
        let error = row.last_error.unwrap();
        assert_eq!(row.last_status, status, "{error}");
        assert!(error.contains(expected), "{error:?} is not {expected:?}");
        assert!(error.len() < 1000);
    }
}

#[tokio::test]
async fn attempts_record_their_result() {
    let (accepts, rejects) = (Receiver::new(|_, _| status(200)), Receiver::new(|_, _| status(500)));
    let (hangs, closes) = (Receiver::new(|_, _| ReceiverAnswer::Hang), Receiver::new(|_, _| ReceiverAnswer::Close));
    let [accepts, rejects, hangs, closes] =
        [accepts.listen().await, rejects.listen().await, hangs.listen().await, closes.listen().await];
    let refuses = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, result) in [
        (accepts, "accepted"),
        (rejects, "rejected"),
        (hangs, "no_response"),
        (closes, "no_response"),
        (refuses, "not_sent"),
    ] {
        let mut setup = ForwarderSetup::new(vec![shop(address, "timeout = \"1s\"")]);
        setup.start();
        setup.record(vec![paid(Some(1), 1)]).await;
        setup.until("recorded", |rows| rows[0].last_error.is_some() || rows[0].delivered_at.is_some()).await;
        setup.stop().await;
        let sql = "SELECT result FROM attempts WHERE attempt = 1";
        let found: String = setup.sql().query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(found, result);
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let began = Instant::now();
    let row = first_failure(ReceiverAnswer::Endless).await;
    assert_eq!(row.last_error.as_deref(), Some("500 Internal Server Error: first line"));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_status_of_2xx_counts_whatever_follows() {
    const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut";
    let with_fields =
        |fields: &str| ReceiverAnswer::Bytes(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n").into());
    let text = |text: &str| ReceiverAnswer::Bytes(text.as_bytes().to_vec());
    let length =
        |version, length| text(&format!("HTTP/{version} 200 OK\r\nContent-Length: {length}\r\n\r\n{{\"ok\":1}}"));
    for (answer, timeout) in [
        (ReceiverAnswer::Bytes(CUT.into()), "10s"),
        // The rest of the body does not arrive before the timeout.
        (ReceiverAnswer::Unended(CUT), "300ms"),
        (with_fields(&"X: y\r\n".repeat(500)), "10s"),
        (with_fields("X: y\r\n\tz\r\n"), "10s"),
        (with_fields("X-Größe : 5\r\n"), "10s"),
        (with_fields("Content-Length: 7\r\n"), "10s"),
        (with_fields("Transfer-Encoding: chunked\r\n"), "10s"),
        (with_fields(&format!("X: {}\r\n", "x".repeat(1 << 20))), "10s"),
        (with_fields(&"X: y\r\n".repeat(3_000)), "10s"),
        (length("1.1", "1"), "10s"),
        (length("1.1", "4/5/6"), "10s"),
        (length("1.1", "4, 5"), "10s"),
        (length("1.1", "text"), "10s"),
        (length("1.1", "-1"), "10s"),
        (length("1.1", ""), "10s"),
        (length("1.1", "99999999999999999999999"), "10s"),
        (length("1.0", "99"), "10s"),
        (text("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "10s"),
        (text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk"), "10s"),
        (text("HTTP/1.1 200 OK\r\nTransfer-Encoding: odd\r\nContent-Length: 1\r\n\r\nok"), "10s"),
        (text("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: x\r\n\r\n"), "10s"),
        (text("HTTP/1.1 204 No Content\r\nContent-Length: x\r\n\r\nok"), "10s"),
        (text("HTTP/1.1 200 OK\r\nno field\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n"), "10s"),
        (text("HTTP/1.1 200 OK\r\nContent-"), "10s"),
        (ReceiverAnswer::Unended("HTTP/1.1 200 OK\r\n"), "300ms"),
        (ReceiverAnswer::Unended("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "10s"),
    ] {
        let answer_text = format!("{answer:.200?}");
        let receiver = Receiver::new(move |_, _| answer.clone());
        let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, &format!("timeout = \"{timeout}\""))]);
        setup.start();
        setup.record(vec![paid(Some(1), 1)]).await;
        setup.until_all("delivered").await;
        setup.stop().await;
        assert_eq!(receiver.requests().len(), 1, "delivered again after {answer_text}");
    }
}

#[tokio::test]
async fn a_handler_that_restarts_misses_nothing() {
    let receiver = Receiver::new(|_, _| status(200));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut setup = ForwarderSetup::new(vec![shop(address, "")]);
    setup.start();
    setup.record((0..20).map(|n| paid(Some(n), n)).collect()).await;
    let rows = setup.until("all refused once", |rows| rows.iter().all(|d| d.last_error.is_some())).await;
    assert!(rows[0].last_error.as_deref().unwrap().contains("cannot connect to 127.0.0.1"), "{:?}", rows[0]);
    receiver.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(receiver.requests().len(), 20);
    let attempts: i64 =
        setup.sql().query_row("SELECT count(*) FROM attempts WHERE error IS NULL", [], |r| r.get(0)).unwrap();
    assert_eq!(attempts, 20);
}

#[tokio::test]
async fn retry_after_is_respected() {
    let receiver = Receiver::new(|n, _| match n {
        0 => ReceiverAnswer::Bytes(b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n".to_vec()),
        _ => status(200),
    });
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    receiver.wait_for(1).await;
    let began = Instant::now();
    receiver.wait_for(2).await;
    assert!(began.elapsed() >= Duration::from_millis(2900), "{:?}", began.elapsed());
    setup.until_all("delivered").await;
    setup.stop().await;
}

#[tokio::test]
async fn a_dead_delivery_may_be_retried() {
    let receiver = Receiver::new(|_, request| {
        let works = request.header("webhook-id").is_some_and(|id| id == failed(1, 2).id().unwrap().to_string());
        if works { status(200) } else { status(500) }
    });
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "give_up_after = \"300ms\"")]);
    setup.start();
    setup.record(vec![failed(1, 1), failed(1, 2)]).await;
    let rows =
        setup.until("ended", |rows| rows[0].state.as_str() == "dead" && rows[1].state.as_str() == "delivered").await;
    let error = rows[0].last_error.as_deref().unwrap();
    assert!(error.starts_with("given up after 300ms and ") && error.contains("500"), "{error}");
    assert!(rows[0].next_attempt_at.is_none() && rows[0].attempts >= 2);
    assert!(matches!(setup.store.retry(RetrySelection::Ids(vec![rows[1].id])).await, Err(db::Error::Refused(_))));
    assert!(matches!(setup.store.retry(RetrySelection::Ids(vec![99])).await, Err(db::Error::Refused(_))));
    let before = receiver.requests().len();
    assert_eq!(setup.store.retry(RetrySelection::Dead).await.unwrap(), 1);
    receiver.wait_for(before + 1).await;
    setup.until("dead again", |rows| rows[0].state.as_str() == "dead" && rows[0].attempts > 2).await;
    setup.stop().await;
}

#[tokio::test]
async fn a_killed_forwarder_repeats_only_running_attempts() {
    const MANY: usize = 300;
    let receiver = Receiver::new(|_, _| ReceiverAnswer::Slowly(Duration::from_millis(5)));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record((0..MANY).map(|n| paid(Some(n as u32), n as u32)).collect()).await;
    for kill_after in [40, 120, 200] {
        setup.start();
        receiver.wait_for(kill_after).await;
        // An abort ends the tasks at any await point, like a kill.
        setup.running.take().unwrap().1.abort();
        setup.store = open(&setup.folder, &setup.settings);
    }
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
    let keys: Vec<String> =
        receiver.requests().iter().map(|r| r.header("idempotency-key").unwrap().to_owned()).collect();
    let different: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(different.len(), MANY);
    assert!(keys.len() <= MANY + 3 * 16, "{} requests", keys.len());
}

#[tokio::test]
async fn a_locked_database_only_delays_deliveries() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record(vec![paid(Some(1), 1)]).await;
    let other = setup.sql();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    setup.start();
    // This pause is longer than the busy timeout of SQLite.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(receiver.requests().len(), 0, "nothing is sent that is not counted");
    other.execute_batch("COMMIT").unwrap();
    setup.until_all("delivered").await;
    setup.stop().await;
}

#[tokio::test]
async fn a_maybe_delivered_event_is_repeated_unchanged() {
    let receiver = Receiver::new(|n, _| if n == 0 { ReceiverAnswer::Hang } else { status(200) });
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "timeout = \"300ms\"")]);
    let mut bare = paid(Some(1), 1);
    bare.payment.blockchain = None;
    setup.start();
    setup.record(vec![bare.clone()]).await;
    receiver.wait_for(1).await;
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    let bodies: Vec<String> = receiver.requests().iter().map(|r| r.text().to_owned()).collect();
    assert_eq!(
        bodies,
        [bare.webhook(), bare.webhook()],
        "a handler that counts by chain and hash would count it twice"
    );
}

#[tokio::test]
async fn an_undelivered_event_may_be_completed() {
    for (last_error, status, result, is_better) in [
        ("no answer within 10s", None, AttemptResult::NoResponse, false),
        (
            "given up after 3d and 9 attempts; the last: no answer: connection closed before message completed",
            None,
            AttemptResult::NoResponse,
            false,
        ),
        ("internal error during the attempt", None, AttemptResult::Interrupted, false),
        ("cannot connect to 127.0.0.1:1: no answer", None, AttemptResult::NotSent, true),
        ("no answer within 10s: no connection was made", None, AttemptResult::NotSent, true),
        ("500 Internal Server Error", Some(500), AttemptResult::Rejected, true),
    ] {
        let setup = ForwarderSetup::new(vec![shop("127.0.0.1:1", "unresolved = \"send\"")]);
        let mut bare = paid(None, 1);
        bare.payment.blockchain = None;
        setup.record(vec![bare.clone()]).await;
        let claimed = setup.store.record_and_claim("shop", vec![], vec![], 1).await.unwrap().claimed.remove(0);
        let end = db::NextStep::RetryAt(last_error.into(), jiff::Timestamp::now());
        let (delivery_id, attempt, took) = (claimed.delivery_id, claimed.attempt, Duration::ZERO);
        let ended = db::FinishedAttempt { delivery_id, attempt, result, status, took, next_step: end };
        setup.store.record_and_claim("shop", vec![ended], vec![], 0).await.unwrap();
        setup.record(vec![paid(Some(1), 1)]).await;
        let webhook =
            setup.store.record_and_claim("shop", vec![], vec![], 1).await.unwrap().claimed.remove(0).event.webhook;
        // Only the session is added; the payment is the same.
        bare.payment.session_id = Some(session(1));
        assert_eq!(webhook, if is_better { paid(Some(1), 1).webhook() } else { bare.webhook() }, "{last_error}");
    }
}
