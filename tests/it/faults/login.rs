//! From the greeting to the login: which failures are retried soon, which ones need an operator, and where secrets go.

use super::*;
use resmic_mailhook::backoff::Backoff;
use resmic_mailhook::model::MailboxState;
use resmic_mailhook::source::imap::{Account, Credentials, Login, Tls};
use testkit::watching::dedicated;

/// A timing in which the pause after a refused login is longer than any test.
fn long_login_pause() -> Timing {
    Timing { retry_login: Backoff { base: Duration::from_secs(600), cap: Duration::from_secs(600) }, ..quick() }
}

#[tokio::test]
async fn a_bye_as_greeting_is_reported_and_retried() {
    let server = Scripted::start().await;
    once(&server, "greeting", 1, &[say("* BYE overloaded\r\n"), Step::Close]);
    let mut watching = dedicated(&server);
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("overloaded"), "{error}");
    watching.idle().await;
    assert_eq!(server.connections(), 2);
    watching.end().await;
}

#[tokio::test]
async fn a_missing_greeting_times_out() {
    let server = Scripted::start().await;
    once(&server, "greeting", 1, &[Step::Mute]);
    let mut watching = watch_in(&server, DEDICATED, Timing { login: ms(200), ..quick() });
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("no answer"), "{error}");
    watching.idle().await;
    watching.end().await;
}

#[tokio::test]
async fn a_greeting_of_another_protocol_is_reported() {
    let server = Scripted::start().await;
    once(&server, "greeting", 1, &[say("220 mail.example ESMTP\r\n")]);
    let mut watching = dedicated(&server);
    watching.state(MailboxState::Failed).await.unwrap();
    assert_eq!(server.count("LOGIN"), 0, "no password is sent to it");
    watching.idle().await;
    watching.end().await;
}

#[tokio::test]
async fn preauth_is_refused_without_a_password() {
    let server = Scripted::start().await;
    once(&server, "greeting", 1, &[say("* PREAUTH logged in as somebody\r\n")]);
    let mut watching = watch_in(&server, DEDICATED, long_login_pause());
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("PREAUTH"), "{error}");
    assert_eq!(server.count("LOGIN"), 0);
    watching.idle().await;
    watching.end().await;
}

#[tokio::test]
async fn without_starttls_no_password_is_sent() {
    for (answer, expected) in [
        ("{tag} BAD what is STARTTLS?", "TLS with 127.0.0.1 failed: STARTTLS: Bad what is STARTTLS?"),
        ("* BYE overloaded", "the server ended the connection (BYE): overloaded"),
        ("* OK wait", "no answer to "),
    ] {
        let server = Scripted::start().await;
        always(&server, "STARTTLS", &[say(&format!("{answer}\r\n"))]);
        let mut account = with_password(&server, "secret", DEDICATED);
        account.settings.tls = Tls::Starttls;
        account.login.tls = Some(resmic_mailhook::tls::client_config(None).unwrap());
        account.timing.login = ms(300);
        let mut watching = Watching::with_account(account, "INBOX".into(), Default::default());
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(server.count("LOGIN"), 0);
        watching.end().await;
    }
}

#[tokio::test]
async fn wrong_credentials_are_retried_rarely() {
    for answer in [
        "{tag} NO [AUTHENTICATIONFAILED] Authentication failed.\r\n",
        "{tag} NO [EXPIRED] renew it\r\n",
        "{tag} NO LOGIN failed.\r\n",
        "{tag} NO Login incorrect\r\n",
        "{tag} NO [ALERT] Invalid credentials (Failure)\r\n",
        "{tag} BAD Invalid credentials\r\n",
    ] {
        let server = Scripted::start().await;
        always(&server, "LOGIN", &[say(answer)]);
        let mut watching = watch_in(&server, DEDICATED, long_login_pause());
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.starts_with("login refused") && error.contains("`password`"), "{error}");
        assert!(!error.contains("secret") && !error.contains("Some("), "{error}");
        // An ordinary failure would have been retried about ten times in this time.
        watching.listen(ms(400)).await;
        assert_eq!(server.count("LOGIN"), 1, "{answer}");
        watching.end().await;
    }
}

#[tokio::test]
async fn a_password_quoted_by_a_server_is_redacted() {
    for answer in [r#"{tag} NO "hunt\"er2" is not the password of "shop@example""#, r#"* BYE hunt"er2 is wrong"#] {
        let server = Scripted::start().await;
        once(&server, "LOGIN", 1, &[say(&format!("{answer}\r\n"))]);
        let mut watching =
            Watching::with_account(with_password(&server, "hunt\"er2", DEDICATED), "INBOX".into(), Default::default());
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.contains("(secret) is") && !error.contains("er2"), "{error}");
        watching.end().await;
    }
}

