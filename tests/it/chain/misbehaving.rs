//! Scripted nodes with responses that a real node would not send. The event waits, and the reason contains no secret.

use std::time::Duration;

use resmic_mailhook::chain::NodeErrorKind;
use serde_json::{Value, json};

use super::*;
use testkit::node::{NodeReply, ScriptedNode};

const HASH: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
const BLOCK: &str = "0x2222222222222222222222222222222222222222222222222222222222222222";
const SHOP: &str = "0x5555555555555555555555555555555555555555";
const PAYER: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TOKEN: &str = "0x7777777777777777777777777777777777777777";
const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

fn chain() -> Chain {
    let text = format!(
        "name = \"Polygon\"\nnodes = [{{ env = \"UNUSED\" }}]\nwallets = [\"{SHOP}\"]\n\
         [tokens]\nUSDC = {{ contract = \"{TOKEN}\", decimals = 6 }}\n"
    );
    toml::from_str::<ChainSettings>(&text).unwrap().chain().unwrap()
}

fn claim() -> Claim {
    Claim {
        blockchain: Some("Polygon".into()),
        token: Some("USDC".into()),
        transaction_hash: Some(HASH.into()),
        from_wallet_address: Some(PAYER.into()),
        amount: Some("20".into()),
        currency: None,
        sent_at: Timestamp::now(),
        registered_at: None,
        waits_since: Timestamp::now(),
    }
}

fn word(address: &str) -> String {
    format!("0x{:0>64}", &address[2..])
}

/// The result of an honest node, which has the payment in block 5.
fn result(request: &Value) -> Value {
    match request["method"].as_str().unwrap() {
        "eth_chainId" => json!("0x89"),
        "eth_getBlockByNumber" => {
            let now = format!("{:#x}", Timestamp::now().as_second());
            json!({"number": "0x5", "hash": BLOCK, "timestamp": now, "transactions": [HASH]})
        }
        "eth_getTransactionReceipt" => json!({
            "transactionHash": HASH, "transactionIndex": "0x0", "blockHash": BLOCK, "blockNumber": "0x5", "status": "0x1",
            "logsBloom": format!("0x{}", "01".repeat(256)),
            "logs": [{
                "address": TOKEN, "topics": [TRANSFER, word(PAYER), word(SHOP)], "data": format!("0x{UNITS:064x}"),
                "logIndex": "0x0", "transactionHash": HASH, "blockHash": BLOCK, "removed": false,
            }],
        }),
        method => panic!("{method} was asked"),
    }
}

/// Confirms the claim with a node that answers one method with `reply`, and the other methods honestly.
async fn ask_with(
    method: &'static str,
    reply: impl Fn(&Value) -> Option<NodeReply> + Send + Sync + 'static,
) -> Confirmation {
    let node = ScriptedNode::start(move |request| {
        if request["method"] == method {
            reply(request)
        } else {
            Some(NodeReply::result(&request["id"], result(request)))
        }
    });
    let url = format!("{}/v2/s3cretkey", node.url());
    let seen = [node_at(&url).with_timeout(Duration::from_secs(5))];
    let confirmation = ask(&chain(), &claim(), &seen).await;
    assert!(!format!("{confirmation:?}").contains("s3cretkey"));
    confirmation
}

/// Confirms the claim with a changed receipt and returns the reason code.
async fn code_with(change: fn(&mut Value)) -> String {
    let reply = move |request: &Value| {
        let mut receipt = result(request);
        change(&mut receipt);
        Some(NodeReply::result(&request["id"], receipt))
    };
    code(&ask_with("eth_getTransactionReceipt", reply).await)
}

#[tokio::test]
async fn an_honest_node_confirms_the_payment() {
    assert_eq!(code_with(|_| ()).await, "confirmed");
}

#[tokio::test]
async fn an_impossible_receipt_is_refused() {
    assert_eq!(code_with(|receipt| receipt["transactionHash"] = BLOCK.into()).await, "node", "another hash");
    assert_eq!(code_with(|receipt| receipt["blockNumber"] = "0x05".into()).await, "node", "a leading zero");
    assert_eq!(code_with(|receipt| receipt["logs"] = json!([])).await, "node", "logs are missing");
    assert_eq!(code_with(|receipt| receipt["status"] = Value::Null).await, "node", "no status");
    assert_eq!(code_with(|receipt| receipt["logs"][0]["topics"][1] = "0x12".into()).await, "node", "a short word");
    assert_eq!(code_with(|receipt| receipt["logs"][0]["blockHash"] = HASH.into()).await, "node", "another block's log");
    assert_eq!(code_with(|receipt| receipt["blockHash"] = HASH.into()).await, "node");
    assert_eq!(code_with(|receipt| *receipt = json!([])).await, "node");
    assert_eq!(code_with(|receipt| *receipt = Value::Null).await, "unseen");
    assert_eq!(code_with(|receipt| receipt["blockNumber"] = "0x6".into()).await, "node", "it is asked for block 6");
    let huge = |receipt: &mut Value| receipt["logs"][0]["data"] = format!("0x{}", "f".repeat(64)).into();
    assert_eq!(code_with(huge).await, "token", "a value beyond 128 bits");
}

#[tokio::test]
async fn another_chain_is_refused() {
    for id in ["0x1", "0x089", "137", "0x"] {
        let reply = move |request: &Value| Some(NodeReply::result(&request["id"], id.into()));
        assert_eq!(code(&ask_with("eth_chainId", reply).await), "node", "{id}");
    }
}

