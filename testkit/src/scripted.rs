//! A small IMAP server that keeps to the protocol until a test tells it not to.
//!
//! It has one mailbox. Each command, each new mail during an IDLE and each greeting is an occasion on which the
//! test's script may replace the usual answer by steps of its own: half an answer, a lie, silence, the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

#[path = "scripted/connection.rs"]
pub mod connection;

use connection::Connection;

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What the server does on an occasion.
#[derive(Clone, Debug)]
pub enum Step {
    /// The ordinary answer, all of it.
    Usual,
    /// Its untagged part.
    Untagged,
    /// The tagged OK, and before it what else is new in the mailbox.
    Ok,
    /// The tagged OK alone.
    BareOk,
    /// These bytes; `{tag}` stands for the command's tag.
    Say(String),
    /// What is new in the mailbox is announced, and not pushed.
    Announce,
    /// A mail with this subject arrives.
    Deliver(&'static str),
    /// The mail with this UID is removed.
    Remove(u32),
    /// FETCH leaves these out from now on.
    Hide(Vec<u32>),
    /// The end of the stream.
    Close,
    /// The end of the stream, and what comes is still read: the client may write on and see no error.
    CloseHalf,
    /// An abrupt end (RST).
    Reset,
    /// Never another word; what comes is still read.
    Mute,
    /// The same bytes for ever, as fast as they are taken.
    Flood(&'static str),
    /// From now on this line, each time this has passed; commands are answered all the same.
    Chatter(&'static str, Duration),
    /// The server ends the IDLE by itself.
    EndIdle,
    /// Nothing, for so long.
    Pause(Duration),
    /// What the client wrote before this is never looked at, nor what comes after it: so Cyrus takes what came with an
    /// IDLE.
    Overhear,
}

/// How the server does not deliver a mail that it lists, in answer to a FETCH of its body or header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFault {
    /// `BODY[] NIL`
    Nil,
    /// `BODY[] ""`
    Empty,
    /// An answer without that item.
    NoItem,
    /// No answer for this mail.
    Nothing,
    /// A literal that ends before its announced length; then the server goes on.
    Short,
    /// `* BYE FETCH failed`, as Dovecot.
    Bye,
    /// The end of the stream.
    Close,
    /// Not another word.
    Mute,
    /// `NO` to the command.
    No,
}

/// An event that the script may react to.
pub struct Occasion<'a> {
    /// `greeting`, the name of a command (`LOGIN`, `UID FETCH`, `DONE` …), `word` for a line of one word, or `news` if the
    /// mailbox changed during an IDLE.
    pub name: &'a str,
    /// The whole line.
    pub line: &'a str,
    /// How often there was an occasion of this name on any connection, this one included.
    pub nth: usize,
    /// The connection's number, from 1.
    pub connection: usize,
    /// The UID of the last mail.
    pub last_uid: u32,
}

type Script = Box<dyn FnMut(&Occasion<'_>) -> Vec<Step> + Send>;

/// The state of the server.
pub struct ServerState {
    pub capabilities: String,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub tells_uid_next: bool,
    pub tells_uid_validity: bool,
    /// What SELECT, EXAMINE or STATUS report as UIDNEXT, if not that.
    pub false_uid_next: BTreeMap<&'static str, u32>,
    pub mails: Vec<(u32, Vec<u8>)>,
    /// When each came, if it matters.
    pub dates: BTreeMap<u32, String>,
    /// The mailbox's name as it goes over the wire; `None`: there is none.
    pub mailbox: Option<String>,
    /// What LIST says.
    pub list: Vec<String>,
    /// The mails that are listed but not delivered, by UID.
    pub fetch_faults: BTreeMap<u32, FetchFault>,
    /// The number of bodies after which a connection is closed.
    pub bodies: Option<usize>,
    /// RFC822.SIZE is this much more than the mail has bytes.
    pub oversize: usize,
    hidden: BTreeSet<u32>,
    script: Script,
    seen: Vec<(String, usize)>,
    connections: usize,
    open: usize,
    /// The most that were open at once.
    most_open: usize,
    /// Every line that a client wrote.
    pub lines: Vec<String>,
    /// What came together.
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

    /// How often such an occasion was.
    pub fn count(&self, name: &str) -> usize {
        self.seen.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count)
    }

    /// How many lines hold these words.
    pub fn asked(&self, words: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(words)).count()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.open
    }
}

/// The server, as a test holds it.
#[derive(Clone)]
pub struct Scripted {
    pub port: u16,
    state: Arc<Mutex<ServerState>>,
    changed: Arc<watch::Sender<u64>>,
}

/// A mail of Resmic's, by its From at least.
pub fn notification(subject: &str) -> Vec<u8> {
    format!("From: Resmic <billing@resmic.com>\r\nSubject: {subject}\r\n\r\n{subject}\r\n").into_bytes()
}

/// Somebody else's mail.
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

    /// Locks the state. Two guards in one expression are a deadlock.
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

    /// One of Resmic's mails arrives.
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

    /// How many lines hold these words.
    pub fn asked(&self, words: &str) -> usize {
        self.state().asked(words)
    }

    /// Every line that a client wrote.
    pub fn lines(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// How often such an occasion was.
    pub fn count(&self, name: &str) -> usize {
        self.state().count(name)
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// The most that were open at once.
    pub fn most_open(&self) -> usize {
        self.state().most_open
    }
}
