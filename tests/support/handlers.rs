//! Real webhook handlers: the examples that users start from.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::daemon::SECRET;
use super::process::Process;

/// A running handler, and the events that it accepted.
pub struct Handler {
    pub port: u16,
    accepted: Arc<(Mutex<Vec<String>>, Condvar)>,
    _process: Process,
}

impl Handler {
    /// Node and Express, checking as Resmic's documentation describes.
    pub fn express() -> Handler {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/node-express");
        assert!(
            folder.join("node_modules").exists(),
            "express is not installed: `npm ci --prefix {}`",
            folder.display()
        );
        Handler::start("node", "nodejs", &folder.join("server.js"), 0)
    }

    /// Python's own library.
    pub fn python() -> Handler {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
        Handler::start("python3", "python3", &folder.join("handler.py"), 0)
    }

    /// The Express handler on a port that it had before.
    pub fn express_on(port: u16) -> Handler {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/node-express");
        Handler::start("node", "nodejs", &folder.join("server.js"), port)
    }

    fn start(program: &'static str, package: &str, script: &Path, port: u16) -> Handler {
        let mut command = Command::new(program);
        command.arg(script).env("PORT", port.to_string()).env("WEBHOOK_SECRET", SECRET).stdout(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}; `apt-get install {package}`"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let port =
            first.strip_prefix("listening on ").unwrap_or_else(|| panic!("{program} says {first:?}")).parse().unwrap();
        let accepted: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let keep = accepted.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                keep.0.lock().unwrap().push(line);
                keep.1.notify_all();
            }
        });
        Handler { port, accepted, _process: Process::of(child, program) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/payment-webhook", self.port)
    }

    /// The bodies that it accepted, once there are so many.
    pub fn accepted(&self, count: usize) -> Vec<String> {
        let accepted = self.accepted.0.lock().unwrap();
        let limit = Duration::from_secs(60);
        let (accepted, waited) = self.accepted.1.wait_timeout_while(accepted, limit, |a| a.len() < count).unwrap();
        assert!(!waited.timed_out(), "{} events were accepted, not {count}", accepted.len());
        accepted.clone()
    }
}
