//! Servers with odd responses, and servers that refuse the extensions that they offer. Their mailboxes are read, too.

use super::*;
use resmic_mailhook::model::MailboxState;
use testkit::scripted::connection::fetch_response;
use testkit::scripted::{notification, other};
use testkit::watching::dedicated;

/// Makes the server apply `change` to each FETCH response with a body.
fn change_bodies(server: &Scripted, change: impl Fn(&str) -> String + Send + 'static) {
    server.script(move |seen| {
        if seen.name != "UID FETCH" || !seen.line.contains("BODY.PEEK[]") {
            return vec![Step::Usual];
        }
        let usual = String::from_utf8(fetch_response(1, 1, &notification("odd"), seen.line)).unwrap();
        vec![Step::Say(change(&usual)), Step::Ok]
    });
}

#[tokio::test]
async fn odd_fetch_responses_are_read() {
    let date = "INTERNALDATE \"05-Mar-2025 03:36:00 +0000\"";
    for (from, to) in [
        ("BODY[]<0>", "BODY[]<0.1048576>"),
        ("odd\r\n)", "odd\r\n\r\n)"),
        ("odd\r\n)", "odd\r\n\r\n FLAGS (\\Seen))"),
        ("odd\r\n)", "odd\r\n))"),
        ("(UID 1", "((UID 1)"),
        ("BODY[]<0> {", "BODY[]<0> ~{"),
        ("BODY[]<0> {", "BODY[]<0>  {"),
        (date, "INTERNALDATE NIL"),
        ("* 1 FETCH (UID 1", "*  1  FETCH  (UID  1"),
        ("FETCH (UID", "FETCH ( UID"),
        ("* 1 FETCH", "* NOOP\r\n* 1 FETCH"),
    ] {
        let server = Scripted::start().await;
        change_bodies(&server, move |usual| {
            assert!(usual.contains(from), "{from:?} in {usual:?}");
            usual.replace(from, to)
        });
        server.deliver("odd");
        let mut watching = dedicated(&server);
        watching.mail("odd").await;
        watching.idle().await;
        assert_eq!(watching.handed[&(7, 1)].0, notification("odd"), "{to:?}");
        assert_eq!(server.connections(), 1, "{to:?}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_malformed_fetch_response_delays_only_its_mail() {
    for nonsense in
        ["* 1 FETCH (UID 1 BODY[] what?)\r\n", "* 1 FETCH (UID 1 UID 2 BODY[]<0.9> {1}\r\nx)\r\n", "* 1 FETCH (((\r\n"]
    {
        let server = Scripted::start().await;
        server.deliver("odd");
        server.deliver("after it");
        server.script(move |seen| {
            if seen.name != "UID FETCH" || !seen.line.contains("BODY.PEEK[]") {
                return vec![Step::Usual];
            }
            let after_it = String::from_utf8(fetch_response(2, 2, &notification("after it"), seen.line)).unwrap();
            vec![say(nonsense), Step::Say(after_it), Step::Ok]
        });
        let mut watching = dedicated(&server);
        watching.old.insert(1);
        watching.mail("after it").await;
        watching.idle().await;
        assert_eq!(server.connections(), 1, "{nonsense:?}");
        assert!(!watching.handed.contains_key(&(7, 1)), "{nonsense:?}");
        watching.end().await;
    }
}

#[tokio::test]
async fn the_cursor_does_not_pass_unnamed_mails() {
    for keys in [DEDICATED, "dedicated = true\nstart = \"2025-01-01\""] {
        let server = Scripted::start().await;
        server.deliver("not named");
        server.deliver("named");
        once(&server, "UID FETCH", 1, &[say("* 1 FETCH (UID ?)\r\n* 2 FETCH (UID 2)\r\n"), Step::Ok]);
        let mut watching = watch(&server, keys);
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.contains("names no mail"), "{error}");
        watching.mail("not named").await;
        watching.mail("named").await;
        // The same happens after an IDLE: the response for the first new mail has no valid UID.
        watching.idle().await;
        let next = server.count("UID FETCH") + 1;
        once(&server, "UID FETCH", next, &[say("* 3 FETCH (UID ?)\r\n* 4 FETCH (UID 4)\r\n"), Step::Ok]);
        server.change(|state| {
            state.deliver(&notification("not named either"));
            state.deliver(&notification("the fourth"));
        });
        watching.mail("not named either").await;
        watching.mail("the fourth").await;
        assert_eq!(server.connections(), 3);
        watching.end().await;
    }
}

#[tokio::test]
async fn unknown_responses_are_skipped() {
    for name in ["LOGIN", "CAPABILITY", "EXAMINE", "UID FETCH", "IDLE", "DONE"] {
        let server = Scripted::start().await;
        always(&server, name, &[say("* NOOP\r\n* XYZ (\r\n\r\n"), Step::Usual]);
        let mut watching = dedicated(&server);
        watching.idle().await;
        server.deliver("news");
        watching.mail("news").await;
        assert_eq!(server.connections(), 1, "{name}");
        watching.end().await;
    }
}

const JUNK: &str = "dedicated = true\nidle_renew = \"1m\"\nmailboxes = [\"\\\\Junk\"]";

#[tokio::test]
async fn a_refused_list_extension_becomes_a_plain_list() {
    for status in ["BAD", "NO"] {
        let server = Scripted::start().await;
        server.change(|state| state.list = vec!["(\\Junk) \"/\" Spam".into()]);
        let answer = say(&format!("{{tag}} {status} unknown option\r\n"));
        server.script(move |seen| match seen.name {
            "LIST" if seen.line.contains("RETURN") => vec![answer.clone()],
            _ => vec![Step::Usual],
        });
        let mut watching = watch(&server, JUNK);
        watching.idle().await;
        assert_eq!((server.connections(), server.asked("EXAMINE \"Spam\"")), (1, 1));
        watching.end().await;
    }
}

#[tokio::test]
async fn an_odd_list_line_hides_nothing_else() {
    for odd in [
        r#"() "/" "a "quoted" name""#,
        r#"() "\" "INBOX\Sent""#,
        r#"() "/" 50% off"#,
        r#"()  "/"  Two"#,
        r#"() "/" "New" ("OLDNAME" ("Old"))"#,
        r#"() "/""#,
        r"(\HasNoChildren",
    ] {
        for first in [true, false] {
            let server = Scripted::start().await;
            let mut list = vec![odd.to_owned(), "(\\Junk) \"/\" Spam".into()];
            if !first {
                list.reverse();
            }
            server.change(|state| state.list = list);
            let mut watching = watch(&server, JUNK);
            watching.idle().await;
            assert_eq!((server.connections(), server.asked("EXAMINE \"Spam\"")), (1, 1), "{odd}");
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn an_odd_list_line_names_its_own_mailbox() {
    for (line, asked) in [
        (r#"(\Junk) "\" "INBOX\Spam""#, r#""INBOX\\Spam""#),
        (r#"(\Junk) "/" 50% off"#, r#""50% off""#),
        (r#"(\Junk)  "/"  Spam"#, r#""Spam""#),
        (r#"(\Junk) "/" "Spam" ("OLDNAME" ("Junk"))"#, r#""Spam""#),
    ] {
        let server = Scripted::start().await;
        server.change(|state| state.list = vec![line.into()]);
        let mut watching = watch(&server, JUNK);
        watching.idle().await;
        assert_eq!(server.asked(&format!("EXAMINE {asked}")), 1, "{line}");
        watching.end().await;
    }
}

#[tokio::test]
async fn uidvalidity_is_found_in_all_places() {
    let without_validity = "* 1 EXISTS\r\n* OK [UIDNEXT 2] next\r\n{tag} OK done\r\n";
    let tagged = "* 1 EXISTS\r\n* OK [UIDNEXT 2] next\r\n{tag} OK [UIDVALIDITY 7] done\r\n";
    for (examine, select, commands) in [
        (tagged, without_validity, ["EXAMINE"].as_slice()),
        (without_validity, tagged, &["EXAMINE", "SELECT"]),
        (without_validity, without_validity, &["EXAMINE", "SELECT", "STATUS"]),
    ] {
        let server = Scripted::start().await;
        server.deliver("read");
        server.change(|state| (state.tells_uid_validity, state.tells_uid_next) = (false, false));
        server.script(move |seen| match seen.name {
            "EXAMINE" => vec![Step::Untagged, say(examine)],
            "SELECT" => vec![Step::Untagged, say(select)],
            _ => vec![Step::Usual],
        });
        let mut watching = dedicated(&server);
        watching.mail("read").await;
        watching.idle().await;
        assert!(watching.handed.contains_key(&(7, 1)));
        for command in ["EXAMINE", "SELECT", "STATUS"] {
            assert_eq!(server.count(command), usize::from(commands.contains(&command)), "{command} {commands:?}");
        }
        watching.end().await;
    }
}

#[tokio::test]
async fn without_any_uidvalidity_the_mailbox_fails() {
    let server = Scripted::start().await;
    server.change(|state| state.tells_uid_validity = false);
    always(&server, "STATUS", &[say("* STATUS INBOX (UIDNEXT 1)\r\n"), Step::Ok]);
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("no UIDVALIDITY"), "{error}");
    watching.end().await;
}

#[tokio::test]
async fn id_is_sent_before_select() {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "IDLE ID".into());
    server.deliver("read");
    let mut is_known = false;
    server.script(move |seen| match seen.name {
        "ID" => {
            is_known = true;
            vec![say("* ID (\"name\" \"Coremail Imap\" \"TransID\" NIL)\r\n"), Step::Ok]
        }
        "EXAMINE" | "SELECT" if !is_known => {
            vec![say("{tag} NO EXAMINE Unsafe Login. Please contact kefu@188.com for help\r\n")]
        }
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    watching.mail("read").await;
    assert_eq!((server.connections(), server.count("ID")), (1, 1));
    let lines = server.lines();
    let id = lines.iter().find(|line| line.contains(" ID ")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(id.ends_with(&format!(" ID (\"name\" \"resmic-mailhook\" \"version\" \"{version}\")")), "{id}");
    watching.end().await;
}

#[tokio::test]
async fn an_id_costs_no_round_trip() {
    for answer in ["{tag} BAD unknown command\r\n", "{tag} NO\r\n", "* ID odd\r\n{tag} OK\r\n"] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = "IDLE ID".into());
        always(&server, "ID", &[say(answer)]);
        let mut watching = dedicated(&server);
        watching.idle().await;
        assert_eq!(server.connections(), 1);
        let together = |read: &String| read.contains(" ID (") && read.contains(" EXAMINE ");
        assert!(server.state().reads.iter().any(together), "{:?}", server.state().reads);
        watching.end().await;
    }
}

#[tokio::test]
async fn id_is_sent_only_if_offered() {
    let server = Scripted::start().await;
    let mut watching = dedicated(&server);
    watching.idle().await;
    assert_eq!(server.count("ID"), 0);
    watching.end().await;
}

/// Makes the server refuse a FETCH of `n:*` if no mail is at or above n.
fn refuses_the_empty_fetch(server: &Scripted, status: &str) {
    let answer = say(&format!("{{tag}} {status} No matching messages\r\n"));
    server.script(move |seen| {
        let first = seen.line.split_once(" UID FETCH ").and_then(|(_, rest)| rest.split_once(":*"));
        let first = first.and_then(|(first, _)| first.parse::<u32>().ok());
        if first.is_some_and(|first| first > seen.last_uid) { vec![answer.clone()] } else { vec![Step::Usual] }
    });
}

#[tokio::test]
async fn refusing_an_empty_fetch_means_an_empty_answer() {
    for status in ["BAD", "NO"] {
        for keys in [DEDICATED, "idle_renew = \"1s\""] {
            for removed in [false, true] {
                let server = Scripted::start().await;
                server.deliver("old");
                refuses_the_empty_fetch(&server, status);
                if removed {
                    // According to UIDNEXT there could be more mails.
                    server.change(|state| state.uid_next = 10);
                }
                let keys = format!("{keys}\nstart = \"all\"");
                let mut watching = watch(&server, &keys);
                watching.mail("old").await;
                watching.idle().await;
                let looks = if keys.contains("1s") || removed { 2 } else { 0 };
                let renewals = server.count("DONE").max(looks);
                watching.while_server("renewals", |state| state.count("DONE") >= renewals).await;
                server.deliver("new");
                watching.mail("new").await;
                watching.idle().await;
                assert_eq!(server.connections(), 1, "{status} {keys} {removed}");
                watching.end().await;
            }
        }
    }
    let server = Scripted::start().await;
    refuses_the_empty_fetch(&server, "NO");
    let mut watching = dedicated(&server);
    watching.idle().await;
    server.deliver("the first");
    watching.mail("the first").await;
    assert_eq!(server.connections(), 1);
    watching.end().await;
}

#[tokio::test]
async fn refused_fetch_of_gone_mails_is_survived() {
    let server = Scripted::start().await;
    server.deliver("old");
    server.change(|state| state.refuses_empty_fetch = true);
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"all\""));
    watching.mail("old").await;
    watching.idle().await;
    // The merchant moves all mails to another mailbox, and the server closes the connection.
    server.change(|state| state.mails.clear());
    once(&server, "news", server.count("news") + 1, &[Step::Close]);
    server.deliver("unseen");
    server.change(|state| state.mails.clear());
    watching.while_server("another connection", |state| state.connections() > 1).await;
    watching.states.clear();
    watching.idle().await;
    assert!(server.asked("UID SEARCH UID 1:1") > 0, "{:?}", server.lines());
    server.deliver("new");
    watching.mail("new").await;
    assert!(watching.states.iter().all(|(state, _)| *state != MailboxState::Failed), "{:?}", watching.states);
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn refusing_a_fetch_of_mails_is_an_error() {
    let server = Scripted::start().await;
    server.deliver("there");
    server.script(move |seen| match (seen.name, seen.nth) {
        ("UID FETCH", 1) => vec![say("{tag} NO later\r\n")],
        ("UID SEARCH", _) => vec![say("* SEARCH 1\r\n"), Step::Ok],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("UID FETCH refused"), "{error}");
    watching.mail("there").await;
    watching.end().await;
}

#[tokio::test]
async fn odd_headers_in_a_shared_mailbox_are_read() {
    for (from, to) in
        [("]<0>", "]<0.16384>"), ("HEADER.FIELDS (FROM)", "HEADER.FIELDS (\"FROM\")"), ("\r\n)", "\r\n\r\n)")]
    {
        let server = Scripted::start().await;
        server.change(|state| {
            state.deliver(&other("not ours"));
            state.deliver(&notification("ours"));
        });
        server.script(move |seen| {
            if seen.name != "UID FETCH" || !seen.line.contains("HEADER.FIELDS") {
                return vec![Step::Usual];
            }
            let mails = [other("not ours"), notification("ours")];
            let texts = mails.iter().zip(1..).map(|(mail, uid)| fetch_response(uid as usize, uid, mail, seen.line));
            let text = texts.map(|text| String::from_utf8(text).unwrap().replace(from, to)).collect();
            vec![Step::Say(text), Step::Ok]
        });
        let mut watching = watch(&server, SHARED);
        watching.mail("ours").await;
        watching.idle().await;
        assert_eq!((server.connections(), watching.times("not ours")), (1, 0), "{to:?}");
        watching.end().await;
    }
}

#[tokio::test]
async fn capabilities_without_imap4rev1_count() {
    let server = Scripted::start().await;
    always(&server, "CAPABILITY", &[say("* CAPABILITY IMAP4rev2 IDLE\r\n"), Step::Ok]);
    let mut watching = dedicated(&server);
    watching.while_server("an IDLE", |state| state.count("IDLE") == 1).await;
    watching.end().await;
}

#[tokio::test]
async fn a_refused_examine_is_replaced_by_select() {
    for answer in ["{tag} BAD unknown command EXAMINE\r\n", "{tag} NO read-only access is not possible\r\n"] {
        let server = Scripted::start().await;
        server.deliver("read");
        always(&server, "EXAMINE", &[say(answer)]);
        let mut watching = dedicated(&server);
        watching.mail("read").await;
        let counts = (server.connections(), server.count("EXAMINE"), server.count("SELECT"));
        assert_eq!(counts, (1, 1, 1), "{answer}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_mailbox_that_cannot_be_opened_is_reported() {
    let server = Scripted::start().await;
    server.script(|seen| match seen.name {
        "EXAMINE" | "SELECT" if seen.connection == 1 => vec![say("{tag} NO [NONEXISTENT] gone\r\n")],
        _ => vec![Step::Usual],
    });
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.starts_with("SELECT refused: No ") && error.contains("gone"), "{error}");
    watching.idle().await;
    assert_eq!((server.connections(), server.count("SELECT")), (2, 1));
    watching.end().await;
}
