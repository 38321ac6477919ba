//! SyncFetches everything above the cursor, and the rule that the cursor keeps.
//!
//! The rule: the cursor passes a UID only when its mail was handed over before it in the same stream (whoever takes
//! the stream commits in its order), or when a tagged OK proved that no such mail is there. An end of the stream, a
//! NO and a mail that was listed but not sent prove nothing.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::after;
use super::connection::{PendingCommand, ServerResponse};
use super::error::{Error, Result};
use super::fetch::{FetchKind, FetchedMail};
use super::mailbox::FINGERPRINT_UIDS;
use super::selected::{Outstanding, SelectedMailbox, uid_set};
use super::settings::Start;
use crate::model::{Availability, RawMail, StartBoundary, Uid};

/// How many mails one FETCH asks for, and how many numbers it is written with: servers bound the length of a line.
const WINDOW: usize = 500;
/// How many mails where most of them will be somebody else's, of whom little is asked.
const SIFTED: usize = 1000;
/// How many FETCHes are under way at once, so that the server never waits for us.
const AHEAD: usize = 2;
/// How much is handed over at once: so many mails, or so many bytes.
const CHUNK: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
/// How many mails are believed to be in a mailbox: each takes four bytes here.
const LISTED: usize = 10_000_000;
/// How often a listed mail is asked for before it gets a row without bytes.
const TRIES: u8 = 3;
/// A server that withholds more mails than this, and delivers none, is at fault itself: they get no rows.
const MOST_WITHHELD: usize = 50;
/// In [`StartBoundary::uid`]: the server does not say which UIDs it has given, so the first listing has to.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// A range of UIDs on its way.
struct UidWindow {
    /// The mails that are neither handed over nor known to be gone, in order.
    left: VecDeque<u32>,
    last: u32,
    /// How many of its FETCHes are under way.
    open: usize,
}

/// A FETCH under way.
struct FetchCommand {
    sent: PendingCommand,
    window: usize,
    want: FetchKind,
    /// What was not sent yet.
    missing: VecDeque<u32>,
    /// Those that may be Resmic's, by their header; of a listing, those that are listed.
    candidates: Vec<u32>,
    tries: u8,
    asked_at: Instant,
}

impl FetchCommand {
    /// Whether this is what it waits for; then it waits for it no longer.
    fn takes(&mut self, item: &FetchedMail) -> bool {
        let has = match self.want {
            FetchKind::Listing | FetchKind::Dates => item.is_listing(),
            FetchKind::Senders | FetchKind::Headers => item.header.is_some(),
            FetchKind::Body => item.body.is_some(),
        };
        has && remove(&mut self.missing, item.uid)
    }
}

fn remove(uids: &mut VecDeque<u32>, uid: u32) -> bool {
    uids.binary_search(&uid).ok().and_then(|place| uids.remove(place)).is_some()
}

/// What the mailbox has above the cursor.
struct Listing {
    /// What is to be fetched, in order.
    uids: Vec<u32>,
    /// The highest UID of all.
    highest: u32,
}

/// The FETCHes of one sync.
#[derive(Default)]
struct SyncFetches<'a> {
    waiting: &'a [u32],
    windows: VecDeque<UidWindow>,
    /// How many windows have left the front of the queue: a window's number does not change.
    gone: usize,
    jobs: VecDeque<FetchCommand>,
    /// RFC822.SIZE and INTERNALDATE of mails whose bytes did not come with them.
    reported: BTreeMap<u32, (Option<u64>, Option<Timestamp>)>,
    /// The mails that the server has refused one by one.
    refused: Vec<u32>,
    refusal: Option<Error>,
    /// The server has delivered a mail.
    delivered: bool,
    /// The server has delivered a mail or a header.
    answered: bool,
}

