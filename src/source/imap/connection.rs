//! Commands and their responses: a tagged OK or an error, within a timeout.
//!
//! async-imap's own calls report a NO, a BAD and the end of the stream as success, and have no timeout. So this program uses only
//! the parser of async-imap. After an error other than `Error::Refused`, the connection is not used again.

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

/// The timeout of a LOGOUT.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(2);

/// The most responses that are read before the OK of a LOGOUT.
const MAX_LOGOUT_RESPONSES: usize = 1_000;

/// The longest response before the login, in bytes.
const LINE: usize = 64 * 1024;

/// The most bytes of one response in addition to the literal with a mail: the lines of the response, and literals with header
/// fields.
const OVERHEAD: usize = 256 * 1024;

/// The most responses that are accepted between two commands, in addition to the expected responses. A server that sends more
/// keeps the daemon busy without a result.
const MAX_RESPONSES: usize = 100_000;

/// A command whose tagged response has not arrived, and its name for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingCommand {
    tag: RequestId,
    name: &'static str,
}

/// How long to wait for a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseTimeout {
    deadline: Instant,
    /// The longest time without a received byte; `None`: only `deadline` limits the wait.
    silence: Option<Duration>,
}

impl ResponseTimeout {
    pub(super) fn until(deadline: Instant) -> Self {
        ResponseTimeout { deadline, silence: None }
    }

    pub(super) fn within(limit: Duration) -> Self {
        Self::until(Instant::now() + limit)
    }

    /// When the timeout expires, given the time of the last byte.
    fn expires_at(&self, last_byte: Instant) -> Instant {
        self.silence.map_or(self.deadline, |silence| self.deadline.min(last_byte + silence))
    }

    /// A timeout of `limit` in total, and of `silence` without a byte. So a large mail may take long, and a dead connection is
    /// found soon.
    pub(super) fn streaming(limit: Duration, silence: Duration) -> Self {
        ResponseTimeout { deadline: Instant::now() + limit, silence: Some(silence) }
    }
}

/// A connection to a mail server.
pub(super) struct Connection {
    transport: Transport,
    buffer: ResponseBuffer,
    /// How many tags were used. The next tag contains the next number.
    commands: u64,
    /// The most bytes of one response.
    response_limit: usize,
    /// The timeout of [`Self::command`], and of each write.
    command_timeout: Duration,
    /// The tag of the current IDLE; `None` outside IDLE.
    idling: Option<RequestId>,
    /// The server has answered the current IDLE with a continuation request (`+`).
    idle_confirmed: bool,
    /// How many more responses are accepted before the next command.
    responses_left: usize,
    /// A command that is written together with the next command.
    prepended: String,
    /// The tag of the command of [`Self::send_with_next`], whose result is ignored.
    ignored: Option<RequestId>,
}

/// One response of the server.
pub(super) enum ServerResponse<R> {
    /// The tagged OK of a command.
    Done,
    /// A continuation request (`+`): the server waits for a line of the client (RFC 3501, 7.5).
    Continue,
    /// Untagged data.
    Data(R),
}

impl Connection {
    /// `command_timeout`: the timeout of [`Self::command`], and of each write.
    pub(super) fn new(transport: Transport, command_timeout: Duration) -> Self {
        let buffer = ResponseBuffer::default();
        let (prepended, ignored) = (String::new(), None);
        let (idling, idle_confirmed, responses_left) = (None, false, MAX_RESPONSES);
        Connection {
            transport,
            buffer,
            commands: 0,
            response_limit: LINE,
            command_timeout,
            idling,
            idle_confirmed,
            responses_left,
            prepended,
            ignored,
        }
    }

    /// Starts TLS. Unencrypted bytes that arrived after the OK of STARTTLS are dropped (RFC 9051, 6.2.1).
    pub(super) async fn secure(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        Ok(Connection {
            transport: self.transport.secure(host, config).await?,
            buffer: ResponseBuffer::default(),
            ..self
        })
    }

    /// Allows literals of up to `literal` bytes in later responses.
    pub(super) fn expect_literal(&mut self, literal: u64) {
        self.response_limit = usize::try_from(literal).unwrap_or(usize::MAX).saturating_add(OVERHEAD);
    }

