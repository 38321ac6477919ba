//! Deletes rows and bytes that are no longer needed, in small transactions.
//!
//! A reader looks for the rows, without a lock. The writer changes a few rows in each transaction, and pauses between two
//! transactions, so that a daemon can store its mails meanwhile. The newest rows are deleted first, because their pages are near
//! the end of the file. If the pages at the end are free, fewer pages must be moved before the file can be cut.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, ToSql, params};

use super::{Error, Result, Store, StoreReader, schema};

/// How long a transaction should take, with its commit. Other programs that write wait for the transaction. A transaction may
/// take much longer on a busy machine, where the program waits for a processor or for the disk.
const AIM: Duration = Duration::from_millis(8);

/// How long the first transaction works before its commit, and the limits of this time for the next transactions.
const FIRST_WORK: Duration = Duration::from_millis(1);
const SHORTEST_WORK: Duration = Duration::from_micros(500);
const LONGEST_WORK: Duration = Duration::from_millis(5);

/// How long [`cut_file`] waits for programs that still read old pages, and the pause between two checkpoints.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(2);
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(20);

/// How many candidates one query of the reader returns at most.
const CANDIDATES: usize = 2_000;

/// The numbers of rows that [`Store::prune`] deleted or emptied, and of freed pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Mails whose bytes were deleted; their rows stay.
    pub raw: usize,
    /// Ignored mails that were deleted.
    pub mails: usize,
    /// Deleted attempts of successful deliveries.
    pub attempts: usize,
    /// Pages that were returned to the file system.
    pub pages: u32,
    /// Whether the file has its new size already. A program that still reads old pages delays the new size until the first
    /// checkpoint after its read.
    pub is_file_cut: bool,
}

/// Which rows may be pruned: rows from before the time `before`. `quarantined`: quarantined mails are included.
#[derive(Clone)]
struct Retention {
    before: String,
    quarantined: bool,
}

/// A row that may be deleted or emptied. The fields are the row's key, and its position in the index that [`Kind::find`] uses.
struct PruneCandidate {
    at: String,
    id: i64,
    attempt: i64,
}

/// One kind of row that [`Store::prune`] deletes or empties.
struct Kind {
    /// Selects the candidates that come before a position in an index, the newest first. Parameters: `before`, `quarantined`, the
    /// position (`?3` to `?5`), and the number of candidates.
    find: &'static str,
    /// The statements that change one candidate. If the row is no longer a candidate, the first statement changes nothing, and
    /// the other statements do not run. Parameters: `quarantined`, the candidate's attempt, `before`, the candidate's id.
    change: &'static [&'static str],
    count: fn(&mut Pruned) -> &mut usize,
}

const KINDS: [Kind; 3] = [
    Kind {
        find: "SELECT '' AS at, id, 0 AS attempt FROM mails INDEXED BY mails_by_outcome
            WHERE outcome = 'ignored' AND id < ?4 AND event_id IS NULL AND judged_at < ?1
            ORDER BY id DESC LIMIT ?6",
        change: &["DELETE FROM mails WHERE id = ?4 AND outcome = 'ignored' AND event_id IS NULL AND judged_at < ?3"],
        count: |pruned| &mut pruned.mails,
    },
    Kind {
        find: "SELECT judged_at AS at, id, 0 AS attempt FROM mails INDEXED BY mails_to_prune
            WHERE raw IS NOT NULL AND judged_at < ?1 AND (judged_at, id) < (?3, ?4) AND outcome <> 'deferred'
              AND (?2 OR outcome <> 'quarantined')
              AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = mails.event_id AND d.state <> 'delivered')
            ORDER BY judged_at DESC, id DESC LIMIT ?6",
        // SQLite merges half-empty pages when a row is removed from a page, but not when a row becomes shorter. So these
        // statements give the row an unused id, and then its old id.
        change: &[
            "UPDATE mails SET raw = NULL, id = -id WHERE id = ?4 AND raw IS NOT NULL AND judged_at < ?3
               AND outcome <> 'deferred' AND (?1 OR outcome <> 'quarantined')
               AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = mails.event_id AND d.state <> 'delivered')",
            "UPDATE mails SET id = -id WHERE id = -?4",
        ],
        count: |pruned| &mut pruned.raw,
    },
    Kind {
        find: "SELECT at, delivery_id AS id, attempt FROM attempts INDEXED BY attempts_by_time
            WHERE at < ?1 AND (at, delivery_id, attempt) < (?3, ?4, ?5)
              AND EXISTS (SELECT 1 FROM deliveries d WHERE d.id = delivery_id AND d.state = 'delivered' AND d.delivered_at < ?1)
            ORDER BY at DESC, delivery_id DESC, attempt DESC LIMIT ?6",
        change: &["DELETE FROM attempts WHERE delivery_id = ?4 AND attempt = ?2 AND at < ?3
            AND EXISTS (SELECT 1 FROM deliveries d WHERE d.id = delivery_id AND d.state = 'delivered' AND d.delivered_at < ?3)"],
        count: |pruned| &mut pruned.attempts,
    },
];

