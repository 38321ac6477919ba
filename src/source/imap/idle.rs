//! Waiting for the next mail, so that it is here in as few round trips as the server allows.
//!
//! With NOTIFY (RFC 5465) the server sends a new mail by itself: half a round trip. Elsewhere, at `EXISTS`, the end
//! of the IDLE, the FETCH and the next IDLE leave in one write: one and a half. What is pushed is a hint that is
//! believed for speed; the cursor moves by the order of UIDs, and every renewal looks for what was not pushed.

use std::time::Duration;

use tokio::time::Instant;

use super::error::{Error, Result};
use super::fetch::{Item, Want};
use super::sync::{Opened, uid_set};
use super::wire::{ANSWER, Heard, Sent};
use crate::model::MailboxState;

/// How long after an `EXISTS` the pushed mail may take before it is asked for.
const PUSH_GRACE: Duration = Duration::from_millis(250);
/// How soon a mail that was announced and not sent is asked for again, the first time.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is asked for before it counts as gone.
const TRIES: u32 = 3;
/// How many mails are asked for in one command here. What comes in hundreds is for a sync.
const AT_ONCE: usize = 50;
/// How often a server without IDLE is asked, at most.
const POLL: Duration = Duration::from_secs(60);

/// How new mail becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The server sends it.
    Pushed,
    /// The server announces it.
    Announced,
    /// The server is asked.
    Polled,
}

/// Why a wait ended.
enum Woken {
    /// Mails were pushed.
    Pushed,
    /// There is something new, and it has to be fetched.
    Announced,
    /// Time for a renewal, or the server ended the IDLE.
    Renew,
}

/// Whether mails that were announced, and have not come, are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Some,
    None,
}

/// What is known of the mails between those that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// A tagged OK said that there are no others.
    All,
    /// Nothing, except where one UID follows the other.
    InOrder,
}

/// Whether the cursor passed all that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    No,
}

fn uids(items: &[Item], which: impl Fn(&Item) -> bool) -> Vec<u32> {
    items.iter().filter(|item| which(item)).map(|item| item.uid).collect()
}

impl Opened {
    /// Asks the server to send each new mail by itself.
    pub(super) async fn ask_for_pushes(&mut self) -> Result<Way> {
        if !self.offers.idle {
            return Ok(Way::Polled);
        }
        if !self.offers.notify {
            return Ok(Way::Announced);
        }
        let want = if self.account.settings.dedicated { Want::Body } else { Want::Headers };
        let items = want.items(&self.account.settings);
        let command = format!("NOTIFY SET (selected (MessageNew ({items}) MessageExpunge))");
        match self.run("NOTIFY", &command).await {
            Ok(()) => Ok(Way::Pushed),
            // Announced and refused: the server still announces new mail.
            Err(Error::Refused { .. }) => Ok(Way::Announced),
            Err(e) => Err(e),
        }
    }

    /// Watches the mailbox until something goes wrong.
    pub(super) async fn watch(&mut self, mut way: Way) -> Result<()> {
        if way == Way::Polled {
            return self.poll().await;
        }
        let mut idle = self.wire.idle().await?;
        let mut expected = self.selected.exists;
        let mut renewal = self.renewal();
        let mut tries = 0;
        self.report(MailboxState::Idle).await?;
        loop {
            let again = (tries > 0).then(|| Instant::now() + AGAIN * tries);
            let woken = self.wait(&idle, way, &mut expected, again.unwrap_or(renewal).min(renewal)).await?;
            let announced = self.selected.exists.saturating_sub(expected);
            let patience = if tries < TRIES { Patience::Some } else { Patience::None };
            let mut settled = match woken {
                Woken::Pushed => self.take_pushed(&mut idle).await?,
                Woken::Announced => self.look(&mut idle, announced, patience).await?,
                Woken::Renew => Settled::No,
            };
            if settled == Settled::No {
                let before = self.cursor;
                settled = self.look(&mut idle, 0, patience).await?;
                renewal = self.renewal();
                if matches!(woken, Woken::Renew) && tries == 0 && self.cursor > before && way == Way::Pushed {
                    tracing::info!(
                        mailbox = self.name,
                        "the server does not push what it promised; asking from now on"
                    );
                    way = Way::Announced;
                }
            }
            tries = if settled == Settled::Yes { 0 } else { tries + 1 };
            expected = self.selected.exists;
            self.put_away_between(&mut idle).await?;
            self.report(MailboxState::Idle).await?;
        }
    }

