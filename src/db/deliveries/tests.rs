//! Tests of the outbox: claims, waits, and a person who retries a delivery during its attempt.

use jiff::SignedDuration;

use super::claim::{DUE, NEXT_DUE, REQUEUE_TOO_FAR_AHEAD};
use super::finish::{FOLLOWERS_GO, FOLLOWERS_WAIT};
use super::*;
use crate::db::testing::query_plan;
use crate::db::{StoreSettings, schema, testing};
use crate::model::iso;

/// Creates a database of 20,000 sessions with five deliveries each. All deliveries are due.
fn large(folder: &tempfile::TempDir) -> Connection {
    let connection = schema::open(&folder.path().join("m.db")).unwrap();
    connection
        .execute_batch(
            "BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)
             INSERT INTO events (event_id, status, session_id, session_source, webhook, created_at)
             SELECT 'event-' || i, 'failed', 'session-' || (i % 20000), 'mail', '{}', '2025-01-01T00:00:00.000Z' FROM n;
             INSERT INTO deliveries (event_id, target, state, next_attempt_at, created_at)
             SELECT event_id, 'shop', 'pending', created_at, created_at FROM events ORDER BY rowid;
             COMMIT;",
        )
        .unwrap();
    connection
}

#[test]
fn queries_of_a_large_outbox_use_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    for sql in [
        DUE,
        outage::OVERDUE,
        NEXT_DUE,
        FOLLOWERS_WAIT,
        FOLLOWERS_GO,
        REQUEUE_TOO_FAR_AHEAD,
        REQUEUE_AFTER_CLOCK_CHANGE,
        in_streams::DELIVERED,
        in_streams::ACKNOWLEDGED,
        in_streams::OLDEST_RECEIPTS,
        in_streams::LAST_DELIVERED,
        in_streams::LAST_ACKNOWLEDGED,
        in_streams::RESTART_PERIODS,
    ] {
        let steps = query_plan(&connection, sql);
        assert!(!steps.iter().any(|step| step.contains("SCAN") || step.contains("TEMP B-TREE")), "{sql}: {steps:#?}");
    }
}

fn ended(delivery_id: i64, next_step: NextStep) -> FinishedAttempt {
    let result = if next_step == NextStep::Delivered { AttemptResult::Accepted } else { AttemptResult::Rejected };
    FinishedAttempt { delivery_id, attempt: 1, result, status: None, took: Duration::ZERO, next_step }
}

fn count(connection: &Connection, condition: &str) -> i64 {
    connection.query_row(&format!("SELECT count(*) FROM deliveries WHERE {condition}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn blocked_deliveries_wait_as_long_as_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    let later: Timestamp = iso(Timestamp::now() + SignedDuration::from_hours(24)).parse().unwrap();
    connection.execute_batch("BEGIN; UPDATE deliveries SET first_attempt_at = created_at WHERE id <= 20000").unwrap();
    for id in 1..=20_000 {
        record_attempt(&connection, "shop", &ended(id, NextStep::RetryAt("x".into(), later))).unwrap();
    }
    assert_eq!(
        count(&connection, &format!("next_attempt_at < '{}'", iso(later))),
        0,
        "all wait for the one before them"
    );
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap(), []);
    assert_eq!(next_due(&connection, "shop").unwrap(), Some(later));
    record_attempt(&connection, "shop", &ended(7, NextStep::Delivered)).unwrap();
    let claimed = claim(&connection, "shop", &[], 16.into()).unwrap();
    assert_eq!(claimed.iter().map(|c| c.delivery_id).collect::<Vec<_>>(), [20_007], "and continue after it");
}

#[test]
fn a_time_far_ahead_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("UPDATE deliveries SET next_attempt_at = '2999-01-01T00:00:00.000Z'", []).unwrap();
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().len(), 16);
}

