//! The values that the parser found in a mail, with their places. `parse --explain` prints these values. The reason of a
//! quarantined mail can also name the place of a value.

use std::fmt;

use crate::model::printable;

/// A value in a mail, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueNote {
    /// The name of the field in the webhook's JSON.
    pub field: &'static str,
    /// The text of the value, before it is parsed.
    pub value: String,
    /// The place of the value in the mail.
    pub place: ValuePlace,
    /// The use of the value: `used`, `agrees`, or the reason why it is not used.
    pub usage: &'static str,
}

/// The place of a value in a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValuePlace {
    /// A value after its label, in the next cell, below its label, or in a link.
    Line {
        /// The view's content type.
        view: &'static str,
        /// The line of the label or of the link in the view, from 1.
        line: usize,
        /// The position of the value relative to its label.
        layout: &'static str,
    },
    /// A value under a key of a JSON or JavaScript object.
    Key {
        /// The view's content type.
        view: &'static str,
        /// The number of the object in the view, from 1. Objects in quoted text are counted separately.
        object: usize,
        /// The key, spelled as in the mail.
        key: String,
    },
}

impl fmt::Display for ValuePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValuePlace::Line { view, line, layout } => write!(f, "{view} line {line}, {layout}"),
            ValuePlace::Key { view, object, key } => write!(f, "{view} object {object}, key {}", printable(key, 40)),
        }
    }
}
