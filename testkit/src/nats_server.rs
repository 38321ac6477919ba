//! A private NATS server with JetStream on loopback: Debian's package, with all files in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Process, free_port, greeting};

/// How long a server may take to start or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A NATS server. Dropping it ends the process.
pub struct NatsServer {
    pub folder: tempfile::TempDir,
    pub port: u16,
    program: PathBuf,
    /// `None` while the server is stopped.
    process: Option<Process>,
}

impl NatsServer {
    /// Starts Debian's server. It accepts clients without a login.
    pub fn start() -> NatsServer {
        NatsServer::start_with("")
    }

    /// Starts Debian's server with more lines of configuration. The working directory of the server has a certificate for
    /// `localhost` and 127.0.0.1: `ca.pem`, `server.pem` and `server.key`.
    pub fn start_with(settings: &str) -> NatsServer {
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&in_path).chain([PathBuf::from("/usr/sbin")]);
        let found = folders.map(|folder| folder.join("nats-server")).find(|path| path.exists());
        NatsServer::start_program(&found.expect("no nats-server; `apt-get install nats-server`"), settings)
    }

    /// Starts another version of the server.
    pub fn start_program(program: &Path, settings: &str) -> NatsServer {
        // Another test may bind a free port before the server does. Then the server starts again on another port.
        (0..5).find_map(|_| NatsServer::try_start(program, settings)).expect("the NATS server does not start")
    }

    fn try_start(program: &Path, settings: &str) -> Option<NatsServer> {
        let folder = tempfile::Builder::new().prefix("nats").tempdir().unwrap();
        super::certificate::certificate(folder.path());
        let mut server = NatsServer { folder, port: free_port(), program: program.to_owned(), process: None };
        server.configure(settings);
        if server.launch() {
            return Some(server);
        }
        let log = server.log();
        assert!(log.contains("address already in use"), "the NATS server has ended: {log}");
        None
    }

    fn configure(&self, settings: &str) {
        let (at, port) = (self.folder.path().display(), self.port);
        let configuration = format!(
            "listen: \"127.0.0.1:{port}\"\nlog_file: \"{at}/log\"\n\
             jetstream {{ store_dir: \"{at}/jetstream\", max_mem: 64MB, max_file: 1GB }}\n{settings}\n"
        );
        fs::write(self.folder.path().join("nats.conf"), configuration).unwrap();
    }

    /// Starts the process. Returns false if it has ended.
    fn launch(&mut self) -> bool {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg("nats.conf").current_dir(self.folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start("nats-server", "nats-server", &mut command);
        let port = self.port;
        let greets = || greeting(port).filter(|line| line.starts_with("INFO ")).map(drop);
        let is_up = process.until(LIMIT, greets).is_some();
        self.process = Some(process);
        is_up
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The CA certificate that a client has to trust if the server uses TLS.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends SIGTERM and waits for the end. The server writes its files before it ends.
    pub fn stop(&mut self) {
        self.end("-TERM");
    }

    /// Ends the server at once, as a crash of the process does. Data that was written to the kernel's page cache is not lost.
    pub fn kill(&mut self) {
        self.end("-KILL");
    }

    fn end(&mut self, signal: &str) {
        let mut process = self.process.take().expect("the server is not running");
        process.signal(signal);
        process.wait(LIMIT);
    }

    /// Starts the server again, with the same files and on the same port.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        assert!(self.launch(), "the NATS server does not start again: {}", self.log());
    }

    /// Replaces the additional lines of configuration, and restarts the server. [`NatsServer::client`] cannot connect if these
    /// lines demand a login or TLS.
    pub fn reconfigure(&mut self, settings: &str) {
        self.stop();
        self.configure(settings);
        self.restart();
    }

    /// Stops the process with SIGSTOP: its connections stay open, and nothing answers.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        self.process.as_ref().expect("the server is not running").signal(signal);
    }

    /// Connects a new client.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Sends a request to the JetStream API that must succeed: `api("STREAM.INFO.EVENTS", json!({}))`.
    pub async fn api(&self, subject: &str, request: Value) -> Value {
        let answer = self.ask(subject, request).await;
        assert!(answer.get("error").is_none(), "{subject}: {answer}");
        answer
    }

    /// Sends a request to the JetStream API that may fail.
    pub async fn ask(&self, subject: &str, request: Value) -> Value {
        let (client, body) = (self.client().await, request.to_string().into());
        let answer = client.request(format!("$JS.API.{subject}"), body).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Creates a stream. Its configuration is right for payments, except for the values that `changes` replaces.
    pub async fn create_stream(&self, name: &str, subjects: &[&str], changes: Value) {
        let mut config = json!({
            "name": name, "subjects": subjects, "storage": "file", "retention": "limits", "discard": "new",
            "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "num_replicas": 1,
            "deny_delete": true, "deny_purge": true, "allow_direct": true,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.api(&format!("STREAM.CREATE.{name}"), config).await;
    }

    /// Creates a key-value bucket as `nats kv add --history=1` does, except for the values that `changes` replaces.
    pub async fn create_bucket(&self, bucket: &str, ttl: Duration, changes: Value) {
        let nanos = u64::try_from(ttl.as_nanos()).unwrap();
        let mut config = json!({
            "max_age": nanos, "duplicate_window": nanos.min(120_000_000_000), "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": true, "deny_purge": false,
        });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        self.create_stream(&format!("KV_{bucket}"), &[&format!("$KV.{bucket}.>")], config).await;
    }

    /// How many messages a stream has.
    pub async fn count(&self, stream: &str) -> u64 {
        self.api(&format!("STREAM.INFO.{stream}"), json!({})).await["state"]["messages"].as_u64().unwrap()
    }
}
