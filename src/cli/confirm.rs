//! `confirm`: checks an event at the nodes of its chain immediately, or records the decision of an operator.

use anyhow::Context;
use serde::Serialize;

use super::output::{self, cell, message};
use crate::app;
use crate::chain::{Confirmation, ConfirmationState};
use crate::config::Config;
use crate::confirm::{self, NodeAnswers, WatchedChain};
use crate::db::StoreReader;
use crate::model::fold_chain;
use crate::payments::{DueLook, RecordedLook};
use crate::telemetry::NodeRequests;

/// The output of `confirm --json`. The keys are an interface.
#[derive(Serialize)]
struct ConfirmOutput<'a> {
    event_id: &'a str,
    state: ConfirmationState,
    reason: Option<String>,
    arrival: Option<String>,
    received: Option<String>,
    received_token: Option<String>,
    released: usize,
    nodes: Vec<NodeLine>,
}

#[derive(Serialize)]
struct NodeLine {
    host: String,
    error: Option<String>,
    steps: Vec<StepLine>,
}

#[derive(Serialize)]
struct StepLine {
    asked: String,
    answered: String,
}

/// Checks an event at the nodes of its chain immediately, and prints the result.
pub(super) async fn look_at_event(config: &Config, event_id: &str, explain: bool, json: bool) -> anyhow::Result<()> {
    let event_id = event_id.trim().to_ascii_lowercase();
    let event = StoreReader::open(&config.database())?.event(&event_id)?;
    event.with_context(|| format!("no event {event_id:?}; `resmic-mailhook events` lists them"))?;
    anyhow::ensure!(!config.chains.is_empty(), "no [[chain]] is configured, so no node can be asked");
    let chains = app::chains(config, &NodeRequests::default()).await?;
    let store = crate::db::Store::open(app::store_settings(config))?;
    let looked = look_with(&store, &chains, &event_id).await;
    store.close().await;
    let (confirmation, nodes, recorded) = looked?;
    if json {
        print_json(&event_id, &confirmation, nodes, recorded)
    } else {
        print(&confirmation, &nodes, recorded, explain)
    }
}

type LookResult = (Confirmation, Vec<NodeAnswers>, Option<RecordedLook>);

async fn look_with(store: &crate::db::Store, chains: &[WatchedChain], event_id: &str) -> anyhow::Result<LookResult> {
    let (due, has_row) = store
        .look_of(event_id)
        .await?
        .with_context(|| format!("event {event_id} is not completed; it needs no confirmation"))?;
    match chain_of(&due, chains) {
        Some(chain) => Ok(confirm::look_now(store, chain, due, has_row).await?),
        None => {
            let chains: Vec<_> = chains.iter().map(|watched| watched.chain.clone()).collect();
            let reason = crate::chain::Question::new(&due.claim, &chains).err();
            let reason = reason.context("the event's chain has no node")?;
            Ok((Confirmation::without_look(reason), Vec::new(), None))
        }
    }
}

fn chain_of<'a>(due: &DueLook, chains: &'a [WatchedChain]) -> Option<&'a WatchedChain> {
    let name = fold_chain(due.claim.blockchain.as_deref()?);
    chains.iter().find(|watched| fold_chain(&watched.chain.name) == name)
}

/// The event's state and its reason after the look. The database's result in `recorded` takes precedence over `confirmation`,
/// because the arrival may already confirm another event.
fn state_and_reason(
    confirmation: &Confirmation,
    recorded: Option<&RecordedLook>,
) -> (ConfirmationState, Option<String>) {
    match (recorded, &confirmation.outcome) {
        (Some(RecordedLook::Open(reason)), _) | (_, Err(reason)) => (reason.code.state(), Some(reason.to_string())),
        (_, Ok(_)) => (ConfirmationState::Confirmed, None),
    }
}

