//! `after`: the action on the server for a notification, after it is stored and never before.

use super::*;
use testkit::scripted::other;

const MOVE: &str = "dedicated = true\nidle_renew = \"1m\"\nafter = { move = \"Resmic & done\" }";
const SEEN: &str = "dedicated = true\nidle_renew = \"1m\"\nafter = \"seen\"";
/// The target mailbox in its encoded form.
const TARGET: &str = "\"Resmic &- done\"";

/// Starts a server with these capabilities, and a watcher. One mail exists at the start, and one arrives during the IDLE. Waits
/// until `after` is applied to both mails with commands that contain `last`.
async fn apply_after(keys: &str, capabilities: &str, last: &'static str) -> (Scripted, Watching) {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = capabilities.into());
    server.deliver("waits");
    let mut watching = watch(&server, keys);
    watching.mail("waits").await;
    watching.while_server("the first is put away", move |state| state.asked(last) == 1).await;
    watching.idle().await;
    server.deliver("comes");
    watching.mail("comes").await;
    watching.while_server("the second is put away", move |state| state.asked(last) == 2).await;
    watching.idle().await;
    (server, watching)
}

/// Checks that no command expunges deleted mails of other clients.
fn assert_no_bare_expunge(server: &Scripted) {
    let lines = server.lines();
    let bare = |line: &&String| line.contains(" EXPUNGE") && !line.contains(" UID EXPUNGE ") || line.contains(" CLOSE");
    assert_eq!(lines.iter().find(bare), None);
}

#[tokio::test]
async fn after_leave_opens_the_mailbox_read_only() {
    let server = Scripted::start().await;
    server.deliver("left alone");
    let mut watching = watch(&server, DEDICATED);
    watching.mail("left alone").await;
    watching.idle().await;
    assert_eq!((server.asked(" EXAMINE "), server.asked(" SELECT ")), (1, 0));
    assert_eq!(server.asked("STORE") + server.asked("MOVE") + server.asked("COPY") + server.asked("EXPUNGE"), 0);
    watching.end().await;
}

#[tokio::test]
async fn after_seen_marks_only_notifications() {
    let (server, watching) = apply_after(SEEN, "IDLE", "UID STORE").await;
    assert_eq!(server.asked("UID STORE 1 +FLAGS.SILENT (\\Seen)"), 1);
    assert_eq!(server.asked("UID STORE 2 +FLAGS.SILENT (\\Seen)"), 1);
    assert_eq!(server.asked(" SELECT "), 1);
    watching.end().await;
}

#[tokio::test]
async fn after_move_uses_move_if_offered() {
    let (server, watching) = apply_after(MOVE, "IDLE MOVE UIDPLUS", "UID MOVE").await;
    assert_eq!(server.asked(&format!("UID MOVE 1 {TARGET}")), 1);
    assert_eq!(server.asked("UID COPY") + server.asked("STORE") + server.asked("EXPUNGE"), 0);
    assert!(server.state().mails.is_empty());
    watching.end().await;
}

#[tokio::test]
async fn after_move_with_uidplus_expunges_only_notifications() {
    let (server, watching) = apply_after(MOVE, "IDLE UIDPLUS", "UID EXPUNGE").await;
    for command in [&format!("UID COPY 2 {TARGET}"), "UID STORE 2 +FLAGS.SILENT (\\Deleted)", "UID EXPUNGE 2"] {
        assert_eq!(server.asked(command), 1, "{command}");
    }
    assert_no_bare_expunge(&server);
    assert!(server.state().mails.is_empty());
    watching.end().await;
}

