//! Compares the times in a signature with this machine's clock and with the receipt time.

use jiff::Timestamp;
use mail_auth::dkim::Signature;

/// How far a sender's clock may be ahead of this machine's clock, in seconds.
const CLOCK_TOLERANCE: i64 = 86_400;
/// The longest lifetime, in seconds, that is assumed for a signature without `t=`.
const MAX_LIFETIME: i64 = 30 * 86_400;

/// The time of authentication, and the time at which the IMAP server received the mail.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The time of authentication, from this machine's clock.
    pub now: Timestamp,
    /// The mail's INTERNALDATE, if the source of the mail reports one.
    pub received: Option<Timestamp>,
}

impl From<Timestamp> for Clock {
    fn from(now: Timestamp) -> Self {
        Clock { now, received: None }
    }
}

impl Clock {
    /// Whether a signature had expired (`x=`; RFC 6376, 3.5) when the IMAP server received the mail.
    pub(super) fn has_expired(&self, signature: &Signature) -> bool {
        let (signed_at, expires) = (seconds(signature.t), seconds(signature.x));
        // An x= that is not later than t= also counts as expired.
        expires > 0 && (expires <= self.receipt_time(signed_at, expires) || expires <= signed_at)
    }

    /// Whether this machine's clock seems to be behind: the signature's `t=` is more than a day in the future.
    pub(super) fn is_behind(&self, signature: &Signature) -> bool {
        seconds(signature.t) > self.now.as_second().saturating_add(CLOCK_TOLERANCE)
    }

    /// Returns the receipt time, in seconds since 1970. The expiry is compared with the receipt time, because the daemon may
    /// fetch a mail days after its receipt.
    ///
    /// `now` replaces an implausible INTERNALDATE. A date in the future shows that the clocks of the server and of this machine
    /// disagree. A date before the signature is not the receipt time, because a client may append a mail with any date, and some
    /// servers send 1970.
    fn receipt_time(&self, signed_at: i64, expires: i64) -> i64 {
        let earliest = if signed_at > 0 {
            signed_at.saturating_sub(CLOCK_TOLERANCE)
        } else {
            expires.saturating_sub(MAX_LIFETIME)
        };
        let now = self.now.as_second();
        let received = self.received.map(Timestamp::as_second);
        received.filter(|at| (earliest..=now).contains(at)).unwrap_or(now)
    }
}

fn seconds(tag: u64) -> i64 {
    i64::try_from(tag).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const MADE: i64 = 1_741_145_801;

    fn signature(tags: &str) -> Signature {
        let text = format!("v=1; a=rsa-sha256; d=resmic.com; s=s1; h=from; bh=YQ==; b=YQ==; {tags}\r\n");
        Signature::parse(text.as_bytes()).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn has_expired(tags: &str, received: Option<i64>) -> bool {
        // The mail is authenticated ten days after it was signed.
        Clock { now: at(MADE + 10 * DAY), received: received.map(at) }.has_expired(&signature(tags))
    }

    #[test]
    fn expiry_is_compared_with_receipt() {
        let tags = format!("t={MADE}; x={}", MADE + DAY);
        assert!(!has_expired(&tags, Some(MADE + 5)) && !has_expired(&tags, Some(MADE - 60)));
        assert!(has_expired(&tags, Some(MADE + DAY)) && has_expired(&tags, Some(MADE + 2 * DAY)));
        assert!(!has_expired("", None) && !has_expired(&format!("x={}", MADE + 11 * DAY), None));
        assert!(has_expired(&format!("t={}; x={MADE}", MADE + 20 * DAY), Some(MADE)), "x= is before t=");
    }

    #[test]
    fn implausible_receipt_times_count_as_now() {
        let tags = format!("t={MADE}; x={}", MADE + DAY);
        for received in [None, Some(0), Some(MADE - 2 * DAY), Some(MADE + 11 * DAY), Some(MADE + 9_000 * DAY)] {
            assert!(has_expired(&tags, received), "{received:?}");
        }
        let without_t = format!("x={}", MADE + DAY);
        assert!(!has_expired(&without_t, Some(MADE)) && has_expired(&without_t, Some(0)));
    }

    #[test]
    fn absurd_times_are_compared_without_overflow() {
        let huge = format!("t={0}; x={0}", u64::MAX);
        assert!(has_expired(&huge, Some(MADE)));
        assert!(Clock::from(at(MADE)).is_behind(&signature(&huge)));
        assert!(!Clock::from(at(MADE)).is_behind(&signature(&format!("t={}", MADE + 3600))));
    }
}
