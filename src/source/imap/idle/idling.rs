//! Ending an IDLE for something, and beginning the next.

use super::super::connection::{PendingCommand, ResponseTimeout, ServerResponse, quoted};
use super::super::error::{Error, Result};
use super::super::fetch::FetchedMail;
use super::super::selected::SelectedMailbox;

/// How many mails are asked for in one command here. What comes in hundreds is for a sync.
pub(super) const AT_ONCE: usize = 50;
/// How many bytes of mails are held at once here. What is larger is for a sync too.
const HELD_BYTES: usize = 16 << 20;

/// Whether all that a command brought could be held, or only a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    All,
    NotAll,
}

/// Whether the server is asked if the mailbox still goes by the numbering that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UidValidityCheck {
    Send,
    Skip,
}

impl SelectedMailbox {
    /// Ends the IDLE, asks for mails and begins a new IDLE, all in one write. Returns what came, and whether all of it
    /// could be held.
    ///
    /// Stalwart before 0.10 drops what comes together with a DONE. After one timeout that looks like this, the DONE is
    /// written alone.
    pub(super) async fn interrupt(
        &mut self,
        idle: &mut PendingCommand,
        fetch: &str,
        numbering: UidValidityCheck,
    ) -> Result<(Vec<FetchedMail>, Held)> {
        if self.account.quirks.drops_after_done() {
            self.end_idle(idle).await?;
        } else {
            self.until_plus(idle).await?;
        }
        self.connection.cork();
        let ending = self.connection.done().await?;
        let asked = if numbering == UidValidityCheck::Send { self.send_uid_validity_check().await? } else { None };
        let sent = self.connection.send("UID FETCH", fetch).await?;
        let next = self.connection.idle().await?;
        self.connection.uncork().await?;
        let ended = std::mem::replace(idle, next);
        if ending {
            self.end_of_idle(&ended).await?;
        }
        let answered = async {
            // Before the mails, so that none is read under a wrong numbering.
            self.read_uid_validity_check(asked).await?;
            self.collect(&sent).await
        }
        .await;
        // The DONE was answered, and the commands behind it were not.
        if ending && matches!(answered, Err(Error::Timeout { .. })) {
            self.account.quirks.learn_that_it_drops_after_done();
        }
        answered
    }

    async fn collect(&mut self, sent: &PendingCommand) -> Result<(Vec<FetchedMail>, Held)> {
        let (mut items, mut bytes, mut held) = (Vec::new(), 0, Held::All);
        let mut wait = self.streaming();
        loop {
            let item = match self.read_response(sent, wait).await? {
                ServerResponse::Done => return Ok((items, held)),
                ServerResponse::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                ServerResponse::Data(None) => continue,
                ServerResponse::Data(Some(item)) => item,
            };
            bytes += item.bytes();
            if bytes > HELD_BYTES || items.len() > AT_ONCE {
                held = Held::NotAll;
            } else if item.uid > self.cursor {
                items.push(item);
                wait = self.streaming();
            }
        }
    }

    /// Asks by which numbering the mailbox goes now. Courier does not say when one that is open is deleted and made
    /// again, and answers for the new one under the numbers of the old.
    pub(super) async fn send_uid_validity_check(&mut self) -> Result<Option<PendingCommand>> {
        let Some(name) = quoted(&self.wire_name).filter(|_| self.reports_uid_validity) else { return Ok(None) };
        self.connection.send("STATUS", &format!("STATUS {name} (UIDVALIDITY)")).await.map(Some)
    }

    /// Hears the answer; another numbering is an error, as is a mailbox that is not there any more.
    pub(super) async fn read_uid_validity_check(&mut self, asked: Option<PendingCommand>) -> Result<()> {
        let Some(asked) = asked else { return Ok(()) };
        self.finish(&asked, ResponseTimeout::within(self.account.timing.answer), |_| {}).await
    }

    /// Hears the server's `+`, where it has not come yet.
    pub(super) async fn until_plus(&mut self, idle: &PendingCommand) -> Result<()> {
        let wait = self.streaming();
        while self.connection.awaits_plus() {
            if let ServerResponse::Data(Some(item)) = self.read_response(idle, wait).await? {
                self.keep(item);
            }
        }
        Ok(())
    }

    /// Ends the IDLE for something that takes more than one command.
    pub(super) async fn end_idle(&mut self, idle: &PendingCommand) -> Result<()> {
        self.until_plus(idle).await?;
        if self.connection.done().await? {
            self.end_of_idle(idle).await?;
        }
        Ok(())
    }

    async fn end_of_idle(&mut self, ended: &PendingCommand) -> Result<()> {
        let wait = ResponseTimeout::within(self.account.timing.answer);
        loop {
            match self.read_response(ended, wait).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Data(item) => item.into_iter().for_each(|item| self.keep(item)),
                // One `+` too many.
                ServerResponse::Continue => {}
            }
        }
    }
}
