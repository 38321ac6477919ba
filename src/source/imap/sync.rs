//! Reading everything above the cursor, and the rule that the cursor keeps.
//!
//! The rule: the cursor passes a UID only when its mail was handed over before it in the same stream (whoever takes
//! the stream commits in its order), or when a tagged OK proved that no such mail is there. An end of the stream, a
//! NO and a mail that was listed but not sent prove nothing.

use std::collections::VecDeque;

use tokio::time::{Instant, sleep_until};

use super::after;
use super::error::{Error, Result};
use super::fetch::{Item, Want};
use super::mailbox::REACH;
use super::opened::{Opened, Outstanding, uid_set};
use super::settings::Start;
use super::wire::{Heard, Sent};
use crate::model::Begun;

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
/// How often a mail that was listed and not sent is asked for before it counts as gone.
const TRIES: u8 = 3;

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
    missing: VecDeque<u32>,
    /// Those that may be Resmic's, by their header.
    candidates: Vec<u32>,
    tries: u8,
    asked_at: Instant,
}

impl Job {
    /// Whether this is what it waits for; then it waits for it no longer.
    fn takes(&mut self, item: &Item) -> bool {
        let has = match self.want {
            Want::Listing | Want::Dates => false,
            Want::Senders | Want::Headers => item.header.is_some(),
            Want::Body => item.body.is_some(),
        };
        let place = self.missing.binary_search(&item.uid).ok().filter(|_| has);
        place.and_then(|place| self.missing.remove(place)).is_some()
    }
}

/// What the mailbox has above the cursor.
struct Listed {
    /// What is to be fetched, in order.
    uids: Vec<u32>,
    /// The highest UID of all.
    highest: u32,
}

impl Opened {
    /// Reads everything above the cursor.
    pub(super) async fn sync(&mut self) -> Result<()> {
        if self.handed.is_none() {
            // Where we begin, and why there, is written down before anything is read: a later connection must not find
            // a later "now", nor find once more that the server's numbers mean other mails.
            self.hand_over(Vec::new(), Some(self.cursor)).await?;
        }
        // Whoever changes `start` to "all" wants all of it, from the next time on that the mailbox is read anew.
        let begun = self.begun.filter(|_| self.account.settings.start != Start::All);
        let listed = self.list(begun).await?;
        self.fetch_all(&listed.uids).await?;
        self.put_away().await?;
        // What was listed and is not wanted is passed too. Not what lies between the last one listed and UIDNEXT: a
        // mail that was announced may be listed a moment later.
        self.cursor = self.cursor.max(listed.highest);
        self.outstanding =
            Outstanding { top: self.selected.uid_next.saturating_sub(1) > self.cursor, ..Default::default() };
        self.hand_over(Vec::new(), Some(self.cursor)).await
    }

    /// The mails above the cursor, in the order of their UIDs; of those to be fetched, only what came since we began.
    async fn list(&mut self, begun: Option<Begun>) -> Result<Listed> {
        let want = if begun.is_some() { Want::Dates } else { Want::Listing };
        let items = want.items(&self.account.settings);
        // `n:*` always has the last mail in it, even below n (RFC 3501, 6.4.8).
        let command = format!("UID FETCH {}:* ({items})", self.cursor.saturating_add(1));
        (self.selected.fresh, self.selected.unreadable) = (0, 0);
        let sent = self.wire.send("UID FETCH", &command).await?;
        self.wire.expect_answers((self.selected.exists as usize).min(LISTED));
        let cursor = self.cursor;
        let (mut uids, mut highest) = (Vec::new(), cursor);
        let wait = self.flowing();
        let answered = self.finish(&sent, wait, |item| {
            highest = highest.max(item.uid);
            let is_old =
                begun.is_some_and(|begun| item.uid <= begun.uid.0 && item.received_at.is_some_and(|at| at < begun.at));
            let wanted = !is_old;
            uids.extend((item.uid > cursor && wanted).then_some(item.uid));
        });
        match answered.await {
            Err(Error::Refused { .. }) if self.is_read_to_the_end().await? => {
                self.selected.uid_next = cursor.saturating_add(1);
            }
            answered => answered?,
        }
        self.check_listing()?;
        uids.sort_unstable();
        uids.dedup();
        Ok(Listed { uids, highest })
    }

