//! The subscription to the writes of the key, which the NATS server may refuse. Without this subscription, a host notices a release
//! of the lease only when it reads the key again, after up to the length of the lease.

use std::time::Duration;

use crate::boot_clock::BootInstant;
use crate::units::HumanDuration;

/// How long the NATS server may take to refuse a subscription. The server does not answer a subscription that it accepts.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the NATS server permits the subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Subscription {
    /// The server has not refused it.
    #[default]
    Accepted,
    /// The server has refused it. At this time, the agent subscribes again, because the permissions may have changed.
    Refused(BootInstant),
    /// The server has refused it, and the agent has subscribed again. Without another refusal until this time, it is accepted.
    Retried(BootInstant),
}

impl Subscription {
    /// Processes the refusal of the subscription. `lease`: the length of the lease.
    pub(super) fn refuse(&mut self, now: BootInstant, lease: Duration) {
        *self = Subscription::Refused(now.plus(lease));
    }

    /// Processes a new subscription, also the first one of a new connection.
    pub(super) fn renew(&mut self, now: BootInstant) {
        if *self != Subscription::Accepted {
            *self = Subscription::Retried(now.plus(REFUSAL_TIMEOUT));
        }
    }

    /// Returns whether the agent should subscribe again now.
    pub(super) fn is_retry_due(&mut self, now: BootInstant) -> bool {
        if let Subscription::Retried(until) = *self
            && until <= now
        {
            *self = Subscription::Accepted;
        }
        matches!(*self, Subscription::Refused(until) if until <= now)
    }

    /// The problem as a text for the operator, if the server has refused the subscription.
    pub(super) fn fault(self, subject: &str, lease: Duration) -> Option<String> {
        let lease = HumanDuration(lease);
        (self != Subscription::Accepted).then(|| {
            format!(
                "the NATS server does not permit this host to subscribe to {subject}, so a hand-over takes up to {lease}; give the NATS \
                 user this permission"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_subscription_is_retried() {
        let (lease, at) = (Duration::from_secs(20), BootInstant::from_millis);
        let mut subscription = Subscription::default();
        subscription.renew(at(0));
        assert!(!subscription.is_retry_due(at(0)) && subscription.fault("s", lease).is_none());
        for start in [0, 20_000] {
            subscription.refuse(at(start), lease);
            assert!(!subscription.is_retry_due(at(start + 19_999)) && subscription.is_retry_due(at(start + 20_000)));
            subscription.renew(at(start + 20_000));
            assert!(subscription.fault("s", lease).is_some(), "the server has not answered yet");
        }
        assert!(!subscription.is_retry_due(at(44_999)) && subscription.fault("s", lease).is_some());
        assert!(!subscription.is_retry_due(at(45_000)) && subscription.fault("s", lease).is_none());
    }
}