impl Store {
    /// Deletes rows and bytes that are older than `before` (in the form of [`crate::model::iso`]) and no longer needed, and
    /// returns free pages to the file system. `progress` is called after each transaction.
    ///
    /// Events, deliveries and the rows of their mails stay, because the program recognises a repeated mail by these rows. A mail
    /// keeps its bytes while it is deferred, or while its event has a delivery that is not `delivered`. A quarantined mail also
    /// keeps its bytes, unless `quarantined` is set.
    ///
    /// # Errors
    ///
    /// [`super::Error`]. Earlier transactions are committed, and pruning can be repeated.
    pub async fn prune(&self, before: String, quarantined: bool, progress: impl FnMut(&Pruned)) -> Result<Pruned> {
        let retention = Retention { before, quarantined };
        let mut pruning = Pruning { store: self, pruned: Pruned::default(), work: FIRST_WORK, progress };
        let reader = self.reader()?;
        for kind in &KINDS {
            pruning.delete(&reader, kind, &retention).await?;
        }
        drop(reader);
        Ok(Pruned { is_file_cut: cut_file(&self.settings.path).await?, ..pruning.pruned })
    }
}

/// Cuts the database file to its new size. SQLite cuts the file when a checkpoint has copied the whole WAL, which is impossible
/// while a reader needs older pages. `false`: a reader still needed older pages after [`CHECKPOINT_PATIENCE`].
async fn cut_file(path: &Path) -> Result<bool> {
    let connection = schema::open(path)?;
    let begun = Instant::now();
    while !schema::checkpoint(&connection).map_err(|error| Error::from_sqlite(path, error))? {
        if begun.elapsed() > CHECKPOINT_PATIENCE {
            return Ok(false);
        }
        tokio::time::sleep(CHECKPOINT_PAUSE).await;
    }
    Ok(true)
}

struct Pruning<'s, P> {
    store: &'s Store,
    pruned: Pruned,
    /// How long the next transaction works before its commit.
    work: Duration,
    progress: P,
}

impl<P: FnMut(&Pruned)> Pruning<'_, P> {
    async fn delete(&mut self, reader: &StoreReader, kind: &Kind, retention: &Retention) -> Result<()> {
        let mut position = PruneCandidate { at: retention.before.clone(), id: i64::MAX, attempt: i64::MAX };
        loop {
            let mut candidates = find(reader, kind, retention, &position)?;
            let is_last = candidates.len() < CANDIDATES;
            while !candidates.is_empty() {
                let (retention, change) = (retention.clone(), kind.change);
                let step = move |tx: &Connection, work| change_some(tx, change, &retention, candidates, work);
                let (changed, last, left) = self.step(step).await?;
                *(kind.count)(&mut self.pruned) += changed;
                (self.progress)(&self.pruned);
                (position, candidates) = (last.unwrap_or(position), left);
            }
            self.shrink().await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Returns free pages to the file system. SQLite moves used pages from the end of the file into free pages, and cuts the end.
    /// For each moved page, SQLite searches the list of free pages, so this list must be short. With the free pages of a million
    /// mails in the list, each returned page took a millisecond.
    async fn shrink(&mut self) -> Result<()> {
        loop {
            let (freed, is_done) = self.step(free_some).await?;
            self.pruned.pages += freed;
            (self.progress)(&self.pruned);
            if is_done {
                return Ok(());
            }
        }
    }

    /// Runs `work` in one transaction, and then pauses for as long as the transaction took, so that other programs can write.
    async fn step<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection, Duration) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let longest = self.work;
        // The measured time begins with the first statement. Before this statement, the writer may wait for a lock, or
        // checkpoint the WAL. A checkpoint holds no lock that another writer needs.
        let (begun, done) = self
            .store
            .write(move |tx| {
                let begun = Instant::now();
                Ok((begun, work(tx, longest)?))
            })
            .await?;
        let took = begun.elapsed();
        self.work = next_work(longest, took);
        tokio::time::sleep(took).await;
        Ok(done)
    }
}

