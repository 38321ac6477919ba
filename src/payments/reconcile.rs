//! Sessions that were registered after their events: by whatever program, and then by hand.
//!
//! Triggers put each session that is inserted or changed into `sessions_to_reconcile`; here the events that it concerns are looked
//! at again. So nothing depends on who wrote the row, or on who was running when it was written.

use rusqlite::{Connection, OptionalExtension, params};

use super::conflicts::HoldReason;
use super::events::{self, Resolved};
use super::matching::{RegisteredSession, SessionSource};
use super::sessions::{self, FoundSession};
use super::stored_events;
use crate::db::{Error, Result, Store, StoreSettings, holds};
use crate::model::Event;

/// How many sessions one transaction looks at.
const BATCH: usize = 200;

/// What became of events when sessions were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Events that have a session now and had none.
    pub resolved: usize,
    /// Deliveries that may go now.
    pub released: usize,
    /// Deliveries that may not go any more: their event contradicts what is registered.
    pub held: usize,
    /// Events that contradict what is registered, and were delivered before: which, and how.
    pub too_late: Vec<String>,
}

/// What became of an event that a person gave a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The session that it had.
    pub before: Option<String>,
    /// Whether the session is registered.
    pub registered: bool,
    /// Deliveries that may go now.
    pub released: usize,
}

impl Store {
    /// Looks at the events of all sessions that were registered or changed since the last time.
    ///
    /// # Errors
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

    /// Lets go what was held for callbacks that are told of unresolved events by now: a changed configuration.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn release_unresolved(&self) -> Result<usize> {
        let senders: Vec<String> =
            self.settings.targets.iter().filter(|t| t.send_unresolved).map(|t| t.name.clone()).collect();
        let released = self
            .write(move |tx| senders.iter().map(|target| holds::release_unresolved(tx, target)).sum::<Result<usize>>())
            .await?;
        self.wake_outbox();
        Ok(released)
    }

    /// Gives an event its session, by a person's decision, and lets its deliveries go whatever held them.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no such event, its mail names another session, or a callback was told another, or is
    /// being told.
    pub async fn session_assign(&self, event_id: &str, session_id: &str) -> Result<Assigned> {
        let (event_id, session_id) = (event_id.trim().to_ascii_lowercase(), sessions::parse_session_id(session_id)?);
        let settings = self.settings.clone();
        let assigned = self
            .write(move |tx| {
                // What is registered by now the person may know of; looked at later, it would hold the event again.
                reconcile_all(tx, &settings)?;
                assign(tx, &event_id, &session_id)
            })
            .await?;
        self.wake_outbox();
        Ok(assigned)
    }
}

impl Reconciled {
    fn add(&mut self, more: Reconciled) {
        self.resolved += more.resolved;
        self.released += more.released;
        self.held += more.held;
        self.too_late.extend(more.too_late);
    }

    /// Both together.
    pub(super) fn and(mut self, more: Reconciled) -> Reconciled {
        self.add(more);
        self
    }
}

/// Looks at all sessions_to_reconcile sessions.
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

