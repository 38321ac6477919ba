//! Events whose session is found late: they are held, released or in conflict, or an operator assigns the session.

use std::time::Instant;

use resmic_mailhook::db::{Claimed, FinishedAttempt, NextStep};
use resmic_mailhook::payments::{self, SessionRegistration};

use super::*;
use testkit::receiver::{Receiver, status};

pub(super) fn new(n: u32, order_ref: Option<&str>, amount: Option<&str>) -> SessionRegistration {
    SessionRegistration {
        session_id: session(n),
        order_ref: order_ref.map(str::to_owned),
        amount: amount.map(str::to_owned),
        ..SessionRegistration::default()
    }
}

pub(super) fn of_order(order_ref: &str, n: u32) -> Event {
    Event { order_ref: Some(order_ref.into()), ..paid(None, n) }
}

pub(super) fn states(setup: &ForwarderSetup) -> Vec<String> {
    setup.deliveries().into_iter().map(|d| d.state.to_string()).collect()
}

/// The session, its source and the hold of each event, in the order of their arrival.
pub(super) fn events(setup: &ForwarderSetup) -> Vec<(Option<String>, Option<String>, Option<String>)> {
    let mut all = Vec::new();
    let push = |e: db::EventRow| {
        all.push((e.session_id, e.session_source, e.hold));
        Ok::<_, db::Error>(())
    };
    setup.store.reader().unwrap().events(&db::EventQuery::default(), push).unwrap();
    all
}

pub(super) fn one_target() -> Vec<ForwardSettings> {
    vec![shop("127.0.0.1:1", "")]
}

#[tokio::test]
async fn an_inserted_row_releases_deliveries_in_order() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup =
        ForwarderSetup::new(vec![shop(receiver.listen().await, "statuses = [\"completed\", \"failed\", \"pending\"]")]);
    setup.start();
    let mut first = of_order("A-1", 1);
    first.payment.status = Status::Pending;
    setup.record(vec![first, of_order("A-1", 1), of_order("B-2", 2)]).await;
    assert_eq!(states(&setup), ["held", "held", "held"]);
    // The row comes from another process and another SQLite library.
    let statement =
        format!("INSERT INTO sessions (session_id, order_ref) VALUES ('{}', 'A-1')", session(7).to_uppercase());
    let python =
        format!("import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"{statement}\"); c.commit()");
    let mut command = std::process::Command::new("python3");
    let inserted = command.arg("-c").arg(python).arg(setup.folder.path().join("m.db")).status();
    assert!(inserted.expect("python3 is needed: apt-get install python3").success());
    let began = Instant::now();
    let requests = receiver.wait_for(2).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(requests[0].text().contains("\"state\":\"pending\"") && requests[1].text().contains("\"status\":true"));
    assert!(requests.iter().all(|r| r.text().contains(&session(7)) && r.header("x-mailhook-order-ref") == Some("A-1")));
    setup.until("recorded", |all| all[1].state.as_str() == "delivered" && all[2].state.as_str() == "held").await;
    setup.stop().await;
}

#[tokio::test]
async fn sessions_registered_during_downtime_are_found() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    setup.record((0..300).map(|n| of_order(&format!("o{n}"), n)).collect()).await;
    let sql = setup.sql();
    for n in 0..300 {
        sql.execute("INSERT INTO sessions (session_id, order_ref) VALUES (?1, ?2)", (session(n), format!("o{n}")))
            .unwrap();
    }
    assert_eq!(states(&setup).iter().filter(|s| *s == "held").count(), 300);
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
    let left: i64 = sql.query_row("SELECT count(*) FROM sessions_to_reconcile", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_changed_configuration_releases_deliveries() {
    let receiver = Receiver::new(|_, _| status(200));
    let address = receiver.listen().await;
    let mut setup = ForwarderSetup::new(vec![shop(address, "")]);
    setup.record(vec![paid(None, 1)]).await;
    setup.settings = vec![shop(address, "unresolved = \"send\"")];
    setup.store = open(&setup.folder, &setup.settings);
    setup.start();
    setup.until_all("delivered").await;
    setup.stop().await;
    assert!(receiver.requests()[0].text().starts_with("{\"session_id\":null,"));
}

#[tokio::test]
async fn deliveries_are_released_despite_a_locked_database() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(None, 1)]).await;
    assert_eq!(states(&setup), ["held"]);
    setup.settings = vec![shop(receiver.listen().await, "unresolved = \"send\"")];
    setup.store = open(&setup.folder, &setup.settings);
    let other = setup.sql();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    setup.start();
    let waited = setup.store.ping().await;
    assert!(matches!(waited, Err(db::Error::Locked(_))), "{waited:?}");
    other.execute_batch("ROLLBACK").unwrap();
    setup.until_all("delivered").await;
    setup.stop().await;
}

