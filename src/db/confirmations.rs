//! Reads the table `confirmations`. Writes and reads the table `chains`: the last answers of the nodes of each chain.

use rusqlite::{Row, named_params};
use serde::Serialize;

use super::{Result, Store, StoreReader, word};
use crate::chain::ConfirmationState;

/// A row of `confirmations`, as the commands print it. The field names are the JSON keys.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct ConfirmationRow {
    pub state: ConfirmationState,
    pub reason: Option<String>,
    pub arrival: Option<String>,
    pub received: Option<String>,
    pub received_token: Option<String>,
    pub confirmed_at: Option<String>,
    #[serde(skip)]
    pub paid_block: Option<i64>,
    #[serde(skip)]
    pub arrival_block: Option<i64>,
    #[serde(skip)]
    pub amount_checked: Option<bool>,
    #[serde(skip)]
    pub finality: Option<String>,
    #[serde(skip)]
    pub nodes: Option<String>,
    #[serde(skip)]
    pub looks: i64,
    #[serde(skip)]
    pub looked_at: Option<String>,
    #[serde(skip)]
    pub next_look_at: Option<String>,
}

/// A row of `chains`: the last answers of the nodes of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ChainRow {
    pub chain_id: i64,
    pub name: String,
    pub nodes: String,
    pub head: Option<i64>,
    pub head_age_s: Option<i64>,
    pub final_block: Option<i64>,
    pub final_lag_s: Option<i64>,
    pub asked_at: Option<String>,
    pub last_error: Option<String>,
    pub needs_person: bool,
}

impl Store {
    /// Writes the last answers of a chain's nodes into `chains`.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn record_chain(&self, chain: ChainRow) -> Result<()> {
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT OR REPLACE INTO chains (chain_id, name, nodes, head, head_age_s, final_block, final_lag_s, asked_at,
                   last_error, needs_person)
                 VALUES (:chain_id, :name, :nodes, :head, :head_age_s, :final_block, :final_lag_s, :asked_at, :last_error,
                   :needs_person)",
            )?
            .execute(named_params! {
                ":chain_id": chain.chain_id,
                ":name": chain.name,
                ":nodes": chain.nodes,
                ":head": chain.head,
                ":head_age_s": chain.head_age_s,
                ":final_block": chain.final_block,
                ":final_lag_s": chain.final_lag_s,
                ":asked_at": chain.asked_at,
                ":last_error": chain.last_error,
                ":needs_person": chain.needs_person,
            })?;
            Ok(())
        })
        .await
    }
}

impl StoreReader {
    /// All rows of `chains`: the last answers of the nodes of each chain.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn chains(&self) -> Result<Vec<ChainRow>> {
        self.query_all("SELECT * FROM chains ORDER BY chain_id", &[], |row| {
            Ok(ChainRow {
                chain_id: row.get("chain_id")?,
                name: row.get("name")?,
                nodes: row.get("nodes")?,
                head: row.get("head")?,
                head_age_s: row.get("head_age_s")?,
                final_block: row.get("final_block")?,
                final_lag_s: row.get("final_lag_s")?,
                asked_at: row.get("asked_at")?,
                last_error: row.get("last_error")?,
                needs_person: row.get("needs_person")?,
            })
        })
    }

    /// For each chain with waiting events: the chain's id, the number of these events, and since when the first of them waits.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn waiting_for_chains(&self) -> Result<Vec<(Option<i64>, i64, String)>> {
        let sql =
            "SELECT chain_id, count(*), min(waits_since) FROM confirmations WHERE state = 'waiting' GROUP BY chain_id";
        self.query_all(sql, &[], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }
}

/// The confirmation in a row that joins `events` with `confirmations`; `None`: the event has no confirmation.
pub(super) fn of_event_row(row: &Row) -> rusqlite::Result<Option<ConfirmationRow>> {
    let has_one = row.get_ref("state")? != rusqlite::types::ValueRef::Null;
    if has_one { confirmation_row(row).map(Some) } else { Ok(None) }
}

fn confirmation_row(row: &Row) -> rusqlite::Result<ConfirmationRow> {
    Ok(ConfirmationRow {
        state: word(row, "state")?,
        reason: row.get("reason")?,
        arrival: row.get("arrival")?,
        received: row.get("received")?,
        received_token: row.get("received_token")?,
        confirmed_at: row.get("confirmed_at")?,
        paid_block: row.get("paid_block")?,
        arrival_block: row.get("arrival_block")?,
        amount_checked: row.get("amount_checked")?,
        finality: row.get("final")?,
        nodes: row.get("nodes")?,
        looks: row.get("looks")?,
        looked_at: row.get("looked_at")?,
        next_look_at: row.get("next_look_at")?,
    })
}
