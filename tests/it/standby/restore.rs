//! The restore command, and copies that are refused.

use std::time::Duration;

use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, account, forward};

use super::{Hosts, SOON, restore, standby, start_active, start_standby, status, text, until, until_reported, write};

const LEASE: Duration = Duration::from_secs(3);

#[test]
fn a_failed_restore_waits_for_a_better_one() {
    let hosts = Hosts::start(LEASE);
    let a = start_active(&hosts.a);
    hosts.deliver(1..=5);
    hosts.until_accepted(5);
    let goal = hosts.b.folder.path().join("replica");
    let script = format!(
        "printf 'no \\033[31mreplica\\033[0m of %s, mail %s, for host %s\\n' \"$RESMIC_MAILHOOK_LAST_HOST\" \
         \"$RESMIC_MAILHOOK_LAST_MAIL_ID\" \"$RESMIC_MAILHOOK_HOST\" >&2; [ -e {0} ] || exit 7; exec mv {0} \"$RESMIC_MAILHOOK_DATABASE\"",
        goal.display()
    );
    hosts.configure(&hosts.b, "b", &restore(&script), "");
    let b = hosts.b.start();
    b.says("standing by holder=\"a\"", SOON);
    until_reported(&hosts.nats, 5);
    a.kill();
    b.says("exit status: 7", SOON);
    until("the state waiting", || status(&hosts.b)["role"]["state"] == "waiting");
    let found = status(&hosts.b);
    assert!(found["attention"].to_string().contains("exit status: 7"), "{found}");
    // The output is in the log, without its control characters.
    assert!(b.log().contains("replica") && b.log().contains("of a, mail 5, for host b"), "{}", b.log());
    assert!(!b.log().contains('\u{1b}'), "{}", b.log());
    assert!(!hosts.b.database().exists(), "nothing was created in the place of the copy");
    hosts.a.data(&["backup", goal.to_str().unwrap()]);
    b.says("this host is active", SOON);
    hosts.deliver(6..=8);
    hosts.until_accepted(8);
    assert_eq!(hosts.b.ask("SELECT count(*) FROM events"), "8");
    assert_eq!(b.end(), Some(0));
}

#[test]
fn an_older_copy_is_refused_without_fresh() {
    let hosts = Hosts::start(LEASE);
    hosts.configure(&hosts.b, "b", "", "");
    let a = start_active(&hosts.a);
    hosts.deliver(1..=3);
    hosts.until_accepted(3);
    let old = hosts.b.database();
    hosts.a.data(&["backup", old.to_str().unwrap()]);
    let copy = std::fs::read(&old).unwrap();
    hosts.deliver(4..=6);
    hosts.until_accepted(6);
    let b = hosts.b.start();
    b.says("standing by holder=\"a\"", SOON);
    assert_eq!(a.end(), Some(0));
    b.says("ends with mail 3, and that of host a had mail 6", SOON);
    assert_eq!(status(&hosts.b)["role"]["state"], "waiting");
    assert_eq!(std::fs::read(&old).unwrap(), copy, "the copy was not changed");
    std::fs::remove_file(&old).unwrap();
    b.says("does not exist, and that of host a had mail 6", SOON);
    assert_eq!(b.end(), Some(0));
    // Host `a` has the newest database, so it becomes active again, although `b` has tried to take over.
    let a = start_active(&hosts.a);
    assert_eq!(a.end(), Some(0));
    let b = Daemon::start(hosts.b.command(&["run", "--fresh"]));
    b.says("this host is active", SOON);
    // Host `b` reads the mailbox again. The handler gets the same events under the same keys.
    hosts.b.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "6", SOON);
    hosts.until_accepted(6);
    assert_eq!(b.end(), Some(0));
}

