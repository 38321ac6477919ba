//! Repeats the FETCH of undelivered mails: mails that the server lists but has not delivered. An undelivered mail has a row
//! without bytes in the table `mails`.
//!
//! Each FETCH of an undelivered mail may end the connection. So the number of mails in one FETCH is limited, and a mail that has
//! ended a connection is fetched last and alone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::connection::{PendingCommand, ResponseTimeout, ServerResponse};
use super::error::{Error, Result};
use super::fetch::{FetchKind, FetchedMail};
use super::selected::{SelectedMailbox, uid_set};
use super::timing::Timing;
use crate::model::Availability;

/// The most rounds in a row. Each round requests mails again that have a row without bytes in the table `mails`. The rounds end
/// after a round that has not reduced the number of rows without bytes.
const MAX_ROUNDS: usize = 25;
/// For a mail that has ended a connection, the usual timeout is divided by this number. No IDLE is open during the FETCH, so new
/// mails have to wait.
const HARMFUL_TIMEOUT_DIVISOR: u32 = 3;

impl SelectedMailbox {
    /// Fetches the mails again that have a row without bytes in the table `mails`. If the server now delivers a mail, the row
    /// gets its bytes. If a mail is gone, its row gets the outcome `ignored`. If a mail is not Resmic's, its row is deleted.
    pub(super) async fn refetch_undelivered(&mut self) -> Result<()> {
        self.reader.history.begin_fetching(self.reader.facts.account.settings.idle_renew.0);
        let Timing { answer, .. } = self.reader.facts.account.timing;
        for _ in 0..MAX_ROUNDS {
            let (uids, before) = (self.reader.history.next_round(), self.reader.history.len());
            self.refetch(&uids, answer).await?;
            if uids.is_empty() || self.reader.history.len() == before {
                break;
            }
        }
        for _ in 0..MAX_ROUNDS {
            let (uids, before) = (self.reader.history.next_alone(), self.reader.history.len());
            self.refetch(&uids, answer / HARMFUL_TIMEOUT_DIVISOR).await?;
            self.reader.history.mark_harmful(&uids, false);
            if uids.is_empty() || self.reader.history.len() == before {
                break;
            }
        }
        self.reader.history.end_fetching();
        // The position that is sent to `ingest` contains the newest INTERNALDATE, which the next connection needs to detect a
        // renumbering.
        self.reader.progress.require_report();
        self.reader.hand_over_with_cursor(Vec::new()).await
    }

    /// Fetches the mails `uids` again. `silence`: how long the server may send nothing.
    async fn refetch(&mut self, uids: &[u32], silence: Duration) -> Result<()> {
        if uids.is_empty() {
            return Ok(());
        }
        let listed = self.list(uids).await?;
        for uid in uids.iter().filter(|uid| !listed.contains(uid)) {
            self.close_row(*uid, Availability::Gone).await?;
        }
        let mut wanted: Vec<u32> = uids.iter().copied().filter(|uid| listed.contains(uid)).collect();
        if !self.reader.facts.account.settings.dedicated {
            wanted = self.fetch_part(&wanted, FetchKind::Headers, silence).await?;
        }
        self.fetch_part(&wanted, FetchKind::Body, silence).await.map(drop)
    }

    /// Returns those of `uids` that the server still lists.
    async fn list(&mut self, uids: &[u32]) -> Result<BTreeSet<u32>> {
        let mut listed = BTreeSet::new();
        self.reader.status.unparsed_fetches = 0;
        let pending = self.send_refetch(uids, FetchKind::Listing).await?;
        let timeout = self.reader.streaming();
        let on_mail = |mail: FetchedMail| {
            listed.insert(mail.uid);
        };
        match self.finish(&pending, timeout, on_mail).await {
            // Some servers refuse a FETCH if all requested mails are gone.
            Err(Error::Refused { .. }) if self.highest_uid(&uid_set(uids)).await? == Some(0) => Ok(BTreeSet::new()),
            answered => {
                answered?;
                self.reader.check_listing()?;
                Ok(listed)
            }
        }
    }

    async fn send_refetch(&mut self, uids: &[u32], kind: FetchKind) -> Result<PendingCommand> {
        let items = kind.items(&self.reader.facts.account.settings);
        self.connection.send("UID FETCH", &format!("UID FETCH {} ({items})", uid_set(uids))).await
    }

    async fn close_row(&mut self, uid: u32, state: Availability) -> Result<()> {
        let received_at = self.reader.history.remove(uid);
        let undelivered = self.reader.undelivered(uid, 0, received_at, state);
        self.reader.hand_over_undelivered(vec![undelivered], false).await
    }

    /// Fetches bodies and sends the mails to `ingest`, or fetches headers and returns the UIDs of mails whose sender may be
    /// Resmic.
    async fn fetch_part(&mut self, uids: &[u32], kind: FetchKind, silence: Duration) -> Result<Vec<u32>> {
        let mut candidates = Vec::new();
        if uids.is_empty() {
            return Ok(candidates);
        }
        let (mut missing, limit) = (uids.to_vec(), self.reader.facts.account.timing.mail);
        let pending = self.send_refetch(uids, kind).await?;
        let mut timeout = ResponseTimeout::streaming(limit, silence);
        loop {
            let mail = match self.read_response(&pending, timeout).await {
                Ok(ServerResponse::Done) => return Ok(candidates),
                Ok(ServerResponse::Continue) => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                Ok(ServerResponse::Data(None)) => continue,
                Ok(ServerResponse::Data(Some(mail))) => mail,
                // One unreadable mail makes Exchange refuse the whole FETCH, so each missing mail is requested alone.
                Err(Error::Refused { .. }) if missing.len() > 1 => {
                    for uid in missing {
                        candidates.extend(Box::pin(self.fetch_part(&[uid], kind, silence)).await?);
                    }
                    return Ok(candidates);
                }
                Err(Error::Refused { .. }) => return Ok(candidates),
                Err(error @ Error::Throttled { .. }) => return Err(error),
                Err(error) => {
                    // Servers answer in the order of UIDs, so the first missing mail is the likely cause.
                    self.reader.history.mark_harmful(missing.get(..1).unwrap_or_default(), true);
                    return Err(error);
                }
            };
            let uid = mail.uid;
            let is_complete = if kind == FetchKind::Body { mail.body.is_some() } else { mail.header.is_some() };
            if !is_complete || !missing.contains(&uid) {
                self.reader.pushed.keep(mail);
                continue;
            }
            missing.retain(|other| *other != uid);
            timeout = ResponseTimeout::streaming(limit, silence);
            if kind == FetchKind::Body {
                self.reader.history.remove(uid);
                let raw = self.reader.raw_mail(mail);
                self.reader.hand_over(raw.into_iter().collect()).await?;
            } else if self.reader.is_candidate(&mail) {
                candidates.push(uid);
            } else {
                self.close_row(uid, Availability::Foreign).await?;
            }
        }
    }
}
