//! `deliveries`: the outbox.

use super::output::{self, cell, say};
use crate::config::Config;
use crate::db::{RetrySelection, StoreReader};
use crate::model::DeliveryState;

pub(super) fn list(config: &Config, state: Option<DeliveryState>, json: bool) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    if json {
        return reader.deliveries::<anyhow::Error>(state, None, |delivery| output::json(&delivery));
    }
    let mut table = output::table(&["id", "made", "callback", "state", "attempts", "next", "last answer", "event"]);
    reader.deliveries::<anyhow::Error>(state, None, |d| {
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
        ]);
        Ok(())
    })?;
    output::line(&table.trim_fmt())
}

pub(super) async fn retry(config: &Config, ids: Vec<i64>, dead: bool) -> anyhow::Result<()> {
    // Nothing is made where nothing is.
    drop(StoreReader::open(&config.database())?);
    let which = if dead { RetrySelection::Dead } else { RetrySelection::Ids(ids) };
    let changed = super::writing(config, async |store| store.retry(which).await).await?;
    say(&format!("{changed} deliveries are due now; the daemon makes them"));
    Ok(())
}
