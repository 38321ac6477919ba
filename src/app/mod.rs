//! The composition root: builds everything from a configuration, spawns the loops, ends them, and then closes the database.

mod prepare;
mod standby;
mod supervisor;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use prepare::{
    Listener, Prepared, addresses, chains, forward_target, forward_targets, login, prepare, resmic_client, rules,
    rules_with, rules_without_account, store_settings,
};
pub use standby::{Standby, lease_place, own_program, standby_report};
use supervisor::Supervisor;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::db::{self, DaemonLock, Store, UidFingerprints};
use crate::forward::Sending;
use crate::health::{Expected, WatchedAccount, WatchedMailbox};
use crate::heartbeat::Heartbeats;
use crate::ingest::{self, DeferredMails, Ingest};
use crate::metrics::{MetricsEndpoint, MetricsSource};
use crate::source::imap;
use crate::standby::LeaseAgent;
use crate::telemetry::PushLatency;
use crate::{confirm, forward, inquire, metrics, systemd};

/// The capacity of the channel from the watcher of a mailbox to its ingest, as a number of reports.
const QUEUE: usize = 8;
/// How long one step of a watcher may take, in addition to an IDLE. In a long FETCH, each mail may take five minutes.
const LONGEST_STEP: Duration = Duration::from_secs(15 * 60);
/// The pauses between attempts to open the database.
const REOPEN: Backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(5) };
/// How long the loops may take to end after `shutdown`.
const DRAIN: Duration = Duration::from_secs(4);
/// The last `mails.id` is reported to the agent of the lease when deliveries become due, or after `REPORT_INTERVAL`. After each
/// report there is a pause of `REPORT_PAUSE`.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// How long the database may take to close after the loops have ended.
const CLOSE: Duration = Duration::from_secs(2);

/// Locks the database against a second daemon, and creates the folder of the database if that folder is missing.
///
/// # Errors
/// Another daemon has the lock, or the folder or the lock file cannot be created.
pub fn lock(database: &Path) -> anyhow::Result<DaemonLock> {
    if let Some(folder) = database.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    Ok(DaemonLock::acquire(database)?)
}

/// Runs a daemon without `[standby]` until `shutdown`. The caller holds the [`lock`].
///
/// # Errors
/// The database cannot be opened, or a loop has failed.
pub async fn run(prepared: Prepared, latency: PushLatency, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let Some(store) = open(&prepared.config, shutdown.clone()).await? else { return Ok(()) };
    let sending = Sending { publishes: prepared.requests.publishes.clone(), ..Sending::default() };
    let duty = Duty { sending, agent: None, heartbeats: Heartbeats::default(), drain: DRAIN };
    run_loops(prepared, store, duty, latency, shutdown, std::future::pending()).await.map(drop)
}

/// The permission, the agent, the heartbeats and the time limit with which the loops run.
struct Duty {
    sending: Sending,
    /// The agent of the lease; `None` without `[standby]`.
    agent: Option<LeaseAgent>,
    heartbeats: Heartbeats,
    /// How long the loops may take to end after `shutdown`.
    drain: Duration,
}

/// Why the loops have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoopsEnd {
    Shutdown,
    /// The lease is lost.
    Lost,
}

/// Runs the loops on an open database until `shutdown`, and then closes the database. When `lost` returns, the loops are aborted.
///
/// # Errors
/// A loop has failed.
async fn run_loops(
    prepared: Prepared,
    store: Store,
    duty: Duty,
    latency: PushLatency,
    shutdown: watch::Receiver<bool>,
    lost: impl Future<Output = ()>,
) -> anyhow::Result<LoopsEnd> {
    let (agent, drain) = (duty.agent.clone(), duty.drain);
    let mut loops = JoinSet::new();
    spawn_loops(prepared, &store, duty, latency, &shutdown, &mut loops);
    systemd::ready();
    let ended = wait_for_end(&mut loops, shutdown, lost, drain).await;
    if !matches!(ended, Ok(LoopsEnd::Shutdown)) {
        // The loops that still run are aborted, because they keep the database open.
        loops.abort_all();
        wait_for_all(&mut loops, drain).await;
    }
    if let (Some(agent), Ok(LoopsEnd::Shutdown)) = (&agent, &ended) {
        // The last `mails.id` is reported to the agent of the lease, because the next host compares its copy of the database with
        // that id.
        let _ = tokio::time::timeout(drain, report_last_mail(&store, agent)).await;
    }
    // Closing the store waits until every clone is dropped, and each loop may have a clone. So the store is not closed while a
    // loop runs.
    if loops.is_empty() && tokio::time::timeout(CLOSE, store.close()).await.is_err() {
        tracing::debug!("the database did not close in time; no committed data is lost");
    }
    ended
}

