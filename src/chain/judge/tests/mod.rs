//! Tests the judge with observations that are written by hand.

mod random;

use super::super::answers::{Frame, Log, TRANSFER, Transaction};
use super::super::claim::Claim;
use super::super::claim::tests::{PAYER, SHOP, TX, chain, claim};
use super::super::configured::Chain;
use super::super::hex::Quantity;
use super::super::node_error::NodeError;
use super::*;

const WALLET: Address = Address([0x77; 20]);
const STRANGER: Address = Address([0x99; 20]);
const PASSED_ON: Hash = Hash([0x22; 32]);
/// The amount in the mail: 20 USDC, in the token's smallest units.
const UNITS: u128 = 20_000_000;

fn usdc() -> Address {
    chain("").coin("USDC").unwrap().contract.unwrap()
}

fn block(number: u64) -> Block {
    let sent_at: Timestamp = claim("USDC").sent_at;
    let hash = Hash([u8::try_from(number % 256).unwrap(); 32]);
    Block { number, hash, timestamp: u64::try_from(sent_at.as_second()).unwrap() - 60 }
}

fn log(token: Address, from: Address, to: Address, value: u128, log_index: u64) -> Log {
    let mut data = vec![0; 16];
    data.extend(value.to_be_bytes());
    let topics = vec![TRANSFER, Hash::of_address(from), Hash::of_address(to)];
    Log { address: token, topics, data, log_index, transaction_hash: TX, block_hash: TX, removed: false }
}

fn seen(hash: Hash, number: u64, mut logs: Vec<Log>) -> Seen {
    let block = block(number);
    for log in &mut logs {
        (log.transaction_hash, log.block_hash) = (hash, block.hash);
    }
    let receipt = Receipt {
        transaction_hash: hash,
        transaction_index: 0,
        block_hash: block.hash,
        block_number: number,
        succeeded: true,
        bloom_is_zero: logs.is_empty(),
        logs,
    };
    Seen { receipt, block: Some(block), trace: None }
}

fn node() -> Observation {
    let (chain_id, final_block) = (Some(137), Some(100));
    Observation { host: "node.example".into(), chain_id, final_block, ..Observation::default() }
}

/// The answers of a node at which the payer has paid the merchant 20 USDC.
fn direct() -> Observation {
    Observation { payment: Some(seen(TX, 90, vec![log(usdc(), PAYER, SHOP, UNITS, 4)])), ..node() }
}

/// The answers of a node at which the payer has paid 20 USDC to a temporary wallet, which has passed them on.
fn through_wallet() -> Observation {
    Observation {
        payment: Some(seen(TX, 90, vec![log(usdc(), PAYER, WALLET, UNITS, 4)])),
        candidates: vec![seen(PASSED_ON, 92, vec![log(usdc(), WALLET, SHOP, UNITS, 1)])],
        ..node()
    }
}

fn transaction(to: Address) -> Transaction {
    Transaction { hash: TX, from: PAYER, to: Some(to), value: UNITS, block_hash: Some(block(90).hash) }
}

fn native_direct() -> Observation {
    Observation { payment: Some(seen(TX, 90, Vec::new())), transaction: Some(transaction(SHOP)), ..node() }
}

fn frame(kind: &str, from: Address, to: Address, value: u128, calls: Vec<Frame>) -> Frame {
    Frame { kind: kind.into(), from, to: Some(to), value: Some(Quantity(value)), error: None, calls }
}

fn native_through_wallet() -> Observation {
    let mut passed_on = seen(PASSED_ON, 92, Vec::new());
    let paid = frame("CALL", WALLET, SHOP, UNITS, Vec::new());
    passed_on.trace = Some(frame("CALL", STRANGER, WALLET, 0, vec![paid]));
    Observation { transaction: Some(transaction(WALLET)), candidates: vec![passed_on], ..native_direct() }
}

fn traced(seen: &mut Observation) -> &mut Frame {
    seen.candidates[0].trace.as_mut().unwrap()
}

const NOW: &str = "2025-03-05T03:37:00Z";

