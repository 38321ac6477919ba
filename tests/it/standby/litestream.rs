//! The scripts in contrib/standby. Most tests use a real Litestream, whose copies are in a folder.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use testkit::daemon::{ACCEPT_UNSIGNED, Home, account, binary};
use testkit::payments::payment;

use super::{Hosts, SOON, start_active, start_standby, text, until};

/// The folder with the copies, the configuration of Litestream, and a folder for programs.
struct Copies {
    folder: tempfile::TempDir,
}

/// A running mailhook-replicate or mailhook-volume, with its children.
struct Replication(std::process::Child);

impl Replication {
    /// Ends the script and Litestream, as a power failure does.
    fn kill(self) {
        drop(self);
    }

    /// Ends the script, which ends Litestream.
    fn end(mut self) {
        assert!(Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        // After a failed test, the script may still run.
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let group = format!("-{}", self.0.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = self.0.wait();
        }
    }
}

impl Copies {
    /// Uses the configuration in contrib, with the folder in place of NATS.
    fn new() -> Copies {
        let folder = tempfile::Builder::new().prefix("copies").tempdir().unwrap();
        let config = fs::read_to_string(script("litestream.yml")).unwrap();
        let nats = |line: &&str| ["url:", "username:", "password:"].iter().any(|key| line.trim().starts_with(key));
        let config: Vec<_> = config.lines().filter(|line| !nats(line)).collect();
        let path = format!("path: {}/", folder.path().display());
        let config = config.join("\n").replace("# path: /srv/copies/", &path);
        assert!(config.contains(&path), "{config}");
        fs::write(folder.path().join("litestream.yml"), config).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        symlink(
            testkit::project().join("target/tools/litestream/bin/litestream"),
            folder.path().join("bin/litestream"),
        )
        .unwrap();
        let copies = Copies { folder };
        assert!(copies.program("litestream").exists(), "no Litestream; `make litestream`");
        copies
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join("bin").join(name)
    }

