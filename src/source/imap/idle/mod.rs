//! Waiting for the next mail, so that it is here in as few round trips as the server allows.
//!
//! With NOTIFY (RFC 5465) the server sends a new mail by itself: half a round trip. Elsewhere, at `EXISTS`, the end
//! of the IDLE, the FETCH and the next IDLE leave in one write: one and a half. What is pushed is a hint that is
//! believed for speed; the cursor moves by the order of UIDs, and every renewal looks for what was not pushed.

use tokio::time::Instant;

use super::connection::{PendingCommand, ResponseTimeout, ServerResponse};
use super::error::{Error, Result};
use super::fetch::{FetchKind, FetchedMail};
use super::selected::{Outstanding, SelectedMailbox, uid_set};
use crate::model::MailboxState;
use idling::{AT_ONCE, Held, UidValidityCheck};

mod idling;

/// How often a mail that was announced is asked for before a sync decides.
const TRIES: u32 = 3;
/// How many IDLEs in a row a server may end at once before it is asked instead.
const CUT_SHORT: u32 = 5;
/// How many mails a server that has promised to push may fail to push before it is asked for each.
const MISSES: u32 = 2;

/// How new mail becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewMailMode {
    /// The server sends it.
    Pushed,
    /// The server announces it.
    Announced,
    /// The server is asked.
    Polled,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WakeReason {
    /// Mails were pushed.
    Pushed,
    /// There is something new, and it has to be fetched.
    Announced,
    /// Time for a renewal.
    Renew,
    /// The server ended the IDLE by itself.
    Ended,
}

/// Whether mails that were announced, and have not come, are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Some,
    None,
}

/// Whether the cursor passed all that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    No,
    /// It did, but whether all came that was announced was not counted: one more look is due.
    Uncounted,
}

impl SelectedMailbox {
    /// Asks the server to send each new mail by itself.
    pub(super) async fn ask_for_pushes(&mut self) -> Result<NewMailMode> {
        if !self.capabilities.idle {
            return Ok(NewMailMode::Polled);
        }
        if !self.capabilities.notify {
            return Ok(NewMailMode::Announced);
        }
        let want = if self.account.settings.dedicated { FetchKind::Body } else { FetchKind::Headers };
        let items = want.items(&self.account.settings);
        let command = format!("NOTIFY SET (selected (MessageNew ({items}) MessageExpunge))");
        match self.run("NOTIFY", &command).await {
            Ok(()) => Ok(NewMailMode::Pushed),
            // Announced and refused: the server still announces new mail.
            Err(Error::Refused { .. }) => Ok(NewMailMode::Announced),
            Err(e) => Err(e),
        }
    }

    /// Watches the mailbox until something goes wrong.
    pub(super) async fn watch(&mut self, mut mode: NewMailMode) -> Result<()> {
        if mode == NewMailMode::Polled {
            return self.poll().await;
        }
        let mut idle = self.connection.idle().await?;
        let mut renewal = Instant::now() + self.account.settings.idle_renew.0;
        let timing = self.account.timing;
        let (mut tries, mut misses) = (u32::from(self.outstanding.top), 0);
        let (mut began, mut cut_short) = (Instant::now(), 0);
        self.report(MailboxState::Idle).await?;
        loop {
            let again = (tries > 0).then(|| Instant::now() + timing.again * tries);
            let woken = match self.wait(&idle, mode, again.map_or(renewal, |again| again.min(renewal))).await {
                // Listed among the capabilities, and refused.
                Err(Error::Refused { .. }) => return self.poll().await,
                woken => woken?,
            };
            // Some servers end an IDLE after a while; one that ends each at once would be asked without end.
            cut_short = if woken == WakeReason::Ended && began.elapsed() < timing.again { cut_short + 1 } else { 0 };
            if cut_short >= CUT_SHORT {
                return self.poll().await;
            }
            let patience = if tries < TRIES { Patience::Some } else { Patience::None };
            let highest = self.highest();
            let mut settled = Settled::No;
            if woken == WakeReason::Pushed {
                settled = self.take_pushed(&mut idle).await?;
                misses = 0;
            }
            if settled == Settled::No {
                settled = self.look(&mut idle, woken, patience).await?;
                renewal = Instant::now() + self.account.settings.idle_renew.0;
                if mode == NewMailMode::Pushed && woken != WakeReason::Pushed && tries == 0 && self.highest() > highest
                {
                    misses += 1;
                }
            }
            if misses >= MISSES && mode == NewMailMode::Pushed {
                let (account, mailbox) = (&self.account.settings.name, &self.name);
                tracing::info!(account, mailbox, "the server does not push what it promised; asking from now on");
                mode = NewMailMode::Announced;
            }
            tries = match settled {
                Settled::Yes => 0,
                Settled::No => tries + 1,
                Settled::Uncounted => 1,
            };
            self.apply_after_outside_idle(&mut idle).await?;
            if self.history.is_due(woken == WakeReason::Renew) {
                self.end_idle(&idle).await?;
                self.refetch_undelivered().await?;
                idle = self.connection.idle().await?;
            }
            self.report(MailboxState::Idle).await?;
            began = Instant::now();
        }
    }

