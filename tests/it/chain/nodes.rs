//! Finality, reorganisations, and disagreements between two nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resmic_mailhook::chain::{ConfirmedArrival, Finality, Revisited, revisit};
use serde_json::{Value, json};

use super::*;
use testkit::node::ScriptedNode;

/// Makes a payment and returns its claim.
fn paid(setup: &ChainSetup) -> Claim {
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS);
    setup.claim("USDC", &hash)
}

#[tokio::test]
async fn a_payment_waits_until_its_block_is_final() {
    let setup = ChainSetup::new();
    let claim = paid(&setup);
    for (chain, blocks) in [(setup.chain(""), 4), (setup.chain("final = 12"), 7)] {
        let before = setup.ask(&chain, &claim).await;
        assert_eq!(code(&before), "fresh", "{before:?}");
        assert!(before.paid.is_some() && before.final_block.is_some());
        setup.anvil.mine(blocks);
        assert!(is_confirmed(&setup.ask(&chain, &claim).await));
    }
}

#[tokio::test]
async fn the_depth_is_counted_in_blocks() {
    let setup = ChainSetup::new();
    let claim = paid(&setup);
    setup.anvil.mine(2);
    let reason = setup.ask(&setup.chain("final = 12"), &claim).await.outcome.unwrap_err();
    assert!(reason.to_string().ends_with("has 3 of 12 blocks"), "{reason}");
    assert!(is_confirmed(&setup.ask(&setup.chain("final = 3"), &claim).await));
}

#[tokio::test]
async fn reorganisation_before_the_depth_revokes_the_payment() {
    let setup = ChainSetup::new();
    let (chain, claim) = (setup.chain("final = 5"), paid(&setup));
    setup.anvil.mine(2);
    assert_eq!(code(&setup.ask(&chain, &claim).await), "fresh");
    setup.anvil.reorganise(3);
    setup.anvil.mine(10);
    assert_eq!(code(&setup.ask(&chain, &claim).await), "unseen");
    // The payer pays again after the reorganisation. This payment is confirmed in its block.
    let later_claim = paid(&setup);
    setup.anvil.mine(5);
    assert!(is_confirmed(&setup.ask(&chain, &later_claim).await));
}

#[tokio::test]
async fn a_reorganisation_after_the_depth_loses_the_arrival() {
    let setup = ChainSetup::new();
    let (chain, claim) = (setup.chain("final = 1"), paid(&setup));
    let arrival = setup.ask(&chain, &claim).await.outcome.unwrap();
    let mut finalized = chain.clone();
    finalized.finality = Finality::Finalized;
    let chains = [finalized];
    let question = Question::new(&claim, &chains).unwrap();
    let revisit_now = async || {
        let seen = [look_at_node(&setup.node(), &question).await];
        let confirmed = ConfirmedArrival { transaction: arrival.transaction, block: arrival.block.number };
        revisit(&question, &seen, &confirmed, &|_, _| false)
    };
    assert_eq!(revisit_now().await, Revisited::Later);
    let snapshot = setup.anvil.call("evm_snapshot", json!([]));
    setup.finalise();
    assert_eq!(revisit_now().await, Revisited::Stands);
    setup.anvil.call("evm_revert", json!([snapshot]));
    setup.anvil.reorganise(2);
    assert_eq!(revisit_now().await, Revisited::Later);
    setup.finalise();
    let Revisited::Lost(reason) = revisit_now().await else { panic!("it still stands") };
    assert!(reason.to_string().starts_with("lost: "), "{reason}");
}

#[tokio::test]
async fn a_lying_node_does_not_confirm_alone() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.payer(), setup.stranger(), UNITS);
    let claim = setup.claim("USDC", &hash);
    setup.finalise();
    let (shop, stranger) = (setup.shop()[2..].to_lowercase(), setup.stranger()[2..].to_lowercase());
    // The lying node reports that the shop was paid.
    let liar = ScriptedNode::altering(setup.anvil.port, move |request, answer| {
        if request["method"] == "eth_getTransactionReceipt" {
            *answer = serde_json::from_str(&answer.to_string().replace(&stranger, &shop)).unwrap();
        }
    });
    let chain = setup.chain("");
    assert!(is_confirmed(&ask(&chain, &claim, &[node_at(&liar.url())]).await), "one node is believed");
    let confirmation = ask(&chain, &claim, &[node_at(&liar.url()), setup.node()]).await;
    assert_eq!(code(&confirmation), "unarrived");
}

