//! The connection to the NATS server over TLS, with a login or a client certificate.

use std::fs;
use std::time::Duration;

use testkit::daemon::Home;

use super::{Hosts, SOON, backup_of, nats_with_bucket, restore, start_active, start_standby, status, text, until};

const LEASE: Duration = Duration::from_secs(3);
const TLS: &str = "tls { cert_file: server.pem, key_file: server.key, ca_file: ca.pem";
const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
const PASSWORD: &str = "s3cret-lease";
/// The file with the password, in the folder of each host.
const PASSWORD_FILE: &str = "nats-password";

/// Hosts whose NATS server has these lines of configuration. `keys` returns the keys of `[standby]` for the login.
fn hosts(lines: &str, keys: impl Fn(&str) -> String) -> Hosts {
    let mut nats = nats_with_bucket(LEASE);
    nats.reconfigure(lines);
    let folder = nats.folder.path().display().to_string();
    let keys = format!("nats = [\"tls://localhost:{}\"]\nca_file = \"{folder}/ca.pem\"\n{}", nats.port, keys(&folder));
    Hosts::start_with(nats, keys)
}

/// Lines of the NATS server's configuration: TLS, and a user with this password.
fn login(password: &str) -> String {
    format!("{TLS} }}\nauthorization {{ user: mailhook, password: \"{password}\" }}")
}

/// Hosts that log in with a password, which each host has in a file.
fn hosts_with_password() -> Hosts {
    let keys = |_: &str| format!("user = \"mailhook\"\npassword = {{ file = \"{PASSWORD_FILE}\" }}");
    let hosts = hosts(&login(PASSWORD), keys);
    for home in [&hosts.a, &hosts.b] {
        fs::write(home.folder.path().join(PASSWORD_FILE), PASSWORD).unwrap();
    }
    hosts
}

/// Tests a release of the lease, a kill, and the commands that ask the NATS server.
fn take_turns(hosts: &Hosts) {
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    let checked = text(&hosts.b.run(&["check", "--connect"]));
    assert!(checked.contains("standby: connected to tls://localhost:"), "{checked}");
    assert!(checked.contains("standby: host a has the lease"), "{checked}");
    assert_eq!(hosts.a.data(&["standby", "release"]), "host b has the lease now\n");
    b.says("this host is active", SOON);
    hosts.deliver(4..=6);
    hosts.until_accepted(6);
    a.says("standing by holder=\"b\"", SOON);
    b.kill();
    hosts.deliver(7..=9);
    a.says_often("this host is active", 2, SOON);
    hosts.until_accepted(9);
    let role = &status(&hosts.a)["role"];
    assert_eq!((&role["state"], &role["holder"]), (&"active".into(), &"a".into()));
    // The daemon of `b` does not run, so the command asks the NATS server.
    let refused = text(&hosts.b.run(&["session", "add", SESSION]));
    assert!(refused.contains("is not running: host a has the lease"), "{refused}");
    assert_eq!(a.end(), Some(0));
}

#[test]
fn hosts_take_turns_over_tls_with_a_password() {
    take_turns(&hosts_with_password());
}

#[test]
fn hosts_take_turns_with_client_certificates() {
    let keys = |folder: &str| {
        format!("client_certificate = \"{folder}/server.pem\"\nclient_key = {{ file = \"{folder}/server.key\" }}")
    };
    let hosts = hosts(&format!("{TLS}, verify: true }}"), keys);
    take_turns(&hosts);
}

#[test]
fn a_missing_client_certificate_is_explained() {
    let mut hosts = hosts(&format!("{TLS}, verify: true }}"), |_| String::new());
    let a = hosts.a.start();
    let message = "the server refuses the client certificate, or needs one (TLS alert";
    a.says(message, SOON);
    // The server may also close the connection before its TLS alert arrives. Then `status` has another reason for a moment.
    until("the reason in status", || is_waiting(&hosts.a, message));
    hosts.nats.reconfigure(&format!("{TLS} }}"));
    a.says("this host is active", SOON);
    assert_eq!(a.end(), Some(0));
}

#[test]
fn a_wrong_password_is_explained_and_not_shown() {
    const WRONG: &str = "s3cret-wrong";
    let mut hosts = hosts_with_password();
    hosts.configure(&hosts.a, "a", &restore(&backup_of(&hosts.b, &hosts.a)), "[telemetry]\nlog = \"trace\"\n");
    fs::write(hosts.a.folder.path().join(PASSWORD_FILE), WRONG).unwrap();
    let a = hosts.a.start();
    let message = "the server refuses the login; check user and password";
    a.says(&format!("{message}; trying again"), SOON);
    assert!(is_waiting(&hosts.a, message));
    let commands: [&[&str]; 4] =
        [&["status"], &["standby", "release"], &["check", "--connect"], &["session", "add", SESSION]];
    for arguments in commands {
        let failed = hosts.a.run(arguments);
        assert_eq!(failed.status.code(), Some(1), "{arguments:?}");
        let printed = text(&failed);
        assert!(printed.contains(message) && !printed.contains("s3cret"), "{arguments:?}: {printed}");
    }
    let b = start_active(&hosts.b);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    // From now on, the server accepts the password of `a`, and refuses that of `b`.
    hosts.nats.reconfigure(&login(WRONG));
    b.says("this host has lost the lease", SOON);
    a.says("this host is active", SOON);
    hosts.deliver(4..=6);
    hosts.until_accepted(6);
    until("the reason in status", || is_waiting(&hosts.b, message));
    assert_eq!(hosts.callback.repeated().len(), 0);
    for daemon in [&a, &b] {
        assert!(!daemon.log().contains("s3cret"), "{}", daemon.log());
    }
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

/// Whether a host stands by, and `status` is red for a reason with this text.
fn is_waiting(home: &Home, message: &str) -> bool {
    let found = status(home);
    let reason = "this host cannot take over: the lease: cannot log in to tls://localhost:";
    let attention = found["attention"].to_string();
    found["role"]["state"] == "standby" && attention.contains(reason) && attention.contains(message)
}
