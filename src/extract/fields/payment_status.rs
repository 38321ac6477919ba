//! Combines everything in a mail that states the payment's status: a status field, the list in Resmic's payment mail, the subject
//! and the headings.

use super::consistency::AgreedFields;
use super::topic::{TitleMeaning, contradicts_payment, title_contradicts_payment};
use crate::extract::explain::ValuePlace;
use crate::extract::field::{FoundValue, PaymentField, ValuePosition};
use crate::extract::labels::TemplateList;
use crate::extract::views::{HTML, LineKind, View, ViewLine};
use crate::model::{Reason, ReasonCode, Status};

/// Everything in a mail that states the status of the payment.
pub(crate) struct StatusStatements<'a> {
    pub(crate) fields: &'a AgreedFields,
    /// The titles (subject and headings) that mention a payment, with their meaning.
    pub(crate) meanings: &'a [(TitleMeaning, &'a String)],
    /// All titles: the subject, if it is signed, and the headings.
    pub(crate) titles: &'a [String],
    /// The line number of `Received:`, the first item of the list in Resmic's payment mail; see `visible_list_line`.
    pub(crate) list_line: Option<usize>,
}

/// Returns the line number of `Received:`, the first item of the list in Resmic's payment mail. `None` if the list is not
/// complete, or if `Received:` is not visible.
pub(crate) fn visible_list_line(template: TemplateList, found: &[FoundValue]) -> Option<usize> {
    let is_first = |f: &&FoundValue| {
        f.field == PaymentField::Amount && f.label == "received" && f.position == ValuePosition::Adjacent && !f.quoted
    };
    let mut lines = found.iter().filter(is_first).filter_map(|f| match f.place {
        ValuePlace::Line { view: HTML, line, .. } => Some(line),
        _ => None,
    });
    if template == TemplateList::Complete { lines.next() } else { None }
}

impl StatusStatements<'_> {
    /// Returns the titles that may contain the payment's amount: those that mention a payment. If only the list in Resmic's
    /// payment mail states the status, all titles are returned.
    pub(crate) fn payment_titles(&self) -> Vec<&String> {
        if self.list_line.is_some() && self.only_list_states_status() {
            return self.titles.iter().collect();
        }
        self.meanings.iter().map(|(_, title)| *title).collect()
    }

    /// Returns the status on which the status field, the list and the titles agree. If only the list in Resmic's payment mail
    /// states the status, no title and no text above the list may contradict this status.
    pub(crate) fn agreed_status(&self, views: &[View]) -> Result<Status, Reason> {
        let status = self.stated_status()?;
        match self.list_line {
            Some(line) if self.only_list_states_status() => self.check_no_objection(views, line).map(|()| status),
            _ => Ok(status),
        }
    }

    /// Returns the status on which the status field, the list and the titles agree. The text above the list is not checked.
    fn stated_status(&self) -> Result<Status, Reason> {
        let field = self.fields.status.map(|status| (status, "the status field".to_owned()));
        // Resmic sends the list that begins with `Received:` for completed payments only.
        let list = self.list_line.map(|_| (Status::Completed, "the label \"Received:\"".to_owned()));
        let mut agreed: Option<(Status, String)> = None;
        let titles = self.meanings.iter().map(|(meaning, title)| match meaning {
            TitleMeaning::States(status) => Ok(Some((*status, format!("{title:?}")))),
            TitleMeaning::Unclear => Ok(None),
            TitleMeaning::Contradicts => {
                let message = format!("status: {title:?} does not describe a plain payment");
                Err(Reason::new(ReasonCode::Unreadable, message))
            }
        });
        for statement in [Ok(field), Ok(list)].into_iter().chain(titles) {
            let Some((status, place)) = statement? else { continue };
            match &agreed {
                None => agreed = Some((status, place)),
                Some((known, _)) if *known == status => {}
                Some((known, first)) => {
                    let message = format!("status: {known} according to {first}, {status} according to {place}");
                    return Err(Reason::new(ReasonCode::Conflict, message));
                }
            }
        }
        agreed.map(|(status, _)| status).ok_or_else(|| {
            Reason::new(ReasonCode::Unreadable, "it does not state whether the payment is completed, failed or pending")
        })
    }

    /// Whether neither the status field nor a title states the status.
    fn only_list_states_status(&self) -> bool {
        self.fields.status.is_none()
            && !self.meanings.iter().any(|(meaning, _)| matches!(meaning, TitleMeaning::States(_)))
    }

    /// Checks that no title, and no text above the list in Resmic's payment mail, contradicts a completed payment.
    fn check_no_objection(&self, views: &[View], list_line: usize) -> Result<(), Reason> {
        let html = || views.iter().filter(|view| view.content_type == HTML);
        // The line number does not say to which of several HTML parts it belongs, so all their text is checked.
        let length = if html().nth(1).is_none() { list_line.saturating_sub(1) } else { usize::MAX };
        let above = html().flat_map(|view| view.lines.iter().take(length));
        // A marked heading is one of the titles.
        let mut above = above.filter(|line| !line.quoted && line.kind != LineKind::Heading).map(ViewLine::to_text);
        let title = self.titles.iter().find(|title| title_contradicts_payment(title)).cloned();
        match title.or_else(|| above.find(|text| contradicts_payment(text))) {
            Some(text) => {
                let message = format!("status: the published list means completed, but {text:?} may contradict it");
                Err(Reason::new(ReasonCode::Unreadable, message))
            }
            None => Ok(()),
        }
    }
}
