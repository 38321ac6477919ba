//! What becomes of a mail? Bytes, DNS answers and `now` in, an outcome out.
//!
//! Trust judges the untouched bytes and extract reads them; here the two are put together. Only a mail that is
//! proven *and* read becomes an event.

use jiff::Timestamp;
use mail_parser::{Message, MessageParser};

use crate::catch_panic::catch_panic;
use crate::extract::{self, NO_TEXT, Parsed, SignedFields};
use crate::model::{
    Authenticity, Envelope, Event, Examined, Judgement, Proof, RawMail, Reading, Reason, ReasonCode, printable,
};
use crate::payments;
use crate::trust::{self, Clock, Recipients, dns::Resolver};

/// A notification as Resmic publishes it, which nobody sent.
const REHEARSAL: &[u8] = include_bytes!("../sample-mails/published/sepolia.eml");

/// What a mail says, whether or not it is believed.
pub struct ParsedMail {
    signed: SignedFields,
    report: extract::ParseReport,
    envelope: Envelope,
    /// Its Date.
    date: Option<Timestamp>,
}

/// The rules by which an account's mails are examined.
pub struct Rules {
    /// Whose mail may be believed.
    pub trust: trust::TrustSettings,
    /// How it is read.
    pub parser: extract::MailParser,
    /// The account's own addresses.
    pub recipients: Recipients,
    /// The signed addresses, if there are any.
    pub addresses: Option<payments::SignedAddresses>,
}

impl Rules {
    /// Examines a mail.
    pub async fn examine(&self, mail: &RawMail, resolver: &Resolver, now: Timestamp) -> Examined {
        let verdict = self.authenticate(mail, resolver, now).await;
        self.examine_with(mail, verdict).0
    }

    /// The one half of it: is it to be believed?
    pub async fn authenticate(&self, mail: &RawMail, resolver: &Resolver, now: Timestamp) -> Authenticity {
        let clock = Clock { now, received: mail.received_at };
        trust::authenticate(&mail.bytes, &self.recipients, &self.trust, resolver, clock).await
    }

    /// The other half, which need not wait for the first: what does it say, if all of its header may be read?
    #[must_use]
    pub fn parse(&self, mail: &RawMail) -> ParsedMail {
        self.parse_with(mail, SignedFields { subject: true })
    }

    fn parse_with(&self, mail: &RawMail, signed: SignedFields) -> ParsedMail {
        let (report, seen) = self.parser.parse_and_inspect(&mail.bytes, signed, envelope);
        let (envelope, date) = seen.unwrap_or_else(|| envelope_alone(&mail.bytes));
        ParsedMail { signed, report, envelope, date }
    }

    /// Reads a mail that a person vouches for, or that was judged before; nobody is asked whether to believe it.
    #[must_use]
    pub fn examine_trusted(&self, mail: &RawMail, proof: Proof) -> (Examined, extract::ParseReport) {
        self.examine_with(mail, Authenticity::Trusted(proof))
    }

    /// Reads a mail that comes from nobody and goes nowhere, so that what is made at the first use is there.
    pub fn warm_up(&self) {
        let signed = SignedFields { subject: true };
        drop(self.parser.parse_and_inspect(REHEARSAL, signed, envelope));
    }

    /// Puts together what was judged and what is read.
    #[must_use]
    pub fn examine_with(&self, mail: &RawMail, verdict: Authenticity) -> (Examined, extract::ParseReport) {
        let read = self.parse_with(mail, signed_fields(&verdict));
        self.combine(mail, verdict, read)
    }

    /// Puts together what was judged and what was read.
    #[must_use]
    pub fn combine(&self, mail: &RawMail, verdict: Authenticity, read: ParsedMail) -> (Examined, extract::ParseReport) {
        let signed = signed_fields(&verdict);
        // Read before it was known that nobody vouches for its Subject.
        let read = if read.signed == signed { read } else { self.parse_with(mail, signed) };
        let ParsedMail { report, envelope, date, .. } = read;
        let cut = mail.size > mail.bytes.len() as u64;
        let judgement = match (&report.parsed, &verdict) {
            // What is not there may be the payment.
            (Parsed::NotAPayment(_) | Parsed::Empty, _) if cut && trust::is_candidate(&mail.bytes, &self.trust) => {
                Judgement::Quarantined(too_large(mail))
            }
            // Whoever sent it: it is not about a payment.
            (Parsed::NotAPayment(reason), _) => Judgement::Ignored(reason.clone()),
            // Anybody's may be a picture. A payment's may be one, too, or locked: only of Resmic's it is asked.
            (Parsed::Empty, Authenticity::Rejected(_)) => {
                Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, NO_TEXT))
            }
            (Parsed::Empty, Authenticity::TempError(reason)) => Judgement::Deferred(reason.clone()),
            (Parsed::Empty, Authenticity::Trusted(_)) => {
                Judgement::Quarantined(Reason::new(ReasonCode::Unreadable, NO_TEXT))
            }
            (_, Authenticity::Rejected(reason)) if !cut => Judgement::Quarantined(reason.clone()),
            (_, Authenticity::TempError(reason)) if !cut => Judgement::Deferred(reason.clone()),
            _ if cut => Judgement::Quarantined(too_large(mail)),
            (Parsed::Payment(reading), Authenticity::Trusted(proof)) => self.event(reading, proof, date),
            (Parsed::Unreadable(reason), _) => Judgement::Quarantined(reason.clone()),
            (Parsed::Payment(_), _) => Judgement::Quarantined(Reason::new(ReasonCode::Untrusted, "no proof")),
        };
        let proof = if let Authenticity::Trusted(proof) = verdict { Some(proof) } else { None };
        (Examined { judgement, proof, envelope }, report)
    }

    fn event(&self, reading: &Reading, proof: &Proof, date: Option<Timestamp>) -> Judgement {
        let order_ref = self.addresses.as_ref().and_then(|addresses| addresses.order_of(&proof.to));
        let header_time = date.filter(|_| reading.tx_time.is_none() && proof.signed_headers.contains("date"));
        Judgement::Event(Box::new(Event { reading: reading.clone(), header_time, order_ref }))
    }
}

