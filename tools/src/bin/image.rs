//! `make test-image`: the container image with its compose file, as docs/install.md describes it, on a real mail server.
//!
//! tests/image/run.sh starts `image ARCHIVE` in a network namespace, with a separate storage for podman.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::callback::Callback;
use testkit::daemon::{Home, SECRET};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::{self, Dovecot};
use testkit::payments::payment;

/// The user of the image.
const USER: u32 = 65_532;
/// The container's name: project, service and number, as podman-compose builds it.
const CONTAINER: &str = "shop_resmic-mailhook_1";
/// The longest wait for one step.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let archive = std::env::args().nth(1).expect("image ARCHIVE");
    println!("== {archive}");
    let image = load(&archive);
    let key = Key::rsa(2048);
    // The program finds the mail server and the DKIM key by the container's /etc/resolv.conf.
    let records = [("s1._domainkey.resmic.com", key.record("")), ("imap.shop.example", "A 127.0.0.1".to_owned())];
    let _dns = Dns::start_on(53, &records.map(|(name, record)| (name.to_owned(), record)));
    let (dovecot, callback) = (Dovecot::start(), Callback::start());
    let shop = shop(&image.name, &dovecot, &callback);
    let compose = Compose(shop.folder.path());
    let deliver = |n: usize| {
        dovecot.deliver("payments@shop.example", &sign(&payment(n), &key, &SigningOptions::default()));
    };

    println!("== check --connect");
    let printed = compose.succeeds(&["run", "--rm", "resmic-mailhook", "check", "--connect"]);
    print!("{printed}");
    assert!(printed.contains("can be reached"), "the handler, too");

    println!("== up; healthy");
    compose.succeeds(&["up", "-d"]);
    until("healthy", || image.is_healthy().then_some(()));

    println!("== a genuine mail becomes an event and is posted");
    deliver(1);
    until("delivered", || has(&callback, 1));
    let event: Value = serde_json::from_str(&inside(&["events", "--json"])).unwrap();
    assert_eq!([&event["status"], &event["amount"]], ["completed", "20"]);
    let mail: Value = serde_json::from_str(&inside(&["mails", "--json"])).unwrap();
    assert_eq!([&mail["outcome"], &mail["trust"]], ["event", "dkim"]);
    assert!(image.is_healthy());

    println!("== a forged mail is quarantined: unhealthy until it is removed");
    dovecot.deliver("payments@shop.example", &payment(2));
    until("unhealthy", || (!image.is_healthy()).then_some(()));
    assert!(inside(&["mails", "--outcome", "quarantined", "--json"]).contains("\"untrusted:"));
    inside(&["prune", "--quarantined", "--older-than", "0s"]);
    until("healthy", || image.is_healthy().then_some(()));

    println!("== killed; a mail arrives; started again");
    podman(&["kill", "--signal", "KILL", CONTAINER]);
    podman(&["wait", CONTAINER]);
    deliver(3);
    podman(&["start", CONTAINER]);
    until("delivered", || has(&callback, 2));

    println!("== removed, and created again: the database is in the volume");
    podman(&["stop", "--time", "10", CONTAINER]);
    let code = podman(&["inspect", "--format", "{{.State.ExitCode}}", CONTAINER]);
    assert_eq!(code.trim(), "0", "SIGTERM ends the program cleanly");
    compose.succeeds(&["down"]);
    compose.succeeds(&["up", "-d"]);
    until("healthy", || image.is_healthy().then_some(()));
    assert_eq!(inside(&["events", "--json"]).lines().count(), 2);
    assert!(callback.repeated().is_empty(), "{:?}", callback.repeated());
    compose.succeeds(&["down", "--volumes"]);
    println!("== the image works");
}

/// A loaded image.
struct Image {
    name: String,
    /// False for an OCI archive: OCI's format has no field for a health check.
    has_health_check: bool,
}

impl Image {
    /// Runs the health check once, as podman's timer does on a machine with systemd.
    fn is_healthy(&self) -> bool {
        let check: &[&str] = if self.has_health_check {
            &["healthcheck", "run", CONTAINER]
        } else {
            &["exec", CONTAINER, "/usr/bin/resmic-mailhook", "status"]
        };
        try_podman(check).status.success()
    }
}

