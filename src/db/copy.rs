//! Reads the schema and the last mail id of a copy of the database before the copy is opened. The last mail id shows whether the
//! copy is at least as new as the database of the last active host. The schema shows whether opening the copy would migrate it.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::{Error, Result, StoreReader, schema};

/// The schema and the last mail id of a copy, which [`inspect_copy`] reads without changing the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyState {
    /// The schema (`PRAGMA user_version`); 0 for a file without tables.
    pub schema: i64,
    /// The last id in `mails`, even if that mail was pruned; 0: no mail was ever stored.
    pub last_mail_id: i64,
}

/// Reads the [`CopyState`] of the copy at `path`, and does not change the file; `None` if there is no file.
///
/// # Errors
/// [`Error::Newer`], [`Error::Foreign`], or an error of SQLite.
pub fn inspect_copy(path: &Path) -> Result<Option<CopyState>> {
    if !path.exists() {
        return Ok(None);
    }
    let schema = schema::inspect(path)?;
    let (connection, _) = schema::read_only(path)?;
    let last_mail_id =
        if schema == 0 { 0 } else { last_mail_id(&connection).map_err(|e| Error::from_sqlite(path, e))? };
    Ok(Some(CopyState { schema, last_mail_id }))
}

/// Reads the highest id that a row of `mails` ever had; 0 before the first mail. For a table with AUTOINCREMENT, SQLite keeps
/// this id in `sqlite_sequence` (sqlite.org/autoinc.html).
fn last_mail_id(connection: &Connection) -> rusqlite::Result<i64> {
    let found = connection.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'mails'", [], |row| row.get(0));
    Ok(found.optional()?.unwrap_or(0))
}

impl StoreReader {
    /// The last id in `mails`, even if that mail was pruned; 0: no mail was ever stored.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn last_mail_id(&self) -> Result<i64> {
        last_mail_id(self.connection()).map_err(|e| Error::from_sqlite(self.path(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pruned_mail_still_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        assert_eq!(inspect_copy(&path).unwrap(), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(inspect_copy(&path).unwrap(), Some(CopyState { schema: 0, last_mail_id: 0 }));
        let connection = schema::open(&path).unwrap();
        assert_eq!(inspect_copy(&path).unwrap(), Some(CopyState { schema: schema::NEWEST_SCHEMA, last_mail_id: 0 }));
        let mails = "INSERT INTO mails (id, account, mailbox, size, sha256, judged_at, outcome)
            VALUES (4, 'a', 'import', 1, '', '', 'ignored'); DELETE FROM mails";
        connection.execute_batch(mails).unwrap();
        assert_eq!(inspect_copy(&path).unwrap().unwrap().last_mail_id, 4);
        assert_eq!(StoreReader::open(&path).unwrap().last_mail_id().unwrap(), 4);
    }
}
