//! A small IMAP server with one mailbox, which follows the protocol until a test's script says otherwise.
//!
//! Each greeting, each command and each change of the mailbox during an IDLE is an [`Occasion`]. The script may replace
//! the usual response by other steps: a part of a response, a wrong one, silence, or the end of the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

#[path = "scripted/connection.rs"]
pub mod connection;

use connection::Connection;

/// The longest time that a test waits for an event.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One action of the server on an occasion.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends the whole usual response.
    Usual,
    /// Sends the untagged part of the usual response.
    Untagged,
    /// Announces changes of the mailbox and sends the tagged OK.
    Ok,
    /// Sends only the tagged OK.
    BareOk,
    /// Sends this text; `{tag}` stands for the command's tag.
    Say(String),
    /// Announces changes of the mailbox without pushing mails (NOTIFY).
    Announce,
    /// Delivers a mail with this subject.
    Deliver(&'static str),
    /// Removes the mail with this UID.
    Remove(u32),
    /// FETCH responses omit these UIDs from now on.
    Hide(Vec<u32>),
    /// Closes the connection.
    Close,
    /// Closes the server's direction and continues to read, so that the client can write without an error.
    CloseHalf,
    /// Ends the connection with an RST.
    Reset,
    /// Sends nothing from now on and continues to read.
    Mute,
    /// Sends this text again and again, as fast as the client reads.
    Flood(&'static str),
    /// Sends this line at this interval from now on, in addition to the usual responses.
    Chatter(&'static str, Duration),
    /// Ends the IDLE from the server's side.
    EndIdle,
    /// Waits for this time.
    Pause(Duration),
    /// If the client has already sent more bytes, ignores these bytes and everything after them. Cyrus does so with bytes that
    /// arrive together with an IDLE.
    Overhear,
}

/// How a FETCH of the body or the header fails for a mail that the server lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFault {
    /// `BODY[] NIL`
    Nil,
    /// `BODY[] ""`
    Empty,
    /// A FETCH response that does not contain the requested body or header.
    NoItem,
    /// No response for this mail.
    Nothing,
    /// A literal that is shorter than its announced length, followed by more responses.
    Short,
    /// `* BYE FETCH failed`, as Dovecot sends it.
    Bye,
    /// Closes the connection.
    Close,
    /// The server sends nothing from then on.
    Mute,
    /// A tagged NO.
    No,
}

/// An event that the script may react to.
pub struct Occasion<'a> {
    /// `greeting`, the name of a command (`LOGIN`, `UID FETCH`, `DONE` …), `word` for a line of one word, or `news` if the
    /// mailbox changed during an IDLE.
    pub name: &'a str,
    /// The whole line.
    pub line: &'a str,
    /// The number of occasions with this name on all connections, including this one.
    pub nth: usize,
    /// The connection's number, from 1.
    pub connection: usize,
    /// The UID of the last mail.
    pub last_uid: u32,
}

type ServerScript = Box<dyn FnMut(&Occasion<'_>) -> Vec<Step> + Send>;

/// The state of the server.
pub struct ServerState {
    pub capabilities: String,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub tells_uid_next: bool,
    pub tells_uid_validity: bool,
    /// Wrong UIDNEXTs, by the command that reports them: SELECT, EXAMINE or STATUS.
    pub false_uid_next: BTreeMap<&'static str, u32>,
    pub mails: Vec<(u32, Vec<u8>)>,
    /// The INTERNALDATE of mails, if a test sets it.
    pub dates: BTreeMap<u32, String>,
    /// The encoded name of the mailbox; `None` if it does not exist.
    pub mailbox: Option<String>,
    /// The lines of a LIST response.
    pub list: Vec<String>,
    /// The mails that are listed but not delivered, by UID.
    pub fetch_faults: BTreeMap<u32, FetchFault>,
    /// The number of bodies after which a connection is closed.
    pub bodies: Option<usize>,
    /// How many bytes RFC822.SIZE is above the real size.
    pub oversize: usize,
    /// Whether the server refuses a UID FETCH that matches no mail.
    pub refuses_empty_fetch: bool,
    hidden: BTreeSet<u32>,
    script: ServerScript,
    seen: Vec<(String, usize)>,
    connections: usize,
    open: usize,
    /// The largest number of connections that were open at once.
    most_open: usize,
    /// Every line from a client, each after the number of its connection.
    pub lines: Vec<String>,
    /// The bytes of each read, as text.
    pub reads: Vec<String>,
}

impl ServerState {
    /// Delivers a mail and returns its UID.
    pub fn deliver(&mut self, bytes: &[u8]) -> u32 {
        let uid = self.uid_next;
        self.mails.push((uid, bytes.to_vec()));
        self.uid_next += 1;
        uid
    }

    /// The number of occasions with this name.
    pub fn count(&self, name: &str) -> usize {
        self.seen.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count)
    }

    /// The number of client lines that contain `text`.
    pub fn asked(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.open
    }
}

