//! Judges Resmic's answers about a registered session whose mail did not arrive.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use super::{Same, conflict, difference, same_chain, same_transaction, shapes, unreadable};
use crate::model::{Event, PaymentDetails, Reason, RegisteredSession, Status, same_amount, same_token, spell_chain};
use crate::resmic::answer::{PaymentStatus, SessionId, StatusAnswer, TransactionDetails};
use crate::resmic::client::ApiError;

/// The lifetime of a session without `expires_at`. Resmic expires a session 30 minutes after its creation, and tracks a payment
/// for 10 more minutes.
const LIFETIME: Duration = Duration::from_secs(40 * 60);
/// How long after Resmic's first answer about an expired session the second inquiry follows.
const SECOND_INQUIRY: Duration = Duration::from_secs(3_600);
/// How long the notification may take to arrive after Resmic has first reported a session as `Completed`.
const MAIL_MAY_TAKE: Duration = Duration::from_secs(600);
/// The shortest pause before the next inquiry after an error that concerns all sessions.
const PAUSE: Duration = Duration::from_secs(300);

/// A registered session about which the daemon can ask Resmic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedSession {
    /// The id of the session, which is a UUID.
    pub id: SessionId,
    /// The values that the merchant registered.
    pub registered: RegisteredSession,
}

/// The stored completed and failed events of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PaymentsOfSession {
    /// The payments of the completed events.
    pub completed: Vec<PaymentDetails>,
    /// Whether a failed event of the session is stored.
    pub has_failed: bool,
}

/// The times of Resmic's first answers about a session. The caller stores these times in the table `session_inquiries`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PreviousInquiries {
    /// When Resmic first answered after the session's expiry.
    pub first_after_expiry: Option<Timestamp>,
    /// When Resmic first reported the session as `Completed`.
    pub completed_since: Option<Timestamp>,
}

/// The result of [`reconcile()`]: the meaning of Resmic's answers about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The answers do not show yet how the session ended. The daemon asks again at `until`.
    Wait {
        /// The time of the next inquiry about the session.
        until: Timestamp,
    },
    /// The stored events of the session agree with Resmic's answers. No further inquiry about the session is needed.
    Agrees,
    /// The session will not be paid. Contains a new failed event, whose time is Resmic's `updated_at`.
    FailedEvent(Box<Event>),
    /// Resmic reports the session as `Completed`, and the notification may still arrive. The daemon asks again at `until`.
    MailMissing {
        /// The time at which the notification becomes overdue.
        until: Timestamp,
    },
    /// The notification is overdue. The caller must ask Resmic for the transaction details, and then call [`reconcile()`] again.
    NeedsDetails,
    /// The notification is overdue, and Resmic's answers have all fields of the webhook. Contains a new completed event with
    /// these fields.
    CompletedEvent(Box<Event>),
    /// An operator must decide how the session ended.
    NeedsReview {
        /// The reason why an operator must decide.
        reason: Reason,
    },
}

/// Returns the time at which a session expires. The daemon makes the first inquiry about the session at that time.
#[must_use]
pub fn expiry(session: &AskedSession) -> Timestamp {
    session.registered.expires_at.unwrap_or_else(|| later(session.registered.created_at, LIFETIME))
}