    fn renewal(&self) -> Instant {
        Instant::now() + self.account.settings.idle_renew.0
    }

    /// Hears what the server says while it idles.
    async fn wait(&mut self, idle: &Sent, way: Way, expected: &mut u32, renewal: Instant) -> Result<Woken> {
        let mut deadline = renewal;
        loop {
            if !self.pushed.is_empty() {
                *expected = self.selected.exists;
                return Ok(Woken::Pushed);
            }
            // Also what came between our last FETCH and the server's `+`.
            if self.selected.exists > *expected {
                if way == Way::Announced {
                    return Ok(Woken::Announced);
                }
                deadline = deadline.min(Instant::now() + PUSH_GRACE);
            }
            *expected = (*expected).min(self.selected.exists);
            match self.hear(idle, deadline).await {
                Ok(Heard::Data(item)) => self.keep(item),
                Ok(Heard::Continue) => {}
                // Some servers end an IDLE by themselves.
                Ok(Heard::Done) => return Ok(Woken::Renew),
                Err(Error::Silent { .. }) if self.selected.exists > *expected => return Ok(Woken::Announced),
                Err(Error::Silent { .. }) => return Ok(Woken::Renew),
                Err(e) => return Err(e),
            }
        }
    }

    /// Keeps what the server sent unasked; that a flag changed is of no interest.
    fn keep(&mut self, item: Option<Item>) {
        self.pushed.extend(item.filter(|item| !item.is_listing()));
    }

