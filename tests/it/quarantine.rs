//! Deferred and quarantined mails: authenticated again, released by an operator, and parsed again.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::Value;
use testkit::client::Client;
use testkit::daemon::{Home, account};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;

const MAIL: &str = "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Paymet received $20 (via Resmic)\r\n\
    Message-ID: <1@resmic.com>\r\nDate: Wed, 05 Mar 2025 03:36:41 +0000\r\n\r\nReceived: $20\r\nBlockchain: BASE\r\nToken: USDC\r\n\
    Transaction Hash: 0x1111111111111111111111111111111111111111111111111111111111111111\r\n";
const SOON: Duration = Duration::from_secs(20);

/// A configuration with this DNS server. The account's port is closed, because the tests import the mails.
fn config(dns: &str, trust: &str) -> String {
    format!("{}[trust]\n{trust}\n[dns]\nservers = [\"{dns}\"]\n", account(1, ""))
}

fn import(home: &Home, mail: &[u8]) -> (String, String) {
    let path = home.folder.path().join("mail.eml");
    std::fs::write(&path, mail).unwrap();
    let printed = home.data(&["import", "--json", path.to_str().unwrap()]);
    let row: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
    (row["outcome"].as_str().unwrap().to_owned(), row["reason"].as_str().unwrap_or_default().to_owned())
}

fn key() -> (Key, Vec<u8>) {
    let key = Key::rsa(2048);
    let mail = sign(MAIL.as_bytes(), &key, &SigningOptions::default());
    (key, mail)
}

fn serve(key: &Key) -> Dns {
    Dns::start(&[
        ("s1._domainkey.resmic.com".into(), key.record("")),
        ("resmic.com".into(), "MX 10 mail.resmic.com.".into()),
        ("_dmarc.resmic.com".into(), "TXT \"v=DMARC1; p=reject\"".into()),
    ])
}

