//! One thread owns the writing connection and commits all waiting work in one transaction.
//!
//! A single mail is committed immediately, with one fsync. A backfill is committed in batches of hundreds of mails. Work that
//! fails does not affect other work in the transaction. The writer replies only after the commit. An idle writer checkpoints the
//! WAL. A busy writer checkpoints the WAL after a reply, if the WAL is long. SQLite's automatic checkpoint is off, because it
//! would delay the commit that fills the WAL.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::file_id::file_id;
use super::{Error, Result, schema};

/// The most pieces of work in one transaction.
const BATCH: usize = 1_000;

/// How many pieces of work the queue of the writer thread can hold. A caller of [`Writer::run`] waits while the queue is full.
const QUEUE: usize = 4_096;

/// A WAL with this number of pages is checkpointed when the writer is idle. The number is SQLite's default.
const CHECKPOINT: i64 = 1_000;

/// A WAL with this number of pages is checkpointed even if work waits. The number is higher than [`CHECKPOINT`], because
/// one checkpoint copies a page only once, even if the page was written several times. So fewer checkpoints copy fewer pages.
const CHECKPOINT_URGENT: i64 = 4_000;

/// If this number of bytes in the WAL cannot be checkpointed, the writer logs a warning: a long-running reader blocks the
/// checkpoint. After a checkpoint the `-wal` file is cut to this size.
pub const MAX_WAL_BACKLOG: u64 = 64 << 20;

/// [`MAX_WAL_BACKLOG`] in pages of SQLite's default size.
const MAX_BACKLOG_PAGES: i64 = (MAX_WAL_BACKLOG / 4_096).cast_signed();

/// The writer is idle after this time without work. Work that follows from a commit, such as claiming the deliveries of a mail,
/// arrives sooner, and must not wait for a checkpoint.
const QUIET: Duration = Duration::from_millis(100);

/// The page cache in KiB; SQLite takes a negative number as KiB. The pages that a backfill transaction changes fit
/// into this cache. With a smaller cache, SQLite would write a changed page twice.
const CACHE: i64 = -8_000;

/// A piece of work and its reply channel.
trait WriteJob: Send {
    /// Runs the work. The error contains SQLite's error, if SQLite caused the failure.
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
    jobs: mpsc::Sender<Box<dyn WriteJob>>,
    path: Arc<Path>,
    /// The writer thread drops the sender of this channel when it has closed the connection.
    open: watch::Receiver<()>,
}

impl Writer {
    /// Starts the writer thread. `file`: device and inode of the open database file.
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
                if file_id(&database).is_ok_and(|current| current != file) {
                    checkpoint_replaced_file(&connection);
                }
                drop(connection);
                drop(is_open);
            })
            .map_err(io)?;
        Ok(Writer { jobs, path, open })
    }

    /// Releases this handle; returns when all handles are released and the connection is closed.
    pub(super) async fn close(self) {
        let Writer { jobs, mut open, .. } = self;
        drop(jobs);
        while open.changed().await.is_ok() {}
    }

    /// Runs `work` in a transaction; returns after the commit.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let task = Task { work: Some(work), result: None, reply, path: self.path.clone() };
        self.jobs.send(Box::new(task)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T> + Send> WriteJob for Task<F, T> {
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
        // Sending fails if the caller no longer waits for the reply. The work stays committed.
        let _ = self.reply.send(result);
    }
}

/// Runs work in a savepoint, so that a failure changes nothing. A savepoint costs time: SQLite keeps a copy of each page that
/// changes in it.
fn in_savepoint<T>(connection: &Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    execute_cached(connection, "SAVEPOINT work")?;
    let result = work(connection);
    if result.is_err() {
        if connection.is_autocommit() {
            // The failure has rolled back the whole transaction, including the savepoint.
            return result;
        }
        execute_cached(connection, "ROLLBACK TO work")?;
    }
    execute_cached(connection, "RELEASE work")?;
    result
}

/// Runs a statement that each transaction needs. SQLite prepares the statement once.
fn execute_cached(connection: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// A transaction that is rolled back unless it is committed.
struct ImmediateTransaction<'c>(&'c Connection);

impl<'c> ImmediateTransaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        execute_cached(connection, "BEGIN IMMEDIATE")?;
        Ok(ImmediateTransaction(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        execute_cached(self.0, "COMMIT")
    }
}

impl Drop for ImmediateTransaction<'_> {
    fn drop(&mut self) {
        // A full disk may already have ended the transaction (sqlite.org/lang_transaction.html). If the ROLLBACK fails, the next
        // BEGIN fails, too, and reports the error.
        if !self.0.is_autocommit() {
            let _ = execute_cached(self.0, "ROLLBACK");
        }
    }
}

/// Runs the work in the queue until all handles are released. `clock` measures how long the queue was empty.
fn serve(connection: &Connection, mut queue: mpsc::Receiver<Box<dyn WriteJob>>, clock: &Runtime) {
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
                        "a long-running reader blocks WAL checkpoints, so the -wal file grows; stop it (`fuser -v` names it)"
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

fn commit(connection: &Connection, first: Box<dyn WriteJob>, queue: &mut mpsc::Receiver<Box<dyn WriteJob>>) {
    let mut batch = vec![first];
    let failed = run_batch(connection, &mut batch, queue).err();
    if failed.as_deref().is_some_and(is_locked) {
        // The queued callers have waited for the same lock, so they get the same error. Otherwise, the supervisor's ping
        // would wait for one lock timeout for each caller before it, and the watchdog could end the process.
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

/// Checkpoints the WAL and frees SQLite's page cache. Otherwise, the page cache of an idle daemon would keep its largest
/// size.
fn checkpoint_and_shrink(connection: &Connection) {
    checkpoint(connection);
    if let Err(error) = execute_cached(connection, "PRAGMA shrink_memory") {
        tracing::debug!(%error, "cannot shrink the page cache");
    }
}

fn checkpoint(connection: &Connection) {
    if let Err(error) = schema::checkpoint(connection) {
        // A later checkpoint copies the same pages. If the disk is full, the next commits return the error.
        tracing::debug!(%error, "cannot checkpoint the WAL");
    }
}

/// Copies the whole WAL into the open database file, after another file has replaced the database file at its path. If the file
/// was replaced, SQLite does not delete the `-wal` file, and a program that opens the new file would read the wrong WAL.
fn checkpoint_replaced_file(connection: &Connection) {
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    if emptied != Ok(0) {
        tracing::error!("the -wal file belongs to the previous database file; delete it before the next start");
    }
}

/// Runs the work in `batch`, and work that arrives meanwhile, in one transaction.
///
/// The first piece of work needs no savepoint. If the first piece fails, the transaction is rolled back, and the work in the
/// queue goes into the next transaction.
fn run_batch(
    connection: &Connection,
    batch: &mut Vec<Box<dyn WriteJob>>,
    queue: &mut mpsc::Receiver<Box<dyn WriteJob>>,
) -> std::result::Result<(), Arc<rusqlite::Error>> {
    let tx = ImmediateTransaction::begin(connection).map_err(Arc::new)?;
    let mut done = 0;
    while let Some(job) = batch.get_mut(done) {
        let ended = job.run(connection, done == 0);
        if connection.is_autocommit() {
            // A full disk or an I/O error has ended the transaction (sqlite.org/lang_transaction.html).
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

/// The error of a transaction that was rolled back although the work returned no error of SQLite.
fn rolled_back() -> rusqlite::ffi::Error {
    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK)
}
