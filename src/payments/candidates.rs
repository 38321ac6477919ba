//! Finds the candidates: the sessions for which Resmic may name the transaction of an event. A candidate was registered in the
//! allowed time before the payment, has no completed event, and is not contradicted by the event.

use std::cmp::Reverse;

use rusqlite::types::Value;
use rusqlite::{Connection, params};

use super::matching;
use super::sessions::{COLUMNS, COMPLETED, read_session, registration_times, sqlite_amounts};
use crate::db::{Result, StoreSettings};
use crate::model::{Event, RegisteredSession};
use crate::resmic::SessionId;

/// The SQL conditions on `sessions s` by which SQLite finds candidates in an index. Parameter `?3` is the order or the amount. A
/// missing amount contradicts no amount, so sessions without an amount are candidates, too. For an event that has neither an
/// order nor an amount, all sessions that were registered in the allowed time are read.
const BY_ORDER: &str = "s.order_ref = ?3";
const BY_AMOUNT: &str = "s.amount IS NOT NULL AND CAST(s.amount AS REAL) = ?3";
const WITHOUT_AMOUNT: &str = "s.amount IS NULL";
const ANY: &str = "true";

/// Whether Resmic has named a transaction for session `s`, or the most recent inquiry about session `s` was for event `?4`.
const ASKED: &str = "EXISTS (SELECT 1 FROM session_transactions t
    WHERE t.session_id = s.session_id AND (t.transaction_hash IS NOT NULL OR t.asked_for = ?4))";

/// Returns the newest candidate about which the daemon must still ask Resmic for this event. Older candidates are not read,
/// because each SQL query ends at its first result.
pub(super) fn newest_unasked(
    tx: &Connection,
    event_id: &str,
    event: &Event,
    settings: &StoreSettings,
) -> Result<Option<SessionId>> {
    let newest = query(tx, event, settings, Some(event_id))?;
    Ok(newest.first().and_then(|session| session.session_id.parse().ok()))
}

/// Returns all candidates of an event, the newest first. The caller needs all candidates at the end of a search, because more
/// than one candidate may have the event's transaction.
pub(super) fn find_all(tx: &Connection, event: &Event, settings: &StoreSettings) -> Result<Vec<RegisteredSession>> {
    query(tx, event, settings, None)
}

/// Returns the candidates of an event, the newest first. If the caller passes `event_id`, each SQL query returns only the newest
/// candidate about which the daemon must still ask Resmic for this event.
fn query(
    tx: &Connection,
    event: &Event,
    settings: &StoreSettings,
    event_id: Option<&str>,
) -> Result<Vec<RegisteredSession>> {
    let Some((from, to)) = registration_times(event, settings) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (condition, value) in searches(event) {
        let mut statement = tx.prepare_cached(&sql(condition))?;
        for session in statement.query_map(params![from, to, value, event_id], read_session)? {
            let session = session?;
            // Other programs insert rows into `sessions`. A session whose id is no UUID is skipped, because Resmic's ids are
            // UUIDs.
            if session.session_id.parse::<SessionId>().is_ok()
                && matching::may_have_transaction(event, &session, settings.matching.window)
            {
                found.push(session);
                if event_id.is_some() {
                    break;
                }
            }
        }
    }
    found.sort_by_key(|session| Reverse(session.created_at));
    Ok(found)
}

/// Returns the SQL conditions that find all candidates of an event. Each condition comes with the value of its parameter `?3`.
fn searches(event: &Event) -> Vec<(&'static str, Value)> {
    match (&event.order_ref, &event.payment.amount) {
        (Some(order_ref), _) => vec![(BY_ORDER, order_ref.clone().into())],
        (None, None) => vec![(ANY, Value::Null)],
        (None, Some(amount)) => {
            let amounts = sqlite_amounts(Some(amount)).into_iter().map(|amount| (BY_AMOUNT, amount.into()));
            amounts.chain([(WITHOUT_AMOUNT, Value::Null)]).collect()
        }
    }
}

fn sql(condition: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM sessions s WHERE {condition} AND s.created_at BETWEEN ?1 AND ?2 AND NOT {COMPLETED}
           AND (?4 IS NULL OR NOT {ASKED}) ORDER BY s.created_at DESC"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;

    #[test]
    fn candidates_are_found_in_indexes() {
        let folder = tempfile::tempdir().unwrap();
        drop(testing::store(&folder));
        let connection = Connection::open(folder.path().join("m.db")).unwrap();
        for (condition, index) in [
            (BY_ORDER, "sessions_by_order (order_ref=?)"),
            (BY_AMOUNT, "sessions_by_amount (<expr>=? AND created_at>? AND created_at<?)"),
            (WITHOUT_AMOUNT, "sessions_without_amount (created_at>? AND created_at<?)"),
            (ANY, "sessions_by_time (created_at>? AND created_at<?)"),
        ] {
            let steps = testing::query_plan(&connection, &sql(condition));
            assert_eq!(steps[0], format!("SEARCH s USING INDEX {index}"), "{steps:?}");
            let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
            assert_eq!(sorts, condition == BY_ORDER, "one order has few sessions: {steps:?}");
        }
    }
}
