//! The words of the house: mail, notification, event, session, outcome, trust.
//!
//! Everything that two rooms say to each other is a type of this file. It imports nothing of ours,
//! does no I/O and knows no clock.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// The namespace of every event id: a UUIDv5 (RFC 9562, 5.5) of `resmic-mailhook.event` under the DNS namespace.
///
/// It must never change: two databases agree on what was paid because it does not.
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0xd146_3efd_5c7f_5b1a_8130_7d45_08e0_3fc0);

/// The chains that Resmic names, in the webhook's spelling.
pub const KNOWN_CHAINS: [&str; 9] =
    ["Ethereum", "Polygon", "BNB-Chain", "Optimism", "Sepolia", "XDC-Network", "Base", "Starknet", "Solana"];

/// Where a mail was found. With all four parts it names a mail for ever (RFC 3501, 2.3.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The account's name in the configuration.
    pub account: String,
    /// The mailbox, or `import`.
    pub mailbox: String,
    /// UIDVALIDITY and UID; `None` for what did not come from a mail server.
    pub uid: Option<(u32, u32)>,
}

/// One RFC 5322 message as it came, untouched.
#[derive(Debug, Clone)]
pub struct RawMail {
    /// Where it was found.
    pub origin: Origin,
    /// The message; cut at the account's `max_size`.
    pub bytes: Vec<u8>,
    /// Its whole size in bytes; more than `bytes.len()` if it was cut.
    pub size: u64,
    /// When the server received it (INTERNALDATE), if it says so.
    pub received_at: Option<Timestamp>,
}

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
                    format!(concat!("not a ", $what, "; one of: {}"), all.join(", "))
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

/// Why an outcome is what it is: a code for machines, words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The interface.
    pub code: ReasonCode,
    /// One line, made of our words and of [`printable`] pieces of the mail.
    pub words: String,
}

impl Reason {
    /// A reason; the words are made fit for a log line.
    #[must_use]
    pub fn new(code: ReasonCode, words: impl AsRef<str>) -> Self {
        Reason { code, words: printable(words.as_ref(), 500) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.words)
    }
}

/// Text of unknown origin, fit for a terminal, a log line and a report: control characters,
/// line breaks and bidirectional overrides become spaces, and at most `max` characters stay.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max * 4));
    for (n, c) in text.chars().enumerate() {
        if n == max {
            out.push('…');
            break;
        }
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        out.push(if hidden { ' ' } else { c });
    }
    out
}

/// A moment as the database and JSON write it: ISO 8601, UTC, milliseconds.
#[must_use]
pub fn iso(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A moment as the webhook writes it: `Mar 5, 2025, 03:36`, UTC.
#[must_use]
pub fn webhook_time(at: Timestamp) -> String {
    at.strftime("%b %-d, %Y, %H:%M").to_string()
}

/// What the judge found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be believed.
    Believed(Proof),
    /// It may not: `untrusted` or `not-ours`.
    Refused(Reason),
    /// DNS did not answer; ask again later.
    Undecided(Reason),
}

/// Why a mail may be believed, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The kind of proof.
    pub trust: Trust,
    /// The signing domain (`d=`), if a signature is the proof.
    pub domain: Option<String>,
    /// The signature's selector (`s=`).
    pub selector: Option<String>,
    /// The header fields that the proof covers.
    pub covers: Covered,
    /// The addresses of the covered To, as written.
    pub to: Vec<String>,
}

/// Which header fields a proof speaks for. A field that it does not cover is nobody's word, and is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Covered {
    /// All of them: no proof was asked for, or a person vouches.
    All,
    /// Those named, in lower case (a signature's `h=`).
    Only(Vec<String>),
}

impl Covered {
    /// Whether the field `name` (in lower case) is covered.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Covered::All => true,
            Covered::Only(names) => names.iter().any(|n| n == name),
        }
    }
}

/// What became of a mail, and what it says if it says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// A notification that may be believed.
    Event(Box<Event>),
    /// No notification.
    Ignored(Reason),
    /// For a person.
    Quarantined(Reason),
    /// Not judged yet.
    Deferred(Reason),
}

/// What a mail's own header says of it. Its sender's words, made printable; for people, not for decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Message-ID.
    pub message_id: Option<String>,
    /// From.
    pub sender: Option<String>,
    /// To.
    pub recipient: Option<String>,
    /// Subject.
    pub subject: Option<String>,
    /// Date.
    pub sent_at: Option<Timestamp>,
}

/// A mail that was judged: all that the store needs to know beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What became of it.
    pub judgement: Judgement,
    /// Why it may be believed, if it may.
    pub proof: Option<Proof>,
    /// What its header says.
    pub envelope: Envelope,
}

