//! A private Courier on loopback: the programs of Debian's unpacked package, with all other files in a temporary folder.
//!
//! Courier's login program and its authentication daemon have their paths compiled in. This module takes their place: it
//! sends the greeting, accepts a LOGIN with any password, and hands the connection over to the real imapd.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::unpacked_servers::{command_in, unpacked_folder};

/// The capabilities of Debian's configuration.
const CAPABILITIES: &str =
    "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE";

pub struct Courier {
    pub imap: u16,
    shared: Arc<CourierState>,
}

struct CourierState {
    folder: tempfile::TempDir,
    /// The imapd processes; `None` while the server is down.
    processes: Mutex<Option<Vec<Child>>>,
    delivered: Mutex<usize>,
}

impl Courier {
    pub fn start() -> Courier {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let imap = listener.local_addr().unwrap().port();
        let folder = tempfile::Builder::new().prefix("courier").tempdir().unwrap();
        let shared =
            Arc::new(CourierState { folder, processes: Mutex::new(Some(Vec::new())), delivered: Mutex::new(0) });
        let serving = Arc::downgrade(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(shared) = serving.upgrade() else { return };
                std::thread::spawn(move || shared.serve_login(&stream.unwrap()));
            }
        });
        Courier { imap, shared }
    }

    /// Delivers mails into the Maildir, as a delivery agent does.
    pub fn deliver<'a>(&self, user: &str, mails: impl IntoIterator<Item = &'a [u8]>) {
        let maildir = self.shared.maildir(user);
        for mail in mails {
            let mut delivered = self.shared.delivered.lock().unwrap();
            *delivered += 1;
            let name = format!("1741145760.M{:06}P1.localhost", *delivered);
            let text = String::from_utf8_lossy(mail).replace("\r\n", "\n");
            fs::write(maildir.join("tmp").join(&name), text).unwrap();
            fs::rename(maildir.join("tmp").join(&name), maildir.join("new").join(&name)).unwrap();
        }
    }

    /// Ends all connections and refuses new ones while `work` runs.
    pub fn while_down(&mut self, work: impl FnOnce()) {
        self.shared.end_processes();
        work();
        *self.shared.processes.lock().unwrap() = Some(Vec::new());
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.shared.end_processes();
    }
}

impl CourierState {
    fn end_processes(&self) {
        for mut child in self.processes.lock().unwrap().take().into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn serve_login(&self, mut stream: &TcpStream) {
        if self.processes.lock().unwrap().is_none() {
            return;
        }
        let _ = write!(stream, "* OK [CAPABILITY {CAPABILITIES}] Courier-IMAP ready.\r\n");
        while let Some(line) = read_line(stream) {
            let mut words = line.split(' ');
            let (tag, command) = (words.next().unwrap_or("*").to_owned(), words.next().unwrap_or_default());
            if command == "LOGIN" {
                let user = words.next().unwrap_or_default().trim_matches('"').to_owned();
                return self.hand_over(stream, &user, &tag);
            }
            let _ = write!(stream, "{tag} BAD only LOGIN here\r\n");
        }
    }

    fn hand_over(&self, stream: &TcpStream, user: &str, tag: &str) {
        let maildir = self.maildir(user);
        let programs = unpacked_folder("courier-imap");
        let mut command = command_in(&programs, "imapd");
        let end = || Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
        command.arg("Maildir").current_dir(maildir.parent().unwrap()).stdin(end()).stdout(end()).stderr(Stdio::null());
        command.envs([("AUTHENTICATED", user), ("IMAPLOGINTAG", tag), ("IMAP_CAPABILITY", CAPABILITIES)]);
        // In IDLE, imapd polls the mailbox; Debian's interval is a minute, here it is a second. The alternative,
        // "enhanced IDLE", needs another daemon for each user.
        command.envs([("IMAP_IDLE_TIMEOUT", "1"), ("IMAP_ENHANCEDIDLE", "0"), ("IMAP_USELOCKS", "0")]);
        command.envs([("PROTOCOL", "IMAP"), ("TCPREMOTEIP", "127.0.0.1"), ("TCPREMOTEPORT", "1")]);
        // If the program gam_server exists, it notifies imapd of changes. Otherwise imapd polls.
        command.env("GAMIN_DEBUG_SERVER", programs.join("gam_server"));
        if let Some(processes) = &mut *self.processes.lock().unwrap() {
            processes.push(command.spawn().unwrap());
        }
    }

    /// The path of a user's Maildir, which is created if it does not exist.
    fn maildir(&self, user: &str) -> PathBuf {
        let maildir = self.folder.path().join(user).join("Maildir");
        for name in ["cur", "new", "tmp"] {
            fs::create_dir_all(maildir.join(name)).unwrap();
        }
        maildir
    }
}

/// Reads byte by byte, so that everything after the line is left for imapd.
fn read_line(mut stream: &TcpStream) -> Option<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&line).trim().to_owned())
}
