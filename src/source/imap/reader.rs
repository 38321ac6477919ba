//! The state of an open mailbox apart from its connection. No method here sends a command, so this state can be used during IDLE.

use std::sync::Arc;

use async_imap::imap_proto::Response;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::account::{Account, Batch, WatcherReport};
use super::after_queue::AfterQueue;
use super::arrivals::{Outstanding, PushedMails};
use super::connection::ResponseTimeout;
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::fetch_history::FetchHistory;
use super::login::Capabilities;
use super::mailbox::{MailboxName, MailboxStatus};
use super::progress::SyncProgress;
use super::settings::After;
use crate::model::{Availability, MailboxState, Origin, RawMail, Uid, UidValidity, Undelivered};

/// Facts that do not change while the mailbox is open.
pub(super) struct MailboxFacts {
    pub(super) account: Arc<Account>,
    pub(super) name: MailboxName,
    pub(super) capabilities: Capabilities,
    /// The server answers STATUS for the selected mailbox. Some servers refuse this STATUS, because clients SHOULD NOT send it
    /// (RFC 3501, 6.3.10).
    pub(super) reports_uid_validity: bool,
}

/// The state of an open mailbox: the data that the server has reported, and the UIDs whose mails were sent to `ingest`.
pub(super) struct MailboxReader {
    pub(super) facts: MailboxFacts,
    pub(super) status: MailboxStatus,
    pub(super) progress: SyncProgress,
    pub(super) pushed: PushedMails,
    pub(super) outstanding: Outstanding,
    pub(super) after: AfterQueue,
    pub(super) history: FetchHistory,
    pub(super) out: mpsc::Sender<WatcherReport>,
}

impl MailboxReader {
    /// The timeout for the next mail of a FETCH. A large mail may take minutes, but a silent connection is given up sooner.
    pub(super) fn streaming(&self) -> ResponseTimeout {
        let timing = &self.facts.account.timing;
        ResponseTimeout::streaming(timing.mail, timing.answer)
    }

    /// Updates `status` from a response. Returns the mail of a FETCH response; `None` for other responses.
    pub(super) fn record(&mut self, response: &Response<'_>, now: Timestamp) -> Option<FetchedMail> {
        let mail = FetchedMail::from_response(response);
        match &mail {
            Some(mail) => self.status.record_date(mail, now),
            None => self.status.record(response),
        }
        mail
    }

    /// Whether the sender of a mail in a shared mailbox may be Resmic, by its From field.
    pub(super) fn is_candidate(&self, mail: &FetchedMail) -> bool {
        mail.header.as_deref().is_some_and(|header| (self.facts.account.is_candidate)(header))
    }

    /// Returns an error if the answer to a listing (a FETCH of UIDs) contains a FETCH response without a readable UID. Without
    /// this check, the cursor would pass the mail of this response, and the mail would be lost.
    pub(super) fn check_listing(&self) -> Result<()> {
        match self.status.unparsed_fetches {
            0 => Ok(()),
            _ => Err(Error::Protocol("sent a FETCH response that cannot be parsed and names no mail".into())),
        }
    }

    /// The highest UID that the cursor has passed, or whose mail was sent to `ingest`.
    pub(super) fn highest_uid(&self) -> u32 {
        self.outstanding.highest_ahead().max(self.progress.cursor())
    }

    fn origin(&self, uid: u32) -> Origin {
        Origin {
            account: self.facts.account.settings.name.clone(),
            mailbox: self.facts.name.display.clone(),
            uid: Some((UidValidity(self.status.uid_validity), Uid(uid))),
        }
    }

    /// Converts the mail of a FETCH response into a [`RawMail`], cut at `max_size`; `None` if the response has no body.
    pub(super) fn raw_mail(&self, mail: FetchedMail) -> Option<RawMail> {
        let mut bytes = mail.body?;
        // Exchange and servers that store bare LF report an RFC822.SIZE that is not the number of bytes they send. So RFC822.SIZE
        // is used only for a mail that is larger than `max_size`.
        let most = usize::try_from(self.facts.account.settings.max_size.0).unwrap_or(usize::MAX);
        let length = bytes.len() as u64;
        let size = if bytes.len() > most { length.max(mail.size.unwrap_or(0)) } else { length };
        bytes.truncate(most);
        Some(RawMail { origin: self.origin(mail.uid), bytes, size, received_at: mail.received_at })
    }

    /// Creates the report to `ingest` about a mail whose bytes the server did not deliver.
    pub(super) fn undelivered(&self, uid: u32, size: u64, at: Option<Timestamp>, state: Availability) -> Undelivered {
        Undelivered { origin: self.origin(uid), size, received_at: at, state }
    }

    /// Sends mails to `ingest`, without a new position for the table `mailboxes`.
    pub(super) async fn hand_over(&mut self, mails: Vec<RawMail>) -> Result<()> {
        self.send_batch(mails, Vec::new(), false).await
    }

    /// Sends mails to `ingest`, with the cursor that is valid after the commit of these mails.
    pub(super) async fn hand_over_with_cursor(&mut self, mails: Vec<RawMail>) -> Result<()> {
        self.send_batch(mails, Vec::new(), true).await
    }

    /// Sends mails without bytes to `ingest`, and also the cursor if `with_cursor`.
    pub(super) async fn hand_over_undelivered(&mut self, mails: Vec<Undelivered>, with_cursor: bool) -> Result<()> {
        self.send_batch(Vec::new(), mails, with_cursor).await
    }

    async fn send_batch(
        &mut self,
        mails: Vec<RawMail>,
        undelivered: Vec<Undelivered>,
        with_cursor: bool,
    ) -> Result<()> {
        if mails.is_empty() && undelivered.is_empty() && (!with_cursor || self.progress.is_unchanged()) {
            return Ok(());
        }
        let wants_after = !mails.is_empty() && self.facts.account.settings.after != After::Leave;
        let done = wants_after.then(|| self.after.expect_commit());
        let cursor = with_cursor.then(|| self.progress.report(self.status.uid_validity, self.status.newest_at));
        let batch = Batch { mailbox: self.facts.name.display.clone(), mails, undelivered, cursor, done };
        self.out.send(WatcherReport::Mails(batch)).await.map_err(|_| Error::Closing)
    }

    /// Reports the state of the mailbox to `ingest`, after the server has answered a command.
    pub(super) async fn report(&self, state: MailboxState) -> Result<()> {
        let report = WatcherReport::State { mailbox: self.facts.name.display.clone(), state, seen: true, error: None };
        self.out.send(report).await.map_err(|_| Error::Closing)
    }
}
