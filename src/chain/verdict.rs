//! The chain's verdict about an event: states, reasons, and the arrival.

use std::fmt;

use super::hex::Hash;
use crate::model::{printable, string_enum};

/// The chain's verdict about a completed event. There is no state for "failed": no answer of a node makes an event fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfirmationState {
    /// Not yet; it is looked up again.
    Waiting,
    /// The money arrived.
    Confirmed,
    /// The chain contradicts the mail. A person decides.
    Doubtful,
    /// Nothing can be said. A person decides.
    Unproven,
    /// A person vouched for it.
    Operator,
}
string_enum!(ConfirmationState, "confirmation state", Waiting => "waiting", Confirmed => "confirmed",
    Doubtful => "doubtful", Unproven => "unproven", Operator => "operator");

/// Why an event is not confirmed. These words are an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfirmationCode {
    /// The node does not have the transaction, or has it in a block that is not the chain's.
    Unseen,
    /// The payment or the arrival is not in a final block.
    Fresh,
    /// The temporary wallet has not passed the money on.
    Unarrived,
    /// Two nodes say different things.
    Disagree,
    /// A node gives no usable answer.
    Node,
    /// The transaction failed.
    Reverted,
    /// Another wallet paid.
    Payer,
    /// The transaction does not move this token.
    Token,
    /// Less arrived than the mail says.
    Short,
    /// The transaction is older than the claim may be.
    Old,
    /// The arrival pays another event.
    Claimed,
    /// A final arrival has disappeared.
    Lost,
    /// No `[[chain]]` for the event's chain.
    NoNode,
    /// The token is not known on this chain, or its amount cannot be compared.
    NoToken,
    /// Only a trace could prove it, and the node gives none.
    NoTrace,
    /// The mail lacks the hash or the wallet.
    NoHash,
    /// It has waited too long.
    GaveUp,
}
string_enum!(ConfirmationCode, "confirmation reason", Unseen => "unseen", Fresh => "fresh", Unarrived => "unarrived",
    Disagree => "disagree", Node => "node", Reverted => "reverted", Payer => "payer", Token => "token", Short => "short",
    Old => "old", Claimed => "claimed", Lost => "lost", NoNode => "no-node", NoToken => "no-token",
    NoTrace => "no-trace", NoHash => "no-hash", GaveUp => "gave-up");

impl ConfirmationCode {
    /// The state that the reason belongs to.
    #[must_use]
    pub fn state(self) -> ConfirmationState {
        match self {
            Self::Unseen | Self::Fresh | Self::Unarrived | Self::Disagree | Self::Node => ConfirmationState::Waiting,
            Self::Reverted | Self::Payer | Self::Token | Self::Short | Self::Old | Self::Claimed | Self::Lost => {
                ConfirmationState::Doubtful
            }
            Self::NoNode | Self::NoToken | Self::NoTrace | Self::NoHash | Self::GaveUp => ConfirmationState::Unproven,
        }
    }
}

/// A reason: a code for machines, words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfirmationReason {
    /// The interface.
    pub code: ConfirmationCode,
    /// One line, fit for a log.
    pub words: String,
}

impl ConfirmationReason {
    /// A reason; the words are made fit for a log line.
    #[must_use]
    pub fn new(code: ConfirmationCode, words: impl AsRef<str>) -> Self {
        ConfirmationReason { code, words: printable(words.as_ref(), 500) }
    }
}

impl fmt::Display for ConfirmationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.words)
    }
}

/// A block by number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Money that reached one of the merchant's wallets. All nodes must report the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The block of the mail's transaction.
    pub paid: BlockId,
    /// The transaction in which the money arrived; the mail's own if the payer paid the merchant directly.
    pub transaction: Hash,
    /// The keys of what moved the money in that transaction. A log has its index in the block. A call without a log has −1
    /// for the transaction itself, −2 for the first call that it made, and so on, in the order of the trace.
    pub keys: Vec<i64>,
    /// The block of that transaction.
    pub block: BlockId,
    /// How much arrived, in the coin's smallest units; at most what the payer paid.
    pub units: u128,
    /// The same as a plain decimal number.
    pub received: String,
    /// The coin's symbol.
    pub token: String,
    /// Whether the amount was compared with the mail's.
    pub amount_checked: bool,
}

/// The result of one look at all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// The money arrived, or why that is not proven.
    pub outcome: Result<Arrival, ConfirmationReason>,
    /// The block of the mail's transaction, if the nodes have it.
    pub paid: Option<BlockId>,
    /// The last final block: the lowest of the nodes'.
    pub final_block: Option<u64>,
}

impl Confirmation {
    /// A confirmation that needs no look.
    #[must_use]
    pub fn without_look(reason: ConfirmationReason) -> Self {
        Confirmation { outcome: Err(reason), paid: None, final_block: None }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> ConfirmationState {
        self.outcome.as_ref().map_or_else(|reason| reason.code.state(), |_| ConfirmationState::Confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_and_none_confirms() {
        for code in ConfirmationCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            assert!(![ConfirmationState::Confirmed, ConfirmationState::Operator].contains(&code.state()), "{code}");
        }
    }

    #[test]
    fn a_reason_is_fit_for_a_log_line() {
        let reason = ConfirmationReason::new(ConfirmationCode::NoToken, format!("a\n\u{1b}{}", "b".repeat(5_000)));
        let line = reason.to_string();
        assert!(line.starts_with("no-token: a  b") && line.chars().count() < 520 && !line.contains('\n'));
    }
}
