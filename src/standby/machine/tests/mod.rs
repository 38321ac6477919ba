//! Tests of single rules of the [`LeaseMachine`].

mod newest_database;
mod simulation;

use super::*;
use crate::standby::lease_value::DataOwner;
use crate::standby::view::LeaseState;

const LEASE: Duration = Duration::from_secs(20);

fn at(millis: u64) -> BootInstant {
    // The time 0, the start of the machine, means "never". So the times of the tests begin later.
    BootInstant::from_millis(1_000_000 + millis)
}

fn member(host: &str, process: &str) -> Member {
    Member {
        host: host.into(),
        process: process.into(),
        home: format!("home-{host}"),
        version: "1".into(),
        schema: 1,
        configuration: ConfigurationHashes::default(),
    }
}

fn machine(host: &str) -> LeaseMachine {
    let mut machine = LeaseMachine::new(member(host, &format!("{host}1")), KnownData::default());
    machine.set_lease(LEASE);
    machine.connected(at(0));
    machine
}

/// Returns the host `host` as the owner of the newest database.
fn owner(host: &str, last_mail_id: i64) -> Option<DataOwner> {
    Some(DataOwner { host: host.into(), home: format!("home-{host}"), last_mail_id })
}

/// Returns the machine of the process `process` of the host `host`, which has read `known` from its standby file.
fn restarted(host: &str, process: &str, known: KnownData) -> LeaseMachine {
    let mut machine = LeaseMachine::new(member(host, process), known);
    machine.set_lease(LEASE);
    machine.connected(at(0));
    machine
}

fn absent(last_revision: u64) -> Entry {
    Entry { revision: 0, content: EntryContent::Absent { last_revision: Some(last_revision) } }
}

/// Returns the lease value that the host `host` writes in the stage `stage`, as its write number `count`.
fn value(host: &str, stage: LeaseStage, count: u64) -> LeaseValue {
    let machine = machine(host);
    LeaseValue { stage, count, ..machine.value(&HolderStage::Active) }
}

fn entry(revision: u64, value: LeaseValue) -> Entry {
    Entry { revision, content: EntryContent::Value(value) }
}

/// Expects a write as the machine's next step at `now`, and answers the write with `result`. Returns the written value.
fn write(machine: &mut LeaseMachine, now: u64, result: WriteResult) -> LeaseValue {
    match machine.next_step(at(now)) {
        LeaseStep::Write { value, .. } => {
            machine.on_write(at(now), at(now), &value, result);
            value
        }
        other => panic!("a write is expected at {now}, not {other:?}"),
    }
}

/// Returns a machine that took the lease at the time 0 and is active.
fn holder() -> LeaseMachine {
    let mut machine = machine("a");
    machine.on_read(at(0), absent(0));
    write(&mut machine, 0, WriteResult::Stored(1));
    machine.opened(at(0), machine.term, 7);
    write(&mut machine, 0, WriteResult::Stored(2));
    machine
}

#[test]
fn an_unused_bucket_is_taken_at_once() {
    let mut machine = machine("a");
    assert_eq!(machine.next_step(at(0)), LeaseStep::Read);
    machine.on_read(at(0), absent(0));
    let LeaseStep::Write { expected: 0, value } = machine.next_step(at(0)) else { panic!("no write") };
    assert_eq!((value.host.as_str(), value.stage, value.lease_ms), ("a", LeaseStage::TakingOver, 20_000));
    machine.on_write(at(5), at(0), &value, WriteResult::Stored(1));
    let view = machine.view();
    assert_eq!((view.state, view.ends), (LeaseState::TakingOver, Some(at(20_000))));
    assert_eq!(view.takeover, Some(Takeover { data: None, is_newest_here: false, never_held: true }));
    assert!(machine.sends_until() < at(0), "nothing is sent before the database is open");
}

