//! Commands and answers. A tagged OK or an error, within an absolute time; nothing in between.
//!
//! async-imap's own calls report a NO, a BAD and an end of the stream as success, and wait without end, so only its
//! parser is used. Whatever goes wrong, the connection is not used again.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_imap::imap_proto::{RequestId, Response, ResponseCode, Status};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use super::error::{Error, Result};
use super::response_buffer::Answers;
use super::transport::Net;
use crate::model::printable;

/// How long a LOGOUT may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many answers a LOGOUT waits through.
const LAST_WORDS: usize = 1_000;

/// What a line may measure before anything is known of the server.
const LINE: usize = 64 * 1024;

/// What an answer may measure beside the mail in it: lines and header fields of one response.
const OVERHEAD: usize = 256 * 1024;

/// How many answers there may be from one command to the next, beside those that are known to come. Who says more says
/// it to keep us busy.
const ANSWERS: usize = 100_000;

/// A command on its way, and its name for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    tag: RequestId,
    name: &'static str,
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    deadline: Instant,
    /// How long it may be quiet meanwhile.
    silence: Option<Duration>,
}

impl Wait {
    /// Until then.
    pub(super) fn until(deadline: Instant) -> Self {
        Wait { deadline, silence: None }
    }

    /// So long.
    pub(super) fn of(limit: Duration) -> Self {
        Self::until(Instant::now() + limit)
    }

    /// The end of it, if bytes came last at `heard`.
    fn from(&self, heard: Instant) -> Instant {
        self.silence.map_or(self.deadline, |silence| self.deadline.min(heard + silence))
    }

    /// So long, as long as bytes come: a large mail may take its time, a dead connection may not.
    pub(super) fn flowing(limit: Duration, silence: Duration) -> Self {
        Wait { deadline: Instant::now() + limit, silence: Some(silence) }
    }
}

/// A connection to a server.
pub(super) struct Wire {
    net: Net,
    /// What came of its answers.
    came: Answers,
    /// How many commands were written.
    commands: u64,
    /// The most that one answer may measure.
    allowance: usize,
    /// How long a server may take for an ordinary command.
    answer: Duration,
    /// The IDLE that was begun and not ended.
    idling: Option<RequestId>,
    /// The server has said its `+` to it.
    accepted: bool,
    /// How many more answers there may be before the next command.
    answers: usize,
    /// Written in front of the next command.
    ahead: String,
    /// A command whose answer does not matter.
    unawaited: Option<RequestId>,
}

/// What one answer was.
pub(super) enum Heard<R> {
    /// The tagged OK of a command.
    Done,
    /// `+`: the server waits for us.
    Continue,
    /// Untagged data, as it was read.
    Data(R),
}

impl Wire {
    /// Takes over a connection. `answer`: how long a server may take for an ordinary command.
    pub(super) fn new(net: Net, answer: Duration) -> Self {
        let came = Answers::default();
        let (ahead, unawaited) = (String::new(), None);
        let (idling, accepted, answers) = (None, false, ANSWERS);
        Wire { net, came, commands: 0, allowance: LINE, answer, idling, accepted, answers, ahead, unawaited }
    }

    /// Goes on in TLS. What the server sent in the clear after its OK is dropped: it is nobody's word (RFC 9051, 6.2.1).
    pub(super) async fn secure(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        Ok(Wire { net: self.net.secure(host, config).await?, came: Answers::default(), ..self })
    }

    /// From here on pieces of mails as large as this will be asked for.
    pub(super) fn expect_literal(&mut self, literal: u64) {
        self.allowance = usize::try_from(literal).unwrap_or(usize::MAX).saturating_add(OVERHEAD);
    }

    /// Writes a command. `name` is what errors call it; a command's text may hold a user's words, and a password.
    pub(super) async fn send(&mut self, name: &'static str, command: &str) -> Result<Sent> {
        let tag = self.next_tag();
        let ahead = std::mem::take(&mut self.ahead);
        self.write(name, format!("{ahead}{tag} {command}\r\n").as_bytes()).await?;
        self.answers = ANSWERS;
        Ok(Sent { tag: RequestId(tag), name })
    }

    fn next_tag(&mut self) -> String {
        self.commands += 1;
        format!("A{:04}", self.commands)
    }

