//! The table `counts` agrees with the rows that it counts, whatever happens to these rows.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use resmic_mailhook::db::{ClaimedBatch, FinishedAttempt, NextStep, RetrySelection, Store, StoreSettings, TargetRules};
use resmic_mailhook::model::{
    AttemptResult, Envelope, Event, Examined, Judgement, Matching, Origin, PaymentDetails, RawMail, Reason, ReasonCode,
    Status,
};
use resmic_mailhook::payments::{ExaminedMail, SessionRegistration};
use rusqlite::Connection;
use testkit::counts;
use testkit::daemon::{Home, account, forward, samples};
use testkit::random::Random;

const NO_PROOF: &str = "[trust]\naccept = [\"none\"]\n";

fn store(path: &std::path::Path) -> Store {
    let target = |name: &str, send_unresolved| TargetRules {
        name: name.into(),
        statuses: vec![Status::Completed, Status::Failed],
        send_unresolved,
        send_unconfirmed: true,
    };
    let targets = vec![target("holds", false), target("sends", true), target("holds too", false)];
    let matching = Matching { enabled: true, window: Duration::from_secs(2700) };
    Store::open(StoreSettings { path: path.to_owned(), targets, matching, chains: Vec::new(), resmic: None }).unwrap()
}

fn session(n: u64) -> String {
    format!("591abe63-aa61-411d-a419-{n:012x}")
}

/// A random event. Its fields have few possible values, so that events repeat, contradict and supersede each other.
fn event(random: &Random) -> Event {
    let status = [Status::Completed, Status::Failed, Status::Pending][random.below(3) as usize];
    let minute = random.below(30);
    let payment = PaymentDetails {
        session_id: (!random.one_in(3)).then(|| session(random.below(8))),
        amount: Some(["20", "20.00", "7"][random.below(3) as usize].into()),
        blockchain: Some("Sepolia".into()),
        transaction_hash: Some(format!("0x{:064x}", random.below(30))),
        tx_time: Some(format!("2025-03-05T03:{minute:02}:00Z").parse().unwrap()),
        ..PaymentDetails::new(status)
    };
    Event { payment, header_time: None, order_ref: random.one_in(5).then(|| "A-1".into()) }
}

fn judgement(random: &Random) -> Judgement {
    match random.below(8) {
        0 => Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, "a letter")),
        1 => Judgement::Quarantined(Reason::new(ReasonCode::Untrusted, "no proof")),
        2 => Judgement::Quarantined(Reason::new(ReasonCode::Unreadable, "no amount")),
        3 => Judgement::Deferred(Reason::new(ReasonCode::Dns, "no answer")),
        _ => Judgement::Event(Box::new(event(random))),
    }
}

fn examined(random: &Random) -> Examined {
    Examined { judgement: judgement(random), proof: None, envelope: Envelope::default() }
}

async fn record(store: &Store, random: &Random, n: u64) {
    let origin = Origin { account: "shop".into(), mailbox: "import".into(), uid: None };
    let bytes = n.to_string().into_bytes();
    let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
    store.record(vec![ExaminedMail::new(mail, examined(random))], None).await.unwrap();
}

async fn deliver(store: &Store, random: &Random) {
    let target = ["holds", "sends", "holds too"][random.below(3) as usize];
    let ClaimedBatch { claimed, .. } = store.record_and_claim(target, Vec::new(), Vec::new(), 3).await.unwrap();
    let ended = claimed.into_iter().map(|claimed| {
        let (result, next_step) = match random.below(3) {
            0 => (AttemptResult::Accepted, NextStep::Delivered),
            1 => (AttemptResult::Rejected, NextStep::RetryAt("503".into(), jiff::Timestamp::now())),
            _ => (AttemptResult::NotSent, NextStep::GiveUp("refused".into())),
        };
        let (delivery_id, attempt) = (claimed.delivery_id, claimed.attempt);
        FinishedAttempt { delivery_id, attempt, result, status: None, took: Duration::ZERO, next_step }
    });
    store.record_and_claim(target, ended.collect(), Vec::new(), 0).await.unwrap();
}

