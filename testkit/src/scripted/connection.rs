//! One client connection of the scripted server: the usual responses, and the steps of the script.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{FetchFault, Occasion, Scripted, Step};

/// The INTERNALDATE of a mail for which the test sets none.
const DATE: &str = "05-Mar-2025 03:36:00 +0000";

pub struct Connection {
    server: Scripted,
    stream: TcpStream,
    number: usize,
    buffer: Vec<u8>,
    /// The UIDs that were announced to this client, by sequence number.
    view: Vec<u32>,
    selected: bool,
    /// The tag of the current IDLE.
    idle: Option<String>,
    /// The FETCH items of the NOTIFY command.
    notify: Option<String>,
    /// The number of bodies sent.
    bodies: usize,
    /// Whether the current FETCH ends with a NO.
    refused: bool,
    /// A line that is sent at an interval.
    chatter: Option<(&'static str, tokio::time::Interval)>,
}

/// The error that ends a connection.
struct Ended;
type Result<T> = std::result::Result<T, Ended>;

impl Connection {
    pub fn new(server: Scripted, stream: TcpStream, number: usize) -> Self {
        stream.set_nodelay(true).unwrap();
        let buffer = Vec::new();
        let view = Vec::new();
        Connection {
            server,
            stream,
            number,
            buffer,
            view,
            selected: false,
            idle: None,
            notify: None,
            bodies: 0,
            refused: false,
            chatter: None,
        }
    }

    pub async fn serve(&mut self) {
        let mut changes = self.server.changed.subscribe();
        if self.handle_occasion("greeting", "* greeting").await.is_err() {
            return;
        }
        loop {
            let announces_changes = self.idle.is_some();
            let went_on = tokio::select! {
                line = read_line(&mut self.stream, &mut self.buffer, &self.server) => match line {
                    Some(line) => self.command(&line).await,
                    None => Err(Ended),
                },
                _ = changes.changed(), if announces_changes => {
                    if self.has_changes() { self.handle_occasion("news", "").await } else { Ok(()) }
                }
                line = next_chatter(&mut self.chatter) => self.write(line).await,
            };
            if went_on.is_err() {
                return;
            }
        }
    }

    /// Whether the mailbox has changes that were not announced to this client.
    fn has_changes(&self) -> bool {
        let state = self.server.state();
        let uids: Vec<u32> = state.mails.iter().map(|(uid, _)| *uid).collect();
        self.selected && self.view != uids
    }

    async fn command(&mut self, line: &str) -> Result<()> {
        self.server.change(|state| state.lines.push(format!("{} {line}", self.number)));
        if line == "DONE" && self.idle.is_some() {
            return self.handle_occasion("DONE", line).await;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let name = match words.as_slice() {
            [_, uid, command, ..] if uid.eq_ignore_ascii_case("UID") => format!("UID {command}"),
            [_, command, ..] => (*command).to_owned(),
            [_] => "word".to_owned(),
            [] => return Ok(()),
        };
        self.handle_occasion(&name, line).await
    }

    async fn handle_occasion(&mut self, name: &str, line: &str) -> Result<()> {
        let steps = self.server.change(|state| {
            let nth = match state.seen.iter_mut().find(|(n, _)| n == name) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    state.seen.push((name.to_owned(), 1));
                    1
                }
            };
            let last_uid = state.mails.last().map_or(0, |(uid, _)| *uid);
            (state.script)(&Occasion { name, line, nth, connection: self.number, last_uid })
        });
        let tag = match name {
            "DONE" => self.idle.take().unwrap_or_default(),
            _ => line.split(' ').next().unwrap_or_default().to_owned(),
        };
        for step in steps {
            self.perform(name, line, &tag, step).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, name: &str, line: &str, tag: &str, step: Step) -> Result<()> {
        match step {
            Step::Usual => {
                self.untagged(name, line).await?;
                self.tagged(name, tag, true).await
            }
            Step::Untagged => self.untagged(name, line).await,
            Step::Ok => self.tagged(name, tag, true).await,
            Step::BareOk => self.tagged(name, tag, false).await,
            Step::Say(text) => self.write(&text.replace("{tag}", tag)).await,
            Step::Announce => {
                let changes = self.take_changes();
                self.write(&changes).await
            }
            Step::Deliver(subject) => {
                self.server.deliver(subject);
                Ok(())
            }
            Step::Remove(uid) => {
                self.server.change(|state| state.mails.retain(|(u, _)| *u != uid));
                Ok(())
            }
            Step::Hide(uids) => {
                self.server.change(|state| state.hidden = uids.into_iter().collect());
                Ok(())
            }
            Step::Close => Err(Ended),
            Step::Reset => {
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
                Err(Ended)
            }
            Step::Mute => self.read_silently().await,
            Step::CloseHalf => {
                self.stream.shutdown().await.map_err(|_| Ended)?;
                self.read_silently().await
            }
            Step::Flood(bytes) => loop {
                self.write(bytes).await?;
            },
            Step::Chatter(line, pause) => {
                self.chatter = Some((line, tokio::time::interval(pause)));
                Ok(())
            }
            Step::EndIdle => match self.idle.take() {
                Some(tag) => self.write(&format!("{tag} OK that was long enough\r\n")).await,
                None => Ok(()),
            },
            Step::Pause(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Step::Overhear if self.has_input() => self.read_silently().await,
            Step::Overhear => Ok(()),
        }
    }

    /// Whether bytes of the client are waiting.
    fn has_input(&self) -> bool {
        !self.buffer.is_empty() || self.stream.try_read(&mut [0]).is_ok()
    }

    async fn read_silently(&mut self) -> Result<()> {
        let mut sink = [0; 1024];
        while self.stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
        Err(Ended)
    }

    async fn write(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).await.map_err(|_| Ended)
    }

