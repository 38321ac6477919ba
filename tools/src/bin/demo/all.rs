//! The list: every signed sample mail with its outcome, one after the other, and a forged mail.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::daemon::{Home, account, forward, samples};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;
use testkit::receiver::{Receiver, status};
use testkit::shop::MAILBOX;

use super::screen::{fact, heading, query};
use super::{PATIENCE, chain};

struct Sample {
    name: String,
    mail: Vec<u8>,
    outcome: String,
    delivered: bool,
}

pub(super) fn list() {
    println!("Dovecot {}, nsd, a handler and the daemon, all on loopback", Dovecot::version());
    let key = Key::rsa(2048);
    let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), key.record(""))]);
    let dovecot = Dovecot::start();
    let handler = Receiver::new(|_, _| status(200));
    let address = tokio::runtime::Handle::current().block_on(handler.listen());
    let home = Home::new(&format!(
        "{}[dns]\nservers = [\"{}\"]\n{}",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]"),
        dns.address,
        forward(
            &format!("http://{address}/payment-webhook"),
            "unresolved = \"send\"\nstatuses = [\"completed\", \"failed\"]"
        ),
    ));
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", PATIENCE);
    heading("Every sample mail");
    println!(
        "{:<34} {:<12} {:>9} {:>14}  {:<12} {:<6} transaction",
        "mail", "outcome", "latency", "amount", "chain", "token"
    );
    let mut wrong = Vec::new();
    for (n, sample) in all_samples(&key).into_iter().enumerate() {
        let before = handler.count();
        let at = dovecot.deliver(MAILBOX, &sample.mail);
        if !show(&home, n + 1, &sample, at, || handler.count() > before) {
            wrong.push(sample.name);
        }
    }
    fact(wrong.is_empty(), &format!("mails with another outcome than expected: {}", wrong.len()));
    home.until("SELECT count(*) FROM deliveries WHERE state NOT IN ('delivered', 'held')", "0", PATIENCE);
    query(
        &home,
        "SELECT status, amount, token, blockchain, order_ref, delivery, event_id\n\
         FROM payments ORDER BY created_at DESC LIMIT 12;",
        12,
    );
    query(&home, "SELECT state, count(*) FROM deliveries GROUP BY state;", 12);
    query(&home, "SELECT outcome, count(*) FROM mails GROUP BY outcome;", 12);
    assert_eq!(daemon.end(), Some(0), "the daemon ends cleanly");
    chain::tell(&dovecot, &dns, &key);
    println!("\nThe database, to look into: sqlite3 {}", home.folder.keep().join("mailhook.db").display());
}

/// Waits for the outcome of a mail and prints it. Returns whether it is the expected one.
fn show(home: &Home, number: usize, sample: &Sample, at: Instant, called: impl Fn() -> bool) -> bool {
    let mut latency = None;
    let deadline = Instant::now() + PATIENCE;
    let (outcome, event) = loop {
        if latency.is_none() && called() {
            latency = Some(at.elapsed());
        }
        let row = newest(home);
        if let Some((id, outcome, event)) = row
            && id == number
            && (!sample.delivered || latency.is_some())
        {
            break (outcome, event);
        }
        if Instant::now() > deadline {
            println!("{:<34} has not ended within {PATIENCE:?}", sample.name);
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let millis = latency.map_or_else(|| "-".into(), |l| format!("{} ms", l.as_millis()));
    let event = event.unwrap_or_default();
    println!("{:<34} {outcome:<12} {millis:>9} {event}", sample.name);
    outcome == sample.outcome
}

/// The newest mail: its number, its outcome, and its event as one line.
fn newest(home: &Home) -> Option<(usize, String, Option<String>)> {
    let sql = "SELECT m.id, m.outcome, printf('%14s  %-12s %-6s %s', coalesce(e.amount, '-') || ' ' || coalesce(e.currency, ''),
                 coalesce(e.blockchain, '-'), coalesce(e.token, '-'), substr(coalesce(e.transaction_hash, '-'), 1, 18))
               FROM mails m LEFT JOIN events e ON e.event_id = m.event_id AND m.outcome = 'event' ORDER BY m.id DESC LIMIT 1";
    let row = home
        .sqlite()
        .query_row(sql, [], |row| {
            Ok((row.get::<_, u32>(0)? as usize, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?))
        })
        .ok()?;
    Some((row.0, row.1.clone(), row.2.filter(|_| row.1 == "event")))
}

/// The signed sample mails with their expected outcomes, and a forged mail.
fn all_samples(key: &Key) -> Vec<Sample> {
    let mut names = BTreeMap::new();
    for folder in ["published", "documented", "unrelated"] {
        for entry in std::fs::read_dir(samples().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "eml") {
                names.insert(format!("{folder}/{}", path.file_stem().unwrap().to_string_lossy()), path);
            }
        }
    }
    let mut all: Vec<Sample> = names.into_iter().map(|(name, path)| sample(name, &path, key)).collect();
    // This mail has another amount and no signature.
    let forged = std::fs::read_to_string(samples().join("published/sepolia.eml")).unwrap().replace("$20", "$2000");
    let forged = forged.into_bytes();
    all.push(Sample { name: "a forged one".into(), mail: forged, outcome: "quarantined".into(), delivered: false });
    all
}

fn sample(name: String, path: &Path, key: &Key) -> Sample {
    let mail = sign(&std::fs::read(path).unwrap(), key, &SigningOptions::default());
    let expected = std::fs::read(path.with_extension("json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let outcome = expected["outcome"].as_str().unwrap().to_owned();
    // Pending payments are not delivered.
    let delivered = outcome == "event" && expected["event"]["status"] != "pending";
    Sample { name, mail, outcome, delivered }
}
