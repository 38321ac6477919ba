//! The health of the daemon, and the problems that an operator must solve. `status`, `/healthz`, `/metrics` and systemd
//! report the same.

mod chains;
mod mailboxes;
mod resmic;
mod role;
mod silence;
mod streams;
mod waiting;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::boot_clock::BootInstant;
use crate::chain::ConfirmationState;
use crate::db::{self, Store, StoreReader, StreamRow};
use crate::heartbeat::Heartbeats;
use crate::model::{DeliveryState, Outcome, Status, StreamState};
use crate::standby::LeaseView;

pub use chains::ChainHealth;
pub use mailboxes::{Mailbox, WatchedMailbox};
pub use resmic::ResmicHealth;
pub use role::{KnownLease, OwnProgram, Role};
pub use silence::{AccountHealth, ParsingHealth, WatchedAccount};

/// The text about a daemon that does not run.
pub const NOT_RUNNING: &str = "the daemon is not running: start it with `systemctl start resmic-mailhook`";
/// The text about a locked database.
const LOCKED: &str = "another program has locked the database: end it or its transaction (`fuser -v` on the database names \
    it); mails and deliveries wait until then";

/// The parts of the configuration whose health is reported.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The configured accounts.
    pub accounts: Vec<WatchedAccount>,
    /// The mailboxes to watch.
    pub mailboxes: Vec<WatchedMailbox>,
    /// The targets' names.
    pub targets: Vec<String>,
    /// The names of the targets that are streams.
    pub streams: Vec<String>,
    /// The chains' names.
    pub chains: Vec<String>,
    /// Whether the configuration has `[resmic]`.
    pub resmic: bool,
}

/// The health of the daemon, as `status --json` prints it. The keys are an interface.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// Whether nothing needs attention.
    pub ok: bool,
    /// The watched mailboxes.
    pub mailboxes: Vec<Mailbox>,
    /// The configured accounts.
    pub accounts: Vec<AccountHealth>,
    /// Whether the newest notifications could be parsed.
    pub parsing: ParsingHealth,
    /// How many mails have each outcome.
    pub mails: BTreeMap<String, i64>,
    /// How many events have each status.
    pub events: BTreeMap<String, i64>,
    /// How many deliveries are in each state.
    pub deliveries: BTreeMap<String, i64>,
    /// How many events have each state of confirmation.
    pub confirmations: BTreeMap<String, i64>,
    /// The targets that are streams. A target is listed as soon as the daemon has begun to connect to its stream.
    pub streams: Vec<StreamRow>,
    /// The configured chains whose nodes the daemon has asked.
    pub chains: Vec<ChainHealth>,
    /// Resmic's API; `null` without `[resmic]`.
    pub resmic: Option<ResmicHealth>,
    /// This host's role under `[standby]`; `null` without `[standby]`, and if no daemon runs.
    pub role: Option<Role>,
    /// The problems that an operator must solve, each with advice. The list is empty if `ok`.
    pub attention: Vec<String>,
    /// Whether the database cannot be written, because the disk is full or another program has locked the database.
    #[serde(skip)]
    pub waits: bool,
}

