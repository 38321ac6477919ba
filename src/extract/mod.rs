//! What does it say? views → labelled values → fields.
//!
//! Pure: bytes in, a report out. Nothing here asks whether the mail may be believed; that is `trust`'s.

use serde::Deserialize;

use crate::model::{Reading, Reason};

/// `[extract]`: how to read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// More spellings of labels, per field.
    pub labels: Labels,
}

/// More spellings of a field's label, for a changed template. Matched as the built-in ones are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Labels {
    pub session_id: Vec<String>,
    pub status: Vec<String>,
    pub amount: Vec<String>,
    pub blockchain: Vec<String>,
    pub token: Vec<String>,
    pub from_wallet_address: Vec<String>,
    pub transaction_hash: Vec<String>,
    #[serde(rename = "txTime")]
    pub tx_time: Vec<String>,
}

/// Which header fields may be read: one that no signature covers is nobody's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vouched {
    /// The Subject may be read.
    pub subject: bool,
}

/// What a mail says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A payment.
    Payment(Reading),
    /// Recognised as something else; in words.
    Nothing(Reason),
    /// A payment, but one that a person would doubt: `unreadable`, `conflict`, `malformed`, `too-large`.
    Doubtful(Reason),
}

/// What was read, and how.
#[derive(Debug, Clone)]
pub struct Report {
    /// The result.
    pub said: Said,
    /// Every value that was found, for `parse --explain`: the ones that won and the ones that lost.
    pub notes: Vec<Note>,
}

/// One value found in a mail, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The field, by the webhook's key.
    pub field: &'static str,
    /// The value as it stood there.
    pub value: String,
    /// Where it stood: view, layout, place; `text/html list item 3`.
    pub place: String,
    /// What became of it: `read`, or why it lost.
    pub fate: String,
}

// ---- placeholder below ----
impl Settings {
    /// placeholder
    pub fn check(&self) -> Result<(), (String, String)> {
        Ok(())
    }
}
/// placeholder
pub struct Reader;
impl Reader {
    /// placeholder
    pub fn new(_: &Settings) -> Self {
        Reader
    }
    /// placeholder
    pub fn read(&self, mail: &[u8], _: Vouched) -> Report {
        let t = String::from_utf8_lossy(mail);
        let find = |l: &str| t.lines().find_map(|x| x.strip_prefix(l).map(|v| v.trim().to_owned()));
        let said = match find("transaction_hash:") {
            Some(h) => Said::Payment(Reading {
                transaction_hash: Some(h),
                amount: find("amount:"),
                blockchain: find("blockchain:"),
                session_id: find("session_id:"),
                ..Reading::of(crate::model::Status::Completed)
            }),
            None => Said::Nothing(Reason::new(crate::model::ReasonCode::NotAPayment, "no")),
        };
        Report { said, notes: vec![] }
    }
}
