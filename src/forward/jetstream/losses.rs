//! Notices that a stream no longer has messages that it has acknowledged.
//!
//! A limit that is set for a moment (`max_msgs`, `max_age`) deletes messages, and the last sequence number stays. No message is
//! removed from a fit stream without `max_age`, so a higher number of removed messages is a loss. From a stream with `max_age`,
//! messages expire from the first one on. So there, the first message is compared with the receipts of events that have not expired.

use std::ops::Range;

use super::connection::StreamConnection;
use crate::db::{self, Store, StreamReceipt};
use crate::nats::StreamInfo;

/// How many receipts are compared with the first message of a stream. Attempts that run at the same time are acknowledged in any
/// order, so the oldest receipt does not always have the lowest sequence number.
const OLDEST: u32 = 100;

/// Describes the messages that a stream has lost between two reads of its state. `None`: no loss is visible. `acknowledged`: the
/// highest sequence number that the stream had acknowledged before the second read.
pub(super) fn lost_since(before: &StreamInfo, now: &StreamInfo, acknowledged: u64) -> Option<String> {
    let removed = now.removed().zip(before.removed()).map_or(0, |(now, before)| now.saturating_sub(before));
    if removed > 0 {
        return Some(format!("{removed} messages"));
    }
    let last = now.last_sequence()?;
    let highest = before.last_sequence().unwrap_or(0).max(acknowledged);
    (last < highest).then(|| format!("messages: its last message is {last}, and it had message {highest}"))
}

/// Whether the stream has lost one of its oldest messages: an event that has not expired has a receipt with a sequence number in
/// `removed`, which is a range before the first message of the stream.
pub(super) async fn lacks_oldest(
    connection: &StreamConnection,
    removed: Range<u64>,
    target: &str,
    store: &Store,
) -> db::Result<bool> {
    if removed.end <= removed.start.max(1) {
        return Ok(false);
    }
    let expired_until = connection.expired_until();
    // A message that was there already is older than its acknowledgement, and may have expired sooner.
    let may_have_expired = expired_until.is_some();
    let receipts = store.oldest_receipts(target, expired_until.unwrap_or_default(), OLDEST).await?;
    let is_lost = |receipt: &StreamReceipt| {
        receipt.stream == connection.stream_name()
            && removed.contains(&receipt.sequence)
            && !(receipt.was_there && may_have_expired)
    };
    Ok(receipts.iter().any(is_lost))
}
