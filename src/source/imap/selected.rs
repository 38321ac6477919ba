//! An open mailbox on a connection: what it is asked, what it says unasked, and what is handed on.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_imap::imap_proto::{MailboxDatum, Response};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::account::{Account, Batch, WatcherReport};
use super::connection::{Connection, PendingCommand, ResponseTimeout, ServerResponse};
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::fetch_history::FetchHistory;
use super::login::Capabilities;
use super::mailbox::MailboxStatus;
use super::settings::After;
use crate::model::{
    Availability, MailboxState, Origin, RawMail, StartBoundary, SyncPosition, Uid, UidValidity, Undelivered,
};

/// How much of what the server sends unasked is kept. It is a hint; what is dropped will be fetched.
const KEPT_BYTES: usize = 8 << 20;
const KEPT: usize = 256;

/// An open mailbox on a connection, and how far it has been read.
pub(super) struct SelectedMailbox {
    pub(super) connection: Connection,
    pub(super) capabilities: Capabilities,
    pub(super) account: Arc<Account>,
    /// The mailbox's name on the server, as a person reads it.
    pub(super) name: String,
    /// And as it goes over the wire.
    pub(super) wire_name: String,
    pub(super) selected: MailboxStatus,
    /// Every UID up to this was handed over, or is known to be gone.
    pub(super) cursor: u32,
    /// The cursor that was handed over last.
    pub(super) handed: Option<u32>,
    /// Where the first run began, if not with the oldest mail.
    pub(super) start_boundary: Option<StartBoundary>,
    /// See [`SyncPosition::renumbered_after`].
    pub(super) renumbered_after: i64,
    /// Whether the server says by which numbering a mailbox goes while it is open.
    pub(super) reports_uid_validity: bool,
    pub(super) out: mpsc::Sender<WatcherReport>,
    /// Mails that the server pushed while we were busy with something else.
    pub(super) pushed: Vec<FetchedMail>,
    /// What of the mailbox has not come yet, though it should be there.
    pub(super) outstanding: Outstanding,
    /// What is to be put away.
    pub(super) finished: AfterQueue,
    /// What is remembered of FETCHes that failed.
    pub(super) history: FetchHistory,
}

/// What is known to be there, or likely to be, and was not sent.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// How many mails were announced and did not come.
    pub(super) owed: usize,
    /// Mails above the cursor that were handed over already: before them something is missing.
    pub(super) ahead: BTreeSet<u32>,
    /// The server named a next UID that is further on than what it listed.
    pub(super) top: bool,
}

/// Notifications that `after` waits for. They outlive a connection.
#[derive(Debug, Default)]
pub(super) struct AfterQueue {
    /// The numbering that they belong to.
    pub(super) uid_validity: u32,
    /// Batches that will name those that are committed.
    pub(super) waiting: Vec<oneshot::Receiver<Vec<u32>>>,
    /// Those that are committed.
    pub(super) uids: Vec<u32>,
}

impl SelectedMailbox {
    /// Keeps what the server sent unasked; that a flag changed is of no interest.
    pub(super) fn keep(&mut self, item: FetchedMail) {
        let bytes: usize = self.pushed.iter().map(FetchedMail::bytes).sum();
        if !item.is_listing() && bytes < KEPT_BYTES && self.pushed.len() < KEPT {
            self.pushed.push(item);
        }
    }

    /// Runs a command whose answer is of no interest beyond its OK; takes note of what else the server says.
    pub(super) async fn run(&mut self, name: &'static str, command: &str) -> Result<()> {
        let sent = self.connection.send(name, command).await?;
        self.finish(&sent, ResponseTimeout::within(self.account.timing.answer), |_| {}).await
    }

    /// How long the next mail of a long answer may take.
    pub(super) fn streaming(&self) -> ResponseTimeout {
        ResponseTimeout::streaming(self.account.timing.mail, self.account.timing.answer)
    }

