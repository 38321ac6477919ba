//! A mail and its outcome.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::enums::{ReasonCode, Trust};
use super::event::Event;
use super::normalize::printable;

/// A mail's UID in its mailbox (RFC 3501, 2.3.1.1). A UID identifies a mail only together with a [`UidValidity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Uid(pub u32);

/// A mailbox's UIDVALIDITY (RFC 3501, 2.3.1.1). When a mailbox gets another UIDVALIDITY, all its UIDs mean other mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UidValidity(pub u32);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UidValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a mail comes from. Account, mailbox, UIDVALIDITY and UID together identify a mail (RFC 3501, 2.3.1.1), unless the server
/// is restored from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The account's name in the configuration.
    pub account: String,
    /// The mailbox's name on the server, or `import`.
    pub mailbox: String,
    /// UIDVALIDITY and UID; `None` for a mail that is not from a mail server.
    pub uid: Option<(UidValidity, Uid)>,
}

/// A mail before it is examined: one RFC 5322 message.
#[derive(Debug, Clone)]
pub struct RawMail {
    /// Where the mail comes from.
    pub origin: Origin,
    /// The bytes of the mail, cut at the account's `max_size`.
    pub bytes: Vec<u8>,
    /// The full size of the mail in bytes; more than `bytes.len()` if the bytes were cut.
    pub size: u64,
    /// When the mail server received the mail (INTERNALDATE), if the server reports that.
    pub received_at: Option<Timestamp>,
}

/// A mail whose bytes the server has not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    /// Where the server lists or listed the mail. [`Origin::uid`] is never `None` here.
    pub origin: Origin,
    /// The RFC822.SIZE of the mail; 0 if the server did not report it.
    pub size: u64,
    /// The INTERNALDATE of the mail, if the server reported it.
    pub received_at: Option<Timestamp>,
    /// The state of the mail at the server.
    pub state: Availability,
}

/// The state of a mail whose bytes the server has not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// The server still lists the mail, so the mail is fetched again.
    Listed,
    /// The server no longer lists the mail, or has begun another UIDVALIDITY. So the mail is not fetched again.
    Gone,
    /// The mail's header has arrived, and the sender is not allowed. The mail's row in `mails` is deleted, because mails of other
    /// senders in a shared mailbox have no rows.
    Foreign,
}

impl Undelivered {
    /// The reason for the outcome of a mail without bytes: what is known about the mail at the server.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let uid = self.origin.uid.map_or(0, |(_, uid)| uid.0);
        match self.state {
            Availability::Listed => {
                Reason::new(ReasonCode::Unavailable, format!("the server lists UID {uid} and does not deliver it"))
            }
            Availability::Gone => Reason::new(
                ReasonCode::Unavailable,
                format!("the server did not deliver UID {uid} and no longer lists it"),
            ),
            Availability::Foreign => Reason::new(ReasonCode::NotAPayment, "its sender is not one of `[trust] from`"),
        }
    }
}

/// The cursor of a mailbox, with the data that shows whether its UIDs still mean the same mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncPosition {
    /// The UIDVALIDITY of `last_uid` (RFC 3501, 2.3.1.1).
    pub uid_validity: UidValidity,
    /// The cursor's UID. Every mail up to this UID is settled (stored, gone, or not Resmic's), or is excluded by `start`.
    pub last_uid: Uid,
    /// The boundary of the mails that `start` excludes; `None` if `start` excludes no mails.
    pub start_boundary: Option<StartBoundary>,
    /// The newest INTERNALDATE that the server has reported, without dates too far in the future. The dates of mails with low
    /// UIDs may be unknown, because the program does not request all dates.
    pub newest_at: Option<Timestamp>,
    /// The last id in the table `mails` before the mailbox was renumbered; 0: the mailbox was never renumbered. The UIDs in rows
    /// up to this id may mean other mails now.
    pub renumbered_after: i64,
}

/// The boundary between the old mails that `start` excludes and the mails that are fetched. This boundary also applies when a
/// renumbered mailbox is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartBoundary {
    /// Mails up to `uid` that the server received before this time are skipped.
    pub at: Timestamp,
    /// The highest UID to which `at` applies. Mails above this UID arrived later, so they are fetched, whatever their date.
    pub uid: Uid,
}

impl From<(u32, u32)> for SyncPosition {
    fn from((uid_validity, last_uid): (u32, u32)) -> Self {
        let (uid_validity, last_uid) = (UidValidity(uid_validity), Uid(last_uid));
        SyncPosition { uid_validity, last_uid, start_boundary: None, newest_at: None, renumbered_after: 0 }
    }
}

/// The cause of an outcome: a code for programs and an explanation for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The code, which is an interface.
    pub code: ReasonCode,
    /// One line, made of fixed text and of [`printable`] pieces of the mail.
    pub message: String,
}

impl Reason {
    /// Creates a reason from text that may contain pieces of the mail. The message has at most 500 characters, which are made
    /// [`printable`].
    #[must_use]
    pub fn new(code: ReasonCode, message: impl AsRef<str>) -> Self {
        Reason { code, message: printable(message.as_ref(), 500) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// The result of authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authenticity {
    /// The mail is trusted, because of this proof.
    Trusted(TrustProof),
    /// The mail is rejected. The reason's code is `untrusted` or `not-ours`.
    Rejected(Reason),
    /// Temporary error: DNS did not answer, or a clock is wrong. The mail is authenticated again later.
    TempError(Reason),
}

/// The proof that authenticated a mail, and the header fields that are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustProof {
    /// The kind of proof.
    pub trust: Trust,
    /// The signing domain (`d=`), if a signature is the proof.
    pub domain: Option<String>,
    /// The signature's selector (`s=`).
    pub selector: Option<String>,
    /// The signed header fields.
    pub signed_headers: SignedHeaders,
    /// The addresses in the signed To field, as the mail writes them.
    pub to: Vec<String>,
}

/// The header fields that the proof of a mail covers. Other header fields prove nothing, and are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignedHeaders {
    /// All fields: no proof is required, or an operator released the mail.
    All,
    /// These fields, in lower case (a signature's `h=`).
    Only(Vec<String>),
}

impl SignedHeaders {
    /// Whether the field `name` (in lower case) is signed.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match self {
            SignedHeaders::All => true,
            SignedHeaders::Only(names) => names.iter().any(|n| n == name),
        }
    }
}

/// The outcome of a mail, with its event if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// A trusted notification.
    Event(Box<Event>),
    /// The mail is not about a payment.
    Ignored(Reason),
    /// The mail needs review: a person must decide.
    Quarantined(Reason),
    /// The mail is not authenticated yet.
    Deferred(Reason),
}

/// Fields of a mail's header, made printable for people. The sender wrote these fields, so the fields prove nothing.
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

/// The result of examining a mail: everything that is stored in addition to the mail's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The outcome.
    pub judgement: Judgement,
    /// The proof, if the mail is trusted.
    pub proof: Option<TrustProof>,
    /// Fields of the mail's header.
    pub envelope: Envelope,
}
