//! A UID names a mail only together with its UIDVALIDITY, and only while the server does not reuse UIDs.

use super::*;
use resmic_mailhook::model::MailboxState;
use testkit::scripted::{ServerState, notification, other};
use testkit::watching::dedicated;

#[tokio::test]
async fn a_uid_needs_its_uidvalidity() {
    let server = Scripted::start().await;
    server.deliver("nameless");
    let without_validity = [say("* 1 EXISTS\r\n* OK [UIDNEXT 2] next\r\n"), Step::BareOk];
    server.script(move |seen| match seen.name {
        "EXAMINE" | "SELECT" if seen.connection == 1 => without_validity.to_vec(),
        "STATUS" if seen.connection == 1 => vec![Step::Ok],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("no UIDVALIDITY"), "{error}");
    assert_eq!(server.asked("UID FETCH"), 0, "nothing is asked for by a number that means nothing");
    watching.mail("nameless").await;
    assert_eq!(watching.handed.keys().collect::<Vec<_>>(), [&(7, 1)], "and each mail is handed over with it");
    watching.end().await;
}

#[tokio::test]
async fn a_new_uidvalidity_rereads_the_mailbox() {
    let server = Scripted::start().await;
    server.deliver("first");
    server.deliver("second");
    let mut watching = dedicated(&server);
    watching.mail("second").await;
    watching.idle().await;
    server.change(|state| state.uid_validity = 8);
    once(&server, "news", 1, &[Step::Close]);
    server.deliver("third");
    watching.mail("third").await;
    assert_eq!((watching.times("first"), watching.times("second"), watching.times("third")), (2, 2, 1));
    watching.until_cursor(8, 3).await;
    watching.end().await;
}

#[tokio::test]
async fn a_new_uidvalidity_ends_the_open_connection() {
    let server = Scripted::start().await;
    server.deliver("first");
    once(&server, "news", 1, &[say("* OK [UIDVALIDITY 8] renumbered\r\n"), Step::Usual]);
    let mut watching = dedicated(&server);
    watching.mail("first").await;
    watching.idle().await;
    server.change(|state| state.uid_validity = 8);
    server.deliver("second");
    watching.mail("second").await;
    watching.until_cursor(8, 2).await;
    assert!(watching.handed.keys().all(|key| *key != (7, 2)), "no new mail goes by the old numbers");
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_lower_uidnext_rereads_the_mailbox() {
    let server = Scripted::start().await;
    for subject in ["kept", "lost by the server", "lost too"] {
        server.deliver(subject);
    }
    let mut watching = dedicated(&server);
    watching.mail("lost too").await;
    watching.idle().await;
    once(&server, "news", 1, &[Step::Close]);
    server.change(|state| {
        state.mails.truncate(1);
        state.uid_next = 2;
    });
    server.deliver("under a number that was used before");
    watching.mail("under a number that was used before").await;
    watching.until_cursor(7, 2).await;
    watching.end().await;
}

#[tokio::test]
async fn a_missing_uidnext_is_read_by_status() {
    for start in ["all", "now"] {
        let server = Scripted::start().await;
        server.change(|state| state.tells_uid_next = false);
        server.deliver("before");
        let mut watching = watch(&server, &format!("{DEDICATED}\nstart = {start:?}"));
        watching.old.extend((start == "now").then_some(1));
        watching.idle().await;
        assert_eq!(server.asked("STATUS \"INBOX\" (UIDNEXT)"), 1);
        assert_eq!((server.count("EXAMINE"), server.count("SELECT")), (1, 1), "its numbers may be kept only so");
        server.deliver("after");
        watching.mail("after").await;
        assert_eq!(watching.times("before"), usize::from(start == "all"));
        watching.end().await;
    }
}

#[tokio::test]
async fn a_made_up_uidvalidity_is_not_used() {
    let server = Scripted::start().await;
    server.change(|state| state.tells_uid_next = false);
    // Courier sends another UIDVALIDITY for each EXAMINE until a client has used SELECT.
    server.script(|seen| match seen.name {
        "EXAMINE" => vec![say(&format!("* 1 EXISTS\r\n* OK [UIDVALIDITY {}] now\r\n", 100 + seen.nth)), Step::BareOk],
        "IDLE" if seen.connection == 1 => vec![Step::Usual, Step::Close],
        _ => vec![Step::Usual],
    });
    server.deliver("once");
    let mut watching = dedicated(&server);
    watching.while_server("an IDLE on another connection", |state| state.count("IDLE") == 2).await;
    server.deliver("later");
    watching.mail("later").await;
    assert_eq!(watching.times("once"), 1);
    assert_eq!(watching.handed.keys().copied().collect::<Vec<_>>(), [(7, 1), (7, 2)]);
    watching.end().await;
}

#[tokio::test]
async fn a_recreated_open_mailbox_is_noticed() {
    for capabilities in ["IDLE", "IDLE NOTIFY", ""] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = capabilities.into());
        server.deliver("first");
        let timing = Timing { poll: ms(300), ..quick() };
        let mut watching = watch_in(&server, "dedicated = true\nidle_renew = \"1s\"", timing);
        watching.mail("first").await;
        // Courier does not announce that the mailbox was deleted and created again with the same UIDs.
        always(&server, "news", &[]);
        server.change(|state| {
            (state.uid_validity, state.uid_next) = (8, 1);
            state.mails.clear();
        });
        server.deliver("in the place of the first");
        watching.mail("in the place of the first").await;
        assert_eq!(watching.handed.keys().copied().collect::<Vec<_>>(), [(7, 1), (8, 1)], "{capabilities}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_deleted_mailbox_is_reported_until_it_returns() {
    let server = Scripted::start().await;
    server.deliver("before");
    let mut watching = dedicated(&server);
    watching.mail("before").await;
    watching.idle().await;
    server.script(|seen| match seen.name {
        "news" if seen.connection == 1 => vec![say("* BYE the mailbox was deleted\r\n"), Step::Close],
        _ => vec![Step::Usual],
    });
    server.change(|state| {
        state.mailbox = None;
        state.mails.clear();
    });
    watching.until("words", |w| w.states.iter().any(|(_, e)| e.as_ref().is_some_and(|e| e.contains("no such")))).await;
    server.change(|state| {
        (state.mailbox, state.uid_validity, state.uid_next) = (Some("INBOX".into()), 9, 1);
    });
    server.deliver("in the new one");
    watching.mail("in the new one").await;
    watching.idle().await;
    assert_eq!(*watching.cursor.lock().unwrap(), Some((9, 1)));
    watching.end().await;
}

#[tokio::test]
async fn missing_special_use_mailboxes_are_looked_up_again() {
    let server = Scripted::start().await;
    let timing = Timing { retry_absent: ms(50), ..quick() };
    let mut watching = watch_in(&server, "dedicated = true\nmailboxes = [\"\\\\Junk\"]", timing);
    let error = watching.state(MailboxState::Polling).await.unwrap();
    assert!(error.contains("\\Junk"), "{error}");
    server.change(|state| state.list = vec!["(\\Junk) \"/\" \"Spam &- more\"".into()]);
    server.deliver("misjudged");
    watching.mail("misjudged").await;
    assert_eq!(server.asked("EXAMINE \"Spam &- more\""), 1, "a name goes out as it came in");
    watching.end().await;
}

#[tokio::test]
async fn any_name_of_a_special_use_mailbox_works() {
    for name in ["Spam & more", "Unerwünscht", "&AOQ"] {
        let server = Scripted::start().await;
        server.change(|state| state.list = vec![format!("(\\Junk) \"/\" \"{name}\"")]);
        server.deliver("misjudged");
        let mut watching = watch(&server, "dedicated = true\nidle_renew = \"1s\"\nmailboxes = [\"\\\\Junk\"]");
        watching.mail("misjudged").await;
        let status = format!("STATUS \"{name}\"");
        watching.while_server("a look at the numbering", |state| state.asked(&status) > 0).await;
        assert_eq!(server.asked(&format!("EXAMINE \"{name}\"")), 1, "a name goes out as it came in");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mailbox_is_not_watched_twice() {
    let server = Scripted::start().await;
    server.change(|state| state.list = vec!["(\\Junk) \"/\" \"Spam &- more\"".into()]);
    server.deliver("the other watcher's");
    let mut watching = watch(&server, "dedicated = true\nmailboxes = [\"\\\\Junk\", \"Spam & more\"]");
    let error = watching.state(MailboxState::Polling).await.unwrap();
    assert!(error.contains("\\Junk") && error.contains("Spam & more"), "{error}");
    assert_eq!((watching.handed.len(), server.asked("EXAMINE")), (0, 0));
    watching.end().await;
}

const BEFORE: &str = "05-Mar-2025 03:00:00 +0000";
const LATER: &str = "05-Mar-2025 05:00:00 +0000";

/// Delivers a mail with this INTERNALDATE.
fn deliver_at(state: &mut ServerState, bytes: &[u8], date: &str) -> u32 {
    let uid = state.deliver(bytes);
    state.dates.insert(uid, date.to_owned());
    uid
}

/// Restores the server from a backup with the first `mails` mails.
fn restore(state: &mut ServerState, mails: usize) {
    state.mails.truncate(mails);
    state.uid_next = state.mails.last().map_or(0, |(uid, _)| *uid) + 1;
}

/// Changes the mailbox between two connections.
async fn change_while_disconnected(server: &Scripted, watching: &mut Watching, change: impl FnOnce(&mut ServerState)) {
    once(server, "news", server.count("news") + 1, &[Step::Close]);
    watching.states.clear();
    server.change(change);
    let is_idle_again = |w: &Watching| {
        let mut states = w.states.iter().map(|(state, _)| *state).skip_while(|s| *s != MailboxState::Failed);
        states.any(|state| state == MailboxState::Idle)
    };
    watching.until("another connection", is_idle_again).await;
}

#[tokio::test]
async fn newer_dates_reveal_a_restored_backup() {
    // In the shared mailbox, other people's mails replace other people's mails, and none of them has a row.
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.change(|state| {
            deliver_at(state, &notification("kept"), BEFORE);
            (0..4).for_each(|_| _ = deliver_at(state, &other("lost"), BEFORE));
        });
        let mut watching = watch(&server, keys);
        watching.until_cursor(7, 5).await;
        watching.idle().await;
        change_while_disconnected(&server, &mut watching, |state| {
            restore(state, 1);
            deliver_at(state, &notification("under a number that was passed"), LATER);
            (0..5).for_each(|_| _ = deliver_at(state, &other("new"), LATER));
            // The last mail that was read no longer exists.
            state.mails.retain(|(uid, _)| *uid != 5);
        })
        .await;
        watching.mail("under a number that was passed").await;
        // The renumbering is noticed only once, although other people's mails leave no rows to compare.
        let kept = watching.times("kept");
        assert_eq!(kept, 2, "all was read anew");
        for n in 0..3 {
            let subject = format!("then {n}");
            change_while_disconnected(&server, &mut watching, |state| {
                _ = deliver_at(state, &notification(&subject), LATER)
            })
            .await;
            watching.mail(&subject).await;
        }
        assert_eq!(watching.times("kept"), kept, "{keys}");
        watching.end().await;
    }
}

#[tokio::test]
async fn another_mail_under_a_known_uid_is_renumbering() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.change(|state| (0..3).for_each(|n| _ = deliver_at(state, &notification(&format!("{n}")), LATER)));
        let mut watching = watch(&server, keys);
        watching.mail("2").await;
        watching.idle().await;
        change_while_disconnected(&server, &mut watching, |state| {
            restore(state, 1);
            deliver_at(state, &notification("filed late"), BEFORE);
            // In the shared mailbox, other people's mails leave no rows. These mails must not look like a second renumbering.
            (0..3).for_each(|_| _ = deliver_at(state, &other("filed late, too"), BEFORE));
        })
        .await;
        watching.mail("filed late").await;
        assert_eq!(watching.times("0"), 2);
        for n in 3..6 {
            let subject = n.to_string();
            change_while_disconnected(&server, &mut watching, |state| {
                _ = deliver_at(state, &notification(&subject), LATER)
            })
            .await;
            watching.mail(&subject).await;
        }
        assert_eq!(watching.times("0"), 2, "{keys}");
        watching.end().await;
    }
}

#[tokio::test]
async fn wrong_server_clocks_are_no_renumbering() {
    let hour = |hours: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        at.strftime("%d-%b-%Y %H:%M:%S +0000").to_string()
    };
    // The server's clock is far behind ours, an hour ahead, or ten years ahead.
    for date in [BEFORE.to_owned(), hour(1), hour(24 * 365 * 10)] {
        for keys in [DEDICATED, SHARED] {
            let server = Scripted::start().await;
            server.change(|state| _ = deliver_at(state, &notification("first"), &date));
            let mut watching = watch(&server, keys);
            watching.mail("first").await;
            watching.idle().await;
            for n in 0..3 {
                let subject = format!("then {n}");
                change_while_disconnected(&server, &mut watching, |state| {
                    // The last mail that was read is removed. Three mails arrive: another person's, one that was moved
                    // here with its old date, and a new one.
                    state.mails.truncate(state.mails.len().saturating_sub(1).max(1));
                    deliver_at(state, &other("not ours"), &date);
                    deliver_at(state, &notification("moved"), BEFORE);
                    deliver_at(state, &notification(&subject), &date);
                })
                .await;
                watching.mail(&subject).await;
                assert_eq!(watching.times(&subject), 1, "{date} {keys}");
            }
            assert_eq!((watching.times("first"), watching.times("moved")), (1, 3), "{date} {keys}");
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn impossible_dates_are_ignored() {
    let server = Scripted::start().await;
    server.change(|state| {
        deliver_at(state, &notification("kept"), BEFORE);
        deliver_at(state, &other("in 2038"), "19-Jan-2038 03:14:07 +0000");
        deliver_at(state, &other("lost"), BEFORE);
    });
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 3).await;
    watching.idle().await;
    change_while_disconnected(&server, &mut watching, |state| {
        restore(state, 2);
        deliver_at(state, &notification("under a number that was passed"), LATER);
        deliver_at(state, &other("new"), LATER);
    })
    .await;
    watching.mail("under a number that was passed").await;
    watching.end().await;
}

#[tokio::test]
async fn a_missing_newest_date_is_read_at_once() {
    let server = Scripted::start().await;
    server.change(|state| {
        deliver_at(state, &notification("kept"), BEFORE);
        (0..4).for_each(|_| _ = deliver_at(state, &other("lost"), BEFORE));
    });
    let cursor = std::sync::Arc::new(std::sync::Mutex::new(Some((7, 5))));
    let mut watching = Watching::from_cursor(settings(server.port, SHARED), quick(), cursor);
    watching.idle().await;
    change_while_disconnected(&server, &mut watching, |state| {
        restore(state, 1);
        deliver_at(state, &notification("under a number that was passed"), LATER);
        (0..5).for_each(|_| _ = deliver_at(state, &other("new"), LATER));
    })
    .await;
    watching.mail("under a number that was passed").await;
    watching.end().await;
}

/// Dates are stored only for the last mails that were read. The comparison uses these dates, although a mail with a lower UID
/// has a newer date.
#[tokio::test]
async fn only_the_last_uids_are_compared() {
    let server = Scripted::start().await;
    server.change(|state| {
        (0..50).for_each(|_| _ = deliver_at(state, &other("moved here"), "05-Mar-2025 09:00:00 +0000"));
        (0..1_250).for_each(|_| _ = deliver_at(state, &other("not ours"), BEFORE));
    });
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 1_300).await;
    watching.idle().await;
    change_while_disconnected(&server, &mut watching, |state| _ = deliver_at(state, &notification("new"), LATER)).await;
    watching.mail("new").await;
    assert_eq!(server.asked("UID FETCH 1:* "), 1, "it is the same mailbox");
    change_while_disconnected(&server, &mut watching, |state| {
        restore(state, 1_250);
        deliver_at(state, &notification("under a number that was passed"), "05-Mar-2025 06:00:00 +0000");
        (0..60).for_each(|_| _ = deliver_at(state, &other("new"), "05-Mar-2025 06:00:00 +0000"));
    })
    .await;
    watching.mail("under a number that was passed").await;
    watching.end().await;
}

#[tokio::test]
async fn the_comparison_costs_one_bounded_round_trip() {
    let server = Scripted::start().await;
    server.change(|state| (0..1000).for_each(|_| _ = state.deliver(&other("not ours"))));
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 1000).await;
    watching.idle().await;
    let before = server.lines().len();
    change_while_disconnected(&server, &mut watching, |state| _ = state.deliver(&notification("new"))).await;
    watching.mail("new").await;
    let lines: Vec<_> = server.lines().into_iter().skip(before).filter(|line| line.contains("FETCH")).collect();
    assert!(lines[0].contains("UID FETCH 801:1000 (UID INTERNALDATE)"), "{lines:?}");
    assert!(lines[1].contains("UID FETCH 1001:* (UID)"), "{lines:?}");
    watching.end().await;
}

#[tokio::test]
async fn a_failed_comparison_moves_no_cursor() {
    for steps in [&[Step::Close][..], &[Step::Untagged, Step::Close], &[say("{tag} NO not now\r\n")], &[Step::Mute]] {
        let server = Scripted::start().await;
        server.change(|state| (0..3).for_each(|n| _ = deliver_at(state, &notification(&format!("{n}")), BEFORE)));
        let mut watching = dedicated(&server);
        watching.mail("2").await;
        watching.idle().await;
        let fetches = server.count("UID FETCH");
        let steps = steps.to_vec();
        server.script(move |seen| match seen.name {
            "news" if seen.nth == 1 => vec![Step::Close],
            "UID FETCH" if seen.nth == fetches + 1 => steps.clone(),
            _ => vec![Step::Usual],
        });
        server.change(|state| {
            restore(state, 1);
            (3..7).for_each(|n| _ = deliver_at(state, &notification(&format!("{n}")), LATER));
        });
        for n in 3..7 {
            watching.mail(&n.to_string()).await;
        }
        watching.end().await;
    }
}
