//! Stores an event: finds its session, compares the event with the stored events, and writes its deliveries.

use rusqlite::{Connection, named_params, params};

use super::conflicts::{self, Classification, EventSource, HoldReason, StoredEvent};
use super::matching;
use super::sessions::{self, FoundSession};
use super::stored_events::related_events;
use super::{clearances, confirmations, searches};
use crate::db::{Result, StoreSettings, current_time, holds};
use crate::model::{DeliveryState, Event, Outcome, Reason, ReasonCode, iso};

/// The result of [`admit`]: the outcome of the mail, and the event that the mail made or repeats.
pub(super) struct Admitted {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<Reason>,
    pub(super) event_id: Option<String>,
    /// The id of the event's session, if the session is known.
    pub(super) session_id: Option<String>,
}

impl Admitted {
    pub(super) fn without_event(outcome: Outcome, reason: &Reason) -> Self {
        Admitted { outcome, reason: Some(reason.clone()), event_id: None, session_id: None }
    }
}

/// Stores the event of a mail as a new event, adds its values to a stored event, or quarantines the mail.
pub(super) fn admit(tx: &Connection, settings: &StoreSettings, parsed: &Event) -> Result<Admitted> {
    admit_from(tx, settings, parsed, EventSource::Mail)
}

/// Does the same as [`admit`] for an event from any source. For an event from Resmic's API, `session_source` becomes `resmic`.
pub(super) fn admit_from(
    tx: &Connection,
    settings: &StoreSettings,
    parsed: &Event,
    from: EventSource,
) -> Result<Admitted> {
    let Some(id) = parsed.id() else {
        let reason = Reason::new(ReasonCode::Unreadable, "it has neither a transaction nor a session");
        return Ok(Admitted::without_event(Outcome::Quarantined, &reason));
    };
    let id = id.to_string();
    let found = sessions::find_session(tx, settings, &id, parsed)?.map(|found| match from {
        EventSource::Mail => found,
        EventSource::Resmic => FoundSession { source: matching::SessionSource::Resmic, ..found },
    });
    let event = with_session(parsed.clone(), found.as_ref());
    let known = related_events(tx, &id, &event)?;
    let (found, event) = match found {
        Some(found) if belongs_to_other_session(&id, parsed, &found, &known) => (None, parsed.clone()),
        found => (found, event),
    };
    let session_id = event.payment.session_id.clone();
    match conflicts::classify(&id, &event, &known) {
        Classification::New { hold, superseded } => {
            let hold = hold.or_else(|| contradicts_registration(&event, found.as_ref()));
            insert(tx, &id, &event, found.as_ref(), hold.as_ref(), from)?;
            searches::begin(tx, settings, &id, &event)?;
            if !superseded {
                enqueue(tx, settings, &id, &event, hold.is_some())?;
            }
            Ok(Admitted { outcome: Outcome::Event, reason: hold, event_id: Some(id), session_id })
        }
        Classification::Duplicate { event_id, filled } => {
            if let Some(filled) = filled {
                refill(tx, settings, &event_id, &filled, found.map(|f| f.source))?;
            }
            Ok(Admitted { outcome: Outcome::Duplicate, reason: None, event_id: Some(event_id), session_id })
        }
        Classification::Conflict(reason) => {
            for (other, reason) in conflicts::contested(&id, &event, &known) {
                confirmations::contest(tx, &other.event_id, &reason)?;
            }
            Ok(Admitted::without_event(Outcome::Quarantined, &reason))
        }
    }
}

/// Whether a mail repeats a stored event that already has a session. The mail then belongs to the session of the stored event,
/// even if another session was found by order or amount. Returns `false` if the mail names its session, or if the mail's address
/// names an order that the stored event does not have. After `false`, the caller compares the session of the mail with the
/// session of the stored event.
fn belongs_to_other_session(id: &str, parsed: &Event, found: &FoundSession, known: &[StoredEvent]) -> bool {
    let has_its_own = |k: &StoredEvent| {
        k.event.payment.session_id.is_some() && (parsed.order_ref.is_none() || parsed.order_ref == k.event.order_ref)
    };
    found.source != matching::SessionSource::Mail
        && conflicts::find_repeated(id, parsed, known).is_some_and(has_its_own)
}

/// Returns the event with the session `found`. If the event has no order reference, it gets the registered order reference of
/// this session.
pub(super) fn with_session(mut event: Event, found: Option<&FoundSession>) -> Event {
    if let Some(found) = found {
        event.payment.session_id = Some(found.session_id.clone());
        event.order_ref = event.order_ref.or_else(|| found.registered.as_ref().and_then(|r| r.order_ref.clone()));
    }
    event
}

fn contradicts_registration(event: &Event, found: Option<&FoundSession>) -> Option<Reason> {
    let registered = found?.registered.as_ref()?;
    matching::contradiction(event, registered).map(|message| Reason::new(ReasonCode::Conflict, message))
}

fn insert(
    tx: &Connection,
    id: &str,
    event: &Event,
    found: Option<&FoundSession>,
    hold: Option<&Reason>,
    from: EventSource,
) -> Result<()> {
    let payment = &event.payment;
    tx.prepare_cached(
        "INSERT OR FAIL INTO events (event_id, status, session_id, session_source, order_ref, amount, currency, blockchain, token,
           from_wallet_address, transaction_hash, tx_time, tx_time_source, webhook, hold, created_at, source)
         VALUES (:event_id, :status, :session_id, :session_source, :order_ref, :amount, :currency, :blockchain, :token,
           :from_wallet_address, :transaction_hash, :tx_time, :tx_time_source, :webhook, :hold, :created_at, :source)",
    )?
    .execute(named_params! {
        ":event_id": id,
        ":status": payment.status.as_str(),
        ":session_id": payment.session_id,
        ":session_source": found.map(|f| f.source.as_str()),
        ":order_ref": event.order_ref,
        ":amount": payment.amount,
        ":currency": payment.currency,
        ":blockchain": payment.blockchain,
        ":token": payment.token,
        ":from_wallet_address": payment.from_wallet_address,
        ":transaction_hash": payment.transaction_hash,
        ":tx_time": event.time().map(iso),
        ":tx_time_source": event.time_source(),
        ":webhook": event.webhook(),
        ":hold": hold.map(Reason::to_string),
        ":created_at": current_time(),
        ":source": from.as_str(),
    })?;
    Ok(())
}

