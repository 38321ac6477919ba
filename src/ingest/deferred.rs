//! Mails that could not be judged yet (DNS did not answer, or a clock is wrong): judged again, ever more seldom, for a day.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::db::{self, Store};
use crate::examine::Rules;
use crate::model::{Examined, Judgement, Reason, ReasonCode};
use crate::payments::{Reevaluation, StoredMail};
use crate::trust::dns::Resolver;

/// How long after the first judgement the second follows; each pause is twice the one before, up to an hour.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// How many judgements a mail gets: with these pauses, a day of them.
const JUDGEMENTS: u32 = 30;
/// How often it is looked for mails that another process deferred.
const LOOK: Duration = Duration::from_secs(600);

/// Judges deferred mails again when their time comes, until `shutdown`.
pub struct Deferred {
    /// The accounts' rules, by their names.
    pub rules: HashMap<String, Arc<Rules>>,
    /// Who is asked.
    pub resolver: Arc<Resolver>,
    /// Where the mails are.
    pub store: Store,
}

impl Deferred {
    /// The loop.
    ///
    /// # Errors
    /// What the store says, if it cannot be mended by waiting.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> db::Result<()> {
        let mut deferrals = self.store.watch_deferrals();
        while !*shutdown.borrow() {
            let next = super::patiently(None, || self.look()).await?.map_or(LOOK, until);
            tokio::select! {
                () = tokio::time::sleep(next.min(LOOK)) => {}
                // The store is gone only with the program.
                _ = deferrals.changed() => {}
                _ = shutdown.changed() => {}
            }
        }
        Ok(())
    }

    /// Judges what is due; when the next is.
    async fn look(&self) -> db::Result<Option<Timestamp>> {
        let (reader, now) = (self.store.reader()?, Timestamp::now());
        for id in reader.deferred_mails(now)? {
            if let Some(stored) = reader.stored_mail(id)? {
                self.judge(stored).await?;
            }
        }
        // What was due and is so still, nobody can judge: its account is not configured any more.
        reader.next_deferred(now)
    }

    async fn judge(&self, stored: StoredMail) -> db::Result<()> {
        let Some(rules) = self.rules.get(&stored.mail.origin.account) else { return Ok(()) };
        let mut examined = super::examine_one(rules, &self.resolver, &stored.mail).await;
        let next = pause(stored.judgements);
        if stored.judgements + 1 >= JUDGEMENTS {
            give_up(&mut examined);
        }
        let at = Timestamp::now() + next;
        let change = super::patiently(None, || self.store.reevaluate(stored.id, examined.clone(), Some(at))).await?;
        if let Reevaluation::Outcome { outcome, reason, event_id } = change {
            let reason = reason.map(|r| r.to_string());
            tracing::info!(mail_id = stored.id, event_id, reason, "deferred mail: {outcome}");
        }
        Ok(())
    }
}

/// A day without a verdict: a person has to look.
fn give_up(examined: &mut Examined) {
    if let Judgement::Deferred(reason) = &examined.judgement {
        let words = format!("could not be decided for a day: {}", reason.message);
        examined.judgement = Judgement::Quarantined(Reason::new(ReasonCode::Dns, words));
    }
}

/// The pause after so many judgements.
fn pause(judgements: u32) -> SignedDuration {
    let pause = FIRST.saturating_mul(2_u32.saturating_pow(judgements.saturating_sub(1))).min(LONGEST);
    SignedDuration::try_from(pause).unwrap_or(SignedDuration::from_secs(3600))
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::Matching;
    use crate::model::{Envelope, Origin, RawMail, Uid, UidValidity};
    use crate::payments::ExaminedMail;
    use crate::trust::dns;

    /// A mail that was deferred just now, of an account that is not configured any more.
    async fn deferred_one() -> (tempfile::TempDir, Deferred) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        let matching = Matching { enabled: false, window: FIRST };
        let settings = db::StoreSettings { path: path.clone(), targets: Vec::new(), matching, chains: Vec::new() };
        let store = Store::open(settings).unwrap();
        let origin = Origin { account: "gone".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(1))) };
        let mail = RawMail { origin, bytes: b"x".to_vec(), size: 1, received_at: None };
        let judgement = Judgement::Deferred(Reason::new(ReasonCode::Dns, "no answer"));
        let examined = Examined { judgement, proof: None, envelope: Envelope::default() };
        store.record(vec![ExaminedMail::new(mail, examined)], None).await.unwrap();
        let resolver = Arc::new(Resolver::new(&dns::Settings::default()).unwrap());
        (folder, Deferred { rules: HashMap::new(), resolver, store })
    }

    #[tokio::test]
    async fn a_mail_that_nobody_can_judge_any_more_is_not_looked_for_without_end() {
        let (folder, deferred) = deferred_one().await;
        assert!(deferred.look().await.unwrap().is_some_and(|at| at > Timestamp::now()), "it is not due yet");
        let sql = "UPDATE mails SET next_judgement_at = '2025-03-05T04:00:00.000Z'";
        rusqlite::Connection::open(folder.path().join("m.db")).unwrap().execute_batch(sql).unwrap();
        assert_eq!(deferred.look().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_mail_that_was_put_off_by_a_clock_that_was_ahead_is_judged() {
        let (folder, deferred) = deferred_one().await;
        let sql = "UPDATE mails SET next_judgement_at = '2999-03-05T04:00:00.000Z'";
        rusqlite::Connection::open(folder.path().join("m.db")).unwrap().execute_batch(sql).unwrap();
        assert_eq!(deferred.store.reader().unwrap().deferred_mails(Timestamp::now()).unwrap(), [1]);
    }

    #[test]
    fn the_judgements_span_a_day() {
        let all: i64 = (1..JUDGEMENTS).map(|n| pause(n).as_secs()).sum();
        assert!((23 * 3600..26 * 3600).contains(&all), "{all}");
        assert_eq!(pause(1).as_secs(), 60);
    }
}