#[tokio::test]
async fn after_move_without_uidplus_never_expunges() {
    let (server, watching) = apply_after(MOVE, "IDLE", "UID STORE").await;
    assert_eq!(server.asked("UID COPY"), 2);
    assert_eq!(server.asked("EXPUNGE"), 0);
    assert_no_bare_expunge(&server);
    assert_eq!(server.state().mails.len(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_failed_copy_marks_nothing_deleted() {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "IDLE UIDPLUS".into());
    server.deliver("stays");
    always(&server, "UID COPY", &[say("{tag} NO [OVERQUOTA] full\r\n")]);
    let mut watching = watch(&server, MOVE);
    watching.mail("stays").await;
    watching.idle().await;
    assert_eq!(server.asked("STORE") + server.asked("EXPUNGE"), 0);
    server.deliver("comes all the same");
    watching.mail("comes all the same").await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_missing_target_mailbox_is_created() {
    let server = Scripted::start().await;
    server.deliver("moved");
    once(&server, "UID MOVE", 1, &[say("{tag} NO [TRYCREATE] no such mailbox\r\n")]);
    let mut watching = watch(&server, MOVE);
    watching.mail("moved").await;
    watching.while_server("a second try", |state| state.asked("UID MOVE") == 2).await;
    assert_eq!(server.asked(&format!("CREATE {TARGET}")), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_mail_in_the_target_is_not_moved() {
    for (watched, target) in [("Done", "Done"), ("INBOX", "inbox")] {
        let server = Scripted::start().await;
        server.change(|state| state.mailbox = Some(watched.into()));
        server.deliver("waits");
        let after = format!("mailboxes = [{watched:?}]\nafter = {{ move = {target:?} }}");
        let mut watching = watch(&server, &format!("{DEDICATED}\n{after}"));
        watching.mail("waits").await;
        watching.idle().await;
        server.deliver("comes");
        watching.mail("comes").await;
        watching.idle().await;
        // A mail that is moved within the mailbox gets a new UID. So the watcher would move it again without end.
        assert_eq!(server.asked("MOVE") + server.asked("COPY"), 0);
        watching.end().await;
    }
}

#[tokio::test]
async fn after_is_applied_only_to_committed_mails() {
    for keys in [SEEN, MOVE] {
        let server = Scripted::start().await;
        let mut watching = watch(&server, keys);
        watching.idle().await;
        watching.busy = true;
        server.deliver("under way");
        watching.mail("under way").await;
        watching.listen(ms(200)).await;
        assert_eq!(server.asked("STORE") + server.asked("MOVE"), 0);
        watching.commit();
        let put_away = |state: &testkit::scripted::ServerState| state.asked("STORE") + state.asked("MOVE") > 0;
        watching.while_server("it is put away", put_away).await;
        watching.end().await;
    }
}

#[tokio::test]
async fn the_next_connection_completes_after() {
    let server = Scripted::start().await;
    server.deliver("first");
    once(&server, "UID STORE", 1, &[Step::Close]);
    let mut watching = watch(&server, SEEN);
    watching.mail("first").await;
    watching.while_server("a second try", |state| state.asked("UID STORE 1 ") == 2).await;
    assert_eq!((watching.times("first"), server.connections()), (1, 2));
    watching.end().await;
}

#[tokio::test]
async fn after_is_dropped_when_uids_are_renumbered() {
    let server = Scripted::start().await;
    server.deliver("kept");
    server.deliver("lost");
    once(&server, "UID MOVE", 1, &[Step::Mute]);
    let mut watching = watch(&server, &format!("{SHARED}\nafter = {{ move = \"Resmic\" }}"));
    watching.while_server("a move", |state| state.count("UID MOVE") == 1).await;
    // The server does not answer the MOVE, and is restored from a backup that has one mail.
    server.change(|state| {
        state.mails.truncate(1);
        state.uid_next = 2;
        let uid = state.deliver(&other("somebody else's, in its place"));
        state.dates.insert(uid, "05-Mar-2025 05:00:00 +0000".into());
    });
    watching.while_server("another move", |state| state.count("UID MOVE") == 2).await;
    watching.idle().await;
    assert_eq!(server.state().mails.iter().map(|(uid, _)| *uid).collect::<Vec<_>>(), [2]);
    watching.end().await;
}