#[test]
fn a_clock_set_back_makes_deliveries_due() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    let (clock, ahead) = (Timestamp::now(), Timestamp::now() + SignedDuration::from_hours(5));
    connection.execute("UPDATE deliveries SET next_attempt_at = ?1", [iso(ahead)]).unwrap();
    // While the clock was ahead, delivery 1 was attempted and delivery 2 was created. Delivery 3 waits for a Retry-After.
    let attempt = "INSERT INTO attempts (delivery_id, attempt, at) VALUES (1, 1, ?1), (1, 2, ?2), (3, 1, ?1)";
    connection.execute(attempt, [iso(clock), iso(ahead)]).unwrap();
    connection.execute("UPDATE deliveries SET created_at = ?1 WHERE id = 2", [iso(ahead)]).unwrap();
    connection.execute(REQUEUE_AFTER_CLOCK_CHANGE, params!["shop", iso(clock)]).unwrap();
    let claimed = claim(&connection, "shop", &[], 16.into()).unwrap();
    assert_eq!(claimed.iter().map(|c| c.delivery_id).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn attempts_are_counted_and_claimed_once() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    let mut in_flight = Vec::new();
    for _ in 0..10 {
        let claimed = claim(&connection, "shop", &in_flight, 3.into()).unwrap();
        assert!(claimed.iter().all(|c| c.attempt == 1));
        in_flight.extend(
            claimed.into_iter().map(|c| InFlight { delivery_id: c.delivery_id, session_id: c.event.session_id }),
        );
    }
    let mut ids: Vec<_> = in_flight.iter().map(|f| f.delivery_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=30).collect::<Vec<_>>());
    assert_eq!(claim(&connection, "other", &[], 3.into()).unwrap(), []);
    // The program is killed here. After a restart, the program finds the counted attempts, and makes these attempts again.
    drop(connection);
    let connection = schema::open(&folder.path().join("m.db")).unwrap();
    assert_eq!(count(&connection, "attempts = 1 AND state = 'pending'"), 30);
    let sql = "SELECT error, result FROM attempts WHERE delivery_id = 1";
    let (error, result): (String, String) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!((error.as_str(), result.as_str()), (NO_END, "interrupted"));
    assert_eq!(claim(&connection, "shop", &[], 1.into()).unwrap().remove(0).attempt, 2);
}

#[test]
fn a_late_session_waits_for_deliveries_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("DELETE FROM deliveries WHERE id > 2", []).unwrap();
    let flight = |delivery_id, session_id: &str| InFlight { delivery_id, session_id: Some(session_id.into()) };
    let claimed = claim(&connection, "shop", &[flight(9, "SESSION-0")], 16.into()).unwrap();
    assert_eq!(claimed.iter().map(|c| c.delivery_id).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_delivery_held_during_its_attempt_stays_held() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("UPDATE deliveries SET state = 'held', next_attempt_at = NULL WHERE id <= 3", []).unwrap();
    record_attempt(&connection, "shop", &ended(1, NextStep::Delivered)).unwrap();
    record_attempt(&connection, "shop", &ended(2, NextStep::RetryAt("x".into(), Timestamp::now()))).unwrap();
    record_attempt(&connection, "shop", &ended(3, NextStep::GiveUp("x".into()))).unwrap();
    assert_eq!(count(&connection, "id = 1 AND state = 'delivered'"), 1);
    assert_eq!(count(&connection, "id IN (2, 3) AND state = 'held' AND last_error = 'x'"), 2);
    assert!(matches!(retry_one(&connection, 2), Err(Error::Refused(_))));
}

#[test]
fn downtime_does_not_count_towards_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    let at = Timestamp::now();
    let hours = SignedDuration::from_hours;
    // Sets the time of a delivery's first attempt, and the time at which the next attempt is due. The clock may have been
    // wrong at both times.
    let tried = |id: i64, first: Timestamp, due: Timestamp| {
        connection
            .execute(
                "UPDATE deliveries SET first_attempt_at = ?2, next_attempt_at = ?3 WHERE id = ?1",
                params![id, iso(first), iso(due)],
            )
            .unwrap();
    };
    connection.execute("DELETE FROM deliveries WHERE id > 3", []).unwrap();
    tried(1, at - hours(50), at);
    tried(2, at - hours(300), at - hours(250));
    tried(3, at + hours(9_000), at - hours(1));
    let mut claimed = claim(&connection, "shop", &[], 16.into()).unwrap();
    claimed.sort_by_key(|c| c.delivery_id);
    let hours_ago = |c: &Claimed| (at.duration_since(c.first_attempt_at).as_secs() + 60) / 3600;
    assert_eq!(claimed.iter().map(hours_ago).collect::<Vec<_>>(), [50, 50, 0]);
    let kept = count(&connection, &format!("first_attempt_at > '{}'", iso(at - hours(51))));
    assert_eq!(kept, 3, "and so it stays");
}

