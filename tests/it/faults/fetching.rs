//! FETCH commands request only the needed bytes of the needed mails, and do not set \Seen.

use super::*;
use testkit::scripted::connection::fetch_response;
use testkit::scripted::{notification, other};

#[tokio::test]
async fn every_read_is_a_peek() {
    for keys in [DEDICATED, SHARED, "dedicated = true\nafter = \"seen\""] {
        for capabilities in ["IDLE", "IDLE NOTIFY"] {
            let server = Scripted::start().await;
            server.change(|state| state.capabilities = capabilities.into());
            server.deliver("waits");
            let mut watching = watch(&server, keys);
            watching.mail("waits").await;
            watching.idle().await;
            server.deliver("comes");
            watching.mail("comes").await;
            let lines = server.lines();
            let reads = |line: &&String| line.contains("BODY") || line.contains("RFC822");
            let peeks = |line: &String| {
                !line.replace("BODY.PEEK[", "").replace("RFC822.SIZE", "").contains("BODY") && !line.contains("RFC822 ")
            };
            assert!(lines.iter().any(|line| line.contains("BODY.PEEK[")));
            assert!(lines.iter().filter(reads).all(peeks), "{:?}", lines);
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn other_mails_of_a_shared_mailbox_stay_unread() {
    let server = Scripted::start().await;
    server.change(|state| {
        state.deliver(&other("a letter"));
        state.deliver(&notification("ours"));
        state.deliver(&other("another letter"));
    });
    let mut watching = watch(&server, SHARED);
    watching.mail("ours").await;
    watching.idle().await;
    assert_eq!(*watching.cursor.lock().unwrap(), Some((7, 3)), "they are passed");
    server.change(|state| state.deliver(&other("one more letter")));
    watching.until_cursor(7, 4).await;
    assert_eq!(watching.handed.keys().collect::<Vec<_>>(), [&(7, 2)]);
    let bodies: Vec<_> = server.lines().iter().filter(|line| line.contains("BODY.PEEK[]")).cloned().collect();
    assert!(bodies.len() == 1 && bodies[0].contains("UID FETCH 2 ("), "{bodies:?}");
    assert!(server.asked("HEADER.FIELDS (FROM)") > 0);
    watching.end().await;
}

/// When the first response has filled Dovecot's buffer, Dovecot sends the response to the next FETCH too early, as in this test.
#[tokio::test]
async fn an_early_response_is_not_requested_again() {
    let server = Scripted::start().await;
    server.change(|state| (1..=600).map(|_| state.deliver(&other("a letter"))).max());
    server.script(|seen| match (seen.name, seen.nth) {
        // The first FETCH lists the mails. The second FETCH requests mails 1 to 400. The third FETCH requests mails 401 to 600,
        // and more items of them.
        ("UID FETCH", 2) => {
            let early =
                (401..=600).flat_map(|n| fetch_response(n as usize, n, &other("a letter"), seen.line)).collect();
            vec![Step::Untagged, Step::Say(String::from_utf8(early).unwrap()), Step::Ok]
        }
        ("UID FETCH", 3) => vec![Step::BareOk],
        _ => vec![Step::Usual],
    });
    let mut watching = watch(&server, SHARED);
    watching.until_cursor(7, 600).await;
    assert_eq!(server.asked("UID FETCH"), 3);
    watching.end().await;
}

#[tokio::test]
async fn dedicated_mailbox_fetches_a_mail_in_one_exchange() {
    let server = Scripted::start().await;
    let mut watching = watch(&server, DEDICATED);
    watching.idle().await;
    let before = server.asked("UID FETCH");
    server.deliver("new");
    watching.mail("new").await;
    assert_eq!(server.asked("UID FETCH"), before + 1);
    assert_eq!(server.asked("HEADER.FIELDS"), 0);
    watching.end().await;
}

#[tokio::test]
async fn at_most_max_size_is_fetched() {
    let server = Scripted::start().await;
    let long = [notification("long"), vec![b'x'; 100_000]].concat();
    server.change(|state| state.deliver(&long));
    let mut watching = watch(&server, &format!("{DEDICATED}\nmax_size = \"2 KiB\""));
    watching.mail("long").await;
    assert_eq!(watching.handed[&(7, 1)].0, long[..2048]);
    assert_eq!(watching.sizes[&(7, 1)], long.len() as u64);
    assert!(server.asked("BODY.PEEK[]<0.2049>") > 0);
    server.deliver("next");
    watching.mail("next").await;
    watching.end().await;
}

#[tokio::test]
async fn a_longer_body_than_requested_is_refused() {
    let server = Scripted::start().await;
    let long = [notification("long"), vec![b'x'; 600_000]].concat();
    server.change(|state| state.deliver(&long));
    let answer = format!("* 1 FETCH (UID 1 BODY[] {{{}}}\r\n{})\r\n", long.len(), String::from_utf8(long).unwrap());
    once(&server, "UID FETCH", 2, &[say(&answer), Step::Ok]);
    let mut watching = watch(&server, &format!("{DEDICATED}\nmax_size = \"2 KiB\""));
    watching.mail("long").await;
    assert_eq!(watching.handed[&(7, 1)].0.len(), 2048);
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn every_form_of_literal_is_handled() {
    let mail = String::from_utf8(notification("odd")).unwrap();
    let length = mail.len();
    for (body, understood) in [
        (format!("BODY[]<0> {{{length}}}\r\n{mail}"), true),
        (format!("BODY[] {{{length}}}\r\n{mail}"), true),
        // literal8 for binary data (RFC 3516)
        (format!("BODY[]<0> ~{{{length}}}\r\n{mail}"), true),
        // A non-synchronizing literal (RFC 7888) is for clients only.
        (format!("BODY[]<0> {{{length}+}}\r\n{mail}"), false),
        (format!("BODY[]<0> {{99999999999999999999}}\r\n{mail}"), false),
        (format!("BODY[]<0> {{-1}}\r\n{mail}"), false),
        ("BODY[]<0> NIL".to_owned(), false),
        ("BODY[]<0> \"\"".to_owned(), false),
    ] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = "IDLE LITERAL+".into());
        server.deliver("odd");
        let answer = format!("* 1 FETCH (UID 1 RFC822.SIZE {length} {body})\r\n");
        once(&server, "UID FETCH", 2, &[say(&answer), Step::Ok]);
        let mut watching = watch(&server, DEDICATED);
        watching.mail("odd").await;
        watching.until_cursor(7, 1).await;
        assert_eq!(server.count("UID FETCH") == 2, understood, "{body}");
        assert_eq!(watching.handed[&(7, 1)].0, mail.as_bytes());
        watching.end().await;
    }
}

#[tokio::test]
async fn a_thousand_mails_are_fetched_in_few_commands() {
    let server = Scripted::start().await;
    server.change(|state| {
        (0..1_100).for_each(|n| {
            state.deliver(&notification(&format!("number {n}")));
        })
    });
    let mut watching = watch(&server, DEDICATED);
    watching.until_cursor(7, 1_100).await;
    assert_eq!(watching.handed.len(), 1_100);
    assert_eq!(server.asked("UID FETCH"), 4, "a list, and three windows");
    watching.end().await;
}
