//! Reads all mails above the cursor, and moves the cursor by the cursor rule.
//!
//! The cursor rule: the cursor passes a UID only if the mail with this UID was sent to `ingest`, does not exist, or is excluded
//! by its sender or by the setting `start`. A mail that the server does not deliver is sent to `ingest` without bytes. `ingest`
//! commits mails in the order in which they were sent. Only a tagged OK proves that a mail does not exist. The end of a
//! connection, a NO, and a mail that is listed but not delivered prove nothing.

use tokio::time::sleep_until;

use super::arrivals::Outstanding;
use super::connection::{PendingCommand, ServerResponse};
use super::error::{Error, Result};
use super::fetch::FetchKind;
use super::reader::MailboxReader;
use super::selected::{SelectedMailbox, uid_set};
use super::settings::Start;
use super::sync_queue::{FetchCommand, FetchRequest, FollowUps, SHARED_WINDOW, SyncQueue, WINDOW};
use crate::model::{Availability, RawMail, StartBoundary, Uid};

/// Another window (a range of UIDs) is requested while fewer FETCHes than this number wait for an answer. So the server never
/// waits for a command.
const OPEN_COMMANDS: usize = 2;
/// Mails are sent to `ingest` as soon as this number of mails, or of bytes, has arrived.
const MAX_BATCH: usize = 64;
const MAX_BATCH_BYTES: usize = 1 << 20;
/// The most mails that a mailbox may list. Each UID in the list takes four bytes of memory.
const MAX_LISTED: usize = 10_000_000;
/// A server that lists more mails than this without delivering them, and delivers nothing else, is faulty. So none of these mails
/// gets a row without bytes in the table `mails`.
const MAX_WITHHELD: usize = 50;
/// In [`StartBoundary::uid`]: the server has not reported UIDNEXT, so the highest UID is taken from the first listing.
pub(super) const UNKNOWN_UID: u32 = u32::MAX;

/// The UIDs above the cursor, as the server lists them.
struct Listing {
    /// UIDs to fetch, sorted.
    uids: Vec<u32>,
    /// The highest UID that the server listed, or the cursor if that is higher.
    highest: u32,
}

impl SelectedMailbox {
    /// Fetches all mails above the cursor, and sends them to `ingest`.
    pub(super) async fn sync(&mut self) -> Result<()> {
        if !self.reader.progress.is_reported() {
            // The position at which reading begins is stored before the first mail is fetched. So a later connection begins at
            // the same position for "now", and does not detect the same renumbering again.
            self.reader.hand_over_with_cursor(Vec::new()).await?;
        }
        // An operator may have changed `start` to "all" after a start boundary was stored. With "all", a renumbered mailbox is
        // read again from its oldest mail.
        let start = self.reader.facts.account.settings.start;
        let boundary = self.reader.progress.start_boundary().filter(|_| start != Start::All);
        let mut listing = self.list_new(boundary).await?;
        self.complete_start_boundary(listing.highest).await?;
        listing.uids.retain(|uid| !self.reader.outstanding.is_ahead(*uid));
        self.fetch_all(&listing.uids).await?;
        self.apply_after().await?;
        // The cursor also passes listed mails that `start` excludes. The cursor does not pass the UIDs between the last listed
        // mail and UIDNEXT, because a server may list an announced mail a moment later.
        let reader = &mut self.reader;
        reader.progress.advance(listing.highest);
        let cursor = reader.progress.cursor();
        let is_below_uid_next = reader.status.uid_next.is_some_and(|next| next.saturating_sub(1) > cursor);
        reader.outstanding = Outstanding::after_sync(is_below_uid_next);
        reader.hand_over_with_cursor(Vec::new()).await
    }

    /// Sets the UID of the start boundary from the first listing, if the server did not report UIDNEXT.
    async fn complete_start_boundary(&mut self, highest: u32) -> Result<()> {
        match self.reader.progress.start_boundary() {
            Some(boundary) if boundary.uid.0 == UNKNOWN_UID => {
                self.reader.progress.set_start_boundary(StartBoundary { uid: Uid(highest), ..boundary });
                self.reader.hand_over_with_cursor(Vec::new()).await
            }
            _ => Ok(()),
        }
    }

