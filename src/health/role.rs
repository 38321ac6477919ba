//! The role of a host under `[standby]`, and the problems of the lease.

use serde::Serialize;

use super::Health;
use crate::boot_clock::BootInstant;
use crate::heartbeat::Heartbeats;
use crate::standby::{ConfigurationHashes, LeaseStage, LeaseState, LeaseView};

/// The role of a host under `[standby]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Role {
    /// The state of this host, for example active or standby.
    pub state: LeaseState,
    /// The lease, as this host knows it.
    #[serde(flatten)]
    pub lease: KnownLease,
}

/// The lease, as a host knows it. In JSON, `holder` and `lease_left_s`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "LeaseFields")]
pub enum KnownLease {
    /// A host has the lease.
    Held {
        /// The name of the host.
        holder: String,
        /// The seconds until the lease ends, unless the host renews it.
        left_s: u64,
    },
    /// The lease of this host has ended, and the daemon has not become a standby, because the daemon is stopped or hangs.
    OwnEnded {
        /// The name of this host.
        holder: String,
    },
    /// The lease cannot be read. The host that had it last may have renewed it.
    LastSeen {
        /// The name of that host.
        holder: String,
    },
    /// The lease cannot be read. No host is known to have it.
    Unknown,
    /// No host has the lease.
    Free,
}

/// The fields of a [`KnownLease`] in JSON.
#[derive(Serialize)]
struct LeaseFields {
    holder: Option<String>,
    lease_left_s: Option<u64>,
}

impl From<KnownLease> for LeaseFields {
    fn from(lease: KnownLease) -> Self {
        let (holder, lease_left_s) = match lease {
            KnownLease::Held { holder, left_s } => (Some(holder), Some(left_s)),
            KnownLease::OwnEnded { holder } | KnownLease::LastSeen { holder } => (Some(holder), Some(0)),
            KnownLease::Unknown | KnownLease::Free => (None, None),
        };
        LeaseFields { holder, lease_left_s }
    }
}

impl KnownLease {
    fn new(lease: &LeaseView, now: BootInstant) -> Self {
        let is_own = matches!(lease.state, LeaseState::Active | LeaseState::TakingOver);
        match (&lease.holder, lease.ends, &lease.problem) {
            (Some(value), Some(ends), _) if now < ends => {
                KnownLease::Held { holder: value.host.clone(), left_s: ends.since(now).as_secs() }
            }
            (Some(value), _, _) if is_own => KnownLease::OwnEnded { holder: value.host.clone() },
            (Some(value), _, Some(_)) => KnownLease::LastSeen { holder: value.host.clone() },
            // The holder has not renewed its lease, so this host can take the lease at any moment.
            (Some(value), _, None) => KnownLease::Held { holder: value.host.clone(), left_s: 0 },
            (None, _, Some(_)) => KnownLease::Unknown,
            (None, _, None) => KnownLease::Free,
        }
    }

    /// Describes for people which host has the lease, and for how long.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            KnownLease::Held { holder, left_s } => {
                format!("host {holder} has the lease, for {left_s} s unless it is renewed")
            }
            KnownLease::OwnEnded { .. } => "its lease has ended".into(),
            KnownLease::LastSeen { holder } => {
                format!("host {holder} had the lease; whether it still has the lease is not known")
            }
            KnownLease::Unknown => "it does not know which host has the lease".into(),
            KnownLease::Free => "no host has the lease".into(),
        }
    }
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
        match (self.state, &self.lease) {
            (LeaseState::Active, _) => None,
            (LeaseState::TakingOver, _) => Some("taking over".into()),
            (_, KnownLease::Held { holder, .. } | KnownLease::OwnEnded { holder }) => {
                Some(format!("standing by for host {holder}"))
            }
            (_, KnownLease::LastSeen { .. } | KnownLease::Unknown) => {
                Some("standing by; the lease is not known".into())
            }
            (_, KnownLease::Free) => Some("standing by; no host is active".into()),
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

    /// Adds the host's role, and the problems of the lease.
    pub fn add_lease(&mut self, lease: &LeaseView, now: BootInstant) {
        let known = KnownLease::new(lease, now);
        let problem = match (lease.state, &lease.problem, &known) {
            (LeaseState::Active | LeaseState::TakingOver, Some(problem), KnownLease::Held { left_s: left, .. }) => {
                Some(format!("the lease cannot be renewed, and ends in {left} s: {problem}"))
            }
            (_, _, KnownLease::OwnEnded { .. }) => {
                Some("the lease of this host has ended, and the daemon makes no progress: restart the daemon".into())
            }
            (_, Some(problem), _) => Some(format!("this host cannot take over: the lease: {problem}")),
            (LeaseState::TakingOver, None, _) => {
                Some("no host is active: this one fetches and opens the database".into())
            }
            (LeaseState::Standby, None, KnownLease::Free) => {
                Some("no host is active: this one takes over when the lease allows it".into())
            }
            (LeaseState::Standby, None, KnownLease::Held { holder, .. }) if is_taking_over(lease) => Some(format!(
                "no host is active: host {holder} is taking over; if it does not become active, look at its restore command"
            )),
            _ => None,
        };
        self.role = Some(Role { state: lease.state, lease: known });
        let failure = lease.failure.as_ref().map(|failure| format!("this host could not take over: {failure}"));
        self.attention.extend(problem.into_iter().chain(failure).chain(lease.faults.iter().cloned()));
        self.ok &= self.attention.is_empty();
    }
}

