//! Endless failures cost little and leak nothing.

use super::*;
use crate::faults::own_process::{block_on, cpu, is_alone, memory, open_files};
use resmic_mailhook::backoff::Backoff;
use testkit::watching::dedicated;

/// `BOUND` is the largest number of failing connections in `TIME` with the timing `quick`, whose pauses grow up to 200 ms.
const TIME: Duration = Duration::from_millis(1500);
const BOUND: usize = 22;

#[test]
fn a_failing_socket_costs_few_reconnects() {
    let retry = Timing::default().retry;
    let (mut passed, mut attempts) = (Duration::ZERO, 0_u32);
    while passed < Duration::from_secs(3600) {
        // A pause lasts at least half of its ceiling.
        passed += retry.ceiling(attempts) / 2;
        attempts += 1;
    }
    assert!(attempts <= 40, "{attempts}");
}

#[test]
fn a_failing_socket_costs_little_processor_time() {
    if !is_alone("faults::endurance::a_failing_socket_costs_little_processor_time") {
        return;
    }
    block_on(async {
        let server = Scripted::start().await;
        always(&server, "greeting", &[Step::Reset]);
        let mut watching = dedicated(&server);
        let before = cpu();
        watching.listen(TIME).await;
        let connections = server.connections();
        assert!((3..=BOUND).contains(&connections), "{connections}");
        assert!(cpu() - before < 0.5, "{}", cpu() - before);
        watching.end().await;
    });
}

#[tokio::test]
async fn retries_of_a_closed_port_back_off() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = testkit::watching::settings(port, DEDICATED);
    let mut watching = Watching::from_cursor(settings, quick(), Default::default());
    watching.listen(TIME).await;
    let failures = watching.states.iter().filter(|(_, error)| error.is_some()).count();
    assert!((3..=BOUND).contains(&failures), "{failures}");
    watching.end().await;
}

#[tokio::test]
async fn a_login_alone_does_not_reset_the_backoff() {
    for name in ["EXAMINE", "UID FETCH"] {
        let server = Scripted::start().await;
        server.deliver("never comes");
        always(&server, name, &[Step::Close]);
        let retry = Backoff { base: ms(20), cap: Duration::from_secs(100) };
        let mut watching = watch_in(&server, DEDICATED, Timing { retry, ..quick() });
        watching.listen(TIME).await;
        let logins = server.count("LOGIN");
        // The pauses are at least 10, 20, 40, 80, 160, 320 and 640 ms.
        assert!((3..=8).contains(&logins), "{name}: {logins}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_complete_sync_resets_the_backoff() {
    let server = Scripted::start().await;
    server.script(|seen| match (seen.name, seen.nth) {
        ("EXAMINE", 1..=8) => vec![Step::Close],
        ("IDLE", 1) => vec![Step::Usual, Step::Close],
        _ => vec![Step::Usual],
    });
    let retry = Backoff { base: ms(10), cap: Duration::from_secs(100) };
    let mut watching = watch_in(&server, DEDICATED, Timing { retry, ..quick() });
    watching.while_server("the first sync", |state| state.count("IDLE") == 1).await;
    let began = std::time::Instant::now();
    watching.while_server("the next connection", |state| state.connections() == 10).await;
    // Without the reset, the ninth pause would be at least 1280 ms.
    assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    watching.end().await;
}

#[tokio::test]
async fn disconnects_after_each_sync_back_off() {
    let server = Scripted::start().await;
    always(&server, "IDLE", &[Step::Usual, Step::Close]);
    let mut watching = dedicated(&server);
    watching.listen(TIME).await;
    let connections = server.connections();
    // The first reconnects are immediate; then the pauses grow.
    assert!((8..=BOUND + 8).contains(&connections), "{connections}");
    watching.end().await;
}

#[test]
fn ten_thousand_reconnects_leak_nothing() {
    if !is_alone("faults::endurance::ten_thousand_reconnects_leak_nothing") {
        return;
    }
    block_on(async {
        let server = Scripted::start().await;
        server.script(|seen| match (seen.name, seen.nth % 4) {
            ("IDLE", 0) => vec![Step::Usual, Step::Close],
            ("IDLE", 1) => vec![Step::Usual, Step::Reset],
            ("IDLE", 2) => vec![say("* BYE over\r\n"), Step::Close],
            ("IDLE", _) => vec![say("garbage\r\n"), Step::Close],
            _ => vec![Step::Usual],
        });
        let retry = Backoff { base: Duration::ZERO, cap: Duration::ZERO };
        let mut watching = watch_in(&server, DEDICATED, Timing { retry, ..quick() });
        let mut measured = Vec::new();
        for target in (1..=RECONNECTS / 500).map(|n| n * 500) {
            watching.while_server("reconnects", |state| state.connections() >= target).await;
            watching.states.clear();
            server.change(|state| {
                state.lines = Vec::new();
                state.reads = Vec::new();
            });
            measured.push((memory(), open_files()));
        }
        assert_eq!(server.most_open(), 1, "one connection a mailbox");
        // Permanent allocations happen in the first quarter.
        let (early, late) = (measured[measured.len() / 4], *measured.last().unwrap());
        assert!(late.0 <= early.0 + 1024, "{measured:?}");
        assert!(late.1 <= early.1 + 2, "{measured:?}");
        watching.end().await;
    });
}

const RECONNECTS: usize = 10_000;

#[tokio::test]
async fn a_mailbox_has_at_most_one_connection() {
    let server = Scripted::start().await;
    server.script(|seen| match (seen.name, seen.nth) {
        ("UID FETCH", 2) | ("IDLE", 2) => vec![Step::Untagged, Step::Close],
        ("news", 1) => vec![say("* BYE later\r\n"), Step::Close],
        ("greeting", 3) => vec![say("* BYE busy\r\n"), Step::Close],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    for n in 0..5 {
        server.deliver(&format!("number {n}"));
        watching.mail(&format!("number {n}")).await;
    }
    assert!(server.connections() > 2);
    assert_eq!(server.most_open(), 1);
    watching.end().await;
    server.until("it is closed", |state| state.open() == 0).await;
    assert_eq!(server.asked("LOGOUT"), 1, "and goes politely");
}
