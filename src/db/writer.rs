//! One thread owns the writing connection and takes all that waits in one transaction.
//!
//! So a single mail commits at once, with one fsync, and a backfill commits in hundreds. A piece of work that fails takes
//! nothing else down. Nobody is answered before the commit, and nobody waits for more: the WAL is copied into the
//! database when it is quiet, and not, as SQLite would, within the commit that fills it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::file_id::file_id;
use super::{Error, Result, schema};

/// The most that one transaction takes.
const BATCH: usize = 1_000;

/// How many pieces of work may wait; whoever brings more waits too.
const QUEUE: usize = 4_096;

/// How many pages of the WAL are worth copying into the database when nobody comes: SQLite's own number.
const CHECKPOINT: i64 = 1_000;

/// With how many it is done although somebody may wait. A page that is written often is copied once.
const CHECKPOINT_URGENT: i64 = 4_000;

/// So many bytes of the WAL that cannot be copied are worth a word: nothing of ours keeps so many back. No more than these are
/// backlog of the file when they could be: it grows for as long as somebody reads what is older.
pub const MAX_WAL_BACKLOG: u64 = 64 << 20;

/// In pages, of the size that SQLite gives to a new file.
const MAX_BACKLOG_PAGES: i64 = (MAX_WAL_BACKLOG / 4_096).cast_signed();

/// When nobody came for so long, nobody is about to: whoever was warned of a commit has come back with what follows from it.
/// A mail's deliveries are counted at once, and to copy takes longer than that.
const QUIET: Duration = Duration::from_millis(100);

/// How much of the database is held, in KiB (negative: SQLite's way to say so). What a transaction of a backfill changes has
/// room in it, or it would be written twice.
const CACHE: i64 = -8_000;

/// A piece of work, and who waits for it.
trait Job: Send {
    /// Runs the work. If it fails, the error is SQLite's, if it is one of SQLite.
    fn run(&mut self, connection: &Connection, alone: bool) -> std::result::Result<(), Option<Arc<rusqlite::Error>>>;
    fn answer(self: Box<Self>, failed: Option<&Arc<rusqlite::Error>>);
}

struct Task<F, T> {
    work: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    path: Arc<Path>,
}

#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    path: Arc<Path>,
    /// Its other end is dropped when the connection is closed.
    open: watch::Receiver<()>,
}