fn ask(chain: &Chain, claim: &Claim, seen: &[Observation]) -> Confirmation {
    let chains = [chain.clone()];
    judge(&Question::new(claim, &chains).unwrap(), seen, NOW.parse().unwrap(), &|_, _| false)
}

/// The reason why one node's answers confirm nothing. If the answers confirm the payment, the text is empty.
fn reason(token: &str, seen: Observation) -> String {
    let confirmation = ask(&chain("trace = true"), &claim(token), &[seen]);
    confirmation.outcome.map(|_| String::new()).unwrap_or_else(|reason| reason.to_string())
}

/// Changes a node's answers, and returns the code of the reason why the changed answers confirm nothing.
fn code(token: &str, mut seen: Observation, change: impl FnOnce(&mut Observation)) -> String {
    change(&mut seen);
    reason(token, seen).split(':').next().unwrap().to_owned()
}

fn payment(seen: &mut Observation) -> &mut Receipt {
    &mut seen.payment.as_mut().unwrap().receipt
}

#[test]
fn every_honest_way_to_pay_is_confirmed() {
    let arrival = |token: &str, seen| ask(&chain("trace = true"), &claim(token), &[seen]).outcome.unwrap();
    let paid = arrival("USDC", direct());
    assert_eq!((paid.transaction, paid.keys.as_slice(), paid.block.number), (TX, &[4_i64][..], 90));
    assert_eq!((paid.received.as_str(), paid.token.as_str(), paid.amount_checked), ("20", "USDC", true));
    let paid = arrival("USDC", through_wallet());
    assert_eq!((paid.transaction, paid.keys.as_slice(), paid.paid.number), (PASSED_ON, &[1_i64][..], 90));
    let paid = arrival("matic-network", native_direct());
    assert_eq!((paid.keys.as_slice(), paid.received.as_str()), (&[-1_i64][..], "0.00000000002"));
    assert_eq!((paid.token.as_str(), paid.amount_checked), ("MATIC", false));
    let paid = arrival("MATIC", native_through_wallet());
    assert_eq!((paid.transaction, paid.keys.as_slice(), paid.units), (PASSED_ON, &[-2_i64][..], UNITS));
}

#[test]
fn transfers_of_one_transaction_are_summed() {
    let logs = vec![log(usdc(), PAYER, SHOP, UNITS - 5, 4), log(usdc(), PAYER, SHOP, 5, 6)];
    let seen = Observation { payment: Some(seen(TX, 90, logs)), ..node() };
    let arrival = ask(&chain(""), &claim("USDC"), &[seen]).outcome.unwrap();
    assert_eq!((arrival.keys.as_slice(), arrival.units), (&[4, 6][..], UNITS));
}

#[test]
fn a_transfer_that_proves_nothing_has_its_reason() {
    let with = |logs: Vec<Log>| Observation { payment: Some(seen(TX, 90, logs)), ..node() };
    let code_of = |logs| code("USDC", with(logs), |_| ());
    assert_eq!(code_of(vec![log(STRANGER, PAYER, SHOP, UNITS, 4)]), "token", "a false token");
    assert_eq!(code_of(vec![log(usdc(), PAYER, SHOP, 0, 4)]), "token", "a transfer of nothing");
    assert_eq!(code_of(Vec::new()), "token");
    assert_eq!(code_of(vec![log(usdc(), STRANGER, SHOP, UNITS, 4)]), "payer");
    assert_eq!(code_of(vec![log(usdc(), PAYER, SHOP, UNITS - 2, 4)]), "short");
    assert_eq!(code_of(vec![log(usdc(), PAYER, SHOP, UNITS - 1, 4)]), "", "one unit for rounding");
    assert_eq!(code_of(vec![log(usdc(), PAYER, STRANGER, UNITS, 4)]), "unarrived");
}

#[test]
fn money_from_the_merchants_wallet_pays_nothing() {
    let mut claim = claim("USDC");
    claim.from_wallet_address = Some(SHOP.to_string());
    let seen = Observation { payment: Some(seen(TX, 90, vec![log(usdc(), SHOP, SHOP, UNITS, 4)])), ..node() };
    let confirmation = ask(&chain(""), &claim, &[seen]);
    assert_eq!(confirmation.outcome.unwrap_err().code, Code::Payer);
}

