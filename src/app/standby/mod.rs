//! The role of this daemon in a `[standby]`: it waits for the lease, takes over, runs the loops while it has the lease, and
//! releases the lease.

mod chores;
mod takeover;
#[cfg(target_os = "linux")]
mod unmap_code;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use chores::Chores;
use takeover::NotOpened;

use super::prepare::{Listener, Prepared, prepare};
use super::{Duty, LoopsEnd, run_loops};
use crate::backoff::Backoff;
use crate::boot_clock::BootInstant;
use crate::config::Config;
use crate::db::{self, DaemonLock, Store};
use crate::forward::Sending;
use crate::health::OwnProgram;
use crate::heartbeat::Heartbeats;
use crate::setup::random_hex;
use crate::source::imap::Credentials;
use crate::standby::{
    AGENT_HEARTBEAT, LeaseAgent, LeasePlace, LeaseStage, LeaseView, Member, Report, StandbyFile, StandbySettings,
};
use crate::systemd;
use crate::telemetry::{PushLatency, RequestCounters};

/// The pauses after failed takeovers. In these pauses, this host leaves the lease to others, so that another host may take over.
const TAKEOVER_RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// How long open requests (`GRACE`) and all loops (`DRAIN`) may take to end before the lease is released. The next host waits for
/// the release.
const GRACE: Duration = Duration::from_millis(700);
const DRAIN: Duration = Duration::from_secs(1);
/// How long the release of the lease may take when the process ends.
const RELEASE: Duration = Duration::from_secs(2);
/// A NATS server that sends nothing for this time is pinged. The time is long, because the renewals of the lease test the
/// connection, too, and because a standby should rarely wake up.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long this host leaves the lease to others after `standby release`.
const HOLD_OFF: Duration = Duration::from_secs(60);

/// This daemon as one of the hosts that share a database (`[standby]`). The value exists for the life of the process.
pub struct Standby {
    agent: LeaseAgent,
    /// The progress of the agent and of the loops.
    heartbeats: Heartbeats,
    /// The lock of the database, while this host has the lease.
    lock: Option<DaemonLock>,
    /// `run --fresh`: the next takeover opens the database of this host as it is. The restore command runs only if there is no
    /// database. If another host becomes active before, this is false again: the database of this host is then older.
    fresh: bool,
    /// How many takeovers have failed in a row.
    failures: u32,
    /// The credentials of the accounts that this host watched last.
    credentials: Vec<Credentials>,
}

/// Loads the NATS servers, the bucket and the key of the lease from `[standby]`.
///
/// # Errors
/// A secret or a certificate cannot be read.
pub async fn lease_place(config: &Config, standby: &StandbySettings) -> anyhow::Result<LeasePlace> {
    let wrong = |(key, problem): (String, String)| config.wrong(&format!("standby.{key}"), problem);
    let servers = standby.load_servers().await.map_err(wrong)?;
    let servers = servers.with_ping_interval(PING_INTERVAL);
    Ok(LeasePlace { servers, bucket: standby.bucket.clone(), name: standby.name.clone() })
}

/// Returns this host's name in the lease, and the last report of the daemon on this host; `None` if no daemon runs.
///
/// # Errors
/// The report cannot be read, or the machine's name is no valid host name.
pub fn standby_report(config: &Config, standby: &StandbySettings) -> anyhow::Result<(String, Option<Report>)> {
    let (host, path) = host_and_file(config, standby)?;
    Ok((host, StandbyFile::read(&path)?))
}

fn host_and_file(config: &Config, standby: &StandbySettings) -> anyhow::Result<(String, PathBuf)> {
    let host = standby.host().map_err(|(key, problem)| config.wrong(&format!("standby.{key}"), problem))?;
    let path = StandbyFile::path(&config.state_folder(), &standby.name, &host);
    Ok((host, path))
}

/// The version, the schema and the configuration hashes of this host, for a comparison with those of the holder of the lease.
#[must_use]
pub fn own_program(config: &Config) -> OwnProgram {
    OwnProgram { version: env!("CARGO_PKG_VERSION").into(), schema: db::NEWEST_SCHEMA, configuration: config.hashes() }
}

/// Prepares the loops, unless they are prepared already.
async fn prepare_again(
    config: &Config,
    prepared: &mut Option<Prepared>,
    (listener, requests): (Option<&Listener>, &RequestCounters),
) -> anyhow::Result<()> {
    if prepared.is_none() {
        *prepared = Some(prepare(config.clone(), listener, requests.clone()).await?);
    }
    Ok(())
}

/// Why this host is no longer active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActiveEnd {
    Shutdown,
    Lost,
    /// An operator asked for the release of the lease.
    Asked,
}

