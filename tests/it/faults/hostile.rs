//! A hostile server cannot use up memory or processor time, and its text reaches the log only in a safe form.

use super::*;
use crate::faults::own_process::{block_on, cpu, is_alone, memory_at_most};
use resmic_mailhook::model::MailboxState;
use testkit::watching::dedicated;

/// The occasions on which a server can send data.
const PLACES: [&str; 7] = ["greeting", "LOGIN", "CAPABILITY", "EXAMINE", "UID FETCH", "IDLE", "DONE"];

/// Makes the server perform these steps once on each occasion. The watcher has to recover. Returns the processor seconds
/// and the KiB for each occasion.
async fn attack_costs(steps: &'static [Step], keys: &str) -> Vec<(&'static str, f64, u64)> {
    let mut costs = Vec::new();
    for name in PLACES {
        let server = Scripted::start().await;
        once(&server, name, 1, steps);
        let before = (cpu(), memory_at_most());
        let mut watching = watch(&server, keys);
        watching.while_server("another connection", |state| state.connections() >= 2).await;
        server.deliver("after all that");
        watching.mail("after all that").await;
        watching.end().await;
        costs.push((name, cpu() - before.0, memory_at_most() - before.1));
    }
    costs
}

/// The limit for one attack, which includes the work of the test server.
fn assert_cheap(costs: &[(&str, f64, u64)]) {
    assert!(costs.iter().all(|(_, seconds, kib)| *seconds < 6.0 && *kib < 24 * 1024), "{costs:?}");
}

#[test]
fn an_announced_huge_literal_takes_no_memory() {
    if !is_alone("faults::hostile::an_announced_huge_literal_takes_no_memory") {
        return;
    }
    block_on(async {
        let huge = &*vec![say("* 1 FETCH (UID 1 BODY[] {536000000}\r\nFrom: "), Step::Mute].leak();
        assert_cheap(&attack_costs(huge, EACH_SECOND).await);
    });
}

#[test]
fn an_endless_line_costs_little() {
    if !is_alone("faults::hostile::an_endless_line_costs_little") {
        return;
    }
    let chunk: &'static str = "* OK and so on and so on and so on".repeat(100).leak();
    let steps = &*vec![Step::Flood(chunk)].leak();
    // A large max_size does not allow a longer line.
    let keys = &format!("{EACH_SECOND}\nmax_size = \"64 MiB\"");
    block_on(async { assert_cheap(&attack_costs(steps, keys).await) });
}

#[test]
fn a_flood_of_responses_costs_little() {
    if !is_alone("faults::hostile::a_flood_of_responses_costs_little") {
        return;
    }
    for chunk in ["* OK still here\r\n", "* 3 FETCH (UID 3 FLAGS (\\Seen))\r\n", "* 5 EXISTS\r\n* 5 EXPUNGE\r\n"] {
        let steps = &*vec![Step::Flood(chunk.repeat(100).leak())].leak();
        block_on(async { assert_cheap(&attack_costs(steps, EACH_SECOND).await) });
    }
}

#[test]
fn unsolicited_headers_take_little_memory() {
    if !is_alone("faults::hostile::unsolicited_headers_take_little_memory") {
        return;
    }
    let header = format!("From: {}\r\n\r\n", "x".repeat(1_000_000));
    let pushed = format!("* 9 FETCH (UID 9 BODY[HEADER.FIELDS (FROM)]<0> {{{}}}\r\n{header})\r\n", header.len());
    let flood = Step::Flood(pushed.leak());
    block_on(async {
        for name in ["IDLE", "UID FETCH"] {
            let server = Scripted::start().await;
            once(&server, name, 2, std::slice::from_ref(&flood));
            let timing = Timing { mail: Duration::from_secs(1), ..quick() };
            let before = memory_at_most();
            let mut watching = watch_in(&server, "idle_renew = \"1s\"", timing);
            watching.while_server("another connection", |state| state.connections() >= 2).await;
            watching.end().await;
            let taken = memory_at_most() - before;
            assert!(taken < 48 * 1024, "{name}: {taken} KiB");
        }
    });
}

