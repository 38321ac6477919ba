//! The answers of a node, with the fields that a look needs. If a field has an unexpected form, the whole answer is refused.

use serde::{Deserialize, Deserializer, de};

use super::hex::{Address, Hash, Quantity, any_data, u64_quantity, word};

/// Topic 0 of ERC-20's `Transfer(address,address,uint256)`.
pub const TRANSFER: Hash = Hash([
    0xdd, 0xf2, 0x52, 0xad, 0x1b, 0xe2, 0xc8, 0x9b, 0x69, 0xc2, 0xb0, 0x68, 0xfc, 0x37, 0x8d, 0xaa, 0x95, 0x2b, 0xa7,
    0xf1, 0x63, 0xc4, 0xa1, 0x16, 0x28, 0xf5, 0x5a, 0x4d, 0xf5, 0x23, 0xb3, 0xef,
]);

/// The length of a receipt's bloom filter, in bytes.
const BLOOM_BYTES: usize = 256;

/// A block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Block {
    /// The block's number.
    #[serde(deserialize_with = "u64_quantity")]
    pub number: u64,
    /// The block's hash.
    pub hash: Hash,
    /// The block's time, in seconds since 1970.
    #[serde(deserialize_with = "u64_quantity")]
    pub timestamp: u64,
}

/// A transaction's receipt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The hash of the transaction.
    pub transaction_hash: Hash,
    /// The position of the transaction in its block.
    #[serde(deserialize_with = "u64_quantity")]
    pub transaction_index: u64,
    /// The hash of the block that contains the transaction.
    pub block_hash: Hash,
    /// The number of the block that contains the transaction.
    #[serde(deserialize_with = "u64_quantity")]
    pub block_number: u64,
    /// Whether the transaction was executed, and not reverted.
    #[serde(rename = "status", deserialize_with = "status")]
    pub succeeded: bool,
    /// The logs that contracts wrote in the transaction.
    pub logs: Vec<Log>,
    /// Whether the bloom filter over the logs is empty.
    #[serde(rename = "logsBloom", deserialize_with = "is_zero_bloom")]
    pub bloom_is_zero: bool,
}

/// A log that a contract wrote.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// The contract that wrote the log.
    pub address: Address,
    /// Up to four values by which `eth_getLogs` can filter. The first names the kind of the log, such as [`TRANSFER`].
    pub topics: Vec<Hash>,
    /// The values of the log that are not in its topics.
    #[serde(deserialize_with = "any_data")]
    pub data: Vec<u8>,
    /// The index of the log in its block.
    #[serde(deserialize_with = "u64_quantity")]
    pub log_index: u64,
    /// The hash of the transaction that wrote the log.
    pub transaction_hash: Hash,
    /// The hash of the block that contains the log.
    pub block_hash: Hash,
    /// Whether a reorganisation has removed the log.
    #[serde(default)]
    pub removed: bool,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// The transaction's hash.
    pub hash: Hash,
    /// The sender of the transaction.
    pub from: Address,
    /// The recipient of the transaction. `None`: the transaction creates a contract.
    pub to: Option<Address>,
    /// How much of the native coin the transaction moves, in the coin's smallest units.
    #[serde(deserialize_with = "u128_quantity")]
    pub value: u128,
    /// The hash of the block that contains the transaction. `None`: the transaction is pending.
    pub block_hash: Option<Hash>,
}

/// A call in the trace of a transaction, in the format of geth's `callTracer`. Each call contains the calls that it made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Frame {
    /// The type of the call: `CALL`, `DELEGATECALL` or another type of geth's `callTracer`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The caller.
    pub from: Address,
    /// The callee.
    #[serde(default)]
    pub to: Option<Address>,
    /// How much of the native coin is sent with the call.
    #[serde(default)]
    pub value: Option<Quantity>,
    /// The error, if the call failed or was reverted.
    #[serde(default)]
    pub error: Option<String>,
    /// The calls that this call made.
    #[serde(default)]
    pub calls: Vec<Frame>,
}

/// An ERC-20 transfer of more than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The sender of the token.
    pub from: Address,
    /// The recipient of the token.
    pub to: Address,
    /// The amount in the token's smallest units. Not zero.
    pub value: u128,
    /// The index of the log in its block.
    pub log_index: u64,
}

