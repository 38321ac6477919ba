//! `reparse`: examines stored mails again with the current rules. The command uses the stored result of their authentication,
//! because a sender may have replaced its DKIM key.

use std::collections::HashMap;

use serde::Serialize;

use super::output;
use super::standby::ActiveHost;
use crate::app;
use crate::config::Config;
use crate::db::{Store, StoreReader};
use crate::examine::Rules;
use crate::model::{Authenticity, Examined, Outcome, Reason, ReasonCode};
use crate::payments::{Reevaluation, StoredMail};

/// The output of `--json` for a mail that changed. The keys are an interface.
#[derive(Serialize)]
struct ReparsedLine {
    mail_id: i64,
    before: Outcome,
    outcome: Option<Outcome>,
    reason: Option<String>,
    event_id: Option<String>,
    change: &'static str,
}

pub(super) async fn run(
    config: &Config,
    active: &ActiveHost<'_>,
    outcome: Option<Outcome>,
    json: bool,
) -> anyhow::Result<()> {
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
            output::message(&format!(
                "mail {id} was skipped: its account {:?} is not in the configuration",
                stored.mail.origin.account
            ));
            continue;
        };
        // The daemon authenticates deferred mails again, so this command skips them.
        if stored.outcome == Outcome::Deferred {
            continue;
        }
        let change = store.reevaluate(id, examine_again(rules, &stored), None).await?;
        if change != Reevaluation::Same {
            changed += 1;
            output::ignore_closed_pipe(print(&stored, &change, json))?;
            active.ensure_still_active()?;
        }
    }
    drop(reader);
    store.close().await;
    output::message(&format!("mails changed: {changed}"));
    Ok(())
}

/// Examines a mail with the current rules and the stored result of its authentication.
fn examine_again(rules: &Rules, stored: &StoredMail) -> Examined {
    let authenticity = match &stored.proof {
        Some(proof) => Authenticity::Trusted(proof.clone()),
        None => Authenticity::Rejected(rejection(stored)),
    };
    rules.examine_with(&stored.mail, authenticity).0
}

/// Returns the reason why a mail was rejected. If the stored reason is not the reason of a rejection, returns a general reason.
fn rejection(stored: &StoredMail) -> Reason {
    let (code, explanation) = stored.reason.as_deref().and_then(|r| r.split_once(": ")).unwrap_or_default();
    match code.parse() {
        Ok(code @ (ReasonCode::Untrusted | ReasonCode::NotOurs | ReasonCode::Dns)) => Reason::new(code, explanation),
        _ => Reason::new(ReasonCode::Untrusted, "it had no proof when it was received"),
    }
}

/// Describes the changed outcome of a mail, as text for a person.
pub(super) fn describe(change: &Reevaluation) -> String {
    match change {
        Reevaluation::Same => "nothing changed".into(),
        Reevaluation::Outcome { outcome, reason, event_id } => {
            let reason = reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
            let event = event_id.as_ref().map(|id| format!(", event {id}")).unwrap_or_default();
            format!("now {outcome}{reason}{event}")
        }
        Reevaluation::Event(id) => format!("event {id} was changed"),
        Reevaluation::Kept(id) => format!("event {id} would change, and stays as it is"),
    }
}

fn print(stored: &StoredMail, change: &Reevaluation, json: bool) -> anyhow::Result<()> {
    if !json {
        return output::line(&format!("mail {}: was {}, {}", stored.id, stored.outcome, describe(change)));
    }
    let mut line = ReparsedLine {
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
