//! One look at one node: decides which calls to send, and collects the answers.
//!
//! A look uses no result of an earlier look. A look only decides which call comes next; [`judge`](super::judge()) checks every
//! answer again.

use std::collections::HashSet;

use jiff::Timestamp;

use super::answers::{Block, Frame, Receipt, Transaction};
use super::calls::LogFilter;
use super::claim::Question;
use super::hex::{Address, Hash};
use super::node_error::NodeError;
use super::rpc::Node;
use super::settings::Finality;
use super::verdict::BlockId;
use crate::units::count;

/// The most temporary wallets whose outgoing transfers one look searches. A temporary wallet gets the money from the payer and
/// passes it on to the merchant. A genuine payment uses at most one temporary wallet.
const MOST_WALLETS: usize = 3;
/// The most transactions of one temporary wallet in which a look searches for the arrival.
const MOST_CANDIDATES: usize = 16;

/// The answers of one node in one look.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// The node's host.
    pub host: String,
    /// The chain id that the node reports.
    pub chain_id: Option<u64>,
    /// The number of the newest block. The look asks for this number only if the chain has [`Finality::Depth`].
    pub head: Option<u64>,
    /// The number of the newest final block.
    pub final_block: Option<u64>,
    /// The transaction that the mail names.
    pub payment: Option<Seen>,
    /// For the native coin: the transaction that the mail names, with its value.
    pub transaction: Option<Transaction>,
    /// Transactions in which the money may have arrived.
    pub candidates: Vec<Seen>,
    /// The error that ended the look early, if a call failed or the look took too long.
    pub error: Option<NodeError>,
    /// The calls and their results, as text for people.
    pub steps: Vec<Step>,
}

/// A call of a look, as text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The JSON-RPC method and its argument.
    pub asked: String,
    /// The result of the call.
    pub answered: String,
}

/// One transaction in the answers of a node.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The transaction's receipt.
    pub receipt: Receipt,
    /// The block with the receipt's block number in the node's chain, if the node has such a block.
    pub block: Option<Block>,
    /// The calls of the transaction, if the look has requested them.
    pub trace: Option<Frame>,
}

/// Looks a payment up at a node. If a call fails, the look ends, and [`Observation::error`] has the error of the call.
pub async fn look_at_node(node: &Node, question: &Question<'_>) -> Observation {
    let seen = Observation { host: node.host().to_owned(), ..Observation::default() };
    let mut look = Look { node, question, seen };
    look.walk().await;
    look.seen
}

impl Observation {
    /// The time of the block `id`, if a transaction of this look is in that block.
    #[must_use]
    pub fn block_time(&self, id: BlockId) -> Option<Timestamp> {
        let blocks = self.payment.iter().chain(&self.candidates).filter_map(|seen| seen.block);
        let mut blocks = blocks.filter(|block| (block.number, block.hash) == (id.number, id.hash));
        Timestamp::from_second(i64::try_from(blocks.next()?.timestamp).ok()?).ok()
    }

    /// The hashes of the mail's transaction and of the candidates: transactions in which money may have arrived.
    pub fn transactions(&self) -> impl Iterator<Item = Hash> + '_ {
        self.payment.iter().chain(&self.candidates).map(|seen| seen.receipt.transaction_hash)
    }
}

struct Look<'a> {
    node: &'a Node,
    question: &'a Question<'a>,
    seen: Observation,
}

