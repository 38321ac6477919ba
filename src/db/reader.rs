//! The queries of the commands, such as `events` and `status`, on read-only connections.

use std::path::{Path, PathBuf};

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row};

use super::pages::List;
use super::rows::{
    DeliveryRow, EVENT_COLUMNS, EVENT_TABLES, EventRow, MAIL_COLUMNS, MailRow, MailboxRow, delivery_row, event_row,
    mail_row, mailbox_row,
};
use super::{Error, Result, schema};
use crate::model::{DeliveryState, hash_spellings};

/// A read-only connection.
pub struct StoreReader {
    connection: Connection,
    path: PathBuf,
    frozen: bool,
}

/// Which events to read; all conditions that are `Some` apply.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Only events of this session.
    pub session: Option<String>,
    /// Only events of this transaction.
    pub transaction: Option<String>,
    /// Only events with this status.
    pub status: Option<String>,
    /// Only events that were stored at or after this time, in the form of [`crate::model::iso`].
    pub since: Option<String>,
    /// Only events whose `rowid` is higher than this one.
    pub after: Option<i64>,
    /// At most this number of events: the newest ones.
    pub limit: Option<u32>,
}

/// Matches a transaction by all spellings of its hash. The parameter is a JSON array of the spellings.
pub(crate) const TRANSACTION_CONDITION: &str = "transaction_hash IN (SELECT value FROM json_each(?))";

/// Matches one state other than `delivered`. SQLite uses the partial index `deliveries_open` only if the query contains the
/// condition of this index, `state <> 'delivered'`.
const OPEN_CONDITION: &str = "state = ? AND state <> 'delivered'";

/// The condition for a status. Most events are completed, so a scan finds completed events quickly. The partial index
/// `events_not_completed` contains the events with other statuses. In a query for a session or a transaction, another index is
/// better.
fn status_condition(filter: &EventQuery) -> &'static str {
    let EventQuery { session, transaction, status, .. } = filter;
    let alone = session.is_none() && transaction.is_none();
    if alone && status.as_deref() != Some("completed") { "status = ? AND status <> 'completed'" } else { "status = ?" }
}

impl StoreReader {
    /// Opens the database for reading. A database with an older schema is migrated first.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Newer`], [`Error::Foreign`], or an error of SQLite.
    pub fn open(path: &Path) -> Result<Self> {
        let (connection, frozen) = schema::open_reader(path)?;
        Ok(StoreReader { connection, path: path.to_owned(), frozen })
    }

    /// Whether this reader never shows later commits, because the user may not create the `-wal` and `-shm` files, and no
    /// other program had the database open.
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

    /// Passes events to `on_row`, oldest first. Returns whether older events were left out because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `on_row`.
    pub fn events<E: From<Error>>(
        &self,
        filter: &EventQuery,
        mut on_row: impl FnMut(EventRow) -> std::result::Result<(), E>,
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
            // `+` keeps SQLite from using the index on `created_at`. With the index on `created_at`, SQLite would sort all
            // events before it returns the first event.
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
        self.list(&list, *limit, &mut on_row)
    }

    /// The lowest row number of the events that were stored at `since` or later. Rows after that row may have an earlier time,
    /// because the clock may have been set back.
    fn first_event_since(&self, since: &str) -> Result<Option<i64>> {
        let found = self.query_one(
            "SELECT min(rowid) FROM events INDEXED BY events_by_time WHERE created_at >= ?1",
            &[&since],
            |row| row.get(0),
        )?;
        Ok(found.flatten())
    }

    /// The event with this id; `None` if no such event is stored.
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

    /// Passes all mails, or only the mails with one outcome, to `on_row`, oldest first. Returns whether older mails were left out
    /// because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `on_row`.
    pub fn mails<E: From<Error>>(
        &self,
        outcome: Option<&str>,
        limit: Option<u32>,
        mut on_row: impl FnMut(MailRow) -> std::result::Result<(), E>,
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
        self.list(&list, limit, &mut on_row)
    }

