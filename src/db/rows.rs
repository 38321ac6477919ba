//! The rows that commands print, and the columns that they are read from.

use rusqlite::Row;
use serde::Serialize;

use super::confirmations::{self, ConfirmationRow};
use super::word;
use crate::model::{DeliveryState, Uid, UidValidity};

/// A row of `events`; the column names are the JSON keys.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct EventRow {
    #[serde(skip)]
    pub row: i64,
    pub event_id: String,
    pub status: String,
    pub session_id: Option<String>,
    pub session_source: Option<String>,
    pub order_ref: Option<String>,
    pub amount: Option<String>,
    pub currency: Option<String>,
    pub blockchain: Option<String>,
    pub token: Option<String>,
    pub from_wallet_address: Option<String>,
    pub transaction_hash: Option<String>,
    pub tx_time: Option<String>,
    pub tx_time_source: Option<String>,
    #[serde(serialize_with = "as_json")]
    pub webhook: String,
    pub hold: Option<String>,
    pub created_at: String,
    /// What reported the event: `mail`, or `resmic` for Resmic's API.
    pub source: String,
    pub confirmation: Option<ConfirmationRow>,
    /// `clearances.state`, which shows whether Resmic's API has confirmed the event. `None`: the event does not wait for
    /// Resmic.
    pub clearance: Option<String>,
    pub clearance_reason: Option<String>,
}

/// A row of `mails` without the bytes.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MailRow {
    pub id: i64,
    pub account: String,
    pub mailbox: String,
    pub uid_validity: Option<UidValidity>,
    pub uid: Option<Uid>,
    pub message_id: Option<String>,
    pub sender: Option<String>,
    pub recipient: Option<String>,
    pub subject: Option<String>,
    pub sent_at: Option<String>,
    pub received_at: Option<String>,
    pub size: i64,
    pub sha256: String,
    pub outcome: String,
    pub reason: Option<String>,
    pub trust: Option<String>,
    pub trust_domain: Option<String>,
    pub trust_selector: Option<String>,
    pub event_id: Option<String>,
    pub judged_at: String,
}

/// A row of `deliveries`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct DeliveryRow {
    pub id: i64,
    pub event_id: String,
    pub target: String,
    pub state: DeliveryState,
    pub attempts: i64,
    pub next_attempt_at: Option<String>,
    pub last_status: Option<i64>,
    pub last_error: Option<String>,
    pub delivered_at: Option<String>,
    pub created_at: String,
    /// Where a stream has the event; `None`: the event was not delivered to a stream.
    pub receipt: Option<String>,
}

/// A row of `mailboxes`.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MailboxRow {
    pub account: String,
    pub mailbox: String,
    pub uid_validity: Option<UidValidity>,
    pub last_uid: Option<Uid>,
    pub state: String,
    pub last_seen_at: Option<String>,
    pub last_error: Option<String>,
}

/// Serializes a stored JSON text as JSON, and keeps the order of its keys.
fn as_json<S: serde::Serializer>(body: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match serde_json::from_str::<&serde_json::value::RawValue>(body) {
        Ok(raw) => raw.serialize(serializer),
        Err(_) => body.serialize(serializer),
    }
}

/// The columns of an [`EventRow`], from the tables `events`, `confirmations` and `clearances`. All columns have different names,
/// because [`event_row`] reads the columns by name.
pub(super) const EVENT_COLUMNS: &str =
    "e.rowid AS event_row, e.*, c.state, c.reason, c.arrival, c.received, c.received_token, c.confirmed_at,
    c.paid_block, c.arrival_block, c.amount_checked, c.final, c.nodes, c.looks, c.looked_at, c.next_look_at,
    r.state AS clearance, r.reason AS clearance_reason";
pub(super) const EVENT_TABLES: &str = "events e LEFT JOIN confirmations c ON c.event_id = e.event_id
    LEFT JOIN clearances r ON r.event_id = e.event_id";

pub(super) fn event_row(row: &Row) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        row: row.get("event_row")?,
        event_id: row.get("event_id")?,
        status: row.get("status")?,
        session_id: row.get("session_id")?,
        session_source: row.get("session_source")?,
        order_ref: row.get("order_ref")?,
        amount: row.get("amount")?,
        currency: row.get("currency")?,
        blockchain: row.get("blockchain")?,
        token: row.get("token")?,
        from_wallet_address: row.get("from_wallet_address")?,
        transaction_hash: row.get("transaction_hash")?,
        tx_time: row.get("tx_time")?,
        tx_time_source: row.get("tx_time_source")?,
        webhook: row.get("webhook")?,
        hold: row.get("hold")?,
        created_at: row.get("created_at")?,
        source: row.get("source")?,
        confirmation: confirmations::of_event_row(row)?,
        clearance: row.get("clearance")?,
        clearance_reason: row.get("clearance_reason")?,
    })
}

/// The columns of a [`MailRow`]. `raw` is not among them, because it may be large.
pub(super) const MAIL_COLUMNS: &str = "id, account, mailbox, uid_validity, uid, message_id, sender, recipient, subject, sent_at, \
    received_at, size, sha256, outcome, reason, trust, trust_domain, trust_selector, event_id, judged_at";

pub(super) fn mail_row(row: &Row) -> rusqlite::Result<MailRow> {
    Ok(MailRow {
        id: row.get("id")?,
        account: row.get("account")?,
        mailbox: row.get("mailbox")?,
        uid_validity: row.get("uid_validity")?,
        uid: row.get("uid")?,
        message_id: row.get("message_id")?,
        sender: row.get("sender")?,
        recipient: row.get("recipient")?,
        subject: row.get("subject")?,
        sent_at: row.get("sent_at")?,
        received_at: row.get("received_at")?,
        size: row.get("size")?,
        sha256: row.get("sha256")?,
        outcome: row.get("outcome")?,
        reason: row.get("reason")?,
        trust: row.get("trust")?,
        trust_domain: row.get("trust_domain")?,
        trust_selector: row.get("trust_selector")?,
        event_id: row.get("event_id")?,
        judged_at: row.get("judged_at")?,
    })
}

pub(super) fn delivery_row(row: &Row) -> rusqlite::Result<DeliveryRow> {
    Ok(DeliveryRow {
        id: row.get("id")?,
        event_id: row.get("event_id")?,
        target: row.get("target")?,
        state: word(row, "state")?,
        attempts: row.get("attempts")?,
        next_attempt_at: row.get("next_attempt_at")?,
        last_status: row.get("last_status")?,
        last_error: row.get("last_error")?,
        delivered_at: row.get("delivered_at")?,
        created_at: row.get("created_at")?,
        receipt: row.get("receipt")?,
    })
}

pub(super) fn mailbox_row(row: &Row) -> rusqlite::Result<MailboxRow> {
    Ok(MailboxRow {
        account: row.get("account")?,
        mailbox: row.get("mailbox")?,
        uid_validity: row.get("uid_validity")?,
        last_uid: row.get("last_uid")?,
        state: row.get("state")?,
        last_seen_at: row.get("last_seen_at")?,
        last_error: row.get("last_error")?,
    })
}
