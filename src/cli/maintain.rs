//! `backup` and `prune`.

use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;

use super::output::say;
use crate::config::Config;
use crate::db::StoreReader;
use crate::model::iso;
use crate::units::HumanDuration;

pub(super) fn backup(config: &Config, to: &Path) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    reader.backup(to)?;
    say(&format!("wrote {}; its integrity was checked", to.display()));
    Ok(())
}

pub(super) async fn prune(config: &Config, age: HumanDuration, quarantined: bool) -> anyhow::Result<()> {
    // Nothing is made where nothing is.
    drop(StoreReader::open(&config.database())?);
    let before = Timestamp::now().checked_sub(age.0).context("so long ago there was no mail")?;
    let pruned = super::writing(config, async |store| store.prune(iso(before), quarantined).await).await?;
    say(&format!(
        "dropped the bytes of {} mails, {} ignored mails and {} attempts from before {before:.0}",
        pruned.raw, pruned.mails, pruned.attempts
    ));
    Ok(())
}
