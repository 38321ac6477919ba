//! A UID means something only beside its UIDVALIDITY, and only for as long as the server keeps its numbers.

use super::*;
use crate::support::watching::dedicated;
use resmic_mailhook::model::MailboxState;

#[tokio::test]
async fn a_uid_without_its_uidvalidity_names_nothing() {
    let server = Scripted::start().await;
    server.deliver("nameless");
    once(&server, "EXAMINE", 1, &[say("* 1 EXISTS\r\n* OK [UIDNEXT 2] next\r\n"), Step::BareOk]);
    let mut watching = dedicated(&server);
    let words = watching.state(MailboxState::Failed).await.unwrap();
    assert!(words.contains("no UIDVALIDITY"), "{words}");
    assert_eq!(server.asked("UID FETCH"), 0, "nothing is asked for by a number that means nothing");
    watching.mail("nameless").await;
    assert_eq!(watching.handed.keys().collect::<Vec<_>>(), [&(7, 1)], "and each mail is handed over with it");
    watching.end().await;
}

#[tokio::test]
async fn another_uidvalidity_reads_the_mailbox_anew() {
    let server = Scripted::start().await;
    server.deliver("first");
    server.deliver("second");
    let mut watching = dedicated(&server);
    watching.mail("second").await;
    watching.idle().await;
    server.change(|world| world.uid_validity = 8);
    once(&server, "news", 1, &[Step::Close]);
    server.deliver("third");
    watching.mail("third").await;
    assert_eq!((watching.times("first"), watching.times("second"), watching.times("third")), (2, 2, 1));
    watching.until("the cursor", |w| *w.cursor.lock().unwrap() == Some((8, 3))).await;
    watching.end().await;
}

#[tokio::test]
async fn another_uidvalidity_in_an_open_mailbox_ends_the_connection() {
    let server = Scripted::start().await;
    server.deliver("first");
    once(&server, "news", 1, &[say("* OK [UIDVALIDITY 8] renumbered\r\n"), Step::Usual]);
    let mut watching = dedicated(&server);
    watching.mail("first").await;
    watching.idle().await;
    server.change(|world| world.uid_validity = 8);
    server.deliver("second");
    watching.mail("second").await;
    watching.until("the cursor", |w| *w.cursor.lock().unwrap() == Some((8, 2))).await;
    assert!(watching.handed.keys().all(|key| *key != (7, 2)), "no new mail goes by the old numbers");
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_uidnext_that_has_fallen_is_a_restored_backup_and_reads_the_mailbox_anew() {
    let server = Scripted::start().await;
    for subject in ["kept", "lost by the server", "lost too"] {
        server.deliver(subject);
    }
    let mut watching = dedicated(&server);
    watching.mail("lost too").await;
    watching.idle().await;
    once(&server, "news", 1, &[Step::Close]);
    server.change(|world| {
        world.mails.truncate(1);
        world.uid_next = 2;
    });
    server.deliver("under a number that was used before");
    watching.mail("under a number that was used before").await;
    watching.until("the cursor", |w| *w.cursor.lock().unwrap() == Some((7, 2))).await;
    watching.end().await;
}

#[tokio::test]
async fn a_missing_uidnext_is_asked_by_status() {
    for start in ["all", "now"] {
        let server = Scripted::start().await;
        server.change(|world| world.tells_uid_next = false);
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
async fn numbers_that_a_server_makes_up_for_whoever_only_reads_are_not_gone_by() {
    let server = Scripted::start().await;
    server.change(|world| world.tells_uid_next = false);
    // Courier: another UIDVALIDITY for each EXAMINE, as long as nobody has used SELECT.
    server.script(|seen| match seen.name {
        "EXAMINE" => vec![say(&format!("* 1 EXISTS\r\n* OK [UIDVALIDITY {}] now\r\n", 100 + seen.nth)), Step::BareOk],
        "IDLE" if seen.connection == 1 => vec![Step::Usual, Step::Close],
        _ => vec![Step::Usual],
    });
    server.deliver("once");
    let mut watching = dedicated(&server);
    watching.while_server("an IDLE on another connection", |world| world.count("IDLE") == 2).await;
    server.deliver("later");
    watching.mail("later").await;
    assert_eq!(watching.times("once"), 1);
    assert_eq!(watching.handed.keys().copied().collect::<Vec<_>>(), [(7, 1), (7, 2)]);
    watching.end().await;
}

#[tokio::test]
async fn a_mailbox_that_is_made_anew_while_it_is_open_is_noticed_at_the_next_look() {
    for capabilities in ["IDLE", "IDLE NOTIFY", ""] {
        let server = Scripted::start().await;
        server.change(|world| world.capabilities = capabilities.into());
        server.deliver("first");
        let timing = Timing { poll: ms(300), ..quick() };
        let mut watching = watch_in(&server, "dedicated = true\nidle_renew = \"1s\"", timing);
        watching.mail("first").await;
        // Courier: a mailbox of the same name, and its mails under numbers that others had; it says nothing of that.
        always(&server, "news", &[]);
        server.change(|world| {
            (world.uid_validity, world.uid_next) = (8, 1);
            world.mails.clear();
        });
        server.deliver("in the place of the first");
        watching.mail("in the place of the first").await;
        assert_eq!(watching.handed.keys().copied().collect::<Vec<_>>(), [(7, 1), (8, 1)], "{capabilities}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mailbox_that_vanishes_is_said_to_be_gone_and_read_again_when_it_comes_back() {
    let server = Scripted::start().await;
    server.deliver("before");
    let mut watching = dedicated(&server);
    watching.mail("before").await;
    watching.idle().await;
    server.script(|seen| match seen.name {
        "news" if seen.connection == 1 => vec![say("* BYE the mailbox was deleted\r\n"), Step::Close],
        _ => vec![Step::Usual],
    });
    server.change(|world| {
        world.mailbox = None;
        world.mails.clear();
    });
    watching.until("words", |w| w.states.iter().any(|(_, e)| e.as_ref().is_some_and(|e| e.contains("no such")))).await;
    server.change(|world| {
        (world.mailbox, world.uid_validity, world.uid_next) = (Some("INBOX".into()), 9, 1);
    });
    server.deliver("in the new one");
    watching.mail("in the new one").await;
    watching.idle().await;
    assert_eq!(*watching.cursor.lock().unwrap(), Some((9, 1)));
    watching.end().await;
}

#[tokio::test]
async fn a_special_use_mailbox_that_is_not_there_is_looked_for_again() {
    let server = Scripted::start().await;
    let timing = Timing { retry_absent: ms(50), ..quick() };
    let mut watching = watch_in(&server, "dedicated = true\nmailboxes = [\"\\\\Junk\"]", timing);
    let words = watching.state(MailboxState::Polling).await.unwrap();
    assert!(words.contains("\\Junk"), "{words}");
    server.change(|world| world.list = vec!["(\\Junk) \"/\" \"Spam &- more\"".into()]);
    server.deliver("misjudged");
    watching.mail("misjudged").await;
    assert_eq!(server.asked("EXAMINE \"Spam &- more\""), 1, "a name goes out as it came in");
    watching.end().await;
}
