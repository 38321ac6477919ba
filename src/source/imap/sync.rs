//! Reading everything above the cursor, and the rule that the cursor keeps.
//!
//! The rule: the cursor passes a UID only when its mail was handed over before it in the same stream (whoever takes
//! the stream commits in its order), or when a tagged OK proved that no such mail is there. An end of the stream, a
//! NO and a mail that was listed but not sent prove nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_imap::imap_proto::Response;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::after;
use super::connect::Offers;
use super::error::{Error, Result};
use super::fetch::{Item, Want};
use super::mailbox::Selected;
use super::settings::{After, Start};
use super::watch::{Account, Batch, Report};
use super::wire::{ANSWER, Heard, Sent, Wire};
use crate::model::{Origin, RawMail};

/// How many mails one FETCH asks for.
const WINDOW: usize = 500;
/// How many FETCHes are under way at once, so that the server never waits for us.
const AHEAD: usize = 2;
/// How much is handed over at once: so many mails, or so many bytes.
const CHUNK: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
/// How long one window may take.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(600);
/// How often a mail that was listed and not sent is asked for before it counts as gone.
const TRIES: u8 = 3;

/// An open mailbox on a connection, and how far it has been read.
pub(super) struct Opened {
    pub(super) wire: Wire,
    pub(super) offers: Offers,
    pub(super) account: Arc<Account>,
    /// The mailbox's name on the server.
    pub(super) name: String,
    pub(super) selected: Selected,
    /// It was never read before.
    pub(super) first: bool,
    /// Every UID up to this was handed over, or is known to be gone.
    pub(super) cursor: u32,
    /// The cursor that was handed over last.
    pub(super) handed: Option<u32>,
    pub(super) out: mpsc::Sender<Report>,
    /// Mails that the server pushed while we were busy with something else.
    pub(super) pushed: Vec<Item>,
    /// Batches whose notifications are to be put away once they are committed.
    pub(super) unanswered: Vec<oneshot::Receiver<Vec<u32>>>,
}

/// A range of UIDs on its way; the cursor may pass it when nothing of it is open any more.
struct Window {
    last: u32,
    open: usize,
}

/// A FETCH under way.
struct Job {
    sent: Sent,
    window: usize,
    want: Want,
    /// What was not sent yet.
    missing: Vec<u32>,
    tries: u8,
}

impl Opened {
    /// Reads everything above the cursor. `first`: the mailbox was never read before, so `start` counts.
    pub(super) async fn sync(&mut self, first: bool) -> Result<()> {
        let since = match self.account.settings.start {
            Start::Now if first => {
                self.cursor = self.selected.uid_next.saturating_sub(1);
                return self.hand_over(Vec::new(), Some(self.cursor)).await;
            }
            Start::Since(at) if first => Some(at),
            _ => None,
        };
        let proven = self.selected.uid_next.saturating_sub(1);
        let mut listed = self.list().await?;
        if let Some(since) = since {
            listed.retain(|item| item.received_at.is_none_or(|at| at >= since));
        }
        let uids: Vec<u32> = listed.iter().map(|item| item.uid).collect();
        self.fetch_all(&uids).await?;
        self.put_away().await?;
        // What is below UIDNEXT and was not listed is gone: a tagged OK said so.
        if proven > self.cursor {
            self.cursor = proven;
        }
        self.hand_over(Vec::new(), Some(self.cursor)).await
    }

    /// The mails above the cursor, in the order of their UIDs.
    async fn list(&mut self) -> Result<Vec<Item>> {
        let mut listed = Vec::new();
        let items = Want::Listing.items(&self.account.settings);
        // `n:*` always has the last mail in it, even below n (RFC 3501, 6.4.8).
        let command = format!("UID FETCH {}:* ({items})", self.cursor.saturating_add(1));
        let sent = self.wire.send("UID FETCH", &command).await?;
        let cursor = self.cursor;
        self.finish(&sent, WINDOW_TIMEOUT, |item| listed.extend((item.uid > cursor).then_some(item))).await?;
        listed.sort_unstable_by_key(|item| item.uid);
        listed.dedup_by_key(|item| item.uid);
        Ok(listed)
    }

