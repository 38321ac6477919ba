//! Takeovers after a kill, a shutdown, a release and a pause. A reload keeps the lease.

use std::time::{Duration, Instant};

use testkit::callback::{Callback, HandlerReply};
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, account, forward};

use super::{
    ADDRESS, BUCKET, Hosts, SOON, block_on, restore, standby, start_active, start_standby, status, until, write,
};

const LEASE: Duration = Duration::from_secs(3);

#[test]
fn a_killed_host_is_replaced() {
    let hosts = Hosts::start(LEASE);
    let a = start_active(&hosts.a);
    hosts.deliver(1..=5);
    hosts.until_accepted(5);
    let b = start_standby(&hosts.b);
    // The standby opens no mailbox and no database.
    hosts.dovecot.until_logged_in(&[ADDRESS], SOON);
    assert!(!hosts.b.database().exists());
    let role = &status(&hosts.b)["role"];
    assert_eq!((&role["state"], &role["holder"]), (&"standby".into(), &"a".into()));
    assert!(role["lease_left_s"].as_u64().unwrap() <= 3, "{role}");
    a.kill();
    hosts.deliver(6..=10);
    b.says("this host is active", SOON);
    hosts.until_accepted(10);
    let found = status(&hosts.b);
    assert_eq!((&found["role"]["state"], &found["role"]["holder"]), (&"active".into(), &"b".into()), "{found}");
    // The first host starts again, stands by, and takes over when the second host is killed.
    let a = start_standby(&hosts.a);
    b.kill();
    hosts.deliver(11..=15);
    a.says("this host is active", SOON);
    hosts.until_accepted(15);
    assert_eq!(a.end(), Some(0));
}

/// The resident code of a daemon, its program and its libraries, in KiB (`Rss` in proc_pid_smaps(5)).
fn resident_code(daemon: &Daemon) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.process.id())).unwrap();
    let (mut is_code, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.strip_prefix("Rss:") {
            Some(size) if is_code => sum += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap(),
            Some(_) => {}
            // The first line of a mapping begins with its addresses, the other lines with a name.
            None if !line.split(' ').next().unwrap().ends_with(':') => is_code = line.contains(" r-xp "),
            None => {}
        }
    }
    sum
}

#[test]
fn a_standby_unmaps_its_code() {
    let hosts = Hosts::start(LEASE);
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    until("less code in memory", || resident_code(&b) * 2 < resident_code(&a));
    a.kill();
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    assert_eq!(b.end(), Some(0));
}

#[test]
fn a_shutdown_hands_over() {
    // Without the handover, the test would take longer than its limits.
    let hosts = Hosts::start(Duration::from_secs(120));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    assert_eq!(a.end(), Some(0));
    b.says("this host is active", SOON);
    hosts.deliver(4..=6);
    hosts.until_accepted(6);
    assert_eq!(b.end(), Some(0));
}