#[test]
fn the_holder_counts_from_the_send_time() {
    let mut machine = holder();
    assert_eq!(machine.sends_until(), at(13_333).plus(Duration::from_nanos(333_333)));
    assert_eq!(machine.next_step(at(1)), LeaseStep::Wait(at(5_000)));
    let LeaseStep::Write { expected: 2, value } = machine.next_step(at(5_000)) else { panic!("no renewal") };
    // The server answers this renewal after three seconds. The renewed lease begins at the time of the request.
    machine.on_write(at(8_000), at(5_000), &value, WriteResult::Stored(3));
    assert_eq!(machine.view().ends, Some(at(25_000)));
    assert_eq!(machine.next_step(at(8_000)), LeaseStep::Wait(at(10_000)));
}

#[test]
fn a_new_mail_is_written_after_its_copy() {
    let mut machine = holder();
    machine.note_last_mail(at(300), 7);
    assert_eq!(machine.next_step(at(300)), LeaseStep::Wait(at(5_000)), "nothing has changed");
    machine.note_last_mail(at(300), 8);
    machine.note_last_mail(at(900), 9);
    assert_eq!(machine.next_step(at(900)), LeaseStep::Wait(at(2_300)), "a copy may lack the mail until then");
    assert_eq!(write(&mut machine, 2_300, WriteResult::Stored(3)).data, owner("a", 8));
    assert_eq!(machine.next_step(at(2_300)), LeaseStep::Wait(at(4_300)));
    assert_eq!(write(&mut machine, 4_300, WriteResult::Stored(4)).data, owner("a", 9));
    assert_eq!(machine.next_step(at(4_300)), LeaseStep::Wait(at(9_300)));
}

#[test]
fn a_release_names_the_last_mail() {
    let mut machine = holder();
    machine.note_last_mail(at(300), 8);
    machine.release(at(400), Duration::ZERO, None);
    let released = write(&mut machine, 400, WriteResult::Stored(3));
    assert_eq!((released.stage, released.data), (LeaseStage::Released, owner("a", 8)));
}

#[test]
fn a_paused_holder_has_lost_the_lease() {
    let mut machine = holder();
    assert!(machine.sends_until() < at(30_000));
    machine.tick(at(30_000));
    assert_eq!((machine.view().state, machine.view().holder), (LeaseState::Standby, None));
    assert_eq!(machine.next_step(at(30_000)), LeaseStep::Read);
}

#[test]
fn a_lease_taken_again_is_another_term() {
    let mut machine = holder();
    assert_eq!(machine.view().term, 1);
    assert_eq!(machine.next_step(at(30_000)), LeaseStep::Read);
    machine.on_read(at(30_000), entry(4, value("b", LeaseStage::Released, 2)));
    write(&mut machine, 30_000, WriteResult::Stored(5));
    assert!(machine.view().is_held_since(2, at(30_000)) && !machine.view().is_held_since(1, at(30_000)));
    machine.opened(at(30_000), 1, 7);
    assert_eq!(machine.view().state, LeaseState::TakingOver, "the database was opened for the first term");
    machine.opened(at(30_000), 2, 7);
    write(&mut machine, 30_000, WriteResult::Stored(6));
    assert_eq!(machine.view().state, LeaseState::Active);
}

#[test]
fn an_active_host_is_known_as_the_newest() {
    let mut machine = machine("a");
    machine.on_read(at(0), entry(1, LeaseValue { data: owner("b", 5), ..value("b", LeaseStage::Released, 1) }));
    write(&mut machine, 0, WriteResult::Stored(2));
    machine.opened(at(0), machine.term, 5);
    // The server does not answer. If it has not stored the value, another host counts the database of b as the newest.
    assert_eq!(write(&mut machine, 0, WriteResult::Unknown).data, owner("a", 5));
    assert_eq!((machine.view().state, machine.sends_until()), (LeaseState::TakingOver, BootInstant::default()));
    machine.on_read(at(1_000), entry(2, LeaseValue { data: owner("b", 5), ..value("a", LeaseStage::TakingOver, 1) }));
    assert_eq!(write(&mut machine, 1_000, WriteResult::Stored(3)).data, owner("a", 5));
    assert_eq!((machine.view().state, machine.view().takeovers), (LeaseState::Active, 1));
    assert!(machine.sends_until() > at(1_000));
}

