//! Matching by amount: a payment belongs to a session only if exactly one fits.

use resmic_mailhook::payments;

use super::sessions::{events, new, of_order, one_target, states};
use super::*;

/// A setup with matching by amount.
fn matching() -> ForwarderSetup {
    let folder = tempfile::tempdir().unwrap();
    let matching = Matching { enabled: true, window: Duration::from_secs(2700) };
    let targets = one_target().iter().map(ForwardSettings::target).collect();
    let store = Store::open(db::StoreSettings {
        path: folder.path().join("m.db"),
        targets,
        matching,
        chains: Vec::new(),
        resmic: None,
    })
    .unwrap();
    ForwarderSetup {
        folder: Arc::new(folder),
        store,
        settings: one_target(),
        sending: Sending::default(),
        running: None,
    }
}

/// The event with the current time.
fn with_current_time(event: Event) -> Event {
    Event { header_time: Some(jiff::Timestamp::now()), ..event }
}

fn outcomes(setup: &ForwarderSetup) -> String {
    let sql = "SELECT group_concat(outcome, ' ') FROM (SELECT outcome FROM mails ORDER BY id)";
    setup.sql().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn matching_by_amount_needs_a_unique_session() {
    let setup = matching();
    setup.store.session_add(new(1, Some("A"), Some("20.000"))).await.unwrap();
    setup.store.session_add(new(2, None, Some("21"))).await.unwrap();
    setup.record(vec![with_current_time(paid(None, 1)), with_current_time(paid(None, 2))]).await;
    assert_eq!(states(&setup), ["pending", "held"], "the session is paid, and open to no second payment");
    assert_eq!(events(&setup).remove(0), (Some(session(1)), Some("match".into()), None));
    // A later registration matches the second payment. A third payment fits two sessions, so it matches none.
    setup.store.session_add(new(3, None, Some("20"))).await.unwrap();
    assert_eq!(states(&setup), ["pending", "pending"]);
    setup.store.session_add(new(4, None, Some("20"))).await.unwrap();
    setup.store.session_add(new(5, None, Some("20"))).await.unwrap();
    setup.record(vec![with_current_time(paid(None, 3))]).await;
    assert_eq!(states(&setup), ["pending", "pending", "held"]);
    // Session 7 fits two payments, so it matches neither of them.
    setup.store.session_add(new(6, None, Some("33"))).await.unwrap();
    let dearer = |n| {
        let mut event = with_current_time(paid(None, n));
        event.payment.amount = Some("44".into());
        event
    };
    setup.record(vec![dearer(5), dearer(6)]).await;
    let settled = setup.store.session_add(new(7, None, Some("44"))).await.unwrap();
    assert_eq!(settled, payments::Reconciled::default());
    assert!(events(&setup)[3..5].iter().all(|(session, ..)| session.is_none()));
    // A payment with an order reference from an address is never matched by amount.
    setup.record(vec![with_current_time(of_order("Z", 4))]).await;
    assert_eq!(events(&setup).remove(5).0, None);
}

#[tokio::test]
async fn a_repeated_report_pays_no_second_session() {
    let setup = matching();
    for (first, second) in [(Some("A"), of_order("A", 1)), (None, paid(None, 2))] {
        let n = if first.is_some() { 1 } else { 3 };
        let owed = first.is_none().then_some("20");
        setup.store.session_add(new(n, first, owed)).await.unwrap();
        setup.record(vec![with_current_time(second.clone())]).await;
        // The first session is paid. Another session of the order, or with the same amount, is open.
        setup.store.session_add(new(n + 1, first, owed)).await.unwrap();
        setup.record(vec![with_current_time(second)]).await;
    }
    // A report that adds an order reference is not a duplicate.
    setup.record(vec![of_order("A", 2)]).await;
    assert_eq!(outcomes(&setup), "event duplicate event duplicate quarantined");
    assert_eq!(events(&setup).into_iter().map(|e| e.0.unwrap()).collect::<Vec<_>>(), [session(1), session(3)]);
    assert!(states(&setup).iter().all(|state| state == "pending"));
}

#[tokio::test]
async fn a_session_is_matched_with_one_transaction() {
    let setup = matching();
    setup.store.session_add(new(1, None, Some("20"))).await.unwrap();
    let mut pending = with_current_time(paid(None, 1));
    pending.payment.status = Status::Pending;
    setup.record(vec![pending, with_current_time(paid(None, 2))]).await;
    assert_eq!(events(&setup).into_iter().map(|e| e.0).collect::<Vec<_>>(), [Some(session(1)), None]);
    // Now two completed payments fit the session. So the first payment is held as well, and an operator has to decide.
    setup.record(vec![with_current_time(paid(None, 1))]).await;
    assert_eq!(states(&setup), ["held", "held"]);
}

#[tokio::test]
async fn the_spelling_of_a_hash_does_not_matter() {
    let setup = matching();
    setup.store.session_add(new(1, None, Some("20"))).await.unwrap();
    let short = |status: Status| {
        let mut event = with_current_time(paid(None, 1));
        let payment = &mut event.payment;
        (payment.status, payment.blockchain, payment.transaction_hash) =
            (status, Some("Starknet".into()), Some("0x1".into()));
        event
    };
    let mut padded = short(Status::Completed);
    padded.payment.transaction_hash = Some(format!("0x{:064x}", 1));
    setup.record(vec![short(Status::Pending), padded]).await;
    let sessions: Vec<_> = events(&setup).into_iter().map(|e| e.0).collect();
    assert_eq!(sessions, [Some(session(1)), Some(session(1))], "it is pending first, and then completed");
    let filter = |hash: &str| db::EventQuery { transaction: Some(hash.into()), ..db::EventQuery::default() };
    for hash in ["0x1", "0X01", "0x0000000001"] {
        let mut found = 0;
        let count = |_| {
            found += 1;
            Ok::<_, db::Error>(())
        };
        setup.store.reader().unwrap().events(&filter(hash), count).unwrap();
        assert_eq!(found, 2, "{hash}");
    }
}

#[tokio::test]
async fn invalid_utf8_in_sessions_is_harmless() {
    let setup = matching();
    setup.record(vec![of_order("A", 1)]).await;
    // A shop writes Latin-1. SQLite does not verify UTF-8.
    let insert = "INSERT INTO sessions (session_id, order_ref, amount, token) VALUES (?1, CAST(x'47F6DF65' AS TEXT), '20', 'DAI')";
    setup.sql().execute(insert, [session(1)]).unwrap();
    setup.sql().execute("INSERT INTO sessions_to_reconcile VALUES (CAST(zeroblob(35) || x'FC' AS TEXT))", []).unwrap();
    assert_eq!(setup.store.session_add(new(2, Some("A"), None)).await.unwrap().released, 1);
    setup.record(vec![with_current_time(paid(None, 2)), with_current_time(paid(Some(1), 3))]).await;
    assert_eq!(states(&setup), ["pending", "pending", "held"], "it is found by its amount, and is paid once");
    let mut listed = Vec::new();
    let push = |row: payments::SessionRow| {
        listed.push(row.order_ref);
        Ok::<_, db::Error>(())
    };
    setup.store.reader().unwrap().sessions(None, push).unwrap();
    assert_eq!(listed, [Some("G\u{fffd}\u{fffd}e".into()), Some("A".into())]);
    let left: i64 = setup.sql().query_row("SELECT count(*) FROM sessions_to_reconcile", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_replaced_session_is_matched_again() {
    let setup = matching();
    for n in [1, 2] {
        setup.store.session_add(new(n, None, Some("20"))).await.unwrap();
    }
    setup.record(vec![with_current_time(paid(None, 1))]).await;
    setup.sql().execute("DELETE FROM sessions WHERE session_id = ?1", [session(2)]).unwrap();
    let settled = setup.store.session_add(new(1, None, Some("20.0"))).await.unwrap();
    assert_eq!((settled.resolved, settled.released), (1, 1));
    assert_eq!(events(&setup).remove(0).0, Some(session(1)));
}

#[tokio::test]
async fn sessions_may_be_ended_by_sql() {
    let setup = matching();
    for (n, end) in [(1, "datetime('now', '-1 hour')"), (2, "'soon'"), (3, "strftime('%s', 'now')")] {
        setup.store.session_add(new(n, None, Some("20"))).await.unwrap();
        let update = format!("UPDATE sessions SET expires_at = {end} WHERE session_id = ?1");
        setup.sql().execute(&update, [session(n)]).unwrap();
    }
    setup.record(vec![with_current_time(paid(None, 1))]).await;
    assert_eq!(events(&setup).remove(0).0, None);
    setup
        .sql()
        .execute("UPDATE sessions SET expires_at = datetime('now', '+1 hour') WHERE session_id = ?1", [session(2)])
        .unwrap();
    setup.store.reconcile().await.unwrap();
    assert_eq!(events(&setup).remove(0).0, Some(session(2)));
}
