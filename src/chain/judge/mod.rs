//! Judges the answers of the nodes. Pure: no clock, no network, no database.
//!
//! The judge uses no conclusion of [`look_at_node`](super::look_at_node); it checks all answers itself. Only a positive proof
//! confirms an event: a transaction in a final block must show the arrival, in its logs, its value or its trace. Without a
//! transaction that shows the arrival, the event waits or needs review. No answer makes an event fail.

mod movement;

use jiff::Timestamp;

use self::movement::{Movement, collect_calls, frame_key, log_key, place, sum_up, temporary_wallets};
use super::amount::format_units;
use super::answers::{Block, Receipt, Transfer};
use super::claim::Question;
use super::configured::Coin;
use super::hex::{Address, Hash};
use super::look::{Observation, Seen};
use super::node_error::NodeErrorKind;
use super::settings::Finality;
use super::verdict::{
    Arrival, BlockId, Confirmation, ConfirmationCode as Code, ConfirmationReason as Reason, ConfirmationState as State,
};

/// Whether a log or a call of a transaction already confirms another event. The arguments are the transaction, and the key of the
/// log or call as in [`Arrival::keys`].
pub type IsClaimed<'a> = &'a dyn Fn(Hash, i64) -> bool;

/// The arrival that one node's answers prove, or the reason why these answers prove no arrival.
type ArrivalResult = Result<Arrival, Reason>;

/// Decides from the answers of all nodes in one look whether the money of `question` has arrived.
#[must_use]
pub fn judge(question: &Question<'_>, seen: &[Observation], now: Timestamp, is_claimed: IsClaimed<'_>) -> Confirmation {
    let judge_one = |node: &Observation| {
        let finding = Judge { question, node }.finding(is_claimed);
        // If the chain has several nodes, the reason names the host of the node that gave these answers.
        finding.map_err(|reason| if seen.len() > 1 { with_host(&node.host, &reason) } else { reason })
    };
    let findings: Vec<ArrivalResult> = seen.iter().map(judge_one).collect();
    let outcome = combine(question, findings).map_err(|reason| give_up(question, reason, now));
    let paid = outcome.as_ref().ok().map(|arrival| arrival.paid).or_else(|| seen.iter().find_map(paid_block));
    Confirmation { outcome, paid, final_block: seen.iter().filter_map(|node| node.final_block).min() }
}

/// A confirmed arrival: its transaction, and the block that contained the transaction when the arrival was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedArrival {
    /// The transaction in which the money arrived.
    pub transaction: Hash,
    /// The number of the block that contained this transaction.
    pub block: u64,
}

/// The result of a later look at an arrival that was confirmed before its block was `finalized`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revisited {
    /// All nodes report the arrival in a `finalized` block.
    Stands,
    /// The answers of the nodes do not show yet whether a `finalized` block contains the arrival.
    Later,
    /// The arrival is no longer in the chain: a reorganisation has removed it. The event becomes doubtful, and an operator
    /// decides.
    Lost(Reason),
}

/// Judges a later look at an arrival that was confirmed before its block was `finalized`.
///
/// The look uses [`Finality::Finalized`]. `is_claimed` reports whether a log or a call already confirms another event.
#[must_use]
pub fn revisit(
    question: &Question<'_>,
    seen: &[Observation],
    arrival: &ConfirmedArrival,
    is_claimed: IsClaimed<'_>,
) -> Revisited {
    let findings = seen.iter().map(|node| Judge { question, node }.finding(is_claimed)).collect();
    let is_passed = seen.iter().all(|node| node.error.is_none() && node.final_block >= Some(arrival.block));
    let lost = |message: String| Revisited::Lost(Reason::new(Code::Lost, message));
    match combine(question, findings) {
        Ok(found) if found.transaction == arrival.transaction => Revisited::Stands,
        _ if !is_passed => Revisited::Later,
        Ok(found) => lost(format!("a reorganisation has removed it; money arrived in {} instead", found.transaction)),
        Err(reason) if is_gone(reason.code) => lost(format!("a reorganisation has removed it: {reason}")),
        Err(_) => Revisited::Later,
    }
}

