//! The contents of a mail from which the fields are parsed: the subject, the visible text, and the list in Resmic's payment mail
//! (the items from `Received:` on).

use mail_parser::Message;

use super::field::PaymentField;
use super::labels::{TemplateList, find_template_list, template_items};
use super::mime::{self, TextFormat, TextPart};
use super::views::{View, html_view, normalize_space, plain_text_view};
use crate::model::{Reason, ReasonCode};

/// The content of a mail from which the parser takes the fields of a payment.
pub(crate) struct MailContent {
    pub(crate) subject: Option<String>,
    /// The visible text of each text part that a mail program shows.
    pub(crate) views: Vec<View>,
    /// Whether the HTML contains the list in Resmic's payment mail, or a part of it, visible or hidden.
    pub(crate) template: TemplateList,
    /// The text after each label of the list in Resmic's payment mail, visible or hidden, with the field of the label.
    pub(crate) template_items: Vec<(PaymentField, String)>,
}

impl MailContent {
    /// Collects the content of a parsed mail.
    ///
    /// # Errors
    /// The mail is malformed or too large.
    pub(crate) fn new(message: &Message<'_>) -> Result<Self, Reason> {
        mime::check_structure(message)?;
        Ok(MailContent {
            subject: mime::only_subject(message).map(normalize_space),
            views: mime::shown_parts(message).map(|part| render(&part)).collect(),
            template: mime::html_texts(message).map(find_template_list).max().unwrap_or_default(),
            template_items: mime::html_texts(message).flat_map(template_items).collect(),
        })
    }
}

const UTF_7: (ReasonCode, &str) = (ReasonCode::Unreadable, "it is in UTF-7, which cannot be decoded reliably");

fn render(part: &TextPart<'_>) -> View {
    let mut view = match part.format {
        TextFormat::Plain(flowed) => plain_text_view(part.text, flowed),
        TextFormat::Html => html_view(part.text),
    };
    if part.is_utf_7 {
        view.problem = view.problem.or(Some(UTF_7));
    }
    view
}

#[cfg(test)]
mod tests {
    use super::super::views::TOO_MANY_LINES;
    use super::*;

    #[test]
    fn a_view_with_too_many_lines_is_cut() {
        for body in ["x\r\n".repeat(6_000), "<p>x".repeat(6_000), "<td>x".repeat(6_000)] {
            let kind = if body.starts_with('<') { "html" } else { "plain" };
            let mail = format!("From: a@b\r\nContent-Type: text/{kind}\r\n\r\n{body}");
            let content = mime::parse_message(mail.as_bytes()).and_then(|message| MailContent::new(&message));
            assert_eq!(content.map(|content| content.views[0].problem), Ok(Some(TOO_MANY_LINES)), "{}", &body[..9]);
        }
    }
}
