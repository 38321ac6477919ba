//! The composition root: reads the configuration, opens the store, spawns the loops, and ends them in order.

mod prepare;
mod supervisor;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use prepare::{
    Listener, Prepared, addresses, forward_targets, login, prepare, rules, rules_with, rules_without_account,
    store_settings,
};
use supervisor::Supervisor;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::db::{self, DaemonLock, Store, UidFingerprints};
use crate::health::{Expected, Watched};
use crate::ingest::{self, DeferredMails, Ingest};
use crate::heartbeat::Heartbeats;
use crate::source::imap;
use crate::telemetry::PushLatency;
use crate::{forward, metrics, systemd};

/// How many batches may wait between a watcher and its ingest.
const QUEUE: usize = 8;
/// How long a watcher may take for one step beside waiting: a window of a first sync has ten minutes.
const LONGEST_STEP: Duration = Duration::from_secs(15 * 60);
/// The pauses between attempts to open the database.
const REOPEN: Backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(5) };
/// How long the loops have for ending by themselves.
const DRAIN: Duration = Duration::from_secs(4);
/// How long the database may take to close after that.
const CLOSE: Duration = Duration::from_secs(2);

/// Keeps other daemons off the database.
///
/// # Errors
/// Another one is running, or there can be no file.
pub fn lock(database: &Path) -> anyhow::Result<DaemonLock> {
    if let Some(folder) = database.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    Ok(DaemonLock::acquire(database)?)
}

/// The daemon: runs until `shutdown`. The caller holds the [`lock`].
///
/// # Errors
/// What makes it impossible to start, or to go on.
pub async fn run(prepared: Prepared, latency: PushLatency, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let Prepared { config, accounts, targets, resolver, metrics, vigil } = prepared;
    if config.trust.accepts_unproven() {
        tracing::warn!("[trust] accept has \"none\": mails are believed without proof; fit for a laboratory only");
    }
    let Some(store) = open(&config, shutdown.clone()).await? else { return Ok(()) };
    let (heartbeats, expected) = (Heartbeats::default(), expected(&config));
    let mut loops = JoinSet::new();
    let mut all_rules = HashMap::new();
    for (account, rules) in accounts {
        let rules = Arc::new(rules);
        all_rules.insert(account.settings.name.clone(), rules.clone());
        let resolver = resolver.clone();
        let (store, latency) = (store.clone(), latency.clone());
        let ingest = Ingest { account: account.settings.name.clone(), rules, resolver, store, latency };
        watch_account(&Arc::new(account), &ingest, &heartbeats, &shutdown, &mut loops);
    }
    if let Some(rules) = all_rules.values().next() {
        tokio::spawn(ingest::warm_up(rules.clone(), resolver.clone(), store.clone()));
    }
    let deferred = DeferredMails { rules: all_rules, resolver, store: store.clone() }.run(shutdown.clone());
    loops.spawn(async move { deferred.await.context("judging deferred mails") });
    let forwarding = forward::run(store.clone(), targets, shutdown.clone());
    loops.spawn(async move { forwarding.await.context("forwarding") });
    let (watched, ending) = (store.clone(), shutdown.clone());
    loops.spawn(async move { watched.watch_changes(ending).await.context("watching the database") });
    loops.spawn(async move {
        vigil.keep().await;
        Ok(())
    });
    let supervisor = Supervisor { store: store.clone(), expected: expected.clone(), heartbeats: heartbeats.clone() };
    let supervising = supervisor.run(shutdown.clone());
    loops.spawn(async move { supervising.await.context("looking after the rest") });
    if let Some((address, listener)) = metrics {
        let serving = metrics::serve(
            listener,
            metrics::Endpoint { store: store.clone(), expected, heartbeats, latency },
            shutdown.clone(),
        );
        loops.spawn(async move { serving.await.context("serving metrics") });
        tracing::debug!(%address, "serving metrics");
    }
    systemd::ready();
    tracing::info!(accounts = config.accounts.len(), callbacks = config.forwards.len(), "running");
    let ended = supervise(&mut loops, shutdown).await;
    if ended.is_err() {
        // Nothing that they still do counts, but for the database that they hold open.
        loops.abort_all();
        drain(&mut loops).await;
    }
    // A loop that did not end in time would keep it open.
    if loops.is_empty() && tokio::time::timeout(CLOSE, store.close()).await.is_err() {
        tracing::debug!("the database did not close in time; nothing is lost by that");
    }
    ended
}

/// Opens the database. It retries while the disk is full or another program locks the file; `None` after `shutdown`.
async fn open(config: &Config, mut shutdown: watch::Receiver<bool>) -> db::Result<Option<Store>> {
    let report = |error: db::Error| {
        if !error.is_temporary() {
            return Err(error);
        }
        tracing::error!("{error}");
        systemd::status(&error.to_string());
        // No loop runs yet that would reset the watchdog, and a restart would not free disk space.
        systemd::watchdog();
        Ok(())
    };
    tokio::select! {
        biased;
        opened = REOPEN.retry(|| async { Store::open(store_settings(config)) }, report) => opened.map(Some),
        _ = shutdown.wait_for(|ending| *ending) => Ok(None),
    }
}