    /// Fetches these mails, window by window, and moves the cursor behind them.
    async fn fetch_all(&mut self, uids: &[u32]) -> Result<()> {
        let dedicated = self.account.settings.dedicated;
        let mut waiting = uids;
        let mut windows: VecDeque<Window> = VecDeque::new();
        // How many windows have left the front of the queue: a window's number does not change.
        let mut gone = 0;
        let mut jobs: VecDeque<Job> = VecDeque::new();
        let mut refused = None;
        loop {
            while jobs.len() < AHEAD && !waiting.is_empty() {
                let (window, rest) = waiting.split_at(window(waiting, if dedicated { WINDOW } else { SIFTED }));
                waiting = rest;
                let parts = if dedicated { vec![(Want::Body, window)] } else { sifted(window) };
                windows.push_back(Window { last: window.last().copied().unwrap_or(0), open: parts.len() });
                self.wire.cork();
                for (want, uids) in parts {
                    jobs.push_back(self.ask(gone + windows.len() - 1, want, uids.to_vec(), 1).await?);
                }
                self.wire.uncork().await?;
            }
            let Some(follow_ups) = self.receive(&mut jobs).await? else { break };
            for (window, want, missing, tries) in follow_ups.new {
                if let Some(w) = windows.get_mut(window - gone) {
                    w.open += 1;
                }
                // What was not sent may be there a moment later.
                sleep_until(follow_ups.since + self.account.timing.again * u32::from(tries - 1)).await;
                jobs.push_back(self.ask(window, want, missing, tries).await?);
            }
            match (follow_ups.refused, windows.get_mut(follow_ups.done - gone)) {
                // Its window stays open: the cursor never passes it, but the mails behind it are handed over.
                (Some(error), _) => refused = Some(error),
                (None, Some(w)) => w.open -= 1,
                (None, None) => {}
            }
            while let Some(window) = windows.pop_front_if(|w| w.open == 0) {
                gone += 1;
                self.cursor = self.cursor.max(window.last);
                self.hand_over(Vec::new(), Some(self.cursor)).await?;
            }
        }
        refused.map_or(Ok(()), Err)
    }

    async fn ask(&mut self, window: usize, want: Want, uids: Vec<u32>, tries: u8) -> Result<Job> {
        let command = format!("UID FETCH {} ({})", uid_set(&uids), want.items(&self.account.settings));
        let sent = self.wire.send("UID FETCH", &command).await?;
        Ok(Job { sent, window, want, missing: uids.into(), candidates: Vec::new(), tries, asked_at: Instant::now() })
    }

