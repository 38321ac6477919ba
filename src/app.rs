//! The composition root: reads the configuration, opens the store, spawns the loops, and ends them in order.

mod oversee;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::rustls::ClientConfig;

use oversee::Overseer;

use crate::config::Config;
use crate::examine::Rules;
use crate::health::{Expected, Watched};
use crate::ingest::{self, Deferred, Ingest};
use crate::pulse::Pulses;
use crate::source::imap::{self, Tls};
use crate::store::{self, DaemonLock, Landmarks, Store};
use crate::trust::dns::Resolver;
use crate::vigil::{Sleeps, Vigil};
use crate::{extract, forward, metrics, session, systemd, tls, trust};

/// How many connections to one mail server are begun at once.
const CONNECTS: usize = 16;
/// How many batches may wait between a watcher and its ingest.
const QUEUE: usize = 8;
/// How long a watcher may take for one step beside waiting: a window of a first sync has ten minutes.
const LONGEST_STEP: Duration = Duration::from_secs(15 * 60);
/// How often a database that cannot be opened just now is tried again.
const REOPEN: Duration = Duration::from_secs(5);
/// How long the loops have for ending by themselves.
const DRAIN: Duration = Duration::from_secs(4);
/// How long the database may take to close after that.
const CLOSE: Duration = Duration::from_secs(2);

/// What an account's mails are examined by.
///
/// # Errors
/// A secret that cannot be had, or a key that turns out wrong.
pub async fn rules(config: &Config, account: &imap::Settings) -> anyhow::Result<Rules> {
    rules_with(config, account, addresses(config).await?)
}

/// The signed addresses, if there are to be any.
///
/// # Errors
/// Their key cannot be had.
pub async fn addresses(config: &Config) -> anyhow::Result<Option<session::Addresses>> {
    let Some(address) = &config.sessions.address else { return Ok(None) };
    let key = config.secret("sessions.address.key", &address.key).await?;
    let addresses = session::Addresses::new(&address.mailbox, &key);
    Ok(Some(addresses.map_err(|words| config.wrong("sessions.address.key", words))?))
}

/// As [`rules`], with the signed addresses or without: for reading only.
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

/// All that the loops need, with every secret read: what can go wrong about a configuration has gone right.
pub struct Prepared {
    config: Config,
    accounts: Vec<(imap::Account, Rules)>,
    targets: Vec<forward::Target>,
    resolver: Arc<Resolver>,
    metrics: Option<(SocketAddr, Arc<TcpListener>)>,
    vigil: Vigil,
}

/// Reads the secrets and takes what is needed from the system. Nothing is started.
///
/// `before`: what runs until now, whose listener goes on if its address stays.
///
/// # Errors
/// What makes it impossible to start.
pub async fn prepare(config: Config, before: Option<&Listener>) -> anyhow::Result<Prepared> {
    if config.accounts.is_empty() {
        return Err(config.wrong("account", "expected at least one [[account]]").into());
    }
    let (vigil, sleeps) = Vigil::new();
    let (accounts, targets) = (accounts(&config, &sleeps).await?, forward_targets(&config).await?);
    let resolver = Arc::new(Resolver::new(&config.dns)?);
    let metrics = match (config.telemetry.metrics, before) {
        (Some(address), Some((bound, listener))) if address == *bound => Some((address, listener.clone())),
        (Some(address), _) => Some((address, Arc::new(listen(&config, address).await?))),
        (None, _) => None,
    };
    Ok(Prepared { config, accounts, targets, resolver, metrics, vigil })
}

/// Who has the port may let go of it: unlike a wrong configuration that is tried again.
async fn listen(config: &Config, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let wrong = config.wrong("telemetry.metrics", format!("{address}: {error}"));
        if error.kind() == ErrorKind::AddrInUse { anyhow::Error::msg(wrong.to_string()) } else { wrong.into() }
    })
}

/// Where metrics are served.
pub type Listener = (SocketAddr, Arc<TcpListener>);

impl Prepared {
    /// The listener for metrics, for a later [`prepare`].
    #[must_use]
    pub fn listener(&self) -> Option<Listener> {
        self.metrics.clone()
    }

