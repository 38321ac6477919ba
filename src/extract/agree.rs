//! Compares all values that were found for a field. If they agree, they are the field's value; if two differ, the mail
//! is quarantined.

use jiff::Timestamp;

use super::labels::Table;
use super::values::{self, Amount, Doubt};
use super::{Field, Found, How, Note, links, times};
use crate::model::{self, Reason, ReasonCode, Status, same_amount, same_token};

/// The agreed fields, without the status in subject and headings.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) status: Option<Status>,
    pub(super) session_id: Option<String>,
    pub(super) amount: Option<Amount>,
    pub(super) blockchain: Option<String>,
    pub(super) token: Option<String>,
    pub(super) wallet: Option<String>,
    pub(super) hash: Option<String>,
    pub(super) time: Option<Timestamp>,
}

/// Whether these values occur only in a payment report, even if they cannot be parsed.
pub(super) fn are_of_a_payment(found: &[Found]) -> bool {
    let meant = |f: &&Found| {
        !f.quoted && f.how != How::Empty && !is_something_else(f) && (f.how != How::Below || is_meant(&f.value))
    };
    let has = |field: Field| found.iter().filter(meant).any(|f| f.field == field);
    let all = [Field::Amount, Field::Blockchain, Field::Token, Field::Wallet, Field::Status];
    has(Field::Hash)
        || has(Field::SessionId)
        || (has(Field::Amount) && (has(Field::Blockchain) || has(Field::Token)))
        || all.iter().filter(|field| has(**field)).count() >= 3
}

/// Compares the values of each field and keeps the first problem.
pub(super) struct Agreement<'a> {
    found: &'a [Found],
    notes: &'a mut Vec<Note>,
    /// The first problem.
    pub(super) trouble: Option<Reason>,
}

impl<'a> Agreement<'a> {
    pub(super) fn new(found: &'a [Found], notes: &'a mut Vec<Note>) -> Self {
        Agreement { found, notes, trouble: None }
    }

    /// Returns the fields with agreeing values. A disagreement becomes the problem.
    pub(super) fn fields(&mut self) -> Fields {
        let blockchain = self.one(Field::Blockchain, values::blockchain, |a, b| a == b);
        let family = values::family(blockchain.as_deref());
        let fields = Fields {
            status: self.one(Field::Status, values::status, |a, b| a == b),
            session_id: self.one(Field::SessionId, values::session_id, |a, b| a == b),
            amount: self.one(Field::Amount, values::amount, same_money),
            token: self.one(Field::Token, values::token, |a, b| same_token(a, b)),
            hash: self.one(Field::Hash, |text| values::hash(&from_link(text), family), |a, b| same_hex(a, b)),
            wallet: self.one(Field::Wallet, |text| values::wallet(text, family), |a, b| same_hex(a, b)),
            time: self.one(Field::Time, times::time, |a, b| minute(*a) == minute(*b)),
            blockchain,
        };
        self.shortened(Field::Hash, fields.hash.as_deref());
        self.shortened(Field::Wallet, fields.wallet.as_deref());
        self.amount_and_token(&fields);
        fields
    }

    /// Returns the only value of a field.
    fn one<T>(&mut self, field: Field, read: impl Fn(&str) -> Doubt<T>, same: impl Fn(&T, &T) -> bool) -> Option<T> {
        let mut agreed: Option<(T, &Found)> = None;
        for found in self.found.iter().filter(|f| f.field == field) {
            if found.quoted {
                self.note(found, "quoted or forwarded: somebody else's words");
                continue;
            }
            if found.how == How::Empty || is_shortened(field, &found.value) || is_something_else(found) {
                continue;
            }
            let value = match read(&found.value) {
                Ok(_) if found.how == How::Below && !is_plausible(found) => {
                    self.note(found, "not a value: it may be anything");
                    continue;
                }
                Ok(value) => value,
                // Any text for the status may contradict the heading, even a sentence.
                Err(_) if found.how == How::Below && field != Field::Status && !is_meant(&found.value) => {
                    self.note(found, "not a value: text below a heading");
                    continue;
                }
                Err(words) => {
                    self.note(found, "doubtful");
                    self.object(ReasonCode::Unreadable, format!("{}: {words}, at {}", field.key(), found.place));
                    continue;
                }
            };
            match &agreed {
                None => {
                    self.note(found, "read");
                    agreed = Some((value, found));
                }
                Some((known, _)) if same(known, &value) => self.note(found, "agrees"),
                Some((_, first)) => {
                    let words = format!(
                        "{}: {:?} at {} and {:?} at {}",
                        field.key(),
                        first.value,
                        first.place,
                        found.value,
                        found.place
                    );
                    self.note(found, "contradicts");
                    self.object(ReasonCode::Conflict, words);
                }
            }
        }
        if let Some((_, full)) = &agreed {
            self.stands_empty(full);
        }
        agreed.map(|(value, _)| value)
    }

