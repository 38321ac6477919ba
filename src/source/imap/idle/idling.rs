//! Ending an IDLE for something, and beginning the next.

use super::super::connection::{Heard, Sent, Wait, quoted};
use super::super::error::{Error, Result};
use super::super::fetch::Item;
use super::super::selected::Opened;

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
pub(super) enum Numbering {
    Asked,
    Believed,
}

impl Opened {
    /// Ends the IDLE, asks for mails and begins a new IDLE, all in one write. Returns what came, and whether all of it
    /// could be held.
    ///
    /// Stalwart before 0.10 drops what comes together with a DONE. After one timeout that looks like this, the DONE is
    /// written alone.
    pub(super) async fn interrupt(
        &mut self,
        idle: &mut Sent,
        fetch: &str,
        numbering: Numbering,
    ) -> Result<(Vec<Item>, Held)> {
        if self.account.quirks.drops_after_done() {
            self.end_idle(idle).await?;
        } else {
            self.until_plus(idle).await?;
        }
        self.wire.cork();
        let ending = self.wire.done().await?;
        let asked = if numbering == Numbering::Asked { self.ask_numbering().await? } else { None };
        let sent = self.wire.send("UID FETCH", fetch).await?;
        let next = self.wire.idle().await?;
        self.wire.uncork().await?;
        let ended = std::mem::replace(idle, next);
        if ending {
            self.end_of_idle(&ended).await?;
        }
        let answered = async {
            // Before the mails, so that none is read under a wrong numbering.
            self.hear_numbering(asked).await?;
            self.collect(&sent).await
        }
        .await;
        // The DONE was answered, and the commands behind it were not.
        if ending && matches!(answered, Err(Error::Silent { .. })) {
            self.account.quirks.learn_that_it_drops_after_done();
        }
        answered
    }

    async fn collect(&mut self, sent: &Sent) -> Result<(Vec<Item>, Held)> {
        let (mut items, mut bytes, mut held) = (Vec::new(), 0, Held::All);
        let mut wait = self.flowing();
        loop {
            let item = match self.hear(sent, wait).await? {
                Heard::Done => return Ok((items, held)),
                Heard::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                Heard::Data(None) => continue,
                Heard::Data(Some(item)) => item,
            };
            bytes += item.bytes();
            if bytes > HELD_BYTES || items.len() > AT_ONCE {
                held = Held::NotAll;
            } else if item.uid > self.cursor {
                items.push(item);
                wait = self.flowing();
            }
        }
    }

    /// Asks by which numbering the mailbox goes now. Courier does not say when one that is open is deleted and made
    /// again, and answers for the new one under the numbers of the old.
    pub(super) async fn ask_numbering(&mut self) -> Result<Option<Sent>> {
        let Some(name) = quoted(&self.wire_name).filter(|_| self.tells_numbering) else { return Ok(None) };
        self.wire.send("STATUS", &format!("STATUS {name} (UIDVALIDITY)")).await.map(Some)
    }

    /// Hears the answer; another numbering is an error, as is a mailbox that is not there any more.
    pub(super) async fn hear_numbering(&mut self, asked: Option<Sent>) -> Result<()> {
        let Some(asked) = asked else { return Ok(()) };
        self.finish(&asked, Wait::of(self.account.timing.answer), |_| {}).await
    }

    /// Hears the server's `+`, where it has not come yet.
    pub(super) async fn until_plus(&mut self, idle: &Sent) -> Result<()> {
        let wait = self.flowing();
        while self.wire.awaits_plus() {
            if let Heard::Data(Some(item)) = self.hear(idle, wait).await? {
                self.keep(item);
            }
        }
        Ok(())
    }

    /// Ends the IDLE for something that takes more than one command.
    pub(super) async fn end_idle(&mut self, idle: &Sent) -> Result<()> {
        self.until_plus(idle).await?;
        if self.wire.done().await? {
            self.end_of_idle(idle).await?;
        }
        Ok(())
    }

    async fn end_of_idle(&mut self, ended: &Sent) -> Result<()> {
        let wait = Wait::of(self.account.timing.answer);
        loop {
            match self.hear(ended, wait).await? {
                Heard::Done => return Ok(()),
                Heard::Data(item) => item.into_iter().for_each(|item| self.keep(item)),
                // One `+` too many.
                Heard::Continue => {}
            }
        }
    }
}
