//! Compares the values that were found in a mail, and returns the fields of the notification.
//!
//! `consistency` compares all values of a field, `topic` classifies subject and headings, and `payment_status` combines
//! everything in a mail that states the payment's status.

mod consistency;
mod payment_status;
mod topic;

pub(crate) use consistency::{AgreedFields, ConsistencyCheck, indicate_payment};
pub(crate) use payment_status::{StatusStatements, visible_list_line};
pub(crate) use topic::{TitleMeaning, headings, other_mail_kind, title_meaning};
