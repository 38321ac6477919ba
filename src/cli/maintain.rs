//! `backup` and `prune`.

use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;

use super::output::message;
use crate::config::Config;
use crate::db::StoreReader;
use crate::model::iso;
use crate::units::HumanDuration;

pub(super) fn backup(config: &Config, to: &Path) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    reader.backup(to)?;
    message(&format!("wrote {}; its integrity was checked", to.display()));
    Ok(())
}

pub(super) async fn prune(config: &Config, age: HumanDuration, quarantined: bool) -> anyhow::Result<()> {
    // If the database does not exist, this is an error. Opening the store would create it.
    drop(StoreReader::open(&config.database())?);
    let before = Timestamp::now().checked_sub(age.0).context("--older-than is too long; try 90d")?;
    let pruned = super::with_store(config, async |store| store.prune(iso(before), quarantined).await).await?;
    message(&format!(
        "deleted the bytes of {} mails, {} ignored mails and {} attempts from before {before:.0}",
        pruned.raw, pruned.mails, pruned.attempts
    ));
    Ok(())
}