/// Whether a reason means that a confirmed arrival is no longer in the chain.
fn is_gone(code: Code) -> bool {
    [Code::Unseen, Code::Unarrived].contains(&code) || code.state() == State::Doubtful
}

fn with_host(host: &str, reason: &Reason) -> Reason {
    if reason.message.starts_with(host) {
        return reason.clone();
    }
    Reason::new(reason.code, format!("{host}: {}", reason.message))
}

fn paid_block(node: &Observation) -> Option<BlockId> {
    let receipt = &node.payment.as_ref()?.receipt;
    Some(BlockId { number: receipt.block_number, hash: receipt.block_hash })
}

/// Combines the results of all nodes into one. All results must agree, and no node's result may be missing.
fn combine(question: &Question<'_>, findings: Vec<ArrivalResult>) -> ArrivalResult {
    let (asked, expected) = (findings.len(), question.chain.nodes);
    if findings.is_empty() || asked != expected {
        return Err(Reason::new(Code::Node, format!("{asked} of {expected} nodes were asked")));
    }
    // A reason of the state `Unproven` takes precedence, because a later look cannot change it. A reason of the state `Waiting`
    // comes second, because the node with this reason may answer differently later.
    for state in [State::Unproven, State::Waiting] {
        let is_in_state = |finding: &&ArrivalResult| finding.as_ref().is_err_and(|reason| reason.code.state() == state);
        if let Some(Err(reason)) = findings.iter().find(is_in_state) {
            return Err(reason.clone());
        }
    }
    let texts = findings.iter().map(|finding| match finding {
        Ok(arrival) => format!("{} {} arrived in {}", arrival.received, arrival.token, arrival.transaction),
        Err(reason) => reason.to_string(),
    });
    let message = texts.collect::<Vec<_>>().join("; ");
    let mut findings = findings.into_iter();
    let first = findings.next().unwrap_or_else(|| Err(Reason::new(Code::Node, "no node was asked")));
    let agrees = |other: ArrivalResult| match (&first, &other) {
        (Ok(first), Ok(other)) => first == other,
        (Err(first), Err(other)) => first.code == other.code,
        _ => false,
    };
    if findings.all(agrees) { first } else { Err(Reason::new(Code::Disagree, message)) }
}

/// If the event has waited for `give_up_after`, replaces the reason why the event waits by [`Code::GaveUp`]. An event with
/// [`Code::GaveUp`] needs review.
///
/// The reason is also replaced if the mail is older than `give_up_after` and a node does not have the mail's transaction. A node
/// may have pruned such an old transaction, or the transaction never existed.
fn give_up(question: &Question<'_>, reason: Reason, now: Timestamp) -> Reason {
    let limit = question.chain.give_up_after;
    let is_over = |since: Timestamp| now.duration_since(since) >= limit.try_into().unwrap_or(jiff::SignedDuration::MAX);
    let limit = crate::units::HumanDuration(limit);
    match reason.code.state() {
        State::Waiting if is_over(question.waits_since) => {
            Reason::new(Code::GaveUp, format!("not confirmed within {limit}; the last reason was {reason}"))
        }
        State::Waiting if reason.code == Code::Unseen && is_over(question.sent_at) => {
            let message =
                format!("the mail is older than {limit}, and nodes may have pruned its transaction: {reason}");
            Reason::new(Code::GaveUp, message)
        }
        _ => reason,
    }
}

/// Judges the answers of one node.
struct Judge<'a> {
    question: &'a Question<'a>,
    node: &'a Observation,
}