impl Log {
    /// The transfer of `token` that this log reports. `None` if the log reports no such transfer, if a reorganisation has removed
    /// the log, or if the amount is zero or has more than 128 bits. The amounts of real tokens fit into 128 bits.
    #[must_use]
    pub fn transfer(&self, token: Address) -> Option<Transfer> {
        let [TRANSFER, from, to] = self.topics.as_slice() else { return None };
        if self.address != token || self.removed {
            return None;
        }
        let value = word(&self.data).filter(|value| *value > 0)?;
        Some(Transfer { from: from.address()?, to: to.address()?, value, log_index: self.log_index })
    }
}

impl Receipt {
    /// The transfers of `token` that this receipt reports.
    pub fn transfers(&self, token: Address) -> impl Iterator<Item = Transfer> + '_ {
        self.logs.iter().filter_map(move |log| log.transfer(token))
    }
}

fn u128_quantity<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
    Quantity::deserialize(from).map(|Quantity(value)| value)
}

fn status<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match u128_quantity(from)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(de::Error::custom("a receipt's status is 0x0 or 0x1")),
    }
}

fn is_zero_bloom<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let bloom = any_data(from)?;
    if bloom.len() != BLOOM_BYTES {
        return Err(de::Error::custom("a receipt's logsBloom has 256 bytes"));
    }
    Ok(bloom.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(value: &str) -> Log {
        let word = |digits: &str| format!("0x{digits:0>64}");
        serde_json::from_value(serde_json::json!({
            "address": Address([9; 20]).to_string(),
            "topics": [TRANSFER.to_string(), word(&"11".repeat(20)), word(&"22".repeat(20))],
            "data": word(value), "logIndex": "0x3", "transactionHash": word("5"), "blockHash": word("6"),
        }))
        .unwrap()
    }

    #[test]
    fn the_transfer_topic_is_a_hash() {
        let mut hash = [0; 32];
        let mut keccak = tiny_keccak::Keccak::v256();
        tiny_keccak::Hasher::update(&mut keccak, b"Transfer(address,address,uint256)");
        tiny_keccak::Hasher::finalize(keccak, &mut hash);
        assert_eq!(TRANSFER, Hash(hash));
    }

    #[test]
    fn a_transfer_has_three_topics_and_one_word() {
        let token = Address([9; 20]);
        let transfer = log("ff").transfer(token).unwrap();
        assert_eq!((transfer.from, transfer.to), (Address([0x11; 20]), Address([0x22; 20])));
        assert_eq!((transfer.value, transfer.log_index), (255, 3));
        assert_eq!(log("ff").transfer(Address([8; 20])), None, "another contract");
        assert_eq!(log("0").transfer(token), None, "nothing moved");
        assert_eq!(log(&"f".repeat(33)).transfer(token), None, "beyond 128 bits");
        let changed = |change: fn(&mut Log)| {
            let mut log = log("ff");
            change(&mut log);
            log.transfer(token)
        };
        assert_eq!(changed(|log| log.removed = true), None);
        assert_eq!(changed(|log| log.topics.push(TRANSFER)), None, "an ERC-721 has a fourth topic");
        assert_eq!(changed(|log| log.topics.swap(0, 1)), None);
        assert_eq!(changed(|log| log.topics[1].0[0] = 1), None, "a topic that is no address");
        assert_eq!(changed(|log| log.data.push(0)), None);
        assert_eq!(changed(|log| log.data.clear()), None);
    }

    #[test]
    fn a_receipt_without_status_or_bloom_is_refused() {
        let word = format!("0x{}", "1".repeat(64));
        let receipt = serde_json::json!({"transactionHash": word, "transactionIndex": "0x0", "blockHash": word,
            "blockNumber": "0x1", "status": "0x1", "logs": [], "logsBloom": format!("0x{}", "0".repeat(512))});
        let parse = |value: serde_json::Value| serde_json::from_value::<Receipt>(value);
        assert!(parse(receipt.clone()).unwrap().succeeded);
        for (key, value) in [
            ("status", "null"),
            ("status", "\"0x2\""),
            ("status", "\"0x01\""),
            ("logsBloom", "\"0x00\""),
            ("blockNumber", "\"0x01\""),
            ("blockNumber", "1"),
            ("blockNumber", "\"0x10000000000000000\""),
            ("transactionHash", "\"0x1\""),
            ("logs", "null"),
        ] {
            let mut changed = receipt.clone();
            changed[key] = serde_json::from_str(value).unwrap();
            assert!(parse(changed).is_err(), "{key}: {value}");
        }
    }
}
