//! Fetching again the mails that the server lists and did not deliver.
//!
//! Such a mail may end the connection each time. So a mail that did so is asked for last and alone, and the number of those
//! that are fetched together is bounded.

use std::collections::BTreeSet;
use std::time::Duration;

use super::connection::{ResponseTimeout, ServerResponse};
use super::error::{Error, Result};
use super::fetch::FetchKind;
use super::selected::{SelectedMailbox, uid_set};
use super::timing::Timing;
use crate::model::Availability;

/// How many rounds there are at once, as long as each brings a mail.
const ROUNDS: usize = 25;
/// A mail that has ended a connection is waited for so much less: the IDLE is interrupted meanwhile.
const IMPATIENCE: u32 = 3;

impl SelectedMailbox {
    /// Closes the rows of mails that are gone, and completes those of mails that arrive now. No IDLE is under way.
    pub(super) async fn refetch_undelivered(&mut self) -> Result<()> {
        self.history.begin_fetching(self.account.settings.idle_renew.0);
        let Timing { answer, .. } = self.account.timing;
        for _ in 0..ROUNDS {
            let (uids, before) = (self.history.next_round(), self.history.len());
            self.fetch_listed(&uids, answer).await?;
            if uids.is_empty() || self.history.len() == before {
                break;
            }
        }
        for _ in 0..ROUNDS {
            let (uids, before) = (self.history.next_alone(), self.history.len());
            self.fetch_listed(&uids, answer / IMPATIENCE).await?;
            self.history.mark_harmful(&uids, false);
            if uids.is_empty() || self.history.len() == before {
                break;
            }
        }
        self.history.end_fetching();
        // The dates that were seen are written down too: by them the mailbox is recognised later.
        self.handed = None;
        self.hand_over(Vec::new(), Some(self.cursor)).await
    }

    /// `silence`: how long the server may say nothing.
    async fn fetch_listed(&mut self, uids: &[u32], silence: Duration) -> Result<()> {
        if uids.is_empty() {
            return Ok(());
        }
        let listed = self.still_listed(uids).await?;
        for uid in uids.iter().filter(|uid| !listed.contains(uid)) {
            self.close(*uid, Availability::Gone).await?;
        }
        let mut wanted: Vec<u32> = uids.iter().copied().filter(|uid| listed.contains(uid)).collect();
        if !self.account.settings.dedicated {
            wanted = self.fetch_part(&wanted, FetchKind::Headers, silence).await?;
        }
        self.fetch_part(&wanted, FetchKind::Body, silence).await.map(drop)
    }

    async fn still_listed(&mut self, uids: &[u32]) -> Result<BTreeSet<u32>> {
        let mut listed = BTreeSet::new();
        self.selected.unreadable = 0;
        let items = FetchKind::Listing.items(&self.account.settings);
        let sent = self.connection.send("UID FETCH", &format!("UID FETCH {} ({items})", uid_set(uids))).await?;
        let wait = self.streaming();
        self.finish(&sent, wait, |item| {
            listed.insert(item.uid);
        })
        .await?;
        self.check_listing()?;
        Ok(listed)
    }

    async fn close(&mut self, uid: u32, state: Availability) -> Result<()> {
        let received_at = self.history.remove(uid);
        let undelivered = self.undelivered(uid, 0, received_at, state);
        self.hand_over_all(Vec::new(), vec![undelivered], None).await
    }

    /// Fetches bodies and hands them over; or headers, and returns which mails may be Resmic's.
    async fn fetch_part(&mut self, uids: &[u32], want: FetchKind, silence: Duration) -> Result<Vec<u32>> {
        let mut candidates = Vec::new();
        if uids.is_empty() {
            return Ok(candidates);
        }
        let (mut missing, mail) = (uids.to_vec(), self.account.timing.mail);
        let items = want.items(&self.account.settings);
        let sent = self.connection.send("UID FETCH", &format!("UID FETCH {} ({items})", uid_set(uids))).await?;
        let flowing = || ResponseTimeout::streaming(mail, silence);
        let mut wait = flowing();
        loop {
            let item = match self.read_response(&sent, wait).await {
                Ok(ServerResponse::Done) => return Ok(candidates),
                Ok(ServerResponse::Continue) => return Err(Error::Protocol("a `+` in answer to UID FETCH".into())),
                Ok(ServerResponse::Data(None)) => continue,
                Ok(ServerResponse::Data(Some(item))) => item,
                // One mail that the server cannot read spoils the answer for all of them (Exchange).
                Err(Error::Refused { .. }) => {
                    for uid in missing.iter().filter(|_| missing.len() > 1) {
                        candidates.extend(Box::pin(self.fetch_part(&[*uid], want, silence)).await?);
                    }
                    return Ok(candidates);
                }
                Err(error) => {
                    // Servers answer in the order of UIDs.
                    self.history.mark_harmful(missing.get(..1).unwrap_or_default(), true);
                    return Err(error);
                }
            };
            let uid = item.uid;
            let came = if want == FetchKind::Body { item.body.is_some() } else { item.header.is_some() };
            if !came || !missing.contains(&uid) {
                self.keep(item);
                continue;
            }
            missing.retain(|other| *other != uid);
            wait = flowing();
            if want == FetchKind::Body {
                self.history.remove(uid);
                let mails = self.mail(item);
                self.hand_over(mails.into_iter().collect(), None).await?;
            } else if self.is_candidate(&item) {
                candidates.push(uid);
            } else {
                self.close(uid, Availability::Foreign).await?;
            }
        }
    }
}
