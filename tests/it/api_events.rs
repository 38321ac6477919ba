//! Resmic's API and a mail report about one session. The same rules apply to both sources.

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::paid::Paid;
use testkit::resmic_api::Session;

use crate::inquire::{HASH, SOON, Shop, id, mail};

/// The hash of another transaction for each `n`.
fn other_hash(n: u32) -> String {
    HASH.replace("0xa43d", &format!("0xb{n:03}"))
}

fn open() -> (Shop, Daemon) {
    let shop = Shop::open("rate = 600", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    (shop, daemon)
}

/// Lets Resmic's API report a completed session whose mail is missing, and returns the event.
fn reported_by_api(shop: &Shop, session: u32, hash: &str) -> String {
    shop.api.set_session(&id(session), Session::completed("20", hash));
    // A session of this age is no candidate for a mail that names no session.
    shop.register(session, 50);
    let of_session = format!("session_id = '{}'", id(session));
    shop.home.until(&format!("SELECT status FROM session_inquiries WHERE {of_session}"), "Completed", SOON);
    shop.let_time_pass();
    let event = format!("SELECT event_id FROM events WHERE {of_session}");
    shop.home.until(&format!("SELECT count(*) FROM ({event})"), "1", SOON);
    shop.home.ask(&event)
}

fn mail_with(session: u32, hash: &str) -> Paid {
    Paid { hash: hash.to_owned(), ..mail(session) }
}

/// Why an event is held, without the id of the other event.
fn hold(shop: &Shop, event: &str) -> String {
    let hold = shop.home.ask(&format!("SELECT hold FROM events WHERE event_id = '{event}'"));
    hold.split(" (event ").next().unwrap().to_owned()
}

#[test]
fn second_transactions_are_held_for_both_sources() {
    let (shop, daemon) = open();
    let by_api = reported_by_api(&shop, 1, HASH);
    shop.delivery_is(&by_api, "delivered");
    let (_, by_mail) = shop.receive(&mail_with(2, &other_hash(2)));
    shop.delivery_is(&by_mail, "delivered");
    let seconds = [(1, 3), (2, 4)].map(|(session, n)| {
        let (outcome, event) = shop.receive(&mail_with(session, &other_hash(n)));
        shop.delivery_is(&event, "held");
        (outcome, hold(&shop, &event))
    });
    assert_eq!(seconds[0], seconds[1]);
    assert_eq!(
        seconds[0],
        ("event".into(), "conflict: its session already has a completed payment with another transaction".into())
    );
    assert!(shop.attention().contains("2 events held because of a conflict"), "{}", shop.attention());
    let checked: Value = serde_json::from_str(&shop.home.data(&["session", "check", "--json", &id(1)])).unwrap();
    assert_eq!(checked["finding"], "agrees");
    let reason = checked["held_reason"].as_str().unwrap();
    assert!(reason.starts_with("conflict: its session already has a completed payment"), "{reason}");
    assert_eq!(shop.delivered().len(), 2);
    drop(daemon);
}

#[test]
fn other_values_are_quarantined_for_both_sources() {
    let (shop, daemon) = open();
    let by_api = reported_by_api(&shop, 1, HASH);
    shop.delivery_is(&by_api, "delivered");
    let (_, by_mail) = shop.receive(&mail_with(2, &other_hash(2)));
    shop.delivery_is(&by_mail, "delivered");
    for (session, hash) in [(1, HASH), (2, &other_hash(2))] {
        let dear = Paid { amount: "21", ..mail_with(session, hash) };
        assert_eq!(shop.receive(&dear), ("quarantined".into(), String::new()), "session {session}");
        let reason = shop.home.ask("SELECT reason FROM mails ORDER BY id DESC LIMIT 1");
        assert!(reason.starts_with("conflict: amount is known as \"20\" and this mail says \"21\""), "{reason}");
    }
    assert_eq!(shop.delivered().len(), 2);
    drop(daemon);
}

#[test]
fn the_api_gives_a_mail_its_session() {
    let (shop, daemon) = open();
    let (outcome, event) = shop.receive(&mail(0));
    assert_eq!(outcome, "event");
    shop.delivery_is(&event, "held");
    // The report of the API repeats the mail's event, and adds the session.
    assert_eq!(reported_by_api(&shop, 1, HASH), event);
    shop.delivery_is(&event, "delivered");
    assert_eq!(shop.home.ask("SELECT count(*) || ' ' || source || ' ' || session_source FROM events"), "1 mail resmic");
    assert_eq!(shop.receive(&mail(1)), ("duplicate".into(), event));
    assert_eq!(shop.delivered().len(), 1);
    drop(daemon);
}

#[test]
fn another_transaction_at_resmic_needs_review() {
    let (shop, daemon) = open();
    shop.register(1, 5);
    let (_, event) = shop.receive(&mail(1));
    shop.delivery_is(&event, "delivered");
    let check = || -> Value { serde_json::from_str(&shop.home.data(&["session", "check", "--json", &id(1)])).unwrap() };
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    assert_eq!(check()["finding"], "agrees");
    shop.api.set_session(&id(1), Session::completed("20", &other_hash(1)));
    let checked = check();
    let reason = format!("conflict: Resmic names another transaction for the session: \"{}\"", other_hash(1));
    assert_eq!((&checked["finding"], &checked["reason"]), (&json!("needs-review"), &json!(reason)));
    assert!(shop.attention().contains(&format!("`session check {}`", id(1))), "{}", shop.attention());
    // The completed event stays, and no failed event is added.
    shop.api.set_session(&id(1), Session::failed("20"));
    let reason = check()["reason"].to_string();
    assert!(reason.contains("\\\"Failed\\\" of a session that has a completed payment"), "{reason}");
    assert_eq!(shop.home.column("SELECT status FROM events"), ["completed"]);
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    assert_eq!(check()["finding"], "agrees");
    assert!(!shop.attention().contains("in doubt"), "{}", shop.attention());
    assert_eq!(shop.delivered().len(), 1);
    drop(daemon);
}

#[test]
fn a_late_payment_follows_a_failed_session() {
    let (shop, daemon) = open();
    shop.api.set_session(&id(1), Session::failed("20"));
    shop.register(1, 41);
    shop.home.until("SELECT status FROM events", "failed", SOON);
    let failed = shop.home.ask("SELECT event_id FROM events");
    shop.delivery_is(&failed, "delivered");
    let (outcome, late) = shop.receive(&mail(1));
    assert_eq!(outcome, "event");
    shop.delivery_is(&late, "delivered");
    assert_eq!(shop.home.ask("SELECT status || ' ' || event_id FROM payments"), format!("completed {late}"));
    drop(daemon);
}
