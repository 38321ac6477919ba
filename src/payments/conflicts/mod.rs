//! Compares a new event with the stored events. The functions are pure: they use no database and no clock.
//!
//! Several mails may report the same payment, and they may contradict each other. This file ensures that no payment is counted
//! twice: mails that report the same status of one payment give one event, and an operator decides about contradictions.

mod compare;
#[cfg(test)]
mod tests;

use self::compare::{
    contradiction, contradiction_of_claims, contradiction_of_siblings, is_same_report, same_text, shares_hash,
    shares_transaction,
};
use crate::model::{self, Event, PaymentDetails, Reason, ReasonCode, Status};

/// An event of the table `events`, with the state of its deliveries and confirmations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// The id of the event.
    pub event_id: String,
    /// The values of the event.
    pub event: Event,
    /// A handler has accepted the event, so a later report does not change the event.
    pub delivered: bool,
    /// A handler may have received the event, although the daemon received no response.
    pub maybe_delivered: bool,
    /// The event needs the confirmation of the chain or of Resmic, and this confirmation is missing. If an operator has confirmed
    /// the event, no confirmation is missing.
    pub unconfirmed: bool,
    /// Resmic's API reported the event. The event's time is Resmic's `updated_at` of the session, and not the time in a mail.
    pub is_from_api: bool,
}

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSource {
    /// A mail.
    Mail,
    /// Resmic's API, because the mail is missing.
    Resmic,
}
model::string_enum!(EventSource, "source", Mail => "mail", Resmic => "resmic");

impl StoredEvent {
    /// Returns the event for the comparison with a later report. A time from Resmic's API is left out, because this time may
    /// differ from the time in the mail.
    fn to_compare(&self) -> Event {
        let mut event = self.event.clone();
        event.payment.tx_time.take_if(|_| self.is_from_api);
        event
    }
}

/// The result of [`classify`]: how a new event relates to the stored events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classification {
    /// The new event repeats no stored event.
    New {
        /// Why the new event needs review before delivery. `None`: no review is needed.
        hold: Option<Reason>,
        /// Whether the new event has the status `pending`, and a stored event of its transaction or session is completed. A
        /// superseded event is not delivered.
        superseded: bool,
    },
    /// The new event repeats a stored event and does not contradict this stored event.
    Duplicate {
        /// The id of the repeated event.
        event_id: String,
        /// The repeated event with missing values added from the new event. `None`: no value can be added.
        filled: Option<Box<Event>>,
    },
    /// The new event contradicts a stored event.
    Conflict(Reason),
}

/// Compares the new event `new`, whose id is `id`, with stored events. `known` are the stored events that have the id, the
/// transaction or the session of `new`.
#[must_use]
pub fn classify(id: &str, new: &Event, known: &[StoredEvent]) -> Classification {
    if let Some(repeated) = find_repeated(id, new, known) {
        return match contradiction(&repeated.to_compare(), new) {
            Some(difference) => conflict(&repeated.event_id, &difference),
            None => Classification::Duplicate { event_id: repeated.event_id.clone(), filled: fill_gaps(repeated, new) },
        };
    }
    match conflict_with_siblings(new, known) {
        Some(reason) => Classification::Conflict(reason),
        None => classify_beside_others(new, known),
    }
}

/// Finds the stored event that `new` repeats: it has the same id, or reports the same status of the same payment.
#[must_use]
pub fn find_repeated<'k>(id: &str, new: &Event, known: &'k [StoredEvent]) -> Option<&'k StoredEvent> {
    known.iter().find(|k| k.event_id == id || is_same_report(&k.to_compare().payment, &new.payment))
}

/// Why a stored event is not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldReason {
    /// An operator must decide about the event, for this reason.
    NeedsReview(Reason),
    /// The event has the status `pending`, and another event of its session or transaction is completed.
    Superseded,
}

/// Returns why the stored event `id` may not be delivered after `event` has replaced its values. `known` also contains the stored
/// event `id` with its old values.
#[must_use]
pub fn hold_reason(id: &str, event: &Event, known: &[StoredEvent]) -> Option<HoldReason> {
    let others: Vec<StoredEvent> = known.iter().filter(|k| k.event_id != id).cloned().collect();
    let before = known.iter().find(|k| k.event_id == id).map(|k| &k.event.payment);
    if let Some(reason) = conflict_with_siblings(event, &others) {
        return Some(HoldReason::NeedsReview(reason));
    }
    match classify_beside_others(&without_known_parts(before, event), &others) {
        Classification::New { superseded: true, .. } => Some(HoldReason::Superseded),
        Classification::New { hold, .. } => hold.map(HoldReason::NeedsReview),
        Classification::Duplicate { .. } | Classification::Conflict(_) => None,
    }
}

/// Returns why an event that was just confirmed needs review. The event needs review if its session has another completed event
/// that is delivered or needs no further confirmation.
#[must_use]
pub fn second_payment(id: &str, event: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let others: Vec<StoredEvent> = known.iter().filter(|k| k.event_id != id).cloned().collect();
    match classify_in_session(event, &others) {
        Classification::New { hold, .. } => hold,
        Classification::Duplicate { .. } | Classification::Conflict(_) => None,
    }
}

