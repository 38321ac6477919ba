//! One look at one event: asks every node of the event's chain, and judges the answers.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::WatchedChain;
use crate::chain::{
    Chain, Claim, Confirmation, ConfirmationReason, Hash, Node, NodeError, NodeErrorKind, Observation, Question, Step,
    judge, look_at_node,
};
use crate::db::{self, Store};
use crate::payments::{DueLook, FinishedLook, RecordedLook};

/// The time limit of one look. A look at an honest node takes about two seconds.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(300);

/// The answers of one node, as text for `confirm --explain`.
#[derive(Debug, Clone)]
pub struct NodeAnswers {
    /// The node's host.
    pub host: String,
    /// The calls of the look, with their results.
    pub steps: Vec<Step>,
    /// The error that ended the look early, if a call failed or the look took too long.
    pub error: Option<String>,
}

/// The arrivals that already confirm other events. Each entry has a transaction, and the key of a log or a call in that
/// transaction.
type ClaimedArrivals = HashSet<(Hash, i64)>;

/// Turns the claim of a mail into a [`Question`] for the nodes of `chain`. `Err`: the reason why the nodes cannot check the
/// claim.
pub(super) fn question<'a>(claim: &Claim, chain: &'a Chain) -> Result<Question<'a>, ConfirmationReason> {
    Question::new(claim, std::slice::from_ref(chain))
}

/// Asks all nodes about one payment at the same time, and returns the answers of each node.
pub(super) async fn look_at(nodes: &[Node], question: &Question<'_>) -> Vec<Observation> {
    join_all(nodes.iter().map(|node| look_in_time(node, question))).await
}

/// Looks at one node within [`LONGEST_LOOK`]. Each call has a deadline, too. But a look consists of many calls, and a slow node
/// could answer each call just before the call's deadline.
async fn look_in_time(node: &Node, question: &Question<'_>) -> Observation {
    let host = node.host().to_owned();
    let message = || format!("the look did not end within {}", crate::units::HumanDuration(LONGEST_LOOK));
    let late = |_| {
        let error = NodeError { host: host.clone(), method: "look", kind: NodeErrorKind::Unreachable(message()) };
        Observation { host, error: Some(error), ..Observation::default() }
    };
    timeout(LONGEST_LOOK, look_at_node(node, question)).await.unwrap_or_else(late)
}

/// Reads from the database which arrivals in the nodes' answers already confirm other events.
pub(super) async fn claimed(
    store: &Store,
    chain: &Chain,
    due: &DueLook,
    seen: &[Observation],
) -> db::Result<ClaimedArrivals> {
    let transactions: HashSet<Hash> = seen.iter().flat_map(Observation::transactions).collect();
    store.claimed_by_others(chain.id, &due.event_id, transactions.into_iter().collect()).await
}

/// Judges the nodes' answers in `seen`, and returns the finished look. The caller sets `next_look_at` in the returned value.
pub(super) fn finish(
    chain: &Chain,
    hosts: &str,
    due: DueLook,
    seen: &[Observation],
    claimed: &ClaimedArrivals,
) -> FinishedLook {
    let confirmation = match question(&due.claim, chain) {
        Ok(question) => judge(&question, seen, Timestamp::now(), &|hash, log| claimed.contains(&(hash, log))),
        Err(reason) => Confirmation::without_look(reason),
    };
    let settles_at = settles_at(chain, &due, seen, &confirmation);
    FinishedLook {
        due,
        confirmation,
        chain_id: chain.id,
        finality: chain.finality.to_string(),
        nodes: hosts.to_owned(),
        settles_at,
        next_look_at: None,
    }
}

/// The time before which the event is not confirmed: `settle` after the mail was stored or the money arrived, whichever is later.
/// A thief's mail can name a transaction before the money arrives. The notification of the real payment arrives only after the
/// money. That notification must have time to arrive, so that it can contradict the thief's mail.
fn settles_at(chain: &Chain, due: &DueLook, seen: &[Observation], confirmation: &Confirmation) -> Timestamp {
    let block = confirmation.outcome.as_ref().ok().map(|arrival| arrival.block);
    let arrived_at = block.and_then(|block| seen.iter().filter_map(|node| node.block_time(block)).max());
    // A block cannot be from the future, but a node may report a time in the future.
    let from = arrived_at.map_or(due.stored_at, |at| at.max(due.stored_at)).min(Timestamp::now());
    let settle = SignedDuration::try_from(chain.settle).unwrap_or(SignedDuration::MAX);
    from.checked_add(settle).unwrap_or(Timestamp::MAX)
}

/// Looks at an event immediately, for `confirm`. The result is written into the database only if the event has a row in
/// `confirmations`.
///
/// # Errors
/// The database cannot be read or written.
pub async fn look_now(
    store: &Store,
    watched: &WatchedChain,
    due: DueLook,
    has_row: bool,
) -> db::Result<(Confirmation, Vec<NodeAnswers>, Option<RecordedLook>)> {
    let WatchedChain { chain, nodes } = watched;
    let seen = match question(&due.claim, chain) {
        Ok(question) => look_at(nodes, &question).await,
        Err(_) => Vec::new(),
    };
    let claimed = claimed(store, chain, &due, &seen).await?;
    let mut finished = finish(chain, &watched.hosts(), due.clone(), &seen, &claimed);
    let confirmation = finished.confirmation.clone();
    finished.next_look_at = match confirmation.outcome {
        Ok(_) => super::revisit_pause(chain, &due).map(super::from_now),
        Err(_) => Some(Timestamp::now()),
    };
    let recorded = if has_row { Some(store.record_look(finished).await?) } else { None };
    let answers = seen.into_iter().map(|node| NodeAnswers {
        host: node.host,
        steps: node.steps,
        error: node.error.map(|error| error.to_string()),
    });
    Ok((confirmation, answers.collect(), recorded))
}
