//! Compares all values that were found for a field. If all of them agree, the field gets their value. If two of them differ,
//! the mail is quarantined.
//!
//! The HTML of Resmic's payment mail contains a list of the fields (see `resmic_template`). The reasons of quarantined mails call
//! this list "the published list".

use jiff::Timestamp;

use crate::extract::explain::ValueNote;
use crate::extract::field::{FoundValue, PaymentField, ValuePosition};
use crate::extract::labels::LabelTable;
use crate::extract::values::{self, Amount};
use crate::model::{self, Reason, ReasonCode, Status, same_amount, same_token};

/// The fields, each with its first value. The values are valid only if `ConsistencyCheck::problem` is `None`. The status is the
/// value of the status field; the subject and the headings are not included.
#[derive(Debug, Default)]
pub(crate) struct AgreedFields {
    pub(crate) status: Option<Status>,
    pub(crate) session_id: Option<String>,
    pub(crate) amount: Option<Amount>,
    pub(crate) blockchain: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) wallet: Option<String>,
    pub(crate) hash: Option<String>,
    pub(crate) time: Option<Timestamp>,
}

/// Whether the values in `found` show that the mail reports a payment, even if these values cannot be parsed.
pub(crate) fn indicate_payment(found: &[FoundValue]) -> bool {
    let counts = |f: &&FoundValue| {
        !f.quoted
            && f.position != ValuePosition::Empty
            && !is_mail_header(f)
            && (f.position != ValuePosition::Below || looks_like_value(&f.value))
    };
    let has = |field: PaymentField| found.iter().filter(counts).any(|f| f.field == field);
    let other_fields = [
        PaymentField::Amount,
        PaymentField::Blockchain,
        PaymentField::Token,
        PaymentField::Wallet,
        PaymentField::Status,
    ];
    has(PaymentField::Hash)
        || has(PaymentField::SessionId)
        || (has(PaymentField::Amount) && (has(PaymentField::Blockchain) || has(PaymentField::Token)))
        || other_fields.iter().filter(|field| has(**field)).count() >= 3
}

/// Compares all values that a mail has for each field, and stores the most important problem.
pub(crate) struct ConsistencyCheck<'a> {
    found: &'a [FoundValue],
    /// The found values that were chosen for the fields of the payment.
    used: Vec<&'a FoundValue>,
    notes: &'a mut Vec<ValueNote>,
    /// The first problem that was found. A conflict replaces a problem with another reason code.
    pub(crate) problem: Option<Reason>,
}

impl<'a> ConsistencyCheck<'a> {
    pub(crate) fn new(found: &'a [FoundValue], notes: &'a mut Vec<ValueNote>) -> Self {
        ConsistencyCheck { found, used: Vec::new(), notes, problem: None }
    }

    /// Returns the first value of each field. If another value differs or cannot be parsed, `problem` has the reason.
    pub(crate) fn agreed_fields(&mut self) -> AgreedFields {
        let blockchain = self.agreed_value(PaymentField::Blockchain, values::parse_blockchain, |a, b| a == b);
        let family = values::chain_family(blockchain.as_deref());
        let fields = AgreedFields {
            status: self.agreed_value(PaymentField::Status, values::parse_status, |a, b| a == b),
            session_id: self.agreed_value(PaymentField::SessionId, values::parse_session_id, |a, b| a == b),
            amount: self.agreed_value(PaymentField::Amount, values::parse_amount, is_same_amount),
            token: self.agreed_value(PaymentField::Token, values::parse_token, |a, b| same_token(a, b)),
            hash: self.agreed_value(
                PaymentField::Hash,
                |text| values::parse_hash(&unwrap_explorer_link(text), family),
                |a, b| is_same_identifier(a, b),
            ),
            wallet: self.agreed_value(
                PaymentField::Wallet,
                |text| values::parse_wallet(text, family),
                |a, b| is_same_identifier(a, b),
            ),
            time: self.agreed_value(PaymentField::Time, values::parse_time, |a, b| minute_of(*a) == minute_of(*b)),
            blockchain,
        };
        self.check_shortened(PaymentField::Hash, fields.hash.as_deref());
        self.check_shortened(PaymentField::Wallet, fields.wallet.as_deref());
        self.check_amount_and_token(&fields);
        fields
    }

