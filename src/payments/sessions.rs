//! Finds the session of an event.

use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::matching::{self, SessionSource};
use super::{searches, stored_events};
use crate::db::{Error, Result, StoreSettings, parse_time};
use crate::model::{self, Event, RegisteredSession, iso};

/// The session that was found for an event, how the session was found, and its registered values.
pub(super) struct FoundSession {
    pub(super) session_id: String,
    pub(super) source: SessionSource,
    pub(super) registered: Option<RegisteredSession>,
}

/// Finds the session of an event by the first of these values that the event has: the session that the mail names; the order of
/// the signed address; the amount, if exactly one unpaid session matches. If `[resmic]` is configured, an event with a
/// transaction is matched by amount only after the search at Resmic's API has ended without a session.
pub(super) fn find_session(
    tx: &Connection,
    settings: &StoreSettings,
    id: &str,
    event: &Event,
) -> Result<Option<FoundSession>> {
    if let Some(session_id) = &event.payment.session_id {
        let registered = registered_session(tx, session_id)?;
        return Ok(Some(FoundSession { session_id: session_id.clone(), source: SessionSource::Mail, registered }));
    }
    if let Some(order_ref) = &event.order_ref {
        // The event's order is known, so the session is not matched by amount. A match by amount could choose a session of
        // another order.
        let sessions = sessions_of_order(tx, order_ref)?;
        let only = matching::session_of_order(event, &sessions, settings.matching.window);
        return Ok(only.map(|registered| found_session(registered.clone(), SessionSource::Address)));
    }
    if !settings.matching.enabled || searches::may_find_session(tx, settings, id, event)? {
        return Ok(None);
    }
    let open = unpaid_sessions(tx, event, settings)?;
    match matching::only_match(event, &open, settings.matching) {
        Some(only) if !has_rival(tx, settings, event, only)? => {
            Ok(Some(found_session(only.clone(), SessionSource::Match)))
        }
        _ => Ok(None),
    }
}

