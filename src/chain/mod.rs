//! Did the money arrive? Looks a payment up at JSON-RPC nodes that the merchant names.
//!
//! A genuine mail may repeat the payer's own words, so it does not prove that money moved. This room makes a mail's claim a
//! question (`claim`), asks each node (`look`, over `rpc` and `calls`), and judges the answers (`judge`, which is pure).
//! `settings` and `catalog` are the chains, tokens and wallets; `hex`, `amount` and `answers` are exact values; `verdict`
//! has the states and reasons. The room keeps nothing, has no loop, and knows no database.

mod amount;
mod answers;
mod calls;
mod catalog;
mod claim;
mod hex;
mod judge;
mod look;
mod rpc;
mod settings;
mod verdict;

pub use amount::Discount;
pub use answers::{Block, Frame, Log, Receipt, TRANSFER, Transaction, Transfer};
pub use calls::LogFilter;
pub use claim::{Claim, Question};
pub use hex::{Address, Hash, Quantity};
pub use judge::{IsClaimed, Revisited, judge, revisit};
pub use look::{Observation, Seen, Step, look};
pub use rpc::{Node, NodeError, NodeErrorKind};
pub use settings::{Chain, ChainSettings, Coin, Finality, NodeSource, TokenSettings};
pub use verdict::{Arrival, BlockId, Confirmation, ConfirmationCode, ConfirmationReason, ConfirmationState};