    /// Lists the mails above the cursor. Mails that the start boundary excludes are left out.
    async fn list_new(&mut self, boundary: Option<StartBoundary>) -> Result<Listing> {
        let kind = if boundary.is_some() { FetchKind::Dates } else { FetchKind::Listing };
        // `n:*` always contains the last mail, even if its UID is below n (RFC 3501, 6.4.8).
        let items = kind.items(&self.reader.facts.account.settings);
        let command = format!("UID FETCH {}:* ({items})", self.reader.progress.next_uid());
        self.reader.status.announced = 0;
        self.reader.status.unparsed_fetches = 0;
        let pending = self.connection.send("UID FETCH", &command).await?;
        self.connection.expect_responses((self.reader.status.exists as usize).min(MAX_LISTED));
        let cursor = self.reader.progress.cursor();
        let (mut uids, mut highest) = (Vec::new(), cursor);
        let timeout = self.reader.streaming();
        let answered = self.finish(&pending, timeout, |mail| {
            highest = highest.max(mail.uid);
            let is_old = boundary
                .is_some_and(|start| mail.uid <= start.uid.0 && mail.received_at.is_some_and(|at| at < start.at));
            if mail.uid > cursor && !is_old {
                uids.push(mail.uid);
            }
        });
        match answered.await {
            Err(Error::Refused { .. }) if self.is_read_to_the_end().await? => {
                self.reader.status.uid_next = Some(cursor.saturating_add(1));
            }
            answered => answered?,
        }
        self.reader.check_listing()?;
        uids.sort_unstable();
        uids.dedup();
        Ok(Listing { uids, highest })
    }

    /// Fetches the mails `uids` in windows (ranges of UIDs). The cursor moves each time the next UIDs are settled.
    async fn fetch_all(&mut self, uids: &[u32]) -> Result<()> {
        let start = self.reader.progress.cursor();
        let mut queue = SyncQueue::new(uids);
        match self.run_queue(&mut queue).await {
            Ok(()) => self.reader.give_up_refused(&mut queue).await,
            Err(error) => {
                self.reader.give_up_after_break(&mut queue, &error, start).await?;
                Err(error)
            }
        }
    }

    async fn run_queue(&mut self, queue: &mut SyncQueue<'_>) -> Result<()> {
        loop {
            self.send_windows(queue).await?;
            let Some(follow_ups) = self.receive_front(queue).await? else { return Ok(()) };
            let FollowUps { window, since, requests, withheld } = follow_ups;
            for request in requests {
                // A repeated FETCH is sent after a pause, because a mail that was not delivered may be readable a moment later.
                sleep_until(since + self.reader.facts.account.timing.refetch * u32::from(request.attempt - 1)).await;
                let command = self.send_fetch(window, request).await?;
                queue.push_follow_up(command);
            }
            queue.close_command(window);
            if withheld.len() > MAX_WITHHELD && !queue.has_content() {
                let message = format!("the server lists {} mails and delivers none of them", withheld.len());
                return Err(Error::Refused { command: "UID FETCH", message });
            }
            self.reader.give_up(queue, &withheld, false).await?;
            for _ in 0..queue.remove_finished(self.reader.progress.cursor()) {
                self.reader.history.grow(WINDOW);
            }
        }
    }

    /// Sends the FETCHes of the next windows (ranges of UIDs). If an earlier connection broke before the cursor moved, windows
    /// are small, and only one window is fetched at a time. So the mail that breaks connections can be found.
    async fn send_windows(&mut self, queue: &mut SyncQueue<'_>) -> Result<()> {
        let is_dedicated = self.reader.facts.account.settings.dedicated;
        let (most, open) = match self.reader.history.limit() {
            Some(limit) => (limit, 1),
            None => (if is_dedicated { WINDOW } else { SHARED_WINDOW }, OPEN_COMMANDS),
        };
        while queue.open_commands() < open {
            let Some((window, requests)) = queue.next_window(most, is_dedicated) else { return Ok(()) };
            self.connection.cork();
            for request in requests {
                let command = self.send_fetch(window, request).await?;
                queue.push(command);
            }
            self.connection.uncork().await?;
        }
        Ok(())
    }

    async fn send_fetch(&mut self, window: usize, request: FetchRequest) -> Result<FetchCommand> {
        let items = request.kind.items(&self.reader.facts.account.settings);
        let command = format!("UID FETCH {} ({items})", uid_set(&request.uids));
        if request.kind == FetchKind::Listing {
            self.reader.status.unparsed_fetches = 0;
        }
        let pending = self.connection.send("UID FETCH", &command).await?;
        Ok(FetchCommand::new(pending, window, request))
    }

