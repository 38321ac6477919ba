//! Tests the judge with random observations.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

fn any_address() -> impl Strategy<Value = Address> {
    prop::sample::select(vec![PAYER, SHOP, WALLET, STRANGER])
}

fn any_payer() -> impl Strategy<Value = Address> {
    prop_oneof![9 => Just(PAYER), 1 => any_address()]
}

fn any_value() -> impl Strategy<Value = u128> {
    prop::sample::select(vec![0, 1, UNITS - 2, UNITS - 1, UNITS, 2 * UNITS, u128::MAX])
}

fn any_hash() -> impl Strategy<Value = Hash> {
    prop::sample::select(vec![TX, PASSED_ON, Hash([0x33; 32])])
}

fn any_log() -> impl Strategy<Value = Log> {
    let token = prop_oneof![9 => Just(usdc()), 1 => Just(STRANGER)];
    (token, any_address(), any_address(), any_value(), 0..6_u64, prop::bool::weighted(0.05))
        .prop_map(|(token, from, to, value, index, removed)| Log { removed, ..log(token, from, to, value, index) })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let kind = prop::sample::select(vec!["CALL", "CALL", "DELEGATECALL", "CALLCODE"]);
    let leaf = (kind, any_address(), any_address(), any_value(), prop::bool::weighted(0.1)).prop_map(
        |(kind, from, to, value, failed)| Frame {
            error: failed.then(|| "reverted".into()),
            ..frame(kind, from, to, value, Vec::new())
        },
    );
    leaf.prop_recursive(3, 12, 3, |inner| {
        (inner.clone(), prop::collection::vec(inner, 0..3)).prop_map(|(frame, calls)| Frame { calls, ..frame })
    })
}

prop_compose! {
    fn any_seen(tx: Hash)(
        hash in prop_oneof![4 => Just(tx), 1 => any_hash()],
        number in 88..103_u64,
        logs in prop::collection::vec(any_log(), 0..4),
        trace in prop::option::of(any_frame()),
        succeeded in prop::bool::weighted(0.9),
        is_elsewhere in prop::bool::weighted(0.1),
        has_block in prop::bool::weighted(0.95),
    ) -> Seen {
        let mut logs = logs;
        logs.sort_by_key(|log| log.log_index);
        logs.dedup_by_key(|log| log.log_index);
        let mut seen = seen(hash, number, logs);
        seen.receipt.succeeded = succeeded;
        seen.trace = trace;
        if is_elsewhere {
            seen.block = Some(block(number + 1));
        }
        if !has_block {
            seen.block = None;
        }
        seen
    }
}

prop_compose! {
    fn any_observation()(
        chain_id in prop_oneof![20 => Just(Some(137)), 1 => Just(Some(1)), 1 => Just(None)],
        payment in prop::option::weighted(0.95, any_seen(TX)),
        candidates in prop::collection::vec(any_hash().prop_flat_map(any_seen), 0..4),
        transaction in prop::option::weighted(0.9, (any_payer(), any_address(), any_value(), prop::bool::weighted(0.9))),
        failed in prop::bool::weighted(0.1),
    ) -> Observation {
        let paid_block = payment.as_ref().map_or(TX, |payment: &Seen| payment.receipt.block_hash);
        let transaction = transaction.map(|(from, to, value, is_mined)| Transaction {
            hash: TX, from, to: Some(to), value, block_hash: is_mined.then_some(paid_block),
        });
        let error = failed.then(|| error(NodeErrorKind::Unreachable("no answer".into())));
        Observation { chain_id, payment, candidates, transaction, error, ..node() }
    }
}

/// The amount of the token that the merchant received in the logs with these keys. This function uses no function of the judge.
fn units_in_logs(receipt: &Receipt, keys: &[i64]) -> u128 {
    let logs = receipt.logs.iter().filter(|log| {
        let is_ours = log.topics[2].0[12..] == SHOP.0 && log.topics[0] == TRANSFER && log.address == usdc();
        is_ours && !log.removed && keys.contains(&i64::try_from(log.log_index).unwrap())
    });
    let values = logs.map(|log| u128::from_be_bytes(log.data[16..].try_into().unwrap()));
    values.fold(0, u128::saturating_add)
}