#[test]
fn a_missing_restore_program_is_reported() {
    let hosts = Hosts::start(LEASE);
    let _a = start_active(&hosts.a);
    hosts.configure(&hosts.b, "b", "restore = { command = [\"bin/fetch\", \"a\"] }", "");
    let program = hosts.b.folder.path().join("bin/fetch").display().to_string();
    let message = format!("cannot run {program:?}: No such file or directory");
    for (arguments, code) in [(&["check"][..], 0), (&["check", "--connect"], 1)] {
        let checked = hosts.b.run(arguments);
        assert_eq!(checked.status.code(), Some(code), "{}", text(&checked));
        assert!(text(&checked).contains(&format!("restore: {message}")), "{}", text(&checked));
    }
    let b = start_standby(&hosts.b);
    b.says(&message, SOON);
    let found = status(&hosts.b);
    assert!(found["ok"] == false && found["attention"].to_string().contains("restore command: cannot run"), "{found}");
    assert_eq!(b.end(), Some(0));
}

#[test]
fn a_hanging_restore_is_red_elsewhere() {
    let hosts = Hosts::start(LEASE);
    hosts.configure(&hosts.a, "a", &restore("exec sleep 1000"), "");
    let a = hosts.a.start();
    a.says("this host has the lease and takes over", SOON);
    let b = start_standby(&hosts.b);
    let found = status(&hosts.b);
    assert_eq!((&found["ok"], &found["role"]["holder"]), (&false.into(), &"a".into()), "{found}");
    assert!(found["attention"].to_string().contains("no host is active: host a is taking over"), "{found}");
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
}

#[test]
fn a_shutdown_ends_a_restore() {
    let hosts = Hosts::start(LEASE);
    let started = hosts.a.folder.path().join("started");
    let script = format!("touch {}; sleep 1000", started.display());
    hosts.configure(&hosts.a, "a", &restore(&script), "");
    let a = hosts.a.start();
    until("the restore", || started.exists());
    assert_eq!(status(&hosts.a)["role"]["state"], "taking-over");
    assert_eq!(a.end(), Some(0));
    assert!(!hosts.a.database().exists());
}

#[test]
fn moved_mails_missing_in_the_copy_are_read() {
    let mut hosts = Hosts::start(Duration::from_secs(10));
    let copy = hosts.b.folder.path().join("copy");
    let fetch = format!("exec cp {} \"$RESMIC_MAILHOOK_DATABASE\"", copy.display());
    for (home, host, script) in [(&hosts.a, "a", "exit 0"), (&hosts.b, "b", &fetch)] {
        let keys = "dedicated = true\nmailboxes = [\"INBOX\", \"Resmic\"]\nafter = { move = \"Resmic\" }";
        let (account, forward) = (account(hosts.dovecot.imap, keys), forward(&hosts.callback.url(), ""));
        write(home, &format!("{account}{ACCEPT_UNSIGNED}{forward}{}", standby(&hosts.nats, host, &restore(script))));
    }
    let moved = "SELECT count(*) FROM mails WHERE mailbox = 'Resmic'";
    let a = start_active(&hosts.a);
    hosts.deliver(1..=3);
    hosts.a.until(moved, "3", SOON);
    hosts.until_accepted(3);
    until_reported(&hosts.nats, 6);
    let b = start_standby(&hosts.b);
    hosts.a.data(&["backup", copy.to_str().unwrap()]);
    // The active host can neither renew the lease nor copy the fourth mail, which it stores and moves.
    hosts.nats.stop();
    hosts.deliver(4..=4);
    hosts.a.until(moved, "4", SOON);
    a.kill();
    hosts.nats.restart();
    b.says("this host is active", SOON);
    hosts.b.until(moved, "4", SOON);
    let outcomes = "SELECT group_concat(outcome) FROM (SELECT outcome FROM mails WHERE mailbox = 'Resmic' ORDER BY id)";
    assert_eq!(hosts.b.ask(outcomes), "duplicate,duplicate,duplicate,event");
    hosts.until_accepted(4);
    assert_eq!(b.end(), Some(0));
}
