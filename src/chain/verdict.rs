//! The chain's verdict about an event: states, reasons, and the arrival.

use std::fmt;

use super::hex::Hash;
use crate::model::{printable, string_enum};

/// The chain's verdict about an event with the status `completed`. There is no state for "failed": no answer of a node makes an
/// event fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfirmationState {
    /// Not confirmed yet. The loop of `confirm` looks at the event again.
    Waiting,
    /// The money arrived.
    Confirmed,
    /// The chain contradicts the mail. An operator decides.
    Doubtful,
    /// The nodes cannot check the mail's claim, or the event has waited too long. An operator decides.
    Unproven,
    /// An operator has confirmed the event with `confirm --vouch`.
    Operator,
}
string_enum!(ConfirmationState, "confirmation state", Waiting => "waiting", Confirmed => "confirmed",
    Doubtful => "doubtful", Unproven => "unproven", Operator => "operator");

/// Why an event is not confirmed. The codes are an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfirmationCode {
    /// The node does not have the transaction, or has it in a block that is not part of its chain.
    Unseen,
    /// The payment or the arrival is not in a final block, or the time `settle` has not passed.
    Fresh,
    /// The temporary wallet has not passed the money on.
    Unarrived,
    /// Two nodes contradict each other.
    Disagree,
    /// A node gives no usable answer.
    Node,
    /// The transaction that the mail names was reverted.
    Reverted,
    /// A wallet paid that is not the payer's wallet in the mail, or the payer's wallet is one of the merchant's.
    Payer,
    /// The transaction does not move the token that the mail names.
    Token,
    /// Less arrived than the mail's amount minus the largest discount.
    Short,
    /// The transaction is too old for the mail or the session.
    Old,
    /// The arrival already confirms another event.
    Claimed,
    /// A confirmed arrival is no longer in the chain: a reorganisation has removed it.
    Lost,
    /// The configuration has no `[[chain]]` for the event's chain.
    NoNode,
    /// The token is not known on this chain, or its amount cannot be compared.
    NoToken,
    /// Only a trace could prove the payment, and the node returns no trace.
    NoTrace,
    /// The mail has no valid transaction hash, or no valid payer's wallet.
    NoHash,
    /// The event has waited for `give_up_after`. Or the event's mail is older than `give_up_after`, and a node does not have the
    /// transaction.
    GaveUp,
}
string_enum!(ConfirmationCode, "confirmation reason", Unseen => "unseen", Fresh => "fresh", Unarrived => "unarrived",
    Disagree => "disagree", Node => "node", Reverted => "reverted", Payer => "payer", Token => "token", Short => "short",
    Old => "old", Claimed => "claimed", Lost => "lost", NoNode => "no-node", NoToken => "no-token",
    NoTrace => "no-trace", NoHash => "no-hash", GaveUp => "gave-up");

impl ConfirmationCode {
    /// The state of an event with this reason.
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

/// The reason why an event is not confirmed: a code for programs, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfirmationReason {
    /// The code, which is an interface.
    pub code: ConfirmationCode,
    /// The text: one printable line.
    pub message: String,
}

impl ConfirmationReason {
    /// Creates a reason. Unprintable characters in the text are replaced.
    #[must_use]
    pub fn new(code: ConfirmationCode, message: impl AsRef<str>) -> Self {
        ConfirmationReason { code, message: printable(message.as_ref(), 500) }
    }
}

impl fmt::Display for ConfirmationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// A block by number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId {
    /// The block's number.
    pub number: u64,
    /// The block's hash.
    pub hash: Hash,
}

/// Money that reached one of the merchant's wallets. All nodes must report the same arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The block of the transaction that the mail names.
    pub paid: BlockId,
    /// The transaction in which the money arrived. If the payer paid the merchant directly, this is the transaction that the mail
    /// names.
    pub transaction: Hash,
    /// The keys of the logs or calls that moved the money in that transaction. The key of a log is its index in the block.
    /// Calls have negative keys in the order of the trace: −1 is the transaction itself, −2 the first call that it made.
    pub keys: Vec<i64>,
    /// The block in which the money arrived.
    pub block: BlockId,
    /// The amount that arrived, in the coin's smallest units, but at most the amount that the payer paid.
    pub units: u128,
    /// The amount `units` as a plain decimal number of coins.
    pub received: String,
    /// The coin's symbol.
    pub token: String,
    /// Whether the amount was compared with the amount in the mail.
    pub amount_checked: bool,
}

/// The result of one look at all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// The arrival, or the reason why none is proven.
    pub outcome: Result<Arrival, ConfirmationReason>,
    /// The block of the transaction that the mail names, if the nodes have it.
    pub paid: Option<BlockId>,
    /// The number of the newest final block. If the nodes differ, this is the lowest number.
    pub final_block: Option<u64>,
}

impl Confirmation {
    /// The result for a claim that the nodes cannot check, so that no look is needed.
    #[must_use]
    pub fn without_look(reason: ConfirmationReason) -> Self {
        Confirmation { outcome: Err(reason), paid: None, final_block: None }
    }

    /// The state of an event with this result.
    #[must_use]
    pub fn state(&self) -> ConfirmationState {
        self.outcome.as_ref().map_or_else(|reason| reason.code.state(), |_| ConfirmationState::Confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_parsed_back_and_none_confirms() {
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
