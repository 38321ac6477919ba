//! The headers with which an event is delivered, for targets of every kind.

use jiff::Timestamp;

use super::sign::{self, Signer};
use crate::db::{DeliveredConfirmation, OutboundEvent};

/// The headers of Resmic's webhook and those that this program adds. Each value is printable ASCII, without line breaks.
pub(super) fn event_headers(signer: &Signer, event: &OutboundEvent, now: Timestamp) -> Vec<(&'static str, String)> {
    let body = event.webhook.as_bytes();
    let mut headers = vec![
        ("X-Signature", signer.resmic(body)),
        ("Idempotency-Key", event.event_id.clone()),
        ("webhook-id", event.event_id.clone()),
    ];
    if let Some(signature) = signer.standard(&event.event_id, now, body) {
        headers.push(("webhook-timestamp", now.as_second().to_string()));
        headers.push(("webhook-signature", signature));
    }
    if let Some(order_ref) = &event.order_ref {
        headers.push(("X-Mailhook-Order-Ref", sign::header_text(order_ref)));
    }
    if let Some(account) = &event.account {
        headers.push(("X-Mailhook-Account", sign::header_text(account)));
    }
    if let Some(DeliveredConfirmation { state, received, arrival }) = &event.confirmation {
        headers.push(("X-Mailhook-Chain", state.to_string()));
        let arrived = received.iter().map(|value| ("X-Mailhook-Received", value));
        let arrived = arrived.chain(arrival.iter().map(|value| ("X-Mailhook-Arrival", value)));
        // A value that is not printable ASCII is left out. No such value is expected, because the configuration accepts only
        // visible ASCII in the symbol of a token.
        let is_text = |value: &&String| value.bytes().all(|b| (b' '..=b'~').contains(&b));
        headers.extend(arrived.filter(|(_, value)| is_text(value)).map(|(name, value)| (name, value.clone())));
    }
    headers
}
