//! The database as a whole: its lock, its WAL, its writer and its readers.

use std::path::Path;

use rusqlite::Connection;

use super::testing::{query_plan, store};
use super::*;

/// Commits a mail of `size` bytes.
async fn record(store: &Store, uid: u32, size: usize) -> Result<()> {
    let sql = "INSERT INTO mails (account, mailbox, uid_validity, uid, size, sha256, raw, outcome, judged_at)
               VALUES ('shop', 'INBOX', 7, ?1, ?2, ?1, zeroblob(?2), 'ignored', '2025-03-05T03:36:00.000Z')";
    store.write(move |tx| Ok(tx.execute(sql, (uid, size as i64)).map(drop)?)).await
}

#[tokio::test]
async fn pages_of_lists_use_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let reader = store(&folder).reader().unwrap();
    for (table, key, condition, index) in [
        ("mails", "id", "", "USING INTEGER PRIMARY KEY (rowid>?)"),
        ("mails", "id", "outcome = ? AND ", "INDEX mails_by_outcome (outcome=? AND id>?)"),
        ("deliveries", "id", "state = ? AND ", "USING INTEGER PRIMARY KEY (rowid>?)"),
        ("deliveries", "id", "state = ? AND state <> 'delivered' AND ", "INDEX deliveries_open (state=? AND id>?)"),
        ("events", "rowid", "", "USING INTEGER PRIMARY KEY (rowid>?)"),
        ("events", "rowid", "status = ? AND ", "USING INTEGER PRIMARY KEY (rowid>?)"),
        (
            "events",
            "rowid",
            "status = ? AND status <> 'completed' AND ",
            "INDEX events_not_completed (status=? AND rowid>?)",
        ),
        ("events", "rowid", "session_id = ? AND status = ? AND ", "INDEX events_by_session (session_id=? AND rowid>?)"),
        ("events", "rowid", "+created_at >= ? AND rowid >= ? AND ", "USING INTEGER PRIMARY KEY (rowid>?)"),
    ] {
        for select in [
            format!("SELECT * FROM {table} WHERE {condition}{key} > ? ORDER BY {key} LIMIT ?"),
            format!("SELECT {key} FROM {table} WHERE {condition}{key} > 0 ORDER BY {key} DESC LIMIT 1 OFFSET ?"),
        ] {
            let steps = query_plan(reader.connection(), &select);
            assert!(steps.len() == 1 && steps[0].ends_with(index), "{select}: {steps:?}");
        }
    }
    for (table, condition) in [
        ("mails", "event_id = ?"),
        ("deliveries", "event_id = ?"),
        ("events", reader::TRANSACTION_CONDITION),
        ("events", "created_at >= ?"),
    ] {
        let steps = query_plan(reader.connection(), &format!("SELECT * FROM {table} WHERE {condition}"));
        assert!(steps[0].contains("USING INDEX"), "{table} {condition}: {steps:?}");
    }
}

#[tokio::test]
async fn a_limit_keeps_the_newest_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    for uid in 1..=1_203 {
        record(&store, uid, 1).await.unwrap();
    }
    let reader = store.reader().unwrap();
    let list = |outcome, limit| {
        let mut ids = Vec::new();
        let left_out = reader.mails(outcome, limit, |mail| {
            ids.push(mail.id);
            Ok::<_, Error>(())
        });
        (ids, left_out.unwrap())
    };
    assert_eq!(list(None, None), ((1..=1_203).collect(), false));
    assert_eq!(list(None, Some(0)), (vec![], true));
    assert_eq!(list(Some("ignored"), Some(2)), (vec![1_202, 1_203], true));
    assert_eq!(list(Some("ignored"), Some(1_100)), ((104..=1_203).collect(), true));
    assert_eq!(list(None, Some(1_203)), ((1..=1_203).collect(), false));
    assert_eq!(list(Some("event"), Some(5)), (vec![], false));
}

#[tokio::test]
async fn a_slow_list_blocks_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    for uid in 1..=20 {
        record(&store, uid, 1).await.unwrap();
    }
    let (reader, other) = (store.reader().unwrap(), Connection::open(folder.path().join("m.db")).unwrap());
    let mut busy = Vec::new();
    let on_mail = |_| {
        busy.push(other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).unwrap());
        Ok::<_, Error>(())
    };
    reader.mails(None, None, on_mail).unwrap();
    assert_eq!(busy, [0; 20]);
}

