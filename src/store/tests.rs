//! The transaction, looked at from outside.

use super::*;
use crate::model::{Envelope, Event, Examined, Judgement, Origin, Outcome, RawMail, Reading, Reason, ReasonCode};

const TX: &str = "0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";
const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

fn store(folder: &tempfile::TempDir) -> Store {
    let target = |name: &str, send_unresolved| Target {
        name: name.into(),
        statuses: vec![Status::Completed, Status::Failed],
        send_unresolved,
    };
    Store::open(Settings {
        path: folder.path().join("m.db"),
        targets: vec![target("holds", false), target("sends", true)],
        matching: Matching { enabled: false, window: std::time::Duration::from_secs(2700) },
    })
    .unwrap()
}

fn paid(session: Option<&str>) -> Event {
    let reading = Reading {
        session_id: session.map(str::to_owned),
        amount: Some("20".into()),
        blockchain: Some("Sepolia".into()),
        transaction_hash: Some(TX.into()),
        ..Reading::of(Status::Completed)
    };
    Event { reading, header_time: Some("2025-03-05T03:36:00Z".parse().unwrap()), order_ref: None }
}

fn entry(uid: u32, event: Event) -> Entry {
    let origin = Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: Some((7, uid)) };
    let bytes = format!("mail {uid}").into_bytes();
    let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
    let judgement = Judgement::Event(Box::new(event));
    Entry::new(mail, Examined { judgement, proof: None, envelope: Envelope::default() })
}

fn cursor(last_uid: u32) -> Option<Cursor> {
    Some(Cursor { account: "shop".into(), mailbox: "INBOX".into(), reached: (7, last_uid).into() })
}

fn deliveries(store: &Store) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let push = |d: DeliveryRow| {
        all.push((d.target, d.state));
        Ok::<_, Error>(())
    };
    store.reader().unwrap().deliveries(None, None, push).unwrap();
    all
}

#[tokio::test]
async fn a_mail_its_event_its_deliveries_and_the_cursor_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let recorded = store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    assert_eq!(recorded[0].outcome, Outcome::Event);
    assert_eq!(store.cursor("shop", "INBOX").await.unwrap(), cursor(1));
    assert_eq!(deliveries(&store), [("holds".into(), "held".into()), ("sends".into(), "pending".into())]);
}

#[tokio::test]
async fn the_same_uid_again_leaves_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    let again = store.record(vec![entry(1, paid(None))], cursor(1)).await.unwrap();
    assert_eq!((again[0].mail_id, again[0].outcome), (None, Outcome::Duplicate));
    assert_eq!(store.reader().unwrap().count_by("mails", "outcome").unwrap(), [("event".into(), 1)]);
}

#[tokio::test]
async fn a_hash_is_known_with_zeros_before_it_and_without() {
    let (short, padded) = (format!("0x{}", "4a".repeat(31)), format!("0x00{}", "4a".repeat(31)));
    for (first, second) in [(&short, &padded), (&padded, &short)] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let (mut paid, mut failed) = (paid(Some(SESSION)), paid(None));
        (paid.reading.transaction_hash, paid.reading.blockchain) = (Some(first.clone()), Some("Starknet".into()));
        (failed.reading.transaction_hash, failed.reading.blockchain) = (Some(second.clone()), Some("Starknet".into()));
        failed.reading.status = Status::Failed;
        let recorded = store.record(vec![entry(1, paid), entry(2, failed)], cursor(2)).await.unwrap();
        assert_eq!(recorded[1].reason.as_ref().map(|r| r.code), Some(ReasonCode::Conflict), "{:?}", recorded[1]);
    }
}

#[tokio::test]
async fn a_second_report_fills_the_session_and_lets_the_delivery_go() {
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
async fn a_contradiction_is_quarantined_and_the_event_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut dearer = paid(Some(SESSION));
    dearer.reading.amount = Some("2000".into());
    let recorded = store.record(vec![entry(1, paid(None)), entry(2, dearer)], cursor(2)).await.unwrap();
    assert_eq!(recorded[1].outcome, Outcome::Quarantined);
    assert!(recorded[1].reason.as_ref().unwrap().to_string().starts_with("conflict: amount"));
    let id = paid(None).id().unwrap().to_string();
    assert_eq!(store.reader().unwrap().event(&id).unwrap().unwrap().amount.as_deref(), Some("20"));
}