impl Standby {
    /// Joins the hosts that share the database: locks this host's standby file, and begins to watch the lease. `fresh`: the first
    /// takeover opens the database of this host as it is.
    ///
    /// # Errors
    /// Another daemon of this host is running, or a secret cannot be read.
    pub async fn join(config: &Config, standby: &StandbySettings, fresh: bool) -> anyhow::Result<Self> {
        let (host, path) = host_and_file(config, standby)?;
        let place = lease_place(config, standby).await?;
        if place.servers.is_cleartext_remote() {
            tracing::warn!("[standby]: no TLS to another machine: others on the network can take the lease; use tls");
        }
        let file = StandbyFile::lock(&path)?;
        let process = random_hex().map_err(anyhow::Error::msg)?.chars().take(16).collect();
        let OwnProgram { version, schema, configuration } = own_program(config);
        let member = Member { host, process, home: file.identity(), version, schema, configuration };
        let heartbeats = Heartbeats::default();
        let heartbeat = heartbeats.begin("watching the lease", AGENT_HEARTBEAT);
        let restore = standby.restore.as_ref().map(|restore| restore.command.clone());
        let agent = LeaseAgent::start(place, member, file, restore, heartbeat);
        Ok(Standby { agent, heartbeats, lock: None, fresh, failures: 0, credentials: Vec::new() })
    }

    /// Stands by, and is active while this host has the lease, until `shutdown`. A host that is active at `shutdown` keeps the
    /// lease, for a reload or for [`Standby::leave`].
    ///
    /// # Errors
    /// A loop has failed, and this host has released the lease. Or the agent has ended.
    pub async fn run(
        &mut self,
        prepared: Prepared,
        latency: PushLatency,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let (config, listener) = (prepared.config.clone(), prepared.listener());
        let requests = prepared.requests.clone();
        self.agent.report_configuration(config.hashes());
        systemd::ready();
        let mut prepared = Some(prepared);
        loop {
            let chores = Chores {
                lease: self.agent.watch(),
                heartbeats: self.heartbeats.clone(),
                own: own_program(&config),
                latency: latency.clone(),
                requests: requests.clone(),
            };
            let again = (listener.as_ref(), &requests);
            let opening: Pin<Box<_>> = Box::pin(self.become_active(&config, &mut prepared, again, &shutdown));
            let opened = tokio::select! {
                biased;
                opened = opening => opened,
                never = chores.run(listener.clone()) => match never {},
            };
            let Some((ready, term, store)) = opened? else { return Ok(()) };
            self.credentials = ready.accounts.iter().map(|(account, _)| account.login.credentials.clone()).collect();
            let ended = self.run_active(ready, term, store, &latency, &shutdown).await;
            match ended {
                Ok(ActiveEnd::Shutdown) => return Ok(()),
                Ok(ActiveEnd::Lost) => self.lock = None,
                Ok(ActiveEnd::Asked) => self.release(HOLD_OFF, None, &shutdown).await,
                Err(error) => {
                    self.leave().await;
                    return Err(error);
                }
            }
        }
    }

    /// Releases the lease at the end of the process, if this host has the lease. This process does not take the lease again. Then
    /// the function waits for running token requests, which outlast the loops: the loops have only a second to end.
    pub async fn leave(&mut self) {
        self.lock = None;
        if timeout(RELEASE, self.agent.release(Duration::MAX, None)).await.is_err() {
            tracing::warn!("the lease cannot be released; another host takes over after its end");
        }
        join_all(self.credentials.drain(..).map(|one| async move { one.wait_for_refresh().await })).await;
    }

    /// Releases the lease. If no NATS server can be reached, the function waits until the lease has ended, or until `shutdown`.
    async fn release(&mut self, pause: Duration, failure: Option<String>, shutdown: &watch::Receiver<bool>) {
        self.lock = None;
        let mut ending = shutdown.clone();
        tokio::select! {
            () = self.agent.release(pause, failure) => {}
            _ = ending.wait_for(|ending| *ending) => {}
        }
    }

