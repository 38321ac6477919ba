//! Reconciles events with sessions that were registered after the events, and with sessions that a person assigns.
//!
//! Triggers insert the id of each new or changed session into the table `sessions_to_reconcile`. So it does not matter which
//! program wrote the session, or whether the daemon was running.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::conflicts::HoldReason;
use super::events::{self, Resolved};
use super::matching::SessionSource;
use super::sessions::{self, FoundSession};
use super::{clearances, confirmations, inquiries, searches, stored_events};
use crate::db::{Error, Result, Store, StoreSettings, holds};
use crate::model::{Event, RegisteredSession};

/// The most sessions that `reconcile_some` reads from `sessions_to_reconcile` at once.
const BATCH: usize = 200;

/// The result of reconciling sessions with events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// The number of events that got a session.
    pub resolved: usize,
    /// The number of deliveries that were released.
    pub released: usize,
    /// The number of deliveries that were held because their event contradicts its session.
    pub held: usize,
    /// The events that contradict their session and were delivered before the session was registered. Each text is the event id
    /// and the contradiction.
    pub too_late: Vec<String>,
}

/// The result of [`Store::session_assign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The id of the session that the event had before the assignment.
    pub before: Option<String>,
    /// Whether the assigned session is registered.
    pub registered: bool,
    /// The number of deliveries that were released.
    pub released: usize,
}

impl Store {
    /// Compares each session in `sessions_to_reconcile` with its events: each session that any program has registered or changed
    /// since the previous call. Each SQLite transaction handles at most `BATCH` sessions.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn reconcile(&self) -> Result<Reconciled> {
        let mut total = Reconciled::default();
        loop {
            let settings = self.settings.clone();
            let (reconciled, looked_at) = self.write(move |tx| reconcile_some(tx, &settings)).await?;
            if reconciled.released + reconciled.held > 0 {
                self.wake_outbox();
            }
            total.add(reconciled);
            if looked_at < BATCH {
                return Ok(total);
            }
        }
    }

    /// Applies changes of the configuration to stored events and sessions: which targets wait for a session or for the chain,
    /// which chains are configured, and whether `[resmic]` is configured and requires an answer. Returns the number of released
    /// deliveries.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn apply_settings(&self) -> Result<usize> {
        let settings = self.settings.clone();
        let released = self
            .write(move |tx| {
                confirmations::adopt(tx, &settings)?;
                clearances::adopt(tx, &settings)?;
                inquiries::adopt(tx, &settings)?;
                holds::hold_all_for_chain(tx, &settings)?;
                holds::hold_all_for_resmic(tx)?;
                holds::release_all(tx, &settings)
            })
            .await?;
        self.wake_outbox();
        Ok(released)
    }

    /// Assigns a session to an event by the decision of an operator, and releases the event's deliveries.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if `session_id` is not a UUID. [`Error::Refused`] if the event does not exist, if its mail names another
    /// session, or if the event was delivered or is being delivered with another session.
    pub async fn session_assign(&self, event_id: &str, session_id: &str) -> Result<Assigned> {
        let (event_id, session_id) = (event_id.trim().to_ascii_lowercase(), sessions::parse_session_id(session_id)?);
        let settings = self.settings.clone();
        let assigned = self
            .write(move |tx| {
                // Reconcile the registered sessions before the assignment. If the sessions were reconciled after the assignment,
                // a registered session that contradicts the event would hold its deliveries again.
                reconcile_all(tx, &settings)?;
                assign(tx, &settings, &event_id, &session_id)
            })
            .await?;
        self.wake_outbox();
        Ok(assigned)
    }
}

impl Reconciled {
    fn add(&mut self, other: Reconciled) {
        self.resolved += other.resolved;
        self.released += other.released;
        self.held += other.held;
        self.too_late.extend(other.too_late);
    }

    /// Returns the sum of this result and `other`.
    pub(super) fn and(mut self, other: Reconciled) -> Reconciled {
        self.add(other);
        self
    }
}

