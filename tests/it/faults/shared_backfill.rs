//! The backfill of a shared mailbox with thousands of other people's mails, with irregular responses of the server.

use super::*;
use testkit::scripted::connection::fetch_response;
use testkit::scripted::{ServerState, notification, other};

/// Delivers `count` mails whose UIDs are `step` apart. Every hundredth mail is a notification. Returns the UIDs of these
/// notifications.
fn fill(state: &mut ServerState, count: u32, step: u32) -> Vec<u32> {
    let mut ours = Vec::new();
    for n in 1..=count {
        state.uid_next = n * step;
        if n % 100 == 0 {
            ours.push(state.deliver(&notification(&format!("number {n}"))));
        } else {
            state.deliver(&other("a letter"));
        }
    }
    ours
}

async fn assert_all_read(watching: &mut Watching, ours: &[u32], last: u32) {
    watching.until_cursor(7, last).await;
    assert_eq!(watching.handed.keys().map(|(_, uid)| *uid).collect::<Vec<_>>(), ours);
    assert!(watching.handed.values().all(|(_, times)| *times == 1));
}

/// The sequence sets of the FETCH commands that contain `items`, in order.
fn sets(server: &Scripted, items: &str) -> Vec<String> {
    let lines = server.lines().into_iter().filter(|line| line.contains(items));
    lines.map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

const SENDERS: &str = "(UID BODY.PEEK[HEADER.FIELDS";
const HEADERS: &str = "(UID INTERNALDATE BODY.PEEK[HEADER.FIELDS";

#[tokio::test]
async fn most_mails_cost_only_their_from() {
    let server = Scripted::start().await;
    let ours = server.change(|state| fill(state, 1_500, 1));
    let mut watching = watch(&server, SHARED);
    assert_all_read(&mut watching, &ours, 1_500).await;
    // The mails are fetched in windows of 1,000. INTERNALDATE is requested only for the last 200 mails of a window, because only
    // these dates may be compared at the next connect.
    assert_eq!(sets(&server, SENDERS), ["1:800", "1001:1300"]);
    assert_eq!(sets(&server, HEADERS), ["801:1000", "1301:1500"]);
    assert!(server.state().reads.iter().any(|read| read.contains("1:800 ") && read.contains("801:1000 ")), "one write");
    watching.end().await;
}

#[tokio::test]
async fn sparse_uid_sets_fit_the_line_limit() {
    for step in [2, 7, 199, 2_000_000] {
        let server = Scripted::start().await;
        let ours = server.change(|state| fill(state, 1_200, step));
        let mut watching = watch(&server, SHARED);
        assert_all_read(&mut watching, &ours, 1_200 * step).await;
        let longest = server.lines().iter().map(String::len).max().unwrap();
        assert!(longest < 6_000, "{longest}");
        watching.end().await;
    }
}

#[tokio::test]
async fn responses_may_come_in_any_order() {
    let server = Scripted::start().await;
    let ours = server.change(|state| fill(state, 1_200, 1));
    let mails = server.state().mails.clone();
    server.script(move |seen| {
        if seen.name != "UID FETCH" || !seen.line.contains("HEADER.FIELDS") {
            return vec![Step::Usual];
        }
        // The server sends the second part before the first, each in reverse order, with other responses in between.
        let range = if seen.line.contains(" 1:800 ") { 1..=1_000 } else { 1_001..=1_200 };
        let mut answer = Vec::new();
        for (uid, bytes) in mails.iter().rev().filter(|(uid, _)| range.contains(uid)) {
            let sequence_number = *uid as usize;
            answer.extend(fetch_response(sequence_number, *uid, bytes, seen.line));
            answer.extend(
                format!(
                    "* {sequence_number} FETCH (FLAGS (\\Seen))\r\n* {sequence_number} FETCH (UID {uid} FLAGS ())\r\n"
                )
                .bytes(),
            );
            answer.extend(fetch_response(sequence_number, *uid, bytes, "UID"));
            answer.extend(format!("* OK {{{uid}}} so far\r\n* OK {{1}}\r\n").bytes());
        }
        if seen.line.contains(" 801:1000 ") {
            vec![Step::BareOk]
        } else {
            vec![Step::Say(String::from_utf8(answer).unwrap()), Step::Ok]
        }
    });
    let mut watching = watch(&server, SHARED);
    assert_all_read(&mut watching, &ours, 1_200).await;
    // One FETCH lists the mails, three request headers, and three request bodies. So nothing was requested twice.
    assert_eq!(server.asked("UID FETCH"), 7, "{:?}", server.lines());
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn the_cursor_waits_for_an_omitted_mail() {
    let server = Scripted::start().await;
    let ours = server.change(|state| fill(state, 2_400, 1));
    server.script(|seen| match (seen.line.contains(" 1:800 "), seen.line.contains(" 300 ")) {
        (true, _) => vec![Step::Hide(vec![300]), Step::Untagged, Step::Hide(vec![]), Step::Ok],
        // The next FETCH omits mail 300 again.
        (_, true) if seen.line.contains(SENDERS) && seen.nth < 7 => vec![Step::BareOk],
        _ => vec![Step::Usual],
    });
    let mut watching = watch(&server, SHARED);
    watching.mail("number 500").await;
    assert!(!watching.handed.contains_key(&(7, 300)));
    assert!(watching.cursor.lock().unwrap().is_none_or(|(_, last)| last < 300));
    watching.mail("number 300").await;
    assert_all_read(&mut watching, &ours, 2_400).await;
    watching.end().await;
}

#[tokio::test]
async fn an_unreadable_header_delays_only_its_mail() {
    let server = Scripted::start().await;
    let ours = server.change(|state| fill(state, 400, 1));
    server.script(|seen| {
        let set = seen.line.split(' ').nth(3).unwrap_or_default();
        let (a, b) = set.split_once(':').unwrap_or((set, set));
        let holds_it = a.parse().is_ok_and(|a: u32| a <= 100) && b.parse().is_ok_and(|b: u32| b >= 100);
        match holds_it && seen.line.contains(SENDERS) {
            true => vec![say("{tag} NO [SERVERBUG] cannot read a mail\r\n")],
            false => vec![Step::Usual],
        }
    });
    let mut watching = watch(&server, SHARED);
    for n in [200, 300, 400] {
        watching.mail(&format!("number {n}")).await;
    }
    assert!(watching.cursor.lock().unwrap().is_none_or(|(_, last)| last < 100), "it is not passed");
    server.script(|_| vec![Step::Usual]);
    watching.mail("number 100").await;
    watching.until_cursor(7, 400).await;
    assert_eq!(watching.handed.len(), ours.len());
    watching.end().await;
}

#[tokio::test]
async fn a_reconnect_resumes_after_the_last_window() {
    let server = Scripted::start().await;
    let ours = server.change(|state| fill(state, 3_000, 1));
    server.script(|seen| match seen.connection == 1 && seen.line.contains(" 2001:2800 ") {
        true => vec![Step::CloseHalf],
        false => vec![Step::Usual],
    });
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 3_000).await;
    assert_eq!(watching.handed.keys().map(|(_, uid)| *uid).collect::<Vec<_>>(), ours);
    assert!(server.asked("2 A0003 UID FETCH 801:1000 (UID INTERNALDATE)") == 0, "{:?}", server.lines());
    let sweeps: Vec<_> =
        server.lines().into_iter().filter(|line| line.starts_with("2 ") && line.contains("(UID)")).collect();
    assert!(sweeps.iter().all(|line| line.contains(":* ")) && !sweeps[0].contains(" 1:* "), "{sweeps:?}");
    watching.end().await;
}
