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
use super::response_buffer::ResponseBuffer;
use super::transport::Transport;
use crate::model::printable;

/// How long a LOGOUT may take.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How many answers a LOGOUT waits through.
const MAX_LOGOUT_RESPONSES: usize = 1_000;

/// What a line may measure before anything is known of the server.
const LINE: usize = 64 * 1024;

/// What an answer may measure beside the mail in it: lines and header fields of one response.
const OVERHEAD: usize = 256 * 1024;

/// How many answers there may be from one command to the next, beside those that are known to come. Who says more says
/// it to keep us busy.
const MAX_RESPONSES: usize = 100_000;

/// A command on its way, and its name for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingCommand {
    tag: RequestId,
    name: &'static str,
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseTimeout {
    deadline: Instant,
    /// How long it may be quiet meanwhile.
    silence: Option<Duration>,
}

impl ResponseTimeout {
    /// Until then.
    pub(super) fn until(deadline: Instant) -> Self {
        ResponseTimeout { deadline, silence: None }
    }

    /// So long.
    pub(super) fn within(limit: Duration) -> Self {
        Self::until(Instant::now() + limit)
    }

    /// The end of it, if bytes came last at `heard`.
    fn expires_at(&self, heard: Instant) -> Instant {
        self.silence.map_or(self.deadline, |silence| self.deadline.min(heard + silence))
    }

    /// So long, as long as bytes come: a large mail may take its time, a dead connection may not.
    pub(super) fn streaming(limit: Duration, silence: Duration) -> Self {
        ResponseTimeout { deadline: Instant::now() + limit, silence: Some(silence) }
    }
}

/// A connection to a server.
pub(super) struct Connection {
    net: Transport,
    /// What came of its answers.
    buffer: ResponseBuffer,
    /// How many commands were written.
    commands: u64,
    /// The most that one answer may measure.
    response_limit: usize,
    /// How long a server may take for an ordinary command.
    command_timeout: Duration,
    /// The IDLE that was begun and not ended.
    idling: Option<RequestId>,
    /// The server has said its `+` to it.
    accepted: bool,
    /// How many more answers there may be before the next command.
    responses_left: usize,
    /// Written in front of the next command.
    prepended: String,
    /// A command whose answer does not matter.
    ignored: Option<RequestId>,
}

/// What one answer was.
pub(super) enum ServerResponse<R> {
    /// The tagged OK of a command.
    Done,
    /// `+`: the server waits for us.
    Continue,
    /// Untagged data, as it was read.
    Data(R),
}

impl Connection {
    /// Takes over a connection. `answer`: how long a server may take for an ordinary command.
    pub(super) fn new(net: Transport, command_timeout: Duration) -> Self {
        let buffer = ResponseBuffer::default();
        let (prepended, ignored) = (String::new(), None);
        let (idling, accepted, responses_left) = (None, false, MAX_RESPONSES);
        Connection {
            net,
            buffer,
            commands: 0,
            response_limit: LINE,
            command_timeout,
            idling,
            accepted,
            responses_left,
            prepended,
            ignored,
        }
    }

    /// Goes on in TLS. What the server sent in the clear after its OK is dropped: it is nobody's word (RFC 9051, 6.2.1).
    pub(super) async fn secure(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        Ok(Connection { net: self.net.secure(host, config).await?, buffer: ResponseBuffer::default(), ..self })
    }

    /// From here on pieces of mails as large as this will be asked for.
    pub(super) fn expect_literal(&mut self, literal: u64) {
        self.response_limit = usize::try_from(literal).unwrap_or(usize::MAX).saturating_add(OVERHEAD);
    }

    /// Writes a command. `name` is what errors call it; a command's text may hold a user's words, and a password.
    pub(super) async fn send(&mut self, name: &'static str, command: &str) -> Result<PendingCommand> {
        let tag = self.next_tag();
        let prepended = std::mem::take(&mut self.prepended);
        self.write(name, format!("{prepended}{tag} {command}\r\n").as_bytes()).await?;
        self.responses_left = MAX_RESPONSES;
        Ok(PendingCommand { tag: RequestId(tag), name })
    }

    fn next_tag(&mut self) -> String {
        self.commands += 1;
        format!("A{:04}", self.commands)
    }

