//! The consumers in examples/nats-consumer: each counts every payment once, whatever ends in between.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use data_encoding::HEXLOWER;
use ring::hmac;
use serde_json::{Value, json};
use testkit::daemon::{ACCEPT_UNSIGNED, Home, SECRET, STREAM, SUBJECT, account, stream_target};
use testkit::nats_consumers::{Consumer, ConsumerLanguage};
use testkit::nats_server::NatsServer;
use testkit::payments::payment;
use testkit::random::Random;

const PAYMENTS: usize = 300;
const KILLS: usize = 5;
const SOON: Duration = Duration::from_secs(60);

/// A server with the stream, and a consumer of each language that does not run yet.
async fn server_with_consumers() -> (NatsServer, Vec<Consumer>) {
    let server = NatsServer::start();
    server.create_stream(STREAM, &[&format!("{SUBJECT}.>")], json!({})).await;
    for language in ConsumerLanguage::ALL {
        // The programs would create the same consumers, but the server would repeat an unacknowledged message only after half a
        // minute.
        let (name, subject) = (language.name(), format!("{SUBJECT}.>"));
        let config = json!({"durable_name": name, "ack_policy": "explicit", "ack_wait": 2_000_000_000_u64,
            "deliver_policy": "all", "filter_subject": subject, "max_ack_pending": 1000});
        let request = json!({"stream_name": STREAM, "config": config});
        server.api(&format!("CONSUMER.DURABLE.CREATE.{STREAM}.{name}"), request).await;
    }
    let consumers = ConsumerLanguage::ALL.map(|language| Consumer::new(language, &server.url()));
    (server, consumers.into())
}

async fn state(server: &NatsServer, language: ConsumerLanguage) -> Value {
    server.api(&format!("CONSUMER.INFO.{STREAM}.{}", language.name()), json!({})).await
}

