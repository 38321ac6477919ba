//! The rows in the table `mails` of mails whose bytes the IMAP server did not deliver.
//!
//! A new row for an undelivered mail has the outcome `quarantined`, a reason with the code `unavailable`, and NULL in `raw`. If
//! the bytes arrive later, they are stored under the same row id.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::record::Recorded;
use crate::db::{Cursor, EMPTY_SHA256, Result, Store, StoreReader, current_time, parse_time};
use crate::model::{Availability, Outcome, RawMail, Reason, Undelivered, iso};

/// The most UIDs that [`Store::undelivered`] returns for one mailbox.
const MOST: u32 = 10_000;

/// The rows in the table `mails` that have the account, mailbox, UIDVALIDITY and UID of one mail.
#[derive(Debug, Default)]
pub(super) struct RowsOfUid {
    /// The event id in the row that has the same bytes as the mail. The outer `None`: there is no such row. The inner `None`: the
    /// row has no event.
    pub(super) same: Option<Option<String>>,
    /// The id of the row without bytes, if there is one.
    pub(super) without_bytes: Option<i64>,
}

/// Finds the rows in the table `mails` that have the UID of this mail. `sha256` is the hash of the mail's bytes.
pub(super) fn of_uid(tx: &Connection, mail: &RawMail, sha256: &str) -> Result<RowsOfUid> {
    let mut found = RowsOfUid::default();
    let Some((validity, uid)) = mail.origin.uid else { return Ok(found) };
    let mut statement = tx.prepare_cached(
        "SELECT id, event_id, sha256, raw IS NULL FROM mails
         WHERE account = ?1 AND mailbox = ?2 AND uid_validity = ?3 AND uid = ?4",
    )?;
    let mut rows = statement.query(params![mail.origin.account, mail.origin.mailbox, validity, uid])?;
    while let Some(row) = rows.next()? {
        let (hash, lacks_bytes) = (row.get_ref(2)?.as_str().unwrap_or_default(), row.get(3)?);
        if hash == EMPTY_SHA256 && lacks_bytes {
            found.without_bytes = Some(row.get(0)?);
        } else if hash == sha256 {
            found.same = Some(row.get(1)?);
        }
    }
    Ok(found)
}

/// Inserts, updates or removes the row in `mails` of a mail whose bytes the server did not deliver. `row` is the id of the mail's
/// existing row without bytes.
pub(super) fn record(tx: &Connection, mail: &Undelivered, row: Option<i64>) -> Result<Recorded> {
    let (outcome, reason) = match mail.state {
        Availability::Listed => (Outcome::Quarantined, mail.reason()),
        Availability::Gone | Availability::Foreign => (Outcome::Ignored, mail.reason()),
    };
    let mail_id = match (row, mail.state) {
        (None, Availability::Listed) => Some(insert(tx, mail, &reason)?),
        (None, _) => None,
        (Some(id), Availability::Foreign) => {
            remove(tx, id)?;
            None
        }
        (Some(id), _) => {
            set(tx, id, outcome, &reason)?;
            Some(id)
        }
    };
    Ok(Recorded { mail_id, outcome, reason: Some(reason), event_id: None, session_id: None })
}

fn insert(tx: &Connection, mail: &Undelivered, reason: &Reason) -> Result<i64> {
    let (validity, uid) = mail.origin.uid.unzip();
    tx.prepare_cached(
        "INSERT INTO mails (account, mailbox, uid_validity, uid, received_at, size, sha256, outcome, reason, judged_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'quarantined', ?8, ?9)",
    )?
    .execute(params![
        mail.origin.account,
        mail.origin.mailbox,
        validity,
        uid,
        mail.received_at.map(iso),
        i64::try_from(mail.size).unwrap_or(i64::MAX),
        EMPTY_SHA256,
        reason.to_string(),
        current_time()
    ])?;
    Ok(tx.last_insert_rowid())
}

fn set(tx: &Connection, id: i64, outcome: Outcome, reason: &Reason) -> Result<()> {
    tx.prepare_cached("UPDATE mails SET outcome = ?2, reason = ?3, judged_at = ?4 WHERE id = ?1")?.execute(params![
        id,
        outcome.as_str(),
        reason.to_string(),
        current_time()
    ])?;
    Ok(())
}

/// Removes a row without bytes from `mails`, because its mail is not Resmic's, or because the bytes have arrived and the mail
/// gets a new row with the same id.
pub(super) fn remove(tx: &Connection, id: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM mails WHERE id = ?1")?.execute(params![id])?;
    Ok(())
}

/// Changes the outcome of a row without bytes to `duplicate`, because another row has the bytes of the same mail. One mail may
/// have two rows, because two connections may fetch it.
pub(super) fn close(tx: &Connection, id: i64, event_id: Option<&str>) -> Result<()> {
    tx.prepare_cached(
        "UPDATE mails SET outcome = 'duplicate', event_id = ?2, judged_at = ?3,
           reason = 'unavailable: another row of this UID has the mail' WHERE id = ?1",
    )?
    .execute(params![id, event_id, current_time()])?;
    Ok(())
}

