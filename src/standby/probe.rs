//! Reads the lease for `check --connect` and for other commands that need the holder's name, without the daemon. For `standby
//! release`, this module also writes a request into the key of the lease.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::connection::{LeaseConnection, LeasePlace, open_connection};
use super::lease_value::{LeaseStage, LeaseValue};
use super::machine::{Entry, EntryContent, WriteResult};

/// How long the holder's daemon may take to stop its work and release the lease, after `standby release`.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long `standby release` waits for the next holder after the lease was released.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(3);
/// How long `standby release` waits until the next holder is active. A restore may take longer.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest pause between two reads of the key, while `standby release` waits.
const POLL: Duration = Duration::from_millis(500);
/// The error if the value of the lease cannot be parsed.
const UNREADABLE: &str = "the lease has a content that this version does not know";

/// The host that has the lease, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseHolder {
    /// The host with this name has the lease, and is in this stage.
    Host(String, LeaseStage),
    /// The key of the lease has a content that this version cannot parse.
    Unknown,
    /// No host has the lease.
    None,
}

/// How a request to release the lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handover {
    /// The host with this name has the lease now, and is active.
    TakenBy(String),
    /// The host with this name has the lease now, and is not active yet.
    TakingOver(String),
    /// A host has taken the lease, and has released or lost it without becoming active. `None`: the name of that host is not known.
    GivenUp(Option<String>),
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
            LeaseHolder::Host(host, _) => format!("host {host} has the lease"),
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
        EntryContent::Value(value) if value.is_live() => LeaseHolder::Host(value.host.clone(), value.stage),
        EntryContent::Value(_) | EntryContent::Absent { .. } | EntryContent::Deleted => LeaseHolder::None,
        EntryContent::Unreadable => LeaseHolder::Unknown,
    }
}

/// The progress of a hand-over that `standby release` has requested.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HandoverPhase {
    /// The holder has not released the lease yet.
    Requested,
    /// The lease is released, and no host has taken it yet.
    Released,
    /// The host with this name has the lease, and is not active yet.
    TakingOver(String),
}

impl HandoverPhase {
    /// How long `standby release` waits for the next phase.
    fn timeout(&self) -> Duration {
        match self {
            HandoverPhase::Requested => RELEASE_TIMEOUT,
            HandoverPhase::Released => SUCCESSOR_TIMEOUT,
            HandoverPhase::TakingOver(_) => TAKEOVER_TIMEOUT,
        }
    }

    /// The result of the hand-over, if this phase has lasted for its timeout.
    fn at_timeout(self) -> Result<Handover, String> {
        match self {
            HandoverPhase::Requested => {
                let seconds = RELEASE_TIMEOUT.as_secs();
                Err(format!("the daemon has not released the lease within {seconds} s; its log has the reason"))
            }
            HandoverPhase::Released => Ok(Handover::Released),
            HandoverPhase::TakingOver(host) => Ok(Handover::TakingOver(host)),
        }
    }

    /// The next phase, after `content` was read. `asked`: the value of the holder before the request. Returns the result if the
    /// hand-over has ended.
    fn next(self, asked: &LeaseValue, content: &EntryContent) -> Result<Result<Self, Handover>, String> {
        let is_released = self != HandoverPhase::Requested;
        Ok(match (content, self) {
            (EntryContent::Unreadable, _) => return Err(UNREADABLE.into()),
            // The daemon takes the lease again only if another host has failed to take over.
            (EntryContent::Value(value), phase) if value.is_live() && value.process == asked.process => {
                let is_taken_again = asked.stage == LeaseStage::Active && value.stage == LeaseStage::TakingOver;
                if is_released || is_taken_again { Err(phase.given_up()) } else { Ok(phase) }
            }
            (EntryContent::Value(value), _) if value.stage == LeaseStage::Active => {
                Err(Handover::TakenBy(value.host.clone()))
            }
            (EntryContent::Value(value), _) if value.is_live() => Ok(HandoverPhase::TakingOver(value.host.clone())),
            (EntryContent::Value(value), _) if value.process != asked.process => {
                Err(Handover::GivenUp(Some(value.host.clone())))
            }
            (_, phase @ HandoverPhase::TakingOver(_)) => Err(phase.given_up()),
            (EntryContent::Value(_) | EntryContent::Absent { .. } | EntryContent::Deleted, _) => {
                Ok(HandoverPhase::Released)
            }
        })
    }