/// What a notification says. A field is read or it is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What the payment has come to.
    pub status: Status,
    /// The payment session, a UUID in lower case.
    pub session_id: Option<String>,
    /// Plain decimal digits, as written, trailing zeros kept.
    pub amount: Option<String>,
    /// `USD`, or the token's symbol if the amount names it.
    pub currency: Option<String>,
    /// The chain in the webhook's spelling; an unknown one as written.
    pub blockchain: Option<String>,
    /// The token as written.
    pub token: Option<String>,
    /// The payer's wallet as written.
    pub from_wallet_address: Option<String>,
    /// The transaction; EVM hex in lower case.
    pub transaction_hash: Option<String>,
    /// The time that the mail says, UTC.
    pub tx_time: Option<Timestamp>,
}

impl Reading {
    /// A reading that says its status and nothing else.
    #[must_use]
    pub fn of(status: Status) -> Self {
        Reading {
            status,
            session_id: None,
            amount: None,
            currency: None,
            blockchain: None,
            token: None,
            from_wallet_address: None,
            transaction_hash: None,
            tx_time: None,
        }
    }
}

/// A payment in the webhook's event model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What the notification says.
    pub reading: Reading,
    /// The signed Date header, for a notification that says no time.
    pub header_time: Option<Timestamp>,
    /// The merchant's name for what is paid, from a signed address.
    pub order_ref: Option<String>,
}

impl Event {
    /// The time of the payment: the mail's own, else its Date header's.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        self.reading.tx_time.or(self.header_time)
    }

    /// Where [`Event::time`] comes from: `mail` or `header`.
    #[must_use]
    pub fn time_source(&self) -> Option<&'static str> {
        match (self.reading.tx_time, self.header_time) {
            (Some(_), _) => Some("mail"),
            (None, Some(_)) => Some("header"),
            (None, None) => None,
        }
    }

    /// The event's id: a UUIDv5 over what the payment *is*, so that the same payment has the same
    /// id in every database. `None` if it names neither a transaction nor a session.
    ///
    /// With a transaction hash: over chain, hash and status. Without: over session, status and the
    /// time that the mail itself says (a Date header differs between two reports of one payment).
    #[must_use]
    pub fn id(&self) -> Option<Uuid> {
        let r = &self.reading;
        let name = if let Some(hash) = &r.transaction_hash {
            let chain = r.blockchain.as_deref().unwrap_or("");
            format!("tx\n{}\n{}\n{}", fold_chain(chain), fold_hash(hash), r.status)
        } else {
            let session = r.session_id.as_deref()?;
            format!(
                "session\n{}\n{}\n{}",
                session.to_ascii_lowercase(),
                r.status,
                r.tx_time.map(iso).unwrap_or_default()
            )
        };
        Some(Uuid::new_v5(&EVENT_NAMESPACE, name.as_bytes()))
    }

    /// The JSON body of the webhook, byte for byte what `JSON.stringify` prints: the documented
    /// keys in the documented order, `null` for what the mail does not say.
    #[must_use]
    pub fn webhook(&self) -> String {
        let r = &self.reading;
        let time = self.time().map(webhook_time);
        let session_id = r.session_id.as_deref();
        let json = if r.status == Status::Completed {
            serde_json::to_string(&CompletedBody {
                session_id,
                amount: r.amount.as_deref(),
                blockchain: r.blockchain.as_deref(),
                token: r.token.as_deref(),
                from_wallet_address: r.from_wallet_address.as_deref(),
                transaction_hash: r.transaction_hash.as_deref(),
                tx_time: time.as_deref(),
                status: true,
            })
        } else {
            let state = (r.status == Status::Pending).then_some("pending");
            serde_json::to_string(&UnpaidBody { session_id, tx_time: time.as_deref(), status: false, state })
        };
        // Strings and booleans: serde_json has nothing to refuse here.
        json.unwrap_or_default()
    }
}

#[derive(Serialize)]
struct CompletedBody<'a> {
    session_id: Option<&'a str>,
    amount: Option<&'a str>,
    blockchain: Option<&'a str>,
    token: Option<&'a str>,
    from_wallet_address: Option<&'a str>,
    transaction_hash: Option<&'a str>,
    #[serde(rename = "txTime")]
    tx_time: Option<&'a str>,
    status: bool,
}

/// Failed, and pending, which must never look paid: `status` is false in both.
#[derive(Serialize)]
struct UnpaidBody<'a> {
    session_id: Option<&'a str>,
    #[serde(rename = "txTime")]
    tx_time: Option<&'a str>,
    status: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
}

