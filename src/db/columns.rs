//! How values are written into columns and read from them.

use jiff::Timestamp;

use crate::model::iso;

/// The current time in the database's form.
pub(crate) fn current_time() -> String {
    iso(Timestamp::now())
}

/// A time from a column; `None` if it is NULL or not a time.
pub(crate) fn parse_time(text: Option<String>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok())
}