#[tokio::test]
async fn an_underpaid_order_is_held() {
    let setup = ForwarderSetup::new(one_target());
    setup.store.session_add(new(1, Some("dear"), Some("2000.00"))).await.unwrap();
    setup.record(vec![of_order("dear", 1), paid(Some(2), 2), of_order("late", 3)]).await;
    assert_eq!(states(&setup), ["held", "pending", "held"]);
    // The sessions are registered late: for a pending event and for a held one.
    let settled = setup.store.session_add(new(2, None, Some("21"))).await.unwrap();
    assert_eq!((settled.resolved, settled.released, settled.held), (0, 0, 1));
    setup.store.session_add(new(3, Some("late"), Some("19.99"))).await.unwrap();
    assert_eq!(states(&setup), ["held", "held", "held"]);
    setup.record(vec![paid(Some(4), 4)]).await;
    setup.sql().execute("UPDATE deliveries SET state = 'delivered', next_attempt_at = NULL WHERE id = 4", []).unwrap();
    let settled = setup.store.session_add(new(4, None, Some("21"))).await.unwrap();
    // The event was delivered already. The result names it and the conflict.
    assert_eq!((settled.held, settled.too_late.len()), (0, 1));
    assert!(settled.too_late[0].contains(": conflict: amount is registered as"), "{:?}", settled.too_late);
    for (n, (known, _, hold)) in events(&setup).into_iter().take(3).enumerate() {
        assert_eq!(known, Some(session(u32::try_from(n).unwrap() + 1)));
        assert!(hold.as_deref().unwrap().starts_with("conflict: amount is registered as \""), "{hold:?}");
    }
}

#[tokio::test]
async fn a_second_payment_waits_for_an_operator() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![of_order("A", 1), of_order("A", 2)]).await;
    let settled = setup.store.session_add(new(1, Some("A"), Some("20.00"))).await.unwrap();
    assert_eq!((settled.resolved, settled.released, settled.held), (2, 1, 0));
    assert_eq!(states(&setup), ["pending", "held"]);
    let hold = events(&setup).remove(1).2.unwrap();
    assert!(hold.starts_with("conflict: its session already has a completed payment"), "{hold}");
    let second = of_order("A", 2).id().unwrap().to_string();
    let assigned = setup.store.session_assign(&second, &session(1)).await.unwrap();
    assert_eq!((assigned.before, assigned.registered, assigned.released), (Some(session(1)), true, 1));
    assert_eq!(states(&setup), ["pending", "pending"]);
    assert_eq!(events(&setup).remove(1), (Some(session(1)), Some("address".into()), None));
}

#[tokio::test]
async fn an_operator_resolves_a_conflict() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(None, 1), paid(Some(2), 2)]).await;
    let id = |event: Event| event.id().unwrap().to_string();
    let assigned = setup.store.session_assign(&id(paid(None, 1)), &session(9).to_uppercase()).await.unwrap();
    assert_eq!((assigned.before, assigned.registered, assigned.released), (None, false, 1));
    assert_eq!(events(&setup).remove(0), (Some(session(9)), Some("operator".into()), None));
    let row = setup.store.reader().unwrap().event(&id(paid(None, 1))).unwrap().unwrap();
    assert!(row.webhook.contains(&session(9)));
    // A wrong assignment can be corrected before the delivery.
    setup.store.session_assign(&id(paid(None, 1)), &session(8)).await.unwrap();
    assert_eq!(events(&setup).remove(0).0, Some(session(8)));
    let refused = async |event: &str, to: &str| setup.store.session_assign(event, to).await.unwrap_err().to_string();
    assert!(refused(&id(paid(Some(2), 2)), &session(9)).await.contains("its mail says so"));
    assert!(refused(&id(paid(None, 77)), &session(9)).await.contains("is not there"));
    assert!(refused(&id(paid(None, 1)), "591abe63").await.contains("is no session id"));
    setup.sql().execute("UPDATE deliveries SET state = 'delivered', next_attempt_at = NULL", []).unwrap();
    assert!(refused(&id(paid(None, 1)), &session(9)).await.contains("was delivered with session"));
}

