//! The payment logic: which event a mail makes, which session the event belongs to, and whether the event may be delivered.
//!
//! `conflicts`, `matching` and `signed_address` are pure: they use no SQL, no clock and no network. The other files of this room
//! apply `conflicts` and `matching` inside an SQLite transaction. `examine` applies `signed_address`.

mod candidates;
mod change_watcher;
mod clearances;
mod confirmations;
pub mod conflicts;
mod events;
mod inquiries;
mod looks;
mod matching;
mod reconcile;
mod record;
mod reevaluate;
mod register;
mod searches;
mod sessions;
mod settings;
mod signed_address;
mod stored_events;
#[cfg(test)]
mod tests;
mod undelivered;

pub use clearances::{DueClearance, RecordedClearance};
pub use confirmations::Vouched;
pub use inquiries::{DueInquiry, RecordedSession};
pub use looks::{DueLook, FinishedLook, RecordedLook, next_look};
pub use matching::{SessionSource, contradiction, may_pay, only_match, session_of_order};
pub use reconcile::{Assigned, Reconciled};
pub use record::{ExaminedMail, Recorded};
pub use reevaluate::{Reevaluation, StoredMail};
pub use register::{SessionRegistration, SessionRow};
pub use searches::DueSearch;
pub use settings::{AddressSettings, SessionSettings};
pub use signed_address::{OrderLookup, SignedAddresses, check_mailbox};