/// A handle to the server; clones share it.
#[derive(Clone)]
pub struct Scripted {
    pub port: u16,
    state: Arc<Mutex<ServerState>>,
    changed: Arc<watch::Sender<u64>>,
}

/// A mail with Resmic's address in From.
pub fn notification(subject: &str) -> Vec<u8> {
    format!("From: Resmic <billing@resmic.com>\r\nSubject: {subject}\r\n\r\n{subject}\r\n").into_bytes()
}

/// A mail from another sender.
pub fn other(subject: &str) -> Vec<u8> {
    format!("From: A friend <friend@else.example>\r\nSubject: {subject}\r\n\r\n{subject}\r\n").into_bytes()
}

impl Scripted {
    /// Starts on a free port of this machine.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = ServerState {
            capabilities: "IDLE MOVE UIDPLUS SPECIAL-USE".into(),
            uid_validity: 7,
            uid_next: 1,
            tells_uid_next: true,
            tells_uid_validity: true,
            false_uid_next: BTreeMap::new(),
            mails: Vec::new(),
            dates: BTreeMap::new(),
            mailbox: Some("INBOX".into()),
            list: Vec::new(),
            fetch_faults: BTreeMap::new(),
            bodies: None,
            oversize: 0,
            refuses_empty_fetch: false,
            hidden: BTreeSet::new(),
            script: Box::new(|_| vec![Step::Usual]),
            seen: Vec::new(),
            connections: 0,
            open: 0,
            most_open: 0,
            lines: Vec::new(),
            reads: Vec::new(),
        };
        let server = Scripted { port, state: Arc::new(Mutex::new(state)), changed: Arc::new(watch::Sender::new(0)) };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                let number = server.change(|state| {
                    state.connections += 1;
                    state.open += 1;
                    state.most_open = state.most_open.max(state.open);
                    state.connections
                });
                tokio::spawn(async move {
                    Connection::new(server.clone(), stream, number).serve().await;
                    server.change(|state| state.open -= 1);
                });
            }
        });
        server
    }

    /// Locks the state. Two guards in one expression cause a deadlock.
    pub fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }

    /// Changes the state and wakes the tasks that wait for a change.
    pub fn change<T>(&self, change: impl FnOnce(&mut ServerState) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Sets the script for all occasions from now on.
    pub fn script(&self, script: impl FnMut(&Occasion<'_>) -> Vec<Step> + Send + 'static) {
        self.state().script = Box::new(script);
    }

    /// Delivers a mail with Resmic's address in From.
    pub fn deliver(&self, subject: &str) -> u32 {
        self.change(|state| state.deliver(&notification(subject)))
    }

    /// Waits until the state satisfies a condition; `what` names it in the panic message.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&ServerState) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while !holds(&self.state()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("the server did not see in time: {what}\n{}", self.state().lines.join("\n"));
        }
    }

    /// The number of client lines that contain `text`.
    pub fn asked(&self, text: &str) -> usize {
        self.state().asked(text)
    }

    /// Every line from a client, each after the number of its connection.
    pub fn lines(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// The number of occasions with this name.
    pub fn count(&self, name: &str) -> usize {
        self.state().count(name)
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// The largest number of connections that were open at once.
    pub fn most_open(&self) -> usize {
        self.state().most_open
    }
}