impl Judge<'_> {
    fn finding(&self, is_claimed: IsClaimed<'_>) -> ArrivalResult {
        let Question { chain, coin, hash, payer, .. } = self.question;
        let last = self.final_block()?;
        let payment = self.node.payment.as_ref();
        let payment = payment.ok_or_else(|| self.missing(Code::Unseen, "the node does not have the transaction"))?;
        let block = self.check_final(payment, *hash, last)?;
        self.check_time(block)?;
        if chain.is_ours(*payer) {
            return doubt(Code::Payer, format!("the payer's wallet {payer} is one of ours"));
        }
        let movements = match coin.contract {
            Some(token) => self.token_movements(token, &payment.receipt, last)?,
            None => self.native_movements(payment, last)?,
        };
        self.choose(payment, &movements, is_claimed)
    }

    /// Checks that the node has the right chain id, and returns the number of the node's newest final block.
    fn final_block(&self) -> Result<u64, Reason> {
        let chain = self.question.chain;
        let id = self.node.chain_id.ok_or_else(|| self.missing(Code::Node, "the node does not say its chain id"))?;
        if id != chain.id {
            let message = format!("{} is a node of chain {id}, not of {} ({})", self.node.host, chain.name, chain.id);
            return doubt(Code::Node, message);
        }
        self.node.final_block.ok_or_else(|| self.missing(Code::Node, "the node does not say its final block"))
    }

    /// Returns the reason for a missing answer. The code of the reason is [`Code::Node`] if a call failed, and `code` if no call
    /// failed or if the node has pruned the answer.
    fn missing(&self, code: Code, message: &str) -> Reason {
        match &self.node.error {
            Some(error) if matches!(error.kind, NodeErrorKind::Pruned(_)) => Reason::new(code, error.to_string()),
            Some(error) => Reason::new(Code::Node, error.to_string()),
            None => Reason::new(code, message),
        }
    }

    /// Checks that a transaction succeeded in a final block of the node's chain, and returns this block. `last` is the number of
    /// the newest final block.
    fn check_final(&self, seen: &Seen, hash: Hash, last: u64) -> Result<Block, Reason> {
        let receipt = &seen.receipt;
        if let Some(defect) = unsound(receipt, hash) {
            return doubt(Code::Node, format!("{}: bad receipt of {hash}: {defect}", self.node.host));
        }
        let number = receipt.block_number;
        let Some(block) = seen.block else {
            return doubt(Code::Unseen, format!("the node does not have block {number} of the receipt"));
        };
        if (block.number, block.hash) != (number, receipt.block_hash) {
            return doubt(
                Code::Unseen,
                format!("block {number} of the node's chain is not the receipt's: a reorganisation"),
            );
        }
        if number > last {
            return doubt(Code::Fresh, self.how_deep(number, last));
        }
        if !receipt.succeeded {
            return doubt(Code::Reverted, format!("the transaction {hash} failed; it moved nothing"));
        }
        Ok(block)
    }

    fn how_deep(&self, number: u64, last: u64) -> String {
        match (self.question.chain.finality, self.node.head) {
            (Finality::Depth(blocks), Some(head)) => {
                let depth = head.saturating_add(1).saturating_sub(number);
                format!("block {number} has {depth} of {blocks} blocks")
            }
            (tag, _) => format!("block {number} is {} after the last {tag} block, {last}", number.saturating_sub(last)),
        }
    }

    /// Rejects a transaction that is older than the mail by more than `window`, or older than the session's registration. A mail
    /// may name the transaction of an old payment for a new order.
    fn check_time(&self, block: Block) -> Result<(), Reason> {
        let Question { chain, sent_at, registered_at, .. } = self.question;
        let paid_at = i128::from(block.timestamp);
        let oldest = i128::from(sent_at.as_second()) - i128::from(chain.window.as_secs());
        if paid_at < oldest {
            let window = crate::units::HumanDuration(chain.window);
            return doubt(Code::Old, format!("the transaction is more than {window} older than the mail"));
        }
        // The timestamp of a block has whole seconds, so the fraction of a second in `registered_at` is ignored.
        if registered_at.is_some_and(|at| paid_at < i128::from(at.as_second())) {
            return doubt(Code::Old, "the transaction is older than the session's registration".into());
        }
        Ok(())
    }

    fn token_movements(&self, token: Address, payment: &Receipt, last: u64) -> Result<Vec<Movement>, Reason> {
        let Question { chain, coin, payer, hash, .. } = self.question;
        let moved: Vec<Transfer> = payment.transfers(token).collect();
        if moved.is_empty() {
            return doubt(Code::Token, format!("the transaction moves no {} of the contract {token}", coin.symbol));
        }
        let paid: Vec<Transfer> = moved.into_iter().filter(|transfer| transfer.from == *payer).collect();
        if paid.is_empty() {
            return doubt(Code::Payer, format!("the transaction moves {}, but none from {payer}", coin.symbol));
        }
        let direct = paid.iter().filter(|transfer| chain.is_ours(transfer.to));
        let direct = sum_up(payment, direct.map(|transfer| (log_key(transfer.log_index), transfer.value)))?;
        if let Some(direct) = direct {
            return Ok(vec![direct]);
        }
        let mut movements = Vec::new();
        for (wallet, first, units) in temporary_wallets(&paid)? {
            for receipt in self.candidates(last)?.iter().map(|seen| &seen.receipt) {
                let is_payment = receipt.transaction_hash == *hash;
                if !is_payment && place(receipt) <= place(payment) {
                    continue;
                }
                let passed = receipt.transfers(token).filter(|t| t.from == wallet && chain.is_ours(t.to));
                let passed = passed.filter(|t| !is_payment || t.log_index > first);
                let passed = sum_up(receipt, passed.map(|t| (log_key(t.log_index), t.value)))?;
                movements.extend(passed.map(|movement| movement.at_most(units)));
            }
        }
        self.arrived(movements, last)
    }

    fn native_movements(&self, payment: &Seen, last: u64) -> Result<Vec<Movement>, Reason> {
        let Question { chain, coin, payer, hash, .. } = self.question;
        let transaction = self.node.transaction.as_ref();
        let transaction = transaction
            .ok_or_else(|| self.missing(Code::Unseen, "the node has the receipt and not the transaction"))?;
        if transaction.hash != *hash || transaction.block_hash != Some(payment.receipt.block_hash) {
            return doubt(Code::Unseen, "the transaction and its receipt are in different blocks".into());
        }
        if transaction.from != *payer {
            return doubt(Code::Payer, format!("{} paid, not {payer}", transaction.from));
        }
        let Some(wallet) = transaction.to.filter(|_| transaction.value > 0) else {
            return doubt(Code::Token, format!("the transaction moves no {}", coin.symbol));
        };
        if chain.is_ours(wallet) {
            return Ok(sum_up(&payment.receipt, [(frame_key(0), transaction.value)].into_iter())?
                .into_iter()
                .collect());
        }
        self.check_trace(wallet)?;
        let mut movements = Vec::new();
        for seen in self.candidates(last)? {
            let is_after = place(&seen.receipt) >= place(&payment.receipt);
            let Some(trace) = seen.trace.as_ref().filter(|_| is_after) else { continue };
            let mut calls = Vec::new();
            collect_calls(
                trace,
                &|call| call.from == wallet && call.to.is_some_and(|to| chain.is_ours(to)),
                &mut calls,
            );
            let passed = sum_up(&seen.receipt, calls.into_iter())?;
            movements.extend(passed.map(|movement| movement.at_most(transaction.value)));
        }
        self.arrived(movements, last)
    }

    /// Returns the reason `no-trace` if `trace` is not set for the chain, or if the node does not have `debug_traceTransaction`.
    /// Only a trace proves that a temporary wallet paid the merchant in the native coin. Logs prove nothing, because an attacker
    /// can deploy a wallet that writes false logs. The merchant's balance proves nothing, because anyone can change it.
    fn check_trace(&self, wallet: Address) -> Result<(), Reason> {
        let chain = self.question.chain;
        let missing_method = self.node.error.as_ref().filter(|error| matches!(error.kind, NodeErrorKind::NoMethod(_)));
        match missing_method {
            _ if !chain.trace => doubt(
                Code::NoTrace,
                format!("{wallet} was paid; only a trace proves that it paid us (trace = true, at a node that can)"),
            ),
            Some(error) => doubt(Code::NoTrace, error.to_string()),
            None => Ok(()),
        }
    }

    /// The successful transactions in [`Observation::candidates`] that are in final blocks, oldest first and without duplicates.
    fn candidates(&self, last: u64) -> Result<Vec<&Seen>, Reason> {
        let is_final = |seen: &&Seen| self.check_final(seen, seen.receipt.transaction_hash, last).is_ok();
        let mut candidates: Vec<&Seen> = self.node.candidates.iter().filter(is_final).collect();
        candidates.sort_by_key(|seen| place(&seen.receipt));
        candidates.dedup_by_key(|seen| seen.receipt.transaction_hash);
        Ok(candidates)
    }

    /// Returns `movements`. If `movements` is empty, returns the reason why: the arrival is not final, the node failed, or no
    /// money arrived.
    fn arrived(&self, movements: Vec<Movement>, last: u64) -> Result<Vec<Movement>, Reason> {
        if !movements.is_empty() {
            return Ok(movements);
        }
        let fresh = self.node.candidates.iter().map(|seen| self.check_final(seen, seen.receipt.transaction_hash, last));
        let mut fresh = fresh.filter_map(Result::err).filter(|reason| reason.code == Code::Fresh);
        Err(fresh.next().unwrap_or_else(|| {
            self.missing(Code::Unarrived, "the wallet that the payer paid has not paid one of ours")
        }))
    }

    /// Chooses the first movement that is large enough and does not confirm another event. The reason is `claimed` if every
    /// movement confirms another event. The reason is `short` if all other movements are too small.
    fn choose(&self, payment: &Seen, movements: &[Movement], is_claimed: IsClaimed<'_>) -> ArrivalResult {
        let Question { coin, least, .. } = self.question;
        let is_free = |movement: &&Movement| !movement.keys.iter().any(|key| is_claimed(movement.transaction, *key));
        let suffices = |movement: &&Movement| least.is_none_or(|least| movement.units >= least);
        let free = || movements.iter().filter(is_free);
        let Some(movement) = free().find(suffices).or_else(|| free().next()) else {
            return doubt(Code::Claimed, "the money that arrived pays another event".into());
        };
        if let Some(least) = least.filter(|_| !suffices(&movement)) {
            return doubt(Code::Short, self.how_short(movement.units, least, coin));
        }
        let paid = BlockId { number: payment.receipt.block_number, hash: payment.receipt.block_hash };
        Ok(Arrival {
            paid,
            transaction: movement.transaction,
            keys: movement.keys.clone(),
            block: movement.block,
            units: movement.units,
            received: format_units(movement.units, coin.decimals),
            token: coin.symbol.clone(),
            amount_checked: least.is_some(),
        })
    }

    fn how_short(&self, units: u128, least: u128, coin: &Coin) -> String {
        let format = |units| format_units(units, coin.decimals);
        let amount = self.question.amount.as_deref().unwrap_or_default();
        format!("{} {} arrived; for {amount} at least {} is expected", format(units), coin.symbol, format(least))
    }
}

fn doubt<T>(code: Code, message: String) -> Result<T, Reason> {
    Err(Reason::new(code, message))
}

/// Why a receipt cannot be a correct receipt of the transaction `hash`.
fn unsound(receipt: &Receipt, hash: Hash) -> Option<&'static str> {
    let is_own = |log: &super::answers::Log| {
        log.transaction_hash == receipt.transaction_hash && log.block_hash == receipt.block_hash
    };
    let is_ascending = |pair: &[super::answers::Log]| pair.is_sorted_by(|a, b| a.log_index < b.log_index);
    if receipt.transaction_hash != hash {
        Some("it is another transaction's")
    } else if receipt.logs.is_empty() && !receipt.bloom_is_zero {
        Some("its logs are missing; its bloom filter is not empty")
    } else if !receipt.logs.iter().all(is_own) {
        Some("it has logs of another transaction")
    } else if !is_ascending(&receipt.logs) {
        Some("its logs are not in order")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
