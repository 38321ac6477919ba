//! The role of a host under `[standby]`, and the problems of the lease.

use serde::Serialize;

use super::Health;
use crate::boot_clock::BootInstant;
use crate::heartbeat::Heartbeats;
use crate::standby::{ConfigurationHashes, LeaseState, LeaseView};

/// The role of a host under `[standby]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Role {
    /// The state of this host, for example active or standby.
    pub state: LeaseState,
    /// The host that has the lease.
    pub holder: Option<String>,
    /// The seconds until the lease ends, unless it is renewed.
    pub lease_left_s: Option<u64>,
    /// The lease cannot be read or written. So if there is no `holder`, another host may have the lease.
    #[serde(skip)]
    pub is_lease_unknown: bool,
    /// The lease of this host has ended, and the daemon has not become a standby, because the daemon is stopped or hangs.
    #[serde(skip)]
    pub has_lease_ended: bool,
}

/// The values that a host compares with those of the holder of the lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnProgram {
    /// The version of this program.
    pub version: String,
    /// The newest schema that this program knows.
    pub schema: i64,
    /// Hashes of the configuration's tables.
    pub configuration: ConfigurationHashes,
}

impl Role {
    /// One line for `systemctl status`; `None` for the active host, which reports its work instead.
    pub(super) fn line(&self) -> Option<String> {
        match (self.state, &self.holder) {
            (LeaseState::Active, _) => None,
            (LeaseState::TakingOver, _) => Some("taking over".into()),
            (_, Some(holder)) => Some(format!("standing by for host {holder}")),
            (_, None) if self.is_lease_unknown => Some("standing by; the lease is not known".into()),
            (_, None) => Some("standing by; no host is active".into()),
        }
    }

    /// Which host has the lease, and for how long.
    #[must_use]
    pub fn describe_lease(&self) -> String {
        let left = self.lease_left_s.map_or(String::new(), |left| format!(", for {left} s unless it is renewed"));
        match &self.holder {
            Some(_) if self.has_lease_ended => "its lease has ended".into(),
            Some(holder) => format!("host {holder} has the lease{left}"),
            None if self.is_lease_unknown => "it does not know which host has the lease".into(),
            None => "no host has the lease".into(),
        }
    }
}

impl Health {
    /// The health of a host that is not active, and therefore watches no mailboxes and has no open database. `own` is compared
    /// with the values of the lease's holder.
    #[must_use]
    pub fn of_standby(lease: &LeaseView, own: &OwnProgram, now: BootInstant) -> Self {
        let mut health = Health::unknown(String::new());
        health.attention = differences(lease, own);
        health.ok = true;
        health.add_lease(lease, now);
        health
    }

    /// Adds a problem for each loop whose heartbeat is late.
    pub fn add_late(&mut self, heartbeats: &Heartbeats) {
        for name in heartbeats.late() {
            self.ok = false;
            self.attention.push(format!("{name} makes no progress: restart the daemon"));
        }
    }

    /// Adds the host's role, and a problem of the lease if there is one.
    pub fn add_lease(&mut self, lease: &LeaseView, now: BootInstant) {
        let holder = lease.holder.as_ref().map(|holder| holder.host.clone());
        let left = lease.ends.map(|ends| ends.since(now).as_secs());
        let has_lease = matches!(lease.state, LeaseState::Active | LeaseState::TakingOver);
        let has_lease_ended = has_lease && lease.ends.is_some_and(|ends| ends <= now);
        let is_lease_unknown = lease.problem.is_some();
        self.role = Some(Role { state: lease.state, holder, lease_left_s: left, is_lease_unknown, has_lease_ended });
        let problem = match (lease.state, &lease.problem, left) {
            (LeaseState::Active | LeaseState::TakingOver, Some(problem), Some(left)) => {
                Some(format!("the lease cannot be renewed, and ends in {left} s: {problem}"))
            }
            (_, None, _) if has_lease_ended => {
                Some("the lease of this host has ended, and the daemon makes no progress: restart the daemon".into())
            }
            (_, Some(problem), _) => Some(format!("this host cannot take over: the lease: {problem}")),
            (LeaseState::TakingOver, None, _) => {
                Some("no host is active: this one fetches and opens the database".into())
            }
            (LeaseState::Standby, None, _) if lease.holder.is_none() => {
                Some("no host is active: this one takes over when the lease allows it".into())
            }
            _ => None,
        };
        let failure = lease.failure.as_ref().map(|failure| format!("this host could not take over: {failure}"));
        self.attention.extend(problem.into_iter().chain(failure));
        self.ok &= self.attention.is_empty();
    }
}

