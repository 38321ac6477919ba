//! Decides whether a mail reports a payment, and parses the fields of the payment.

use mail_parser::Message;

use super::content::MailContent;
use super::explain::ValueNote;
use super::field::{FoundValue, PaymentField};
use super::fields::{
    AgreedFields, ConsistencyCheck, StatusStatements, TitleMeaning, headings, indicate_payment, other_mail_kind,
    title_meaning, visible_list_line,
};
use super::labels::{LabelTable, TemplateList, find_values};
use super::settings::ExtractSettings;
use super::views::ViewLine;
use super::{mime, values};
use crate::catch_panic::catch_panic;
use crate::model::{PaymentDetails, Reason, ReasonCode, Status};

/// The header fields whose text the parser may use. In a trusted mail, these are the signed fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedFields {
    /// Whether the parser may use the Subject.
    pub subject: bool,
}

/// The result of parsing a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The mail reports a payment; these are its fields.
    Payment(PaymentDetails),
    /// The mail is not about a payment, with the reason.
    NotAPayment(Reason),
    /// The mail has no readable text, and its signed subject does not mention a payment.
    Empty,
    /// The mail may report a payment, but has a problem: `unreadable`, `conflict`, `malformed` or `too-large`.
    Unreadable(Reason),
}

/// The result of parsing a mail, with the places of the values.
#[derive(Debug, Clone)]
pub struct ParseReport {
    /// The payment, or the reason why the mail has none.
    pub parsed: Parsed,
    /// The values that were found, used or not, for `parse --explain`.
    pub notes: Vec<ValueNote>,
}

/// The parser of mails. One instance parses many mails.
pub struct MailParser {
    table: LabelTable,
}

impl MailParser {
    /// Creates a parser with these settings.
    #[must_use]
    pub fn new(settings: &ExtractSettings) -> Self {
        MailParser { table: LabelTable::new(&settings.labels) }
    }

    /// Parses a mail, the bytes of an RFC 5322 message. If the parsing panics, the result is [`Parsed::Unreadable`] with the code
    /// `malformed`.
    #[must_use]
    pub fn parse(&self, mail: &[u8], signed: SignedFields) -> ParseReport {
        self.parse_and_inspect(mail, signed, |_| ()).0
    }