/// A chain's name for comparing: `BNB-CHAIN`, `bnb chain` and `BNB-Chain` are one.
#[must_use]
pub fn fold_chain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// A chain in the webhook's spelling; an unknown one as written.
#[must_use]
pub fn spell_chain(name: &str) -> String {
    let folded = fold_chain(name);
    KNOWN_CHAINS.iter().find(|known| fold_chain(known) == folded).map_or_else(|| name.to_owned(), |k| (*k).to_owned())
}

/// A transaction hash for comparing: hexadecimal is a number (so without case and leading zeros), base58 is not.
#[must_use]
pub fn fold_hash(hash: &str) -> String {
    let hex = hash.strip_prefix("0x").or_else(|| hash.strip_prefix("0X"));
    match hex {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("0x{}", digits.trim_start_matches('0').to_ascii_lowercase())
        }
        _ => hash.to_owned(),
    }
}

/// Whether two decimal texts are one number: `20` and `20.00` are.
#[must_use]
pub fn same_amount(a: &str, b: &str) -> bool {
    fold_amount(a) == fold_amount(b)
}

fn fold_amount(text: &str) -> (&str, &str) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    (whole.trim_start_matches('0'), fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid() -> Event {
        Event {
            reading: Reading {
                session_id: Some("591abe63-aa61-411d-a419-0b546729bbd0".into()),
                amount: Some("20".into()),
                blockchain: Some("Sepolia".into()),
                token: Some("DAI".into()),
                from_wallet_address: Some("0x056397760b973BfB921Bc10Be9DA5034B1e921d7".into()),
                transaction_hash: Some("0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2".into()),
                tx_time: Some("2025-03-05T03:36:00Z".parse().unwrap()),
                ..Reading::of(Status::Completed)
            },
            header_time: None,
            order_ref: None,
        }
    }

    #[test]
    fn the_body_of_a_completed_payment_is_the_documented_one() {
        assert_eq!(
            paid().webhook(),
            r#"{"session_id":"591abe63-aa61-411d-a419-0b546729bbd0","amount":"20","blockchain":"Sepolia","token":"DAI","from_wallet_address":"0x056397760b973BfB921Bc10Be9DA5034B1e921d7","transaction_hash":"0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2","txTime":"Mar 5, 2025, 03:36","status":true}"#
        );
    }

    #[test]
    fn what_is_not_paid_never_looks_paid() {
        let mut event = paid();
        event.reading.status = Status::Failed;
        assert!(event.webhook().ends_with(r#""txTime":"Mar 5, 2025, 03:36","status":false}"#));
        event.reading.status = Status::Pending;
        assert!(event.webhook().ends_with(r#""status":false,"state":"pending"}"#));
    }

    #[test]
    fn the_body_escapes_as_json_stringify_does() {
        let mut event = paid();
        event.reading.token = Some("a/\"\\\u{1}\u{8}\u{7f}\u{2028}é".into());
        assert!(event.webhook().contains("\"token\":\"a/\\\"\\\\\\u0001\\b\u{7f}\u{2028}é\""));
    }

    #[test]
    fn an_id_follows_from_the_payment_not_from_its_spelling() {
        let id = paid().id();
        let mut other = paid();
        other.reading.blockchain = Some("SEPOLIA".into());
        other.reading.transaction_hash = other.reading.transaction_hash.map(|h| h.to_uppercase().replace("0X", "0x"));
        other.reading.session_id = None;
        other.reading.tx_time = None;
        assert_eq!(id, other.id());
        other.reading.status = Status::Failed;
        assert_ne!(id, other.id());
        assert_eq!(id.unwrap().to_string(), "fd50a56e-6359-5deb-bbb1-c18babd155ef", "an id never changes");
    }

    #[test]
    fn without_a_hash_the_session_status_and_said_time_are_the_payment() {
        let mut event = paid();
        event.reading.transaction_hash = None;
        let id = event.id();
        event.header_time = Some("2025-03-05T03:37:00Z".parse().unwrap());
        assert_eq!(id, event.id());
        event.reading.session_id = None;
        assert_eq!(event.id(), None);
    }

    #[test]
    fn decimals_compare_as_numbers() {
        assert!(same_amount("20", "20.00"));
        assert!(same_amount("0.5", "00.50"));
        assert!(!same_amount("20", "2"));
        assert!(!same_amount("20", "20.01"));
    }

    #[test]
    fn nothing_unprintable_leaves() {
        assert_eq!(printable("a\r\nb\u{1b}[31m\u{202e}c", 99), "a  b [31m c");
        assert_eq!(printable("abcdef", 3), "abc…");
    }
}
