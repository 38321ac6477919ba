//! Waits for new mail, and fetches it in as few round trips as the server allows.
//!
//! With NOTIFY (RFC 5465) the server of a dedicated mailbox pushes each new mail, which takes half a round trip. In a shared
//! mailbox, the server pushes only the From field, and the watcher fetches the bodies of possible notifications. Servers without
//! NOTIFY announce a new mail with an `EXISTS`. The watcher answers with the end of the IDLE, the FETCH and the next IDLE in one
//! write, so the fetched data arrives after one and a half round trips. A push makes delivery fast, but it does not prove that no
//! other mail is missing. So the cursor moves in the order of UIDs, and each renewal of the IDLE looks for mails that the server
//! did not announce.

use tokio::time::Instant;

use super::arrivals::Outstanding;
use super::connection::{ResponseTimeout, ServerResponse};
use super::error::{Error, Result};
use super::fetch::{FetchKind, FetchedMail};
use super::reader::MailboxReader;
use super::selected::{SelectedMailbox, uid_set};
use crate::model::MailboxState;
use idling::{Completeness, MAX_MAILS, UidValidityCheck};

mod idling;

pub(super) use idling::Idling;

/// How often the watcher requests an announced mail. If the mail is missing after the last request, a sync decides whether the
/// mail exists.
const MAX_ATTEMPTS: u32 = 3;
/// After this many IDLEs in a row that the server ended immediately, the watcher polls.
const MAX_SHORT_IDLES: u32 = 5;
/// After this many mails that a server did not push although it accepted NOTIFY, the watcher fetches each announced mail.
const MAX_MISSED_PUSHES: u32 = 2;

/// How the watcher learns of new mails in its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewMailMode {
    /// The server pushes new mails, or their From fields (NOTIFY).
    Pushed,
    /// The server announces new mails with `EXISTS` (IDLE).
    Announced,
    /// The watcher polls, because the server has no IDLE.
    Polled,
}

/// Why [`Idling::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WakeReason {
    /// The server pushed mails.
    Pushed,
    /// The server announced mails, which must be fetched.
    Announced,
    /// The deadline has passed: the IDLE is renewed, or a missing mail is fetched again.
    Renew,
    /// The server ended the IDLE.
    Ended,
}

/// Whether the cursor has passed all mails that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coverage {
    Complete,
    Incomplete,
    /// The cursor has passed all mails that a sync listed. Announcements during the sync were not counted, so one more FETCH is
    /// due.
    Uncounted,
}

impl SelectedMailbox {
    /// Asks the server to push new mails, if the server supports NOTIFY and IDLE. Returns how the watcher will learn of new
    /// mails.
    pub(super) async fn request_pushes(&mut self) -> Result<NewMailMode> {
        let facts = &self.reader.facts;
        if !facts.capabilities.idle {
            return Ok(NewMailMode::Polled);
        }
        if !facts.capabilities.notify {
            return Ok(NewMailMode::Announced);
        }
        let settings = &facts.account.settings;
        let kind = if settings.dedicated { FetchKind::Body } else { FetchKind::Headers };
        let command = format!("NOTIFY SET (selected (MessageNew ({}) MessageExpunge))", kind.items(settings));
        match self.run("NOTIFY", &command).await {
            Ok(()) => Ok(NewMailMode::Pushed),
            // A server that lists the capability NOTIFY but refuses the command still announces new mails with `EXISTS`.
            Err(Error::Refused { .. }) => Ok(NewMailMode::Announced),
            Err(e) => Err(e),
        }
    }