#[tokio::test]
async fn assign_waits_for_a_running_attempt() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(None, 1)]).await;
    let id = paid(None, 1).id().unwrap().to_string();
    let assign = async |n: u32| setup.store.session_assign(&id, &session(n)).await.map_err(|error| error.to_string());
    assign(1).await.unwrap();
    let claimed = setup.store.record_and_claim("shop", vec![], vec![], 1).await.unwrap().claimed.remove(0);
    let refused = assign(2).await.unwrap_err();
    assert!(refused.contains(&format!("is being posted with session {}", session(1))), "{refused}");
    // The same session may be assigned again.
    assign(1).await.unwrap();
    let Claimed { delivery_id, attempt, .. } = claimed;
    let end = NextStep::RetryAt("500".into(), jiff::Timestamp::now());
    let ended = FinishedAttempt {
        delivery_id,
        attempt,
        result: AttemptResult::Rejected,
        status: Some(500),
        took: Duration::ZERO,
        next_step: end,
    };
    setup.store.record_and_claim("shop", vec![ended], vec![], 0).await.unwrap();
    assign(2).await.unwrap();
    // An attempt without a recorded end prevents an assignment only for the longest possible duration of an attempt.
    setup.store.record_and_claim("shop", vec![], vec![], 1).await.unwrap();
    setup.sql().execute("UPDATE attempts SET at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-11 minutes')", []).unwrap();
    assign(1).await.unwrap();
}

#[tokio::test]
async fn targets_receive_the_session_independently() {
    let receiver = Receiver::new(|_, _| status(200));
    let address = receiver.listen().await;
    let table =
        |name: &str, keys: &str| settings(&format!("name = \"{name}\"\nurl = \"http://{address}/{name}\"\n{keys}"));
    let mut setup = ForwarderSetup::new(vec![table("sends", "unresolved = \"send\""), table("holds", "")]);
    setup.start();
    setup.record(vec![of_order("A", 1)]).await;
    setup.until("sent", |all| all[0].state.as_str() == "delivered" && all[1].state.as_str() == "held").await;
    setup.store.session_add(new(1, Some("A"), None)).await.unwrap();
    setup.until_all("delivered").await;
    setup.stop().await;
    let bodies: Vec<_> = receiver.requests().iter().map(|r| (r.line.clone(), r.text().contains(&session(1)))).collect();
    assert_eq!(bodies, [("POST /sends HTTP/1.1".into(), false), ("POST /holds HTTP/1.1".into(), true)]);
}

#[tokio::test]
async fn a_delivered_payment_belongs_to_its_later_session() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "unresolved = \"send\"")]);
    setup.start();
    setup.record(vec![of_order("A", 1), of_order("B", 2)]).await;
    setup.until_all("delivered").await;
    let settled = setup.store.session_add(new(1, Some("A"), None)).await.unwrap();
    assert_eq!((settled.resolved, settled.released, settled.held), (1, 0, 0));
    // The result reports the conflict, although the event was delivered.
    let settled = setup.store.session_add(new(2, Some("B"), Some("2000"))).await.unwrap();
    assert_eq!((settled.resolved, settled.held, settled.too_late.len()), (1, 0, 1), "{:?}", settled.too_late);
    let changed: i64 = setup
        .sql()
        .query_row("SELECT count(*) FROM events WHERE webhook NOT LIKE '{\"session_id\":null,%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(changed, 0, "what was posted stays");
    setup.record(vec![of_order("A", 3), of_order("B", 4)]).await;
    setup.stop().await;
    assert_eq!(states(&setup), ["delivered", "delivered", "held", "held"], "an order is not paid twice");
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn a_later_report_sets_the_session_source() {
    let setup = ForwarderSetup::new(one_target());
    setup.store.session_add(new(1, Some("A"), None)).await.unwrap();
    setup.record(vec![paid(None, 1), of_order("A", 1)]).await;
    assert_eq!(events(&setup), [(Some(session(1)), Some("address".into()), None)]);
    // The session does not come from the mail, so an operator may change it.
    setup.store.session_assign(&paid(None, 1).id().unwrap().to_string(), &session(9)).await.unwrap();
    assert_eq!(events(&setup), [(Some(session(9)), Some("operator".into()), None)]);
}

#[tokio::test]
async fn a_released_delivery_is_not_held_again() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(Some(1), 1)]).await;
    let register = "INSERT INTO sessions (session_id, amount) VALUES (?1, '21')";
    setup.sql().execute(register, [session(1)]).unwrap();
    // The new row has not been reconciled yet.
    setup.store.session_assign(&paid(Some(1), 1).id().unwrap().to_string(), &session(1)).await.unwrap();
    assert_eq!(setup.store.reconcile().await.unwrap(), payments::Reconciled::default());
    // A registration that repeats the known amount does not hold the delivery.
    setup.store.session_add(new(1, None, Some("21.00"))).await.unwrap();
    assert_eq!(states(&setup), ["pending"]);
    let settled = setup.store.session_add(new(1, Some("A"), None)).await.unwrap();
    assert_eq!(settled.held, 1, "it is what has changed that is looked at");
}