#[test]
fn a_coupon_is_allowed_up_to_the_discount() {
    let seen = Observation { payment: Some(seen(TX, 90, vec![log(usdc(), PAYER, SHOP, 18_000_000, 4)])), ..node() };
    let state_with = |keys: &str| ask(&chain(keys), &claim("USDC"), std::slice::from_ref(&seen)).state();
    assert_eq!(state_with(""), State::Doubtful);
    assert_eq!(state_with("discount = \"9.9%\""), State::Doubtful);
    assert_eq!(state_with("discount = \"10%\""), State::Confirmed);
}

#[test]
fn an_arrival_is_limited_by_the_payment() {
    let dust = |seen: &mut Observation| payment(seen).logs = vec![log(usdc(), PAYER, WALLET, 1, 4)];
    let dust_in_its_block = |seen: &mut Observation| {
        dust(seen);
        let hash = payment(seen).block_hash;
        payment(seen).logs[0].block_hash = hash;
    };
    assert_eq!(code("USDC", through_wallet(), dust_in_its_block), "short");
}

#[test]
fn an_arrival_stands_after_the_payment() {
    let at = |number: u64| {
        let mut seen_before = through_wallet();
        seen_before.candidates = vec![seen(PASSED_ON, number, vec![log(usdc(), WALLET, SHOP, UNITS, 1)])];
        code("USDC", seen_before, |_| ())
    };
    assert_eq!((at(89).as_str(), at(91).as_str()), ("unarrived", ""));
    let same_transaction = |first, second| {
        let logs = vec![log(usdc(), WALLET, SHOP, UNITS, first), log(usdc(), PAYER, WALLET, UNITS, second)];
        let mut logs = logs;
        logs.sort_by_key(|log| log.log_index);
        let paid = seen(TX, 90, logs);
        let seen = Observation { payment: Some(paid.clone()), candidates: vec![paid], ..node() };
        code("USDC", seen, |_| ())
    };
    assert_eq!((same_transaction(3, 4).as_str(), same_transaction(5, 4).as_str()), ("unarrived", ""));
}

#[test]
fn an_arrival_that_pays_another_event_is_claimed() {
    let (chains, claim) = ([chain("")], claim("USDC"));
    let question = Question::new(&claim, &chains).unwrap();
    let code = |seen: Observation, claimed: (Hash, i64)| {
        let confirmation = judge(&question, &[seen], NOW.parse().unwrap(), &|hash, key| (hash, key) == claimed);
        confirmation.outcome.err().map(|reason| reason.code)
    };
    assert_eq!(code(direct(), (TX, 4)), Some(Code::Claimed));
    assert_eq!(code(direct(), (TX, 5)), None);
    assert_eq!(code(through_wallet(), (PASSED_ON, 1)), Some(Code::Claimed));
    let mut twice = through_wallet();
    twice.candidates.push(seen(Hash([0x33; 32]), 93, vec![log(usdc(), WALLET, SHOP, UNITS, 2)]));
    assert_eq!(code(twice, (PASSED_ON, 1)), None, "the wallet passed money on twice");
}

#[test]
fn an_old_payment_is_doubtful() {
    let old = |seen: &mut Observation| seen.payment.as_mut().unwrap().block.as_mut().unwrap().timestamp -= 7200;
    assert_eq!(code("USDC", direct(), old), "old");
    let mut claim = claim("USDC");
    let registered = |second: i64| Some(Timestamp::from_millisecond(second * 1000 + 900).unwrap());
    let paid_at = i64::try_from(block(90).timestamp).unwrap();
    claim.registered_at = registered(paid_at);
    assert_eq!(ask(&chain(""), &claim, &[direct()]).state(), State::Confirmed, "in the same second");
    claim.registered_at = registered(paid_at + 1);
    assert_eq!(ask(&chain(""), &claim, &[direct()]).outcome.unwrap_err().code, Code::Old);
}

