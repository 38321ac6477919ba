//! The story: what happens to a payment, and what happens when something goes wrong.

use std::time::Instant;

use serde_json::Value;
use testkit::daemon::Daemon;
use testkit::dovecot::Dovecot;
use testkit::handlers::Handler;
use testkit::payments::{payment, transaction_hash};
use testkit::shop::{MAILBOX, ORDER, SESSION, Shop, published};

use super::screen::{command, fact, heading, query};
use super::{PATIENCE, chain};

/// The number of the payment that arrives while the handler is down.
const LATE: usize = 1;
/// The payments around the kill, and how many of them are sent before it.
const CROWD: std::ops::RangeInclusive<usize> = 101..=200;
const BEFORE_KILL: usize = 50;

pub(super) fn tell() {
    let began = Instant::now();
    println!("Dovecot {}, nsd, a handler and the daemon, all on loopback", Dovecot::version());
    let mut shop = Shop::open();
    let daemon = shop.watch(PATIENCE);
    arrival(&shop);
    forgery(&shop);
    handler_down(&mut shop);
    let daemon = kill(&shop, daemon);
    status(&shop);
    queries(&shop);
    assert_eq!(daemon.end(), Some(0), "the daemon ends cleanly");
    chain::tell(&shop.dovecot, &shop.dns, &shop.key);
    let kept = shop.home.folder.keep();
    println!("\nAll of this happened, in {} seconds.", began.elapsed().as_secs());
    println!("The database, to look into: sqlite3 {}", kept.join("mailhook.db").display());
}

fn arrival(shop: &Shop) {
    heading("1. A payment arrives, and reaches the handler");
    println!("A shop registers its payment session, and gives Resmic the signed address of the order.");
    command(&shop.home, &["session", "add", SESSION, "--order", ORDER, "--amount", "20"], 0);
    let address = command(&shop.home, &["address", ORDER], 0);
    let mail = shop.sign(&published(address.trim_end()));
    shop.link.take_first_piece();
    let at = shop.receive(&mail);
    let body = shop.handler.accepted(1).remove(0);
    let all = at.elapsed();
    let announced = shop.link.take_first_piece().expect("the mail server announces the mail");
    let pause = announced.saturating_duration_since(at);
    let [order, trust] = ["e.order_ref", "m.trust"]
        .map(|column| shop.home.ask(&format!("SELECT {column} FROM events e JOIN mails m ON m.event_id = e.event_id")));
    fact(trust == "dkim", "Resmic's signature (DKIM) proves the mail");
    fact(order == ORDER, &format!("the signed address names the order: {ORDER}"));
    let event: Value = serde_json::from_str(&body).unwrap();
    let is_ours = event["session_id"] == SESSION && event["amount"] == "20";
    fact(is_ours, "the handler (examples/python/handler.py) verified the signature of the POST, and accepted it:");
    println!("  {body}");
    let refused = shop.handler.post(&body, b"X-Signature: 00\r\n");
    fact(refused == "401", "it refuses the same body with another signature");
    println!("  {} ms passed from the mail server to the handler", all.as_millis());
    println!("  {} ms of them are a pause of Dovecot, which groups its announcements", pause.as_millis());
    println!("  {} ms are the work of the program and the handler", all.saturating_sub(pause).as_millis());
    shop.home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "1", PATIENCE);
}

fn forgery(shop: &Shop) {
    heading("2. A forged mail is quarantined");
    println!("A thief has that mail, and sends it again, with $2000 in place of $20.");
    let address = shop.home.data(&["address", ORDER]);
    let genuine = String::from_utf8(shop.sign(&published(address.trim_end()))).unwrap();
    shop.receive(genuine.replace("$20", "$2000").as_bytes());
    shop.home.until("SELECT outcome FROM mails ORDER BY id DESC LIMIT 1", "quarantined", PATIENCE);
    command(&shop.home, &["mails", "--outcome", "quarantined"], 0);
    let reason = shop.home.ask("SELECT reason FROM mails ORDER BY id DESC LIMIT 1");
    fact(reason.starts_with("untrusted: "), &format!("the reason is \"{reason}\""));
    let [events, accepted] = [shop.home.ask("SELECT count(*) FROM events"), shop.handler.accepted(1).len().to_string()];
    fact([events, accepted] == ["1", "1"], "it is no event, and the handler has not received it");
}

