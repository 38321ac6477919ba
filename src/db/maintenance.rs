//! Counts the mails, events and deliveries that need review, measures the database file, and makes backups.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode};

use super::disk::free_space;
use super::{EMPTY_SHA256, Error, Result, Store, StoreReader, schema, word};
use crate::model::DeliveryState;

/// No transaction of this program takes as long as this.
const LONGEST_TRANSACTION: Duration = Duration::from_secs(2);

/// The numbers of mails, events and deliveries that need review.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Quarantined mails whose bytes are stored, so that they can be released.
    pub quarantined: i64,
    /// Mails that the server lists and does not deliver.
    pub undelivered: i64,
    /// Events that are held because of a conflict.
    pub conflicting: i64,
    /// Events that are held because their session is unknown. This number does not include events that a chain has not confirmed,
    /// and events whose session the daemon still searches for at Resmic.
    pub unresolved: i64,
    /// Deliveries that were given up.
    pub dead: i64,
    /// Pending deliveries to targets that are not configured.
    pub orphaned: i64,
    /// Deferred mails of accounts that are not configured.
    pub unjudged: i64,
    /// Events that the chain contradicts.
    pub doubtful: i64,
    /// Events that are held because the chain proves nothing about them.
    pub unproven: i64,
}

impl StoreReader {
    /// Counts the mails, events and deliveries that need review. `targets`, `accounts`: the configured names.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn backlog(&self, targets: &[String], accounts: &[&str]) -> Result<Backlog> {
        // Partial indexes of `mails` make these counts fast. The recursive query `pending` lists the targets with pending
        // deliveries, with one search in an index for each target.
        let sql = "SELECT
            (SELECT count(*) FROM mails INDEXED BY mails_to_review WHERE outcome = 'quarantined' AND raw IS NOT NULL),
            (SELECT count(*) FROM mails INDEXED BY mails_without_raw
               WHERE outcome = 'quarantined' AND raw IS NULL AND sha256 = ?3),
            (SELECT n FROM counts WHERE name = 'held' AND key = 'conflict'),
            (SELECT n FROM counts WHERE name = 'held' AND key = 'session') - (
               SELECT count(*) FROM confirmations c JOIN events e ON e.event_id = c.event_id
               WHERE c.state IN ('waiting', 'doubtful', 'unproven') AND e.session_id IS NULL AND e.hold IS NULL
                 AND EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = c.event_id AND d.state = 'held')) - (
               SELECT count(*) FROM session_searches s JOIN events e ON e.event_id = s.event_id
               WHERE s.next_ask_at IS NOT NULL AND s.result IS NULL AND e.session_id IS NULL AND e.hold IS NULL
                 AND EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = s.event_id AND d.state = 'held')
                 AND NOT EXISTS (SELECT 1 FROM confirmations c WHERE c.event_id = s.event_id
                                 AND c.state IN ('waiting', 'doubtful', 'unproven'))),
            (SELECT n FROM counts WHERE name = 'deliveries' AND key = 'dead'),
            (WITH RECURSIVE pending (target) AS (
               SELECT min(target) FROM deliveries WHERE state = 'pending'
               UNION ALL SELECT (SELECT min(d.target) FROM deliveries d WHERE d.state = 'pending' AND d.target > p.target)
               FROM pending p WHERE p.target IS NOT NULL)
             SELECT sum((SELECT count(*) FROM deliveries d WHERE d.state = 'pending' AND d.target = p.target))
             FROM pending p WHERE p.target NOT IN (SELECT value FROM json_each(?1))),
            (SELECT count(*) FROM mails INDEXED BY mails_deferred WHERE outcome = 'deferred'
               AND account NOT IN (SELECT value FROM json_each(?2))),
            (SELECT n FROM counts WHERE name = 'confirmations' AND key = 'doubtful'),
            (SELECT count(*) FROM confirmations c WHERE c.state = 'unproven'
               AND EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = c.event_id AND d.state = 'held'))";
        let json = |names: serde_json::Result<String>| names.unwrap_or_else(|_| "[]".into());
        let (targets, accounts) = (json(serde_json::to_string(targets)), json(serde_json::to_string(accounts)));
        let found = self.query_one(sql, &[&targets, &accounts, &EMPTY_SHA256], |row| {
            // SQLite's `sum` over no rows is NULL.
            let number = |n| Ok::<i64, rusqlite::Error>(row.get::<_, Option<i64>>(n)?.unwrap_or(0));
            Ok(Backlog {
                quarantined: number(0)?,
                undelivered: number(1)?,
                conflicting: number(2)?,
                unresolved: number(3)?,
                dead: number(4)?,
                orphaned: number(5)?,
                unjudged: number(6)?,
                doubtful: number(7)?,
                unproven: number(8)?,
            })
        })?;
        Ok(found.unwrap_or_default())
    }

    /// For each state except `delivered`, the creation time of the delivery with the lowest id.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn oldest_deliveries(&self) -> Result<Vec<(DeliveryState, String)>> {
        let sql = "SELECT d.state, d.created_at FROM (VALUES ('held'), ('pending'), ('dead')) AS s
            JOIN deliveries d ON d.id = (SELECT o.id FROM deliveries o INDEXED BY deliveries_open
              WHERE o.state = s.column1 AND o.state <> 'delivered' ORDER BY o.id LIMIT 1)";
        self.query_all(sql, &[], |row| Ok((word(row, "state")?, row.get(1)?)))
    }

    /// Whether a delivery to one of `targets` was already due at the time `since`, and no delivery was attempted after that time.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn outbox_stands_still(&self, targets: &[String], since: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM json_each(?2) t CROSS JOIN deliveries d INDEXED BY deliveries_due
                WHERE d.state = 'pending' AND d.target = t.value AND d.next_attempt_at < ?1)
            AND NOT EXISTS (SELECT 1 FROM attempts WHERE at >= ?1)";
        let names = serde_json::to_string(targets).unwrap_or_default();
        Ok(self.query_one(sql, &[&since, &names], |row| row.get(0))?.unwrap_or(false))
    }

    /// `judged_at` of the mail with the highest id: when the mail's outcome was last decided. `None`: no mail is stored.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn last_mail(&self) -> Result<Option<String>> {
        self.query_one("SELECT judged_at FROM mails ORDER BY id DESC LIMIT 1", &[], |row| row.get(0))
    }

    /// The size of the database file in bytes.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn size(&self) -> Result<i64> {
        let sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
        Ok(self.query_one(sql, &[], |row| row.get(0))?.unwrap_or(0))
    }

    /// The free bytes on the database's disk for an unprivileged process; `None` if the system does not say.
    #[must_use]
    pub fn free_disk_space(&self) -> Option<u64> {
        free_space(self.path())
    }

    /// The bytes in the WAL that are not checkpointed yet. A running read transaction blocks the checkpoint of newer pages.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn checkpoint_backlog(&self) -> Result<u64> {
        let sqlite = |e| Error::from_sqlite(self.path(), e);
        let pages = match schema::checkpoint_backlog(self.connection()) {
            // On a read-only file, SQLite refuses `PRAGMA wal_checkpoint`.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => 0,
            pages => pages.map_err(sqlite)?,
        };
        let size: i64 = self.connection().pragma_query_value(None, "page_size", |row| row.get(0)).map_err(sqlite)?;
        Ok(u64::try_from(pages.saturating_mul(size)).unwrap_or(0))
    }

    /// Whether another program has held the write lock for longer than any transaction of this program. In a backfill, many
    /// short transactions in a row may also keep this check from taking the lock. The result is then `false`, because the
    /// commits of these transactions change `data_version`.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let before = self.data_version().ok();
        schema::is_busy(self.path(), LONGEST_TRANSACTION) && before.is_some() && self.data_version().ok() == before
    }

    /// Writes a consistent copy of the database to a new file, also while the daemon runs. The copy gets the name `to` only after
    /// an integrity check.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if `to` exists or cannot be written, or if the copy is damaged; otherwise an error of SQLite.
    pub fn backup(&self, to: &Path) -> Result<()> {
        let io = |error| {
            let advice = "check that its folder exists and can be written";
            Error::Refused(format!("cannot write the copy {}: {error}; {advice}", to.display()))
        };
        let folder = to.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if to.symlink_metadata().is_ok() {
            return Err(Error::Refused(format!("{} exists already; a backup never overwrites a file", to.display())));
        }
        let mut part = to.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = Path::new(&part);
        let copied = create_private(part).map_err(io).and_then(|()| self.write_copy(part)).and_then(|()| {
            File::open(part).and_then(|file| file.sync_all()).map_err(io)?;
            give_name(part, to, |part, to| fs::hard_link(part, to)).map_err(io)?;
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
        });
        match fs::remove_file(part) {
            // A rename has given `part` its final name, or `part` was never created.
            Err(error) if error.kind() == ErrorKind::NotFound => copied,
            removed => copied.and(removed.map_err(io)),
        }
    }

    fn write_copy(&self, to: &Path) -> Result<()> {
        let sqlite = |e| Error::from_sqlite(to, e);
        let mut copy = Connection::open(to).map_err(sqlite)?;
        // The copy is made in one step, from one snapshot. So a commit during the copy neither waits for the copy nor makes the
        // copy start again.
        let step = Backup::new(self.connection(), &mut copy).and_then(|backup| backup.step(-1)).map_err(sqlite)?;
        if step != StepResult::Done {
            return Err(Error::Locked(to.to_owned()));
        }
        // With `journal_mode = DELETE`, the copy is one file, without a `-wal` file. The next program that opens the copy for
        // writing turns on WAL mode.
        copy.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite)?;
        let integrity: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
        if integrity == "ok" { Ok(()) } else { Err(Error::Refused(format!("the copy is damaged: {integrity}"))) }
    }
}

