//! Queries of the commands, on read-only connections.

use std::path::{Path, PathBuf};

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use super::confirmations::{self, ConfirmationRow};
use super::pages::List;
use super::{Error, Result, schema, word};
use crate::model::{DeliveryState, Uid, UidValidity, hash_spellings};

/// A read-only connection.
pub struct StoreReader {
    connection: Connection,
    path: PathBuf,
    frozen: bool,
}

/// Which events to read; all conditions that are `Some` apply.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Of this session.
    pub session: Option<String>,
    /// Of this transaction.
    pub transaction: Option<String>,
    /// With this status.
    pub status: Option<String>,
    /// Stored at or after this time, in the database's form.
    pub since: Option<String>,
    /// Stored after this row.
    pub after: Option<i64>,
    /// At most so many, the newest.
    pub limit: Option<u32>,
}

/// A row of `events`; the column names are the JSON keys.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct EventRow {
    #[serde(skip)]
    pub row: i64,
    pub event_id: String,
    pub status: String,
    pub session_id: Option<String>,
    pub session_source: Option<String>,
    pub order_ref: Option<String>,
    pub amount: Option<String>,
    pub currency: Option<String>,
    pub blockchain: Option<String>,
    pub token: Option<String>,
    pub from_wallet_address: Option<String>,
    pub transaction_hash: Option<String>,
    pub tx_time: Option<String>,
    pub tx_time_source: Option<String>,
    #[serde(serialize_with = "as_json")]
    pub webhook: String,
    pub hold: Option<String>,
    pub created_at: String,
    /// `mail`, or `resmic` if Resmic's API reported it.
    pub source: String,
    pub confirmation: Option<ConfirmationRow>,
    /// Whether Resmic has cleared it for delivery; `None`: it does not wait for Resmic.
    pub clearance: Option<String>,
    pub clearance_reason: Option<String>,
}

/// A row of `mails` without the bytes.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MailRow {
    pub id: i64,
    pub account: String,
    pub mailbox: String,
    pub uid_validity: Option<UidValidity>,
    pub uid: Option<Uid>,
    pub message_id: Option<String>,
    pub sender: Option<String>,
    pub recipient: Option<String>,
    pub subject: Option<String>,
    pub sent_at: Option<String>,
    pub received_at: Option<String>,
    pub size: i64,
    pub sha256: String,
    pub outcome: String,
    pub reason: Option<String>,
    pub trust: Option<String>,
    pub trust_domain: Option<String>,
    pub trust_selector: Option<String>,
    pub event_id: Option<String>,
    pub judged_at: String,
}

/// A row of `deliveries`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct DeliveryRow {
    pub id: i64,
    pub event_id: String,
    pub target: String,
    pub state: DeliveryState,
    pub attempts: i64,
    pub next_attempt_at: Option<String>,
    pub last_status: Option<i64>,
    pub last_error: Option<String>,
    pub delivered_at: Option<String>,
    pub created_at: String,
    /// Where a stream has the event; `None`: it was not delivered to a stream.
    pub receipt: Option<String>,
}

/// A row of `mailboxes`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MailboxRow {
    pub account: String,
    pub mailbox: String,
    pub uid_validity: Option<UidValidity>,
    pub last_uid: Option<Uid>,
    pub state: String,
    pub last_seen_at: Option<String>,
    pub last_error: Option<String>,
}

/// Matches a transaction by all spellings of its hash.
pub(crate) const TRANSACTION_CONDITION: &str = "transaction_hash IN (SELECT value FROM json_each(?))";

/// The second part names the condition of the partial index.
const OPEN_CONDITION: &str = "state = ? AND state <> 'delivered'";

/// Most events are completed, so a scan finds them. The others have an index, which is worse than that of a session.
fn status_condition(filter: &EventQuery) -> &'static str {
    let EventQuery { session, transaction, status, .. } = filter;
    let alone = session.is_none() && transaction.is_none();
    if alone && status.as_deref() != Some("completed") { "status = ? AND status <> 'completed'" } else { "status = ?" }
}

