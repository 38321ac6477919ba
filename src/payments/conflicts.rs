//! Compares a payment report with the stored events. Pure: events in, a classification out.
//!
//! Several mails may report the same payment, and they may contradict each other. This file ensures that nothing is paid
//! twice: a payment is one event, and an operator decides about contradictions.

use crate::model::{self, Event, PaymentDetails, Reason, ReasonCode, Status, same_amount, same_token};

/// An event that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub event_id: String,
    /// Its values.
    pub event: Event,
    /// A handler has accepted it, so it never changes again.
    pub delivered: bool,
    /// A handler may have it, although no response says so.
    pub maybe_delivered: bool,
    /// It waits for the chain or for Resmic, or one of them contradicts it.
    pub unconfirmed: bool,
    /// Resmic's API reported it. Its time is that of a row at Resmic, and not that of a mail.
    pub is_from_api: bool,
}

/// Who reported an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSource {
    /// A mail.
    Mail,
    /// Resmic's API, because the mail is missing.
    Resmic,
}
model::string_enum!(EventSource, "source", Mail => "mail", Resmic => "resmic");

impl StoredEvent {
    /// The event as it is compared with a later report. The time from the API differs from the mail's by as much as the mail
    /// was late, so it is left out.
    fn to_compare(&self) -> Event {
        let mut event = self.event.clone();
        event.payment.tx_time.take_if(|_| self.is_from_api);
        event
    }
}

/// The classification of a new event, compared with the stored ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classification {
    /// A new payment report.
    New {
        /// Why it needs review before it is delivered.
        hold: Option<Reason>,
        /// A stored event already says more, so it is not delivered.
        superseded: bool,
    },
    /// The same report again.
    Duplicate {
        /// The stored event's id.
        event_id: String,
        /// The stored event with its gaps filled, if there is a gap to fill and the event may still change.
        filled: Option<Box<Event>>,
    },
    /// It contradicts a stored event.
    Conflict(Reason),
}

/// Classifies `new`, whose id is `id`. `known` are the stored events with its id, transaction or session.
#[must_use]
pub fn classify(id: &str, new: &Event, known: &[StoredEvent]) -> Classification {
    if let Some(same) = find_repeated(id, new, known) {
        return match contradiction(&same.to_compare(), new) {
            Some(words) => conflict(&same.event_id, &words),
            None => Classification::Duplicate { event_id: same.event_id.clone(), filled: fill_gaps(same, new) },
        };
    }
    match conflict_with_siblings(new, known) {
        Some(reason) => Classification::Conflict(reason),
        None => classify_beside_others(new, known),
    }
}

/// The stored event that `new` reports again.
#[must_use]
pub fn find_repeated<'k>(id: &str, new: &Event, known: &'k [StoredEvent]) -> Option<&'k StoredEvent> {
    known.iter().find(|k| k.event_id == id || is_same_report(&k.to_compare().payment, &new.payment))
}

/// Why a stored event is not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldReason {
    /// A person has to decide.
    NeedsReview(Reason),
    /// Another event of its session already says more.
    Superseded,
}

/// Why a stored event with the new values `event` may not be delivered. `known` has its old values, too.
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

/// Why an event that the chain has just confirmed needs review: another confirmed payment has its session.
#[must_use]
pub fn second_payment(id: &str, event: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let others: Vec<StoredEvent> = known.iter().filter(|k| k.event_id != id).cloned().collect();
    match classify_in_session(event, &others) {
        Classification::New { hold, .. } => hold,
        Classification::Duplicate { .. } | Classification::Conflict(_) => None,
    }
}

/// The completed events whose transaction a contradicting report claims for another session, order or amount, each with the
/// reason to hold it: one of the two reports steals the payment of the other, and the chain cannot say which.
pub fn contested<'k>(
    id: &str,
    new: &Event,
    known: &'k [StoredEvent],
) -> impl Iterator<Item = (&'k StoredEvent, Reason)> {
    known.iter().filter_map(move |k| {
        let is_same = k.event_id == id || shares_transaction(&k.event.payment, &new.payment);
        let words = contradiction_of_claims(&k.event, new).filter(|_| {
            is_same && k.event.payment.status == Status::Completed && new.payment.status == Status::Completed
        })?;
        let words = format!("another mail claims the same transaction: {words}");
        Some((k, Reason::new(ReasonCode::Conflict, words)))
    })
}

