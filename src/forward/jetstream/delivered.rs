//! Reads the events that a stream has acknowledged in the order of the stream, as far as the receipts show it.

use crate::db::{self, DeliveredEvent, DeliveredPosition, Store};

/// How many events are read from the database at once.
const PAGE: u32 = 500;

/// The events after a position, in pages.
///
/// The database has the events in the order in which their acknowledgements were stored. Up to 16 attempts run at the same time, so
/// this order differs a little from the order of the stream. If lost messages are published again in the order of the stream,
/// they get their old sequence numbers back. So a consumer whose position is a sequence number misses none of them.
pub(super) struct DeliveredReader {
    /// `None` after the last page.
    position: Option<DeliveredPosition>,
    /// Events that were read and not returned. At least `PAGE` events stay here until the last page is read: an event with a
    /// lower sequence number may be in the next page.
    waiting: Vec<DeliveredEvent>,
}

impl DeliveredReader {
    pub(super) fn new(position: DeliveredPosition) -> Self {
        DeliveredReader { position: Some(position), waiting: Vec::new() }
    }

    /// Returns the next events of the target, for the stream with this name. After the last event, the result is empty.
    pub(super) async fn next(&mut self, store: &Store, target: &str, stream: &str) -> db::Result<Vec<DeliveredEvent>> {
        while let Some(position) = self.position.take() {
            let page = store.delivered_events(target, position.clone(), PAGE).await?;
            self.position = page.last().map(|last| position.after(last));
            self.waiting.extend(page);
            self.waiting.sort_by_key(|delivered| delivered.sequence_in(stream));
            let ready = self.waiting.len().saturating_sub(PAGE as usize);
            if ready > 0 && self.position.is_some() {
                return Ok(self.waiting.drain(..ready).collect());
            }
        }
        Ok(std::mem::take(&mut self.waiting))
    }
}
