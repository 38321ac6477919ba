//! Commands that need no mail server: exit codes, files, terminals and closed pipes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testkit::daemon::{Home, account, binary, forward};
use testkit::dns::Dns;
use testkit::process::Process;

/// A configuration that accepts unsigned mails. No server listens on the account's port.
fn home() -> Home {
    Home::new(&account(1, "[trust]\naccept = [\"none\"]\n"))
}

fn payment(n: usize) -> String {
    format!(
        "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\
         Message-ID: <{n}@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\n\r\nReceived: $20\r\nBlockchain: BASE\r\n\
         Token: USDC\r\nTransaction Hash: 0x{n:064x}\r\n"
    )
}

/// Creates a folder with this many payment mails.
fn payments(home: &Home, count: usize) -> String {
    let folder = home.folder.path().join("mails");
    fs::create_dir(&folder).unwrap();
    for n in 1..=count {
        fs::write(folder.join(format!("{n:04}.eml")), payment(n)).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

/// Runs a command with a closed standard output.
fn run_with_closed_stdout(home: &Home, arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    home.command(arguments).stdout(writer).output().unwrap()
}

#[test]
fn commands_finish_their_work_when_stdout_closes() {
    let home = home();
    let folder = payments(&home, 200);
    // Like `import --json … | head -1`.
    assert_eq!(run_with_closed_stdout(&home, &["import", "--json", &folder]).status.code(), Some(0));
    assert_eq!(home.ask("SELECT count(*) FROM events"), "200");
    home.data(&["import", &folder]);
    // The outcome of 100 mails is changed in the database, so that `reparse` has 100 results to print.
    let sqlite = rusqlite::Connection::open(home.database()).unwrap();
    sqlite.execute("UPDATE mails SET outcome = 'ignored', event_id = NULL WHERE id <= 100", []).unwrap();
    assert_eq!(run_with_closed_stdout(&home, &["reparse"]).status.code(), Some(0));
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome = 'ignored'"), "0");
}

#[test]
fn exit_code_is_right_when_stdout_closes() {
    let home = home();
    let folder = payments(&home, 1);
    let gone = home.folder.path().join("gone.eml");
    assert_eq!(run_with_closed_stdout(&home, &["import", &folder, gone.to_str().unwrap()]).status.code(), Some(1));
    let dns = Dns::start(&[("resmic.com".into(), "MX 10 mail.resmic.com.".into())]);
    let config = account(1, &format!("[dns]\nservers = [\"{}\"]\n", dns.address));
    fs::write(home.folder.path().join("config.toml"), config).unwrap();
    for command in [&["status"][..], &["status", "--json"], &["check", "--connect"]] {
        assert_eq!(run_with_closed_stdout(&home, command).status.code(), Some(1), "{command:?}");
    }
    assert_eq!(run_with_closed_stdout(&home, &["mails"]).status.code(), Some(0), "and who only looks has seen enough");
}

#[test]
fn follow_ends_when_its_reader_closes_the_pipe() {
    let home = home();
    home.data(&["import", &payments(&home, 1)]);
    let mut child = home.command(&["events", "--follow", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap());
    let mut follow = Process::adopt(child, "events --follow");
    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    assert!(line.contains("\"event_id\"") && !follow.has_ended(), "{line}");
    // Like `events --follow --json | head -1`.
    drop(events);
    assert_eq!(follow.wait(Duration::from_secs(20)), Some(0));
}

#[test]
fn an_unreadable_file_does_not_stop_an_import() {
    let home = home();
    let folder = payments(&home, 3);
    std::os::unix::fs::symlink("nowhere", format!("{folder}/0002b.eml")).unwrap();
    for command in [&["import", &folder][..], &["parse", "--json", &folder]] {
        let output = home.run(command);
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(err.contains("0002b.eml: No such file"), "{err}");
        assert!(out.contains("0003.eml") || out.contains("event        3"), "{out}");
    }
}

#[test]
fn progress_and_data_do_not_share_terminal_lines() {
    let home = home();
    let folder = payments(&home, 200);
    let line = home.command(&["import", "--json", &folder]);
    let arguments_text = line.get_args().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("{} {arguments_text}", binary().display()), "/dev/null"]);
    terminal.envs(line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let shown = String::from_utf8(terminal.stdin(Stdio::null()).output().unwrap().stdout).unwrap();
    let data: Vec<_> = shown.split("{\"file\"").collect();
    assert_eq!(data.len(), 201, "{shown}");
    // Each object begins at the start of a line, or after the progress line was cleared.
    for before in &data[..200] {
        assert!(
            ["", "\n", "\u{1b}[2K"].iter().any(|end| before == end || !end.is_empty() && before.ends_with(end)),
            "{shown}"
        );
    }
}

#[test]
fn control_characters_are_not_printed_to_a_terminal() {
    let home = home();
    home.data(&["import", &payments(&home, 1)]);
    let sqlite = rusqlite::Connection::open(home.database()).unwrap();
    let strange = format!("{:<36}", "\u{1b}]0;title\u{7}\u{1b}[2J");
    sqlite.execute("INSERT INTO sessions (session_id, order_ref, token) VALUES (?1, ?1, ?1)", [&strange]).unwrap();
    let printed = home.data(&["session", "list"]);
    assert!(printed.contains("]0;title") && !printed.contains('\u{1b}'), "{printed:?}");
    let json: serde_json::Value = serde_json::from_str(&home.data(&["session", "list", "--json"])).unwrap();
    assert_eq!(json["session_id"], strange.as_str());
}

#[test]
fn a_truncated_notification_is_quarantined() {
    let home = Home::new(&account(1, "max_size = \"4 KiB\"\n[trust]\naccept = [\"none\"]\n"));
    let mail = |from: &str, lines: usize| {
        let (text, payment) = ("Dear customer,\r\n".repeat(lines), "Status: completed\r\nAmount: $20\r\n");
        let path = home.folder.path().join(format!("{from}-{lines}.eml"));
        fs::write(&path, format!("From: {from}\r\nTo: payments@shop.example\r\nSubject: News\r\n\r\n{text}{payment}"))
            .unwrap();
        let line = home.data(&["parse", "--json", path.to_str().unwrap()]);
        let row: serde_json::Value = serde_json::from_str(&line).unwrap();
        format!("{} {}", row["outcome"], row["reason"].as_str().and_then(|r| r.split(':').next()).unwrap_or_default())
    };
    assert_eq!(mail("no-reply@resmic.com", 1_000), "\"quarantined\" too-large");
    assert_eq!(mail("friend@else.example", 1_000), "\"ignored\" not-a-payment");
    let whole = home.folder.path().join("whole.eml");
    fs::write(
        &whole,
        "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\nSubject: News\r\n\r\nDear customer,\r\n",
    )
    .unwrap();
    assert!(home.data(&["parse", whole.to_str().unwrap()]).contains(": ignored (not-a-payment"));
}

#[test]
fn parse_shows_the_order_with_the_key() {
    let sessions = "[sessions]\naddress = { mailbox = \"payments@shop.example\", key = { env = \"MAILHOOK_KEY\" } }\n";
    let home = Home::new(&account(1, sessions));
    let with_key = |arguments: &[&str]| {
        let output = home.command(arguments).env("MAILHOOK_KEY", "a key of some length").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let address = with_key(&["address", "order-1"]);
    let path = home.folder.path().join("mail.eml");
    fs::write(&path, payment(1).replace("payments@shop.example", address.trim())).unwrap();
    let parse = ["parse", "--json", path.to_str().unwrap()];
    let order = |line: String| serde_json::from_str::<serde_json::Value>(&line).unwrap()["event"]["order_ref"].clone();
    assert_eq!(order(with_key(&parse)), "order-1");
    assert!(order(home.data(&parse)).is_null(), "and nobody has to");
}

#[test]
fn read_only_commands_create_no_database() {
    let home = home();
    let (event, session) = ("fd50a56e-6359-5deb-bbb1-c18babd155ef", "591abe63-aa61-411d-a419-0b546729bbd0");
    for command in [
        &["session", "assign", event, session][..],
        &["prune", "--older-than", "1d"],
        &["deliveries", "retry", "--dead"],
        &["mails", "release", "1"],
        &["reparse"],
        &["status"],
    ] {
        assert_eq!(home.run(command).status.code(), Some(1), "{command:?}");
        assert_eq!(fs::read_dir(home.folder.path()).unwrap().count(), 1, "{command:?}");
    }
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let home = home();
    let folder = payments(&home, 1);
    let folder = folder.as_str();
    home.data(&["import", folder]);
    let (id, event) = ("591abe63-aa61-411d-a419-0b546729bbd0", home.ask("SELECT event_id FROM events"));
    let cases: &[(&[&str], i32)] = &[
        (&["import", "--account", "nobody", folder], 2),
        (&["parse", "--account", "nobody", folder], 2),
        (&["session", "add", "591abe63"], 2),
        (&["session", "add", id, "--amount", "$20"], 2),
        (&["session", "add", id, "--order", ""], 2),
        (&["session", "add", id, "--token", " "], 2),
        (&["session", "assign", &event, "591abe63"], 2),
        (&["events", "--since", "yesterday"], 2),
        (&["mails", "--outcome", "lost"], 2),
        (&["address", "A-1001"], 2),
        (&["session", "assign", "fd50a56e-6359-5deb-bbb1-c18babd155ef", id], 1),
        (&["show", &event.to_uppercase()], 0),
        (&["show", "fd50a56e-6359-5deb-bbb1-c18babd155ef"], 1),
        (&["mails", "raw", "99"], 1),
        (&["deliveries", "retry", "99"], 1),
        (&["backup", folder], 1),
        (&["session", "add", id, "--amount", "20"], 0),
        (&["session", "add", id, "--amount", "21"], 1),
    ];
    for (arguments, code) in cases {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let nobody = Home::new("");
    for command in [&["import", folder][..], &["check"], &["run"]] {
        assert_eq!(nobody.run(command).status.code(), Some(2), "{command:?}");
    }
}

#[test]
fn parse_and_import_agree_about_an_empty_file() {
    let home = Home::new(&account(1, ""));
    let path = home.folder.path().join("empty.eml");
    fs::write(&path, "").unwrap();
    let parsed = home.data(&["parse", path.to_str().unwrap()]);
    assert!(parsed.contains("quarantined (malformed: it is empty)"), "{parsed}");
    home.data(&["import", path.to_str().unwrap()]);
    assert_eq!(home.ask("SELECT outcome || ' ' || reason FROM mails"), "quarantined malformed: it is empty");
}

#[test]
fn backup_names_a_copy_that_cannot_be_written() {
    let home = home();
    home.data(&["import", &payments(&home, 1)]);
    let output = home.run(&["backup", "/nonexist/copy.db"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected =
        "error: cannot write the copy /nonexist/copy.db: No such file or directory (os error 2); check that its folder";
    assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
}

#[test]
fn an_empty_config_variable_is_ignored() {
    let home = home();
    let check = |variable: &str| {
        let mut command = Command::new(binary());
        command.env("MAILHOOK_PASSWORD", "x").current_dir(home.folder.path());
        command.env("RESMIC_MAILHOOK_CONFIG", variable).arg("check").output().unwrap().status.code()
    };
    assert_eq!([check(""), check("config.toml"), check("other.toml")], [Some(0), Some(0), Some(2)]);
}

#[test]
fn an_occupied_port_is_no_configuration_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("[telemetry]\nmetrics = \"{}\"\n", taken.local_addr().unwrap());
    let home = Home::new(&account(1, &metrics));
    let output = home.run(&["run"]);
    // The systemd unit does not restart the daemon after exit code 2. A restart may help here, so the code is 1.
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("telemetry.metrics: 127.0.0.1:"), "{stderr}");
}

#[test]
fn manual_pages_exist_and_help_lists_values() {
    let home = home();
    home.data(&["man", "--out", home.folder.path().to_str().unwrap()]);
    let text = home.data(&["man"]).replace('\\', "");
    let named = regex::Regex::new(r"resmic-mailhook-[a-z]+\(1\)").unwrap();
    assert!(named.is_match(&text), "{text}");
    for page in named.find_iter(&text).map(|found| found.as_str().replace("(1)", ".1")) {
        assert!(home.folder.path().join(&page).exists(), "{page}");
    }
    for (command, values) in [
        (&["mails", "--help"][..], "event, duplicate, ignored, quarantined, deferred"),
        (&["reparse", "--help"], "event, duplicate, ignored, quarantined, deferred"),
        (&["events", "--help"], "completed, failed, pending"),
    ] {
        let help = home.data(command).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&format!("[possible values: {values}]")), "{help}");
    }
}

/// Runs a command on a terminal of 300 columns. Returns its output and messages.
fn on_terminal(home: &Home, arguments: &[&str]) -> String {
    let command = home.command(arguments);
    let mut terminal = Command::new("python3");
    terminal.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])", "sh", "-c", "stty cols 300; exec \"$@\"", "sh"]);
    terminal.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    String::from_utf8(terminal.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
}