impl SyncFetches<'_> {
    fn window(&mut self, number: usize) -> Option<&mut UidWindow> {
        self.windows.get_mut(number.checked_sub(self.gone)?)
    }

    /// A mail is handed over, or its row is, or it is known to be gone or somebody else's.
    fn settle(&mut self, window: usize, uid: u32) {
        if let Some(window) = self.window(window) {
            remove(&mut window.left, uid);
        }
    }

    fn settle_anywhere(&mut self, uid: u32) {
        self.windows.iter_mut().for_each(|window| _ = remove(&mut window.left, uid));
    }

    /// How far the cursor may move: up to the first mail that is not settled.
    fn proven(&self, cursor: u32) -> u32 {
        let mut proven = cursor;
        for window in &self.windows {
            match window.left.front() {
                Some(uid) => return proven.max(uid.saturating_sub(1)),
                None => proven = proven.max(window.last),
            }
        }
        proven
    }

    /// Takes note of what the server says of a mail that it does not send.
    fn note(&mut self, item: &FetchedMail) {
        let is_awaited = |job: &FetchCommand| job.missing.binary_search(&item.uid).is_ok();
        if item.is_listing() && (item.size.is_some() || item.received_at.is_some()) && self.jobs.iter().any(is_awaited)
        {
            // Dovecot says 1970 of a mail that was removed while we asked.
            let received_at = item.received_at.filter(|at| *at != Timestamp::UNIX_EPOCH);
            self.reported.insert(item.uid, (item.size, received_at));
        }
    }

    /// The mails that are asked for at this moment: the first one, and how many there are.
    fn asked(&self) -> (Option<u32>, usize) {
        let missing = || self.jobs.iter().flat_map(|job| job.missing.iter().copied());
        (missing().min(), missing().count())
    }
}

impl SelectedMailbox {
    /// Reads everything above the cursor.
    pub(super) async fn sync(&mut self) -> Result<()> {
        if self.handed.is_none() {
            // Where we begin, and why there, is written down before anything is read: a later connection must not find
            // a later "now", nor find once more that the server's numbers mean other mails.
            self.hand_over(Vec::new(), Some(self.cursor)).await?;
        }
        // Whoever changes `start` to "all" wants all of it, from the next time on that the mailbox is read anew.
        let start_boundary = self.start_boundary.filter(|_| self.account.settings.start != Start::All);
        let mut listed = self.list(start_boundary).await?;
        self.bound_start(listed.highest).await?;
        listed.uids.retain(|uid| !self.outstanding.ahead.contains(uid));
        self.fetch_all(&listed.uids).await?;
        self.apply_after().await?;
        // What was listed and is not wanted is passed too. Not what lies between the last one listed and UIDNEXT: a
        // mail that was announced may be listed a moment later.
        self.cursor = self.cursor.max(listed.highest);
        let top = self.selected.uid_next.is_some_and(|next| next.saturating_sub(1) > self.cursor);
        self.outstanding = Outstanding { top, ..Default::default() };
        self.hand_over(Vec::new(), Some(self.cursor)).await
    }

    /// The first listing says which UIDs were given before we began, where UIDNEXT did not.
    async fn bound_start(&mut self, highest: u32) -> Result<()> {
        let Some(start_boundary) = self.start_boundary.filter(|start_boundary| start_boundary.uid.0 == UNKNOWN) else {
            return Ok(());
        };
        self.start_boundary = Some(StartBoundary { uid: Uid(highest), ..start_boundary });
        self.handed = None;
        self.hand_over(Vec::new(), Some(self.cursor)).await
    }

