//! The health of the daemon, and the problems that an operator must solve. `status`, `/healthz`, `/metrics` and systemd
//! report the same.

mod role;
mod silence;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::boot_clock::BootInstant;
use crate::chain::ConfirmationState;
use crate::db::{self, ChainRow, MailboxRow, Store, StoreReader, StreamRow};
use crate::heartbeat::Heartbeats;
use crate::model::{DeliveryState, MailboxState, Outcome, Status, StreamState, same_mailbox};
use crate::standby::LeaseView;

pub use role::{OwnProgram, Role};
pub use silence::{AccountHealth, ParsingHealth, WatchedAccount};

/// How much longer than `idle_renew` a mailbox may be without a completed round trip.
const SLACK: Duration = Duration::from_secs(5 * 60);
/// How long a stream may be unreachable before that is a problem.
const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);
/// The text about a daemon that does not run.
pub const NOT_RUNNING: &str = "the daemon is not running: start it with `systemctl start resmic-mailhook`";
/// The text about a locked database.
const LOCKED: &str = "another program has locked the database: end it or its transaction (`fuser -v` on the database names \
    it); mails and deliveries wait until then";

/// The accounts, mailboxes and targets of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The accounts.
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

/// A mailbox that the configuration names.
#[derive(Debug, Clone)]
pub struct WatchedMailbox {
    /// The account's name.
    pub account: String,
    /// A mailbox's name, or a special-use attribute (`\Junk`).
    pub wanted: String,
    /// `idle_renew`.
    pub renew: Duration,
}

/// The state of the daemon. `status --json` prints it; the keys are an interface.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// Nothing needs attention.
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
    /// The targets that are streams, after the daemon has begun to connect.
    pub streams: Vec<StreamHealth>,
    /// The configured chains whose nodes have answered or failed.
    pub chains: Vec<ChainHealth>,
    /// Resmic's API; `null` without `[resmic]`.
    pub resmic: Option<ResmicHealth>,
    /// What this host does with respect to the lease; `null` without `[standby]`, and if no daemon runs.
    pub role: Option<Role>,
    /// The problems that an operator must solve, each with advice. It is empty if `ok`.
    pub attention: Vec<String>,
    /// The database cannot be written: the disk is full, or another program has locked it.
    #[serde(skip)]
    pub waits: bool,
}

/// A watched mailbox.
#[derive(Debug, Clone, Serialize)]
pub struct Mailbox {
    /// The account's name.
    pub account: String,
    /// The mailbox's name.
    pub mailbox: String,
    /// The state of its watcher.
    pub state: String,
    /// The last completed round trip.
    pub last_seen_at: Option<String>,
    /// The last error.
    pub last_error: Option<String>,
}

/// A target that is a JetStream stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamHealth {
    /// The target's name.
    pub target: String,
    /// The stream's name.
    pub stream: String,
    /// `connecting`, `connected` or `failed`.
    pub state: StreamState,
    /// The configured URLs, separated by commas.
    pub servers: String,
    /// The version of the server that was connected last.
    pub version: Option<String>,
    /// Why it cannot publish.
    pub problems: Vec<String>,
    /// What should be changed.
    pub notes: Vec<String>,
    /// How many deliveries the stream already had.
    pub there_already: i64,
    /// How many messages the stream had lost and got again.
    pub refilled: i64,
}

/// A chain on which payments are confirmed.
#[derive(Debug, Clone, Serialize)]
pub struct ChainHealth {
    /// The chain's name.
    pub name: String,
    /// The hosts of its nodes.
    pub nodes: Vec<String>,
    /// The age of the newest block at `asked_at`.
    pub head_age_s: Option<i64>,
    /// The last error.
    pub last_error: Option<String>,
    /// The newest block.
    #[serde(skip)]
    pub head: Option<i64>,
    /// The last final block.
    #[serde(skip)]
    pub final_block: Option<i64>,
    /// How much older the final block is than the newest.
    #[serde(skip)]
    pub final_lag_s: Option<i64>,
    /// The time of the last answer of the nodes.
    #[serde(skip)]
    pub asked_at: Option<String>,
    /// How many events wait for the chain.
    #[serde(skip)]
    pub waiting: i64,
}

