//! Logins with access tokens: the daemon, a token endpoint, and a Dovecot that verifies tokens at the endpoint.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;
use serde_json::Value;
use testkit::daemon::{Daemon, Home};
use testkit::dovecot::Dovecot;
use testkit::payments::payment;
use testkit::tokens::{CLIENT_SECRET, Endpoint, REFRESH_TOKEN, USER};

const SOON: Duration = Duration::from_secs(20);
const TRUST_AND_LOG: &str = "[trust]\naccept = [\"none\"]\n[telemetry]\nlog = \"trace\"\n";

/// A configuration whose account uses access tokens of this endpoint.
fn home(connection: &str, token_url: &str, mailboxes: &str) -> Home {
    let home = Home::new(&format!(
        "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\n{connection}\nuser = \"{USER}\"\nmailboxes = [{mailboxes}]\n\
         dedicated = true\n[account.oauth2]\ntoken_url = \"{token_url}\"\nclient_id = \"shop\"\n\
         client_secret = {{ file = \"client-secret\" }}\nrefresh_token = {{ file = \"refresh-token\" }}\nscope = \"imap offline\"\n{TRUST_AND_LOG}"
    ));
    std::fs::write(home.folder.path().join("client-secret"), format!("{CLIENT_SECRET}\n")).unwrap();
    std::fs::write(home.folder.path().join("refresh-token"), REFRESH_TOKEN).unwrap();
    home
}

fn plain(dovecot: &Dovecot, endpoint: &Endpoint, mailboxes: &str) -> Home {
    home(&format!("port = {}\ntls = \"none\"", dovecot.imap), &url(endpoint), mailboxes)
}

fn url(endpoint: &Endpoint) -> String {
    format!("http://127.0.0.1:{}/token", endpoint.port)
}

fn start() -> (Endpoint, Dovecot) {
    let endpoint = Endpoint::start();
    let dovecot = Dovecot::start_with_tokens("xoauth2 oauthbearer", &endpoint.introspection_url());
    (endpoint, dovecot)
}

fn until_idle(home: &Home, count: usize) {
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", &count.to_string(), SOON);
}

/// Ends the connections, delivers payment `n`, and waits for its event.
fn reconnect_and_deliver(home: &Home, dovecot: &Dovecot, n: usize) {
    dovecot.kick(USER);
    dovecot.deliver(USER, &payment(n));
    home.until("SELECT count(*) FROM events", &n.to_string(), SOON);
}

/// The pauses in the log, in seconds.
fn pauses(log: &str) -> Vec<u64> {
    Regex::new(r"retry_in_s=(\d+)").unwrap().captures_iter(log).map(|c| c[1].parse().unwrap()).collect()
}

/// Checks that the log, the output of commands and the database contain no secret.
fn assert_no_secrets(home: &Home, daemon: &Daemon, endpoint: &Endpoint) {
    let mut all = daemon.log();
    for arguments in [&["status"][..], &["status", "--json"], &["check", "--connect"]] {
        let output = home.run(arguments);
        all += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    assert!(all.contains("mailbox"), "{all}");
    for secret in endpoint.secrets() {
        assert!(!all.contains(&secret), "{secret} was shown:\n{all}");
        let encoded = STANDARD.encode(&secret);
        assert!(!all.contains(encoded.trim_end_matches('=')), "{secret} was shown in base64:\n{all}");
        for file in ["mailhook.db", "mailhook.db-wal"] {
            let bytes = std::fs::read(home.folder.path().join(file)).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} is in {file}");
        }
    }
}