    /// Fetches these mails, window by window, and moves the cursor behind them.
    async fn fetch_all(&mut self, uids: &[u32]) -> Result<()> {
        let want = if self.account.settings.dedicated { Want::Body } else { Want::Headers };
        let mut waiting = uids.chunks(WINDOW);
        let mut windows: VecDeque<Window> = VecDeque::new();
        // How many windows have left the front of the queue: a window's number does not change.
        let mut gone = 0;
        let mut jobs: VecDeque<Job> = VecDeque::new();
        loop {
            while jobs.len() < AHEAD
                && let Some(chunk) = waiting.next()
            {
                windows.push_back(Window { last: chunk.last().copied().unwrap_or(0), open: 1 });
                jobs.push_back(self.ask(gone + windows.len() - 1, want, chunk.to_vec(), 1).await?);
            }
            let Some(job) = jobs.pop_front() else { return Ok(()) };
            let follow_ups = self.receive(job).await?;
            for (window, want, missing, tries) in follow_ups.new {
                if let Some(w) = windows.get_mut(window - gone) {
                    w.open += 1;
                }
                jobs.push_back(self.ask(window, want, missing, tries).await?);
            }
            if let Some(w) = windows.get_mut(follow_ups.done - gone) {
                w.open -= 1;
            }
            while let Some(window) = windows.pop_front_if(|w| w.open == 0) {
                gone += 1;
                self.cursor = self.cursor.max(window.last);
                self.hand_over(Vec::new(), Some(self.cursor)).await?;
            }
        }
    }

    async fn ask(&mut self, window: usize, want: Want, uids: Vec<u32>, tries: u8) -> Result<Job> {
        let command = format!("UID FETCH {} ({})", uid_set(&uids), want.items(&self.account.settings));
        let sent = self.wire.send("UID FETCH", &command).await?;
        Ok(Job { sent, window, want, missing: uids, tries })
    }

