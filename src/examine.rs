//! Decides the outcome of a mail from its bytes, DNS and the time.
//!
//! `trust` authenticates the unchanged bytes, and `extract` parses them. This module combines the two results: a mail becomes an
//! event only if it is trusted and its payment was parsed.

use jiff::Timestamp;
use mail_parser::{Message, MessageParser};

use crate::catch_panic::catch_panic;
use crate::extract::{self, NO_TEXT, Parsed, SignedFields};
use crate::model::{
    Authenticity, Envelope, Event, Examined, Judgement, PaymentDetails, RawMail, Reason, ReasonCode, TrustProof,
    printable,
};
use crate::payments;
use crate::trust::{self, Clock, Recipients, dns::Resolver};

/// An example of a notification, in the layout that Resmic has published.
const WARM_UP_MAIL: &[u8] = include_bytes!("../sample-mails/published/sepolia.eml");

/// The parsed content of a mail, before it is known whether the mail is trusted.
pub struct ParsedMail {
    signed: SignedFields,
    report: extract::ParseReport,
    envelope: Envelope,
    /// The time in the Date header.
    date: Option<Timestamp>,
}

/// The rules for the mails of one account.
pub struct Rules {
    /// The accepted senders and proofs.
    pub trust: trust::TrustSettings,
    /// The parser of the mails.
    pub parser: extract::MailParser,
    /// The account's own addresses.
    pub recipients: Recipients,
    /// The signed addresses, if they are configured.
    pub addresses: Option<payments::SignedAddresses>,
}

impl Rules {
    /// Authenticates and parses a mail, and decides its outcome.
    pub async fn examine(&self, mail: &RawMail, resolver: &Resolver, now: Timestamp) -> Examined {
        let authenticity = self.authenticate(mail, resolver, now).await;
        self.examine_with(mail, authenticity).0
    }

    /// The first half of an examination: authenticates a mail. The authentication needs DNS.
    pub async fn authenticate(&self, mail: &RawMail, resolver: &Resolver, now: Timestamp) -> Authenticity {
        let clock = Clock { now, received: mail.received_at };
        trust::authenticate(&mail.bytes, &self.recipients, &self.trust, resolver, clock).await
    }

    /// The second half of an examination: parses a mail as if all of its header were signed. The parsing does not need the result
    /// of [`Rules::authenticate`].
    #[must_use]
    pub fn parse(&self, mail: &RawMail) -> ParsedMail {
        self.parse_with(mail, SignedFields { subject: true })
    }

    fn parse_with(&self, mail: &RawMail, signed: SignedFields) -> ParsedMail {
        let (report, inspected) = self.parser.parse_and_inspect(&mail.bytes, signed, envelope);
        let (envelope, date) = inspected.unwrap_or_else(|| envelope_alone(&mail.bytes));
        ParsedMail { signed, report, envelope, date }
    }

    /// Parses a mail and decides its outcome with the given proof, without authentication: for a mail that an operator releases,
    /// and for `parse` without `--trust`.
    #[must_use]
    pub fn examine_trusted(&self, mail: &RawMail, proof: TrustProof) -> (Examined, extract::ParseReport) {
        self.examine_with(mail, Authenticity::Trusted(proof))
    }

    /// Parses an example mail, so that the regular expressions are compiled before the first real mail.
    pub fn warm_up(&self) {
        let signed = SignedFields { subject: true };
        drop(self.parser.parse_and_inspect(WARM_UP_MAIL, signed, envelope));
    }

    /// Parses a mail, and decides its outcome from the content and the given authenticity. Of a trusted mail, only signed header
    /// fields are used.
    #[must_use]
    pub fn examine_with(&self, mail: &RawMail, authenticity: Authenticity) -> (Examined, extract::ParseReport) {
        let parsed = self.parse_with(mail, signed_fields(&authenticity));
        self.combine(mail, authenticity, parsed)
    }

