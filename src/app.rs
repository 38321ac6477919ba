//! The composition root: reads the configuration, opens the store, spawns the loops, and ends them in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::examine::Rules;
use crate::ingest::Ingest;
use crate::source::imap::{self, Tls};
use crate::store::{self, DaemonLock, Store};
use crate::trust::dns::Resolver;
use crate::{extract, forward, session, systemd, tls, trust};

/// How many connections to mail servers are begun at once.
const CONNECTS: usize = 16;
/// How many batches may wait between a watcher and its ingest.
const QUEUE: usize = 8;
/// How long the loops have for ending by themselves.
const DRAIN: Duration = Duration::from_secs(4);

/// What an account's mails are examined by.
///
/// # Errors
/// A secret that cannot be had, or a key that turns out wrong.
pub async fn rules(config: &Config, account: &imap::Settings) -> anyhow::Result<Rules> {
    let addresses = match &config.sessions.address {
        Some(address) => {
            let key = config.secret("sessions.address.key", &address.key).await?;
            Some(session::Addresses::new(&address.mailbox, &key).map_err(|w| config.wrong("sessions.address.key", w))?)
        }
        None => None,
    };
    rules_with(config, account, addresses)
}

/// As [`rules`], without the signed addresses' key: for reading only.
///
/// # Errors
/// A key that turns out wrong.
pub fn rules_with(
    config: &Config,
    account: &imap::Settings,
    addresses: Option<session::Addresses>,
) -> anyhow::Result<Rules> {
    let own = if account.recipients.is_empty() { vec![account.user.clone()] } else { account.recipients.clone() };
    let signed = config.sessions.address.as_ref().map(|a| a.mailbox.clone());
    Ok(Rules {
        trust: config.trust.clone(),
        reader: extract::Reader::new(&config.extract),
        ours: trust::Ours::new(own.into_iter().chain(signed)),
        addresses,
    })
}

/// As [`rules`], for a mail that is nobody's in particular.
#[must_use]
pub fn rules_without_account(config: &Config) -> Rules {
    Rules {
        trust: config.trust.clone(),
        reader: extract::Reader::new(&config.extract),
        ours: trust::Ours::default(),
        addresses: None,
    }
}

/// What the store needs to know of the configuration.
#[must_use]
pub fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        path: config.database(),
        targets: config.forwards.iter().map(forward::Settings::target).collect(),
        matching: config.sessions.matching(),
    }
}

/// The daemon: runs until `shutdown`.
///
/// # Errors
/// What makes it impossible to start, or to go on.
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    if config.trust.asks_no_proof() {
        tracing::warn!("[trust] accept has \"none\": mails are believed without proof; fit for a laboratory only");
    }
    // Secrets before anything else: a missing one starts nothing.
    let accounts = accounts(&config).await?;
    let targets = forward_targets(&config).await?;
    let settings = store_settings(&config);
    if let Some(folder) = settings.path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let lock = DaemonLock::take(&settings.path)?;
    let store = Store::open(settings)?;
    let resolver = Arc::new(Resolver::new(&config.dns)?);
    let mut loops = JoinSet::new();
    for (account, rules) in accounts {
        let ingest = Ingest {
            account: account.settings.name.clone(),
            rules: Arc::new(rules),
            resolver: resolver.clone(),
            store: store.clone(),
        };
        watch_account(&Arc::new(account), &ingest, &shutdown, &mut loops);
    }
    let forwarding = forward::run(store.clone(), targets, shutdown.clone());
    loops.spawn(async move { forwarding.await.context("forwarding") });
    systemd::ready();
    tracing::info!(accounts = config.accounts.len(), callbacks = config.forwards.len(), "running");
    let ended = supervise(&mut loops, shutdown).await;
    systemd::stopping();
    drop(store);
    drop(lock);
    ended
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
    let drain = async { while loops.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drain).await.is_err() {
        tracing::warn!("some connections did not close in time; nothing is lost by that");
        loops.abort_all();
    }
    Ok(())
}

fn watch_account(
    account: &Arc<imap::Account>,
    ingest: &Ingest,
    shutdown: &watch::Receiver<bool>,
    loops: &mut JoinSet<anyhow::Result<()>>,
) {
    for mailbox in &account.settings.mailboxes {
        let (out, reports) = mpsc::channel(QUEUE);
        let watching = imap::watch(account.clone(), mailbox.clone(), cursors(ingest), out, shutdown.clone());
        let ingesting = ingest.clone().run(reports);
        loops.spawn(async move {
            // The ingest ends when the watcher does, with all that it said committed.
            let ((), ingested) = tokio::join!(watching, ingesting);
            ingested.context("storing mails")
        });
    }
}

/// Where a watcher learns how far its mailbox was read.
fn cursors(ingest: &Ingest) -> imap::Cursors {
    let (store, account) = (ingest.store.clone(), ingest.account.clone());
    Box::new(move |mailbox| {
        let (store, account) = (store.clone(), account.clone());
        Box::pin(async move {
            let cursor = store.cursor(&account, &mailbox).await.map_err(|e| e.to_string())?;
            Ok(cursor.map(|c| (c.uid_validity, c.last_uid)))
        })
    })
}

/// The accounts with their secrets.
async fn accounts(config: &Config) -> anyhow::Result<Vec<(imap::Account, Rules)>> {
    let pace = Arc::new(Semaphore::new(CONNECTS));
    let mut accounts = Vec::new();
    for (n, settings) in config.accounts.iter().enumerate() {
        let trust = config.trust.clone();
        let account = imap::Account {
            login: login(config, n, settings).await?,
            settings: settings.clone(),
            is_candidate: Box::new(move |header| trust::is_candidate(header, &trust)),
            pace: pace.clone(),
            timing: imap::Timing::default(),
        };
        accounts.push((account, rules(config, settings).await?));
    }
    Ok(accounts)
}

/// What an account needs to log in.
///
/// # Errors
/// A secret or a file of certificates that cannot be had.
pub async fn login(config: &Config, n: usize, settings: &imap::Settings) -> anyhow::Result<imap::Login> {
    let key = format!("account[{n}].password");
    let source =
        settings.password.as_ref().ok_or_else(|| config.wrong(&format!("account[{n}]"), "expected a password"))?;
    let tls = match settings.tls {
        Tls::None => None,
        Tls::Implicit | Tls::Starttls => Some(
            tls::client(settings.ca_file.as_deref())
                .map_err(|e| config.wrong(&format!("account[{n}].ca_file"), e.to_string()))?,
        ),
    };
    Ok(imap::Login { tls, password: config.secret(&key, source).await? })
}

/// The callbacks with their secrets.
///
/// # Errors
/// A secret that cannot be had.
pub async fn forward_targets(config: &Config) -> anyhow::Result<Vec<forward::Target>> {
    let mut targets = Vec::new();
    for (n, settings) in config.forwards.iter().enumerate() {
        let secret = config.secret(&format!("forward[{n}].secret"), &settings.secret).await?;
        targets.push(forward::Target::new(settings.clone(), secret)?);
    }
    Ok(targets)
}
