//! Every honest way to pay.

use super::*;

#[tokio::test]
async fn a_token_paid_directly_is_confirmed() {
    let world = World::new();
    let hash = world.pay(world.payer(), world.shop(), UNITS);
    world.finalise();
    let arrival = world.ask(&world.chain(""), &world.claim("USDC", &hash)).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.received.as_str()), (hash, "20"));
    assert!(arrival.amount_checked && arrival.keys == [0] && arrival.paid == arrival.block);
}

#[tokio::test]
async fn a_token_through_a_temporary_wallet_is_confirmed() {
    let world = World::new();
    // The wallet is paid before it is made, as on the published page.
    let wallet = world.wallet("0x1");
    let hash = world.pay(world.payer(), &wallet, UNITS);
    let (chain, claim) = (world.chain(""), world.claim("USDC", &hash));
    assert_eq!(world.code(&chain, &claim).await, "unarrived");
    world.create_wallet("0x1", world.shop());
    let withdrawn = world.withdraw(&wallet);
    world.finalise();
    let arrival = world.ask(&chain, &claim).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.units), (withdrawn, UNITS));
    assert!(arrival.block.number > arrival.paid.number);
}

#[tokio::test]
async fn native_coin_is_confirmed_under_all_its_names() {
    let world = World::new();
    let hash = world.pay_native(world.payer(), world.shop(), NATIVE);
    world.finalise();
    for name in ["SETH", "ETH", "ethereum"] {
        let arrival = world.ask(&world.chain(""), &world.claim(name, &hash)).await.outcome.unwrap();
        assert_eq!((arrival.received.as_str(), arrival.token.as_str()), ("0.007", "SETH"));
        assert!(!arrival.amount_checked && arrival.keys == [-1]);
    }
}

#[tokio::test]
async fn a_trace_confirms_native_coin_through_a_wallet() {
    let world = World::new();
    let wallet = world.wallet_of_shop("0x1");
    let hash = world.pay_native(world.payer(), &wallet, NATIVE);
    let withdrawn = world.withdraw_native(&wallet);
    world.finalise();
    let claim = world.claim("SETH", &hash);
    let arrival = world.ask(&world.chain("trace = true"), &claim).await.outcome.unwrap();
    assert_eq!((arrival.transaction.to_string(), arrival.units), (withdrawn, NATIVE));
    assert_eq!(code(&world.ask(&world.chain(""), &claim).await), "no-trace");
}

#[tokio::test]
async fn two_transfers_of_one_transaction_are_summed() {
    let world = World::new();
    let split = "split(address,uint256,uint256)";
    let hash = world.send(world.payer(), &world.token, split, &[world.shop(), "12000000", "8000000"]);
    world.finalise();
    let arrival = world.ask(&world.chain(""), &world.claim("USDC", &hash)).await.outcome.unwrap();
    assert_eq!((arrival.units, arrival.keys.len()), (UNITS, 2));
}

#[tokio::test]
async fn a_token_may_have_18_decimals() {
    let world = World::with(Anvil::start(), "18");
    let hash = world.pay(world.payer(), world.shop(), 20 * 10_u128.pow(18));
    let chain = world.chain_with("", 18);
    assert_eq!(world.code(&chain, &world.claim("USDC", &hash)).await, "confirmed");
    let token = chain.coin("USDC").unwrap().contract.unwrap();
    assert_eq!(world.node().decimals(token).await.unwrap(), 18);
}

#[tokio::test]
async fn a_coupon_up_to_the_discount_is_confirmed() {
    let world = World::new();
    let hash = world.pay(world.payer(), world.shop(), UNITS * 9 / 10);
    let claim = world.claim("USDC", &hash);
    assert_eq!(world.code(&world.chain(""), &claim).await, "short");
    assert_eq!(world.code(&world.chain("discount = \"10%\""), &claim).await, "confirmed");
}