    fn given_up(self) -> Handover {
        Handover::GivenUp(if let HandoverPhase::TakingOver(host) = self { Some(host) } else { None })
    }
}

/// Asks the daemon of `host` to release the lease, and waits until that daemon has done so. Then this function waits up to three
/// seconds for the next holder, and up to a minute until the next holder is active.
///
/// # Errors
/// The daemon of `host` does not have the lease or does not release it in time, the content of the key cannot be parsed, or the
/// server does not answer.
pub async fn request_release(place: LeasePlace, host: &str) -> Result<Handover, String> {
    let mut connection = open_connection(Arc::new(place)).await?;
    let mut phase = HandoverPhase::Requested;
    let mut deadline = Instant::now() + phase.timeout();
    let asked = ask(&connection, host, deadline).await?;
    loop {
        let entry = connection.bucket.read().await.map_err(|error| error.to_string())?;
        let before = phase.clone();
        phase = match phase.next(&asked, &entry.content)? {
            Ok(next) => next,
            Err(ended) => return Ok(ended),
        };
        let now = Instant::now();
        if phase != before {
            deadline = now + phase.timeout();
        } else if deadline <= now {
            return phase.at_timeout();
        }
        // Waits for the next announcement, but not longer than `POLL`.
        let _ = timeout_at(now + POLL, connection.announcements.next()).await;
    }
}

/// Sets `release` in the lease value of `host`, so that the daemon of `host` releases the lease. Returns the value before this
/// write.
async fn ask(connection: &LeaseConnection, host: &str, deadline: Instant) -> Result<LeaseValue, String> {
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
        let request = LeaseValue { release: true, ..value.clone() };
        match connection.bucket.write(entry.revision, &request).await {
            (WriteResult::Stored(_), _) => return Ok(value),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::ConfigurationHashes;

    fn value(host: &str, stage: LeaseStage) -> LeaseValue {
        LeaseValue {
            host: host.into(),
            process: format!("{host}1"),
            home: "h".into(),
            count: 1,
            stage,
            release: false,
            lease_ms: 20_000,
            version: "1".into(),
            schema: 1,
            configuration: ConfigurationHashes::default(),
            data: None,
        }
    }

    /// The result of a hand-over of host `a`, after these values were read. `Err`: the phase, if the hand-over has not ended.
    fn handover(values: &[(&str, LeaseStage)]) -> Result<Handover, HandoverPhase> {
        let mut phase = HandoverPhase::Requested;
        for (host, stage) in values {
            let content = EntryContent::Value(value(host, *stage));
            phase = match phase.next(&value("a", LeaseStage::Active), &content).unwrap() {
                Ok(next) => next,
                Err(ended) => return Ok(ended),
            };
        }
        Err(phase)
    }

    #[test]
    fn a_handover_ends_with_an_active_host() {
        let released = [("a", LeaseStage::Active), ("a", LeaseStage::Released)];
        let taking_over = [("a", LeaseStage::Released), ("b", LeaseStage::TakingOver)];
        assert_eq!(handover(&released[..1]), Err(HandoverPhase::Requested));
        assert_eq!(handover(&released), Err(HandoverPhase::Released));
        let phase = handover(&taking_over).unwrap_err();
        assert_eq!(phase, HandoverPhase::TakingOver("b".into()));
        assert_eq!(phase.at_timeout(), Ok(Handover::TakingOver("b".into())));
        for before in [&released[..], &taking_over, &[]] {
            let after = |host, stage| handover(&[before, &[(host, stage)]].concat());
            assert_eq!(after("b", LeaseStage::Active), Ok(Handover::TakenBy("b".into())));
            assert_eq!(after("b", LeaseStage::Released), Ok(Handover::GivenUp(Some("b".into()))));
            let is_given_up = matches!(after("a", LeaseStage::TakingOver), Ok(Handover::GivenUp(_)));
            assert!(is_given_up, "only a failure of b ends the pause of a");
        }
        let expired = EntryContent::Absent { last_revision: None };
        let ended = HandoverPhase::TakingOver("b".into()).next(&value("a", LeaseStage::Active), &expired);
        assert_eq!(ended, Ok(Err(Handover::GivenUp(Some("b".into())))));
    }
}