    /// A field that is empty in one place and filled in another is a conflict. Resmic does not escape values in its
    /// HTML, so a payer can add list items through the token's name.
    fn stands_empty(&mut self, full: &Found) {
        let empty = self.found.iter().find(|f| f.field == full.field && f.how == How::Empty && !f.quoted);
        if let Some(empty) = empty {
            self.note(empty, "contradicts");
            let key = full.field.key();
            let words = format!("{key}: nothing at {} and {:?} at {}", empty.place, full.value, full.place);
            self.object(ReasonCode::Conflict, words);
        }
    }

    /// The published list has no session. A session in it may be an added list item, to settle an expensive order with
    /// a cheap payment. A merchant can allow it for a new layout with `[extract.labels]`.
    pub(super) fn sessions_are_out_of_place(&mut self, table: &Table, published: bool) {
        let own = |f: &&Found| !f.quoted;
        let session =
            self.found.iter().filter(own).find(|f| f.field == Field::SessionId && !table.is_configured(&f.label));
        if let Some(session) = session.filter(|_| published) {
            let words = format!("session_id: the published layout has none, and there is one at {}", session.place);
            self.object(ReasonCode::Conflict, words);
        }
    }

    /// The items of the published list, visible or hidden, must equal the parsed fields.
    pub(super) fn items(&mut self, items: &[(Field, String)], fields: &Fields) {
        for (field, item) in items {
            let differs = match field {
                Field::Amount => differs(values::amount(item), fields.amount.as_ref(), same_money),
                Field::Blockchain => differs(values::blockchain(item), fields.blockchain.as_ref(), |a, b| a == b),
                Field::Token => differs(values::token(item), fields.token.as_ref(), |a, b| same_token(a, b)),
                Field::Wallet => {
                    differs(values::any(values::wallet, item), fields.wallet.as_ref(), |a, b| same_hex(a, b))
                }
                Field::Hash => differs(values::any(values::hash, item), fields.hash.as_ref(), |a, b| same_hex(a, b)),
                // The published code leaves the date empty. A date in it was not written by Resmic.
                Field::Time if item.is_empty() => fields.time.is_some(),
                Field::Time => differs(times::time(item), fields.time.as_ref(), |a, b| minute(*a) == minute(*b)),
                _ => false,
            };
            if differs {
                let words = format!("{}: {item:?} in the published layout, and another is shown", field.key());
                self.object(ReasonCode::Conflict, words);
            }
        }
    }

    /// A dollar amount in the subject or a heading must equal the amount.
    pub(super) fn titles(&mut self, titles: &[&String], amount: Option<&Amount>) {
        let dollars = amount.filter(|a| a.currency.as_deref().is_none_or(|c| c == "USD"));
        for title in titles {
            for said in values::dollars(title) {
                if let Some(amount) = dollars.filter(|amount| !same_amount(&amount.digits, &said)) {
                    let words = format!("amount: {:?} in the mail and {said:?} in {title:?}", amount.digits);
                    self.object(ReasonCode::Conflict, words);
                }
            }
        }
    }

    /// A shortened value such as `0xa43d…8db2` must fit the full value. Alone it is a problem.
    fn shortened(&mut self, field: Field, whole: Option<&str>) {
        for found in self.found.iter().filter(|f| f.field == field && !f.quoted && is_shortened(field, &f.value)) {
            let fits = ends(&found.value).zip(whole).is_some_and(|((start, end), whole)| {
                let whole = whole.to_ascii_lowercase();
                whole.starts_with(&start.to_ascii_lowercase()) && whole.ends_with(&end.to_ascii_lowercase())
            });
            if fits {
                self.note(found, "agrees, shortened");
                continue;
            }
            let code = if whole.is_some() { ReasonCode::Conflict } else { ReasonCode::Unreadable };
            self.note(found, "shortened");
            self.object(code, format!("{}: only shortened, {:?} at {}", field.key(), found.value, found.place));
        }
    }

