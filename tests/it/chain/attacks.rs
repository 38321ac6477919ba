//! Attacks with a genuine mail. No such payment is confirmed, and each test checks the reason code.

use super::*;

#[tokio::test]
async fn an_invented_hash_is_unseen() {
    let setup = ChainSetup::new();
    let claim = setup.claim("USDC", &format!("0x{}", "ab".repeat(32)));
    assert_eq!(setup.code(&setup.chain(""), &claim).await, "unseen");
}

#[tokio::test]
async fn an_unrelated_transaction_moves_no_token() {
    let setup = ChainSetup::new();
    let hash = setup.pay_native(setup.payer(), setup.shop(), 1);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "token");
    // Conversely, a payment in a token moves no native coin.
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("SETH", &hash)).await, "token");
}

#[tokio::test]
async fn a_contract_with_forged_logs_is_no_token() {
    let setup = ChainSetup::new();
    let token = setup.anvil.deploy("FalseToken", &[]);
    let forge = "forge(address,address,uint256)";
    let hash = setup.send(setup.payer(), &token, forge, &[setup.payer(), setup.shop(), "20000000"]);
    assert_eq!(setup.anvil.receipt(&hash)["logs"].as_array().unwrap().len(), 1);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "token");
}

#[tokio::test]
async fn a_transfer_of_nothing_is_no_payment() {
    let setup = ChainSetup::new();
    let from = "transferFrom(address,address,uint256)";
    let hash = setup.send(setup.stranger(), &setup.token, from, &[setup.payer(), setup.shop(), "0"]);
    assert_eq!(setup.anvil.receipt(&hash)["logs"].as_array().unwrap().len(), 1);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "token");
}

#[tokio::test]
async fn a_failed_transaction_is_reverted() {
    let setup = ChainSetup::new();
    let hash = setup.pay(&setup.anvil.accounts[5], setup.shop(), UNITS);
    let mut claim = setup.claim("USDC", &hash);
    claim.from_wallet_address = Some(setup.anvil.accounts[5].clone());
    assert_eq!(setup.anvil.receipt(&hash)["status"], "0x0");
    assert_eq!(code(&setup.ask(&setup.chain(""), &claim).await), "fresh");
    assert_eq!(setup.code(&setup.chain(""), &claim).await, "reverted");
}

#[tokio::test]
async fn another_customer_s_payment_has_another_payer() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.stranger(), setup.shop(), UNITS);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "payer");
    let hash = setup.pay_native(setup.stranger(), setup.shop(), NATIVE);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("SETH", &hash)).await, "payer");
}

#[tokio::test]
async fn another_merchant_s_payment_does_not_arrive() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.payer(), setup.stranger(), UNITS);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_wallet_that_pays_another_does_not_arrive() {
    let setup = ChainSetup::new();
    let wallet = setup.wallet_of_shop("0x1");
    let hash = setup.pay(setup.payer(), &wallet, UNITS);
    // In this contract, anyone may change the recipient and change it back afterwards.
    setup.send(setup.stranger(), &wallet, "setClient(address)", &[setup.stranger()]);
    setup.withdraw(&wallet);
    setup.send(setup.stranger(), &wallet, "setClient(address)", &[setup.shop()]);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_wallet_that_forwards_nothing_does_not_arrive() {
    let setup = ChainSetup::new();
    let wallet = setup.wallet_of_shop("0x1");
    setup.withdraw(&wallet);
    let hash = setup.pay(setup.payer(), &wallet, UNITS);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "unarrived");
}

#[tokio::test]
async fn dust_does_not_borrow_another_payment() {
    let setup = ChainSetup::new();
    // The stranger is a wallet with many transfers, such as an exchange's.
    let hash = setup.pay(setup.payer(), setup.stranger(), 1);
    setup.pay(setup.stranger(), setup.shop(), UNITS);
    assert_eq!(setup.code(&setup.chain(""), &setup.claim("USDC", &hash)).await, "short");
}