    /// Decides the outcome from the authenticity and the parsed content.
    ///
    /// The mail is parsed again if its Subject turned out not to be signed.
    #[must_use]
    pub fn combine(
        &self,
        mail: &RawMail,
        authenticity: Authenticity,
        parsed: ParsedMail,
    ) -> (Examined, extract::ParseReport) {
        let signed = signed_fields(&authenticity);
        // If `signed` and `parsed.signed` differ, the mail was parsed with its Subject, although the Subject is not signed.
        let parsed = if parsed.signed == signed { parsed } else { self.parse_with(mail, signed) };
        let ParsedMail { report, envelope, date, .. } = parsed;
        let is_truncated = mail.size > mail.bytes.len() as u64;
        let judgement = match (&report.parsed, &authenticity) {
            // The missing part of a truncated mail may contain the payment.
            (Parsed::NotAPayment(_) | Parsed::Empty, _)
                if is_truncated && trust::is_candidate(&mail.bytes, &self.trust) =>
            {
                Judgement::Quarantined(too_large(mail))
            }
            // The mail is not about a payment, so its sender does not matter.
            (Parsed::NotAPayment(reason), _) => Judgement::Ignored(reason.clone()),
            // A mail without text, for example an encrypted mail or a picture, needs review only if it is from Resmic.
            (Parsed::Empty, Authenticity::Rejected(_)) => {
                Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, NO_TEXT))
            }
            (Parsed::Empty, Authenticity::TempError(reason)) => Judgement::Deferred(reason.clone()),
            (Parsed::Empty, Authenticity::Trusted(_)) => {
                Judgement::Quarantined(Reason::new(ReasonCode::Unreadable, NO_TEXT))
            }
            // The bytes are no mail, so a missing proof does not explain what is wrong with them.
            (Parsed::Unreadable(reason), Authenticity::Rejected(_))
                if !is_truncated && reason.code == ReasonCode::Malformed && envelope == Envelope::default() =>
            {
                Judgement::Quarantined(reason.clone())
            }
            (_, Authenticity::Rejected(reason)) if !is_truncated => Judgement::Quarantined(reason.clone()),
            (_, Authenticity::TempError(reason)) if !is_truncated => Judgement::Deferred(reason.clone()),
            _ if is_truncated => Judgement::Quarantined(too_large(mail)),
            (Parsed::Payment(payment), Authenticity::Trusted(proof)) => self.event(payment, proof, date),
            (Parsed::Unreadable(reason), _) => Judgement::Quarantined(reason.clone()),
            (Parsed::Payment(_), _) => Judgement::Quarantined(Reason::new(ReasonCode::Untrusted, "no proof")),
        };
        let proof = if let Authenticity::Trusted(proof) = authenticity { Some(proof) } else { None };
        (Examined { judgement, proof, envelope }, report)
    }

    fn event(&self, payment: &PaymentDetails, proof: &TrustProof, date: Option<Timestamp>) -> Judgement {
        let order_ref = self.addresses.as_ref().and_then(|addresses| addresses.order_of(&proof.to));
        let header_time = date.filter(|_| payment.tx_time.is_none() && proof.signed_headers.contains("date"));
        Judgement::Event(Box::new(Event { payment: payment.clone(), header_time, order_ref }))
    }
}

/// The header fields that the parser may use. For a trusted mail, these are the signed fields. Any other mail is parsed with all
/// fields.
fn signed_fields(authenticity: &Authenticity) -> SignedFields {
    let proof = if let Authenticity::Trusted(proof) = authenticity { Some(proof) } else { None };
    SignedFields { subject: proof.is_none_or(|p| p.signed_headers.contains("subject")) }
}

fn too_large(mail: &RawMail) -> Reason {
    let message = format!("the mail has {} bytes and the account's max_size is {}", mail.size, mail.bytes.len());
    Reason::new(ReasonCode::TooLarge, message)
}

