//! Creates the [`LeaseView`]: the state of the lease, for the rest of the program.

use super::{EntryContent, HolderStage, LeaseMachine, Place};
use crate::standby::view::{LeaseState, LeaseView};

impl LeaseMachine {
    /// Why an operator must look at the content of the key; `None` if there is no reason.
    fn oddity(&self, content: &EntryContent) -> Option<String> {
        match content {
            EntryContent::Unreadable => {
                Some("its content is not known to this version; it counts as another host".into())
            }
            EntryContent::Value(value) if value.host == self.me.host && value.home != self.me.home => Some(format!(
                "another daemon uses the name of this host, {}; give each host its name with [standby] host",
                value.host
            )),
            _ => None,
        }
    }

    /// Creates the [`LeaseView`]: the state of the lease, for the rest of the program.
    pub(in crate::standby) fn view(&self) -> LeaseView {
        let mut view = LeaseView {
            another_became_active: self.another_became_active,
            takeovers: self.takeovers,
            term: self.term,
            ..LeaseView::default()
        };
        match &self.place {
            Place::Holder(holder) => {
                view.state = match &holder.stage {
                    HolderStage::TakingOver | HolderStage::Opened { .. } => LeaseState::TakingOver,
                    HolderStage::Active => LeaseState::Active,
                    HolderStage::Releasing { failure: Some(_), .. } => LeaseState::Waiting,
                    HolderStage::Releasing { .. } => LeaseState::Standby,
                };
                if let HolderStage::Releasing { failure, .. } = &holder.stage {
                    view.failure.clone_from(failure);
                    view.is_releasing = true;
                } else {
                    view.holder = Some(self.value(&holder.stage));
                    view.ends = Some(self.ends(holder));
                    view.takeover = Some(holder.takeover.clone());
                    view.is_asked_to_release = holder.is_asked;
                }
            }
            Place::Standby(standby) => {
                let live = standby.seen.as_ref().and_then(|seen| match &seen.entry.content {
                    EntryContent::Value(value) if value.is_live() && value.process != self.me.process => Some(value),
                    _ => None,
                });
                view.problem = standby.seen.as_ref().and_then(|seen| self.oddity(&seen.entry.content));
                view.holder = live.cloned();
                view.ends = live.map(|_| standby.live_until);
                view.failure.clone_from(&standby.failure);
                let waits = standby.failure.is_some() && live.is_none();
                view.state = if waits { LeaseState::Waiting } else { LeaseState::Standby };
            }
        }
        view
    }
}