#[test]
fn an_event_arrives_over_either_mechanism() {
    for (mechanisms, used) in
        [("xoauth2", "XOAUTH2"), ("oauthbearer", "OAUTHBEARER"), ("xoauth2 oauthbearer", "OAUTHBEARER")]
    {
        let endpoint = Endpoint::start();
        let dovecot = Dovecot::start_with_tokens(mechanisms, &endpoint.introspection_url());
        let home = plain(&dovecot, &endpoint, "\"INBOX\"");
        let daemon = home.start();
        until_idle(&home, 1);
        dovecot.deliver(USER, &payment(1));
        home.until("SELECT count(*) FROM events", "1", SOON);
        assert!(dovecot.log().contains(&format!("method={used}")), "{}", dovecot.log());
        let asked = endpoint.change(|state| state.asked.remove(0));
        assert_eq!((asked["scope"].as_str(), asked["grant_type"].as_str()), ("imap offline", "refresh_token"));
        assert_no_secrets(&home, &daemon, &endpoint);
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn tokens_are_requested_over_tls() {
    let (endpoint, dovecot) = start();
    let at = dovecot.folder.path();
    let port = endpoint.start_tls(&at.join("server.pem"), &at.join("server.key"));
    let connection = format!("port = {}\nca_file = \"{}\"", dovecot.imaps, dovecot.ca().display());
    let trusted = home(&connection, &format!("https://127.0.0.1:{port}/token"), "\"INBOX\"");
    let checked = trusted.data(&["check", "--connect"]);
    assert!(checked.contains("logged in at 127.0.0.1") && checked.contains("mailbox INBOX"), "{checked}");
    let connection = format!("port = {}\ntls = \"none\"", dovecot.imap);
    let unknown = home(&connection, &format!("https://127.0.0.1:{port}/token"), "\"INBOX\"");
    let output = unknown.run(&["check", "--connect"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("FAILED: no access token: ") && printed.contains("certificate"), "{printed}");
}

#[test]
fn mailboxes_share_a_valid_token() {
    let (endpoint, dovecot) = start();
    let home = plain(&dovecot, &endpoint, "\"INBOX\", \"\\\\Junk\", \"Resmic\"");
    let daemon = home.start();
    until_idle(&home, 3);
    assert_eq!(endpoint.asked(), 1);
    dovecot.kick(USER);
    endpoint.until(SOON, |state| state.shown.len() == 6);
    until_idle(&home, 3);
    assert_eq!(endpoint.asked(), 1, "the token that is there is still good");
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn an_expiring_token_is_not_used() {
    let (endpoint, dovecot) = start();
    // The token is valid for a minute. The program uses a token in its last minute only for the login that requested the token.
    endpoint.change(|state| state.lifetime = 60);
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let daemon = home.start();
    until_idle(&home, 1);
    endpoint.change(|state| state.good.clear());
    reconnect_and_deliver(&home, &dovecot, 1);
    let (given, shown) = endpoint.change(|state| (state.given.clone(), state.shown.clone()));
    assert_eq!((given.len(), shown), (2, given), "each is shown once, the new one after the old");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_revoked_token_is_replaced_at_once() {
    let (endpoint, dovecot) = start();
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let daemon = home.start();
    until_idle(&home, 1);
    endpoint.change(|state| state.good.clear());
    reconnect_and_deliver(&home, &dovecot, 1);
    let (given, shown) = endpoint.change(|state| (state.given.clone(), state.shown.clone()));
    assert_eq!(shown, [&given[0], &given[0], &given[1]].map(String::clone));
    assert!(!daemon.log().contains("login refused"), "a person had nothing to do:\n{}", daemon.log());
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_refused_new_token_needs_an_operator() {
    let (endpoint, dovecot) = start();
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    // The endpoint issues tokens, but the mail server accepts none of them.
    let config = std::fs::read_to_string(home.folder.path().join("config.toml")).unwrap();
    std::fs::write(home.folder.path().join("config.toml"), config.replace(USER, "other@shop.example")).unwrap();
    let daemon = home.start();
    daemon.says("login refused", SOON);
    assert_eq!(endpoint.asked(), 1, "a new token was refused; the next would be too");
    assert!(pauses(&daemon.log())[0] >= 60, "{}", daemon.log());
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_revoked_grant_needs_an_operator() {
    let (endpoint, dovecot) = start();
    let description = format!("Token {REFRESH_TOKEN} has been expired or revoked.");
    endpoint.answer_instead(
        400,
        &[],
        &format!("{{\"error\": \"invalid_grant\", \"error_description\": \"{description}\"}}"),
    );
    let home = plain(&dovecot, &endpoint, "\"INBOX\", \"\\\\Junk\"");
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'failed'", "2", SOON);
    daemon.says_often("retry_in_s=", 2, SOON);
    let log = daemon.log();
    assert_eq!(pauses(&log).len(), 2, "{log}");
    assert!(pauses(&log).iter().all(|pause| *pause >= 60), "{log}");
    assert!(endpoint.asked() <= 2);
    let output = home.run(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let attention = status["attention"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect::<String>();
    assert!(attention.contains("invalid_grant: Token (secret) has been expired"), "{attention}");
    assert!(attention.contains("run `resmic-mailhook authorize`"), "{attention}");
    let checked = home.run(&["check", "--connect"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("invalid_grant"));
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_failing_endpoint_is_retried_soon() {
    let (endpoint, dovecot) = start();
    endpoint.answer_instead(503, &[], "<html>maintenance</html>");
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let daemon = home.start();
    daemon.says("no access token: ", SOON);
    home.until("SELECT last_error LIKE '%503 Service Unavailable%' FROM mailboxes", "1", SOON);
    endpoint.answer_with_tokens();
    until_idle(&home, 1);
    let log = daemon.log();
    assert!(pauses(&log)[0] <= 1, "{log}");
    assert!(!log.contains("login refused") && !log.contains("password"), "{log}");
    assert_eq!(home.ask("SELECT last_error FROM mailboxes"), "NULL");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn retry_after_of_the_endpoint_is_respected() {
    let (endpoint, dovecot) = start();
    endpoint.answer_instead(429, &[("Retry-After", "300")], "{\"error\": \"slow_down\"}");
    let home = plain(&dovecot, &endpoint, "\"INBOX\", \"\\\\Junk\"");
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'failed'", "2", SOON);
    daemon.says_often("retry_in_s=", 2, SOON);
    let log = daemon.log();
    assert!(pauses(&log).len() == 2 && pauses(&log).iter().all(|pause| *pause >= 299), "{log}");
    assert_eq!(endpoint.asked(), 1, "what it said to one mailbox holds for the other");
    assert!(!log.contains("login refused"), "{log}");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_redirect_is_not_followed() {
    let (endpoint, dovecot) = start();
    let to = format!("{}?again", url(&endpoint));
    endpoint.answer_instead(307, &[("Location", &to)], "");
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let output = home.run(&["check", "--connect"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("a redirect to") && printed.contains("not followed"), "{printed}");
    assert_eq!(endpoint.asked(), 1);
}

#[test]
fn a_rotated_refresh_token_is_used() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| (state.rotates, state.lifetime) = (true, 60));
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let daemon = home.start();
    for n in 1..=2 {
        until_idle(&home, 1);
        reconnect_and_deliver(&home, &dovecot, n);
    }
    let used: Vec<_> = endpoint.change(|state| state.asked.iter().map(|form| form["refresh_token"].clone()).collect());
    assert_eq!(used, [REFRESH_TOKEN.to_owned(), format!("{REFRESH_TOKEN}-1"), format!("{REFRESH_TOKEN}-2")]);
    let log = daemon.log();
    assert_eq!(log.matches("has replaced the refresh token").count(), 1, "{log}");
    assert_eq!(std::fs::read_to_string(home.folder.path().join("refresh-token")).unwrap(), REFRESH_TOKEN);
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
}

/// The refresh tokens that the endpoint received, in order.
fn used_tokens(endpoint: &Endpoint) -> Vec<String> {
    endpoint.change(|state| state.asked.iter().map(|form| form["refresh_token"].clone()).collect())
}

/// The files of rotated refresh tokens, including temporary files.
fn token_files(home: &Home) -> Vec<PathBuf> {
    let files = std::fs::read_dir(home.folder.path()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("oauth-")).collect()
}

/// Starts the daemon, waits for its login, and stops it.
fn run_once(home: &Home, endpoint: &Endpoint) {
    let before = endpoint.change(|state| state.shown.len());
    let daemon = home.start();
    endpoint.until(SOON, |state| state.shown.len() > before);
    until_idle(home, 1);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn without_rotation_no_token_file_is_written() {
    let (endpoint, dovecot) = start();
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    home.data(&["check", "--connect"]);
    let names = || {
        let entries = std::fs::read_dir(home.folder.path()).unwrap().map(|e| e.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names().len(), 3, "the configuration and two secrets: {:?}", names());
    run_once(&home, &endpoint);
    assert_eq!(token_files(&home), Vec::<PathBuf>::new());
}

#[test]
fn the_newest_refresh_token_outlasts_a_restart() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| (state.rotates, state.lifetime) = (true, 60));
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    run_once(&home, &endpoint);
    let daemon = home.start();
    endpoint.until(SOON, |state| state.shown.len() == 2);
    until_idle(&home, 1);
    // A command and the daemon each use the refresh token that the other one received.
    home.data(&["check", "--connect"]);
    reconnect_and_deliver(&home, &dovecot, 1);
    home.data(&["check", "--connect"]);
    let nth = |n: usize| if n == 0 { REFRESH_TOKEN.to_owned() } else { format!("{REFRESH_TOKEN}-{n}") };
    assert_eq!(used_tokens(&endpoint), (0..5).map(nth).collect::<Vec<_>>(), "each once");
    let files = token_files(&home);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), format!("{}\n", nth(5)));
    assert_eq!(std::fs::metadata(&files[0]).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_rotation_during_shutdown_is_stored() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| (state.rotates, state.holds) = (true, true));
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let daemon = home.start();
    endpoint.until(SOON, |state| state.given.len() == 1);
    daemon.process.signal("-TERM");
    daemon.says("whose answer may contain a new refresh token", SOON);
    endpoint.release();
    assert_eq!(daemon.end(), Some(0));
    run_once(&home, &endpoint);
    assert_eq!(used_tokens(&endpoint), [REFRESH_TOKEN.to_owned(), format!("{REFRESH_TOKEN}-1")]);
}

#[test]
fn a_rotation_during_a_handover_is_stored() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| (state.rotates, state.holds) = (true, true));
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    let nats = super::standby::nats_with_bucket(SOON);
    let config = home.folder.path().join("config.toml");
    let alone = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, alone + &super::standby::standby(&nats, "a", "")).unwrap();
    let daemon = home.start();
    endpoint.until(SOON, |state| state.given.len() == 1);
    daemon.process.signal("-TERM");
    daemon.says("this host releases the lease", SOON);
    endpoint.release();
    assert_eq!(daemon.end(), Some(0));
    let files = token_files(&home);
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), format!("{REFRESH_TOKEN}-1\n"));
}

#[test]
fn a_newly_configured_refresh_token_is_used() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| state.rotates = true);
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    run_once(&home, &endpoint);
    let old = token_files(&home);
    endpoint.change(|state| state.refresh_token = "given-anew".into());
    std::fs::write(home.folder.path().join("refresh-token"), "given-anew\n").unwrap();
    run_once(&home, &endpoint);
    assert_eq!(used_tokens(&endpoint), [REFRESH_TOKEN, "given-anew"]);
    let files = token_files(&home);
    assert!(files.len() == 2 && files.contains(&old[0]), "{files:?}");
    // The file of the old grant is unchanged.
    assert_eq!(std::fs::read_to_string(&old[0]).unwrap(), format!("{REFRESH_TOKEN}-1\n"));
}

#[test]
fn the_configured_token_replaces_a_revoked_one() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| state.rotates = true);
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    run_once(&home, &endpoint);
    // Microsoft's older refresh tokens remain valid for a while.
    endpoint.change(|state| state.refresh_token = REFRESH_TOKEN.into());
    let daemon = home.start();
    endpoint.until(SOON, |state| state.asked.len() == 3);
    until_idle(&home, 1);
    assert!(!daemon.log().contains("no access token"), "{}", daemon.log());
    assert_eq!(daemon.end(), Some(0));
    let nth = |n: usize| format!("{REFRESH_TOKEN}-{n}");
    assert_eq!(used_tokens(&endpoint), [REFRESH_TOKEN.into(), nth(1), REFRESH_TOKEN.into()]);
    run_once(&home, &endpoint);
    assert_eq!(used_tokens(&endpoint)[3..], [nth(2)]);
    // Both tokens are revoked. Each one is tried once, and the error names the remedy.
    endpoint.change(|state| state.refresh_token = "given-anew".into());
    let checked = home.run(&["check", "--connect"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("run `resmic-mailhook authorize`"), "{checked:?}");
    assert_eq!(used_tokens(&endpoint)[4..], [nth(3), REFRESH_TOKEN.into()]);
}

#[test]
fn an_unwritable_token_file_is_survived() {
    let (endpoint, dovecot) = start();
    endpoint.change(|state| (state.rotates, state.lifetime) = (true, 60));
    let home = plain(&dovecot, &endpoint, "\"INBOX\"");
    run_once(&home, &endpoint);
    // A folder with the file's name prevents the write. Permissions would not prevent it if the test runs as root.
    let file = token_files(&home).remove(0);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    endpoint.change(|state| state.refresh_token = REFRESH_TOKEN.into());
    let daemon = home.start();
    for n in 1..=2 {
        endpoint.until(SOON, |state| state.shown.len() > n);
        until_idle(&home, 1);
        reconnect_and_deliver(&home, &dovecot, n);
    }
    let nth = |n: usize| format!("{REFRESH_TOKEN}-{n}");
    assert_eq!(used_tokens(&endpoint)[1..], [REFRESH_TOKEN.into(), nth(2), nth(3)]);
    let log = daemon.log();
    let warning = format!("cannot be written to {}", file.display());
    assert_eq!(log.lines().filter(|line| line.contains(&warning) && line.contains("WARN")).count(), 3, "{log}");
    assert!(log.contains("Check free space"), "{log}");
    assert_eq!(token_files(&home), [file], "nothing unfinished is left");
    assert_no_secrets(&home, &daemon, &endpoint);
    assert_eq!(daemon.end(), Some(0));
    // A command prints the warning, too.
    endpoint.change(|state| state.refresh_token = REFRESH_TOKEN.into());
    let checked = home.run(&["check", "--connect"]);
    let printed = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && printed.contains(&warning), "{checked:?}");
}

/// Starts a server that sends the next of these lines after each line that it reads. `{line}` stands for the read line
/// and `{tag}` for its tag. The thread returns the lines that it read.
fn conversation(says: &'static [&'static str]) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let talk = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let (mut received, mut tag) = (Vec::new(), String::new());
        stream.write_all(b"* OK ready\r\n").unwrap();
        for response in says {
            let Some(Ok(line)) = lines.next() else { break };
            if let Some((first, _)) = line.split_once(' ') {
                tag = first.to_owned();
            }
            stream.write_all(response.replace("{tag}", &tag).replace("{line}", &line).as_bytes()).unwrap();
            received.push(line);
        }
        received
    });
    (port, talk)
}

