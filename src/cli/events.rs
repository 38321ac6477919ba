//! `events` lists the events. `show` shows an event with its mails and deliveries.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::args;
use super::output::{self, cell};
use crate::config::Config;
use crate::db::{ConfirmationRow, DeliveryRow, EventQuery, EventRow, MailRow, StoreReader};
use crate::model::iso;

/// The pause between two checks of `--follow` for a commit. A check reads only `PRAGMA data_version`, and no table.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) async fn list(config: &Config, filter: &args::EventFilter, follow: bool, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let mut query = EventQuery {
        session: filter.session.clone(),
        transaction: filter.tx.clone(),
        status: filter.status.map(|s| s.to_string()),
        since: filter.since.map(iso),
        after: None,
        limit: output::limit(filter.limit, json),
    };
    anyhow::ensure!(!follow || !reader.is_frozen(), "the daemon is not running, so there are no events to follow");
    if !follow && !json {
        output::report_left_out(filter.limit, table(&reader, &query)?);
        return Ok(());
    }
    loop {
        let version = reader.data_version()?;
        reader.events::<anyhow::Error>(&query.clone(), |event| {
            query.after = Some(event.row);
            if json { output::json(&event) } else { output::line(&one_line(&event)) }
        })?;
        if !follow {
            return Ok(());
        }
        // `--limit` applies only to the events that were stored at the start.
        query.limit = None;
        while reader.data_version()? == version {
            if output::is_closed() {
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn table(reader: &StoreReader, query: &EventQuery) -> anyhow::Result<bool> {
    let columns = &["stored", "status", "amount", "chain", "token", "session", "order", "event"];
    let mut table = output::LongTable::new(columns);
    let left_out = reader.events::<anyhow::Error>(query, |e| {
        table.add_row([
            e.created_at.clone(),
            e.status.clone(),
            amount(&e),
            cell(e.blockchain.as_deref()),
            cell(e.token.as_deref()),
            cell(e.session_id.as_deref()),
            cell(e.order_ref.as_deref()),
            e.event_id.clone(),
        ])
    })?;
    table.finish()?;
    Ok(left_out)
}

fn amount(event: &EventRow) -> String {
    let parts = [event.amount.as_deref(), event.currency.as_deref()];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    cell(Some(text.as_str()).filter(|t| !t.is_empty()))
}

fn one_line(e: &EventRow) -> String {
    let [chain, token, session] = [&e.blockchain, &e.token, &e.session_id].map(|v| cell(v.as_deref()));
    format!("{} {:<9} {:>14} {chain} {token} session {session} event {}", e.created_at, e.status, amount(e), e.event_id)
}

/// The output of `show --json`. The keys are an interface.
#[derive(Serialize)]
struct ShownEvent {
    #[serde(flatten)]
    event: EventRow,
    mails: Vec<MailRow>,
    deliveries: Vec<DeliveryRow>,
}

pub(super) fn show(config: &Config, event_id: &str, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    // The id of an event is a UUID. Some programs print UUIDs in capitals.
    let event_id = event_id.to_ascii_lowercase();
    let event = reader.event(&event_id)?.with_context(|| format!("there is no event {event_id:?}"))?;
    let (mails, deliveries) = (reader.mails_of_event(&event_id)?, reader.deliveries_of_event(&event_id)?);
    if json {
        return output::json(&ShownEvent { event, mails, deliveries });
    }
    print_event(&event)?;
    for m in &mails {
        let uid = m.uid.map_or_else(String::new, |uid| format!(" uid {uid}"));
        let trust = m.trust.as_deref().map_or_else(String::new, |t| format!(", trust {t}"));
        output::line(&format!("mail {}: {} in {}/{}{uid}{trust}", m.id, m.outcome, m.account, m.mailbox))?;
    }
    for d in &deliveries {
        let last = cell(d.last_error.as_deref().or(d.delivered_at.as_deref()));
        output::line(&format!("delivery {} to {}: {}, attempts {}, {last}", d.id, d.target, d.state, d.attempts))?;
    }
    Ok(())
}

fn print_event(e: &EventRow) -> anyhow::Result<()> {
    let fields = [
        ("event_id", Some(&e.event_id)),
        ("status", Some(&e.status)),
        ("session_id", e.session_id.as_ref()),
        ("session_source", e.session_source.as_ref()),
        ("order_ref", e.order_ref.as_ref()),
        ("amount", e.amount.as_ref()),
        ("currency", e.currency.as_ref()),
        ("blockchain", e.blockchain.as_ref()),
        ("token", e.token.as_ref()),
        ("from_wallet_address", e.from_wallet_address.as_ref()),
        ("transaction_hash", e.transaction_hash.as_ref()),
        ("tx_time", e.tx_time.as_ref()),
        ("tx_time_source", e.tx_time_source.as_ref()),
        ("hold", e.hold.as_ref()),
        ("created_at", Some(&e.created_at)),
        ("source", Some(&e.source)),
        ("clearance", e.clearance.as_ref()),
        ("clearance_reason", e.clearance_reason.as_ref()),
    ];
    for (name, value) in fields {
        output::line(&format!("{name:<20} {}", cell(value.map(String::as_str))))?;
    }
    e.confirmation.as_ref().map_or(Ok(()), print_confirmation)
}

fn print_confirmation(c: &ConfirmationRow) -> anyhow::Result<()> {
    let number = |value: Option<i64>| value.map(|n| n.to_string());
    let received = c.received.as_ref().map(|received| format!("{received} {}", cell(c.received_token.as_deref())));
    let checked = c
        .amount_checked
        .map(|was_compared| if was_compared { "compared with the mail's" } else { "not compared: no dollar price" });
    let fields = [
        ("confirmation", Some(c.state.to_string())),
        ("  reason", c.reason.clone()),
        ("  paid in block", number(c.paid_block)),
        ("  arrival", c.arrival.clone()),
        ("  arrived in block", number(c.arrival_block)),
        ("  received", received),
        ("  amount", checked.map(str::to_owned)),
        ("  final", c.finality.clone()),
        ("  nodes", c.nodes.clone()),
        ("  last look", c.looked_at.clone()),
        ("  next look", c.next_look_at.clone()),
        ("  confirmed_at", c.confirmed_at.clone()),
    ];
    for (name, value) in fields.into_iter().filter(|(_, value)| value.is_some()) {
        output::line(&format!("{name:<20} {}", cell(value.as_deref())))?;
    }
    Ok(())
}