/// Looks at some sessions_to_reconcile sessions; also says how many they were.
pub(super) fn reconcile_some(tx: &Connection, settings: &StoreSettings) -> Result<(Reconciled, usize)> {
    // As bytes: SQLite takes any for a text.
    let mut statement = tx.prepare_cached("SELECT CAST(session_id AS BLOB) FROM sessions_to_reconcile LIMIT ?1")?;
    let ids: Vec<Vec<u8>> =
        statement.query_map(params![BATCH as i64], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut reconciled = Reconciled::default();
    for id in &ids {
        if let Some(session) = sessions::registered_session(tx, &String::from_utf8_lossy(id))? {
            copy_order_ref(tx, &session)?;
            for event_id in affected_events(tx, settings, &session)? {
                reconciled.add(reconcile_event(tx, settings, &event_id)?);
            }
        }
        tx.prepare_cached("DELETE FROM sessions_to_reconcile WHERE session_id = CAST(?1 AS TEXT)")?
            .execute(params![id])?;
    }
    Ok((reconciled, ids.len()))
}

/// Tells the events that a person has to decide about of which order their session is: all else of them stays.
fn copy_order_ref(tx: &Connection, session: &RegisteredSession) -> Result<()> {
    let sql = "UPDATE events SET order_ref = ?2 WHERE session_id = ?1 AND order_ref IS NULL AND hold IS NOT NULL";
    tx.prepare_cached(sql)?.execute(params![session.session_id, session.order_ref])?;
    Ok(())
}

/// Looks once more for the events that a session is the answer to: another that fitted them as well may be gone by now. What
/// is its own already stays as it is, and as a person may have decided.
pub(super) fn rematch(tx: &Connection, settings: &StoreSettings, session_id: &str) -> Result<Reconciled> {
    let mut reconciled = Reconciled::default();
    let Some(session) = sessions::registered_session(tx, session_id)? else { return Ok(reconciled) };
    for event_id in affected_events(tx, settings, &session)? {
        if event_state(tx, &event_id)?.is_some_and(|state| state.event.reading.session_id.is_none()) {
            reconciled.add(reconcile_event(tx, settings, &event_id)?);
        }
    }
    Ok(reconciled)
}

/// The events that a session may mean something for, in the order in which they came.
fn affected_events(tx: &Connection, settings: &StoreSettings, session: &RegisteredSession) -> Result<Vec<String>> {
    let matched = settings.matching.enabled && session.amount.is_some();
    let (from, to) = if matched { sessions::payment_window(session, settings) } else { (None, None) };
    let mut statement = tx.prepare_cached(
        "SELECT rowid AS n, event_id FROM events WHERE session_id = ?1
         UNION SELECT rowid, event_id FROM events WHERE order_ref = ?2 AND session_id IS NULL
         UNION SELECT rowid, event_id FROM events WHERE session_id IS NULL AND order_ref IS NULL AND tx_time BETWEEN ?3 AND ?4
         ORDER BY n",
    )?;
    let rows = statement.query_map(params![session.session_id, session.order_ref, from, to], |row| row.get(1))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A stored event, as far as its session is concerned.
struct EventState {
    event: Event,
    source: Option<String>,
    on_hold: bool,
    /// Some callback has it.
    delivered: bool,
    /// Some callback does not have it yet.
    open: bool,
    /// Some callback may be told of it right now.
    under_way: bool,
}

/// An attempt whose end is not recorded. None takes longer than the longest `timeout`; what is older was cut short.
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

/// Looks for an event's session again, and at what is registered for it.
fn reconcile_event(tx: &Connection, settings: &StoreSettings, event_id: &str) -> Result<Reconciled> {
    let mut reconciled = Reconciled::default();
    let Some(state) = event_state(tx, event_id)? else { return Ok(reconciled) };
    // What a person has to decide is theirs.
    if state.on_hold {
        return Ok(reconciled);
    }
    let Some(found) = sessions::find_session(tx, settings, &state.event)? else { return Ok(reconciled) };
    let had_none = state.event.reading.session_id.is_none();
    // What a callback was told of a session stays as it is; only those that were not told yet can be spared.
    if state.delivered && !(state.open && had_none) {
        let event = if had_none { events::with_session(state.event, Some(&found)) } else { state.event };
        if let Some(HoldReason::NeedsReview(reason)) = events::hold_reason(tx, event_id, &event, Some(&found))? {
            tracing::warn!(event_id, %reason, "delivered before its session was registered");
            reconciled.too_late.push(format!("{event_id}: {reason}"));
            reconciled.held = if state.open { holds::hold(tx, event_id, &reason)? } else { 0 };
        }
        if had_none {
            // All that it was told to hears no more of it, but another payment is that session's second.
            reconciled.resolved = 1;
            events::set_session(tx, event_id, &event, found.source)?;
        }
        return Ok(reconciled);
    }
    reconciled.resolved = usize::from(had_none);
    match events::resolve(tx, event_id, &state.event, Some(&found))? {
        Resolved::Released(n) => reconciled.released = n,
        Resolved::Held(n) => reconciled.held = n,
    }
    Ok(reconciled)
}

fn assign(tx: &Connection, event_id: &str, session_id: &str) -> Result<Assigned> {
    let refuse = |words: String| Err(Error::Refused(format!("event {event_id} {words}; nothing was changed")));
    let Some(state) = event_state(tx, event_id)? else {
        return refuse("is not there; `resmic-mailhook events` lists them".into());
    };
    let before = state.event.reading.session_id.clone();
    let other = before.as_deref().filter(|known| !known.eq_ignore_ascii_case(session_id));
    match other {
        Some(known) if state.source.as_deref() == Some(SessionSource::Mail.as_str()) => {
            return refuse(format!("is of session {known}: its mail says so"));
        }
        Some(known) if state.delivered => return refuse(format!("was delivered with session {known}")),
        Some(known) if state.under_way => {
            let until = "when that attempt has ended, try again";
            return refuse(format!("is being posted with session {known}, and may be accepted with it: {until}"));
        }
        _ => {}
    }
    let registered = sessions::registered_session(tx, session_id)?;
    let is_registered = registered.is_some();
    if other.is_some() || before.is_none() {
        replace_session(
            tx,
            event_id,
            state.event,
            FoundSession { session_id: session_id.to_owned(), source: SessionSource::Operator, registered },
        )?;
    }
    tx.prepare_cached("UPDATE events SET hold = NULL WHERE event_id = ?1")?.execute(params![event_id])?;
    Ok(Assigned { before, registered: is_registered, released: holds::release(tx, event_id)? })
}

/// Writes the session that a person chose, in place of any that was found.
fn replace_session(tx: &Connection, event_id: &str, event: Event, found: FoundSession) -> Result<()> {
    let source = found.source;
    tx.prepare_cached("UPDATE events SET session_id = NULL, session_source = NULL WHERE event_id = ?1")?
        .execute(params![event_id])?;
    events::update(tx, event_id, &events::with_session(event, Some(&found)), Some(source))
}