    /// Ends the IDLE, sends a command and begins a new IDLE, all in one write. Returns what the command brought.
    async fn interrupt(&mut self, idle: &mut Sent, name: &'static str, command: &str) -> Result<Vec<Item>> {
        self.wire.cork();
        self.wire.done().await?;
        let sent = self.wire.send(name, command).await?;
        let next = self.wire.idle().await?;
        self.wire.uncork().await?;
        let ended = std::mem::replace(idle, next);
        self.end_of_idle(&ended).await?;
        let mut items = Vec::new();
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.hear(&sent, deadline).await? {
                Heard::Done => return Ok(items),
                Heard::Continue => return Err(Error::Protocol(format!("a `+` in answer to {name}"))),
                Heard::Data(item) => items.extend(item),
            }
        }
    }

    async fn end_of_idle(&mut self, ended: &Sent) -> Result<()> {
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.hear(ended, deadline).await? {
                Heard::Done => return Ok(()),
                Heard::Data(item) => self.keep(item),
                // The `+` of an IDLE that was ended before it came.
                Heard::Continue => {}
            }
        }
    }

    /// Fetches what is above the cursor. If `announced` says that there is something, it is fetched in the same
    /// breath; else it is listed first, and an idle mailbox costs no mail's bytes.
    async fn look(&mut self, idle: &mut Sent, announced: u32, patience: Patience) -> Result<Settled> {
        let want = match (announced > 0, self.account.settings.dedicated) {
            (true, true) => Want::Body,
            (true, false) => Want::Headers,
            (false, _) => Want::Listing,
        };
        let items = want.items(&self.account.settings);
        let command = format!("UID FETCH {}:* ({items})", self.cursor.saturating_add(1));
        let mut items = self.interrupt(idle, "UID FETCH", &command).await?;
        items.append(&mut self.pushed);
        self.sort_out(&mut items);
        // A mail that was announced and is not among them may yet come.
        let short = items.len() < announced as usize && patience == Patience::Some;
        self.complete_bodies(&mut items, idle).await?;
        self.take(items, if short { Known::InOrder } else { Known::All }, patience).await
    }

    /// Hands over what was pushed.
    async fn take_pushed(&mut self, idle: &mut Sent) -> Result<Settled> {
        let mut items = std::mem::take(&mut self.pushed);
        self.sort_out(&mut items);
        self.complete_bodies(&mut items, idle).await?;
        self.take(items, Known::InOrder, Patience::Some).await
    }

    /// By UID, each once, and only what is above the cursor.
    fn sort_out(&self, items: &mut Vec<Item>) {
        items.retain(|item| item.uid > self.cursor);
        items.sort_by_key(|item| (item.uid, item.body.is_none(), item.header.is_none()));
        items.dedup_by_key(|item| item.uid);
    }

    /// Hands over mails and moves the cursor behind them, as far as it may go.
    async fn take(&mut self, items: Vec<Item>, known: Known, patience: Patience) -> Result<Settled> {
        let mut settled = Settled::Yes;
        for item in items {
            let follows = self.cursor.checked_add(1) == Some(item.uid);
            let lacking = item.body.is_none() && (self.account.settings.dedicated || self.may_be_ours(&item));
            if lacking && patience == Patience::None {
                tracing::warn!(
                    mailbox = self.name,
                    uid = item.uid,
                    "listed by the server and never sent: taken as gone"
                );
            }
            if (known == Known::InOrder && !follows) || (lacking && patience == Patience::Some) {
                settled = Settled::No;
            }
            let passes = settled == Settled::Yes;
            if passes {
                self.cursor = self.cursor.max(item.uid);
            }
            let mails: Vec<_> = self.mail(item).into_iter().collect();
            self.hand_over(mails, passes.then_some(self.cursor)).await?;
        }
        Ok(settled)
    }

    /// Not known to be somebody else's.
    fn may_be_ours(&self, item: &Item) -> bool {
        item.header.is_none() || self.is_candidate(item)
    }

    /// Asks for what those that came without a body still lack: their header in a shared mailbox, then the body of
    /// those that may be Resmic's.
    async fn complete_bodies(&mut self, items: &mut [Item], idle: &mut Sent) -> Result<()> {
        if !self.account.settings.dedicated {
            let unknown = uids(items, |item| item.header.is_none() && item.body.is_none());
            self.complete(items, &unknown, Want::Headers, idle).await?;
        }
        let dedicated = self.account.settings.dedicated;
        let lacking = uids(items, |item| {
            item.body.is_none() && (dedicated || (item.header.is_some() && self.is_candidate(item)))
        });
        self.complete(items, &lacking, Want::Body, idle).await
    }

    async fn complete(&mut self, items: &mut [Item], lacking: &[u32], want: Want, idle: &mut Sent) -> Result<()> {
        for chunk in lacking.chunks(AT_ONCE) {
            let command = format!("UID FETCH {} ({})", uid_set(chunk), want.items(&self.account.settings));
            for item in self.interrupt(idle, "UID FETCH", &command).await? {
                match items.iter_mut().find(|known| known.uid == item.uid) {
                    Some(known) => *known = item,
                    None => self.pushed.push(item),
                }
            }
        }
        Ok(())
    }

    /// What `after` asks for, if anything waits for it.
    async fn put_away_between(&mut self, idle: &mut Sent) -> Result<()> {
        if self.unanswered.is_empty() {
            return Ok(());
        }
        self.wire.done().await?;
        self.end_of_idle(idle).await?;
        self.put_away().await?;
        *idle = self.wire.idle().await?;
        Ok(())
    }

    /// Asks again and again: for a server without IDLE.
    async fn poll(&mut self) -> Result<()> {
        loop {
            self.report(MailboxState::Polling).await?;
            tokio::time::sleep(POLL.min(self.account.settings.idle_renew.0)).await;
            self.sync(false).await?;
        }
    }
}