/// Judges Resmic's answers about one session.
///
/// `status` is the answer of `payment-status`. `details` is the answer of `transaction-details`, or `None` if the caller has not
/// requested the details. `now` is the time at which the answers arrived.
#[must_use]
pub fn reconcile(
    session: &AskedSession,
    known: &PaymentsOfSession,
    inquiries: PreviousInquiries,
    status: Result<&StatusAnswer, &ApiError>,
    details: Option<Result<&TransactionDetails, &ApiError>>,
    now: Timestamp,
) -> Finding {
    let status = match status {
        Ok(status) if status.session_id == session.id => status,
        Ok(other) => {
            return undecided(session, inquiries, now, format!("the answer is about session {}", other.session_id));
        }
        Err(error) => return after_error(session, inquiries, error, now),
    };
    match &status.payment_status {
        PaymentStatus::Completed => match details.transpose() {
            Ok(details) => completed(session, known, inquiries, status, details, now),
            // The request for the transaction details failed. The error is judged only if the status cannot be judged without the
            // details.
            Err(error) => match completed(session, known, inquiries, status, None, now) {
                Finding::NeedsDetails => after_error(session, inquiries, error, now),
                finding => finding,
            },
        },
        status_word if !known.completed.is_empty() => {
            let status_word = status_word.to_string();
            review(conflict(format!("Resmic says {status_word:?} of a session that has a completed payment")))
        }
        PaymentStatus::Failed | PaymentStatus::Initiated if known.has_failed => Finding::Agrees,
        PaymentStatus::Failed => failed(session, status),
        PaymentStatus::Initiated => match next_inquiry(session, inquiries, now) {
            Some(until) => Finding::Wait { until },
            None => failed(session, status),
        },
        PaymentStatus::Other(status_word) => {
            undecided(session, inquiries, now, format!("Resmic says {status_word:?} of the session"))
        }
    }
}

/// Returns the time of the next inquiry about a session. `None`: no further inquiry follows, so the caller must judge the present
/// answer.
fn next_inquiry(session: &AskedSession, inquiries: PreviousInquiries, now: Timestamp) -> Option<Timestamp> {
    let expiry = expiry(session);
    if now < expiry {
        return Some(expiry);
    }
    let second = later(inquiries.first_after_expiry.unwrap_or(now), SECOND_INQUIRY);
    (now < second).then_some(second)
}

fn failed(session: &AskedSession, status: &StatusAnswer) -> Finding {
    let payment = PaymentDetails {
        session_id: Some(session.id.to_string()),
        tx_time: status.updated_at.map(to_minute),
        ..PaymentDetails::new(Status::Failed)
    };
    Finding::FailedEvent(Box::new(event(session, payment)))
}

/// Judges an answer that does not show how the session ended. The daemon asks again, until an hour after Resmic's first answer
/// that followed the session's expiry. If the answer is still unclear at that time, an operator must decide.
fn undecided(session: &AskedSession, inquiries: PreviousInquiries, now: Timestamp, detail: String) -> Finding {
    match next_inquiry(session, inquiries, now) {
        Some(until) => Finding::Wait { until },
        None => review(unreadable(detail)),
    }
}

fn after_error(session: &AskedSession, inquiries: PreviousInquiries, error: &ApiError, now: Timestamp) -> Finding {
    if error.concerns_all_sessions() {
        let pause = error.retry_after().unwrap_or_default().clamp(PAUSE, crate::http::MAX_RETRY_AFTER);
        return Finding::Wait { until: later(now, pause) };
    }
    undecided(session, inquiries, now, error.to_string())
}

fn completed(
    session: &AskedSession,
    known: &PaymentsOfSession,
    inquiries: PreviousInquiries,
    status: &StatusAnswer,
    details: Option<&TransactionDetails>,
    now: Timestamp,
) -> Finding {
    if !known.completed.is_empty() {
        return beside_known(known, details);
    }
    let until = later(inquiries.completed_since.unwrap_or(now), MAIL_MAY_TAKE);
    if now < until {
        return Finding::MailMissing { until };
    }
    let Some(details) = details else { return Finding::NeedsDetails };
    match payment_details(session, status, details) {
        Ok(payment) => Finding::CompletedEvent(Box::new(event(session, payment))),
        Err(reason) => review(reason),
    }
}

/// Compares the stored completed events of the session with Resmic's transaction details. If `details` names a transaction, one
/// of these events must have the same transaction. Otherwise the session needs review.
fn beside_known(known: &PaymentsOfSession, details: Option<&TransactionDetails>) -> Finding {
    let named = details.filter(|details| details.transaction_hash.is_some());
    match named {
        Some(details) if !known.completed.iter().any(|payment| same_transaction(payment, details)) => {
            let hash = details.transaction_hash.as_deref().unwrap_or_default();
            review(conflict(format!("Resmic names another transaction for the session: {hash:?}")))
        }
        _ => Finding::Agrees,
    }
}

