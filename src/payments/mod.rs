//! The payment logic: which event a mail makes, which session it belongs to, and whether it may be delivered.
//!
//! `conflicts`, `matching` and `signed_address` are pure: they know no SQL, no clock and no network. The other files apply
//! them inside a transaction of `db`.

mod change_watcher;
pub mod conflicts;
mod events;
mod matching;
mod reconcile;
mod record;
mod reevaluate;
mod register;
mod sessions;
mod settings;
mod signed_address;
mod stored_events;
#[cfg(test)]
mod tests;

pub use matching::{Registered, Source, contradiction, fits, matching, of_order};
pub use reconcile::{Assigned, Settled};
pub use record::{Entry, Recorded};
pub use reevaluate::{Change, Stored};
pub use register::{NewSession, SessionRow};
pub use settings::{AddressSettings, Settings};
pub use signed_address::{Addresses, Named};