    /// Writes a command. Errors contain `name`, not `command`, which can contain a password.
    pub(super) async fn send(&mut self, name: &'static str, command: &str) -> Result<PendingCommand> {
        debug_assert!(self.idling.is_none(), "{name} during IDLE");
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

    /// Keeps `command` and writes it together with the next command, so that `command` adds no round trip. The result of
    /// `command` is ignored.
    pub(super) fn send_with_next(&mut self, command: &str) {
        let tag = self.next_tag();
        self.prepended = format!("{tag} {command}\r\n");
        self.ignored = Some(RequestId(tag));
    }

    /// Writes a line that is no command, after a continuation request (`+`) of the server.
    pub(super) async fn write_line(&mut self, name: &'static str, line: &str) -> Result<()> {
        self.write(name, format!("{line}\r\n").as_bytes()).await
    }

    /// Writes all bytes with one call, so that the kernel can send them in one packet.
    async fn write(&mut self, name: &'static str, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.transport.write_all(bytes).await?;
            self.transport.flush().await
        };
        within(self.command_timeout, name, write).await?.map_err(Error::io)
    }

    /// Allows `count` additional responses to the command that was just sent.
    pub(super) fn expect_responses(&mut self, count: usize) {
        self.responses_left = MAX_RESPONSES.saturating_add(count);
    }

    /// Starts an IDLE (RFC 2177). The server answers with a continuation request (`+`), and then announces changes.
    pub(super) async fn send_idle(&mut self) -> Result<PendingCommand> {
        let pending = self.send("IDLE", "IDLE").await?;
        (self.idling, self.idle_confirmed) = (Some(pending.tag.clone()), false);
        Ok(pending)
    }

    /// Whether the server has not answered the current IDLE with a continuation request (`+`) yet. A DONE must wait for this
    /// answer: if Cyrus reads IDLE and DONE from the socket together, Cyrus notices the DONE only after a minute.
    pub(super) fn awaits_plus(&self) -> bool {
        self.idling.is_some() && !self.idle_confirmed
    }

    /// Sends a DONE, unless the server has ended the IDLE. After the end of the IDLE, the server would read the DONE as a
    /// command. Returns true if a DONE was sent, so that the tagged OK of the IDLE follows.
    pub(super) async fn send_done(&mut self) -> Result<bool> {
        if self.idling.take().is_none() {
            return Ok(false);
        }
        self.write_line("DONE", "DONE").await?;
        Ok(true)
    }

    /// Collects commands from now on, so that [`Connection::uncork`] sends them in one write.
    pub(super) fn cork(&mut self) {
        self.transport.cork();
    }

    /// Writes the collected commands.
    pub(super) async fn uncork(&mut self) -> Result<()> {
        let held = self.transport.uncork();
        self.write("write", &held).await
    }

