//! The health of the chains on which payments are confirmed.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::Expected;
use super::waiting::counted;
use crate::db::{self, ChainRow, StoreReader};

/// A chain on which payments are confirmed.
#[derive(Debug, Clone, Serialize)]
pub struct ChainHealth {
    /// The chain's name.
    pub name: String,
    /// The hosts of the chain's nodes.
    pub nodes: Vec<String>,
    /// The age of the newest block at `asked_at`, in seconds.
    pub head_age_s: Option<i64>,
    /// The error of a node in the most recent calls; `None` if no node failed.
    pub last_error: Option<String>,
    /// The number of the newest block.
    #[serde(skip)]
    pub head: Option<i64>,
    /// The number of the newest final block.
    #[serde(skip)]
    pub final_block: Option<i64>,
    /// How much older the final block is than the newest block, in seconds.
    #[serde(skip)]
    pub final_lag_s: Option<i64>,
    /// The time at which the nodes last reported their blocks.
    #[serde(skip)]
    pub asked_at: Option<String>,
    /// How many events wait for the chain.
    #[serde(skip)]
    pub waiting: i64,
}

/// Returns the health of the configured chains, and adds their problems to `attention`. A node that throttles or does not answer
/// is a problem only after events have waited for ten minutes.
pub(super) fn chains(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<ChainHealth>> {
    let waiting = reader.waiting_for_chains()?;
    let rows = reader.chains()?;
    let mut chains = Vec::new();
    for row in rows.iter().filter(|row| expected.chains.contains(&row.name)) {
        let (waits, since) = waiting
            .iter()
            .find(|(id, ..)| *id == Some(row.chain_id))
            .map_or((0, None), |(_, n, since)| (*n, since.parse::<Timestamp>().ok()));
        let is_late = since.is_some_and(|since| now.duration_since(since) > SignedDuration::from_mins(10));
        let error = row.last_error.as_ref().filter(|_| row.needs_person || is_late);
        attention.extend(error.map(|error| {
            let name = &row.name;
            format!(
                "chain {name}: {waits} {} for its nodes: {error}",
                if waits == 1 { "event waits" } else { "events wait" }
            )
        }));
        chains.push(chain_health(row, waits));
    }
    let lost: i64 = waiting.iter().filter(|_| expected.chains.is_empty()).map(|(_, n, _)| n).sum();
    attention.extend((lost > 0).then(|| {
        counted(
            lost,
            "event",
            "waiting for a chain, and no [[chain]] is configured: `confirm EVENT_ID --vouch` releases one",
        )
    }));
    Ok(chains)
}

fn chain_health(row: &ChainRow, waiting: i64) -> ChainHealth {
    ChainHealth {
        name: row.name.clone(),
        nodes: row.nodes.split(' ').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
        head_age_s: row.head_age_s,
        last_error: row.last_error.clone(),
        head: row.head,
        final_block: row.final_block,
        final_lag_s: row.final_lag_s,
        asked_at: row.asked_at.clone(),
        waiting,
    }
}
