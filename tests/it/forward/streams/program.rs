//! The program with a stream as its target: `check --connect`, `status`, `/metrics` and `deliveries verify`.

use std::io::{Read, Write};
use std::net::TcpStream;

use testkit::daemon::{Home, account};
use testkit::dns::Dns;
use testkit::process::free_port;

use super::*;

const SOON: Duration = Duration::from_secs(30);

/// A configuration with the stream of this server, and a mail to import.
fn home(server: &NatsServer, dns: &Dns, metrics: u16) -> Home {
    let home = Home::new(&format!(
        "{}[trust]\naccept = [\"none\"]\n[dns]\nservers = [\"{}\"]\n[telemetry]\nmetrics = \"127.0.0.1:{metrics}\"\n\
         [[forward]]\nname = \"stream\"\nnats = [\"{}\"]\nstream = \"PAID\"\nsubject = \"shop.paid\"\nunresolved = \"send\"\n\
         user = \"mailhook\"\npassword = {{ file = \"nats-password\" }}\nsecret = {{ env = \"MAILHOOK_SECRET\" }}\n",
        account(1, ""),
        dns.address,
        server.url(),
    ));
    std::fs::write(home.folder.path().join("nats-password"), "s3cret\n").unwrap();
    let mail = "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\
        Message-ID: <1@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\n\r\nReceived: $20\r\nBlockchain: BASE\r\n\
        Token: USDC\r\nTransaction Hash: 0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2\r\n";
    std::fs::write(home.folder.path().join("1.eml"), mail).unwrap();
    home
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn status(home: &Home) -> Value {
    serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap()
}

const LOGIN: &str = "authorization { user: mailhook, password: \"s3cret\" }";

/// Sends a request to the JetStream API as the user of [`LOGIN`].
async fn api(server: &NatsServer, subject: &str, request: Value) -> Value {
    let options = async_nats::ConnectOptions::with_user_and_password("mailhook".into(), "s3cret".into());
    let client = options.connect(server.url()).await.unwrap();
    let answer = client.request(format!("$JS.API.{subject}"), request.to_string().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer.get("error").is_none(), "{subject}: {answer}");
    answer
}

fn fitting_stream() -> Value {
    json!({"name": STREAM, "subjects": ["shop.paid.>"], "storage": "file", "retention": "limits", "discard": "new",
        "max_msgs": -1, "deny_delete": true, "deny_purge": true, "num_replicas": 1})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_tells_what_a_stream_lacks() {
    let server = NatsServer::start_with(LOGIN);
    let dns = Dns::start(&[("resmic.com".into(), "MX 10 mail.resmic.com.".into())]);
    let port = free_port();
    let home = home(&server, &dns, port);
    home.data(&["check"]);
    let checked = |home: &Home| String::from_utf8(home.run(&["check", "--connect"]).stdout).unwrap();
    let missing = checked(&home);
    assert!(missing.contains("target stream: FAILED: stream PAID: the stream does not exist"), "{missing}");
    let mut unfit = fitting_stream();
    unfit["retention"] = "interest".into();
    unfit["deny_purge"] = false.into();
    api(&server, "STREAM.CREATE.PAID", unfit).await;
    let named = checked(&home);
    for expected in
        ["retention is \"interest\"", "deny_purge is false", "nats stream add PAID --subjects='shop.paid.>'"]
    {
        assert!(named.contains(expected), "{expected}: {named}");
    }
    let daemon = home.start();
    home.data(&["import", "1.eml"]);
    home.until("SELECT state FROM streams", "failed", SOON);
    let shown = status(&home);
    let attention = shown["attention"].to_string();
    assert!(
        attention.contains("target stream: stream PAID: retention is") && attention.contains("nats stream add"),
        "{attention}"
    );
    assert_eq!((&shown["streams"][0]["state"], &shown["streams"][0]["target"]), (&json!("failed"), &json!("stream")));
    assert!(get(port, "/metrics").contains("resmic_mailhook_nats_connected{target=\"stream\"} 0\n"));
    api(&server, "STREAM.DELETE.PAID", json!({})).await;
    api(&server, "STREAM.CREATE.PAID", fitting_stream()).await;
    home.until("SELECT receipt FROM deliveries", "PAID:1", SOON);
    home.until("SELECT state FROM streams", "connected", SOON);
    let shown = status(&home);
    assert!(!shown["attention"].to_string().contains("target stream"), "{shown}");
    assert!(shown["streams"][0]["version"].as_str().unwrap().starts_with("2."), "{shown}");
    let metrics = get(port, "/metrics");
    for line in [
        "resmic_mailhook_nats_connected{target=\"stream\"} 1\n",
        "resmic_mailhook_publish_seconds_count 1\n",
        "resmic_mailhook_there_already_total 0\n",
        "resmic_mailhook_refilled_total 0\n",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let listed = home.data(&["deliveries", "--json"]);
    assert!(listed.contains("\"receipt\":\"PAID:1\""), "{listed}");
    let fits = checked(&home);
    assert!(fits.contains("stream PAID has 1 message; nothing was published"), "{fits}");
    assert_eq!(daemon.end(), Some(0));
    assert!(!home.run(&["status"]).stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_exits_with_1_until_it_is_refilled() {
    let server = NatsServer::start_with(LOGIN);
    let dns = Dns::start(&[("resmic.com".into(), "MX 10 mail.resmic.com.".into())]);
    let home = home(&server, &dns, free_port());
    api(&server, "STREAM.CREATE.PAID", fitting_stream()).await;
    assert_eq!(home.run(&["deliveries", "verify"]).status.code(), Some(1), "there is no database");
    home.data(&["import", "1.eml"]);
    let daemon = home.start();
    home.until("SELECT receipt FROM deliveries", "PAID:1", SOON);
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(home.data(&["deliveries", "verify"]), "");
    api(&server, "STREAM.DELETE.PAID", json!({})).await;
    api(&server, "STREAM.CREATE.PAID", fitting_stream()).await;
    let id = home.ask("SELECT event_id FROM events");
    let lost = home.run(&["deliveries", "verify", "--target", "stream"]);
    assert_eq!(lost.status.code(), Some(1));
    assert_eq!(String::from_utf8(lost.stdout).unwrap(), format!("missing {id}: it was PAID:1\n"));
    assert_eq!(home.data(&["deliveries", "verify", "--since", "2999-01-01"]), "", "nothing is that new");
    let attention = status(&home)["attention"].to_string();
    assert!(attention.contains("deliveries verify --refill --target stream"), "{attention}");
    let refilled = home.run(&["deliveries", "verify", "--refill"]);
    assert_eq!(refilled.status.code(), Some(0));
    assert_eq!(String::from_utf8(refilled.stdout).unwrap(), format!("refilled {id}: it was PAID:1, and is PAID:1\n"));
    let talk = String::from_utf8(refilled.stderr).unwrap();
    assert!(talk.contains("target stream: 1 compared, 0 missing, 0 different, 1 published again"), "{talk}");
    assert_eq!(home.run(&["deliveries", "verify", "--target", "other"]).status.code(), Some(2));
    let mut unfit = fitting_stream();
    unfit["discard"] = "old".into();
    api(&server, "STREAM.UPDATE.PAID", unfit).await;
    let unfit = home.run(&["deliveries", "verify"]);
    assert_eq!(unfit.status.code(), Some(1));
    let talk = String::from_utf8(unfit.stderr).unwrap();
    assert!(talk.contains("stream PAID: discard is \"old\"") && talk.contains("1 compared, 0 missing"), "{talk}");
    server.pause();
    let gone = home.run(&["deliveries", "verify"]);
    assert_eq!(gone.status.code(), Some(1));
    server.resume();
}
