//! Commands and answers. A tagged OK or an error, within an absolute time; nothing in between.
//!
//! async-imap's own calls report a NO, a BAD and an end of the stream as success, and wait without end. Here
//! only its parser and its writer are used. Whatever goes wrong, the connection is not used again.

use std::time::Duration;

use async_imap::Session;
use async_imap::imap_proto::{RequestId, Response, ResponseCode, Status};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

use super::error::{Error, Result};
use super::net::Net;
use crate::model::printable;

/// How long a server may take for an ordinary command.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// How long a LOGOUT may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a line may measure before anything is known of the server.
pub(super) const LINE: usize = 64 * 1024;

/// What an answer may measure beside the mail in it: lines and header fields of one response.
const OVERHEAD: usize = 256 * 1024;

/// A command on its way, and its name for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    tag: RequestId,
    name: &'static str,
}

/// A logged-in connection.
pub(super) struct Wire {
    session: Session<Net>,
    /// The most that one answer may measure.
    allowance: usize,
    /// An IDLE was begun and not ended.
    idling: bool,
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
    /// Takes over a session. `literal`: the largest piece of a mail that will be asked for.
    pub(super) fn new(session: Session<Net>, literal: u64) -> Self {
        let allowance = usize::try_from(literal).unwrap_or(usize::MAX).saturating_add(OVERHEAD);
        Wire { session, allowance, idling: false }
    }

    /// Writes a command. `name` is what errors call it; a command's text may hold a user's words.
    pub(super) async fn send(&mut self, name: &'static str, command: &str) -> Result<Sent> {
        let tag = within(ANSWER, name, self.session.run_command(command)).await?.map_err(lost)?;
        Ok(Sent { tag, name })
    }

    /// Begins an IDLE (RFC 2177); the server answers with a `+`, and with what is new.
    pub(super) async fn idle(&mut self) -> Result<Sent> {
        let sent = self.send("IDLE", "IDLE").await?;
        self.idling = true;
        Ok(sent)
    }

    /// Ends the IDLE; its tagged OK is still to come.
    pub(super) async fn done(&mut self) -> Result<()> {
        self.idling = false;
        within(ANSWER, "DONE", self.session.run_command_untagged("DONE")).await?.map_err(lost)
    }

    /// From here on commands are collected, so that they leave in one write; see [`Wire::uncork`].
    pub(super) fn cork(&mut self) {
        self.session.get_mut().cork();
    }

    /// Writes what was collected.
    pub(super) async fn uncork(&mut self) -> Result<()> {
        let held = self.session.get_mut().uncork();
        let net = self.session.get_mut();
        let write = async {
            net.write_all(&held).await?;
            net.flush().await
        };
        within(ANSWER, "write", write).await?.map_err(Error::io)
    }

    /// The next answer of the server, for the command `sent`, until `deadline`; untagged data goes through `read`.
    ///
    /// Giving up on the wait loses nothing: what has come so far stays in the parser's buffer.
    ///
    /// # Errors
    /// A NO or BAD to any command, a BYE, an end of the stream, silence.
    pub(super) async fn hear<R>(
        &mut self,
        sent: &Sent,
        deadline: Instant,
        read: impl FnOnce(&Response<'_>) -> R,
    ) -> Result<Heard<R>> {
        let began = Instant::now();
        self.session.get_mut().allow(self.allowance);
        let answer = timeout_at(deadline, self.session.read_response()).await.map_err(|_| Error::Silent {
            command: sent.name,
            seconds: deadline.saturating_duration_since(began).as_secs(),
        })?;
        let Some(data) = answer.map_err(Error::io)? else {
            return Err(Error::Lost(std::io::ErrorKind::UnexpectedEof.into()));
        };
        match data.parsed() {
            Response::Done { tag, status: Status::Ok, .. } if *tag == sent.tag => Ok(Heard::Done),
            Response::Done { status: status @ (Status::No | Status::Bad), outcome, .. } => {
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

    /// Hears everything up to the tagged OK of `sent`; each piece of untagged data goes to `each`.
    pub(super) async fn finish(
        &mut self,
        sent: &Sent,
        limit: Duration,
        mut each: impl FnMut(&Response<'_>),
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.hear(sent, deadline, &mut each).await? {
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
        self.finish(&sent, ANSWER, each).await
    }

    /// Says goodbye. What else was on its way does not matter any more, nor does a server that is slow to answer.
    pub(super) async fn logout(mut self) {
        self.session.get_mut().uncork();
        let farewell = async {
            if self.idling {
                self.done().await?;
            }
            let sent = self.send("LOGOUT", "LOGOUT").await?;
            let deadline = Instant::now() + FAREWELL;
            loop {
                // The BYE before the OK, and the end of an IDLE, are errors anywhere else.
                match self.hear(&sent, deadline, |_| ()).await {
                    Ok(Heard::Done) => return Ok(()),
                    Err(e @ (Error::Lost(_) | Error::Silent { .. })) => return Err(e),
                    _ => {}
                }
            }
        };
        let _: std::result::Result<Result<()>, _> = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

async fn within<T>(limit: Duration, command: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::Silent { command, seconds: limit.as_secs() })
}

fn lost(error: async_imap::error::Error) -> Error {
    match error {
        async_imap::error::Error::Io(e) => Error::io(e),
        async_imap::error::Error::ConnectionLost => Error::Lost(std::io::ErrorKind::UnexpectedEof.into()),
        // Its text may hold what the server sent; nothing but the kind is kept.
        _ => Error::Protocol("a command could not be written".into()),
    }
}

/// A string as an IMAP quoted string (RFC 3501, 4.3); `None` if it holds what none can.
pub(super) fn quoted(text: &str) -> Option<String> {
    if text.contains(['\r', '\n', '\0']) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The UIDVALIDITY or UIDNEXT that an untagged OK carries.
pub(super) fn code<'a>(response: &'a Response<'_>) -> Option<&'a ResponseCode<'a>> {
    match response {
        Response::Data { status: Status::Ok, outcome } => outcome.code.as_ref(),
        _ => None,
    }
}
