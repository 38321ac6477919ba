//! Converts values to and from the columns of the database.

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};

use crate::model::{Uid, UidValidity, iso};

/// The SHA-256 of no bytes, in hex: `mails.sha256` of a mail that the server has not delivered.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The current time as text, in the form in which the database stores times ([`iso`]).
pub(crate) fn current_time() -> String {
    iso(Timestamp::now())
}

/// Parses the time in a column; `None` if the column is NULL or its text is not a time.
pub(crate) fn parse_time(text: Option<String>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok())
}

/// Reads an enum that a column stores as a word, such as an outcome or a state. The column's CHECK allows no other words.
pub(crate) fn word<T: FromStr<Err = String>>(row: &Row, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|message: String| {
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, FromSqlError::Other(message.into()).into())
    })
}

impl ToSql for Uid {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Uid {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        u32::column_result(value).map(Uid)
    }
}

impl ToSql for UidValidity {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for UidValidity {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        u32::column_result(value).map(UidValidity)
    }
}
