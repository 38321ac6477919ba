//! Tests all rules of the lease together, in simulated networks that lose and delay messages.

use super::*;

/// Random numbers for a simulation.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64 (Marsaglia, 2003)
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A simulated NATS server with one key.
#[derive(Default)]
struct SimulatedNats {
    key: Option<(u64, LeaseValue, u64)>,
    last_revision: u64,
    /// How many milliseconds the clock of the server is ahead.
    ahead: u64,
}

impl SimulatedNats {
    fn read(&mut self, now: u64) -> Entry {
        self.expire(now);
        match &self.key {
            Some((revision, value, _)) => entry(*revision, value.clone()),
            None => absent(self.last_revision),
        }
    }

    fn write(&mut self, now: u64, expected: u64, value: &LeaseValue) -> WriteResult {
        self.expire(now);
        if self.key.as_ref().map_or(0, |(revision, ..)| *revision) != expected {
            return WriteResult::Conflict;
        }
        self.last_revision += 1;
        self.key = Some((self.last_revision, value.clone(), now + self.ahead));
        WriteResult::Stored(self.last_revision)
    }

    fn expire(&mut self, now: u64) {
        let oldest = now + self.ahead;
        self.key.take_if(|(.., stored)| *stored + LEASE.as_millis() as u64 <= oldest);
    }
}

/// A read or write of the key that the simulated server has not answered yet.
struct Request {
    step: LeaseStep,
    sent: u64,
    arrives: Option<u64>,
    answers: u64,
    entry: Option<Entry>,
    result: WriteResult,
}

struct Host {
    machine: LeaseMachine,
    paused_until: u64,
    /// The host has no connection until this time.
    offline_until: u64,
    announced: Vec<LeaseValue>,
    request: Option<Request>,
    opens_at: Option<u64>,
    processes: u32,
    /// The content of this host's database. A host that is active changes it, and the number grows.
    database: i64,
}

struct World {
    dice: Dice,
    now: u64,
    nats: SimulatedNats,
    hosts: Vec<Host>,
    /// Writes that arrive after their sender has stopped waiting.
    late: Vec<(u64, u64, LeaseValue)>,
    /// The newest content of a database.
    newest: i64,
    faults: Faults,
    /// For how many milliseconds each host was permitted to send.
    active: Vec<u64>,
    trace: Vec<String>,
}

#[derive(Clone, Copy)]
struct Faults {
    network: bool,
    restarts: bool,
    clock: bool,
    /// All hosts fail together, and start again one after the other. So the key of the lease expires, and a host that was off
    /// for long can be the first.
    outages: bool,
}