impl StoreReader {
    /// Opens the database for reading.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Newer`], [`Error::Foreign`], or an error of SQLite.
    pub fn open(path: &Path) -> Result<Self> {
        let (connection, frozen) = schema::open_reader(path)?;
        Ok(StoreReader { connection, path: path.to_owned(), frozen })
    }

    /// Whether this reader never shows later commits. This happens if the user may not lock the database and no
    /// other program has it open.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Passes events to `each`, oldest first. Returns whether older events were left out because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `each`.
    pub fn events<E: From<Error>>(
        &self,
        filter: &EventQuery,
        mut each: impl FnMut(EventRow) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        let EventQuery { session, transaction, status, since, after, limit } = filter;
        let hashes = transaction.as_deref().map(|hash| serde_json::json!(hash_spellings(hash)).to_string());
        let first = since.as_deref().map(|since| self.first_event_since(since)).transpose()?;
        if first == Some(None) {
            return Ok(false);
        }
        let conditions = [
            ("session_id = ?", optional(session)),
            (TRANSACTION_CONDITION, optional(&hashes)),
            (status_condition(filter), optional(status)),
            // `+` keeps SQLite from this index: it would sort all events before it returns the first.
            ("+created_at >= ?", optional(since)),
            ("e.rowid >= ?", first.as_ref().and_then(optional)),
            ("e.rowid > ?", optional(after)),
        ];
        let list = List {
            columns: EVENT_COLUMNS,
            table: EVENT_TABLES,
            key: "e.rowid",
            conditions: &conditions,
            read: event_row,
            key_of: |event| event.row,
        };
        self.list(&list, *limit, &mut each)
    }

    /// The lowest row number of the events that were stored since then. The clock may have been set back, so later rows may
    /// be older.
    fn first_event_since(&self, since: &str) -> Result<Option<i64>> {
        let found = self.query_one(
            "SELECT min(rowid) FROM events INDEXED BY events_by_time WHERE created_at >= ?1",
            &[&since],
            |row| row.get(0),
        )?;
        Ok(found.flatten())
    }