#[test]
fn a_terminal_gets_the_newest_fifty_rows() {
    let home =
        Home::new(&format!("{}[trust]\naccept = [\"none\"]\n{}", account(1, ""), forward("http://127.0.0.1:1/", "")));
    home.data(&["import", &payments(&home, 60)]);
    for n in 1..=60 {
        home.data(&[
            "session",
            "add",
            &format!("591abe63-aa61-411d-a419-{n:012}"),
            "--order",
            &format!("order-{n:02}"),
        ]);
    }
    for (list, row) in [
        (["events"].as_slice(), "completed"),
        (&["mails"], "Payment received"),
        (&["deliveries"], "held"),
        (&["session", "list"], "order-"),
    ] {
        let count = |text: &str| text.matches(row).count();
        let shown = on_terminal(&home, list);
        assert_eq!((count(&shown), shown.contains("these are the newest 50")), (50, true), "{list:?}: {shown}");
        assert_eq!(count(&home.data(list)), 60, "{list:?} to a pipe");
        let limited = |limit: &str, arguments: &[&str]| home.data(&[list, &["--limit", limit], arguments].concat());
        assert_eq!(count(&limited("7", &[])), 7, "{list:?}");
        let (newest, all) = (limited("2", &["--json"]), home.data(&[list, &["--json"]].concat()));
        assert_eq!(newest.lines().collect::<Vec<_>>(), all.lines().skip(58).collect::<Vec<_>>(), "{list:?}");
    }
}
