//! The database: one SQLite file. The schema is public, so that merchants' programs can read the database.
//!
//! One thread owns the writing connection (`writer`). Each reader opens another connection (`reader`). `schema` opens
//! and migrates the file. The decisions about payments are made in `payments`.

mod accounts;
mod columns;
mod confirmations;
mod copy;
mod deliveries;
mod disk;
mod error;
mod file_id;
mod lock;
mod mailboxes;
mod maintenance;
mod pages;
mod prune;
mod reader;
mod resmic_api;
mod rows;
mod schema;
mod store;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod turns;
mod writer;

pub(crate) use accounts::record_notification;
pub use accounts::{AccountRow, RecentParses};
pub(crate) use columns::{EMPTY_SHA256, current_time, parse_time, word};
pub use confirmations::{ChainRow, ConfirmationRow};
pub use copy::{CopyState, inspect_copy};
pub(crate) use deliveries::holds;
pub use deliveries::{
    ClaimLimit, Claimed, ClaimedBatch, DeliveredConfirmation, DeliveredEvent, DeliveredPosition, FinishedAttempt,
    InFlight, NextStep, Outage, OutboundEvent, RetrySelection, StreamReceipt,
};
pub use disk::LOW_SPACE;
pub use error::{Error, Result};
pub use lock::DaemonLock;
pub(crate) use mailboxes::advance;
pub use mailboxes::{Cursor, UidFingerprints};
pub use maintenance::Backlog;
pub(crate) use pages::PAGE;
pub use prune::Pruned;
pub use reader::{EventQuery, StoreReader};
pub(crate) use reader::{optional, where_clause};
pub use resmic_api::ResmicBacklog;
pub use rows::{DeliveryRow, EventRow, MailRow, MailboxRow};
pub use schema::NEWEST_SCHEMA;
pub use store::{ResmicRules, Store, StoreSettings, TargetRules};
pub use streams::{StreamChange, StreamRow};
pub use turns::{TurnWorker, turn_at};
pub use writer::MAX_WAL_BACKLOG;
