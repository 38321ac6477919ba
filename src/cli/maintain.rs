//! `backup` copies the database. `prune` deletes old attempts, old ignored mails, and the bytes of old mails.

use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;

use super::output::{self, message};
use crate::app;
use crate::config::Config;
use crate::db::{Pruned, Store, StoreReader};
use crate::model::iso;
use crate::units::{HumanDuration, count};

pub(super) fn backup(config: &Config, to: &Path) -> anyhow::Result<()> {
    let reader = StoreReader::open(&config.database())?;
    reader.backup(to)?;
    message(&format!("wrote {}; its integrity was checked", to.display()));
    Ok(())
}

pub(super) async fn prune(config: &Config, age: HumanDuration, quarantined: bool) -> anyhow::Result<()> {
    // `StoreReader::open` fails if the database does not exist. Opening the store would create the database.
    drop(StoreReader::open(&config.database())?);
    let before = Timestamp::now().checked_sub(age.0).context("--older-than is too long; try 90d")?;
    let bar = output::progress("{spinner} {msg}");
    let show = |pruned: &Pruned| {
        bar.set_message(describe(pruned));
        bar.tick();
    };
    let store = Store::open_to_prune(app::store_settings(config))?;
    let pruned = store.prune(iso(before), quarantined, show).await;
    store.close().await;
    bar.finish_and_clear();
    let pruned = pruned?;
    message(&format!("{}; from before {before:.0}", describe(&pruned)));
    if !pruned.is_file_cut {
        message(
            "the file becomes smaller when a program that still reads the old pages has ended: `fuser -v` on the database names it",
        );
    }
    Ok(())
}

fn describe(pruned: &Pruned) -> String {
    let Pruned { raw, mails, attempts, pages, .. } = pruned;
    format!(
        "deleted the bytes of {}, {} and {}, returned {} to the file system",
        count(*raw, "mail"),
        count(*mails, "ignored mail"),
        count(*attempts, "attempt"),
        count(*pages, "page"),
    )
}