    /// Sends the untagged part of the usual response.
    async fn untagged(&mut self, name: &str, line: &str) -> Result<()> {
        let text = match name {
            "greeting" => "* OK ready\r\n".to_owned(),
            "CAPABILITY" => format!("* CAPABILITY IMAP4rev1 {}\r\n", self.server.state().capabilities),
            "EXAMINE" | "SELECT" => self.select(name),
            "STATUS" => {
                let state = self.server.state();
                let next = state.false_uid_next.get("STATUS").copied().unwrap_or(state.uid_next);
                format!("* STATUS INBOX (UIDNEXT {next} UIDVALIDITY {})\r\n", state.uid_validity)
            }
            "LIST" => self.server.state().list.iter().map(|line| format!("* LIST {line}\r\n")).collect(),
            "UID FETCH" => return self.fetch(line).await,
            "UID SEARCH" => {
                let uids = self.uids_in_set(line.rsplit(' ').next().unwrap());
                format!("* SEARCH{}\r\n", uids.iter().map(|uid| format!(" {uid}")).collect::<String>())
            }
            "UID MOVE" => self.remove_mails(line),
            "UID EXPUNGE" => self.remove_mails(line),
            "NOTIFY" => {
                self.notify = Some(line.to_owned());
                String::new()
            }
            "IDLE" => {
                self.idle = line.split(' ').next().map(str::to_owned);
                "+ idling\r\n".to_owned()
            }
            "news" => return self.announce_and_push().await,
            "LOGOUT" => "* BYE goodbye\r\n".to_owned(),
            "word" => format!("{line} BAD that is no command\r\n"),
            _ => String::new(),
        };
        self.write(&text).await?;
        if name == "IDLE" && self.has_changes() { self.handle_boxed("news").await } else { Ok(()) }
    }

    async fn handle_boxed(&mut self, name: &'static str) -> Result<()> {
        Box::pin(self.handle_occasion(name, "")).await
    }

    async fn tagged(&mut self, name: &str, tag: &str, with_news: bool) -> Result<()> {
        match name {
            "greeting" | "IDLE" | "news" | "word" => return Ok(()),
            "EXAMINE" | "SELECT" if self.server.state().mailbox.is_none() => {
                return self.write(&format!("{tag} NO [NONEXISTENT] no such mailbox\r\n")).await;
            }
            _ if with_news && self.selected => {
                let news = self.take_changes();
                self.write(&news).await?;
            }
            _ => {}
        }
        if std::mem::take(&mut self.refused) {
            return self.write(&format!("{tag} NO [SERVERBUG] cannot read a mail\r\n")).await;
        }
        self.write(&format!("{tag} OK done\r\n")).await?;
        if name == "LOGOUT" { Err(Ended) } else { Ok(()) }
    }

    fn select(&mut self, name: &str) -> String {
        let state = self.server.state();
        if state.mailbox.is_none() {
            return String::new();
        }
        self.selected = true;
        self.view = state.mails.iter().map(|(uid, _)| *uid).collect();
        let next = state.false_uid_next.get(name).copied().unwrap_or(state.uid_next);
        let next = if state.tells_uid_next { format!("* OK [UIDNEXT {next}] next\r\n") } else { "".into() };
        let validity = match state.tells_uid_validity {
            true => format!("* OK [UIDVALIDITY {}] ok\r\n", state.uid_validity),
            false => String::new(),
        };
        format!("* {} EXISTS\r\n{validity}{next}", self.view.len())
    }

    /// Returns the responses for all changes since the last announcement, and marks them as announced.
    fn take_changes(&mut self) -> String {
        let state = self.server.state();
        let mut text = String::new();
        while let Some(gone) = self.view.iter().position(|uid| !state.mails.iter().any(|(u, _)| u == uid)) {
            self.view.remove(gone);
            text += &format!("* {} EXPUNGE\r\n", gone + 1);
        }
        if state.mails.len() > self.view.len() {
            self.view = state.mails.iter().map(|(uid, _)| *uid).collect();
            text += &format!("* {} EXISTS\r\n", self.view.len());
        }
        text
    }