/// One step of a history. Many steps are refused, and a refusal changes nothing.
async fn step(store: &Store, random: &Random, n: u64) {
    let event_id = || event(random).id().unwrap().to_string();
    match random.below(12) {
        0 => drop(store.session_add(registration(random)).await),
        1 => drop(store.session_assign(&event_id(), &session(random.below(8))).await),
        2 => drop(store.reevaluate(1 + random.below(n + 1) as i64, examined(random), None).await),
        3 => drop(store.retry(RetrySelection::Dead).await),
        4 => drop(store.apply_settings().await),
        5 if random.one_in(4) => drop(store.prune("2999-01-01T00:00:00.000Z".into(), random.one_in(2), |_| ()).await),
        5..8 => deliver(store, random).await,
        _ => record(store, random, n).await,
    }
}

fn registration(random: &Random) -> SessionRegistration {
    SessionRegistration {
        session_id: session(random.below(8)),
        order_ref: random.one_in(2).then(|| "A-1".into()),
        amount: random.one_in(2).then(|| "20".into()),
        ..SessionRegistration::default()
    }
}

#[tokio::test]
async fn counts_follow_random_histories() {
    let random = Random::from_environment();
    let mut states = BTreeSet::new();
    for _ in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        let (store, reader) = (store(&path), Connection::open(&path).unwrap());
        for n in 0..150 {
            step(&store, &random, n).await;
            counts::check(&reader);
        }
        let mut found = reader.prepare("SELECT DISTINCT state FROM deliveries").unwrap();
        states.extend(found.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    }
    // At least three states show that the histories were not trivial.
    assert!(states.len() >= 3, "{states:?}");
}

#[test]
fn counts_follow_rows_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    drop(store(&path));
    let other = Connection::open(&path).unwrap();
    for sql in [
        "INSERT INTO events (event_id, status, webhook, created_at) VALUES ('a', 'completed', '{}', ''), ('b', 'failed', '{}', '')",
        "INSERT OR IGNORE INTO events (event_id, status, webhook, created_at) VALUES ('a', 'failed', '{}', '')",
        "INSERT INTO deliveries (event_id, target, state, created_at) VALUES ('a', 'x', 'held', ''), ('a', 'y', 'held', ''),
           ('b', 'x', 'held', '')",
        "UPDATE events SET hold = 'conflict: amount' WHERE event_id = 'a'",
        "UPDATE deliveries SET state = 'dead' WHERE event_id = 'a' AND target = 'x'",
        "UPDATE deliveries SET state = 'delivered' WHERE state = 'held'",
        "UPDATE deliveries SET state = 'held'",
        "UPDATE events SET hold = NULL, status = 'failed'",
        "INSERT OR IGNORE INTO mails (account, mailbox, size, sha256, judged_at, outcome, reason)
           VALUES ('shop', 'import', 1, 'a', '', 'ignored', NULL), ('shop', 'import', 1, 'a', '', 'ignored', NULL),
                  ('shop', 'import', 1, 'b', '', 'quarantined', 'untrusted: no proof'), ('shop', 'import', 1, 'c', '', 'deferred', 'x')",
        "UPDATE mails SET outcome = 'quarantined', reason = 'conflict: amount' WHERE sha256 <> 'a'",
        "UPDATE events SET session_id = 'known', session_source = 'mail' WHERE event_id = 'b'",
        "INSERT INTO confirmations (event_id, state, waits_since) VALUES ('a', 'unproven', ''), ('b', 'doubtful', '')",
        "UPDATE confirmations SET state = 'operator' WHERE event_id = 'a'",
        "DELETE FROM confirmations WHERE event_id = 'b'",
        "DELETE FROM deliveries WHERE target = 'y'",
        "DELETE FROM deliveries",
        "DELETE FROM mails",
        "DELETE FROM confirmations",
        "DELETE FROM events",
    ] {
        other.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        counts::check(&other);
    }
}

