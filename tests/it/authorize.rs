//! `authorize` by device code and by redirect, with a fake authorization server, and a login with the new token.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use testkit::daemon::Home;
use testkit::dovecot::Dovecot;
use testkit::tokens::{CLIENT_SECRET, CODE, DEVICE_CODE, Endpoint, REFRESH_TOKEN, USER, USER_CODE};

/// The configuration of an account at this Dovecot. Its refresh token has expired.
fn home(connection: &str, oauth2: &str) -> Home {
    let home = Home::new(&format!(
        "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\n{connection}\nuser = \"{USER}\"\nmailboxes = [\"INBOX\"]\n\
         [account.oauth2]\nclient_id = \"shop\"\nrefresh_token = {{ file = \"refresh-token\" }}\nscope = \"imap offline\"\n{oauth2}\n"
    ));
    fs::write(home.folder.path().join("refresh-token"), "ended\n").unwrap();
    fs::write(home.folder.path().join("client-secret"), CLIENT_SECRET).unwrap();
    home
}

/// The configuration of an account that is authorized by redirect at this endpoint.
fn with_redirect(endpoint: &Endpoint, dovecot: &Dovecot) -> Home {
    let at = format!("http://127.0.0.1:{}", endpoint.port);
    home(
        &format!("port = {}\ntls = \"none\"", dovecot.imap),
        &format!(
            "token_url = \"{at}/token\"\nauth_url = \"{at}/authorize?prompt=login\"\nclient_secret = {{ file = \"client-secret\" }}"
        ),
    )
}

fn start() -> (Endpoint, Dovecot) {
    let endpoint = Endpoint::start();
    let dovecot = Dovecot::start_with_tokens("xoauth2 oauthbearer", &endpoint.introspection_url());
    (endpoint, dovecot)
}

fn token(home: &Home) -> String {
    fs::read_to_string(home.folder.path().join("refresh-token")).unwrap()
}

/// Asserts that the token is stored, that other users cannot read it, and that it works for a login.
fn is_authorized(home: &Home) {
    let path = home.folder.path().join("refresh-token");
    assert_eq!(token(home), format!("{REFRESH_TOKEN}\n"));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o600);
    let left: Vec<_> = fs::read_dir(home.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    // The exit code is ignored, because the names of resmic.com are not in DNS here.
    let checked = home.run(&["check", "--connect"]);
    let output_text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(output_text.contains("logged in at 127.0.0.1") && output_text.contains("mailbox INBOX"), "{output_text}");
}

fn assert_shows_no_secret(text: &str) {
    for secret in [REFRESH_TOKEN, CLIENT_SECRET, DEVICE_CODE, CODE, "access-of-authorization"] {
        assert!(!text.contains(secret), "{secret} was shown:\n{text}");
    }
}

fn output_text(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_shows_no_secret(&text);
    text
}

/// A running `authorize` that waits for a redirect.
struct Waiting {
    child: Child,
    page: String,
    redirect_uri: String,
    lines: BufReader<std::process::ChildStderr>,
}

impl Waiting {
    fn start(home: &Home) -> Waiting {
        let mut command = home.command(&["authorize", "shop"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let (mut page, mut redirect_uri) = (String::new(), String::new());
        while redirect_uri.is_empty() {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it has ended");
            if let Some(url) = line.trim().strip_prefix("http://127.0.0.1:").filter(|url| url.contains("/authorize?")) {
                page = format!("http://127.0.0.1:{url}");
            }
            if let Some(uri) = line.strip_prefix("The browser then opens ") {
                redirect_uri = uri.split(' ').next().unwrap().to_owned();
            }
        }
        Waiting { child, page, redirect_uri, lines }
    }

    /// The rest of the output, and the exit code.
    fn end(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert_shows_no_secret(&rest);
        (rest, self.child.wait().unwrap().code())
    }
}

/// Opens a URL as a browser does. Returns the head and the body of the response.
fn visit(url: &str) -> String {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The URL of the redirect from the provider's page.
fn location(page: &str) -> String {
    let answer = visit(page);
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("location: "));
    line.unwrap_or_else(|| panic!("no redirect: {answer}"))["location: ".len()..].to_owned()
}

#[test]
fn a_device_code_becomes_a_refresh_token() {
    let (endpoint, dovecot) = start();
    let at = dovecot.folder.path();
    let port = endpoint.start_tls(&at.join("server.pem"), &at.join("server.key"));
    endpoint.change(|state| {
        state.is_public = true;
        state.device_errors = vec!["authorization_pending", "slow_down"];
    });
    let home = home(
        &format!("port = {}\nca_file = \"{}\"", dovecot.imaps, dovecot.ca().display()),
        &format!("token_url = \"https://127.0.0.1:{port}/token\"\ndevice_url = \"https://127.0.0.1:{port}/device\""),
    );
    let output = home.run(&["authorize", "shop"]);
    let printed = output_text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains(USER_CODE) && printed.contains("https://login.example/device"), "{printed}");
    let polled = endpoint.change(|state| state.polled.clone());
    assert_eq!(polled.len(), 3);
    assert!(polled[1] - polled[0] >= Duration::from_secs(1), "{polled:?}");
    assert!(polled[2] - polled[1] >= Duration::from_secs(6), "slow_down adds five seconds: {polled:?}");
    is_authorized(&home);
}

#[test]
fn a_redirect_becomes_a_refresh_token() {
    let (endpoint, dovecot) = start();
    let home = with_redirect(&endpoint, &dovecot);
    let waiting = Waiting::start(&home);
    // Another page in the browser, or another program, does not have the `state`.
    for strange in ["", "favicon.ico", "?code=stolen", "?code=stolen&state=guessed"] {
        assert!(visit(&format!("{}{strange}", waiting.redirect_uri)).starts_with("HTTP/1.1 404"), "{strange}");
    }
    let page = visit(&location(&waiting.page));
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("You can close this page"), "{page}");
    let (printed, code) = waiting.end();
    assert_eq!(code, Some(0), "{printed}");
    let visited = endpoint.change(|state| state.visited.clone());
    assert_eq!((visited["prompt"].as_str(), visited["scope"].as_str()), ("login", "imap offline"));
    is_authorized(&home);
}

