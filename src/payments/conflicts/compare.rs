//! Compares the values of two reports of a payment. A missing value contradicts nothing.

use crate::model::{self, Event, PaymentDetails, Status, same_amount, same_token};

/// Whether two events report the same status of the same payment, although their ids may differ. The id of an event depends on
/// its chain, or on its time if the event has no transaction hash. One of the two events may lack the chain or the time, or a
/// later report may have added this value to the event.
pub(super) fn is_same_report(a: &PaymentDetails, b: &PaymentDetails) -> bool {
    if a.status != b.status {
        return false;
    }
    match (&a.transaction_hash, &b.transaction_hash) {
        (Some(_), Some(_)) => shares_transaction(a, b),
        (None, None) => {
            a.session_id.is_some()
                && same_text(&a.session_id, &b.session_id)
                && agree(&a.tx_time, &b.tx_time, |x, y| x == y)
        }
        _ => false,
    }
}

/// Whether both payments have the same transaction hash, and do not name two different chains.
pub(super) fn shares_transaction(a: &PaymentDetails, b: &PaymentDetails) -> bool {
    shares_hash(a, b) && same_chain(&a.blockchain, &b.blockchain)
}

pub(super) fn shares_hash(a: &PaymentDetails, b: &PaymentDetails) -> bool {
    let hashes = a.transaction_hash.as_deref().zip(b.transaction_hash.as_deref());
    hashes.is_some_and(|(x, y)| model::fold_hash(x) == model::fold_hash(y))
}

fn same_chain(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| model::fold_chain(x) == model::fold_chain(y))
}

/// Whether the values `a` and `b` do not contradict each other. A missing value contradicts nothing.
fn agree<T>(a: &Option<T>, b: &Option<T>, same: impl Fn(&T, &T) -> bool) -> bool {
    a.as_ref().zip(b.as_ref()).is_none_or(|(x, y)| same(x, y))
}

pub(super) fn same_text(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| x.eq_ignore_ascii_case(y))
}

/// Compares the sessions, the orders and the amounts of two reports of one transaction. Returns the first difference, as a
/// message.
pub(super) fn contradiction_of_claims(known: &Event, new: &Event) -> Option<String> {
    let (k, n) = (&known.payment, &new.payment);
    if !same_text(&k.session_id, &n.session_id) {
        return differs("session_id", &k.session_id, &n.session_id);
    }
    if !agree(&known.order_ref, &new.order_ref, |a, b| a == b) {
        return differs("order_ref", &known.order_ref, &new.order_ref);
    }
    if !agree(&k.amount, &n.amount, |a, b| same_amount(a, b)) {
        return differs("amount", &k.amount, &n.amount);
    }
    None
}

fn differs(field: &str, a: &Option<String>, b: &Option<String>) -> Option<String> {
    let (a, b) = (a.as_deref().unwrap_or(""), b.as_deref().unwrap_or(""));
    Some(format!("{field} is known as {a:?} and this mail says {b:?}"))
}

/// Returns a message about the first value in which two reports of one payment differ.
pub(super) fn contradiction(known: &Event, new: &Event) -> Option<String> {
    let (k, n) = (&known.payment, &new.payment);
    if let Some(difference) = contradiction_of_claims(known, new) {
        return Some(difference);
    }
    if !agree(&k.currency, &n.currency, |a, b| same_token(a, b)) {
        return differs("currency", &k.currency, &n.currency);
    }
    if !agree(&k.token, &n.token, |a, b| same_token(a, b)) {
        return differs("token", &k.token, &n.token);
    }
    if !same_wallet(&k.from_wallet_address, &n.from_wallet_address) {
        return differs("from_wallet_address", &k.from_wallet_address, &n.from_wallet_address);
    }
    // The time in the webhook has no seconds, so only the minutes are compared.
    if !agree(&k.tx_time, &n.tx_time, |a, b| a.as_second().div_euclid(60) == b.as_second().div_euclid(60)) {
        return differs("txTime", &k.tx_time.map(model::iso), &n.tx_time.map(model::iso));
    }
    None
}

/// Compares wallet addresses: hexadecimal addresses as numbers, base58 addresses character by character.
fn same_wallet(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| model::fold_hash(x) == model::fold_hash(y))
}

/// Compares two events that report different statuses of one transaction. Returns the first contradiction, as a message.
pub(super) fn contradiction_of_siblings(known: &Event, new: &Event) -> Option<String> {
    if known.payment.status == Status::Completed && new.payment.status == Status::Failed {
        return Some("this mail reports a failure of a transaction that is known as completed".into());
    }
    // Reports of different statuses of one transaction may have different times. In all other values, the reports must not
    // contradict each other.
    let timeless =
        |event: &Event| Event { payment: PaymentDetails { tx_time: None, ..event.payment.clone() }, ..event.clone() };
    contradiction(&timeless(known), &timeless(new))
}