/// Compares each session in the table `sessions_to_reconcile` with its events, and deletes the session's row in that table. The
/// table is read in batches of `BATCH` rows.
pub(super) fn reconcile_all(tx: &Connection, settings: &StoreSettings) -> Result<Reconciled> {
    let mut total = Reconciled::default();
    loop {
        let (reconciled, looked_at) = reconcile_some(tx, settings)?;
        total.add(reconciled);
        if looked_at < BATCH {
            return Ok(total);
        }
    }
}

/// Reconciles the events with at most `BATCH` sessions of the table `sessions_to_reconcile`. The second value is the number of
/// rows that were read from this table.
pub(super) fn reconcile_some(tx: &Connection, settings: &StoreSettings) -> Result<(Reconciled, usize)> {
    // The session ids are read as bytes, because SQLite accepts text that is not UTF-8.
    let mut statement = tx.prepare_cached("SELECT CAST(session_id AS BLOB) FROM sessions_to_reconcile LIMIT ?1")?;
    let ids: Vec<Vec<u8>> =
        statement.query_map(params![BATCH as i64], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut reconciled = Reconciled::default();
    for id in &ids {
        if let Some(session) = sessions::registered_session(tx, &String::from_utf8_lossy(id))? {
            copy_order_ref(tx, &session)?;
            inquiries::begin(tx, settings, &session.session_id)?;
            for event_id in affected_events(tx, settings, &session)? {
                searches::resume(tx, settings, &event_id)?;
                reconciled.add(reconcile_event(tx, settings, &event_id)?);
            }
        }
        tx.prepare_cached("DELETE FROM sessions_to_reconcile WHERE session_id = CAST(?1 AS TEXT)")?
            .execute(params![id])?;
    }
    Ok((reconciled, ids.len()))
}

/// Copies the order reference of a session to those events of the session that need review, because [`reconcile_event`] does not
/// change such events.
fn copy_order_ref(tx: &Connection, session: &RegisteredSession) -> Result<()> {
    let sql = "UPDATE events SET order_ref = ?2 WHERE session_id = ?1 AND order_ref IS NULL AND hold IS NOT NULL";
    tx.prepare_cached(sql)?.execute(params![session.session_id, session.order_ref])?;
    Ok(())
}

/// Searches again for the session of each event that has no session and may belong to `session_id`. An event may have no session
/// because two sessions matched it earlier. After a change of one of the two sessions, only one session may match the event.
/// Events that already have a session do not change.
pub(super) fn rematch(tx: &Connection, settings: &StoreSettings, session_id: &str) -> Result<Reconciled> {
    let mut reconciled = Reconciled::default();
    let Some(session) = sessions::registered_session(tx, session_id)? else { return Ok(reconciled) };
    for event_id in affected_events(tx, settings, &session)? {
        if event_state(tx, &event_id)?.is_some_and(|state| state.event.payment.session_id.is_none()) {
            reconciled.add(reconcile_event(tx, settings, &event_id)?);
        }
    }
    Ok(reconciled)
}

/// Selects the events that have no session, no order and no amount, and whose `tx_time` is between `?1` and `?2`.
pub(super) const WITHOUT_AMOUNT: &str = "SELECT rowid, event_id FROM events INDEXED BY events_unmatched
    WHERE session_id IS NULL AND order_ref IS NULL AND CAST(amount AS REAL) IS NULL AND tx_time BETWEEN ?1 AND ?2";

/// Selects the events that have no session and no order, and whose `tx_time` is between `?1` and `?2`. The index
/// `events_unmatched` begins with the amount, so the query uses the index `events_by_tx_time` over all events. If the merchant
/// registers a session immediately after its creation, the query reads only the events of the last two minutes.
pub(super) const ANY_AMOUNT: &str = "SELECT rowid, event_id FROM events INDEXED BY events_by_tx_time
    WHERE tx_time BETWEEN ?1 AND ?2 AND session_id IS NULL AND order_ref IS NULL";

/// Returns the ids of the events that have this session or may get it, in the order in which the events were stored.
fn affected_events(tx: &Connection, settings: &StoreSettings, session: &RegisteredSession) -> Result<Vec<String>> {
    let matched = settings.matching.enabled && session.amount.is_some() || settings.resmic.is_some();
    let (from, to) = if matched { sessions::payment_window(session, settings) } else { (None, None) };
    let [low, amount, high] = sessions::sqlite_amounts(session.amount.as_deref());
    let mut statement = tx.prepare_cached(
        "SELECT rowid, event_id FROM events WHERE session_id = ?1
         UNION SELECT rowid, event_id FROM events WHERE order_ref = ?2 AND session_id IS NULL
         UNION SELECT rowid, event_id FROM events INDEXED BY events_unmatched WHERE session_id IS NULL AND order_ref IS NULL
           AND CAST(amount AS REAL) IN (?5, ?6, ?7) AND tx_time BETWEEN ?3 AND ?4",
    )?;
    let parameters = params![session.session_id, session.order_ref, from, to, low, amount, high];
    let in_order = |row: &Row| Ok((row.get(0)?, row.get(1)?));
    let mut found: BTreeMap<i64, String> =
        statement.query_map(parameters, in_order)?.collect::<rusqlite::Result<_>>()?;
    if settings.resmic.is_some() {
        // If the session or an event has no amount, the amounts cannot differ. So the transaction that Resmic names for the
        // session may also be the transaction of these events.
        let sql = if session.amount.is_some() { WITHOUT_AMOUNT } else { ANY_AMOUNT };
        for event in tx.prepare_cached(sql)?.query_map(params![from, to], in_order)? {
            let (place, event_id) = event?;
            found.insert(place, event_id);
        }
    }
    Ok(found.into_values().collect())
}

/// The values of a stored event that decide whether the event's session may be changed.
struct EventState {
    event: Event,
    source: Option<String>,
    on_hold: bool,
    /// A handler has accepted a delivery of the event.
    delivered: bool,
    /// At least one delivery of the event has another state than `delivered`.
    open: bool,
    /// An attempt to deliver the event may still be running.
    under_way: bool,
}

/// Whether an attempt to deliver event `e` has no recorded end and began in the last 11 minutes. The longest `timeout` of a
/// target is ten minutes, so an older attempt was interrupted.
const UNDER_WAY: &str = "EXISTS (
    SELECT 1 FROM deliveries d JOIN attempts a ON a.delivery_id = d.id AND a.attempt = d.attempts
    WHERE d.event_id = e.event_id AND a.millis IS NULL AND a.at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-11 minutes'))";

fn event_state(tx: &Connection, event_id: &str) -> Result<Option<EventState>> {
    let found = tx
        .prepare_cached(&format!(
            "SELECT *, EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.event_id AND d.state = 'delivered') AS delivered,
               EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.event_id AND d.state <> 'delivered') AS open,
               {UNDER_WAY} AS under_way
             FROM events e WHERE event_id = ?1"
        ))?
        .query_row(params![event_id], |row| {
            Ok(EventState {
                event: stored_events::event_from_row(row)?,
                source: row.get("session_source")?,
                on_hold: row.get::<_, Option<String>>("hold")?.is_some(),
                delivered: row.get("delivered")?,
                open: row.get("open")?,
                under_way: row.get("under_way")?,
            })
        });
    Ok(found.optional()?)
}

