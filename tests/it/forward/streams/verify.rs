//! `deliveries verify`: a stream that has lost or changed messages.

use resmic_mailhook::forward::{FindingKind, StreamFinding, Verification};

use super::*;
use crate::forward::sessions::{new, of_order};

/// Compares the stream of the only target. Returns the counts and the findings.
pub(super) async fn verify(setup: &ForwarderSetup, refill: bool) -> Result<(Verification, Vec<StreamFinding>), String> {
    let target = Target::load(setup.settings[0].clone(), "secret".into()).await.unwrap();
    let mut findings = Vec::new();
    let report = |finding| {
        findings.push(finding);
        Ok(())
    };
    let counts = forward::verify(&target, &setup.store, None, refill, report).await.unwrap()?;
    Ok((counts, findings))
}

/// Delivers three events to a stream, and ends the forwarder.
async fn three_delivered(server: &NatsServer) -> ForwarderSetup {
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=3).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    setup
}

#[tokio::test]
async fn lost_messages_are_found_and_refilled() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    let events: Vec<_> = (1..=40).map(|n| paid(Some(n), n)).collect();
    let changed = format!("shop.paid.completed.{}", events[3].id().unwrap());
    setup.record(events).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    assert_eq!(verify(&setup, false).await.unwrap(), (Verification { checked: 40, ..Default::default() }, Vec::new()));
    // The stream is deleted and created again. Another program publishes one of the events in another form.
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, json!({})).await;
    server.client().await.request(changed, "{}".into()).await.unwrap();
    let (counts, findings) = verify(&setup, false).await.unwrap();
    assert_eq!(counts, Verification { checked: 40, missing: 39, different: 1, refilled: 0, ..Default::default() });
    assert!(!counts.is_complete());
    assert_eq!(findings[3].kind, FindingKind::Different(1));
    assert_eq!((&findings[0].kind, findings[0].receipt.as_str()), (&FindingKind::Missing, "PAID:1"));
    assert_eq!(server.count(STREAM).await, 1, "nothing was published");
    let (counts, _) = verify(&setup, true).await.unwrap();
    assert_eq!(counts, Verification { checked: 40, missing: 0, different: 1, refilled: 39, ..Default::default() });
    assert_eq!(server.count(STREAM).await, 40);
    assert_eq!(setup.deliveries()[0].receipt.as_deref(), Some("PAID:2"));
    let refilled: i64 = setup.sql().query_row("SELECT refilled FROM streams", [], |row| row.get(0)).unwrap();
    assert_eq!(refilled, 39);
    let (counts, _) = verify(&setup, true).await.unwrap();
    assert_eq!(counts, Verification { checked: 40, missing: 0, different: 1, refilled: 0, ..Default::default() });
}

#[tokio::test]
async fn unfit_streams_are_read_but_not_refilled() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    let error = verify(&setup, false).await.unwrap_err();
    assert!(error.contains("does not exist"), "{error}");
    create_stream(&server, json!({"deny_purge": false})).await;
    let (counts, _) = verify(&setup, false).await.unwrap();
    assert_eq!(counts.missing, 1);
    assert!(counts.problems[0].starts_with("stream PAID: deny_purge is false"), "{:?}", counts.problems);
    let error = verify(&setup, true).await.unwrap_err();
    assert!(error.contains("deny_purge is false"), "{error}");
    assert_eq!(server.count(STREAM).await, 0);
}

#[tokio::test]
async fn verify_records_a_gap() {
    let server = server_with_stream().await;
    let setup = three_delivered(&server).await;
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, json!({})).await;
    let gaps = "SELECT count(gap_since) FROM streams";
    assert_eq!(verify(&setup, false).await.unwrap().0.missing, 3);
    setup.until_sql(gaps, "Integer(1)").await;
    assert_eq!(verify(&setup, true).await.unwrap().0.refilled, 3);
    setup.until_sql(gaps, "Integer(0)").await;
    // A refill that fails finds the loss, too.
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, json!({"max_bytes": 100})).await;
    verify(&setup, true).await.unwrap_err();
    setup.until_sql(gaps, "Integer(1)").await;
}

