//! Reads long lists in pages. Each page is one short read transaction, so that a slow reader of the output does not block WAL
//! checkpoints.

use rusqlite::Row;
use rusqlite::types::ToSql;

use super::reader::where_clause;
use super::{Error, Result, StoreReader};

/// The most rows in one page of a list.
pub(crate) const PAGE: usize = 500;

/// A query for a list of rows, in the order of an integer key.
pub(super) struct List<'a, T> {
    pub(super) columns: &'a str,
    pub(super) table: &'static str,
    /// The key's column: `id` or `rowid`.
    pub(super) key: &'static str,
    /// The conditions, in the form that [`where_clause`] takes.
    pub(super) conditions: &'a [(&'a str, Option<&'a dyn ToSql>)],
    pub(super) read: fn(&Row) -> rusqlite::Result<T>,
    pub(super) key_of: fn(&T) -> i64,
}

impl StoreReader {
    /// Passes the newest `limit` rows, or all rows, to `on_row`, oldest first. Returns whether older rows were left out.
    pub(super) fn list<T, E: From<Error>>(
        &self,
        list: &List<T>,
        limit: Option<u32>,
        on_row: &mut dyn FnMut(T) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        let last_left_out = limit.map(|limit| self.row_before_newest(list, limit)).transpose()?.flatten();
        let (mut after, mut remaining) = (last_left_out.unwrap_or(i64::MIN), limit.map_or(usize::MAX, |n| n as usize));
        while remaining > 0 {
            let page = self.page(list, after, remaining.min(PAGE))?;
            let is_last = page.len() < PAGE;
            for row in page {
                after = (list.key_of)(&row);
                remaining = remaining.saturating_sub(1);
                on_row(row)?;
            }
            if is_last {
                break;
            }
        }
        Ok(last_left_out.is_some())
    }

    /// The key of the newest row that is older than the newest `limit` rows; `None` if there is no such row.
    fn row_before_newest<T>(&self, list: &List<T>, limit: u32) -> Result<Option<i64>> {
        let (condition, mut parameters) = where_clause(list.conditions);
        let List { table, key, .. } = list;
        parameters.push(&limit);
        let sql = format!("SELECT {key} FROM {table} {condition} ORDER BY {key} DESC LIMIT 1 OFFSET ?");
        self.query_one(&sql, &parameters, |row| row.get(0))
    }

    fn page<T>(&self, list: &List<T>, after: i64, rows: usize) -> Result<Vec<T>> {
        let List { columns, table, key, .. } = list;
        let (after_key, rows) = (format!("{key} > ?"), i64::try_from(rows).unwrap_or(i64::MAX));
        let mut conditions = list.conditions.to_vec();
        conditions.push((&after_key, Some(&after)));
        let (condition, mut parameters) = where_clause(&conditions);
        parameters.push(&rows);
        let sql = format!("SELECT {columns} FROM {table} {condition} ORDER BY {key} LIMIT ?");
        self.query_all(&sql, &parameters, list.read)
    }
}