fn handler_down(shop: &mut Shop) {
    heading("3. The handler goes down, and comes back");
    println!("The handler is stopped. A payment arrives.");
    let port = shop.handler.port;
    shop.handler.stop();
    shop.receive(&shop.sign(&payment(LATE)));
    let failed = "SELECT count(*) FROM deliveries WHERE state = 'pending' AND last_error IS NOT NULL";
    shop.home.until(failed, "1", PATIENCE);
    command(&shop.home, &["deliveries", "--state", "pending"], 0);
    let error = shop.home.ask("SELECT last_error FROM deliveries WHERE state = 'pending'");
    let is_stored = shop.home.ask("SELECT count(*) FROM events") == "2";
    fact(is_stored, &format!("the payment is stored, and its delivery waits: {error}"));
    shop.handler = Handler::python_on(port);
    let back = Instant::now();
    let bodies = shop.handler.accepted(1);
    fact(bodies[0].contains(&transaction_hash(LATE)), "the handler starts again, and receives the payment by a retry");
    println!("  {:.1} s after its start", back.elapsed().as_secs_f64());
    shop.home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "2", PATIENCE);
}

fn kill(shop: &Shop, daemon: Daemon) -> Daemon {
    heading("4. kill -9, and nothing is lost");
    let mails: Vec<_> = CROWD.map(|n| shop.sign(&payment(n))).collect();
    let (before, after) = mails.split_at(BEFORE_KILL);
    shop.dovecot.deliver_all(MAILBOX, before.iter().map(Vec::as_slice));
    let [first, last] = [CROWD.start(), CROWD.end()].map(|n| transaction_hash(*n));
    let count = |table: &str| {
        let events = format!("(SELECT event_id FROM events WHERE transaction_hash BETWEEN '{first}' AND '{last}')");
        format!("SELECT count(*) FROM {table} WHERE event_id IN {events}")
    };
    let delivered = count("(SELECT * FROM deliveries WHERE state = 'delivered')");
    shop.home.until(&format!("SELECT ({}) > 0", count("events")), "1", PATIENCE);
    daemon.kill();
    let [stored, sent] = [&count("events"), &delivered].map(|sql| shop.home.ask(sql));
    println!("{BEFORE_KILL} payments arrive. The daemon is killed: it has stored {stored} and delivered {sent}.");
    shop.dovecot.deliver_all(MAILBOX, after.iter().map(Vec::as_slice));
    println!("{} more arrive. Then the daemon starts again.", after.len());
    let daemon = shop.watch(PATIENCE);
    shop.home.until(&delivered, &mails.len().to_string(), PATIENCE);
    let want: Vec<_> = CROWD.map(transaction_hash).collect();
    let stored = format!("SELECT transaction_hash FROM events WHERE transaction_hash BETWEEN '{first}' AND '{last}'");
    let stored = shop.home.column(&format!("{stored} ORDER BY transaction_hash"));
    fact(stored == want, &format!("each of the {} payments is stored, once", want.len()));
    // The first payment that the handler accepted is [`LATE`], which is not one of these.
    let bodies = shop.handler.accepted(1 + want.len()).split_off(1);
    let mut accepted: Vec<_> = bodies.iter().map(|body| transaction(body)).collect();
    accepted.sort();
    fact(accepted == want, "the handler has counted each of them, once");
    let repeated = shop.home.ask(&count("(SELECT * FROM deliveries WHERE attempts > 1)"));
    println!(
        "  {repeated} of them were posted again after the kill, with the same id, so that the handler recognised them"
    );
    fact(shop.home.ask("PRAGMA integrity_check") == "ok", "the database is intact");
    daemon
}

/// The transaction hash in the body of a POST.
fn transaction(body: &str) -> String {
    let event: Value = serde_json::from_str(body).unwrap();
    event["transaction_hash"].as_str().unwrap().to_owned()
}

fn status(shop: &Shop) {
    heading("5. status");
    let printed = command(&shop.home, &["status"], 1);
    let problems: Vec<_> = printed.lines().filter(|line| line.starts_with("  - ")).collect();
    let is_forgery = problems.len() == 1 && problems[0].contains("quarantined");
    fact(is_forgery, "only the forged mail needs attention, and the exit code is 1 until a person has looked at it");
}

/// Runs the queries of the README.
fn queries(shop: &Shop) {
    heading("6. The database in five queries");
    let readme = std::fs::read_to_string(testkit::project().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```sql\n").expect("the README has queries");
    let (block, _) = rest.split_once("```").expect("the block ends");
    let queries = block.split_inclusive(';').map(str::trim).filter(|sql| !sql.is_empty());
    let counts: Vec<_> = queries.map(|sql| query(&shop.home, sql, 3)).collect();
    let as_they_should = matches!(counts[..], [50, today, 1, 0, 1] if today > 0);
    fact(
        as_they_should,
        "they return the payments, the events of today, the forged mail, no delivery, and one mailbox",
    );
}
