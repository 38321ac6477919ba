//! The registered sessions, and finding an event's among them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Result, Settings, moment};
use crate::model::Event;
use crate::session::{self, Registered, Source};

/// An event's session, and what is registered for it.
pub(super) struct Found {
    pub(super) session_id: String,
    pub(super) source: Source,
    pub(super) registered: Option<Registered>,
}

/// Finds the event's session: the mail's own word, else the signed address, else the only match.
pub(super) fn find(tx: &Connection, settings: &Settings, event: &Event) -> Result<Option<Found>> {
    if let Some(session_id) = &event.reading.session_id {
        let registered = by_id(tx, session_id)?;
        return Ok(Some(Found { session_id: session_id.clone(), source: Source::Mail, registered }));
    }
    if let Some(order_ref) = &event.order_ref {
        // The address names the order. Matching by amount must not find another order's session instead.
        return Ok(by_order(tx, order_ref)?.map(|registered| found(registered, Source::Address)));
    }
    if !settings.matching.enabled {
        return Ok(None);
    }
    let open = open_sessions(tx)?;
    Ok(session::matching(event, &open, settings.matching).map(|only| found(only.clone(), Source::Match)))
}

fn found(registered: Registered, source: Source) -> Found {
    Found { session_id: registered.session_id.clone(), source, registered: Some(registered) }
}

const COLUMNS: &str = "session_id, order_ref, amount, blockchain, token, created_at, expires_at";

fn by_id(tx: &Connection, session_id: &str) -> Result<Option<Registered>> {
    let sql = format!("SELECT {COLUMNS} FROM sessions WHERE session_id = ?1");
    Ok(tx.prepare_cached(&sql)?.query_row(params![session_id], registered).optional()?)
}

/// The session registered for an order; with several, the newest: a payer who begins anew abandons the one before.
fn by_order(tx: &Connection, order_ref: &str) -> Result<Option<Registered>> {
    let sql =
        format!("SELECT {COLUMNS} FROM sessions WHERE order_ref = ?1 ORDER BY created_at DESC, rowid DESC LIMIT 1");
    Ok(tx.prepare_cached(&sql)?.query_row(params![order_ref], registered).optional()?)
}

/// The sessions for which no completed payment is known.
fn open_sessions(tx: &Connection) -> Result<Vec<Registered>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM sessions s WHERE NOT EXISTS
           (SELECT 1 FROM events e WHERE e.session_id = s.session_id AND e.status = 'completed')"
    );
    Ok(tx.prepare_cached(&sql)?.query_map([], registered)?.collect::<rusqlite::Result<_>>()?)
}

fn registered(row: &Row) -> rusqlite::Result<Registered> {
    Ok(Registered {
        session_id: row.get(0)?,
        order_ref: row.get(1)?,
        amount: row.get(2)?,
        blockchain: row.get(3)?,
        token: row.get(4)?,
        // Others may insert here; a time that is none is taken as long ago, so that it matches nothing.
        created_at: moment(row.get(5)?).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        expires_at: moment(row.get(6)?),
    })
}
