//! How values are written into columns and read from them.

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::{FromSqlError, Type};

use crate::model::iso;

/// The current time in the database's form.
pub(crate) fn current_time() -> String {
    iso(Timestamp::now())
}

/// A time from a column; `None` if it is NULL or not a time.
pub(crate) fn parse_time(text: Option<String>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok())
}

/// A value of a word-valued enum, such as an outcome or a state. The columns' CHECKs allow no other words.
pub(crate) fn word<T: FromStr<Err = String>>(row: &Row, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|message: String| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, FromSqlError::Other(message.into()).into())
    })
}
