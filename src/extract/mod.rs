//! Parses the fields of a notification: mail → views → labelled values → fields.
//!
//! Pure: bytes in, a report out. Whether the mail is Resmic's is decided in `trust`, not here.
//!
//! `mime` finds the visible parts, within the limits of `bounds` and after the repairs of `encoding`. `html` (with
//! `plain`, `walk`, `element` and `visible`) and `text` render them as views. `quote` marks quoted text. `lines` and
//! `object` find labels with their values, `cut` finds values that continue on the next line, `annotation` removes
//! links behind a value. `values`, `times` and `links` parse single values. `agree` compares all values of a field,
//! `about` classifies subject and headings, `published` searches the HTML for the published list, `status` combines what they state. `note` has the places
//! for `parse --explain`. This file decides whether the mail is a payment.

mod about;
mod agree;
mod annotation;
mod bounds;
mod cut;
mod element;
mod encoding;
mod html;
mod labels;
mod lines;
mod links;
mod mime;
mod note;
mod object;
mod plain;
mod published;
mod quote;
mod status;
mod text;
mod times;
mod values;
mod view;
mod visible;
mod walk;

use std::collections::HashMap;

use mail_parser::Message;
use serde::Deserialize;

use crate::contain::contained;
use crate::model::{Reading, Reason, ReasonCode, Status};
use about::Phrase;
use agree::{Agreement, Fields};
use labels::Table;
use mime::Shown;
use published::List;
use status::Statements;

pub use html::view as html_view;
pub use note::{Note, Place};
pub use view::{Line, Sort, View};

/// `[extract]`: settings of the parser.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub struct Settings {
    /// More spellings of labels, for each field.
    pub labels: Labels,
}

/// More spellings of labels, for a changed template. They match like the built-in ones.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
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

impl Labels {
    fn by_field(&self) -> [(Field, &[String]); 8] {
        [
            (Field::SessionId, &self.session_id),
            (Field::Status, &self.status),
            (Field::Amount, &self.amount),
            (Field::Blockchain, &self.blockchain),
            (Field::Token, &self.token),
            (Field::Wallet, &self.from_wallet_address),
            (Field::Hash, &self.transaction_hash),
            (Field::Time, &self.tx_time),
        ]
    }
}

impl Settings {
    /// Checks that each label has a letter or digit and belongs to one field.
    ///
    /// # Errors
    /// The key, and the reason.
    pub fn check(&self) -> Result<(), (String, String)> {
        let built_in = Table::new(&Labels::default());
        let mut given = HashMap::new();
        for (field, spellings) in self.labels.by_field() {
            let wrong = |words: String| Err((format!("labels.{}", field.key()), words));
            for spelling in spellings {
                if labels::fold(spelling).is_empty() {
                    return wrong(format!("{spelling:?} has no letter or digit in it"));
                }
                if let Some(other) = built_in.field(spelling).filter(|other| *other != field) {
                    return wrong(format!("{spelling:?} is a label of {} already", other.key()));
                }
                if let Some(other) = given.insert(labels::fold(spelling), field).filter(|other| *other != field) {
                    return wrong(format!("{spelling:?} is given to {}, too", other.key()));
                }
            }
        }
        Ok(())
    }
}

/// Which header fields are signed. Others are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vouched {
    /// The Subject is signed.
    pub subject: bool,
}

/// The result of parsing a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A payment.
    Payment(Reading),
    /// Something else than a payment, with the reason.
    Nothing(Reason),
    /// The mail has no readable text, and its subject does not mention a payment.
    Blank,
    /// A payment with a problem: `unreadable`, `conflict`, `malformed`, `too-large`.
    Doubtful(Reason),
}

/// The result of parsing a mail, with the places of the values.
#[derive(Debug, Clone)]
pub struct Report {
    /// The result.
    pub said: Said,
    /// Every value that was found, used or not, for `parse --explain`.
    pub notes: Vec<Note>,
}

/// The fields of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Field {
    SessionId,
    Status,
    Amount,
    Blockchain,
    Token,
    Wallet,
    Hash,
    Time,
}