/// Spawns the loops of the daemon into `loops`, such as a watcher for each mailbox and the worker of each target.
fn spawn_loops(
    prepared: Prepared,
    store: &Store,
    duty: Duty,
    latency: PushLatency,
    shutdown: &watch::Receiver<bool>,
    loops: &mut JoinSet<anyhow::Result<()>>,
) {
    let Prepared { config, accounts, targets, chains, resmic, requests, resolver, metrics } = prepared;
    let Duty { sending, agent, heartbeats, .. } = duty;
    let lease = agent.as_ref().map(LeaseAgent::watch);
    if config.trust.accepts_unproven() {
        tracing::warn!("[trust] accept has \"none\": mails are trusted without proof; use it for tests only");
    }
    let expected = expected(&config);
    let mut all_rules = HashMap::new();
    for (account, rules) in accounts {
        let rules = Arc::new(rules);
        all_rules.insert(account.settings.name.clone(), rules.clone());
        let resolver = resolver.clone();
        let (store, latency) = (store.clone(), latency.clone());
        let ingest = Ingest { account: account.settings.name.clone(), rules, resolver, store, latency };
        watch_account(&Arc::new(account), &ingest, &heartbeats, shutdown, loops);
    }
    if let Some(rules) = all_rules.values().next() {
        tokio::spawn(ingest::warm_up(rules.clone(), resolver.clone(), store.clone()));
    }
    let deferred = DeferredMails { rules: all_rules, resolver, store: store.clone() }.run(shutdown.clone());
    loops.spawn(async move { deferred.await.context("examining deferred mails") });
    let forwarding = forward::run_permitted(store.clone(), targets, sending, shutdown.clone());
    loops.spawn(async move { forwarding.await.context("forwarding") });
    for chain in chains {
        let (store, heartbeats, ending) = (store.clone(), heartbeats.clone(), shutdown.clone());
        loops
            .spawn(async move { confirm::run(store, chain, &heartbeats, ending).await.context("confirming payments") });
    }
    if let (Some(client), Some(settings)) = (resmic, &config.resmic) {
        let (store, heartbeats, ending, rate) = (store.clone(), heartbeats.clone(), shutdown.clone(), settings.rate);
        loops.spawn(
            async move { inquire::run(store, client, rate, &heartbeats, ending).await.context("asking Resmic") },
        );
    }
    let (changed, ending) = (store.clone(), shutdown.clone());
    loops.spawn(async move { changed.watch_changes(ending).await.context("watching the database") });
    if let Some(agent) = agent {
        loops.spawn(report_last_mails(store.clone(), agent, shutdown.clone()));
    }
    let supervisor = Supervisor {
        store: store.clone(),
        expected: expected.clone(),
        heartbeats: heartbeats.clone(),
        lease: lease.clone(),
    };
    let supervising = supervisor.run(shutdown.clone());
    loops.spawn(async move { supervising.await.context("supervising") });
    if let Some((address, listener)) = metrics {
        let source = MetricsSource::Database { store: store.clone(), expected };
        let endpoint = MetricsEndpoint { source, lease, heartbeats, latency, requests };
        let serving = metrics::serve(listener, endpoint, shutdown.clone());
        loops.spawn(async move {
            serving.await;
            Ok(())
        });
        tracing::debug!(%address, "serving metrics");
    }
    tracing::info!(accounts = config.accounts.len(), callbacks = config.forwards.len(), "running");
}

/// Reports the last `mails.id` of the database to the agent of the lease until `shutdown`. With this id, another host recognises
/// an older copy of the database.
async fn report_last_mails(store: Store, agent: LeaseAgent, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let mut outbox = store.watch_outbox();
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|ending| *ending) => return Ok(()),
            // An error means that the store is closed, which the supervisor reports.
            _ = outbox.changed() => {}
            () = sleep(REPORT_INTERVAL) => {}
        }
        report_last_mail(&store, &agent).await;
        // A shutdown ends the pause, and then the loop.
        let _ = tokio::time::timeout(REPORT_PAUSE, shutdown.wait_for(|ending| *ending)).await;
    }
}

async fn report_last_mail(store: &Store, agent: &LeaseAgent) {
    let store = store.clone();
    let found = tokio::task::spawn_blocking(move || store.reader()?.last_mail_id()).await;
    match found.unwrap_or(Err(db::Error::Stopped)) {
        Ok(last_mail_id) => agent.report_last_mail(last_mail_id),
        // The supervisor reports errors of the database.
        Err(error) => tracing::debug!(%error, "cannot read the last mail for the lease"),
    }
}

