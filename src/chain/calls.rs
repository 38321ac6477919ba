//! The JSON-RPC calls that a look sends to a node. Each function returns a typed result.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answers::{Block, Frame, Log, Receipt, TRANSFER, Transaction};
use super::hex::{Address, Hash, Quantity};
use super::node_error::{NodeError, NodeErrorKind};
use super::rpc::Node;
use super::settings::MOST_BLOCKS;

/// The selector of ERC-20's `decimals()`.
const DECIMALS: &str = "0x313ce567";
/// The most logs that one search returns. A payment causes one or two logs.
const MOST_LOGS: usize = 1_000;

/// The filter of a search for logs.
#[derive(Debug, Clone)]
pub struct LogFilter {
    /// The contract that wrote the logs.
    pub address: Address,
    /// The allowed values of each topic. A topic without an entry may have any value.
    pub topics: Vec<Vec<Hash>>,
}

impl LogFilter {
    /// Creates a filter for the transfers of `token` from the address `from` to any of `wallets`.
    #[must_use]
    pub fn transfers(token: Address, from: Address, wallets: &[Address]) -> Self {
        let wallets = wallets.iter().copied().map(Hash::of_address).collect();
        LogFilter { address: token, topics: vec![vec![TRANSFER], vec![Hash::of_address(from)], wallets] }
    }

    /// Whether a log matches the filter. A dishonest node may also return logs that do not match.
    fn has(&self, log: &Log) -> bool {
        let fits = |(n, allowed): (usize, &Vec<Hash>)| log.topics.get(n).is_some_and(|topic| allowed.contains(topic));
        log.address == self.address && !log.removed && self.topics.iter().enumerate().all(fits)
    }

    fn params(&self, from: u64, to: u64) -> Value {
        let topics: Vec<Vec<String>> =
            self.topics.iter().map(|allowed| allowed.iter().map(Hash::to_string).collect()).collect();
        json!([{ "address": self.address.to_string(), "topics": topics, "fromBlock": hex(from), "toBlock": hex(to) }])
    }
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

impl Node {
    /// `eth_chainId` (EIP-695): the id of the node's chain.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn chain_id(&self) -> Result<u64, NodeError> {
        self.number("eth_chainId", json!([])).await
    }

    /// `eth_blockNumber`: the number of the newest block.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn block_number(&self) -> Result<u64, NodeError> {
        self.number("eth_blockNumber", json!([])).await
    }

    /// The block that a tag names: `latest`, `safe` or `finalized`.
    ///
    /// # Errors
    /// [`NodeError`], also if the node has no such block.
    pub async fn tagged_block(&self, tag: &'static str) -> Result<Block, NodeError> {
        const METHOD: &str = "eth_getBlockByNumber";
        let block: Option<Block> = self.call(METHOD, json!([tag, false])).await?;
        block.ok_or_else(|| self.bad(METHOD, format!("it has no {tag:?} block")))
    }

    /// The block at a height, if the node has it.
    ///
    /// # Errors
    /// [`NodeError`], also if the node returns another block.
    pub async fn block_at(&self, number: u64) -> Result<Option<Block>, NodeError> {
        const METHOD: &str = "eth_getBlockByNumber";
        let block: Option<Block> = self.call(METHOD, json!([hex(number), false])).await?;
        self.same(METHOD, block, |block| block.number == number)
    }

    /// A transaction's receipt, if the node has it.
    ///
    /// # Errors
    /// [`NodeError`], also if the node returns the receipt of another transaction.
    pub async fn receipt(&self, hash: Hash) -> Result<Option<Receipt>, NodeError> {
        const METHOD: &str = "eth_getTransactionReceipt";
        let receipt: Option<Receipt> = self.call(METHOD, json!([hash.to_string()])).await?;
        self.same(METHOD, receipt, |receipt| receipt.transaction_hash == hash)
    }

    /// A transaction, if the node has it.
    ///
    /// # Errors
    /// [`NodeError`], also if the node returns another transaction.
    pub async fn transaction(&self, hash: Hash) -> Result<Option<Transaction>, NodeError> {
        const METHOD: &str = "eth_getTransactionByHash";
        let transaction: Option<Transaction> = self.call(METHOD, json!([hash.to_string()])).await?;
        self.same(METHOD, transaction, |transaction| transaction.hash == hash)
    }

    /// The calls that a transaction made, as a tree. The root is the call of the transaction itself.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn trace(&self, hash: Hash) -> Result<Frame, NodeError> {
        self.call("debug_traceTransaction", json!([hash.to_string(), { "tracer": "callTracer" }])).await
    }

    /// A token's `decimals()`. `None`: the address returned nothing, so it has no code, or the code of another contract.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn decimals(&self, token: Address) -> Result<Option<u8>, NodeError> {
        const METHOD: &str = "eth_call";
        let params = json!([{ "to": token.to_string(), "data": DECIMALS }, "latest"]);
        let text: String = self.call(METHOD, params).await?;
        let bytes = super::hex::data(&text).map_err(|problem| self.bad(METHOD, problem))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let value = super::hex::word(&bytes).and_then(|value| u8::try_from(value).ok());
        value.map(Some).ok_or_else(|| self.bad(METHOD, "decimals() is no number up to 255".into()))
    }

    /// Searches the logs of the blocks from `from` to `to`, both included. Blocks after the first 500 are not searched. One call
    /// covers at most `range` blocks. After an error that a smaller range may prevent, the search goes on with half as many
    /// blocks for each call, down to one block.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn logs(&self, filter: &LogFilter, from: u64, to: u64, range: u64) -> Result<Vec<Log>, NodeError> {
        let to = to.min(from.saturating_add(MOST_BLOCKS - 1));
        let (mut at, mut range, mut found) = (from, range.max(1), Vec::new());
        while at <= to && found.len() < MOST_LOGS {
            let end = to.min(at.saturating_add(range - 1));
            let logs: Result<Vec<Log>, NodeError> = self.call("eth_getLogs", filter.params(at, end)).await;
            match logs {
                Ok(logs) => {
                    let space = MOST_LOGS - found.len();
                    found.extend(logs.into_iter().filter(|log| filter.has(log)).take(space));
                    at = end.saturating_add(1);
                }
                Err(error) if end > at && error.may_be_the_range() => range = (end - at).div_ceil(2),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn number(&self, method: &'static str, params: Value) -> Result<u64, NodeError> {
        let Quantity(value) = self.call(method, params).await?;
        u64::try_from(value).map_err(|_| self.bad(method, "the number is larger than 64 bits".into()))
    }

    /// Returns `answer`, or an error if `is_asked` shows that the answer is about another block or transaction.
    fn same<T: DeserializeOwned>(
        &self,
        method: &'static str,
        answer: Option<T>,
        is_asked: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, NodeError> {
        if answer.as_ref().is_some_and(|answer| !is_asked(answer)) {
            return Err(self.bad(method, "it is about another block or transaction".into()));
        }
        Ok(answer)
    }

    pub(super) fn bad(&self, method: &'static str, message: String) -> NodeError {
        NodeError { host: self.host().to_owned(), method, kind: NodeErrorKind::BadAnswer(message) }
    }
}
