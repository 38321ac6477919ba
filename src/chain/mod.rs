//! Checks at JSON-RPC nodes whether the money of a payment arrived. The merchant configures the nodes.
//!
//! A genuine mail may repeat false statements of the payer, so it does not prove that money moved. This room turns a mail's
//! claim into a question (`claim`), asks each node (`look`, with `rpc` and `calls`), and judges the answers (`judge`, which
//! is pure). `settings`, `catalog` and `configured` describe the chains, tokens and wallets. `hex`, `amount` and `answers`
//! parse values exactly. `verdict` has the states and reasons. The room has no state, no loop and no database.

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
pub use look::{Observation, Seen, Step, look_at_node};
pub use node_error::{NodeError, NodeErrorKind};
pub use rpc::Node;
pub use settings::{ChainSettings, Finality, NodeSource, TokenSettings};
pub use verdict::{Arrival, BlockId, Confirmation, ConfirmationCode, ConfirmationReason, ConfirmationState};