impl Field {
    /// The webhook's key.
    const fn key(self) -> &'static str {
        match self {
            Field::SessionId => "session_id",
            Field::Status => "status",
            Field::Amount => "amount",
            Field::Blockchain => "blockchain",
            Field::Token => "token",
            Field::Wallet => "from_wallet_address",
            Field::Hash => "transaction_hash",
            Field::Time => "txTime",
        }
    }
}

/// A text that was found as the value of a field.
#[derive(Debug, Clone)]
struct Found {
    field: Field,
    /// Its label, folded; empty for a link.
    label: String,
    value: String,
    place: Place,
    /// In quoted or forwarded text.
    quoted: bool,
    how: How,
}

/// The position of a value relative to its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// On the label's line, or in the next cell.
    Beside,
    /// On the line below, or on the same line after a label that only its font sets apart.
    Below,
    /// Under a key of an object.
    Key,
    /// In a link.
    Link,
    /// The label has no value.
    Empty,
}

/// The parser. One instance parses many mails.
pub struct Reader {
    table: Table,
}

impl Reader {
    /// Creates a parser with these settings.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Reader { table: Table::new(&settings.labels) }
    }

    /// Parses a mail, the bytes of an RFC 5322 message. If a parser panics, only this mail is affected.
    #[must_use]
    pub fn read(&self, mail: &[u8], vouched: Vouched) -> Report {
        self.read_and(mail, vouched, |_| ()).0
    }

    /// Parses a mail, and calls `look` with the parsed message, so that the caller need not parse the header again. The
    /// second value is `None` if the message could not be parsed or is too large.
    #[must_use]
    pub fn read_and<T>(
        &self,
        mail: &[u8],
        vouched: Vouched,
        look: impl FnOnce(&Message<'_>) -> T,
    ) -> (Report, Option<T>) {
        let mut seen = None;
        let report = contained(|| {
            let mut notes = Vec::new();
            let shown = mime::message(mail).and_then(|message| {
                seen = Some(look(&message));
                mime::shown_of(&message)
            });
            let said = shown.map_or_else(Said::Doubtful, |shown| self.judge(&shown, vouched, &mut notes));
            Report { said, notes }
        });
        let unread = || Report {
            said: Said::Doubtful(Reason::new(ReasonCode::Malformed, "it could not be taken apart")),
            notes: Vec::new(),
        };
        (report.unwrap_or_else(unread), seen)
    }

    /// Decides whether the mail is a complete payment.
    fn judge(&self, shown: &Shown, vouched: Vouched, notes: &mut Vec<Note>) -> Said {
        let found: Vec<Found> = shown.views.iter().flat_map(|view| lines::found(view, &self.table)).collect();
        let subject = shown.subject.clone().filter(|_| vouched.subject);
        let titles: Vec<String> = subject.into_iter().chain(shown.views.iter().flat_map(about::headings)).collect();
        let phrases: Vec<(Phrase, &String)> = titles.iter().filter_map(|t| Some((about::phrase(t)?, t))).collect();
        let mut agreement = Agreement::new(&found, notes);
        let fields = agreement.fields();
        agreement.sessions_are_out_of_place(&self.table, shown.list > List::Absent);
        agreement.items(&shown.items, &fields);
        let statements =
            Statements { fields: &fields, phrases: &phrases, titles: &titles, list: status::list(shown, &found) };
        agreement.titles(&statements.titles_of_the_payment(), fields.amount.as_ref());
        let trouble = agreement.trouble;
        if !agree::are_of_a_payment(&found)
            && let Some(said) = not_a_payment(shown, &found, &titles, &phrases)
        {
            return said;
        }
        if let Some((code, words)) = shown.views.iter().find_map(|view| view.lost) {
            return Said::Doubtful(Reason::new(code, words));
        }
        if let Some(reason) = trouble {
            return Said::Doubtful(reason);
        }
        match statements.status(&shown.views) {
            Ok(status) => complete(fields, status),
            Err(reason) => Said::Doubtful(reason),
        }
    }
}

