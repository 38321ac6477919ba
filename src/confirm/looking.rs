//! One look at one event: asks every node, and judges what they answer.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::WatchedChain;
use crate::chain::{
    Chain, Claim, Confirmation, ConfirmationReason, Hash, Node, NodeError, NodeErrorKind, Observation, Question, Step,
    judge, look,
};
use crate::db::{self, Store};
use crate::payments::{DueLook, FinishedLook, RecordedLook};

/// How long one look may take. An honest node needs two seconds.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(300);

/// The answers of one node, for people.
#[derive(Debug, Clone)]
pub struct NodeAnswers {
    /// The node's host.
    pub host: String,
    /// Its calls.
    pub steps: Vec<Step>,
    /// Why the look ended early.
    pub error: Option<String>,
}

/// The logs and calls that pay other events.
type ClaimedArrivals = HashSet<(Hash, i64)>;

/// The question of a claim, for the chain that the event was assigned to.
pub(super) fn question<'a>(claim: &Claim, chain: &'a Chain) -> Result<Question<'a>, ConfirmationReason> {
    Question::new(claim, std::slice::from_ref(chain))
}

/// Asks all nodes at the same time.
pub(super) async fn look_at(nodes: &[Node], question: &Question<'_>) -> Vec<Observation> {
    join_all(nodes.iter().map(|node| look_in_time(node, question))).await
}

/// A slow node answers each call in time, and the whole look never.
async fn look_in_time(node: &Node, question: &Question<'_>) -> Observation {
    let host = node.host().to_owned();
    let words = || format!("the look did not end within {}", crate::units::HumanDuration(LONGEST_LOOK));
    let late = |_| {
        let error = NodeError { host: host.clone(), method: "look", kind: NodeErrorKind::Unreachable(words()) };
        Observation { host, error: Some(error), ..Observation::default() }
    };
    timeout(LONGEST_LOOK, look(node, question)).await.unwrap_or_else(late)
}

/// The arrivals among these answers that pay other events.
pub(super) async fn claimed(
    store: &Store,
    chain: &Chain,
    due: &DueLook,
    seen: &[Observation],
) -> db::Result<ClaimedArrivals> {
    let transactions: HashSet<Hash> = seen.iter().flat_map(Observation::transactions).collect();
    store.claimed_by_others(chain.id, &due.event_id, transactions.into_iter().collect()).await
}

/// Judges the answers. The time of the next look is left to the caller.
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

/// Contradicting mails are waited for after the mail was stored and after the money arrived: the honest mail comes after the
/// arrival, however early a thief has claimed it.
fn settles_at(chain: &Chain, due: &DueLook, seen: &[Observation], confirmation: &Confirmation) -> Timestamp {
    let block = confirmation.outcome.as_ref().ok().map(|arrival| arrival.block);
    let arrived_at = block.and_then(|block| seen.iter().filter_map(|node| node.block_time(block)).max());
    // A block is not in the future; a node's clock may be.
    let from = arrived_at.map_or(due.stored_at, |at| at.max(due.stored_at)).min(Timestamp::now());
    let settle = SignedDuration::try_from(chain.settle).unwrap_or(SignedDuration::MAX);
    from.checked_add(settle).unwrap_or(Timestamp::MAX)
}

/// Looks at an event now, for a person. A result is recorded if the event waits for the chain or for a person.
///
/// # Errors
/// An error of the store.
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
