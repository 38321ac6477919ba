//! No notification arrives for a long time, or notifications arrive and cannot be parsed.

use std::time::Duration;

use resmic_mailhook::db::{AccountRow, Store, StoreSettings};
use resmic_mailhook::model::{
    Envelope, Event, Examined, Judgement, Matching, Origin, PaymentDetails, RawMail, Reason, ReasonCode, SignedHeaders,
    Status, Trust, TrustProof,
};
use resmic_mailhook::payments::ExaminedMail;
use serde_json::{Value, json};
use testkit::daemon::{ACCEPT_UNSIGNED, Home, account};
use testkit::dovecot::Dovecot;

const SOON: Duration = Duration::from_secs(20);
const IDLE: &str = "SELECT count(*) FROM mailboxes WHERE state = 'idle'";

fn status(home: &Home) -> Value {
    serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap()
}

fn attention(home: &Home) -> String {
    status(home)["attention"].to_string()
}

/// Moves times of the account into the past, because a test cannot wait that long.
fn set_back(home: &Home, columns: &str) {
    let database = rusqlite::Connection::open(home.database()).unwrap();
    database.busy_timeout(SOON).unwrap();
    let past = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-90 minutes')";
    for column in columns.split(' ') {
        assert_eq!(database.execute(&format!("UPDATE accounts SET {column} = {past}"), []).unwrap(), 1);
    }
}

/// A payment mail. `label` is the label of its amount.
fn payment(n: u32, label: &str) -> String {
    format!(
        "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\
         Date: Wed, 05 Mar 2025 03:36:41 +0000\r\n\r\n{label}: $20\r\nBlockchain: Sepolia\r\nToken: DAI\r\n\
         Transaction Hash: 0x{n:064x}\r\n"
    )
}

#[test]
fn a_silent_account_needs_attention() {
    let dovecot = Dovecot::start();
    let keys = "dedicated = true\nmailboxes = [\"INBOX\"]\nquiet = \"1h\"";
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}", account(dovecot.imap, keys)));
    let daemon = home.start();
    home.until(IDLE, "1", SOON);
    // A new mailbox is not silent.
    assert_eq!(home.run(&["status"]).status.code(), Some(0));
    set_back(&home, "watched_since");
    assert!(attention(&home).contains("account shop: no proven notification since its first start, for 90 minutes"));
    // A login code is no notification.
    let code = b"From: no-reply@resmic.com\r\nTo: payments@shop.example\r\nSubject: Your login code\r\n\r\n4711\r\n";
    dovecot.deliver("payments@shop.example", code);
    home.until("SELECT count(*) FROM mails WHERE outcome = 'ignored'", "1", SOON);
    let silent = json!([{"account": "shop", "last_notification_at": null, "quiet": true}]);
    assert_eq!(status(&home)["accounts"], silent);
    dovecot.deliver("payments@shop.example", payment(1, "Amount").as_bytes());
    home.until("SELECT count(*) FROM events", "1", SOON);
    assert_eq!(home.run(&["status"]).status.code(), Some(0));
    let received = home.ask("SELECT received_at FROM mails WHERE outcome = 'event'");
    let expected = json!([{"account": "shop", "last_notification_at": received, "quiet": false}]);
    assert_eq!(status(&home)["accounts"], expected);
    let printed = String::from_utf8(home.run(&["status"]).stdout).unwrap();
    assert!(printed.contains(&format!("last notification of shop: {received}")), "{printed}");
    set_back(&home, "last_notification_at");
    assert!(attention(&home).contains("account shop: no proven notification for 90 minutes, longer than `quiet`"));
    // A restart is not the first start.
    assert_eq!(daemon.end(), Some(0));
    let daemon = home.start();
    home.until(IDLE, "1", SOON);
    assert!(attention(&home).contains("no proven notification for 90 minutes"), "{}", attention(&home));
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn silence_is_normal_by_default() {
    let dovecot = Dovecot::start();
    let keys = "dedicated = true\nmailboxes = [\"INBOX\"]";
    let home = Home::new(&format!("{}{ACCEPT_UNSIGNED}", account(dovecot.imap, keys)));
    let daemon = home.start();
    home.until(IDLE, "1", SOON);
    set_back(&home, "watched_since last_notification_at");
    assert_eq!(home.run(&["status"]).status.code(), Some(0));
    assert_eq!(status(&home)["accounts"][0]["quiet"], false);
    assert_eq!(daemon.end(), Some(0));
}

/// The row of the account after these mails. Each mail has a judgement, a proof, and the time at which the server received it.
async fn account_after(mails: &[(Judgement, Option<Trust>, Option<&str>)]) -> Option<AccountRow> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(StoreSettings {
        path: folder.path().join("m.db"),
        targets: Vec::new(),
        matching: Matching { enabled: false, window: Duration::from_secs(60) },
        chains: Vec::new(),
        resmic: None,
    })
    .unwrap();
    for (n, (judgement, trust, received_at)) in mails.iter().enumerate() {
        let origin = Origin { account: "shop".into(), mailbox: "import".into(), uid: None };
        let received_at = received_at.map(|at| at.parse().unwrap());
        let mail = RawMail { origin, bytes: n.to_string().into_bytes(), size: 1, received_at };
        let proof = trust.map(|trust| TrustProof {
            trust,
            domain: None,
            selector: None,
            signed_headers: SignedHeaders::All,
            to: Vec::new(),
        });
        let examined = Examined { judgement: judgement.clone(), proof, envelope: Envelope::default() };
        store.record(vec![ExaminedMail::new(mail, examined)], None).await.unwrap();
    }
    store.reader().unwrap().accounts().unwrap().pop()
}