impl Store {
    /// Returns the UIDs of the mails whose bytes the server has not delivered yet, in the mailbox and UIDVALIDITY of `cursor`.
    /// Each UID comes with the time at which the server received the mail.
    ///
    /// # Errors
    /// [`crate::db::Error`].
    pub async fn undelivered(&self, cursor: &Cursor) -> Result<Vec<(u32, Option<Timestamp>)>> {
        let Cursor { account, mailbox, position } = cursor.clone();
        self.write(move |tx| {
            // The index over UIDs would be slow, because it also has the many mails whose bytes the server has delivered.
            let mut statement = tx.prepare_cached(
                "SELECT uid, received_at FROM mails INDEXED BY mails_without_raw
                 WHERE outcome = 'quarantined' AND sha256 = ?1 AND raw IS NULL
                   AND account = ?2 AND mailbox = ?3 AND uid_validity = ?4 ORDER BY id LIMIT ?5",
            )?;
            let parameters = params![EMPTY_SHA256, account, mailbox, position.uid_validity, MOST];
            let rows = statement.query_map(parameters, |row| Ok((row.get(0)?, parse_time(row.get(1)?))))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }
}

impl StoreReader {
    /// Whether the mail with this id has a row in `mails`, but the server has not delivered its bytes.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn is_undelivered(&self, id: i64) -> Result<bool> {
        let sql = "SELECT sha256 = ?2 AND raw IS NULL FROM mails WHERE id = ?1";
        Ok(self.query_one(sql, &[&id, &EMPTY_SHA256], |row| row.get(0))?.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::store;
    use crate::model::{Envelope, Examined, Judgement, Origin, ReasonCode, Uid, UidValidity};
    use crate::payments::ExaminedMail;

    fn origin() -> Origin {
        Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(3))) }
    }

    fn undelivered(state: Availability) -> ExaminedMail {
        ExaminedMail::undelivered(Undelivered { origin: origin(), size: 9, received_at: None, state })
    }

    fn delivered(bytes: &[u8]) -> ExaminedMail {
        let mail = RawMail { origin: origin(), bytes: bytes.to_vec(), size: bytes.len() as u64, received_at: None };
        let judgement = Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, "a letter"));
        ExaminedMail::new(mail, Examined { judgement, proof: None, envelope: Envelope::default() })
    }

    async fn rows(store: &Store) -> Vec<String> {
        let sql = "SELECT id || ' ' || outcome || ' ' || coalesce(length(raw), 'NULL') FROM mails ORDER BY id";
        store.reader().unwrap().query_all(sql, &[], |row| row.get(0)).unwrap()
    }

    #[tokio::test]
    async fn a_mail_that_arrives_completes_its_row() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        for _ in 0..2 {
            store.record(vec![undelivered(Availability::Listed)], None).await.unwrap();
            assert_eq!(rows(&store).await, ["1 quarantined NULL"]);
        }
        let recorded = store.record(vec![delivered(b"a mail")], None).await.unwrap();
        assert_eq!(recorded[0].mail_id, Some(1));
        assert_eq!(rows(&store).await, ["1 ignored 6"]);
        let again = store.record(vec![delivered(b"a mail")], None).await.unwrap();
        assert_eq!((again[0].mail_id, again[0].outcome), (None, Outcome::Duplicate));
    }

    #[tokio::test]
    async fn a_mail_stored_under_another_row_is_duplicate() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        for entry in [delivered(b"a mail"), undelivered(Availability::Listed), delivered(b"a mail")] {
            store.record(vec![entry], None).await.unwrap();
        }
        assert_eq!(rows(&store).await, ["1 ignored 6", "2 duplicate NULL"]);
    }

    #[tokio::test]
    async fn an_empty_mail_is_no_undelivered_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        for entry in [delivered(b""), undelivered(Availability::Listed)] {
            store.record(vec![entry], None).await.unwrap();
        }
        assert_eq!(rows(&store).await, ["1 ignored 0"]);
        assert!(!store.reader().unwrap().is_undelivered(1).unwrap());
    }

    #[tokio::test]
    async fn a_watcher_reads_which_mails_were_not_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        store.record(vec![undelivered(Availability::Listed)], None).await.unwrap();
        let cursor =
            |validity| Cursor { account: "shop".into(), mailbox: "INBOX".into(), position: (validity, 3).into() };
        assert_eq!(store.undelivered(&cursor(7)).await.unwrap(), [(3, None)]);
        assert_eq!(store.undelivered(&cursor(8)).await.unwrap(), []);
        store.record(vec![undelivered(Availability::Gone)], None).await.unwrap();
        assert_eq!(store.undelivered(&cursor(7)).await.unwrap(), []);
        assert_eq!(rows(&store).await, ["1 ignored NULL"]);
    }
}
