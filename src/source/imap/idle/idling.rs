//! A mailbox in IDLE (RFC 2177): the end of an IDLE, and its interruption for a FETCH.

use super::super::connection::{PendingCommand, ResponseTimeout, ServerResponse};
use super::super::error::{Error, Result};
use super::super::fetch::FetchedMail;
use super::super::reader::MailboxReader;
use super::super::selected::SelectedMailbox;

/// The most mails that [`Idling::interrupt`] keeps of one FETCH. If there are more mails, a sync fetches all of them.
pub(super) const MAX_MAILS: usize = 50;
/// The most bytes of mails that [`Idling::interrupt`] keeps of one FETCH. If there are more bytes, a sync fetches the mails.
const MAX_BYTES: usize = 16 << 20;

/// Whether all mails in the answer to a FETCH were within `MAX_MAILS` and `MAX_BYTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completeness {
    Complete,
    TooMany,
}

/// Whether a STATUS for the UIDVALIDITY is sent before the FETCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UidValidityCheck {
    Send,
    Skip,
}

/// A mailbox in IDLE. No method of this type sends an arbitrary command. [`Self::interrupt`] ends this IDLE, sends a FETCH and
/// starts the next IDLE. [`Self::done`] ends the IDLE and returns the mailbox.
///
/// The mailbox is borrowed, not owned. So the watcher can still log out at shutdown, after this value is dropped.
#[must_use = "an IDLE ends with `done`"]
pub(in super::super) struct Idling<'a> {
    mailbox: &'a mut SelectedMailbox,
    pending: PendingCommand,
}

impl SelectedMailbox {
    /// Starts an IDLE.
    pub(in super::super) async fn idle(&mut self) -> Result<Idling<'_>> {
        let pending = self.connection.send_idle().await?;
        Ok(Idling { mailbox: self, pending })
    }
}

impl<'a> Idling<'a> {
    /// The state of the mailbox, without its connection.
    pub(super) fn reader(&mut self) -> &mut MailboxReader {
        &mut self.mailbox.reader
    }

    /// Reads the next response during the IDLE. `Done`: the server has ended the IDLE.
    pub(super) async fn read_response(
        &mut self,
        timeout: ResponseTimeout,
    ) -> Result<ServerResponse<Option<FetchedMail>>> {
        self.mailbox.read_response(&self.pending, timeout).await
    }

    /// Waits until the server has answered the IDLE with a continuation request (`+`). Mails that arrive before this answer are
    /// kept in `pushed`.
    pub(super) async fn wait_for_plus(&mut self) -> Result<()> {
        let timeout = self.mailbox.reader.streaming();
        while self.mailbox.connection.awaits_plus() {
            if let ServerResponse::Data(Some(mail)) = self.read_response(timeout).await? {
                self.mailbox.reader.pushed.keep(mail);
            }
        }
        Ok(())
    }

    /// Ends the IDLE, sends a FETCH and starts the next IDLE, all in one write: no round trip is added. Returns the fetched mails
    /// above the cursor, within `MAX_MAILS` and `MAX_BYTES`.
    ///
    /// Stalwart before 0.10 drops commands that arrive together with a DONE. If a server answers a DONE but not the commands
    /// after it, later DONEs to this server are written alone.
    pub(super) async fn interrupt(
        &mut self,
        fetch: &str,
        check: UidValidityCheck,
    ) -> Result<(Vec<FetchedMail>, Completeness)> {
        self.wait_for_plus().await?;
        if self.mailbox.reader.facts.account.quirks.drops_after_done() {
            self.end().await?;
        }
        let mailbox = &mut *self.mailbox;
        mailbox.connection.cork();
        let is_open = mailbox.connection.send_done().await?;
        let check = match check {
            UidValidityCheck::Send => mailbox.send_uid_validity_check().await?,
            UidValidityCheck::Skip => None,
        };
        let fetch = mailbox.connection.send("UID FETCH", fetch).await?;
        let next = mailbox.connection.send_idle().await?;
        mailbox.connection.uncork().await?;
        if is_open {
            self.read_end().await?;
        }
        self.pending = next;
        let answer = self.read_answers(check, &fetch).await;
        // A timeout here means that the server has answered the DONE but not the commands after it.
        if is_open && matches!(answer, Err(Error::Timeout { .. })) {
            self.mailbox.reader.facts.account.quirks.set_drops_after_done();
        }
        answer
    }

    async fn read_answers(
        &mut self,
        check: Option<PendingCommand>,
        fetch: &PendingCommand,
    ) -> Result<(Vec<FetchedMail>, Completeness)> {
        // The UIDVALIDITY is checked before the mails are read, so that no mail is stored under a wrong UIDVALIDITY.
        self.mailbox.read_uid_validity_check(check).await?;
        let (mut mails, mut bytes, mut completeness) = (Vec::new(), 0, Completeness::Complete);
        let mut timeout = self.mailbox.reader.streaming();
        loop {
            let mail = match self.mailbox.read_response(fetch, timeout).await? {
                ServerResponse::Done => return Ok((mails, completeness)),
                ServerResponse::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                ServerResponse::Data(None) => continue,
                ServerResponse::Data(Some(mail)) => mail,
            };
            bytes += mail.bytes();
            if bytes > MAX_BYTES || mails.len() >= MAX_MAILS {
                completeness = Completeness::TooMany;
            } else if mail.uid > self.mailbox.reader.progress.cursor() {
                mails.push(mail);
                timeout = self.mailbox.reader.streaming();
            }
        }
    }

    /// Ends the IDLE and gives the mailbox back for other commands. Sends no DONE if the server has ended the IDLE.
    pub(super) async fn done(mut self) -> Result<&'a mut SelectedMailbox> {
        self.wait_for_plus().await?;
        self.end().await?;
        Ok(self.mailbox)
    }

    async fn end(&mut self) -> Result<()> {
        if self.mailbox.connection.send_done().await? {
            self.read_end().await?;
        }
        Ok(())
    }

    /// Reads up to the tagged OK of the IDLE. Mails that arrive before the OK are kept in `pushed`.
    async fn read_end(&mut self) -> Result<()> {
        let timeout = ResponseTimeout::within(self.mailbox.reader.facts.account.timing.answer);
        loop {
            match self.read_response(timeout).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Data(Some(mail)) => self.mailbox.reader.pushed.keep(mail),
                // Some servers send a second continuation request (`+`) during an IDLE.
                ServerResponse::Data(None) | ServerResponse::Continue => {}
            }
        }
    }
}
