//! A small IMAP server that keeps to the protocol until a test tells it not to.
//!
//! It has one mailbox. Each command, each new mail during an IDLE and each greeting is an occasion on which the
//! test's script may replace the usual answer by steps of its own: half an answer, a lie, silence, the end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

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
    /// A mail with this subject arrives.
    Deliver(&'static str),
    /// The mail with this UID is removed.
    Remove(u32),
    /// FETCH leaves these out from now on.
    Hide(Vec<u32>),
    /// The end of the stream.
    Close,
    /// An abrupt end (RST).
    Reset,
    /// Never another word; what comes is still read.
    Mute,
    /// The same bytes for ever, as fast as they are taken.
    Flood(&'static str),
    /// The same line for ever, one each time this has passed.
    Drip(&'static str, Duration),
}

/// An occasion for the script.
pub struct Seen<'a> {
    /// `greeting`, `LOGIN`, `UID FETCH`, `IDLE`, `DONE` …, or `news`: the mailbox changed during an IDLE.
    pub name: &'a str,
    /// The whole line.
    pub line: &'a str,
    /// How often there was an occasion of this name on any connection, this one included.
    pub nth: usize,
    /// The connection's number, from 1.
    pub connection: usize,
}

type Script = Box<dyn FnMut(&Seen<'_>) -> Vec<Step> + Send>;

/// What the server knows.
pub struct World {
    pub capabilities: String,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub tells_uid_next: bool,
    pub mails: Vec<(u32, Vec<u8>)>,
    /// The mailbox's name as it goes over the wire; `None`: there is none.
    pub mailbox: Option<String>,
    /// What LIST says.
    pub list: Vec<String>,
    hidden: BTreeSet<u32>,
    script: Script,
    seen: Vec<(String, usize)>,
    connections: usize,
    open: usize,
    /// Every line that a client wrote.
    pub lines: Vec<String>,
}

impl World {
    /// A mail arrives.
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
    world: Arc<Mutex<World>>,
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
        let world = World {
            capabilities: "IDLE MOVE UIDPLUS SPECIAL-USE".into(),
            uid_validity: 7,
            uid_next: 1,
            tells_uid_next: true,
            mails: Vec::new(),
            mailbox: Some("INBOX".into()),
            list: Vec::new(),
            hidden: BTreeSet::new(),
            script: Box::new(|_| vec![Step::Usual]),
            seen: Vec::new(),
            connections: 0,
            open: 0,
            lines: Vec::new(),
        };
        let server =
            Scripted { port, world: Arc::new(Mutex::new(world)), changed: Arc::new(watch::Sender::new(0)) };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                let number = server.change(|world| {
                    world.connections += 1;
                    world.open += 1;
                    world.connections
                });
                tokio::spawn(async move {
                    Connection::new(server.clone(), stream, number).serve().await;
                    server.change(|world| world.open -= 1);
                });
            }
        });
        server
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Changes what the server knows, and wakes whoever waits for that.
    pub fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// From now on every occasion goes through `script`.
    pub fn script(&self, script: impl FnMut(&Seen<'_>) -> Vec<Step> + Send + 'static) {
        self.world().script = Box::new(script);
    }

    /// One of Resmic's mails arrives.
    pub fn deliver(&self, subject: &str) -> u32 {
        self.change(|world| world.deliver(&notification(subject)))
    }

    /// Waits until the server has seen or become something.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&World) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while !holds(&self.world()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("the server did not see in time: {what}\n{}", self.world().lines.join("\n"));
        }
    }

    /// How many lines begin, after their tag, with this command.
    pub fn asked(&self, command: &str) -> usize {
        self.world().lines.iter().filter(|line| line.contains(command)).count()
    }
}

struct Connection {
    server: Scripted,
    stream: TcpStream,
    number: usize,
    buffer: Vec<u8>,
    /// The UIDs as this client was told of them, by sequence number.
    view: Vec<u32>,
    selected: bool,
    /// The tag of the IDLE.
    idle: Option<String>,
    /// The items that NOTIFY asked for.
    notify: Option<String>,
}

/// The connection ends.
struct Ended;
type Result<T> = std::result::Result<T, Ended>;

impl Connection {
    fn new(server: Scripted, stream: TcpStream, number: usize) -> Self {
        stream.set_nodelay(true).unwrap();
        let buffer = Vec::new();
        Connection { server, stream, number, buffer, view: Vec::new(), selected: false, idle: None, notify: None }
    }

    async fn serve(&mut self) {
        let mut changes = self.server.changed.subscribe();
        if self.occasion("greeting", "* greeting").await.is_err() {
            return;
        }
        loop {
            let watches = self.idle.is_some();
            let went_on = tokio::select! {
                line = read_line(&mut self.stream, &mut self.buffer) => match line {
                    Some(line) => self.command(&line).await,
                    None => Err(Ended),
                },
                _ = changes.changed(), if watches => {
                    if self.is_behind() { self.occasion("news", "").await } else { Ok(()) }
                }
            };
            if went_on.is_err() {
                return;
            }
        }
    }