    /// Watches the mailbox until the connection fails.
    pub(super) async fn watch(&mut self, mut mode: NewMailMode) -> Result<()> {
        if mode == NewMailMode::Polled {
            return self.poll().await;
        }
        let account = self.reader.facts.account.clone();
        let (timing, idle_renew) = (account.timing, account.settings.idle_renew.0);
        let mut idling = self.idle().await?;
        let mut renewal = Instant::now() + idle_renew;
        let mut attempts = u32::from(idling.reader().outstanding.is_below_uid_next());
        let (mut missed_pushes, mut short_idles, mut started) = (0, 0, Instant::now());
        idling.reader().report(MailboxState::Idle).await?;
        loop {
            let mut deadline = renewal;
            if attempts > 0 {
                deadline = deadline.min(Instant::now() + timing.refetch * attempts);
            }
            let reason = match idling.wait(mode, deadline).await {
                // The server lists the capability IDLE but refuses the command.
                Err(Error::Refused { .. }) => return idling.done().await?.poll().await,
                reason => reason?,
            };
            // Some servers end an IDLE after a while. But a server that ends each IDLE immediately would cause a busy loop.
            let is_short = reason == WakeReason::Ended && started.elapsed() < timing.refetch;
            short_idles = if is_short { short_idles + 1 } else { 0 };
            if short_idles >= MAX_SHORT_IDLES {
                return idling.done().await?.poll().await;
            }
            let highest = idling.reader().highest_uid();
            let mut coverage = Coverage::Incomplete;
            if reason == WakeReason::Pushed {
                (idling, coverage) = idling.take_pushed().await?;
                missed_pushes = 0;
            }
            if coverage == Coverage::Incomplete {
                (idling, coverage) = idling.fetch_new(reason, attempts < MAX_ATTEMPTS).await?;
                renewal = Instant::now() + idle_renew;
                let is_new = idling.reader().highest_uid() > highest;
                if mode == NewMailMode::Pushed && reason != WakeReason::Pushed && attempts == 0 && is_new {
                    missed_pushes += 1;
                }
            }
            if missed_pushes >= MAX_MISSED_PUSHES && mode == NewMailMode::Pushed {
                let (account, mailbox) = (&account.settings.name, &idling.reader().facts.name.display);
                tracing::info!(
                    account,
                    mailbox,
                    "the server does not push new mails as promised; fetching each one now"
                );
                mode = NewMailMode::Announced;
            }
            attempts = match coverage {
                Coverage::Complete => 0,
                Coverage::Incomplete => attempts + 1,
                Coverage::Uncounted => 1,
            };
            idling = idling.work_outside_idle(reason).await?;
            idling.reader().report(MailboxState::Idle).await?;
            started = Instant::now();
        }
    }

    /// Polls the mailbox until the connection fails. Only servers without a working IDLE are polled.
    async fn poll(&mut self) -> Result<()> {
        let account = self.reader.facts.account.clone();
        loop {
            self.reader.report(MailboxState::Polling).await?;
            tokio::time::sleep(account.timing.poll.min(account.settings.idle_renew.0)).await;
            let check = self.send_uid_validity_check().await?;
            self.read_uid_validity_check(check).await?;
            // The pushed mails are dropped, because the sync fetches these mails again.
            drop(self.reader.pushed.take_all());
            self.sync().await?;
            if self.reader.history.is_due(false) {
                self.refetch_undelivered().await?;
            }
        }
    }
}

