//! The values that were found and their places, for `parse --explain`. They are formatted only there.

use std::fmt;

use crate::model::printable;

/// A value in a mail, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueNote {
    /// The field, by the webhook's key.
    pub field: &'static str,
    /// The value as written.
    pub value: String,
    /// Its place.
    pub place: ValuePlace,
    /// The use of the value: `used`, `agrees`, or the reason why it is not used.
    pub usage: &'static str,
}

/// The place of a value in a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValuePlace {
    /// On the label's line, in the next cell, or below.
    Line {
        /// The view's content type.
        view: &'static str,
        /// Its line in the view, from 1.
        line: usize,
        /// Its position relative to the label.
        layout: &'static str,
    },
    /// Under a key of an object.
    Key {
        /// The view's content type.
        view: &'static str,
        /// The number of the object in the view, from 1.
        object: usize,
        /// The key as written.
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
