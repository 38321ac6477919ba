//! Tests reports that repeat, complete, supersede and contradict each other.

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
    let Classification::Duplicate { filled: Some(filled), .. } = classify_new(&again, &[known(paid(), false)]) else {
        panic!()
    };
    assert_eq!(filled.payment.session_id, again.payment.session_id);
    assert!(matches!(classify_new(&again, &[known(paid(), true)]), Classification::Duplicate { filled: None, .. }));
    assert!(matches!(classify_new(&paid(), &[known(again, false)]), Classification::Duplicate { filled: None, .. }));
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
        // A target that does not wait for the chain exists, and its handler has already accepted the event.
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
    assert!(reason.starts_with("conflict: another mail claims the same transaction: session_id is known"), "{reason}");
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
    assert!(matches!(classify_new(&paid(), &[known(bare, false)]), Classification::Duplicate { filled: Some(_), .. }));
}

#[test]
fn a_filled_gap_makes_no_second_payment() {
    let mut bare = paid();
    bare.payment.blockchain = None;
    let filled = |first: &Event, second: &Event| {
        let known = known(first.clone(), false);
        let Classification::Duplicate { filled: Some(filled), .. } = classify_new(second, std::slice::from_ref(&known))
        else {
            panic!()
        };
        StoredEvent { event: *filled, ..known }
    };
    // The filled event keeps its id, which was derived from values without a chain. The event's present values would give another
    // id.
    assert!(matches!(classify_new(&paid(), &[filled(&bare, &paid())]), Classification::Duplicate { filled: None, .. }));
    assert!(matches!(classify_new(&bare, &[filled(&bare, &paid())]), Classification::Duplicate { filled: None, .. }));
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
    // A time from the Date header adds nothing to an event whose mail states the time of the payment.
    (a.payment.tx_time, a.header_time) = (a.header_time, None);
    assert!(matches!(classify_new(&b, &[known(a, false)]), Classification::Duplicate { filled: None, .. }));
}

#[test]
fn a_completed_session_holds_later_reports() {
    let session = Some("591abe63-aa61-411d-a419-0b546729bbd0".to_owned());
    let mut first = paid();
    first.payment.session_id = session.clone();
    let mut second = first.clone();
    second.payment.transaction_hash = Some(TX.replace("0xa4", "0xb4"));
    assert!(matches!(classify_new(&second, &[known(first.clone(), true)]), Classification::New { hold: Some(_), .. }));
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
