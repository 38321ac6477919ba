//! Tests the SQLite transaction that records a mail, by its results in the database.

use super::*;
use crate::db::testing::query_plan;
use crate::db::{Cursor, DeliveryRow, Error, ResmicRules, Store, StoreSettings, TargetRules};
use crate::model::{
    Envelope, Event, Examined, Judgement, Matching, Origin, Outcome, PaymentDetails, RawMail, Reason, ReasonCode,
    SignedHeaders, Status, Trust, TrustProof, Uid, UidValidity,
};
use crate::resmic::ApiError;

const TX: &str = "0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";
const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

fn store(folder: &tempfile::TempDir) -> Store {
    store_with(folder, None)
}

fn store_with(folder: &tempfile::TempDir, resmic: Option<ResmicRules>) -> Store {
    let target = |name: &str, send_unresolved| TargetRules {
        name: name.into(),
        statuses: vec![Status::Completed, Status::Failed],
        send_unresolved,
        send_unconfirmed: false,
    };
    Store::open(StoreSettings {
        path: folder.path().join("m.db"),
        targets: vec![target("holds", false), target("sends", true)],
        matching: Matching { enabled: false, window: std::time::Duration::from_secs(2700) },
        chains: Vec::new(),
        resmic,
    })
    .unwrap()
}

fn paid(session: Option<&str>) -> Event {
    let payment = PaymentDetails {
        session_id: session.map(str::to_owned),
        amount: Some("20".into()),
        blockchain: Some("Sepolia".into()),
        transaction_hash: Some(TX.into()),
        ..PaymentDetails::new(Status::Completed)
    };
    Event { payment, header_time: Some("2025-03-05T03:36:00Z".parse().unwrap()), order_ref: None }
}

fn entry(uid: u32, event: Event) -> ExaminedMail {
    let origin = Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(uid))) };
    let bytes = format!("mail {uid}").into_bytes();
    let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
    let judgement = Judgement::Event(Box::new(event));
    ExaminedMail::new(mail, Examined { judgement, proof: None, envelope: Envelope::default() })
}

fn cursor(last_uid: u32) -> Option<Cursor> {
    Some(Cursor { account: "shop".into(), mailbox: "INBOX".into(), position: (7, last_uid).into() })
}

fn deliveries(store: &Store) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let push = |d: DeliveryRow| {
        rows.push((d.target, d.state.to_string()));
        Ok::<_, Error>(())
    };
    store.reader().unwrap().deliveries(None, None, push).unwrap();
    rows
}

#[tokio::test]
async fn mail_event_deliveries_and_cursor_are_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let recorded = store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    assert_eq!(recorded[0].outcome, Outcome::Event);
    assert_eq!(store.cursor("shop", "INBOX").await.unwrap(), cursor(1));
    assert_eq!(deliveries(&store), [("holds".into(), "held".into()), ("sends".into(), "pending".into())]);
}

#[tokio::test]
async fn a_repeated_uid_adds_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    let again = store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    assert_eq!((again[0].mail_id, again[0].outcome), (None, Outcome::Duplicate));
    assert_eq!(store.reader().unwrap().counts("mails").unwrap(), [("event".into(), 1)]);
}

#[tokio::test]
async fn leading_zeros_do_not_change_a_hash() {
    let (short, padded) = (format!("0x{}", "4a".repeat(31)), format!("0x00{}", "4a".repeat(31)));
    for (first, second) in [(&short, &padded), (&padded, &short)] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let (mut paid, mut failed) = (paid(Some(SESSION)), paid(None));
        (paid.payment.transaction_hash, paid.payment.blockchain) = (Some(first.clone()), Some("Starknet".into()));
        (failed.payment.transaction_hash, failed.payment.blockchain) = (Some(second.clone()), Some("Starknet".into()));
        failed.payment.status = Status::Failed;
        let recorded = store.record(vec![entry(1, paid), entry(2, failed)], cursor(2)).await.unwrap();
        assert_eq!(recorded[1].reason.as_ref().map(|r| r.code), Some(ReasonCode::Conflict), "{:?}", recorded[1]);
    }
}

#[tokio::test]
async fn a_second_report_releases_the_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.record(vec![entry(1, paid(None)), entry(2, paid(Some(SESSION)))], cursor(2)).await.unwrap();
    assert_eq!(deliveries(&store), [("holds".into(), "pending".into()), ("sends".into(), "pending".into())]);
    let id = paid(None).id().unwrap().to_string();
    let event = store.reader().unwrap().event(&id).unwrap().unwrap();
    assert_eq!((event.session_id.as_deref(), event.session_source.as_deref()), (Some(SESSION), Some("mail")));
    assert!(event.webhook.contains(SESSION));
}