const TICK: u64 = 25;

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        let hosts = ["a", "b", "c"].map(|name| Host {
            machine: machine(name),
            paused_until: 0,
            offline_until: 0,
            announced: Vec::new(),
            request: None,
            opens_at: None,
            processes: 1,
            database: 0,
        });
        World {
            dice: Dice(seed * 2 + 1),
            now: 0,
            nats: SimulatedNats::default(),
            hosts: hosts.into(),
            late: Vec::new(),
            newest: 0,
            faults,
            active: vec![0; 3],
            trace: Vec::new(),
        }
    }

    fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now += TICK;
            self.disturb();
            let now = self.now;
            let mut announced = Vec::new();
            self.late.retain(|(arrives, expected, value)| {
                if *arrives <= now {
                    let result = self.nats.write(now, *expected, value);
                    self.trace.push(format!("{now} {} writes late over {expected}: {result:?}", value.process));
                    announced.push(value.clone());
                }
                *arrives > now
            });
            for n in 0..self.hosts.len() {
                announced.extend(self.turn(n));
            }
            for value in announced {
                let online = self.hosts.iter_mut().filter(|host| host.offline_until <= now);
                online.for_each(|host| host.announced.push(value.clone()));
            }
            self.check();
        }
    }

    fn disturb(&mut self) {
        if self.faults.network && self.dice.one_in(400) {
            let n = self.dice.below(3) as usize;
            self.hosts[n].paused_until = self.now + self.dice.below(40_000);
            self.trace.push(format!("{} {n} is paused until {}", self.now, self.hosts[n].paused_until));
        }
        if self.faults.network && self.dice.one_in(800) {
            let n = self.dice.below(3) as usize;
            self.hosts[n].offline_until = self.now + self.dice.below(30_000);
            self.trace.push(format!("{} {n} is offline until {}", self.now, self.hosts[n].offline_until));
        }
        if self.faults.clock && self.dice.one_in(2_000) {
            self.nats.ahead += self.dice.below(60_000);
            self.trace.push(format!("{} the clock of the NATS server is {} ahead", self.now, self.nats.ahead));
        }
        if self.faults.restarts && self.dice.one_in(1_500) {
            let n = self.dice.below(3) as usize;
            self.restart(n, 30_000);
        }
        if self.faults.outages && self.dice.one_in(1_000) {
            (0..3).for_each(|n| self.restart(n, 60_000));
        }
    }

    /// Ends the process of host `n`. The next process of this host starts within `longest` milliseconds.
    fn restart(&mut self, n: usize, longest: u64) {
        let host = &mut self.hosts[n];
        host.processes += 1;
        let name = host.machine.me.host.clone();
        let me = member(&name, &format!("{name}{}", host.processes));
        host.machine = LeaseMachine::new(me, host.machine.known().clone());
        host.machine.set_lease(LEASE);
        (host.request, host.opens_at) = (None, None);
        host.announced.clear();
        host.paused_until = self.now + 500 + self.dice.below(longest);
        host.offline_until = host.paused_until;
        self.trace.push(format!("{} {n} is restarted at {}", self.now, host.paused_until));
    }

    /// Lets host `n` run at the present time: it gets announcements and an answer, and sends its next request. Returns the value
    /// of a write that has reached the server, also if the server refused the write.
    fn turn(&mut self, n: usize) -> Option<LeaseValue> {
        let (now, host) = (self.now, &mut self.hosts[n]);
        if host.paused_until > now {
            return None;
        }
        if host.offline_until > now {
            host.machine.tick(at(now));
            host.request = None;
            host.announced.clear();
            return None;
        }
        if host.offline_until > 0 {
            host.offline_until = 0;
            host.machine.connected(at(now));
        }
        for value in host.announced.drain(..) {
            host.machine.on_announcement(at(now), Some(value));
        }
        let mut announced = None;
        if let Some(request) = &mut host.request {
            if request.arrives.is_some_and(|arrives| arrives <= now) {
                request.arrives = None;
                match &request.step {
                    LeaseStep::Write { expected, value } => {
                        let result = self.nats.write(now, *expected, value);
                        let LeaseValue { process, stage, .. } = value;
                        self.trace.push(format!(
                            "{now} {process} writes {stage:?} over {expected}: {result:?}, sent {}",
                            request.sent
                        ));
                        if request.result != WriteResult::Unknown {
                            request.result = result;
                        }
                        announced = Some(value.clone());
                    }
                    _ => request.entry = Some(self.nats.read(now)),
                }
            }
            if request.answers > now {
                return announced;
            }
        }
        if let Some(request) = host.request.take() {
            match (request.step, request.entry) {
                (LeaseStep::Write { value, .. }, _) => {
                    host.machine.on_write(at(now), at(request.sent), &value, request.result);
                }
                (_, Some(entry)) => {
                    self.trace.push(format!("{now} {n} reads revision {}", entry.revision));
                    host.machine.on_read(at(now), entry);
                }
                (_, None) => host.machine.on_read_failure(at(now)),
            }
        }
        let view = host.machine.view();
        if view.state == LeaseState::Active
            && view.is_held(at(now))
            && (host.opens_at.take().is_some() || self.dice.one_in(20))
        {
            self.newest += 1;
            host.database = self.newest;
            host.machine.note_last_mail(at(now), host.database);
        }
        if view.state == LeaseState::Active && self.faults.network && self.dice.one_in(3_000) {
            host.machine.release(at(now), Duration::from_secs(5), None);
        } else if view.state != LeaseState::TakingOver || !view.is_held(at(now)) {
            host.opens_at = None;
        } else if host.opens_at.is_none() {
            host.opens_at = Some(now + self.dice.below(3_000));
        } else if host.opens_at.is_some_and(|opens| opens <= now) {
            if self.dice.one_in(10) {
                host.machine.release(at(now), Duration::from_secs(2), Some("no copy".into()));
            } else {
                let takeover = view.takeover.unwrap_or_default();
                self.restore(n, &takeover);
                let host = &mut self.hosts[n];
                host.machine.opened(at(now), view.term, host.database);
            }
        }
        let host = &mut self.hosts[n];
        match host.machine.next_step(at(now)) {
            LeaseStep::Wait(_) => {}
            step => self.send(n, step),
        }
        announced
    }

    /// Gives host `n` the database that the takeover wants, and checks that it is the newest one.
    fn restore(&mut self, n: usize, takeover: &Takeover) {
        let certain = self.hosts[n].machine.value(&HolderStage::TakingOver).data;
        let database = |name: &str| self.hosts.iter().find(|host| host.machine.me.host == name).unwrap().database;
        let found = match certain {
            _ if takeover.is_newest_here => self.hosts[n].database,
            Some(owner) => database(&owner.host),
            // The restore command gets no certain name, and finds the newest database by itself.
            None => self.newest,
        };
        let tail = self.trace[self.trace.len().saturating_sub(100)..].join("\n");
        assert_eq!(found, self.newest, "{n} opens an old database at {}: {takeover:?}\n{tail}", self.now);
        self.hosts[n].database = found;
    }

    fn send(&mut self, n: usize, step: LeaseStep) {
        let (now, dice) = (self.now, &mut self.dice);
        let mut request = Request {
            step,
            sent: now,
            arrives: Some(now + TICK),
            answers: now + 2 * TICK,
            entry: None,
            result: WriteResult::Conflict,
        };
        if self.faults.network && dice.one_in(5) {
            // The server does not get the request, or the answer is lost. The sender waits for two seconds.
            request.arrives = dice.one_in(2).then_some(now + TICK);
            request.answers = now + 2_000;
            request.result = WriteResult::Unknown;
            if let (None, LeaseStep::Write { expected, value }) = (request.arrives, &request.step)
                && dice.one_in(2)
            {
                self.late.push((now + 2_000 + dice.below(30_000), *expected, value.clone()));
            }
        } else if self.faults.network && dice.one_in(3) {
            request.answers = now + 2 * TICK + dice.below(1_900);
            request.arrives = Some(now + TICK + dice.below(request.answers - now - TICK));
        }
        self.hosts[n].request = Some(request);
    }

    /// Checks that at most one host may send now, and adds one `TICK` to that host's time in `active`.
    fn check(&mut self) {
        let sends: Vec<_> = (0..3).filter(|n| self.hosts[*n].machine.sends_until() > at(self.now)).collect();
        let tail = self.trace.len().saturating_sub(60);
        assert!(sends.len() < 2, "hosts {sends:?} send at {}:\n{}", self.now, self.trace[tail..].join("\n"));
        for n in sends {
            self.active[n] += TICK;
        }
    }
}

#[test]
fn simulated_hosts_never_send_together() {
    let none = Faults { network: false, restarts: false, clock: false, outages: false };
    for (faults, seeds, least) in [
        (Faults { network: true, ..none }, 20, 60_000),
        (Faults { clock: true, restarts: true, ..none }, 20, 60_000),
        (Faults { network: true, restarts: true, ..none }, 20, 60_000),
        (Faults { restarts: true, ..none }, 20, 60_000),
        (Faults { outages: true, ..none }, 60, 30_000),
    ] {
        let mut total = 0;
        for seed in 1..=seeds {
            let mut world = World::new(seed, faults);
            world.run(300_000);
            total += world.active.iter().sum::<u64>();
            // Without faults, one host is active again after the lease, the margin, and the time to open the database.
            (world.faults, world.late) = (none, Vec::new());
            let before = world.active.iter().sum::<u64>();
            world.run(180_000);
            let after = world.active.iter().sum::<u64>();
            assert!(after - before > 40_000, "seed {seed}: active for {} ms of 180 s", after - before);
        }
        assert!(total > least * seeds, "the hosts were active for {total} ms in {seeds} runs of 300 s");
    }
}