/// Opens the database, and retries while the disk is full or another program locks the file; `None` after `shutdown`.
async fn open(config: &Config, mut shutdown: watch::Receiver<bool>) -> db::Result<Option<Store>> {
    let report = |error: db::Error| {
        if !error.is_temporary() {
            return Err(error);
        }
        tracing::error!("{error}");
        systemd::status(&error.to_string());
        // The watchdog is reset here, because the supervisor does not run yet, and a restart would not free disk space.
        systemd::watchdog();
        Ok(())
    };
    tokio::select! {
        biased;
        opened = REOPEN.retry(|| open_once(config), report) => opened.map(Some),
        _ = shutdown.wait_for(|ending| *ending) => Ok(None),
    }
}

async fn open_once(config: &Config) -> db::Result<Store> {
    let store = Store::open(store_settings(config))?;
    store.watch_accounts(config.accounts.iter().map(|account| account.name.clone()).collect()).await?;
    Ok(store)
}

/// The parts of the configuration whose health is reported, such as the accounts and the targets.
#[must_use]
pub fn expected(config: &Config) -> Expected {
    let watched = |account: &imap::ImapSettings| {
        let (name, renew) = (account.name.clone(), account.idle_renew.0);
        let watched = move |wanted: &String| WatchedMailbox { account: name.clone(), wanted: wanted.clone(), renew };
        account.mailboxes.iter().map(watched).collect::<Vec<_>>()
    };
    let account = |settings: &imap::ImapSettings| WatchedAccount {
        account: settings.name.clone(),
        quiet: settings.quiet.map(|quiet| quiet.0),
    };
    Expected {
        accounts: config.accounts.iter().map(account).collect(),
        mailboxes: config.accounts.iter().flat_map(watched).collect(),
        targets: config.forwards.iter().map(|forward| forward.name.clone()).collect(),
        streams: config.forwards.iter().filter(|f| f.nats.is_some()).map(|f| f.name.clone()).collect(),
        chains: config.chains.iter().filter_map(|chain| chain.chain().ok()).map(|chain| chain.name).collect(),
        resmic: config.resmic.is_some(),
    }
}

/// Waits for `shutdown`, and then for the loops. If a loop ends before `shutdown`, the result is an error. If `lost` returns
/// first, the function does not wait for the loops.
async fn wait_for_end(
    loops: &mut JoinSet<anyhow::Result<()>>,
    mut shutdown: watch::Receiver<bool>,
    lost: impl Future<Output = ()>,
    drain: Duration,
) -> anyhow::Result<LoopsEnd> {
    let ended = tokio::select! {
        _ = shutdown.wait_for(|ending| *ending) => None,
        () = lost => return Ok(LoopsEnd::Lost),
        ended = loops.join_next() => ended,
    };
    if let Some(ended) = ended {
        // No loop may end before `shutdown`, because the daemon must not go on without one of its loops.
        ended.context("a loop of the daemon has failed")??;
        anyhow::ensure!(*shutdown.borrow(), "a loop of the daemon has ended unexpectedly; please report it");
    }
    if !wait_for_all(loops, drain).await {
        tracing::warn!("some connections did not close in time; no mail is lost");
        loops.abort_all();
        wait_for_all(loops, drain).await;
    }
    Ok(LoopsEnd::Shutdown)
}

/// Waits until all loops have ended, but not longer than `limit`. Returns whether all loops have ended.
async fn wait_for_all(loops: &mut JoinSet<anyhow::Result<()>>, limit: Duration) -> bool {
    tokio::time::timeout(limit, async { while loops.join_next().await.is_some() {} }).await.is_ok()
}

fn watch_account(
    account: &Arc<imap::Account>,
    ingest: &Ingest,
    heartbeats: &Heartbeats,
    shutdown: &watch::Receiver<bool>,
    loops: &mut JoinSet<anyhow::Result<()>>,
) {
    for mailbox in &account.settings.mailboxes {
        let (out, reports) = mpsc::channel(QUEUE);
        let watching = imap::watch(account.clone(), mailbox.clone(), load_resume_point(ingest), out, shutdown.clone());
        let name = format!("watching {}/{mailbox}", account.settings.name);
        let ingesting =
            ingest.clone().run(reports, heartbeats.begin(name, account.settings.idle_renew.0 + LONGEST_STEP));
        loops.spawn(watch_and_ingest(watching, ingesting));
    }
}