impl Writer {
    /// `file`: which one is open, by the system's numbers.
    pub(super) fn start(connection: Connection, path: &Path, file: Option<(u64, u64)>) -> Result<Self> {
        let sqlite = |e| Error::from_sqlite(path, e);
        connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(sqlite)?;
        connection.pragma_update(None, "cache_size", CACHE).map_err(sqlite)?;
        connection.pragma_update(None, "journal_size_limit", MAX_WAL_BACKLOG.cast_signed()).map_err(sqlite)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (is_open, open) = watch::channel(());
        let io = |source| Error::Io { path: path.to_owned(), source };
        let clock = Builder::new_current_thread().enable_time().build().map_err(io)?;
        let path: Arc<Path> = path.into();
        let database = path.clone();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                serve(&connection, queue, &clock);
                if file_id(&database).is_ok_and(|now| now != file) {
                    checkpoint_replaced_file(&connection);
                }
                drop(connection);
                drop(is_open);
            })
            .map_err(io)?;
        Ok(Writer { jobs, path, open })
    }

    /// Lets go of it; returns when the connection is closed, which is when everybody has.
    pub(super) async fn close(self) {
        let Writer { jobs, mut open, .. } = self;
        drop(jobs);
        while open.changed().await.is_ok() {}
    }

    /// Runs `work` in a transaction; returns when that is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let piece = Task { work: Some(work), result: None, reply, path: self.path.clone() };
        self.jobs.send(Box::new(piece)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T> + Send> Job for Task<F, T> {
    fn run(&mut self, connection: &Connection, alone: bool) -> std::result::Result<(), Option<Arc<rusqlite::Error>>> {
        let Some(work) = self.work.take() else { return Err(None) };
        let result = if alone { work(connection) } else { in_savepoint(connection, work) };
        let ended = match &result {
            Ok(_) => Ok(()),
            Err(Error::Sqlite { source, .. }) => Err(Some(source.clone())),
            Err(_) => Err(None),
        };
        self.result = Some(result.map_err(|error| error.with_path(&self.path)));
        ended
    }

    fn answer(self: Box<Self>, failed: Option<&Arc<rusqlite::Error>>) {
        let result = match failed {
            Some(error) => Err(Error::from_sqlite(&self.path, error.clone())),
            None => self.result.unwrap_or(Err(Error::Stopped)),
        };
        // Nobody may be waiting any more; the work is done all the same.
        let _ = self.reply.send(result);
    }
}

/// Runs work that leaves no trace if it fails. SQLite keeps a copy of each page that is changed within.
fn in_savepoint<T>(connection: &Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    execute_cached(connection, "SAVEPOINT work")?;
    let result = work(connection);
    if result.is_err() {
        if connection.is_autocommit() {
            // The failure has rolled back the whole transaction, and with it the savepoint.
            return result;
        }
        execute_cached(connection, "ROLLBACK TO work")?;
    }
    execute_cached(connection, "RELEASE work")?;
    result
}

/// Runs a statement that each transaction needs. It is compiled one time only.
fn execute_cached(connection: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// A transaction, rolled back unless it is committed.
struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        execute_cached(connection, "BEGIN IMMEDIATE")?;
        Ok(Transaction(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        execute_cached(self.0, "COMMIT")
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // A full disk has ended it already (sqlite.org/lang_transaction.html); what else fails here, fails at the next BEGIN.
        if !self.0.is_autocommit() {
            let _ = execute_cached(self.0, "ROLLBACK");
        }
    }
}

/// Until everybody has let go. `clock` tells when it is quiet.
fn serve(connection: &Connection, mut queue: mpsc::Receiver<Box<dyn Job>>, clock: &Runtime) {
    let (mut checkpoint_due, mut warned) = (false, false);
    loop {
        let next = match checkpoint_due {
            true => clock.block_on(async { tokio::time::timeout(QUIET, queue.recv()).await }),
            false => Ok(queue.blocking_recv()),
        };
        match next {
            Ok(Some(first)) => {
                commit(connection, first, &mut queue);
                let backlog = schema::checkpoint_backlog(connection).unwrap_or(0);
                checkpoint_due |= backlog >= CHECKPOINT;
                if backlog >= CHECKPOINT_URGENT {
                    checkpoint(connection);
                }
                let is_blocked = backlog >= MAX_BACKLOG_PAGES
                    && schema::checkpoint_backlog(connection).unwrap_or(0) >= MAX_BACKLOG_PAGES;
                if is_blocked && !warned {
                    tracing::warn!(
                        "another program reads the database without an end: the -wal beside it grows until then"
                    );
                }
                warned = is_blocked;
            }
            Err(_) => {
                checkpoint_and_shrink(connection);
                checkpoint_due = false;
            }
            Ok(None) => break,
        }
    }
    if checkpoint_due {
        checkpoint_and_shrink(connection);
    }
}

fn commit(connection: &Connection, first: Box<dyn Job>, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
    let mut batch = vec![first];
    let failed = run_batch(connection, &mut batch, queue).err();
    if failed.as_deref().is_some_and(is_locked) {
        // They have waited for the lock as well: one after the other they would for minutes, a sign of life among them.
        batch.extend(std::iter::from_fn(|| queue.try_recv().ok()));
    }
    for job in batch {
        job.answer(failed.as_ref());
    }
}

fn is_locked(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

/// Copies the WAL, and gives back the memory of all that was read and written meanwhile: in years of single mails it would
/// grow to the whole of what it may be.
fn checkpoint_and_shrink(connection: &Connection) {
    checkpoint(connection);
    if let Err(error) = execute_cached(connection, "PRAGMA shrink_memory") {
        tracing::debug!(%error, "the memory of the database was not given back");
    }
}

/// Copies the WAL into the database, as far as nobody reads what is older.
fn checkpoint(connection: &Connection) {
    let copied = connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)");
    if let Err(error) = copied.and_then(|mut copied| copied.query_row([], |_| Ok(()))) {
        // The commit that finds no room for the WAL says so; this one is made up for by the next.
        tracing::debug!(%error, "the write-ahead log was not copied into the database");
    }
}

/// Empties the WAL into the file that was opened, as another stands in its place by now: SQLite leaves the WAL where it is then,
/// and whoever opens that other file would take it for that one's.
fn checkpoint_replaced_file(connection: &Connection) {
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    if emptied != Ok(0) {
        tracing::error!("what is in the -wal beside the database was of the file that stood there before: remove it");
    }
}

/// Runs what is in `batch`, and what comes to `queue` meanwhile, in one transaction.
///
/// The first needs no savepoint: if it fails, the transaction is rolled back, and what comes to `queue` is the next one's.
fn run_batch(
    connection: &Connection,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> std::result::Result<(), Arc<rusqlite::Error>> {
    let tx = Transaction::begin(connection).map_err(Arc::new)?;
    let mut done = 0;
    while let Some(job) = batch.get_mut(done) {
        let ended = job.run(connection, done == 0);
        if connection.is_autocommit() {
            // A full disk or an I/O error ends a transaction from within (sqlite.org/lang_transaction.html).
            let cause = ended.err().flatten();
            return Err(cause.unwrap_or_else(|| Arc::new(rusqlite::Error::SqliteFailure(rolled_back(), None))));
        }
        if done == 0 && ended.is_err() {
            return Ok(());
        }
        done += 1;
        if done == batch.len() && done < BATCH {
            batch.extend(queue.try_recv().ok());
        }
    }
    tx.commit().map_err(Arc::new)
}

/// For a transaction that was rolled back by an error that the work did not return.
fn rolled_back() -> rusqlite::ffi::Error {
    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK)
}
