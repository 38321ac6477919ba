//! Finds the money that moved in one transaction: in the logs of a token, or in calls with a value.

use super::super::answers::{Frame, Receipt, Transfer};
use super::super::hex::{Address, Hash, Quantity};
use super::super::verdict::{BlockId, ConfirmationCode as Code, ConfirmationReason as Reason};

/// Money that moved to the merchant in one transaction, from one wallet.
pub(super) struct Movement {
    pub(super) transaction: Hash,
    pub(super) block: BlockId,
    pub(super) keys: Vec<i64>,
    pub(super) units: u128,
}

impl Movement {
    /// Limits the amount to the amount that the payer paid. A temporary wallet can pass on more, but the excess is not from the
    /// payer.
    pub(super) fn at_most(mut self, units: u128) -> Self {
        self.units = self.units.min(units);
        self
    }
}

/// The position of the receipt's transaction in the chain, as a sort key.
pub(super) fn place(receipt: &Receipt) -> (u64, u64, Hash) {
    (receipt.block_number, receipt.transaction_index, receipt.transaction_hash)
}

/// The wallets that the payer paid. Each wallet comes with the index of the first log that paid it, and with the sum of the
/// payments to it.
pub(super) fn temporary_wallets(paid: &[Transfer]) -> Result<Vec<(Address, u64, u128)>, Reason> {
    let mut wallets: Vec<(Address, u64, u128)> = Vec::new();
    for transfer in paid {
        match wallets.iter_mut().find(|(wallet, ..)| *wallet == transfer.to) {
            Some((.., sum)) => *sum = add(*sum, transfer.value)?,
            None => wallets.push((transfer.to, transfer.log_index, transfer.value)),
        }
    }
    Ok(wallets)
}

/// Adds up `parts`, which are the keys and amounts of logs or calls in the receipt's transaction. `None`: `parts` is empty.
pub(super) fn sum_up(receipt: &Receipt, parts: impl Iterator<Item = (i64, u128)>) -> Result<Option<Movement>, Reason> {
    let (mut keys, mut units) = (Vec::new(), 0);
    for (key, value) in parts {
        keys.push(key);
        units = add(units, value)?;
    }
    let block = BlockId { number: receipt.block_number, hash: receipt.block_hash };
    Ok((!keys.is_empty()).then_some(Movement { transaction: receipt.transaction_hash, block, keys, units }))
}

fn add(a: u128, b: u128) -> Result<u128, Reason> {
    a.checked_add(b).ok_or_else(|| Reason::new(Code::Node, "the node reports more units than 128 bits hold"))
}

pub(super) fn log_key(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// The key of a call in [`super::Arrival::keys`]: −1 for the transaction itself, −2 for the first call that it made.
pub(super) fn frame_key(index: usize) -> i64 {
    -1 - i64::try_from(index).unwrap_or(i64::MAX - 1)
}

/// Adds to `found` the key and the value of each call that `is_wanted` selects, that has a value, and that was not reverted.
///
/// Only a CALL moves money to its callee. In a trace, a DELEGATECALL repeats the value of the outer call, and the value of a
/// CALLCODE stays with the caller.
pub(super) fn collect_calls(root: &Frame, is_wanted: &dyn Fn(&Frame) -> bool, found: &mut Vec<(i64, u128)>) {
    let mut waiting = vec![(root, false)];
    let mut index = 0;
    while let Some((frame, is_taken_back)) = waiting.pop() {
        let is_taken_back = is_taken_back || frame.error.is_some();
        let value = frame.value.map_or(0, |Quantity(value)| value);
        if !is_taken_back && value > 0 && frame.kind == "CALL" && is_wanted(frame) {
            found.push((frame_key(index), value));
        }
        index += 1;
        waiting.extend(frame.calls.iter().rev().map(|call| (call, is_taken_back)));
    }
}
