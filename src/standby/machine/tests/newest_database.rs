//! A host knows which database is the newest, and passes this knowledge on in the lease.

use super::*;

#[test]
fn an_older_value_leaves_the_holder_s_data() {
    let mut machine = machine("a");
    let data = Some(DataOwner { host: "b".into(), home: "home-b".into(), last_mail_id: 5 });
    machine.on_read(at(0), entry(5, LeaseValue { data, ..value("b", LeaseStage::Released, 1) }));
    write(&mut machine, 0, WriteResult::Stored(6));
    // The server has stored this renewal, but its answer is lost. The database is opened before the next read.
    let taking_over = write(&mut machine, 5_000, WriteResult::Unknown);
    machine.opened(at(5_100), 1, 7);
    assert_eq!(machine.next_step(at(5_500)), LeaseStep::Read);
    machine.on_read(at(5_500), entry(7, taking_over));
    let written = write(&mut machine, 5_500, WriteResult::Stored(8));
    assert_eq!(written.data.map(|data| (data.host, data.last_mail_id)), Some(("a".into(), 7)));
}

#[test]
fn the_last_database_is_known_after_a_restart() {
    let data = Some(DataOwner { host: "a".into(), home: "home-a".into(), last_mail_id: 12 });
    let known = KnownData { revision: 5, data: data.clone() };
    for (last_revision, is_newest_here, wait) in [(5, true, 0), (6, false, 20_500)] {
        let mut machine = LeaseMachine::new(member("a", "a2"), known.clone());
        machine.set_lease(LEASE);
        machine.connected(at(0));
        machine.on_read(at(0), absent(last_revision));
        if wait > 0 {
            assert_eq!(machine.next_step(at(0)), LeaseStep::Wait(at(20_000)));
            machine.on_read(at(20_000), absent(last_revision));
            assert_eq!(machine.next_step(at(20_000)), LeaseStep::Wait(at(20_500)));
        }
        write(&mut machine, wait, WriteResult::Stored(7));
        let takeover = machine.view().takeover.unwrap();
        assert_eq!(takeover, Takeover { data: data.clone(), is_newest_here, never_held: false });
    }
}

#[test]
fn a_failed_takeover_keeps_the_known_data() {
    let mut machine = machine("b");
    let data = Some(DataOwner { host: "a".into(), home: "home-a".into(), last_mail_id: 12 });
    machine.on_read(at(0), entry(5, LeaseValue { data: data.clone(), ..value("a", LeaseStage::Released, 1) }));
    write(&mut machine, 0, WriteResult::Stored(6));
    machine.release(at(100), Duration::from_secs(4), Some("no copy".into()));
    assert!(machine.view().is_releasing);
    let released = write(&mut machine, 100, WriteResult::Stored(7));
    assert_eq!((released.stage, &released.data), (LeaseStage::Released, &data));
    let view = machine.view();
    assert_eq!((view.state, view.failure.as_deref()), (LeaseState::Waiting, Some("no copy")));
    machine.on_read(at(200), entry(7, released));
    assert_eq!(machine.next_step(at(200)), LeaseStep::Wait(at(4_100)));
    write(&mut machine, 4_100, WriteResult::Stored(8));
    assert_eq!(machine.view().takeover.unwrap().data, data);
}

#[test]
fn old_knowledge_does_not_replace_better_knowledge() {
    // Host `a` was off while host `b` was active. All hosts were off for longer than the lease.
    let mut a = restarted("a", "a2", KnownData { revision: 103, data: owner("a", 103) });
    let mut b = restarted("b", "b2", KnownData { revision: 500, data: owner("b", 500) });
    a.on_read(at(0), absent(500));
    a.on_read(at(20_000), absent(500));
    let taking_over = write(&mut a, 20_500, WriteResult::Stored(501));
    assert_eq!(taking_over.data, None, "another host may know a newer database");
    let refused = Takeover { data: owner("a", 103), is_newest_here: false, never_held: false };
    assert_eq!(a.view().takeover, Some(refused.clone()), "the host itself refuses older copies");
    a.release(at(21_000), Duration::from_secs(1), Some("no copy".into()));
    let released = write(&mut a, 21_000, WriteResult::Stored(502));
    assert_eq!((released.stage, &released.data), (LeaseStage::Released, &None));
    b.on_read(at(20_600), entry(501, taking_over));
    b.on_read(at(21_100), entry(502, released.clone()));
    assert_eq!(b.known(), &KnownData { revision: 500, data: owner("b", 500) });
    // A failed takeover does not make the own knowledge of `a` certain, also not after a restart.
    let mut again = restarted("a", "a3", a.known().clone());
    a.on_read(at(21_200), entry(502, released));
    write(&mut a, 22_000, WriteResult::Stored(503));
    assert_eq!(a.view().takeover, Some(refused));
    again.on_read(at(0), absent(502));
    assert!(matches!(again.next_step(at(0)), LeaseStep::Wait(_)), "the host does not know the last write");
    // Host `b` takes over after the release, and its database becomes the newest one that is known.
    write(&mut b, 21_200, WriteResult::Stored(503));
    let takeover = b.view().takeover.unwrap();
    assert_eq!((takeover.data, takeover.is_newest_here), (owner("b", 500), false));
    b.opened(at(22_000), 1, 500);
    assert_eq!(write(&mut b, 22_000, WriteResult::Stored(504)).data, owner("b", 500));
    assert_eq!(b.known().revision, 504);
}

#[test]
fn a_new_host_erases_no_knowledge() {
    let mut new = machine("c");
    new.on_read(at(0), absent(500));
    new.on_read(at(20_000), absent(500));
    let taking_over = write(&mut new, 20_500, WriteResult::Stored(501));
    let mut b = restarted("b", "b2", KnownData { revision: 500, data: owner("b", 500) });
    b.on_read(at(20_600), entry(501, taking_over.clone()));
    b.next_step(at(20_600));
    // The new host renews its lease during a long restore.
    b.on_announcement(at(25_500), Some(LeaseValue { count: 9, ..taking_over }));
    b.next_step(at(25_500));
    assert_eq!(b.known().data, owner("b", 500));
    b.on_read(at(46_100), absent(502));
    assert_eq!(write(&mut b, 46_100, WriteResult::Stored(503)).data, None);
    assert_eq!(b.view().takeover.unwrap().data, owner("b", 500));
}

#[test]
fn a_watched_host_stays_known() {
    let active = |count, last| LeaseValue { data: owner("a", last), ..value("a", LeaseStage::Active, count) };
    for (is_blind, data) in [(false, owner("a", 8)), (true, None)] {
        let mut b = machine("b");
        b.on_read(at(100), entry(5, active(1, 7)));
        b.on_announcement(at(5_000), Some(active(2, 8)));
        b.next_step(at(5_000));
        if is_blind {
            // Another host may have been active while `b` had no connection.
            b.connected(at(25_400));
        }
        b.on_read(at(25_500), absent(6));
        let now = if is_blind { 46_000 } else { 25_500 };
        b.on_read(at(now), absent(6));
        assert_eq!(write(&mut b, now, WriteResult::Stored(7)).data, data);
        let takeover = b.view().takeover.unwrap();
        assert_eq!((takeover.data, takeover.is_newest_here), (owner("a", 8), false));
    }
}
