//! The daemon and its commands, with a configuration and a database in a temporary folder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::process::Process;

/// The binary under test: the path in `MAILHOOK_BINARY`, or the binary that cargo built into the folder of this test program.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MAILHOOK_BINARY") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap();
    // Cargo puts test programs into deps/, one level below the other programs.
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).unwrap();
    folder.join("resmic-mailhook")
}

/// A folder with a configuration and a database.
pub struct Home {
    pub folder: tempfile::TempDir,
}

impl Home {
    /// Creates the folder with this config.toml.
    pub fn new(config: &str) -> Home {
        let folder = tempfile::Builder::new().prefix("mailhook").tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Home { folder }
    }

    pub fn database(&self) -> PathBuf {
        self.folder.path().join("mailhook.db")
    }

    pub fn sqlite(&self) -> rusqlite::Connection {
        self.try_sqlite().unwrap()
    }

    fn try_sqlite(&self) -> rusqlite::Result<rusqlite::Connection> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = rusqlite::Connection::open_with_flags(self.database(), flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    }

    /// Returns the first column of the first row as text.
    pub fn ask(&self, sql: &str) -> String {
        self.try_ask(sql).unwrap()
    }

    /// Like [`Home::ask`], but returns an error, for example if the database does not exist yet.
    pub fn try_ask(&self, sql: &str) -> rusqlite::Result<String> {
        let value: rusqlite::types::Value = self.try_sqlite()?.query_row(sql, [], |row| row.get(0))?;
        Ok(match value {
            rusqlite::types::Value::Null => "NULL".into(),
            rusqlite::types::Value::Integer(n) => n.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        })
    }

    /// Returns the first column of every row.
    pub fn column(&self, sql: &str) -> Vec<String> {
        let sqlite = self.sqlite();
        let mut statement = sqlite.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Polls until a query returns `want`. SQLite does not announce the changes of another process.
    pub fn until(&self, sql: &str, want: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let has = self.try_ask(sql).unwrap_or_default();
            if has == want {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {has:?} and not {want:?} after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.folder.path().join("config.toml")).args(arguments);
        command.env("MAILHOOK_PASSWORD", super::dovecot::PASSWORD).env("MAILHOOK_SECRET", SECRET);
        command.env_remove("RESMIC_MAILHOOK_CONFIG").env_remove("STATE_DIRECTORY").current_dir(self.folder.path());
        command
    }

    /// Runs a command and waits for its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed and returns its standard output.
    pub fn data(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the daemon.
    pub fn start(&self) -> Daemon {
        Daemon::start(self.command(&["run"]))
    }
}

impl Daemon {
    /// Starts a daemon with the command of a [`Home`].
    pub fn start(mut command: Command) -> Daemon {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (lines, keep) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                keep.0.lock().unwrap().push_str(&format!("{line}\n"));
                keep.1.notify_all();
            }
        });
        Daemon { process: Process::adopt(child, "resmic-mailhook"), log }
    }
}

/// The secret that signs deliveries.
pub const SECRET: &str = "a-webhook-secret";

pub struct Daemon {
    pub process: Process,
    log: Arc<(Mutex<String>, Condvar)>,
}

impl Daemon {
    pub fn log(&self) -> String {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits until the log contains `text`.
    pub fn says(&self, text: &str, limit: Duration) {
        self.says_often(text, 1, limit);
    }

    /// Waits until the log contains `text` this many times. Another thread reads the log from a pipe. So a test that has seen a
    /// change in the database may have to wait for an earlier log line.
    pub fn says_often(&self, text: &str, times: usize, limit: Duration) {
        let log = self.log.0.lock().unwrap();
        let fewer = |log: &mut String| log.matches(text).count() < times;
        let (log, waited) = self.log.1.wait_timeout_while(log, limit, fewer).unwrap();
        let timed_out = waited.timed_out();
        // A failed assertion drops the daemon, and its `drop` locks the log to print it. So the lock is released first.
        drop(log);
        assert!(!timed_out, "{text:?} was not said {times} times");
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn end(mut self) -> Option<i32> {
        self.process.signal("-TERM");
        self.process.wait(Duration::from_secs(6))
    }

    /// Sends SIGKILL.
    pub fn kill(mut self) {
        self.process.signal("-KILL");
        self.process.wait(Duration::from_secs(5));
    }
}

impl Drop for Daemon {
    /// Prints the log if the test fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
            println!("the log of daemon {}:\n{log}", self.process.id());
        }
    }
}

/// The configuration that accepts unsigned mails.
pub const ACCEPT_UNSIGNED: &str = "[trust]\naccept = [\"none\"]\n";

/// The configuration of an account on loopback without TLS.
pub fn account(imap: u16, keys: &str) -> String {
    format!(
        "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\nport = {imap}\ntls = \"none\"\nuser = \"payments@shop.example\"\n\
         password = {{ env = \"MAILHOOK_PASSWORD\" }}\n{keys}\n"
    )
}

/// The configuration of a target.
pub fn forward(url: &str, keys: &str) -> String {
    format!("[[forward]]\nname = \"shop\"\nurl = \"{url}\"\nsecret = {{ env = \"MAILHOOK_SECRET\" }}\n{keys}\n")
}

/// The stream of [`stream_target`], and the beginning of its subjects.
pub const STREAM: &str = "RESMIC_EVENTS";
pub const SUBJECT: &str = "resmic.events";

/// The configuration of a target that is a stream of these NATS servers.
pub fn stream_target(servers: &[String]) -> String {
    format!(
        "[[forward]]\nname = \"stream\"\nnats = {servers:?}\nstream = \"{STREAM}\"\nsubject = \"{SUBJECT}\"\n\
         secret = {{ env = \"MAILHOOK_SECRET\" }}\n"
    )
}

/// The folder of the sample mails.
pub fn samples() -> PathBuf {
    crate::project().join("sample-mails")
}