    /// Returns the first value of `field` that can be parsed. Each further value that differs, or that cannot be parsed, is
    /// reported as a problem. Quoted values, and text that does not look like a value, are skipped. `parse` parses a value, and
    /// `same` compares two values.
    fn agreed_value<T>(
        &mut self,
        field: PaymentField,
        parse: impl Fn(&str) -> Result<T, String>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Option<T> {
        let mut agreed: Option<(T, &FoundValue)> = None;
        for found in self.found.iter().filter(|f| f.field == field) {
            if found.quoted {
                self.note(found, "quoted or forwarded text");
                continue;
            }
            if found.position == ValuePosition::Empty || is_shortened(field, &found.value) || is_mail_header(found) {
                continue;
            }
            let value = match parse(&found.value) {
                Ok(_) if found.position == ValuePosition::Below && !is_plausible_name(found) => {
                    self.note(found, "not a value: not the form of a name");
                    continue;
                }
                Ok(value) => value,
                // Text below a status label is never ignored, because even a sentence may contradict the status in a heading.
                Err(_)
                    if found.position == ValuePosition::Below
                        && field != PaymentField::Status
                        && !looks_like_value(&found.value) =>
                {
                    self.note(found, "not a value: text below a heading");
                    continue;
                }
                Err(message) => {
                    self.note(found, "doubtful");
                    self.report(ReasonCode::Unreadable, format!("{}: {message}, at {}", field.key(), found.place));
                    continue;
                }
            };
            match &agreed {
                None => {
                    self.note(found, "used");
                    self.used.push(found);
                    agreed = Some((value, found));
                }
                Some((known, _)) if same(known, &value) => self.note(found, "agrees"),
                Some((_, first)) => {
                    let message = format!(
                        "{}: {:?} at {} and {:?} at {}",
                        field.key(),
                        first.value,
                        first.place,
                        found.value,
                        found.place
                    );
                    self.note(found, "contradicts");
                    self.report(ReasonCode::Conflict, message);
                }
            }
        }
        if let Some((_, full)) = &agreed {
            self.check_not_empty(full);
        }
        agreed.map(|(value, _)| value)
    }

    /// Reports a conflict if a field has a value in one place and is empty in another place of the mail. Resmic does not escape
    /// values in its HTML, so a payer can add list items through the token's name.
    fn check_not_empty(&mut self, filled: &FoundValue) {
        let empty =
            self.found.iter().find(|f| f.field == filled.field && f.position == ValuePosition::Empty && !f.quoted);
        if let Some(empty) = empty {
            self.note(empty, "contradicts");
            let key = filled.field.key();
            let message = format!("{key}: empty at {} and {:?} at {}", empty.place, filled.value, filled.place);
            self.report(ReasonCode::Conflict, message);
        }
    }

    /// Reports a conflict if a mail contains a session id and the list in Resmic's payment mail, or a part of this list. The list
    /// has no item for a session id. A payer may have added a list item with the id of another session, to settle an expensive
    /// order with a cheap payment. If Resmic adds a session id to its mails, a merchant can add the label to `[extract.labels]`.
    pub(crate) fn check_session_in_template(&mut self, table: &LabelTable, published: bool) {
        if !published {
            return;
        }
        let is_unexpected =
            |f: &&FoundValue| !f.quoted && f.field == PaymentField::SessionId && !table.is_configured(&f.label);
        if let Some(session) = self.found.iter().find(is_unexpected) {
            let message = format!("session_id: found at {}, but the published layout has none", session.place);
            self.report(ReasonCode::Conflict, message);
        }
    }

    /// Checks that each item of the list in Resmic's payment mail, visible or hidden, equals the value of its field. An item that
    /// cannot be parsed is not compared, and a field without a value is not compared either.
    pub(crate) fn check_template_items(&mut self, items: &[(PaymentField, String)], fields: &AgreedFields) {
        for (field, item) in items {
            // An item with the text of the used value agrees with it, so it need not be parsed again.
            if self.used.iter().any(|found| found.field == *field && found.value == *item) {
                continue;
            }
            let differs = match field {
                PaymentField::Amount => differs(values::parse_amount(item), fields.amount.as_ref(), is_same_amount),
                PaymentField::Blockchain => {
                    differs(values::parse_blockchain(item), fields.blockchain.as_ref(), |a, b| a == b)
                }
                PaymentField::Token => {
                    differs(values::parse_token(item), fields.token.as_ref(), |a, b| same_token(a, b))
                }
                PaymentField::Wallet => {
                    differs(values::parse_of_any_chain(values::parse_wallet, item), fields.wallet.as_ref(), |a, b| {
                        is_same_identifier(a, b)
                    })
                }
                PaymentField::Hash => {
                    differs(values::parse_of_any_chain(values::parse_hash, item), fields.hash.as_ref(), |a, b| {
                        is_same_identifier(a, b)
                    })
                }
                // Resmic's code leaves the item `Date:` empty, and writes no date elsewhere in the mail. So a date in another
                // place is not from Resmic.
                PaymentField::Time if item.is_empty() => fields.time.is_some(),
                PaymentField::Time => {
                    differs(values::parse_time(item), fields.time.as_ref(), |a, b| minute_of(*a) == minute_of(*b))
                }
                _ => false,
            };
            if differs {
                let message = format!("{}: the published list has {item:?}, but another value is visible", field.key());
                self.report(ReasonCode::Conflict, message);
            }
        }
    }

    /// Checks that each dollar amount in `titles` equals `amount`, unless `amount` is in another currency.
    pub(crate) fn check_titles(&mut self, titles: &[&String], amount: Option<&Amount>) {
        let dollars = amount.filter(|a| a.currency.as_deref().is_none_or(|c| c == "USD"));
        for title in titles {
            for dollars_in_title in values::dollar_amounts(title) {
                if let Some(amount) = dollars.filter(|amount| !same_amount(&amount.digits, &dollars_in_title)) {
                    let message =
                        format!("amount: {:?} in the mail and {dollars_in_title:?} in {title:?}", amount.digits);
                    self.report(ReasonCode::Conflict, message);
                }
            }
        }
    }

    /// Checks that each shortened value such as `0xa43d…8db2` has the beginning and the end of the full value. If the mail has
    /// no full value, the shortened value is a problem.
    fn check_shortened(&mut self, field: PaymentField, full: Option<&str>) {
        for found in self.found.iter().filter(|f| f.field == field && !f.quoted && is_shortened(field, &f.value)) {
            let fits = shortened_ends(&found.value).zip(full).is_some_and(|((start, end), full)| {
                let full = full.to_ascii_lowercase();
                full.starts_with(&start.to_ascii_lowercase()) && full.ends_with(&end.to_ascii_lowercase())
            });
            if fits {
                self.note(found, "agrees, shortened");
                continue;
            }
            let code = if full.is_some() { ReasonCode::Conflict } else { ReasonCode::Unreadable };
            self.note(found, "shortened");
            self.report(code, format!("{}: only a shortened value, {:?} at {}", field.key(), found.value, found.place));
        }
    }

    /// Checks that the currency of the amount is the dollar or the token. In a mail without a token, the currency may be any
    /// known token.
    fn check_amount_and_token(&mut self, fields: &AgreedFields) {
        let currency = fields.amount.as_ref().and_then(|a| a.currency.as_deref()).filter(|c| *c != "USD");
        match (currency, fields.token.as_deref()) {
            (Some(currency), Some(token)) if !same_token(currency, token) => {
                self.report(ReasonCode::Conflict, format!("the amount is in {currency:?}, but the token is {token:?}"));
            }
            (Some(currency), None) if !values::is_known_token(currency) => {
                self.report(ReasonCode::Unreadable, format!("amount: {currency:?} is an unknown currency"));
            }
            _ => {}
        }
    }

    /// Stores a problem in `problem`, unless `problem` already has a problem that is at least as important.
    fn report(&mut self, code: ReasonCode, message: String) {
        // A conflict is more important than an unreadable value.
        let outweighs = |known: &Reason| known.code != ReasonCode::Conflict && code == ReasonCode::Conflict;
        if self.problem.as_ref().is_none_or(outweighs) {
            self.problem = Some(Reason::new(code, message));
        }
    }

    /// Adds the value and its use to `notes`, which `parse --explain` prints.
    fn note(&mut self, found: &FoundValue, usage: &'static str) {
        self.notes.push(ValueNote {
            field: found.field.key(),
            value: found.value.clone(),
            place: found.place.clone(),
            usage,
        });
    }
}

/// Whether `item`, a value in the list in Resmic's payment mail, differs from the agreed value of its field. False if the item
/// cannot be parsed, or if the field has no value.
fn differs<T>(item: Result<T, String>, value: Option<&T>, same: impl Fn(&T, &T) -> bool) -> bool {
    item.ok().zip(value).is_some_and(|(item, value)| !same(&item, value))
}

fn is_same_amount(a: &Amount, b: &Amount) -> bool {
    let currencies = a.currency.as_ref().zip(b.currency.as_ref());
    same_amount(&a.digits, &b.digits) && currencies.is_none_or(|(a, b)| same_token(a, b))
}

fn is_same_identifier(a: &str, b: &str) -> bool {
    model::fold_hash(a) == model::fold_hash(b)
}

/// The number of whole minutes since 1970. Times are compared without their seconds, because the time format of the webhook
/// has no seconds.
fn minute_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(60)
}

