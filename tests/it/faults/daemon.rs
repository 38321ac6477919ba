//! The daemon with the scripted server: stored events, duplicates, restarts and status.

use super::*;
use testkit::daemon::{Home, account};
use testkit::dns::Dns;
use testkit::payments::payment;

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn home(server: &Scripted, keys: &str) -> Home {
    let keys = format!("mailboxes = [\"INBOX\"]\n{keys}\n[trust]\naccept = [\"none\"]\n");
    Home::new(&account(server.port, &keys))
}

const EVENTS: &str = "SELECT count(*) FROM events";
const MAILS: &str = "SELECT count(*) FROM mails";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_under_new_uids_are_duplicates() {
    let server = Scripted::start().await;
    server.change(|state| {
        state.deliver(&payment(1));
        state.deliver(&payment(2));
    });
    let home = home(&server, "dedicated = true");
    let daemon = home.start();
    home.until(EVENTS, "2", SOON);
    // Both mails get new UIDs, as after a migration, and one is also copied within the mailbox.
    once(&server, "news", 1, &[Step::Close]);
    server.change(|state| {
        state.uid_validity = 8;
        state.deliver(&payment(1));
    });
    home.until("SELECT count(*) FROM mails WHERE outcome = 'duplicate'", "3", SOON);
    assert_eq!((home.ask(EVENTS), home.ask(MAILS)), ("2".into(), "5".into()));
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_under_a_reused_uid_is_stored() {
    let server = Scripted::start().await;
    server.change(|state| {
        for n in 1..=3 {
            state.deliver(&payment(n));
        }
    });
    let home = home(&server, "dedicated = true");
    let daemon = home.start();
    home.until(EVENTS, "3", SOON);
    // The server is restored from a backup with one mail. Then two new mails arrive.
    once(&server, "news", 1, &[Step::Close]);
    server.change(|state| {
        state.mails.truncate(1);
        state.uid_next = 2;
        state.deliver(&payment(4));
    });
    home.until(EVENTS, "4", SOON);
    server.change(|state| state.deliver(&payment(5)));
    home.until(EVENTS, "5", SOON);
    assert_eq!(home.ask(MAILS), "5", "and what was there all the time leaves no second row");
    assert_eq!(daemon.end(), Some(0));
}

/// Delivers a mail with this INTERNALDATE.
fn deliver_at(server: &Scripted, mail: &[u8], date: &str) {
    server.change(|state| {
        let uid = state.deliver(mail);
        state.dates.insert(uid, date.into());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reused_uids_are_read_once_over_restarts() {
    let (before, later) = ("05-Mar-2025 03:00:00 +0000", "05-Mar-2025 05:00:00 +0000");
    let friend = testkit::scripted::other("not ours");
    // After the restore, UID 3 is not the stored payment but another mail, with another date or with the same date.
    for (keys, third) in [
        ("dedicated = false", later),
        ("dedicated = true", later),
        ("dedicated = false", before),
        ("dedicated = true", before),
    ] {
        let server = Scripted::start().await;
        (1..=3).for_each(|n| deliver_at(&server, &payment(n), before));
        (0..2).for_each(|_| deliver_at(&server, &friend, before));
        let home = home(&server, keys);
        let daemon = home.start();
        home.until("SELECT last_uid FROM mailboxes", "5", SOON);
        home.until("SELECT state FROM mailboxes", "idle", SOON);
        assert_eq!(daemon.end(), Some(0));
        assert_eq!(home.ask("SELECT newest_at FROM mailboxes"), "2025-03-05T03:00:00.000Z");
        // The server is restored from a backup with one mail. Other mails take the UIDs of payments, and payments take
        // the UIDs of other mails. The last mail that was read no longer exists.
        server.change(|state| {
            state.mails.truncate(1);
            state.uid_next = 2;
        });
        deliver_at(&server, &friend, before);
        deliver_at(&server, &friend, third);
        deliver_at(&server, &payment(4), later);
        deliver_at(&server, &friend, later);
        deliver_at(&server, &payment(5), later);
        server.change(|state| state.mails.retain(|(uid, _)| *uid != 5));
        let idles = server.count("IDLE");
        let daemon = home.start();
        home.until(EVENTS, "5", SOON);
        server.until("an IDLE", |state| state.count("IDLE") > idles).await;
        assert_eq!(daemon.end(), Some(0));
        assert_eq!(server.asked("UID FETCH 1:* "), 2, "all was read anew");
        for n in 6..=7 {
            let idles = server.count("IDLE");
            deliver_at(&server, &payment(n), later);
            let daemon = home.start();
            home.until(EVENTS, &n.to_string(), SOON);
            server.until("an IDLE", |state| state.count("IDLE") > idles).await;
            assert_eq!(daemon.end(), Some(0));
        }
        assert_eq!(server.asked("UID FETCH 1:* "), 2, "{keys}: once");
    }
}

/// Changes UIDVALIDITY and `start` while the daemon is stopped, then lets the daemon read the mailbox.
async fn renumbered(server: &Scripted, home: &Home, start: &str) {
    let config = home.folder.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (before, rest) = text.split_once("start = ").unwrap();
    let (_, after) = rest.split_once('\n').unwrap();
    std::fs::write(&config, format!("{before}start = {start:?}\n{after}")).unwrap();
    let idles = server.count("IDLE");
    server.change(|state| state.uid_validity += 1);
    let daemon = home.start();
    server.until("an IDLE", |state| state.count("IDLE") > idles).await;
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_all_overrides_the_stored_boundary() {
    let server = Scripted::start().await;
    (1..=3).for_each(|n| deliver_at(&server, &payment(n), "05-Mar-2025 03:00:00 +0000"));
    let home = home(&server, "dedicated = true\nstart = \"now\"");
    let daemon = home.start();
    home.until("SELECT last_uid FROM mailboxes", "3", SOON);
    let begun = home.ask("SELECT begun_at FROM mailboxes");
    deliver_at(&server, &payment(4), &crate::faults::start::date(0));
    home.until(EVENTS, "1", SOON);
    assert_eq!(daemon.end(), Some(0));
    for _ in 0..2 {
        renumbered(&server, &home, "now").await;
        assert_eq!((home.ask(EVENTS), home.ask("SELECT begun_at FROM mailboxes")), ("1".into(), begun.clone()));
    }
    renumbered(&server, &home, "all").await;
    assert_eq!(home.ask(EVENTS), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_boundary_the_mailbox_is_reread() {
    let server = Scripted::start().await;
    deliver_at(&server, &payment(1), "05-Mar-2025 03:00:00 +0000");
    let home = home(&server, "dedicated = true\nstart = \"now\"");
    let daemon = home.start();
    home.until("SELECT last_uid FROM mailboxes", "1", SOON);
    assert_eq!(daemon.end(), Some(0));
    let database = rusqlite::Connection::open(home.database()).unwrap();
    database.execute_batch("UPDATE mailboxes SET begun_at = NULL, begun_uid = NULL, newest_at = NULL").unwrap();
    drop(database);
    renumbered(&server, &home, "now").await;
    assert_eq!(home.ask(EVENTS), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_uid_in_a_push_hides_nothing() {
    let server = Scripted::start().await;
    server.change(|state| state.capabilities = "IDLE NOTIFY".into());
    let home = home(&server, "dedicated = true");
    let daemon = home.start();
    server.until("an IDLE", |state| state.count("IDLE") == 1).await;
    // The server pushes the first mail with the UID of the second one.
    let items = "RFC822.SIZE BODY.PEEK[]";
    let wrong = String::from_utf8(testkit::scripted::connection::fetch_response(1, 2, &payment(1), items)).unwrap();
    once(&server, "news", 1, &[Step::Announce, Step::Say(wrong)]);
    server.change(|state| state.deliver(&payment(1)));
    home.until("SELECT coalesce(max(last_uid), 0) FROM mailboxes", "1", SOON);
    server.change(|state| state.deliver(&payment(2)));
    home.until(EVENTS, "2", SOON);
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_logs_contain_no_password_and_no_mail() {
    let server = Scripted::start().await;
    server.change(|state| state.deliver(&payment(1)));
    let home = home(&server, "dedicated = true\n[telemetry]\nlog = \"trace\"\n");
    let daemon = home.start();
    home.until(EVENTS, "1", SOON);
    once(&server, "news", 1, &[say("* 1 FETCH (UID 9 BODY[] confidential ?\r\n"), Step::Usual]);
    server.change(|state| state.deliver(&payment(2)));
    home.until(EVENTS, "2", SOON);
    daemon.says("cannot be parsed", SOON);
    let log = daemon.log();
    for word in [testkit::dovecot::PASSWORD, "confidential", "Transaction Hash", "LOGIN"] {
        assert!(!log.contains(word), "{word}\n{log}");
    }
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_loses_nothing() {
    let steps = [
        ("LOGIN", 1),
        ("SELECT", 1),
        ("UID FETCH", 1),
        ("UID FETCH", 2),
        ("UID STORE", 1),
        ("IDLE", 1),
        ("news", 1),
        ("DONE", 1),
        ("UID STORE", 2),
    ];
    for answer in [&[Step::Mute][..], &[Step::Untagged, Step::Mute]] {
        let runs = steps.map(|(name, nth)| {
            tokio::spawn(async move {
                let server = Scripted::start().await;
                server.change(|state| state.deliver(&payment(1)));
                once(&server, name, nth, answer);
                let home = home(&server, "dedicated = true\nafter = \"seen\"");
                let daemon = home.start();
                if ["news", "DONE"].contains(&name) || (name, nth) == ("UID STORE", 2) {
                    server.until("an IDLE", |state| state.count("IDLE") > 0).await;
                }
                server.change(|state| state.deliver(&payment(2)));
                server.until("the step", |state| state.count(name) >= nth).await;
                tokio::task::block_in_place(|| daemon.kill());
                server.script(|_| vec![Step::Usual]);
                let idles = server.count("IDLE");
                let daemon = home.start();
                server.until("an IDLE after the kill", |state| state.count("IDLE") > idles).await;
                tokio::task::block_in_place(|| {
                    home.until("SELECT coalesce(max(last_uid), 0) FROM mailboxes", "2", SOON);
                    assert_eq!((home.ask(EVENTS), home.ask(MAILS)), ("2".into(), "2".into()), "{name} {nth}");
                    assert_eq!(daemon.end(), Some(0));
                });
            })
        });
        for one in runs {
            one.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_opens_no_connection() {
    let server = Scripted::start().await;
    let home = home(&server, "dedicated = true");
    let daemon = home.start();
    server.until("an IDLE", |state| state.count("IDLE") == 1).await;
    let second = home.run(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    assert_eq!((server.connections(), server.most_open()), (1, 1));
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_follows_the_state_of_a_mailbox() {
    let server = Scripted::start().await;
    server.script(|seen| match seen.name {
        "EXAMINE" | "SELECT" => vec![say("{tag} NO [NONEXISTENT] gone\r\n")],
        _ => vec![Step::Usual],
    });
    let home = home(&server, "dedicated = true");
    let daemon = home.start();
    home.until("SELECT coalesce(max(state), '') FROM mailboxes", "failed", SOON);
    let red = home.run(&["status"]);
    assert_eq!(red.status.code(), Some(1));
    server.script(|_| vec![Step::Usual]);
    home.until("SELECT coalesce(max(state), '') FROM mailboxes", "idle", SOON);
    assert_eq!(home.run(&["status"]).status.code(), Some(0));
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_reports_one_unusable_mailbox() {
    let server = Scripted::start().await;
    server.script(|seen| match seen.name {
        "EXAMINE" | "SELECT" if seen.nth == 1 => vec![say("{tag} NO [NONEXISTENT] there is none\r\n")],
        _ => vec![Step::Usual],
    });
    let dns = Dns::start(&[("resmic.com".into(), "MX 10 mail.resmic.com.".into())]);
    let keys = format!("mailboxes = [\"Ordres\", \"INBOX\"]\n[dns]\nservers = [\"{}\"]\n", dns.address);
    let home = Home::new(&account(server.port, &keys));
    let checked = home.run(&["check", "--connect"]);
    let output = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{output}");
    for expected in [
        "shop: logged in",
        "shop: FAILED: mailbox Ordres: SELECT refused",
        "there is none; check `mailboxes` of this account",
        "shop: mailbox INBOX: 0 mails",
    ] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
}