/// Searches again for the session of a stored event, and compares the event with the session that is found.
pub(super) fn reconcile_event(tx: &Connection, settings: &StoreSettings, event_id: &str) -> Result<Reconciled> {
    let Some(state) = event_state(tx, event_id)? else { return Ok(Reconciled::default()) };
    // Only an operator decides about an event that needs review.
    if state.on_hold {
        return Ok(Reconciled::default());
    }
    match sessions::find_session(tx, settings, event_id, &state.event)? {
        Some(found) => give_session(tx, settings, event_id, state, &found),
        None => Ok(Reconciled::default()),
    }
}

/// Sets `session` as the session of an event without a session, because Resmic names the event's transaction for `session`.
pub(super) fn give_named_session(
    tx: &Connection,
    settings: &StoreSettings,
    event_id: &str,
    session: RegisteredSession,
) -> Result<Reconciled> {
    let state = event_state(tx, event_id)?.filter(|state| !state.on_hold && state.event.payment.session_id.is_none());
    let Some(state) = state else { return Ok(Reconciled::default()) };
    let found = FoundSession {
        session_id: session.session_id.clone(),
        source: SessionSource::Resmic,
        registered: Some(session),
    };
    give_session(tx, settings, event_id, state, &found)
}

fn give_session(
    tx: &Connection,
    settings: &StoreSettings,
    event_id: &str,
    state: EventState,
    found: &FoundSession,
) -> Result<Reconciled> {
    let mut reconciled = Reconciled::default();
    let had_none = state.event.payment.session_id.is_none();
    // A handler has accepted this event. The event also has a session already, or no other delivery remains. So the event keeps
    // its values. Only a missing session is stored, and the remaining deliveries can be held.
    if state.delivered && !(state.open && had_none) {
        let event = if had_none { events::with_session(state.event, Some(found)) } else { state.event };
        if let Some(HoldReason::NeedsReview(reason)) = events::hold_reason(tx, event_id, &event, Some(found))? {
            tracing::warn!(event_id, %reason, "the event was delivered before its session was registered, and contradicts it");
            reconciled.too_late.push(format!("{event_id}: {reason}"));
            reconciled.held = if state.open { holds::hold(tx, event_id, &reason)? } else { 0 };
        }
        if had_none {
            // The handlers do not get the event again. But the session is stored in `events`, so that a second payment of this
            // session can be recognised.
            reconciled.resolved = 1;
            events::set_session(tx, event_id, &event, found.source)?;
        }
        return Ok(reconciled);
    }
    reconciled.resolved = usize::from(had_none);
    match events::resolve(tx, settings, event_id, &state.event, Some(found))? {
        Resolved::Released(n) => reconciled.released = n,
        Resolved::Held(n) => reconciled.held = n,
    }
    Ok(reconciled)
}

