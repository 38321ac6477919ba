//! `/metrics` has the series of the dashboard, the alerts and the documentation, each alert has a test, and `/healthz`
//! agrees with `status`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};
use testkit::daemon::{Daemon, Home, account};
use testkit::dovecot::Dovecot;
use testkit::node::{NodeReply, ScriptedNode};
use testkit::process::free_port;

const SOON: Duration = Duration::from_secs(20);
const IDLE: &str = "SELECT count(*) FROM mailboxes WHERE state = 'idle'";

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn all_matches(pattern: &str, text: &str) -> BTreeSet<String> {
    let found: BTreeSet<_> = Regex::new(pattern).unwrap().captures_iter(text).map(|c| c[1].to_owned()).collect();
    assert!(found.len() > 5, "{pattern}: {found:?}");
    found
}

/// Sends a GET request to the daemon and returns the status and the body.
fn get(port: u16, path: &str) -> (u16, String) {
    try_get(port, path).unwrap()
}

/// Does the same as [`get`], but returns `None` if the daemon closes the connection, as during a reload.
fn try_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head[9..12].parse().unwrap(), body.to_owned()))
}

/// Starts a daemon that watches an empty INBOX, and returns its HTTP port.
fn watching(dovecot: &Dovecot) -> (Home, Daemon, u16) {
    watching_with(dovecot, "")
}

/// Does the same as [`watching`], with more lines of configuration.
fn watching_with(dovecot: &Dovecot, keys: &str) -> (Home, Daemon, u16) {
    let account = account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nquiet = \"1d\"");
    let start = |_| {
        let port = free_port();
        let metrics = format!("[telemetry]\nmetrics = \"127.0.0.1:{port}\"\n");
        let home = Home::new(&format!("{account}[trust]\naccept = [\"none\"]\n{metrics}{keys}"));
        let mut daemon = home.start();
        // If another program has bound the port in the meantime, the daemon ends before it creates a database.
        daemon.process.until(SOON, || home.database().exists().then_some(()))?;
        home.until(IDLE, "1", SOON);
        Some((home, daemon, port))
    };
    (0..5).find_map(start).unwrap()
}

/// A node whose final block is 64 seconds older than its newest.
fn sepolia() -> ScriptedNode {
    ScriptedNode::start(|call| {
        let is_latest = call["params"][0] == "latest";
        let (number, time) = if is_latest { ("0x20", "0x67c7c7c0") } else { ("0x10", "0x67c7c780") };
        let block = json!({"number": number, "timestamp": time, "hash": format!("0x{}", "1".repeat(64))});
        Some(match call["method"].as_str().unwrap() {
            "eth_chainId" => NodeReply::result(&call["id"], json!("0xaa36a7")),
            _ => NodeReply::result(&call["id"], block),
        })
    })
}

/// A `[[chain]]` table with this node.
fn chain_of(node: &ScriptedNode) -> String {
    format!(
        "[[chain]]\nname = \"Sepolia\"\nnodes = [{{ command = [\"echo\", \"http://127.0.0.1:{}\"] }}]\n\
         wallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]\n",
        node.port
    )
}

#[test]
fn node_requests_survive_a_reload() {
    let dovecot = Dovecot::start();
    let node = sepolia();
    let (_home, mut daemon, port) = watching_with(&dovecot, &chain_of(&node));
    // At its start, the daemon asks the node for the chain id, the newest block and the last final block.
    let await_calls = |daemon: &mut Daemon, calls: u32| {
        let line = format!("resmic_mailhook_node_requests_total{{chain=\"Sepolia\",outcome=\"ok\"}} {calls}\n");
        let is_served = || try_get(port, "/metrics").filter(|(_, served)| served.contains(&line)).map(drop);
        assert!(daemon.process.until(SOON, is_served).is_some(), "{line}{}", get(port, "/metrics").1);
    };
    await_calls(&mut daemon, 3);
    daemon.process.signal("-HUP");
    await_calls(&mut daemon, 6);
    assert_eq!(daemon.end(), Some(0));
}