/// The header fields that are shown to people, and the time in the Date header. An event gets this time if Date is signed and the
/// mail states no payment time.
fn envelope(message: &Message<'_>) -> (Envelope, Option<Timestamp>) {
    let text = |name: &str| {
        let raw = message.header_raw(name)?;
        Some(printable(raw.split_whitespace().collect::<Vec<_>>().join(" ").trim(), 500)).filter(|t| !t.is_empty())
    };
    // If a mail has two Date fields, both are ignored, because programs disagree about which one to show, and perhaps only one of
    // them is signed. The parser also treats `Da te` as a Date.
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

/// The envelope of a mail that `extract` did not parse. After a panic in the parser, the envelope is empty.
fn envelope_alone(bytes: &[u8]) -> (Envelope, Option<Timestamp>) {
    catch_panic(|| MessageParser::new().parse_headers(bytes).as_ref().map(envelope)).flatten().unwrap_or_default()
}

/// The time in a Date header (RFC 5322, 3.3). `None` if the time zone is unknown, because the date parsers would assume UTC.
fn header_date(raw: &str) -> Option<Timestamp> {
    let plain = raw.split('(').next().unwrap_or_default().trim();
    let zone = plain.rsplit(' ').next().unwrap_or_default();
    let is_known_zone = zone.starts_with(['+', '-']) || matches!(zone, "GMT" | "UT" | "UTC" | "Z");
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    if is_known_zone { parser.parse_timestamp(plain).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SignedHeaders, Trust};

    #[test]
    fn only_resmics_textless_mails_need_review() {
        let trust = trust::TrustSettings { from: vec!["resmic.com".into()], ..trust::TrustSettings::default() };
        let parser = extract::MailParser::new(&extract::ExtractSettings::default());
        let rules = Rules { trust, parser, recipients: Recipients::default(), addresses: None };
        let bytes = b"From: a@resmic.com\r\nSubject: News\r\nContent-Type: text/html\r\n\r\n<img src='x'>".to_vec();
        let origin = crate::model::Origin { account: "a".into(), mailbox: "INBOX".into(), uid: None };
        let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
        let becomes = |authenticity| rules.examine_with(&mail, authenticity).0.judgement;
        let proof = TrustProof {
            trust: Trust::Dkim,
            domain: None,
            selector: None,
            signed_headers: SignedHeaders::All,
            to: Vec::new(),
        };
        assert!(
            matches!(becomes(Authenticity::Trusted(proof)), Judgement::Quarantined(r) if r.code == ReasonCode::Unreadable)
        );
        let rejected = Authenticity::Rejected(Reason::new(ReasonCode::Untrusted, "forged"));
        assert!(matches!(becomes(rejected), Judgement::Ignored(r) if r.code == ReasonCode::NotAPayment));
        let temp_error = Authenticity::TempError(Reason::new(ReasonCode::Dns, "no answer"));
        assert!(matches!(becomes(temp_error), Judgement::Deferred(_)));
    }

    #[test]
    fn bytes_without_a_header_are_malformed() {
        let parser = extract::MailParser::new(&extract::ExtractSettings::default());
        let trust = trust::TrustSettings::default();
        let rules = Rules { trust, parser, recipients: Recipients::default(), addresses: None };
        let becomes = |bytes: &[u8]| {
            let origin = crate::model::Origin { account: "a".into(), mailbox: "import".into(), uid: None };
            let mail = RawMail { origin, size: bytes.len() as u64, bytes: bytes.to_vec(), received_at: None };
            let rejected = Authenticity::Rejected(Reason::new(ReasonCode::Untrusted, "it has no From"));
            match rules.examine_with(&mail, rejected).0.judgement {
                Judgement::Quarantined(reason) => reason.code,
                other => panic!("{other:?}"),
            }
        };
        for bytes in [&b""[..], b"\r\n", b"Payment of $20 completed", b"X-Spam: no\r\n\r\nAmount: $20\r\n"] {
            assert_eq!(becomes(bytes), ReasonCode::Malformed, "{:?}", String::from_utf8_lossy(bytes));
        }
        let with_subject = b"Subject: Payment received\r\n\r\nStatus: completed\r\nAmount: $20\r\n";
        assert_eq!(becomes(with_subject), ReasonCode::Untrusted);
    }

    #[test]
    fn two_dates_are_ignored() {
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
    fn dates_need_a_known_zone() {
        let utc = |text| header_date(text).map(|t| t.to_string());
        assert_eq!(utc(" Wed, 05 Mar 2025 03:36:12 +0000\r\n").as_deref(), Some("2025-03-05T03:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 GMT (a comment)").as_deref(), Some("2025-03-05T03:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 +0200").as_deref(), Some("2025-03-05T01:36:12Z"));
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12 XQZ"), None);
        assert_eq!(utc("Wed, 05 Mar 2025 03:36:12"), None);
    }
}