#[test]
fn an_uncertain_renewal_does_not_extend_the_lease() {
    let mut machine = holder();
    let lost = write(&mut machine, 5_000, WriteResult::Unknown);
    assert_eq!(machine.view().ends, Some(at(20_000)));
    assert_eq!(machine.next_step(at(5_000)), LeaseStep::Wait(at(5_500)), "no busy loop");
    assert_eq!(machine.next_step(at(5_500)), LeaseStep::Read);
    machine.on_read(at(5_500), entry(3, lost));
    let LeaseStep::Write { expected: 3, .. } = machine.next_step(at(5_500)) else { panic!("no renewal") };
    assert_eq!(machine.view().ends, Some(at(20_000)));
}

#[test]
fn a_forgotten_key_is_written_again() {
    let mut machine = holder();
    write(&mut machine, 5_000, WriteResult::Conflict);
    assert_eq!(machine.next_step(at(5_050)), LeaseStep::Read);
    machine.on_read(at(5_050), absent(9));
    let LeaseStep::Write { expected: 0, .. } = machine.next_step(at(5_050)) else { panic!("no write") };
    assert_eq!(machine.view().state, LeaseState::Active);
}

#[test]
fn a_late_answer_begins_a_new_term() {
    let mut machine = holder();
    let LeaseStep::Write { value, .. } = machine.next_step(at(19_000)) else { panic!("no renewal") };
    // The loops end at 20 seconds. Their host has the newest database, so a restore would replace it by an older one.
    machine.on_write(at(20_500), at(19_000), &value, WriteResult::Stored(3));
    let view = machine.view();
    assert_eq!((view.state, view.term, view.ends), (LeaseState::TakingOver, 2, Some(at(39_000))));
    let data = Some(DataOwner { host: "a".into(), home: "home-a".into(), last_mail_id: 7 });
    assert_eq!(view.takeover, Some(Takeover { data, is_newest_here: true, never_held: false }));
    // A release that is answered late stays a release.
    let mut machine = holder();
    machine.release(at(19_000), Duration::from_secs(60), None);
    let LeaseStep::Write { value, .. } = machine.next_step(at(19_000)) else { panic!("no release") };
    machine.on_write(at(20_500), at(19_000), &value, WriteResult::Stored(3));
    assert!(!machine.is_holder());
}

#[test]
fn a_process_that_becomes_active_is_noted() {
    let active = |count| entry(5, value("a", LeaseStage::Active, count));
    // The process was active at the first read, and becomes active again later.
    let mut machine = machine("b");
    for read in [active(1), entry(6, value("a", LeaseStage::Released, 2)), absent(6), active(3)] {
        machine.on_read(at(0), read);
        assert!(!machine.view().another_became_active);
    }
    machine.on_read(at(0), entry(7, LeaseValue { process: "a2".into(), ..value("a", LeaseStage::TakingOver, 1) }));
    assert!(!machine.view().another_became_active);
    machine.on_read(at(0), entry(8, LeaseValue { process: "a2".into(), ..value("a", LeaseStage::Active, 2) }));
    machine.on_read(at(0), absent(8));
    assert!(machine.view().another_became_active);
    // No process was active at the first read.
    let mut machine = self::machine("b");
    machine.on_read(at(0), absent(4));
    machine.on_read(at(0), active(1));
    assert!(machine.view().another_became_active);
    // The own process does not count.
    assert!(!holder().view().another_became_active);
}

#[test]
fn another_holder_ends_the_lease() {
    let mut machine = holder();
    machine.on_announcement(at(3_000), Some(value("b", LeaseStage::TakingOver, 1)));
    assert_eq!(machine.next_step(at(3_000)), LeaseStep::Read);
    machine.on_read(at(3_000), entry(3, value("b", LeaseStage::TakingOver, 1)));
    let view = machine.view();
    assert_eq!((view.state, view.holder.unwrap().host.as_str()), (LeaseState::Standby, "b"));
    assert!(machine.sends_until() < at(0));
    // The holder ignores announcements of the writes that it sent.
    let mut machine = holder();
    machine.on_announcement(at(3_000), Some(value("a", LeaseStage::Active, 9)));
    assert_eq!(machine.next_step(at(3_000)), LeaseStep::Wait(at(5_000)));
}