#[tokio::test]
async fn a_held_event_does_not_hold_earlier_ones() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(Some(1), 1), paid(Some(1), 2), failed(2, 0), paid(Some(2), 3), of_order("C", 4)]).await;
    let mut elsewhere = paid(None, 1);
    elsewhere.payment.blockchain = Some("Base".into());
    setup.record(vec![paid(Some(3), 5), elsewhere]).await;
    let before = ["pending", "held", "pending", "pending", "held", "pending", "held"];
    assert_eq!(states(&setup), before);
    for (n, order_ref) in [(1, "A"), (2, "B"), (3, "C")] {
        let settled = setup.store.session_add(new(n, Some(order_ref), Some("20"))).await.unwrap();
        assert_eq!((settled.released, settled.held, settled.too_late), (0, 0, vec![]), "{order_ref}");
    }
    assert_eq!(states(&setup), before);
    let holds: Vec<bool> = events(&setup).into_iter().map(|e| e.2.is_some()).collect();
    assert_eq!(holds, [false, true, false, false, true, false, true], "one payment of each session goes");
}

#[tokio::test]
async fn held_events_get_the_order_reference() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(Some(1), 1), paid(Some(1), 2)]).await;
    setup.store.session_add(new(1, Some("A"), None)).await.unwrap();
    setup.store.session_assign(&paid(Some(1), 2).id().unwrap().to_string(), &session(1)).await.unwrap();
    let claimed = setup.store.record_and_claim("shop", vec![], vec![], 1).await.unwrap().claimed;
    let Claimed { delivery_id, attempt, .. } = claimed[0];
    let took = Duration::ZERO;
    let ended = FinishedAttempt {
        delivery_id,
        attempt,
        result: AttemptResult::Accepted,
        status: Some(200),
        took,
        next_step: NextStep::Delivered,
    };
    let second = setup.store.record_and_claim("shop", vec![ended], vec![], 1).await.unwrap().claimed;
    let orders = [&claimed[0], &second[0]].map(|c| c.event.order_ref.as_deref());
    assert_eq!(orders, [Some("A"); 2]);
}

#[tokio::test]
async fn pending_after_completed_is_not_delivered() {
    let as_pending =
        |event: Event| Event { payment: PaymentDetails { status: Status::Pending, ..event.payment }, ..event };
    for is_known in [true, false] {
        let every = "statuses = [\"completed\", \"failed\", \"pending\"]";
        let setup = ForwarderSetup::new(vec![shop("127.0.0.1:1", every)]);
        // The session of this transaction is not known.
        setup.record(vec![paid(None, 1), as_pending(paid(None, 1))]).await;
        let register = new(1, Some("A"), None);
        if is_known {
            setup.store.session_add(register.clone()).await.unwrap();
        }
        let first = as_pending(of_order("A", 2));
        setup.record(vec![first, of_order("A", 2), as_pending(of_order("A", 3))]).await;
        setup.store.session_add(register).await.unwrap();
        let rows: Vec<_> = setup.deliveries().into_iter().map(|d| (d.event_id, d.state.to_string())).collect();
        let [held, first, second] = [paid(None, 1), as_pending(paid(None, 2)), paid(None, 2)];
        let is = |event: Event, state: &str| (event.id().unwrap().to_string(), state.to_owned());
        assert_eq!(rows, [is(held, "held"), is(first, "pending"), is(second, "pending")], "known before: {is_known}");
        // Pending deliveries stay pending and in order when a session is registered.
        setup.store.session_add(new(1, None, Some("20"))).await.unwrap();
        assert_eq!(states(&setup), ["held", "pending", "pending"]);
    }
}

#[tokio::test]
async fn retry_skips_dead_deliveries_with_a_conflict() {
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![paid(Some(1), 1), paid(Some(2), 2)]).await;
    setup.sql().execute("UPDATE deliveries SET state = 'dead', next_attempt_at = NULL", []).unwrap();
    let settled = setup.store.session_add(new(1, None, Some("2000"))).await.unwrap();
    assert_eq!(settled.held, 1);
    assert_eq!(setup.store.retry(db::RetrySelection::Dead).await.unwrap(), 1);
    assert_eq!(states(&setup), ["held", "pending"]);
    setup.store.session_assign(&paid(Some(1), 1).id().unwrap().to_string(), &session(1)).await.unwrap();
    assert_eq!(states(&setup), ["pending", "pending"]);
}