fn event() -> Judgement {
    let payment = PaymentDetails { transaction_hash: Some("0xab".into()), ..PaymentDetails::new(Status::Completed) };
    Judgement::Event(Box::new(Event { payment, header_time: None, order_ref: None }))
}

#[tokio::test]
async fn only_proven_notifications_count() {
    const EARLY: Option<&str> = Some("2025-03-05T03:36:00Z");
    const LATE: Option<&str> = Some("2025-03-06T03:36:00Z");
    let unreadable = || Judgement::Quarantined(Reason::new(ReasonCode::Unreadable, "no amount"));
    let other = || Judgement::Ignored(Reason::new(ReasonCode::NotAPayment, "a letter"));
    for nothing in [
        (event(), None, EARLY),
        (event(), Some(Trust::Operator), EARLY),
        (unreadable(), Some(Trust::Dkim), EARLY),
        (other(), Some(Trust::Dkim), EARLY),
    ] {
        assert_eq!(account_after(std::slice::from_ref(&nothing)).await, None, "{nothing:?}");
    }
    let last = async |mails: &[_]| account_after(mails).await.unwrap().last_notification_at.unwrap().to_string();
    for trust in [Trust::Dkim, Trust::AuthenticationResults, Trust::None] {
        assert_eq!(last(&[(event(), Some(trust), EARLY)]).await, "2025-03-05T03:36:00Z", "{trust}");
    }
    // The second mail is a duplicate. A newer duplicate counts, and an older one changes nothing.
    let (early, late) = ((event(), Some(Trust::Dkim), EARLY), (event(), Some(Trust::Dkim), LATE));
    for order in [[early.clone(), late.clone()], [late, early]] {
        assert_eq!(last(&order).await, "2025-03-06T03:36:00Z");
    }
    // A mail server whose clock is ahead does not hide a later silence.
    let before = jiff::Timestamp::now();
    let ahead = account_after(&[(event(), Some(Trust::Dkim), Some("2999-01-01T00:00:00Z"))]).await.unwrap();
    let at = ahead.last_notification_at.unwrap();
    assert!(at.as_millisecond() >= before.as_millisecond() && at <= jiff::Timestamp::now(), "{at}");
}

#[test]
fn changed_templates_are_reported_until_parsed() {
    let config = format!("{}{ACCEPT_UNSIGNED}", account(1, ""));
    let home = Home::new(&config);
    let import = |from: u32, to: u32, label: &str| {
        for n in from..=to {
            let file = home.folder.path().join("mail.eml");
            std::fs::write(&file, payment(n, label)).unwrap();
            home.data(&["import", file.to_str().unwrap()]);
        }
    };
    let parsing = || status(&home)["parsing"].clone();
    import(1, 20, "Amount");
    assert_eq!(parsing(), json!({"checked": 10, "unparsed": 0}));
    import(21, 25, "Betrag in Dollar");
    assert_eq!(
        home.ask("SELECT DISTINCT substr(reason, 1, 11) FROM mails WHERE outcome = 'quarantined'"),
        "unreadable:"
    );
    assert_eq!(parsing(), json!({"checked": 10, "unparsed": 5}));
    assert!(!attention(&home).contains("template"), "{}", attention(&home));
    import(26, 26, "Betrag in Dollar");
    let attention_text = attention(&home);
    assert!(
        attention_text.contains("6 of the last 10 proven mails could not be parsed, so the template may have changed"),
        "{attention_text}"
    );
    assert!(attention_text.contains("`reparse --outcome quarantined`"), "{attention_text}");
    assert!(String::from_utf8(home.run(&["status"]).stdout).unwrap().contains("template may have changed"));
    let changed = format!("{config}[extract.labels]\namount = [\"Betrag in Dollar\"]\n");
    std::fs::write(home.folder.path().join("config.toml"), changed).unwrap();
    home.data(&["reparse", "--outcome", "quarantined"]);
    assert_eq!(parsing(), json!({"checked": 10, "unparsed": 0}));
    assert_eq!(home.ask("SELECT count(*) FROM events"), "26");
    assert!(!attention(&home).contains("template"), "{}", attention(&home));
}

#[test]
fn unproven_mails_say_nothing_about_the_template() {
    // Nothing is proven: each mail lacks a signature.
    let home = Home::new(&format!("{}[dns]\nservers = [\"127.0.0.1:1\"]\n", account(1, "")));
    for n in 1..=6 {
        let file = home.folder.path().join("mail.eml");
        std::fs::write(&file, payment(n, "Betrag in Dollar")).unwrap();
        home.data(&["import", file.to_str().unwrap()]);
    }
    assert_eq!(home.ask("SELECT count(*) FROM mails WHERE outcome = 'quarantined'"), "6");
    assert_eq!(status(&home)["parsing"], json!({"checked": 0, "unparsed": 0}));
    assert_eq!(home.ask("SELECT count(*) FROM accounts"), "0");
}