/// What ought to be there, by the configuration.
#[must_use]
pub fn expected(config: &Config) -> Expected {
    let watched = |account: &imap::Settings| {
        let (name, renew) = (account.name.clone(), account.idle_renew.0);
        let watched = move |wanted: &String| Watched { account: name.clone(), wanted: wanted.clone(), renew };
        account.mailboxes.iter().map(watched).collect::<Vec<_>>()
    };
    Expected {
        mailboxes: config.accounts.iter().flat_map(watched).collect(),
        targets: config.forwards.iter().map(|forward| forward.name.clone()).collect(),
    }
}

/// Waits for the end: the one that was asked for, or that of a loop, which ends the program.
async fn supervise(loops: &mut JoinSet<anyhow::Result<()>>, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let ended = tokio::select! {
        _ = shutdown.wait_for(|ending| *ending) => None,
        ended = loops.join_next() => ended,
    };
    if let Some(ended) = ended {
        // None of them ends by itself; going on without it would look like working.
        ended.context("a part of the daemon has failed")??;
        anyhow::ensure!(*shutdown.borrow(), "a part of the daemon has ended by itself");
    }
    if !drain(loops).await {
        tracing::warn!("some connections did not close in time; nothing is lost by that");
        loops.abort_all();
    }
    Ok(())
}

/// Waits until all have ended; false: they take too long.
async fn drain(loops: &mut JoinSet<anyhow::Result<()>>) -> bool {
    tokio::time::timeout(DRAIN, async { while loops.join_next().await.is_some() {} }).await.is_ok()
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
        let watching = imap::watch(account.clone(), mailbox.clone(), cursors(ingest), out, shutdown.clone());
        let name = format!("watching {}/{mailbox}", account.settings.name);
        let ingesting =
            ingest.clone().run(reports, heartbeats.begin(name, account.settings.idle_renew.0 + LONGEST_STEP));
        loops.spawn(together(watching, ingesting));
    }
}

/// The ingest ends when the watcher does, with all that it said committed. One that fails is not waited for until the
/// watcher has something more to say: that may be an hour.
async fn together(
    watching: impl Future<Output = ()>,
    ingesting: impl Future<Output = db::Result<()>>,
) -> anyhow::Result<()> {
    let watching = async {
        watching.await;
        Ok(())
    };
    tokio::try_join!(watching, ingesting).map(|_| ()).context("storing mails")
}

/// Where a watcher learns how far its mailbox was read.
fn cursors(ingest: &Ingest) -> imap::Cursors {
    let (store, account) = (ingest.store.clone(), ingest.account.clone());
    Box::new(move |mailbox| {
        let (store, account) = (store.clone(), account.clone());
        Box::pin(async move { resume_point(&store, &account, &mailbox).await.map_err(|e| e.to_string()) })
    })
}

async fn resume_point(store: &Store, account: &str, mailbox: &str) -> db::Result<Option<imap::Known>> {
    let Some(cursor) = store.cursor(account, mailbox).await? else { return Ok(None) };
    let UidFingerprints { mails, last_row } = store.landmarks(&cursor, imap::REACH).await?;
    let undelivered = store.undelivered(&cursor).await?;
    let landmarks = mails.into_iter().map(|(uid, at)| (uid.0, at)).collect();
    Ok(Some(imap::Known { reached: cursor.reached, landmarks, last_row, undelivered }))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// What comes of a daemon where one part does this and the other goes on.
    async fn with(part: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
        let (_shutdown, ending) = watch::channel(false);
        let mut loops = JoinSet::new();
        loops.spawn(std::future::pending());
        loops.spawn(part);
        tokio::time::timeout(Duration::from_secs(10), supervise(&mut loops, ending)).await.unwrap()
    }

    #[tokio::test]
    async fn a_part_that_ends_for_whatever_cause_ends_the_daemon_with_an_error() {
        assert!(with(async { Ok(()) }).await.unwrap_err().to_string().contains("by itself"));
        assert!(with(async { anyhow::bail!("storing mails") }).await.is_err());
        assert!(with(async { panic!("a part panics, as this test asks it to") }).await.is_err());
    }

    #[test]
    fn mails_that_cannot_be_stored_are_an_error_at_once_however_quiet_the_mailbox_is() {
        let failing = together(std::future::pending(), async { Err(db::Error::Stopped) });
        assert!(failing.now_or_never().unwrap().is_err());
        let ending = together(async {}, std::future::pending());
        assert!(ending.now_or_never().is_none(), "what was said is still to be stored");
        assert!(together(async {}, async { Ok(()) }).now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_none() {
        let (shutdown, ending) = watch::channel(false);
        let mut loops = JoinSet::new();
        let mut part = ending.clone();
        loops.spawn(async move {
            let _ = part.wait_for(|ending| *ending).await;
            Ok(())
        });
        shutdown.send(true).unwrap();
        supervise(&mut loops, ending).await.unwrap();
    }
}