/// Waits until a consumer has acknowledged every message. The server does not announce that.
async fn until_acknowledged(server: &NatsServer, language: ConsumerLanguage) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let state = state(server, language).await;
        if state["num_pending"] == 0 && state["num_ack_pending"] == 0 {
            return state;
        }
        assert!(Instant::now() < deadline, "{language:?}: {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Imports these payments, as mails.
fn import(home: &Home, payments: std::ops::RangeInclusive<usize>) {
    let folder = tempfile::tempdir().unwrap();
    for n in payments {
        std::fs::write(folder.path().join(format!("{n}.eml")), payment(n)).unwrap();
    }
    home.data(&["import", folder.path().to_str().unwrap()]);
}

/// Starts and kills a consumer several times, each time after a random number of payments.
fn kill_at_random(consumer: &mut Consumer, random: &Random) {
    for _ in 1..KILLS {
        let payments = 1 + consumer.printed().len() + random.below(30) as usize;
        consumer.start();
        consumer.until_printed(payments, SOON);
        consumer.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_consumers_count_each_payment_once() {
    let (mut server, mut consumers) = server_with_consumers().await;
    let random = Random::from_environment();
    for consumer in &mut consumers {
        consumer.start();
        consumer.says_often("reading", 1, SOON);
        consumer.kill();
        consumer.count_inserts();
    }
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}{}", account(1, ""), stream_target(&[server.url()])));
    import(&home, 1..=PAYMENTS);
    let daemon = home.start();
    std::thread::scope(|scope| {
        for consumer in &mut consumers {
            scope.spawn(|| kill_at_random(consumer, &random));
        }
    });
    consumers.iter_mut().for_each(Consumer::start);
    for consumer in &consumers {
        let state = until_acknowledged(&server, consumer.language).await;
        let delivered = state["delivered"]["consumer_seq"].as_u64().unwrap();
        println!("{:?}: {delivered} deliveries of {PAYMENTS} messages", consumer.language);
        assert!(delivered > PAYMENTS as u64, "no kill came before an acknowledgement");
    }
    // The daemon and the consumers connect again by themselves.
    server.kill();
    server.restart();
    import(&home, PAYMENTS + 1..=PAYMENTS + 20);
    home.until("SELECT count(*) FROM deliveries WHERE state <> 'delivered'", "0", SOON);
    assert_eq!(server.count(STREAM).await, PAYMENTS as u64 + 20);
    let events = home.sqlite();
    let mut events = events.prepare("SELECT event_id, webhook FROM events ORDER BY event_id").unwrap();
    let events = events.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let events: Vec<(String, String)> = events.map(Result::unwrap).collect();
    for consumer in &mut consumers {
        until_acknowledged(&server, consumer.language).await;
        assert_eq!(consumer.end(), Some(0));
        assert_eq!(consumer.payments(), events, "{:?}", consumer.language);
        assert_eq!(consumer.inserts(), events.len(), "{:?}", consumer.language);
        let printed = consumer.printed();
        let distinct: BTreeSet<&String> = printed.iter().map(|(_, body)| body).collect();
        assert_eq!(distinct.len(), printed.len(), "{:?}", consumer.language);
    }
    assert_eq!(daemon.end(), Some(0));
}

/// Publishes a body under this id, with the signature of this secret.
async fn publish(server: &NatsServer, id: &str, body: &[u8], secret: Option<&str>) {
    let mut headers = HeaderMap::new();
    if let Some(secret) = secret {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        headers.insert("X-Signature", HEXLOWER.encode(hmac::sign(&key, body).as_ref()));
    }
    let client = server.client().await;
    let subject = format!("{SUBJECT}.completed.{id}");
    let answer = client.request_with_headers(subject, headers, body.to_vec().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["seq"].as_u64().is_some_and(|sequence| sequence > 0), "{answer}");
}

fn webhook(n: u32) -> String {
    format!(
        "{{\"session_id\":\"{n}\",\"amount\":\"20\",\"blockchain\":\"Base\",\"transaction_hash\":\"0x{n}\",\"status\":true}}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unverified_messages_are_kept_until_they_verify() {
    let (server, mut consumers) = server_with_consumers().await;
    publish(&server, "one", webhook(1).as_bytes(), Some(SECRET)).await;
    // A genuine body under another id.
    publish(&server, "two", webhook(1).as_bytes(), Some(SECRET)).await;
    publish(&server, "three", webhook(3).as_bytes(), Some("the next secret")).await;
    publish(&server, "four", b"\xff\0{", None).await;
    for consumer in &mut consumers {
        consumer.start();
        until_acknowledged(&server, consumer.language).await;
        assert_eq!(consumer.end(), Some(0));
        assert_eq!(consumer.payments(), [("one".into(), webhook(1))]);
        let unverified = "SELECT group_concat(sequence) FROM (SELECT sequence FROM unverified ORDER BY sequence)";
        let unverified =
            |consumer: &Consumer| -> String { consumer.sqlite().query_row(unverified, [], |row| row.get(0)).unwrap() };
        assert_eq!(unverified(consumer), "3,4", "{:?}", consumer.language);
        consumer.set("WEBHOOK_SECRET", "the next secret");
        consumer.start();
        consumer.until_printed(2, SOON);
        assert_eq!(consumer.end(), Some(0));
        assert_eq!(consumer.payments(), [("one".into(), webhook(1)), ("three".into(), webhook(3))]);
        assert_eq!(unverified(consumer), "4", "{:?}", consumer.language);
    }
}

const LOGIN: &str = "authorization { user: shop, password: \"s3cret\" }";

#[test]
fn consumers_log_in_over_tls_only() {
    let with_tls = NatsServer::start_with(&format!(
        "{LOGIN}\ntls {{ cert_file: server.pem, key_file: server.key, ca_file: ca.pem }}"
    ));
    let without_tls = NatsServer::start_with(LOGIN);
    for language in ConsumerLanguage::ALL {
        for (server, expected) in [(&with_tls, "stream not found"), (&without_tls, "server does not")] {
            let mut consumer = Consumer::new(language, &format!("tls://localhost:{}", server.port));
            consumer.set("NATS_CA", server.ca());
            consumer.set("NATS_USER", "shop");
            consumer.set("NATS_PASSWORD", "s3cret");
            consumer.start();
            consumer.says_often(expected, 1, SOON);
            consumer.end();
        }
    }
}