impl Look<'_> {
    /// Sends all calls of the look. `None`: the look has ended early.
    async fn walk(&mut self) -> Option<()> {
        let Question { chain, coin, hash, .. } = self.question;
        let answer = self.node.chain_id().await;
        let id = self.note("eth_chainId".into(), answer, u64::to_string)?;
        self.seen.chain_id = Some(id);
        if id != chain.id {
            return None;
        }
        let last = self.final_block(chain.finality).await?;
        self.seen.final_block = Some(last);
        let payment = self.transaction(*hash).await?;
        self.seen.payment = Some(payment.clone());
        if !payment.receipt.succeeded || payment.receipt.block_number > last {
            return None;
        }
        match coin.contract {
            Some(token) => self.follow_token(token, &payment.receipt, last).await,
            None => self.follow_native(&payment, last).await,
        }
    }

    /// Asks for the number of the newest final block. If the node does not know the configured tag, the look ends, because
    /// another tag would not be the rule that the merchant has chosen.
    async fn final_block(&mut self, finality: Finality) -> Option<u64> {
        let Finality::Depth(blocks) = finality else {
            let tag = if finality == Finality::Safe { "safe" } else { "finalized" };
            let answer = self.node.tagged_block(tag).await;
            return Some(
                self.note(format!("eth_getBlockByNumber {tag}"), answer, |block| block.number.to_string())?.number,
            );
        };
        let answer = self.node.block_number().await;
        let head = self.note("eth_blockNumber".into(), answer, u64::to_string)?;
        self.seen.head = Some(head);
        Some(head.saturating_add(1).saturating_sub(blocks))
    }

    /// Searches for the transactions in which temporary wallets passed the payer's tokens on to the merchant's wallets.
    async fn follow_token(&mut self, token: Address, payment: &Receipt, last: u64) -> Option<()> {
        let chain = self.question.chain;
        let wallets = temporary_wallets(self.question, token, payment)?;
        for wallet in wallets {
            let filter = LogFilter::transfers(token, wallet, &chain.wallets);
            let answer = self.node.logs(&filter, payment.block_number, last, chain.log_range).await;
            let asked = format!("eth_getLogs (transfers from {wallet} to our wallets)");
            let logs = self.note(asked, answer, |logs| count(logs.len(), "log"))?;
            // Skip logs with an amount of zero, because many tokens let a stranger cause a Transfer log with this amount.
            let moved = logs.iter().filter(|log| log.transfer(token).is_some()).map(|log| log.transaction_hash);
            for hash in distinct(moved) {
                let seen = self.candidate(hash).await?;
                self.seen.candidates.extend(seen);
            }
        }
        Some(())
    }

    /// Searches for the transactions in which a temporary wallet passed the native coin on. Transfers of the native coin write no
    /// logs, so only a trace proves a payment by a temporary wallet.
    async fn follow_native(&mut self, payment: &Seen, last: u64) -> Option<()> {
        let Question { chain, hash, payer, .. } = self.question;
        let answer = self.node.transaction(*hash).await;
        let asked = format!("eth_getTransactionByHash {hash}");
        let transaction = self.note(asked, answer, |found| found.as_ref().map_or("null".into(), describe_value))??;
        self.seen.transaction = Some(transaction.clone());
        let wallet = transaction.to.filter(|to| !chain.is_ours(*to))?;
        if !chain.trace || transaction.from != *payer || transaction.value == 0 {
            return None;
        }
        let filter = LogFilter { address: wallet, topics: Vec::new() };
        let answer = self.node.logs(&filter, payment.receipt.block_number, last, chain.log_range).await;
        let logs = self.note(format!("eth_getLogs (of {wallet})"), answer, |logs| count(logs.len(), "log"))?;
        // The wallet may have passed the money on in the payer's transaction itself.
        let hashes = [*hash].into_iter().chain(logs.iter().map(|log| log.transaction_hash));
        for hash in distinct(hashes) {
            let is_payment = hash == payment.receipt.transaction_hash;
            let seen = if is_payment { Some(payment.clone()) } else { self.candidate(hash).await? };
            let Some(mut seen) = seen else { continue };
            let answer = self.node.trace(hash).await;
            let trace = self.note(format!("debug_traceTransaction {hash}"), answer, |_| "a trace".into())?;
            seen.trace = Some(trace);
            self.seen.candidates.push(seen);
        }
        Some(())
    }

    /// Asks for the receipt of a transaction, and for the node's block with the number in the receipt.
    async fn transaction(&mut self, hash: Hash) -> Option<Seen> {
        let answer = self.node.receipt(hash).await;
        let describe = |found: &Option<Receipt>| found.as_ref().map_or("null".into(), describe_receipt);
        let receipt = self.note(format!("eth_getTransactionReceipt {hash}"), answer, describe)??;
        let number = receipt.block_number;
        let answer = self.node.block_at(number).await;
        let describe = |found: &Option<Block>| found.map_or("null".into(), |block| block.hash.to_string());
        let block = self.note(format!("eth_getBlockByNumber {number}"), answer, describe)?;
        Some(Seen { receipt, block, trace: None })
    }

    /// Asks for the receipt of a transaction that a log names. `Some(None)`: the node has the log, but not the receipt. `None`: a
    /// call has failed.
    async fn candidate(&mut self, hash: Hash) -> Option<Option<Seen>> {
        let seen = self.transaction(hash).await;
        if seen.is_none() && self.seen.error.is_some() { None } else { Some(seen) }
    }

    /// Adds a call and its result to [`Observation::steps`]. `None`: the call has failed, and the look ends.
    fn note<T>(
        &mut self,
        asked: String,
        answer: Result<T, NodeError>,
        describe: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let answered = answer.as_ref().map_or_else(|error| error.kind.to_string(), describe);
        self.seen.steps.push(Step { asked, answered });
        answer.map_err(|error| self.seen.error = Some(error)).ok()
    }
}

/// The temporary wallets that the payer paid. `None`: the payer paid the merchant directly.
fn temporary_wallets(question: &Question<'_>, token: Address, payment: &Receipt) -> Option<Vec<Address>> {
    let wallets: Vec<Address> = payment
        .transfers(token)
        .filter(|transfer| transfer.from == question.payer)
        .map(|transfer| transfer.to)
        .collect();
    if wallets.iter().any(|to| question.chain.is_ours(*to)) {
        return None;
    }
    let mut known = HashSet::new();
    Some(wallets.into_iter().filter(|to| known.insert(*to)).take(MOST_WALLETS).collect())
}

fn distinct(hashes: impl Iterator<Item = Hash>) -> Vec<Hash> {
    let mut known = HashSet::new();
    hashes.filter(|hash| known.insert(*hash)).take(MOST_CANDIDATES).collect()
}

fn describe_receipt(receipt: &Receipt) -> String {
    let status = if receipt.succeeded { "succeeded" } else { "reverted" };
    format!("{status} in block {}, {}", receipt.block_number, count(receipt.logs.len(), "log"))
}

fn describe_value(transaction: &Transaction) -> String {
    let to = transaction.to.map_or_else(|| "a new contract".to_owned(), |to| to.to_string());
    format!("{} units from {} to {to}", transaction.value, transaction.from)
}
