//! The words of the house: mail, notification, event, session, outcome, trust.
//!
//! Everything that two rooms say to each other is a type of this room: `words` (what may be one of a few things), `mail`
//! (what came, and what became of it), `event` (what it says), `spelling` (what is the same, however it is written). It
//! imports nothing of ours, does no I/O and knows no clock.

mod event;
mod mail;
mod spelling;
mod words;

pub use event::{Event, Reading};
pub use mail::{Begun, Covered, Envelope, Examined, Judgement, Origin, Proof, RawMail, Reached, Reason, Verdict};
pub use spelling::{
    KNOWN_CHAINS, fold_chain, fold_hash, fold_token, is_token_name, iso, printable, same_amount, same_mailbox,
    same_token, spell_chain, webhook_time,
};
pub(crate) use words::words;
pub use words::{MailboxState, NO_ANSWER, Outcome, ReasonCode, Status, Trust};