#[test]
fn a_standby_takes_over_after_the_lease() {
    let mut machine = machine("b");
    machine.on_read(at(0), entry(5, value("a", LeaseStage::Active, 1)));
    assert_eq!(machine.next_step(at(0)), LeaseStep::Wait(at(20_000)));
    // The standby learns of the renewal from the announcement, and does not read the key.
    machine.on_announcement(at(5_000), Some(value("a", LeaseStage::Active, 2)));
    assert_eq!(machine.next_step(at(5_001)), LeaseStep::Wait(at(25_000)));
    // The NATS server has removed the key early, because its clock was set.
    assert_eq!(machine.next_step(at(25_000)), LeaseStep::Read);
    machine.on_read(at(25_000), absent(6));
    assert_eq!(machine.next_step(at(25_000)), LeaseStep::Wait(at(25_500)));
    let LeaseStep::Write { expected: 0, .. } = machine.next_step(at(25_500)) else { panic!("no takeover") };
}

#[test]
fn a_stored_announcement_keeps_its_time() {
    let mut machine = machine("b");
    machine.on_read(at(0), entry(5, value("a", LeaseStage::Active, 1)));
    machine.on_announcement(at(5_000), Some(value("a", LeaseStage::Active, 2)));
    machine.on_read(at(25_000), entry(6, value("a", LeaseStage::Active, 2)));
    // The clock of the NATS server was set back, so the key has not expired. The standby takes the lease anyway, because the
    // standby knows the revision of the old value.
    let LeaseStep::Write { expected: 6, .. } = machine.next_step(at(25_500)) else { panic!("no takeover") };
    // After a later write of the holder, the standby waits for the whole lease again.
    machine.on_read(at(25_500), entry(7, value("a", LeaseStage::Active, 3)));
    assert_eq!(machine.next_step(at(25_500)), LeaseStep::Wait(at(45_500)));
}

#[test]
fn a_longer_lease_of_the_holder_counts() {
    let mut machine = machine("b");
    machine.on_read(at(0), entry(5, LeaseValue { lease_ms: 40_000, ..value("a", LeaseStage::Active, 1) }));
    assert_eq!(machine.view().ends, Some(at(40_500)));
    machine.on_read(at(0), entry(6, LeaseValue { lease_ms: u64::MAX, ..value("a", LeaseStage::Active, 2) }));
    assert_eq!(machine.view().ends, Some(at(600_500)), "but not without a limit");
}

#[test]
fn a_changed_ttl_keeps_the_announced_lease() {
    // The TTL of the bucket was edited from 10 minutes to 20 seconds. The holder was not restarted.
    let mut standby = machine("b");
    standby.on_read(at(0), entry(5, LeaseValue { lease_ms: 600_000, ..value("a", LeaseStage::Active, 1) }));
    assert_eq!(standby.view().ends, Some(at(600_500)));
    // The TTL was edited from 20 seconds to a minute, and the holder has connected again.
    let mut holder = holder();
    holder.set_lease(LEASE * 3);
    holder.connected(at(1_000));
    assert_eq!(holder.view().ends, Some(at(20_000)), "the other hosts expect the lease of the last write");
    assert_eq!(holder.sends_until(), at(13_333).plus(Duration::from_nanos(333_333)));
    holder.on_read(at(1_000), entry(2, value("a", LeaseStage::Active, 2)));
    write(&mut holder, 1_000, WriteResult::Stored(3));
    assert_eq!(holder.view().ends, Some(at(61_000)));
}

