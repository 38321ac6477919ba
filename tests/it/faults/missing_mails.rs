//! Announced mails that do not exist, do not exist yet, or cannot be fetched.

use super::*;
use resmic_mailhook::model::MailboxState;
use testkit::scripted::connection::fetch_response;
use testkit::watching::dedicated;

#[tokio::test]
async fn an_announced_mail_is_requested_again() {
    let server = Scripted::start().await;
    let mut watching = dedicated(&server);
    watching.idle().await;
    // The first FETCH belongs to the sync. The next two find nothing, and the fourth finds the mail.
    server.script(|seen| match (seen.name, seen.nth) {
        ("news", _) => vec![Step::Hide(vec![1]), Step::Usual],
        ("UID FETCH", 4) => vec![Step::Hide(vec![]), Step::Usual],
        _ => vec![Step::Usual],
    });
    server.deliver("late");
    watching.mail("late").await;
    assert!(server.count("UID FETCH") >= 4);
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn an_unlisted_mail_below_uidnext_is_requested_again() {
    let server = Scripted::start().await;
    server.deliver("late");
    server.script(|seen| match (seen.name, seen.nth) {
        ("EXAMINE", 1) => vec![Step::Hide(vec![1]), Step::Usual],
        ("UID FETCH", 3) => vec![Step::Hide(vec![]), Step::Usual],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    watching.mail("late").await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_listed_mail_without_body_is_requested_again() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.deliver("late");
        server.deliver("prompt");
        server.script(|seen| match (seen.name, seen.nth) {
            ("UID FETCH", 2) => vec![Step::Hide(vec![1]), Step::Usual],
            ("UID FETCH", 4) => vec![Step::Hide(vec![]), Step::Usual],
            _ => vec![Step::Usual],
        });
        let mut watching = watch(&server, keys);
        watching.mail("prompt").await;
        watching.mail("late").await;
        assert_eq!((watching.times("late"), watching.times("prompt")), (1, 1));
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mail_without_header_is_requested_again() {
    for nothing in ["NIL", "\"\"", "{0}\r\n"] {
        let answer = format!("* 1 FETCH (UID 1 BODY[HEADER.FIELDS (FROM)]<0> {nothing})\r\n");
        // The first FETCH is the listing of the sync.
        let untold = [say(&answer), Step::Ok];
        let server = Scripted::start().await;
        server.deliver("there before");
        once(&server, "UID FETCH", 2, &untold);
        let mut watching = watch(&server, SHARED);
        watching.mail("there before").await;
        watching.end().await;
        let server = Scripted::start().await;
        let mut watching = watch(&server, SHARED);
        watching.idle().await;
        once(&server, "UID FETCH", 2, &untold);
        server.deliver("new");
        watching.mail("new").await;
        watching.end().await;
    }
}

#[tokio::test]
async fn a_flag_update_does_not_hide_a_mail() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        let mut watching = watch(&server, keys);
        watching.idle().await;
        always(&server, "UID FETCH", &[Step::Untagged, say("* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n"), Step::Ok]);
        server.deliver("seen at once");
        watching.mail("seen at once").await;
        watching.end().await;
    }
}

#[tokio::test]
async fn headers_in_any_order_lose_no_mail() {
    let server = Scripted::start().await;
    for subject in ["one", "two", "three"] {
        server.deliver(subject);
    }
    let mails = server.state().mails.clone();
    server.script(move |seen| {
        if seen.name != "UID FETCH" || !seen.line.contains("HEADER.FIELDS") {
            return vec![Step::Usual];
        }
        let responses =
            mails.iter().rev().flat_map(|(uid, bytes)| fetch_response(*uid as usize, *uid, bytes, seen.line)).collect();
        vec![Step::Say(String::from_utf8(responses).unwrap()), Step::Ok]
    });
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 3).await;
    assert_eq!(watching.handed.len(), 3);
    watching.end().await;
}

#[tokio::test]
async fn a_mail_that_never_comes_is_passed() {
    let server = Scripted::start().await;
    let mut watching = dedicated(&server);
    watching.idle().await;
    once(&server, "news", 1, &[Step::Hide(vec![1]), Step::Usual]);
    // An OK without the announced mail proves that this mail does not exist, so the cursor may pass its UID.
    watching.old.insert(1);
    server.deliver("announced by mistake");
    watching.while_server("four questions", |state| state.asked("UID FETCH 1:* ") >= 5).await;
    server.deliver("real");
    watching.mail("real").await;
    watching.until_cursor(7, 2).await;
    let asked = server.asked("UID FETCH");
    watching.listen(ms(300)).await;
    assert_eq!(server.asked("UID FETCH"), asked, "and then there is peace");
    watching.end().await;
}

#[tokio::test]
async fn mails_missing_in_a_burst_are_requested_again() {
    let server = Scripted::start().await;
    let mut watching = dedicated(&server);
    watching.idle().await;
    server.script(|seen| match (seen.name, seen.nth) {
        ("news", 1) => vec![Step::Hide(vec![100]), Step::Usual],
        // The second FETCH lists the new mails, and the third one fetches them.
        ("UID FETCH", 4) => vec![Step::Hide(vec![]), Step::Usual],
        _ => vec![Step::Usual],
    });
    server.change(|state| {
        for n in 1..=100 {
            state.deliver(&testkit::scripted::notification(&format!("number {n}")));
        }
    });
    watching.mail("number 99").await;
    watching.mail("number 100").await;
    watching.until_cursor(7, 100).await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn the_cursor_waits_for_a_missing_mail() {
    let server = Scripted::start().await;
    let mut watching = dedicated(&server);
    watching.idle().await;
    server.script(|seen| match (seen.name, seen.nth) {
        ("news", 1) => vec![Step::Hide(vec![1]), Step::Usual],
        ("UID FETCH", 4) => vec![Step::Hide(vec![]), Step::Usual],
        _ => vec![Step::Usual],
    });
    server.change(|state| {
        state.deliver(&testkit::scripted::notification("missing"));
        state.deliver(&testkit::scripted::notification("came"));
    });
    watching.mail("came").await;
    assert_eq!(watching.times("missing"), 0);
    assert_eq!(*watching.cursor.lock().unwrap(), Some((7, 0)));
    watching.mail("missing").await;
    watching.until_cursor(7, 2).await;
    assert_eq!(watching.times("came"), 1);
    watching.end().await;
}

#[tokio::test]
async fn an_unreadable_mail_delays_no_other() {
    let server = Scripted::start().await;
    for subject in ["one", "unreadable", "three", "four"] {
        server.deliver(subject);
    }
    server.script(|seen| {
        let holds_it =
            ["1:4 ", "1:2 ", "2 ", "2:4 "].iter().any(|set| seen.line.contains(&format!("UID FETCH {set}(")));
        match holds_it && seen.line.contains("BODY.PEEK[]") {
            true => vec![say("{tag} NO [SERVERBUG] cannot read a mail\r\n")],
            false => vec![Step::Usual],
        }
    });
    let mut watching = dedicated(&server);
    watching.mail("four").await;
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("UID FETCH refused"), "{error}");
    assert_eq!((watching.times("one"), watching.times("three")), (1, 1));
    assert!(watching.cursor.lock().unwrap().is_none_or(|(_, last)| last < 2), "it is not passed");
    server.script(|_| vec![Step::Usual]);
    watching.mail("unreadable").await;
    watching.until_cursor(7, 4).await;
    watching.end().await;
}

#[tokio::test]
async fn refusal_of_every_mail_is_reported_soon() {
    let server = Scripted::start().await;
    server.change(|state| {
        for n in 1..=300 {
            state.deliver(&testkit::scripted::notification(&format!("number {n}")));
        }
    });
    server.script(|seen| match seen.line.contains("BODY.PEEK[]") {
        true => vec![say("{tag} NO [LIMIT] too much of everything\r\n")],
        false => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("UID FETCH refused"), "{error}");
    server.script(|_| vec![Step::Usual]);
    watching.until_cursor(7, 300).await;
    assert_eq!(watching.handed.len(), 300);
    watching.end().await;
}

#[tokio::test]
async fn a_mail_removed_before_its_fetch_is_passed() {
    let server = Scripted::start().await;
    server.deliver("stays");
    let mut watching = dedicated(&server);
    watching.mail("stays").await;
    watching.idle().await;
    once(&server, "news", 1, &[Step::Usual, Step::Remove(2)]);
    server.deliver("moved away by a filter");
    server.until("the announcement", |state| state.count("news") > 0).await;
    watching.until("quiet", |w| w.states.iter().filter(|(s, _)| *s == MailboxState::Idle).count() > 4).await;
    server.deliver("next");
    watching.mail("next").await;
    assert_eq!((watching.times("stays"), watching.times("moved away by a filter")), (1, 0));
    watching.until_cursor(7, 3).await;
    watching.end().await;
}

#[tokio::test]
async fn a_mail_removed_during_fetch_is_no_mail() {
    // Dovecot's response for a mail that was removed during the FETCH, in the first sync and later.
    let nothing = "* 1 FETCH (UID 1 INTERNALDATE \"01-Jan-1970 00:00:00 +0000\" RFC822.SIZE 0 BODY[]<0> NIL)\r\n";
    for is_there in [true, false] {
        let server = Scripted::start().await;
        // The first FETCH is the listing of the sync.
        once(&server, "UID FETCH", 2, &[say(nothing), Step::Remove(1), Step::Ok]);
        if is_there {
            server.deliver("moved away by a person");
        }
        let mut watching = dedicated(&server);
        if !is_there {
            watching.idle().await;
            server.deliver("moved away by a person");
        }
        watching.while_server("the FETCH", |state| state.count("UID FETCH") >= 2).await;
        server.deliver("next");
        watching.until_cursor(7, 2).await;
        assert_eq!(watching.handed.keys().copied().collect::<Vec<_>>(), [(7, 2)]);
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mail_removed_during_comparison_is_no_renumbering() {
    let server = Scripted::start().await;
    server.deliver("first");
    let mut watching = dedicated(&server);
    watching.mail("first").await;
    watching.idle().await;
    let (news, fetches) = (server.count("news"), server.count("UID FETCH"));
    let nothing = [say("* 1 FETCH (UID 1 INTERNALDATE \"01-Jan-1970 00:00:00 +0000\")\r\n"), Step::Remove(1), Step::Ok];
    server.script(move |seen| match (seen.name, seen.nth) {
        ("news", n) if n == news + 1 => vec![Step::Close],
        ("UID FETCH", n) if n == fetches + 1 => nothing.to_vec(),
        _ => vec![Step::Usual],
    });
    server.deliver("second");
    watching.mail("second").await;
    assert_eq!((server.asked("UID FETCH 1:1 "), server.asked("UID FETCH 1:* ")), (1, 1), "{:?}", server.lines());
    watching.end().await;
}