/// The event without the session and the transaction that it already had. Later events with the same values were compared with
/// it when they arrived, and are held themselves.
fn without_known_parts(before: Option<&PaymentDetails>, event: &Event) -> Event {
    let had = |of: fn(&PaymentDetails) -> &Option<String>| {
        before.is_some_and(|before| {
            of(before).is_some() == of(&event.payment).is_some() && same_text(of(before), of(&event.payment))
        })
    };
    let mut new = event.clone();
    new.payment.session_id.take_if(|_| had(|r| &r.session_id));
    new.payment.transaction_hash.take_if(|_| had(|r| &r.blockchain));
    new
}

fn conflict(with: &str, words: &str) -> Classification {
    Classification::Conflict(conflict_with(with, words))
}

fn conflict_with(event_id: &str, words: &str) -> Reason {
    Reason::new(ReasonCode::Conflict, format!("{words} (event {event_id})"))
}

/// The first contradiction to another event of the same transaction.
fn conflict_with_siblings(new: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let mut siblings = known.iter().filter(|k| shares_transaction(&k.event.payment, &new.payment));
    siblings.find_map(|k| contradiction_of_siblings(&k.event, new).map(|words| conflict_with(&k.event_id, &words)))
}

/// Whether two readings are the same report. One of them may lack the chain or the time, which would give them one
/// id, or may have lacked it until another report filled the gap.
fn is_same_report(a: &PaymentDetails, b: &PaymentDetails) -> bool {
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

/// The same hash, on chains that may be the same.
fn shares_transaction(a: &PaymentDetails, b: &PaymentDetails) -> bool {
    shares_hash(a, b) && same_chain(&a.blockchain, &b.blockchain)
}

fn shares_hash(a: &PaymentDetails, b: &PaymentDetails) -> bool {
    let hashes = a.transaction_hash.as_deref().zip(b.transaction_hash.as_deref());
    hashes.is_some_and(|(x, y)| model::fold_hash(x) == model::fold_hash(y))
}

fn same_chain(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| model::fold_chain(x) == model::fold_chain(y))
}

/// A missing value contradicts nothing.
fn agree<T>(a: &Option<T>, b: &Option<T>, same: impl Fn(&T, &T) -> bool) -> bool {
    a.as_ref().zip(b.as_ref()).is_none_or(|(x, y)| same(x, y))
}

fn same_text(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| x.eq_ignore_ascii_case(y))
}