    /// Parses a mail, and calls `inspect` with the parsed message, so that the caller need not parse the header again.
    /// The second value is `None` if the message could not be parsed, or if it exceeds a limit that is checked before parsing.
    #[must_use]
    pub fn parse_and_inspect<T>(
        &self,
        mail: &[u8],
        signed: SignedFields,
        inspect: impl FnOnce(&Message<'_>) -> T,
    ) -> (ParseReport, Option<T>) {
        let mut inspected = None;
        let report = catch_panic(|| {
            let mut notes = Vec::new();
            let content = mime::parse_message(mail).and_then(|message| {
                inspected = Some(inspect(&message));
                MailContent::new(&message)
            });
            let parsed = match content {
                Ok(content) => self.parse_content(&content, signed, &mut notes),
                Err(reason) => Parsed::Unreadable(reason),
            };
            ParseReport { parsed, notes }
        });
        let report = report.unwrap_or_else(|| ParseReport {
            parsed: Parsed::Unreadable(Reason::new(ReasonCode::Malformed, "the parser failed")),
            notes: Vec::new(),
        });
        (report, inspected)
    }

    /// Parses the content of a mail: a complete payment, another mail, or a mail with a problem.
    fn parse_content(&self, content: &MailContent, signed: SignedFields, notes: &mut Vec<ValueNote>) -> Parsed {
        let found: Vec<FoundValue> = content.views.iter().flat_map(|view| find_values(view, &self.table)).collect();
        let titles = titles(content, signed);
        let meanings: Vec<(TitleMeaning, &String)> =
            titles.iter().filter_map(|title| Some((title_meaning(title)?, title))).collect();
        let mut check = ConsistencyCheck::new(&found, notes);
        let fields = check.agreed_fields();
        check.check_session_in_template(&self.table, content.template > TemplateList::Absent);
        check.check_template_items(&content.template_items, &fields);
        let statements = StatusStatements {
            fields: &fields,
            meanings: &meanings,
            titles: &titles,
            list_line: visible_list_line(content.template, &found),
        };
        check.check_titles(&statements.payment_titles(), fields.amount.as_ref());
        let problem = check.problem;
        if !indicate_payment(&found)
            && let Some(parsed) = classify_other_mail(content, &found, &titles, &meanings)
        {
            return parsed;
        }
        if let Some((code, message)) = content.views.iter().find_map(|view| view.problem) {
            return Parsed::Unreadable(Reason::new(code, message));
        }
        if let Some(reason) = problem {
            return Parsed::Unreadable(reason);
        }
        match statements.agreed_status(&content.views) {
            Ok(status) => complete_payment(fields, status),
            Err(reason) => Parsed::Unreadable(reason),
        }
    }
}

/// The subject, if it is signed, and the headings of all views.
fn titles(content: &MailContent, signed: SignedFields) -> Vec<String> {
    let subject = if signed.subject { content.subject.clone() } else { None };
    subject.into_iter().chain(content.views.iter().flat_map(headings)).collect()
}

/// The reason for a mail without readable text.
pub const NO_TEXT: &str = "it has no readable text";

fn unreadable(message: impl AsRef<str>) -> Parsed {
    Parsed::Unreadable(Reason::new(ReasonCode::Unreadable, message))
}

/// Classifies a mail whose values do not indicate a payment. Returns `None` if the caller must check the mail as if it reported a
/// payment.
fn classify_other_mail(
    content: &MailContent,
    found: &[FoundValue],
    titles: &[String],
    meanings: &[(TitleMeaning, &String)],
) -> Option<Parsed> {
    let not_a_payment = |message: String| Some(Parsed::NotAPayment(Reason::new(ReasonCode::NotAPayment, message)));
    // If the HTML contains the complete list in Resmic's payment mail, visible, hidden or commented out, the caller must check
    // the mail as if it reported a payment.
    if content.template == TemplateList::Complete
        || meanings.iter().any(|(meaning, _)| matches!(meaning, TitleMeaning::States(_)))
    {
        return None;
    }
    // Only payment mails contain a transaction hash. So the labels of this mail are missing in `LabelTable`, for example because
    // these labels are in another language.
    if content.views.iter().flat_map(|view| &view.lines).any(has_transaction_hash) {
        return Some(unreadable("it contains a transaction hash without a known label"));
    }
    if let Some(kind) = other_mail_kind(titles, &content.views) {
        return not_a_payment(format!("recognised as {kind}"));
    }
    let is_quoted = |f: &FoundValue| f.quoted && matches!(f.field, PaymentField::Hash | PaymentField::SessionId);
    if found.iter().any(is_quoted) {
        return Some(unreadable("its transaction or session is only in quoted or forwarded text"));
    }
    if let Some((_, title)) = meanings.first() {
        return Some(unreadable(format!("{title:?} mentions a payment, but no transaction or session was found")));
    }
    let is_empty = content.views.iter().all(|view| view.lines.is_empty());
    if is_empty && titles.is_empty() {
        return Some(unreadable(NO_TEXT));
    }
    // A view was cut at its limit. The text beyond this limit may contain the payment.
    if content.views.iter().filter_map(|view| view.problem).any(|(code, _)| code == ReasonCode::TooLarge) {
        return None;
    }
    if is_empty { Some(Parsed::Empty) } else { not_a_payment("it does not mention a payment".to_owned()) }
}

/// Whether a transaction hash is in a line or in one of its links, with or without a label.
fn has_transaction_hash(line: &ViewLine) -> bool {
    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split(|c: char| !c.is_ascii_alphanumeric())
    }
    // Links also contain long words that are not hashes. So a word of a link is checked only if it begins with `0x`.
    let mut linked = line.links.iter().flat_map(|link| words(link)).filter(|word| word.starts_with("0x"));
    line.cells.iter().flat_map(|cell| words(cell)).any(values::is_transaction_hash)
        || linked.any(values::is_transaction_hash)
}

/// Returns the payment if it has a transaction hash or a session id. A completed payment also needs an amount.
fn complete_payment(fields: AgreedFields, status: Status) -> Parsed {
    if fields.hash.is_none() && fields.session_id.is_none() {
        return unreadable("it has neither a transaction nor a session");
    }
    if status == Status::Completed && fields.amount.is_none() {
        return unreadable("it reports a completed payment without an amount");
    }
    let (amount, currency) = fields.amount.map(|a| (a.digits, a.currency)).unzip();
    Parsed::Payment(PaymentDetails {
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