/// Without this exception, `verify` would count all events of the last months as expired.
#[tokio::test]
async fn a_short_age_excuses_no_loss() {
    let server = server_with_stream().await;
    let setup = three_delivered(&server).await;
    setup.age("-120");
    update_stream(&server, json!({"max_age": 3_600_000_000_000_i64})).await;
    let (counts, _) = verify(&setup, false).await.unwrap();
    assert_eq!((counts.checked, counts.expired, counts.missing), (3, 0, 0));
    assert!(!counts.is_complete() && counts.problems[0].contains("max_age is 1h"), "{:?}", counts.problems);
}

/// Otherwise, the next connect would take the events for lost, and `verify` would find them again.
#[tokio::test]
async fn verify_corrects_wrong_receipts() {
    let server = server_with_stream().await;
    let mut setup = ForwarderSetup::new(vec![paid_stream(&server.url(), "")]);
    setup.start();
    setup.record((1..=2).map(|n| paid(Some(n), n)).collect()).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    setup.sql().execute("UPDATE deliveries SET receipt = 'PAID:7' WHERE id = 2", []).unwrap();
    assert!(verify(&setup, false).await.unwrap().0.is_complete());
    let receipts: Vec<_> = setup.deliveries().into_iter().filter_map(|d| d.receipt).collect();
    assert_eq!(receipts, ["PAID:1", "there already: PAID:2"]);
}

#[tokio::test]
async fn expired_messages_are_not_lost() {
    let server = NatsServer::start();
    let max_age = json!({"max_age": 400 * 86_400 * 1_000_000_000_i64});
    create_stream(&server, max_age.clone()).await;
    let setup = three_delivered(&server).await;
    // The first event expired a day ago. The second one expires in half an hour, and the third one in two hours.
    setup.age("CASE id WHEN 1 THEN -401 * 1440 WHEN 2 THEN -400 * 1440 + 30 ELSE -400 * 1440 + 120 END");
    server.api(&format!("STREAM.DELETE.{STREAM}"), json!({})).await;
    create_stream(&server, max_age).await;
    let (counts, _) = verify(&setup, true).await.unwrap();
    assert_eq!(counts, Verification { checked: 1, refilled: 1, expired: 2, ..Default::default() });
    assert!(counts.is_complete());
    assert_eq!(server.count(STREAM).await, 1);
}

#[tokio::test]
async fn a_session_found_later_makes_no_difference() {
    let server = server_with_stream().await;
    let stream = paid_stream(&server.url(), "unresolved = \"send\"");
    let mut setup = ForwarderSetup::new(vec![stream, shop("127.0.0.1:1", "")]);
    setup.start();
    setup.record(vec![of_order("A-1", 1)]).await;
    setup.until("published", |rows| rows.iter().any(|row| row.receipt.is_some())).await;
    setup.stop().await;
    assert_eq!(verify(&setup, false).await.unwrap().0, Verification { checked: 1, ..Default::default() });
    setup.store.session_add(new(1, Some("A-1"), None)).await.unwrap();
    let body: String = setup.sql().query_row("SELECT webhook FROM events", [], |row| row.get(0)).unwrap();
    assert!(body.contains(&session(1)), "{body}");
    let (counts, findings) = verify(&setup, false).await.unwrap();
    assert_eq!(counts, Verification { checked: 1, without_session: 1, ..Default::default() });
    assert_eq!((counts.is_complete(), findings), (true, Vec::new()));
}

#[tokio::test]
async fn a_handler_cannot_be_verified() {
    let setup = ForwarderSetup::new(vec![shop("127.0.0.1:1", "")]);
    let target = Target::load(setup.settings[0].clone(), "secret".into()).await.unwrap();
    assert!(forward::verify(&target, &setup.store, None, false, |_| Ok(())).await.is_none());
}
