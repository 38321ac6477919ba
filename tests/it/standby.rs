//! Several daemons that share one database: a real NATS server, Dovecot, and two daemons.

mod commands;
mod litestream;
mod login;
mod outage;
mod permissions;
mod restore;
mod takeover;

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::callback::Callback;
use testkit::daemon::{ACCEPT_UNSIGNED, Daemon, Home, account, binary, forward};
use testkit::dovecot::Dovecot;
use testkit::nats_server::NatsServer;
use testkit::payments::{payment, transaction_hash};

/// Longer than a lease of these tests, the longest pause between two takeovers (60 s), and an IMAP login on a busy machine.
const SOON: Duration = Duration::from_secs(150);
const ADDRESS: &str = "payments@shop.example";
const BUCKET: &str = "leases";

/// Two hosts, `a` and `b`, with a mail server, a handler and a NATS server.
struct Hosts {
    nats: NatsServer,
    /// The keys of `[standby]` for the connection to the NATS server.
    nats_keys: String,
    dovecot: Dovecot,
    callback: Callback,
    a: Home,
    b: Home,
}

impl Hosts {
    /// Hosts with a lease of this length. Before a takeover, each host copies the database of the other host.
    fn start(lease: Duration) -> Hosts {
        let nats = nats_with_bucket(lease);
        let nats_keys = connection_keys(&nats);
        Hosts::start_with(nats, nats_keys)
    }

    /// Does the same as [`Hosts::start`] with this NATS server. `nats_keys` has the keys of `[standby]` for the connection to it.
    fn start_with(nats: NatsServer, nats_keys: String) -> Hosts {
        let [a, b] = ["a", "b"].map(|_| Home::new(""));
        let hosts = Hosts { nats, nats_keys, dovecot: Dovecot::start(), callback: Callback::start(), a, b };
        hosts.configure(&hosts.a, "a", &restore(&backup_of(&hosts.b, &hosts.a)), "");
        hosts.configure(&hosts.b, "b", &restore(&backup_of(&hosts.a, &hosts.b)), "");
        hosts
    }

    /// Writes the configuration of a host, with more keys of `[standby]` and more tables.
    fn configure(&self, home: &Home, host: &str, keys: &str, tables: &str) {
        let account = account(self.dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nidle_renew = \"2s\"");
        let forward = forward(&self.callback.url(), "");
        let standby = standby_table(&self.nats_keys, host, keys);
        write(home, &format!("{account}{ACCEPT_UNSIGNED}{forward}{standby}{tables}"));
    }

    fn deliver(&self, numbers: std::ops::RangeInclusive<usize>) {
        let mails: Vec<_> = numbers.map(payment).collect();
        self.dovecot.deliver_all(ADDRESS, mails.iter().map(Vec::as_slice));
    }

    /// Waits until the handler has accepted the payments 1 to `count`, and checks that it knows each by one key and one body.
    fn until_accepted(&self, count: usize) {
        until(&format!("{count} payments at the handler"), || {
            let posts = self.callback.posts();
            posts.len() >= count && posts.values().all(|posts| posts.accepted > 0)
        });
        let posts = self.callback.posts();
        assert_eq!(posts.len(), count, "the handler knows each payment by one key");
        for n in 1..=count {
            let hash = transaction_hash(n);
            let found = posts.values().filter(|posts| posts.bodies.iter().any(|body| contains(body, &hash))).count();
            assert_eq!(found, 1, "payment {n}");
        }
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(body).contains(text)
}

/// A NATS server with the bucket.
pub(crate) fn nats_with_bucket(lease: Duration) -> NatsServer {
    let nats = NatsServer::start();
    create_bucket(&nats, lease, json!({}));
    nats
}

fn create_bucket(nats: &NatsServer, lease: Duration, changes: Value) {
    block_on(nats.create_bucket(BUCKET, lease, changes));
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub(crate) fn standby(nats: &NatsServer, host: &str, keys: &str) -> String {
    standby_table(&connection_keys(nats), host, keys)
}

fn connection_keys(nats: &NatsServer) -> String {
    format!("nats = [\"{}\"]", nats.url())
}

fn standby_table(nats_keys: &str, host: &str, keys: &str) -> String {
    format!("[standby]\n{nats_keys}\nbucket = \"{BUCKET}\"\nname = \"shop\"\nhost = \"{host}\"\n{keys}\n")
}

fn write(home: &Home, config: &str) {
    std::fs::write(home.folder.path().join("config.toml"), config).unwrap();
}

/// The key `restore` with a script.
fn restore(script: &str) -> String {
    format!("restore = {{ command = [\"sh\", \"-c\", {}] }}", toml::Value::from(script))
}

/// A script that replaces the database of host `to` by a copy of the database of host `from`. On the very first start there is no
/// database to copy, and the script does nothing.
fn backup_of(from: &Home, to: &Home) -> String {
    let path = |path: PathBuf| path.display().to_string();
    let (from, to, folder) = (path(from.database()), path(to.database()), path(from.folder.path().into()));
    format!("[ -e {from} ] || exit 0; rm -f {to}*; exec {} --config {folder}/config.toml backup {to}", path(binary()))
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the last mail in the lease has this id.
fn until_reported(nats: &NatsServer, last_mail_id: i64) {
    let request = json!({ "last_by_subj": format!("$KV.{BUCKET}.shop") });
    until("the last mail in the lease", || {
        let found = block_on(nats.ask(&format!("STREAM.MSG.GET.KV_{BUCKET}"), request.clone()));
        let value = found["message"]["data"].as_str().unwrap_or_default();
        let value = data_encoding::BASE64.decode(value.as_bytes()).unwrap();
        contains(&value, &format!("\"last_mail_id\":{last_mail_id}}}"))
    });
}

/// `status --json` of a host.
fn status(home: &Home) -> Value {
    let output = home.run(&["status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Starts a host that becomes active.
fn start_active(home: &Home) -> Daemon {
    let daemon = home.start();
    daemon.says("this host is active", SOON);
    daemon
}

/// Starts a host while another host is active, and waits until it stands by.
fn start_standby(home: &Home) -> Daemon {
    let daemon = home.start();
    daemon.says("standing by holder=", SOON);
    daemon
}