#[test]
fn a_retry_during_the_last_attempt_counts() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("DELETE FROM deliveries WHERE id > 3", []).unwrap();
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().len(), 3);
    retry_one(&connection, 1).unwrap();
    retry_one(&connection, 2).unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    record_attempt(&connection, "shop", &ended(1, NextStep::GiveUp("x".into()))).unwrap();
    record_attempt(&connection, "shop", &ended(2, NextStep::RetryAt("x".into(), later))).unwrap();
    record_attempt(&connection, "shop", &ended(3, NextStep::GiveUp("x".into()))).unwrap();
    assert_eq!(count(&connection, "state = 'pending' AND last_error = 'x'"), 2);
    assert_eq!(count(&connection, "id = 3 AND state = 'dead'"), 1);
    let claimed = claim(&connection, "shop", &[], 16.into()).unwrap();
    assert_eq!(claimed.iter().map(|c| (c.delivery_id, c.attempt)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
}

#[test]
fn a_held_delivery_blocks_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("DELETE FROM deliveries WHERE id NOT IN (1, 20001)", []).unwrap();
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().len(), 1);
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    record_attempt(&connection, "shop", &ended(1, NextStep::RetryAt("x".into(), later))).unwrap();
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap(), []);
    let reason = crate::model::Reason::new(crate::model::ReasonCode::Conflict, "x");
    assert_eq!(holds::hold(&connection, "event-0", &reason).unwrap(), 1);
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().remove(0).delivery_id, 20_001);
}

#[test]
fn deliveries_held_at_start_block_no_other() {
    type Hold = fn(&Connection, &StoreSettings) -> Result<usize>;
    let waiting_for: [(&str, Hold); 2] = [
        (
            "INSERT INTO confirmations (event_id, state, next_look_at, waits_since) VALUES ('event-0', 'waiting', '2025', '2025')",
            holds::hold_all_for_chain,
        ),
        ("INSERT INTO clearances (event_id, state, waits_since) VALUES ('event-0', 'waiting', '2025')", |tx, _| {
            holds::hold_all_for_resmic(tx)
        }),
    ];
    for (wait, hold_all) in waiting_for {
        let folder = tempfile::tempdir().unwrap();
        let settings = testing::store(&folder).settings.clone();
        let connection = large(&folder);
        connection.execute("DELETE FROM deliveries WHERE id NOT IN (1, 20001)", []).unwrap();
        assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().len(), 1);
        let later = Timestamp::now() + SignedDuration::from_hours(1);
        record_attempt(&connection, "shop", &ended(1, NextStep::RetryAt("x".into(), later))).unwrap();
        connection.execute(wait, []).unwrap();
        assert_eq!(hold_all(&connection, &settings).unwrap(), 1);
        assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().remove(0).delivery_id, 20_001);
    }
}

/// Claims deliveries when the outage of their target has lasted for this number of hours, with `give_up_after = "72h"`.
fn claim_in_outage(connection: &Connection, hours: u64, probe: bool) -> Vec<Claimed> {
    let lasting = |hours: u64| Duration::from_secs(hours * 3_600);
    let outage = Outage { lasted: lasting(hours), give_up_after: lasting(72), probe, last_attempts: 16 };
    claim(connection, "shop", &[], ClaimLimit::Outage(outage)).unwrap()
}

/// Two deliveries that failed for the first time 73 and 71 hours ago, and one that was never attempted. All three are due.
fn failing(folder: &tempfile::TempDir) -> Connection {
    let connection = large(folder);
    connection.execute("DELETE FROM deliveries WHERE id > 3", []).unwrap();
    let now = Timestamp::now();
    let due = now - SignedDuration::from_hours(70);
    connection.execute("UPDATE deliveries SET next_attempt_at = ?1", [iso(due)]).unwrap();
    for (id, first) in [(1, 73), (2, 71)] {
        let first = iso(now - SignedDuration::from_hours(first));
        let sql = "UPDATE deliveries SET attempts = 5, last_error = 'x', first_attempt_at = ?2 WHERE id = ?1";
        connection.execute(sql, params![id, first]).unwrap();
    }
    connection
}

fn hours_since(at: Timestamp) -> i64 {
    Timestamp::now().duration_since(at).as_hours()
}

