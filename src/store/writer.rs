//! One thread owns the writing connection and takes all that waits in one transaction.
//!
//! So a single mail commits at once, with one fsync, and a backfill commits in hundreds. Each piece of
//! work has a savepoint of its own: one that fails takes nothing else down. Nobody is answered before the commit.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Error, Result};

/// The most that one transaction takes.
const BATCH: usize = 1_000;

/// How many pieces of work may wait; whoever brings more waits too.
const QUEUE: usize = 4_096;

/// A piece of work, and who waits for it.
trait Job: Send {
    fn run(&mut self, connection: &Connection);
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
    fn run(&mut self, connection: &Connection) {
        self.result = self.work.take().map(|work| in_savepoint(connection, &self.path, work));
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

/// A piece of work that fails leaves no trace.
fn in_savepoint<T>(connection: &Connection, path: &Path, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let sqlite = |e| Error::from_sqlite(path, e);
    connection.execute_batch("SAVEPOINT work").map_err(sqlite)?;
    let result = work(connection).map_err(|e| match e {
        Error::Sqlite { source, .. } => Error::from_sqlite(path, source),
        other => other,
    });
    let end = if result.is_ok() { "RELEASE work" } else { "ROLLBACK TO work; RELEASE work" };
    connection.execute_batch(end).map_err(sqlite)?;
    result
}

fn serve(mut connection: Connection, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        let failed = run_batch(&mut connection, &mut batch, &mut queue).err().map(Arc::new);
        for job in batch {
            job.answer(failed.as_ref());
        }
    }
}

/// Runs what is in `batch`, and what comes to `queue` meanwhile, in one transaction.
fn run_batch(
    connection: &mut Connection,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut done = 0;
    while let Some(job) = batch.get_mut(done) {
        job.run(&tx);
        if tx.is_autocommit() {
            // A full disk ends a transaction from within (sqlite.org/lang_transaction.html): nothing of it is kept.
            let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            return Err(rusqlite::Error::SqliteFailure(full, Some("the transaction was rolled back".into())));
        }
        done += 1;
        if done == batch.len() && done < BATCH {
            batch.extend(queue.try_recv().ok());
        }
    }
    tx.commit()
}