/// A target whose server does not exist.
const UNREACHABLE_STREAM: &str = "[[forward]]\nname = \"stream\"\nnats = [\"nats://127.0.0.1:1\"]\nstream = \"PAID\"\n\
    subject = \"shop.paid\"\nsecret = { env = \"MAILHOOK_SECRET\" }\n";

#[test]
fn dashboard_and_alerts_use_existing_metrics() {
    let dovecot = Dovecot::start();
    let node = sepolia();
    let chain = format!(
        "{}[resmic]\nurl = \"http://127.0.0.1:1\"\napi_key = {{ command = [\"echo\", \"key\"] }}\n\
         user_id = {{ command = [\"echo\", \"user\"] }}\n{UNREACHABLE_STREAM}",
        chain_of(&node)
    );
    let nats = super::standby::nats_with_bucket(Duration::from_secs(20));
    let standby = super::standby::standby(&nats, "a", "");
    let (home, daemon, port) = watching_with(&dovecot, &format!("{chain}{standby}"));
    home.until("SELECT final_lag_s FROM chains", "64", SOON);
    home.until("SELECT state FROM streams", "failed", SOON);
    dovecot.deliver("payments@shop.example", &testkit::payments::payment(1));
    home.until("SELECT count(*) FROM accounts WHERE last_notification_at IS NOT NULL", "1", SOON);
    let (status, served) = get(port, "/metrics");
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(status, 200, "{served}");
    let real = all_matches(r"(?m)^# TYPE (resmic_mailhook_[a-z_]+) ", &served);
    // A counter's samples have a suffix that its TYPE does not have.
    let documented = all_matches(r"(resmic_mailhook_[a-z_]+)", &file("docs/operations.md"));
    assert_eq!(documented.iter().map(|name| name.trim_end_matches("_total").to_owned()).collect::<BTreeSet<_>>(), real);
    // A series that is selected by a label value exists with that value, even if it is zero.
    let chosen = Regex::new(r#"(resmic_mailhook_[a-z_]+)\{[^}]*?(outcome|state|status|reason)=~?"([a-z|]+)""#).unwrap();
    for name in ["contrib/grafana-dashboard.json", "contrib/prometheus-rules.yml"] {
        let text = file(name).replace("\\\"", "\"");
        for series in all_matches(r"(resmic_mailhook_[a-z_]+)", &text) {
            assert!(real.contains(series.trim_end_matches("_bucket").trim_end_matches("_total")), "{name}: {series}");
        }
        assert!(chosen.is_match(&text), "{name}");
        for c in chosen.captures_iter(&text) {
            for value in c[3].split('|') {
                // Other labels may come before and after this label.
                let line = Regex::new(&format!(r#"(?m)^{}\{{([^}}]*,)?{}="{value}"[,}}]"#, &c[1], &c[2])).unwrap();
                assert!(line.is_match(&served), "{name}: nothing is served as {line}:\n{served}");
            }
        }
    }
}

#[test]
fn each_alert_has_a_test() {
    let alerts = all_matches(r"- alert: (\w+)", &file("contrib/prometheus-rules.yml"));
    let provoked =
        all_matches(r"alertname: (\w+)\s+exp_alerts:(?: &\w+)?\s+- exp_labels", &file("contrib/prometheus-tests.yml"));
    assert_eq!(alerts, provoked);
}

#[test]
fn healthz_agrees_with_status() {
    let dovecot = Dovecot::start();
    let (home, daemon, port) = watching(&dovecot);
    assert_eq!((get(port, "/healthz"), home.run(&["status"]).status.code()), ((200, "ok\n".into()), Some(0)));
    dovecot.deliver(
        "payments@shop.example",
        b"From: no-reply@resmic.com\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\r\nAmount: $20\r\n",
    );
    home.until("SELECT count(*) FROM mails WHERE outcome = 'quarantined'", "1", SOON);
    both_are_red(&home, port, "1 mail quarantined");
    drop(dovecot);
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'failed'", "1", SOON);
    both_are_red(&home, port, "mailbox shop/INBOX: ");
    assert_eq!(daemon.end(), Some(0));
    let status: Value = serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap();
    assert!(status["attention"][0].as_str().unwrap().contains("not running"), "{status}");
    // `status --json` also reports an unreadable database.
    fs::write(home.database(), "not a database, and long enough for one to be looked for in it: not a database")
        .unwrap();
    let output = home.run(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &status["ok"]), (Some(1), &Value::Bool(false)), "{status}");
}

#[test]
fn mails_are_counted_by_reason() {
    let dovecot = Dovecot::start();
    let (home, daemon, port) = watching(&dovecot);
    let mail = |subject: &str, text: &str| {
        let head = "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\n";
        dovecot.deliver("payments@shop.example", format!("{head}Subject: {subject}\r\n\r\n{text}\r\n").as_bytes());
    };
    let hash = format!("Transaction Hash: 0x{:064x}", 1);
    mail("Payment received", &format!("Amount: $20\r\n{hash}"));
    mail("Payment received", &format!("Amount: $20\r\n{hash}"));
    mail("Payment received", &format!("Amount: $21\r\n{hash}"));
    mail("Payment received", "Amount: $20");
    mail("Your login code", "4711");
    home.until("SELECT count(*) FROM mails", "5", SOON);
    let served = get(port, "/metrics").1;
    let series: Vec<_> = served
        .lines()
        .filter(|line| line.starts_with("resmic_mailhook_mails{") && !line.ends_with("} 0"))
        .map(|line| line.trim_start_matches("resmic_mailhook_mails"))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let expected = [
        ("duplicate", ""),
        ("event", ""),
        ("ignored", "not-a-payment"),
        ("quarantined", "conflict"),
        ("quarantined", "unreadable"),
    ];
    assert_eq!(
        series,
        expected.map(|(outcome, reason)| format!("{{outcome=\"{outcome}\",reason=\"{reason}\"}} 1")),
        "{served}"
    );
    // The values of `reason` are the codes, so that a hostile mail cannot add a series.
    let all = served.lines().filter(|line| line.starts_with("resmic_mailhook_mails{")).count();
    assert_eq!(all, 5 + home.ask("SELECT count(*) FROM counts WHERE name = 'reasons'").parse::<usize>().unwrap());
    assert!(served.contains("resmic_mailhook_quiet{account=\"shop\"} 0\n"), "{served}");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn silent_http_clients_do_not_block_shutdown() {
    let dovecot = Dovecot::start();
    let (home, daemon, port) = watching(&dovecot);
    let connect = |_| TcpStream::connect(("127.0.0.1", port)).unwrap();
    let silent: Vec<_> = (0..7).map(connect).collect();
    assert_eq!(get(port, "/healthz").0, 200, "there is a place for one more");
    let last = connect(0);
    let waits = connect(0);
    assert_eq!(daemon.end(), Some(0));
    drop((silent, last, waits));
    // An orderly shutdown removes the WAL files.
    let beside = |end: &str| home.folder.path().join(format!("mailhook.db-{end}")).exists();
    assert!(!beside("wal") && !beside("shm"));
}

fn both_are_red(home: &Home, port: u16, expected: &str) {
    // The reasons may change at any time. Compare only if they were the same before and after the request.
    let (mut before, mut served, mut after) = (attention(home), get(port, "/healthz"), attention(home));
    for _ in 0..50 {
        if before == after {
            break;
        }
        (before, served, after) = (after, get(port, "/healthz"), attention(home));
    }
    assert_eq!((served.0, served.1.lines().map(str::to_owned).collect::<Vec<_>>()), (503, before));
    assert!(served.1.contains(expected), "{expected:?}: {}", served.1);
}

/// The reasons that `status` reports.
fn attention(home: &Home) -> Vec<String> {
    let output = home.run(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &status["ok"]), (Some(1), &Value::Bool(false)), "{status}");
    status["attention"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect()
}