    /// Writes this command together with the next one, so that it costs no round trip. Its answer is read and ignored.
    pub(super) fn send_with_next(&mut self, command: &str) {
        let tag = self.next_tag();
        self.ahead = format!("{tag} {command}\r\n");
        self.unawaited = Some(RequestId(tag));
    }

    /// Writes a line that is no command: what the server waits for after its `+`.
    pub(super) async fn say(&mut self, name: &'static str, line: &str) -> Result<()> {
        self.write(name, format!("{line}\r\n").as_bytes()).await
    }

    /// In one piece, so that it leaves as one packet.
    async fn write(&mut self, name: &'static str, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.net.write_all(bytes).await?;
            self.net.flush().await
        };
        within(self.answer, name, write).await?.map_err(Error::io)
    }

    /// The answer to the command just sent has so many parts.
    pub(super) fn expect_answers(&mut self, answers: usize) {
        self.answers = ANSWERS.saturating_add(answers);
    }

    /// Begins an IDLE (RFC 2177); the server answers with a `+`, and with what is new.
    pub(super) async fn idle(&mut self) -> Result<Sent> {
        let sent = self.send("IDLE", "IDLE").await?;
        (self.idling, self.accepted) = (Some(sent.tag.clone()), false);
        Ok(sent)
    }

    /// Whether an IDLE was begun that the server has not said its `+` to yet. A DONE has to wait for it: Cyrus reads both
    /// at once, looks at its socket only, where nothing more comes, and idles on for a minute.
    pub(super) fn awaits_plus(&self) -> bool {
        self.idling.is_some() && !self.accepted
    }

    /// Ends the IDLE. True: its tagged OK is still to come; false: the server ended it before, and a DONE would be
    /// taken for a command.
    pub(super) async fn done(&mut self) -> Result<bool> {
        if self.idling.take().is_none() {
            return Ok(false);
        }
        self.say("DONE", "DONE").await?;
        Ok(true)
    }

    /// From here on commands are collected, so that they leave in one write; see [`Wire::uncork`].
    pub(super) fn cork(&mut self) {
        self.net.cork();
    }

    /// Writes what was collected.
    pub(super) async fn uncork(&mut self) -> Result<()> {
        let held = self.net.uncork();
        self.write("write", &held).await
    }

    /// What the server says before it is asked anything.
    pub(super) async fn greeting<R>(&mut self, wait: Wait, read: impl FnOnce(&Response<'_>) -> R) -> Result<R> {
        let nothing = Sent { tag: RequestId(String::new()), name: "login" };
        match self.hear(&nothing, wait, read).await? {
            Heard::Data(read) => Ok(read),
            Heard::Done | Heard::Continue => Err(Error::Protocol("no greeting".into())),
        }
    }

    /// The next answer of the server, for the command `sent`; untagged data goes through `read`.
    ///
    /// Giving up on the wait loses nothing: what has come so far stays where it is.
    ///
    /// # Errors
    /// A NO or BAD to any command, a BYE, an end of the stream, silence.
    pub(super) async fn hear<R>(
        &mut self,
        sent: &Sent,
        wait: Wait,
        read: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<Heard<R>> {
        self.answers =
            self.answers.checked_sub(1).ok_or_else(|| Error::Protocol("it says far more than was asked".into()))?;
        self.net.allow(self.allowance);
        let mut began = None;
        loop {
            if let Some((response, length)) = self.came.next()? {
                if let Response::Done { tag, .. } = &response
                    && self.idling.as_ref() == Some(tag)
                {
                    self.idling = None;
                }
                self.accepted |= matches!(response, Response::Continue(_));
                if let Response::Done { tag, .. } = &response
                    && self.unawaited.as_ref() == Some(tag)
                {
                    self.unawaited = None;
                    drop(response);
                    self.came.take(length);
                    continue;
                }
                let heard = heard(&response, sent, read);
                drop(response);
                self.came.take(length);
                return heard;
            }
            let began = *began.get_or_insert_with(Instant::now);
            let until = wait.from(self.net.heard_at().max(began));
            // Looked at before a timeout would: that tries its work first, and one who never stops talking would never
            // be interrupted. What was not read is not lost.
            if Instant::now() >= until {
                return Err(Error::Silent { command: sent.name, seconds: began.elapsed().as_secs() });
            }
            match timeout_at(until, poll_fn(|cx| self.came.poll_fill(&mut self.net, cx))).await {
                Ok(Ok(0)) => return Err(Error::Lost(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(Err(error)) => return Err(Error::io(error)),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Hears everything up to the tagged OK of `sent`; each piece of untagged data goes to `each`.
    pub(super) async fn finish(&mut self, sent: &Sent, wait: Wait, mut each: impl FnMut(&Response<'_>)) -> Result<()> {
        loop {
            match self.hear(sent, wait, &mut each).await? {
                Heard::Done => return Ok(()),
                Heard::Data(()) => {}
                Heard::Continue => return Err(Error::Protocol(format!("a `+` in answer to {}", sent.name))),
            }
        }
    }

    /// Sends a command and hears it to its end.
    pub(super) async fn command(
        &mut self,
        name: &'static str,
        command: &str,
        each: impl FnMut(&Response<'_>),
    ) -> Result<()> {
        let sent = self.send(name, command).await?;
        self.finish(&sent, Wait::of(self.answer), each).await
    }

    /// Says goodbye. What else was on its way does not matter any more, nor does a server that is slow to answer.
    pub(super) async fn logout(mut self) {
        self.net.uncork();
        let farewell = async {
            let (wait, mut left) = (Wait::of(FAREWELL), 0..LAST_WORDS);
            let idle = Sent { tag: RequestId(String::new()), name: "IDLE" };
            while self.awaits_plus() && left.next().is_some() {
                self.last_word(&idle, wait).await?;
            }
            self.done().await?;
            let sent = self.send("LOGOUT", "LOGOUT").await?;
            while left.next().is_some() && !self.last_word(&sent, wait).await? {}
            Ok(())
        };
        let _: std::result::Result<Result<()>, _> = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Hears one more answer; true: the OK to `sent`. The BYE before it, and the end of an IDLE, are errors anywhere else.
    async fn last_word(&mut self, sent: &Sent, wait: Wait) -> Result<bool> {
        match self.hear(sent, wait, |_| ()).await {
            Ok(heard) => Ok(matches!(heard, Heard::Done)),
            Err(error @ (Error::Lost(_) | Error::Silent { .. })) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// What an answer is to whoever waits for that of `sent`.
fn heard<R>(response: &Response<'_>, sent: &Sent, read: impl FnOnce(&Response<'_>) -> R) -> Result<Heard<R>> {
    match response {
        Response::Done { tag, status: Status::Ok, .. } if *tag == sent.tag => {
            // Its response code may hold a UIDVALIDITY.
            read(response);
            Ok(Heard::Done)
        }
        // The server ended the IDLE while our DONE was on its way, and took it for a command.
        Response::Done { tag, status: Status::Bad, .. } if tag.0 == "DONE" => Ok(Heard::Data(read(response))),
        Response::Done { tag, status: status @ (Status::No | Status::Bad), outcome } if *tag == sent.tag => {
            Err(Error::refused(sent.name, status, outcome.information.as_deref()))
        }
        // An answer to a command that was not sent, or not yet: whose answers are we reading?
        Response::Done { .. } => Err(Error::Protocol(format!("an answer to another command than {}", sent.name))),
        Response::Data { status: Status::Bye, outcome } => {
            Err(Error::Bye(printable(outcome.information.as_deref().unwrap_or(""), 200)))
        }
        Response::Continue(_) => Ok(Heard::Continue),
        untagged => Ok(Heard::Data(read(untagged))),
    }
}

async fn within<T>(limit: Duration, command: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::Silent { command, seconds: limit.as_secs() })
}

/// A string as an IMAP quoted string (RFC 3501, 4.3); `None` if it holds what none can.
pub(super) fn quoted(text: &str) -> Option<String> {
    if text.contains(['\r', '\n', '\0']) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The UIDVALIDITY or UIDNEXT that an OK carries. It belongs into an untagged one; Xeams writes it into the tagged one.
pub(super) fn code<'a>(response: &'a Response<'_>) -> Option<&'a ResponseCode<'a>> {
    match response {
        Response::Data { status: Status::Ok, outcome } | Response::Done { status: Status::Ok, outcome, .. } => {
            outcome.code.as_ref()
        }
        _ => None,
    }
}
