//! Real webhook handlers: the programs in examples/.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::daemon::SECRET;
use super::process::Process;

/// A running handler and the events that it accepted.
pub struct Handler {
    pub port: u16,
    accepted: Arc<(Mutex<Vec<String>>, Condvar)>,
    process: Process,
}

impl Handler {
    /// Starts the Express handler, which verifies signatures as Resmic's documentation describes.
    pub fn express() -> Handler {
        let folder = crate::project().join("examples/node-express");
        assert!(
            folder.join("node_modules").exists(),
            "express is not installed: `npm ci --prefix {}`",
            folder.display()
        );
        Handler::start("node", "nodejs", &folder.join("server.js"), 0)
    }

    /// Starts the handler that uses Python's standard library.
    pub fn python() -> Handler {
        Handler::python_on(0)
    }

    /// Starts the Python handler on this port.
    pub fn python_on(port: u16) -> Handler {
        let folder = crate::project().join("examples/python");
        Handler::start("python3", "python3", &folder.join("handler.py"), port)
    }

    /// Starts the Express handler on this port.
    pub fn express_on(port: u16) -> Handler {
        let folder = crate::project().join("examples/node-express");
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
        Handler { port, accepted, process: Process::adopt(child, program) }
    }

    /// Ends the handler. Its port is then free.
    pub fn stop(&mut self) {
        self.process.signal("-TERM");
        self.process.wait(Duration::from_secs(10));
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/payment-webhook", self.port)
    }

    /// Posts a body with these header fields and returns the status.
    pub fn post(&self, body: &str, headers: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!(
            "POST /payment-webhook HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), headers, b"\r\n", body.as_bytes()].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// Posts a body with a valid signature and returns the status.
    pub fn post_signed(&self, body: &str, fields: &str) -> String {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let mut headers = "Content-Type: application/json\r\nX-Signature: ".to_owned();
        for byte in ring::hmac::sign(&key, body.as_bytes()).as_ref() {
            write!(headers, "{byte:02x}").unwrap();
        }
        self.post(body, format!("{headers}\r\n{fields}").as_bytes())
    }

    /// Waits until the handler has accepted `count` events and returns their bodies.
    pub fn accepted(&self, count: usize) -> Vec<String> {
        let accepted = self.accepted.0.lock().unwrap();
        let limit = Duration::from_secs(60);
        let (accepted, waited) = self.accepted.1.wait_timeout_while(accepted, limit, |a| a.len() < count).unwrap();
        assert!(!waited.timed_out(), "{} events were accepted, not {count}", accepted.len());
        accepted.clone()
    }
}