#[tokio::test]
async fn sessions_are_listed_with_their_payments() {
    let setup = ForwarderSetup::new(one_target());
    let mut full = new(1, Some("A"), Some("20"));
    full.session_id = full.session_id.to_uppercase();
    full.blockchain = Some("BNB-CHAIN".into());
    setup.store.session_add(full.clone()).await.unwrap();
    setup.store.session_add(full).await.unwrap();
    setup
        .store
        .session_add(SessionRegistration { token: Some("DAI".into()), ..new(1, None, Some("20.0")) })
        .await
        .unwrap();
    setup.store.session_add(new(2, None, None)).await.unwrap();
    for (wrong, expected) in [
        (new(1, Some("B"), None), "another order reference"),
        (new(1, None, Some("21")), "another amount"),
        (new(3, None, Some("$21")), "expected US dollars"),
        (SessionRegistration { session_id: "x".into(), ..SessionRegistration::default() }, "is no session id"),
    ] {
        let error = setup.store.session_add(wrong).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    setup.record(vec![failed(2, 1)]).await;
    let mut all = Vec::new();
    let push = |row: payments::SessionRow| {
        all.push(row);
        Ok::<_, db::Error>(())
    };
    setup.store.reader().unwrap().sessions(None, push).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].session_id.as_str(), all[0].blockchain.as_deref()), (session(1).as_str(), Some("BNB-Chain")));
    assert_eq!((all[0].token.as_deref(), all[0].status.as_deref()), (Some("DAI"), None));
    assert_eq!(all[1].status.as_deref(), Some("failed"));
}

#[tokio::test]
async fn session_times_are_normalized_or_refused() {
    let setup = ForwarderSetup::new(one_target());
    let sql = setup.sql();
    let insert = |n: u32, column: &str, value: &str| {
        sql.execute(&format!("INSERT INTO sessions (session_id, {column}) VALUES (?1, ?2)"), (session(n), value))
    };
    insert(1, "created_at", "2025-03-05 03:36:00").unwrap();
    insert(2, "created_at", "2025-03-05T04:36:00+01:00").unwrap();
    let mut read = sql.prepare("SELECT DISTINCT created_at FROM sessions").unwrap();
    let times: Vec<String> = read.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(times, ["2025-03-05T03:36:00.000Z"]);
    for (column, nonsense) in
        [("created_at", "yesterday"), ("expires_at", "soon"), ("amount", "$20"), ("amount", "1.2.3"), ("amount", "")]
    {
        insert(9, column, nonsense).unwrap_err();
    }
    sql.execute("INSERT INTO sessions (session_id, amount) VALUES (?1, 19.5)", (session(3),)).unwrap();
    // The trigger also works with a conflict clause in the statement.
    sql.execute("INSERT OR FAIL INTO sessions (session_id, amount) VALUES (?1, 19.5)", (session(4),)).unwrap();
    sql.execute("UPDATE OR FAIL sessions SET amount = '20'", []).unwrap();
}

#[tokio::test]
async fn the_documented_insert_registers_a_session() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sessions.md")).unwrap();
    let (_, insert) = document.split_once("```sql\n").unwrap();
    let setup = ForwarderSetup::new(one_target());
    setup.record(vec![of_order("order-1001", 1)]).await;
    setup.sql().execute_batch(insert.split_once("```").unwrap().0).unwrap();
    assert_eq!(setup.store.reconcile().await.unwrap().released, 1);
    assert_eq!(states(&setup), ["pending"]);
}

#[tokio::test]
async fn the_payments_view_shows_each_sessions_state() {
    let setup = ForwarderSetup::new(one_target());
    let mut late = paid(Some(1), 1);
    late.payment.status = Status::Pending;
    late.payment.tx_time = Some("2030-01-01T00:00:00Z".parse().unwrap());
    setup.record(vec![failed(1, 0), paid(Some(1), 1), late, paid(None, 2)]).await;
    let sql = setup.sql();
    let mut read =
        sql.prepare("SELECT session_id, status, amount, delivery FROM payments ORDER BY session_id").unwrap();
    let line = |row: &rusqlite::Row| {
        let column = |n| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(n)?.unwrap_or_else(|| "-".into()));
        Ok([column(0)?, column(1)?, column(2)?, column(3)?].join(" "))
    };
    let rows: Vec<String> = read.query_map([], line).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, ["- completed 20 held".to_owned(), format!("{} completed 20 pending", session(1))]);
}
