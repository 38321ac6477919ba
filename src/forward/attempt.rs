//! The end of an attempt, for targets of every kind, and the next step for its delivery.

use std::time::Duration;

use jiff::Timestamp;

use super::retry;
use super::target::CommonTarget;
use crate::db::{Claimed, FinishedAttempt, NextStep, StreamReceipt};
use crate::model::AttemptResult;
use crate::units::{HumanDuration, count};

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The handler accepted the event, with this HTTP status.
    Accepted(Option<u16>),
    /// The stream of the target has the event, as this receipt shows.
    Stored(StreamReceipt),
    /// It is not certain that the target has the event.
    Failed(Failure),
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) result: AttemptResult,
    /// The HTTP status, if there was one.
    pub(super) status: Option<u16>,
    pub(super) error: String,
    pub(super) retry: RetryRule,
}

/// When a failed delivery is retried, and whether the period of `give_up_after` continues or starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryRule {
    /// The delivery is retried after a pause, or after `Retry-After` if that is longer. The period of `give_up_after` continues.
    Counted(Option<Duration>),
    /// The delivery is retried after a pause. The period of `give_up_after` starts again.
    Uncounted,
    /// The delivery is due again at once. The retry begins when the target can be reached and this host may send. The period of
    /// `give_up_after` starts again.
    WhenReachable,
}

impl AttemptEnd {
    /// Logs the end of an attempt that began at `at` and lasted for `took`, and converts the end to a [`FinishedAttempt`] for the
    /// database.
    pub(super) fn finish(
        self,
        target: &CommonTarget,
        claimed: &Claimed,
        at: Timestamp,
        took: Duration,
    ) -> FinishedAttempt {
        let now = retry::ended(at, took, Timestamp::now());
        let (result, status, next_step) = match self {
            AttemptEnd::Accepted(status) => (AttemptResult::Accepted, status, NextStep::Delivered),
            AttemptEnd::Stored(receipt) => (AttemptResult::Accepted, None, NextStep::Stored(receipt)),
            AttemptEnd::Failed(failure) => {
                (failure.result, failure.status, after_failure(target, claimed, now, failure))
            }
        };
        log_attempt(target, claimed, status, took, &next_step);
        FinishedAttempt { delivery_id: claimed.delivery_id, attempt: claimed.attempt, result, status, took, next_step }
    }
}

fn after_failure(target: &CommonTarget, claimed: &Claimed, now: Timestamp, failure: Failure) -> NextStep {
    let Failure { error, retry, .. } = failure;
    let retry_after = match retry {
        RetryRule::Counted(retry_after) => retry_after,
        RetryRule::Uncounted => {
            return NextStep::RetryUncounted(error, retry::later(now, retry::pause(claimed.attempt)));
        }
        RetryRule::WhenReachable => return NextStep::RetryUncounted(error, now),
    };
    let last = retry::later(claimed.first_attempt_at, target.give_up_after);
    match retry::next(now, retry::pause(claimed.attempt), retry_after, last) {
        Some(at) => NextStep::RetryAt(error, at),
        None => {
            let after = HumanDuration(target.give_up_after);
            NextStep::GiveUp(format!(
                "given up after {after} and {}; the last: {error}",
                count(claimed.attempt, "attempt")
            ))
        }
    }
}

/// Returns the [`FinishedAttempt`] of an attempt whose task panicked. The target may have the event if `sent` is set.
pub(super) fn after_panic(target: &CommonTarget, claimed: &Claimed, sent: bool) -> FinishedAttempt {
    let result = if sent { AttemptResult::Interrupted } else { AttemptResult::NotSent };
    let error = "internal error during the attempt".into();
    let failure = Failure { result, status: None, error, retry: RetryRule::Counted(None) };
    FinishedAttempt {
        delivery_id: claimed.delivery_id,
        attempt: claimed.attempt,
        result,
        status: None,
        took: Duration::ZERO,
        next_step: after_failure(target, claimed, Timestamp::now(), failure),
    }
}

fn log_attempt(target: &CommonTarget, claimed: &Claimed, status: Option<u16>, took: Duration, next_step: &NextStep) {
    // The names of journal fields are an interface, so the target's name is logged as `callback`.
    let (callback, attempt) = (target.name.as_str(), claimed.attempt);
    let (event_id, session_id) = (claimed.event.event_id.as_str(), claimed.event.session_id.as_deref());
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match next_step {
        NextStep::Delivered => {
            tracing::info!(callback, event_id, session_id, attempt, status, millis, "delivered");
        }
        NextStep::Stored(receipt) => {
            tracing::info!(callback, event_id, session_id, attempt, millis, %receipt, "delivered");
        }
        NextStep::RetryAt(error, at) | NextStep::RetryUncounted(error, at) => {
            let again = at.to_string();
            tracing::warn!(callback, event_id, session_id, attempt, status, millis, %error, again, "not delivered yet");
        }
        NextStep::GiveUp(error) => {
            tracing::error!(callback, event_id, session_id, attempt, status, millis, %error, "delivery is dead");
        }
    }
}