    /// The mails of an event, oldest first.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn mails_of_event(&self, event_id: &str) -> Result<Vec<MailRow>> {
        let sql = format!("SELECT {MAIL_COLUMNS} FROM mails WHERE event_id = ?1 ORDER BY id");
        self.query_all(&sql, &[&event_id], mail_row)
    }

    /// The bytes of a mail. The outer `None`: there is no such mail. The inner `None`: the mail's bytes were pruned, or the mail
    /// server never delivered them.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn raw_mail(&self, id: i64) -> Result<Option<Option<Vec<u8>>>> {
        self.query_one("SELECT raw FROM mails WHERE id = ?1", &[&id], |row| row.get(0))
    }

    /// Passes all deliveries, or only the deliveries in one state, to `on_row`, oldest first. Returns whether older deliveries
    /// were left out because of the limit.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error of `on_row`.
    pub fn deliveries<E: From<Error>>(
        &self,
        state: Option<DeliveryState>,
        limit: Option<u32>,
        mut on_row: impl FnMut(DeliveryRow) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        // Most deliveries have the state `delivered`, so a scan finds them quickly. The partial index `deliveries_open` contains
        // the deliveries in other states.
        let condition = if state == Some(DeliveryState::Delivered) { "state = ?" } else { OPEN_CONDITION };
        let state = state.map(DeliveryState::as_str);
        let conditions = [(condition, optional(&state))];
        let list = List {
            columns: "*",
            table: "deliveries",
            key: "id",
            conditions: &conditions,
            read: delivery_row,
            key_of: |delivery| delivery.id,
        };
        self.list(&list, limit, &mut on_row)
    }

    /// The deliveries of an event, oldest first.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn deliveries_of_event(&self, event_id: &str) -> Result<Vec<DeliveryRow>> {
        self.query_all("SELECT * FROM deliveries WHERE event_id = ?1 ORDER BY id", &[&event_id], delivery_row)
    }

    /// The mailboxes that are watched now or were watched earlier.
    ///
    /// # Errors
    /// An error of SQLite.
    pub fn mailboxes(&self) -> Result<Vec<MailboxRow>> {
        self.query_all("SELECT * FROM mailboxes ORDER BY account, mailbox", &[], mailbox_row)
    }

    /// The DKIM keys (domain, selector) that authenticated any of the last 100 mails, the newest first.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn last_keys(&self) -> Result<Vec<(String, String)>> {
        // Only the last 100 mails are searched, because no index contains `trust_domain` and `trust_selector`.
        let sql = "SELECT trust_domain, trust_selector FROM (SELECT * FROM mails ORDER BY id DESC LIMIT 100)
             WHERE trust = 'dkim' AND trust_domain IS NOT NULL AND trust_selector IS NOT NULL
             GROUP BY 1, 2 ORDER BY max(id) DESC";
        self.query_all(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// The numbers of rows that triggers maintain in `counts`: rows of `mails` by outcome, of `events` by status, and of
    /// `deliveries` and `confirmations` by state. A value that no row has is left out.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn counts(&self, table: &'static str) -> Result<Vec<(String, i64)>> {
        let sql = "SELECT key, n FROM counts WHERE name = ?1 AND n <> 0 ORDER BY key";
        self.query_all(sql, &[&table], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// How many mails have each outcome and reason code. Mails without a reason are not counted.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn mail_reasons(&self) -> Result<Vec<(String, String, i64)>> {
        // `counts.key` is the outcome, a space, and the code of the reason.
        let sql = "SELECT substr(key, 1, instr(key, ' ') - 1), substr(key, instr(key, ' ') + 1), n FROM counts
                   WHERE name = 'reasons' ORDER BY key";
        self.query_all(sql, &[], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }

    /// Runs a query, and returns all rows of its result. The result must fit into memory.
    pub(crate) fn query_all<T>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        self.query_each(sql, parameters, read, &mut |row| {
            rows.push(row);
            Ok::<_, Error>(())
        })?;
        Ok(rows)
    }

    /// Runs a query, and returns the first row of its result; `None` if the result is empty.
    pub(crate) fn query_one<T>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let result = self.connection.prepare_cached(sql).and_then(|mut s| s.query_row(parameters, read).optional());
        result.map_err(|e| Error::from_sqlite(&self.path, e))
    }

    pub(crate) fn query_each<T, E: From<Error>>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
        read: fn(&Row) -> rusqlite::Result<T>,
        on_row: &mut dyn FnMut(T) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let sqlite = |e| Error::from_sqlite(&self.path, e);
        let mut statement = self.connection.prepare_cached(sql).map_err(sqlite)?;
        let rows = statement.query_map(parameters, read).map_err(sqlite)?;
        for row in rows {
            on_row(row.map_err(sqlite)?)?;
        }
        Ok(())
    }

    /// A number that changes when another connection commits (sqlite.org/pragma.html#pragma_data_version).
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

/// A WHERE clause of the conditions that have a value, and the values. Conditions without a value are left out.
/// With `?1 IS NULL OR …` SQLite would use no index, and would scan the whole table.
pub(crate) fn where_clause<'a>(terms: &[(&str, Option<&'a dyn ToSql>)]) -> (String, Vec<&'a dyn ToSql>) {
    let (mut condition, mut parameters) = (String::new(), Vec::new());
    for (term, value) in terms.iter().filter_map(|(term, value)| Some((term, (*value)?))) {
        condition.push_str(if parameters.is_empty() { "WHERE " } else { " AND " });
        condition.push_str(term);
        parameters.push(value);
    }
    (condition, parameters)
}