/// How long the next transaction works, if the last transaction worked for `work`, and took `took` together with its commit. The
/// time of a commit depends on the disk, on the number of changed pages, and on the load of the machine.
fn next_work(work: Duration, took: Duration) -> Duration {
    let ratio = AIM.as_secs_f64() / took.max(SHORTEST_WORK).as_secs_f64();
    work.mul_f64(ratio.min(2.0)).clamp(SHORTEST_WORK, LONGEST_WORK)
}

fn find(
    reader: &StoreReader,
    kind: &Kind,
    retention: &Retention,
    position: &PruneCandidate,
) -> Result<Vec<PruneCandidate>> {
    let Retention { before, quarantined } = retention;
    let number = i64::try_from(CANDIDATES).unwrap_or(i64::MAX);
    let parameters: [&dyn ToSql; 6] = [before, quarantined, &position.at, &position.id, &position.attempt, &number];
    reader.query_all(kind.find, &parameters, candidate)
}

fn candidate(row: &Row) -> rusqlite::Result<PruneCandidate> {
    Ok(PruneCandidate { at: row.get("at")?, id: row.get("id")?, attempt: row.get("attempt")? })
}

/// Changes candidates until the time `work` has passed. Returns the number of changed candidates, the last candidate that was
/// tried, and the candidates that are left.
fn change_some(
    tx: &Connection,
    change: &[&str],
    retention: &Retention,
    candidates: Vec<PruneCandidate>,
    work: Duration,
) -> Result<(usize, Option<PruneCandidate>, Vec<PruneCandidate>)> {
    let begun = Instant::now();
    let mut statements = change.iter().map(|sql| tx.prepare_cached(sql)).collect::<rusqlite::Result<Vec<_>>>()?;
    let (mut changed, mut last, mut left) = (0, None, candidates.into_iter());
    for candidate in left.by_ref() {
        let parameters = params![retention.quarantined, candidate.attempt, retention.before, candidate.id];
        let mut is_changed = true;
        for statement in &mut statements {
            is_changed = is_changed && statement.execute(parameters)? > 0;
        }
        changed += usize::from(is_changed);
        last = Some(candidate);
        if begun.elapsed() >= work {
            break;
        }
    }
    Ok((changed, last, left.collect()))
}