#[tokio::test]
async fn temporary_refusals_are_retried_soon() {
    for answer in [
        "[UNAVAILABLE] Temporary authentication failure.",
        "[LIMIT] Maximum number of connections exceeded",
        "[INUSE] in use",
        "[OVERQUOTA] Account exceeded command or bandwidth limits",
        "[THROTTLED] LOGIN failed.",
        "[CONTACTADMIN] Authentication failed",
        "Request is throttled.",
        "User is authenticated but not connected.",
        "Rate limit exceeded",
        "Temporary authentication failure. [mx:2025-03-05 03:36:00]",
        "system busy",
        // A lock after failed logins does not mean that this password is wrong.
        "[ALERT] Too many failed attempts",
        // Gmail's response to the sixteenth connection
        "[ALERT] Too many simultaneous connections. (Failure)",
    ] {
        for status in ["NO", "BAD"] {
            let server = Scripted::start().await;
            once(&server, "LOGIN", 1, &[say(&format!("{{tag}} {status} {answer}\r\n"))]);
            let mut watching = watch_in(&server, DEDICATED, long_login_pause());
            let error = watching.state(MailboxState::Failed).await.unwrap();
            assert!(error.contains("LOGIN refused") && error.contains("retries soon"), "{error}");
            assert!(!error.contains("password"), "{error}");
            watching.idle().await;
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn a_refusal_with_another_tag_is_retried() {
    for tag in ["A9999", "a", "LOGIN"] {
        let server = Scripted::start().await;
        once(&server, "LOGIN", 1, &[say(&format!("{tag} NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"))]);
        let mut watching = watch_in(&server, DEDICATED, long_login_pause());
        let error = watching.state(MailboxState::Failed).await.unwrap();
        assert!(error.contains("a tagged response to another command"), "{error}");
        watching.idle().await;
        watching.end().await;
    }
}

/// The client lines before EXAMINE, without tags.
fn login_lines(server: &Scripted) -> Vec<String> {
    let lines = server.lines();
    let before: Vec<_> = lines.iter().take_while(|line| !line.contains(" EXAMINE ")).collect();
    let command = |line: &&String| {
        let (_, line) = line.split_once(' ').unwrap();
        let tagged = line.split_once(' ').filter(|(tag, _)| tag.starts_with("A0"));
        tagged.map_or(line, |(_, command)| command).to_owned()
    };
    before.iter().map(command).collect()
}

const BASE64_SECRET: &str = "AHNob3BAZXhhbXBsZQBzZWNyZXQ=";

#[tokio::test]
async fn without_login_a_password_goes_by_sasl_plain() {
    for (offered, lines) in [
        ("LOGINDISABLED AUTH=PLAIN SASL-IR", vec![format!("AUTHENTICATE PLAIN {BASE64_SECRET}"), "CAPABILITY".into()]),
        ("AUTH=PLAIN LOGINDISABLED", vec!["AUTHENTICATE PLAIN".into(), BASE64_SECRET.into(), "CAPABILITY".into()]),
    ] {
        let server = Scripted::start().await;
        let greeting = say(&format!("* OK [CAPABILITY IMAP4rev1 {offered}] ready\r\n"));
        let asks = !offered.contains("SASL-IR");
        server.script(move |seen| match seen.name {
            "greeting" => vec![greeting.clone()],
            "AUTHENTICATE" if asks => vec![say("+ \r\n")],
            _ if seen.line == BASE64_SECRET => vec![say("A0001 OK in\r\n")],
            _ => vec![Step::Usual],
        });
        let mut watching = watch_in(&server, DEDICATED, long_login_pause());
        watching.idle().await;
        assert_eq!(login_lines(&server), lines, "{offered}");
        watching.end().await;
    }
}

#[tokio::test]
async fn logindisabled_is_noticed_after_a_refusal() {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "IDLE LOGINDISABLED AUTH=PLAIN SASL-IR".into());
    always(&server, "LOGIN", &[say("{tag} NO LOGIN failed.\r\n")]);
    let mut watching = watch_in(&server, DEDICATED, long_login_pause());
    watching.idle().await;
    assert_eq!((server.connections(), server.count("AUTHENTICATE")), (1, 1));
    watching.end().await;
}

#[tokio::test]
async fn the_error_of_an_impossible_login_helps() {
    for in_greeting in [true, false] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = "IDLE LOGINDISABLED AUTH=GSSAPI".into());
        server.script(move |seen| match seen.name {
            "greeting" if in_greeting => {
                vec![say("* OK [CAPABILITY IMAP4rev1 LOGINDISABLED AUTH=GSSAPI] ready\r\n")]
            }
            "LOGIN" => vec![say("{tag} BAD disabled\r\n")],
            _ => vec![Step::Usual],
        });
        let mut watching = watch_in(&server, DEDICATED, long_login_pause());
        let error = watching.state(MailboxState::Failed).await.unwrap();
        for part in ["LOGINDISABLED", "`tls`", "oauth2"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(server.count("LOGIN"), usize::from(!in_greeting));
        assert_eq!(server.count("AUTHENTICATE"), 0);
        watching.end().await;
    }
}

#[tokio::test]
async fn a_password_beyond_ascii_is_never_quoted() {
    // "\u{e4}" is two bytes.
    let password = "p\u{e4}ss\"w\u{f6}rd";
    let sasl = "AHNob3BAZXhhbXBsZQBww6RzcyJ3w7ZyZA==";
    for (offered, lines) in [
        ("IDLE AUTH=PLAIN SASL-IR", vec![format!("AUTHENTICATE PLAIN {sasl}")]),
        ("IDLE", vec!["LOGIN \"shop@example\" {11}".into(), password.into()]),
        ("IDLE LITERAL+", vec!["LOGIN \"shop@example\" {11+}".into(), password.into()]),
        ("IDLE LITERAL-", vec!["LOGIN \"shop@example\" {11+}".into(), password.into()]),
    ] {
        let server = Scripted::start().await;
        server.change(|state| state.capabilities = offered.into());
        server.script(move |seen| match seen.name {
            "LOGIN" if seen.line.ends_with("{11}") => vec![say("+ go on\r\n")],
            "LOGIN" => vec![],
            _ if seen.line == password => vec![say("A0002 OK in\r\n")],
            _ => vec![Step::Usual],
        });
        let mut watching =
            Watching::with_account(with_password(&server, password, DEDICATED), "INBOX".into(), Default::default());
        watching.idle().await;
        let expected: Vec<String> =
            ["CAPABILITY".to_owned()].into_iter().chain(lines).chain(["CAPABILITY".to_owned()]).collect();
        assert_eq!(login_lines(&server), expected, "{offered}");
        watching.end().await;
    }
}

#[test]
fn retries_after_wrong_passwords_start_at_one_minute() {
    let retry = Timing::default().retry_login;
    let range = |failures| (retry.ceiling(failures) / 2, retry.ceiling(failures));
    assert_eq!(range(0), (Duration::from_secs(60), Duration::from_secs(120)));
    assert_eq!(range(1), (Duration::from_secs(120), Duration::from_secs(240)));
    assert_eq!(range(20).1, Duration::from_secs(3600));
}

#[tokio::test]
async fn retries_of_refused_logins_back_off() {
    let server = Scripted::start().await;
    always(&server, "LOGIN", &[say("{tag} NO wrong password\r\n")]);
    let retry_login = Backoff { base: ms(40), cap: ms(100_000) };
    let mut watching = watch_in(&server, DEDICATED, Timing { retry_login, ..quick() });
    let mut pauses = Vec::new();
    for nth in 1..=5 {
        let began = std::time::Instant::now();
        watching.while_server("a login", |state| state.count("LOGIN") >= nth).await;
        pauses.push(began.elapsed());
    }
    // Each pause is random, in the upper half of 40, 80, 160 and 320 ms.
    for (pause, least) in pauses[1..].iter().zip([20, 40, 80, 160]) {
        assert!(*pause >= ms(least), "{pauses:?}");
    }
    watching.end().await;
}

fn with_password(server: &Scripted, password: &str, keys: &str) -> Account {
    Account {
        settings: testkit::watching::settings(server.port, keys),
        login: Login { tls: None, credentials: Credentials::Password(password.to_owned().into()) },
        is_candidate: Box::new(|_| true),
        pace: std::sync::Arc::new(tokio::sync::Semaphore::new(1)),
        timing: long_login_pause(),
        quirks: resmic_mailhook::source::imap::Quirks::default(),
    }
}

#[tokio::test]
async fn line_breaks_in_credentials_are_never_written() {
    let crlf = "x\r\nA666 LOGOUT";
    for (password, keys, wanted) in [
        (crlf, DEDICATED, "INBOX"),
        ("secret", DEDICATED, crlf),
        ("secret", "dedicated = true\nafter = { move = \"x\\r\\nA666 LOGOUT\" }", "INBOX"),
    ] {
        let server = Scripted::start().await;
        server.deliver("moved nowhere");
        let mut watching =
            Watching::with_account(with_password(&server, password, keys), wanted.into(), Default::default());
        if password == crlf {
            watching.state(MailboxState::Failed).await.unwrap();
        } else {
            watching.mail("moved nowhere").await;
            watching.idle().await;
        }
        watching.end().await;
        let smuggled = |line: &String| line.split_once(' ').is_some_and(|(_, line)| line.starts_with("A666"));
        assert!(!server.lines().iter().any(smuggled), "{:?}", server.lines());
    }
}