    /// The highest UID that was handed over.
    fn highest(&self) -> u32 {
        self.outstanding.ahead.last().copied().unwrap_or(0).max(self.cursor)
    }

    /// Hears what the server says while it idles.
    async fn wait(&mut self, idle: &PendingCommand, mode: NewMailMode, mut deadline: Instant) -> Result<WakeReason> {
        self.until_plus(idle).await?;
        loop {
            if !self.pushed.is_empty() {
                return Ok(WakeReason::Pushed);
            }
            // Also what came between our last FETCH and the server's `+`, or while that FETCH was answered.
            if self.selected.fresh > 0 {
                if mode == NewMailMode::Announced {
                    return Ok(WakeReason::Announced);
                }
                deadline = deadline.min(Instant::now() + self.account.timing.push_grace);
            }
            match self.read_response(idle, ResponseTimeout::until(deadline)).await {
                Ok(ServerResponse::Data(item)) => item.into_iter().for_each(|item| self.keep(item)),
                Ok(ServerResponse::Continue) => {}
                Ok(ServerResponse::Done) => return Ok(WakeReason::Ended),
                Err(Error::Timeout { .. }) if self.selected.fresh > 0 => return Ok(WakeReason::Announced),
                Err(Error::Timeout { .. }) => return Ok(WakeReason::Renew),
                Err(e) => return Err(e),
            }
        }
    }

    /// Fetches what is above the cursor. If it was announced it is fetched in the same breath; else it is listed first,
    /// and an idle mailbox costs no mail's bytes.
    async fn look(&mut self, idle: &mut PendingCommand, woken: WakeReason, patience: Patience) -> Result<Settled> {
        // Announcements from here on may be of mails that this FETCH does not see.
        self.outstanding.owed += std::mem::take(&mut self.selected.fresh) as usize;
        if self.outstanding.owed > AT_ONCE {
            return self.read_through(idle).await;
        }
        let want = match (woken, self.account.settings.dedicated) {
            (WakeReason::Announced, true) => FetchKind::Body,
            (WakeReason::Announced, false) => FetchKind::Headers,
            _ => FetchKind::Listing,
        };
        let items = want.items(&self.account.settings);
        let command = format!("UID FETCH {}:* ({items})", self.cursor.saturating_add(1));
        self.selected.unreadable = 0;
        let numbering = if woken == WakeReason::Renew { UidValidityCheck::Send } else { UidValidityCheck::Skip };
        let (mut items, held) = match self.interrupt(idle, &command, numbering).await {
            Err(error @ Error::Refused { command: "UID FETCH", .. }) => {
                self.end_idle(idle).await?;
                if !self.is_read_to_the_end().await? {
                    return Err(error);
                }
                *idle = self.connection.idle().await?;
                self.outstanding = Outstanding::default();
                (Vec::new(), Held::All)
            }
            answered => answered?,
        };
        self.check_listing()?;
        let listed = items.iter().map(|item| item.uid).max().unwrap_or(0);
        items.append(&mut self.pushed);
        self.sort_out(&mut items);
        self.settle_debt(&items);
        if held == Held::NotAll || self.complete_bodies(&mut items, idle).await? == Held::NotAll {
            return self.read_through(idle).await;
        }
        if patience == Patience::None && items.iter().any(|item| self.is_lacking(item)) {
            // A sync asks whether they are still listed. It does not fetch those again that came.
            self.take(items, 0).await?;
            return self.read_through(idle).await;
        }
        let missing = self.outstanding.owed > 0 || self.outstanding.top;
        let short = missing && patience == Patience::Some;
        let settled = self.take(items, if short { 0 } else { listed }).await?;
        if short || (settled == Settled::No && patience == Patience::Some) {
            return Ok(Settled::No);
        }
        self.outstanding = Outstanding::default();
        Ok(Settled::Yes)
    }

    /// Leaves the IDLE for a sync: that holds no more than a little of it at once.
    async fn read_through(&mut self, idle: &mut PendingCommand) -> Result<Settled> {
        self.end_idle(idle).await?;
        self.sync().await?;
        *idle = self.connection.idle().await?;
        Ok(Settled::Uncounted)
    }

    /// Hands over what was pushed.
    async fn take_pushed(&mut self, idle: &mut PendingCommand) -> Result<Settled> {
        let mut items = std::mem::take(&mut self.pushed);
        self.sort_out(&mut items);
        self.outstanding.owed += std::mem::take(&mut self.selected.fresh) as usize;
        self.settle_debt(&items);
        // What was announced beside them is pushed next, or else asked for.
        self.selected.fresh = u32::try_from(std::mem::take(&mut self.outstanding.owed)).unwrap_or(u32::MAX);
        if self.complete_bodies(&mut items, idle).await? == Held::NotAll {
            return self.read_through(idle).await;
        }
        self.take(items, 0).await
    }

