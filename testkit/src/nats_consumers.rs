//! Real consumers of a stream: the programs in examples/nats-consumer.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::daemon::{SECRET, STREAM, SUBJECT};
use super::process::Process;

/// How long a consumer may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The language of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerLanguage {
    Node,
    Python,
}

impl ConsumerLanguage {
    pub const ALL: [ConsumerLanguage; 2] = [ConsumerLanguage::Node, ConsumerLanguage::Python];

    /// The name of the durable consumer at the server.
    pub fn name(self) -> &'static str {
        match self {
            ConsumerLanguage::Node => "node",
            ConsumerLanguage::Python => "python",
        }
    }

    fn command(self) -> Command {
        let (folder, tools) = (crate::project().join("examples/nats-consumer"), crate::project().join("target/tools"));
        let (program, script, packages) = match self {
            ConsumerLanguage::Node => (PathBuf::from("node"), "consumer.js", folder.join("node_modules")),
            ConsumerLanguage::Python => {
                let python = tools.join("nats-consumer/bin/python");
                (python.clone(), "consumer.py", python)
            }
        };
        assert!(packages.exists(), "no {}; `make node python`", packages.display());
        let mut command = Command::new(program);
        command.arg(folder.join(script));
        command
    }
}

/// A consumer with its database. It can be killed and started again.
pub struct Consumer {
    pub language: ConsumerLanguage,
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, OsString)>,
    running: Option<RunningConsumer>,
    output: Arc<(Mutex<ConsumerOutput>, Condvar)>,
}

struct RunningConsumer {
    process: Process,
    /// The threads that read the output of the process until the output ends.
    readers: [JoinHandle<()>; 2],
}

/// The output of all runs of a consumer.
#[derive(Debug, Default)]
struct ConsumerOutput {
    /// The body of each payment that the consumer counted, with the time at which it printed the body.
    payments: Vec<(Instant, String)>,
    log: Vec<String>,
}

impl Consumer {
    /// A consumer of the stream [`STREAM`] at these servers, separated by commas. It does not run yet.
    pub fn new(language: ConsumerLanguage, servers: &str) -> Consumer {
        let folder = tempfile::Builder::new().prefix("consumer").tempdir().unwrap();
        let mut consumer =
            Consumer { language, folder, environment: Vec::new(), running: None, output: Arc::default() };
        consumer.set("DATABASE", consumer.database());
        for (key, value) in [
            ("NATS_URL", servers),
            ("STREAM", STREAM),
            ("SUBJECT", SUBJECT),
            ("CONSUMER", language.name()),
            ("WEBHOOK_SECRET", SECRET),
        ] {
            consumer.set(key, value);
        }
        consumer
    }

    /// Sets an environment variable for the next start.
    pub fn set(&mut self, key: &'static str, value: impl Into<OsString>) {
        self.environment.push((key, value.into()));
    }

    pub fn start(&mut self) {
        assert!(self.running.is_none(), "the consumer is running");
        let mut command = self.language.command();
        command.envs(self.environment.iter().map(|(key, value)| (key, value))).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let payments = self.reader(child.stdout.take().unwrap(), |output, line| {
            output.payments.push((Instant::now(), line));
        });
        let log = self.reader(child.stderr.take().unwrap(), |output, line| output.log.push(line));
        let process = Process::adopt(child, "the consumer");
        self.running = Some(RunningConsumer { process, readers: [payments, log] });
    }

    fn reader(&self, from: impl Read + Send + 'static, keep: fn(&mut ConsumerOutput, String)) -> JoinHandle<()> {
        let output = self.output.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                keep(&mut output.0.lock().unwrap(), line);
                output.1.notify_all();
            }
        })
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.finish("-KILL");
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn end(&mut self) -> Option<i32> {
        self.finish("-TERM")
    }

    fn finish(&mut self, signal: &str) -> Option<i32> {
        let RunningConsumer { mut process, readers } = self.running.take().expect("the consumer is not running");
        process.signal(signal);
        let code = process.wait(LIMIT);
        for reader in readers {
            reader.join().unwrap();
        }
        code
    }

    /// The bodies that all runs have printed, each with its time.
    pub fn printed(&self) -> Vec<(Instant, String)> {
        self.output.0.lock().unwrap().payments.clone()
    }

    /// Waits until all runs together have printed this many payments.
    pub fn until_printed(&self, count: usize, limit: Duration) {
        self.until(limit, &format!("{count} payments"), |output| output.payments.len() >= count);
    }

    /// Waits until all runs together have logged this text this many times.
    pub fn says_often(&self, text: &str, times: usize, limit: Duration) {
        let often = |output: &ConsumerOutput| output.log.iter().filter(|line| line.contains(text)).count() >= times;
        self.until(limit, text, often);
    }

    fn until(&self, limit: Duration, what: &str, holds: impl Fn(&ConsumerOutput) -> bool) {
        let output = self.output.0.lock().unwrap();
        let (output, waited) = self.output.1.wait_timeout_while(output, limit, |output| !holds(output)).unwrap();
        let (language, count, log) = (self.language, output.payments.len(), output.log.join("\n"));
        assert!(!waited.timed_out(), "{language:?}: not {what} within {limit:?}; {count} payments\n{log}");
    }

    pub fn database(&self) -> PathBuf {
        self.folder.path().join("payments.db")
    }

    pub fn sqlite(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    /// Counts the payments that are inserted from now on, also those that another statement deletes again.
    pub fn count_inserts(&self) {
        let counter = "CREATE TABLE inserts (event_id TEXT);
            CREATE TRIGGER inserted AFTER INSERT ON payments BEGIN INSERT INTO inserts VALUES (new.event_id); END;";
        self.sqlite().execute_batch(counter).unwrap();
    }

    /// How many payments were inserted since [`Consumer::count_inserts`].
    pub fn inserts(&self) -> usize {
        let count: i64 = self.sqlite().query_row("SELECT count(*) FROM inserts", [], |row| row.get(0)).unwrap();
        usize::try_from(count).unwrap()
    }

    /// The rows of the consumer's table `payments`, in the order of their ids: id and body.
    pub fn payments(&self) -> Vec<(String, String)> {
        let sqlite = self.sqlite();
        let mut statement = sqlite.prepare("SELECT event_id, body FROM payments ORDER BY event_id").unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    }
}
