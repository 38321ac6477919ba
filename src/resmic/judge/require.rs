//! For `[resmic] require = true`: decides by Resmic's answers whether a completed event may be delivered.

use super::{Same, conflict, difference, same_chain, same_transaction};
use crate::model::{PaymentDetails, Reason, fold_hash, same_amount, same_token};
use crate::resmic::answer::{PaymentStatus, StatusAnswer, TransactionDetails};
use crate::resmic::client::ApiError;

/// Whether Resmic's answers allow the delivery of a completed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clearance {
    /// Resmic reports the session as `Completed`, and the answers do not contradict the event. The event may be delivered.
    Clear,
    /// The answers neither allow the delivery nor contradict the event. The event's deliveries stay held, and the daemon asks
    /// Resmic again. If the answers stay undecided, an operator must decide.
    Wait(String),
    /// Resmic's answers contradict the event. An operator must decide.
    Contradicts(Reason),
}

/// Judges Resmic's answers about the session of a completed event.
///
/// `details` is the answer of `transaction-details`, or its error. The error `NotFound` means that Resmic names no transaction.
/// After any other error, the event waits.
#[must_use]
pub fn clear_delivery(
    event: &PaymentDetails,
    status: Result<&StatusAnswer, &ApiError>,
    details: Result<&TransactionDetails, &ApiError>,
) -> Clearance {
    let status = match status {
        Ok(status) => status,
        Err(error) => return Clearance::Wait(error.to_string()),
    };
    let session = status.session_id.to_string();
    if !event.session_id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(&session)) {
        return Clearance::Wait(format!("the answer is about session {session}, which is not the event's"));
    }
    match &status.payment_status {
        PaymentStatus::Completed => {}
        PaymentStatus::Failed => {
            return Clearance::Contradicts(conflict(format!("Resmic says Failed of session {session}")));
        }
        word @ (PaymentStatus::Initiated | PaymentStatus::Other(_)) => {
            return Clearance::Wait(format!("Resmic says {:?} of session {session}", word.to_string()));
        }
    }
    let details = match details {
        Ok(details) if details.session_id != status.session_id => {
            return Clearance::Wait(format!("the details are about session {}", details.session_id));
        }
        Ok(details) => Some(details),
        Err(ApiError::NotFound(_)) => None,
        Err(error) => return Clearance::Wait(error.to_string()),
    };
    contradiction(event, status, details).map_or(Clearance::Clear, Clearance::Contradicts)
}

fn contradiction(
    event: &PaymentDetails,
    status: &StatusAnswer,
    details: Option<&TransactionDetails>,
) -> Option<Reason> {
    if let Some(details) = details.filter(|d| d.transaction_hash.is_some() && !same_transaction(event, d)) {
        return Some(another_transaction(event, details));
    }
    // The amount in the mail is the amount of the session. If a coupon was used, the amounts are not compared: Resmic does not
    // document whether it reports the amount before or after the discount.
    let amount = status.amount.as_deref().filter(|_| status.is_coupon_applied != Some(true));
    let dollars = event.amount.as_deref().filter(|_| event.currency.as_deref().is_none_or(|c| c == "USD"));
    let chain = details.and_then(|d| d.blockchain.as_deref());
    let token = details.and_then(|d| d.token.as_deref());
    let difference = difference([
        ("amount", dollars, amount, same_amount as Same),
        ("blockchain", event.blockchain.as_deref(), chain, same_chain),
        ("token", event.token.as_deref(), token, same_token),
    ]);
    difference.map(conflict)
}