/// Returns all fields of the webhook from Resmic's two answers. The error is the reason for a review: a field is missing, or the
/// answers contradict each other or the registered values.
fn payment_details(
    session: &AskedSession,
    status: &StatusAnswer,
    details: &TransactionDetails,
) -> Result<PaymentDetails, Reason> {
    if details.session_id != session.id {
        return Err(unreadable(format!("the details are about session {}", details.session_id)));
    }
    let (registered, amount) = (session.registered.amount.as_deref(), status.amount.as_deref());
    // A notification has the amount before the discount of a coupon, so the event must have this amount, too. Resmic does not
    // document whether its answers have the amount before or after the discount. So after the use of a coupon, only the
    // registered amount is certain. Unless the status has the registered amount, a person must decide. A different amount is no
    // contradiction if a coupon was used, so the code of the reason is `unreadable`.
    let has_coupon = status.is_coupon_applied == Some(true);
    if has_coupon && !registered.zip(amount).is_some_and(|(ours, theirs)| same_amount(ours, theirs)) {
        return Err(unreadable(
            "the mail is missing, a coupon was used, and Resmic's amount is not the registered one",
        ));
    }
    let (chain, token) = (details.blockchain.as_deref(), details.token.as_deref());
    let difference = difference([
        ("amount", registered, amount, same_amount as Same),
        ("amount", amount, details.amount.as_deref().filter(|_| !has_coupon), same_amount),
        ("blockchain", session.registered.blockchain.as_deref(), chain, same_chain),
        ("token", session.registered.token.as_deref(), token, same_token),
    ]);
    if let Some(difference) = difference {
        return Err(conflict(difference));
    }
    let need = |field: &str, value: Option<&str>| {
        value.map(str::to_owned).ok_or_else(|| unreadable(format!("the mail is missing, and Resmic names no {field}")))
    };
    let chain = spell_chain(&need("blockchain", chain)?);
    let hash = need("transaction_hash", details.transaction_hash.as_deref())?;
    let wallet = need("from_wallet_address", details.from_wallet_address.as_deref())?;
    for (is_good, field, value) in [
        (shapes::is_hash(&hash, &chain), "transaction_hash", &hash),
        (shapes::is_wallet(&wallet, &chain), "from_wallet_address", &wallet),
    ] {
        if !is_good {
            return Err(unreadable(format!("{field} {value:?} does not fit the chain {chain:?}")));
        }
    }
    let tx_time = status.updated_at.ok_or_else(|| unreadable("the mail is missing, and Resmic names no updated_at"))?;
    Ok(PaymentDetails {
        session_id: Some(session.id.to_string()),
        amount: Some(need("amount", amount)?),
        currency: Some("USD".into()),
        token: Some(need("token", token)?),
        blockchain: Some(chain),
        from_wallet_address: Some(wallet),
        // In events, hexadecimal hashes are in lower case.
        transaction_hash: Some(if hash.starts_with("0x") { hash.to_ascii_lowercase() } else { hash }),
        tx_time: Some(to_minute(tx_time)),
        ..PaymentDetails::new(Status::Completed)
    })
}

fn event(session: &AskedSession, payment: PaymentDetails) -> Event {
    Event { payment, header_time: None, order_ref: session.registered.order_ref.clone() }
}

fn review(reason: Reason) -> Finding {
    Finding::NeedsReview { reason }
}

/// Rounds a time down to a minute, because the time in the webhook has no seconds.
fn to_minute(at: Timestamp) -> Timestamp {
    at.round(TimestampRound::new().smallest(Unit::Minute).mode(RoundMode::Floor)).unwrap_or(at)
}

/// Returns `at` plus `wait`, at most [`Timestamp::MAX`].
fn later(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