#[test]
fn unknown_contents_count_as_a_holder() {
    let mut machine = machine("b");
    machine.on_read(at(0), Entry { revision: 5, content: EntryContent::Unreadable });
    assert_eq!(machine.next_step(at(0)), LeaseStep::Wait(at(20_000)));
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let mut machine = machine("b");
    machine.on_read(at(0), entry(5, value("a", LeaseStage::Active, 1)));
    let data = Some(DataOwner { host: "a".into(), home: "home-a".into(), last_mail_id: 12 });
    let released = LeaseValue { data: data.clone(), ..value("a", LeaseStage::Released, 2) };
    machine.on_announcement(at(100), Some(released.clone()));
    assert_eq!(machine.next_step(at(100)), LeaseStep::Read);
    machine.on_read(at(101), entry(6, released));
    write(&mut machine, 101, WriteResult::Stored(7));
    assert_eq!(machine.view().takeover, Some(Takeover { data, is_newest_here: false, never_held: false }));
}

#[test]
fn a_release_is_read_until_it_is_stored() {
    let active = value("a", LeaseStage::Active, 1);
    let mut machine = machine("b");
    machine.on_read(at(0), entry(5, active.clone()));
    let released = value("a", LeaseStage::Released, 2);
    machine.on_announcement(at(100), Some(released.clone()));
    // The leader of a NATS cluster answers the read before it has stored the release.
    machine.on_read(at(101), entry(5, active.clone()));
    assert_eq!(machine.next_step(at(101)), LeaseStep::Wait(at(151)), "no busy loop");
    assert_eq!(machine.next_step(at(151)), LeaseStep::Read);
    machine.on_read(at(152), entry(6, released.clone()));
    write(&mut machine, 152, WriteResult::Stored(7));
    // A write that the server has refused never appears.
    let mut machine = self::machine("b");
    machine.on_read(at(0), entry(5, active.clone()));
    machine.on_announcement(at(100), Some(released));
    machine.on_read(at(2_050), entry(5, active.clone()));
    assert_eq!(machine.next_step(at(2_100)), LeaseStep::Read);
    machine.on_read(at(2_100), entry(5, active));
    assert_eq!(machine.next_step(at(2_100)), LeaseStep::Wait(at(20_500)));
}

#[test]
fn a_request_to_release_stops_sending() {
    let mut machine = holder();
    let request = LeaseValue { release: true, ..value("a", LeaseStage::Active, 2) };
    machine.on_announcement(at(1_000), Some(request.clone()));
    machine.on_read(at(1_000), entry(3, request));
    assert!(machine.view().is_asked_to_release && machine.sends_until() < at(0));
    // The holder renews the lease until its loops have ended.
    assert!(!write(&mut machine, 1_000, WriteResult::Stored(4)).release);
    machine.note_last_mail(at(1_500), 9);
    machine.release(at(1_500), Duration::from_secs(60), None);
    let released = write(&mut machine, 1_500, WriteResult::Stored(5));
    assert_eq!((released.stage, released.data.map(|data| data.last_mail_id)), (LeaseStage::Released, Some(9)));
    assert!(!machine.is_holder());
    machine.on_read(at(1_600), entry(5, value("a", LeaseStage::Released, 5)));
    assert_eq!(machine.next_step(at(1_600)), LeaseStep::Wait(at(21_600)), "it only looks");
    for (now, until) in [(21_600, 41_600), (41_600, 61_500)] {
        assert_eq!(machine.next_step(at(now)), LeaseStep::Read);
        machine.on_read(at(now), absent(5));
        assert_eq!(machine.next_step(at(now)), LeaseStep::Wait(at(until)));
    }
    let LeaseStep::Write { .. } = machine.next_step(at(61_500)) else { panic!("no takeover") };
}

#[test]
fn a_deleted_key_is_a_request_to_release() {
    let mut holding = holder();
    holding.on_read(at(1_000), Entry { revision: 3, content: EntryContent::Deleted });
    assert!(holding.view().is_asked_to_release);
    let LeaseStep::Write { expected: 3, .. } = holding.next_step(at(1_000)) else {
        panic!("the key stays until it has stopped")
    };
    let mut standby = machine("b");
    standby.on_read(at(1_000), Entry { revision: 3, content: EntryContent::Deleted });
    assert_eq!(standby.next_step(at(1_000)), LeaseStep::Wait(at(21_000)), "the holder may not know it yet");
}

