//! Attacks with a genuine mail: none is confirmed, and each has its reason.

use super::*;

#[tokio::test]
async fn an_invented_hash_is_unseen() {
    let world = World::new();
    let claim = world.claim("USDC", &format!("0x{}", "ab".repeat(32)));
    assert_eq!(world.code(&world.chain(""), &claim).await, "unseen");
}

#[tokio::test]
async fn an_unrelated_transaction_moves_no_token() {
    let world = World::new();
    let hash = world.pay_native(world.payer(), world.shop(), 1);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "token");
    // The other way round: a payment in a token moves no native coin.
    let hash = world.pay(world.payer(), world.shop(), UNITS);
    assert_eq!(world.code(&world.chain(""), &world.claim("SETH", &hash)).await, "token");
}

#[tokio::test]
async fn a_contract_with_forged_logs_is_no_token() {
    let world = World::new();
    let token = world.anvil.deploy("FalseToken", &[]);
    let forge = "forge(address,address,uint256)";
    let hash = world.send(world.payer(), &token, forge, &[world.payer(), world.shop(), "20000000"]);
    assert_eq!(world.anvil.receipt(&hash)["logs"].as_array().unwrap().len(), 1);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "token");
}

#[tokio::test]
async fn a_transfer_of_nothing_is_no_payment() {
    let world = World::new();
    let from = "transferFrom(address,address,uint256)";
    let hash = world.send(world.stranger(), &world.token, from, &[world.payer(), world.shop(), "0"]);
    assert_eq!(world.anvil.receipt(&hash)["logs"].as_array().unwrap().len(), 1);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "token");
}

#[tokio::test]
async fn a_failed_transaction_is_reverted() {
    let world = World::new();
    let hash = world.pay(&world.anvil.accounts[5], world.shop(), UNITS);
    let mut claim = world.claim("USDC", &hash);
    claim.from_wallet_address = Some(world.anvil.accounts[5].clone());
    assert_eq!(world.anvil.receipt(&hash)["status"], "0x0");
    assert_eq!(code(&world.ask(&world.chain(""), &claim).await), "fresh");
    assert_eq!(world.code(&world.chain(""), &claim).await, "reverted");
}

#[tokio::test]
async fn another_customer_s_payment_has_another_payer() {
    let world = World::new();
    let hash = world.pay(world.stranger(), world.shop(), UNITS);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "payer");
    let hash = world.pay_native(world.stranger(), world.shop(), NATIVE);
    assert_eq!(world.code(&world.chain(""), &world.claim("SETH", &hash)).await, "payer");
}