#[test]
fn a_release_hands_over_for_a_while() {
    let hosts = Hosts::start(Duration::from_secs(120));
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    let refused = hosts.b.run(&["standby", "release"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(super::text(&refused).contains("host a has the lease"), "{}", super::text(&refused));
    // A host that has released the lease does not take it for a while. This pause ends when the other host is active. So `a` can
    // take over again.
    assert_eq!(hosts.a.data(&["standby", "release"]), "host b has the lease now\n");
    b.says("this host is active", SOON);
    a.says("standing by holder=\"b\"", SOON);
    assert_eq!(hosts.b.data(&["standby", "release"]), "host a has the lease now\n");
    a.says_often("this host is active", 2, SOON);
    b.says_often("standing by holder=\"a\"", 2, SOON);
    assert_eq!(hosts.a.data(&["standby", "release"]), "host b has the lease now\n");
    b.says_often("this host is active", 2, SOON);
    a.says_often("standing by holder=\"b\"", 2, SOON);
    hosts.deliver(4..=6);
    hosts.until_accepted(6);
    hosts.dovecot.until_logged_in(&[ADDRESS], SOON);
    // Without another host, the lease stays free for a while.
    assert_eq!(a.end(), Some(0));
    let released = hosts.b.run(&["standby", "release"]);
    assert!(released.status.success() && super::text(&released).contains("no other host has taken over yet"));
    assert_eq!(status(&hosts.b)["role"]["state"], "standby");
    let a = start_active(&hosts.a);
    hosts.deliver(7..=8);
    hosts.until_accepted(8);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_failed_handover_returns_at_once() {
    // Neither the end of the lease nor the pause after the release explains the return.
    let hosts = Hosts::start(Duration::from_secs(120));
    hosts.configure(&hosts.b, "b", &restore("sleep 0.5; exit 1"), "");
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    let begun = Instant::now();
    let refused = hosts.a.run(&["standby", "release"]);
    assert_eq!(refused.status.code(), Some(1), "{}", super::text(&refused));
    let message = "host b has taken the lease and could not become active, so this host (a) takes over again";
    assert!(super::text(&refused).contains(message), "{}", super::text(&refused));
    a.says_often("this host is active", 2, SOON);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_paused_host_posts_nothing_when_it_continues() {
    let hosts = Hosts::start(LEASE);
    // The handler of `a` refuses each event, so that many attempts are due at any time.
    let (refusing, accepting) = (Callback::replying(|_, _| HandlerReply::Refuse), Callback::start());
    for (home, host, callback) in [(&hosts.a, "a", &refusing), (&hosts.b, "b", &accepting)] {
        let account = account(hosts.dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]");
        let forward = forward(&callback.url(), "");
        write(home, &format!("{account}{ACCEPT_UNSIGNED}{forward}{}", standby(&hosts.nats, host, "")));
    }
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    // `b` has another configuration than `a`, and its `status` reports this.
    let found = status(&hosts.b);
    assert!(found["attention"][0].as_str().unwrap().contains("active, in [[forward]]"), "{found}");
    hosts.deliver(1..=40);
    until("events at a", || refusing.posts().len() == 40);
    // `b` has no copy of the database, so it starts with --fresh.
    b.kill();
    let b = testkit::daemon::Daemon::start(hosts.b.command(&["run", "--fresh"]));
    b.says("standing by", SOON);
    a.process.signal("-STOP");
    b.says("this host is active", SOON);
    until("events at b", || accepting.posts().len() == 40);
    let total = || refusing.posts().values().map(|posts| posts.posted).sum::<usize>();
    let before = total();
    a.process.signal("-CONT");
    a.says("this host has lost the lease", SOON);
    a.says("standing by holder=\"b\"", SOON);
    hosts.dovecot.until_logged_in(&[ADDRESS], SOON);
    assert_eq!(total(), before, "a request was sent after the pause");
    assert_eq!(status(&hosts.a)["role"]["holder"], "b");
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_killed_daemon_takes_its_own_lease_again() {
    let hosts = Hosts::start(Duration::from_secs(9));
    // A restore would be wrong, because the newest database is on this host.
    hosts.configure(&hosts.a, "a", &restore("[ -n \"$RESMIC_MAILHOOK_FRESH\" ] || exit 3"), "");
    let fresh = testkit::daemon::Daemon::start(hosts.a.command(&["run", "--fresh"]));
    fresh.says("this host is active", SOON);
    hosts.deliver(1..=5);
    hosts.until_accepted(5);
    hosts.a.data(&["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0"]);
    fresh.kill();
    let a = start_active(&hosts.a);
    assert!(!a.log().contains("restore command"), "{}", a.log());
    assert_eq!(hosts.a.ask("SELECT count(*) FROM sessions"), "1");
    // Now SIGTERM ends the daemon, and it starts again after the lease has expired in the bucket.
    let key = format!("$KV.{BUCKET}.shop");
    assert_eq!(a.end(), Some(0));
    until("an empty bucket", || {
        let found = block_on(hosts.nats.ask("STREAM.MSG.GET.KV_leases", serde_json::json!({ "last_by_subj": key })));
        found.get("error").is_some()
    });
    let a = start_active(&hosts.a);
    assert!(!a.log().contains("restore command"), "{}", a.log());
    assert_eq!(a.end(), Some(0));
}

#[test]
fn a_reload_keeps_the_lease() {
    let hosts = Hosts::start(LEASE);
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    for n in 1..=5 {
        a.process.signal("-HUP");
        a.says_often("running", n + 1, SOON);
        hosts.deliver(n..=n);
        hosts.until_accepted(n);
    }
    assert!(!b.log().contains("this host has the lease"), "{}", b.log());
    assert_eq!(hosts.callback.repeated().len(), 0);
    hosts.configure(&hosts.a, "c", "", "");
    a.process.signal("-HUP");
    a.says("a change of [standby] needs a restart", SOON);
    assert_eq!(a.end(), Some(0));
}

#[test]
fn hosts_may_share_a_volume() {
    let hosts = Hosts::start(LEASE);
    let volume = tempfile::tempdir().unwrap();
    let store = format!("[store]\npath = \"{}/mailhook.db\"\n", volume.path().display());
    hosts.configure(&hosts.a, "a", "", &store);
    hosts.configure(&hosts.b, "b", "", &store);
    let a = start_active(&hosts.a);
    let b = start_standby(&hosts.b);
    hosts.deliver(1..=5);
    hosts.until_accepted(5);
    // A paused process still has the lock of the database, so no other host opens it.
    a.process.signal("-STOP");
    b.says("another resmic-mailhook daemon is running on it", SOON);
    assert_eq!(status(&hosts.b)["role"]["state"], "waiting");
    a.process.signal("-CONT");
    a.says("this host has lost the lease", SOON);
    hosts.deliver(6..=10);
    hosts.until_accepted(10);
    a.kill();
    b.says("this host is active", SOON);
    hosts.deliver(11..=15);
    hosts.until_accepted(15);
    assert_eq!(b.end(), Some(0));
}
