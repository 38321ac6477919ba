//! `mails`: lists the stored mails, prints a mail, or releases a mail from quarantine.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::output::{self, cell};
use crate::app;
use crate::config::Config;
use crate::db::StoreReader;
use crate::model::{Outcome, ReasonCode, SignedHeaders, Trust, TrustProof};
use crate::payments::Reevaluation;

pub(super) fn list(
    config: &Config,
    outcome: Option<Outcome>,
    requested: Option<u32>,
    json: bool,
) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let (outcome, limit) = (outcome.map(Outcome::as_str), output::limit(requested, json));
    if json {
        return reader.mails::<anyhow::Error>(outcome, limit, |mail| output::json(&mail)).map(drop);
    }
    let mut table = output::LongTable::new(&["id", "judged", "outcome", "from", "subject", "reason"]);
    let left_out = reader.mails::<anyhow::Error>(outcome, limit, |m| {
        let [from, subject, reason] = [&m.sender, &m.subject, &m.reason].map(|v| cell(v.as_deref()));
        table.add_row([m.id.to_string(), m.judged_at, m.outcome, from, subject, reason])
    })?;
    table.finish()?;
    output::report_left_out(requested, left_out);
    Ok(())
}

/// Prints the bytes of a mail, for `| less`, `| resmic-mailhook parse -`, or another program.
pub(super) fn raw(config: &Config, id: i64) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let bytes = reader.raw_mail(id)?.with_context(|| format!("there is no mail {id}"))?;
    ensure_delivered(&reader, id)?;
    let bytes = bytes.with_context(|| format!("the bytes of mail {id} were pruned"))?;
    Ok(std::io::stdout().lock().write_all(&bytes)?)
}

fn ensure_delivered(reader: &StoreReader, id: i64) -> anyhow::Result<()> {
    anyhow::ensure!(
        !reader.is_undelivered(id)?,
        "the mail server has not delivered mail {id}; the daemon fetches it again for as long as the server lists it \
         (`mails` shows its UID)"
    );
    Ok(())
}

/// Releases a quarantined mail: the operator's decision replaces the proof. The mail is parsed like any other, because the
/// operator confirms only that Resmic sent the mail.
pub(super) async fn release(config: &Config, id: i64) -> anyhow::Result<ExitCode> {
    let path = config.database();
    let reader = StoreReader::open(&path)?;
    ensure_delivered(&reader, id)?;
    let stored = reader.stored_mail(id)?.with_context(|| format!("there is no mail {id}, or its bytes were pruned"))?;
    drop(reader);
    anyhow::ensure!(
        stored.outcome == Outcome::Quarantined,
        "mail {id} is not quarantined but {}; only a quarantined mail can be released",
        stored.outcome
    );
    let account = super::account(config, Some(&stored.mail.origin.account))?;
    let rules = app::rules(config, account).await?;
    // The order comes only from a signed To header, so `to` has the addresses in the stored proof of the mail.
    let to = stored.proof.map(|proof| proof.to).unwrap_or_default();
    let proof =
        TrustProof { trust: Trust::Operator, domain: None, selector: None, signed_headers: SignedHeaders::All, to };
    let (examined, _) = rules.examine_trusted(&stored.mail, proof);
    let change = super::with_store(config, async |store| store.reevaluate(id, examined, None).await).await?;
    let left = match &change {
        Reevaluation::Same => stored.reason,
        Reevaluation::Outcome { outcome: Outcome::Quarantined, reason, .. } => reason.as_ref().map(ToString::to_string),
        _ => None,
    };
    let description = left.map_or_else(|| super::reparse::describe(&change), |reason| still_quarantined(id, &reason));
    output::ignore_closed_pipe(output::line(&format!("mail {id}: {description}")))?;
    let released = matches!(change, Reevaluation::Outcome { outcome: Outcome::Event | Outcome::Duplicate, .. });
    Ok(if released { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

/// Says why a mail is quarantined after its release, and what to do.
fn still_quarantined(id: i64, reason: &str) -> String {
    let by_hand = "look for the payment in Resmic's dashboard, and complete or correct its order yourself; `prune \
                   --older-than AGE --quarantined` then removes the mail's bytes, and the mail from `status`";
    let advice = match reason.split(':').next().and_then(|code| code.parse().ok()) {
        Some(ReasonCode::Unreadable) => format!(
            "`mails raw {id} | resmic-mailhook parse --explain -` shows what it lacks; add new labels to [extract.labels], or \
             install a newer version, then run `reparse --outcome quarantined`; or {by_hand}"
        ),
        Some(ReasonCode::Conflict) => format!("compare `mails raw {id}` with the stored events; {by_hand}"),
        _ => by_hand.to_owned(),
    };
    format!("stays quarantined ({reason}), because a release confirms only its sender: {advice}")
}
