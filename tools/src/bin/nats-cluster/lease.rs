//! Two hosts share a database by a lease in the cluster. One server is killed, and the active host stays active. A second server
//! is killed: without a majority, no host may post. When both servers run again, one host becomes active. Each payment must be
//! accepted once.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::callback::{Callback, HandlerReply};
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, binary, forward};
use testkit::dovecot::Dovecot;
use testkit::nats_cluster::NatsCluster;
use tokio::runtime::Runtime;

use crate::load::{EndOnDrop, Load};

const BUCKET: &str = "leases";
/// The length of the lease that docs/several-machines.md recommends.
const LEASE: Duration = Duration::from_secs(20);
/// How many payments must arrive before the next failure. The second number of payments takes longer than a lease to arrive.
const WORKING: usize = 50;
const LONGER_THAN_A_LEASE: usize = 450;
/// The figure to reach: how long after the servers started again the first payment is posted.
const RECOVERY: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(150);

/// A host, and its handler, which counts the requests.
struct Host {
    home: Home,
    callback: Callback,
    /// When the handler was called.
    posts: Arc<Mutex<Vec<Instant>>>,
}

impl Host {
    fn new() -> Host {
        let posts = Arc::<Mutex<Vec<Instant>>>::default();
        let keep = posts.clone();
        let callback = Callback::replying(move |_, _| {
            keep.lock().unwrap().push(Instant::now());
            HandlerReply::Accept
        });
        Host { home: Home::new(""), callback, posts }
    }

    /// Writes the configuration. Before a takeover, the host copies the database of `other`, if `other` was the last active host.
    fn configure(&self, name: &str, (other, from): (&str, &Host), imap: u16, servers: &[String]) {
        let (folder, to) = (from.home.folder.path().display(), self.home.database());
        let script = format!(
            "[ \"$RESMIC_MAILHOOK_LAST_HOST\" = {other} ] || exit 0; rm -f {to}*; exec {} --config {folder}/config.toml backup {to}",
            binary().display(),
            to = to.display(),
        );
        let standby = format!(
            "[standby]\nnats = {servers:?}\nbucket = \"{BUCKET}\"\nname = \"shop\"\nhost = \"{name}\"\n\
             restore = {{ command = [\"sh\", \"-c\", {}] }}\n",
            toml::Value::from(script)
        );
        let account = account(imap, "dedicated = true\nmailboxes = [\"INBOX\"]");
        let config = format!("{account}{ACCEPT_UNSIGNED}{}{standby}", forward(&self.callback.url(), ""));
        std::fs::write(self.home.folder.path().join("config.toml"), config).unwrap();
    }

    fn count(&self) -> usize {
        self.posts.lock().unwrap().len()
    }

