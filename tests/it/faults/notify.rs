//! NOTIFY (RFC 5465): pushed mails are used because they are early, but they do not move the cursor past unread mails.

use super::*;
use resmic_mailhook::model::MailboxState;
use testkit::scripted::connection::fetch_response;
use testkit::scripted::{notification, other};

const ITEMS: &str = "RFC822.SIZE BODY.PEEK[]";

async fn idle_watcher(keys: &str) -> (Scripted, Watching) {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "IDLE NOTIFY".into());
    let mut watching = watch(&server, keys);
    watching.while_server("an IDLE", |state| state.count("IDLE") == 1).await;
    (server, watching)
}

fn pushed(sequence_number: usize, uid: u32, subject: &str) -> Step {
    Step::Say(String::from_utf8(fetch_response(sequence_number, uid, &notification(subject), ITEMS)).unwrap())
}

#[tokio::test]
async fn a_pushed_mail_costs_no_command() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    let before = server.lines().len();
    server.deliver("pushed");
    watching.mail("pushed").await;
    watching.until_cursor(7, 1).await;
    assert_eq!(server.lines().len(), before, "{:?}", server.lines());
    watching.end().await;
}

#[tokio::test]
async fn shared_mailbox_gets_headers_pushed() {
    let (server, mut watching) = idle_watcher(SHARED).await;
    assert_eq!((server.asked("NOTIFY SET"), server.asked("BODY.PEEK[]")), (1, 0));
    server.change(|state| state.deliver(&other("a letter")));
    server.deliver("ours");
    watching.mail("ours").await;
    assert_eq!((watching.times("a letter"), server.asked("UID FETCH 2 ("), server.asked("BODY.PEEK[]")), (0, 1, 1));
    watching.end().await;
}

#[tokio::test]
async fn a_refused_notify_is_not_needed() {
    for answer in ["{tag} NO [BADEVENT] (FlagChange)\r\n", "{tag} BAD unknown\r\n"] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = "IDLE NOTIFY".into());
        always(&server, "NOTIFY", &[say(answer)]);
        let mut watching = watch(&server, DEDICATED);
        watching.idle().await;
        server.deliver("announced");
        watching.mail("announced").await;
        assert_eq!(server.connections(), 1);
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mail_that_is_not_pushed_is_fetched() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    let grace = quick().push_grace;
    // The server announces the mail but does not push it.
    always(&server, "news", &[Step::Announce]);
    for n in 0..2 {
        server.deliver(&format!("slow {n}"));
        assert!(watching.mail(&format!("slow {n}")).await >= grace);
        watching.until("the cursor", |w| w.cursor.lock().unwrap().is_some_and(|(_, last)| last == n + 1)).await;
    }
    server.deliver("prompt");
    assert!(watching.mail("prompt").await < grace, "what was promised and not kept twice is not waited for again");
    watching.end().await;
}

#[tokio::test]
async fn the_rest_of_a_partial_push_is_fetched() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    // The server pushes only the second of three mails. Later it pushes a mail without its body.
    once(&server, "news", 1, &[Step::Announce, pushed(2, 2, "second")]);
    server.change(|state| {
        for subject in ["first", "second", "third"] {
            state.deliver(&notification(subject));
        }
    });
    for subject in ["second", "first", "third"] {
        watching.mail(subject).await;
    }
    watching.until_cursor(7, 3).await;
    once(
        &server,
        "news",
        2,
        &[Step::Announce, say("* 4 FETCH (UID 4 INTERNALDATE \"05-Mar-2025 03:36:00 +0000\")\r\n")],
    );
    server.deliver("fourth");
    watching.mail("fourth").await;
    assert!(["first", "second", "third", "fourth"].iter().all(|subject| watching.times(subject) == 1));
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_wrong_uid_in_a_push_skips_nothing() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    once(&server, "news", 1, &[Step::Announce, pushed(1, 9, "under a wrong number")]);
    server.deliver("unread");
    watching.mail("under a wrong number").await;
    assert!(watching.cursor.lock().unwrap().is_none_or(|(_, last)| last == 0));
    watching.mail("unread").await;
    for n in 2..=4 {
        server.deliver(&format!("number {n}"));
        watching.mail(&format!("number {n}")).await;
    }
    watching.end().await;
}

#[tokio::test]
async fn an_unsolicited_fetch_response_skips_nothing() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        let mut watching = watch(&server, keys);
        watching.while_server("an IDLE", |state| state.count("IDLE") == 1).await;
        once(&server, "DONE", 1, &[pushed(1, 9, "under a wrong number"), Step::Usual]);
        for n in 1..=3 {
            server.deliver(&format!("number {n}"));
            watching.mail(&format!("number {n}")).await;
        }
        assert_eq!(watching.times("under a wrong number"), 1);
        watching.until_cursor(7, 3).await;
        watching.end().await;
    }
}

#[tokio::test]
async fn a_push_of_an_old_uid_is_dropped() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    server.deliver("first");
    watching.mail("first").await;
    once(&server, "news", 2, &[pushed(1, 1, "first again"), Step::Usual]);
    server.deliver("second");
    watching.mail("second").await;
    assert_eq!(watching.times("first again"), 0);
    assert_eq!(watching.handed[&(7, 1)].1, 1);
    watching.end().await;
}

#[tokio::test]
async fn a_notification_overflow_ends_only_the_pushes() {
    let (server, mut watching) = idle_watcher(DEDICATED).await;
    always(&server, "news", &[say("* OK [NOTIFICATIONOVERFLOW] too much to tell\r\n"), Step::Announce]);
    for n in 0..4 {
        server.deliver(&format!("number {n}"));
        watching.mail(&format!("number {n}")).await;
    }
    assert_eq!(server.connections(), 1);
    assert!(watching.states.iter().all(|(state, _)| *state != MailboxState::Failed));
    watching.end().await;
}
