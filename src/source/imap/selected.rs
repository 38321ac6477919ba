//! An open mailbox on a connection.

use super::connection::{Connection, PendingCommand, ResponseTimeout, ServerResponse, quoted};
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::reader::MailboxReader;
use super::uid_search::highest_uid;

/// An open mailbox, which is ready for a command outside IDLE. During IDLE it is borrowed by [`Idling`](super::idle::Idling),
/// which ends the IDLE before it sends a command.
pub(super) struct SelectedMailbox {
    pub(super) connection: Connection,
    pub(super) reader: MailboxReader,
}

impl SelectedMailbox {
    /// Sends a command and waits for its OK. Untagged responses update `reader`.
    pub(super) async fn run(&mut self, name: &'static str, command: &str) -> Result<()> {
        let pending = self.connection.send(name, command).await?;
        let timeout = ResponseTimeout::within(self.reader.facts.account.timing.answer);
        self.finish(&pending, timeout, |_| {}).await
    }

    /// Reads the next response, and updates the reader's `status`. Returns `Data` with the mail of a FETCH response, `Data(None)`
    /// for other untagged data, `Done` for the OK of `pending`, and `Continue` for a continuation request (`+`).
    pub(super) async fn read_response(
        &mut self,
        pending: &PendingCommand,
        timeout: ResponseTimeout,
    ) -> Result<ServerResponse<Option<FetchedMail>>> {
        let reader = &mut self.reader;
        let now = reader.facts.account.timing.now();
        let response = self.connection.read_response(pending, timeout, |response| reader.record(response, now)).await?;
        if self.reader.status.is_renumbered {
            return Err(Error::Protocol("changed the UIDVALIDITY of an open mailbox".into()));
        }
        Ok(response)
    }

    /// Reads responses up to the OK of `pending`. A FETCH response with a header or a body goes to `pushed`. Any other FETCH
    /// response goes to `on_mail`.
    pub(super) async fn finish(
        &mut self,
        pending: &PendingCommand,
        timeout: ResponseTimeout,
        mut on_mail: impl FnMut(FetchedMail),
    ) -> Result<()> {
        loop {
            match self.read_response(pending, timeout).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Continue => return Err(Error::Protocol("sent a `+` that no command needs".into())),
                ServerResponse::Data(None) => {}
                ServerResponse::Data(Some(mail)) if mail.is_listing() => on_mail(mail),
                ServerResponse::Data(Some(mail)) => self.reader.pushed.keep(mail),
            }
        }
    }

    /// Whether the mailbox has no mail above the cursor. Callers need this check after a refused `UID FETCH n:*`, because some
    /// servers refuse this command if no mail matches.
    pub(super) async fn is_read_to_the_end(&mut self) -> Result<bool> {
        let (status, cursor) = (&self.reader.status, self.reader.progress.cursor());
        let is_announced = self.reader.outstanding.announced() > 0 || status.announced > 0;
        let is_below_uid_next = status.uid_next.is_none_or(|next| next > cursor.saturating_add(1));
        if status.exists == 0 || !(is_announced || is_below_uid_next) {
            return Ok(true);
        }
        // UIDNEXT does not fall when a mail is removed, so a high UIDNEXT does not prove that there is a mail.
        let set = format!("{}:*", cursor.saturating_add(1));
        Ok(self.highest_uid(&set).await?.is_some_and(|highest| highest <= cursor))
    }

    /// The highest UID of the mails in a set; see [`highest_uid`].
    pub(super) async fn highest_uid(&mut self, set: &str) -> Result<Option<u32>> {
        let (status, answer) = (&mut self.reader.status, self.reader.facts.account.timing.answer);
        highest_uid(&mut self.connection, set, answer, |response| status.record(response)).await
    }

    /// Sends a STATUS for the UIDVALIDITY, if the server answers STATUS for the selected mailbox. Courier does not report that an
    /// open mailbox was deleted and created again. In the new mailbox, the old UIDs mean new mails.
    pub(super) async fn send_uid_validity_check(&mut self) -> Result<Option<PendingCommand>> {
        if !self.reader.facts.reports_uid_validity {
            return Ok(None);
        }
        let Some(name) = quoted(&self.reader.facts.name.encoded) else { return Ok(None) };
        self.connection.send("STATUS", &format!("STATUS {name} (UIDVALIDITY)")).await.map(Some)
    }

    /// Reads the answer to the STATUS of [`Self::send_uid_validity_check`]. A changed UIDVALIDITY and a deleted mailbox are
    /// errors.
    pub(super) async fn read_uid_validity_check(&mut self, pending: Option<PendingCommand>) -> Result<()> {
        let Some(pending) = pending else { return Ok(()) };
        let timeout = ResponseTimeout::within(self.reader.facts.account.timing.answer);
        self.finish(&pending, timeout, |_| {}).await
    }
}

/// Writes UIDs as a sequence set (RFC 3501), for example `4:7,9`. `uids` must be sorted.
pub(super) fn uid_set(uids: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &uid in uids {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(uid) => *end = uid,
            _ => ranges.push((uid, uid)),
        }
    }
    let parts: Vec<_> = ranges
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}:{last}") })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_sets_use_ranges() {
        assert_eq!(uid_set(&[4, 5, 6, 9, 11, 12]), "4:6,9,11:12");
        assert_eq!(uid_set(&[7]), "7");
    }
}