fn assign(tx: &Connection, settings: &StoreSettings, event_id: &str, session_id: &str) -> Result<Assigned> {
    let refuse = |words: String| Err(Error::Refused(format!("event {event_id} {words}; nothing was changed")));
    let Some(state) = event_state(tx, event_id)? else {
        return refuse("is not there; `resmic-mailhook events` lists them".into());
    };
    let before = state.event.payment.session_id.clone();
    let other = before.as_deref().filter(|known| !known.eq_ignore_ascii_case(session_id));
    match other {
        Some(known) if state.source.as_deref() == Some(SessionSource::Mail.as_str()) => {
            return refuse(format!("belongs to session {known}: its mail says so"));
        }
        Some(known) if state.delivered => return refuse(format!("was delivered with session {known}")),
        Some(known) if state.under_way => {
            let until = "try again when that attempt has ended";
            return refuse(format!("is being posted with session {known}, and its handler may accept it; {until}"));
        }
        _ => {}
    }
    let registered = sessions::registered_session(tx, session_id)?;
    let is_registered = registered.is_some();
    if other.is_some() || before.is_none() {
        let source = SessionSource::Operator;
        let found = FoundSession { session_id: session_id.to_owned(), source, registered };
        let event = events::with_session(state.event, Some(&found));
        if state.delivered && !state.open {
            // The request body in `events.webhook` stays as the handlers received it.
            events::set_session(tx, event_id, &event, source)?;
        } else {
            replace_session(tx, settings, event_id, &event, source)?;
        }
    }
    tx.prepare_cached("UPDATE events SET hold = NULL WHERE event_id = ?1")?.execute(params![event_id])?;
    inquiries::settle(tx, session_id)?;
    Ok(Assigned { before, registered: is_registered, released: holds::release(tx, settings, event_id)? })
}

/// Replaces the session of a stored event by the session that the operator chose, also in the request body (`events.webhook`).
fn replace_session(
    tx: &Connection,
    settings: &StoreSettings,
    event_id: &str,
    event: &Event,
    source: SessionSource,
) -> Result<()> {
    tx.prepare_cached("UPDATE events SET session_id = NULL, session_source = NULL WHERE event_id = ?1")?
        .execute(params![event_id])?;
    events::update(tx, settings, event_id, event, Some(source))
}