    /// Hears one FETCH to its end, hands over what came, and says what has to be asked for next.
    async fn receive(&mut self, mut job: Job) -> Result<FollowUps> {
        let deadline = Instant::now() + WINDOW_TIMEOUT;
        let (mut chunk, mut bytes, mut candidates) = (Vec::new(), 0, Vec::new());
        loop {
            let item = match self.hear(&job.sent, deadline).await? {
                Heard::Done => break,
                Heard::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                Heard::Data(None) => continue,
                Heard::Data(Some(item)) => item,
            };
            let Ok(place) = job.missing.binary_search(&item.uid) else {
                self.pushed.push(item);
                continue;
            };
            match job.want {
                Want::Headers if item.header.is_some() => {
                    candidates.extend(self.is_candidate(&item).then_some(item.uid));
                    job.missing.remove(place);
                }
                Want::Body if item.body.is_some() => {
                    job.missing.remove(place);
                    bytes += item.body.as_ref().map_or(0, Vec::len);
                    chunk.extend(self.mail(item));
                    if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
                        bytes = 0;
                        self.hand_over(std::mem::take(&mut chunk), None).await?;
                    }
                }
                _ => {}
            }
        }
        self.hand_over(chunk, None).await?;
        Ok(self.follow_ups(job, candidates))
    }

    fn follow_ups(&self, job: Job, candidates: Vec<u32>) -> FollowUps {
        let mut new = Vec::new();
        if !candidates.is_empty() {
            new.push((job.window, Want::Body, candidates, 1));
        }
        if !job.missing.is_empty() {
            if job.tries < TRIES {
                new.push((job.window, job.want, job.missing, job.tries + 1));
            } else {
                tracing::warn!(
                    account = self.account.settings.name,
                    mailbox = self.name,
                    uids = uid_set(&job.missing),
                    "listed by the server and never sent: taken as gone"
                );
            }
        }
        FollowUps { done: job.window, new }
    }

    /// Runs a command whose answer is of no interest beyond its OK; takes note of what else the server says.
    pub(super) async fn run(&mut self, name: &'static str, command: &str) -> Result<()> {
        let sent = self.wire.send(name, command).await?;
        self.finish(&sent, ANSWER, |_| {}).await
    }

    /// The next answer: a mail's data, or `Data(None)` for what was only taken note of.
    pub(super) async fn hear(&mut self, sent: &Sent, deadline: Instant) -> Result<Heard<Option<Item>>> {
        let selected = &mut self.selected;
        let read = |response: &Response<'_>| {
            Item::read(response).or_else(|| {
                selected.note(response);
                None
            })
        };
        self.wire.hear(sent, deadline, read).await
    }

    /// Hears a command to its end. What the server pushes meanwhile is kept; a mere listing goes to `each`.
    pub(super) async fn finish(&mut self, sent: &Sent, limit: Duration, mut each: impl FnMut(Item)) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.hear(sent, deadline).await? {
                Heard::Done => return Ok(()),
                Heard::Continue => return Err(Error::Protocol("a `+` that nobody waits for".into())),
                Heard::Data(None) => {}
                Heard::Data(Some(item)) if item.is_listing() => each(item),
                Heard::Data(Some(item)) => self.pushed.push(item),
            }
        }
    }

    /// Whether a mail in a shared mailbox may be Resmic's, by its From.
    pub(super) fn is_candidate(&self, item: &Item) -> bool {
        item.header.as_deref().is_some_and(|header| (self.account.is_candidate)(header))
    }

    /// The mail that an item with a body is.
    pub(super) fn mail(&self, item: Item) -> Option<RawMail> {
        let bytes = item.body?;
        let origin = Origin {
            account: self.account.settings.name.clone(),
            mailbox: self.name.clone(),
            uid: Some((self.selected.uid_validity, item.uid)),
        };
        let size = item.size.unwrap_or(0).max(bytes.len() as u64);
        Some(RawMail { origin, bytes, size, received_at: item.received_at })
    }

    /// Hands mails on, and how far the mailbox is read once they are committed.
    pub(super) async fn hand_over(&mut self, mails: Vec<RawMail>, cursor: Option<u32>) -> Result<()> {
        if mails.is_empty() && (cursor.is_none() || cursor == self.handed) {
            return Ok(());
        }
        self.handed = cursor.or(self.handed);
        let done = (!mails.is_empty() && self.account.settings.after != After::Leave).then(|| {
            let (done, answer) = oneshot::channel();
            self.unanswered.push(answer);
            done
        });
        let cursor = cursor.map(|last_uid| (self.selected.uid_validity, last_uid));
        let batch = Batch { mailbox: self.name.clone(), mails, cursor, done };
        self.out.send(Report::Mails(batch)).await.map_err(|_| Error::Closing)
    }

    /// Does to the notifications that are committed what `after` says. Only while no other command is under way.
    pub(super) async fn put_away(&mut self) -> Result<()> {
        let mut uids = Vec::new();
        for answer in std::mem::take(&mut self.unanswered) {
            uids.extend(answer.await.map_err(|_| Error::Closing)?);
        }
        uids.sort_unstable();
        for chunk in uids.chunks(WINDOW) {
            after::put_away(self, chunk).await?;
        }
        Ok(())
    }
}

/// What a finished job leads to.
struct FollowUps {
    done: usize,
    new: Vec<(usize, Want, Vec<u32>, u8)>,
}

impl Selected {
    /// Takes note of an untagged answer that is about the mailbox.
    pub(super) fn note(&mut self, response: &Response<'_>) {
        use async_imap::imap_proto::{MailboxDatum, ResponseCode};
        match (response, super::wire::code(response)) {
            (Response::MailboxData(MailboxDatum::Exists(n)), _) => self.exists = *n,
            (Response::Expunge(_), _) => self.exists = self.exists.saturating_sub(1),
            (_, Some(ResponseCode::UidNext(n))) => self.uid_next = self.uid_next.max(*n),
            _ => {}
        }
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