#[tokio::test]
async fn a_missing_block_tag_makes_the_event_wait() {
    let null = |request: &Value| Some(NodeReply::result(&request["id"], Value::Null));
    let reason = ask_with("eth_getBlockByNumber", null).await.outcome.unwrap_err();
    assert!(reason.to_string().starts_with("node: ") && reason.message.contains("finalized"), "{reason}");
    let error = |request: &Value| Some(NodeReply::error(&request["id"], -32000, "finalized block not found"));
    assert_eq!(code(&ask_with("eth_getBlockByNumber", error).await), "node");
}

/// The error of one call to a node that answers with `reply`.
async fn error_of(reply: impl Fn(&Value) -> Option<NodeReply> + Send + Sync + 'static) -> NodeErrorKind {
    let node = ScriptedNode::start(reply);
    let url = format!("{}/v2/s3cretkey", node.url());
    let node = node_at(&url).with_timeout(Duration::from_secs(2));
    let error = node.chain_id().await.unwrap_err();
    assert!(!format!("{error} {error:?} {node:?}").contains("s3cretkey"), "{error}");
    assert!(error.to_string().starts_with("127.0.0.1: eth_chainId: "), "{error}");
    error.kind
}

#[tokio::test]
async fn an_answer_without_a_result_is_refused() {
    let bad = async |reply: fn(&Value) -> Option<NodeReply>| {
        let kind = error_of(reply).await;
        assert!(matches!(kind, NodeErrorKind::BadAnswer(_)), "{kind:?}");
        kind.to_string()
    };
    let wrong_id = bad(|_| Some(NodeReply::result(&json!(0), "0x89".into()))).await;
    assert!(wrong_id.contains("id of another call"), "{wrong_id}");
    bad(|_| Some(NodeReply::new("200 OK", "", "{\"jsonrpc\":\"2.0\",\"id\":1,\"res"))).await;
    bad(|_| Some(NodeReply::new("200 OK", "", "<html>Please log in</html>"))).await;
    bad(|r| Some(NodeReply::json(&json!({"id": r["id"], "result": "0x89", "error": {"code": 1, "message": "x"}}))))
        .await;
    bad(|r| Some(NodeReply::json(&json!({"id": r["id"]})))).await;
    bad(|r| Some(NodeReply::json(&json!([{"id": r["id"], "result": "0x89"}])))).await;
    let redirect = bad(|_| Some(NodeReply::new("302 Found", "Location: http://127.0.0.1:1/s3cretkey\r\n", ""))).await;
    assert!(redirect.contains("redirect"), "{redirect}");
    let huge = bad(|r| {
        let padding = " ".repeat(5 * 1024 * 1024);
        Some(NodeReply::new("200 OK", "", format!("{padding}{}", json!({"id": r["id"], "result": "0x89"}))))
    });
    assert!(huge.await.contains("4 MiB"));
}

#[tokio::test]
async fn deep_json_is_refused() {
    let kind = error_of(|r| {
        Some(NodeReply::new("200 OK", "", format!("{{\"id\":{},\"result\":{}", r["id"], "[".repeat(100_000))))
    });
    assert!(matches!(kind.await, NodeErrorKind::BadAnswer(_)));
}

#[tokio::test]
async fn truncated_and_missing_answers_are_refused() {
    let half = |_: &Value| Some(NodeReply::new("200 OK\r\nContent-Length: 999", "", "{\"jsonrpc\":"));
    let kind = error_of(half).await;
    assert!(matches!(kind, NodeErrorKind::BadAnswer(_) | NodeErrorKind::Unreachable(_)), "{kind:?}");
    let kind = error_of(|_| None).await;
    assert_eq!(kind, NodeErrorKind::Unreachable("no answer within 2s".into()));
}

#[tokio::test]
async fn rate_limits_report_retry_after() {
    let by_http = error_of(|_| Some(NodeReply::new("429 Too Many Requests", "Retry-After: 7\r\n", ""))).await;
    let seconds = Some(Duration::from_secs(7));
    assert!(matches!(by_http, NodeErrorKind::Throttled { retry_after, .. } if retry_after == seconds), "{by_http:?}");
    let by_code = error_of(|r| Some(NodeReply::error(&r["id"], -32005, "limit exceeded"))).await;
    assert!(matches!(by_code, NodeErrorKind::Throttled { retry_after: None, .. }), "{by_code:?}");
}

#[tokio::test]
async fn permanent_node_errors_are_reported() {
    for status in ["401 Unauthorized", "402 Payment Required", "403 Forbidden"] {
        let body = "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":1,\"message\":\"bad key s3cretkey\"}}";
        let kind = error_of(move |_| Some(NodeReply::new(status, "", body))).await;
        assert!(matches!(&kind, NodeErrorKind::Refused(words) if words.contains("bad key (secret)")), "{kind:?}");
    }
    let kind = error_of(|r| Some(NodeReply::error(&r["id"], -32601, "the method does not exist"))).await;
    assert!(matches!(kind, NodeErrorKind::NoMethod(_)), "{kind:?}");
}

#[tokio::test]
async fn at_most_five_calls_a_second_are_made() {
    let node = ScriptedNode::start(|request| Some(NodeReply::result(&request["id"], json!("0x89"))));
    let node = node_at(&node.url());
    let began = std::time::Instant::now();
    for _ in 0..6 {
        node.chain_id().await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}