/// Returns the transaction hash of a link to an explorer. Other texts are returned unchanged.
fn unwrap_explorer_link(text: &str) -> String {
    values::parse_explorer_link(text).map_or_else(|| text.to_owned(), |(_, hash)| hash)
}

/// Whether a value is from a header line of a quoted mail. Header lines can have the same labels as a payment: `From: a@b`,
/// `Received: from x by y`.
fn is_mail_header(found: &FoundValue) -> bool {
    let value = found.value.as_str();
    match found.field {
        PaymentField::Wallet => value.contains('@'),
        PaymentField::Amount => value.starts_with("from ") || value.starts_with("by "),
        _ => false,
    }
}

/// Whether a text below a label looks like the label's value: one word, a text that begins with a number, or a text with a
/// part of a hash. Other texts of several words do not look like values.
fn looks_like_value(value: &str) -> bool {
    let is_piece = |word: &str| word.len() >= 20 && word.bytes().all(|b| b.is_ascii_alphanumeric());
    !value.contains(' ')
        || value.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '€' | '£'))
        || value.split(' ').any(is_piece)
}

/// Whether the value of a chain or token field looks like a name; true for all other fields. Only a value below its label
/// is checked, because a text below a label can be unrelated to the label.
fn is_plausible_name(found: &FoundValue) -> bool {
    let text = found.value.trim();
    match found.field {
        PaymentField::Token => {
            values::is_known_token(text)
                || (2..=12).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'.')
        }
        PaymentField::Blockchain => {
            let mut words = text.split(' ');
            let is_capitalised = words.all(|w| w.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit()));
            model::KNOWN_CHAINS.contains(&model::spell_chain(text).as_str())
                || is_capitalised && text.split(' ').count() <= 3
        }
        _ => true,
    }
}

fn is_shortened(field: PaymentField, value: &str) -> bool {
    matches!(field, PaymentField::Hash | PaymentField::Wallet) && shortened_ends(value).is_some()
}

/// The first byte of `…` in UTF-8.
const FIRST_BYTE_OF_ELLIPSIS: u8 = 0xe2;

/// The parts of a shortened value before and after its dots.
fn shortened_ends(value: &str) -> Option<(&str, &str)> {
    // Most values contain neither a dot nor the first byte of `…`, so they need no further search.
    memchr::memchr2(b'.', FIRST_BYTE_OF_ELLIPSIS, value.as_bytes())?;
    let (start, end) = value.split_once('…').or_else(|| value.split_once("..."))?;
    let is_part = |text: &str| text.len() >= 3 && text.chars().all(|c| c.is_ascii_alphanumeric());
    if is_part(start) && is_part(end) { Some((start, end)) } else { None }
}