const EACH_SECOND: &str = "dedicated = true\nidle_renew = \"1s\"";

#[tokio::test]
async fn a_too_long_list_is_refused() {
    let server = Scripted::start().await;
    server.deliver("real");
    let list: String = (1..=110_000).map(|n| format!("* {n} FETCH (UID {n})\r\n")).collect();
    once(&server, "UID FETCH", 1, &[Step::Say(list), Step::Ok]);
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("far more"), "{error}");
    watching.mail("real").await;
    watching.end().await;
}

#[tokio::test]
async fn numbers_at_their_limits_are_harmless() {
    for lie in
        ["* 4294967295 EXISTS\r\n", "* 0 EXISTS\r\n", "* 4294967295 EXPUNGE\r\n", "* OK [UIDNEXT 4294967295] x\r\n"]
    {
        let server = Scripted::start().await;
        let mut watching = dedicated(&server);
        watching.idle().await;
        once(&server, "news", 1, &[say(lie), Step::Usual]);
        for subject in ["first", "second"] {
            server.deliver(subject);
            watching.mail(subject).await;
        }
        watching.end().await;
    }
    let server = Scripted::start().await;
    server.change(|state| state.uid_next = u32::MAX - 1);
    server.deliver("the last number of all");
    let mut watching = dedicated(&server);
    watching.mail("the last number of all").await;
    watching.idle().await;
    watching.end().await;
}

#[tokio::test]
async fn a_response_that_panics_the_parser_is_skipped() {
    let server = Scripted::start().await;
    server.deliver("real");
    once(&server, "UID FETCH", 1, &[say("* OK [ALERT]\u{e9}\r\n"), Step::Usual]);
    let mut watching = dedicated(&server);
    watching.mail("real").await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn nested_brackets_end_only_the_connection() {
    let deep = "(".repeat(60_000);
    for response in [
        format!("* 1 FETCH (BODYSTRUCTURE {deep}"),
        format!("* 1 FETCH (BODYSTRUCTURE ({}", "({0}\r\n ".repeat(9_000)),
        format!("* OK this is no literal {{60000}}\r\n* 1 FETCH (BODYSTRUCTURE {deep}"),
    ] {
        let server = Scripted::start().await;
        server.deliver("real");
        once(&server, "UID FETCH", 1, &[Step::Say(response), Step::Mute]);
        let mut watching = dedicated(&server);
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.contains("without end"), "{error}");
        watching.mail("real").await;
        watching.end().await;
    }
}

#[tokio::test]
async fn errors_contain_no_raw_text_and_no_mail() {
    let server = Scripted::start().await;
    let bell = "{tag} NO \u{1b}[31mred\u{7} and {tag}\u{202e} reversed\r\n";
    server.script(move |seen| match seen.name {
        "EXAMINE" | "SELECT" if seen.connection == 1 => vec![say(bell)],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("red") && !error.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{error:?}");
    watching.idle().await;
    once(&server, "UID FETCH", 2, &[say("1 FETCH (UID 1 BODY[] confidential words ?\r\n"), Step::Ok]);
    server.deliver("with confidential words");
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("cannot be parsed") && !error.contains("confidential"), "{error}");
    watching.mail("with confidential words").await;
    watching.end().await;
}

#[tokio::test]
async fn empty_and_garbage_mails_are_handed_over() {
    let server = Scripted::start().await;
    let garbage: Vec<u8> = (0..=255).cycle().take(5_000).collect();
    server.change(|state| {
        state.deliver(b"");
        state.deliver(&garbage);
        state.deliver(b"\r\n)\r\nA1 OK done\r\n* BYE\r\n");
    });
    let mut watching = dedicated(&server);
    watching.until_cursor(7, 3).await;
    assert_eq!(watching.handed[&(7, 1)].0, b"");
    assert_eq!(watching.handed[&(7, 2)].0, garbage);
    assert_eq!(server.connections(), 1);
    watching.end().await;
}