    /// Reads the greeting.
    pub(super) async fn read_greeting<R>(
        &mut self,
        timeout: ResponseTimeout,
        extract: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<R> {
        let no_command = PendingCommand { tag: RequestId(String::new()), name: "login" };
        match self.read_response(&no_command, timeout, extract).await? {
            ServerResponse::Data(extracted) => Ok(extracted),
            ServerResponse::Done | ServerResponse::Continue => Err(Error::Protocol("no greeting".into())),
        }
    }

    /// Reads the next response while `pending` waits for its tagged response. `extract` converts untagged data.
    ///
    /// This method is cancel safe: received bytes stay in the buffer.
    ///
    /// # Errors
    /// A NO or BAD to `pending`, a tagged response to another command, an invalid response, too many responses, a BYE, the end of
    /// the stream, a timeout.
    pub(super) async fn read_response<R>(
        &mut self,
        pending: &PendingCommand,
        timeout: ResponseTimeout,
        extract: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<ServerResponse<R>> {
        self.responses_left = self
            .responses_left
            .checked_sub(1)
            .ok_or_else(|| Error::Protocol("it sends far more responses than expected".into()))?;
        self.transport.allow(self.response_limit);
        let mut began = None;
        loop {
            if let Some((response, length)) = self.buffer.parse_next()? {
                if let Response::Done { tag, .. } = &response
                    && self.idling.as_ref() == Some(tag)
                {
                    self.idling = None;
                }
                self.idle_confirmed |= matches!(response, Response::Continue(_));
                if let Response::Done { tag, .. } = &response
                    && self.ignored.as_ref() == Some(tag)
                {
                    self.ignored = None;
                    drop(response);
                    self.buffer.consume(length);
                    continue;
                }
                let result = interpret(&response, pending, extract);
                drop(response);
                self.buffer.consume(length);
                return result;
            }
            let began = *began.get_or_insert_with(Instant::now);
            let expires_at = timeout.expires_at(self.transport.last_byte_at().max(began));
            // The timeout is checked here, because `timeout_at` polls the read first. So `timeout_at` alone would never stop a
            // server that sends without end.
            if Instant::now() >= expires_at {
                return Err(Error::Timeout { command: pending.name, seconds: began.elapsed().as_secs() });
            }
            match timeout_at(expires_at, poll_fn(|cx| self.buffer.poll_fill(&mut self.transport, cx))).await {
                Ok(Ok(0)) => return Err(Error::Lost(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(Err(error)) => return Err(Error::io(error)),
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Reads up to the tagged OK of `pending`. Untagged data and the tagged OK are passed to `on_response`.
    pub(super) async fn finish(
        &mut self,
        pending: &PendingCommand,
        timeout: ResponseTimeout,
        mut on_response: impl FnMut(&Response<'_>),
    ) -> Result<()> {
        loop {
            match self.read_response(pending, timeout, &mut on_response).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Data(()) => {}
                ServerResponse::Continue => {
                    return Err(Error::Protocol(format!("a `+` in answer to {}", pending.name)));
                }
            }
        }
    }

    /// Sends a command and reads up to its tagged OK. Untagged data and the tagged OK are passed to `on_response`.
    pub(super) async fn command(
        &mut self,
        name: &'static str,
        command: &str,
        on_response: impl FnMut(&Response<'_>),
    ) -> Result<()> {
        let pending = self.send(name, command).await?;
        self.finish(&pending, ResponseTimeout::within(self.command_timeout), on_response).await
    }

    /// Logs out, within two seconds. Commands without a tagged response, and errors, are ignored.
    pub(super) async fn logout(mut self) {
        self.transport.uncork();
        let logout = async {
            let (timeout, mut attempts) = (ResponseTimeout::within(LOGOUT_TIMEOUT), 0..MAX_LOGOUT_RESPONSES);
            let pending_idle = PendingCommand { tag: RequestId(String::new()), name: "IDLE" };
            while self.awaits_plus() && attempts.next().is_some() {
                self.read_during_logout(&pending_idle, timeout).await?;
            }
            self.send_done().await?;
            let pending = self.send("LOGOUT", "LOGOUT").await?;
            while attempts.next().is_some() && !self.read_during_logout(&pending, timeout).await? {}
            Ok(())
        };
        let _: std::result::Result<Result<()>, _> = tokio::time::timeout(LOGOUT_TIMEOUT, logout).await;
    }

    /// Reads one response during a logout. Returns true for the OK of `pending`. Only a lost connection and a timeout are errors
    /// here, because a BYE belongs to each logout.
    async fn read_during_logout(&mut self, pending: &PendingCommand, timeout: ResponseTimeout) -> Result<bool> {
        match self.read_response(pending, timeout, |_| ()).await {
            Ok(response) => Ok(matches!(response, ServerResponse::Done)),
            Err(error @ (Error::Lost(_) | Error::Timeout { .. })) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// Converts a response into a [`ServerResponse`] or an error, while `pending` waits for its tagged response.
fn interpret<R>(
    response: &Response<'_>,
    pending: &PendingCommand,
    extract: impl FnOnce(&Response<'_>) -> R,
) -> Result<ServerResponse<R>> {
    match response {
        Response::Done { tag, status: Status::Ok, .. } if *tag == pending.tag => {
            // `extract` gets the OK, too, because the response code of an OK may contain a UIDVALIDITY.
            extract(response);
            Ok(ServerResponse::Done)
        }
        // The server ended the IDLE before the DONE arrived, and read the DONE as a command.
        Response::Done { tag, status: Status::Bad, .. } if tag.0 == "DONE" => {
            Ok(ServerResponse::Data(extract(response)))
        }
        Response::Done { tag, status: status @ (Status::No | Status::Bad), outcome } if *tag == pending.tag => {
            Err(Error::refused(pending.name, status, outcome.information.as_deref()))
        }
        // After a tagged response to another command, later responses cannot be assigned to their commands.
        Response::Done { .. } => {
            Err(Error::Protocol(format!("sent a tagged response to another command than {}", pending.name)))
        }
        Response::Data { status: Status::Bye, outcome } => Err(Error::bye(outcome.information.as_deref())),
        Response::Continue(_) => Ok(ServerResponse::Continue),
        untagged => Ok(ServerResponse::Data(extract(untagged))),
    }
}

async fn within<T>(limit: Duration, command: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::Timeout { command, seconds: limit.as_secs() })
}

/// A string as an IMAP quoted string (RFC 3501, 4.3); `None` if it contains a line break or NUL.
pub(super) fn quoted(text: &str) -> Option<String> {
    if text.contains(['\r', '\n', '\0']) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The response code of an OK. UIDVALIDITY and UIDNEXT belong in an untagged OK, but Xeams writes them into the tagged OK.
pub(super) fn response_code<'a>(response: &'a Response<'_>) -> Option<&'a ResponseCode<'a>> {
    match response {
        Response::Data { status: Status::Ok, outcome } | Response::Done { status: Status::Ok, outcome, .. } => {
            outcome.code.as_ref()
        }
        _ => None,
    }
}