#[test]
fn counts_follow_the_commands() {
    let home = Home::new(&format!("{}{NO_PROOF}{}", account(1, ""), forward("http://127.0.0.1:1/", "")));
    let published = samples();
    home.data(&["import", published.to_str().unwrap()]);
    counts::check(&home.sqlite());
    let sqlite = Connection::open(home.database()).unwrap();
    sqlite
        .execute("UPDATE mails SET outcome = 'ignored', event_id = NULL, reason = NULL WHERE id % 2 = 0", [])
        .unwrap();
    drop(sqlite);
    for command in [["reparse", "--json"].as_slice(), &["prune", "--older-than", "0s"]] {
        home.data(command);
        counts::check(&home.sqlite());
    }
    let json: serde_json::Value = serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap();
    let counted = home.ask("SELECT count(*) FROM mails WHERE outcome = 'quarantined'");
    assert_eq!(json["mails"]["quarantined"].to_string(), counted);
}

#[test]
fn a_killed_import_leaves_true_counts() {
    let (home, random) = (Home::new(&format!("{}{NO_PROOF}", account(1, ""))), Random::from_environment());
    let mails = home.folder.path().join("mails");
    fs::create_dir(&mails).unwrap();
    for n in 1..=600 {
        fs::write(mails.join(format!("{n}.eml")), testkit::payments::payment(n)).unwrap();
    }
    for _ in 0..8 {
        let mut import =
            home.command(&["import", mails.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(random.moment(Duration::from_millis(400)));
        import.kill().unwrap();
        import.wait().unwrap();
        if home.database().exists() && home.try_ask("SELECT count(*) FROM counts").is_ok() {
            counts::check(&home.sqlite());
        }
    }
    home.data(&["import", mails.to_str().unwrap()]);
    counts::check(&home.sqlite());
    assert_eq!(home.ask("SELECT n FROM counts WHERE name = 'events'"), "600");
}

/// The definition of the view `payments` by a window function over all events.
const WINDOW: &str = "SELECT event_id FROM (
    SELECT event_id, row_number() OVER (
      PARTITION BY coalesce(lower(session_id), event_id)
      ORDER BY status = 'completed' DESC, coalesce(tx_time, created_at) DESC, created_at DESC, rowid DESC) AS place
    FROM events) WHERE place = 1 ORDER BY 1";

#[test]
fn payments_are_the_first_of_each_session() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    drop(store(&path));
    let (connection, random) = (Connection::open(&path).unwrap(), Random::from_environment());
    let all = |sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    for n in 0..400 {
        let status = ["completed", "failed", "pending"][random.below(3) as usize];
        let known = (!random.one_in(4)).then(|| ["SESSION", "Session", "session", "other"][random.below(4) as usize]);
        let time = |random: &Random| format!("2025-03-05T03:0{}:00.000Z", random.below(4));
        let tx_time = random.one_in(2).then(|| time(&random));
        connection
            .execute(
                "INSERT INTO events (event_id, status, session_id, session_source, tx_time, tx_time_source, webhook, created_at,
                   amount, token)
                 VALUES (?1, ?2, ?3, iif(?3 IS NULL, NULL, 'mail'), ?4, iif(?4 IS NULL, NULL, 'mail'), '{}', ?5, ?1,
                   iif(?1 % 3, 'T' || ?1 % 3, NULL))",
                (n.to_string(), status, known.map(|name| format!("{name}-{}", n % 9)), tx_time, time(&random)),
            )
            .unwrap();
        assert_eq!(all("SELECT event_id FROM payments ORDER BY 1"), all(WINDOW), "after {n}");
    }
    let sums = "json_array(token, payments, about) FROM";
    let expected = "SELECT token, count(*) AS payments, sum(CAST(amount AS REAL)) AS about FROM payments
        WHERE status = 'completed' GROUP BY token ORDER BY token";
    assert_eq!(
        all(&format!("SELECT {sums} (SELECT * FROM paid_by_day ORDER BY token)")),
        all(&format!("SELECT {sums} ({expected})")),
        "all on one day"
    );
}
