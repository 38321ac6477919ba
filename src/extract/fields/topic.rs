//! Classifies a mail by its titles: the subject and the headings.

use std::sync::LazyLock;

use regex::Regex;

use crate::extract::values;
use crate::extract::views::{LineKind, View, ViewLine};
use crate::model::Status;

/// The meaning of a subject or heading that mentions a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TitleMeaning {
    /// The title states the status of the payment.
    States(Status),
    /// The title mentions a payment without a clear status.
    Unclear,
    /// The title mentions a payment that is not a plain payment, for example a refund or a partial payment. Or the title begins
    /// like the subject of a reply or a forwarded mail.
    Contradicts,
}

/// Words that mention a payment.
static PAYMENT: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(pay?ment?s?|paymets?|transactions?|deposit|transfer|paid)\b").ok());
/// Words that contradict a plain payment, such as `refund`, even if the title also contains a word of [`DONE`].
static NOT_PLAIN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(not|never|cannot|(ca|wo|is|are|was|were|has|have|had|do|does|did|could|would|should)n['’‘ʼ`´]?t|unpaid|underpaid|overpaid|incomplete|unsuccessful|refund(s|ed)?|revers(ed|al)|charge-?back|dispute[sd]?|partial(ly)?|duplicate)\b").ok()
});
/// Words in a title that describe a payment that has not happened: future, conditions, requests, questions, examples.
static NOT_HAPPENED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(without|will|could|would|(must|may|might|should|shall|can|to) be|complete (your|the|this)|almost|nearly|unless|until|once|if|when|how|why|what|test|example|sample|demo|preview)\b|\bno (pay?ment?|transaction)").ok()
});
static DONE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(received|completed?|successful(ly)?|succeeded|confirmed|paid)\b").ok());
static FAILED: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(failed|failure|expired|cancell?ed|declined|rejected|timed out)\b").ok());
static PENDING: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(pending|processing|awaiting|in progress|unconfirmed)\b").ok());

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|p| p.is_match(text))
}

/// The meaning of a subject or a heading; `None` if it does not mention a payment, or has more than 200 bytes.
pub(crate) fn title_meaning(text: &str) -> Option<TitleMeaning> {
    if text.len() > 200 || !matches(&PAYMENT, text) {
        return None;
    }
    if is_relayed(text) || matches(&NOT_PLAIN, text) {
        return Some(TitleMeaning::Contradicts);
    }
    let patterns = [(&DONE, Status::Completed), (&FAILED, Status::Failed), (&PENDING, Status::Pending)];
    let mut stated = patterns.iter().filter(|(pattern, _)| matches(pattern, text)).map(|(_, status)| *status);
    match (stated.next(), stated.next()) {
        (Some(status), None) if !matches(&NOT_HAPPENED, text) && has_no_other_sign(status, text) => {
            Some(TitleMeaning::States(status))
        }
        _ => Some(TitleMeaning::Unclear),
    }
}

/// Whether a text is the subject of a reply or a forwarded mail, which repeats another mail.
fn is_relayed(text: &str) -> bool {
    let start = text.trim_start().as_bytes();
    let begins = |mark: &str| start.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark.as_bytes()));
    ["re:", "fw:", "fwd:", "aw:", "wg:"].into_iter().any(begins)
}

/// Whether every sign in a text, such as `✅`, agrees with `status`. In `❌ Payment received`, the sign contradicts the words.
fn has_no_other_sign(status: Status, text: &str) -> bool {
    values::status_of_signs(text).is_ok_and(|sign| sign.is_none_or(|sign| sign == status))
}

/// Words that describe an unfinished payment. Headings of completed payments do not contain these words.
static UNFINISHED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(on hold|held|review|blocked|frozen|suspended|delayed|waiting|due|requested|reminder|initiated|expected|problem|error|issue|required|missing|returned)\b").ok()
});
/// Words of mails that only show an example.
static EXAMPLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(test|example|sample|demo|preview)\b").ok());

/// Whether a text contradicts a completed payment. The text need not mention a payment: `Failed`, `An example`.
pub(crate) fn contradicts_payment(text: &str) -> bool {
    is_relayed(text)
        || !has_no_other_sign(Status::Completed, text)
        || [&NOT_PLAIN, &FAILED, &PENDING, &EXAMPLE].into_iter().any(|pattern| matches(pattern, text))
}

/// Whether a subject or heading contradicts a completed payment, or suggests that the payment is not completed yet:
/// `When will it arrive?`
pub(crate) fn title_contradicts_payment(title: &str) -> bool {
    contradicts_payment(title) || matches(&NOT_HAPPENED, title) || matches(&UNFINISHED, title)
}

