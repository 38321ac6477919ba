//! Searches for the session of an event at Resmic's API, if the mail names no session. The daemon asks Resmic for the transaction
//! of each candidate: a registered session that the event may have paid.
//!
//! Resmic's answers are stored in the table `session_transactions`. The daemon asks again about a session only for another event,
//! and only if Resmic has named no transaction of the session so far.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::candidates;
use super::reconcile::{self, Reconciled};
use super::stored_events::event_from_row;
use crate::db::{Result, StoreSettings, current_time, parse_time};
use crate::http::MAX_RETRY_AFTER;
use crate::model::{Event, iso};
use crate::resmic::{ApiError, SessionChoice, SessionId, TransactionDetails, choose_session};

/// An event without a session, and the session about which the daemon must ask Resmic next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueSearch {
    /// The id of the event without a session.
    pub event_id: String,
    /// The session whose transaction may be the event's transaction.
    pub session: SessionId,
}

/// Whether the daemon searches for the event's session at Resmic's API.
fn applies(settings: &StoreSettings, event: &Event) -> bool {
    settings.resmic.is_some() && event.payment.session_id.is_none() && event.payment.transaction_hash.is_some()
}

/// Inserts the search for the session of an event into `session_searches`. If the search has ended, it begins again.
pub(super) fn begin(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event) -> Result<()> {
    if applies(settings, event) {
        let sql = "INSERT INTO session_searches (event_id, next_ask_at, since) VALUES (?1, ?2, ?2)
                   ON CONFLICT DO UPDATE SET result = NULL, next_ask_at = excluded.next_ask_at";
        tx.prepare_cached(sql)?.execute(params![id, current_time()])?;
    }
    Ok(())
}

/// Begins the search for an event's session again, because a session that the event may pay was registered or changed.
pub(super) fn resume(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<()> {
    if settings.resmic.is_none() {
        return Ok(());
    }
    match stored_event(tx, id)? {
        Some(event) => begin(tx, settings, id, &event),
        None => Ok(()),
    }
}

/// Whether Resmic may still name the event's session, or has named more than one session. An event is matched by amount only
/// after its search has ended without a session.
pub(super) fn may_find_session(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event) -> Result<bool> {
    if !applies(settings, event) {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM session_searches WHERE event_id = ?1 AND result = 'none')";
    let has_ended: bool = tx.prepare_cached(sql)?.query_row(params![id], |row| row.get(0))?;
    Ok(!has_ended)
}

/// Whether Resmic has named a transaction for this session.
pub(super) fn has_transaction(tx: &Connection, session_id: &str) -> Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM session_transactions WHERE session_id = ?1 AND transaction_hash IS NOT NULL)";
    Ok(tx.prepare_cached(sql)?.query_row(params![session_id], |row| row.get(0))?)
}

/// Selects the newest search for which the daemon must ask Resmic now: a due search. SQLite reads the index over `since` from its
/// newest entry, and skips searches that are not due. SQLite skips only the searches whose last request failed recently, and
/// those are few. The unary `+` keeps SQLite from using the index over `next_ask_at`. With the index over `next_ask_at`, SQLite
/// would sort all due searches, which may be many. A search is also due if its `next_ask_at` is after `?2`: see
/// [`too_far_ahead`].
pub(super) const DUE: &str =
    "SELECT event_id FROM session_searches WHERE next_ask_at IS NOT NULL AND (+next_ask_at <= ?1 OR +next_ask_at > ?2)
    ORDER BY since DESC, rowid DESC LIMIT 1";

/// Returns a time before which every pause that begins at `now` ends. A later `next_ask_at` was written while the clock was
/// ahead, so the daemon asks immediately.
pub(super) fn too_far_ahead(now: Timestamp) -> Timestamp {
    now.checked_add(MAX_RETRY_AFTER * 2).unwrap_or(Timestamp::MAX)
}

/// Returns the event of the newest due search, and the session about which the daemon must ask Resmic next. If no candidate of a
/// due search is left, this function ends the search. The second value counts the changes that the ended searches made to events
/// and deliveries.
pub(super) fn due(
    tx: &Connection,
    settings: &StoreSettings,
    now: Timestamp,
) -> Result<(Option<DueSearch>, Reconciled)> {
    let mut decided = Reconciled::default();
    loop {
        let newest = tx.prepare_cached(DUE)?.query_row(params![iso(now), iso(too_far_ahead(now))], |row| row.get(0));
        let Some(event_id): Option<String> = newest.optional()? else { return Ok((None, decided)) };
        match next_question(tx, settings, &event_id)? {
            Some(session) => return Ok((Some(DueSearch { event_id, session }), decided)),
            None => decided = decided.and(decide(tx, settings, &event_id)?),
        }
    }
}

fn stored_event(tx: &Connection, id: &str) -> Result<Option<Event>> {
    let found = tx.prepare_cached("SELECT * FROM events WHERE event_id = ?1")?.query_row(params![id], event_from_row);
    Ok(found.optional()?)
}