#[tokio::test]
async fn failing_work_does_not_affect_other_work() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let bad = store.write(|tx| Ok(tx.execute("INSERT INTO mails (id) VALUES (1)", [])?));
    let good = record(&store, 1, 1);
    let (bad, good) = tokio::join!(bad, good);
    assert!(matches!(bad, Err(Error::Sqlite { .. })));
    good.unwrap();
    assert_eq!(store.reader().unwrap().counts("mails").unwrap(), [("ignored".into(), 1)]);
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    let first = DaemonLock::acquire(&path).unwrap();
    assert!(matches!(DaemonLock::acquire(&path), Err(Error::Busy(_))));
    drop(first);
    DaemonLock::acquire(&path).unwrap();
}

#[test]
fn links_to_a_database_share_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let [file, link, chain] = ["data/m.db", "link.db", "chain.db"].map(|name| folder.path().join(name));
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::os::unix::fs::symlink("data/m.db", &link).unwrap();
    std::os::unix::fs::symlink(&link, &chain).unwrap();
    // All names share one lock, before the file exists and after it was created.
    let first = DaemonLock::acquire(&chain).unwrap();
    drop(schema::open(&chain).unwrap());
    for name in [&file, &link, &chain] {
        assert!(matches!(DaemonLock::acquire(name), Err(Error::Busy(_))), "{}", name.display());
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
async fn checking_for_a_lock_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    store(&folder).close().await;
    assert_eq!(files(&folder), ["m.db"], "closed, it is one file");
    let other = Connection::open(&path).unwrap();
    let reader = StoreReader::open(&path).unwrap();
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
fn many_short_transactions_are_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.db");
    drop(schema::open(&path).unwrap());
    let (reader, other) = (StoreReader::open(&path).unwrap(), schema::open(&path).unwrap());
    let (end, ending) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        // Each transaction holds the lock for longer than SQLite waits between two tries.
        let hold = std::time::Duration::from_millis(150);
        loop {
            other.execute_batch("BEGIN IMMEDIATE; DELETE FROM sessions_to_reconcile").unwrap();
            let ended = ending.recv_timeout(hold) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
            other.execute_batch("INSERT INTO sessions_to_reconcile VALUES ('another'); COMMIT").unwrap();
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
async fn an_idle_writer_checkpoints_the_wal() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    record(&store, 1, 8 << 20).await.unwrap();
    // SQLite also checkpoints when the last connection closes. This second connection stays open, so that only the writer
    // thread can make the checkpoint below.
    let observer = rusqlite::Connection::open(folder.path().join("m.db")).unwrap();
    let checkpoint_counts = || {
        let noop = "PRAGMA wal_checkpoint(NOOP)";
        observer.query_row(noop, [], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))).unwrap()
    };
    assert!(checkpoint_counts().0 > 2_000);
    store.close().await;
    let (pages, copied) = checkpoint_counts();
    assert!(pages > 2_000 && copied == pages, "{copied} of {pages}");
}

#[tokio::test]
async fn a_blocked_checkpoint_is_reported_and_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (store, wal) = (store(&folder), folder.path().join("m.db-wal"));
    let other = Connection::open(folder.path().join("m.db")).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM mails").unwrap();
    let record = |n| record(&store, n, 16 << 20);
    let backlog = || store.reader().unwrap().checkpoint_backlog().unwrap();
    for n in 1..=5 {
        record(n).await.unwrap();
    }
    assert!(backlog() > 80 << 20, "{}", backlog());
    other.execute_batch("COMMIT").unwrap();
    // The writer checkpoints after each of these large commits. After the first checkpoint, SQLite writes the -wal file
    // from its beginning.
    record(6).await.unwrap();
    store.ping().await.unwrap();
    record(7).await.unwrap();
    assert!(backlog() < 32 << 20, "{}", backlog());
    assert!(std::fs::metadata(wal).unwrap().len() <= 64 << 20);
}

#[tokio::test]
async fn waiting_callers_get_a_lock_error_together() {
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
    // All three callers wait for the writer before the first one gets its error.
    let (first, second, third) = tokio::join!(first, store.ping(), store.ping());
    for answer in [first, second, third] {
        assert!(matches!(answer, Err(Error::Locked(_))), "{answer:?}");
    }
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_replaced_file_gets_no_reader() {
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
async fn the_wal_goes_into_the_replaced_file() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy, before] = ["m.db", "copy.db", "before.db"].map(|name| folder.path().join(name));
    let store = store(&folder);
    let record = |n| record(&store, n, 100);
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
        let integrity: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        let count = "SELECT count(*) FROM mails";
        (integrity, database.query_row::<i64, _, _>(count, [], |row| row.get(0)).unwrap())
    };
    assert_eq!(mails(&before), ("ok".into(), 299));
    assert_eq!(mails(&path), ("ok".into(), 1));
}