#[tokio::test]
async fn a_node_with_another_amount_disagrees() {
    let setup = ChainSetup::new();
    let claim = paid(&setup);
    setup.finalise();
    let word = |units: u128| format!("{units:064x}");
    let generous = ScriptedNode::altering(setup.anvil.port, move |_, answer| {
        *answer = serde_json::from_str(&answer.to_string().replace(&word(UNITS), &word(UNITS + 1))).unwrap();
    });
    let confirmation = ask(&setup.chain(""), &claim, &[setup.node(), node_at(&generous.url())]).await;
    assert_eq!(code(&confirmation), "disagree");
}

#[tokio::test]
async fn a_lagging_node_is_waited_for() {
    let setup = ChainSetup::new();
    let claim = paid(&setup);
    setup.finalise();
    let is_behind = Arc::new(AtomicBool::new(true));
    let behind = is_behind.clone();
    let second = ScriptedNode::altering(setup.anvil.port, move |request, answer| {
        if behind.load(Ordering::SeqCst) && request["method"] == "eth_getTransactionReceipt" {
            answer["result"] = Value::Null;
        }
    });
    let nodes = [setup.node(), node_at(&second.url())];
    let chain = setup.chain("");
    assert_eq!(code(&ask(&chain, &claim, &nodes).await), "unseen");
    is_behind.store(false, Ordering::SeqCst);
    assert!(is_confirmed(&ask(&chain, &claim, &nodes).await));
}

#[tokio::test]
async fn a_node_that_is_down_is_waited_for() {
    let setup = ChainSetup::new();
    let claim = paid(&setup);
    setup.finalise();
    let down = node_at(&format!("http://127.0.0.1:{}/s3cretkey", testkit::process::free_port()));
    let reason = ask(&setup.chain(""), &claim, &[setup.node(), down]).await.outcome.unwrap_err();
    assert!(reason.to_string().starts_with("node: 127.0.0.1: "), "{reason}");
    assert!(!reason.to_string().contains("s3cretkey"), "{reason}");
}

#[tokio::test]
async fn a_node_of_another_chain_is_named() {
    let setup = ChainSetup::with(Anvil::start_with("137", &[]), "6");
    let claim = paid(&setup);
    setup.finalise();
    let reason = setup.ask(&setup.chain(""), &claim).await.outcome.unwrap_err();
    let expected = "node: 127.0.0.1 is a node of chain 137, not of Sepolia (11155111)";
    assert_eq!(reason.to_string(), expected);
}

#[tokio::test]
async fn the_search_for_a_pruned_receipt_ends() {
    let pruning = ["--prune-history", "--transaction-block-keeper", "3"];
    let setup = ChainSetup::with(Anvil::start_with(testkit::anvil::SEPOLIA, &pruning), "6");
    let mut claim = paid(&setup);
    setup.anvil.mine(10);
    assert_eq!(code(&setup.ask(&setup.chain(""), &claim).await), "unseen");
    claim.sent_at -= *AN_HOUR * 25;
    let reason = setup.ask(&setup.chain(""), &claim).await.outcome.unwrap_err();
    assert!(reason.to_string().starts_with("gave-up: the mail is older than 1d"), "{reason}");
}

#[tokio::test]
async fn the_block_range_is_halved_until_accepted() {
    let setup = ChainSetup::new();
    let wallet = setup.wallet("0x1");
    let hash = setup.pay(setup.payer(), &wallet, UNITS);
    setup.anvil.mine(3);
    setup.create_wallet("0x1", setup.shop());
    setup.withdraw(&wallet);
    setup.finalise();
    let limited = ScriptedNode::altering(setup.anvil.port, |request, answer| {
        let number = |key: &str| {
            let text = request["params"][0][key].as_str().unwrap_or("0x0");
            u64::from_str_radix(&text[2..], 16).unwrap()
        };
        if request["method"] == "eth_getLogs" && number("toBlock") - number("fromBlock") >= 2 {
            *answer = json!({"jsonrpc": "2.0", "id": request["id"],
                "error": {"code": -32600, "message": "up to a 2 block range"}});
        }
    });
    let (chain, claim) = (setup.chain("log_range = 100"), setup.claim("USDC", &hash));
    assert!(is_confirmed(&ask(&chain, &claim, &[node_at(&limited.url())]).await));
}