/// Returns the stored completed events whose transaction the new event reports with another session, order or amount. Each event
/// comes with the reason to hold its deliveries. Only one of two such reports can be right, and the chain cannot show which one
/// is right.
pub fn contested<'k>(
    id: &str,
    new: &Event,
    known: &'k [StoredEvent],
) -> impl Iterator<Item = (&'k StoredEvent, Reason)> {
    known.iter().filter_map(move |k| {
        let is_same = k.event_id == id || shares_transaction(&k.event.payment, &new.payment);
        let difference = contradiction_of_claims(&k.event, new).filter(|_| {
            is_same && k.event.payment.status == Status::Completed && new.payment.status == Status::Completed
        })?;
        let message = format!("another mail claims the same transaction: {difference}");
        Some((k, Reason::new(ReasonCode::Conflict, message)))
    })
}

/// Returns a copy of the event without the values that were already compared with the other events. The session is removed if the
/// session is unchanged. The transaction is removed if the chain is unchanged, because the hash of a stored event never changes.
/// An unchanged value needs no second comparison, because each new event is compared with the stored events.
fn without_known_parts(before: Option<&PaymentDetails>, event: &Event) -> Event {
    let is_unchanged = |field: fn(&PaymentDetails) -> &Option<String>| {
        before.is_some_and(|before| {
            field(before).is_some() == field(&event.payment).is_some()
                && same_text(field(before), field(&event.payment))
        })
    };
    let mut new = event.clone();
    new.payment.session_id.take_if(|_| is_unchanged(|payment| &payment.session_id));
    new.payment.transaction_hash.take_if(|_| is_unchanged(|payment| &payment.blockchain));
    new
}

fn conflict(event_id: &str, message: &str) -> Classification {
    Classification::Conflict(conflict_with(event_id, message))
}

fn conflict_with(event_id: &str, message: &str) -> Reason {
    Reason::new(ReasonCode::Conflict, format!("{message} (event {event_id})"))
}

/// Returns the first contradiction between the new event and a stored event of the same transaction.
fn conflict_with_siblings(new: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let mut siblings = known.iter().filter(|k| shares_transaction(&k.event.payment, &new.payment));
    siblings.find_map(|k| contradiction_of_siblings(&k.event, new).map(|message| conflict_with(&k.event_id, &message)))
}

/// Compares a new event with the other events of its session, and with events that have the same transaction hash on another
/// chain.
fn classify_beside_others(new: &Event, known: &[StoredEvent]) -> Classification {
    match classify_in_session(new, known) {
        Classification::New { hold: None, superseded: false } => {
            Classification::New { hold: same_hash_on_another_chain(new, known), superseded: false }
        }
        decided => decided,
    }
}

/// Returns the reason to hold a new event whose transaction hash is known on another chain. A signed transaction can be sent
/// again on another chain, so the new event may be a second payment. The new event may also report the same payment with another
/// name of the chain.
fn same_hash_on_another_chain(new: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let is_elsewhere = |a: &PaymentDetails, b: &PaymentDetails| shares_hash(a, b) && !shares_transaction(a, b);
    let other = known.iter().find(|k| is_elsewhere(&k.event.payment, &new.payment))?;
    Some(conflict_with(&other.event_id, "the hash of its transaction is known on another chain"))
}

/// Compares a new event with the other events of its session. A new event with the status `pending` is superseded if a completed
/// event has the same transaction or session.
fn classify_in_session(new: &Event, known: &[StoredEvent]) -> Classification {
    let session = &new.payment.session_id;
    let is_pending = new.payment.status == Status::Pending;
    let completed = known.iter().find(|k| {
        let is_its_session = session.is_some()
            && k.event.payment.session_id.is_some()
            && same_text(session, &k.event.payment.session_id);
        // An event without its required confirmation may be false, so it must not hold the event of a real payment.
        let counts = !k.unconfirmed || k.delivered;
        k.event.payment.status == Status::Completed
            && counts
            && (is_its_session || is_pending && shares_transaction(&k.event.payment, &new.payment))
    });
    let Some(completed) = completed else { return Classification::New { hold: None, superseded: false } };
    let message = match new.payment.status {
        Status::Pending => return Classification::New { hold: None, superseded: true },
        Status::Completed => "its session already has a completed payment with another transaction",
        Status::Failed => "it reports a failure of a session that is already completed",
    };
    let hold = Reason::new(ReasonCode::Conflict, format!("{message} (event {})", completed.event_id));
    Classification::New { hold: Some(hold), superseded: false }
}

/// Returns the stored event with missing values added from the new event. `None`: no value can be added, or a handler has
/// accepted the stored event.
///
/// If a handler may have received the stored event, only its session and its order may be added. After a change of other values,
/// the handler might count the payment a second time.
fn fill_gaps(known: &StoredEvent, new: &Event) -> Option<Box<Event>> {
    if known.delivered {
        return None;
    }
    let mut new = new.clone();
    if known.maybe_delivered {
        let session_id = new.payment.session_id.take();
        new.payment = PaymentDetails { session_id, ..PaymentDetails::new(new.payment.status) };
        new.header_time = None;
    }
    let filled = known.event.clone().or(new);
    (filled != known.event).then(|| Box::new(filled))
}
