//! The [`LeaseView`]: the state of the lease, which the agent sends to the rest of the program.

use serde::{Deserialize, Serialize};

use super::lease_value::{DataOwner, LeaseValue};
use crate::boot_clock::BootInstant;

/// The problem of a daemon that has not read the lease yet.
pub(super) const NOT_READ: &str = "the daemon has started and has not read it yet";

/// The state of this host with respect to the lease. The names of the states in JSON and in the log are an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// This host watches the lease of another host, or no host has the lease.
    #[default]
    Standby,
    /// This host has the lease, and fetches and opens the database.
    TakingOver,
    /// This host has the lease, watches the mailboxes and delivers.
    Active,
    /// This host could not take over, so it releases the lease and tries again later.
    Waiting,
}

impl LeaseState {
    /// The name of the state in JSON and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LeaseState::Standby => "standby",
            LeaseState::TakingOver => "taking-over",
            LeaseState::Active => "active",
            LeaseState::Waiting => "waiting",
        }
    }
}

/// The state of the lease at one moment, as this host knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseView {
    /// The state of this host with respect to the lease.
    pub state: LeaseState,
    /// The lease value of the host that has the lease; `None` if no such host is known.
    pub holder: Option<LeaseValue>,
    /// When the holder's lease ends, unless it is renewed.
    pub ends: Option<BootInstant>,
    /// This host has the lease, and an operator wants this host to release it.
    pub is_asked_to_release: bool,
    /// This host no longer works with the database, and the release of the lease is being written.
    pub is_releasing: bool,
    /// The facts that this host knew about the newest database when it took the lease; `None` if this host does not have the
    /// lease, or releases it.
    pub takeover: Option<Takeover>,
    /// Why this host could not take over, if it has released the lease for this reason.
    pub failure: Option<String>,
    /// Why the lease cannot be read or written, or why an operator must look at the content of the key.
    pub problem: Option<String>,
    /// Problems that do not keep this host from the lease now, and that an operator must solve. The texts are for the operator.
    pub faults: Vec<String>,
    /// Another process became active after this process had read the key for the first time.
    pub another_became_active: bool,
    /// How often this process became active.
    pub takeovers: u64,
    /// The number of times that this process has got the lease. A loop that began in one term must not go on in the next term.
    pub term: u64,
}

impl LeaseView {
    /// The view of a daemon that has not read the lease yet.
    #[must_use]
    pub fn unread() -> Self {
        LeaseView { problem: Some(NOT_READ.into()), ..LeaseView::default() }
    }

    /// Whether `self` and `before` differ at most in the end of the lease and in the values that a renewal may change.
    pub(super) fn is_renewal_of(&self, before: &LeaseView) -> bool {
        let without_time = |view: &LeaseView| {
            let mut view = LeaseView { ends: None, ..view.clone() };
            if let Some(holder) = &mut view.holder {
                (holder.count, holder.data) = (0, None);
            }
            view
        };
        without_time(self) == without_time(before)
    }

    /// Whether this host has had the lease without a break since `term` began, and has the lease at `now`.
    #[must_use]
    pub fn is_held_since(&self, term: u64, now: BootInstant) -> bool {
        self.term == term && self.is_held(now)
    }

    /// Whether this host has the lease at `now`.
    #[must_use]
    pub fn is_held(&self, now: BootInstant) -> bool {
        let holds = matches!(self.state, LeaseState::TakingOver | LeaseState::Active);
        holds && self.ends.is_some_and(|ends| now < ends)
    }
}

/// The facts that a host knows about the newest database when it takes the lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeover {
    /// The host with the newest database; `None` if no such host is known.
    pub data: Option<DataOwner>,
    /// The database on this host is certainly the newest.
    pub is_newest_here: bool,
    /// The bucket is new: no host ever had the lease.
    pub never_held: bool,
}
