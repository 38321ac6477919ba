//! The NATS server cannot be reached, has lost the lease, or has an unfit bucket.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::daemon::{Daemon, Home, account};
use testkit::dovecot::Dovecot;
use testkit::nats_server::NatsServer;

use super::{
    ADDRESS, BUCKET, Hosts, SOON, block_on, create_bucket, standby, start_active, start_standby, status, text, until,
};

const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

#[test]
fn without_the_nats_server_mails_are_only_stored() {
    let mut hosts = Hosts::start(Duration::from_secs(12));
    let a = start_active(&hosts.a);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    hosts.nats.stop();
    // The lease has not ended, but the next active host could lack a change of the database.
    until("a failed renewal", || status(&hosts.a)["attention"].to_string().contains("the lease cannot be renewed"));
    let refused = hosts.a.run(&["session", "add", SESSION]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("this host (a) cannot renew the lease"), "{}", text(&refused));
    assert!(text(&refused).contains("nothing was changed"), "{}", text(&refused));
    // Two thirds of the lease are over, but the lease has not ended.
    until("the last third of the lease", || {
        let role = &status(&hosts.a)["role"];
        role["state"] == "active" && role["lease_left_s"].as_u64().is_some_and(|left| left < 3)
    });
    let found = status(&hosts.a);
    assert!(found["attention"].to_string().contains("the lease cannot be renewed, and ends in"), "{found}");
    hosts.deliver(4..=6);
    hosts.a.until("SELECT count(*) FROM events", "6", SOON);
    a.says("this host has lost the lease", SOON);
    assert_eq!(hosts.callback.posts().len(), 3, "nothing is posted in the last third");
    assert_eq!(hosts.a.ask("SELECT count(*) FROM deliveries WHERE state = 'pending'"), "3");
    hosts.dovecot.until_logged_in(&[], SOON);
    // Commands that write are refused.
    let refused = hosts.a.run(&["session", "add", SESSION]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("nats://") && text(&refused).contains("nothing was changed"), "{}", text(&refused));
    hosts.nats.restart();
    a.says_often("this host is active", 2, SOON);
    hosts.until_accepted(6);
    hosts.dovecot.until_logged_in(&[ADDRESS], SOON);
    assert_eq!(a.end(), Some(0));
}

#[test]
fn a_paused_nats_server_delays_and_loses_nothing() {
    let hosts = Hosts::start(Duration::from_secs(3));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.nats.pause();
    a.says("this host has lost the lease", SOON);
    hosts.deliver(1..=5);
    hosts.nats.resume();
    hosts.until_accepted(5);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_deleted_key_is_a_release() {
    let hosts = Hosts::start(Duration::from_secs(120));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    block_on(async {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        let client = hosts.nats.client().await;
        client.publish_with_headers(format!("$KV.{BUCKET}.shop"), headers, "".into()).await.unwrap();
        client.flush().await.unwrap();
    });
    a.says("this host releases the lease", SOON);
    b.says("this host is active", SOON);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn an_unfit_bucket_is_explained() {
    let (nats, dovecot) = (NatsServer::start(), Dovecot::start());
    let home = Home::new(&format!(
        "{}[dns]\nservers = [\"127.0.0.1:1\"]\n{}",
        account(dovecot.imap, "mailboxes = [\"INBOX\"]"),
        standby(&nats, "a", "")
    ));
    let daemon = home.start();
    daemon.says("bucket leases does not exist; create it: nats kv add leases --ttl=20s", SOON);
    create_bucket(&nats, Duration::from_secs(20), json!({ "max_age": 0, "duplicate_window": 0 }));
    daemon.says("bucket leases is not fit for a lease: it has no TTL", SOON);
    let found = status(&home);
    assert!(found["role"]["state"] == "standby" && found["attention"].to_string().contains("no TTL"), "{found}");
    let checked = text(&home.run(&["check", "--connect"]));
    assert!(checked.contains("standby: FAILED: bucket leases is not fit"), "{checked}");
    block_on(nats.api("STREAM.DELETE.KV_leases", json!({})));
    create_bucket(&nats, Duration::from_secs(20), json!({}));
    daemon.says("this host is active", SOON);
    let checked = text(&home.run(&["check", "--connect"]));
    assert!(checked.contains("standby: bucket leases: a lease of 20s"), "{checked}");
    assert!(checked.contains("standby: host a has the lease"), "{checked}");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn systemd_gets_answers_without_a_nats_server() {
    let outside = tempfile::tempdir().unwrap();
    let socket = outside.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(SOON)).unwrap();
    let mut nats = super::nats_with_bucket(Duration::from_secs(3));
    nats.stop();
    let home = Home::new(&format!("{}{}", account(1, "mailboxes = [\"INBOX\"]"), standby(&nats, "a", "")));
    let mut command = home.command(&["run"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1000000");
    let daemon = Daemon::start(command);
    let receive_until = |texts: &[&str]| {
        let (deadline, mut received) = (Instant::now() + SOON, String::new());
        while !texts.iter().all(|word| received.contains(word)) {
            assert!(Instant::now() < deadline, "{texts:?} are not in {received}");
            let mut message = [0; 1024];
            let length = match supervisor.recv(&mut message) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            received += std::str::from_utf8(&message[..length]).unwrap();
            received.push('\n');
        }
    };
    receive_until(&["READY=1", "WATCHDOG=1", "this host cannot take over: the lease: cannot connect to nats://"]);
    receive_until(&["WATCHDOG=1"]);
    assert_eq!(status(&home)["role"]["state"], "standby");
    nats.restart();
    receive_until(&["READY=1"]);
    daemon.says("this host is active", SOON);
    assert_eq!(daemon.end(), Some(0));
}
