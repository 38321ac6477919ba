//! `start`: the mails that the first run reads.

use super::*;
use resmic_mailhook::model::MailboxState;

use testkit::scripted::{ServerState, notification};

/// The INTERNALDATE that is this many seconds from now.
pub(crate) fn date(seconds: i64) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    at.strftime("%d-%b-%Y %H:%M:%S +0000").to_string()
}

/// Delivers a mail with this INTERNALDATE. A moved mail keeps its date.
fn deliver_at(state: &mut ServerState, subject: &str, date: &str) {
    let uid = state.deliver(&notification(subject));
    state.dates.insert(uid, date.to_owned());
}

#[tokio::test]
async fn start_all_reads_existing_mails() {
    let server = Scripted::start().await;
    server.deliver("old");
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"all\""));
    watching.mail("old").await;
    watching.end().await;
}

#[tokio::test]
async fn start_now_reads_only_new_mails() {
    for keys in [DEDICATED, SHARED] {
        for capabilities in ["IDLE", "IDLE NOTIFY", ""] {
            let server = Scripted::start().await;
            server.change(|state| state.capabilities = capabilities.into());
            for n in 0..3 {
                server.deliver(&format!("old {n}"));
            }
            let timing = Timing { poll: ms(50), ..quick() };
            let mut watching = watch_in(&server, &format!("{keys}\nstart = \"now\""), timing);
            watching.old.extend(1..=3);
            watching.until_cursor(7, 3).await;
            for n in 0..3 {
                server.deliver(&format!("new {n}"));
                watching.mail(&format!("new {n}")).await;
            }
            assert!(watching.handed.keys().all(|(_, uid)| *uid > 3));
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn start_now_reads_mails_before_the_first_idle() {
    let at = [
        ("EXAMINE", &[Step::Untagged, Step::Deliver("meanwhile"), Step::Ok][..]),
        ("EXAMINE", &[Step::Usual, Step::Deliver("meanwhile")]),
        ("NOTIFY", &[Step::Deliver("meanwhile"), Step::Usual]),
        ("UID FETCH", &[Step::Untagged, Step::Deliver("meanwhile"), Step::Ok]),
        ("IDLE", &[Step::Deliver("meanwhile"), Step::Usual]),
    ];
    for (name, steps) in at {
        for capabilities in ["IDLE", "IDLE NOTIFY"] {
            if name == "NOTIFY" && capabilities == "IDLE" {
                continue;
            }
            let server = Scripted::start().await;
            server.change(|state| state.capabilities = capabilities.into());
            server.deliver("old");
            once(&server, name, 1, steps);
            let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
            watching.old.insert(1);
            let took = watching.mail("meanwhile").await;
            assert!(took < Duration::from_secs(5), "{name} {steps:?} {took:?}");
            assert_eq!(watching.times("old"), 0);
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn start_now_is_fixed_by_the_first_connection() {
    let server = Scripted::start().await;
    server.deliver("old");
    // The first connection learns the boundary of "now", and ends before this boundary is stored.
    once(&server, "UID FETCH", 1, &[Step::Deliver("after the first now"), Step::Close]);
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
    watching.forgetful = true;
    watching.old.insert(1);
    watching.mail("after the first now").await;
    assert_eq!(watching.times("old"), 0);
    watching.end().await;
}

#[tokio::test]
async fn start_with_a_date_passes_older_mails() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.change(|state| {
            for (subject, date) in [
                ("the day before", "04-Mar-2025 23:59:59 +0000"),
                // UIDs and dates may have a different order.
                ("that day", "05-Mar-2025 00:00:00 +0000"),
                ("long before", " 1-Jan-2024 12:00:00 +0000"),
                ("in another zone", "04-Mar-2025 20:00:00 -0800"),
                ("in another zone, and too old", "05-Mar-2025 01:00:00 +0200"),
            ] {
                let uid = state.deliver(&notification(subject));
                state.dates.insert(uid, date.into());
            }
        });
        let mut watching = watch(&server, &format!("{keys}\nstart = \"2025-03-05\""));
        watching.old.extend([1, 3, 5]);
        watching.until_cursor(7, 5).await;
        let uids: Vec<_> = watching.handed.keys().map(|(_, uid)| *uid).collect();
        assert_eq!(uids, [2, 4]);
        assert_eq!(
            server.asked("UID FETCH 2,4 ("),
            1 + usize::from(keys == SHARED),
            "no older mail's bytes are fetched"
        );
        server.deliver("new");
        watching.mail("new").await;
        watching.end().await;
    }
}

#[tokio::test]
async fn a_stored_cursor_takes_precedence_over_start() {
    for start in ["all", "now", "2030-01-01"] {
        let server = Scripted::start().await;
        for subject in ["read before", "came while we were down"] {
            server.deliver(subject);
        }
        let settings = testkit::watching::settings(server.port, &format!("{DEDICATED}\nstart = {start:?}"));
        let cursor = std::sync::Arc::new(std::sync::Mutex::new(Some((7, 1))));
        let mut watching = Watching::from_cursor(settings, quick(), cursor);
        watching.mail("came while we were down").await;
        assert_eq!(watching.times("read before"), 0, "{start}");
        watching.end().await;
    }
}

/// Renumbers the mailbox in reverse order, with a new UIDVALIDITY.
fn renumber(state: &mut ServerState) {
    let mails: Vec<_> = std::mem::take(&mut state.mails).into_iter().rev().collect();
    let dates = std::mem::take(&mut state.dates);
    (state.uid_validity, state.uid_next) = (state.uid_validity + 1, 1);
    for (uid, bytes) in mails {
        let new = state.deliver(&bytes);
        state.dates.extend(dates.get(&uid).map(|date| (new, date.clone())));
    }
}

#[tokio::test]
async fn old_mails_stay_unread_after_renumbering() {
    for keys in [DEDICATED, SHARED] {
        // With `after`, the watcher sends a UID STORE between the FETCH and the report of the cursor. The connection may end at
        // this command.
        for (after, ends_in) in
            [("leave", None), ("seen", None), ("seen", Some("UID STORE")), ("leave", Some("UID FETCH"))]
        {
            let server = Scripted::start().await;
            server.change(|state| {
                deliver_at(state, "older", "05-Mar-2025 03:00:00 +0000");
                deliver_at(state, "old", &date(-3600));
            });
            let mut watching = watch(&server, &format!("{keys}\nstart = \"now\"\nafter = {after:?}"));
            watching.old.extend([1, 2]);
            watching.until_cursor(7, 2).await;
            server.change(|state| deliver_at(state, "new", &date(0)));
            watching.mail("new").await;
            watching.idle().await;
            // On a new connection, the first FETCH lists the mails, and the second FETCH fetches them.
            let next = ends_in.map(|name| (name, server.count(name) + if name == "UID FETCH" { 2 } else { 1 }));
            let news = server.count("news") + 1;
            server.script(move |seen| match (seen.name, seen.nth) {
                ("news", nth) if nth == news => vec![Step::Close],
                (name, nth) if next == Some((name, nth)) => vec![Step::Close],
                _ => vec![Step::Usual],
            });
            watching.old = [3, 4].into();
            server.change(|state| {
                deliver_at(state, "while we were away", &date(0));
                renumber(state);
            });
            watching.mail("while we were away").await;
            watching.until_cursor(8, 4).await;
            server.change(|state| deliver_at(state, "at last", &date(0)));
            watching.mail("at last").await;
            assert_eq!((watching.times("older"), watching.times("old")), (0, 0), "{keys} {after} {ends_in:?}");
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn new_mails_with_old_dates_are_read() {
    for old in [0, 2] {
        let server = Scripted::start().await;
        server.change(|state| (0..old).for_each(|_| deliver_at(state, "old", "05-Mar-2025 03:00:00 +0000")));
        let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
        watching.old.extend(1..=old);
        watching.until_cursor(7, old).await;
        watching.idle().await;
        // A mail with an old date is moved here while there is no connection.
        once(&server, "news", 1, &[Step::Close]);
        server.change(|state| deliver_at(state, "moved", "04-Mar-2025 03:00:00 +0000"));
        watching.mail("moved").await;
        assert_eq!(watching.times("old"), 0);
        watching.end().await;
    }
}

#[tokio::test]
async fn the_start_boundary_is_stored_first() {
    let server = Scripted::start().await;
    once(&server, "UID FETCH", 1, &[Step::Deliver("meanwhile"), Step::Mute]);
    let keys = format!("{DEDICATED}\nstart = \"now\"");
    let mut watching = watch(&server, &keys);
    watching.while_server("the first listing", |state| state.count("UID FETCH") == 1).await;
    let cursor = watching.cursor.clone();
    // All reports up to the failure are committed. Then the watcher is killed.
    watching.until("a failure", |w| w.states.iter().any(|(s, _)| *s == MailboxState::Failed)).await;
    watching.task.abort();
    let settings = testkit::watching::settings(server.port, &keys);
    let mut watching = Watching::from_cursor(settings, quick(), cursor);
    watching.mail("meanwhile").await;
    watching.end().await;
}

#[tokio::test]
async fn early_renumbering_hides_no_new_mail() {
    for restored in [false, true] {
        let server = Scripted::start().await;
        server.change(|state| (0..3).for_each(|_| deliver_at(state, "old", "05-Mar-2025 03:00:00 +0000")));
        once(&server, "UID FETCH", 1, &[Step::Mute]);
        let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
        watching.forgetful = true;
        watching.old.extend(1..=3);
        watching.while_server("the first listing", |state| state.count("UID FETCH") == 1).await;
        server.change(|state| {
            state.uid_validity += u32::from(!restored);
            state.mails.truncate(1);
            state.uid_next = 2;
            deliver_at(state, "new", &date(0));
        });
        watching.old = [1].into();
        watching.mail("new").await;
        assert_eq!(watching.times("old"), 0);
        watching.end().await;
    }
}

/// A server that reports UIDNEXT 0 in these responses. It has three mails from long ago and one from an hour ago.
async fn server_with_uid_next_0(answers: &[&'static str]) -> Scripted {
    let server = Scripted::start().await;
    server.change(|state| {
        state.false_uid_next.extend(answers.iter().map(|answer| (*answer, 0)));
        (0..3).for_each(|_| deliver_at(state, "old", &date(-40 * 86_400)));
        deliver_at(state, "an hour old", &date(-3600));
    });
    server
}

#[tokio::test]
async fn uidnext_0_is_replaced_by_status() {
    for keys in [DEDICATED, SHARED] {
        let server = server_with_uid_next_0(&["EXAMINE", "SELECT"]).await;
        let mut watching = watch(&server, &format!("{keys}\nstart = \"now\""));
        watching.old.extend(1..=4);
        watching.until_cursor(7, 4).await;
        server.deliver("new");
        watching.mail("new").await;
        assert_eq!(watching.handed.len(), 1);
        watching.end().await;
    }
}

#[tokio::test]
async fn without_uidnext_start_now_uses_internaldate() {
    for (keys, capabilities) in [(DEDICATED, "IDLE"), (SHARED, "IDLE"), (DEDICATED, ""), (SHARED, "IDLE NOTIFY")] {
        let server = server_with_uid_next_0(&["EXAMINE", "SELECT", "STATUS"]).await;
        server.change(|state| state.capabilities = capabilities.into());
        let timing = Timing { poll: ms(50), ..quick() };
        let mut watching = watch_in(&server, &format!("{keys}\nstart = \"now\""), timing);
        watching.old.extend(1..=4);
        watching.until_cursor(7, 4).await;
        server.change(|state| deliver_at(state, "new", &date(0)));
        watching.mail("new").await;
        // A mail with an old date is moved here after the start.
        server.change(|state| deliver_at(state, "moved", &date(-86_400)));
        watching.mail("moved").await;
        once(&server, "news", server.count("news") + 1, &[Step::Close]);
        server.change(|state| deliver_at(state, "moved while we were away", &date(-86_400)));
        watching.mail("moved while we were away").await;
        assert_eq!((watching.times("old"), watching.times("an hour old"), watching.times("new")), (0, 0, 1), "{keys}");
        watching.end().await;
    }
}

#[tokio::test]
async fn without_uidnext_a_refused_status_is_survived() {
    let server = server_with_uid_next_0(&["EXAMINE", "SELECT"]).await;
    server.script(|seen| match seen.line.contains("(UIDNEXT)") {
        true => vec![say("{tag} NO not of the mailbox that is selected\r\n")],
        false => vec![Step::Usual],
    });
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
    watching.old.extend(1..=4);
    watching.until_cursor(7, 4).await;
    server.change(|state| deliver_at(state, "new", &date(0)));
    watching.mail("new").await;
    assert_eq!(watching.handed.len(), 1);
    watching.end().await;
}
