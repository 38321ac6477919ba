//! Enums, with their values in the database, in JSON and on the command line.

/// The beginning of the error text of an attempt without a response.
pub const NO_ANSWER: &str = "no answer";

/// The status of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// The payment succeeded.
    Completed,
    /// The payment failed and will not succeed later.
    Failed,
    /// The payment is on the chain, but not final, so it must never be reported as paid.
    Pending,
}

/// Implements `as_str`, `Display`, `FromStr` and `Serialize` for an enum. The macro call lists the text of each value.
macro_rules! string_enum {
    ($type:ident, $what:literal, $($variant:ident => $text:literal),+ $(,)?) => {
        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$type] = &[$($type::$variant),+];

            /// The value in the database, in JSON and in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $text),+ }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> std::result::Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| {
                    let texts: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    format!(concat!("no ", $what, "; one of: {}"), texts.join(", "))
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

pub(crate) use string_enum;
string_enum!(Status, "status", Completed => "completed", Failed => "failed", Pending => "pending");

/// The state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeliveryState {
    /// The delivery waits for a session, a chain, Resmic or an operator.
    Held,
    /// The delivery is due now or later.
    Pending,
    /// The handler accepted the event, or the stream stored it.
    Delivered,
    /// The delivery was given up after `give_up_after`. An operator can retry the delivery.
    Dead,
}
string_enum!(DeliveryState, "delivery state", Held => "held", Pending => "pending", Delivered => "delivered", Dead => "dead");

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptResult {
    /// The handler answered with a status from 200 to 299, or the stream has the event.
    Accepted,
    /// The handler answered with another status, or the stream refused the event.
    Rejected,
    /// The request was written, and no response was received. The handler may have the event.
    NoResponse,
    /// No request was written.
    NotSent,
    /// The program stopped or failed during the attempt. The handler may have the event.
    Interrupted,
}
string_enum!(AttemptResult, "attempt result", Accepted => "accepted", Rejected => "rejected", NoResponse => "no_response",
    NotSent => "not_sent", Interrupted => "interrupted");

/// The outcome of a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The mail created an event.
    Event,
    /// The mail repeats a stored event.
    Duplicate,
    /// The mail is not about a payment, or was removed from the mail server before its bytes were delivered.
    Ignored,
    /// The mail needs review.
    Quarantined,
    /// DNS did not answer, or a clock is wrong. The mail is authenticated again later.
    Deferred,
}
string_enum!(Outcome, "outcome", Event => "event", Duplicate => "duplicate", Ignored => "ignored",
    Quarantined => "quarantined", Deferred => "deferred");

/// The proof that authenticated a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// A DKIM signature that this program verified.
    Dkim,
    /// An `Authentication-Results` field of the server that received the mail for the merchant (RFC 8601).
    AuthenticationResults,
    /// An operator released the mail.
    Operator,
    /// No proof is required (`accept = ["none"]`).
    None,
}
string_enum!(Trust, "trust", Dkim => "dkim", AuthenticationResults => "authentication-results",
    Operator => "operator", None => "none");

/// The code of a reason. The codes are an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasonCode {
    /// The mail has no accepted proof, its From is not allowed, or its To is not signed.
    Untrusted,
    /// The signed To of the mail contains none of the account's addresses.
    NotOurs,
    /// The mail or its event contradicts itself, another event, the registered session or Resmic's API.
    Conflict,
    /// The mail may be about a payment, but has no text, lacks a required field, or has a value that is not clear.
    Unreadable,
    /// The bytes cannot be parsed as a mail.
    Malformed,
    /// The mail is larger than the account's `max_size`, or than a limit of the parser.
    TooLarge,
    /// The mail is not about a payment.
    NotAPayment,
    /// DNS did not answer, or a clock is wrong.
    Dns,
    /// The mail server lists or listed the mail, and has not delivered it.
    Unavailable,
}
string_enum!(ReasonCode, "reason", Untrusted => "untrusted", NotOurs => "not-ours", Conflict => "conflict",
    Unreadable => "unreadable", Malformed => "malformed", TooLarge => "too-large",
    NotAPayment => "not-a-payment", Dns => "dns", Unavailable => "unavailable");

/// The state of a mailbox's watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailboxState {
    /// Connecting to the server.
    Connecting,
    /// Fetching the mails above the cursor.
    Syncing,
    /// The server announces each new mail (IDLE or NOTIFY).
    Idle,
    /// The watcher polls, because IDLE is missing or does not work. Or it waits, because its mailbox does not exist yet, or
    /// another watcher reads the same mailbox.
    Polling,
    /// The last connection failed; `mailboxes.last_error` has the error. The watcher connects again after a pause.
    Failed,
}
string_enum!(MailboxState, "mailbox state", Connecting => "connecting", Syncing => "syncing", Idle => "idle",
    Polling => "polling", Failed => "failed");

/// The state of a target that is a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// The daemon has started and cannot publish new events yet: it connects, or publishes the last events again.
    Connecting,
    /// The daemon can publish to the stream.
    Connected,
    /// The daemon cannot publish: no server can be reached, or the stream is unfit or refuses events.
    Failed,
}
string_enum!(StreamState, "stream state", Connecting => "connecting", Connected => "connected", Failed => "failed");
