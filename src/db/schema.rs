//! Opens and migrates the database file. Checks that the file is a database of this program with a known schema, and turns on
//! WAL mode.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::lock::behind_links;
use super::{Error, Result};

/// `PRAGMA application_id`: "RmMh". file(1) and this program recognise the database by this number.
const APPLICATION_ID: i64 = 0x526d_4d68;

/// The migrations in their order; the n-th brings a file to `user_version` n. A released migration never changes.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001.sql")];

/// The newest schema that this program knows (`PRAGMA user_version`).
pub const NEWEST_SCHEMA: i64 = MIGRATIONS.len() as i64;

/// How long a statement waits for another program's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two tries where SQLite's busy timeout does not apply.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Opens the database for writing; creates and migrates the file if necessary.
pub(super) fn open(path: &Path) -> Result<Connection> {
    if path.exists() {
        inspect(path)?;
    } else if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    }
    let sqlite = |e| Error::from_sqlite(path, e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    configure(&connection).map_err(sqlite)?;
    // `auto_vacuum` has an effect only if it is set before the first page is written. With `auto_vacuum`, `prune` can return free
    // pages to the file system in small steps.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(sqlite)?;
    turn_on_wal(&connection).map_err(sqlite)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Turns on WAL mode, which a new file or a restored copy does not have yet. Retries while another program does the same, because
/// SQLite's busy timeout does not apply to this change.
fn turn_on_wal(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

/// Opens the database for reading, and migrates the file if necessary. `true`: the connection never shows later commits.
pub(super) fn open_reader(path: &Path) -> Result<(Connection, bool)> {
    if !path.exists() {
        return Err(Error::Absent(path.to_owned()));
    }
    let version = inspect(path)?;
    if version < NEWEST_SCHEMA {
        // A read-only connection cannot migrate the file, so the file is first opened for writing.
        drop(open(path)?);
    }
    let (connection, frozen) = read_only(path)?;
    configure(&connection).map_err(|e| Error::from_sqlite(path, e))?;
    Ok((connection, frozen))
}

/// Opens the database for reading, as [`open_reader`] does, but neither checks the content nor migrates the file. The first
/// reader creates the -wal and -shm files. If the user may not create files, SQLite can read the database without -wal and -shm
/// files, provided that the last program has closed the database properly.
pub(super) fn read_only(path: &Path) -> Result<(Connection, bool)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sqlite = |e| Error::from_sqlite(path, e);
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    let Err(error) = count_tables(&connection) else { return Ok((connection, false)) };
    let is_refused = matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen));
    if !is_refused || wal_path(path).exists() {
        return Err(sqlite(error));
    }
    let Some(uri) = immutable_uri(path) else { return Err(sqlite(error)) };
    Ok((Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).map_err(sqlite)?, true))
}

/// The characters of a path that must be percent-encoded in a URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The URI with which SQLite reads a file without locks and without its `-wal` file (sqlite.org/uri.html, `immutable`).
fn immutable_uri(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    Some(format!("file:{}?immutable=1", utf8_percent_encode(path.to_str()?, PATH)))
}

/// The path of the `-wal` file, which has the newest commits while a program has the database open. SQLite puts the `-wal` file
/// next to the real file, also if `path` is a symbolic link.
fn wal_path(path: &Path) -> PathBuf {
    let mut name = behind_links(path).into_os_string();
    name.push("-wal");
    name.into()
}

fn count_tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Whether the write lock cannot be taken within `patience`. The result is `false` for a user without write permission. This
/// check does not create the database.
pub(super) fn is_busy(path: &Path, patience: Duration) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.busy_timeout(patience)?;
        connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
    });
    let code = opened.err().and_then(|error| error.sqlite_error_code());
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// How many pages of the WAL are not checkpointed yet.
pub(super) fn checkpoint_backlog(connection: &Connection) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
    statement.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}

/// Copies the WAL into the database, as far as no reader needs the older pages. Does nothing while another program does the same.
/// `true`: the whole WAL is copied.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?;
    statement.query_row([], |row| {
        let (is_busy, pages, copied): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(!is_busy && pages == copied)
    })
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Without SQLite's query planner stability guarantee (QPSG), a statement that may use a partial index is prepared again
    // for each new value of a parameter. The repeated preparation took half of the writer's time.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "foreign_keys", "ON")
}

/// Checks that the file is a database of this program, or empty, and returns the version of its schema. The check only reads, so
/// that a refused file does not change.
pub(super) fn inspect(path: &Path) -> Result<i64> {
    // If the path is a folder, SQLite reports a read error, which sounds like a broken disk.
    if !path.is_file() {
        return Err(Error::Foreign(path.to_owned()));
    }
    let (connection, _) = read_only(path)?;
    let sqlite = |e| Error::from_sqlite(path, e);
    // All queries are in one read transaction, because another program may be creating the file.
    connection.execute_batch("BEGIN").map_err(sqlite)?;
    let (application, version) = identity(&connection).map_err(sqlite)?;
    let empty = application == 0 && version == 0 && count_tables(&connection).map_err(sqlite)? == 0;
    if !empty && application != APPLICATION_ID {
        return Err(Error::Foreign(path.to_owned()));
    }
    if !(0..=NEWEST_SCHEMA).contains(&version) {
        return Err(Error::Newer { path: path.to_owned(), found: version, known: NEWEST_SCHEMA });
    }
    Ok(version)
}