    /// Replaces a program in the folder, which is the first in the search path.
    fn write_program(&self, name: &str, script: &str) {
        let _ = fs::remove_file(self.program(name));
        fs::write(self.program(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(self.program(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Replaces `resmic-mailhook` by a program that prints the report of [`Copies::set_report`].
    fn fake_status(&self) {
        let report = self.folder.path().join("report");
        self.write_program("resmic-mailhook", &format!("cat '{}' 2>/dev/null || exit 2", report.display()));
    }

    /// Sets the output of `status --json`. `None`: `status` prints nothing, as with a mistake in config.toml.
    fn set_report(&self, role: Option<&str>) {
        let (report, new) = (self.folder.path().join("report"), self.folder.path().join("report.new"));
        let Some(role) = role else { return fs::remove_file(report).unwrap() };
        fs::write(&new, format!("{{\"ok\":false,\"role\":{role},\"attention\":[\"a problem\"]}}\n")).unwrap();
        fs::rename(new, report).unwrap();
    }

    /// The assignments for `env`.
    fn environment(&self) -> [String; 2] {
        let folder = self.folder.path().display();
        [
            format!("PATH={folder}/bin:{}", std::env::var("PATH").unwrap()),
            format!("LITESTREAM_CONFIG={folder}/litestream.yml"),
        ]
    }

    /// `env`, with the search path and more assignments.
    fn command(&self, assignments: &[String]) -> Command {
        let mut command = Command::new("env");
        command.args(self.environment()).args(assignments);
        command
    }

    /// The folder of a host's copy.
    fn of(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("mailhook-shop-{host}"))
    }

    /// Stores the whole database once, as the copy of a host.
    fn store(&self, host: &str, database: &Path) {
        let output = self.litestream(host, database, &["replicate", "-once"], &[]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn litestream(&self, host: &str, database: &Path, arguments: &[&str], last: &[&str]) -> Output {
        let variables = [format!("MAILHOOK_COPY={host}"), format!("MAILHOOK_DATABASE={}", database.display())];
        let config = self.folder.path().join("litestream.yml");
        let mut command =
            self.command(&[variables.as_slice(), &["MAILHOOK_METRICS=".into(), "litestream".into()]].concat());
        command.args(arguments).arg("-config").arg(config).args(last).output().unwrap()
    }

    /// Fetches the copy of a host, and queries that copy. `None`: there is no copy, or the copy has no such table yet.
    fn ask(&self, host: &str, database: &Path, sql: &str) -> Option<i64> {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.db");
        let [to, from] = [&copy, database].map(|path| path.to_str().unwrap());
        if !self.litestream(host, database, &["restore"], &["-o", to, from]).status.success() {
            return None;
        }
        Connection::open(copy).unwrap().query_row(sql, [], |row| row.get(0)).ok()
    }

    /// Runs mailhook-takeover on host `b` without a daemon.
    fn take_over(&self, database: &Path, last_host: &str, last_mail_id: &str) -> Output {
        self.takeover(database, last_host, last_mail_id).output().unwrap()
    }

    fn takeover(&self, database: &Path, last_host: &str, last_mail_id: &str) -> Command {
        let variables = [
            format!("RESMIC_MAILHOOK_DATABASE={}", database.display()),
            format!("RESMIC_MAILHOOK_LAST_HOST={last_host}"),
            format!("RESMIC_MAILHOOK_LAST_MAIL_ID={last_mail_id}"),
            "RESMIC_MAILHOOK_HOST=b".to_owned(),
            "MAILHOOK_TAKEOVER_PATIENCE=1".to_owned(),
        ];
        let mut command = self.command(&variables);
        command.arg(script("mailhook-takeover")).args(["a", "b"]);
        command
    }

    fn replicate(&self, database: &Path, config: &str) -> Replication {
        let variables = ["MAILHOOK_METRICS=".to_owned(), format!("RESMIC_MAILHOOK_CONFIG={config}")];
        let mut command = self.command(&variables);
        command.arg(script("mailhook-replicate")).arg(database).stdout(Stdio::null()).stderr(Stdio::null());
        Replication(command.process_group(0).spawn().unwrap())
    }
}

fn script(name: &str) -> PathBuf {
    testkit::project().join("contrib/standby").join(name)
}

/// A database with the first payments.
fn database_with(payments: usize) -> Home {
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}", account(1, "")));
    for n in 1..=payments {
        let mail = home.folder.path().join(format!("{n}.eml"));
        fs::write(&mail, payment(n)).unwrap();
        home.data(&["import", mail.to_str().unwrap()]);
    }
    home
}

/// The names and contents of the database and the files beside it.
fn files(home: &Home) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(home.database().parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let database = name(&home.database());
    let files = entries.filter(|path| path.is_file() && name(path).starts_with(&database));
    let mut files: Vec<_> = files.map(|path| (name(&path), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn only_a_complete_copy_replaces_the_database() {
    let (copies, a, b) = (Copies::new(), database_with(3), database_with(1));
    let before = files(&b);
    let refused = |last_host: &str, last_mail_id: &str, expected: &str| {
        let output = copies.take_over(&b.database(), last_host, last_mail_id);
        assert_eq!(output.status.code(), Some(1), "{expected}: {}", text(&output));
        assert!(text(&output).contains(expected), "{expected}: {}", text(&output));
        assert_eq!(files(&b), before, "{expected}");
        assert!(!copies.of("b").exists(), "{expected}: it is no copy of this host");
    };
    refused("a", "3", "cannot fetch the copy of host a");
    copies.store("a", &a.database());
    refused("a", "4", "ends with mail 3, and that host had mail 4");
    refused("x", "3", "does not name that host");
    refused("a", "3; rm -r /", "the last mail is no number");

    let files_of_a = copies.of("a").join("ltx/0");
    let stored = fs::read_dir(files_of_a).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&stored).unwrap();
    fs::write(&stored, &whole[..whole.len() / 2]).unwrap();
    refused("a", "3", "cannot fetch the copy of host a");
    fs::write(&stored, whole).unwrap();

    // This program in place of Litestream restores only half of the file, and exits with 0.
    let litestream = fs::read_link(copies.program("litestream")).unwrap();
    let part = a.folder.path().join("part");
    a.data(&["backup", part.to_str().unwrap()]);
    let all = fs::read(&part).unwrap();
    fs::write(&part, &all[..all.len() / 2]).unwrap();
    copies.write_program("litestream", &format!("exec cp '{}' \"$5\"", part.display()));
    refused("a", "3", "the copy of host a cannot be read");
    copies.write_program("litestream", "exit 0");
    refused("a", "3", "has fetched nothing");
    fs::remove_file(copies.program("litestream")).unwrap();
    symlink(litestream, copies.program("litestream")).unwrap();

    let output = copies.take_over(&b.database(), "a", "3");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(b.ask("SELECT count(*) FROM mails"), "3");
    let previous = Connection::open(b.database().with_extension("db.previous")).unwrap();
    let mails: i64 = previous.query_row("SELECT count(*) FROM mails", [], |row| row.get(0)).unwrap();
    assert_eq!(mails, 1, "the old database stays beside the new one");
    let mails = "SELECT count(*) FROM mails";
    assert_eq!(copies.ask("b", &b.database(), mails), Some(3), "the copy of the new host is complete");
}

#[test]
fn the_last_mail_decides_which_copy_is_newest() {
    let (copies, a, b) = (Copies::new(), database_with(2), database_with(3));
    copies.store("a", &a.database());
    copies.store("b", &b.database());
    // The clock of `a` was an hour ahead. If copies are in a folder, Litestream reports the times of the files.
    let set_time = |host: &str, time: &str| {
        let files = fs::read_dir(copies.of(host).join("ltx/0")).unwrap().map(|file| file.unwrap().path());
        assert!(Command::new("touch").args(["-d", time]).args(files).status().unwrap().success());
    };
    set_time("a", "+1 hour");
    let after = |last_host: &str| {
        let output = copies.take_over(&b.database(), last_host, "0");
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    // All hosts were down, and the last active host was `b` itself, or is not known.
    for last_host in ["b", ""] {
        let output = after(last_host);
        assert!(output.contains("fetched the copy of host b, up to mail 3"), "{output}");
        assert!(output.contains("check the clocks of both hosts"), "{output}");
        assert_eq!(b.ask("SELECT count(*) FROM mails"), "3");
    }
    // Both copies end with the same mail, so the time decides.
    fs::write(a.folder.path().join("3.eml"), payment(3)).unwrap();
    a.data(&["import", a.folder.path().join("3.eml").to_str().unwrap()]);
    a.data(&["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0"]);
    copies.store("a", &a.database());
    set_time("a", "+1 hour");
    let output = after("b");
    assert!(output.contains("fetched the copy of host a, up to mail 3") && !output.contains("clocks"), "{output}");
    assert_eq!(b.ask("SELECT count(*) FROM sessions"), "1");
    // A copy that cannot be fetched may be the newest.
    fs::remove_dir_all(copies.of("a").join("ltx/0")).unwrap();
    fs::create_dir(copies.of("a").join("ltx/0")).unwrap();
    fs::write(copies.of("a").join("ltx/0/0000000000000002-0000000000000002.ltx"), "damaged").unwrap();
    let before = files(&b);
    let output = copies.take_over(&b.database(), "b", "0");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("the copy of host a"), "{}", text(&output));
    assert_eq!(files(&b), before);
}

#[test]
fn litestream_begins_with_the_whole_database() {
    let (copies, folder) = (Copies::new(), tempfile::tempdir().unwrap());
    copies.write_program("resmic-mailhook", "echo '{\"ok\":true,\"role\":{\"state\":\"active\",\"holder\":\"a\"}}'");
    let database = folder.path().join("m.db");
    let connection = Connection::open(&database).unwrap();
    let run = |sql: &str| connection.execute_batch(sql).unwrap();
    let checkpoint = || connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    run("CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x)");
    let copied = |sql: &str| copies.ask("a", &database, sql);
    let replication = copies.replicate(&database, "");
    until("the first copy", || copied("SELECT count(*) FROM c") == Some(0));
    for _ in 0..60 {
        run("INSERT INTO c VALUES (randomblob(3000))");
    }
    until("the copy of a long WAL", || copied("SELECT count(*) FROM c") == Some(60));
    replication.kill();
    // SQLite starts the WAL again twice. The second time, it overwrites the change of table `a`.
    checkpoint();
    run("INSERT INTO a VALUES (1)");
    checkpoint();
    run("INSERT INTO b VALUES (1)");
    let replication = copies.replicate(&database, "");
    until("the copy of the last change", || copied("SELECT count(*) FROM b") == Some(1));
    assert_eq!(copied("SELECT count(*) FROM a"), Some(1));
    replication.end();
    // The folder of the copy is removed, as if the configuration of Litestream named another folder.
    fs::remove_dir_all(copies.of("a")).unwrap();
    let replication = copies.replicate(&database, "");
    until("the copy in another place", || copied("SELECT count(*) FROM a") == Some(1));
    replication.end();
}

/// The role in a report of a host that is active or a standby.
fn role(state: &str) -> String {
    format!("{{\"state\":\"{state}\",\"holder\":\"a\",\"lease_left_s\":15}}")
}

/// Locks the database, as a daemon does.
fn lock(database: &Path) -> File {
    let lock = File::create(database.with_extension("db.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// Whether Litestream runs for the database in this folder.
fn litestream_runs(folder: &Path) -> bool {
    File::open(folder.join(".litestream.lock")).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

/// Longer than the pause of a script between two calls of `status`, and long enough for the end of a program.
fn wait_for_polls() {
    std::thread::sleep(Duration::from_secs(3));
}

#[test]
fn litestream_survives_an_invalid_configuration() {
    let (copies, home) = (Copies::new(), database_with(1));
    let (database, folder) = (home.database(), home.database().parent().unwrap().to_owned());
    let (litestream, starts) = (fs::read_link(copies.program("litestream")).unwrap(), folder.join("starts"));
    let script = format!("echo start >> '{}'; exec '{}' \"$@\"", starts.display(), litestream.display());
    copies.write_program("litestream", &script);
    copies.fake_status();
    let running = || litestream_runs(&folder);
    let daemon = lock(&database);
    copies.set_report(Some(&role("active")));
    let replication = copies.replicate(&database, "");
    until("Litestream runs", || running() && starts.exists());
    // `status` cannot read the configuration, and then it cannot read the database.
    for report in [None, Some("null")] {
        copies.set_report(report);
        wait_for_polls();
        assert!(running(), "{report:?}");
    }
    assert_eq!(fs::read_to_string(&starts).unwrap(), "start\n", "it ran all the time");
    for state in ["standby", "waiting", "taking-over"] {
        copies.set_report(Some(&role(state)));
        until("Litestream has ended", || !running());
        copies.set_report(Some(&role("active")));
        until("Litestream runs again", running);
    }
    drop(daemon);
    copies.set_report(Some("null"));
    until("Litestream has ended after the daemon", || !running());
    copies.set_report(None);
    wait_for_polls();
    assert!(!running(), "without a report, Litestream is not started");
    replication.end();
}

#[test]
fn a_hung_litestream_is_ended() {
    let (copies, a, b) = (Copies::new(), database_with(2), database_with(1));
    copies.store("a", &a.database());
    let litestream = fs::read_link(copies.program("litestream")).unwrap();
    let before = files(&b);
    for (subcommand, last_host, expected) in [
        ("ltx", "", "cannot list the copy of host a"),
        ("restore", "a", "cannot fetch the copy of host a"),
        ("replicate", "a", "cannot store the copy of this host"),
    ] {
        let hung = format!("[ \"$1\" != {subcommand} ] || exec sleep 60; exec '{}' \"$@\"", litestream.display());
        copies.write_program("litestream", &hung);
        let mut takeover = copies.takeover(&b.database(), last_host, "2");
        let output = takeover.env("MAILHOOK_LITESTREAM_TIMEOUT", "5").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{subcommand}: {}", text(&output));
        assert!(text(&output).contains(&format!("litestream {subcommand} was ended after 5 s")), "{}", text(&output));
        assert!(text(&output).contains(expected), "{subcommand}: {}", text(&output));
        assert_eq!(files(&b), before, "{subcommand}");
    }
    // This program in place of Litestream ignores SIGTERM.
    copies.write_program("litestream", "trap '' TERM; while :; do sleep 1; done");
    copies.fake_status();
    copies.set_report(Some(&role("active")));
    let replication = copies.replicate(&b.database(), "");
    let folder = b.database().parent().unwrap().to_owned();
    until("Litestream runs", || litestream_runs(&folder));
    copies.set_report(Some(&role("standby")));
    until("Litestream was killed", || !litestream_runs(&folder));
    replication.end();
}

#[test]
fn the_volume_survives_an_invalid_configuration() {
    let (copies, home) = (Copies::new(), tempfile::tempdir().unwrap());
    let (folder, ready) = (home.path().join("volume"), home.path().join("ready"));
    fs::create_dir(&folder).unwrap();
    let mounted = folder.join("mounted");
    let program = |name: &str, script: &str| {
        copies.write_program(name, &format!("{script} '{}'", mounted.display()));
        copies.program(name)
    };
    program("mountpoint", "test -e");
    let (attach, detach) = (program("attach", "touch"), program("detach", "rm"));
    copies.fake_status();
    copies.set_report(Some(&role("standby")));
    let mut command = copies.command(&[format!("RUNTIME_DIRECTORY={}", home.path().display())]);
    command.arg(script("mailhook-volume")).args([attach, detach, folder.clone()]).stdout(Stdio::null());
    let volume = Replication(command.process_group(0).spawn().unwrap());
    copies.set_report(Some(&role("taking-over")));
    until("the volume is attached", || ready.exists() && mounted.exists());
    let daemon = lock(&folder.join("mailhook.db"));
    for report in [Some(role("active")), None, Some("null".to_owned())] {
        copies.set_report(report.as_deref());
        wait_for_polls();
        assert!(ready.exists() && mounted.exists(), "{report:?}");
    }
    drop(daemon);
    until("the volume is detached after the daemon", || !mounted.exists() && !ready.exists());
    for state in ["standby", "waiting"] {
        copies.set_report(Some(&role("taking-over")));
        until("the volume is attached again", || ready.exists());
        copies.set_report(Some(&role(state)));
        until("the volume is detached", || !mounted.exists() && !ready.exists());
    }
    // Only the service of the volume is stopped, and the daemon goes on.
    copies.set_report(Some(&role("taking-over")));
    until("the volume is attached again", || ready.exists());
    let daemon = lock(&folder.join("mailhook.db"));
    volume.end();
    assert!(mounted.exists());
    drop(daemon);
}

/// Readers of the database would block `umount`, and no host would take over.
#[test]
fn the_example_ends_readers_before_umount() {
    let (copies, folder) = (Copies::new(), tempfile::tempdir().unwrap());
    let page = fs::read_to_string(testkit::project().join("docs/several-machines.md")).unwrap();
    let (_, example) = page.split_once("cat > /etc/mailhook-volume/detach <<'END'\n").unwrap();
    let (example, _) = example.split_once("   END\n").unwrap();
    copies.write_program("detach", example);
    let called = folder.path().join("called");
    // `fuser` fails if no process uses the volume.
    for (name, code) in [("fuser", 1), ("umount", 0), ("drbdadm", 0)] {
        copies.write_program(name, &format!("echo {name} \"$@\" >> '{}'; exit {code}", called.display()));
    }
    let output = copies.command(&[]).arg(copies.program("detach")).arg("/srv/mailhook").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let expected = "fuser -k -M -m /srv/mailhook\numount /srv/mailhook\ndrbdadm secondary mailhook\n";
    assert_eq!(fs::read_to_string(called).unwrap(), expected);
}

#[test]
fn a_standby_takes_over_a_copy() {
    let (hosts, copies) = (Hosts::start(Duration::from_secs(3)), Copies::new());
    copies.write_program("resmic-mailhook", &format!("exec {} \"$@\"", binary().display()));
    let config = |home: &Home| home.folder.path().join("config.toml").display().to_string();
    for (home, host) in [(&hosts.a, "a"), (&hosts.b, "b")] {
        let environment = copies.environment().map(toml::Value::from);
        let (own, script) = (format!("RESMIC_MAILHOOK_CONFIG={}", config(home)), script("mailhook-takeover"));
        let [path, litestream] = environment;
        let restore = format!("[\"env\", {path}, {litestream}, {own:?}, {script:?}, \"a\", \"b\"]");
        hosts.configure(home, host, &format!("restore = {{ command = {restore} }}"), "");
    }
    // `a` has the database before there is a copy.
    let first = database_with(0);
    first.data(&["session", "add", "591abe63-aa61-411d-a419-0b546729bbd0"]);
    first.data(&["backup", hosts.a.database().to_str().unwrap()]);

    let a = start_active(&hosts.a);
    let of_a = copies.replicate(&hosts.a.database(), &config(&hosts.a));
    let b = start_standby(&hosts.b);
    let of_b = copies.replicate(&hosts.b.database(), &config(&hosts.b));
    hosts.deliver(1..=5);
    hosts.until_accepted(5);
    let delivered = "SELECT count(*) FROM deliveries WHERE state = 'delivered'";
    until("the copy of a", || copies.ask("a", &hosts.a.database(), delivered) == Some(5));
    assert!(!copies.of("b").exists(), "Litestream does not run on a standby");
    a.kill();
    of_a.kill();
    b.says("this host is active", SOON);
    hosts.deliver(6..=8);
    hosts.until_accepted(8);
    assert_eq!(hosts.b.ask("SELECT count(*) FROM sessions"), "1");
    until("the copy of b", || copies.ask("b", &hosts.b.database(), delivered) == Some(8));

    // The killed host starts again, and gets the lease when the other host releases it.
    let a = start_standby(&hosts.a);
    assert_eq!(b.end(), Some(0));
    a.says("this host is active", SOON);
    hosts.deliver(9..=9);
    hosts.until_accepted(9);
    assert_eq!(hosts.a.ask("SELECT count(*) FROM mails"), "9");
    of_b.end();
    assert_eq!(a.end(), Some(0));
}