#[test]
fn an_outage_leaves_due_deliveries_alone() {
    let folder = tempfile::tempdir().unwrap();
    let connection = failing(&folder);
    connection.execute("UPDATE deliveries SET first_attempt_at = next_attempt_at WHERE id = 1", []).unwrap();
    assert_eq!(claim_in_outage(&connection, 71, false), []);
    let claimed = claim_in_outage(&connection, 71, true);
    assert_eq!(claimed.iter().map(|c| c.delivery_id).collect::<Vec<_>>(), [1], "the probe");
    assert_eq!(count(&connection, "attempts = 5"), 1);
    assert_eq!(count(&connection, "attempts = 0"), 1);
}

#[test]
fn an_outage_counts_towards_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    let connection = failing(&folder);
    let claimed = claim_in_outage(&connection, 71, true);
    assert_eq!(claimed.iter().map(|c| (c.delivery_id, c.attempt)).collect::<Vec<_>>(), [(1, 6)], "its last attempt");
    assert_eq!(hours_since(claimed[0].first_attempt_at), 73);
    record_attempt(&connection, "shop", &FinishedAttempt { attempt: 6, ..ended(1, NextStep::GiveUp("x".into())) })
        .unwrap();
    assert_eq!(claim_in_outage(&connection, 71, false), [], "two have not waited for 72 hours");
    assert_eq!(claim_in_outage(&connection, 73, false), [], "one is due since 70 hours");
}

#[test]
fn an_untried_delivery_is_given_up_too() {
    let folder = tempfile::tempdir().unwrap();
    let connection = failing(&folder);
    let due = Timestamp::now() - SignedDuration::from_hours(80);
    connection.execute("UPDATE deliveries SET next_attempt_at = ?1", [iso(due)]).unwrap();
    connection.execute("DELETE FROM deliveries WHERE id < 3", []).unwrap();
    assert_eq!(claim_in_outage(&connection, 71, false), []);
    let claimed = claim_in_outage(&connection, 73, false);
    assert_eq!(claimed.iter().map(|c| (c.delivery_id, c.attempt)).collect::<Vec<_>>(), [(3, 1)]);
    assert_eq!(hours_since(claimed[0].first_attempt_at), 73, "since the outage began");
}

#[test]
fn a_clock_change_gives_up_no_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let connection = failing(&folder);
    // The machine was suspended for most of the time, so the program has tried for one hour only.
    let claimed = claim_in_outage(&connection, 1, false);
    assert_eq!(claimed.iter().map(|c| (c.delivery_id, hours_since(c.first_attempt_at))).collect::<Vec<_>>(), [(1, 4)]);
    assert_eq!(count(&connection, "attempts = 0"), 1);
}

#[test]
fn an_unreachable_target_restarts_the_period() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("DELETE FROM deliveries WHERE id > 3", []).unwrap();
    assert_eq!(claim(&connection, "shop", &[], 16.into()).unwrap().len(), 3);
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    record_attempt(&connection, "shop", &ended(1, NextStep::RetryUncounted("x".into(), later))).unwrap();
    record_attempt(&connection, "shop", &ended(2, NextStep::RetryAt("x".into(), later))).unwrap();
    assert_eq!(count(&connection, "id = 1 AND state = 'pending' AND first_attempt_at IS NULL AND last_error = 'x'"), 1);
    assert_eq!(count(&connection, "id = 2 AND first_attempt_at IS NOT NULL"), 1);
    connection.execute(in_streams::RESTART_PERIODS, params!["shop", current_time()]).unwrap();
    let due = format!("first_attempt_at IS NULL AND next_attempt_at <= '{}'", current_time());
    assert_eq!(count(&connection, &due), 3);
}

#[test]
fn receipts_name_the_stream_and_the_message() {
    let folder = tempfile::tempdir().unwrap();
    let connection = large(&folder);
    connection.execute("DELETE FROM deliveries WHERE id > 2", []).unwrap();
    let receipt = |was_there| StreamReceipt { stream: "PAID".into(), sequence: u64::MAX, was_there };
    record_attempt(&connection, "shop", &ended(1, NextStep::Stored(receipt(false)))).unwrap();
    record_attempt(&connection, "shop", &ended(2, NextStep::Stored(receipt(true)))).unwrap();
    assert_eq!(count(&connection, "id = 1 AND state = 'delivered' AND receipt = 'PAID:18446744073709551615'"), 1);
    assert_eq!(count(&connection, "id = 2 AND receipt = 'there already: PAID:18446744073709551615'"), 1);
}