/// The headings of a view, without quoted lines. In a view without marked headings, the short lines among the first three
/// lines count as headings.
pub(crate) fn headings(view: &View) -> Vec<String> {
    let own_lines = || view.lines.iter().filter(|l| !l.quoted);
    let marked: Vec<String> = own_lines().filter(|l| l.kind == LineKind::Heading).map(ViewLine::to_text).collect();
    if marked.is_empty() {
        own_lines().take(3).map(ViewLine::to_text).filter(|t| t.len() <= 80).collect()
    } else {
        marked
    }
}

/// The kinds of mails that are not notifications, each with words that occur in the subject or the headings of such mails.
const OTHER_MAILS: [(&str, &[&str]); 5] = [
    (
        "a login code",
        &[
            "login",
            "log in",
            "sign in",
            "sign-in",
            "verification",
            "verify",
            "one-time",
            "otp",
            "your code",
            "security code",
            "password",
        ],
    ),
    ("a welcome", &["welcome", "getting started", "get started", "thanks for signing up", "account created"]),
    ("about a trial or a plan", &["trial", "subscription", "your plan", "upgrade"]),
    (
        "a newsletter",
        &[
            "newsletter",
            "what's new",
            "whats new",
            "product update",
            "this month",
            "weekly",
            "digest",
            "webinar",
            "announcing",
            "introducing",
        ],
    ),
    ("about a payout or an invoice of the provider", &["invoice", "payout"]),
];

/// Returns the kind of a mail that is not a notification: the first of [`OTHER_MAILS`] that matches the subject or a heading. If
/// none matches, a mail with the word `unsubscribe` in any line is a newsletter.
pub(crate) fn other_mail_kind(texts: &[String], views: &[View]) -> Option<&'static str> {
    let lowercase: Vec<String> = texts.iter().map(|t| t.to_lowercase().replace('’', "'")).collect();
    let found_kind =
        OTHER_MAILS.iter().find(|(_, words)| words.iter().any(|w| lowercase.iter().any(|t| t.contains(w))));
    if let Some((kind, _)) = found_kind {
        return Some(kind);
    }
    let unsubscribe = views.iter().flat_map(|v| &v.lines).any(|l| l.to_text().to_lowercase().contains("unsubscribe"));
    if unsubscribe { Some("a newsletter") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_titles_contradict_a_completed_payment() {
        for title in [
            "Failed",
            "Money has not arrived",
            "Pending",
            "Fwd: Money has arrived",
            "An example",
            "When will it arrive?",
            "Payment on hold",
            "❌ Money",
            "Payment received or failed",
        ] {
            assert!(title_contradicts_payment(title), "{title}");
        }
        for title in ["Money has arrived", "Payment update", "You got $20", "Cha-ching!", "New payment"] {
            assert!(!title_contradicts_payment(title), "{title}");
        }
    }

    #[test]
    fn a_title_states_one_status_or_none() {
        use TitleMeaning::{Contradicts, States, Unclear};
        let cases = [
            ("Paymet received $20 (via Resmic)", Some(States(Status::Completed))),
            ("Payment received", Some(States(Status::Completed))),
            ("Your payment was successful", Some(States(Status::Completed))),
            ("Payment failed", Some(States(Status::Failed))),
            ("Payment pending", Some(States(Status::Pending))),
            ("Payment not received", Some(Contradicts)),
            ("Partial payment received", Some(Contradicts)),
            ("Payment refunded", Some(Contradicts)),
            ("How your payment is processed", Some(Unclear)),
            ("Payment No. 7 received", Some(States(Status::Completed))),
            ("Payment received or failed", Some(Unclear)),
            ("Re: Payment received", Some(Contradicts)),
            ("Payment update", Some(Unclear)),
            ("✅ Payment received", Some(States(Status::Completed))),
            ("❌ Payment received", Some(Unclear)),
            ("Your login code", None),
            ("Payment wasn't received", Some(Contradicts)),
            ("Payment wasn’t received", Some(Contradicts)),
            ("Your payment couldn’t be completed", Some(Contradicts)),
            ("Payment won't be completed", Some(Contradicts)),
            ("Payments aren´t received", Some(Contradicts)),
            ("Payment hasnt been received", Some(Contradicts)), // codespell:ignore hasnt
            ("We want payments: one was received", Some(States(Status::Completed))),
            ("Payment must be completed today", Some(Unclear)),
            ("Payment to be received", Some(Unclear)),
            ("Complete your payment", Some(Unclear)),
            ("Payment almost complete", Some(Unclear)),
            ("Payment is held until it is confirmed", Some(Unclear)),
        ];
        for (text, expected) in cases {
            assert_eq!(title_meaning(text), expected, "{text}");
        }
    }
}
