//! Authenticates deferred mails again. A mail is deferred if DNS did not answer or a clock is wrong. The pauses between attempts
//! grow. A mail that is still deferred after about a day is quarantined.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::db::{self, Store};
use crate::examine::Rules;
use crate::model::{Examined, Judgement, Reason, ReasonCode};
use crate::payments::{Reevaluation, StoredMail};
use crate::trust::dns::Resolver;

/// The pauses between two attempts to authenticate a mail.
const PAUSES: Backoff = Backoff { base: Duration::from_secs(60), cap: Duration::from_secs(3600) };
/// The most attempts to authenticate a mail, including the first attempt when the mail arrives. With [`PAUSES`], these attempts
/// take about a day.
const MAX_ATTEMPTS: u32 = 30;
/// The longest pause between two searches for deferred mails that are due. A mail that another process defers does not wake the
/// loop, so the loop finds this mail only at the next search.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The loop that authenticates deferred mails when they are due.
pub struct DeferredMails {
    /// The rules of each account, by the account's name.
    pub rules: HashMap<String, Arc<Rules>>,
    /// Looks up DKIM keys.
    pub resolver: Arc<Resolver>,
    /// The database.
    pub store: Store,
}

impl DeferredMails {
    /// Authenticates each deferred mail when it is due, until `shutdown`.
    ///
    /// # Errors
    /// An error of the database that is not temporary.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        let mut deferrals = self.store.watch_deferrals();
        while !*shutdown.borrow() {
            let next = super::retry_temporary(None, || self.authenticate_due()).await?.map_or(MAX_WAIT, time_until);
            tokio::select! {
                () = tokio::time::sleep(next.min(MAX_WAIT)) => {}
                // `changed` never returns an error, because `self.store` holds the sender.
                _ = deferrals.changed() => {}
                _ = shutdown.changed() => {}
            }
        }
        Ok(())
    }

    /// Authenticates all deferred mails that are due. Returns the time at which the next deferred mail becomes due.
    async fn authenticate_due(&self) -> db::Result<Option<Timestamp>> {
        let (reader, now) = (self.store.reader()?, Timestamp::now());
        for id in reader.deferred_mails(now)? {
            if let Some(stored) = reader.stored_mail(id)? {
                self.authenticate(stored).await?;
            }
        }
        // Mails that are still due belong to accounts that are not configured. `next_deferred` skips mails that are due already,
        // because otherwise the loop would run without pauses.
        reader.next_deferred(now)
    }

    async fn authenticate(&self, stored: StoredMail) -> db::Result<()> {
        let Some(rules) = self.rules.get(&stored.mail.origin.account) else { return Ok(()) };
        let mut examined = super::examine_one(rules, &self.resolver, &stored.mail).await;
        let next = pause(stored.judgements);
        if stored.judgements + 1 >= MAX_ATTEMPTS {
            give_up(&mut examined);
        }
        let at = Timestamp::now() + next;
        let change =
            super::retry_temporary(None, || self.store.reevaluate(stored.id, examined.clone(), Some(at))).await?;
        if let Reevaluation::Outcome { outcome, reason, event_id } = change {
            let reason = reason.map(|r| r.to_string());
            tracing::info!(mail_id = stored.id, event_id, reason, "deferred mail: {outcome}");
        }
        Ok(())
    }
}

/// Quarantines a mail that is still deferred after the last attempt.
fn give_up(examined: &mut Examined) {
    if let Judgement::Deferred(reason) = &examined.judgement {
        let message = format!("could not be authenticated for a day: {}", reason.message);
        examined.judgement = Judgement::Quarantined(Reason::new(ReasonCode::Dns, message));
    }
}

/// The pause before the next attempt to authenticate a mail. `attempts`: the number of attempts before the current one.
fn pause(attempts: u32) -> SignedDuration {
    SignedDuration::try_from(PAUSES.ceiling(attempts.saturating_sub(1))).unwrap_or(SignedDuration::from_secs(3600))
}

fn time_until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::{Envelope, Origin, RawMail, Uid, UidValidity};
    use crate::payments::ExaminedMail;
    use crate::trust::dns;

    /// A mail that was deferred just now, of an account that is not configured.
    async fn deferred_one() -> (tempfile::TempDir, DeferredMails) {
        let folder = tempfile::tempdir().unwrap();
        let store = db::testing::store(&folder);
        let origin = Origin { account: "gone".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(1))) };
        let mail = RawMail { origin, bytes: b"x".to_vec(), size: 1, received_at: None };
        let judgement = Judgement::Deferred(Reason::new(ReasonCode::Dns, "no answer"));
        let examined = Examined { judgement, proof: None, envelope: Envelope::default() };
        store.record(vec![ExaminedMail::new(mail, examined)], None).await.unwrap();
        let resolver = Arc::new(Resolver::new(&dns::DnsSettings::default()).unwrap());
        (folder, DeferredMails { rules: HashMap::new(), resolver, store })
    }

    #[tokio::test]
    async fn mails_of_removed_accounts_are_skipped() {
        let (folder, deferred) = deferred_one().await;
        assert!(
            deferred.authenticate_due().await.unwrap().is_some_and(|at| at > Timestamp::now()),
            "it is not due yet"
        );
        let sql = "UPDATE mails SET next_judgement_at = '2025-03-05T04:00:00.000Z'";
        rusqlite::Connection::open(folder.path().join("m.db")).unwrap().execute_batch(sql).unwrap();
        assert_eq!(deferred.authenticate_due().await.unwrap(), None);
    }

    #[tokio::test]
    async fn mails_deferred_by_a_fast_clock_are_due() {
        let (folder, deferred) = deferred_one().await;
        let sql = "UPDATE mails SET next_judgement_at = '2999-03-05T04:00:00.000Z'";
        rusqlite::Connection::open(folder.path().join("m.db")).unwrap().execute_batch(sql).unwrap();
        assert_eq!(deferred.store.reader().unwrap().deferred_mails(Timestamp::now()).unwrap(), [1]);
    }

    #[test]
    fn attempts_take_a_day() {
        let total: i64 = (1..MAX_ATTEMPTS).map(|n| pause(n).as_secs()).sum();
        assert!((23 * 3600..26 * 3600).contains(&total), "{total}");
        assert_eq!(pause(1).as_secs(), 60);
    }
}