    /// Whether the mailbox is not any more as the client knows it.
    fn is_behind(&self) -> bool {
        let world = self.server.world();
        let uids: Vec<u32> = world.mails.iter().map(|(uid, _)| *uid).collect();
        self.selected && self.view != uids
    }

    async fn command(&mut self, line: &str) -> Result<()> {
        self.server.change(|world| world.lines.push(format!("{} {line}", self.number)));
        if line == "DONE" && self.idle.is_some() {
            return self.occasion("DONE", line).await;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let name = match words.as_slice() {
            [_, uid, command, ..] if uid.eq_ignore_ascii_case("UID") => format!("UID {command}"),
            [_, command, ..] => (*command).to_owned(),
            _ => return self.write("* BAD that is no command\r\n").await,
        };
        self.occasion(&name, line).await
    }

    async fn occasion(&mut self, name: &str, line: &str) -> Result<()> {
        let steps = self.server.change(|world| {
            let nth = match world.seen.iter_mut().find(|(n, _)| n == name) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    world.seen.push((name.to_owned(), 1));
                    1
                }
            };
            (world.script)(&Seen { name, line, nth, connection: self.number })
        });
        let tag = match name {
            "DONE" => self.idle.take().unwrap_or_default(),
            _ => line.split(' ').next().unwrap_or_default().to_owned(),
        };
        for step in steps {
            self.step(name, line, &tag, step).await?;
        }
        Ok(())
    }

    async fn step(&mut self, name: &str, line: &str, tag: &str, step: Step) -> Result<()> {
        match step {
            Step::Usual => {
                self.untagged(name, line).await?;
                self.tagged(name, tag, true).await
            }
            Step::Untagged => self.untagged(name, line).await,
            Step::Ok => self.tagged(name, tag, true).await,
            Step::BareOk => self.tagged(name, tag, false).await,
            Step::Say(text) => self.write(&text.replace("{tag}", tag)).await,
            Step::Deliver(subject) => {
                self.server.deliver(subject);
                Ok(())
            }
            Step::Remove(uid) => {
                self.server.change(|world| world.mails.retain(|(u, _)| *u != uid));
                Ok(())
            }
            Step::Hide(uids) => {
                self.server.change(|world| world.hidden = uids.into_iter().collect());
                Ok(())
            }
            Step::Close => Err(Ended),
            Step::Reset => {
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
                Err(Ended)
            }
            Step::Mute => {
                let mut sink = [0; 1024];
                while self.stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                Err(Ended)
            }
            Step::Flood(bytes) => loop {
                self.write(bytes).await?;
            },
            Step::Drip(line, pause) => loop {
                self.write(line).await?;
                tokio::time::sleep(pause).await;
            },
        }
    }

    async fn write(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).await.map_err(|_| Ended)
    }

    /// The untagged part of the ordinary answer.
    async fn untagged(&mut self, name: &str, line: &str) -> Result<()> {
        let text = match name {
            "greeting" => "* OK ready\r\n".to_owned(),
            "CAPABILITY" => format!("* CAPABILITY IMAP4rev1 {}\r\n", self.server.world().capabilities),
            "EXAMINE" | "SELECT" => self.select(),
            "STATUS" => format!("* STATUS INBOX (UIDNEXT {})\r\n", self.server.world().uid_next),
            "LIST" => self.server.world().list.iter().map(|line| format!("* LIST {line}\r\n")).collect(),
            "UID FETCH" => return self.fetch(line).await,
            "UID MOVE" => self.take_out(line),
            "UID EXPUNGE" => self.take_out(line),
            "NOTIFY" => {
                self.notify = Some(line.to_owned());
                String::new()
            }
            "IDLE" => {
                self.idle = line.split(' ').next().map(str::to_owned);
                "+ idling\r\n".to_owned()
            }
            "news" => return self.news().await,
            "LOGOUT" => "* BYE goodbye\r\n".to_owned(),
            _ => String::new(),
        };
        self.write(&text).await?;
        if name == "IDLE" && self.is_behind() { self.occasion_boxed("news").await } else { Ok(()) }
    }

    async fn occasion_boxed(&mut self, name: &'static str) -> Result<()> {
        Box::pin(self.occasion(name, "")).await
    }

    async fn tagged(&mut self, name: &str, tag: &str, with_news: bool) -> Result<()> {
        match name {
            "greeting" | "IDLE" | "news" => return Ok(()),
            "EXAMINE" | "SELECT" if self.server.world().mailbox.is_none() => {
                return self.write(&format!("{tag} NO [NONEXISTENT] no such mailbox\r\n")).await;
            }
            _ if with_news && self.selected => {
                let news = self.changes();
                self.write(&news).await?;
            }
            _ => {}
        }
        self.write(&format!("{tag} OK done\r\n")).await?;
        if name == "LOGOUT" { Err(Ended) } else { Ok(()) }
    }

    fn select(&mut self) -> String {
        let world = self.server.world();
        if world.mailbox.is_none() {
            return String::new();
        }
        self.selected = true;
        self.view = world.mails.iter().map(|(uid, _)| *uid).collect();
        let next = if world.tells_uid_next { format!("* OK [UIDNEXT {}] next\r\n", world.uid_next) } else { "".into() };
        format!("* {} EXISTS\r\n* OK [UIDVALIDITY {}] ok\r\n{next}", self.view.len(), world.uid_validity)
    }

    /// What is different from what the client knows, in the server's words; then it knows it.
    fn changes(&mut self) -> String {
        let world = self.server.world();
        let mut text = String::new();
        while let Some(gone) = self.view.iter().position(|uid| !world.mails.iter().any(|(u, _)| u == uid)) {
            self.view.remove(gone);
            text += &format!("* {} EXPUNGE\r\n", gone + 1);
        }
        if world.mails.len() > self.view.len() {
            self.view = world.mails.iter().map(|(uid, _)| *uid).collect();
            text += &format!("* {} EXISTS\r\n", self.view.len());
        }
        text
    }

    async fn news(&mut self) -> Result<()> {
        let before = self.view.last().copied().unwrap_or(0);
        let text = self.changes();
        self.write(&text).await?;
        let Some(items) = self.notify.clone() else { return Ok(()) };
        let new: Vec<u32> = self.view.iter().copied().filter(|uid| *uid > before).collect();
        self.send_mails(&new, &items).await
    }

    async fn fetch(&mut self, line: &str) -> Result<()> {
        let (_, rest) = line.split_once("FETCH ").unwrap();
        let (set, items) = rest.split_once(' ').unwrap();
        let uids = self.named_by(set);
        self.send_mails(&uids, items).await
    }

    /// The UIDs of a sequence set, with the rule that `*` is the last mail, on whichever side.
    fn named_by(&self, set: &str) -> Vec<u32> {
        let last = self.view.last().copied().unwrap_or(0);
        let number = |text: &str| if text == "*" { last } else { text.parse().unwrap() };
        let mut uids = BTreeSet::new();
        for part in set.split(',') {
            let (a, b) = part.split_once(':').unwrap_or((part, part));
            let (a, b) = (number(a).min(number(b)), number(a).max(number(b)));
            uids.extend(self.view.iter().copied().filter(|uid| (a..=b).contains(uid)));
        }
        uids.into_iter().collect()
    }

    async fn send_mails(&mut self, uids: &[u32], items: &str) -> Result<()> {
        for uid in uids {
            let text = {
                let world = self.server.world();
                let mail = world.mails.iter().find(|(u, _)| u == uid);
                let place = self.view.iter().position(|u| u == uid).unwrap_or(0) + 1;
                match mail {
                    Some((uid, bytes)) if !world.hidden.contains(uid) => data(place, *uid, bytes, items),
                    _ => Vec::new(),
                }
            };
            self.stream.write_all(&text).await.map_err(|_| Ended)?;
        }
        Ok(())
    }

    /// MOVE, or EXPUNGE of just these.
    fn take_out(&mut self, line: &str) -> String {
        let set = line.split(' ').nth(3).unwrap();
        let uids = self.named_by(set);
        self.server.change(|world| world.mails.retain(|(uid, _)| !uids.contains(uid)));
        self.changes()
    }
}