/// Whether the holder of the lease is not active yet.
fn is_taking_over(lease: &LeaseView) -> bool {
    lease.holder.as_ref().is_some_and(|holder| holder.stage == LeaseStage::TakingOver)
}

/// Describes how this host differs from the holder of the lease. With another version or configuration, this host would make
/// other decisions after a takeover.
fn differences(lease: &LeaseView, own: &OwnProgram) -> Vec<String> {
    let Some(holder) = &lease.holder else { return Vec::new() };
    let (host, tables) = (&holder.host, own.configuration.differences(&holder.configuration));
    let role = if is_taking_over(lease) { "which is taking over" } else { "which is active" };
    let configuration = (!tables.is_empty()).then(|| {
        let tables = tables.join(" and ");
        format!(
            "the configuration differs from that of host {host}, {role}, in {tables}: make it the same on both hosts"
        )
    });
    let versions = [
        ("version", own.version.clone(), holder.version.clone()),
        ("schema", own.schema.to_string(), holder.schema.to_string()),
    ];
    let versions = versions.into_iter().filter(|(_, own, other)| own != other).map(|(kind, own, other)| {
        format!("this program has {kind} {own}, and that of host {host}, {role}, has {other}: install the same one")
    });
    configuration.into_iter().chain(versions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::LeaseValue;

    fn hashes(configuration: &str) -> ConfigurationHashes {
        ConfigurationHashes::new(&configuration.parse().unwrap())
    }

    fn lease(state: LeaseState) -> LeaseView {
        let configuration = hashes("");
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
        let same = OwnProgram { version: "0.2.0".into(), schema: 2, configuration: hashes("") };
        let health = Health::of_standby(&lease(LeaseState::Standby), &same, now);
        let role = Role { state: LeaseState::Standby, lease: KnownLease::Held { holder: "a".into(), left_s: 14 } };
        assert_eq!((health.ok, health.line(), health.role), (true, "standing by for host a".into(), Some(role)));
        let forward = hashes("[[forward]]\nname = \"shop\"");
        for (own, expected) in [
            (OwnProgram { version: "0.1.0".into(), ..same.clone() }, "has version 0.1.0, and that of host a"),
            (OwnProgram { schema: 1, ..same.clone() }, "has schema 1"),
            (OwnProgram { configuration: forward, ..same.clone() }, "active, in [[forward]]: make it the same"),
        ] {
            let health = Health::of_standby(&lease(LeaseState::Standby), &own, now);
            assert!(!health.ok && health.attention.len() == 1 && health.attention[0].contains(expected), "{health:?}");
        }
    }

    #[test]
    fn a_takeover_elsewhere_needs_attention() {
        let mut lease = lease(LeaseState::Standby);
        lease.holder.as_mut().unwrap().stage = LeaseStage::TakingOver;
        let own = OwnProgram { version: "0.2.0".into(), schema: 2, ..OwnProgram::default() };
        let health = Health::of_standby(&lease, &own, BootInstant::from_millis(1_000));
        let expected = [
            "the configuration differs from that of host a, which is taking over, in",
            "no host is active: host a is taking over",
        ];
        assert!(!health.ok && health.attention.len() == expected.len(), "{health:?}");
        assert!(health.attention.iter().zip(expected).all(|(found, text)| found.contains(text)), "{health:?}");
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
            let lease = health.role.unwrap().lease.describe();
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
            (role.line().unwrap(), role.lease.describe())
        };
        let unknown = ("standing by; the lease is not known", "it does not know which host has the lease");
        assert_eq!(says(Some("no server")), (unknown.0.into(), unknown.1.into()));
        assert_eq!(says(LeaseView::unread().problem.as_deref()), (unknown.0.into(), unknown.1.into()));
        assert_eq!(says(None), ("standing by; no host is active".into(), "no host has the lease".into()));
    }

    #[test]
    fn an_old_holder_may_have_renewed_its_lease() {
        let lease = LeaseView { problem: Some("no server".into()), ..lease(LeaseState::Standby) };
        let role = |millis| {
            let health = Health::of_standby(&lease, &OwnProgram::default(), BootInstant::from_millis(millis));
            health.role.unwrap()
        };
        assert_eq!(role(1_000).lease.describe(), "host a has the lease, for 14 s unless it is renewed");
        let role = role(16_000);
        assert_eq!(role.lease.describe(), "host a had the lease; whether it still has the lease is not known");
        assert_eq!(role.line().unwrap(), "standing by; the lease is not known");
        let json = serde_json::to_string(&role).unwrap();
        assert_eq!(json, r#"{"state":"standby","holder":"a","lease_left_s":0}"#);
    }
}
