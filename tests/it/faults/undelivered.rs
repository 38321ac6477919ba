//! Mails that the server lists but does not deliver: each one gets a row and is fetched again later, and other mails are
//! read.

use std::collections::BTreeSet;

use super::*;
use resmic_mailhook::model::{Availability, MailboxState};
use testkit::scripted::{FetchFault, notification, other};

const FORMS: [FetchFault; 9] = [
    FetchFault::Nil,
    FetchFault::Empty,
    FetchFault::NoItem,
    FetchFault::Nothing,
    FetchFault::Short,
    FetchFault::Bye,
    FetchFault::Close,
    FetchFault::Mute,
    FetchFault::No,
];

const EACH_SECOND: &str = "idle_renew = \"1s\"";

/// Short timeouts, after which an undelivered mail gets its row.
fn short_timeouts() -> Timing {
    Timing { answer: ms(200), refetch: ms(10), ..quick() }
}

async fn server_with(mails: usize, faulty_uid: u32, form: FetchFault) -> Scripted {
    let server = Scripted::start().await;
    server.change(|state| {
        (1..=mails).for_each(|n| _ = state.deliver(&notification(&format!("payment {n}"))));
        state.fetch_faults.insert(faulty_uid, form);
    });
    server
}

fn times(watching: &Watching, mails: std::ops::RangeInclusive<u32>) -> Vec<usize> {
    mails.map(|uid| watching.handed.get(&(7, uid)).map_or(0, |(_, times)| *times)).collect()
}