#[tokio::test]
async fn an_event_forged_by_reentrancy_does_not_arrive() {
    let setup = ChainSetup::new();
    let thief = setup.anvil.deploy("Readdresser", &[setup.shop()]);
    setup.create_wallet("0x1", &thief);
    let wallet = setup.wallet("0x1");
    let hash = setup.pay_native(setup.payer(), &wallet, NATIVE);
    let withdrawn = setup.withdraw_native(&wallet);
    // A stranger pays the shop the same amount.
    setup.pay_native(setup.stranger(), setup.shop(), NATIVE);
    let log = &setup.anvil.receipt(&withdrawn)["logs"][0]["data"];
    assert!(log.as_str().unwrap().contains(&setup.shop().to_lowercase()[2..]), "the event names the shop: {log}");
    assert_eq!(setup.code(&setup.chain("trace = true"), &setup.claim("SETH", &hash)).await, "unarrived");
}

#[tokio::test]
async fn a_deceptive_trace_does_not_arrive() {
    let setup = ChainSetup::new();
    let wallet = setup.anvil.deploy("FalseWallet", &[]);
    for pretend in ["delegate(address)", "takeBack(address)"] {
        let data = calldata(pretend, &[setup.shop()]);
        let hash = setup.anvil.send(setup.payer(), Some(&wallet), NATIVE, &data);
        assert_eq!(setup.anvil.receipt(&hash)["status"], "0x1");
        let trace = serde_json::json!([hash, {"tracer": "callTracer"}]);
        let trace = setup.anvil.call("debug_traceTransaction", trace).to_string();
        assert!(trace.contains(&setup.shop().to_lowercase()[2..]), "{pretend}: {trace}");
        assert_eq!(
            setup.code(&setup.chain("trace = true"), &setup.claim("SETH", &hash)).await,
            "unarrived",
            "{pretend}"
        );
    }
}

#[tokio::test]
async fn one_sum_pays_one_event() {
    let setup = ChainSetup::new();
    let chain = setup.chain("");
    let first = setup.pay(setup.payer(), setup.stranger(), UNITS);
    let second = setup.pay(setup.stranger(), setup.shop(), UNITS);
    setup.finalise();
    let paid = setup.ask(&chain, &setup.claim("USDC", &first)).await.outcome.unwrap();
    assert_eq!(paid.transaction.to_string(), second);
    let mut claim = setup.claim("USDC", &second);
    claim.from_wallet_address = Some(setup.stranger().into());
    assert!(is_confirmed(&setup.ask(&chain, &claim).await), "alone it would be confirmed");
    let is_claimed = |hash, key| hash == paid.transaction && paid.keys.contains(&key);
    let beside = ask_with_claimed(&chain, &claim, &[setup.node()], &is_claimed).await;
    assert_eq!(code(&beside), "claimed");
}

#[tokio::test]
async fn an_old_payment_pays_no_new_order() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS);
    let mut claim = setup.claim("USDC", &hash);
    claim.sent_at += *AN_HOUR;
    assert_eq!(setup.code(&setup.chain("window = \"59m\""), &claim).await, "old");
    assert_eq!(setup.code(&setup.chain(""), &claim).await, "confirmed");
    claim.registered_at = Some(Timestamp::now() + *AN_HOUR);
    assert_eq!(setup.code(&setup.chain(""), &claim).await, "old");
}

#[tokio::test]
async fn a_payment_with_wrong_decimals_is_short() {
    let setup = ChainSetup::with(Anvil::start(), "18");
    // The payment page assumed six decimals for a token that has 18.
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS);
    assert_eq!(setup.code(&setup.chain_with("", 18), &setup.claim("USDC", &hash)).await, "short");
}

#[tokio::test]
async fn a_chain_without_a_node_is_unproven() {
    let setup = ChainSetup::new();
    let mut claim = setup.claim("USDC", &format!("0x{}", "ab".repeat(32)));
    claim.blockchain = Some("Solana".into());
    let chains = [setup.chain("")];
    let reason = Question::new(&claim, &chains).unwrap_err();
    assert_eq!(reason.to_string(), "no-node: no [[chain]] is configured for \"Solana\"");
}
