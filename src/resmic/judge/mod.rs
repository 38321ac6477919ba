//! Decides what answers mean. Pure: no clock, no network, no database.
//!
//! An answer is another party's statement. It chooses a session only by the transaction itself, it never makes a payment
//! failed that is known as completed, and whatever is unclear waits or needs review.

mod choose;
mod reconcile;
mod require;
mod shapes;

pub use choose::{SessionChoice, choose_session};
pub use reconcile::{Finding, PaymentsOfSession, PreviousLooks, Registration, expiry, reconcile};
pub use require::{Clearance, clear_delivery};

use super::answer::TransactionDetails;
use crate::model::{Reading, Reason, ReasonCode, fold_chain, fold_hash};

/// Whether two values of a field are the same, however they are written.
type Same = fn(&str, &str) -> bool;

fn conflict(words: impl AsRef<str>) -> Reason {
    Reason::new(ReasonCode::Conflict, words)
}

fn unreadable(words: impl AsRef<str>) -> Reason {
    Reason::new(ReasonCode::Unreadable, words)
}

/// Whether both name a transaction, and it is the same one: the same hash, and not on two chains.
fn same_transaction(reading: &Reading, details: &TransactionDetails) -> bool {
    let hashes = reading.transaction_hash.as_deref().zip(details.transaction_hash.as_deref());
    let chains = reading.blockchain.as_deref().zip(details.blockchain.as_deref());
    hashes.is_some_and(|(a, b)| fold_hash(a) == fold_hash(b))
        && chains.is_none_or(|(a, b)| fold_chain(a) == fold_chain(b))
}

/// The first field in which two statements differ, in words. A field that only one of them names does not differ.
fn difference<'a>(
    fields: impl IntoIterator<Item = (&'static str, Option<&'a str>, Option<&'a str>, Same)>,
) -> Option<String> {
    fields.into_iter().find_map(|(field, ours, theirs, same)| {
        let (ours, theirs) = ours.zip(theirs)?;
        (!same(ours, theirs)).then(|| format!("{field} is known as {ours:?} and Resmic says {theirs:?}"))
    })
}

fn same_chain(a: &str, b: &str) -> bool {
    fold_chain(a) == fold_chain(b)
}
