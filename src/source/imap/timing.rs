//! The timeouts and pauses of a watcher.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::backoff::Backoff;

/// The timeouts and pauses of a watcher.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Timeout of greeting, STARTTLS and login together. Servers slow down logins on purpose.
    pub login: Duration,
    /// Timeout of an ordinary command, and the longest time without a byte during a long answer.
    pub answer: Duration,
    /// The longest time until the next mail in the answer to a FETCH is complete.
    pub mail: Duration,
    /// How long the watcher waits for a push after an `EXISTS`, before it fetches the mail.
    pub push_grace: Duration,
    /// The pause before the next attempt to fetch a mail that was announced or listed, but not delivered. Each further pause is
    /// longer by this time.
    pub refetch: Duration,
    /// The longest pause between two polls of a server without IDLE.
    pub poll: Duration,
    /// The pause before the next connection, after a connection has failed.
    pub retry: Backoff,
    /// The pause after a refused login. Servers lock out clients that retry too often.
    pub retry_login: Backoff,
    /// The pause before the watcher searches for a missing special-use mailbox again.
    pub retry_absent: Duration,
    /// A connection that lives this long after its first sync is not counted as a short connection. Some servers end every IDLE
    /// after a minute, which is no reason for longer pauses.
    pub steady: Duration,
    /// The wall clock.
    pub clock: fn() -> SystemTime,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Timing {
            login: seconds(60),
            answer: seconds(30),
            mail: seconds(300),
            push_grace: Duration::from_millis(250),
            refetch: seconds(1),
            poll: seconds(60),
            retry: Backoff { base: seconds(1), cap: seconds(300) },
            // A pause is at least half of its ceiling, so the first pause takes one to two minutes.
            retry_login: Backoff { base: seconds(120), cap: seconds(3600) },
            retry_absent: seconds(3600),
            steady: seconds(30),
            clock: SystemTime::now,
        }
    }
}

impl Timing {
    /// The time of the wall clock.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::try_from((self.clock)()).unwrap_or(Timestamp::MAX)
    }
}