/// Inserts one delivery of a new event for each target that gets events with this status. A delivery that must wait is inserted
/// as held.
fn enqueue(tx: &Connection, settings: &StoreSettings, id: &str, event: &Event, hold: bool) -> Result<()> {
    let at = current_time();
    let resolved = event.payment.session_id.is_some();
    let targets = || settings.targets.iter().filter(|t| t.statuses.contains(&event.payment.status));
    let unconfirmed = targets().next().is_some() && confirmations::begin(tx, settings, id, event)?;
    let uncleared = targets().next().is_some() && clearances::begin(tx, settings, id, event)?;
    for target in targets() {
        let waits_for_chain = unconfirmed && !target.send_unconfirmed;
        let held = hold || uncleared || waits_for_chain || !(resolved || target.send_unresolved);
        let (state, due) = if held { (DeliveryState::Held, None) } else { (DeliveryState::Pending, Some(&at)) };
        tx.prepare_cached(
            "INSERT OR FAIL INTO deliveries (event_id, target, state, next_attempt_at, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![id, target.name, state.as_str(), due, at])?;
    }
    Ok(())
}

/// Writes new values of a stored event that no handler has accepted yet, because another mail reports the payment, or because the
/// event's mail was parsed again. `source`: how the session was found, if the caller has found the session.
pub(super) fn refill(
    tx: &Connection,
    settings: &StoreSettings,
    id: &str,
    event: &Event,
    source: Option<matching::SessionSource>,
) -> Result<()> {
    let found = sessions::find_session(tx, settings, id, event)?;
    let found = found.map(|f| FoundSession { source: source.unwrap_or(f.source), ..f });
    resolve(tx, settings, id, event, found.as_ref()).map(drop)
}

/// The result of [`resolve`]: how many deliveries of the event were released or held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    Released(usize),
    Held(usize),
}

/// Writes the event's values into the table `events`. After that, releases the event's deliveries, holds these deliveries for
/// review, or deletes them because a completed event supersedes this event.
pub(super) fn resolve(
    tx: &Connection,
    settings: &StoreSettings,
    id: &str,
    event: &Event,
    found: Option<&FoundSession>,
) -> Result<Resolved> {
    let event = with_session(event.clone(), found);
    let reason_to_hold = hold_reason(tx, id, &event, found)?;
    update(tx, settings, id, &event, found.map(|f| f.source))?;
    match reason_to_hold {
        Some(HoldReason::NeedsReview(reason)) => holds::hold(tx, id, &reason).map(Resolved::Held),
        Some(HoldReason::Superseded) => holds::withdraw(tx, id).map(|()| Resolved::Released(0)),
        None => holds::release(tx, settings, id).map(Resolved::Released),
    }
}

/// Returns why an event with the session `found` may not be delivered. The caller must not have written the event's new values
/// yet, because this function also reads the stored values.
pub(super) fn hold_reason(
    tx: &Connection,
    id: &str,
    event: &Event,
    found: Option<&FoundSession>,
) -> Result<Option<HoldReason>> {
    let registered = contradicts_registration(event, found).map(HoldReason::NeedsReview);
    Ok(registered.or(conflicts::hold_reason(id, event, &related_events(tx, id, event)?)))
}

/// Writes the changed values of an event into its row in `events`, and the new request body into the column `webhook`.
pub(super) fn update(
    tx: &Connection,
    settings: &StoreSettings,
    id: &str,
    event: &Event,
    source: Option<matching::SessionSource>,
) -> Result<()> {
    let payment = &event.payment;
    confirmations::restart_if_changed(tx, settings, id, event)?;
    clearances::restart_if_changed(tx, id, event)?;
    tx.prepare_cached(
        "UPDATE events SET session_id = :session_id,
           session_source = CASE WHEN session_id = :session_id THEN session_source ELSE :source END,
           order_ref = :order_ref, amount = :amount, currency = :currency, blockchain = :blockchain, token = :token,
           from_wallet_address = :from_wallet_address, tx_time = :tx_time, tx_time_source = :tx_time_source,
           webhook = :webhook
         WHERE event_id = :event_id",
    )?
    .execute(named_params! {
        ":event_id": id,
        ":session_id": payment.session_id,
        ":source": source.map(matching::SessionSource::as_str),
        ":order_ref": event.order_ref,
        ":amount": payment.amount,
        ":currency": payment.currency,
        ":blockchain": payment.blockchain,
        ":token": payment.token,
        ":from_wallet_address": payment.from_wallet_address,
        ":tx_time": event.time().map(iso),
        ":tx_time_source": event.time_source(),
        ":webhook": event.webhook(),
    })?;
    Ok(())
}

/// Writes the session of an event that was delivered without this session. The request body in the column `webhook` does not
/// change.
pub(super) fn set_session(tx: &Connection, id: &str, event: &Event, source: matching::SessionSource) -> Result<()> {
    tx.prepare_cached("UPDATE events SET session_id = ?2, session_source = ?3, order_ref = ?4 WHERE event_id = ?1")?
        .execute(params![id, event.payment.session_id, source.as_str(), event.order_ref])?;
    Ok(())
}