    /// Writes this command together with the next one, so that it costs no round trip. Its answer is read and ignored.
    pub(super) fn send_with_next(&mut self, command: &str) {
        let tag = self.next_tag();
        self.prepended = format!("{tag} {command}\r\n");
        self.ignored = Some(RequestId(tag));
    }

    /// Writes a line that is no command: what the server waits for after its `+`.
    pub(super) async fn write_line(&mut self, name: &'static str, line: &str) -> Result<()> {
        self.write(name, format!("{line}\r\n").as_bytes()).await
    }

    /// In one piece, so that it leaves as one packet.
    async fn write(&mut self, name: &'static str, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.net.write_all(bytes).await?;
            self.net.flush().await
        };
        within(self.command_timeout, name, write).await?.map_err(Error::io)
    }

    /// The answer to the command just sent has so many parts.
    pub(super) fn expect_responses(&mut self, responses_left: usize) {
        self.responses_left = MAX_RESPONSES.saturating_add(responses_left);
    }

    /// Begins an IDLE (RFC 2177); the server answers with a `+`, and with what is new.
    pub(super) async fn send_idle(&mut self) -> Result<PendingCommand> {
        let pending = self.send("IDLE", "IDLE").await?;
        (self.idling, self.accepted) = (Some(pending.tag.clone()), false);
        Ok(pending)
    }

    /// Whether an IDLE was begun that the server has not said its `+` to yet. A DONE has to wait for it: Cyrus reads both
    /// at once, looks at its socket only, where nothing more comes, and idles on for a minute.
    pub(super) fn awaits_plus(&self) -> bool {
        self.idling.is_some() && !self.accepted
    }

    /// Ends the IDLE. True: its tagged OK is still to come; false: the server ended it before, and a DONE would be
    /// taken for a command.
    pub(super) async fn send_done(&mut self) -> Result<bool> {
        if self.idling.take().is_none() {
            return Ok(false);
        }
        self.write_line("DONE", "DONE").await?;
        Ok(true)
    }

    /// From here on commands are collected, so that they leave in one write; see [`Connection::uncork`].
    pub(super) fn cork(&mut self) {
        self.net.cork();
    }

    /// Writes what was collected.
    pub(super) async fn uncork(&mut self) -> Result<()> {
        let held = self.net.uncork();
        self.write("write", &held).await
    }

    /// What the server says before it is asked anything.
    pub(super) async fn read_greeting<R>(
        &mut self,
        wait: ResponseTimeout,
        read: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<R> {
        let nothing = PendingCommand { tag: RequestId(String::new()), name: "login" };
        match self.read_response(&nothing, wait, read).await? {
            ServerResponse::Data(read) => Ok(read),
            ServerResponse::Done | ServerResponse::Continue => Err(Error::Protocol("no greeting".into())),
        }
    }

    /// The next answer of the server, for the command `pending`; untagged data goes through `read`.
    ///
    /// Giving up on the wait loses nothing: what has come so far stays where it is.
    ///
    /// # Errors
    /// A NO or BAD to any command, a BYE, an end of the stream, silence.
    pub(super) async fn read_response<R>(
        &mut self,
        pending: &PendingCommand,
        wait: ResponseTimeout,
        read: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<ServerResponse<R>> {
        self.responses_left = self
            .responses_left
            .checked_sub(1)
            .ok_or_else(|| Error::Protocol("it says far more than was asked".into()))?;
        self.net.allow(self.response_limit);
        let mut began = None;
        loop {
            if let Some((response, length)) = self.buffer.parse_next()? {
                if let Response::Done { tag, .. } = &response
                    && self.idling.as_ref() == Some(tag)
                {
                    self.idling = None;
                }
                self.accepted |= matches!(response, Response::Continue(_));
                if let Response::Done { tag, .. } = &response
                    && self.ignored.as_ref() == Some(tag)
                {
                    self.ignored = None;
                    drop(response);
                    self.buffer.consume(length);
                    continue;
                }
                let heard = heard(&response, pending, read);
                drop(response);
                self.buffer.consume(length);
                return heard;
            }
            let began = *began.get_or_insert_with(Instant::now);
            let until = wait.expires_at(self.net.heard_at().max(began));
            // Looked at before a timeout would: that tries its work first, and one who never stops talking would never
            // be interrupted. What was not read is not lost.
            if Instant::now() >= until {
                return Err(Error::Timeout { command: pending.name, seconds: began.elapsed().as_secs() });
            }
            match timeout_at(until, poll_fn(|cx| self.buffer.poll_fill(&mut self.net, cx))).await {
                Ok(Ok(0)) => return Err(Error::Lost(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(Err(error)) => return Err(Error::io(error)),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Hears everything up to the tagged OK of `pending`; each piece of untagged data goes to `each`.
    pub(super) async fn finish(
        &mut self,
        pending: &PendingCommand,
        wait: ResponseTimeout,
        mut each: impl FnMut(&Response<'_>),
    ) -> Result<()> {
        loop {
            match self.read_response(pending, wait, &mut each).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Data(()) => {}
                ServerResponse::Continue => {
                    return Err(Error::Protocol(format!("a `+` in answer to {}", pending.name)));
                }
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
        let pending = self.send(name, command).await?;
        self.finish(&pending, ResponseTimeout::within(self.command_timeout), each).await
    }

    /// Says goodbye. What else was on its way does not matter any more, nor does a server that is slow to answer.
    pub(super) async fn logout(mut self) {
        self.net.uncork();
        let logout = async {
            let (wait, mut left) = (ResponseTimeout::within(LOGOUT_TIMEOUT), 0..MAX_LOGOUT_RESPONSES);
            let idle = PendingCommand { tag: RequestId(String::new()), name: "IDLE" };
            while self.awaits_plus() && left.next().is_some() {
                self.read_during_logout(&idle, wait).await?;
            }
            self.send_done().await?;
            let pending = self.send("LOGOUT", "LOGOUT").await?;
            while left.next().is_some() && !self.read_during_logout(&pending, wait).await? {}
            Ok(())
        };
        let _: std::result::Result<Result<()>, _> = tokio::time::timeout(LOGOUT_TIMEOUT, logout).await;
    }

    /// Hears one more answer; true: the OK to `pending`. The BYE before it, and the end of an IDLE, are errors anywhere else.
    async fn read_during_logout(&mut self, pending: &PendingCommand, wait: ResponseTimeout) -> Result<bool> {
        match self.read_response(pending, wait, |_| ()).await {
            Ok(heard) => Ok(matches!(heard, ServerResponse::Done)),
            Err(error @ (Error::Lost(_) | Error::Timeout { .. })) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// What an answer is to whoever waits for that of `pending`.
fn heard<R>(
    response: &Response<'_>,
    pending: &PendingCommand,
    read: impl FnOnce(&Response<'_>) -> R,
) -> Result<ServerResponse<R>> {
    match response {
        Response::Done { tag, status: Status::Ok, .. } if *tag == pending.tag => {
            // Its response code may hold a UIDVALIDITY.
            read(response);
            Ok(ServerResponse::Done)
        }
        // The server ended the IDLE while our DONE was on its way, and took it for a command.
        Response::Done { tag, status: Status::Bad, .. } if tag.0 == "DONE" => Ok(ServerResponse::Data(read(response))),
        Response::Done { tag, status: status @ (Status::No | Status::Bad), outcome } if *tag == pending.tag => {
            Err(Error::refused(pending.name, status, outcome.information.as_deref()))
        }
        // An answer to a command that was not sent, or not yet: whose answers are we reading?
        Response::Done { .. } => Err(Error::Protocol(format!("an answer to another command than {}", pending.name))),
        Response::Data { status: Status::Bye, outcome } => {
            Err(Error::Bye(printable(outcome.information.as_deref().unwrap_or(""), 200)))
        }
        Response::Continue(_) => Ok(ServerResponse::Continue),
        untagged => Ok(ServerResponse::Data(read(untagged))),
    }
}

async fn within<T>(limit: Duration, command: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::Timeout { command, seconds: limit.as_secs() })
}

/// A string as an IMAP quoted string (RFC 3501, 4.3); `None` if it holds what none can.
pub(super) fn quoted(text: &str) -> Option<String> {
    if text.contains(['\r', '\n', '\0']) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The UIDVALIDITY or UIDNEXT that an OK carries. It belongs into an untagged one; Xeams writes it into the tagged one.
pub(super) fn response_code<'a>(response: &'a Response<'_>) -> Option<&'a ResponseCode<'a>> {
    match response {
        Response::Data { status: Status::Ok, outcome } | Response::Done { status: Status::Ok, outcome, .. } => {
            outcome.code.as_ref()
        }
        _ => None,
    }
}