/// Gives the copy `part` the name `to`. A hard link never replaces a file that was created meanwhile, but a rename does. On file
/// systems without hard links (vfat, many network shares), this function creates an empty file `to` and renames `part` over it.
fn give_name(part: &Path, to: &Path, link: impl Fn(&Path, &Path) -> std::io::Result<()>) -> std::io::Result<()> {
    match link(part, to) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            create_private(to)?;
            fs::rename(part, to).inspect_err(|_| drop(fs::remove_file(to)))
        }
        linked => linked,
    }
}

/// Creates a file that only its owner may read, because it will contain payments.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

impl Store {
    /// Commits an empty transaction, and returns when the writer thread has replied.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if another program holds the lock; [`Error::Stopped`] if the writer thread has ended.
    pub async fn ping(&self) -> Result<()> {
        self.write(|_| Ok(())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naming_a_copy_replaces_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let [part, to, taken] = ["part", "to", "taken"].map(|name| folder.path().join(name));
        fs::write(&part, "copy").unwrap();
        fs::write(&taken, "before").unwrap();
        let no_links = |_: &Path, _: &Path| Err(ErrorKind::PermissionDenied.into());
        let error = give_name(&part, &taken, no_links).unwrap_err();
        assert_eq!((error.kind(), fs::read(&taken).unwrap().as_slice()), (ErrorKind::AlreadyExists, &b"before"[..]));
        give_name(&part, &to, no_links).unwrap();
        assert_eq!((fs::read(&to).unwrap().as_slice(), part.exists()), (&b"copy"[..], false));
    }
}