/// Describes how this host differs from the holder of the lease. With another version or configuration, this host would make
/// other decisions after a takeover.
fn differences(lease: &LeaseView, own: &OwnProgram) -> Vec<String> {
    let Some(holder) = &lease.holder else { return Vec::new() };
    let (host, tables) = (&holder.host, own.configuration.differences(&holder.configuration));
    let configuration = (!tables.is_empty()).then(|| {
        let tables = tables.join(" and ");
        format!("{tables} of the configuration differ from those of host {host}, which is active: make them the same")
    });
    let versions = [
        ("version", own.version.clone(), holder.version.clone()),
        ("schema", own.schema.to_string(), holder.schema.to_string()),
    ];
    let versions = versions.into_iter().filter(|(_, own, other)| own != other).map(|(kind, own, other)| {
        format!(
            "this program has {kind} {own}, and that of host {host}, which is active, has {other}: install the same one"
        )
    });
    configuration.into_iter().chain(versions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::{LeaseStage, LeaseValue};

    fn lease(state: LeaseState) -> LeaseView {
        let configuration = ConfigurationHashes { trust: "t".into(), ..ConfigurationHashes::default() };
        let holder = LeaseValue {
            host: "a".into(),
            process: "p".into(),
            home: "h".into(),
            count: 1,
            stage: LeaseStage::Active,
            release: false,
            lease_ms: 20_000,
            version: "0.2.0".into(),
            schema: 2,
            configuration,
            data: None,
        };
        LeaseView { state, holder: Some(holder), ends: Some(BootInstant::from_millis(15_700)), ..LeaseView::default() }
    }

    #[test]
    fn a_standby_that_differs_needs_attention() {
        let now = BootInstant::from_millis(1_000);
        let same = OwnProgram {
            version: "0.2.0".into(),
            schema: 2,
            configuration: ConfigurationHashes { trust: "t".into(), ..ConfigurationHashes::default() },
        };
        let health = Health::of_standby(&lease(LeaseState::Standby), &same, now);
        let role = Role {
            state: LeaseState::Standby,
            holder: Some("a".into()),
            lease_left_s: Some(14),
            is_lease_unknown: false,
            has_lease_ended: false,
        };
        assert_eq!((health.ok, health.line(), health.role), (true, "standing by for host a".into(), Some(role)));
        let forward = ConfigurationHashes { forward: "f".into(), ..same.configuration.clone() };
        for (own, expected) in [
            (OwnProgram { version: "0.1.0".into(), ..same.clone() }, "has version 0.1.0, and that of host a"),
            (OwnProgram { schema: 1, ..same.clone() }, "has schema 1"),
            (OwnProgram { configuration: forward, ..same.clone() }, "[[forward]] of the configuration differ"),
        ] {
            let health = Health::of_standby(&lease(LeaseState::Standby), &own, now);
            assert!(!health.ok && health.attention.len() == 1 && health.attention[0].contains(expected), "{health:?}");
        }
    }

    #[test]
    fn a_lease_that_cannot_be_renewed_needs_attention() {
        let mut lease = lease(LeaseState::Active);
        lease.problem = Some("no server".into());
        let mut health = Health::unknown(String::new());
        (health.ok, health.attention) = (true, Vec::new());
        health.add_lease(&lease, BootInstant::from_millis(1_000));
        assert!(!health.ok && health.attention[0].contains("ends in 14 s: no server"), "{health:?}");
    }

    #[test]
    fn the_lease_of_a_stopped_daemon_has_ended() {
        let lease = lease(LeaseState::Active);
        let at = |millis| {
            let mut health = Health::unknown(String::new());
            (health.ok, health.attention) = (true, Vec::new());
            health.add_lease(&lease, BootInstant::from_millis(millis));
            let lease = health.role.unwrap().describe_lease();
            (lease, health.attention)
        };
        assert_eq!(at(1_000), ("host a has the lease, for 14 s unless it is renewed".into(), Vec::new()));
        let (lease, attention) = at(16_000);
        assert_eq!(lease, "its lease has ended");
        assert!(attention[0].contains("has ended, and the daemon makes no progress"), "{attention:?}");
    }

    #[test]
    fn an_unreadable_lease_may_belong_to_another_host() {
        let mut lease = LeaseView::default();
        let mut says = |problem: Option<&str>| {
            lease.problem = problem.map(str::to_owned);
            let health = Health::of_standby(&lease, &OwnProgram::default(), BootInstant::from_millis(1_000));
            let role = health.role.unwrap();
            (role.line().unwrap(), role.describe_lease())
        };
        let unknown = ("standing by; the lease is not known", "it does not know which host has the lease");
        assert_eq!(says(Some("no server")), (unknown.0.into(), unknown.1.into()));
        assert_eq!(says(None), ("standing by; no host is active".into(), "no host has the lease".into()));
    }
}
