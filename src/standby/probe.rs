//! Reads the lease for `check --connect` and for other commands that need the holder's name, without the daemon. For `standby
//! release`, this module also writes a request into the key of the lease.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::connection::{LeaseConnection, LeasePlace, open_connection};
use super::lease_value::LeaseValue;
use super::machine::{Entry, EntryContent, WriteResult};

/// How long the holder's daemon may take to stop its work and release the lease, after `standby release`.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long `standby release` waits for the next holder after the lease was released.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest pause between two reads of the key, while `standby release` waits.
const POLL: Duration = Duration::from_millis(500);
/// The error if the value of the lease cannot be parsed.
const UNREADABLE: &str = "the lease has a content that this version does not know";

/// The host that has the lease, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseHolder {
    /// The host with this name has the lease.
    Host(String),
    /// The key of the lease has a content that this version cannot parse.
    Unknown,
    /// No host has the lease.
    None,
}

/// How a request to release the lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handover {
    /// The host with this name has the lease now.
    TakenBy(String),
    /// The lease is released, and no host has taken it yet.
    Released,
}

/// Connects to a NATS server, checks the settings of the bucket and reads the lease, without a write. Returns lines for the
/// operator; an error is a line about something that must be corrected.
pub async fn check_bucket(place: LeasePlace) -> Vec<Result<String, String>> {
    let servers = place.servers.to_string();
    let connection = match open_connection(Arc::new(place)).await {
        Ok(connection) => connection,
        Err(problem) => return vec![Err(problem)],
    };
    let version = connection.nats.client().server_info().version;
    let mut lines = vec![Ok(format!("connected to {servers}, version {}", crate::model::printable(&version, 32)))];
    lines.extend(connection.bucket.describe().into_iter().map(Ok));
    lines.push(match connection.bucket.read().await {
        Ok(entry) => Ok(match holder(&entry) {
            LeaseHolder::Host(host) => format!("host {host} has the lease"),
            LeaseHolder::Unknown => "the key has a content that this version does not know".into(),
            LeaseHolder::None => "no host has the lease".into(),
        }),
        Err(error) => Err(error.to_string()),
    });
    // If the server does not permit the subscription, only `last_error` shows this problem.
    lines.extend(connection.nats.last_error().map(|error| Err(format!("the server reports: {error}"))));
    lines
}

/// Reads the key of the lease, and returns the host that has the lease.
///
/// # Errors
/// A text for the operator, if the bucket or the key cannot be read.
pub async fn find_holder(place: LeasePlace) -> Result<LeaseHolder, String> {
    let connection = open_connection(Arc::new(place)).await?;
    connection.bucket.read().await.map(|entry| holder(&entry)).map_err(|error| error.to_string())
}

fn holder(entry: &Entry) -> LeaseHolder {
    match &entry.content {
        EntryContent::Value(value) if value.is_live() => LeaseHolder::Host(value.host.clone()),
        EntryContent::Value(_) | EntryContent::Absent { .. } | EntryContent::Deleted => LeaseHolder::None,
        EntryContent::Unreadable => LeaseHolder::Unknown,
    }
}

/// Asks the daemon of `host` to release the lease, and waits until that daemon has done so. Then this function waits up to three
/// seconds for the next holder.
///
/// # Errors
/// The daemon of `host` does not have the lease or does not release it in time, the content of the key cannot be parsed, or the
/// server does not answer.
pub async fn request_release(place: LeasePlace, host: &str) -> Result<Handover, String> {
    let mut connection = open_connection(Arc::new(place)).await?;
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let process = ask(&connection, host, deadline).await?;
    let mut released_until = None;
    loop {
        let entry = connection.bucket.read().await.map_err(|error| error.to_string())?;
        match entry.content {
            EntryContent::Value(value) if value.is_live() && value.process != process => {
                return Ok(Handover::TakenBy(value.host));
            }
            EntryContent::Value(value) if value.is_live() => {}
            EntryContent::Unreadable => return Err(UNREADABLE.into()),
            _ => released_until = released_until.or(Some(Instant::now() + SUCCESSOR_TIMEOUT)),
        }
        let now = Instant::now();
        match released_until {
            Some(until) if until <= now => return Ok(Handover::Released),
            None if deadline <= now => {
                let seconds = RELEASE_TIMEOUT.as_secs();
                return Err(format!(
                    "the daemon has not released the lease within {seconds} s; its log has the reason"
                ));
            }
            _ => {}
        }
        // Waits for the next announcement, but not longer than `POLL`.
        let _ = timeout_at(now + POLL, connection.announcements.next()).await;
    }
}

/// Sets `release` in the lease value of `host`, so that the daemon of `host` releases the lease. Returns the random text that
/// identifies the process of this daemon ([`LeaseValue::process`]).
async fn ask(connection: &LeaseConnection, host: &str, deadline: Instant) -> Result<String, String> {
    loop {
        let entry = connection.bucket.read().await.map_err(|error| error.to_string())?;
        let value = match entry.content {
            EntryContent::Value(value) if value.is_live() && value.host == host => value,
            EntryContent::Value(value) if value.is_live() => {
                return Err(format!("host {} has the lease, not this one ({host}); run the command there", value.host));
            }
            EntryContent::Unreadable => return Err(UNREADABLE.into()),
            _ => return Err("no host has the lease".into()),
        };
        let process = value.process.clone();
        let request = LeaseValue { release: true, ..value };
        match connection.bucket.write(entry.revision, &request).await {
            (WriteResult::Stored(_), _) => return Ok(process),
            // The daemon has renewed the lease since the last read of the key, so the loop reads the key again.
            (WriteResult::Conflict, _) if Instant::now() < deadline => {}
            (_, problem) => {
                return Err(
                    problem.map_or_else(|| "the lease changes all the time; try again".into(), |p| p.to_string())
                );
            }
        }
    }
}