    /// Hears the first of these FETCHes to its end, hands over what came, and says what has to be asked for next.
    ///
    /// Dovecot answers the next one meanwhile when the first has filled its buffer: what is for a later FETCH counts.
    async fn receive(&mut self, jobs: &mut VecDeque<Job>) -> Result<Option<FollowUps>> {
        let Some(sent) = jobs.front().map(|job| job.sent.clone()) else { return Ok(None) };
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        let mut wait = self.flowing();
        let mut refused = None;
        loop {
            let item = match self.hear(&sent, wait).await {
                Ok(Heard::Done) => break,
                Ok(Heard::Continue) => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                Ok(Heard::Data(None)) => continue,
                Ok(Heard::Data(Some(item))) => item,
                Err(error @ Error::Refused { .. }) => {
                    refused = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            };
            let Some(job) = jobs.iter_mut().find_map(|job| job.takes(&item).then_some(job)) else {
                self.keep(item);
                continue;
            };
            if job.want != Want::Body {
                job.candidates.extend(self.is_candidate(&item).then_some(item.uid));
            } else {
                bytes += item.body.as_ref().map_or(0, Vec::len);
                chunk.extend(self.mail(item));
            }
            if chunk.len() >= CHUNK || bytes >= CHUNK_BYTES {
                bytes = 0;
                self.hand_over(std::mem::take(&mut chunk), None).await?;
            }
            // Each mail that comes buys time for the next: a slow line with large mails gets through all the same.
            wait = self.flowing();
        }
        self.hand_over(chunk, None).await?;
        Ok(jobs.pop_front().map(|job| self.follow_ups(job, refused)))
    }

    fn follow_ups(&self, job: Job, refused: Option<Error>) -> FollowUps {
        let mut new = Vec::new();
        let Job { window, want, missing, mut candidates, tries, asked_at, .. } = job;
        // Of a thousand that are refused one by one none is to wait for the others.
        let since = if refused.is_some() { asked_at } else { Instant::now() };
        let missing = Vec::from(missing);
        // A server may send them in any order.
        candidates.sort_unstable();
        new.extend(candidates.chunks(WINDOW).map(|part| (window, Want::Body, part.to_vec(), 1)));
        match (missing.len(), refused) {
            (0, _) => {}
            // One mail that the server cannot read spoils the answer for all of them (Exchange): look for it.
            (count @ 2.., Some(_)) => {
                let (a, b) = missing.split_at(count / 2);
                new.extend([(window, want, a.to_vec(), 1), (window, want, b.to_vec(), 1)]);
            }
            (_, refused) if tries < TRIES => {
                drop(refused);
                new.extend(missing.chunks(WINDOW).map(|part| (window, want, part.to_vec(), tries + 1)));
            }
            (_, Some(error)) => return FollowUps { done: window, since, new, refused: Some(error) },
            (_, None) => tracing::warn!(
                account = self.account.settings.name,
                mailbox = self.name,
                uids = uid_set(&missing),
                "listed by the server and never sent: taken as gone"
            ),
        }
        FollowUps { done: window, since, new, refused: None }
    }

    /// Does to the notifications that are committed what `after` says. Only while no other command is under way.
    pub(super) async fn put_away(&mut self) -> Result<()> {
        while let Some(answer) = self.finished.waiting.last_mut() {
            // Taken off the list only when it is here, so that nothing is forgotten if the connection ends meanwhile.
            let uids = answer.await.map_err(|_| Error::Closing)?;
            self.finished.waiting.pop();
            self.finished.uids.extend(uids);
        }
        self.finished.uids.sort_unstable();
        while !self.finished.uids.is_empty() {
            let chunk: Vec<u32> = self.finished.uids.iter().copied().take(WINDOW).collect();
            after::put_away(self, &chunk).await?;
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
/// are known again (see [`is_same`](super::mailbox::is_same)). Dovecot takes as long for it as for all the rest.
fn sifted(uids: &[u32]) -> Vec<(Want, &[u32])> {
    let last = uids.last().copied().unwrap_or(0);
    let (before, reached) = uids.split_at(uids.partition_point(|uid| last - uid >= REACH));
    let parts = [(Want::Senders, before), (Want::Headers, reached)];
    parts.into_iter().filter(|(_, uids)| !uids.is_empty()).collect()
}

/// What a finished job leads to.
struct FollowUps {
    done: usize,
    /// From when on it is waited before a mail is asked for again.
    since: Instant,
    new: Vec<(usize, Want, Vec<u32>, u8)>,
    /// The server does not give out one mail, whatever was tried.
    refused: Option<Error>,
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
        assert_eq!(sifted(&row), [(Want::Senders, &row[..800]), (Want::Headers, &row[800..])]);
        // By their numbers: what is looked at again is `last - 199 : last`.
        assert_eq!(sifted(&[1, 100, 101, 300]), [(Want::Senders, &[1, 100][..]), (Want::Headers, &[101, 300])]);
        assert_eq!(sifted(&[4, 5]), [(Want::Headers, &[4, 5][..])]);
    }
}