/// The reason for a mail without readable text.
pub const NO_TEXT: &str = "it has no text that can be read";

fn doubtful(words: impl AsRef<str>) -> Said {
    Said::Doubtful(Reason::new(ReasonCode::Unreadable, words))
}

/// Decides what a mail without a payment's values is: `None` if it may be a payment.
fn not_a_payment(shown: &Shown, found: &[Found], titles: &[String], phrases: &[(Phrase, &String)]) -> Option<Said> {
    let nothing = |words: String| Some(Said::Nothing(Reason::new(ReasonCode::NotAPayment, words)));
    // A hidden or commented-out list is a sign of a payment, too.
    if shown.list == List::Whole || phrases.iter().any(|(phrase, _)| matches!(phrase, Phrase::Says(_))) {
        return None;
    }
    // Only payment mails contain a transaction hash. This one has labels in words or a language that the table lacks.
    if shown.views.iter().flat_map(|view| &view.lines).any(names_a_transaction) {
        return Some(doubtful("it names a transaction, and no label that is known says so"));
    }
    if let Some(what) = about::other(titles, &shown.views) {
        return nothing(format!("recognised as {what}"));
    }
    let quoted = |f: &&Found| f.quoted && matches!(f.field, Field::Hash | Field::SessionId);
    if found.iter().any(|f| quoted(&f)) {
        return Some(doubtful("what it says of a payment stands in quoted or forwarded text only"));
    }
    if let Some((_, title)) = phrases.first() {
        return Some(doubtful(format!("{title:?} speaks of a payment, and no transaction or session can be read")));
    }
    let blank = shown.views.iter().all(|view| view.lines.is_empty());
    if blank && titles.is_empty() {
        return Some(doubtful(NO_TEXT));
    }
    // The text beyond the limit may contain the payment.
    if shown.views.iter().filter_map(|view| view.lost).any(|(code, _)| code == ReasonCode::TooLarge) {
        return None;
    }
    if blank { Some(Said::Blank) } else { nothing("nothing in it speaks of a payment".to_owned()) }
}

/// Whether a transaction hash is in a line or in one of its links, with or without a label.
fn names_a_transaction(line: &Line) -> bool {
    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split(|c: char| !c.is_ascii_alphanumeric())
    }
    // Links contain other long words, but none that begins with `0x`.
    let mut linked = line.links.iter().flat_map(|link| words(link)).filter(|word| word.starts_with("0x"));
    line.cells.iter().flat_map(|cell| words(cell)).any(values::is_transaction) || linked.any(values::is_transaction)
}

/// An event needs a transaction or a session, and a completed one an amount.
fn complete(fields: Fields, status: Status) -> Said {
    if fields.hash.is_none() && fields.session_id.is_none() {
        return doubtful("it names neither a transaction nor a session");
    }
    if status == Status::Completed && fields.amount.is_none() {
        return doubtful("it says that a payment is completed, and no amount");
    }
    let (amount, currency) = fields.amount.map(|a| (a.digits, a.currency)).unzip();
    Said::Payment(Reading {
        status,
        session_id: fields.session_id,
        amount,
        currency: currency.flatten(),
        blockchain: fields.blockchain,
        token: fields.token,
        from_wallet_address: fields.wallet,
        transaction_hash: fields.hash,
        tx_time: fields.time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spelling_is_the_label_of_one_field() {
        let check = |labels: &str| {
            let settings: Settings = toml::from_str(&format!("[labels]\n{labels}")).unwrap();
            settings.check().map_err(|(key, words)| format!("{key}: {words}"))
        };
        check("amount = [\"Sum paid\", \"sum  PAID\"]\ntoken = [\"Coin\"]").unwrap();
        for wrong in ["amount = [\"Foo\"]\ntoken = [\"foo:\"]", "amount = [\"Token\"]", "amount = [\"--\"]"] {
            assert!(check(wrong).unwrap_err().starts_with("labels."), "{wrong}");
        }
    }
}
