//! What was found and where, for the person who asks how a mail was read. Put into words only then.

use std::fmt;

use crate::model::printable;

/// One value found in a mail, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The field, by the webhook's key.
    pub field: &'static str,
    /// The value as it stood there.
    pub value: String,
    /// Where it stood.
    pub place: Place,
    /// What became of it: `read`, or why it lost.
    pub fate: &'static str,
}

/// Where a value stood: view, layout, place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Beside, behind or below its label.
    Line {
        /// The view's kind.
        view: &'static str,
        /// Its line there, from 1.
        line: usize,
        /// How it stands to its label.
        layout: &'static str,
    },
    /// Under a key of an object.
    Key {
        /// The view's kind.
        view: &'static str,
        /// Which object of the view, from 1.
        object: usize,
        /// The key as it stands there.
        key: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { view, line, layout } => write!(f, "{view} line {line}, {layout}"),
            Place::Key { view, object, key } => write!(f, "{view} object {object}, key {}", printable(key, 40)),
        }
    }
}