/// Runs `check --connect` with a server of [`conversation`]. Returns the lines that the server read, and the output.
fn check_with_server(says: &'static [&'static str]) -> (Vec<String>, String, Endpoint) {
    let endpoint = Endpoint::start();
    let (port, talk) = conversation(says);
    let home = home(&format!("port = {port}\ntls = \"none\""), &url(&endpoint), "\"INBOX\"");
    let output = home.run(&["check", "--connect"]);
    (talk.join().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned(), endpoint)
}

#[test]
fn without_sasl_ir_the_continuation_is_awaited() {
    const XOAUTH2: &[&str] = &[
        "* CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2\r\n{tag} OK done\r\n",
        "+ \r\n",
        "+ eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIn0=\r\n",
        "{tag} NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n",
    ];
    const OAUTHBEARER: &[&str] = &[
        "* CAPABILITY IMAP4rev1 AUTH=XOAUTH2 AUTH=OAUTHBEARER\r\n{tag} OK done\r\n",
        "+\r\n",
        "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n",
        "{tag} NO SASL authentication failed\r\n",
    ];
    let port = Regex::new("port=[0-9]+").unwrap();
    for (says, name, response, acknowledgement) in [
        (XOAUTH2, "XOAUTH2", format!("user={USER}\x01auth=Bearer TOKEN\x01\x01"), ""),
        (
            OAUTHBEARER,
            "OAUTHBEARER",
            format!("n,a={USER},\x01host=127.0.0.1\x01port=PORT\x01auth=Bearer TOKEN\x01\x01"),
            "AQ==",
        ),
    ] {
        let (received, printed, endpoint) = check_with_server(says);
        assert!(received[1].ends_with(&format!(" AUTHENTICATE {name}")), "{received:?}");
        let decoded = String::from_utf8(STANDARD.decode(&received[2]).unwrap()).unwrap();
        let token = endpoint.change(|state| state.given[0].clone());
        assert_eq!(port.replace(&decoded, "port=PORT"), response.replace("TOKEN", &token));
        assert_eq!(received[3], acknowledgement);
        assert!(printed.contains("login refused"), "{printed}");
        assert_eq!(endpoint.asked(), 1);
    }
}

