//! Each regular way to pay is confirmed.

use super::*;

#[tokio::test]
async fn a_token_paid_directly_is_confirmed() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS);
    setup.finalise();
    let arrival = setup.ask(&setup.chain(""), &setup.claim("USDC", &hash)).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.received.as_str()), (hash, "20"));
    assert!(arrival.amount_checked && arrival.keys == [0] && arrival.paid == arrival.block);
}

#[tokio::test]
async fn a_token_through_a_temporary_wallet_is_confirmed() {
    let setup = ChainSetup::new();
    // As on the published payment page, the payment arrives before the wallet contract is deployed.
    let wallet = setup.wallet("0x1");
    let hash = setup.pay(setup.payer(), &wallet, UNITS);
    let (chain, claim) = (setup.chain(""), setup.claim("USDC", &hash));
    assert_eq!(setup.code(&chain, &claim).await, "unarrived");
    setup.create_wallet("0x1", setup.shop());
    let withdrawn = setup.withdraw(&wallet);
    setup.finalise();
    let arrival = setup.ask(&chain, &claim).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.units), (withdrawn, UNITS));
    assert!(arrival.block.number > arrival.paid.number);
}

#[tokio::test]
async fn native_coin_is_confirmed_under_all_its_names() {
    let setup = ChainSetup::new();
    let hash = setup.pay_native(setup.payer(), setup.shop(), NATIVE);
    setup.finalise();
    for name in ["SETH", "ETH", "ethereum"] {
        let arrival = setup.ask(&setup.chain(""), &setup.claim(name, &hash)).await.outcome.unwrap();
        assert_eq!((arrival.received.as_str(), arrival.token.as_str()), ("0.007", "SETH"));
        assert!(!arrival.amount_checked && arrival.keys == [-1]);
    }
}

#[tokio::test]
async fn a_trace_confirms_native_coin_through_a_wallet() {
    let setup = ChainSetup::new();
    let wallet = setup.wallet_of_shop("0x1");
    let hash = setup.pay_native(setup.payer(), &wallet, NATIVE);
    let withdrawn = setup.withdraw_native(&wallet);
    setup.finalise();
    let claim = setup.claim("SETH", &hash);
    let arrival = setup.ask(&setup.chain("trace = true"), &claim).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.units), (withdrawn, NATIVE));
    assert_eq!(code(&setup.ask(&setup.chain(""), &claim).await), "no-trace");
}

#[tokio::test]
async fn two_transfers_of_one_transaction_are_summed() {
    let setup = ChainSetup::new();
    let split = "split(address,uint256,uint256)";
    let hash = setup.send(setup.payer(), &setup.token, split, &[setup.shop(), "12000000", "8000000"]);
    setup.finalise();
    let arrival = setup.ask(&setup.chain(""), &setup.claim("USDC", &hash)).await.outcome.unwrap();
    assert_eq!((arrival.units, arrival.keys.len()), (UNITS, 2));
}

#[tokio::test]
async fn a_token_may_have_18_decimals() {
    let setup = ChainSetup::with(Anvil::start(), "18");
    let hash = setup.pay(setup.payer(), setup.shop(), 20 * 10_u128.pow(18));
    let chain = setup.chain_with("", 18);
    assert_eq!(setup.code(&chain, &setup.claim("USDC", &hash)).await, "confirmed");
    let token = chain.coin("USDC").unwrap().contract.unwrap();
    assert_eq!(setup.node().decimals(token).await.unwrap(), Some(18));
}

#[tokio::test]
async fn a_coupon_up_to_the_discount_is_confirmed() {
    let setup = ChainSetup::new();
    let hash = setup.pay(setup.payer(), setup.shop(), UNITS * 9 / 10);
    let claim = setup.claim("USDC", &hash);
    assert_eq!(setup.code(&setup.chain(""), &claim).await, "short");
    assert_eq!(setup.code(&setup.chain("discount = \"10%\""), &claim).await, "confirmed");
}