/// Resmic's API, and what waits for it.
#[derive(Debug, Clone, Serialize)]
pub struct ResmicHealth {
    /// The API's host, after the first request.
    pub host: Option<String>,
    /// The last request that was recorded.
    pub asked_at: Option<String>,
    /// The last error; `None` if the last request succeeded.
    pub last_error: Option<String>,
    /// Events that wait until Resmic reports their session as `Completed`.
    pub waiting: i64,
    /// Events that Resmic contradicts.
    pub doubtful: i64,
    /// Sessions that are completed at Resmic and whose mail is missing.
    pub missing_mails: i64,
    /// Sessions that need review.
    pub to_review: i64,
}

/// Reads the state from the database. `running`: a daemon uses it. It takes seconds if another program has locked it.
///
/// # Errors
/// An error of the database.
pub fn assess(reader: &StoreReader, expected: &Expected, running: bool, now: Timestamp) -> db::Result<Health> {
    let mut attention = Vec::new();
    if !running {
        attention.push(NOT_RUNNING.to_owned());
    }
    let mut mailboxes = Vec::new();
    for (watched, row) in pair(&expected.mailboxes, reader.mailboxes()?) {
        match row {
            None => attention.push(never_reached(watched)),
            Some(row) => {
                attention.extend(problem(watched, &row, running, now));
                mailboxes.push(Mailbox::from(row));
            }
        }
    }
    let is_reading = |account: &str| running && silence::is_reading(&mailboxes, account);
    let accounts = silence::accounts(&expected.accounts, &reader.accounts()?, is_reading, now, &mut attention);
    let room = reader.free_disk_space().filter(|room| *room < db::LOW_SPACE);
    if let Some(room) = room {
        let kib = room >> 10;
        attention.push(format!(
            "the disk is full, the database has {kib} KiB left: free some space; mails and deliveries wait until then"
        ));
    }
    // Only a daemon waits for the lock. Without one, this check would be the first to open the file.
    let locked = running && reader.is_locked();
    if locked {
        attention.push(LOCKED.to_owned());
    }
    let backlog = reader.checkpoint_backlog()?;
    if backlog >= db::MAX_WAL_BACKLOG {
        let mib = backlog >> 20;
        attention.push(format!("a long-running reader blocks WAL checkpoints, so the -wal file has grown by {mib} MiB: stop it (`fuser -v` on the database names it)"));
    }
    attention.extend(waiting(reader, expected)?);
    let streams = streams(reader, expected, now, &mut attention)?;
    let parsing = silence::parsing(reader.recent_parses()?, &mut attention);
    let chains = chains(reader, expected, now, &mut attention)?;
    let resmic = resmic(reader, expected, now, &mut attention)?;
    // Words without rows are counted as 0.
    let counts = |words: &[&str], counted: Vec<(String, i64)>| {
        words.iter().map(|w| ((*w).to_owned(), 0)).chain(counted).collect::<BTreeMap<_, _>>()
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
        waits: room.is_some() || locked,
    })
}