#[test]
fn tokens_in_server_responses_are_redacted() {
    let (received, printed, _) = check_with_server(&[
        "* CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2\r\n{tag} OK done\r\n",
        "{tag} NO this does not look good: {line}\r\n",
    ]);
    let response = received[1].rsplit(' ').next().unwrap();
    assert!(printed.contains("AUTHENTICATE refused: No this does not look good: "), "{printed}");
    assert!(printed.contains("(secret)") && !printed.contains(response), "{printed}");
    let (received, printed, endpoint) = check_with_server(&[
        "* CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2\r\n{tag} OK done\r\n",
        "{tag} NO [UNAVAILABLE] Temporary authentication failure\r\n",
    ]);
    assert!(received[1].contains(" AUTHENTICATE XOAUTH2 "), "{received:?}");
    assert!(
        printed.contains("AUTHENTICATE refused: No [UNAVAILABLE]") && !printed.contains("login refused"),
        "{printed}"
    );
    drop(endpoint);
    let (_, printed, _) = check_with_server(&["* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\n{tag} OK done\r\n"]);
    assert!(printed.contains("no way to log in: the server offers neither OAUTHBEARER nor XOAUTH2"), "{printed}");
    let (_, printed, _) = check_with_server(&[
        "* CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2\r\n{tag} OK done\r\n",
        "+ e30=\r\n",
        "+ e30=\r\n",
    ]);
    assert!(printed.contains("violates the protocol"), "{printed}");
}