/// What of the header may be read, after this verdict.
fn signed_fields(verdict: &Authenticity) -> SignedFields {
    let proof = if let Authenticity::Trusted(proof) = verdict { Some(proof) } else { None };
    SignedFields { subject: proof.is_none_or(|p| p.signed_headers.contains("subject")) }
}

fn too_large(mail: &RawMail) -> Reason {
    let words = format!("the mail has {} bytes and the account's max_size is {}", mail.size, mail.bytes.len());
    Reason::new(ReasonCode::TooLarge, words)
}

/// What the header says, for people; and its Date, for the event of a mail that says no time.
fn envelope(message: &Message<'_>) -> (Envelope, Option<Timestamp>) {
    let text = |name: &str| {
        let raw = message.header_raw(name)?;
        Some(printable(raw.split_whitespace().collect::<Vec<_>>().join(" ").trim(), 500)).filter(|t| !t.is_empty())
    };
    // Of two each program believes another, and only one may be signed: the parser takes `Da te` for one, too.
    let dates = message.headers_raw().filter(|(name, _)| name.trim().eq_ignore_ascii_case("date")).count();
    let sent_at = message.header_raw("Date").filter(|_| dates == 1).and_then(header_date);
    let envelope = Envelope {
        message_id: text("Message-ID"),
        sender: text("From"),
        recipient: text("To"),
        subject: message.subject().map(|s| printable(s, 500)),
        sent_at,
    };
    (envelope, sent_at)
}

/// The same of a mail that was not taken apart. A panic in the parser costs what the parser would have said, no more.
fn envelope_alone(bytes: &[u8]) -> (Envelope, Option<Timestamp>) {
    catch_panic(|| MessageParser::new().parse_headers(bytes).as_ref().map(envelope)).flatten().unwrap_or_default()
}

/// A Date header (RFC 5322, 3.3). One whose zone is not known is none: the parsers would take it for UTC.
fn header_date(raw: &str) -> Option<Timestamp> {
    let plain = raw.split('(').next().unwrap_or_default().trim();
    let zone = plain.rsplit(' ').next().unwrap_or_default();
    let known = zone.starts_with(['+', '-']) || matches!(zone, "GMT" | "UT" | "UTC" | "Z");
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    if known { parser.parse_timestamp(plain).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SignedHeaders, Trust};

    #[test]
    fn what_cannot_be_read_is_asked_about_if_it_is_resmics_and_only_then() {
        let trust = trust::TrustSettings { from: vec!["resmic.com".into()], ..trust::TrustSettings::default() };
        let parser = extract::MailParser::new(&extract::ExtractSettings::default());
        let rules = Rules { trust, parser, recipients: Recipients::default(), addresses: None };
        let bytes = b"From: a@resmic.com\r\nSubject: News\r\nContent-Type: text/html\r\n\r\n<img src='x'>".to_vec();
        let origin = crate::model::Origin { account: "a".into(), mailbox: "INBOX".into(), uid: None };
        let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
        let becomes = |verdict| rules.examine_with(&mail, verdict).0.judgement;
        let proof = Proof {
            trust: Trust::Dkim,
            domain: None,
            selector: None,
            signed_headers: SignedHeaders::All,
            to: Vec::new(),
        };
        assert!(
            matches!(becomes(Authenticity::Trusted(proof)), Judgement::Quarantined(r) if r.code == ReasonCode::Unreadable)
        );
        let refused = Authenticity::Rejected(Reason::new(ReasonCode::Untrusted, "forged"));
        assert!(matches!(becomes(refused), Judgement::Ignored(r) if r.code == ReasonCode::NotAPayment));
        let undecided = Authenticity::TempError(Reason::new(ReasonCode::Dns, "no answer"));
        assert!(matches!(becomes(undecided), Judgement::Deferred(_)));
    }

    #[test]
    fn of_two_dates_neither_is_believed() {
        let date = |fields: &str| envelope_alone(format!("From: a@b.example\r\n{fields}\r\n").as_bytes()).1;
        let signed = "Date: Wed, 05 Mar 2025 03:36:12 +0000\r\n";
        assert!(date(signed).is_some());
        for name in ["Date", "date ", "Da te"] {
            let other = format!("{name}: Thu, 05 Mar 2020 03:36:12 +0000\r\n");
            assert_eq!(date(&format!("{signed}{other}")), None, "{name}");
            assert_eq!(date(&format!("{other}{signed}")), None, "{name}");
        }
    }

    #[test]
    fn a_date_header_is_read_with_its_zone_or_not_at_all() {
        let utc = |text| header_date(text).map(|t| t.to_string());
        assert_eq!(utc(" Wed, 05 Mar 2025 03:36:12 +0000\r\n").as_deref(), Some("2025-03-05T03:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 GMT (a comment)").as_deref(), Some("2025-03-05T03:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 +0200").as_deref(), Some("2025-03-05T01:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 XQZ"), None);
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12"), None);
    }
}