#[tokio::test]
async fn another_merchant_s_payment_does_not_arrive() {
    let world = World::new();
    let hash = world.pay(world.payer(), world.stranger(), UNITS);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_wallet_that_pays_another_does_not_arrive() {
    let world = World::new();
    let wallet = world.wallet_of_shop("0x1");
    let hash = world.pay(world.payer(), &wallet, UNITS);
    // Anyone may re-address it, and set it back afterwards.
    world.send(world.stranger(), &wallet, "setClient(address)", &[world.stranger()]);
    world.withdraw(&wallet);
    world.send(world.stranger(), &wallet, "setClient(address)", &[world.shop()]);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_wallet_that_forwards_nothing_does_not_arrive() {
    let world = World::new();
    let wallet = world.wallet_of_shop("0x1");
    world.withdraw(&wallet);
    let hash = world.pay(world.payer(), &wallet, UNITS);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn dust_does_not_borrow_another_payment() {
    let world = World::new();
    // The stranger is a wallet with much traffic, such as an exchange's.
    let hash = world.pay(world.payer(), world.stranger(), 1);
    world.pay(world.stranger(), world.shop(), UNITS);
    assert_eq!(world.code(&world.chain(""), &world.claim("USDC", &hash)).await, "short");
}

#[tokio::test]
async fn an_event_forged_by_reentrancy_does_not_arrive() {
    let world = World::new();
    let thief = world.anvil.deploy("Readdresser", &[world.shop()]);
    world.create_wallet("0x1", &thief);
    let wallet = world.wallet("0x1");
    let hash = world.pay_native(world.payer(), &wallet, NATIVE);
    let withdrawn = world.withdraw_native(&wallet);
    // A stranger pays the shop the same sum.
    world.pay_native(world.stranger(), world.shop(), NATIVE);
    let log = &world.anvil.receipt(&withdrawn)["logs"][0]["data"];
    assert!(log.as_str().unwrap().contains(&world.shop().to_lowercase()[2..]), "the event names the shop: {log}");
    assert_eq!(world.code(&world.chain("trace = true"), &world.claim("SETH", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_deceptive_trace_does_not_arrive() {
    let world = World::new();
    let wallet = world.anvil.deploy("FalseWallet", &[]);
    for pretend in ["delegate(address)", "takeBack(address)"] {
        let data = calldata(pretend, &[world.shop()]);
        let hash = world.anvil.send(world.payer(), Some(&wallet), NATIVE, &data);
        assert_eq!(world.anvil.receipt(&hash)["status"], "0x1");
        let trace = serde_json::json!([hash, {"tracer": "callTracer"}]);
        let trace = world.anvil.call("debug_traceTransaction", trace).to_string();
        assert!(trace.contains(&world.shop().to_lowercase()[2..]), "{pretend}: {trace}");
        assert_eq!(
            world.code(&world.chain("trace = true"), &world.claim("SETH", &hash)).await,
            "unarrived",
            "{pretend}"
        );
    }
}

#[tokio::test]
async fn one_sum_pays_one_event() {
    let world = World::new();
    let chain = world.chain("");
    let first = world.pay(world.payer(), world.stranger(), UNITS);
    let second = world.pay(world.stranger(), world.shop(), UNITS);
    world.finalise();
    let paid = world.ask(&chain, &world.claim("USDC", &first)).await.outcome.unwrap();
    assert_eq!(paid.transaction.to_string(), second);
    let mut claim = world.claim("USDC", &second);
    claim.from_wallet_address = Some(world.stranger().into());
    assert!(is_confirmed(&world.ask(&chain, &claim).await), "alone it would be confirmed");
    let is_claimed = |hash, key| hash == paid.transaction && paid.keys.contains(&key);
    let beside = ask_with_claimed(&chain, &claim, &[world.node()], &is_claimed).await;
    assert_eq!(code(&beside), "claimed");
}

#[tokio::test]
async fn an_old_payment_pays_no_new_order() {
    let world = World::new();
    let hash = world.pay(world.payer(), world.shop(), UNITS);
    let mut claim = world.claim("USDC", &hash);
    claim.sent_at += *AN_HOUR;
    assert_eq!(world.code(&world.chain("window = \"59m\""), &claim).await, "old");
    assert_eq!(world.code(&world.chain(""), &claim).await, "confirmed");
    claim.registered_at = Some(Timestamp::now() + *AN_HOUR);
    assert_eq!(world.code(&world.chain(""), &claim).await, "old");
}

#[tokio::test]
async fn a_payment_with_wrong_decimals_is_short() {
    let world = World::with(Anvil::start(), "18");
    // The page asks for six decimals of a token that has 18.
    let hash = world.pay(world.payer(), world.shop(), UNITS);
    assert_eq!(world.code(&world.chain_with("", 18), &world.claim("USDC", &hash)).await, "short");
}

#[tokio::test]
async fn a_chain_without_a_node_is_unproven() {
    let world = World::new();
    let mut claim = world.claim("USDC", &format!("0x{}", "ab".repeat(32)));
    claim.blockchain = Some("Solana".into());
    let chains = [world.chain("")];
    let reason = Question::new(&claim, &chains).unwrap_err();
    assert_eq!(reason.to_string(), "no-node: no [[chain]] is configured for \"Solana\"");
}