impl Idling<'_> {
    /// Waits for a push, an announcement, the end of the IDLE or the deadline.
    async fn wait(&mut self, mode: NewMailMode, mut deadline: Instant) -> Result<WakeReason> {
        self.wait_for_plus().await?;
        loop {
            let reader = self.reader();
            if !reader.pushed.is_empty() {
                return Ok(WakeReason::Pushed);
            }
            // `announced` also counts mails that the server announced before it answered the IDLE, or while it answered the
            // previous FETCH.
            let is_announced = reader.status.announced > 0;
            if is_announced {
                if mode == NewMailMode::Announced {
                    return Ok(WakeReason::Announced);
                }
                deadline = deadline.min(Instant::now() + reader.facts.account.timing.push_grace);
            }
            match self.read_response(ResponseTimeout::until(deadline)).await {
                Ok(ServerResponse::Data(Some(mail))) => self.reader().pushed.keep(mail),
                Ok(ServerResponse::Data(None) | ServerResponse::Continue) => {}
                Ok(ServerResponse::Done) => return Ok(WakeReason::Ended),
                Err(Error::Timeout { .. }) if is_announced => return Ok(WakeReason::Announced),
                Err(Error::Timeout { .. }) => return Ok(WakeReason::Renew),
                Err(e) => return Err(e),
            }
        }
    }

    /// Fetches the mails above the cursor. If the server has announced mails, the first FETCH requests their data. Otherwise the
    /// first FETCH lists only UIDs, because `n:*` always contains the last mail of the mailbox (RFC 3501, 6.4.8), whose body is
    /// not needed again.
    ///
    /// `may_retry`: a missing mail can be fetched again later. If `may_retry` is false, a sync decides whether the mail exists.
    async fn fetch_new(mut self, reason: WakeReason, may_retry: bool) -> Result<(Self, Coverage)> {
        let reader = self.reader();
        // The announcements are counted before the FETCH is sent. The answer to the FETCH can lack the mails that the server
        // announces after it has received the FETCH.
        let announced = reader.status.take_announced();
        reader.outstanding.announce(announced);
        if reader.outstanding.announced() > MAX_MAILS {
            return self.sync().await;
        }
        let (command, check) = reader.fetch_new_command(reason);
        let (mut mails, completeness) = match self.interrupt(&command, check).await {
            Err(error @ Error::Refused { command: "UID FETCH", .. }) => {
                let mailbox = self.done().await?;
                if !mailbox.is_read_to_the_end().await? {
                    return Err(error);
                }
                mailbox.reader.outstanding = Outstanding::default();
                self = mailbox.idle().await?;
                (Vec::new(), Completeness::Complete)
            }
            answer => answer?,
        };
        let reader = self.reader();
        reader.check_listing()?;
        let listed = mails.iter().map(|mail| mail.uid).max().unwrap_or(0);
        mails.append(&mut reader.pushed.take_all());
        reader.sort_new(&mut mails);
        reader.outstanding.settle(&mails, reader.status.uid_next);
        if completeness == Completeness::TooMany || self.complete_bodies(&mut mails).await? == Completeness::TooMany {
            return self.sync().await;
        }
        let reader = self.reader();
        if !may_retry && mails.iter().any(|mail| reader.lacks_body(mail)) {
            // The sync finds out whether the mails without a body still exist. The mails with a body are sent to `ingest` now, so
            // that the sync does not fetch them again.
            reader.hand_over_new(mails, 0).await?;
            return self.sync().await;
        }
        let is_short = may_retry && reader.outstanding.is_incomplete();
        let coverage = reader.hand_over_new(mails, if is_short { 0 } else { listed }).await?;
        if is_short || (coverage == Coverage::Incomplete && may_retry) {
            return Ok((self, Coverage::Incomplete));
        }
        reader.outstanding = Outstanding::default();
        Ok((self, Coverage::Complete))
    }

    /// Fetches the missing bodies of the pushed mails, and sends these mails to `ingest`.
    async fn take_pushed(mut self) -> Result<(Self, Coverage)> {
        let reader = self.reader();
        let mut mails = reader.pushed.take_all();
        reader.sort_new(&mut mails);
        let announced = reader.status.take_announced();
        reader.outstanding.announce(announced);
        reader.outstanding.settle(&mails, reader.status.uid_next);
        // Announced mails that were not pushed are counted as announced again. The server pushes these mails later, or the next
        // FETCH returns them.
        let announced = reader.outstanding.take_announced();
        reader.status.announce_again(announced);
        if self.complete_bodies(&mut mails).await? == Completeness::TooMany {
            return self.sync().await;
        }
        let coverage = self.reader().hand_over_new(mails, 0).await?;
        Ok((self, coverage))
    }

    /// Leaves the IDLE for a sync, which holds only a few mails in memory at a time.
    async fn sync(self) -> Result<(Self, Coverage)> {
        let mailbox = self.done().await?;
        mailbox.sync().await?;
        Ok((mailbox.idle().await?, Coverage::Uncounted))
    }

    /// Leaves the IDLE if the setting `after` must be applied to notifications, or if mails that the server has not delivered
    /// must be fetched again.
    async fn work_outside_idle(mut self, reason: WakeReason) -> Result<Self> {
        if self.reader().after.is_waiting() {
            let mailbox = self.done().await?;
            mailbox.apply_after().await?;
            self = mailbox.idle().await?;
        }
        if self.reader().history.is_due(reason == WakeReason::Renew) {
            let mailbox = self.done().await?;
            mailbox.refetch_undelivered().await?;
            self = mailbox.idle().await?;
        }
        Ok(self)
    }

    /// Fetches the bodies that are missing in `mails`. In a shared mailbox, first fetches missing headers, and then only the
    /// bodies of mails whose sender may be Resmic.
    async fn complete_bodies(&mut self, mails: &mut [FetchedMail]) -> Result<Completeness> {
        let is_dedicated = self.reader().facts.account.settings.dedicated;
        if !is_dedicated {
            let uids = self.reader().without_body(mails, |_, mail| mail.header.is_none());
            if self.complete(mails, &uids, FetchKind::Headers).await? == Completeness::TooMany {
                return Ok(Completeness::TooMany);
            }
        }
        let uids = self.reader().without_body(mails, |reader, mail| is_dedicated || reader.is_candidate(mail));
        self.complete(mails, &uids, FetchKind::Body).await
    }

    async fn complete(&mut self, mails: &mut [FetchedMail], uids: &[u32], kind: FetchKind) -> Result<Completeness> {
        if uids.is_empty() {
            return Ok(Completeness::Complete);
        }
        if uids.len() > MAX_MAILS {
            return Ok(Completeness::TooMany);
        }
        let items = kind.items(&self.reader().facts.account.settings).into_owned();
        let command = format!("UID FETCH {} ({items})", uid_set(uids));
        let (fetched, completeness) = self.interrupt(&command, UidValidityCheck::Skip).await?;
        for part in fetched {
            match mails.iter_mut().find(|mail| mail.uid == part.uid) {
                Some(mail) => mail.merge(part),
                None => self.reader().pushed.keep(part),
            }
        }
        Ok(completeness)
    }
}