    /// The mails above the cursor, in the order of their UIDs; of those to be fetched, only what came since we began.
    async fn list(&mut self, start_boundary: Option<StartBoundary>) -> Result<Listing> {
        let want = if start_boundary.is_some() { FetchKind::Dates } else { FetchKind::Listing };
        let items = want.items(&self.account.settings);
        // `n:*` always has the last mail in it, even below n (RFC 3501, 6.4.8).
        let command = format!("UID FETCH {}:* ({items})", self.cursor.saturating_add(1));
        (self.selected.fresh, self.selected.unreadable) = (0, 0);
        let sent = self.connection.send("UID FETCH", &command).await?;
        self.connection.expect_responses((self.selected.exists as usize).min(LISTED));
        let cursor = self.cursor;
        let (mut uids, mut highest) = (Vec::new(), cursor);
        let wait = self.streaming();
        let answered = self.finish(&sent, wait, |item| {
            highest = highest.max(item.uid);
            let is_old = start_boundary.is_some_and(|start_boundary| {
                item.uid <= start_boundary.uid.0 && item.received_at.is_some_and(|at| at < start_boundary.at)
            });
            let wanted = !is_old;
            uids.extend((item.uid > cursor && wanted).then_some(item.uid));
        });
        match answered.await {
            Err(Error::Refused { .. }) if self.is_read_to_the_end().await? => {
                self.selected.uid_next = Some(cursor.saturating_add(1));
            }
            answered => answered?,
        }
        self.check_listing()?;
        uids.sort_unstable();
        uids.dedup();
        Ok(Listing { uids, highest })
    }

    /// Fetches these mails, window by window, and moves the cursor behind them mail by mail.
    async fn fetch_all(&mut self, uids: &[u32]) -> Result<()> {
        let began = self.cursor;
        let mut reading = SyncFetches { waiting: uids, ..SyncFetches::default() };
        match self.read(&mut reading).await {
            Ok(()) => self.judge_refusals(reading).await,
            Err(error) => {
                self.judge_break(&mut reading, &error, began).await?;
                Err(error)
            }
        }
    }

    async fn read(&mut self, reading: &mut SyncFetches<'_>) -> Result<()> {
        loop {
            self.ask_for_more(reading).await?;
            let Some(FollowUps { window, since, new, withheld }) = self.receive(reading).await? else { return Ok(()) };
            for (want, missing, tries) in new {
                if let Some(window) = reading.window(window) {
                    window.open += 1;
                }
                // What was not sent may be there a moment later.
                sleep_until(since + self.account.timing.again * u32::from(tries - 1)).await;
                let job = self.ask(window, want, missing, tries).await?;
                reading.jobs.push_back(job);
            }
            if let Some(window) = reading.window(window) {
                window.open -= 1;
            }
            if withheld.len() > MOST_WITHHELD && !reading.answered {
                let words = format!("the server lists {} mails and delivers none of them", withheld.len());
                return Err(Error::Refused { command: "UID FETCH", words });
            }
            self.give_up(reading, &withheld, false).await?;
            while reading.windows.pop_front_if(|window| window.open == 0 && window.left.is_empty()).is_some() {
                reading.gone += 1;
                reading.reported = reading.reported.split_off(&self.cursor);
                self.history.grow(WINDOW);
            }
        }
    }

    /// Asks for the next windows. After a break there is one at a time, so that it is known which mail breaks the next.
    async fn ask_for_more(&mut self, reading: &mut SyncFetches<'_>) -> Result<()> {
        let dedicated = self.account.settings.dedicated;
        let (most, ahead) = match self.history.limit() {
            Some(limit) => (limit, 1),
            None => (if dedicated { WINDOW } else { SIFTED }, AHEAD),
        };
        while reading.jobs.len() < ahead && !reading.waiting.is_empty() {
            let (uids, rest) = reading.waiting.split_at(window(reading.waiting, most));
            reading.waiting = rest;
            let parts = if dedicated { vec![(FetchKind::Body, uids)] } else { sifted(uids) };
            let last = uids.last().copied().unwrap_or(0);
            let left = uids.iter().copied().collect();
            reading.windows.push_back(UidWindow { left, last, open: parts.len() });
            self.connection.cork();
            for (want, uids) in parts {
                let job = self.ask(reading.gone + reading.windows.len() - 1, want, uids.to_vec(), 1).await?;
                reading.jobs.push_back(job);
            }
            self.connection.uncork().await?;
        }
        Ok(())
    }