/// Runs the watcher of a mailbox with its ingest, which stores the mails. The ingest ends after the watcher, when all reports of
/// the watcher are committed. An error of the ingest ends the watcher, too. Otherwise, the watcher would notice the error only
/// with its next report, perhaps an hour later.
async fn watch_and_ingest(
    watching: impl Future<Output = ()>,
    ingesting: impl Future<Output = db::Result<()>>,
) -> anyhow::Result<()> {
    let watching = async {
        watching.await;
        Ok(())
    };
    tokio::try_join!(watching, ingesting).map(|_| ()).context("storing mails")
}

/// Returns the function with which the watcher of a mailbox reads its [`imap::ResumePoint`] from the database.
fn load_resume_point(ingest: &Ingest) -> imap::LoadResumePoint {
    let (store, account) = (ingest.store.clone(), ingest.account.clone());
    Box::new(move |mailbox| {
        let (store, account) = (store.clone(), account.clone());
        Box::pin(async move { resume_point(&store, &account, &mailbox).await.map_err(|e| e.to_string()) })
    })
}

async fn resume_point(store: &Store, account: &str, mailbox: &str) -> db::Result<Option<imap::ResumePoint>> {
    let Some(cursor) = store.cursor(account, mailbox).await? else { return Ok(None) };
    let UidFingerprints { mails, last_row } = store.uid_fingerprints(&cursor, imap::FINGERPRINT_UIDS).await?;
    let undelivered = store.undelivered(&cursor).await?;
    let uid_fingerprints = mails.into_iter().map(|(uid, at)| (uid.0, at)).collect();
    Ok(Some(imap::ResumePoint { position: cursor.position, uid_fingerprints, last_row, undelivered }))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::standby::LeaseView;

    /// Runs the loop `part` together with a second loop that never ends, and returns the result of the daemon.
    async fn supervise_with(part: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
        let (_shutdown, ending) = watch::channel(false);
        let mut loops = JoinSet::new();
        loops.spawn(std::future::pending());
        loops.spawn(part);
        tokio::time::timeout(Duration::from_secs(10), wait_for_end(&mut loops, ending, std::future::pending(), DRAIN))
            .await
            .unwrap()
            .map(drop)
    }

    #[tokio::test]
    async fn a_loop_that_ends_is_an_error() {
        assert!(supervise_with(async { Ok(()) }).await.unwrap_err().to_string().contains("unexpectedly"));
        assert!(supervise_with(async { anyhow::bail!("storing mails") }).await.is_err());
        assert!(supervise_with(async { panic!("this test panics on purpose") }).await.is_err());
    }

    #[test]
    fn ingest_errors_do_not_wait_for_the_watcher() {
        let failing = watch_and_ingest(std::future::pending(), async { Err(db::Error::Stopped) });
        assert!(failing.now_or_never().unwrap().is_err());
        let ending = watch_and_ingest(async {}, std::future::pending());
        assert!(ending.now_or_never().is_none(), "the ingest still stores the last reports");
        assert!(watch_and_ingest(async {}, async { Ok(()) }).now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_shutdown_is_no_error() {
        let (shutdown, ending) = watch::channel(false);
        let mut loops = JoinSet::new();
        let mut ended_loop = ending.clone();
        loops.spawn(async move {
            let _ = ended_loop.wait_for(|ending| *ending).await;
            Ok(())
        });
        shutdown.send(true).unwrap();
        let ended = wait_for_end(&mut loops, ending, std::future::pending(), DRAIN).await.unwrap();
        assert_eq!(ended, LoopsEnd::Shutdown);
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_report_pause() {
        let folder = tempfile::tempdir().unwrap();
        let store = db::testing::store(&folder);
        let (_view, seen) = watch::channel(LeaseView::default());
        let (agent, mut commands) = LeaseAgent::with_view(seen);
        let (shutdown, ending) = watch::channel(false);
        let mut reporting = Box::pin(report_last_mails(store.clone(), agent, ending));
        assert!(reporting.as_mut().now_or_never().is_none());
        store.wake_outbox();
        tokio::select! {
            biased;
            _ = &mut reporting => panic!("the loop has ended"),
            command = commands.recv() => drop(command.unwrap()),
        }
        shutdown.send(true).unwrap();
        assert!(reporting.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_lost_lease_does_not_wait() {
        let (_shutdown, ending) = watch::channel(false);
        let mut loops = JoinSet::new();
        loops.spawn(std::future::pending());
        let ended = wait_for_end(&mut loops, ending, std::future::ready(()), DRAIN).await.unwrap();
        assert_eq!(ended, LoopsEnd::Lost);
    }
}
