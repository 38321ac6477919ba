//! `make demo`: payment mails arrive, become rows, and reach a callback, with real servers on loopback.
//!
//! The demo starts Dovecot, a DNS server with a new DKIM key, the daemon and a callback. It signs the sample mails and
//! delivers them one after the other. The last sample is forged and ends in quarantine. Then two genuine mails report
//! payments on a real EVM node: the money of one arrives, and the other's never does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::anvil::{self, Anvil, calldata};
use testkit::daemon::{Home, account, forward, samples};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;
use testkit::paid::Paid;
use testkit::receiver::{Receiver, status};

/// The longest time from the delivery of a mail to its outcome.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let interrupted = tokio::signal::ctrl_c();
    tokio::select! {
        failures = tokio::task::spawn_blocking(demo) => {
            let failures = failures.unwrap_or(1);
            if failures > 0 {
                println!("\n{failures} mails did not end as they should");
                std::process::exit(1);
            }
            println!("\nevery expected event was stored and acknowledged");
        }
        _ = interrupted => {
            println!("interrupted");
            // The servers are in this process group and have received the signal, too.
            std::process::exit(130);
        }
    }
}

struct Sample {
    name: String,
    mail: Vec<u8>,
    outcome: String,
    delivered: bool,
}

fn demo() -> usize {
    println!("Dovecot {}, nsd, and a callback, all on loopback …", Dovecot::version());
    let key = Key::rsa(2048);
    let dns = Dns::start(&[("s1._domainkey.resmic.com".into(), key.record(""))]);
    let dovecot = Dovecot::start();
    let callback = Receiver::new(|_, _| status(200));
    let address = tokio::runtime::Handle::current().block_on(callback.listen());
    let config = format!(
        "{}[trust]\nfrom = [\"resmic.com\"]\n[dns]\nservers = [\"{}\"]\n{}",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]"),
        dns.address,
        forward(
            &format!("http://{address}/payment-webhook"),
            "unresolved = \"send\"\nstatuses = [\"completed\", \"failed\"]"
        ),
    );
    let home = Home::new(&config);
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", PATIENCE);
    println!(
        "{:<34} {:<12} {:>9} {:>14}  {:<12} {:<6} transaction",
        "mail", "outcome", "latency", "amount", "chain", "token"
    );
    let mut failures = 0;
    for (n, sample) in all_samples(&key).into_iter().enumerate() {
        let before = callback.count();
        let at = dovecot.deliver("payments@shop.example", &sample.mail);
        failures += usize::from(!show(&home, n + 1, &sample, at, || callback.count() > before));
    }
    let state = |state: &str| home.ask(&format!("SELECT count(*) FROM deliveries WHERE state = '{state}'"));
    home.until("SELECT count(*) FROM deliveries WHERE state = 'pending'", "0", PATIENCE);
    println!("\npayments, the newest first:");
    table(
        &home,
        "SELECT status, amount, token, blockchain, coalesce(order_ref, '-'), coalesce(delivery, '-'), substr(event_id, 1, 8) FROM payments ORDER BY created_at DESC LIMIT 12",
    );
    println!("\ndeliveries: {} delivered, {} pending, {} dead", state("delivered"), state("pending"), state("dead"));
    failures += state("dead").parse::<usize>().unwrap();
    println!("mails by outcome:");
    table(&home, "SELECT outcome, count(*) FROM mails GROUP BY outcome ORDER BY outcome");
    assert_eq!(daemon.end(), Some(0), "the daemon ends cleanly");
    let kept: PathBuf = home.folder.keep();
    println!("\nthe database, for looking into: sqlite3 {}", kept.join("mailhook.db").display());
    failures + confirmations(&dovecot, &dns, &key)
}

/// Two genuine mails, of which the chain confirms one. Returns how many did not end as they should.
fn confirmations(dovecot: &Dovecot, dns: &Dns, key: &Key) -> usize {
    if !anvil::is_installed() {
        println!("\nno confirmation by a chain: anvil (an EVM node) is not installed, see `make anvil`");
        return 0;
    }
    println!(
        "\nthe same with a [[chain]], an EVM node on loopback: a genuine mail is delivered when the money has arrived"
    );
    let node = Anvil::start();
    let [shop, payer] = [&node.accounts[0], &node.accounts[1]];
    let token = node.deploy("Token", &["6"]);
    node.send(payer, Some(&token), 0, &calldata("mint(address,uint256)", &[payer, "1000000000"]));
    let callback = Receiver::new(|_, _| status(200));
    let address = tokio::runtime::Handle::current().block_on(callback.listen());
    let home = Home::new(&format!(
        "{}[dns]\nservers = [\"{}\"]\n{}[[chain]]\nname = \"Sepolia\"\nnodes = [{{ command = [\"echo\", \"{}\"] }}]\n\
         wallets = [\"{shop}\"]\nsettle = \"1s\"\n[chain.tokens]\nUSDC = {{ contract = \"{token}\", decimals = 6 }}\n",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nstart = \"now\""),
        dns.address,
        forward(&format!("http://{address}/payment-webhook"), "confirm = \"require\""),
        node.url(),
    ));
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", PATIENCE);
    let deliver = |paid: &Paid| {
        dovecot.deliver("payments@shop.example", &sign(paid.mail().as_bytes(), key, &SigningOptions::default()));
    };
    deliver(&Paid::new(1, &format!("0x{:064x}", 0xbad), payer));
    let hash = node.send(payer, Some(&token), 0, &calldata("transfer(address,uint256)", &[shop, "20000000"]));
    deliver(&Paid::new(2, &hash, payer));
    node.mine(5);
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "1", PATIENCE);
    home.until("SELECT count(*) FROM confirmations WHERE state = 'waiting' AND reason LIKE 'unseen:%'", "1", PATIENCE);
    table(
        &home,
        "SELECT p.confirmation, p.delivery, p.amount, p.token, coalesce(c.received || ' ' || c.received_token, '-'),
           coalesce(substr(c.reason, 1, instr(c.reason, ':') - 1), '-'), substr(p.transaction_hash, 1, 18)
         FROM payments p JOIN confirmations c ON c.event_id = p.event_id ORDER BY p.confirmation",
    );
    let requests = callback.requests();
    let arrived = requests.iter().filter_map(|request| request.header("x-mailhook-arrival")).collect::<Vec<_>>();
    println!(
        "delivered once, with X-Mailhook-Arrival: {}; the other mail names a transaction that does not exist",
        arrived.join(" ")
    );
    assert_eq!(daemon.end(), Some(0), "the daemon ends cleanly");
    usize::from(arrived != [hash.as_str()])
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

fn table(home: &Home, sql: &str) {
    let connection = home.sqlite();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let cells: Vec<String> = (0..columns)
            .map(|n| match row.get_ref(n).unwrap() {
                rusqlite::types::ValueRef::Integer(n) => n.to_string(),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => "-".into(),
            })
            .collect();
        println!("  {}", cells.iter().map(|c| format!("{c:<12} ")).collect::<String>());
    }
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
