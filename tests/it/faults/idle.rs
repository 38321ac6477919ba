//! The watcher notices a change at once, whenever the server announces it, and survives each irregular end of an IDLE.

use super::*;
use testkit::watching::dedicated;

/// The limit for "at once" on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A watcher in IDLE on an empty mailbox, renewed once a minute.
async fn idle_watcher(server: &Scripted) -> Watching {
    let mut watching = dedicated(server);
    watching.idle().await;
    watching
}

#[tokio::test]
async fn exists_before_a_tagged_ok_is_used() {
    for nth in 1..=2 {
        let server = Scripted::start().await;
        server.deliver("first");
        // The mail arrives after the server built its response. Only the EXISTS before the OK announces it.
        once(&server, "UID FETCH", nth, &[Step::Untagged, Step::Deliver("second"), Step::Ok]);
        let mut watching = dedicated(&server);
        assert!(watching.mail("second").await < AT_ONCE);
        watching.end().await;
    }
    let server = Scripted::start().await;
    let mut watching = idle_watcher(&server).await;
    once(&server, "UID FETCH", 2, &[Step::Untagged, Step::Deliver("second"), Step::Ok]);
    server.deliver("first");
    assert!(watching.mail("second").await < AT_ONCE);
    watching.end().await;
}

#[tokio::test]
async fn exists_before_the_continuation_is_used() {
    let server = Scripted::start().await;
    once(&server, "IDLE", 1, &[say("* 1 EXISTS\r\n"), Step::Deliver("early"), Step::Usual]);
    let mut watching = dedicated(&server);
    assert!(watching.mail("early").await < AT_ONCE);
    watching.end().await;
}

#[tokio::test]
async fn done_waits_for_the_continuation() {
    // The three cases are the first IDLE, an IDLE that is pipelined after a FETCH, and an IDLE after a MOVE.
    for (nth, keys) in [(1, ""), (2, ""), (3, "after = { move = \"Resmic\" }")] {
        let server = Scripted::start().await;
        let mut watching = watch(&server, &format!("{DEDICATED}\n{keys}"));
        let steps = [say("* 1 EXISTS\r\n"), Step::Deliver("early"), Step::Pause(ms(100)), Step::Overhear, Step::Usual];
        once(&server, "IDLE", nth, &steps);
        if nth > 1 {
            watching.idle().await;
            server.deliver("before");
        }
        assert!(watching.mail("early").await < AT_ONCE);
        assert_eq!(server.connections(), 1, "{nth}");
        watching.end().await;
    }
}

#[tokio::test]
async fn shutdown_before_the_continuation_is_soon() {
    let server = Scripted::start().await;
    once(&server, "IDLE", 1, &[Step::Pause(ms(100)), Step::Overhear, Step::Usual]);
    let mut watching = dedicated(&server);
    watching.while_server("an IDLE", |state| state.count("IDLE") == 1).await;
    let began = std::time::Instant::now();
    watching.end().await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(server.count("LOGOUT"), 1);
}

#[tokio::test]
async fn a_mail_between_fetch_and_idle_is_read() {
    for name in ["UID FETCH", "EXAMINE", "CAPABILITY"] {
        let server = Scripted::start().await;
        once(&server, name, 1, &[Step::Usual, Step::Deliver("between")]);
        let mut watching = dedicated(&server);
        assert!(watching.mail("between").await < AT_ONCE, "{name}");
        watching.end().await;
    }
}

#[tokio::test]
async fn exists_at_the_end_of_idle_is_used() {
    let server = Scripted::start().await;
    let mut watching = watch(&server, "dedicated = true\nidle_renew = \"1s\"");
    watching.idle().await;
    once(&server, "DONE", 1, &[Step::Deliver("with the end"), Step::Ok]);
    assert!(watching.mail("with the end").await < AT_ONCE);
    watching.end().await;
}

#[tokio::test]
async fn end_of_stream_in_idle_is_a_disconnect() {
    for way in [Step::Close, Step::Reset] {
        let server = Scripted::start().await;
        once(&server, "IDLE", 1, &[Step::Usual, way]);
        let mut watching = dedicated(&server);
        watching.while_server("a second IDLE", |state| state.count("IDLE") == 2).await;
        server.deliver("after");
        assert!(watching.mail("after").await < AT_ONCE);
        watching.end().await;
    }
}

#[tokio::test]
async fn a_bye_in_idle_leads_to_a_reconnect() {
    let server = Scripted::start().await;
    let bye = "* BYE Session invalidated - AccessTokenExpired\r\n";
    once(&server, "IDLE", 1, &[Step::Usual, say(bye), Step::Mute]);
    let mut watching = dedicated(&server);
    watching.while_server("a second IDLE", |state| state.count("IDLE") == 2).await;
    let is_reported =
        watching.states.iter().any(|(_, error)| error.as_ref().is_some_and(|w| w.contains("AccessTokenExpired")));
    assert!(is_reported, "{:?}", watching.states);
    assert_eq!(server.count("LOGIN"), 2);
    server.deliver("after");
    assert!(watching.mail("after").await < AT_ONCE);
    watching.end().await;
}