/// The amount of the native coin that the merchant received in the calls of a trace that were not reverted.
fn units_in_calls(frame: &Frame) -> u128 {
    if frame.error.is_some() {
        return 0;
    }
    let own = if frame.kind == "CALL" && frame.to == Some(SHOP) { frame.value.unwrap().0 } else { 0 };
    frame.calls.iter().map(units_in_calls).fold(own, u128::saturating_add)
}

/// Whether a receipt in a final block of the node's chain shows the arrival.
fn stands(seen: &Observation, arrival: &Arrival, is_native: bool) -> bool {
    seen.payment.iter().chain(&seen.candidates).any(|tx| {
        let is_arrival = tx.receipt.transaction_hash == arrival.transaction && tx.receipt.succeeded;
        let is_final = tx.block.is_some_and(|block| block.hash == tx.receipt.block_hash && block.number <= 100);
        let paid_directly = || seen.transaction.as_ref().filter(|t| t.to == Some(SHOP)).map_or(0, |t| t.value);
        let units = match (is_native, arrival.keys.as_slice()) {
            (false, keys) => units_in_logs(&tx.receipt, keys),
            (true, [-1]) if arrival.transaction == TX => {
                paid_directly().max(tx.trace.as_ref().map_or(0, units_in_calls))
            }
            (true, _) => tx.trace.as_ref().map_or(0, units_in_calls),
        };
        is_arrival && is_final && units >= arrival.units && arrival.units > 0
    })
}

/// Judges 4,000 random observations, and returns how many of them confirm the payment.
fn confirmed_by_chance(token: &str, is_native: bool) -> usize {
    let (chains, claim) = ([chain("trace = true")], claim(token));
    let question = Question::new(&claim, &chains).unwrap();
    let confirmed = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) });
    let checked = runner.run(&any_observation(), |seen| {
        let confirmation = judge(&question, std::slice::from_ref(&seen), NOW.parse().unwrap(), &|_, _| false);
        if let Ok(arrival) = &confirmation.outcome {
            confirmed.set(confirmed.get() + 1);
            prop_assert!(stands(&seen, arrival, is_native), "{arrival:?}");
            prop_assert!(is_native || arrival.units >= UNITS - 1);
            prop_assert_eq!(seen.chain_id, Some(137));
        }
        // Only a transaction in a final block can contradict a mail. The newest final block of these observations is 100.
        if confirmation.state() == State::Doubtful {
            prop_assert!(seen.payment.unwrap().receipt.block_number <= 100);
        }
        prop_assert!(confirmation.state() != State::Operator);
        Ok(())
    });
    checked.unwrap();
    confirmed.get()
}

#[test]
fn nothing_confirms_without_an_arrival_in_a_receipt() {
    // Some of the random observations must confirm the payment. Otherwise the assertions about an arrival would never run.
    assert!(confirmed_by_chance("USDC", false) > 20);
    assert!(confirmed_by_chance("MATIC", true) > 20);
}

proptest! {
    #[test]
    fn one_node_of_two_confirms_nothing(other in any_observation()) {
        let mut chain_of_two = chain("");
        chain_of_two.nodes = 2;
        let confirmation = ask(&chain_of_two, &claim("USDC"), &[direct(), other.clone()]);
        let alone = ask(&chain(""), &claim("USDC"), &[other]);
        let agreed = ask(&chain(""), &claim("USDC"), &[direct()]).outcome.ok() == alone.outcome.ok();
        prop_assert_eq!(confirmation.state() == State::Confirmed, agreed);
    }

    #[test]
    fn no_answer_makes_parsing_panic(text in "[\\[\\]{}\":,0-9a-fxlogsdt]{0,200}") {
        let _ = serde_json::from_str::<Receipt>(&text);
        let _ = serde_json::from_str::<Frame>(&text);
        let _ = serde_json::from_str::<Vec<Log>>(&text);
    }
}