    /// Whether the daemon stands by, and `status` is red.
    fn waits(&self) -> bool {
        let output = self.home.run(&["status", "--json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        found["role"]["state"] == "standby" && found["ok"] == false
    }
}

/// Makes the failures. Returns false if the recovery took too long.
pub(crate) fn run() -> bool {
    let (runtime, mut cluster) = (Runtime::new().unwrap(), NatsCluster::start());
    runtime.block_on(cluster.create_bucket(BUCKET, LEASE));
    let (load, hosts) = (Load::new(Dovecot::start()), [Host::new(), Host::new()]);
    let (imap, servers) = (load.dovecot.imap, cluster.urls());
    hosts[0].configure("a", ("b", &hosts[1]), imap, &servers);
    hosts[1].configure("b", ("a", &hosts[0]), imap, &servers);
    let a = hosts[0].home.start();
    a.says("this host is active", PATIENCE);
    let b = hosts[1].home.start();
    b.says("standing by holder=\"a\"", PATIENCE);
    let recovery = std::thread::scope(|scope| {
        let _end = EndOnDrop(&load);
        scope.spawn(|| load.deliver());
        Trial { load: &load, hosts: &hosts, daemons: [&a, &b], cluster: &mut cluster, runtime: &runtime }.run()
    });
    let sent = load.sent.load(Ordering::SeqCst);
    until("all payments at the handlers", || accepted(&hosts).len() == sent);
    assert_eq!((a.end(), b.end()), (Some(0), Some(0)));
    let posts = accepted(&hosts);
    let repeated = posts.values().filter(|posted| **posted > 1).count();
    println!(
        "lease: {sent} payments, {} posted by a and {} by b; lost 0, posted twice {repeated}",
        hosts[0].count(),
        hosts[1].count()
    );
    assert_eq!((posts.len(), repeated), (sent, 0), "payments, and those that were posted twice");
    if recovery > RECOVERY {
        println!("that is too long");
    }
    recovery <= RECOVERY
}

/// How often each event was accepted by the handlers of both hosts.
fn accepted(hosts: &[Host; 2]) -> BTreeMap<String, usize> {
    let mut accepted = BTreeMap::new();
    for (event, posts) in hosts.iter().flat_map(|host| host.callback.posts()) {
        *accepted.entry(event).or_default() += posts.accepted;
    }
    accepted
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Trial<'a> {
    load: &'a Load,
    hosts: &'a [Host; 2],
    daemons: [&'a Daemon; 2],
    cluster: &'a mut NatsCluster,
    runtime: &'a Runtime,
}

impl Trial<'_> {
    /// Makes the failures, and returns the time from the start of the servers to the next payment.
    fn run(&mut self) -> Duration {
        let [a, b] = self.daemons;
        self.until_posted(WORKING);
        let first = self.kill_leader();
        let killed = Instant::now();
        self.until_posted(LONGER_THAN_A_LEASE);
        assert!(killed.elapsed() > LEASE && self.hosts[1].count() == 0, "{:?}", killed.elapsed());
        assert!(!a.log().contains("has lost the lease"), "{}", a.log());
        println!(
            "lease: one server killed: {:.1} s without a payment at the handler",
            self.longest_gap(killed).as_secs_f64()
        );
        let second = self.kill_leader();
        let killed = Instant::now();
        a.says("this host has lost the lease", PATIENCE);
        let lost = killed.elapsed();
        assert!(lost <= LEASE + Duration::from_secs(1), "the lease was lost after {lost:?}");
        until("both hosts wait", || self.hosts.iter().all(Host::waits));
        self.load.dovecot.until_logged_in(&[], PATIENCE);
        let posts = self.posts();
        // In the last third of its lease, the active host stored mails and did not post them.
        let stored: usize = self.hosts[0].home.ask("SELECT count(*) FROM events").parse().unwrap();
        assert!(stored > posts.len(), "{stored} events, {} posted", posts.len());
        let last = posts.last().unwrap().saturating_duration_since(killed);
        println!(
            "lease: two servers killed: the last payment was posted after {:.1} s, the lease was lost after {:.1} s; {} \
             payments were only stored meanwhile",
            last.as_secs_f64(),
            lost.as_secs_f64(),
            stored - posts.len()
        );
        // For longer than a lease, mails arrive and no host posts.
        let arrived = self.load.sent.load(Ordering::SeqCst);
        until("more mails", || self.load.sent.load(Ordering::SeqCst) > arrived + LONGER_THAN_A_LEASE);
        assert_eq!(self.posts().len(), posts.len(), "payments without a majority");
        assert!(self.hosts.iter().all(Host::waits));
        let waiting = self.load.sent.load(Ordering::SeqCst) - posts.len();
        self.cluster.restart(first);
        self.cluster.restart(second);
        let started = Instant::now();
        until("an active host", || [a, b].iter().map(|daemon| active(daemon)).sum::<usize>() == 2);
        let is_active = started.elapsed();
        until("a payment", || self.posts().len() > posts.len());
        let recovery = started.elapsed();
        until("the waiting payments", || self.posts().len() >= posts.len() + waiting);
        println!(
            "lease: the servers run again: a host is active after {:.1} s, posts after {:.1} s (at most {} s), and has posted {waiting} \
             waiting payments after {:.1} s",
            is_active.as_secs_f64(),
            recovery.as_secs_f64(),
            RECOVERY.as_secs(),
            started.elapsed().as_secs_f64()
        );
        self.until_posted(WORKING);
        recovery
    }

    /// Kills the server that is the leader of the bucket.
    fn kill_leader(&mut self) -> usize {
        let leader = self.runtime.block_on(self.cluster.leader(&format!("KV_{BUCKET}")));
        self.cluster.kill(leader);
        leader
    }

    /// The times at which the handlers were called, in order.
    fn posts(&self) -> Vec<Instant> {
        let mut posts: Vec<_> = self.hosts.iter().flat_map(|host| host.posts.lock().unwrap().clone()).collect();
        posts.sort();
        posts
    }

    /// Waits until all payments that have arrived so far are posted, and this number of later ones.
    fn until_posted(&self, more: usize) {
        let wanted = self.load.sent.load(Ordering::SeqCst) + more;
        until("payments at the handlers", || self.posts().len() >= wanted);
    }

    /// The longest time without a payment after a failure.
    fn longest_gap(&self, after: Instant) -> Duration {
        let posts = self.posts();
        posts.windows(2).filter(|pair| pair[1] > after).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

/// How often a host became active.
fn active(daemon: &Daemon) -> usize {
    daemon.log().matches("this host is active").count()
}