    /// One event.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn event(&self, event_id: &str) -> Result<Option<EventRow>> {
        self.query_one(
            &format!("SELECT {EVENT_COLUMNS} FROM {EVENT_TABLES} WHERE e.event_id = ?1"),
            &[&event_id],
            event_row,
        )
    }

    /// Passes mails to `each`, oldest first: all, or those with an outcome. Returns whether older mails were left out
    /// because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `each`.
    pub fn mails<E: From<Error>>(
        &self,
        outcome: Option<&str>,
        limit: Option<u32>,
        mut each: impl FnMut(MailRow) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        let conditions = [("outcome = ?", optional(&outcome))];
        let list = List {
            columns: MAIL_COLUMNS,
            table: "mails",
            key: "id",
            conditions: &conditions,
            read: mail_row,
            key_of: |mail| mail.id,
        };
        self.list(&list, limit, &mut each)
    }

    /// The mails of an event, oldest first.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn mails_of_event(&self, event_id: &str) -> Result<Vec<MailRow>> {
        let sql = format!("SELECT {MAIL_COLUMNS} FROM mails WHERE event_id = ?1 ORDER BY id");
        self.query_all(&sql, &[&event_id], mail_row)
    }

    /// The bytes of a mail. The inner `None`: they were pruned.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn raw_mail(&self, id: i64) -> Result<Option<Option<Vec<u8>>>> {
        self.query_one("SELECT raw FROM mails WHERE id = ?1", &[&id], |row| row.get(0))
    }

    /// Passes deliveries to `each`, oldest first: all, or those in a state. Returns whether older deliveries were left out
    /// because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `each`.
    pub fn deliveries<E: From<Error>>(
        &self,
        state: Option<DeliveryState>,
        limit: Option<u32>,
        mut each: impl FnMut(DeliveryRow) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        // Most deliveries are delivered, so a scan finds them. The others have an index.
        let is_in = if state == Some(DeliveryState::Delivered) { "state = ?" } else { OPEN_CONDITION };
        let state = state.map(DeliveryState::as_str);
        let conditions = [(is_in, optional(&state))];
        let list = List {
            columns: "*",
            table: "deliveries",
            key: "id",
            conditions: &conditions,
            read: delivery_row,
            key_of: |delivery| delivery.id,
        };
        self.list(&list, limit, &mut each)
    }

    /// The deliveries of an event, oldest first.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn deliveries_of_event(&self, event_id: &str) -> Result<Vec<DeliveryRow>> {
        self.query_all("SELECT * FROM deliveries WHERE event_id = ?1 ORDER BY id", &[&event_id], delivery_row)
    }

    /// The watched mailboxes.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn mailboxes(&self) -> Result<Vec<MailboxRow>> {
        self.query_all("SELECT * FROM mailboxes ORDER BY account, mailbox", &[], mailbox_row)
    }

    /// The DKIM keys (domain, selector) of the last authenticated mails, the newest first.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn last_keys(&self) -> Result<Vec<(String, String)>> {
        // Only the last mails: SQLite would read the bytes of each mail to reach the columns behind them.
        let sql = "SELECT trust_domain, trust_selector FROM (SELECT * FROM mails ORDER BY id DESC LIMIT 100)
             WHERE trust = 'dkim' AND trust_domain IS NOT NULL AND trust_selector IS NOT NULL
             GROUP BY 1, 2 ORDER BY max(id) DESC";
        self.query_all(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// The numbers of rows that triggers maintain: of `mails` by outcome, of `events` by status, of `deliveries` by
    /// state. A value that no row has is left out.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn counts(&self, table: &'static str) -> Result<Vec<(String, i64)>> {
        let sql = "SELECT key, n FROM counts WHERE name = ?1 AND n <> 0 ORDER BY key";
        self.query_all(sql, &[&table], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// How many mails have each outcome and reason code. Mails without a known reason are not counted.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn mail_reasons(&self) -> Result<Vec<(String, String, i64)>> {
        // The key is the outcome, a space, and the code.
        let sql = "SELECT substr(key, 1, instr(key, ' ') - 1), substr(key, instr(key, ' ') + 1), n FROM counts
                   WHERE name = 'reasons' ORDER BY key";
        self.query_all(sql, &[], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }

    /// All rows of a small result.
    pub(crate) fn query_all<T>(
        &self,
        sql: &str,
        given: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        self.query_each(sql, given, read, &mut |row| {
            rows.push(row);
            Ok::<_, Error>(())
        })?;
        Ok(rows)
    }

    /// The first row of a result.
    pub(crate) fn query_one<T>(
        &self,
        sql: &str,
        given: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let found = self.connection.prepare_cached(sql).and_then(|mut s| s.query_row(given, read).optional());
        found.map_err(|e| Error::from_sqlite(&self.path, e))
    }

    pub(crate) fn query_each<T, E: From<Error>>(
        &self,
        sql: &str,
        given: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
        each: &mut dyn FnMut(T) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let sqlite = |e| Error::from_sqlite(&self.path, e);
        let mut statement = self.connection.prepare_cached(sql).map_err(sqlite)?;
        let rows = statement.query_map(given, read).map_err(sqlite)?;
        for row in rows {
            each(row.map_err(sqlite)?)?;
        }
        Ok(())
    }

    /// Changes whenever another connection has committed (sqlite.org/pragma.html#pragma_data_version).
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn data_version(&self) -> Result<i64> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|e| Error::from_sqlite(&self.path, e))
    }
}

/// A parameter for [`where_clause`], if there is a value.
pub(crate) fn optional<T: ToSql>(value: &Option<T>) -> Option<&dyn ToSql> {
    value.as_ref().map(|value| value as &dyn ToSql)
}

/// A WHERE clause of the conditions that have a value, and the values. Conditions without a value are left out: with
/// `?1 IS NULL OR …` SQLite uses no index, and it would read through the bytes of each mail.
pub(crate) fn where_clause<'a>(parts: &[(&str, Option<&'a dyn ToSql>)]) -> (String, Vec<&'a dyn ToSql>) {
    let (mut condition, mut given) = (String::new(), Vec::new());
    for (part, value) in parts.iter().filter_map(|(part, value)| Some((part, (*value)?))) {
        condition.push_str(if given.is_empty() { "WHERE " } else { " AND " });
        condition.push_str(part);
        given.push(value);
    }
    (condition, given)
}

