//! Combines everything that states the status: a status field, the published list, the subject and the headings.

use super::about::{self, Phrase};
use super::agree::Fields;
use super::mime::Shown;
use super::published::List;
use super::view::{Line, View};
use super::{Field, Found, How, Place, html};
use crate::model::{Reason, ReasonCode, Status};

/// The statements of a mail about the status.
pub(super) struct Statements<'a> {
    pub(super) fields: &'a Fields,
    /// The titles that mention a payment, with their meaning.
    pub(super) phrases: &'a [(Phrase, &'a String)],
    /// The subject, if it is signed, and the headings.
    pub(super) titles: &'a [String],
    /// The line of the published list's first item.
    pub(super) list: Option<usize>,
}

/// The line of the published list's first item, if the list is whole and that item is visible.
pub(super) fn list(shown: &Shown, found: &[Found]) -> Option<usize> {
    let is_first = |f: &&Found| f.field == Field::Amount && f.label == "received" && f.how == How::Beside && !f.quoted;
    let mut lines = found.iter().filter(is_first).filter_map(|f| match f.place {
        Place::Line { view: html::KIND, line, .. } => Some(line),
        _ => None,
    });
    lines.next().filter(|_| shown.list == List::Whole)
}

impl Statements<'_> {
    /// The titles that may name the payment's amount. Where only the list states the status, every title may.
    pub(super) fn titles_of_the_payment(&self) -> Vec<&String> {
        if self.list.is_some() && self.only_list_states_it() {
            return self.titles.iter().collect();
        }
        self.phrases.iter().map(|(_, title)| *title).collect()
    }

    /// The status. All statements must agree.
    pub(super) fn status(&self, views: &[View]) -> Result<Status, Reason> {
        let status = self.agreed()?;
        match self.list {
            Some(list) if self.only_list_states_it() => self.unopposed(views, list).map(|()| status),
            _ => Ok(status),
        }
    }

    fn agreed(&self) -> Result<Status, Reason> {
        let field = self.fields.status.map(|status| (status, "the status field".to_owned()));
        // Resmic sends the published layout for completed payments only.
        let list = self.list.map(|_| (Status::Completed, "the label \"Received:\"".to_owned()));
        let mut agreed: Option<(Status, String)> = None;
        let titles = self.phrases.iter().map(|(phrase, title)| match phrase {
            Phrase::Says(status) => Ok(Some((*status, format!("{title:?}")))),
            Phrase::Unclear => Ok(None),
            Phrase::Denies => {
                let words = format!("status: {title:?} says of a payment that it is not what it should be");
                Err(Reason::new(ReasonCode::Unreadable, words))
            }
        });
        for statement in [Ok(field), Ok(list)].into_iter().chain(titles) {
            let Some((status, place)) = statement? else { continue };
            match &agreed {
                None => agreed = Some((status, place)),
                Some((known, _)) if *known == status => {}
                Some((known, first)) => {
                    let words = format!("status: {known} by {first} and {status} by {place}");
                    return Err(Reason::new(ReasonCode::Conflict, words));
                }
            }
        }
        agreed.map(|(status, _)| status).ok_or_else(|| {
            Reason::new(ReasonCode::Unreadable, "it does not say whether the payment is completed, failed or pending")
        })
    }

    /// Whether neither a field nor a title states the status.
    fn only_list_states_it(&self) -> bool {
        self.fields.status.is_none() && !self.phrases.iter().any(|(phrase, _)| matches!(phrase, Phrase::Says(_)))
    }

    /// Checks that no title, and no text above the published list, contradicts a completed payment.
    fn unopposed(&self, views: &[View], list: usize) -> Result<(), Reason> {
        let html = views.iter().filter(|view| view.kind == html::KIND);
        let above = html.flat_map(|view| view.lines.iter().take(list.saturating_sub(1)));
        let mut above = above.filter(|line| !line.quoted).map(Line::text);
        let title = self.titles.iter().find(|title| about::title_objects(title)).cloned();
        match title.or_else(|| above.find(|text| about::objects(text))) {
            Some(text) => {
                let words = format!("status: the published list says completed, and {text:?} may say that it is not");
                Err(Reason::new(ReasonCode::Unreadable, words))
            }
            None => Ok(()),
        }
    }
}
