//! The cursor passes a mail only if the mail was handed over or has a row, or if a tagged OK proved that it does not exist.
//! `Watching` checks this rule at each report.

use super::*;
use testkit::scripted::notification;
use testkit::watching::dedicated;

/// Replaces the `nth` response to this command with each of these answers in turn. The mailbox has one mail, which must arrive
/// each time.
async fn survives_answers(name: &'static str, nth: usize, answers: &[&[Step]]) {
    for keys in [DEDICATED, SHARED] {
        for steps in answers {
            let server = Scripted::start().await;
            server.deliver("unread");
            once(&server, name, nth, steps);
            let mut watching = watch(&server, keys);
            watching.mail("unread").await;
            assert!(server.count(name) >= nth, "{name} was not asked {nth} times");
            watching.idle().await;
            assert_eq!(*watching.cursor.lock().unwrap(), Some((7, 1)), "{name} {nth} {steps:?}");
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn end_of_stream_is_no_empty_fetch() {
    let half = &[say("* 1 FETCH (UID 1 INTERNALDATE \"05-Mar"), Step::Close][..];
    for nth in 1..=2 {
        survives_answers("UID FETCH", nth, &[&[Step::Close], &[Step::CloseHalf], &[Step::Reset], half]).await;
    }
    // A complete response without its tagged OK proves nothing either.
    survives_answers("UID FETCH", 1, &[&[Step::Untagged, Step::Close]]).await;
}

#[tokio::test]
async fn end_of_stream_is_no_answer_to_examine() {
    survives_answers("EXAMINE", 1, &[&[Step::Close], &[Step::Untagged, Step::Close]]).await;
    survives_answers("CAPABILITY", 1, &[&[Step::Close], &[Step::Untagged, Step::Close]]).await;
}

#[tokio::test]
async fn a_tagged_no_or_bad_is_no_success() {
    let answers: &[&[Step]] = &[&[say("{tag} NO not now\r\n")], &[say("{tag} BAD what\r\n")]];
    for name in ["CAPABILITY", "EXAMINE"] {
        survives_answers(name, 1, answers).await;
    }
    for nth in 1..=2 {
        survives_answers("UID FETCH", nth, answers).await;
    }
}

#[tokio::test]
async fn the_answer_to_another_command_is_no_success() {
    survives_answers("UID FETCH", 1, &[&[say("A9999 OK done\r\n")], &[say("+ go on\r\n")]]).await;
}

#[tokio::test]
async fn a_parse_error_is_no_empty_mailbox() {
    let answers: &[&[Step]] = &[
        &[say("* 1 FETCH (UID one BODY[] ?\r\n"), Step::Ok],
        &[say("* 1 FETCH (UID 1 BODY[] {3}\r\nab)\r\n"), Step::Ok],
        &[say("\0\u{1}\u{2}\r\n"), Step::Ok],
    ];
    for nth in 1..=2 {
        survives_answers("UID FETCH", nth, answers).await;
    }
}

#[tokio::test]
async fn a_mail_below_the_range_is_dropped() {
    for capabilities in ["IDLE", ""] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = capabilities.into());
        server.deliver("read long ago");
        server.deliver("read before");
        let timing = Timing { poll: ms(100), ..quick() };
        let mut watching = watch_in(&server, "dedicated = true\nidle_renew = \"1s\"", timing);
        watching.mail("read before").await;
        // Each sweep fetches 3:*. `*` is the last mail, so the server sends mail 2 (RFC 3501, 9).
        watching.while_server("two sweeps", |state| state.asked("UID FETCH 3:* ") >= 2).await;
        server.deliver("new");
        watching.mail("new").await;
        watching.until_cursor(7, 3).await;
        assert_eq!((watching.times("read before"), watching.times("read long ago")), (1, 1));
        watching.end().await;
    }
}

#[tokio::test]
async fn a_disconnect_at_any_step_loses_nothing() {
    let steps = [
        ("greeting", 1),
        ("LOGIN", 1),
        ("CAPABILITY", 1),
        ("EXAMINE", 1),
        ("UID FETCH", 1),
        ("UID FETCH", 2),
        ("IDLE", 1),
        ("news", 1),
        ("DONE", 1),
        ("UID FETCH", 3),
        ("IDLE", 2),
    ];
    for (name, nth) in steps {
        for answer in [&[Step::Close][..], &[Step::Untagged, Step::Close], &[Step::Usual, Step::Reset]] {
            let server = Scripted::start().await;
            server.deliver("before");
            once(&server, name, nth, answer);
            let mut watching = dedicated(&server);
            watching.mail("before").await;
            server.deliver("later");
            watching.mail("later").await;
            server.until("the step", |state| state.count(name) >= nth).await;
            watching.until_cursor(7, 2).await;
            // Mails above the cursor may arrive twice.
            assert!(watching.times("before") <= 2 && watching.times("later") <= 2, "{name} {nth} {answer:?}");
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn mails_below_the_cursor_are_not_downloaded_again() {
    let server = Scripted::start().await;
    server.change(|state| {
        (0..20).for_each(|n| {
            state.deliver(&notification(&format!("old {n}")));
        })
    });
    let mut watching = dedicated(&server);
    watching.mail("old 19").await;
    watching.idle().await;
    for n in 0..5 {
        let connection = server.connections();
        once(&server, "news", n + 1, &[Step::Close]);
        server.deliver(&format!("new {n}"));
        watching.while_server("a new connection", |state| state.connections() > connection).await;
        watching.mail(&format!("new {n}")).await;
    }
    assert!(watching.handed.values().all(|(_, times)| *times == 1), "each once");
    watching.end().await;
}
