//! How far each mailbox has been read, and how it is.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Result, Store, now};
use crate::model::MailboxState;

/// How far a mailbox has been read: every mail up to `last_uid` is stored, or was seen to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The account's name.
    pub account: String,
    /// The mailbox's name on the server.
    pub mailbox: String,
    /// The numbering that `last_uid` belongs to (RFC 3501, 2.3.1.1).
    pub uid_validity: u32,
    /// The highest UID read.
    pub last_uid: u32,
}

/// A mail by which it can be seen whether a numbering still means the same mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landmark {
    /// Its UID.
    pub uid: u32,
    /// When the server took it.
    pub received_at: Timestamp,
}

impl Store {
    /// The last mail that was recorded under this cursor's numbering, if the server said when it took it.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn landmark(&self, cursor: &Cursor) -> Result<Option<Landmark>> {
        let Cursor { account, mailbox, uid_validity, last_uid } = cursor.clone();
        self.write(move |tx| {
            let found = tx
                .prepare_cached(
                    "SELECT uid, received_at FROM mails
                     WHERE account = ?1 AND mailbox = ?2 AND uid_validity = ?3 AND uid <= ?4
                     ORDER BY uid DESC, id DESC LIMIT 1",
                )?
                .query_row(params![account, mailbox, uid_validity, last_uid], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            Ok(found.and_then(|(uid, at)| Some(Landmark { uid, received_at: super::moment(at)? })))
        })
        .await
    }

    /// The cursor of a mailbox; `None` before its first sync.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn cursor(&self, account: &str, mailbox: &str) -> Result<Option<Cursor>> {
        let (account, mailbox) = (account.to_owned(), mailbox.to_owned());
        self.write(move |tx| {
            let found = tx
                .prepare_cached(
                    "SELECT uid_validity, last_uid FROM mailboxes
                     WHERE account = ?1 AND mailbox = ?2 AND uid_validity IS NOT NULL AND last_uid IS NOT NULL",
                )?
                .query_row(params![account, mailbox], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            Ok(found.map(|(uid_validity, last_uid)| Cursor { account, mailbox, uid_validity, last_uid }))
        })
        .await
    }

    /// Forgets what was noted under an attribute, now that the mailbox has a name.
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

    /// Notes how a mailbox is. `seen`: a round trip was completed just now.
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
            .execute(params![account, mailbox, state.as_str(), seen.then(now), error])?;
            Ok(())
        })
        .await
    }
}

/// Moves the cursor, inside the transaction that stores what it passes.
pub(super) fn advance(tx: &Connection, cursor: &Cursor) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO mailboxes (account, mailbox, uid_validity, last_uid, last_seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET uid_validity = excluded.uid_validity, last_uid = excluded.last_uid,
           last_seen_at = excluded.last_seen_at",
    )?
    .execute(params![cursor.account, cursor.mailbox, cursor.uid_validity, cursor.last_uid, now()])?;
    Ok(())
}
