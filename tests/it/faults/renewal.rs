//! IDLE is renewed on time, whatever the server sends, and a renewal costs little for an idle mailbox.

use super::*;
use testkit::watching::dedicated;

const EACH_SECOND: &str = "dedicated = true\nidle_renew = \"1s\"";

#[tokio::test]
async fn sweeps_of_an_idle_mailbox_fetch_no_bodies() {
    let ways = ["IDLE", "IDLE NOTIFY", ""].map(|way| [(way, EACH_SECOND), (way, "idle_renew = \"1s\"")]).concat();
    let runs = ways.into_iter().map(|(capabilities, keys)| async move {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = capabilities.into());
        server.deliver("read once");
        let mut watching = watch_in(&server, keys, Timing { poll: ms(300), ..quick() });
        watching.mail("read once").await;
        let before = server.asked("BODY.PEEK[");
        watching.while_server("three sweeps", |state| state.asked("UID FETCH 2:* (UID)") >= 3).await;
        assert_eq!(server.asked("BODY.PEEK["), before, "{keys} {capabilities}");
        watching.end().await;
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_sweep_finds_unannounced_mails() {
    let server = Scripted::start().await;
    server.deliver("known");
    let mut watching = watch(&server, EACH_SECOND);
    watching.mail("known").await;
    watching.idle().await;
    always(&server, "news", &[]);
    server.deliver("never announced");
    watching.mail("never announced").await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn the_renewal_is_per_account() {
    let server = Scripted::start().await;
    let (mut often, mut seldom) = (watch(&server, EACH_SECOND), dedicated(&server));
    often.idle().await;
    seldom.idle().await;
    often.while_server("three ends of an IDLE", |state| state.count("DONE") >= 3).await;
    let connections: std::collections::BTreeSet<String> = server
        .state()
        .lines
        .iter()
        .filter(|line| line.ends_with(" DONE"))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(connections.len(), 1, "only one of the two is renewed by now");
    often.end().await;
    seldom.end().await;
}

#[tokio::test]
async fn keepalives_do_not_delay_the_renewal() {
    let server = Scripted::start().await;
    always(&server, "IDLE", &[Step::Usual, Step::Chatter("* OK still here\r\n", ms(20))]);
    let mut watching = watch(&server, EACH_SECOND);
    watching.while_server("two renewals", |state| state.count("DONE") >= 2).await;
    watching.end().await;
}

#[tokio::test]
async fn a_dead_connection_is_noticed_at_the_renewal() {
    let server = Scripted::start().await;
    once(&server, "IDLE", 1, &[Step::Usual, Step::Mute]);
    let mut watching = watch(&server, EACH_SECOND);
    watching.idle().await;
    server.deliver("into the silence");
    // One second until the renewal, and one for the timeout of its answer.
    assert!(watching.mail("into the silence").await < Duration::from_secs(6));
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_refused_status_is_not_repeated() {
    for way in ["IDLE", ""] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = way.into());
        always(&server, "STATUS", &[say("{tag} NO not of the mailbox that is selected\r\n")]);
        let mut watching = watch_in(&server, EACH_SECOND, Timing { poll: ms(300), ..quick() });
        // One sync and one sweep for each of two connections, and two more sweeps.
        watching.while_server("four looks", |state| state.asked("UID FETCH 1:* (UID)") >= 6).await;
        assert_eq!((server.asked("STATUS \"INBOX\" (UIDVALIDITY)"), server.connections()), (1, 2), "{way}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_dead_connection_is_noticed_within_ten_minutes() {
    let settings = testkit::watching::settings(1, "");
    let silence = settings.idle_renew.0 + Timing::default().answer;
    assert!(silence <= Duration::from_secs(600), "{silence:?}");
}

#[tokio::test]
async fn a_server_that_hangs_is_left() {
    let steps = [
        ("greeting", 1),
        ("LOGIN", 1),
        ("CAPABILITY", 1),
        ("EXAMINE", 1),
        ("NOTIFY", 1),
        ("UID FETCH", 1),
        ("UID FETCH", 2),
        ("IDLE", 1),
        ("DONE", 1),
        ("UID FETCH", 3),
    ];
    let timing = Timing { answer: ms(300), login: ms(300), ..quick() };
    let runs = steps.map(|(name, nth)| async move {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = if name == "NOTIFY" { "IDLE NOTIFY" } else { "IDLE" }.into());
        server.deliver("first");
        once(&server, name, nth, &[Step::Mute]);
        let mut watching = watch_in(&server, EACH_SECOND, timing);
        watching.mail("first").await;
        watching.while_server("the step", |state| state.count(name) >= nth).await;
        watching.while_server("a second connection", |state| state.connections() >= 2).await;
        let found = |w: &Watching| w.states.iter().any(|(_, e)| e.as_ref().is_some_and(|e| e.contains("no answer")));
        watching.until("its words", found).await;
        server.deliver("second");
        watching.mail("second").await;
        watching.end().await;
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_late_response_belongs_to_no_other_command() {
    let server = Scripted::start().await;
    server.deliver("unread");
    // The response comes after the timeout. The watcher sends no other command on this connection, so it cannot take the late
    // response for the response to another command.
    once(&server, "UID FETCH", 1, &[Step::Pause(ms(600)), say("{tag} OK nothing there\r\n")]);
    let mut watching = watch_in(&server, DEDICATED, Timing { answer: ms(200), ..quick() });
    watching.mail("unread").await;
    let lines = server.lines();
    let first: Vec<_> = lines.iter().filter(|line| line.starts_with("1 ")).collect();
    assert!(first.last().unwrap().contains("UID FETCH 1:* "), "{lines:?}");
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_mailbox_without_answers_does_not_look_active() {
    let server = Scripted::start().await;
    always(&server, "EXAMINE", &[Step::Mute]);
    let mut watching = watch_in(&server, DEDICATED, Timing { answer: ms(100), ..quick() });
    watching.while_server("three attempts", |state| state.connections() >= 3).await;
    assert_eq!(watching.seen, 0, "no round trip is claimed that was not completed");
    assert!(watching.states.iter().any(|(_, error)| error.is_some()), "and it says what is wrong");
    server.script(|_| vec![Step::Usual]);
    watching.idle().await;
    assert!(watching.seen > 0);
    watching.end().await;
}
