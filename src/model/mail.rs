//! A mail, and what became of it.

use std::fmt;

use jiff::Timestamp;

use super::event::Event;
use super::spelling::printable;
use super::words::{ReasonCode, Trust};

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

/// How far a mailbox has been read, and what shows whether its numbers still mean the mails that they meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The numbering that `last_uid` belongs to (RFC 3501, 2.3.1.1).
    pub uid_validity: u32,
    /// The highest UID read: every mail up to it is stored, was seen to be gone, or was there before we began.
    pub last_uid: u32,
    /// Where the first run began, if not with the oldest mail.
    pub begun: Option<Begun>,
    /// When the server took the newest mail of which that was asked, by its clock: of the last that were read, at least.
    pub newest_at: Option<Timestamp>,
    /// Up to this row of the database UIDs may be other mails' by now.
    pub renumbered_after: i64,
}

/// Where a mailbox was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// What the server took before this is not read …
    pub at: Timestamp,
    /// … up to this UID. What is above it came since, with whatever date.
    pub uid: u32,
}

impl From<(u32, u32)> for Reached {
    fn from((uid_validity, last_uid): (u32, u32)) -> Self {
        Reached { uid_validity, last_uid, begun: None, newest_at: None, renumbered_after: 0 }
    }
}

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