#[tokio::test]
async fn a_refused_idle_is_replaced_by_polling() {
    for answer in ["{tag} NO not today\r\n", "{tag} BAD what is that\r\n"] {
        let server = Scripted::start().await;
        always(&server, "IDLE", &[say(answer)]);
        let timing = Timing { poll: ms(50), ..quick() };
        let mut watching = watch_in(&server, DEDICATED, timing);
        watching.state(resmic_mailhook::model::MailboxState::Polling).await;
        server.deliver("polled");
        assert!(watching.mail("polled").await < AT_ONCE);
        assert_eq!((server.count("IDLE"), server.connections()), (1, 1), "it is not asked again");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_server_without_idle_is_polled() {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "NOTIFY".into());
    let mut watching = watch_in(&server, DEDICATED, Timing { poll: ms(50), ..quick() });
    watching.state(resmic_mailhook::model::MailboxState::Polling).await;
    server.deliver("polled");
    assert!(watching.mail("polled").await < AT_ONCE);
    assert_eq!((server.count("IDLE"), server.count("NOTIFY")), (0, 0));
    watching.end().await;
}

#[tokio::test]
async fn an_idle_ended_by_the_server_is_repeated() {
    let server = Scripted::start().await;
    let mut watching = idle_watcher(&server).await;
    once(&server, "news", 1, &[Step::EndIdle, Step::Usual]);
    server.deliver("with its end");
    assert!(watching.mail("with its end").await < AT_ONCE);
    server.deliver("after");
    assert!(watching.mail("after").await < AT_ONCE);
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn short_idles_are_repeated() {
    let server = Scripted::start().await;
    // The IDLE lasts longer than `Timing::refetch`, so the watcher does not poll instead. But it ends long before the renewal.
    always(&server, "IDLE", &[Step::Usual, Step::Pause(ms(120)), Step::EndIdle]);
    let mut watching = dedicated(&server);
    watching.while_server("eight IDLEs", |state| state.count("IDLE") >= 8).await;
    server.deliver("all the same");
    assert!(watching.mail("all the same").await < AT_ONCE);
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_close_in_idle_is_reconnected_at_once() {
    let server = Scripted::start().await;
    always(&server, "IDLE", &[Step::Usual, Step::Pause(ms(100)), Step::Close]);
    let timing = Timing { steady: ms(80), ..quick() };
    let mut watching = watch_in(&server, DEDICATED, timing);
    for n in 0..8 {
        server.deliver(&format!("number {n}"));
        assert!(watching.mail(&format!("number {n}")).await < AT_ONCE);
        let before = server.connections();
        watching.while_server("a new connection", |state| state.connections() > before).await;
    }
    watching.end().await;
}

#[tokio::test]
async fn a_server_that_ends_idle_is_polled() {
    let server = Scripted::start().await;
    always(&server, "IDLE", &[Step::Usual, Step::EndIdle]);
    let mut watching = watch_in(&server, DEDICATED, Timing { poll: ms(50), refetch: ms(500), ..quick() });
    watching.state(resmic_mailhook::model::MailboxState::Polling).await;
    let idles = server.count("IDLE");
    assert!(idles < 10, "{idles}");
    server.deliver("polled");
    assert!(watching.mail("polled").await < AT_ONCE);
    assert_eq!(server.count("IDLE"), idles);
    watching.end().await;
}

#[tokio::test]
async fn a_done_after_the_idle_is_no_failure() {
    let server = Scripted::start().await;
    let mut watching = idle_watcher(&server).await;
    // The server has ended the IDLE and treats the DONE as a command.
    once(&server, "DONE", 1, &[Step::Ok, say("DONE BAD unknown command\r\n")]);
    server.deliver("at the crossing");
    assert!(watching.mail("at the crossing").await < AT_ONCE);
    once(&server, "DONE", 2, &[Step::Ok, say("* BAD unknown command\r\n")]);
    server.deliver("after");
    assert!(watching.mail("after").await < AT_ONCE);
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

// The server reads on another thread. So it would see separate writes as separate reads, at least sometimes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn done_fetch_and_idle_leave_in_one_write() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        let mut watching = watch(&server, keys);
        watching.idle().await;
        for n in 1..=50 {
            server.deliver(&format!("number {n}"));
            watching.mail(&format!("number {n}")).await;
            watching.idle().await;
        }
        let reads = server.state().reads.clone();
        let mut begun = reads.iter().filter(|read| read.starts_with("DONE\r\n"));
        assert!(begun.clone().count() >= 50);
        assert!(begun.all(|read| read.contains(" UID FETCH ") && read.ends_with(" IDLE\r\n")), "{reads:?}");
        watching.end().await;
    }
}

#[tokio::test]
async fn commands_dropped_after_done_cost_one_timeout() {
    let server = Scripted::start().await;
    let mut watching = idle_watcher(&server).await;
    // Stalwart before 0.10 answers the DONE and drops the commands in the same packet.
    server.script(|seen| match seen.name {
        "DONE" => vec![Step::Usual, Step::Overhear],
        _ => vec![Step::Usual],
    });
    server.deliver("late");
    watching.mail("late").await;
    watching.idle().await;
    assert_eq!(server.connections(), 2);
    for n in 0..5 {
        server.deliver(&format!("number {n}"));
        assert!(watching.mail(&format!("number {n}")).await < AT_ONCE);
        watching.idle().await;
    }
    assert_eq!(server.connections(), 2);
    // On a new connection, the watcher still remembers that this server drops such commands.
    once(&server, "news", server.count("news") + 1, &[Step::Close]);
    server.deliver("on a new connection");
    watching.mail("on a new connection").await;
    server.script(|seen| match seen.name {
        "DONE" => vec![Step::Usual, Step::Overhear],
        _ => vec![Step::Usual],
    });
    watching.idle().await;
    server.deliver("at last");
    assert!(watching.mail("at last").await < AT_ONCE);
    assert_eq!(server.connections(), 3);
    watching.end().await;
}
