//! Deliveries to targets that are streams: the stream's receipt of each delivery, and the delivered events that may have to be
//! published again.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::OutboundEvent;
use super::claim::{event_columns, read_event};
use crate::db::{Result, Store, current_time, parse_time};
use crate::model::iso;

/// Where a stream has stored an event, from the acknowledgement of the stream. `Display` writes the text of `deliveries.receipt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReceipt {
    /// The stream's name.
    pub stream: String,
    /// The sequence number of the message, from 1.
    pub sequence: u64,
    /// Whether the stream had the message before this attempt.
    pub was_there: bool,
}

/// The beginning of the text of a receipt, if the stream had the message before the attempt.
const THERE_ALREADY: &str = "there already: ";

impl std::fmt::Display for StreamReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let before = if self.was_there { THERE_ALREADY } else { "" };
        write!(f, "{before}{}:{}", self.stream, self.sequence)
    }
}

impl StreamReceipt {
    /// Parses the text of `deliveries.receipt`.
    fn parse(text: &str) -> Option<Self> {
        let place = text.strip_prefix(THERE_ALREADY);
        let (stream, sequence) = place.unwrap_or(text).rsplit_once(':')?;
        Some(StreamReceipt { stream: stream.to_owned(), sequence: sequence.parse().ok()?, was_there: place.is_some() })
    }
}

/// An event that a stream has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredEvent {
    /// The id of the delivery.
    pub delivery_id: i64,
    /// The text of `deliveries.receipt`.
    pub receipt: String,
    /// When the stream acknowledged the event for the first time, in the form of [`iso`].
    pub delivered_at: String,
    /// When the stream acknowledged the event for the last time, in the form of [`iso`].
    pub acknowledged_at: String,
    /// The event.
    pub event: OutboundEvent,
}

impl DeliveredEvent {
    /// The sequence number in the receipt; `None` if the receipt is from a stream with another name.
    #[must_use]
    pub fn sequence_in(&self, stream: &str) -> Option<u64> {
        let receipt = StreamReceipt::parse(&self.receipt)?;
        (receipt.stream == stream).then_some(receipt.sequence)
    }
}

/// The time by which the events of a stream are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveredOrder {
    FirstAcknowledgement,
    LastAcknowledgement,
}

/// A position in the events that the stream of a target has acknowledged, and the time of the last event that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredPosition {
    order: DeliveredOrder,
    time: String,
    delivery_id: i64,
    until: String,
}

impl DeliveredPosition {
    /// The position before all events that were delivered at `time` or later, in the order of their first acknowledgements.
    /// `None`: before all events.
    #[must_use]
    pub fn before(time: Option<Timestamp>) -> Self {
        DeliveredPosition {
            order: DeliveredOrder::FirstAcknowledgement,
            time: time.map(iso).unwrap_or_default(),
            delivery_id: i64::MIN,
            until: iso(Timestamp::MAX),
        }
    }

    /// The position after this event.
    #[must_use]
    pub fn after(self, delivered: &DeliveredEvent) -> Self {
        let time = match self.order {
            DeliveredOrder::FirstAcknowledgement => &delivered.delivered_at,
            DeliveredOrder::LastAcknowledgement => &delivered.acknowledged_at,
        };
        DeliveredPosition { time: time.clone(), delivery_id: delivered.delivery_id, ..self }
    }
}

/// Selects at most `?5` events that the stream of target `?1` has acknowledged after the position (`?2`, `?3`) and not after
/// `?4`, in the order of a column.
macro_rules! delivered_events {
    ($time:literal) => {
        concat!(
            "SELECT d.id, d.receipt, d.delivered_at, d.acknowledged_at, ",
            event_columns!(),
            " WHERE d.target = ?1 AND d.receipt IS NOT NULL AND (d.",
            $time,
            ", d.id) > (?2, ?3) AND d.",
            $time,
            " <= ?4 ORDER BY d.",
            $time,
            ", d.id LIMIT ?5"
        )
    };
}

pub(super) const DELIVERED: &str = delivered_events!("delivered_at");
pub(super) const ACKNOWLEDGED: &str = delivered_events!("acknowledged_at");

/// Selects the receipts of the first `?3` events that the stream of target `?1` has acknowledged after `?2`.
pub(super) const OLDEST_RECEIPTS: &str = "
    SELECT receipt FROM deliveries WHERE target = ?1 AND receipt IS NOT NULL AND acknowledged_at > ?2
    ORDER BY acknowledged_at LIMIT ?3";

/// Selects the time of the last delivery to the stream of target `?1` until `?2`.
pub(super) const LAST_DELIVERED: &str =
    "SELECT max(delivered_at) FROM deliveries WHERE target = ?1 AND receipt IS NOT NULL AND delivered_at <= ?2";

/// Selects the time of the last acknowledgement by the stream of target `?1`.
pub(super) const LAST_ACKNOWLEDGED: &str =
    "SELECT max(acknowledged_at) FROM deliveries WHERE target = ?1 AND receipt IS NOT NULL";

/// Makes all pending deliveries of a target due, and restarts the `give_up_after` period of each. Deliveries that are due and
/// were never attempted need no change.
pub(super) const RESTART_PERIODS: &str = "
    UPDATE deliveries SET next_attempt_at = min(next_attempt_at, ?2), first_attempt_at = NULL
    WHERE state = 'pending' AND target = ?1 AND next_attempt_at > '' AND (first_attempt_at IS NOT NULL OR next_attempt_at > ?2)";

