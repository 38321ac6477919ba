//! One thread owns the writing connection and takes all that waits in one transaction.
//!
//! So a single mail commits at once, with one fsync, and a backfill commits in hundreds. A piece of work that fails takes
//! nothing else down. Nobody is answered before the commit, and nobody waits for more: the WAL is copied into the
//! database between the commits, and not, as SQLite would, within the one that fills it.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Error, Result};

/// The most that one transaction takes.
const BATCH: usize = 1_000;

/// How many pieces of work may wait; whoever brings more waits too.
const QUEUE: usize = 4_096;

/// How many pages of the WAL are worth copying into the database when nobody waits: SQLite's own number.
const CHECKPOINT: i64 = 1_000;

/// With how many it is done although somebody waits. A page that is written often is copied once.
const CHECKPOINT_NOW: i64 = 4_000;

/// How much of the database is held, in KiB (negative: SQLite's way to say so). What a transaction of a backfill changes has
/// room in it, or it would be written twice.
const CACHE: i64 = -8_000;

/// A piece of work, and who waits for it.
trait Job: Send {
    /// Whether it worked.
    fn run(&mut self, connection: &Connection, alone: bool) -> bool;
    fn answer(self: Box<Self>, failed: Option<&Arc<rusqlite::Error>>);
}

struct Piece<F, T> {
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
    pub(super) fn start(connection: Connection, path: &Path) -> Result<Self> {
        let sqlite = |e| Error::from_sqlite(path, e);
        connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(sqlite)?;
        connection.pragma_update(None, "cache_size", CACHE).map_err(sqlite)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (is_open, open) = watch::channel(());
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                serve(connection, queue);
                drop(is_open);
            })
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(Writer { jobs, path: path.into(), open })
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
        let piece = Piece { work: Some(work), result: None, reply, path: self.path.clone() };
        self.jobs.send(Box::new(piece)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T> + Send> Job for Piece<F, T> {
    fn run(&mut self, connection: &Connection, alone: bool) -> bool {
        let Some(work) = self.work.take() else { return false };
        let result =
            if alone { plainly(connection, &self.path, work) } else { in_savepoint(connection, &self.path, work) };
        self.result.insert(result).is_ok()
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

fn plainly<T>(connection: &Connection, path: &Path, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    work(connection).map_err(|e| match e {
        Error::Sqlite { source, .. } => Error::from_sqlite(path, source),
        other => other,
    })
}

/// A piece of work that fails leaves no trace. SQLite keeps a copy of each page that is changed within.
fn in_savepoint<T>(connection: &Connection, path: &Path, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let sqlite = |e| Error::from_sqlite(path, e);
    kept(connection, "SAVEPOINT work").map_err(sqlite)?;
    let result = plainly(connection, path, work);
    if result.is_err() {
        kept(connection, "ROLLBACK TO work").map_err(sqlite)?;
    }
    kept(connection, "RELEASE work").map_err(sqlite)?;
    result
}

/// Runs a statement that each transaction needs. It is compiled one time only.
fn kept(connection: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// A transaction, rolled back unless it is committed.
struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        kept(connection, "BEGIN IMMEDIATE")?;
        Ok(Transaction(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        kept(self.0, "COMMIT")
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // A full disk has ended it already (sqlite.org/lang_transaction.html); what else fails here, fails at the next BEGIN.
        if !self.0.is_autocommit() {
            let _ = kept(self.0, "ROLLBACK");
        }
    }
}

fn serve(connection: Connection, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        let failed = run_batch(&connection, &mut batch, &mut queue).err().map(Arc::new);
        for job in batch {
            job.answer(failed.as_ref());
        }
        let alone = queue.is_empty();
        if let Err(error) = checkpoint(&connection, if alone { CHECKPOINT } else { CHECKPOINT_NOW }, alone) {
            // The commit that finds no room for the WAL says so; this one is made up for by the next.
            tracing::debug!(%error, "the write-ahead log was not copied into the database");
        }
    }
}

/// Copies the WAL into the database if it has so many pages that are not there yet. If nobody waits, the memory of all that
/// was read and written meanwhile is given back: in years of single mails it would grow to the whole of what it may be.
fn checkpoint(connection: &Connection, enough: i64, alone: bool) -> rusqlite::Result<()> {
    let mut look = connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
    let left: i64 = look.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))?;
    if left >= enough {
        connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))?;
        if alone {
            kept(connection, "PRAGMA shrink_memory")?;
        }
    }
    Ok(())
}

/// Runs what is in `batch`, and what comes to `queue` meanwhile, in one transaction.
///
/// The first needs no savepoint: if it fails, the transaction is rolled back, and what comes to `queue` is the next one's.
fn run_batch(
    connection: &Connection,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> rusqlite::Result<()> {
    let tx = Transaction::begin(connection)?;
    let mut done = 0;
    while let Some(job) = batch.get_mut(done) {
        let works = job.run(connection, done == 0);
        if connection.is_autocommit() {
            // A full disk ends a transaction from within (sqlite.org/lang_transaction.html): nothing of it is kept.
            let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            return Err(rusqlite::Error::SqliteFailure(full, Some("the transaction was rolled back".into())));
        }
        if done == 0 && !works {
            return Ok(());
        }
        done += 1;
        if done == batch.len() && done < BATCH {
            batch.extend(queue.try_recv().ok());
        }
    }
    tx.commit()
}