    /// Reads the answer to the oldest FETCH in `queue`, and sends its mails to `ingest`. Returns the FETCHes that must follow,
    /// and the mails that were not delivered; `None` if `queue` is empty.
    async fn receive_front(&mut self, queue: &mut SyncQueue<'_>) -> Result<Option<FollowUps>> {
        let Some(front) = queue.front() else { return Ok(None) };
        let (pending, is_listing) = (front.pending.clone(), front.kind == FetchKind::Listing);
        let mut batch = Vec::new();
        let answer = self.read_fetch(&pending, queue, &mut batch).await;
        // After an error, too, the mails that arrived before the connection broke are sent to `ingest`.
        self.reader.hand_over_proven(batch, queue).await?;
        let refusal = match answer {
            Ok(()) => None,
            Err(error @ Error::Refused { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        if is_listing {
            self.reader.check_listing()?;
        }
        let Some(follow_ups) = queue.finish_front(refusal) else { return Ok(None) };
        self.reader.hand_over_proven(Vec::new(), queue).await?;
        Ok(Some(follow_ups))
    }

    /// Reads responses up to the OK of one FETCH. Mails of the next FETCH are accepted, too, because Dovecot begins the answer to
    /// the next FETCH as soon as the current answer has filled a buffer.
    async fn read_fetch(
        &mut self,
        pending: &PendingCommand,
        queue: &mut SyncQueue<'_>,
        batch: &mut Vec<RawMail>,
    ) -> Result<()> {
        let (mut timeout, mut bytes) = (self.reader.streaming(), 0);
        loop {
            let mail = match self.read_response(pending, timeout).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                ServerResponse::Data(None) => continue,
                ServerResponse::Data(Some(mail)) => mail,
            };
            let Some(command) = queue.accept(&mail) else {
                self.reader.pushed.keep(mail);
                continue;
            };
            let (uid, window) = (mail.uid, command.window);
            match command.kind {
                FetchKind::Body => {
                    bytes += mail.body.as_ref().map_or(0, Vec::len);
                    batch.extend(self.reader.raw_mail(mail));
                    queue.settle(window, uid);
                }
                FetchKind::Listing | FetchKind::Dates => command.add_candidate(uid),
                FetchKind::Senders | FetchKind::Headers if self.reader.is_candidate(&mail) => {
                    command.add_candidate(uid);
                }
                FetchKind::Senders | FetchKind::Headers => queue.settle(window, uid),
            }
            if batch.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                bytes = 0;
                self.reader.hand_over_proven(std::mem::take(batch), queue).await?;
            }
            // Each mail restarts the timeout, so that many large mails can arrive over a slow connection.
            timeout = self.reader.streaming();
        }
    }
}

impl MailboxReader {
    /// Sends mails to `ingest`, with the cursor. The cursor moves as far as the UIDs in `queue` are settled.
    async fn hand_over_proven(&mut self, mails: Vec<RawMail>, queue: &SyncQueue<'_>) -> Result<()> {
        let proven = queue.proven(self.progress.cursor());
        if proven > self.progress.cursor() {
            self.progress.advance(proven);
            self.history.passed(proven);
        }
        self.hand_over_with_cursor(mails).await
    }

    /// Gives each of the mails `uids` a row without bytes in the table `mails`, so that the cursor can pass these mails.
    /// `is_harmful`: a FETCH of these mails has ended connections.
    async fn give_up(&mut self, queue: &mut SyncQueue<'_>, uids: &[u32], is_harmful: bool) -> Result<()> {
        let mut undelivered = Vec::new();
        for &uid in uids {
            let (size, received_at) = queue.reported(uid);
            undelivered.push(self.undelivered(uid, size.unwrap_or(0), received_at, Availability::Listed));
            queue.settle_anywhere(uid);
            self.history.add(uid, received_at, is_harmful, self.facts.account.settings.idle_renew.0);
        }
        self.progress.advance(queue.proven(self.progress.cursor()));
        self.hand_over_undelivered(undelivered, true).await
    }

    /// Counts a failed FETCH of the first missing mail, because this mail may have broken the connection. If no other mail is
    /// missing, and this mail has broken several connections, the mail gets a row without bytes in the table `mails`. `start`:
    /// the cursor before the sync.
    async fn give_up_after_break(&mut self, queue: &mut SyncQueue<'_>, error: &Error, start: u32) -> Result<()> {
        let is_break = matches!(error, Error::Bye(_) | Error::Lost(_) | Error::Timeout { .. } | Error::Protocol(_));
        let (Some(first), missing) = queue.missing() else { return Ok(()) };
        if !is_break || self.status.is_renumbered {
            return Ok(());
        }
        if self.history.strike(first, error) && missing == 1 {
            return self.give_up(queue, &[first], true).await;
        }
        if self.progress.cursor() == start {
            self.history.shrink();
        }
        Ok(())
    }

    /// Gives mails a row without bytes in the table `mails` if the server refused them on several connections, although each was
    /// requested alone. If the server refuses several mails and delivers no body, the server is faulty, so no mail gets such a
    /// row.
    async fn give_up_refused(&mut self, queue: &mut SyncQueue<'_>) -> Result<()> {
        let Some((refused, error)) = queue.take_refusals() else { return Ok(()) };
        if !queue.has_body() && refused.len() > 1 {
            return Err(error);
        }
        let (given_up, others): (Vec<u32>, Vec<u32>) =
            refused.into_iter().partition(|uid| self.history.strike(*uid, &error));
        self.give_up(queue, &given_up, false).await?;
        if others.is_empty() { Ok(()) } else { Err(error) }
    }
}