/// Loads the archive and checks the image's settings.
fn load(archive: &str) -> Image {
    let loaded = podman(&["load", "--input", archive]);
    let name = loaded.trim().rsplit(' ').next().unwrap().to_owned();
    let images: Value = serde_json::from_str(&podman(&["image", "inspect", &name])).unwrap();
    let config = &images[0]["Config"];
    println!("{name}: {} KiB, user {}", images[0]["Size"].as_u64().unwrap() / 1024, config["User"]);
    assert_eq!(config["User"], format!("{USER}:{USER}"));
    let has_health_check = images[0]["Healthcheck"].is_object();
    assert_eq!(has_health_check, archive.ends_with(".docker.tar"), "{}", images[0]);
    Image { name, has_health_check }
}

/// The merchant's folder: config.toml, the secrets, compose.yml, and test.yml with the differences of this test.
fn shop(image: &str, dovecot: &Dovecot, callback: &Callback) -> Home {
    let home = Home::new(&format!(
        "[[account]]\nname = \"shop\"\nhost = \"imap.shop.example\"\nport = {}\nca_file = \"ca.pem\"\n\
         user = \"payments@shop.example\"\npassword = {{ credential = \"imap-password\" }}\nmailboxes = [\"INBOX\"]\n\
         dedicated = true\n[[forward]]\nname = \"shop\"\nurl = \"{}\"\nsecret = {{ credential = \"webhook-secret\" }}\n\
         unresolved = \"send\"\n",
        dovecot.imaps,
        callback.url(),
    ));
    let folder = home.folder.path();
    let compose = fs::read_to_string(testkit::project().join("contrib/container/compose.yml")).unwrap();
    assert!(compose.contains(&format!("image: {image}\n")), "compose.yml does not start {image}");
    fs::write(folder.join("compose.yml"), compose).unwrap();
    // The test's servers are on the loopback of this network namespace, and a CA of the test has signed Dovecot's certificate.
    let test = "services:\n  resmic-mailhook:\n    network_mode: host\n    volumes:\n      \
                - ./ca.pem:/etc/resmic-mailhook/ca.pem:ro\n";
    fs::write(folder.join("test.yml"), test).unwrap();
    fs::copy(dovecot.ca(), folder.join("ca.pem")).unwrap();
    for (name, secret) in [("imap-password", dovecot::PASSWORD), ("webhook-secret", SECRET)] {
        let path = folder.join(name);
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
    }
    home
}

/// podman-compose in the merchant's folder.
struct Compose<'a>(&'a Path);

impl Compose<'_> {
    fn succeeds(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("podman-compose");
        command.args(["-p", "shop", "-f", "compose.yml", "-f", "test.yml"]).args(arguments).current_dir(self.0);
        success(command.output().unwrap(), arguments)
    }
}

fn try_podman(arguments: &[&str]) -> Output {
    Command::new("podman").args(arguments).output().unwrap()
}

/// Runs podman, which must succeed, and returns its output.
fn podman(arguments: &[&str]) -> String {
    success(try_podman(arguments), arguments)
}

fn success(output: Output, arguments: &[&str]) -> String {
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// Runs a command of the program in the container.
fn inside(arguments: &[&str]) -> String {
    podman(&[&["exec", CONTAINER, "/usr/bin/resmic-mailhook"], arguments].concat())
}

/// Whether the handler has accepted this number of events.
fn has(callback: &Callback, events: usize) -> Option<()> {
    (callback.posts().values().filter(|posts| posts.accepted > 0).count() == events).then_some(())
}

/// Repeats an observation from outside of the container until it succeeds.
fn until(what: &str, mut observe: impl FnMut() -> Option<()>) {
    let deadline = Instant::now() + PATIENCE;
    while observe().is_none() {
        assert!(Instant::now() < deadline, "not {what} after {PATIENCE:?}:\n{}", podman(&["logs", CONTAINER]));
        std::thread::sleep(Duration::from_millis(100));
    }
}
