//! What may be one of a few things, with the words for it in the database, in JSON and on the command line.

/// How the error of an attempt begins that was sent and not answered.
pub const NO_ANSWER: &str = "no answer";

/// What a payment has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Paid.
    Completed,
    /// Will not be paid.
    Failed,
    /// Seen, not yet final. Must never look paid.
    Pending,
}

/// Gives a word-valued enum its `as_str`, `Display`, `FromStr` and `Serialize` from one table.
macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident => $word:literal),+ $(,)?) => {
        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$type] = &[$($type::$variant),+];

            /// The word in the database, in JSON and in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $word),+ }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(word: &str) -> std::result::Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    format!(concat!("no ", $what, "; one of: {}"), all.join(", "))
                })
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
    };
}

pub(crate) use words;
words!(Status, "status", Completed => "completed", Failed => "failed", Pending => "pending");

/// What became of a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It made an event.
    Event,
    /// It says what an event says already.
    Duplicate,
    /// It is no notification.
    Ignored,
    /// A person has to look at it.
    Quarantined,
    /// It could not be judged yet; it will be tried again.
    Deferred,
}
words!(Outcome, "outcome", Event => "event", Duplicate => "duplicate", Ignored => "ignored",
    Quarantined => "quarantined", Deferred => "deferred");

/// Why a mail may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// A DKIM signature that we checked.
    Dkim,
    /// The word of the merchant's own receiving server (RFC 8601).
    AuthenticationResults,
    /// A person released it.
    Operator,
    /// No proof was asked for (`accept = ["none"]`).
    None,
}
words!(Trust, "trust", Dkim => "dkim", AuthenticationResults => "authentication-results",
    Operator => "operator", None => "none");

/// The first word of a reason. These are an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonCode {
    /// No accepted proof, or a From that is not allowed.
    Untrusted,
    /// Addressed to someone else.
    NotOurs,
    /// Contradicts itself or what is known.
    Conflict,
    /// A payment mail that lacks what it needs, or whose values are doubtful.
    Unreadable,
    /// Not a mail that can be taken apart.
    Malformed,
    /// Larger than the account's `max_size`, or than a bound of the reader.
    TooLarge,
    /// Recognised as something else than a payment.
    NotAPayment,
    /// DNS did not answer.
    Dns,
}
words!(ReasonCode, "reason", Untrusted => "untrusted", NotOurs => "not-ours", Conflict => "conflict",
    Unreadable => "unreadable", Malformed => "malformed", TooLarge => "too-large",
    NotAPayment => "not-a-payment", Dns => "dns");

/// What a mailbox's watcher is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailboxState {
    /// On the way to the server.
    Connecting,
    /// Reading what is above the cursor.
    Syncing,
    /// Told of each new mail by the server.
    Idle,
    /// Asking again and again: the server has no IDLE.
    Polling,
    /// Something is wrong; see `last_error`. It is tried again.
    Failed,
}
words!(MailboxState, "mailbox state", Connecting => "connecting", Syncing => "syncing", Idle => "idle",
    Polling => "polling", Failed => "failed");
