//! Parses the fields of a notification: mail → MIME → views → labels → fields.
//!
//! The parser is pure: it gets bytes and returns a report. The room `trust` decides whether the mail is Resmic's.
//!
//! `mime` finds the text parts that a mail program shows, and `views` renders the parts as lines of visible text. `content`
//! collects these views and the subject. `labels` finds labels with their values, and `values` parses single values.
//! `fields` compares all values of a field, and everything that states the payment's status. `parser` decides whether the
//! mail reports a payment.

mod content;
mod explain;
mod field;
mod fields;
mod labels;
mod mime;
mod parser;
mod settings;
mod values;
mod views;

pub use explain::{ValueNote, ValuePlace};
pub use labels::LabelSettings;
pub use parser::{MailParser, NO_TEXT, ParseReport, Parsed, SignedFields};
pub use settings::ExtractSettings;
pub use views::{LineKind, View, ViewLine, html_view};