impl MailboxReader {
    /// Returns the FETCH command for mails above the cursor, and whether a STATUS checks the UIDVALIDITY before this FETCH.
    fn fetch_new_command(&mut self, reason: WakeReason) -> (String, UidValidityCheck) {
        let settings = &self.facts.account.settings;
        let kind = match (reason, settings.dedicated) {
            (WakeReason::Announced, true) => FetchKind::Body,
            (WakeReason::Announced, false) => FetchKind::Headers,
            _ => FetchKind::Listing,
        };
        let command = format!("UID FETCH {}:* ({})", self.progress.next_uid(), kind.items(settings));
        self.status.unparsed_fetches = 0;
        let check = if reason == WakeReason::Renew { UidValidityCheck::Send } else { UidValidityCheck::Skip };
        (command, check)
    }

    /// Sorts `mails` by UID, keeps the most complete copy of each mail, and drops mails that the cursor has passed.
    fn sort_new(&self, mails: &mut Vec<FetchedMail>) {
        mails.retain(|mail| mail.uid > self.progress.cursor());
        mails.sort_by_key(|mail| (mail.uid, mail.body.is_none(), mail.header.is_none()));
        mails.dedup_by_key(|mail| mail.uid);
    }

    /// Sends mails to `ingest`, and moves the cursor as far as the cursor rule of [`sync`](super::sync) allows. A tagged OK has
    /// proved that no other mails exist up to the UID `listed`. Above `listed`, the cursor moves only from one UID to the next,
    /// and skips no UID.
    async fn hand_over_new(&mut self, mails: Vec<FetchedMail>, listed: u32) -> Result<Coverage> {
        let mut coverage = Coverage::Complete;
        for mail in mails {
            let uid = mail.uid;
            let follows = self.progress.cursor().checked_add(1) == Some(uid);
            let lacks_body = self.lacks_body(&mail);
            if (uid > listed && !follows) || lacks_body {
                coverage = Coverage::Incomplete;
            }
            let raw: Vec<_> = self.raw_mail(mail).into_iter().collect();
            if coverage == Coverage::Complete {
                self.progress.advance(uid);
                self.outstanding.pass(uid);
                self.hand_over_with_cursor(raw).await?;
            } else {
                self.hand_over(raw).await?;
                if !lacks_body {
                    self.outstanding.add_ahead(uid);
                }
            }
        }
        Ok(coverage)
    }

    /// Whether the body of this mail is missing, although the mail may be Resmic's and was not sent to `ingest`.
    fn lacks_body(&self, mail: &FetchedMail) -> bool {
        let may_be_ours = self.facts.account.settings.dedicated || mail.header.is_none() || self.is_candidate(mail);
        mail.body.is_none() && may_be_ours && !self.outstanding.is_ahead(mail.uid)
    }

    /// The UIDs of mails that have no body, were not sent to `ingest`, and match `filter`.
    fn without_body(&self, mails: &[FetchedMail], filter: impl Fn(&Self, &FetchedMail) -> bool) -> Vec<u32> {
        let is_wanted =
            |mail: &&FetchedMail| mail.body.is_none() && !self.outstanding.is_ahead(mail.uid) && filter(self, mail);
        mails.iter().filter(is_wanted).map(|mail| mail.uid).collect()
    }
}