    fn amount_and_token(&mut self, fields: &Fields) {
        let named = fields.amount.as_ref().and_then(|a| a.currency.as_deref()).filter(|c| *c != "USD");
        match (named, fields.token.as_deref()) {
            (Some(named), Some(token)) if !same_token(named, token) => {
                self.object(ReasonCode::Conflict, format!("the amount is of {named:?} and the token is {token:?}"));
            }
            (Some(named), None) if !values::is_known_token(named) => {
                self.object(ReasonCode::Unreadable, format!("amount: {named:?} is no currency that is known"));
            }
            _ => {}
        }
    }

    fn object(&mut self, code: ReasonCode, words: String) {
        // A conflict is more important than an unreadable value.
        let outweighs = |known: &Reason| known.code != ReasonCode::Conflict && code == ReasonCode::Conflict;
        if self.trouble.as_ref().is_none_or(outweighs) {
            self.trouble = Some(Reason::new(code, words));
        }
    }

    fn note(&mut self, found: &Found, fate: &'static str) {
        self.notes.push(Note {
            field: found.field.key(),
            value: found.value.clone(),
            place: found.place.clone(),
            fate,
        });
    }
}

fn differs<T>(item: Doubt<T>, read: Option<&T>, same: impl Fn(&T, &T) -> bool) -> bool {
    item.ok().zip(read).is_some_and(|(item, read)| !same(&item, read))
}

fn same_money(a: &Amount, b: &Amount) -> bool {
    let currencies = a.currency.as_ref().zip(b.currency.as_ref());
    same_amount(&a.digits, &b.digits) && currencies.is_none_or(|(a, b)| same_token(a, b))
}

fn same_hex(a: &str, b: &str) -> bool {
    model::fold_hash(a) == model::fold_hash(b)
}

fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(60)
}

/// The transaction of an explorer link that is the field's value.
fn from_link(text: &str) -> String {
    links::explorer(text).map_or_else(|| text.to_owned(), |(_, hash)| hash)
}

/// Whether it is a header line of a quoted mail. These share labels with a payment: `From: a@b`, `Received: from x by
/// y`.
fn is_something_else(found: &Found) -> bool {
    let value = found.value.as_str();
    match found.field {
        Field::Wallet => value.contains('@'),
        Field::Amount => value.starts_with("from ") || value.starts_with("by "),
        _ => false,
    }
}

/// Whether a text below a label is meant as its value: one word, a number, or a text with a part of a hash. A sentence
/// is not.
fn is_meant(value: &str) -> bool {
    let is_piece = |word: &str| word.len() >= 20 && word.bytes().all(|b| b.is_ascii_alphanumeric());
    !value.contains(' ')
        || value.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '€' | '£'))
        || value.split(' ').any(is_piece)
}

/// Whether a text looks like the name of a chain or token. This matters where only its position makes it a value.
fn is_plausible(found: &Found) -> bool {
    let text = found.value.trim();
    match found.field {
        Field::Token => {
            values::is_known_token(text)
                || (2..=12).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'.')
        }
        Field::Blockchain => {
            let mut words = text.split(' ');
            let named = words.all(|w| w.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit()));
            model::KNOWN_CHAINS.contains(&model::spell_chain(text).as_str()) || named && text.split(' ').count() <= 3
        }
        _ => true,
    }
}

fn is_shortened(field: Field, value: &str) -> bool {
    matches!(field, Field::Hash | Field::Wallet) && ends(value).is_some()
}

/// The parts before and after the dots.
fn ends(value: &str) -> Option<(&str, &str)> {
    let (start, end) = value.split_once('…').or_else(|| value.split_once("..."))?;
    let plain = |t: &str| t.len() >= 3 && t.chars().all(|c| c.is_ascii_alphanumeric());
    (plain(start) && plain(end)).then_some((start, end))
}
