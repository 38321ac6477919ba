//! Did the money arrive? Looks a payment up at JSON-RPC nodes that the merchant names.
//!
//! A genuine mail may repeat the payer's own words, so it does not prove that money moved. This room makes a mail's claim a
//! question (`claim`), asks each node (`look`, over `rpc` and `calls`), and judges the answers (`judge`, which is pure).
//! `settings`, `catalog` and `configured` are the chains, tokens and wallets; `hex`, `amount` and `answers` are exact values; `verdict`
//! has the states and reasons. The room keeps nothing, has no loop, and knows no database.

mod amount;
mod answers;
mod calls;
mod catalog;
mod claim;
mod configured;
mod hex;
mod judge;
mod look;
mod node_error;
mod rpc;
mod settings;
mod verdict;

pub use amount::Discount;
pub use answers::{Block, Frame, Log, Receipt, TRANSFER, Transaction, Transfer};
pub use calls::LogFilter;
pub use claim::{Claim, Question};
pub use configured::{Chain, Coin};
pub use hex::{Address, Hash, Quantity};
pub use judge::{ConfirmedArrival, IsClaimed, Revisited, judge, revisit};
pub use look::{Observation, Seen, Step, look};
pub use node_error::{NodeError, NodeErrorKind};
pub use rpc::Node;
pub use settings::{ChainSettings, Finality, NodeSource, TokenSettings};
pub use verdict::{Arrival, BlockId, Confirmation, ConfirmationCode, ConfirmationReason, ConfirmationState};
