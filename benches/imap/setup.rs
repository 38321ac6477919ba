//! The environment of the measurements: Dovecot, DNS, signed mails in the published layout, a callback, and a watcher of
//! the database.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use testkit::daemon::{Daemon, Home, samples};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;

/// The longest time that a benchmark waits for an event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The recipient of all mails. Each mailbox belongs to another login.
const TO: &str = "payments@shop.example";

pub(crate) struct BenchSetup {
    pub(crate) dovecot: Dovecot,
    dns: Dns,
    key: Key,
    layout: String,
}

impl BenchSetup {
    /// Starts the servers, with more lines of configuration for Dovecot.
    pub(crate) fn start(settings: &str) -> BenchSetup {
        let key = Key::rsa(2048);
        let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), key.record(""))]);
        let layout = fs::read_to_string(samples().join("published/sepolia.eml")).unwrap();
        let layout = layout.replace("\r\n", "\n").replace('\n', "\r\n");
        assert!(layout.contains("0x26b046c75021f22e") && layout.contains("<7d2f6a0e-"));
        BenchSetup { dovecot: Dovecot::start_with(settings), dns, key, layout }
    }

    /// Payment `n` in the published layout, signed.
    pub(crate) fn payment(&self, n: usize) -> Vec<u8> {
        let mail = self.layout.replace("0x26b046c75021f22e", &format!("0x{n:016x}"));
        sign(mail.replace("<7d2f6a0e-", &format!("<{n:08x}-")).as_bytes(), &self.key, &SigningOptions::default())
    }

    /// Another person's mail, about as large as a notification.
    pub(crate) fn other(&self, n: usize) -> Vec<u8> {
        let body = self.layout.split_once("\r\n\r\n").unwrap().1;
        format!("From: Aunt {n} <aunt{n}@family.example>\r\nTo: {TO}\r\nSubject: Hi\r\nMessage-ID: <{n}@family.example>\r\n\r\n{body}")
            .into_bytes()
    }

    /// Writes mails as files into the Maildir of a login, on two threads and with the owner that Dovecot needs.
    pub(crate) fn fill(&self, user: &str, count: usize, mail: impl Fn(usize) -> Vec<u8> + Sync) {
        let home = self.dovecot.folder.path().join("mail").join(user);
        for part in ["new", "cur", "tmp"] {
            fs::create_dir_all(home.join("Maildir").join(part)).unwrap();
        }
        let cur = home.join("Maildir/cur");
        std::thread::scope(|scope| {
            for first in 0..2 {
                let (cur, mail) = (&cur, &mail);
                scope.spawn(move || {
                    for n in (first..count).step_by(2) {
                        fs::write(cur.join(format!("{:010}.M{n}P1.bench:2,S", 1_700_000_000 + n)), mail(n)).unwrap();
                    }
                });
            }
        });
        let owner = fs::metadata(self.dovecot.folder.path().join("mail")).unwrap();
        let owner =
            format!("{}:{}", std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        assert!(Command::new("chown").arg("-R").arg(owner).arg(&home).status().unwrap().success());
    }

    /// A configuration for INBOX of this login.
    pub(crate) fn home(&self, user: &str, port: u16, keys: &str, callback: Option<u16>) -> Home {
        let mut config = format!(
            "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"{user}\"\nrecipients = [\"{TO}\"]\n\
             password = {{ env = \"MAILHOOK_PASSWORD\" }}\nmailboxes = [\"INBOX\"]\n{keys}\n[dns]\nservers = [\"{}\"]\n\
             [telemetry]\nlog = \"warn\"\n",
            self.dns.address
        );
        if let Some(port) = callback {
            let _ = write!(
                config,
                "[[forward]]\nname = \"shop\"\nurl = \"http://127.0.0.1:{port}/hook\"\nsecret = {{ env = \"MAILHOOK_SECRET\" }}\n\
                 unresolved = \"send\"\n"
            );
        }
        Home::new(&config)
    }

    /// The configuration lines for implicit TLS.
    pub(crate) fn tls(&self) -> String {
        format!("ca_file = \"{}\"", self.dovecot.ca().display())
    }
}

/// Starts the daemon and waits until it is idle.
pub(crate) fn start_and_wait_for_idle(home: &Home) -> Daemon {
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", PATIENCE);
    daemon
}