    /// By UID, each once, and only what is above the cursor.
    fn sort_out(&self, items: &mut Vec<FetchedMail>) {
        items.retain(|item| item.uid > self.cursor);
        items.sort_by_key(|item| (item.uid, item.body.is_none(), item.header.is_none()));
        items.dedup_by_key(|item| item.uid);
    }

    /// Takes those that have come off the number of those that were announced.
    fn settle_debt(&mut self, items: &[FetchedMail]) {
        let new = items.iter().filter(|item| !self.outstanding.ahead.contains(&item.uid)).count();
        self.outstanding.owed = self.outstanding.owed.saturating_sub(new);
        let top = self.selected.uid_next.map_or(0, |next| next.saturating_sub(1));
        let top = items.last().is_some_and(|item| item.uid >= top);
        self.outstanding.top &= !top;
    }

    /// Hands over mails and moves the cursor behind them, as far as it may go: up to `listed`, where a tagged OK said that
    /// there are no others, and from there on where one UID follows the other.
    async fn take(&mut self, items: Vec<FetchedMail>, listed: u32) -> Result<Settled> {
        let mut settled = Settled::Yes;
        for item in items {
            let (uid, follows) = (item.uid, self.cursor.checked_add(1) == Some(item.uid));
            let lacking = self.is_lacking(&item);
            if (uid > listed && !follows) || lacking {
                settled = Settled::No;
            }
            let passes = settled == Settled::Yes;
            if passes {
                self.cursor = self.cursor.max(uid);
                self.outstanding.ahead.remove(&uid);
            }
            let mails: Vec<_> = self.mail(item).into_iter().collect();
            self.hand_over(mails, passes.then_some(self.cursor)).await?;
            if !passes && !lacking {
                self.outstanding.ahead.insert(uid);
            }
        }
        Ok(settled)
    }

    /// Whether it should have a body, and came without.
    fn is_lacking(&self, item: &FetchedMail) -> bool {
        let handed = self.outstanding.ahead.contains(&item.uid);
        item.body.is_none() && !handed && (self.account.settings.dedicated || self.may_be_ours(item))
    }

    /// Not known to be somebody else's.
    fn may_be_ours(&self, item: &FetchedMail) -> bool {
        item.header.is_none() || self.is_candidate(item)
    }

    /// Asks for what those that came without a body still lack: their header in a shared mailbox, then the body of
    /// those that may be Resmic's.
    async fn complete_bodies(&mut self, items: &mut [FetchedMail], idle: &mut PendingCommand) -> Result<Held> {
        if !self.account.settings.dedicated {
            let unknown = self.uids(items, |item| item.header.is_none());
            if self.complete(items, &unknown, FetchKind::Headers, idle).await? == Held::NotAll {
                return Ok(Held::NotAll);
            }
        }
        let dedicated = self.account.settings.dedicated;
        let lacking = self.uids(items, |item| dedicated || (item.header.is_some() && self.is_candidate(item)));
        self.complete(items, &lacking, FetchKind::Body, idle).await
    }

    /// Those without a body, and not handed over, that are so.
    fn uids(&self, items: &[FetchedMail], which: impl Fn(&FetchedMail) -> bool) -> Vec<u32> {
        let open =
            |item: &&FetchedMail| item.body.is_none() && !self.outstanding.ahead.contains(&item.uid) && which(item);
        items.iter().filter(open).map(|item| item.uid).collect()
    }

    async fn complete(
        &mut self,
        items: &mut [FetchedMail],
        lacking: &[u32],
        want: FetchKind,
        idle: &mut PendingCommand,
    ) -> Result<Held> {
        if lacking.is_empty() {
            return Ok(Held::All);
        }
        if lacking.len() > AT_ONCE {
            return Ok(Held::NotAll);
        }
        let command = format!("UID FETCH {} ({})", uid_set(lacking), want.items(&self.account.settings));
        let (came, held) = self.interrupt(idle, &command, UidValidityCheck::Skip).await?;
        for item in came {
            match items.iter_mut().find(|known| known.uid == item.uid) {
                Some(known) => known.merge(item),
                None => self.keep(item),
            }
        }
        Ok(held)
    }

    /// What `after` asks for, if anything waits for it.
    async fn apply_after_outside_idle(&mut self, idle: &mut PendingCommand) -> Result<()> {
        if self.finished.waiting.is_empty() {
            return Ok(());
        }
        self.end_idle(idle).await?;
        self.apply_after().await?;
        *idle = self.connection.idle().await?;
        Ok(())
    }

    /// Asks again and again: for a server without IDLE.
    async fn poll(&mut self) -> Result<()> {
        loop {
            self.report(MailboxState::Polling).await?;
            tokio::time::sleep(self.account.timing.poll.min(self.account.settings.idle_renew.0)).await;
            let asked = self.send_uid_validity_check().await?;
            self.read_uid_validity_check(asked).await?;
            // All of it will be fetched.
            self.pushed.clear();
            self.sync().await?;
            if self.history.is_due(false) {
                self.refetch_undelivered().await?;
            }
        }
    }
}