/// Returns free pages to the file system until the time `work` has passed. The result is the number of these pages, and whether
/// the job is done: no free page is left, or the file was created without `auto_vacuum`.
fn free_some(tx: &Connection, work: Duration) -> Result<(u32, bool)> {
    let begun = Instant::now();
    let free = || tx.pragma_query_value(None, "freelist_count", |row| row.get::<_, u32>(0));
    let before = free()?;
    let mut left = before;
    while left > 0 && begun.elapsed() < work {
        // SQLite returns one page to the file system for each row of the result, so all rows are read.
        let mut statement = tx.prepare_cached("PRAGMA incremental_vacuum(16)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        let pages_left = free()?;
        if pages_left == left {
            return Ok((before - pages_left, true));
        }
        left = pages_left;
    }
    Ok((before - left, left == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{self, query_plan};

    const BEFORE: &str = "2026-01-01T00:00:00.000Z";

    /// A store with mails of four outcomes, and with as many events as mails. Each event has a delivery with an attempt, and
    /// every fifth delivery is dead.
    async fn filled(folder: &tempfile::TempDir, mails: u32) -> Store {
        let store = testing::store(folder);
        let rows = format!(
            "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {mails}) SELECT i FROM n;
             INSERT INTO events (event_id, status, webhook, created_at) SELECT 'e' || i, 'completed', '{{}}', '2025' FROM n;
             INSERT INTO deliveries (id, event_id, target, state, delivered_at, created_at)
               SELECT i, 'e' || i, 'shop', iif(i % 5, 'delivered', 'dead'), '2025-03-05', '2025' FROM n;
             INSERT INTO attempts (delivery_id, attempt, at) SELECT i, 1, '2025-03-05' FROM n;
             INSERT INTO mails (account, mailbox, size, sha256, raw, judged_at, outcome, event_id)
               SELECT 'shop', 'import', 6200, i, randomblob(6200), iif(i % 2, '2025', '2027'),
                 CASE i % 4 WHEN 0 THEN 'ignored' WHEN 1 THEN 'event' WHEN 2 THEN 'deferred' ELSE 'quarantined' END,
                 iif(i % 4 = 1, 'e' || i, NULL) FROM n;
             UPDATE mails SET judged_at = '2025' WHERE outcome = 'ignored' AND id % 8 = 0;"
        );
        store.write(move |tx| Ok(tx.execute_batch(&rows)?)).await.unwrap();
        store
    }

    /// Counts the old ignored mails, the mails without bytes, the mails whose bytes should still be there, and the attempts.
    const KEPT: &str = "SELECT
        (SELECT count(*) FROM mails WHERE outcome = 'ignored' AND judged_at < '2026'),
        (SELECT count(*) FROM mails WHERE raw IS NULL),
        (SELECT count(*) FROM mails WHERE raw IS NULL AND (judged_at > '2026' OR outcome = 'deferred' OR EXISTS (
           SELECT 1 FROM deliveries d WHERE d.event_id = mails.event_id AND d.state <> 'delivered'))),
        (SELECT count(*) FROM attempts)";

    #[tokio::test]
    async fn pruning_keeps_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(&folder, 4_000).await;
        let kept = |row: &Row| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]);
        let mut calls = 0;
        let pruned = store.prune(BEFORE.into(), false, |_| calls += 1).await.unwrap();
        // A quarter of the mails have events, and every fifth of these events has a dead delivery.
        assert_eq!((pruned.mails, pruned.raw, pruned.attempts), (500, 800, 3_200));
        assert!(calls > 3, "{calls}");
        assert_eq!(store.reader().unwrap().query_one(KEPT, &[], kept).unwrap(), Some([0, 800, 0, 800]));
        let again = store.prune(BEFORE.into(), true, |_| ()).await.unwrap();
        assert_eq!((again.mails, again.raw, again.attempts), (0, 1_000, 0), "the quarantined ones");
    }

    #[tokio::test]
    async fn pruning_returns_space_without_growing() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(&folder, 4_000).await;
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).map_or(0, |file| file.len());
        store.close().await;
        let before = size("m.db");
        let store = testing::store(&folder);
        let mut largest = 0;
        let pruned = store.prune(BEFORE.into(), true, |_| largest = largest.max(size("m.db"))).await.unwrap();
        store.close().await;
        assert!(largest <= before, "{largest} of {before}");
        let (after, free) = (size("m.db"), u64::from(pruned.pages) * 4_096);
        assert!(after <= before - free, "{after} of {before}, freed {free}");
        // A mail of this size fills two pages: a leaf page and an overflow page. When its bytes are deleted, the overflow page
        // becomes free. SQLite then puts several short rows into one leaf page, so most leaf pages become free, too.
        let emptied = (pruned.mails + pruned.raw) as u64;
        assert!(free > emptied * 7_000, "{pruned:?}");
    }

    #[tokio::test]
    async fn a_reader_delays_the_new_size() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(&folder, 400).await;
        let reader = store.reader().unwrap();
        reader.connection().execute_batch("BEGIN; SELECT count(*) FROM mails").unwrap();
        let pruned = store.prune(BEFORE.into(), false, |_| ()).await.unwrap();
        assert!(pruned.pages > 0 && !pruned.is_file_cut, "{pruned:?}");
        drop(reader);
        assert!(store.prune(BEFORE.into(), false, |_| ()).await.unwrap().is_file_cut);
        let pages: u32 =
            store.reader().unwrap().connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        assert_eq!(std::fs::metadata(folder.path().join("m.db")).unwrap().len(), u64::from(pages) * 4_096);
    }

    #[test]
    fn steps_follow_the_measured_time() {
        let millis = Duration::from_millis;
        assert_eq!(next_work(millis(1), millis(2)), millis(2), "it grows slowly");
        assert_eq!(next_work(millis(4), millis(6)), LONGEST_WORK);
        assert_eq!(next_work(millis(5), millis(20)), millis(2), "the commit takes longer");
        assert_eq!(next_work(millis(5), millis(600)), SHORTEST_WORK, "the machine is busy");
        // On one disk, the commit takes as long as the work; on the other disk, the commit takes three times as long.
        for (commit, expected) in [(1.0, 4_000), (3.0, 2_000)] {
            let settled = (0..20).fold(FIRST_WORK, |work, _| next_work(work, work.mul_f64(1.0 + commit)));
            assert!(settled.abs_diff(Duration::from_micros(expected)) < millis(1), "{settled:?}");
        }
    }

    #[tokio::test]
    async fn searches_for_old_rows_use_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let reader = filled(&folder, 1).await.reader().unwrap();
        for kind in &KINDS {
            for sql in kind.change.iter().copied().chain([kind.find]) {
                for step in query_plan(reader.connection(), sql) {
                    assert!(!step.starts_with("SCAN") && !step.contains("TEMP B-TREE"), "{sql}: {step}");
                }
            }
        }
    }
}