#[tokio::test]
async fn an_undelivered_mail_gets_a_row() {
    let runs = FORMS.into_iter().flat_map(|form| [(form, DEDICATED), (form, SHARED)]).map(|(form, keys)| async move {
        let server = server_with(5, 3, form).await;
        let mut watching = watch_in(&server, keys, short_timeouts());
        watching.until(&format!("the end: {form:?}"), |w| *w.cursor.lock().unwrap() == Some((7, 5))).await;
        assert_eq!(watching.availability, [(3, Availability::Listed)], "{form:?} {keys}");
        // If the server refuses a FETCH, its mails are fetched again in smaller parts. So other mails may arrive twice.
        if form != FetchFault::No {
            assert_eq!(times(&watching, 1..=5), [1, 1, 0, 1, 1], "{form:?} {keys}");
        }
        watching.idle().await;
        let connections = server.connections();
        server.deliver("next");
        watching.mail("next").await;
        assert_eq!(server.connections(), connections, "{form:?} {keys}");
        watching.end().await;
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_new_undelivered_mail_gets_a_row() {
    for capabilities in ["IDLE", "IDLE NOTIFY", ""] {
        let runs =
            FORMS.into_iter().flat_map(|form| [(form, DEDICATED), (form, SHARED)]).map(|(form, keys)| async move {
                let server = server_with(0, 1, form).await;
                server.change(|state| state.capabilities = capabilities.into());
                let mut watching = watch_in(&server, keys, Timing { poll: ms(50), ..short_timeouts() });
                watching.until("a sync", |w| w.seen > 1).await;
                server.deliver("withheld");
                watching.until(&format!("the row: {form:?}"), |w| w.undelivered.contains(&(7, 1))).await;
                server.deliver("next");
                watching.mail("next").await;
                watching.until_cursor(7, 2).await;
                watching.end().await;
            });
        futures_util::future::join_all(runs).await;
    }
}

#[tokio::test]
async fn a_renewal_fetches_an_undelivered_mail_again() {
    let runs =
        FORMS.into_iter().flat_map(|form| [("dedicated = true\n", form), ("", form)]).map(|(keys, form)| async move {
            let server = server_with(2, 1, form).await;
            let mut watching = watch_in(&server, &format!("{keys}{EACH_SECOND}"), short_timeouts());
            watching.until("the row", |w| w.undelivered.contains(&(7, 1))).await;
            watching.idle().await;
            let asked = server.asked("UID FETCH 1 (");
            watching.while_server("another FETCH", |state| state.asked("UID FETCH 1 (") > asked + 2).await;
            server.change(|state| state.fetch_faults.clear());
            watching.mail("payment 1").await;
            assert_eq!(times(&watching, 1..=1), [1], "{form:?}");
            assert!(watching.undelivered.is_empty());
            let asked = server.asked("UID FETCH 1 (");
            watching.while_server("a renewal", |state| state.count("DONE") > 4).await;
            assert_eq!(server.asked("UID FETCH 1 ("), asked, "and then no more");
            watching.end().await;
        });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_mail_that_breaks_connections_is_no_failure() {
    let server = server_with(2, 1, FetchFault::Bye).await;
    let mut watching = watch_in(&server, &format!("dedicated = true\n{EACH_SECOND}"), short_timeouts());
    watching.until("the row", |w| w.undelivered.contains(&(7, 1))).await;
    watching.idle().await;
    let connections = server.connections();
    watching.states.clear();
    watching.while_server("two more breaks", |state| state.connections() >= connections + 2).await;
    watching.idle().await;
    assert!(watching.states.iter().all(|(state, _)| *state != MailboxState::Failed), "{:?}", watching.states);
    watching.end().await;
}

#[tokio::test]
async fn a_removed_undelivered_mail_is_not_requested() {
    let server = server_with(2, 1, FetchFault::Nil).await;
    let mut watching = watch_in(&server, &format!("dedicated = true\n{EACH_SECOND}"), short_timeouts());
    watching.until("the row", |w| w.undelivered.contains(&(7, 1))).await;
    server.change(|state| state.mails.retain(|(uid, _)| *uid != 1));
    watching.until("its end", |w| w.availability.last() == Some(&(1, Availability::Gone))).await;
    let asked = server.asked("UID FETCH 1 (");
    watching.while_server("a renewal", |state| state.count("DONE") > 4).await;
    assert_eq!(server.asked("UID FETCH 1 ("), asked);
    watching.end().await;
}

#[tokio::test]
async fn refused_fetch_of_gone_mail_closes_its_row() {
    let server = server_with(2, 1, FetchFault::Nil).await;
    server.change(|state| state.refuses_empty_fetch = true);
    let mut watching = watch_in(&server, &format!("dedicated = true\n{EACH_SECOND}"), short_timeouts());
    watching.until("the row", |w| w.undelivered.contains(&(7, 1))).await;
    watching.idle().await;
    let connections = server.connections();
    server.change(|state| state.mails.retain(|(uid, _)| *uid != 1));
    watching.until("its end", |w| w.availability.last() == Some(&(1, Availability::Gone))).await;
    watching.idle().await;
    assert_eq!(server.connections(), connections);
    watching.end().await;
}

#[tokio::test]
async fn foreign_mails_with_late_headers_are_not_read() {
    let server = Scripted::start().await;
    server.change(|state| {
        state.deliver(&other("a letter"));
        state.deliver(&other("another letter"));
        state.fetch_faults.insert(1, FetchFault::Nil);
    });
    let mut watching = watch_in(&server, EACH_SECOND, short_timeouts());
    watching.until("the row", |w| w.undelivered.contains(&(7, 1))).await;
    server.change(|state| state.fetch_faults.clear());
    watching.until("its end", |w| w.availability.last() == Some(&(1, Availability::Foreign))).await;
    assert_eq!((watching.availability.len(), server.asked("BODY.PEEK[]")), (2, 0));
    watching.end().await;
}

#[tokio::test]
async fn several_undelivered_mails_do_not_stop_a_mailbox() {
    let server = server_with(60, 3, FetchFault::Bye).await;
    let faults = [
        (3, FetchFault::Bye),
        (4, FetchFault::Nil),
        (17, FetchFault::Short),
        (40, FetchFault::Close),
        (60, FetchFault::Bye),
    ];
    server.change(|state| state.fetch_faults.extend(faults));
    let mut watching = watch_in(&server, DEDICATED, short_timeouts());
    watching.until_cursor(7, 60).await;
    let rows: BTreeSet<u32> = watching.undelivered.iter().map(|(_, uid)| *uid).collect();
    assert_eq!(rows, faults.map(|(uid, _)| uid).into());
    // The cursor does not pass an undelivered mail before the mail has a row. Until then, later mails may be read twice, and the
    // database recognises them.
    assert!((1..=60).filter(|uid| !rows.contains(uid)).all(|uid| times(&watching, uid..=uid)[0] > 0));
    watching.end().await;
}

#[tokio::test]
async fn a_server_with_a_fetch_limit_is_read() {
    for keys in [DEDICATED, SHARED] {
        let server = Scripted::start().await;
        server.change(|state| {
            (1..=300).for_each(|n| _ = state.deliver(&notification(&format!("payment {n}"))));
            state.bodies = Some(40);
        });
        let mut watching = watch(&server, keys);
        watching.until_cursor(7, 300).await;
        assert!(times(&watching, 1..=300).iter().all(|times| *times == 1));
        assert!(watching.undelivered.is_empty());
        assert!(server.connections() <= 9, "{}", server.connections());
        watching.end().await;
    }
}

#[tokio::test]
async fn only_a_complete_sync_ends_a_failure() {
    let server = server_with(5, 1, FetchFault::Mute).await;
    let mut watching = watch_in(&server, DEDICATED, Timing { answer: ms(200), ..quick() });
    watching.state(MailboxState::Failed).await;
    watching.until("the end", |w| w.states.iter().any(|(state, _)| *state == MailboxState::Idle)).await;
    let failed = watching.states.iter().skip_while(|(state, _)| *state != MailboxState::Failed);
    let until_idle: Vec<_> = failed.take_while(|(state, _)| *state != MailboxState::Idle).collect();
    assert!(until_idle.iter().all(|(state, _)| *state == MailboxState::Failed), "{until_idle:?}");
    watching.end().await;
}

#[tokio::test]
async fn the_body_decides_what_is_too_large() {
    for (mail, oversize, is_cut) in [(1_000, 500, false), (2_048, 500, false), (2_049, 0, true), (5_000, 500, true)] {
        let server = Scripted::start().await;
        let mut bytes = notification("sized");
        bytes.resize(mail, b'x');
        server.change(|state| {
            state.deliver(&bytes);
            state.oversize = oversize;
        });
        let mut watching = watch(&server, &format!("{DEDICATED}\nmax_size = \"2 KiB\""));
        watching.mail("sized").await;
        let (kept, size) = (watching.handed[&(7, 1)].0.len(), watching.sizes[&(7, 1)]);
        assert_eq!((kept, size > kept as u64), (mail.min(2_048), is_cut), "{mail}");
        watching.end().await;
    }
}

#[tokio::test]
async fn refusal_of_all_mails_makes_no_rows() {
    let server = server_with(3, 1, FetchFault::No).await;
    server.change(|state| state.fetch_faults.extend([(2, FetchFault::No), (3, FetchFault::No)]));
    let mut watching = watch_in(&server, DEDICATED, short_timeouts());
    watching.while_server("several connections", |state| state.connections() > 5).await;
    assert!(watching.availability.is_empty());
    server.change(|state| state.fetch_faults.clear());
    watching.until_cursor(7, 3).await;
    watching.end().await;
}

#[tokio::test]
async fn undelivered_mails_do_not_look_like_renumbering() {
    let server = server_with(3, 3, FetchFault::Bye).await;
    server.change(|state| state.dates.insert(3, "06-Mar-2025 03:36:00 +0000".into()));
    let mut watching = watch_in(&server, DEDICATED, short_timeouts());
    watching.until("the row", |w| w.undelivered.contains(&(7, 3))).await;
    watching.idle().await;
    once(&server, "news", server.count("news") + 1, &[Step::Close]);
    server.deliver("next");
    watching.mail("next").await;
    assert_eq!(times(&watching, 1..=2), [1, 1]);
    assert_eq!(server.asked("UID FETCH 1:* "), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_server_that_delivers_nothing_makes_no_rows() {
    let server = server_with(100, 1, FetchFault::Nil).await;
    server.change(|state| state.fetch_faults.extend((1..=100).map(|uid| (uid, FetchFault::Nil))));
    let mut watching = watch_in(&server, DEDICATED, short_timeouts());
    let error = watching.state(MailboxState::Failed).await.unwrap();
    assert!(error.contains("100 mails"), "{error}");
    server.change(|state| state.fetch_faults.clear());
    watching.until_cursor(7, 100).await;
    assert!(watching.availability.is_empty());
    watching.end().await;
}

#[tokio::test]
async fn many_undelivered_mails_are_completed_at_one_renewal() {
    for form in [FetchFault::Nil, FetchFault::No] {
        let server = server_with(101, 1, form).await;
        server.change(|state| state.fetch_faults.extend((1..=100).map(|uid| (uid, form))));
        let mut watching = watch_in(&server, &format!("dedicated = true\n{EACH_SECOND}"), short_timeouts());
        watching.until("the rows", |w| w.undelivered.len() == 100).await;
        watching.idle().await;
        server.change(|state| state.fetch_faults.clear());
        let renewals = server.count("DONE");
        watching.until("all of them", |w| w.handed.len() == 101).await;
        assert!(server.count("DONE") <= renewals + 2);
        assert_eq!(times(&watching, 1..=100), [1; 100], "{form:?}");
        watching.end().await;
    }
}
