//! Where the first run begins: `start`.

use super::*;
use crate::support::scripted::notification;

#[tokio::test]
async fn start_all_reads_what_is_there() {
    let server = Scripted::start().await;
    server.deliver("old");
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"all\""));
    watching.mail("old").await;
    watching.end().await;
}

#[tokio::test]
async fn start_now_reads_nothing_old_and_everything_new() {
    for more in [DEDICATED, SHARED] {
        for capabilities in ["IDLE", "IDLE NOTIFY", ""] {
            let server = Scripted::start().await;
            server.change(|world| world.capabilities = capabilities.into());
            for n in 0..3 {
                server.deliver(&format!("old {n}"));
            }
            let timing = Timing { poll: ms(50), ..quick() };
            let mut watching = watch_in(&server, &format!("{more}\nstart = \"now\""), timing);
            watching.old.extend(1..=3);
            watching.until("the cursor", |w| *w.cursor.lock().unwrap() == Some((7, 3))).await;
            for n in 0..3 {
                server.deliver(&format!("new {n}"));
                watching.mail(&format!("new {n}")).await;
            }
            assert!(watching.handed.keys().all(|(_, uid)| *uid > 3));
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn start_now_misses_nothing_that_comes_before_the_first_idle() {
    let at = [
        ("EXAMINE", &[Step::Untagged, Step::Deliver("meanwhile"), Step::Ok][..]),
        ("EXAMINE", &[Step::Usual, Step::Deliver("meanwhile")]),
        ("NOTIFY", &[Step::Deliver("meanwhile"), Step::Usual]),
        ("UID FETCH", &[Step::Untagged, Step::Deliver("meanwhile"), Step::Ok]),
        ("IDLE", &[Step::Deliver("meanwhile"), Step::Usual]),
    ];
    for (name, steps) in at {
        for capabilities in ["IDLE", "IDLE NOTIFY"] {
            if name == "NOTIFY" && capabilities == "IDLE" {
                continue;
            }
            let server = Scripted::start().await;
            server.change(|world| world.capabilities = capabilities.into());
            server.deliver("old");
            once(&server, name, 1, steps);
            let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
            watching.old.insert(1);
            let took = watching.mail("meanwhile").await;
            assert!(took < Duration::from_secs(5), "{name} {steps:?} {took:?}");
            assert_eq!(watching.times("old"), 0);
            watching.end().await;
        }
    }
}

#[tokio::test]
async fn start_now_is_the_first_now_however_often_the_connection_ends() {
    let server = Scripted::start().await;
    server.deliver("old");
    // The first connection learns where "now" is, and ends before anybody could have written that down.
    once(&server, "UID FETCH", 1, &[Step::Deliver("after the first now"), Step::Close]);
    let mut watching = watch(&server, &format!("{DEDICATED}\nstart = \"now\""));
    watching.forgetful = true;
    watching.old.insert(1);
    watching.mail("after the first now").await;
    assert_eq!(watching.times("old"), 0);
    watching.end().await;
}

#[tokio::test]
async fn start_with_a_date_reads_from_that_day_and_passes_what_is_older() {
    for more in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.change(|world| {
            for (subject, date) in [
                ("the day before", "04-Mar-2025 23:59:59 +0000"),
                // Filed later than it was received: the order of UIDs is not that of the dates.
                ("that day", "05-Mar-2025 00:00:00 +0000"),
                ("long before", " 1-Jan-2024 12:00:00 +0000"),
                ("in another zone", "04-Mar-2025 20:00:00 -0800"),
                ("in another zone, and too old", "05-Mar-2025 01:00:00 +0200"),
            ] {
                let uid = world.deliver(&notification(subject));
                world.dates.insert(uid, date);
            }
        });
        let mut watching = watch(&server, &format!("{more}\nstart = \"2025-03-05\""));
        watching.old.extend([1, 3, 5]);
        watching.until("the cursor", |w| *w.cursor.lock().unwrap() == Some((7, 5))).await;
        let uids: Vec<_> = watching.handed.keys().map(|(_, uid)| *uid).collect();
        assert_eq!(uids, [2, 4]);
        assert_eq!(
            server.asked("UID FETCH 2,4 ("),
            1 + usize::from(more == SHARED),
            "no older mail's bytes are fetched"
        );
        server.deliver("new");
        watching.mail("new").await;
        watching.end().await;
    }
}

#[tokio::test]
async fn a_cursor_that_is_known_is_gone_by_whatever_start_says() {
    for start in ["all", "now", "2030-01-01"] {
        let server = Scripted::start().await;
        for subject in ["read before", "came while we were down"] {
            server.deliver(subject);
        }
        let settings = crate::support::watching::settings(server.port, &format!("{DEDICATED}\nstart = {start:?}"));
        let cursor = std::sync::Arc::new(std::sync::Mutex::new(Some((7, 1))));
        let mut watching = Watching::of(settings, quick(), cursor);
        watching.mail("came while we were down").await;
        assert_eq!(watching.times("read before"), 0, "{start}");
        watching.end().await;
    }
}
