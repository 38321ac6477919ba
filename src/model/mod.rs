//! Types that several rooms share: mail, notification, event, outcome, trust.
//!
//! `enums` has the enums with their texts, `mail` a mail and its outcome, `event` the content of a notification,
//! `session` a registered session, `matching` the settings of session matching, and `normalize` the forms in which values are
//! compared and written. This room imports no other room, does no I/O and reads no clock.

mod enums;
mod event;
mod mail;
mod matching;
mod normalize;
mod session;

pub(crate) use enums::string_enum;
pub use enums::{
    AttemptResult, DeliveryState, MailboxState, NO_ANSWER, Outcome, ReasonCode, Status, StreamState, Trust,
};
pub use event::{Event, PaymentDetails};
pub use mail::{
    Authenticity, Availability, Envelope, Examined, Judgement, Origin, RawMail, Reason, SignedHeaders, StartBoundary,
    SyncPosition, TrustProof, Uid, UidValidity, Undelivered,
};
pub use matching::Matching;
pub use normalize::{
    KNOWN_CHAINS, fold_chain, fold_hash, fold_name, fold_token, hash_spellings, is_token_name, iso, printable,
    same_amount, same_mailbox, same_token, spell_chain, webhook_time,
};
pub use session::RegisteredSession;