#[tokio::test]
async fn a_contradiction_leaves_the_event_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut dearer = paid(Some(SESSION));
    dearer.payment.amount = Some("2000".into());
    let recorded = store.record(vec![entry(1, paid(None)), entry(2, dearer)], cursor(2)).await.unwrap();
    assert_eq!(recorded[1].outcome, Outcome::Quarantined);
    assert!(recorded[1].reason.as_ref().unwrap().to_string().starts_with("conflict: amount"));
    let id = paid(None).id().unwrap().to_string();
    assert_eq!(store.reader().unwrap().event(&id).unwrap().unwrap().amount.as_deref(), Some("20"));
}

#[tokio::test]
async fn a_better_parse_never_overrules_a_person() {
    const OTHER: &str = "11111111-aa61-411d-a419-0b546729bbd0";
    for (order, expected) in [(Some("A"), (OTHER, "mail")), (None, (SESSION, "operator"))] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let id = paid(None).id().unwrap().to_string();
        let order_ref = order.map(str::to_owned);
        let first = Event { order_ref: order_ref.clone(), ..paid(None) };
        store.record(vec![entry(1, first)], cursor(1)).await.unwrap();
        if order.is_some() {
            let session =
                SessionRegistration { session_id: SESSION.into(), order_ref, ..SessionRegistration::default() };
            store.session_add(session).await.unwrap();
        } else {
            store.session_assign(&id, SESSION).await.unwrap();
        }
        store.reevaluate(1, entry(1, paid(Some(OTHER))).examined, None).await.unwrap();
        let event = store.reader().unwrap().event(&id).unwrap().unwrap();
        let found = (event.session_id.as_deref().unwrap(), event.session_source.as_deref().unwrap());
        assert_eq!(found, expected);
        assert!(event.webhook.contains(expected.0));
    }
}

#[tokio::test]
async fn ids_of_pruned_mails_are_not_reused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let ignored = |uid| {
        let mut entry = entry(uid, paid(None));
        entry.examined.judgement = Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, "no"));
        entry
    };
    store.record(vec![ignored(1), ignored(2), ignored(3)], cursor(3)).await.unwrap();
    store.prune("2999-01-01T00:00:00.000Z".into(), false, |_| ()).await.unwrap();
    let recorded = store.record(vec![ignored(4)], cursor(4)).await.unwrap();
    assert_eq!(recorded[0].mail_id, Some(4));
}

#[tokio::test]
async fn a_deferred_mail_without_account_needs_review() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut deferred = entry(1, paid(None));
    deferred.examined.judgement = Judgement::Deferred(Reason::new(ReasonCode::Dns, "no answer"));
    store.record(vec![deferred], cursor(1)).await.unwrap();
    let unjudged = |accounts: &[&str]| store.reader().unwrap().backlog(&[], accounts).unwrap().unjudged;
    assert_eq!((unjudged(&["other", "shop"]), unjudged(&["other"]), unjudged(&[])), (0, 1, 1));
}

#[tokio::test]
async fn a_changed_expiry_moves_the_first_question() {
    let unreachable = || ApiError::Unreachable("no answer".into());
    let absent = || ApiError::NotFound("404".into());
    for (error, moves) in [(None, true), (Some(unreachable()), true), (Some(absent()), false)] {
        let folder = tempfile::tempdir().unwrap();
        let store = store_with(&folder, Some(ResmicRules::default()));
        let register = async |expires_at: &str| {
            let expires_at = Some(expires_at.parse().unwrap());
            let session = SessionRegistration { session_id: SESSION.into(), expires_at, ..Default::default() };
            store.session_add(session).await.unwrap();
        };
        register("2025-03-05T03:36:00Z").await;
        if let Some(error) = error.clone() {
            store.record_session(SESSION.parse().unwrap(), Err(error), None).await.unwrap();
        }
        register("2999-01-01T00:00:00Z").await;
        let connection = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
        let next: String =
            connection.query_row("SELECT next_ask_at FROM session_inquiries", [], |row| row.get(0)).unwrap();
        assert_eq!(next == "2999-01-01T00:00:00.000Z", moves, "{error:?}: {next}");
    }
}

#[tokio::test]
async fn a_session_assigned_after_delivery_leaves_the_body() {
    for (targets, body_changes) in [("target = 'sends'", false), ("target = 'holds'", true), ("true", true)] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
        let connection = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
        connection.execute(&format!("DELETE FROM deliveries WHERE NOT ({targets})"), []).unwrap();
        let deliver = "UPDATE deliveries SET state = 'delivered', next_attempt_at = NULL WHERE state = 'pending'";
        connection.execute(deliver, []).unwrap();
        let id = paid(None).id().unwrap().to_string();
        let event = || store.reader().unwrap().event(&id).unwrap().unwrap();
        let before = event().webhook;
        store.session_assign(&id, SESSION).await.unwrap();
        assert_eq!(
            (event().session_id.as_deref(), event().session_source.as_deref()),
            (Some(SESSION), Some("operator"))
        );
        assert_eq!(event().webhook != before, body_changes, "{targets}");
    }
}

