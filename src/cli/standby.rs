//! `standby release`, and the rule that only the active host writes the database.

use anyhow::Context;

use super::output;
use crate::app;
use crate::boot_clock::BootInstant;
use crate::config::Config;
use crate::db;
use crate::standby::{Handover, LeaseHolder, LeaseState, LeaseView, StandbySettings, find_holder, request_release};

/// With `[standby]`, permits a command that writes the database only on the active host. The last report of this host's daemon
/// must show that the host is active and that the host's lease has not ended. If no daemon runs, the error names the holder that
/// the NATS server reports.
pub(super) async fn ensure_active(config: &Config) -> anyhow::Result<()> {
    let Some(standby) = &config.standby else { return Ok(()) };
    let (host, report) = app::standby_report(config, standby)?;
    match report.map(|report| report.view()) {
        Some(lease) if lease.state == LeaseState::Active && lease.is_held(BootInstant::now()) => Ok(()),
        Some(lease) => anyhow::bail!("this host ({host}) is not active: {}; nothing was changed", place_of(&lease)),
        None => {
            let holder = match ask(config, standby).await {
                Ok(LeaseHolder::Host(holder)) => run_there(&holder),
                Ok(LeaseHolder::None) => "no host is active; start the daemon first".into(),
                Ok(LeaseHolder::Unknown) => "the lease has a content that this version does not know".into(),
                Err(error) => format!("which host is active is not known: {error:#}"),
            };
            anyhow::bail!("the daemon of this host ({host}) is not running: {holder}; nothing was changed")
        }
    }
}

/// With `[standby]`, refuses a command that reads a copy with an older schema. Opening a copy with an older schema would migrate
/// the copy, and only the active host may migrate its database.
pub(super) fn ensure_migrated(config: &Config) -> anyhow::Result<()> {
    if config.standby.is_none() {
        return Ok(());
    }
    match db::inspect_copy(&config.database())? {
        Some(copy) if copy.schema < db::NEWEST_SCHEMA => anyhow::bail!(
            "database {}: made by an older version (schema {}, this program has {}); the active host migrates its database, and \
             this copy was not changed",
            config.database().display(),
            copy.schema,
            db::NEWEST_SCHEMA
        ),
        _ => Ok(()),
    }
}

/// Explains which host is active, according to the last report of this host's daemon. This host is not active.
fn place_of(lease: &LeaseView) -> String {
    match (&lease.holder, &lease.problem) {
        _ if lease.state == LeaseState::TakingOver => "it is taking over; try again when it is active".into(),
        (Some(holder), None) => run_there(&holder.host),
        (Some(holder), Some(problem)) => {
            format!("host {} was, and the lease cannot be read now: {problem}", holder.host)
        }
        (None, Some(problem)) => format!("which host is active is not known: {problem}"),
        (None, None) => "no host is active now".into(),
    }
}

fn run_there(holder: &str) -> String {
    format!("host {holder} has the lease; run the command there")
}

async fn ask(config: &Config, standby: &StandbySettings) -> anyhow::Result<LeaseHolder> {
    let place = app::lease_place(config, standby).await?;
    find_holder(place).await.map_err(anyhow::Error::msg)
}

/// Asks the daemon of this host to release the lease.
pub(super) async fn release(config: &Config) -> anyhow::Result<()> {
    let standby = config.standby.as_ref().with_context(|| {
        super::UsageError("the configuration has no [standby], so there is no lease to release".into())
    })?;
    let (host, _) = app::standby_report(config, standby)?;
    let place = app::lease_place(config, standby).await?;
    match request_release(place, &host).await.map_err(anyhow::Error::msg)? {
        Handover::TakenBy(next) => output::line(&format!("host {next} has the lease now")),
        Handover::Released => {
            output::line("the lease is released")?;
            output::message("no other host has taken over yet; this host takes the lease again after a minute");
            Ok(())
        }
    }
}