    /// Waits for the lease, opens the database, and returns the term of the lease. After a failed takeover, the function waits
    /// for the lease again. `None` after `shutdown`.
    ///
    /// # Errors
    /// The agent has ended, so this host cannot get the lease again.
    async fn become_active(
        &mut self,
        config: &Config,
        prepared: &mut Option<Prepared>,
        again: (Option<&Listener>, &RequestCounters),
        shutdown: &watch::Receiver<bool>,
    ) -> anyhow::Result<Option<(Prepared, u64, Store)>> {
        let agent = self.agent.clone();
        loop {
            if !self.agent.watch().borrow().is_held(BootInstant::now()) {
                self.lock = None;
            }
            let mut ending = shutdown.clone();
            let getting_ready = async {
                // The loops have consumed the last `Prepared`. The next one is prepared before this host gets the lease, so that
                // the takeover is short.
                let early = prepare_again(config, prepared, again).await;
                if let Err(error) = &early {
                    tracing::error!("this host could not take over now: {error:#}");
                }
                if self.wait_for_lease().await {
                    self.failures = 0;
                }
                if early.is_err() { prepare_again(config, prepared, again).await } else { early }
            };
            let ready = tokio::select! {
                biased;
                _ = ending.wait_for(|ending| *ending) => return Ok(None),
                () = agent.ended() => anyhow::bail!("the agent of the lease has ended unexpectedly; please report it"),
                ready = getting_ready => ready,
            };
            let ready = ready.and_then(|()| prepared.take().context("the configuration is not prepared"));
            let opened = match ready {
                Ok(ready) => match self.take_over(config, shutdown).await {
                    Ok((term, store)) => Ok((ready, term, store)),
                    Err(failure) => {
                        *prepared = Some(ready);
                        Err(failure)
                    }
                },
                Err(error) => Err(NotOpened::Failed(format!("{error:#}"))),
            };
            match opened {
                Ok(opened) => {
                    self.failures = 0;
                    return Ok(Some(opened));
                }
                Err(NotOpened::Stopped) => {}
                Err(NotOpened::Asked) => self.release(HOLD_OFF, None, shutdown).await,
                Err(NotOpened::Failed(reason)) => {
                    let pause = TAKEOVER_RETRY.pause(self.failures);
                    self.failures = self.failures.saturating_add(1);
                    self.release(pause, Some(reason), shutdown).await;
                }
            }
        }
    }

    /// Waits until this host has the lease. Returns whether another host was active meanwhile.
    async fn wait_for_lease(&mut self) -> bool {
        let (mut lease, mut was_active) = (self.agent.watch(), false);
        let fresh = &mut self.fresh;
        let held = |lease: &LeaseView| {
            if *fresh && lease.another_became_active {
                *fresh = false;
                tracing::warn!(
                    "another host has become active, so --fresh no longer has an effect; to open the database of this host as \
                     it is, start this daemon again with --fresh"
                );
            }
            let is_held = lease.is_held(BootInstant::now());
            let holder = lease.holder.as_ref().filter(|_| !is_held);
            was_active |= holder.is_some_and(|holder| holder.stage == LeaseStage::Active);
            is_held
        };
        if lease.wait_for(held).await.is_err() {
            // The agent has ended. `become_active` notices that.
            std::future::pending::<()>().await;
        }
        was_active
    }