/// Notices commits of the daemon. SQLite does not announce the commits of other processes, so this polls the header of the
/// WAL index, which each commit changes last (sqlite.org/walformat.html, 2.1). Polling by SQL would use one of two cores
/// and slow down the measured process.
pub(crate) struct CommitWatcher {
    database: rusqlite::Connection,
    index: fs::File,
    seen: [u8; 12],
}

impl CommitWatcher {
    pub(crate) fn new(home: &Home) -> CommitWatcher {
        let mut index = home.database().into_os_string();
        index.push("-shm");
        CommitWatcher { database: home.sqlite(), index: fs::File::open(index).unwrap(), seen: [0; 12] }
    }

    /// Ignores all commits so far.
    pub(crate) fn skip_to_now(&mut self) {
        self.seen = self.head();
    }

    /// Waits until the database has this many mails and returns when the last one was committed.
    pub(crate) fn wait_for_mails(&mut self, count: usize) -> Instant {
        let count = i64::try_from(count).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            while self.head() == self.seen {
                assert!(Instant::now() < deadline, "there are not {count} mails");
                std::thread::sleep(Duration::from_micros(20));
            }
            let at = Instant::now();
            self.skip_to_now();
            let mut ask = self.database.prepare_cached("SELECT coalesce(max(id), 0) FROM mails").unwrap();
            if ask.query_row([], |row| row.get::<_, i64>(0)).unwrap() >= count {
                return at;
            }
        }
    }

    /// The change counter and the length of the WAL in the header of its index.
    fn head(&self) -> [u8; 12] {
        let mut head = [0; 12];
        self.index.read_exact_at(&mut head, 8).unwrap();
        head
    }
}

/// The floor for the disk: every program that stores a mail durably waits for a write and a sync.
pub(crate) struct Disk {
    log: fs::File,
    _folder: tempfile::TempDir,
}

impl Disk {
    /// Creates a file on the file system of the databases.
    pub(crate) fn new() -> Disk {
        let folder = tempfile::tempdir().unwrap();
        Disk { log: fs::File::create(folder.path().join("log")).unwrap(), _folder: folder }
    }

    /// Writes and syncs this many bytes.
    pub(crate) fn write_durably(&mut self, bytes: usize) {
        self.log.write_all(&vec![b'x'; bytes]).unwrap();
        self.log.sync_data().unwrap();
    }
}

/// Starts the daemon and waits until a query returns at least `number`. Returns the time since the mailbox was selected,
/// and the seconds of CPU.
pub(crate) fn start_and_wait_for(home: &Home, question: &str, number: usize) -> (Daemon, Duration, f64) {
    const OPEN: &str = "SELECT count(*) FROM mailboxes WHERE state NOT IN ('connecting', 'failed')";
    let daemon = home.start();
    while !home.database().exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let database = home.sqlite();
    let open = wait_for_number(&database, OPEN, 1, Duration::from_millis(1));
    let at = wait_for_number(&database, question, number, Duration::from_millis(2));
    let cpu = cpu(&daemon);
    (daemon, at - open, cpu)
}

/// The seconds of CPU that all threads used (proc(5), schedstat).
fn cpu(daemon: &Daemon) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap();
    let ran = tasks.map(|task| {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        schedstat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(ran.sum()).as_secs_f64()
}

fn wait_for_number(database: &rusqlite::Connection, question: &str, number: usize, pause: Duration) -> Instant {
    let number = i64::try_from(number).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // An error counts as 0, because the table may not exist yet.
    while database.prepare_cached(question).and_then(|mut ask| ask.query_row([], |row| row.get(0))).unwrap_or(0)
        < number
    {
        assert!(Instant::now() < deadline, "{question} did not reach {number}");
        std::thread::sleep(pause);
    }
    Instant::now()
}

/// A value of `/proc/PID/status` in KiB.
pub(crate) fn memory(daemon: &Daemon, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Starts a callback that accepts everything. The channel gets the time at which each request arrives.
pub(crate) fn callback() -> (u16, mpsc::Receiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, times) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            // Only the body ends in a brace.
            while !request.ends_with(b"}") {
                match stream.read(&mut buffer) {
                    Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            if sender.send(Instant::now()).is_err() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (port, times)
}