/// Returns the newest candidate about which the daemon must still ask Resmic for this event.
fn next_question(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<Option<SessionId>> {
    match stored_event(tx, id)?.filter(|event| applies(settings, event)) {
        Some(event) => candidates::newest_unasked(tx, id, &event, settings),
        None => Ok(None),
    }
}

/// Ends the search for an event's session, because Resmic has answered about all candidates. If Resmic names the event's
/// transaction for exactly one session, the event gets this session.
fn decide(tx: &Connection, settings: &StoreSettings, id: &str) -> Result<Reconciled> {
    let Some(event) = stored_event(tx, id)? else { return end(tx, id, "none") };
    let (mut sessions, mut answers) = (Vec::new(), Vec::new());
    if applies(settings, &event) {
        for session in candidates::find_all(tx, &event, settings)? {
            answers.extend(stored_answer(tx, &session.session_id)?);
            sessions.push(session);
        }
    }
    match choose_session(&event.payment, &answers) {
        SessionChoice::Exact(chosen) => {
            end(tx, id, "found")?;
            let chosen = chosen.to_string();
            match sessions.into_iter().find(|session| session.session_id == chosen) {
                Some(session) => {
                    tracing::info!(event_id = id, session_id = chosen, "Resmic names the event's session");
                    reconcile::give_named_session(tx, settings, id, session)
                }
                None => Ok(Reconciled::default()),
            }
        }
        SessionChoice::NoneHasIt => {
            end(tx, id, "none")?;
            reconcile::reconcile_event(tx, settings, id)
        }
        SessionChoice::Ambiguous => {
            tracing::warn!(event_id = id, "Resmic names the event's transaction for more than one session");
            end(tx, id, "ambiguous")
        }
    }
}

fn end(tx: &Connection, id: &str, result: &str) -> Result<Reconciled> {
    tx.prepare_cached("UPDATE session_searches SET result = ?2, next_ask_at = NULL WHERE event_id = ?1")?
        .execute(params![id, result])?;
    Ok(Reconciled::default())
}

fn stored_answer(tx: &Connection, session_id: &str) -> Result<Option<TransactionDetails>> {
    let sql = "SELECT transaction_hash, blockchain FROM session_transactions WHERE session_id = ?1";
    let found: Option<(Option<String>, Option<String>)> =
        tx.prepare_cached(sql)?.query_row(params![session_id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let answer = |(transaction_hash, blockchain)| {
        let session_id = session_id.parse().ok()?;
        let (token, from_wallet_address, amount) = (None, None, None);
        Some(TransactionDetails { session_id, transaction_hash, blockchain, token, from_wallet_address, amount })
    };
    Ok(found.and_then(answer))
}

/// Stores in `session_transactions` which transaction Resmic named for the session. Ends the search for the event's session if
/// Resmic has answered about every session that fits. An error that concerns all sessions is no answer, and only postpones the
/// search.
pub(super) fn record(
    tx: &Connection,
    settings: &StoreSettings,
    due: &DueSearch,
    answer: std::result::Result<TransactionDetails, ApiError>,
    now: Timestamp,
) -> Result<Reconciled> {
    if let Err(error) = &answer
        && error.concerns_all_sessions()
    {
        return postpone(tx, &due.event_id, error, now);
    }
    let details = answer.ok();
    let details = details.as_ref();
    tx.prepare_cached(
        "INSERT OR REPLACE INTO session_transactions (session_id, transaction_hash, blockchain, asked_for, asked_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        due.session.to_string(),
        details.and_then(|d| d.transaction_hash.as_deref()),
        details.and_then(|d| d.blockchain.as_deref()),
        due.event_id,
        iso(now),
    ])?;
    match next_question(tx, settings, &due.event_id)? {
        Some(_) => Ok(Reconciled::default()),
        None => decide(tx, settings, &due.event_id),
    }
}

fn postpone(tx: &Connection, id: &str, error: &ApiError, now: Timestamp) -> Result<Reconciled> {
    let since: Option<String> = tx
        .prepare_cached("SELECT since FROM session_searches WHERE event_id = ?1")?
        .query_row(params![id], |row| row.get(0))
        .optional()?;
    let next = next_ask(parse_time(since).unwrap_or(now), error.retry_after(), now);
    let sql = "UPDATE session_searches SET next_ask_at = ?2 WHERE event_id = ?1 AND next_ask_at IS NOT NULL";
    tx.prepare_cached(sql)?.execute(params![id, iso(next)])?;
    Ok(Reconciled::default())
}

/// Returns the time of the next inquiry for an event that has waited since `since`. The pause grows with the time that the event
/// has waited.
pub(super) fn next_ask(since: Timestamp, retry_after: Option<Duration>, now: Timestamp) -> Timestamp {
    const SHORTEST: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(3_600);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let pause = (waited / 4).clamp(SHORTEST, LONGEST).max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
    now.checked_add(pause).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_has_a_limit() {
        let now: Timestamp = "2025-03-05T03:36:00Z".parse().unwrap();
        let pause = |retry_after| next_ask(now, retry_after, now).duration_since(now).as_secs();
        assert_eq!(pause(None), 5);
        assert_eq!(pause(Some(Duration::from_secs(90))), 90);
        assert_eq!(pause(Some(Duration::from_secs(9_999_999_999))), 86_400);
        assert!(too_far_ahead(now) > next_ask(now, Some(Duration::MAX), now));
    }
}