/// The targets that are streams, and what is wrong with them. An unreachable server is a problem after half a minute, which is
/// longer than a restart of the server or an election in its cluster takes.
fn streams(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<StreamHealth>> {
    // Without streams, the table is not read.
    if expected.streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut streams = Vec::new();
    for row in reader.streams()?.into_iter().filter(|row| expected.streams.contains(&row.target)) {
        let since = row.failing_since.as_deref().and_then(|since| since.parse::<Timestamp>().ok());
        let is_late = since.is_some_and(|since| now.duration_since(since) > UNREACHABLE);
        if row.needs_person || is_late {
            attention.extend(row.problems.iter().map(|problem| format!("target {}: {problem}", row.target)));
        }
        let StreamRow { target, stream, state, servers, version, problems, notes, there_already, refilled, .. } = row;
        streams.push(StreamHealth {
            target,
            stream,
            state,
            servers,
            version,
            problems,
            notes,
            there_already,
            refilled,
        });
    }
    Ok(streams)
}

/// The chains, and what is wrong with them. A node that throttles or does not answer is a problem only after events have
/// waited for ten minutes.
fn chains(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<ChainHealth>> {
    let waiting = reader.waiting_for_chains()?;
    let rows = reader.chains()?;
    let mut chains = Vec::new();
    for row in rows.iter().filter(|row| expected.chains.contains(&row.name)) {
        let (waits, since) = waiting
            .iter()
            .find(|(id, ..)| *id == Some(row.chain_id))
            .map_or((0, None), |(_, n, since)| (*n, since.parse::<Timestamp>().ok()));
        let is_late = since.is_some_and(|since| now.duration_since(since) > SignedDuration::from_mins(10));
        let error = row.last_error.as_ref().filter(|_| row.needs_person || is_late);
        attention.extend(error.map(|error| {
            let name = &row.name;
            format!(
                "chain {name}: {waits} {} for its nodes: {error}",
                if waits == 1 { "event waits" } else { "events wait" }
            )
        }));
        chains.push(chain_health(row, waits));
    }
    let is_known =
        |id: &Option<i64>| rows.iter().any(|row| Some(row.chain_id) == *id && expected.chains.contains(&row.name));
    let lost: i64 =
        waiting.iter().filter(|(id, ..)| expected.chains.is_empty() && !is_known(id)).map(|(_, n, _)| n).sum();
    attention.extend((lost > 0).then(|| {
        counted(
            lost,
            "event",
            "waiting for a chain, and no [[chain]] is configured: `confirm EVENT_ID --vouch` releases one",
        )
    }));
    Ok(chains)
}

/// Resmic's API, and what is wrong with it. An error that passes is a problem only after ten minutes, and a waiting event after
/// an hour.
fn resmic(
    reader: &StoreReader,
    expected: &Expected,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Option<ResmicHealth>> {
    let found = reader.resmic_backlog()?;
    let is_older = |since: &Option<String>, minutes| {
        let since = since.as_deref().and_then(|since| since.parse::<Timestamp>().ok());
        since.is_some_and(|since| now.duration_since(since) > SignedDuration::from_mins(minutes))
    };
    let error = found.last_error.as_deref().filter(|_| expected.resmic);
    attention.extend(
        error.filter(|_| found.needs_person || is_older(&found.failing_since, 10)).map(|e| format!("[resmic]: {e}")),
    );
    let review = found.session_to_review.as_deref().unwrap_or_default();
    let review = format!("in doubt: `session check {}` shows why", crate::model::printable(review, 40));
    let waits = is_older(&found.waiting_since, 60);
    let lines = [
        (
            found.doubtful,
            "event",
            "contradicted by Resmic: `show EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
        ),
        (
            found.missing_mails,
            "session",
            "completed at Resmic, and the mail is missing: look for it in the mailbox's other folders",
        ),
        (found.to_review, "session", review.as_str()),
        (
            if waits { found.waiting } else { 0 },
            "event",
            "waiting for Resmic, the oldest for more than an hour: `show EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
        ),
    ];
    attention.extend(lines.into_iter().filter(|(n, ..)| *n > 0).map(|(n, noun, text)| counted(n, noun, text)));
    Ok(expected.resmic.then_some(ResmicHealth {
        host: found.host,
        asked_at: found.asked_at,
        last_error: found.last_error,
        waiting: found.waiting,
        doubtful: found.doubtful,
        missing_mails: found.missing_mails,
        to_review: found.to_review,
    }))
}

fn chain_health(row: &ChainRow, waiting: i64) -> ChainHealth {
    ChainHealth {
        name: row.name.clone(),
        nodes: row.nodes.split(' ').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
        head_age_s: row.head_age_s,
        last_error: row.last_error.clone(),
        head: row.head,
        final_block: row.final_block,
        final_lag_s: row.final_lag_s,
        asked_at: row.asked_at.clone(),
        waiting,
    }
}

/// The health of the running daemon: [`assess`], and the loops whose heartbeat is late. With the reader that it used. `lease`: for
/// a `[standby]`.
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

/// Each expected mailbox with its row. The row of a special-use attribute has the mailbox's real name, which is not in the
/// configuration, so it is the newest of the account's other rows. Any other rows belong to mailboxes that were watched
/// earlier.
fn pair(expected: &[WatchedMailbox], mut rows: Vec<MailboxRow>) -> Vec<(&WatchedMailbox, Option<MailboxRow>)> {
    rows.sort_by(|a, b| b.last_seen_at.cmp(&a.last_seen_at));
    let mut named: Vec<_> =
        expected.iter().map(|watched| (watched, remove_first(&mut rows, |row| is_watched_as(watched, row)))).collect();
    for (watched, row) in &mut named {
        if row.is_none() && watched.wanted.starts_with('\\') {
            *row = remove_first(&mut rows, |row| row.account == watched.account);
        }
    }
    named
}

fn is_watched_as(watched: &WatchedMailbox, row: &MailboxRow) -> bool {
    row.account == watched.account && same_mailbox(&row.mailbox, &watched.wanted)
}

fn remove_first(rows: &mut Vec<MailboxRow>, which: impl Fn(&MailboxRow) -> bool) -> Option<MailboxRow> {
    rows.iter().position(which).map(|n| rows.remove(n))
}

fn never_reached(watched: &WatchedMailbox) -> String {
    let WatchedMailbox { account, wanted, .. } = watched;
    format!("mailbox {account}/{wanted} was never reached: run `resmic-mailhook check --connect`")
}

/// The problem of a mailbox. Without a running daemon, an old round trip is no problem.
fn problem(watched: &WatchedMailbox, row: &MailboxRow, running: bool, now: Timestamp) -> Option<String> {
    let name = format!("mailbox {}/{}", row.account, row.mailbox);
    if row.state == MailboxState::Failed.as_str() {
        let error = row.last_error.as_deref().unwrap_or("unknown error");
        return Some(format!("{name}: {error}"));
    }
    let seen: Timestamp = row.last_seen_at.as_deref()?.parse().ok()?;
    // The watcher looks once an hour for a special-use mailbox that the server does not have.
    let is_absent = row.mailbox.starts_with('\\');
    let limit = if is_absent { Duration::from_secs(2 * 3600) } else { watched.renew } + SLACK;
    let age = Duration::try_from(now.duration_since(seen)).unwrap_or_default();
    if !running || age <= limit {
        return None;
    }
    let minutes = age.as_secs() / 60;
    Some(format!("{name}: no completed round trip for {minutes} minutes; restart the daemon if this stays"))
}

/// The mails, events and deliveries that wait for an operator.
fn waiting(reader: &StoreReader, expected: &Expected) -> db::Result<Vec<String>> {
    let accounts: Vec<_> = expected.mailboxes.iter().map(|watched| watched.account.as_str()).collect();
    let backlog = reader.backlog(&expected.targets, &accounts)?;
    let lines = [
        (
            backlog.quarantined,
            "quarantined: `mails --outcome quarantined` shows why, `mails release ID` releases one",
            "mail",
        ),
        (
            backlog.undelivered,
            "listed by the mail server and not delivered: `mails --outcome quarantined` shows the UID; look at the mail with another mail program. The daemon fetches it again at each renewal",
            "mail",
        ),
        (
            backlog.conflicting,
            "held because of a conflict: `show EVENT_ID` shows the conflict, `session assign EVENT_ID SESSION_ID` releases the event",
            "event",
        ),
        (
            backlog.unresolved,
            "held without a session: `session assign EVENT_ID SESSION_ID`, or register the session",
            "event",
        ),
        (
            backlog.dead,
            "given up: `deliveries --state dead` shows why, `deliveries retry --dead` retries them",
            "delivery",
        ),
        (
            backlog.orphaned,
            "for a target that the configuration no longer has: put its [[forward]] back under that name",
            "delivery",
        ),
        (
            backlog.unjudged,
            "deferred, of an account that the configuration no longer has: put the account back under that name",
            "mail",
        ),
        (
            backlog.doubtful,
            "contradicted by the chain: `confirm EVENT_ID --explain` shows why, `confirm EVENT_ID --vouch` releases one",
            "event",
        ),
        (
            backlog.unproven,
            "held because the chain proves nothing: `confirm EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
            "event",
        ),
    ];
    Ok(lines.into_iter().filter(|(n, ..)| *n > 0).map(|(n, text, noun)| counted(n, noun, text)).collect())
}

/// A count with its noun and a text: "2 deliveries given up".
fn counted(n: i64, noun: &str, text: &str) -> String {
    let noun = match (n, noun) {
        (1, noun) => noun.to_owned(),
        (_, "delivery") => "deliveries".to_owned(),
        (_, noun) => format!("{noun}s"),
    };
    format!("{n} {noun} {text}")
}

impl From<MailboxRow> for Mailbox {
    fn from(row: MailboxRow) -> Self {
        let MailboxRow { account, mailbox, state, last_seen_at, last_error, .. } = row;
        Mailbox { account, mailbox, state, last_seen_at, last_error }
    }
}

impl Health {
    /// The health of a database that does not exist or cannot be read. `why`: the reason.
    #[must_use]
    pub fn unknown(why: String) -> Self {
        let none = BTreeMap::new;
        Health {
            ok: false,
            mailboxes: Vec::new(),
            accounts: Vec::new(),
            parsing: ParsingHealth::default(),
            mails: none(),
            events: none(),
            deliveries: none(),
            confirmations: none(),
            streams: Vec::new(),
            chains: Vec::new(),
            resmic: None,
            role: None,
            attention: vec![why],
            waits: false,
        }
    }

    /// The names of the targets whose deliveries are attempted now. A stream that cannot be reached gets none.
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
        let count = |of: &BTreeMap<String, i64>, word: &str| of.get(word).copied().unwrap_or(0);
        format!(
            "mailboxes watched: {}; events: {}; deliveries pending: {}",
            self.mailboxes.len(),
            self.events.values().sum::<i64>(),
            count(&self.deliveries, DeliveryState::Pending.as_str())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Uid, UidValidity};

    fn watched(wanted: &str) -> WatchedMailbox {
        WatchedMailbox { account: "shop".into(), wanted: wanted.into(), renew: Duration::from_secs(540) }
    }

    fn row(mailbox: &str, state: &str, seen: &str) -> MailboxRow {
        MailboxRow {
            account: "shop".into(),
            mailbox: mailbox.into(),
            uid_validity: Some(UidValidity(1)),
            last_uid: Some(Uid(1)),
            state: state.into(),
            last_seen_at: Some(seen.into()),
            last_error: None,
        }
    }

    #[test]
    fn rows_of_unwatched_mailboxes_are_ignored() {
        let expected = [watched("INBOX"), watched("\\Junk")];
        let rows = vec![
            row("Old", "failed", "2025-03-05T03:00:00.000Z"),
            row("Spam", "idle", "2025-03-05T04:00:00.000Z"),
            row("inbox", "idle", "2025-03-05T04:00:00.000Z"),
        ];
        let names: Vec<_> = pair(&expected, rows).into_iter().filter_map(|(_, row)| Some(row?.mailbox)).collect();
        assert_eq!(names, ["inbox", "Spam"]);
    }

    #[test]
    fn an_old_round_trip_is_a_problem() {
        let now = "2025-03-05T04:00:00Z".parse().unwrap();
        let problem = |row: &MailboxRow, running| problem(&watched("INBOX"), row, running, now);
        assert_eq!(problem(&row("INBOX", "idle", "2025-03-05T03:47:00.000Z"), true), None);
        assert!(problem(&row("INBOX", "idle", "2025-03-05T03:45:00.000Z"), true).unwrap().contains("15 minutes"));
        assert_eq!(problem(&row("INBOX", "idle", "2025-03-05T03:45:00.000Z"), false), None);
        assert!(problem(&row("INBOX", "failed", "2025-03-05T03:59:59.000Z"), true).is_some());
    }
}