    /// The next answer: a mail's data, or `Data(None)` for what was only taken note of.
    pub(super) async fn read_response(
        &mut self,
        sent: &PendingCommand,
        wait: ResponseTimeout,
    ) -> Result<ServerResponse<Option<FetchedMail>>> {
        let (selected, now) = (&mut self.selected, self.account.timing.now());
        let read = |response: &Response<'_>| {
            let item = FetchedMail::from_response(response);
            match &item {
                Some(item) => selected.saw(item, now),
                None => selected.note(response),
            }
            item
        };
        let heard = self.connection.read_response(sent, wait, read).await?;
        if self.selected.renumbered {
            return Err(Error::Protocol("it has begun another UIDVALIDITY while the mailbox was open".into()));
        }
        Ok(heard)
    }

    /// Hears a command to its end. What the server pushes meanwhile is kept; a mere listing goes to `each`.
    pub(super) async fn finish(
        &mut self,
        sent: &PendingCommand,
        wait: ResponseTimeout,
        mut each: impl FnMut(FetchedMail),
    ) -> Result<()> {
        loop {
            match self.read_response(sent, wait).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Continue => return Err(Error::Protocol("a `+` that nobody waits for".into())),
                ServerResponse::Data(None) => {}
                ServerResponse::Data(Some(item)) if item.is_listing() => each(item),
                ServerResponse::Data(Some(item)) => self.keep(item),
            }
        }
    }

    /// Whether each mail of a listing was named. The cursor must not pass one that was not.
    pub(super) fn check_listing(&self) -> Result<()> {
        match self.selected.unreadable {
            0 => Ok(()),
            _ => Err(Error::Protocol("sent a FETCH response that cannot be parsed and names no mail".into())),
        }
    }

    /// Whether there is no mail above the cursor, of a server that has refused to list them: some refuse `UID FETCH n:*`
    /// in place of an empty answer. Only while no other command is under way.
    pub(super) async fn is_read_to_the_end(&mut self) -> Result<bool> {
        let is_announced = self.outstanding.owed > 0 || self.selected.fresh > 0;
        let is_named = self.selected.uid_next.is_none_or(|next| next > self.cursor.saturating_add(1));
        if self.selected.exists == 0 || !(is_announced || is_named) {
            return Ok(true);
        }
        // UIDNEXT may be that of a mail that was removed. SEARCH has an empty answer in every server.
        let (cursor, mut highest) = (self.cursor, None);
        let sent =
            self.connection.send("UID SEARCH", &format!("UID SEARCH UID {}:*", cursor.saturating_add(1))).await?;
        let selected = &mut self.selected;
        let read = |response: &Response<'_>| match response {
            Response::MailboxData(MailboxDatum::Search(uids)) => {
                highest = uids.iter().copied().chain(highest).max().or(Some(0));
            }
            other => selected.note(other),
        };
        match self.connection.finish(&sent, ResponseTimeout::within(self.account.timing.answer), read).await {
            Err(Error::Refused { .. }) => Ok(false),
            answered => answered.map(|()| highest.is_some_and(|highest| highest <= cursor)),
        }
    }

    /// Whether a mail in a shared mailbox may be Resmic's, by its From.
    pub(super) fn is_candidate(&self, item: &FetchedMail) -> bool {
        item.header.as_deref().is_some_and(|header| (self.account.is_candidate)(header))
    }

    /// The mail that an item with a body is.
    pub(super) fn mail(&self, item: FetchedMail) -> Option<RawMail> {
        let mut bytes = item.body?;
        let origin = Origin {
            account: self.account.settings.name.clone(),
            mailbox: self.name.clone(),
            uid: Some((UidValidity(self.selected.uid_validity), Uid(item.uid))),
        };
        // Exchange and servers that store bare LF report an RFC822.SIZE that is not the number of bytes they send.
        let most = usize::try_from(self.account.settings.max_size.0).unwrap_or(usize::MAX);
        let length = bytes.len() as u64;
        let size = if bytes.len() > most { length.max(item.size.unwrap_or(0)) } else { length };
        bytes.truncate(most);
        Some(RawMail { origin, bytes, size, received_at: item.received_at })
    }

    /// A mail that the server did not deliver.
    pub(super) fn undelivered(&self, uid: u32, size: u64, at: Option<Timestamp>, state: Availability) -> Undelivered {
        let origin = Origin {
            account: self.account.settings.name.clone(),
            mailbox: self.name.clone(),
            uid: Some((UidValidity(self.selected.uid_validity), Uid(uid))),
        };
        Undelivered { origin, size, received_at: at, state }
    }

    /// Hands mails on, and how far the mailbox is read once they are committed.
    pub(super) async fn hand_over(&mut self, mails: Vec<RawMail>, cursor: Option<u32>) -> Result<()> {
        self.hand_over_all(mails, Vec::new(), cursor).await
    }

    /// Hands on mails, and mails that were not delivered.
    pub(super) async fn hand_over_all(
        &mut self,
        mails: Vec<RawMail>,
        undelivered: Vec<Undelivered>,
        cursor: Option<u32>,
    ) -> Result<()> {
        if mails.is_empty() && undelivered.is_empty() && (cursor.is_none() || cursor == self.handed) {
            return Ok(());
        }
        self.handed = cursor.or(self.handed);
        let done = (!mails.is_empty() && self.account.settings.after != After::Leave).then(|| {
            let (done, answer) = oneshot::channel();
            self.finished.waiting.push(answer);
            done
        });
        let cursor = cursor.map(|last_uid| SyncPosition {
            uid_validity: UidValidity(self.selected.uid_validity),
            last_uid: Uid(last_uid),
            start_boundary: self.start_boundary,
            newest_at: self.selected.newest_at,
            renumbered_after: self.renumbered_after,
        });
        let batch = Batch { mailbox: self.name.clone(), mails, undelivered, cursor, done };
        self.out.send(WatcherReport::Mails(batch)).await.map_err(|_| Error::Closing)
    }

    /// Says how the mailbox is; a round trip was completed just now.
    pub(super) async fn report(&self, state: MailboxState) -> Result<()> {
        let report = WatcherReport::State { mailbox: self.name.clone(), state, seen: true, error: None };
        self.out.send(report).await.map_err(|_| Error::Closing)
    }
}

/// UIDs as a sequence set: `4:7,9`.
pub(super) fn uid_set(uids: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &uid in uids {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(uid) => *end = uid,
            _ => ranges.push((uid, uid)),
        }
    }
    let parts: Vec<_> = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}:{b}") }).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_written_as_ranges() {
        assert_eq!(uid_set(&[4, 5, 6, 9, 11, 12]), "4:6,9,11:12");
        assert_eq!(uid_set(&[7]), "7");
    }
}
