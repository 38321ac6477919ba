//! Judges a registered session whose mail did not arrive.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use super::{Same, conflict, difference, same_chain, same_transaction, shapes, unreadable};
use crate::model::{Event, PaymentDetails, Reason, RegisteredSession, Status, same_amount, same_token, spell_chain};
use crate::resmic::answer::{PaymentStatus, SessionId, StatusAnswer, TransactionDetails};
use crate::resmic::client::ApiError;

/// A session expires 30 minutes after its creation, and Resmic tracks a payment for 10 more minutes.
const LIFETIME: Duration = Duration::from_secs(40 * 60);
/// The time between the first answer after the expiry and the second question.
const SECOND_INQUIRY: Duration = Duration::from_secs(3_600);
/// How long a mail may take after Resmic reports a session as `Completed`.
const MAIL_MAY_TAKE: Duration = Duration::from_secs(600);
/// The shortest pause after a temporary error.
const PAUSE: Duration = Duration::from_secs(300);

/// A registered session about which the daemon can ask Resmic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedSession {
    /// Its id, which is a UUID.
    pub id: SessionId,
    /// The registered values.
    pub registered: RegisteredSession,
}

/// The stored events of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PaymentsOfSession {
    /// The completed events.
    pub completed: Vec<PaymentDetails>,
    /// Whether there is a failed event.
    pub has_failed: bool,
}

/// The times of earlier answers about a session. The caller stores them, so that they survive a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PreviousInquiries {
    /// When Resmic first answered after the session's expiry.
    pub first_after_expiry: Option<Timestamp>,
    /// When Resmic first reported the session as `Completed`.
    pub completed_since: Option<Timestamp>,
}

/// The meaning of the answers about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The answers decide nothing yet. Ask again at `until`.
    Wait {
        /// The time of the next question.
        until: Timestamp,
    },
    /// The stored events agree with Resmic. No further question is needed.
    Agrees,
    /// The session will not be paid. Contains the failed event, whose time is `updated_at`.
    FailedEvent(Box<Event>),
    /// Resmic reports `Completed`, and the mail may still arrive. Ask again at `until`.
    MailMissing {
        /// When the mail is overdue.
        until: Timestamp,
    },
    /// The mail is overdue. Ask for the transaction details and judge again.
    NeedsDetails,
    /// The mail is overdue, and the answers have all fields of the webhook. Contains the completed event.
    CompletedEvent(Box<Event>),
    /// An operator must decide.
    NeedsReview {
        /// The reason.
        reason: Reason,
    },
}

/// The time at which a session expires. It is also the time of the first question about the session.
#[must_use]
pub fn expiry(session: &AskedSession) -> Timestamp {
    session.registered.expires_at.unwrap_or_else(|| later(session.registered.created_at, LIFETIME))
}

/// Judges the answers about one session.
///
/// `details` is `None` if the daemon has not asked for them. `now` is the time at which the answer arrived.
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
            // The details could not be fetched. The error counts only if the status cannot be judged without the details.
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

/// The time of the next question. `None`: the present answer decides.
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

/// After an unclear answer, the daemon asks again, until an hour after the first answer that follows the expiry. If the last
/// answer is unclear, too, an operator must decide.
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

/// Compares the known payments with Resmic's answer. If the answer names a transaction, one of the payments must have this
/// transaction.
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

/// All fields of the webhook, from answers that agree with each other and with the registration.
fn payment_details(
    session: &AskedSession,
    status: &StatusAnswer,
    details: &TransactionDetails,
) -> Result<PaymentDetails, Reason> {
    if details.session_id != session.id {
        return Err(unreadable(format!("the details are about session {}", details.session_id)));
    }
    let (registered, amount) = (session.registered.amount.as_deref(), status.amount.as_deref());
    // A mail has the amount before a coupon, so the event must have that amount, too. It is not documented whether Resmic's
    // answers have the amount before or after the coupon. So only the registration proves the amount. If the amount in the status
    // differs from the registered amount, a person must decide, but the difference is no contradiction.
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

/// `at` plus `wait`, at most the last representable time.
fn later(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