fn identity(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

/// Migrates the file to the newest schema in one transaction, so that a crash leaves the old schema intact.
fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let sqlite = |e| Error::from_sqlite(path, e);
    if identity(connection).map_err(sqlite)?.1 >= NEWEST_SCHEMA {
        return Ok(());
    }
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(sqlite)?;
    // The version is read again under the write lock, because another process may have migrated the file.
    let version = identity(&tx).map_err(sqlite)?.1;
    for step in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        tx.execute_batch(step).map_err(sqlite)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
    tx.pragma_update(None, "user_version", NEWEST_SCHEMA).map_err(sqlite)?;
    tx.commit().map_err(sqlite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wal_is_next_to_the_real_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("sub/m.db"), folder.path().join("link.db"));
        let connection = open(&path).unwrap();
        connection.pragma_update(None, "user_version", NEWEST_SCHEMA).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(wal_path(&path).exists() && wal_path(&link).exists());
    }

    #[test]
    fn a_new_file_opens_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/m.db");
        drop(open(&path).unwrap());
        let connection = open(&path).unwrap();
        assert_eq!(identity(&connection).unwrap(), (APPLICATION_ID, NEWEST_SCHEMA));
        let mode: String = connection.pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
        assert_eq!(mode, "wal");
        let vacuum: i64 = connection.pragma_query_value(None, "auto_vacuum", |r| r.get(0)).unwrap();
        assert_eq!(vacuum, 2, "incremental");
    }

    #[test]
    fn many_processes_create_one_file() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(format!("{round}.db"));
            let start = std::sync::Barrier::new(16);
            std::thread::scope(|scope| {
                let opening = || {
                    start.wait();
                    open(&path).map(drop)
                };
                let threads: Vec<_> = (0..16).map(|_| scope.spawn(opening)).collect();
                threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn unknown_words_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("m.db")).unwrap();
        let mail = |outcome: &str, trust: &str| {
            let sql = "INSERT INTO mails (account, mailbox, size, sha256, judged_at, outcome, trust)
                       VALUES ('a', 'import', 1, ?1 || ?2, '', ?1, ?2)";
            connection.execute(sql, [outcome, trust]).is_ok()
        };
        let event = |status: &str, source: &str| {
            let sql = "INSERT INTO events (event_id, webhook, created_at, session_id, status, session_source)
                       VALUES (?1 || ?2, '{}', '', ?1 || ?2, ?1, ?2)";
            connection.execute(sql, [status, source]).is_ok()
        };
        let outcomes = ["event", "duplicate", "ignored", "quarantined", "deferred", "lost", "", "EVENT"];
        assert_eq!(outcomes.map(|o| mail(o, "dkim")), [true, true, true, true, true, false, false, false]);
        let trusts = ["authentication-results", "operator", "none", "some"];
        assert_eq!(trusts.map(|t| mail("event", t)), [true, true, true, false]);
        assert_eq!(["completed", "failed", "pending", "paid"].map(|s| event(s, "mail")), [true, true, true, false]);
        assert_eq!(
            ["address", "match", "operator", "resmic", "guess"].map(|s| event("failed", s)),
            [true, true, true, true, false]
        );
        connection
            .execute_batch("INSERT INTO deliveries (id, event_id, target, state, created_at) VALUES (9, 'failedmatch', 'x', 'held', '')")
            .unwrap();
        let attempt = |n: i64, result: &str| {
            let sql = "INSERT INTO attempts (delivery_id, attempt, at, result) VALUES (9, ?1, '', ?2)";
            connection.execute(sql, (n, result)).is_ok()
        };
        let results = ["accepted", "rejected", "no_response", "not_sent", "interrupted", "no answer"];
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|n| attempt(n, results[n as usize - 1])),
            [true, true, true, true, true, false]
        );
        let columns = [("deliveries", "event_id, target, created_at"), ("mailboxes", "account, mailbox")];
        for ((table, keys), known) in columns.into_iter().zip(["pending", "polling"]) {
            let sql = |state: &str| {
                let values = keys.split(", ").map(|_| "'failedmail'").collect::<Vec<_>>().join(", ");
                let (due, at) = if table == "deliveries" { (", next_attempt_at", ", ''") } else { ("", "") };
                format!("INSERT INTO {table} ({keys}{due}, state) VALUES ({values}{at}, '{state}')")
            };
            assert!(connection.execute(&sql("some"), []).is_err(), "{table}");
            assert!(connection.execute(&sql(known), []).is_ok(), "{table}");
        }
    }

    #[test]
    fn another_version_is_refused_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        drop(open(&path).unwrap());
        for version in [NEWEST_SCHEMA + 1, 4, -1] {
            Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
            let before = std::fs::read(&path).unwrap();
            assert!(matches!(open(&path), Err(Error::Newer { .. })), "{version}");
            assert!(matches!(open_reader(&path), Err(Error::Newer { .. })), "{version}");
            assert_eq!(before, std::fs::read(&path).unwrap());
        }
    }

    #[test]
    fn a_closed_file_is_readable_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("100% of what? #1 ü.db");
        drop(open(&path).unwrap());
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(immutable_uri(&path).unwrap(), flags).unwrap();
        assert_eq!(identity(&connection).unwrap(), (APPLICATION_ID, NEWEST_SCHEMA));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "and nothing is beside it");
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        assert!(matches!(open(&path), Err(Error::Foreign(_))));
        std::fs::write(&path, "a text file, long enough to be looked at as a header of a database file").unwrap();
        assert!(matches!(open(&path), Err(Error::Foreign(_))));
        assert!(matches!(open_reader(&folder.path().join("none")), Err(Error::Absent(_))));
        assert!(matches!(open(folder.path()), Err(Error::Foreign(_))));
        assert!(matches!(open_reader(folder.path()), Err(Error::Foreign(_))));
    }
}