#[tokio::test]
async fn what_a_mail_says_once_it_is_read_better_is_the_mails_word_unless_a_person_gave_theirs() {
    const OTHER: &str = "11111111-aa61-411d-a419-0b546729bbd0";
    for (of, told) in [(Some("A"), (OTHER, "mail")), (None, (SESSION, "operator"))] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let id = paid(None).id().unwrap().to_string();
        let order_ref = of.map(str::to_owned);
        let first = Event { order_ref: order_ref.clone(), ..paid(None) };
        store.record(vec![entry(1, first)], cursor(1)).await.unwrap();
        if of.is_some() {
            let session = NewSession { session_id: SESSION.into(), order_ref, ..NewSession::default() };
            store.session_add(session).await.unwrap();
        } else {
            store.session_assign(&id, SESSION).await.unwrap();
        }
        store.rejudge(1, entry(1, paid(Some(OTHER))).examined, None).await.unwrap();
        let event = store.reader().unwrap().event(&id).unwrap().unwrap();
        let found = (event.session_id.as_deref().unwrap(), event.session_source.as_deref().unwrap());
        assert_eq!(found, told);
        assert!(event.webhook.contains(told.0));
    }
}

#[tokio::test]
async fn what_is_listed_by_an_index_is_found_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let reader = store(&folder).reader().unwrap();
    let (word, words, row) = (Some("x"), Some("[\"x\"]"), Some(1));
    for (table, asked_for) in [
        ("mails", ("outcome = ?", query::asked(&word))),
        ("mails", ("event_id = ?", query::asked(&word))),
        ("deliveries", ("event_id = ?", query::asked(&word))),
        ("events", ("session_id = ?", query::asked(&word))),
        ("events", (query::OF_TRANSACTION, query::asked(&words))),
        ("events", ("rowid > ?", query::asked(&row))),
    ] {
        let (condition, given) = query::all_of(&[("nothing = ?", None), asked_for]);
        let plan = format!("EXPLAIN QUERY PLAN SELECT * FROM {table} {condition} ORDER BY rowid");
        let steps = reader.all(&plan, &given, |row| row.get::<_, String>(3)).unwrap();
        let is_slow = |step: &String| step.starts_with("SCAN ") && !step.starts_with("SCAN json_each ");
        assert!(!steps.iter().any(is_slow), "{plan}: {steps:?}");
    }
    let nothing = EventFilter::default();
    let mut count = 0;
    for filter in [nothing.clone(), EventFilter { status: Some("failed".into()), after: Some(0), ..nothing }] {
        let each = |_| {
            count += 1;
            Ok::<_, Error>(())
        };
        reader.events(&filter, each).unwrap();
    }
    assert_eq!(count, 0);
}

#[tokio::test]
async fn no_row_has_the_number_of_one_that_was_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let ignored = |uid| {
        let mut entry = entry(uid, paid(None));
        entry.examined.judgement = Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, "no"));
        entry
    };
    store.record(vec![ignored(1), ignored(2), ignored(3)], cursor(3)).await.unwrap();
    store.prune("2999-01-01T00:00:00.000Z".into(), false).await.unwrap();
    let recorded = store.record(vec![ignored(4)], cursor(4)).await.unwrap();
    assert_eq!(recorded[0].mail_id, Some(4));
}

#[tokio::test]
async fn work_that_fails_takes_nothing_else_down() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let bad = store.write(|tx| Ok(tx.execute("INSERT INTO mails (id) VALUES (1)", [])?));
    let good = store.record(vec![entry(1, paid(None))], cursor(1));
    let (bad, good) = tokio::join!(bad, good);
    assert!(matches!(bad, Err(Error::Sqlite { .. })));
    assert_eq!(good.unwrap()[0].outcome, Outcome::Event);
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    let first = DaemonLock::take(&path).unwrap();
    assert!(matches!(DaemonLock::take(&path), Err(Error::Busy(_))));
    drop(first);
    DaemonLock::take(&path).unwrap();
}

#[test]
fn a_database_has_one_lock_by_whatever_name_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let [file, link, chain] = ["data/m.db", "link.db", "chain.db"].map(|name| folder.path().join(name));
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::os::unix::fs::symlink("data/m.db", &link).unwrap();
    std::os::unix::fs::symlink(&link, &chain).unwrap();
    // Before there is a file, and after.
    let first = DaemonLock::take(&chain).unwrap();
    drop(schema::open(&chain).unwrap());
    for name in [&file, &link, &chain] {
        assert!(matches!(DaemonLock::take(name), Err(Error::Busy(_))), "{}", name.display());
        assert!(DaemonLock::is_held(name).unwrap(), "{}", name.display());
    }
    drop(first);
    assert!(!DaemonLock::is_held(&chain).unwrap());
}

fn files(folder: &tempfile::TempDir) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn whether_it_is_locked_is_asked_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    store(&folder).close().await;
    assert_eq!(files(&folder), ["m.db"], "closed, it is one file");
    let other = Connection::open(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert!(!reader.is_locked());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(reader.is_locked());
    other.execute_batch("ROLLBACK").unwrap();
    assert!(!reader.is_locked());
    drop((reader, other));
    let wait = std::time::Duration::ZERO;
    assert!(!schema::is_busy(&path, wait) && !schema::is_busy(&folder.path().join("none"), wait));
    assert_eq!(files(&folder), ["m.db"]);
}

