//! The database: one SQLite file, an interface that merchants look into.
//!
//! One thread owns the writing connection (`writer`). Readers open connections of their own (`reader`). `schema` opens
//! and migrates the file. The decisions about payments are made above, in `payments`.

mod deliveries;
mod error;
mod lock;
mod mailboxes;
mod maintenance;
mod reader;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use deliveries::holds;
pub use deliveries::{Attempted, Claimed, End, InFlight, Retry, Turn};
pub use error::{Error, Result};
pub use lock::DaemonLock;
pub(crate) use mailboxes::advance;
pub use mailboxes::{Cursor, Landmarks};
pub use maintenance::{Backlog, Pruned};
pub use reader::{DeliveryRow, EventFilter, EventRow, MailRow, MailboxRow, Reader};
pub(crate) use reader::{all_of, asked};
pub use store::{Settings, Store, Target};
pub(crate) use store::{moment, now};
pub use writer::KEPT_BACK;