/// What a report claims a transaction for: the session, the order or the amount in which two reports differ.
fn contradiction_of_claims(known: &Event, new: &Event) -> Option<String> {
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

/// The first value in which two reports of one payment differ, as a message.
fn contradiction(known: &Event, new: &Event) -> Option<String> {
    let (k, n) = (&known.payment, &new.payment);
    if let Some(words) = contradiction_of_claims(known, new) {
        return Some(words);
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

/// Hexadecimal compares as a number, base58 character by character.
fn same_wallet(a: &Option<String>, b: &Option<String>) -> bool {
    agree(a, b, |x, y| model::fold_hash(x) == model::fold_hash(y))
}

/// Two statuses of one transaction: the first value that may not differ between them.
fn contradiction_of_siblings(known: &Event, new: &Event) -> Option<String> {
    if known.payment.status == Status::Completed && new.payment.status == Status::Failed {
        return Some("this mail reports a failure of a transaction that is known as completed".into());
    }
    // The statuses of a payment may have different times, but must have the same session and amount.
    let timeless =
        |event: &Event| Event { payment: PaymentDetails { tx_time: None, ..event.payment.clone() }, ..event.clone() };
    contradiction(&timeless(known), &timeless(new))
}

/// Compares a new event with the events of other transactions.
fn classify_beside_others(new: &Event, known: &[StoredEvent]) -> Classification {
    match classify_in_session(new, known) {
        Classification::New { hold: None, superseded: false } => {
            Classification::New { hold: same_hash_on_another_chain(new, known), superseded: false }
        }
        decided => decided,
    }
}

/// A transaction hash belongs to one chain, unless a signed transaction was sent again on another chain. So this may
/// be a second payment, or the same payment under another name of the chain.
fn same_hash_on_another_chain(new: &Event, known: &[StoredEvent]) -> Option<Reason> {
    let is_elsewhere = |a: &PaymentDetails, b: &PaymentDetails| shares_hash(a, b) && !shares_transaction(a, b);
    let other = known.iter().find(|k| is_elsewhere(&k.event.payment, &new.payment))?;
    Some(conflict_with(&other.event_id, "the hash of its transaction is known on another chain"))
}

/// Compares a new event with the other events of its session. A pending report is superseded if its transaction or
/// session is completed.
fn classify_in_session(new: &Event, known: &[StoredEvent]) -> Classification {
    let session = &new.payment.session_id;
    let is_pending = new.payment.status == Status::Pending;
    let completed = known.iter().find(|k| {
        let is_its_session = session.is_some()
            && k.event.payment.session_id.is_some()
            && same_text(session, &k.event.payment.session_id);
        // An unconfirmed payment must not block a real one.
        let counts = !k.unconfirmed || k.delivered;
        k.event.payment.status == Status::Completed
            && counts
            && (is_its_session || is_pending && shares_transaction(&k.event.payment, &new.payment))
    });
    let Some(completed) = completed else { return Classification::New { hold: None, superseded: false } };
    let words = match new.payment.status {
        Status::Pending => return Classification::New { hold: None, superseded: true },
        Status::Completed => "its session already has a completed payment with another transaction",
        Status::Failed => "it reports a failure of a session that is already completed",
    };
    let hold = Reason::new(ReasonCode::Conflict, format!("{words} (event {})", completed.event_id));
    Classification::New { hold: Some(hold), superseded: false }
}

/// The stored event with the values that only the new one has; `None` if it has no other values, or the event was delivered.
///
/// If the handler may have the event, only its session may be added: with another body the handler might count the payment
/// a second time.
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

#[cfg(test)]
mod tests {
    use super::*;

    const TX: &str = "0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";

    fn paid() -> Event {
        let payment = PaymentDetails {
            amount: Some("20".into()),
            currency: Some("USD".into()),
            blockchain: Some("Sepolia".into()),
            transaction_hash: Some(TX.into()),
            ..PaymentDetails::new(Status::Completed)
        };
        Event { payment, header_time: None, order_ref: None }
    }

    fn known(event: Event, delivered: bool) -> StoredEvent {
        StoredEvent {
            event_id: event.id().unwrap().to_string(),
            event,
            delivered,
            maybe_delivered: false,
            unconfirmed: false,
            is_from_api: false,
        }
    }

    fn classify_new(new: &Event, known: &[StoredEvent]) -> Classification {
        classify(&new.id().unwrap().to_string(), new, known)
    }

    #[test]
    fn duplicates_fill_gaps_until_delivery() {
        let mut again = paid();
        again.payment.session_id = Some("591abe63-aa61-411d-a419-0b546729bbd0".into());
        let Classification::Duplicate { filled: Some(filled), .. } = classify_new(&again, &[known(paid(), false)])
        else {
            panic!()
        };
        assert_eq!(filled.payment.session_id, again.payment.session_id);
        assert!(matches!(classify_new(&again, &[known(paid(), true)]), Classification::Duplicate { filled: None, .. }));
        assert!(matches!(
            classify_new(&paid(), &[known(again, false)]),
            Classification::Duplicate { filled: None, .. }
        ));
    }

    fn in_session(mut event: Event, n: u32) -> Event {
        event.payment.session_id = Some(format!("591abe63-aa61-411d-a419-{n:012}"));
        event
    }

    #[test]
    fn an_unconfirmed_payment_does_not_block_its_session() {
        let mut other = in_session(paid(), 1);
        other.payment.transaction_hash = Some(TX.replace('a', "b"));
        let fake = StoredEvent { unconfirmed: true, ..known(in_session(paid(), 1), false) };
        let new = Classification::New { hold: None, superseded: false };
        assert_eq!(classify_new(&other, std::slice::from_ref(&fake)), new);
        let id = other.id().unwrap().to_string();
        assert_eq!(second_payment(&id, &other, std::slice::from_ref(&fake)), None);
        for counts in [
            StoredEvent { unconfirmed: false, ..fake.clone() },
            // A handler that does not wait for the chain has it.
            StoredEvent { delivered: true, ..fake },
        ] {
            assert!(second_payment(&id, &other, std::slice::from_ref(&counts)).is_some());
            assert!(matches!(classify_new(&other, &[counts]), Classification::New { hold: Some(_), .. }));
        }
    }

    #[test]
    fn a_claim_for_another_order_contests_the_first() {
        let contests = |new: &Event, stored: Event| {
            let stored = [known(stored, false)];
            contested(&new.id().unwrap().to_string(), new, &stored).map(|(_, reason)| reason.to_string()).next()
        };
        let reason = contests(&in_session(paid(), 2), in_session(paid(), 1)).unwrap();
        assert!(
            reason.starts_with("conflict: another mail claims the same transaction: session_id is known"),
            "{reason}"
        );
        let amount = Event { payment: PaymentDetails { amount: Some("21".into()), ..paid().payment }, ..paid() };
        let order = |name: &str| Event { order_ref: Some(name.into()), ..paid() };
        assert!(contests(&amount, paid()).is_some() && contests(&order("A"), order("B")).is_some());
        let wallet = |name: &str| {
            let from_wallet_address = Some(name.into());
            Event { payment: PaymentDetails { from_wallet_address, ..paid().payment }, ..paid() }
        };
        assert_eq!(contests(&wallet("0x1"), wallet("0x2")), None, "the chain knows the payer");
        assert_eq!(contests(&paid(), order("A")), None);
        let failed =
            Event { payment: PaymentDetails { status: Status::Failed, ..in_session(paid(), 2).payment }, ..paid() };
        assert_eq!(contests(&failed, in_session(paid(), 1)), None);
    }

    #[test]
    fn another_value_conflicts_another_spelling_does_not() {
        let mut other = paid();
        other.payment.amount = Some("20.00".into());
        assert!(matches!(classify_new(&other, &[known(paid(), true)]), Classification::Duplicate { .. }));
        other.payment.amount = Some("21".into());
        let Classification::Conflict(reason) = classify_new(&other, &[known(paid(), true)]) else { panic!() };
        assert!(reason.to_string().starts_with("conflict: amount is known as \"20\" and this mail says \"21\""));
    }

    #[test]
    fn a_tokens_other_name_contradicts_nothing() {
        let of = |token: &str, currency: &str| {
            let (token, currency) = (Some(token.into()), Some(currency.into()));
            Event { payment: PaymentDetails { token, currency, ..paid().payment }, ..paid() }
        };
        let (page, backend) = (of("ETH", "USD"), of("ethereum", "USD"));
        for (first, second) in [(&page, &backend), (&backend, &page)] {
            for delivered in [false, true] {
                let stored = known(first.clone(), delivered);
                assert!(matches!(classify_new(second, &[stored]), Classification::Duplicate { filled: None, .. }));
            }
        }
        let in_tokens = [known(of("ETH", "ETH"), true)];
        assert!(matches!(classify_new(&of("ethereum", "ethereum"), &in_tokens), Classification::Duplicate { .. }));
        assert!(matches!(classify_new(&of("binancecoin", "USD"), &[known(page, true)]), Classification::Conflict(_)));
    }

    #[test]
    fn one_transaction_has_one_session() {
        let mut first = paid();
        first.payment.session_id = Some("591abe63-aa61-411d-a419-0b546729bbd0".into());
        first.payment.status = Status::Pending;
        let mut second = paid();
        second.payment.session_id = Some("00000000-aa61-411d-a419-0b546729bbd0".into());
        assert!(matches!(classify_new(&second, &[known(first, false)]), Classification::Conflict(_)));
    }

    #[test]
    fn a_hash_without_chain_is_the_same_payment() {
        let mut bare = paid();
        bare.payment.blockchain = None;
        assert_ne!(bare.id(), paid().id());
        assert!(matches!(classify_new(&bare, &[known(paid(), true)]), Classification::Duplicate { .. }));
        assert!(matches!(
            classify_new(&paid(), &[known(bare, false)]),
            Classification::Duplicate { filled: Some(_), .. }
        ));
    }

    #[test]
    fn a_filled_gap_keeps_the_payment_one() {
        let mut bare = paid();
        bare.payment.blockchain = None;
        let filled = |first: &Event, second: &Event| {
            let known = known(first.clone(), false);
            let Classification::Duplicate { filled: Some(filled), .. } =
                classify_new(second, std::slice::from_ref(&known))
            else {
                panic!()
            };
            StoredEvent { event: *filled, ..known }
        };
        // Its id belongs to the report without a chain, and differs from the id of its present values.
        assert!(matches!(
            classify_new(&paid(), &[filled(&bare, &paid())]),
            Classification::Duplicate { filled: None, .. }
        ));
        assert!(matches!(
            classify_new(&bare, &[filled(&bare, &paid())]),
            Classification::Duplicate { filled: None, .. }
        ));
        let mut timed = Event { payment: PaymentDetails::new(Status::Failed), ..paid() };
        timed.payment.session_id = Some("591abe63-aa61-411d-a419-0b546729bbd0".into());
        let timeless = timed.clone();
        timed.payment.tx_time = Some("2025-03-05T03:36:00Z".parse().unwrap());
        assert!(matches!(
            classify_new(&timed, &[filled(&timeless, &timed)]),
            Classification::Duplicate { filled: None, .. }
        ));
        let mut later = timed.clone();
        later.payment.tx_time = Some("2025-03-05T03:37:00Z".parse().unwrap());
        assert!(
            matches!(classify_new(&later, &[filled(&timeless, &timed)]), Classification::New { .. }),
            "it failed a second time"
        );
    }

    #[test]
    fn header_times_do_not_split_a_payment() {
        let (mut a, mut b) = (paid(), paid());
        a.header_time = Some("2025-03-05T03:36:00Z".parse().unwrap());
        b.header_time = Some("2025-03-05T04:00:00Z".parse().unwrap());
        assert!(matches!(classify_new(&b, &[known(a.clone(), false)]), Classification::Duplicate { filled: None, .. }));
        // A header time adds nothing to a payment with a stated time.
        (a.payment.tx_time, a.header_time) = (a.header_time, None);
        assert!(matches!(classify_new(&b, &[known(a, false)]), Classification::Duplicate { filled: None, .. }));
    }

    #[test]
    fn later_reports_of_a_completed_session() {
        let session = Some("591abe63-aa61-411d-a419-0b546729bbd0".to_owned());
        let mut first = paid();
        first.payment.session_id = session.clone();
        let mut second = first.clone();
        second.payment.transaction_hash = Some(TX.replace("0xa4", "0xb4"));
        assert!(matches!(
            classify_new(&second, &[known(first.clone(), true)]),
            Classification::New { hold: Some(_), .. }
        ));
        let late = |status| Event {
            payment: PaymentDetails { session_id: session.clone(), ..PaymentDetails::new(status) },
            header_time: None,
            order_ref: None,
        };
        let after = [known(first.clone(), true)];
        assert!(matches!(classify_new(&late(Status::Failed), &after), Classification::New { hold: Some(_), .. }));
        assert!(matches!(
            classify_new(&late(Status::Pending), &after),
            Classification::New { hold: None, superseded: true }
        ));
        let mut failed_tx = first;
        failed_tx.payment.status = Status::Failed;
        assert!(matches!(classify_new(&failed_tx, &after), Classification::Conflict(_)));
    }
}