/// A DNS server that never answers.
fn silent_server() -> (UdpSocket, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// Makes the mail due, as if it had been authenticated `judgements` times.
fn due(home: &Home, judgements: u32) {
    let sqlite = rusqlite::Connection::open(home.database()).unwrap();
    let sql = "UPDATE mails SET next_judgement_at = '2025-03-05T04:00:00.000Z', judgements = ?1";
    assert_eq!(sqlite.execute(sql, [judgements]).unwrap(), 1);
}

#[test]
fn deferred_mails_wait_for_dns() {
    let (key, mail) = key();
    let (_socket, silent) = silent_server();
    let home = Home::new(&config(&silent, ""));
    let (outcome, reason) = import(&home, &mail);
    assert_eq!((outcome.as_str(), reason.split(':').next()), ("deferred", Some("dns")), "{reason}");
    assert_eq!(home.ask("SELECT count(*) FROM events"), "0");
    let dns = serve(&key);
    std::fs::write(home.folder.path().join("config.toml"), config(&dns.address.to_string(), "")).unwrap();
    due(&home, 1);
    let daemon = home.start();
    home.until("SELECT outcome FROM mails", "event", SOON);
    assert_eq!(daemon.end(), Some(0));
    let stored =
        "SELECT trust || ' ' || trust_domain || ' ' || trust_selector || ' ' || (judged_at > '2026') FROM mails";
    assert_eq!(home.ask(stored), "dkim resmic.com s1 1");
}

#[test]
fn deferred_mails_need_review_after_a_day() {
    let (_, mail) = key();
    let (_socket, silent) = silent_server();
    let home = Home::new(&config(&silent, ""));
    assert_eq!(import(&home, &mail).0, "deferred");
    // The next attempt is the last one.
    due(&home, 29);
    let daemon = home.start();
    home.until("SELECT outcome FROM mails", "quarantined", SOON);
    assert_eq!(daemon.end(), Some(0));
    assert!(home.ask("SELECT reason FROM mails").starts_with("dns: "), "{}", home.ask("SELECT reason FROM mails"));
    assert_eq!(home.ask("SELECT count(*) FROM events"), "0");
}

#[test]
fn a_signature_from_the_future_is_deferred() {
    let (key, _) = key();
    let dns = serve(&key);
    let home = Home::new(&config(&dns.address.to_string(), ""));
    let mail = sign(MAIL.as_bytes(), &key, &SigningOptions { ahead: 10 * 86_400, ..SigningOptions::default() });
    let (outcome, reason) = import(&home, &mail);
    assert_eq!((outcome.as_str(), reason.split(':').next()), ("deferred", Some("dns")), "{reason}");
    let path = home.folder.path().join("mail.eml");
    let parsed = home.data(&["parse", "--json", "--trust", path.to_str().unwrap()]);
    let parsed: Value = serde_json::from_str(parsed.trim()).unwrap();
    assert_eq!(parsed["outcome"], "deferred", "{parsed}");
    due(&home, 29);
    let daemon = home.start();
    home.until("SELECT outcome FROM mails", "quarantined", SOON);
    assert_eq!(daemon.end(), Some(0));
    let reason = home.ask("SELECT reason FROM mails");
    assert!(reason.starts_with("dns: ") && reason.contains("this machine's clock"), "{reason}");
}

#[test]
fn expiry_during_downtime_does_not_count() {
    let (key, _) = key();
    let (dns, dovecot) = (serve(&key), Dovecot::start());
    let trust = format!("[trust]\n[dns]\nservers = [\"{}\"]\n", dns.address);
    let home = Home::new(&(account(dovecot.imap, "mailboxes = [\"INBOX\"]") + &trust));
    let day = 86_400;
    let mut client = Client::login(dovecot.imap, "payments@shop.example");
    let append = |received: i64, n: u32| {
        let mail = MAIL.replace("<1@", &format!("<{n}@")).replace("0x1", &format!("0x{n}"));
        let mail = sign(
            mail.as_bytes(),
            &key,
            &SigningOptions { expires_in: Some(3600), ahead: -2 * day, ..SigningOptions::default() },
        );
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(received);
        let at = at.strftime("%d-%b-%Y %H:%M:%S +0000");
        (format!("INBOX \"{at}\""), mail)
    };
    for (received, n) in [(-2 * day, 1), (-day, 2)] {
        let (mailbox, mail) = append(received, n);
        client.append(&mailbox, &mail);
    }
    let daemon = home.start();
    home.until("SELECT group_concat(outcome) FROM (SELECT outcome FROM mails ORDER BY uid)", "event,quarantined", SOON);
    assert_eq!(daemon.end(), Some(0));
    assert!(home.ask("SELECT reason FROM mails WHERE uid = 2").contains("has expired"));
}

#[test]
fn authenticity_outlives_the_key() {
    let (key, mail) = key();
    let dns = serve(&key);
    let home = Home::new(&config(&dns.address.to_string(), ""));
    assert_eq!(import(&home, &mail).0, "event");
    let judged = home.ask("SELECT judged_at FROM mails");
    drop(dns);
    home.data(&["reparse"]);
    home.data(&["reparse", "--outcome", "event"]);
    assert_eq!(home.ask("SELECT outcome || ' ' || trust FROM mails"), "event dkim");
    assert_eq!(home.ask("SELECT judged_at FROM mails"), judged, "the mail is not authenticated again");
}

#[test]
fn operators_cannot_release_contradictory_mails() {
    let (key, mail) = key();
    let dns = serve(&key);
    let home = Home::new(&config(&dns.address.to_string(), ""));
    assert_eq!(import(&home, MAIL.as_bytes()).0, "quarantined", "it is not signed");
    let status: Value = serde_json::from_slice(&home.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["mails"]["quarantined"], 1);
    assert_eq!(home.run(&["mails", "raw", "1"]).stdout, MAIL.as_bytes(), "byte for byte");
    home.data(&["mails", "release", "1"]);
    assert_eq!(home.ask("SELECT outcome || ' ' || trust FROM mails WHERE id = 1"), "event operator");
    assert_eq!(home.ask("SELECT count(*) FROM events"), "1");
    // The signed mail states the same payment.
    assert_eq!(import(&home, &mail).0, "duplicate");
    // A mail that contradicts itself cannot be released.
    let doubtful = MAIL.replace("Received: $20", "Received: $20\r\nAmount: $21").replace("<1@", "<2@");
    assert_eq!(import(&home, doubtful.as_bytes()).0, "quarantined");
    // The first release changes the reason, and the second changes nothing.
    for _ in 0..2 {
        let refused = home.run(&["mails", "release", "3"]);
        let printed = String::from_utf8(refused.stdout).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{printed}");
        assert!(printed.starts_with("mail 3: stays quarantined (conflict: "), "{printed}");
        assert!(printed.contains("a release confirms only its sender: compare `mails raw 3` with"), "{printed}");
    }
    assert_eq!(home.ask("SELECT outcome FROM mails WHERE id = 3"), "quarantined");
    // Mail 1 is an event, and there is no mail 99.
    for id in ["1", "99"] {
        assert_eq!(home.run(&["mails", "release", id]).status.code(), Some(1));
    }
}

#[test]
fn configured_servers_results_are_trusted() {
    let (_socket, silent) = silent_server();
    let trust =
        "accept = [\"authentication-results\"]\nauthserv_ids = [\"mx.shop.example\"]\nsignatures_removed = true";
    let home = Home::new(&config(&silent, trust));
    // Without a signature the Subject is ignored, so the text has to state the status of the payment.
    let mail = MAIL.replace("Received: $20", "Status: completed\r\nAmount: $20");
    let with = |field: &str, n: u32| format!("{field}\r\n{}", mail.replace("<1@", &format!("<{n}@")));
    let pass = |id: &str| format!("Authentication-Results: {id};\r\n dkim=pass (2048-bit) header.d=resmic.com");
    assert_eq!(import(&home, with(&pass("mx.evil.tld"), 1).as_bytes()).0, "quarantined");
    let copied = format!(
        "Authentication-Results: mx.shop.example; dkim=fail header.d=resmic.com\r\n{}",
        pass("mx.shop.example")
    );
    assert_eq!(import(&home, with(&copied, 2).as_bytes()).0, "quarantined", "the topmost field counts");
    assert_eq!(import(&home, with(&pass("mx.shop.example"), 3).as_bytes()).0, "event");
    assert_eq!(home.ask("SELECT trust FROM mails WHERE outcome = 'event'"), "authentication-results");
}

#[test]
fn check_shows_dns_of_allowed_domains() {
    let (key, _) = key();
    let dns = serve(&key);
    let home = Home::new(&config(&dns.address.to_string(), ""));
    let checked = home.run(&["check", "--connect"]);
    let printed = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert_eq!(checked.status.code(), Some(1), "the account's port is closed: {printed}");
    for word in ["resmic.com", "mail.resmic.com", "policy is reject"] {
        assert!(printed.contains(word), "{word} in {printed}");
    }
}