fn another_transaction(event: &PaymentDetails, details: &TransactionDetails) -> Reason {
    let theirs = details.transaction_hash.as_deref().unwrap_or_default();
    match event.transaction_hash.as_deref() {
        Some(ours) if fold_hash(ours) == fold_hash(theirs) => {
            conflict(format!("Resmic names the transaction {theirs:?} on another chain"))
        }
        Some(_) => conflict(format!("Resmic names another transaction for the session: {theirs:?}")),
        None => conflict(format!("the event names no transaction, and Resmic names {theirs:?}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Status;

    const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

    fn event() -> PaymentDetails {
        PaymentDetails {
            session_id: Some(SESSION.into()),
            amount: Some("20".into()),
            currency: Some("USD".into()),
            blockchain: Some("Sepolia".into()),
            token: Some("DAI".into()),
            transaction_hash: Some("0xab".into()),
            ..PaymentDetails::new(Status::Completed)
        }
    }

    fn status(payment_status: PaymentStatus) -> StatusAnswer {
        StatusAnswer {
            session_id: SESSION.parse().unwrap(),
            payment_status,
            amount: Some("20.00".into()),
            created_at: None,
            updated_at: None,
            wallet_address: None,
            is_coupon_applied: None,
        }
    }

    fn details(hash: Option<&str>) -> TransactionDetails {
        TransactionDetails {
            session_id: SESSION.parse().unwrap(),
            transaction_hash: hash.map(str::to_owned),
            blockchain: Some("SEPOLIA".into()),
            token: Some("dai".into()),
            from_wallet_address: None,
            amount: None,
        }
    }

    fn clear(event: &PaymentDetails, status: &StatusAnswer, details: &TransactionDetails) -> Clearance {
        clear_delivery(event, Ok(status), Ok(details))
    }

    fn reason(clearance: Clearance) -> String {
        match clearance {
            Clearance::Contradicts(reason) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn completed_session_with_the_same_transaction_is_clear() {
        let completed = status(PaymentStatus::Completed);
        assert_eq!(clear(&event(), &completed, &details(Some("0x0AB"))), Clearance::Clear);
        assert_eq!(clear(&event(), &completed, &details(None)), Clearance::Clear);
        let absent = ApiError::NotFound("404".into());
        assert_eq!(clear_delivery(&event(), Ok(&completed), Err(&absent)), Clearance::Clear);
    }

    #[test]
    fn another_transaction_or_value_contradicts() {
        let completed = status(PaymentStatus::Completed);
        let message = reason(clear(&event(), &completed, &details(Some("0xac"))));
        assert_eq!(message, "conflict: Resmic names another transaction for the session: \"0xac\"");
        let elsewhere = TransactionDetails { blockchain: Some("Base".into()), ..details(Some("0xab")) };
        assert!(reason(clear(&event(), &completed, &elsewhere)).contains("on another chain"));
        let hashless = PaymentDetails { transaction_hash: None, ..event() };
        assert!(reason(clear(&hashless, &completed, &details(Some("0xab")))).contains("names no transaction"));
        let mut dear = StatusAnswer { amount: Some("21".into()), ..completed };
        let message = reason(clear(&event(), &dear, &details(None)));
        assert_eq!(message, "conflict: amount is known as \"20\" and Resmic says \"21\"");
        dear.is_coupon_applied = Some(true);
        assert_eq!(clear(&event(), &dear, &details(None)), Clearance::Clear);
        let failed = status(PaymentStatus::Failed);
        assert!(reason(clear(&event(), &failed, &details(Some("0xab")))).contains("says Failed"));
    }

    #[test]
    fn other_words_and_errors_wait() {
        let (completed, same) = (status(PaymentStatus::Completed), details(Some("0xab")));
        for word in [PaymentStatus::Initiated, PaymentStatus::Other("completed".into())] {
            assert!(matches!(clear(&event(), &status(word), &same), Clearance::Wait(_)));
        }
        for error in [ApiError::NotFound("404".into()), ApiError::Malformed("HTML".into())] {
            assert!(matches!(clear_delivery(&event(), Err(&error), Ok(&same)), Clearance::Wait(_)));
        }
        let error = ApiError::Unreachable("no answer".into());
        assert!(matches!(clear_delivery(&event(), Ok(&completed), Err(&error)), Clearance::Wait(_)));
    }

    #[test]
    fn answer_about_another_session_waits() {
        let (completed, same) = (status(PaymentStatus::Completed), details(Some("0xab")));
        for session_id in [None, Some(SESSION.replace('5', "6"))] {
            assert!(matches!(clear(&PaymentDetails { session_id, ..event() }, &completed, &same), Clearance::Wait(_)));
        }
        let other = TransactionDetails { session_id: SESSION.replace('5', "6").parse().unwrap(), ..same };
        assert!(matches!(clear(&event(), &completed, &other), Clearance::Wait(_)));
    }

    proptest! {
        #[test]
        fn clear_needs_completed_and_no_other_hash(
            word in prop::sample::select(vec!["Completed", "Failed", "initiated", "completed", "paid"]),
            hash in prop::option::of(prop::sample::select(vec!["0xab", "0xAB", "0xac", "x"])),
            event_hash in prop::option::of(prop::sample::select(vec!["0xab", "0xac"])),
        ) {
            let payment_status = serde_json::from_value(word.into()).unwrap();
            let event = PaymentDetails { transaction_hash: event_hash.map(str::to_owned), ..event() };
            let same = hash.is_none_or(|hash| event_hash.is_some_and(|event_hash| fold_hash(hash) == fold_hash(event_hash)));
            let is_clear = clear(&event, &status(payment_status), &details(hash)) == Clearance::Clear;
            prop_assert_eq!(is_clear, word == "Completed" && same);
        }
    }
}
