//! What commands do on a standby, and what `status` and `/metrics` show.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use testkit::process::free_port;

use super::{BUCKET, Hosts, SOON, block_on, start_active, start_standby, status, text};

const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

#[test]
fn commands_that_write_need_the_active_host() {
    let mut hosts = Hosts::start(Duration::from_secs(20));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let mail = hosts.b.folder.path().join("mail.eml");
    std::fs::write(&mail, testkit::payments::payment(1)).unwrap();
    let mail = mail.to_str().unwrap();
    let writing: [&[&str]; 11] = [
        &["session", "add", SESSION],
        &["session", "assign", "e", SESSION],
        &["session", "check", SESSION],
        &["reconcile"],
        &["mails", "release", "1"],
        &["deliveries", "retry", "--dead"],
        &["deliveries", "verify"],
        &["import", mail],
        &["prune", "--older-than", "400d"],
        &["reparse"],
        &["confirm", "e", "--vouch"],
    ];
    for arguments in writing {
        let refused = hosts.b.run(arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(text(&refused).contains("host a has the lease; run the command there"), "{}", text(&refused));
    }
    assert!(!hosts.b.database().exists());
    // A command that only reads does not create the tables either.
    std::fs::write(hosts.b.database(), "").unwrap();
    let refused = hosts.b.run(&["events"]);
    assert!(!refused.status.success() && text(&refused).contains("made by an older version"), "{}", text(&refused));
    assert_eq!(std::fs::read(hosts.b.database()).unwrap(), b"");
    hosts.a.data(&["session", "add", SESSION]);
    hosts.a.data(&["prune", "--older-than", "400d"]);
    // If the daemon of this host does not run, the command asks the NATS server for the holder.
    assert_eq!(b.end(), Some(0));
    let refused = text(&hosts.b.run(&["session", "add", SESSION]));
    assert!(refused.contains("is not running: host a has the lease"), "{refused}");
    assert_eq!(a.end(), Some(0));
    let refused = text(&hosts.a.run(&["session", "add", SESSION]));
    assert!(refused.contains("no host is active"), "{refused}");
    hosts.nats.stop();
    let refused = hosts.a.run(&["session", "add", SESSION]);
    assert_eq!(refused.status.code(), Some(1));
    let refused = text(&refused);
    assert!(refused.contains("which host is active is not known: cannot connect to nats://"), "{refused}");
    assert!(
        refused.contains("Connection refused (os error 111); check `nats`, and that a NATS server runs"),
        "{refused}"
    );
    assert_eq!(hosts.a.ask("SELECT count(*) FROM sessions"), "1");
}

#[test]
fn a_registration_after_the_release_is_reported() {
    let hosts = Hosts::start(Duration::from_secs(120));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let mut writer = rusqlite::Connection::open(hosts.a.database()).unwrap();
    let transaction = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let mut command = hosts.a.command(&["session", "add", SESSION]);
    let adding = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // The command opens the database after it has found that this host is active. Then it waits for the transaction.
    let files = format!("/proc/{}/fd", adding.id());
    super::until("the open database", || {
        let files = std::fs::read_dir(&files).unwrap().map_while(Result::ok);
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|path| path == hosts.a.database())
    });
    let releasing = hosts.a.command(&["standby", "release"]).stdout(Stdio::piped()).spawn().unwrap();
    a.says("this host releases the lease", SOON);
    transaction.rollback().unwrap();
    let added = adding.wait_with_output().unwrap();
    assert_eq!(added.status.code(), Some(1), "{}", text(&added));
    assert!(text(&added).contains("this host (a) lost the lease meanwhile"), "{}", text(&added));
    assert_eq!(hosts.a.ask("SELECT count(*) FROM sessions"), "1", "the next active host lacks this registration");
    assert!(releasing.wait_with_output().unwrap().status.success());
    b.says("this host is active", SOON);
    hosts.b.data(&["session", "add", SESSION]);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_standby_reads_its_database_with_a_note() {
    let hosts = Hosts::start(Duration::from_secs(20));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.deliver(1..=2);
    hosts.until_accepted(2);
    hosts.a.data(&["backup", hosts.b.database().to_str().unwrap()]);
    let read = |home: &testkit::daemon::Home| {
        let read = home.run(&["events", "--json"]);
        assert!(read.status.success(), "{}", text(&read));
        assert_eq!(read.stdout.iter().filter(|byte| **byte == b'\n').count(), 2);
        String::from_utf8(read.stderr).unwrap()
    };
    assert_eq!(read(&hosts.a), "");
    let note = read(&hosts.b);
    assert!(note.starts_with("note: this host (b) is not active, so its database (its last mail is of 2"), "{note}");
    assert!(note.ends_with("may be old; host a has the lease\n"), "{note}");
    // A backup of an old database would look like a new one.
    let file = hosts.b.folder.path().join("backup");
    let refused = hosts.b.run(&["backup", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("host a has the lease; run the command there"), "{}", text(&refused));
    assert!(!file.exists());
    assert_eq!((b.end(), a.end()), (Some(0), Some(0)));
}

#[test]
fn without_the_daemon_old_data_are_noted() {
    let hosts = Hosts::start(Duration::from_secs(20));
    let a = start_active(&hosts.a);
    hosts.a.data(&["backup", hosts.b.database().to_str().unwrap()]);
    let stopped = "note: the daemon of this host (b) is not running, so its database may be old";
    let note = |arguments: &[&str]| {
        let read = hosts.b.run(arguments);
        assert!(read.status.success(), "{}", text(&read));
        String::from_utf8(read.stderr).unwrap().lines().next().unwrap().to_owned()
    };
    for arguments in [&["events"][..], &["session", "list"], &["mails"], &["deliveries"]] {
        assert_eq!(note(arguments), stopped, "{arguments:?}");
    }
    let path = hosts.b.folder.path().join("backup");
    let file = path.to_str().unwrap();
    let refused = hosts.b.run(&["backup", file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("host a has the lease; run the command there"), "{}", text(&refused));
    assert!(!path.exists());
    // The restore command of the next host may run `backup` here.
    block_on(async {
        let key = format!("$KV.{BUCKET}.shop");
        let context = async_nats::jetstream::new(hosts.nats.client().await);
        let stream = context.get_stream(format!("KV_{BUCKET}")).await.unwrap();
        let found = stream.get_last_raw_message_by_subject(&key).await.unwrap().payload;
        let mut value: serde_json::Value = serde_json::from_slice(&found).unwrap();
        value["stage"] = "taking-over".into();
        a.kill();
        context.publish(key, value.to_string().into()).await.unwrap().await.unwrap();
    });
    assert_eq!(note(&["backup", file]), format!("{stopped}; host a has the lease"));
    std::fs::remove_file(&path).unwrap();
    hosts.nats.pause();
    assert_eq!(note(&["backup", file]), stopped, "a backup needs no NATS server");
    hosts.nats.resume();
}

#[test]
fn status_is_red_if_hosts_differ() {
    let hosts = Hosts::start(Duration::from_secs(20));
    let _a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let found = hosts.b.run(&["status"]);
    assert!(found.status.success(), "{}", text(&found));
    assert!(text(&found).contains("this host is standby; host a has the lease, for"), "{}", text(&found));
    hosts.configure(&hosts.b, "b", "", "[sessions]\nmatch = true\n");
    let found = status(&hosts.b);
    assert_eq!(found["ok"], false);
    assert!(
        found["attention"][0]
            .as_str()
            .unwrap()
            .starts_with("the configuration differs from that of host a, which is active, in [sessions]"),
        "{found}"
    );
    assert_eq!(hosts.b.run(&["status"]).status.code(), Some(1));
    // If no daemon runs, `status` has no role.
    assert_eq!(b.end(), Some(0));
    let found = status(&hosts.b);
    assert!(found["role"].is_null() && found["attention"].to_string().contains("the daemon is not running"), "{found}");
}

#[test]
fn an_unreadable_database_does_not_hide_the_role() {
    let hosts = Hosts::start(Duration::from_secs(20));
    let _a = start_active(&hosts.a);
    let (database, moved) = (hosts.a.database(), hosts.a.folder.path().join("moved"));
    std::fs::rename(&database, &moved).unwrap();
    let found = status(&hosts.a);
    std::fs::rename(&moved, &database).unwrap();
    assert_eq!((&found["role"]["state"], &found["role"]["holder"]), (&"active".into(), &"a".into()), "{found}");
    assert!(found["ok"] == false && found["attention"][0].as_str().unwrap().contains("mailhook.db"), "{found}");
}

/// The value of a metric of the daemon with this port; `None` if the daemon does not serve this metric.
#[test]
fn an_unknown_value_is_not_a_release() {
    let hosts = Hosts::start(Duration::from_secs(120));
    let hashes = json!({ "trust": "1", "sessions": "2", "forward": "3" });
    let value = json!({
        "host": "a", "process": "p", "home": "h", "count": 1, "stage": "active", "release": false, "lease_ms": 120_000,
        "version": "1", "schema": 1, "configuration": hashes, "data": null,
    });
    let key = format!("$KV.{BUCKET}.shop");
    let released = block_on(async {
        let client = hosts.nats.client().await;
        let mut writes = client.subscribe(key.clone()).await.unwrap();
        client.publish(key.clone(), value.to_string().into()).await.unwrap();
        writes.next().await.unwrap();
        let child = hosts.a.command(&["standby", "release"]).stderr(Stdio::piped()).spawn().unwrap();
        let request = writes.next().await.unwrap();
        assert!(super::contains(&request.payload, "\"release\":true"), "{request:?}");
        client.publish(key, "a newer format".into()).await.unwrap();
        client.flush().await.unwrap();
        child.wait_with_output().unwrap()
    });
    assert_eq!(released.status.code(), Some(1));
    assert!(text(&released).contains("a content that this version does not know"), "{}", text(&released));
}

fn metric(port: u16, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(&format!("resmic_mailhook_{name} ")));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn metrics_show_which_host_is_active() {
    let hosts = Hosts::start(Duration::from_secs(20));
    let ports = [free_port(), free_port()];
    for ((home, host, other), port) in [(&hosts.a, "a", &hosts.b), (&hosts.b, "b", &hosts.a)].into_iter().zip(ports) {
        let restore = super::restore(&super::backup_of(other, home));
        hosts.configure(home, host, &restore, &format!("[telemetry]\nmetrics = \"127.0.0.1:{port}\"\n"));
    }
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    super::until("the role of a", || metric(ports[0], "active") == Some(1.0));
    assert_eq!((metric(ports[1], "active"), metric(ports[1], "healthy")), (Some(0.0), Some(1.0)));
    let left = metric(ports[0], "lease_seconds_left").unwrap();
    assert!(left > 10.0 && left <= 20.0, "{left}");
    assert_eq!(metric(ports[1], "lease_seconds_left"), Some(0.0));
    assert_eq!((metric(ports[0], "takeovers_total"), metric(ports[1], "takeovers_total")), (Some(1.0), Some(0.0)));
    assert_eq!((metric(ports[0], "database_size_bytes").is_some(), metric(ports[1], "mails")), (true, None));
    assert_eq!(a.end(), Some(0));
    super::until("the role of b", || metric(ports[1], "takeovers_total") == Some(1.0));
    assert_eq!(b.end(), Some(0));
}