#[test]
fn only_final_blocks_confirm_or_contradict() {
    let fresh = |seen: &mut Observation| seen.final_block = Some(89);
    assert_eq!(code("USDC", direct(), fresh), "fresh");
    let failed = |seen: &mut Observation| payment(seen).succeeded = false;
    assert_eq!(code("USDC", direct(), failed), "reverted");
    assert_eq!(code("USDC", direct(), |seen| (fresh(seen), failed(seen)).0), "fresh");
    assert_eq!(code("USDC", direct(), |seen| (fresh(seen), payment(seen).logs.clear()).0), "node");
    assert_eq!(code("USDC", through_wallet(), |seen| seen.final_block = Some(91)), "fresh");
    let mut seen = direct();
    (seen.head, seen.final_block) = (Some(101), Some(82));
    let reason = ask(&chain("final = 20"), &claim("USDC"), &[seen]).outcome.unwrap_err().to_string();
    assert_eq!(reason, "fresh: block 90 has 12 of 20 blocks");
}

#[test]
fn an_impossible_answer_makes_the_event_wait() {
    assert_eq!(code("USDC", direct(), |seen| seen.payment = None), "unseen");
    assert_eq!(code("USDC", direct(), |seen| seen.final_block = None), "node");
    assert_eq!(code("USDC", direct(), |seen| seen.chain_id = Some(1)), "node");
    assert_eq!(code("USDC", direct(), |seen| seen.chain_id = None), "node");
    assert_eq!(code("USDC", direct(), |seen| payment(seen).transaction_hash = PASSED_ON), "node");
    assert_eq!(code("USDC", direct(), |seen| payment(seen).block_hash = TX), "node", "its logs are of another block");
    assert_eq!(code("USDC", direct(), |seen| seen.payment.as_mut().unwrap().block = None), "unseen");
    assert_eq!(code("USDC", direct(), |seen| payment(seen).logs.clear()), "node", "the bloom filter is not empty");
    let reorganised = |seen: &mut Observation| seen.payment.as_mut().unwrap().block.as_mut().unwrap().hash = TX;
    assert_eq!(code("USDC", direct(), reorganised), "unseen");
    let doubled = |seen: &mut Observation| {
        let log = payment(seen).logs[0].clone();
        payment(seen).logs.push(log);
    };
    assert_eq!(code("USDC", direct(), doubled), "node", "one log twice");
    assert_eq!(code("USDC", through_wallet(), |seen| seen.candidates[0].receipt.succeeded = false), "unarrived");
    assert_eq!(code("USDC", through_wallet(), |seen| seen.candidates.clear()), "unarrived");
}

#[test]
fn native_money_must_come_from_the_payer() {
    let transaction = |seen: &mut Observation, change: fn(&mut Transaction)| change(seen.transaction.as_mut().unwrap());
    assert_eq!(code("MATIC", native_direct(), |s| transaction(s, |t| t.from = STRANGER)), "payer");
    assert_eq!(code("MATIC", native_direct(), |s| transaction(s, |t| t.value = 0)), "token");
    assert_eq!(code("MATIC", native_direct(), |s| transaction(s, |t| t.to = None)), "token");
    assert_eq!(code("MATIC", native_direct(), |s| transaction(s, |t| t.block_hash = None)), "unseen");
    assert_eq!(code("MATIC", native_direct(), |s| s.transaction = None), "unseen");
}

#[test]
fn only_a_call_that_stands_moves_native_money() {
    assert_eq!(code("MATIC", native_through_wallet(), |_| ()), "");
    for kind in ["DELEGATECALL", "CALLCODE", "STATICCALL", "CREATE"] {
        assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).calls[0].kind = kind.into()), "unarrived");
    }
    let failed = || Some("execution reverted".to_owned());
    assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).calls[0].error = failed()), "unarrived");
    assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).error = failed()), "unarrived");
    assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).calls[0].from = STRANGER), "unarrived");
    assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).calls[0].to = Some(STRANGER)), "unarrived");
    assert_eq!(code("MATIC", native_through_wallet(), |s| traced(s).calls.clear()), "unarrived");
}