    async fn ask(&mut self, window: usize, want: FetchKind, uids: Vec<u32>, tries: u8) -> Result<FetchCommand> {
        let command = format!("UID FETCH {} ({})", uid_set(&uids), want.items(&self.account.settings));
        if want == FetchKind::Listing {
            self.selected.unreadable = 0;
        }
        let sent = self.connection.send("UID FETCH", &command).await?;
        Ok(FetchCommand {
            sent,
            window,
            want,
            missing: uids.into(),
            candidates: Vec::new(),
            tries,
            asked_at: Instant::now(),
        })
    }

    /// Hears the first of these FETCHes to its end, hands over what came, and says what has to be asked for next.
    ///
    /// Dovecot answers the next one meanwhile when the first has filled its buffer: what is for a later FETCH counts.
    async fn receive(&mut self, reading: &mut SyncFetches<'_>) -> Result<Option<FollowUps>> {
        let Some(sent) = reading.jobs.front().map(|job| job.sent.clone()) else { return Ok(None) };
        let mut chunk = Vec::new();
        let heard = self.read_fetch(&sent, reading, &mut chunk).await;
        // Also what came before the connection broke.
        self.hand_over_proven(chunk, reading).await?;
        let refused = match heard {
            Ok(()) => None,
            Err(error @ Error::Refused { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        if reading.jobs.front().is_some_and(|job| job.want == FetchKind::Listing) {
            self.check_listing()?;
        }
        let Some(job) = reading.jobs.pop_front() else { return Ok(None) };
        let follow_ups = follow_ups(job, refused, reading);
        self.hand_over_proven(Vec::new(), reading).await?;
        Ok(Some(follow_ups))
    }

    async fn read_fetch(
        &mut self,
        sent: &PendingCommand,
        reading: &mut SyncFetches<'_>,
        chunk: &mut Vec<RawMail>,
    ) -> Result<()> {
        let (mut wait, mut bytes) = (self.streaming(), 0);
        loop {
            let item = match self.read_response(sent, wait).await? {
                ServerResponse::Done => return Ok(()),
                ServerResponse::Continue => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                ServerResponse::Data(None) => continue,
                ServerResponse::Data(Some(item)) => item,
            };
            let Some(job) = reading.jobs.iter_mut().find_map(|job| job.takes(&item).then_some(job)) else {
                reading.note(&item);
                self.keep(item);
                continue;
            };
            let (uid, window) = (item.uid, job.window);
            reading.answered |= !item.is_listing();
            match job.want {
                FetchKind::Body => {
                    bytes += item.body.as_ref().map_or(0, Vec::len);
                    chunk.extend(self.mail(item));
                    reading.delivered = true;
                    reading.settle(window, uid);
                }
                FetchKind::Listing | FetchKind::Dates => job.candidates.push(uid),
                FetchKind::Senders | FetchKind::Headers if self.is_candidate(&item) => job.candidates.push(uid),
                FetchKind::Senders | FetchKind::Headers => reading.settle(window, uid),
            }
            if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
                bytes = 0;
                self.hand_over_proven(std::mem::take(chunk), reading).await?;
            }
            // Each mail that comes buys time for the next: a slow line with large mails gets through all the same.
            wait = self.streaming();
        }
    }

    /// Hands these mails over, and with them the cursor, as far as it may move.
    async fn hand_over_proven(&mut self, mails: Vec<RawMail>, reading: &SyncFetches<'_>) -> Result<()> {
        let proven = reading.proven(self.cursor);
        if proven > self.cursor {
            self.cursor = proven;
            self.history.passed(proven);
        }
        self.hand_over(mails, Some(self.cursor)).await
    }

    /// These mails get a row without bytes, and the cursor passes them. `harmful`: they have ended connections.
    async fn give_up(&mut self, reading: &mut SyncFetches<'_>, uids: &[u32], harmful: bool) -> Result<()> {
        let mut undelivered = Vec::new();
        for &uid in uids {
            let (size, received_at) = reading.reported.get(&uid).copied().unwrap_or_default();
            undelivered.push(self.undelivered(uid, size.unwrap_or(0), received_at, Availability::Listed));
            reading.settle_anywhere(uid);
            self.history.add(uid, received_at, harmful, self.account.settings.idle_renew.0);
        }
        self.cursor = reading.proven(self.cursor);
        self.hand_over_all(Vec::new(), undelivered, Some(self.cursor)).await
    }

    /// The connection has ended, and the first mail that was asked for may be the cause. One that was asked for alone, and
    /// has ended several connections, is given up.
    async fn judge_break(&mut self, reading: &mut SyncFetches<'_>, error: &Error, began: u32) -> Result<()> {
        let is_break = matches!(error, Error::Bye(_) | Error::Lost(_) | Error::Timeout { .. } | Error::Protocol(_));
        let (Some(first), asked) = reading.asked() else { return Ok(()) };
        if !is_break || self.selected.renumbered {
            return Ok(());
        }
        if self.history.strike(first, error) && asked == 1 {
            return self.give_up(reading, &[first], true).await;
        }
        if self.cursor == began {
            self.history.shrink();
        }
        Ok(())
    }

    /// Some mails were refused one by one. A server that refuses all it is asked for is at fault itself; else the mails
    /// are, and those that several connections could not get are given up.
    async fn judge_refusals(&mut self, mut reading: SyncFetches<'_>) -> Result<()> {
        let Some(error) = reading.refusal.take() else { return Ok(()) };
        let refused = std::mem::take(&mut reading.refused);
        if !reading.delivered && refused.len() > 1 {
            return Err(error);
        }
        let (given_up, others): (Vec<u32>, Vec<u32>) =
            refused.into_iter().partition(|uid| self.history.strike(*uid, &error));
        self.give_up(&mut reading, &given_up, false).await?;
        if others.is_empty() { Ok(()) } else { Err(error) }
    }

    /// Does to the notifications that are committed what `after` says. Only while no other command is under way.
    pub(super) async fn apply_after(&mut self) -> Result<()> {
        while let Some(answer) = self.finished.waiting.last_mut() {
            // Taken off the list only when it is here, so that nothing is forgotten if the connection ends meanwhile.
            let uids = answer.await.map_err(|_| Error::Closing)?;
            self.finished.waiting.pop();
            self.finished.uids.extend(uids);
        }
        self.finished.uids.sort_unstable();
        while !self.finished.uids.is_empty() {
            let chunk: Vec<u32> = self.finished.uids.iter().copied().take(WINDOW).collect();
            after::apply_after(self, &chunk).await?;
            self.finished.uids.drain(..chunk.len());
        }
        Ok(())
    }
}

/// How many of these mails, at most, are asked for at once.
fn window(uids: &[u32], most: usize) -> usize {
    let mut numbers = 0;
    let fits = |&(n, &uid): &(usize, &u32)| {
        // As in `4:9`, where nothing is written for what lies between.
        let before = n.checked_sub(2).and_then(|before| uids.get(before));
        numbers += usize::from(before.is_none_or(|before| uid - before > 2));
        numbers <= WINDOW
    };
    uids.iter().enumerate().take(most).take_while(fits).count()
}

/// What is asked of mails in a shared mailbox. When a mail came matters for the last that the cursor passes: by that they
/// are known again (see [`uids_are_unchanged`](super::mailbox::is_same)). Dovecot takes as long for it as for all the rest.
fn sifted(uids: &[u32]) -> Vec<(FetchKind, &[u32])> {
    let last = uids.last().copied().unwrap_or(0);
    let (before, position) = uids.split_at(uids.partition_point(|uid| last - uid >= FINGERPRINT_UIDS));
    let parts = [(FetchKind::Senders, before), (FetchKind::Headers, position)];
    parts.into_iter().filter(|(_, uids)| !uids.is_empty()).collect()
}

/// What has to be asked for after this job.
fn follow_ups(job: FetchCommand, refused: Option<Error>, reading: &mut SyncFetches<'_>) -> FollowUps {
    let mut new = Vec::new();
    let FetchCommand { window, want, missing, mut candidates, tries, asked_at, .. } = job;
    // Of a thousand that are refused one by one none is to wait for the others.
    let since = if refused.is_some() { asked_at } else { Instant::now() };
    let missing = Vec::from(missing);
    // A server may send them in any order.
    candidates.sort_unstable();
    let is_listing = want == FetchKind::Listing;
    let withheld = if is_listing { std::mem::take(&mut candidates) } else { Vec::new() };
    new.extend(candidates.chunks(WINDOW).map(|part| (FetchKind::Body, part.to_vec(), 1)));
    match (missing.len(), refused) {
        (0, _) => {}
        // One mail that the server cannot read spoils the answer for all of them (Exchange): look for it.
        (count @ 2.., Some(_)) => {
            let (a, b) = missing.split_at(count / 2);
            new.extend([(want, a.to_vec(), 1), (want, b.to_vec(), 1)]);
        }
        (_, None) if is_listing => missing.iter().for_each(|uid| reading.settle(window, *uid)),
        (_, refused) if tries < TRIES => {
            drop(refused);
            new.extend(missing.chunks(WINDOW).map(|part| (want, part.to_vec(), tries + 1)));
        }
        (_, Some(error)) => {
            reading.refused.extend(missing);
            reading.refusal = Some(error);
        }
        // A tagged OK says which of them are gone.
        (_, None) => new.extend(missing.chunks(WINDOW).map(|part| (FetchKind::Listing, part.to_vec(), 1))),
    }
    FollowUps { window, since, new, withheld }
}

/// What a finished job leads to.
struct FollowUps {
    window: usize,
    /// From when on it is waited before a mail is asked for again.
    since: Instant,
    new: Vec<(FetchKind, Vec<u32>, u8)>,
    /// Mails that the server lists and has not sent, whatever was tried.
    withheld: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_as_long_as_a_command_may_be() {
        let scattered: Vec<u32> = (0..2_000).map(|n| 4_000_000_000 + 2 * n).collect();
        let pairs: Vec<u32> = (0..1_000).flat_map(|n| [4_000_000_000 + 3 * n, 4_000_000_001 + 3 * n]).collect();
        let row: Vec<u32> = (4_000_000_000..4_000_002_000).collect();
        for (uids, count) in [(&scattered, WINDOW), (&pairs, WINDOW), (&row, SIFTED)] {
            assert_eq!(window(uids, SIFTED), count);
            assert!(uid_set(&uids[..count]).len() <= WINDOW * "4000000000,".len());
        }
        assert_eq!(window(&row, WINDOW), WINDOW);
        assert_eq!((window(&[7], WINDOW), window(&[], WINDOW)), (1, 0));
    }

    #[test]
    fn when_a_mail_came_is_asked_of_those_that_are_looked_at_again_and_of_no_other() {
        let row: Vec<u32> = (1..=1_000).collect();
        assert_eq!(sifted(&row), [(FetchKind::Senders, &row[..800]), (FetchKind::Headers, &row[800..])]);
        // By their numbers: what is looked at again is `last - 199 : last`.
        assert_eq!(
            sifted(&[1, 100, 101, 300]),
            [(FetchKind::Senders, &[1, 100][..]), (FetchKind::Headers, &[101, 300])]
        );
        assert_eq!(sifted(&[4, 5]), [(FetchKind::Headers, &[4, 5][..])]);
    }
}