    /// Runs the loops until `shutdown`, until the lease of `term` ends, or until an operator requests the release of the lease.
    async fn run_active(
        &self,
        ready: Prepared,
        term: u64,
        store: Store,
        latency: &PushLatency,
        shutdown: &watch::Receiver<bool>,
    ) -> anyhow::Result<ActiveEnd> {
        let (stop, stopping) = watch::channel(false);
        let publishes = ready.requests.publishes.clone();
        let duty = Duty {
            sending: Sending { permit: self.agent.permit(), grace: GRACE, publishes, ..Sending::default() },
            agent: Some(self.agent.clone()),
            heartbeats: self.heartbeats.clone(),
            drain: DRAIN,
        };
        let mut running: Pin<Box<_>> =
            Box::pin(run_loops(ready, store, duty, latency.clone(), stopping, self.agent.lost(term)));
        let (mut lease, mut ending) = (self.agent.watch(), shutdown.clone());
        let why = tokio::select! {
            ended = &mut running => return ended.map(|_| ActiveEnd::Lost),
            _ = ending.wait_for(|ending| *ending) => ActiveEnd::Shutdown,
            Ok(_) = lease.wait_for(|lease| lease.is_asked_to_release) => ActiveEnd::Asked,
        };
        // Sending fails only if all loops have ended already.
        let _ = stop.send(true);
        Ok(if running.await? == LoopsEnd::Lost { ActiveEnd::Lost } else { why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::{LeaseState, Takeover};

    const LONG: Duration = Duration::from_secs(600);

    fn config(folder: &tempfile::TempDir, restore: &str) -> Config {
        let password = folder.path().join("password");
        std::fs::write(&password, "x").unwrap();
        let account =
            "[[account]]\nname = \"shop\"\nhost = \"127.0.0.1\"\nport = 1\ntls = \"none\"\nuser = \"a@shop.example\"";
        let standby =
            "[standby]\nnats = [\"nats://127.0.0.1:1\"]\nbucket = \"leases\"\nname = \"shop\"\nhost = \"a\"\n";
        let config = format!("{account}\npassword = {{ file = {password:?} }}\ndedicated = true\n{standby}{restore}\n");
        Config::parse(&folder.path().join("config.toml"), config).unwrap()
    }

    fn standby(agent: LeaseAgent) -> Standby {
        let heartbeats = Heartbeats::default();
        Standby { agent, heartbeats, lock: None, fresh: true, failures: 0, credentials: Vec::new() }
    }

    /// The view of a host that takes over.
    fn taking_over() -> LeaseView {
        let ends = Some(BootInstant::now().plus(LONG));
        let takeover = Some(Takeover::default());
        LeaseView { state: LeaseState::TakingOver, ends, term: 1, takeover, ..LeaseView::default() }
    }

    #[tokio::test]
    async fn nothing_is_opened_without_the_lease() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder, "");
        let (view, seen) = watch::channel(LeaseView { ends: Some(BootInstant::default()), ..taking_over() });
        let (agent, mut commands) = LeaseAgent::with_view(seen);
        let mut standby = standby(agent);
        let (_shutdown, ending) = watch::channel(false);
        // The lease has ended before the takeover begins.
        assert!(matches!(standby.take_over(&config, &ending).await, Err(NotOpened::Stopped)));
        assert!(!config.database().exists());
        // The lease ends while the agent gets the report that the database is open.
        view.send(taking_over()).unwrap();
        let losing = async {
            commands.recv().await.unwrap();
            view.send(LeaseView { state: LeaseState::Standby, ends: None, takeover: None, ..taking_over() }).unwrap();
        };
        let (opened, ()) = tokio::join!(standby.take_over(&config, &ending), losing);
        assert!(matches!(opened, Err(NotOpened::Stopped)) && standby.fresh);
    }

    #[tokio::test]
    async fn fresh_ends_when_another_host_works() {
        let (view, seen) = watch::channel(LeaseView::default());
        let (agent, _commands) = LeaseAgent::with_view(seen);
        let mut standby = standby(agent);
        let taking_the_lease = async {
            tokio::task::yield_now().await;
            view.send(LeaseView { another_became_active: true, ..LeaseView::default() }).unwrap();
            tokio::task::yield_now().await;
            view.send(LeaseView { another_became_active: true, ..taking_over() }).unwrap();
        };
        tokio::join!(standby.wait_for_lease(), taking_the_lease);
        assert!(!standby.fresh);
    }

    #[tokio::test]
    async fn fresh_restores_only_a_missing_database() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let script = format!("printf %s \"$RESMIC_MAILHOOK_FRESH\" >> {}; exit 1", said.display());
        let config = config(&folder, &format!("restore = {{ command = [\"sh\", \"-c\", '{script}'] }}"));
        for _ in 0..2 {
            let (view, seen) = watch::channel(taking_over());
            let (agent, mut commands) = LeaseAgent::with_view(seen);
            let mut standby = standby(agent);
            let (_shutdown, ending) = watch::channel(false);
            let activating = async {
                commands.recv().await.unwrap();
                view.send(LeaseView { state: LeaseState::Active, ..taking_over() }).unwrap();
            };
            let (opened, ()) = tokio::join!(standby.take_over(&config, &ending), activating);
            opened.ok().unwrap().1.close().await;
            assert!(config.database().exists() && !standby.fresh);
        }
        assert_eq!(std::fs::read_to_string(said).unwrap(), "1", "the existing database was opened as it is");
    }

    #[tokio::test]
    async fn the_end_of_the_agent_is_an_error() {
        for state in [LeaseState::Standby, LeaseState::Active] {
            let folder = tempfile::tempdir().unwrap();
            let ends = Some(BootInstant::now().plus(LONG));
            let (view, seen) = watch::channel(LeaseView { state, ends, term: 1, ..LeaseView::default() });
            let (agent, mut commands) = LeaseAgent::with_view(seen);
            let mut standby = standby(agent);
            let prepared = prepare(config(&folder, ""), None, RequestCounters::default()).await.unwrap();
            let (_shutdown, ending) = watch::channel(false);
            let running = standby.run(prepared, PushLatency::default(), ending);
            let ending_agent = async {
                // `run` reports the hashes of the configuration. An active host then also reports the open database.
                for _ in 0..if state == LeaseState::Active { 2 } else { 1 } {
                    commands.recv().await.unwrap();
                }
                drop(view);
            };
            let both = Box::pin(async { tokio::join!(running, ending_agent).0 });
            let ended = timeout(Duration::from_secs(30), both).await.unwrap();
            assert!(ended.unwrap_err().to_string().contains("lease"), "{state:?}");
        }
    }
}