#[test]
fn errors_in_oauth_contain_no_secret() {
    let endpoint = Endpoint::start();
    let check_error = |table: &str| {
        let home = Home::new(&format!(
            "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\nuser = \"{USER}\"\n{table}\n[trust]\naccept = [\"none\"]\n"
        ));
        let output = home.run(&["check"]);
        assert_eq!(output.status.code(), Some(2), "{table}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let good = format!("token_url = \"{}\", client_id = \"c\"", url(&endpoint));
    for (table, expected) in [
        (
            format!("oauth2 = {{ {good}, refresh_token = \"s3cret\" }}"),
            "account[0].oauth2.refresh_token: expected { credential",
        ),
        (
            format!("oauth2 = {{ {good}, client_secret = \"s3cret\", refresh_token = {{ env = \"R\" }} }}"),
            "client_secret: expected {",
        ),
        (format!("oauth2 = {{ {good} }}"), "refresh_token"),
        (
            format!("oauth2 = {{ {good}, refresh_token = {{ env = \"NO_SUCH\" }} }}"),
            "oauth2.refresh_token: environment variable NO_SUCH",
        ),
        (
            format!(
                "password = {{ env = \"MAILHOOK_PASSWORD\" }}\noauth2 = {{ {good}, refresh_token = {{ env = \"R\" }} }}"
            ),
            "account[0].oauth2: expected either `password` or `oauth2`",
        ),
        (
            "oauth2 = { token_url = \"http://login.example/\", client_id = \"c\", refresh_token = { env = \"R\" } }"
                .into(),
            "oauth2.token_url: expected https",
        ),
        (String::new(), "account[0].password: expected { credential"),
    ] {
        let message = check_error(&table);
        assert!(message.contains(expected), "{table}: {message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}