/// Serializes a stored JSON text as JSON, and keeps the order of its keys.
fn as_json<S: serde::Serializer>(body: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match serde_json::from_str::<&serde_json::value::RawValue>(body) {
        Ok(raw) => raw.serialize(serializer),
        Err(_) => body.serialize(serializer),
    }
}

/// An event with its confirmation. Only those columns of `confirmations` are listed that `events` does not have.
const EVENT_COLUMNS: &str =
    "e.rowid AS event_row, e.*, c.state, c.reason, c.arrival, c.received, c.received_token, c.confirmed_at,
    c.paid_block, c.arrival_block, c.amount_checked, c.final, c.nodes, c.looks, c.looked_at, c.next_look_at,
    r.state AS clearance, r.reason AS clearance_reason";
const EVENT_TABLES: &str = "events e LEFT JOIN confirmations c ON c.event_id = e.event_id
    LEFT JOIN clearances r ON r.event_id = e.event_id";

fn event_row(row: &Row) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        row: row.get("event_row")?,
        event_id: row.get("event_id")?,
        status: row.get("status")?,
        session_id: row.get("session_id")?,
        session_source: row.get("session_source")?,
        order_ref: row.get("order_ref")?,
        amount: row.get("amount")?,
        currency: row.get("currency")?,
        blockchain: row.get("blockchain")?,
        token: row.get("token")?,
        from_wallet_address: row.get("from_wallet_address")?,
        transaction_hash: row.get("transaction_hash")?,
        tx_time: row.get("tx_time")?,
        tx_time_source: row.get("tx_time_source")?,
        webhook: row.get("webhook")?,
        hold: row.get("hold")?,
        created_at: row.get("created_at")?,
        source: row.get("source")?,
        confirmation: confirmations::of_event_row(row)?,
        clearance: row.get("clearance")?,
        clearance_reason: row.get("clearance_reason")?,
    })
}

/// All columns but `raw`, which may be large.
const MAIL_COLUMNS: &str = "id, account, mailbox, uid_validity, uid, message_id, sender, recipient, subject, sent_at, \
    received_at, size, sha256, outcome, reason, trust, trust_domain, trust_selector, event_id, judged_at";

fn mail_row(row: &Row) -> rusqlite::Result<MailRow> {
    Ok(MailRow {
        id: row.get("id")?,
        account: row.get("account")?,
        mailbox: row.get("mailbox")?,
        uid_validity: row.get("uid_validity")?,
        uid: row.get("uid")?,
        message_id: row.get("message_id")?,
        sender: row.get("sender")?,
        recipient: row.get("recipient")?,
        subject: row.get("subject")?,
        sent_at: row.get("sent_at")?,
        received_at: row.get("received_at")?,
        size: row.get("size")?,
        sha256: row.get("sha256")?,
        outcome: row.get("outcome")?,
        reason: row.get("reason")?,
        trust: row.get("trust")?,
        trust_domain: row.get("trust_domain")?,
        trust_selector: row.get("trust_selector")?,
        event_id: row.get("event_id")?,
        judged_at: row.get("judged_at")?,
    })
}

fn delivery_row(row: &Row) -> rusqlite::Result<DeliveryRow> {
    Ok(DeliveryRow {
        id: row.get("id")?,
        event_id: row.get("event_id")?,
        target: row.get("target")?,
        state: word(row, "state")?,
        attempts: row.get("attempts")?,
        next_attempt_at: row.get("next_attempt_at")?,
        last_status: row.get("last_status")?,
        last_error: row.get("last_error")?,
        delivered_at: row.get("delivered_at")?,
        created_at: row.get("created_at")?,
        receipt: row.get("receipt")?,
    })
}

fn mailbox_row(row: &Row) -> rusqlite::Result<MailboxRow> {
    Ok(MailboxRow {
        account: row.get("account")?,
        mailbox: row.get("mailbox")?,
        uid_validity: row.get("uid_validity")?,
        last_uid: row.get("last_uid")?,
        state: row.get("state")?,
        last_seen_at: row.get("last_seen_at")?,
        last_error: row.get("last_error")?,
    })
}