impl Store {
    /// Makes the pending deliveries of a target due and restarts the `give_up_after` period of each, because the daemon has
    /// connected to the target's stream. Returns the number of changed deliveries.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn restart_periods(&self, target: &str) -> Result<usize> {
        let target = target.to_owned();
        self.write(move |tx| Ok(tx.prepare_cached(RESTART_PERIODS)?.execute(params![target, current_time()])?)).await
    }

    /// The position before the events that a target's stream acknowledged in the time `window` before the last delivery, or later,
    /// in the order of their last acknowledgements. `None` if the stream has acknowledged no event.
    ///
    /// A delivery in the future does not count as the last one, because the clock was wrong at that delivery. Otherwise, such a
    /// delivery would move the window away from the lost events. If all deliveries are in the future, the current time is used.
    ///
    /// The window ends at the last delivery, and not at the last acknowledgement. Otherwise, the acknowledgement of one lost event
    /// would move the window past the lost events that are not stored again yet, and the end of the connection would lose them.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn last_acknowledged(&self, target: &str, window: Duration) -> Result<Option<DeliveredPosition>> {
        let target = target.to_owned();
        let now = Timestamp::now();
        let read = move |tx: &Connection| {
            let delivered =
                tx.prepare_cached(LAST_DELIVERED)?.query_row(params![target, iso(now)], |row| row.get(0))?;
            let acknowledged = tx.prepare_cached(LAST_ACKNOWLEDGED)?.query_row([&target], |row| row.get(0))?;
            Ok((delivered, acknowledged))
        };
        let (delivered, acknowledged): (_, Option<String>) = self.write(read).await?;
        let begin = parse_time(delivered).unwrap_or(now).checked_sub(window).ok();
        Ok(acknowledged.map(|until| DeliveredPosition {
            order: DeliveredOrder::LastAcknowledgement,
            // An event that is stored again while the events are read gets a later time than `until`, and is not read twice.
            until,
            ..DeliveredPosition::before(begin)
        }))
    }

    /// The receipts of the first `limit` events, in the order of their last acknowledgements, that a target's stream has
    /// acknowledged after `after`, a time in the form of [`iso`].
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn oldest_receipts(&self, target: &str, after: String, limit: u32) -> Result<Vec<StreamReceipt>> {
        let target = target.to_owned();
        let read = move |tx: &Connection| {
            let mut statement = tx.prepare_cached(OLDEST_RECEIPTS)?;
            let texts = statement.query_map(params![target, after, limit], |row| row.get::<_, String>(0))?;
            let texts = texts.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(texts.iter().filter_map(|text| StreamReceipt::parse(text)).collect())
        };
        self.write(read).await
    }

    /// Reads the events that a target's stream has acknowledged, in the order of the position: at most `limit`, from the position
    /// `after` on.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn delivered_events(
        &self,
        target: &str,
        after: DeliveredPosition,
        limit: u32,
    ) -> Result<Vec<DeliveredEvent>> {
        let target = target.to_owned();
        let read = move |tx: &Connection| {
            let DeliveredPosition { order, time, delivery_id, until } = after;
            let mut statement = tx.prepare_cached(match order {
                DeliveredOrder::FirstAcknowledgement => DELIVERED,
                DeliveredOrder::LastAcknowledgement => ACKNOWLEDGED,
            })?;
            let rows = statement.query_map(params![target, time, delivery_id, until, limit], |row| {
                Ok(DeliveredEvent {
                    delivery_id: row.get("id")?,
                    receipt: row.get("receipt")?,
                    delivered_at: row.get("delivered_at")?,
                    acknowledged_at: row.get("acknowledged_at")?,
                    event: read_event(row)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        };
        self.write(read).await
    }

    /// Writes the receipt of a delivery whose message has another sequence number than the receipt in the database, for example
    /// because another program has restored the stream.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn correct_receipt(&self, delivery_id: i64, receipt: StreamReceipt) -> Result<()> {
        let sql = "UPDATE OR FAIL deliveries SET receipt = ?2 WHERE id = ?1";
        self.write(move |tx| {
            Ok(tx.prepare_cached(sql)?.execute(params![delivery_id, receipt.to_string()]).map(drop)?)
        })
        .await
    }

    /// Writes the new receipt of a message that a stream had lost and has stored again, and adds 1 to `streams.refilled`. The
    /// message is as new as a first one: the next power failure may lose it again.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`].
    pub async fn record_refill(&self, target: &str, delivery_id: i64, receipt: StreamReceipt) -> Result<()> {
        let target = target.to_owned();
        self.write(move |tx| {
            record_receipt(tx, &target, delivery_id, &current_time(), &receipt)?;
            let sql = "UPDATE streams SET refilled = refilled + 1 WHERE target = ?1";
            tx.prepare_cached(sql)?.execute(params![target])?;
            Ok(())
        })
        .await
    }
}

/// Writes `deliveries.receipt`, and the time `at` of the acknowledgement. Counts the delivery in `streams.there_already` if the
/// stream had the message before the attempt.
pub(super) fn record_receipt(
    tx: &Connection,
    target: &str,
    delivery_id: i64,
    at: &str,
    receipt: &StreamReceipt,
) -> Result<()> {
    tx.prepare_cached("UPDATE OR FAIL deliveries SET receipt = ?2, acknowledged_at = ?3 WHERE id = ?1")?
        .execute(params![delivery_id, receipt.to_string(), at])?;
    if receipt.was_there {
        let sql = "UPDATE streams SET there_already = there_already + 1 WHERE target = ?1";
        tx.prepare_cached(sql)?.execute(params![target])?;
    }
    Ok(())
}