    async fn announce_and_push(&mut self) -> Result<()> {
        let before = self.view.last().copied().unwrap_or(0);
        let text = self.take_changes();
        self.write(&text).await?;
        let Some(items) = self.notify.clone() else { return Ok(()) };
        let new: Vec<u32> = self.view.iter().copied().filter(|uid| *uid > before).collect();
        self.send_mails(&new, &items).await
    }

    async fn fetch(&mut self, line: &str) -> Result<()> {
        let (_, rest) = line.split_once("FETCH ").unwrap();
        let (set, items) = rest.split_once(' ').unwrap();
        let uids = self.uids_in_set(set);
        self.refused = uids.is_empty() && self.server.state().refuses_empty_fetch;
        self.send_mails(&uids, items).await
    }

    /// The UIDs of a sequence set. `*` is the last mail on either side of a range.
    fn uids_in_set(&self, set: &str) -> Vec<u32> {
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
        let is_body = items.contains("BODY.PEEK[]");
        for uid in uids {
            let fault = self.server.state().fetch_faults.get(uid).copied().filter(|_| items.contains("BODY.PEEK["));
            if let Some(fault) = fault {
                self.send_faulty(*uid, items, fault).await?;
                continue;
            }
            let text = {
                let state = self.server.state();
                let mail = state.mails.iter().find(|(u, _)| u == uid);
                match mail {
                    Some((uid, bytes)) if !state.hidden.contains(uid) => {
                        let date = state.dates.get(uid).map_or(DATE, String::as_str);
                        fetch_response_with(self.sequence_number(*uid), *uid, bytes, items, date, state.oversize)
                    }
                    _ => Vec::new(),
                }
            };
            let limit = self.server.state().bodies;
            if is_body && limit.is_some_and(|limit| self.bodies >= limit) {
                self.stream.shutdown().await.map_err(|_| Ended)?;
                return self.read_silently().await;
            }
            self.bodies += usize::from(is_body);
            self.stream.write_all(&text).await.map_err(|_| Ended)?;
        }
        Ok(())
    }

    fn sequence_number(&self, uid: u32) -> usize {
        self.view.iter().position(|other| *other == uid).unwrap_or(0) + 1
    }

    /// Responds for a mail that is listed but not delivered.
    async fn send_faulty(&mut self, uid: u32, items: &str, fault: FetchFault) -> Result<()> {
        let section = if items.contains("BODY.PEEK[]") { "BODY[]" } else { "BODY[HEADER.FIELDS (FROM)]" };
        let begin = format!("* {} FETCH (UID {uid} INTERNALDATE \"{DATE}\"", self.sequence_number(uid));
        match fault {
            FetchFault::Nil => self.write(&format!("{begin} RFC822.SIZE 900 {section}<0> NIL)\r\n")).await,
            FetchFault::Empty => self.write(&format!("{begin} RFC822.SIZE 900 {section}<0> \"\")\r\n")).await,
            FetchFault::NoItem => self.write(&format!("{begin} RFC822.SIZE 900)\r\n")).await,
            FetchFault::Nothing => Ok(()),
            FetchFault::Short => {
                self.write(&format!("{begin} {section}<0> {{900}}\r\nFrom: Resmic <x@resmic.com>\r\n)\r\n")).await
            }
            FetchFault::Bye => {
                self.write("* BYE FETCH failed\r\n").await?;
                Err(Ended)
            }
            FetchFault::Close => Err(Ended),
            FetchFault::Mute => self.read_silently().await,
            FetchFault::No => {
                self.refused = true;
                Ok(())
            }
        }
    }

    /// Removes the mails of a UID MOVE or UID EXPUNGE.
    fn remove_mails(&mut self, line: &str) -> String {
        let set = line.split(' ').nth(3).unwrap();
        let uids = self.uids_in_set(set);
        self.server.change(|state| state.mails.retain(|(uid, _)| !uids.contains(uid)));
        self.take_changes()
    }
}

/// The untagged FETCH response with the requested `items`.
pub fn fetch_response(sequence_number: usize, uid: u32, bytes: &[u8], items: &str) -> Vec<u8> {
    fetch_response_with(sequence_number, uid, bytes, items, DATE, 0)
}

fn fetch_response_with(
    sequence_number: usize,
    uid: u32,
    bytes: &[u8],
    items: &str,
    date: &str,
    oversize: usize,
) -> Vec<u8> {
    let mut text = format!("* {sequence_number} FETCH (UID {uid} INTERNALDATE \"{date}\"").into_bytes();
    if items.contains("RFC822.SIZE") {
        text.extend(format!(" RFC822.SIZE {}", bytes.len() + oversize).bytes());
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

async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>, server: &Scripted) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = buffer.drain(..end + 2).collect();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
        buffer.extend(&bytes[..count]);
        server.state().reads.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
    }
}

async fn next_chatter(chatter: &mut Option<(&'static str, tokio::time::Interval)>) -> &'static str {
    match chatter {
        Some((line, interval)) => {
            interval.tick().await;
            line
        }
        None => std::future::pending().await,
    }
}