fn released(recorded: Option<&RecordedLook>) -> usize {
    match recorded {
        Some(RecordedLook::Confirmed { released }) => *released,
        _ => 0,
    }
}

fn print_json(
    event_id: &str,
    confirmation: &Confirmation,
    nodes: Vec<NodeAnswers>,
    recorded: Option<RecordedLook>,
) -> anyhow::Result<()> {
    let (state, reason) = state_and_reason(confirmation, recorded.as_ref());
    let arrival = confirmation.outcome.as_ref().ok();
    let nodes = nodes.into_iter().map(|node| NodeLine {
        host: node.host,
        error: node.error,
        steps: node.steps.into_iter().map(|s| StepLine { asked: s.asked, answered: s.answered }).collect(),
    });
    output::json(&ConfirmOutput {
        event_id,
        state,
        reason,
        arrival: arrival.map(|a| a.transaction.to_string()),
        received: arrival.map(|a| a.received.clone()),
        received_token: arrival.map(|a| a.token.clone()),
        released: released(recorded.as_ref()),
        nodes: nodes.collect(),
    })
}

fn print(
    confirmation: &Confirmation,
    nodes: &[NodeAnswers],
    recorded: Option<RecordedLook>,
    explain: bool,
) -> anyhow::Result<()> {
    for node in nodes.iter().filter(|_| explain) {
        output::line(&format!("{}:", cell(Some(&node.host))))?;
        for step in &node.steps {
            output::line(&format!("  {}: {}", cell(Some(&step.asked)), cell(Some(&step.answered))))?;
        }
    }
    let (state, reason) = state_and_reason(confirmation, recorded.as_ref());
    match (&confirmation.outcome, reason) {
        (_, Some(reason)) => output::line(&format!("{state}: {}", crate::model::printable(&reason, 600)))?,
        (Ok(arrival), None) => {
            output::line(&format!(
                "{state}: {} {} arrived in {}",
                arrival.received, arrival.token, arrival.transaction
            ))?;
        }
        (Err(_), None) => output::line(&state.to_string())?,
    }
    match recorded {
        None => message("the event does not wait for the chain; nothing was changed"),
        Some(RecordedLook::Outdated) => message("the event is confirmed already, or has changed; nothing was changed"),
        Some(RecordedLook::Confirmed { released }) => message(&format!("deliveries released: {released}")),
        Some(RecordedLook::Open(_)) => {}
    }
    Ok(())
}

/// The output of `confirm --vouch --json`. The keys are an interface.
#[derive(Serialize)]
struct VouchedLine<'a> {
    event_id: &'a str,
    before: Option<ConfirmationState>,
    released: usize,
    held: i64,
}

/// Writes into the database that an operator vouches for an event, and prints the result.
pub(super) async fn vouch(config: &Config, event_id: &str, json: bool) -> anyhow::Result<()> {
    // `StoreReader::open` fails if the database does not exist. Opening the store would create the database.
    drop(StoreReader::open(&config.database())?);
    let event_id = event_id.trim().to_ascii_lowercase();
    let vouched = super::with_store(config, async |store| store.vouch(&event_id).await).await?;
    if json {
        let crate::payments::Vouched { before, released, held } = vouched;
        return output::json(&VouchedLine { event_id: &event_id, before, released, held });
    }
    match vouched.before {
        None => {
            output::line(&format!("event {event_id} waits neither for a chain nor for Resmic; nothing was changed"))?;
        }
        Some(ConfirmationState::Confirmed) => {
            output::line(&format!("event {event_id} is confirmed already; nothing was changed"))?;
        }
        Some(before) => output::line(&format!("event {event_id} was {before}, and is operator now"))?,
    }
    output::line(&format!("deliveries released: {}", vouched.released))?;
    if vouched.held > 0 {
        message(
            "its deliveries are still held, for a session or a conflict: `show EVENT_ID`, `session assign EVENT_ID SESSION_ID`",
        );
    }
    Ok(())
}
