//! For `check --connect`: checks each node of a chain. The checks cover the chain id, the age of the newest block, the final
//! block, the decimals of the tokens, and tracing.

use jiff::Timestamp;

use super::WatchedChain;
use super::chain_status::{NodeBlocks, ask};
use crate::chain::{Chain, Coin, Finality, Hash, Node, NodeError, NodeErrorKind};
use crate::units::count;

/// If the newest block of a node is older than this number of seconds, the node is too far behind its chain.
const STALE_SECONDS: i64 = 600;

/// Checks each node of a chain, and returns a line for each check. `Err`: a call failed, or the operator must correct something.
pub async fn probe(watched: &WatchedChain) -> Vec<Result<String, String>> {
    let mut lines = Vec::new();
    for node in &watched.nodes {
        let node_lines = probe_node(node, &watched.chain).await;
        let with_host = |message: String| match message.starts_with(node.host()) {
            true => message,
            false => format!("{}: {message}", node.host()),
        };
        lines.extend(node_lines.into_iter().map(|line| line.map(with_host).map_err(with_host)));
    }
    lines
}

async fn probe_node(node: &Node, chain: &Chain) -> Vec<Result<String, String>> {
    let NodeBlocks { head, last } = match ask(node, chain).await {
        Ok(blocks) => blocks,
        Err(fault) => return vec![Err(fault.message)],
    };
    let seconds = |timestamp: u64| i64::try_from(timestamp).unwrap_or(i64::MAX);
    let age = Timestamp::now().as_second().saturating_sub(seconds(head.timestamp));
    let finality = match chain.finality {
        Finality::Depth(blocks) => blocks.to_string(),
        tag => format!("{:?}", tag.to_string()),
    };
    let message = format!(
        "chain {}; newest block {}, {age} s old; last final block {}, {} behind (final = {finality})",
        chain.id,
        head.number,
        last.number,
        count(head.number.saturating_sub(last.number), "block")
    );
    let mut lines = vec![if age > STALE_SECONDS {
        Err(format!("{message}: the node does not follow its chain"))
    } else {
        Ok(message)
    }];
    for coin in &chain.tokens {
        lines.extend(probe_token(node, chain, coin).await);
    }
    if chain.trace {
        lines.push(probe_trace(node).await);
    }
    lines
}

async fn probe_token(node: &Node, chain: &Chain, coin: &Coin) -> Option<Result<String, String>> {
    let contract = coin.contract?;
    Some(match node.decimals(contract).await {
        Ok(Some(decimals)) if decimals == coin.decimals => {
            Ok(format!("{} has {}", coin.symbol, count(decimals, "decimal")))
        }
        Ok(Some(decimals)) => Err(format!(
            "{} at {contract} has {}, and [chain.tokens] has `decimals = {}`; correct it there",
            coin.symbol,
            count(decimals, "decimal"),
            coin.decimals
        )),
        Ok(None) => Err(format!(
            "{}: there is no token contract at {contract} on chain {}; correct [chain.tokens]",
            coin.symbol, chain.id
        )),
        Err(NodeError { method, kind: kind @ NodeErrorKind::Rejected { .. }, .. }) => Err(format!(
            "{} at {contract}: {method}: {kind}; if this is no token contract, correct [chain.tokens]",
            coin.symbol
        )),
        Err(NodeError { method, kind, .. }) => Err(format!("{} at {contract}: {method}: {kind}", coin.symbol)),
    })
}

/// Asks for the trace of a transaction that does not exist. Some nodes that can trace answer with an error, others with a result.
/// So the check fails only if the node lacks the method, or if the error concerns all calls.
async fn probe_trace(node: &Node) -> Result<String, String> {
    match node.trace(Hash([0; 32])).await {
        Err(error) if error.is_of_node() || matches!(error.kind, NodeErrorKind::NoMethod(_)) => {
            Err(format!("trace = true, but {}: {}", error.method, error.kind))
        }
        _ => Ok("it answers debug_traceTransaction".into()),
    }
}