#[test]
fn a_pasted_redirect_becomes_a_refresh_token() {
    let (endpoint, dovecot) = start();
    let home = with_redirect(&endpoint, &dovecot);
    let mut waiting = Waiting::start(&home);
    let url = location(&waiting.page);
    let mut terminal = waiting.child.stdin.take().unwrap();
    writeln!(terminal, "http://127.0.0.1:1/?code=stolen&state=guessed\n{url}").unwrap();
    let (printed, code) = waiting.end();
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("this is not the URL of the redirect"), "{printed}");
    is_authorized(&home);
}

#[test]
fn a_refusal_changes_nothing() {
    let (endpoint, dovecot) = start();
    let home = with_redirect(&endpoint, &dovecot);
    endpoint.change(|state| state.refuses = true);
    let waiting = Waiting::start(&home);
    visit(&location(&waiting.page));
    let (printed, code) = waiting.end();
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("access_denied: not today") && printed.contains("run authorize again"), "{printed}");
    endpoint.change(|state| (state.refuses, state.is_online) = (false, true));
    let waiting = Waiting::start(&home);
    visit(&location(&waiting.page));
    let (printed, code) = waiting.end();
    assert!(code == Some(1) && printed.contains("it gave no refresh token"), "{printed}");
    assert_eq!(token(&home), "ended\n");
}

#[test]
fn each_error_of_a_device_code_has_advice() {
    let endpoint = Endpoint::start();
    let at = format!("http://127.0.0.1:{}", endpoint.port);
    let urls = format!("token_url = \"{at}/token\"\ndevice_url = \"{at}/device\"");
    let home = home("port = 1\ntls = \"none\"", &urls);
    // The provider demands a client secret, and the configuration has none.
    for (error, advice) in [
        (None, "check client_id and client_secret"),
        (Some("access_denied"), "an administrator refused"),
        (Some("expired_token"), "the code has expired"),
        (Some("unauthorized_client"), "allow public client flows"),
    ] {
        endpoint.change(|state| {
            state.is_public = error.is_some();
            state.device_errors = error.into_iter().collect();
        });
        let output = home.run(&["authorize", "shop"]);
        let printed = output_text(&output);
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains(advice), "{printed}");
        assert_eq!(token(&home), "ended\n");
    }
}

#[test]
fn an_unusable_configuration_is_refused() {
    let token_url = "token_url = \"https://login.example/token\"";
    let no_way = home("port = 1\ntls = \"none\"", token_url);
    let run = |home: &Home, account: &str| {
        let output = home.run(&["authorize", account]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        output_text(&output)
    };
    assert!(run(&no_way, "shop").contains("account[0].oauth2.token_url: the way to a refresh token at login.example"));
    assert!(run(&no_way, "other").contains("no account is named \"other\""));
    let config = no_way.folder.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let variable = text.replace("{ file = \"refresh-token\" }", "{ env = \"TOKEN\" }");
    fs::write(&config, format!("{variable}\ndevice_url = \"https://login.example/device\"\n")).unwrap();
    let printed = run(&no_way, "shop");
    assert!(
        printed.contains("oauth2.refresh_token: environment variable TOKEN: a new secret can only be"),
        "{printed}"
    );
    let password = text.split("[account.oauth2]").next().unwrap().to_owned() + "password = { env = \"P\" }\n";
    fs::write(&config, password).unwrap();
    assert!(run(&no_way, "shop").contains("authorize needs [account.oauth2]"));
}

#[test]
fn an_unwritable_token_file_stops_authorization() {
    let endpoint = Endpoint::start();
    let at = format!("http://127.0.0.1:{}", endpoint.port);
    let home = home("port = 1\ntls = \"none\"", &format!("token_url = \"{at}/token\"\ndevice_url = \"{at}/device\""));
    let config = home.folder.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"refresh-token\"", "\"no-folder/refresh-token\"")).unwrap();
    let output = home.run(&["authorize", "shop"]);
    assert!(output.status.code() == Some(1) && output_text(&output).contains("cannot write"), "{output:?}");
    assert!(!output_text(&output).contains(USER_CODE));
}
