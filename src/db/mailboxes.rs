//! The cursor and the state of each mailbox.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Result, Store, current_time};
use crate::model::{MailboxState, StartBoundary, SyncPosition, Uid, iso};

/// The cursor of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The account's name.
    pub account: String,
    /// The mailbox's name on the server.
    pub mailbox: String,
    /// The UIDVALIDITY and UID of the cursor. Every mail up to this UID is settled, or excluded by `start`.
    pub position: SyncPosition,
}

/// Mails that show whether the server's UIDs still mean the same mails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UidFingerprints {
    /// The mails' UIDs and internal dates.
    pub mails: Vec<(Uid, Timestamp)>,
    /// The highest id in the table `mails`. Mails that are stored later get higher ids.
    pub last_row: i64,
}

impl Store {
    /// The stored mails of the last `reach` UIDs up to this cursor. Mails without an internal date are left out, and so are mails
    /// that were stored before the mailbox was renumbered.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn uid_fingerprints(&self, cursor: &Cursor, reach: u32) -> Result<UidFingerprints> {
        let Cursor { account, mailbox, position } = cursor.clone();
        self.write(move |tx| {
            let mut statement = tx.prepare_cached(
                "SELECT uid, received_at FROM mails
                 WHERE account = ?1 AND mailbox = ?2 AND uid_validity = ?3 AND uid > ?4 AND uid <= ?5 AND id > ?6",
            )?;
            let last = position.last_uid;
            let parameters = params![
                account,
                mailbox,
                position.uid_validity,
                last.0.saturating_sub(reach),
                last,
                position.renumbered_after
            ];
            let rows = statement.query_map(parameters, |row| Ok((row.get(0)?, super::parse_time(row.get(1)?))))?;
            let rows = rows.collect::<rusqlite::Result<Vec<(Uid, Option<Timestamp>)>>>()?;
            let last_row = tx.query_row("SELECT coalesce(max(id), 0) FROM mails", [], |row| row.get(0))?;
            let mails = rows.into_iter().filter_map(|(uid, at)| Some((uid, at?))).collect();
            Ok(UidFingerprints { mails, last_row })
        })
        .await
    }

    /// The cursor of a mailbox; `None` before the first sync.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn cursor(&self, account: &str, mailbox: &str) -> Result<Option<Cursor>> {
        let (account, mailbox) = (account.to_owned(), mailbox.to_owned());
        self.write(move |tx| {
            let found = tx
                .prepare_cached(
                    "SELECT uid_validity, last_uid, begun_at, begun_uid, newest_at, renumbered_after FROM mailboxes
                     WHERE account = ?1 AND mailbox = ?2 AND uid_validity IS NOT NULL AND last_uid IS NOT NULL",
                )?
                .query_row(params![account, mailbox], read_position)
                .optional()?;
            Ok(found.map(|position| Cursor { account, mailbox, position }))
        })
        .await
    }

    /// Deletes the row of `mailboxes` that has a special-use attribute, such as `\Junk`, in place of a mailbox's name. Call this
    /// when the server has reported the name.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn forget_mailbox(&self, account: &str, attribute: &str) -> Result<()> {
        let (account, attribute) = (account.to_owned(), attribute.to_owned());
        self.write(move |tx| {
            tx.prepare_cached("DELETE FROM mailboxes WHERE account = ?1 AND mailbox = ?2 AND last_uid IS NULL")?
                .execute(params![account, attribute])?;
            Ok(())
        })
        .await
    }

    /// Writes the state of a mailbox into `mailboxes`. `seen`: a round trip to the mail server was completed just now.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn note_mailbox(
        &self,
        account: &str,
        mailbox: &str,
        state: MailboxState,
        seen: bool,
        error: Option<String>,
    ) -> Result<()> {
        let (account, mailbox) = (account.to_owned(), mailbox.to_owned());
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO mailboxes (account, mailbox, state, last_seen_at, last_error) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET state = excluded.state, last_error = excluded.last_error,
                   last_seen_at = coalesce(excluded.last_seen_at, last_seen_at)",
            )?
            .execute(params![account, mailbox, state.as_str(), seen.then(current_time), error])?;
            Ok(())
        })
        .await
    }
}

fn read_position(row: &Row) -> rusqlite::Result<SyncPosition> {
    let begun_at = super::parse_time(row.get("begun_at")?);
    let begun_uid: Option<Uid> = row.get("begun_uid")?;
    Ok(SyncPosition {
        uid_validity: row.get("uid_validity")?,
        last_uid: row.get("last_uid")?,
        start_boundary: begun_at.zip(begun_uid).map(|(at, uid)| StartBoundary { at, uid }),
        newest_at: super::parse_time(row.get("newest_at")?),
        renumbered_after: row.get("renumbered_after")?,
    })
}

/// Writes the cursor of a mailbox into `mailboxes`. `tx` is the transaction that stores the mails up to the cursor.
pub(crate) fn advance(tx: &Connection, cursor: &Cursor) -> Result<()> {
    let Cursor { account, mailbox, position } = cursor;
    tx.prepare_cached(
        "INSERT INTO mailboxes (account, mailbox, uid_validity, last_uid, last_seen_at, begun_at, begun_uid, newest_at,
           renumbered_after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT DO UPDATE SET uid_validity = excluded.uid_validity, last_uid = excluded.last_uid,
           last_seen_at = excluded.last_seen_at, begun_at = excluded.begun_at, begun_uid = excluded.begun_uid,
           newest_at = excluded.newest_at, renumbered_after = excluded.renumbered_after",
    )?
    .execute(params![
        account,
        mailbox,
        position.uid_validity,
        position.last_uid,
        current_time(),
        position.start_boundary.map(|start_boundary| iso(start_boundary.at)),
        position.start_boundary.map(|start_boundary| start_boundary.uid),
        position.newest_at.map(iso),
        position.renumbered_after
    ])?;
    Ok(())
}