/// Whether another event without a session matches this session, too, or a pending event of this session has another transaction.
/// If there is such an event, it is unknown which payment is for the session.
fn has_rival(tx: &Connection, settings: &StoreSettings, event: &Event, session: &RegisteredSession) -> Result<bool> {
    let hash = event.payment.transaction_hash.as_deref().map(model::fold_hash);
    let is_another = |rival: &Event| rival.payment.transaction_hash.as_deref().map(model::fold_hash) != hash;
    let mut statement = tx.prepare_cached(
        "SELECT * FROM events WHERE session_id = ?1 AND status = 'pending' AND transaction_hash IS NOT NULL",
    )?;
    for rival in statement.query_map(params![session.session_id], stored_events::event_from_row)? {
        if is_another(&rival?) {
            return Ok(true);
        }
    }
    let (from, to) = payment_window(session, settings);
    let [low, amount, high] = sqlite_amounts(session.amount.as_deref());
    let mut statement = tx.prepare_cached(
        "SELECT * FROM events INDEXED BY events_unmatched WHERE session_id IS NULL AND order_ref IS NULL
           AND CAST(amount AS REAL) IN (?3, ?4, ?5) AND tx_time BETWEEN ?1 AND ?2",
    )?;
    for rival in statement.query_map(params![from, to, low, amount, high], stored_events::event_from_row)? {
        let rival = rival?;
        if is_another(&rival) && matching::may_pay(&rival, session, settings.matching) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the first and the last time at which a session may be paid, as text for SQL. The first time is a little too early, but
/// `matching` applies the exact rule to the events that the SQL query finds.
pub(super) fn payment_window(
    session: &RegisteredSession,
    settings: &StoreSettings,
) -> (Option<String>, Option<String>) {
    let from = session.created_at.checked_sub(SLACK).ok().map(iso);
    (from, session.created_at.checked_add(settings.matching.window).ok().map(iso))
}

/// How long before its registration a session may seem to be paid: a payment's time has no seconds, and clocks differ.
const SLACK: Duration = Duration::from_secs(120);

fn found_session(registered: RegisteredSession, source: SessionSource) -> FoundSession {
    FoundSession { session_id: registered.session_id.clone(), source, registered: Some(registered) }
}

/// The columns of the table `sessions` that [`read_session`] reads. `expires_at` is converted to UTC here, because a trigger
/// converts the times of inserted rows, but not the times of updated rows.
pub(super) const COLUMNS: &str = "session_id, order_ref, amount, blockchain, token, created_at,
    coalesce(strftime('%Y-%m-%dT%H:%M:%fZ', expires_at), expires_at) AS expires_at";

pub(super) fn registered_session(tx: &Connection, session_id: &str) -> Result<Option<RegisteredSession>> {
    let sql = format!("SELECT {COLUMNS} FROM sessions WHERE session_id = ?1");
    Ok(tx.prepare_cached(&sql)?.query_row(params![session_id], read_session).optional()?)
}

/// Returns the newest 100 sessions of an order. The `bool` is whether a completed event of the session is stored. Older sessions
/// are not read, because more than 100 sessions of one order would hardly lead to a clear choice.
fn sessions_of_order(tx: &Connection, order_ref: &str) -> Result<Vec<(RegisteredSession, bool)>> {
    let sql = format!(
        "SELECT {COLUMNS}, {COMPLETED} FROM sessions s WHERE order_ref = ?1 ORDER BY created_at DESC, rowid DESC LIMIT 100"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(params![order_ref], |row| Ok((read_session(row)?, row.get(7)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) const COMPLETED: &str =
    "EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.session_id AND e.status = 'completed')";

/// Returns the values that SQLite's `CAST(amount AS REAL)` may have for an amount, because SQLite and Rust may round the last bit
/// differently. After the SQL query, the module `matching` compares the decimal digits of the amounts.
pub(super) fn sqlite_amounts(amount: Option<&str>) -> [Option<f64>; 3] {
    match amount.and_then(|amount| amount.parse::<f64>().ok()) {
        Some(amount) => [Some(amount.next_down()), Some(amount), Some(amount.next_up())],
        None => [None; 3],
    }
}

/// Returns at most two unpaid sessions that match the event by amount, because two sessions already make the match ambiguous.
/// Leaves out the sessions for which Resmic has named a transaction, because the search at Resmic has found that none of these
/// transactions is the event's.
fn unpaid_sessions(tx: &Connection, event: &Event, settings: &StoreSettings) -> Result<Vec<RegisteredSession>> {
    let Some((from, to)) = registration_times(event, settings) else { return Ok(Vec::new()) };
    let may_be_named = settings.resmic.is_some() && event.payment.transaction_hash.is_some();
    let [low, amount, high] = sqlite_amounts(event.payment.amount.as_deref());
    let sql = format!(
        "SELECT {COLUMNS} FROM sessions s INDEXED BY sessions_by_amount WHERE amount IS NOT NULL
           AND CAST(amount AS REAL) IN (?3, ?4, ?5) AND created_at BETWEEN ?1 AND ?2 AND NOT {COMPLETED}"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let mut unpaid = Vec::new();
    for session in statement.query_map(params![from, to, low, amount, high], read_session)? {
        let session = session?;
        if matching::may_pay(event, &session, settings.matching)
            && !(may_be_named && searches::has_transaction(tx, &session.session_id)?)
        {
            unpaid.push(session);
        }
        if unpaid.len() == 2 {
            break;
        }
    }
    Ok(unpaid)
}

/// Returns the earliest and the latest registration time of a session that may be paid at the event's time. This function is the
/// inverse of [`payment_window`].
pub(super) fn registration_times(event: &Event, settings: &StoreSettings) -> Option<(String, String)> {
    let at = event.time()?;
    let from = at.checked_sub(settings.matching.window).map_or_else(|_| String::new(), iso);
    Some((from, at.checked_add(SLACK).map_or_else(|_| String::new(), iso)))
}

pub(super) fn read_session(row: &Row) -> rusqlite::Result<RegisteredSession> {
    Ok(RegisteredSession {
        session_id: text_column(row, "session_id")?.unwrap_or_default().to_ascii_lowercase(),
        order_ref: text_column(row, "order_ref")?,
        amount: text_column(row, "amount")?,
        blockchain: text_column(row, "blockchain")?,
        token: text_column(row, "token")?,
        // Other programs insert rows into `sessions`. An invalid time becomes 1970, so that the session counts as too old, or as
        // expired.
        created_at: parse_time(text_column(row, "created_at")?).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        expires_at: text_column(row, "expires_at")?
            .map(|end| parse_time(Some(end)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)),
    })
}

/// Reads a text column that other programs may have written. SQLite accepts text that is not UTF-8, such as Latin-1. Invalid
/// bytes become replacement characters, so a text with invalid bytes equals no valid value.
pub(super) fn text_column(row: &Row, column: &str) -> rusqlite::Result<Option<String>> {
    let value = row.get_ref(column)?;
    Ok(if let ValueRef::Text(bytes) = value { Some(String::from_utf8_lossy(bytes).into_owned()) } else { None })
}

/// Parses a session id, and returns it in lower case.
///
/// # Errors
///
/// [`Error::Value`] if `text` is not a UUID with hyphens.
pub(super) fn parse_session_id(text: &str) -> Result<String> {
    let hyphenated = Some(text.trim()).filter(|t| t.len() == 36).and_then(|t| uuid::Uuid::try_parse(t).ok());
    hyphenated.map(|id| id.to_string()).ok_or_else(|| {
        let example = "591abe63-aa61-411d-a419-0b546729bbd0";
        Error::Value(format!("{:?} is no session id; expected a UUID such as {example}", model::printable(text, 60)))
    })
}
