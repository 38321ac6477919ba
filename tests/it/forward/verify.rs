//! Standard Webhooks: the specification's official verifier checks our signatures.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use testkit::receiver::{Receiver, status};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standard-webhooks");

/// Runs the official verifier on a request and returns the parsed body or the error.
fn verify(secret: &str, headers: &BTreeMap<String, String>, body: &str) -> Result<String, String> {
    assert!(
        std::path::Path::new(FOLDER).join("node_modules").exists(),
        "the official verifier is not there: npm ci --prefix tests/standard-webhooks"
    );
    let mut node = Command::new("node")
        .arg("verify.js")
        .current_dir(FOLDER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("node is needed for this test: apt-get install nodejs npm");
    let given = serde_json::json!({ "secret": secret, "headers": headers, "body": body }).to_string();
    node.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test]
async fn the_official_verifier_accepts_our_signatures() {
    let receiver = Receiver::new(|_, _| status(200));
    let mut setup = ForwarderSetup::new(vec![shop(receiver.listen().await, "")]);
    let secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    setup.start_with(secret);
    setup.record(vec![paid(Some(1), 1)]).await;
    setup.until_all("delivered").await;
    setup.stop().await;
    let request = receiver.requests().remove(0);
    let headers: BTreeMap<String, String> = request.headers.iter().cloned().collect();
    // JSON.parse and JSON.stringify reproduce the body.
    assert_eq!(verify(secret, &headers, request.text()).unwrap(), request.text());
    let dearer = request.text().replace("\"20\"", "\"2000\"");
    assert!(verify(secret, &headers, &dearer).unwrap_err().contains("No matching signature"));
    let mut older = headers.clone();
    older.insert("webhook-id".into(), "another".into());
    assert!(verify(secret, &older, request.text()).unwrap_err().contains("No matching signature"));
    assert!(verify("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &headers, request.text()).is_err());
}
