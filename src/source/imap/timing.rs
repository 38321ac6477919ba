//! How long a watcher waits, and for what.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::backoff::Backoff;

/// The times of a watcher.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long the greeting, STARTTLS and the login may take together. Servers slow down logins on purpose.
    pub login: Duration,
    /// How long a server may take for an ordinary command.
    pub answer: Duration,
    /// How long it may take for the next mail of a long answer.
    pub mail: Duration,
    /// How long after an `EXISTS` the pushed mail may take before it is asked for.
    pub push_grace: Duration,
    /// How soon a mail that was announced and not sent is asked for again, the first time.
    pub again: Duration,
    /// How often a server without IDLE is asked, at most.
    pub poll: Duration,
    /// The pause after a failure.
    pub retry: Backoff,
    /// The pause after a refused login: a password does not mend itself, and servers lock out who insists.
    pub retry_login: Backoff,
    /// How soon a special-use mailbox that is not there is looked for again.
    pub retry_absent: Duration,
    /// A connection that lives as long as this after its first sync was a good one. Some servers drop every IDLE
    /// after a minute.
    pub steady: Duration,
    /// The clock on the wall.
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
            again: seconds(1),
            poll: seconds(60),
            retry: Backoff { base: seconds(1), cap: seconds(300) },
            // A pause is drawn from the upper half: from one minute to two, at first.
            retry_login: Backoff { base: seconds(120), cap: seconds(3600) },
            retry_absent: seconds(3600),
            steady: seconds(30),
            clock: SystemTime::now,
        }
    }
}

impl Timing {
    /// What the clock on the wall says.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::try_from((self.clock)()).unwrap_or(Timestamp::MAX)
    }
}
