//! `init` on a pseudo-terminal and with flags, with a real Dovecot and a real DNS server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use testkit::daemon::{Home, binary};
use testkit::dns::Dns;
use testkit::dovecot::{Dovecot, PASSWORD};

const SOON: Duration = Duration::from_secs(60);
const EMAIL: &str = "payments@shop.example";

/// An empty folder.
fn empty() -> Home {
    Home { folder: tempfile::Builder::new().prefix("init").tempdir().unwrap() }
}

/// A DNS server with this record of shop.example, and the domain of Resmic that `check --connect` looks up.
fn dns(record: (&str, &str)) -> Dns {
    Dns::start(&[(record.0.into(), record.1.into()), ("resmic.com".into(), "MX 10 mail.resmic.com.".into())])
}

/// A handler that accepts connections, and its URL.
fn handler() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/payment-webhook", listener.local_addr().unwrap());
    (listener, url)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(home: &Home, name: &str) -> u32 {
    fs::metadata(home.folder.path().join(name)).unwrap().permissions().mode() & 0o7777
}

fn content(home: &Home, name: &str) -> String {
    fs::read_to_string(home.folder.path().join(name)).unwrap()
}

/// Runs `init` without a terminal. `input` is its standard input.
fn init(home: &Home, arguments: &[&str], input: &str) -> Output {
    let mut command = home.command(&[&["init"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program may end before it has read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A command on a pseudo-terminal, which `script` of util-linux creates.
struct Terminal {
    child: Child,
    screen: Arc<(Mutex<String>, Condvar)>,
    /// The length of the output that was already searched.
    seen: usize,
}

impl Terminal {
    fn start(command: &str) -> Terminal {
        let mut script = Command::new("script");
        script.args(["-E", "always", "-qec", command, "/dev/null"]);
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let keep = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                keep.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
                keep.1.notify_all();
            }
        });
        Terminal { child, screen, seen: 0 }
    }

    /// Starts `init` with these arguments.
    fn init(home: &Home, arguments: &str) -> Terminal {
        let config = home.folder.path().join("config.toml");
        Terminal::start(&format!("{} --config {} init {arguments}", binary().display(), config.display()))
    }

    /// Waits until the text appears in new output.
    fn expect(&mut self, text: &str) {
        let screen = self.screen.0.lock().unwrap();
        let absent = |screen: &mut String| !screen[self.seen..].contains(text);
        let (screen, waited) = self.screen.1.wait_timeout_while(screen, SOON, absent).unwrap();
        assert!(!waited.timed_out(), "{text:?} is not on the screen:\n{screen}");
        self.seen += screen[self.seen..].find(text).unwrap() + text.len();
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for a question, and answers it.
    fn answer(&mut self, question: &str, answer: &str) {
        self.expect(question);
        self.press(&format!("{answer}\n"));
    }

    /// Waits for the end of the program. Returns its output and the exit code.
    fn end(mut self) -> (String, Option<i32>) {
        let code = self.child.wait().unwrap().code();
        (self.screen.0.lock().unwrap().clone(), code)
    }
}

#[test]
fn answers_on_a_terminal_make_a_working_configuration() {
    let dovecot = Dovecot::start();
    let dns = dns(("_imaps._tcp.shop.example", &format!("SRV 0 1 {} localhost.", dovecot.imaps)));
    let (_listener, url) = handler();
    let home = empty();
    let mut terminal = Terminal::init(&home, &format!("--dns {} --ca-file {}", dns.address, dovecot.ca().display()));
    terminal.answer("Mail address that Resmic sends to: ", "payments");
    terminal.answer("expected an address", EMAIL);
    terminal.expect("IMAP server localhost (the SRV record _imaps._tcp.shop.example)");
    terminal.answer("Use this server? [Y/n]: ", "");
    terminal.answer(&format!("Login name [{EMAIL}]: "), "");
    terminal.answer("Password (not shown): ", "wr0ng-password");
    terminal.expect("FAILED: login refused");
    terminal.answer("try again", "");
    terminal.answer("Password (not shown): ", PASSWORD);
    terminal.expect("logged in at localhost");
    terminal.answer("only Resmic's mails? [y/N]: ", "y");
    terminal.answer("- for none: ", "http://handler.example/");
    terminal.answer("a handler on another machine needs https://", &url);
    terminal.answer("Generate a new key?", "");
    terminal.expect("How do payments find their orders?");
    terminal.answer("1, 2 or 3: ", "1");
    terminal.answer("Write them? [Y/n]: ", "");
    let (screen, code) = terminal.end();
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains(PASSWORD) && !screen.contains("wr0ng-password"), "{screen}");
    assert_eq!(names(home.folder.path()), ["address-key", "config.toml", "imap-password", "webhook-secret"]);
    for secret in ["address-key", "imap-password", "webhook-secret"] {
        assert_eq!(mode(&home, secret), 0o600, "{secret}");
        assert!(!screen.contains(content(&home, secret).trim()), "{secret} is on the screen");
    }
    assert_eq!(mode(&home, "config.toml"), 0o644);
    assert_eq!(content(&home, "imap-password"), format!("{PASSWORD}\n"));
    assert!(content(&home, "webhook-secret").len() == 65 && content(&home, "address-key").len() == 65);
    assert_ne!(content(&home, "webhook-secret"), content(&home, "address-key"));
    let checked = home.data(&["check", "--connect"]);
    assert!(checked.contains("logged in at localhost") && checked.contains("target shop"), "{checked}");
    // `init` prints the next commands in the syntax of a shell.
    let config = home.folder.path().join("config.toml");
    for next in ["check --connect", "run", "events --follow"] {
        assert!(
            screen.contains(&format!("  resmic-mailhook --config {} {next}", config.display())),
            "{next}: {screen}"
        );
    }
    assert!(home.data(&["address", "order-1"]).starts_with("payments+order-1."));
}

#[test]
fn another_server_can_be_entered() {
    let dovecot = Dovecot::start();
    let home = empty();
    // DNS has the address of a server that does not run.
    let dns = dns(("imap.shop.example", "A 127.0.0.1"));
    let mut terminal =
        Terminal::init(&home, &format!("--dns {} --no-forward --ca-file {}", dns.address, dovecot.ca().display()));
    terminal.answer("Mail address", EMAIL);
    terminal.expect("IMAP server imap.shop.example (a usual name");
    terminal.answer("Use this server?", "n");
    terminal.answer("IMAP server [imap.shop.example]: ", "127.0.0.1");
    terminal.answer("Port [993]: ", "1");
    terminal.answer("Login name", "");
    terminal.answer("Password", PASSWORD);
    terminal.expect("FAILED: cannot connect to 127.0.0.1");
    terminal.answer("s: change server", "s");
    terminal.answer("IMAP server [127.0.0.1]: ", "");
    terminal.answer("Port [1]: ", &dovecot.imaps.to_string());
    terminal.answer("Login name", "");
    terminal.answer("Password", PASSWORD);
    terminal.answer("only Resmic's mails?", "");
    terminal.answer("1, 2 or 3: ", "3");
    terminal.answer("there is no handler to send to", "2");
    terminal.answer("Write them?", "n");
    let (screen, code) = terminal.end();
    assert!(code == Some(1) && screen.contains("nothing was written"), "{screen}");
    assert_eq!(names(home.folder.path()), Vec::<String>::new());
}

#[test]
fn the_proposed_port_follows_the_flag_for_tls() {
    for (tls, port) in [("starttls", 143), ("none", 143), ("implicit", 993)] {
        let home = empty();
        let dns = dns(("other.example", "MX 0 mx.other.example."));
        let mut terminal = Terminal::init(&home, &format!("--dns {} --email {EMAIL} --tls {tls}", dns.address));
        terminal.answer("IMAP server: ", "127.0.0.1");
        terminal.answer(&format!("Port [{port}]: "), "\u{3}");
        assert_ne!(terminal.end().1, Some(0));
    }
}

#[test]
fn a_given_port_is_not_asked_for() {
    let home = empty();
    let dns = dns(("other.example", "MX 0 mx.other.example."));
    let flags = format!("--dns {} --email {EMAIL} --tls none --port 1 --no-forward", dns.address);
    let mut terminal = Terminal::init(&home, &flags);
    terminal.answer("IMAP server: ", "127.0.0.1");
    terminal.answer("Login name", "");
    terminal.answer("Password", "secret");
    terminal.expect("FAILED: cannot connect to 127.0.0.1:1");
    // The person may replace the port of the flag.
    terminal.answer("s: change server", "s");
    terminal.answer("IMAP server [127.0.0.1]: ", "");
    terminal.answer("Port [1]: ", "\u{3}");
    assert_ne!(terminal.end().1, Some(0));
}

#[test]
fn an_interruption_leaves_no_files() {
    let home = empty();
    let config = home.folder.path().join("new/config.toml");
    let command = format!(
        "{} --config {} init --host 127.0.0.1 --tls none --user u --email {EMAIL}; echo code $?; stty -a",
        binary().display(),
        config.display()
    );
    // The keys Ctrl-C and Ctrl-D.
    for (question, keys, expected) in [
        ("Password (not shown): ", "\u{3}", "interrupted; nothing was written"),
        ("Password (not shown): ", "\u{4}", "the input has ended; nothing was written"),
    ] {
        let mut terminal = Terminal::start(&format!("sh -c 'trap : INT; {command}'"));
        terminal.expect(question);
        terminal.press(keys);
        terminal.expect(expected);
        terminal.expect("code 1");
        // The terminal echoes typed characters again.
        terminal.expect(" echo ");
        terminal.end();
        assert_eq!(names(home.folder.path()), Vec::<String>::new());
    }
}

#[test]
fn flags_replace_answers() {
    let dovecot = Dovecot::start();
    let dns = dns(("shop.example", "MX 10 mx.shop.example."));
    let (_listener, url) = handler();
    let home = empty();
    let (port, address) = (dovecot.imaps.to_string(), dns.address.to_string());
    let ca = dovecot.ca();
    let arguments = [
        "--yes",
        "--email",
        EMAIL,
        "--host",
        "localhost",
        "--port",
        &port,
        "--ca-file",
        ca.to_str().unwrap(),
        "--dns",
        &address,
        "--password-file",
        "-",
        "--dedicated",
        "--forward",
        &url,
        "--generate-webhook-secret",
        "--orders",
        "match",
    ];
    let output = init(&home, &arguments, &format!("{PASSWORD}\n"));
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
    assert_eq!(names(home.folder.path()), ["config.toml", "imap-password", "webhook-secret"]);
    assert!(!output_text(&output).contains(PASSWORD));
    let checked = home.data(&["check", "--connect"]);
    assert!(checked.contains("logged in at localhost"), "{checked}");
    let text = content(&home, "config.toml");
    assert!(text.contains("match = true") && text.contains("dedicated = true"), "{text}");
    // The second run finds all files of the first one.
    let output = init(&home, &arguments, &format!("{PASSWORD}\n"));
    assert_eq!(output.status.code(), Some(2));
    assert!(output_text(&output).contains("exists, and init overwrites nothing"), "{}", output_text(&output));
    assert_eq!(content(&home, "config.toml"), text);
}

#[test]
fn a_missing_answer_names_its_flag() {
    let secret = ["--password-file", "-"];
    let all = [
        ("--email", &["--email", EMAIL][..]),
        ("--host", &["--host", "127.0.0.1", "--port", "1", "--tls", "none"]),
        ("--password-file", &secret),
        ("--forward", &["--forward", "http://127.0.0.1:1/"]),
        ("--webhook-secret-file", &["--generate-webhook-secret"]),
        ("--orders", &["--orders", "send"]),
    ];
    let dns = dns(("other.example", "MX 0 mx.other.example."));
    let address = dns.address.to_string();
    // Standard input is not a terminal, so `init` asks nothing, even without --yes.
    for first in ["--yes", "--no-login"] {
        for (flag, _) in &all {
            let home = empty();
            let mut arguments = vec![first, "--no-login", "--dns", &address];
            arguments.dedup();
            arguments.extend(all.iter().filter(|(other, _)| other != flag).flat_map(|(_, given)| given.iter()));
            let output = init(&home, &arguments, "secret\n");
            assert_eq!(output.status.code(), Some(2), "{flag}: {}", output_text(&output));
            assert!(output_text(&output).contains(&format!("error: {flag}")), "{flag}: {}", output_text(&output));
            assert_eq!(names(home.folder.path()), Vec::<String>::new());
        }
    }
}

#[test]
fn a_too_long_secret_is_refused() {
    let home = empty();
    let long = "x".repeat(64 * 1024 + 1);
    let output = init(
        &home,
        &[
            "--yes",
            "--no-login",
            "--email",
            EMAIL,
            "--host",
            "127.0.0.1",
            "--port",
            "1",
            "--tls",
            "none",
            "--password-file",
            "-",
            "--no-forward",
            "--orders",
            "match",
        ],
        &long,
    );
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(output_text(&output).contains("standard input is longer than 64 KiB"), "{}", output_text(&output));
    assert_eq!(names(home.folder.path()), Vec::<String>::new());
}

#[test]
fn a_wrong_password_writes_nothing() {
    let dovecot = Dovecot::start();
    let home = empty();
    let port = dovecot.imap.to_string();
    let config = home.folder.path().join("deep/folder/config.toml");
    let arguments = [
        "--config",
        config.to_str().unwrap(),
        "init",
        "--yes",
        "--email",
        EMAIL,
        "--host",
        "127.0.0.1",
        "--tls",
        "none",
        "--port",
        &port,
        "--password-file",
        "wrong",
        "--no-forward",
        "--orders",
        "match",
    ];
    fs::write(home.folder.path().join("wrong"), "wr0ng\n").unwrap();
    let run = || {
        // Some administrators use such a strict umask.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(binary()).args(arguments);
        command.current_dir(home.folder.path()).stdin(Stdio::null()).output().unwrap()
    };
    let output = run();
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(
        output_text(&output).contains("login refused") && output_text(&output).contains("nothing was written"),
        "{}",
        output_text(&output)
    );
    assert_eq!(names(home.folder.path()), ["wrong"]);
    fs::write(home.folder.path().join("wrong"), PASSWORD).unwrap();
    let output = run();
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
    assert_eq!(names(config.parent().unwrap()), ["config.toml", "imap-password"]);
    // The daemon runs as another user, and must be able to read the configuration.
    for (name, expected) in [("deep", 0o755), ("deep/folder", 0o755), ("deep/folder/config.toml", 0o644)] {
        assert_eq!(mode(&home, name), expected, "{name}");
    }
}

#[test]
fn a_given_secret_is_not_ignored() {
    let home = empty();
    let with = |flags: &[&str]| {
        let common = ["--yes", "--email", EMAIL, "--host", "127.0.0.1", "--port", "1", "--tls", "none"];
        let common = [&common[..], &["--orders", "match"], flags].concat();
        let output = init(&home, &common, "newer\n");
        (output.status.code(), output_text(&output))
    };
    fs::write(home.folder.path().join("imap-password"), "older\n").unwrap();
    let (code, text) = with(&["--no-forward", "--password-file", "-"]);
    assert!(code == Some(2) && text.contains("error: --password-file: file "), "{text}");
    assert!(text.contains("imap-password exists already, with another value; remove that secret, or leave"), "{text}");
    let (code, text) = with(&["--no-forward"]);
    assert!(code == Some(1) && text.contains("the password is that of the existing file "), "{text}");
    let forward = ["--no-login", "--forward", "http://127.0.0.1:1/", "--webhook-secret-file", "-"];
    fs::write(home.folder.path().join("webhook-secret"), "older\n").unwrap();
    let (code, text) = with(&forward);
    assert!(code == Some(2) && text.contains("error: --webhook-secret-file: file "), "{text}");
    // The same value is no contradiction.
    fs::write(home.folder.path().join("webhook-secret"), "newer\n").unwrap();
    let (code, text) = with(&forward);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn missing_flags_are_reported_before_the_login() {
    let home = empty();
    let common = ["--yes", "--email", EMAIL, "--host", "127.0.0.1", "--port", "1", "--tls", "none"];
    let login = [&common[..], &["--password-file", "-"]].concat();
    let handler = ["--forward", "http://127.0.0.1:1/"];
    for (flags, expected) in [
        (&[][..], "error: --forward (or --no-forward) is missing"),
        (&["--forward", "http://handler.example/"], "error: --forward (or --no-forward) \"http://handler.example/\": "),
        (&handler, "error: --webhook-secret-file (or --generate-webhook-secret) is missing"),
        (&["--no-forward"], "error: --orders is missing"),
    ] {
        let output = init(&home, &[&login[..], flags].concat(), "secret\n");
        let text = output_text(&output);
        assert!(text.contains(expected) && !text.contains("logging in"), "{flags:?}: {text}");
    }
}

#[test]
fn existing_secrets_are_used() {
    let home = empty();
    let flags = [
        "--yes",
        "--email",
        EMAIL,
        "--host",
        "imap.shop.example",
        "--no-login",
        "--forward",
        "http://[::1]:1/",
        "--orders",
        "address",
    ];
    for name in ["imap-password", "webhook-secret", "address-key"] {
        fs::write(home.folder.path().join(name), format!("older {name}\n")).unwrap();
    }
    let output = init(&home, &flags, "");
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
    for name in ["imap-password", "webhook-secret", "address-key"] {
        assert_eq!(content(&home, name), format!("older {name}\n"));
    }
    home.data(&["check"]);
    // `init` does not use an empty secret file, and does not write to it.
    fs::remove_file(home.folder.path().join("config.toml")).unwrap();
    fs::write(home.folder.path().join("address-key"), "").unwrap();
    let output = init(&home, &flags, "");
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(output_text(&output).contains("address-key exists, but is empty"), "{}", output_text(&output));
    assert_eq!(names(home.folder.path()), ["address-key", "imap-password", "webhook-secret"]);
}

#[test]
fn a_provider_with_oauth_needs_authorize_next() {
    for (exchanger, client_secret, expected) in [
        (
            "shop-example.mail.protection.outlook.com.",
            false,
            "https://login.microsoftonline.com/shop.example/oauth2/v2.0/token",
        ),
        ("aspmx.l.google.com.", true, "https://oauth2.googleapis.com/token"),
    ] {
        let dns = dns(("shop.example", &format!("MX 0 {exchanger}")));
        let (home, address) = (empty(), dns.address.to_string());
        let mut flags = vec!["--yes", "--oauth", "--email", EMAIL, "--dns", &address, "--client-id", "0000-1111"];
        flags.extend(["--no-forward", "--orders", "match"]);
        if client_secret {
            flags.extend(["--client-secret-file", "-"]);
        }
        let output = init(&home, &flags, "s3cret\n");
        assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
        assert!(output_text(&output).contains("authorize shop"), "{}", output_text(&output));
        assert!(content(&home, "config.toml").contains(expected), "{}", content(&home, "config.toml"));
        let checked = home.run(&["check"]);
        assert!(output_text(&checked).contains("account[0].oauth2.refresh_token"), "{}", output_text(&checked));
        fs::write(home.folder.path().join("oauth-refresh-token"), "token\n").unwrap();
        home.data(&["check"]);
    }
}

#[test]
fn the_server_is_found_in_dns() {
    for (name, record, expected) in [
        ("shop.example", "MX 0 in1-smtp.messagingengine.com.", "host = \"imap.fastmail.com\"\nuser"),
        (
            "_imaps._tcp.shop.example",
            "SRV 0 0 10993 mx.shop.example.",
            "host = \"mx.shop.example\"\nport = 10993\nuser",
        ),
        (
            "_imap._tcp.shop.example",
            "SRV 0 0 143 mx.shop.example.",
            "host = \"mx.shop.example\"\ntls = \"starttls\"\nuser",
        ),
        ("imap.shop.example", "AAAA ::1", "host = \"imap.shop.example\"\nuser"),
        ("mail.shop.example", "A 127.0.0.1", "host = \"mail.shop.example\"\nuser"),
    ] {
        let dns = dns((name, record));
        let (home, address) = (empty(), dns.address.to_string());
        let flags = [
            "--yes",
            "--email",
            EMAIL,
            "--dns",
            &address,
            "--no-login",
            "--password-file",
            "-",
            "--no-forward",
            "--orders",
            "match",
        ];
        let output = init(&home, &flags, "secret\n");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", output_text(&output));
        assert!(content(&home, "config.toml").contains(expected), "{name}: {}", content(&home, "config.toml"));
    }
    // This SRV record means that the domain does not offer the service.
    let dns = dns(("_imaps._tcp.shop.example", "SRV 0 0 0 ."));
    let (home, address) = (empty(), dns.address.to_string());
    let output = init(&home, &["--yes", "--email", EMAIL, "--dns", &address], "");
    assert!(output_text(&output).contains("error: --host is missing"), "{}", output_text(&output));
}