#[test]
fn a_database_that_is_written_to_without_a_pause_is_not_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    drop(schema::open(&path).unwrap());
    let (reader, other) = (Reader::open(&path).unwrap(), schema::open(&path).unwrap());
    let (end, ending) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        // Each holds the lock longer than SQLite waits between two tries.
        let hold = std::time::Duration::from_millis(150);
        loop {
            other.execute_batch("BEGIN IMMEDIATE; DELETE FROM unsettled").unwrap();
            let ended = ending.recv_timeout(hold) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
            other.execute_batch("INSERT INTO unsettled VALUES ('another'); COMMIT").unwrap();
            if ended {
                return;
            }
        }
    });
    assert!(!reader.is_locked());
    drop(end);
    writing.join().unwrap();
}

#[tokio::test]
async fn what_is_in_the_wal_is_copied_into_the_database_once_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut large = entry(1, paid(None));
    large.mail.bytes = vec![b'x'; 8 << 20];
    store.record(vec![large], cursor(1)).await.unwrap();
    // While somebody else has the database open, closing the store copies nothing: the writing thread did.
    let looking = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
    let look = || {
        let noop = "PRAGMA wal_checkpoint(NOOP)";
        looking.query_row(noop, [], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))).unwrap()
    };
    assert!(look().0 > 2_000);
    store.close().await;
    let (pages, copied) = look();
    assert!(pages > 2_000 && copied == pages, "{copied} of {pages}");
}

#[tokio::test]
async fn whoever_reads_without_an_end_is_noticed_and_what_the_wal_has_grown_to_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let (store, wal) = (store(&folder), folder.path().join("m.db-wal"));
    let other = Connection::open(folder.path().join("m.db")).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM mails").unwrap();
    let record = |n| {
        let mut large = entry(n, paid(None));
        large.mail.bytes = vec![b'x'; 16 << 20];
        store.record(vec![large], cursor(n))
    };
    let uncopied = || store.reader().unwrap().uncopied().unwrap();
    for n in 1..=5 {
        record(n).await.unwrap();
    }
    assert!(uncopied() > 80 << 20, "{}", uncopied());
    other.execute_batch("COMMIT").unwrap();
    // Each copies, and the second begins the file anew.
    record(6).await.unwrap();
    store.ping().await.unwrap();
    record(7).await.unwrap();
    assert!(uncopied() < 32 << 20, "{}", uncopied());
    assert!(std::fs::metadata(wal).unwrap().len() <= 64 << 20);
}

#[tokio::test]
async fn who_waits_for_the_same_lock_hears_of_it_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    store.write(|tx| Ok(tx.busy_timeout(std::time::Duration::from_millis(500))?)).await.unwrap();
    let other = Connection::open(folder.path().join("m.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = async {
        let first = store.ping().await;
        other.execute_batch("ROLLBACK").unwrap();
        first
    };
    // All ask before the first is answered.
    let (first, second, third) = tokio::join!(first, store.ping(), store.ping());
    for answer in [first, second, third] {
        assert!(matches!(answer, Err(Error::Locked(_))), "{answer:?}");
    }
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_file_that_was_put_in_the_place_of_the_open_one_is_not_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("m.db"), folder.path().join("copy.db"));
    let store = store(&folder);
    store.reader().unwrap().backup(&copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert!(matches!(store.reader(), Err(Error::Moved(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(store.reader(), Err(Error::Moved(_))));
}

#[tokio::test]
async fn what_is_in_the_wal_goes_with_the_file_that_was_open_and_not_with_the_one_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy, before] = ["m.db", "copy.db", "before.db"].map(|name| folder.path().join(name));
    let store = store(&folder);
    let record = |n| store.record(vec![entry(n, paid(None))], cursor(n));
    record(1).await.unwrap();
    store.reader().unwrap().backup(&copy).unwrap();
    for n in 2..300 {
        record(n).await.unwrap();
    }
    std::fs::rename(&path, &before).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    store.close().await;
    let mails = |path: &Path| {
        let database = schema::open(path).unwrap();
        let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        let count = "SELECT count(*) FROM mails";
        (sound, database.query_row::<i64, _, _>(count, [], |row| row.get(0)).unwrap())
    };
    assert_eq!(mails(&before), ("ok".into(), 299));
    assert_eq!(mails(&path), ("ok".into(), 1));
}

#[tokio::test]
async fn a_deferred_mail_that_nobody_judges_any_more_waits_for_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let mut deferred = entry(1, paid(None));
    deferred.examined.judgement = Judgement::Deferred(Reason::new(ReasonCode::Dns, "no answer"));
    store.record(vec![deferred], cursor(1)).await.unwrap();
    let unjudged = |accounts: &[&str]| store.reader().unwrap().backlog(&[], accounts).unwrap().unjudged;
    assert_eq!((unjudged(&["other", "shop"]), unjudged(&["other"]), unjudged(&[])), (0, 1, 1));
}