/// Reads the health of the daemon from the database. `running`: whether a daemon uses the database. The call takes seconds if
/// another program has locked the database.
///
/// # Errors
/// An error of the database.
pub fn assess(reader: &StoreReader, expected: &Expected, running: bool, now: Timestamp) -> db::Result<Health> {
    let mut attention = Vec::new();
    if !running {
        attention.push(NOT_RUNNING.to_owned());
    }
    let mailboxes = mailboxes::mailboxes(reader, expected, running, now, &mut attention)?;
    let is_reading = |account: &str| running && silence::is_reading(&mailboxes, account);
    let accounts = silence::accounts(&expected.accounts, &reader.accounts()?, is_reading, now, &mut attention);
    let free_space = reader.free_disk_space().filter(|free| *free < db::LOW_SPACE);
    if let Some(free) = free_space {
        let kib = free >> 10;
        attention.push(format!(
            "the disk is full, the database has {kib} KiB left: free some space; mails and deliveries wait until then"
        ));
    }
    // A lock is a problem only for a running daemon. Without a daemon, this check is left out, because it opens the file for
    // writing.
    let locked = running && reader.is_locked();
    if locked {
        attention.push(LOCKED.to_owned());
    }
    let backlog = reader.checkpoint_backlog()?;
    if backlog >= db::MAX_WAL_BACKLOG {
        let mib = backlog >> 20;
        attention.push(format!("a long-running reader blocks WAL checkpoints, so the -wal file has grown by {mib} MiB: stop it (`fuser -v` on the database names it)"));
    }
    attention.extend(waiting::waiting(reader, expected)?);
    let streams = streams::streams(reader, expected, now, &mut attention)?;
    let parsing = silence::parsing(reader.recent_parses()?, &mut attention);
    let chains = chains::chains(reader, expected, now, &mut attention)?;
    let resmic = resmic::resmic(reader, expected, now, &mut attention)?;
    // An outcome, a status or a state that no row has gets the count 0.
    let counts = |names: &[&str], counted: Vec<(String, i64)>| {
        names.iter().map(|name| ((*name).to_owned(), 0)).chain(counted).collect::<BTreeMap<_, _>>()
    };
    let outcomes: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
    let states: Vec<_> = DeliveryState::ALL.iter().map(|s| s.as_str()).collect();
    let confirmed: Vec<_> = ConfirmationState::ALL.iter().map(|s| s.as_str()).collect();
    let statuses: Vec<_> = Status::ALL.iter().map(|s| s.as_str()).collect();
    Ok(Health {
        ok: attention.is_empty(),
        mailboxes,
        accounts,
        parsing,
        mails: counts(&outcomes, reader.counts("mails")?),
        events: counts(&statuses, reader.counts("events")?),
        deliveries: counts(&states, reader.counts("deliveries")?),
        confirmations: counts(&confirmed, reader.counts("confirmations")?),
        streams,
        chains,
        resmic,
        role: None,
        attention,
        waits: free_space.is_some() || locked,
    })
}

/// The health of the running daemon: the result of [`assess`], and the loops whose heartbeat is late. Also returns the reader, so
/// that the caller can read more from the database. `lease`: `Some` with a `[standby]`.
///
/// # Errors
/// An error of the database.
pub async fn own_health(
    store: &Store,
    expected: &Expected,
    heartbeats: &Heartbeats,
    lease: Option<&LeaseView>,
) -> db::Result<(StoreReader, Health)> {
    let (store, expected) = (store.clone(), expected.clone());
    let assessing = tokio::task::spawn_blocking(move || {
        let reader = store.reader()?;
        let health = assess(&reader, &expected, true, Timestamp::now())?;
        Ok((reader, health))
    });
    let (reader, mut health) = assessing.await.unwrap_or(Err(db::Error::Stopped))?;
    health.add_late(heartbeats);
    if let Some(lease) = lease {
        health.add_lease(lease, BootInstant::now());
    }
    Ok((reader, health))
}

impl Health {
    /// The health of a database that does not exist or cannot be read. `reason` is the only problem that is reported.
    #[must_use]
    pub fn unknown(reason: String) -> Self {
        let no_counts = BTreeMap::new;
        Health {
            ok: false,
            mailboxes: Vec::new(),
            accounts: Vec::new(),
            parsing: ParsingHealth::default(),
            mails: no_counts(),
            events: no_counts(),
            deliveries: no_counts(),
            confirmations: no_counts(),
            streams: Vec::new(),
            chains: Vec::new(),
            resmic: None,
            role: None,
            attention: vec![reason],
            waits: false,
        }
    }

    /// The names of the targets whose deliveries are attempted now. For a stream that is not connected, no attempts are made.
    #[must_use]
    pub fn attempted_targets(&self, expected: &Expected) -> Vec<String> {
        let is_connected = |name: &String| {
            self.streams.iter().any(|stream| stream.target == *name && stream.state == StreamState::Connected)
        };
        let is_attempted = |name: &&String| !expected.streams.contains(name) || is_connected(name);
        expected.targets.iter().filter(is_attempted).cloned().collect()
    }

    /// One line for `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        if let Some(first) = self.attention.first() {
            return format!("needs attention ({}): {first}", self.attention.len());
        }
        if let Some(line) = self.role.as_ref().and_then(Role::line) {
            return line;
        }
        let count = |counts: &BTreeMap<String, i64>, name: &str| counts.get(name).copied().unwrap_or(0);
        format!(
            "mailboxes watched: {}; events: {}; deliveries pending: {}",
            self.mailboxes.len(),
            self.events.values().sum::<i64>(),
            count(&self.deliveries, DeliveryState::Pending.as_str())
        )
    }
}
