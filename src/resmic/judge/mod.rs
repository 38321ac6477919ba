//! Judges Resmic's answers. The functions are pure: they use no clock, no network and no database.
//!
//! An answer is a statement of Resmic, not a proof. An answer chooses a session only by the transaction hash, and never turns a
//! completed payment into a failed one. After an unclear answer, the event waits or needs review.

mod choose;
mod reconcile;
mod require;
mod shapes;

pub use choose::{SessionChoice, choose_session};
pub use reconcile::{AskedSession, Finding, PaymentsOfSession, PreviousInquiries, expiry, reconcile};
pub use require::{Clearance, clear_delivery};

use super::answer::TransactionDetails;
use crate::model::{PaymentDetails, Reason, ReasonCode, fold_chain, fold_hash};

/// Whether two values of a field are the same, apart from their spelling.
type Same = fn(&str, &str) -> bool;

fn conflict(message: impl AsRef<str>) -> Reason {
    Reason::new(ReasonCode::Conflict, message)
}

fn unreadable(message: impl AsRef<str>) -> Reason {
    Reason::new(ReasonCode::Unreadable, message)
}

/// Whether the event's `payment` and Resmic's `details` name the same transaction: the same hash, and not two different chains.
fn same_transaction(payment: &PaymentDetails, details: &TransactionDetails) -> bool {
    let hashes = payment.transaction_hash.as_deref().zip(details.transaction_hash.as_deref());
    let chains = payment.blockchain.as_deref().zip(details.blockchain.as_deref());
    hashes.is_some_and(|(a, b)| fold_hash(a) == fold_hash(b))
        && chains.is_none_or(|(a, b)| fold_chain(a) == fold_chain(b))
}

/// Returns a message about the first field whose stored or registered value differs from Resmic's value. A field is compared only
/// if both values are present.
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
