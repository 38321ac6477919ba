//! Helpers of unit tests.

use std::time::Duration;

use rusqlite::Connection;

use super::{Store, StoreSettings};
use crate::model::Matching;

/// Opens a database in `folder`, without targets.
pub(crate) fn store(folder: &tempfile::TempDir) -> Store {
    Store::open(StoreSettings {
        path: folder.path().join("m.db"),
        targets: Vec::new(),
        matching: Matching { enabled: false, window: Duration::from_secs(2700) },
        chains: Vec::new(),
        resmic: None,
    })
    .unwrap()
}

/// The steps of SQLite's query plan for `sql`, with NULL for each parameter.
pub(crate) fn query_plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement =
        connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let (mut rows, mut steps) = (statement.raw_query(), Vec::new());
    while let Some(row) = rows.next().unwrap() {
        steps.push(row.get(3).unwrap());
    }
    steps
}
