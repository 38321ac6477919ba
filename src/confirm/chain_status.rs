//! Asks the nodes of a chain for their newest blocks, and writes the result into the table `chains`, for `status` and the
//! metrics.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

use super::WatchedChain;
use crate::chain::{Block, Chain, Finality, Node, NodeError, Observation};
use crate::db::{self, ChainRow, Store};
use crate::model::{iso, printable};

/// The loop asks the nodes for their blocks at most once in this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// The longest error that is stored in the table `chains`, in characters.
const MAX_MESSAGE: usize = 300;

/// The newest block of a node (`head`), and the newest final block of this node (`last`).
pub(super) struct NodeBlocks {
    pub(super) head: Block,
    pub(super) last: Block,
}

/// The row of a chain in the table `chains`, and the values that decide when the loop asks the nodes and writes the row.
pub(super) struct ChainStatus {
    store: Store,
    row: ChainRow,
    written: Option<ChainRow>,
    asked: Option<Instant>,
    /// Whether a node failed in the most recent look at an event.
    failing: bool,
}

/// The reason why a node cannot be used now.
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) needs_person: bool,
}

impl ChainStatus {
    pub(super) fn new(store: Store, watched: &WatchedChain) -> Self {
        let row = ChainRow {
            chain_id: i64::try_from(watched.chain.id).unwrap_or(i64::MAX),
            name: watched.chain.name.clone(),
            nodes: watched.hosts(),
            ..ChainRow::default()
        };
        ChainStatus { store, row, written: None, asked: None, failing: false }
    }

    /// Asks the nodes for their blocks, at most once a minute, and writes the answers into the chain's row of the table `chains`.
    /// `events_wait`: whether the caller looks at a due event next, so that this look reports errors of the nodes. If
    /// `events_wait` is true, this function logs no error, and sends no call if a node failed in the most recent look.
    pub(super) async fn refresh(&mut self, watched: &WatchedChain, events_wait: bool) -> db::Result<()> {
        if self.asked.is_some_and(|at| at.elapsed() < INTERVAL) || events_wait && self.failing {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let answers = join_all(watched.nodes.iter().map(|node| ask(node, &watched.chain))).await;
        let fault = answers.iter().find_map(|answer| answer.as_ref().err());
        if let (Some(fault), false) = (fault, events_wait) {
            tracing::warn!(chain = watched.chain.name, error = fault.message, "a node of the chain is not usable");
        }
        self.row.last_error = fault.map(|fault| fault.message.clone());
        self.row.needs_person = fault.is_some_and(|fault| fault.needs_person);
        let now = Timestamp::now();
        // A block is final only if it is final at all nodes. So the row gets the blocks of the node with the lowest final block.
        let slowest = answers.iter().filter_map(|answer| answer.as_ref().ok()).min_by_key(|blocks| blocks.last.number);
        if let Some(NodeBlocks { head, last }) = slowest {
            let seconds = |block: &Block| i64::try_from(block.timestamp).unwrap_or(i64::MAX);
            self.row.head = i64::try_from(head.number).ok();
            self.row.head_age_s = Some(now.as_second().saturating_sub(seconds(head)).max(0));
            self.row.final_block = i64::try_from(last.number).ok();
            self.row.final_lag_s = Some(seconds(head).saturating_sub(seconds(last)).max(0));
            self.row.asked_at = Some(iso(now));
        }
        self.write().await
    }

    /// Writes the result of a look at an event into the chain's row: the error of a node, or that no node failed.
    pub(super) async fn looked(&mut self, watched: &WatchedChain, seen: &[Observation]) -> db::Result<()> {
        let fault = seen.iter().find_map(|node| fault_of(node, &watched.chain));
        self.failing = fault.is_some();
        if fault.is_none() && seen.is_empty() {
            return Ok(());
        }
        self.row.last_error = fault.as_ref().map(|fault| fault.message.clone());
        self.row.needs_person = fault.is_some_and(|fault| fault.needs_person);
        self.write().await
    }

    async fn write(&mut self) -> db::Result<()> {
        if self.written.as_ref() != Some(&self.row) {
            self.store.record_chain(self.row.clone()).await?;
            self.written = Some(self.row.clone());
        }
        Ok(())
    }
}

/// Asks a node for its chain id, its newest block and its newest final block.
pub(super) async fn ask(node: &Node, chain: &Chain) -> Result<NodeBlocks, Fault> {
    let id = node.chain_id().await.map_err(|error| fault(&error))?;
    if id != chain.id {
        return Err(wrong_chain(node.host(), id, chain));
    }
    let head = node.tagged_block("latest").await.map_err(|error| fault(&error))?;
    let last = match chain.finality {
        Finality::Finalized => node.tagged_block("finalized").await,
        Finality::Safe => node.tagged_block("safe").await,
        Finality::Depth(blocks) => {
            let number = head.number.saturating_add(1).saturating_sub(blocks);
            let block = node.block_at(number).await.map_err(|error| fault(&error))?;
            let message = || format!("{} has block {}, but not its block {number}", node.host(), head.number);
            Ok(block.ok_or_else(|| Fault { message: message(), needs_person: false })?)
        }
    };
    Ok(NodeBlocks { head, last: last.map_err(|error| fault(&error))? })
}

pub(super) fn fault(error: &NodeError) -> Fault {
    Fault { message: printable(&error.to_string(), MAX_MESSAGE), needs_person: error.needs_person() }
}

fn fault_of(node: &Observation, chain: &Chain) -> Option<Fault> {
    match (&node.error, node.chain_id) {
        (Some(error), _) => Some(fault(error)),
        (None, Some(id)) if id != chain.id => Some(wrong_chain(&node.host, id, chain)),
        _ => None,
    }
}

fn wrong_chain(host: &str, id: u64, chain: &Chain) -> Fault {
    let message = format!("{host} is a node of chain {id}, not of {} ({}); correct `nodes`", chain.name, chain.id);
    Fault { message, needs_person: true }
}
