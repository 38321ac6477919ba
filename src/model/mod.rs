//! Types that several rooms share: mail, notification, event, outcome, trust.
//!
//! `words` has the enums, `mail` a mail and its outcome, `event` the content of a notification, `spelling` the normal
//! forms for comparing. This room imports no other room, does no I/O and reads no clock.

mod event;
mod mail;
mod matching;
mod spelling;
mod words;

pub use event::{Event, Reading};
pub use mail::{
    Availability, Begun, Covered, Envelope, Examined, Judgement, Origin, Proof, RawMail, Reached, Reason, Uid,
    UidValidity, Undelivered, Verdict,
};
pub use matching::Matching;
pub use spelling::{
    KNOWN_CHAINS, fold_chain, fold_hash, fold_token, hash_spellings, is_token_name, iso, printable, same_amount,
    same_mailbox, same_token, spell_chain, webhook_time,
};
pub(crate) use words::words;
pub use words::{AttemptResult, DeliveryState, MailboxState, NO_ANSWER, Outcome, ReasonCode, Status, Trust};
