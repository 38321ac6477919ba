//! `standby release`, and the rule that only the active host writes the database.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;

use super::output;
use crate::app;
use crate::boot_clock::BootInstant;
use crate::config::Config;
use crate::db::{self, StoreReader};
use crate::model::printable;
use crate::standby::{
    Handover, LeaseHolder, LeaseStage, LeaseState, LeaseView, StandbySettings, find_holder, request_release,
};

/// How long `backup` waits for a NATS server that names the active host, if no daemon runs on this host. A backup must also work
/// without the NATS servers.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The host on which a command runs. A command that writes the database needs the active host.
pub(super) struct ActiveHost<'a> {
    config: &'a Config,
    /// The daemon and its database when the command began; `None` without `[standby]`, and if the command does not write.
    began: Option<Began>,
}

/// The daemon and its database when a command began.
#[derive(PartialEq, Eq)]
struct Began {
    process: Option<String>,
    /// The device and the inode of the database file. A restore command replaces the file.
    database: Option<(u64, u64)>,
}

impl Began {
    fn new(config: &Config, lease: &LeaseView) -> Self {
        let file = std::fs::metadata(config.database()).ok();
        Began {
            process: lease.holder.as_ref().map(|holder| holder.process.clone()),
            database: file.map(|file| (file.dev(), file.ino())),
        }
    }
}

impl<'a> ActiveHost<'a> {
    /// For a command that does not write the database: nothing is checked.
    pub(super) fn unchecked(config: &'a Config) -> Self {
        ActiveHost { config, began: None }
    }

    /// With `[standby]`, permits a command that writes the database only on the active host. The last report of this host's
    /// daemon must show that the host is active, that the host's lease has not ended, and that the host can renew the lease. If
    /// no daemon runs, the error names the holder that the NATS server reports.
    pub(super) async fn find(config: &'a Config) -> anyhow::Result<Self> {
        let Some(standby) = &config.standby else { return Ok(Self::unchecked(config)) };
        let (host, report) = app::standby_report(config, standby)?;
        match report.map(|report| report.view()) {
            Some(lease) if is_active(&lease) => match &lease.problem {
                // A host that is cut off from the NATS servers often cannot copy its database either. If another host takes
                // over, the database of that host lacks the change.
                Some(problem) => anyhow::bail!("this host ({host}) {}; nothing was changed", cannot_renew(problem)),
                None => Ok(ActiveHost { config, began: Some(Began::new(config, &lease)) }),
            },
            Some(lease) => anyhow::bail!("this host ({host}) is not active: {}; nothing was changed", place_of(&lease)),
            None => {
                let holder = match ask(config, standby).await {
                    Ok(LeaseHolder::Host(holder, _)) => run_there(&holder),
                    Ok(LeaseHolder::None) => "no host is active; start the daemon first".into(),
                    Ok(LeaseHolder::Unknown) => "the lease has a content that this version does not know".into(),
                    Err(error) => format!("which host is active is not known: {error:#}"),
                };
                anyhow::bail!("the daemon of this host ({host}) is not running: {holder}; nothing was changed")
            }
        }
    }

