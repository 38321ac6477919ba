//! Child processes that run in the foreground and end with their owner.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child process; dropping it ends the process.
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// Starts a program; `package` is the Debian package to install if the program is missing.
    pub fn start(name: &'static str, package: &str, command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}; `apt-get install {package}`"));
        Process { child, name }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn signal(&self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
    }

    /// Ends the process and then its children. In Dovecot 2.4, a process that serves a connection outlives the server.
    pub fn end_with_children(&mut self, limit: Duration) {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        self.signal("-TERM");
        self.wait(limit);
        let _ = Command::new("kill").arg("-KILL").args(children.split_whitespace()).stderr(Stdio::null()).status();
    }

    /// Waits for the end of the process and returns its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} has not ended within {limit:?}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal("-TERM");
        let deadline = Instant::now() + Duration::from_secs(3);
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether a mail server sends a greeting on this port.
pub fn greets(port: u16) -> bool {
    greeting(port).is_some_and(|line| line.starts_with("* OK") || line.starts_with("220"))
}

/// The first line that a server sends.
pub fn greeting(port: u16) -> Option<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line)
}

impl Process {
    /// Polls until `work` returns a value, for servers that do not announce that they are ready. `None`: the process has
    /// ended.
    pub fn until<T>(&mut self, limit: Duration, mut work: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(done) = work() {
                return Some(done);
            }
            if self.has_ended() {
                return None;
            }
            assert!(Instant::now() < deadline, "{} is not up within {limit:?}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Process {
    /// Takes over a child that is already running.
    pub fn adopt(child: Child, name: &'static str) -> Process {
        Process { child, name }
    }
}