#[test]
fn a_killed_daemon_takes_its_own_lease_again() {
    let known = KnownData { revision: 5, data: None };
    let mut machine = LeaseMachine::new(member("a", "a2"), known);
    machine.set_lease(LEASE);
    machine.connected(at(0));
    let data = Some(DataOwner { host: "a".into(), home: "home-a".into(), last_mail_id: 12 });
    let before = LeaseValue { data, ..value("a", LeaseStage::Active, 1) };
    machine.on_read(at(0), entry(5, before.clone()));
    let LeaseStep::Wait(until) = machine.next_step(at(0)) else { panic!("it must look for a renewal first") };
    assert_eq!(until, at(6_666).plus(Duration::from_nanos(666_666)));
    let mut lonely = machine;
    write(&mut lonely, 6_667, WriteResult::Stored(6));
    assert!(lonely.view().takeover.unwrap().is_newest_here, "no restore is needed");
    // The daemon of another machine may run from a copy of the disk. That daemon renews the lease, so this host waits.
    let mut twin = LeaseMachine::new(member("a", "a2"), KnownData::default());
    twin.set_lease(LEASE);
    twin.connected(at(0));
    twin.on_read(at(0), entry(5, before.clone()));
    twin.on_announcement(at(5_000), Some(LeaseValue { count: 2, ..before }));
    assert!(matches!(twin.next_step(at(6_667)), LeaseStep::Wait(_)));
    // A process on the same host with another state folder waits for the end of the lease.
    let other = Member { home: "other".into(), ..member("a", "a2") };
    let mut other = LeaseMachine::new(other, KnownData::default());
    other.set_lease(LEASE);
    other.connected(at(0));
    other.on_read(at(0), entry(5, value("a", LeaseStage::Active, 1)));
    assert_eq!(other.next_step(at(0)), LeaseStep::Wait(at(20_000)));
}

/// Returns a machine that was active and has released the lease, and leaves it to others for a minute.
fn released(failure: Option<&str>) -> LeaseMachine {
    let mut machine = holder();
    machine.release(at(100), Duration::from_secs(60), failure.map(str::to_owned));
    write(&mut machine, 100, WriteResult::Stored(3));
    assert_eq!(machine.next_step(at(100)), LeaseStep::Read);
    machine
}

#[test]
fn an_active_host_ends_the_pause() {
    let mut machine = released(Some("no copy"));
    // This host could not take over. It waits on, although another host could not take over either.
    machine.on_read(at(200), entry(4, value("b", LeaseStage::TakingOver, 1)));
    machine.on_read(at(300), entry(5, value("b", LeaseStage::Released, 2)));
    assert!(matches!(machine.next_step(at(300)), LeaseStep::Wait(_)));
    machine.on_read(at(400), entry(6, value("b", LeaseStage::Active, 3)));
    machine.on_read(at(500), entry(7, value("b", LeaseStage::Released, 4)));
    let LeaseStep::Write { expected: 7, .. } = machine.next_step(at(500)) else { panic!("no takeover") };
}

#[test]
fn a_failed_successor_ends_the_pause() {
    let mut machine = released(None);
    machine.on_read(at(200), entry(3, value("a", LeaseStage::Released, 3)));
    assert!(matches!(machine.next_step(at(200)), LeaseStep::Wait(_)), "the lease is for others");
    machine.on_read(at(300), entry(4, value("b", LeaseStage::TakingOver, 1)));
    assert!(matches!(machine.next_step(at(300)), LeaseStep::Wait(_)));
    machine.on_read(at(400), entry(5, value("b", LeaseStage::Released, 2)));
    let LeaseStep::Write { expected: 5, .. } = machine.next_step(at(400)) else { panic!("no takeover") };
    // A process that ends never takes the lease again.
    let mut ending = holder();
    ending.release(at(100), Duration::MAX, None);
    write(&mut ending, 100, WriteResult::Stored(3));
    ending.on_read(at(200), entry(5, value("b", LeaseStage::Released, 2)));
    assert!(matches!(ending.next_step(at(200)), LeaseStep::Wait(_)));
}
