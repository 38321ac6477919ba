//! `deliveries`: lists the outbox, and makes deliveries due again.

use super::output::{self, cell, message};
use crate::config::Config;
use crate::db::{RetrySelection, StoreReader};
use crate::model::DeliveryState;

pub(super) fn list(
    config: &Config,
    state: Option<DeliveryState>,
    asked: Option<u32>,
    json: bool,
) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    let limit = output::limit(asked, json);
    if json {
        return reader.deliveries::<anyhow::Error>(state, limit, |delivery| output::json(&delivery)).map(drop);
    }
    let columns = &["id", "created", "target", "state", "attempts", "next", "last response", "event"];
    let mut table = output::LongTable::new(columns);
    let left_out = reader.deliveries::<anyhow::Error>(state, limit, |d| {
        let status = d.last_status.map(|s| s.to_string());
        let answer = cell(d.last_error.as_deref().or(status.as_deref()));
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
    output::report_left_out(asked, left_out);
    Ok(())
}

pub(super) async fn retry(config: &Config, ids: Vec<i64>, dead: bool) -> anyhow::Result<()> {
    // If the database does not exist, this is an error. Opening the store would create it.
    drop(StoreReader::open(&config.database())?);
    let which = if dead { RetrySelection::Dead } else { RetrySelection::Ids(ids) };
    let changed = super::with_store(config, async |store| store.retry(which).await).await?;
    message(&format!("{changed} deliveries are due now; the daemon sends them"));
    Ok(())
}