    /// The database file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.config.database()
    }
}

/// Keeps other daemons off the database.
///
/// # Errors
/// Another one is running, or there can be no file.
pub fn lock(database: &Path) -> anyhow::Result<DaemonLock> {
    if let Some(folder) = database.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    Ok(DaemonLock::take(database)?)
}

/// The daemon: runs until `shutdown`. The caller holds the [`lock`].
///
/// # Errors
/// What makes it impossible to start, or to go on.
pub async fn run(prepared: Prepared, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let Prepared { config, accounts, targets, resolver, metrics, vigil } = prepared;
    if config.trust.asks_no_proof() {
        tracing::warn!("[trust] accept has \"none\": mails are believed without proof; fit for a laboratory only");
    }
    let Some(store) = open(&config, shutdown.clone()).await? else { return Ok(()) };
    let (pulses, expected) = (Pulses::default(), expected(&config));
    let mut loops = JoinSet::new();
    let mut all_rules = HashMap::new();
    for (account, rules) in accounts {
        let rules = Arc::new(rules);
        all_rules.insert(account.settings.name.clone(), rules.clone());
        let resolver = resolver.clone();
        let ingest = Ingest { account: account.settings.name.clone(), rules, resolver, store: store.clone() };
        watch_account(&Arc::new(account), &ingest, &pulses, &shutdown, &mut loops);
    }
    if let Some(rules) = all_rules.values().next() {
        tokio::spawn(ingest::get_ready(rules.clone(), resolver.clone(), store.clone()));
    }
    let deferred = Deferred { rules: all_rules, resolver, store: store.clone() }.run(shutdown.clone());
    loops.spawn(async move { deferred.await.context("judging deferred mails") });
    let forwarding = forward::run(store.clone(), targets, shutdown.clone());
    loops.spawn(async move { forwarding.await.context("forwarding") });
    loops.spawn(async move {
        vigil.keep().await;
        Ok(())
    });
    let overseer = Overseer { store: store.clone(), expected: expected.clone(), pulses: pulses.clone() };
    let overseeing = overseer.run(shutdown.clone());
    loops.spawn(async move { overseeing.await.context("looking after the rest") });
    if let Some((address, listener)) = metrics {
        let serving =
            metrics::serve(listener, metrics::Endpoint { store: store.clone(), expected, pulses }, shutdown.clone());
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

/// Opens the database, however long a disk is full or another program has it; `None`: the end came first.
async fn open(config: &Config, mut shutdown: watch::Receiver<bool>) -> store::Result<Option<Store>> {
    loop {
        match Store::open(store_settings(config)) {
            Err(error) if error.is_temporary() => {
                tracing::error!("{error}");
                systemd::status(&error.to_string());
                // Nobody else feeds it, also when the configuration was read again: a restart makes no room.
                systemd::watchdog();
            }
            opened => return opened.map(Some),
        }
        tokio::select! {
            _ = shutdown.wait_for(|ending| *ending) => return Ok(None),
            () = tokio::time::sleep(REOPEN) => {}
        }
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
    pulses: &Pulses,
    shutdown: &watch::Receiver<bool>,
    loops: &mut JoinSet<anyhow::Result<()>>,
) {
    for mailbox in &account.settings.mailboxes {
        let (out, reports) = mpsc::channel(QUEUE);
        let watching = imap::watch(account.clone(), mailbox.clone(), cursors(ingest), out, shutdown.clone());
        let name = format!("watching {}/{mailbox}", account.settings.name);
        let ingesting = ingest.clone().run(reports, pulses.begin(name, account.settings.idle_renew.0 + LONGEST_STEP));
        loops.spawn(together(watching, ingesting));
    }
}

/// The ingest ends when the watcher does, with all that it said committed. One that fails is not waited for until the
/// watcher has something more to say: that may be an hour.
async fn together(
    watching: impl Future<Output = ()>,
    ingesting: impl Future<Output = store::Result<()>>,
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
        Box::pin(async move { known(&store, &account, &mailbox).await.map_err(|e| e.to_string()) })
    })
}

async fn known(store: &Store, account: &str, mailbox: &str) -> store::Result<Option<imap::Known>> {
    let Some(cursor) = store.cursor(account, mailbox).await? else { return Ok(None) };
    let Landmarks { mails, last_row } = store.landmarks(&cursor, imap::REACH).await?;
    Ok(Some(imap::Known { reached: cursor.reached, landmarks: mails, last_row }))
}

/// The accounts with their secrets.
async fn accounts(config: &Config, sleeps: &Sleeps) -> anyhow::Result<Vec<(imap::Account, Rules)>> {
    // Each server has a pace of its own: one that says nothing must not take the places of the others.
    let (mut paces, mut clients) = (HashMap::new(), tls::Clients::default());
    let mut accounts = Vec::new();
    for (n, settings) in config.accounts.iter().enumerate() {
        let (trust, server) = (config.trust.clone(), (settings.host.to_ascii_lowercase(), settings.port()));
        let account = imap::Account {
            login: login(config, n, settings, &mut clients).await?,
            settings: settings.clone(),
            is_candidate: Box::new(move |header| trust::is_candidate(header, &trust)),
            pace: paces.entry(server).or_insert_with(|| Arc::new(Semaphore::new(CONNECTS))).clone(),
            timing: imap::Timing::default(),
            sleeps: sleeps.clone(),
        };
        accounts.push((account, rules(config, settings).await?));
    }
    Ok(accounts)
}

/// What an account needs to log in.
///
/// # Errors
/// A secret or a file of certificates that cannot be had.
pub async fn login(
    config: &Config,
    n: usize,
    settings: &imap::Settings,
    clients: &mut tls::Clients,
) -> anyhow::Result<imap::Login> {
    let key = format!("account[{n}]");
    let mut roots = || {
        let client = clients.client(settings.ca_file.as_deref());
        client.map_err(|e| config.wrong(&format!("{key}.ca_file"), e.to_string()))
    };
    let credentials = match (&settings.password, &settings.oauth2) {
        (Some(source), _) => imap::Credentials::Password(config.secret(&format!("{key}.password"), source).await?),
        (None, Some(oauth2)) => {
            let tls = oauth2.token_url.tls.then(&mut roots).transpose()?;
            imap::Credentials::OAuth2(tokens(config, &format!("{key}.oauth2"), oauth2, tls).await?)
        }
        (None, None) => return Err(config.wrong(&key, "expected `password` or `oauth2`").into()),
    };
    let tls = match settings.tls {
        Tls::None => None,
        Tls::Implicit | Tls::Starttls => Some(roots()?),
    };
    Ok(imap::Login { tls, credentials })
}

async fn tokens(
    config: &Config,
    key: &str,
    settings: &imap::OAuth2,
    tls: Option<Arc<ClientConfig>>,
) -> anyhow::Result<imap::Tokens> {
    let client_secret = match &settings.client_secret {
        Some(source) => Some(config.secret(&format!("{key}.client_secret"), source).await?),
        None => None,
    };
    let refresh_token = config.secret(&format!("{key}.refresh_token"), &settings.refresh_token).await?;
    let database = config.database();
    let folder = database.parent().unwrap_or(Path::new(""));
    Ok(imap::Tokens::new(settings, client_secret, refresh_token, folder, tls))
}

/// The callbacks with their secrets.
///
/// # Errors
/// A secret that cannot be had.
pub async fn forward_targets(config: &Config) -> anyhow::Result<Vec<forward::Target>> {
    let mut targets = Vec::new();
    for (n, settings) in config.forwards.iter().enumerate() {
        let secret = config.secret(&format!("forward[{n}].secret"), &settings.secret).await?;
        let target = forward::Target::new(settings.clone(), secret);
        targets.push(target.map_err(|wrong| config.wrong(&format!("forward[{n}].{}", wrong.key), wrong.words))?);
    }
    Ok(targets)
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
        let failing = together(std::future::pending(), async { Err(store::Error::Stopped) });
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
