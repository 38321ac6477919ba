//! A server that asks for a pause.

use std::time::Instant;

use super::*;
use resmic_mailhook::model::MailboxState;
use testkit::watching::dedicated;

/// The text of Exchange, with a pause that is much longer than those of `quick`.
const THROTTLED: &str = "Request is throttled. Suggested Backoff Time: 1200 milliseconds\r\n";

#[tokio::test]
async fn a_suggested_pause_is_honoured() {
    for (name, answer) in [
        ("greeting", "* BYE "),
        ("LOGIN", "{tag} NO "),
        ("LOGIN", "{tag} BAD "),
        ("CAPABILITY", "{tag} NO [THROTTLED] "),
        ("EXAMINE", "{tag} NO "),
        ("UID FETCH", "{tag} BAD "),
        ("IDLE", "{tag} NO "),
    ] {
        let server = Scripted::start().await;
        server.deliver("read");
        once(&server, name, 1, &[say(&format!("{answer}{THROTTLED}")), Step::Close]);
        let began = Instant::now();
        let mut watching = dedicated(&server);
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.starts_with("the server throttles this account: "), "{name}: {error}");
        watching.idle().await;
        assert!(began.elapsed() >= ms(1_200), "{name}: {:?}", began.elapsed());
        assert_eq!((server.connections(), server.count("SELECT")), (2, 0), "{name}: nothing else was tried");
        assert_eq!(watching.handed.len(), 1, "{name}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_throttled_fetch_says_nothing_about_its_mail() {
    let server = Scripted::start().await;
    server.deliver("read");
    server.script(|seen| {
        let is_body = seen.name == "UID FETCH" && seen.line.contains("BODY");
        let answer = "{tag} NO Request is throttled. Suggested Backoff Time: 1 milliseconds\r\n";
        if is_body && seen.connection <= 6 { vec![say(answer)] } else { vec![Step::Usual] }
    });
    let mut watching = dedicated(&server);
    watching.mail("read").await;
    assert_eq!((server.connections(), watching.availability.len()), (7, 0), "it has no row without bytes");
    watching.end().await;
}