#[tokio::test]
async fn a_vain_release_is_no_proof() {
    let dkim = TrustProof {
        trust: Trust::Dkim,
        domain: Some("resmic.com".into()),
        selector: Some("s1".into()),
        signed_headers: SignedHeaders::All,
        to: Vec::new(),
    };
    let released = TrustProof { trust: Trust::Operator, domain: None, selector: None, ..dkim.clone() };
    for (proof, unparsed) in [(None, 0), (Some(dkim), 1)] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let mut mail = entry(1, paid(None));
        mail.examined.judgement = Judgement::Quarantined(Reason::new(ReasonCode::Unreadable, "no amount"));
        mail.examined.proof = proof;
        let examined = Examined { proof: Some(released.clone()), ..mail.examined.clone() };
        store.record(vec![mail], cursor(1)).await.unwrap();
        store.reevaluate(1, examined, None).await.unwrap();
        assert_eq!(store.reader().unwrap().recent_parses().unwrap().unparsed, unparsed);
    }
}

#[tokio::test]
async fn a_late_registration_resumes_the_search() {
    for (amount, registered) in [("20", None), ("", Some("20")), ("", None), ("20", Some("20"))] {
        let folder = tempfile::tempdir().unwrap();
        let store = store_with(&folder, Some(ResmicRules::default()));
        let mut event = paid(None);
        event.payment.amount = Some(amount.to_owned()).filter(|amount| !amount.is_empty());
        event.header_time = Some(jiff::Timestamp::now());
        store.record(vec![entry(1, event)], cursor(1)).await.unwrap();
        assert_eq!(store.due_inquiry().await.unwrap().0, None, "no session fits");
        let amount = registered.map(str::to_owned);
        let session = SessionRegistration { session_id: SESSION.into(), amount, ..Default::default() };
        store.session_add(session).await.unwrap();
        let due = store.due_inquiry().await.unwrap().0;
        assert!(matches!(due, Some(DueInquiry::Search(_))), "{registered:?}: {due:?}");
    }
}

#[tokio::test]
async fn questions_from_a_clock_ahead_are_due() {
    const AHEAD: &str = "2999-01-01T00:00:00.000Z";
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(&folder, Some(ResmicRules { require: true }));
    let connection = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
    let due = async || store.due_inquiry().await.unwrap().0;
    for (expires_at, is_due) in [(AHEAD, false), ("2025-03-05T03:36:00Z", true)] {
        let expires_at = Some(expires_at.parse().unwrap());
        let session = SessionRegistration { session_id: SESSION.into(), expires_at, ..Default::default() };
        store.session_add(session).await.unwrap();
        connection.execute("UPDATE session_inquiries SET next_ask_at = ?1", [AHEAD]).unwrap();
        let due = due().await;
        assert_eq!(matches!(due, Some(DueInquiry::Session(_))), is_due, "{expires_at:?}: {due:?}");
    }
    let session_id = SESSION.replace('5', "6");
    store.session_add(SessionRegistration { session_id, ..Default::default() }).await.unwrap();
    let mut search = paid(None);
    search.header_time = Some(jiff::Timestamp::now());
    search.payment.transaction_hash = Some(format!("0x{}", "7".repeat(64)));
    store.record(vec![entry(1, search)], cursor(1)).await.unwrap();
    connection.execute("UPDATE session_searches SET next_ask_at = ?1", [AHEAD]).unwrap();
    let found = due().await;
    assert!(matches!(found, Some(DueInquiry::Search(_))), "{found:?}");
    store.record(vec![entry(2, paid(Some(SESSION)))], cursor(2)).await.unwrap();
    connection.execute("UPDATE clearances SET next_ask_at = ?1 WHERE next_ask_at IS NOT NULL", [AHEAD]).unwrap();
    let found = due().await;
    assert!(matches!(found, Some(DueInquiry::Clearance(_))), "{found:?}");
}

#[test]
fn due_questions_are_not_sorted() {
    let folder = tempfile::tempdir().unwrap();
    drop(store(&folder));
    let connection = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
    for (sql, step) in [
        (searches::DUE, "SCAN session_searches USING INDEX session_searches_open"),
        (clearances::DUE, "SCAN c USING INDEX clearances_to_ask"),
    ] {
        let steps = query_plan(&connection, sql);
        assert_eq!(steps[0], step);
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:?}");
    }
}

#[test]
fn late_registrations_find_events_in_indexes() {
    let folder = tempfile::tempdir().unwrap();
    drop(store(&folder));
    let connection = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
    for (sql, index) in [
        (reconcile::WITHOUT_AMOUNT, "events_unmatched (<expr>=? AND tx_time>? AND tx_time<?)"),
        (reconcile::ANY_AMOUNT, "events_by_tx_time (tx_time>? AND tx_time<?)"),
    ] {
        assert_eq!(query_plan(&connection, sql), [format!("SEARCH events USING INDEX {index}")]);
    }
}
