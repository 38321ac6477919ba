//! `reparse`: stored mails through today's rules again. The verdict on whether to believe them stays the one that was
//! found when they came: keys rotate.

use std::collections::HashMap;

use serde::Serialize;

use super::output;
use crate::app;
use crate::config::Config;
use crate::db::{Store, StoreReader};
use crate::examine::Rules;
use crate::model::{Authenticity, Examined, Outcome, Reason, ReasonCode};
use crate::payments::{Reevaluation, StoredMail};

/// What `--json` prints of a mail that changed. The keys are an interface.
#[derive(Serialize)]
struct Line {
    mail_id: i64,
    before: Outcome,
    outcome: Option<Outcome>,
    reason: Option<String>,
    event_id: Option<String>,
    change: &'static str,
}

pub(super) async fn run(config: &Config, outcome: Option<Outcome>, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let store = Store::open(app::store_settings(config))?;
    let mut rules = HashMap::new();
    for account in &config.accounts {
        rules.insert(account.name.as_str(), app::rules(config, account).await?);
    }
    let mut changed = 0_u64;
    for id in reader.mails_with_raw(outcome)? {
        let Some(stored) = reader.stored_mail(id)? else { continue };
        let Some(rules) = rules.get(stored.mail.origin.account.as_str()) else {
            output::say(&format!(
                "mail {id}: its account {:?} is not in the configuration",
                stored.mail.origin.account
            ));
            continue;
        };
        // What waits for DNS is the daemon's to judge.
        if stored.outcome == Outcome::Deferred {
            continue;
        }
        let change = store.reevaluate(id, read_again(rules, &stored), None).await?;
        if change != Reevaluation::Same {
            changed += 1;
            output::unheard(print(&stored, &change, json))?;
        }
    }
    drop(reader);
    store.close().await;
    output::say(&format!("{changed} mails changed"));
    Ok(())
}

/// Reads a mail as if it came now, with the verdict of then.
fn read_again(rules: &Rules, stored: &StoredMail) -> Examined {
    let verdict = match &stored.proof {
        Some(proof) => Authenticity::Trusted(proof.clone()),
        None => Authenticity::Rejected(refusal(stored)),
    };
    rules.examine_with(&stored.mail, verdict).0
}

/// Why it was not believed; a mail that was ignored then, and looks like a payment now, has no better reason than this.
fn refusal(stored: &StoredMail) -> Reason {
    let (code, words) = stored.reason.as_deref().and_then(|r| r.split_once(": ")).unwrap_or_default();
    match code.parse() {
        Ok(code @ (ReasonCode::Untrusted | ReasonCode::NotOurs | ReasonCode::Dns)) => Reason::new(code, words),
        _ => Reason::new(ReasonCode::Untrusted, "no proof was found when it came"),
    }
}

/// A change, for a person.
pub(super) fn in_words(change: &Reevaluation) -> String {
    match change {
        Reevaluation::Same => "nothing changed".into(),
        Reevaluation::Outcome { outcome, reason, event_id } => {
            let reason = reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
            let event = event_id.as_ref().map(|id| format!(", event {id}")).unwrap_or_default();
            format!("now {outcome}{reason}{event}")
        }
        Reevaluation::Event(id) => format!("event {id} says something else now"),
        Reevaluation::Kept(id) => format!("event {id} would be read differently, and stays as it is"),
    }
}

fn print(stored: &StoredMail, change: &Reevaluation, json: bool) -> anyhow::Result<()> {
    if !json {
        return output::line(&format!("mail {}: was {}, {}", stored.id, stored.outcome, in_words(change)));
    }
    let mut line = Line {
        mail_id: stored.id,
        before: stored.outcome,
        outcome: None,
        reason: None,
        event_id: None,
        change: "outcome",
    };
    match change {
        Reevaluation::Same => return Ok(()),
        Reevaluation::Outcome { outcome, reason, event_id } => {
            line.outcome = Some(*outcome);
            line.reason = reason.as_ref().map(ToString::to_string);
            line.event_id.clone_from(event_id);
        }
        Reevaluation::Event(id) => (line.event_id, line.change) = (Some(id.clone()), "event"),
        Reevaluation::Kept(id) => (line.event_id, line.change) = (Some(id.clone()), "kept"),
    }
    output::json(&line)
}
