//! `deliveries`: lists the deliveries, makes deliveries due again, and compares streams with the deliveries in the database.

use std::process::ExitCode;

use jiff::Timestamp;

use super::UsageError;
use super::output::{self, cell, message};
use crate::app;
use crate::config::Config;
use crate::db::{RetrySelection, StoreReader};
use crate::forward::{self, FindingKind, StreamFinding};
use crate::model::DeliveryState;
use crate::units::count;

pub(super) fn list(
    config: &Config,
    state: Option<DeliveryState>,
    requested: Option<u32>,
    json: bool,
) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let limit = output::limit(requested, json);
    if json {
        return reader.deliveries::<anyhow::Error>(state, limit, |delivery| output::json(&delivery)).map(drop);
    }
    let columns = &["id", "created", "target", "state", "attempts", "next", "last response", "event"];
    let mut table = output::LongTable::new(columns);
    let left_out = reader.deliveries::<anyhow::Error>(state, limit, |d| {
        let status = d.last_status.map(|s| s.to_string());
        let answer = cell(d.last_error.as_deref().or(status.as_deref()).or(d.receipt.as_deref()));
        let next = cell(d.next_attempt_at.as_deref());
        table.add_row([
            d.id.to_string(),
            d.created_at,
            d.target,
            d.state.to_string(),
            d.attempts.to_string(),
            next,
            answer,
            d.event_id,
        ])
    })?;
    table.finish()?;
    output::report_left_out(requested, left_out);
    Ok(())
}

pub(super) async fn retry(config: &Config, ids: Vec<i64>, dead: bool) -> anyhow::Result<()> {
    // `StoreReader::open` fails if the database does not exist. Opening the store would create the database.
    drop(StoreReader::open(&config.database())?);
    let selection = if dead { RetrySelection::Dead } else { RetrySelection::Ids(ids) };
    let changed = super::with_store(config, async |store| store.retry(selection).await).await?;
    message(&format!("{} due now; the daemon sends what is due", count(changed, "delivery")));
    Ok(())
}

/// Compares the stream of one target, or of each target, with the deliveries that the stream has acknowledged.
pub(super) async fn verify(
    config: &Config,
    target: Option<&str>,
    since: Option<Timestamp>,
    refill: bool,
) -> anyhow::Result<ExitCode> {
    let is_chosen = |name: &str| target.is_none_or(|target| target == name);
    let chosen: Vec<_> = config.forwards.iter().enumerate().filter(|(_, f)| is_chosen(&f.name)).collect();
    if chosen.is_empty() && target.is_some() {
        return Err(
            UsageError(format!("the configuration has no [[forward]] named {:?}", target.unwrap_or_default())).into()
        );
    }
    let streams: Vec<_> = chosen.into_iter().filter(|(_, f)| f.nats.is_some()).collect();
    if streams.is_empty() {
        return Err(UsageError("only a [[forward]] with the key nats can be compared, and there is none".into()).into());
    }
    // `StoreReader::open` fails if the database does not exist. Opening the store would create the database.
    drop(StoreReader::open(&config.database())?);
    let mut is_complete = true;
    for (n, settings) in streams {
        let target = app::forward_target(config, n, settings).await?;
        let report = |finding| output::ignore_closed_pipe(print_finding(&finding)).map_err(|error| error.to_string());
        let compared =
            super::with_store(config, async |store| Ok(forward::verify(&target, store, since, refill, report).await));
        let Some(compared) = compared.await? else { continue };
        let found = compared.map_err(|error| anyhow::anyhow!("target {}: {error}", target.name()))?;
        is_complete &= found.is_complete();
        for problem in &found.problems {
            message(&format!("target {}: {problem}", target.name()));
        }
        let refilled = if refill { format!(", {} published again", found.refilled) } else { String::new() };
        let counted = |n: u64, what: &str| if n > 0 { format!(", {n} {what}") } else { String::new() };
        let without_session = counted(found.without_session, "published before their session was found");
        let expired = counted(found.expired, "expired");
        message(&format!(
            "target {}: {} compared, {} missing, {} different{refilled}{without_session}{expired}",
            target.name(),
            found.checked,
            found.missing,
            found.different
        ));
    }
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

fn print_finding(finding: &StreamFinding) -> anyhow::Result<()> {
    let StreamFinding { event_id, receipt, kind } = finding;
    output::line(&match kind {
        FindingKind::Missing => format!("missing {event_id}: it was {receipt}"),
        FindingKind::Different(sequence) => {
            format!("different {event_id}: it was {receipt}, and message {sequence} has another body")
        }
        FindingKind::Refilled(now) => format!("refilled {event_id}: it was {receipt}, and is {now}"),
    })
}
