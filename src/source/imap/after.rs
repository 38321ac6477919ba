//! Applies the setting `after` to stored notifications on the mail server: marks them as seen, or moves them.

use super::connection::quoted;
use super::error::{Error, Result};
use super::selected::{SelectedMailbox, uid_set};
use super::settings::After;
use super::utf7;
use crate::model::same_mailbox;

/// The most UIDs in one command. Servers limit the length of a line.
const CHUNK: usize = 500;

impl SelectedMailbox {
    /// Waits until `ingest` has committed the mails of this mailbox, and applies the setting `after` to the notifications among
    /// these mails.
    pub(super) async fn apply_after(&mut self) -> Result<()> {
        self.reader.after.wait_for_commits().await?;
        loop {
            let uids = self.reader.after.next_chunk(CHUNK);
            if uids.is_empty() {
                return Ok(());
            }
            self.apply_after_to(&uid_set(&uids)).await?;
            self.reader.after.remove(uids.len());
        }
    }

    /// Marks or moves the mails `uids`. If the connection ends before the answer, the next connection repeats the command, which
    /// is harmless.
    async fn apply_after_to(&mut self, uids: &str) -> Result<()> {
        let applied = match self.reader.facts.account.settings.after.clone() {
            After::Leave => Ok(()),
            After::Seen => self.add_flag(uids, "\\Seen").await,
            // If the target is the watched mailbox, each move would give the mail a new UID, and the watcher would read and move
            // the mail again, without end.
            After::Move(target) if same_mailbox(&target, &self.reader.facts.name.display) => Ok(()),
            After::Move(target) => self.move_to(uids, &target).await,
        };
        match applied {
            // The connection still works after a NO, and the notifications are stored. So the error is only logged, and later
            // notifications need not wait.
            Err(error @ Error::Refused { .. }) => {
                let (account, mailbox) = (&self.reader.facts.account.settings.name, &self.reader.facts.name.display);
                tracing::warn!(account, mailbox, "cannot apply `after`: {error}");
                Ok(())
            }
            applied => applied,
        }
    }

    async fn add_flag(&mut self, uids: &str, flag: &str) -> Result<()> {
        self.run("UID STORE", &format!("UID STORE {uids} +FLAGS.SILENT ({flag})")).await
    }

    /// Moves the mails `uids` with MOVE (RFC 6851), if the server supports MOVE. For other servers, copies the mails, marks the
    /// originals with `\Deleted`, and removes them with UID EXPUNGE (RFC 4315). Without UIDPLUS, the originals stay marked: a
    /// plain EXPUNGE would also remove mails that other programs have marked.
    async fn move_to(&mut self, uids: &str, target: &str) -> Result<()> {
        let target = quoted(&utf7::encode(target)).ok_or_else(|| Error::Refused {
            command: "UID MOVE",
            message: "the mailbox's name contains a line break".into(),
        })?;
        let capabilities = self.reader.facts.capabilities;
        if capabilities.moves {
            return self.run_with_target("UID MOVE", &format!("UID MOVE {uids} {target}"), &target).await;
        }
        self.run_with_target("UID COPY", &format!("UID COPY {uids} {target}"), &target).await?;
        self.add_flag(uids, "\\Deleted").await?;
        if capabilities.uidplus {
            self.run("UID EXPUNGE", &format!("UID EXPUNGE {uids}")).await?;
        }
        Ok(())
    }

    /// Runs a command that needs the mailbox `target`. If the server refuses the command, creates the mailbox and runs the
    /// command again (RFC 3501, TRYCREATE).
    async fn run_with_target(&mut self, name: &'static str, command: &str, target: &str) -> Result<()> {
        match self.run(name, command).await {
            Err(Error::Refused { message, .. }) => {
                let (account, mailbox) = (&self.reader.facts.account.settings.name, &self.reader.facts.name.display);
                tracing::info!(account, mailbox, "{name} refused ({message}); creating the mailbox {target}");
                self.run("CREATE", &format!("CREATE {target}")).await?;
                self.run(name, command).await
            }
            done => done,
        }
    }
}