/// An untagged FETCH with what `items` asks for.
pub fn data(place: usize, uid: u32, bytes: &[u8], items: &str) -> Vec<u8> {
    let mut text = format!("* {place} FETCH (UID {uid} INTERNALDATE \"05-Mar-2025 03:36:00 +0000\"").into_bytes();
    if items.contains("RFC822.SIZE") {
        text.extend(format!(" RFC822.SIZE {}", bytes.len()).bytes());
    }
    let partial = |name: &str| {
        let (_, rest) = items.split_once(&format!("{name}<0."))?;
        rest.split_once('>')?.0.parse::<usize>().ok()
    };
    let mut section = |name: &str, bytes: &[u8]| {
        let limit = partial(&format!("BODY.PEEK[{name}]"));
        let bytes = &bytes[..bytes.len().min(limit.unwrap_or(usize::MAX))];
        let origin = if limit.is_some() { "<0>" } else { "" };
        text.extend(format!(" BODY[{name}]{origin} {{{}}}\r\n", bytes.len()).bytes());
        text.extend(bytes);
    };
    if items.contains("HEADER.FIELDS (FROM)") {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").map_or(bytes.len(), |n| n + 2);
        section("HEADER.FIELDS (FROM)", &[&bytes[..end], b"\r\n"].concat());
    }
    if items.contains("BODY.PEEK[]") {
        section("", bytes);
    }
    text.extend(b")\r\n");
    text
}

async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = buffer.drain(..end + 2).collect();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
