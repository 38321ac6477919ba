//! NATS servers that permit a part of what the daemon needs.

use std::time::Duration;

use testkit::daemon::Home;

use super::{BUCKET, Hosts, SOON, connection_keys, nats_with_bucket, start_active, start_standby, status, text, until};

const DOCUMENT: &str = include_str!("../../../docs/several-machines.md");

/// The settings of a NATS server with two users: `mailhook` has these permissions, and `all` has all permissions.
fn users(permissions: &str) -> String {
    let password = testkit::dovecot::PASSWORD;
    format!(
        "authorization {{ users = [ {{ user: all, password: {password:?} }},\n\
         {{ user: mailhook, password: {password:?}, {permissions} }} ] }}"
    )
}

/// The keys of `[standby]` for a user.
fn keys(hosts: &Hosts, user: &str) -> String {
    format!("{}\nuser = \"{user}\"\npassword = {{ env = \"MAILHOOK_PASSWORD\" }}", connection_keys(&hosts.nats))
}

/// Hosts whose user has these permissions.
fn hosts(lease: Duration, permissions: &str) -> Hosts {
    let mut hosts = Hosts::start_with(nats_with_bucket(lease), String::new());
    hosts.nats.reconfigure(&users(permissions));
    hosts.nats_keys = keys(&hosts, "mailhook");
    for (home, host, other) in [(&hosts.a, "a", &hosts.b), (&hosts.b, "b", &hosts.a)] {
        hosts.configure(home, host, &super::restore(&super::backup_of(other, home)), "");
    }
    hosts
}

/// The permissions in docs/several-machines.md.
fn documented() -> String {
    let from = &DOCUMENT[DOCUMENT.find("permissions {").unwrap()..];
    from[..from.find("```").unwrap()].replace("resmic-leases", BUCKET)
}

/// The documented permissions without one subject in the list `verb`.
fn documented_without(verb: &str, subject: &str) -> String {
    let all = documented();
    let (before, list) = all.split_once(verb).unwrap();
    let (list, after) = list.split_once(']').unwrap();
    let fewer = list.replace(&format!("\"{subject}\""), "\"unused\"");
    assert_ne!(list, fewer, "{all}");
    format!("{before}{verb}{fewer}]{after}")
}

fn says(home: &Home, message: &str) -> bool {
    let found = status(home);
    found["ok"] == false && found["attention"].to_string().contains(message)
}

#[test]
fn the_documented_permissions_are_enough() {
    // The hand-over is faster than the lease, so each host gets the announcements.
    let hosts = hosts(Duration::from_secs(120), &documented());
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let checked = text(&hosts.b.run(&["check", "--connect"]));
    assert!(checked.contains("standby: host a has the lease") && !checked.contains("standby: FAILED"), "{checked}");
    assert_eq!(hosts.a.data(&["standby", "release"]), "host b has the lease now\n");
    for home in [&hosts.a, &hosts.b] {
        assert!(home.run(&["status"]).status.success(), "{}", status(home));
    }
    assert!(!hosts.nats.log().contains("Violation"), "{}", hosts.nats.log());
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_refused_subscription_needs_attention() {
    let key = format!("$KV.{BUCKET}.shop");
    let mut hosts = hosts(Duration::from_secs(3), &documented_without("subscribe", &key));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let message = format!("does not permit this host to subscribe to {key}");
    for (home, daemon) in [(&hosts.a, &a), (&hosts.b, &b)] {
        daemon.says(&message, SOON);
        until("the problem in status", || says(home, &message));
    }
    let checked = text(&hosts.b.run(&["check", "--connect"]));
    assert!(checked.contains("standby: FAILED: the server reports:"), "{checked}");
    hosts.nats.reconfigure(&users(&documented()));
    until("the end of the problem", || {
        [&hosts.a, &hosts.b].iter().all(|home| status(home)["attention"] == serde_json::json!([]))
    });
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_refused_write_stays_a_problem() {
    let key = format!("$KV.{BUCKET}.shop");
    let mut hosts = hosts(Duration::from_secs(3), &documented_without("publish", &key));
    let a = hosts.a.start();
    let message = format!("cannot write {key}: no answer within 2s; the server reports:");
    a.says(&message, SOON);
    until("refused writes", || {
        assert!(says(&hosts.a, &format!("this host cannot take over: the lease: {message}")), "{}", status(&hosts.a));
        hosts.nats.log().matches("Publish Violation").count() > 3
    });
    assert!(!a.log().contains("can be read and written again"), "{}", a.log());
    // While another host has the lease, this host does not write, and cannot know whether a write succeeds.
    hosts.nats_keys = keys(&hosts, "all");
    hosts.configure(&hosts.b, "b", "", "");
    let b = start_active(&hosts.b);
    a.says("standing by holder=\"b\"", SOON);
    a.says("the lease can be read and written again", SOON);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}