    /// Checks, after a commit, that this host has been active since the command began. Otherwise the database of the next active
    /// host may lack the change: the command may have waited for a lock while the lease moved to another host.
    pub(super) fn ensure_still_active(&self) -> anyhow::Result<()> {
        let (Some(standby), Some(began)) = (&self.config.standby, &self.began) else { return Ok(()) };
        let (host, report) = app::standby_report(self.config, standby)?;
        let problem = match report.map(|report| report.view()) {
            Some(lease) if is_active(&lease) && *began == Began::new(self.config, &lease) => match &lease.problem {
                None => return Ok(()),
                Some(problem) => cannot_renew(problem),
            },
            Some(lease) if is_active(&lease) => {
                "lost the lease meanwhile, and has it again; run the command again".into()
            }
            Some(lease) => format!("lost the lease meanwhile: {}", place_of(&lease)),
            None => "was active, and its daemon has ended meanwhile; run the command again on the active host".into(),
        };
        anyhow::bail!("this host ({host}) {problem}; the next active host may lack what this command has changed")
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

/// With `[standby]`, warns on standard error if a command reads the database of a host that is not active, or whose daemon does not
/// run. A `backup` of this database is refused while another host is active, because it would look like a new one. A restore
/// command of the next host may still run `backup` here: during a takeover, no host is active.
///
/// # Errors
/// The command is `backup`, and another host is active.
pub(super) async fn check_reading(config: &Config, is_backup: bool) -> anyhow::Result<()> {
    let Some(standby) = &config.standby else { return Ok(()) };
    // A user who may only read the database cannot always read the report of the daemon.
    let Ok((host, report)) = app::standby_report(config, standby) else { return Ok(()) };
    let (problem, holder) = match report.map(|report| report.view()) {
        Some(lease) if is_active(&lease) => return Ok(()),
        Some(lease) => (format!("this host ({host}) is not active"), holder_in(&lease)),
        None => {
            let holder = if is_backup { ask_briefly(config, standby).await } else { None };
            (format!("the daemon of this host ({host}) is not running"), holder)
        }
    };
    let last = StoreReader::open(&config.database()).and_then(|reader| reader.last_mail()).ok().flatten();
    let last = last.map_or_else(String::new, |at| format!(" (its last mail is of {})", printable(&at, 64)));
    let place = match &holder {
        Some(LeaseHolder::Host(holder, _)) => format!("; host {} has the lease", printable(holder, 64)),
        Some(LeaseHolder::None) => "; no host is active now".into(),
        Some(LeaseHolder::Unknown) | None => String::new(),
    };
    let text = format!("{problem}, so its database{last} may be old{place}");
    if is_backup && matches!(&holder, Some(LeaseHolder::Host(holder, LeaseStage::Active)) if *holder != host) {
        anyhow::bail!("{text}; run the command there; nothing was written");
    }
    output::message(&format!("note: {text}"));
    Ok(())
}

/// The holder in the last report of this host's daemon.
fn holder_in(lease: &LeaseView) -> Option<LeaseHolder> {
    let Some(holder) = &lease.holder else {
        return Some(if lease.problem.is_some() { LeaseHolder::Unknown } else { LeaseHolder::None });
    };
    let has_ended = lease.ends.is_none_or(|ends| ends <= BootInstant::now());
    // A host whose lease has ended is no longer active.
    let stage = if has_ended { LeaseStage::Released } else { holder.stage };
    Some(LeaseHolder::Host(holder.host.clone(), stage))
}

/// Reads the lease at a NATS server; `None` if no server answers soon.
async fn ask_briefly(config: &Config, standby: &StandbySettings) -> Option<LeaseHolder> {
    timeout(ASK_TIMEOUT, ask(config, standby)).await.ok()?.ok()
}

/// Whether this host is active and its lease has not ended, according to a report of this host's daemon.
fn is_active(lease: &LeaseView) -> bool {
    lease.state == LeaseState::Active && lease.is_held(BootInstant::now())
}

fn cannot_renew(problem: &str) -> String {
    format!(
        "cannot renew the lease, and another host may take over: {problem}; run the command again on the active host"
    )
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
        (None, None) => "no host is active now; run the command again when a host is active".into(),
    }
}

fn run_there(holder: &str) -> String {
    format!("host {holder} has the lease; run the command there")
}

async fn ask(config: &Config, standby: &StandbySettings) -> anyhow::Result<LeaseHolder> {
    let place = app::lease_place(config, standby).await?;
    find_holder(place).await.map_err(anyhow::Error::msg)
}

/// Asks the daemon of this host to release the lease, and waits until another host is active.
pub(super) async fn release(config: &Config) -> anyhow::Result<()> {
    let standby = config.standby.as_ref().with_context(|| {
        super::UsageError("the configuration has no [standby], so there is no lease to release".into())
    })?;
    let (host, _) = app::standby_report(config, standby)?;
    let place = app::lease_place(config, standby).await?;
    match request_release(place, &host).await.map_err(anyhow::Error::msg)? {
        Handover::TakenBy(next) => output::line(&format!("host {next} has the lease now")),
        Handover::TakingOver(next) => {
            output::line(&format!("host {next} is taking over"))?;
            output::message(&format!(
                "host {next} is not active yet, and no host delivers until it is active; `status` and the log of host {next} show \
                 its progress"
            ));
            Ok(())
        }
        Handover::GivenUp(next) => {
            let next = next.map_or_else(|| "another host".to_owned(), |next| format!("host {next}"));
            anyhow::bail!(
                "{next} has taken the lease and could not become active, so this host ({host}) takes over again; `status` and the \
                 log of {next} show the reason"
            )
        }
        Handover::Released => {
            output::line("the lease is released")?;
            output::message("no other host has taken over yet; this host takes the lease again after a minute");
            Ok(())
        }
    }
}
