//! Reads events from the table `events`.

use rusqlite::{Connection, Row, params};

use super::conflicts::{EventSource, StoredEvent};
use crate::db::{Result, parse_time};
use crate::model::{Event, PaymentDetails, Status, fold_chain, hash_spellings};

/// Reads the stored events that have the id, the transaction hash or the session of `event`. [`StoredEvent::maybe_delivered`] is
/// true if an attempt to deliver the stored event got no response or was interrupted.
pub(super) fn related_events(tx: &Connection, id: &str, event: &Event) -> Result<Vec<StoredEvent>> {
    let hash = event.payment.transaction_hash.as_deref();
    let spellings = match hash {
        Some(hash) if may_lack_zeros(event) => Some(serde_json::json!(hash_spellings(hash)).to_string()),
        _ => None,
    };
    let matches = if spellings.is_some() { "IN (SELECT value FROM json_each(?2))" } else { "= ?2" };
    let mut statement = tx.prepare_cached(&format!(
        "SELECT *, EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.event_id AND d.state = 'delivered') AS delivered,
           EXISTS (
             SELECT 1 FROM deliveries d JOIN attempts a ON a.delivery_id = d.id
             WHERE d.event_id = e.event_id AND (a.result = 'no_response' OR a.result = 'interrupted')) AS maybe_delivered,
           EXISTS (SELECT 1 FROM confirmations c WHERE c.event_id = e.event_id
                   AND c.state <> 'confirmed' AND c.state <> 'operator')
             OR EXISTS (SELECT 1 FROM clearances r WHERE r.event_id = e.event_id
                        AND r.state <> 'confirmed' AND r.state <> 'operator') AS unconfirmed
         FROM events e WHERE event_id = ?1 OR transaction_hash {matches} OR session_id = ?3"
    ))?;
    let rows = statement.query_map(params![id, spellings.as_deref().or(hash), event.payment.session_id], |row| {
        Ok(StoredEvent {
            event_id: row.get("event_id")?,
            event: event_from_row(row)?,
            delivered: row.get("delivered")?,
            maybe_delivered: row.get("maybe_delivered")?,
            unconfirmed: row.get("unconfirmed")?,
            is_from_api: row.get::<_, String>("source")? == EventSource::Resmic.as_str(),
        })
    })?;
    let mut known: Vec<StoredEvent> = rows.collect::<rusqlite::Result<_>>()?;
    // Without this sort, the order of the events would depend on the index that SQLite chooses.
    known.sort_unstable_by(|a, b| a.event_id.cmp(&b.event_id));
    Ok(known)
}

/// Whether the transaction of the event may be on Starknet. Hashes of Starknet are written with or without leading zeros; hashes
/// of other chains keep their leading zeros.
fn may_lack_zeros(event: &Event) -> bool {
    let chain = event.payment.blockchain.as_deref();
    chain.is_none_or(|chain| fold_chain(chain).contains(&fold_chain("Starknet")))
}

/// Reads an event from a row with the columns of `events`.
pub(super) fn event_from_row(row: &Row) -> rusqlite::Result<Event> {
    let status: String = row.get("status")?;
    let time = parse_time(row.get("tx_time")?);
    let is_from_mail = row.get::<_, Option<String>>("tx_time_source")?.as_deref() == Some("mail");
    let (tx_time, header_time) = if is_from_mail { (time, None) } else { (None, time) };
    let payment = PaymentDetails {
        session_id: row.get("session_id")?,
        amount: row.get("amount")?,
        currency: row.get("currency")?,
        blockchain: row.get("blockchain")?,
        token: row.get("token")?,
        from_wallet_address: row.get("from_wallet_address")?,
        transaction_hash: row.get("transaction_hash")?,
        tx_time,
        // The CHECK of the column `status` allows only the words of `Status`. Another word would be read as `pending`, because a
        // `pending` event never reports that a payment is complete.
        ..PaymentDetails::new(status.parse().unwrap_or(Status::Pending))
    };
    Ok(Event { payment, header_time, order_ref: row.get("order_ref")? })
}