#[test]
fn native_money_through_a_wallet_needs_a_trace() {
    let confirmation = ask(&chain(""), &claim("MATIC"), &[native_through_wallet()]);
    assert_eq!(confirmation.outcome.unwrap_err().code, Code::NoTrace);
    let no_method =
        |seen: &mut Observation| seen.error = Some(error(NodeErrorKind::NoMethod("Method not found".into())));
    assert_eq!(code("MATIC", native_through_wallet(), no_method), "no-trace");
}

fn error(kind: NodeErrorKind) -> NodeError {
    NodeError { host: "node.example".into(), method: "eth_getLogs", kind }
}

#[test]
fn two_nodes_must_say_the_same() {
    let default_nodes = chain("").nodes;
    assert_eq!(default_nodes, 1);
    let mut chain = chain("");
    chain.nodes = 2;
    let code = |seen: &[Observation]| ask(&chain, &claim("USDC"), seen).outcome.err().map(|reason| reason.code);
    assert_eq!(code(&[direct(), direct()]), None);
    assert_eq!(code(&[direct()]), Some(Code::Node), "one of them was not asked");
    assert_eq!(code(&[]), Some(Code::Node));
    let larger = Observation { payment: Some(seen(TX, 90, vec![log(usdc(), PAYER, SHOP, UNITS + 1, 4)])), ..node() };
    assert_eq!(code(&[direct(), larger]), Some(Code::Disagree));
    let false_token = || Observation { payment: Some(seen(TX, 90, vec![log(STRANGER, PAYER, SHOP, 1, 4)])), ..node() };
    assert_eq!(code(&[direct(), false_token()]), Some(Code::Disagree));
    assert_eq!(code(&[false_token(), false_token()]), Some(Code::Token));
    assert_eq!(code(&[direct(), node()]), Some(Code::Unseen), "one of them is behind");
    let down = || Observation { error: Some(error(NodeErrorKind::Unreachable("no answer".into()))), ..node() };
    assert_eq!(code(&[down(), direct()]), Some(Code::Node));
}

#[test]
fn a_wait_that_is_too_long_ends() {
    let at = |now: &str, seen: Observation| {
        let (chains, claim) = ([chain("")], claim("USDC"));
        let question = Question::new(&claim, &chains).unwrap();
        judge(&question, &[seen], now.parse().unwrap(), &|_, _| false).outcome.unwrap_err().code
    };
    assert_eq!(at("2025-03-06T03:35:00Z", node()), Code::Unseen);
    assert_eq!(at("2025-03-06T03:36:05Z", node()), Code::GaveUp);
    // A backfill: the mail is old, and the event was stored a moment ago.
    let mut old = claim("USDC");
    old.sent_at = "2024-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(ask(&chain(""), &old, &[node()]).outcome.unwrap_err().code, Code::GaveUp);
    let pruned = Observation { error: Some(error(NodeErrorKind::Pruned("gone".into()))), ..node() };
    assert_eq!(ask(&chain(""), &old, &[pruned]).outcome.unwrap_err().code, Code::GaveUp);
    let down = Observation { error: Some(error(NodeErrorKind::Unreachable("no answer".into()))), ..node() };
    assert_eq!(ask(&chain(""), &old, &[down]).outcome.unwrap_err().code, Code::Node);
}

#[test]
fn an_arrival_missing_when_final_is_lost() {
    let (chains, claim) = ([chain("")], claim("USDC"));
    let question = Question::new(&claim, &chains).unwrap();
    let revisit_with = |seen: Observation| {
        let arrival = ConfirmedArrival { transaction: TX, block: 90 };
        revisit(&question, &[seen], &arrival, &|_, _| false)
    };
    let is_lost = |seen| matches!(revisit_with(seen), Revisited::Lost(reason) if reason.code == Code::Lost);
    assert_eq!(revisit_with(direct()), Revisited::Stands);
    assert_eq!(revisit_with(Observation { final_block: Some(89), ..node() }), Revisited::Later);
    assert_eq!(revisit_with(Observation { final_block: Some(89), ..direct() }), Revisited::Later);
    assert!(is_lost(node()));
    assert!(is_lost(through_wallet()), "it has arrived in another transaction");
    let down = Observation { error: Some(error(NodeErrorKind::Unreachable("no answer".into()))), ..node() };
    assert_eq!(revisit_with(down), Revisited::Later);
}
