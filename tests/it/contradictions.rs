//! The outcome of a mail that repeats or contradicts a stored event: the table of docs/trust.md, row by row.

use std::path::PathBuf;

use serde_json::Value;
use testkit::daemon::{Home, account, forward};

const ONE: &str = "11111111-aa61-411d-a419-0b546729bbd0";
const TWO: &str = "22222222-aa61-411d-a419-0b546729bbd0";

/// The content of a mail. Two mails with the same content differ in `mail`, the number in their Message-ID.
#[derive(Clone, Copy)]
struct MailContent {
    mail: u32,
    session: &'static str,
    status: &'static str,
    amount: &'static str,
    chain: &'static str,
    token: &'static str,
    hash: u32,
}

const PAID: MailContent =
    MailContent { mail: 1, session: ONE, status: "completed", amount: "20.00", chain: "Base", token: "USDC", hash: 1 };

impl MailContent {
    fn eml(&self) -> String {
        let session = if self.session.is_empty() { String::new() } else { format!("Session ID: {}\r\n", self.session) };
        format!(
            "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment {status}\r\n\
             Date: Wed, 05 Mar 2025 03:36:41 +0000\r\nMessage-ID: <{mail}@resmic.com>\r\n\r\n\
             {session}Status: {status}\r\nAmount: ${amount}\r\nBlockchain: {chain}\r\nToken: {token}\r\n\
             Transaction Hash: 0x{hash:064x}\r\n",
            status = self.status,
            mail = self.mail,
            amount = self.amount,
            chain = self.chain,
            token = self.token,
            hash = self.hash,
        )
    }
}

/// A database, and a folder for the mails that are imported one after the other.
struct Shop {
    home: Home,
    mails: tempfile::TempDir,
}

impl Shop {
    fn open() -> Shop {
        let callback = forward("http://127.0.0.1:1/", "statuses = [\"completed\", \"failed\"]");
        Shop {
            home: Home::new(&format!("{}[trust]\naccept = [\"none\"]\n{callback}", account(1, ""))),
            mails: tempfile::tempdir().unwrap(),
        }
    }

    /// Imports a mail. Returns its outcome and the code of its reason.
    fn import(&self, content: MailContent) -> (String, String) {
        let path: PathBuf = self.mails.path().join("mail.eml");
        std::fs::write(&path, content.eml()).unwrap();
        let printed = self.home.data(&["import", "--json", path.to_str().unwrap()]);
        let row: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
        let reason = row["reason"].as_str().unwrap_or("").split(':').next().unwrap_or("").to_owned();
        (row["outcome"].as_str().unwrap().to_owned(), reason)
    }

    /// Marks all deliveries as delivered.
    fn mark_delivered(&self) {
        let sqlite = rusqlite::Connection::open(self.home.database()).unwrap();
        sqlite
            .execute("UPDATE deliveries SET state = 'delivered', delivered_at = '2025-03-05T04:00:00.000Z'", [])
            .unwrap();
    }

    fn events(&self) -> String {
        self.home.ask("SELECT group_concat(status || ' ' || coalesce(session_id, '-') || ' ' || amount, ', ') FROM (SELECT * FROM events ORDER BY created_at, rowid)")
    }

    fn deliveries(&self) -> String {
        self.home.ask("SELECT coalesce(group_concat(state, ' '), '') FROM (SELECT state FROM deliveries ORDER BY id)")
    }

    fn holds(&self) -> String {
        self.home.ask("SELECT coalesce(group_concat(hold, '; '), '') FROM events")
    }
}

fn outcome(outcome: &str, reason: &str) -> (String, String) {
    (outcome.into(), reason.into())
}

#[test]
fn a_repeated_mail_is_a_duplicate() {
    let shop = Shop::open();
    assert_eq!(shop.import(PAID), outcome("event", ""));
    assert_eq!(shop.import(PAID), outcome("duplicate", ""));
    assert_eq!(shop.import(MailContent { mail: 2, ..PAID }), outcome("duplicate", ""));
    assert_eq!((shop.events(), shop.deliveries()), (format!("completed {ONE} 20.00"), "pending".into()));
}

#[test]
fn a_second_mail_adds_a_session_until_delivery() {
    let shop = Shop::open();
    assert_eq!(shop.import(MailContent { session: "", ..PAID }), outcome("event", ""));
    assert_eq!(shop.deliveries(), "held");
    assert_eq!(shop.import(MailContent { mail: 2, ..PAID }), outcome("duplicate", ""));
    assert_eq!((shop.events(), shop.deliveries()), (format!("completed {ONE} 20.00"), "pending".into()));

    let shop = Shop::open();
    assert_eq!(shop.import(MailContent { session: "", ..PAID }), outcome("event", ""));
    shop.mark_delivered();
    assert_eq!(shop.import(MailContent { mail: 2, ..PAID }), outcome("duplicate", ""));
    assert_eq!((shop.events(), shop.deliveries()), ("completed - 20.00".into(), "delivered".into()));
}

#[test]
fn a_contradicting_mail_leaves_the_event_unchanged() {
    for delivered in [false, true] {
        for contradiction in [
            MailContent { amount: "2000.00", ..PAID },
            MailContent { amount: "20.01", ..PAID },
            MailContent { token: "DAI", ..PAID },
            MailContent { session: TWO, ..PAID },
            MailContent { status: "failed", ..PAID },
            MailContent { status: "failed", session: TWO, ..PAID },
        ] {
            let shop = Shop::open();
            assert_eq!(shop.import(PAID), outcome("event", ""));
            if delivered {
                shop.mark_delivered();
            }
            let before = shop.deliveries();
            assert_eq!(shop.import(MailContent { mail: 2, ..contradiction }), outcome("quarantined", "conflict"));
            assert_eq!((shop.events(), shop.deliveries()), (format!("completed {ONE} 20.00"), before));
            assert_eq!(shop.home.ask("SELECT count(*) FROM mails WHERE raw IS NOT NULL"), "2", "both are kept");
        }
    }
}

#[test]
fn another_spelling_of_an_amount_is_a_duplicate() {
    let shop = Shop::open();
    assert_eq!(shop.import(PAID), outcome("event", ""));
    assert_eq!(shop.import(MailContent { mail: 2, amount: "20", ..PAID }), outcome("duplicate", ""));
    assert_eq!(shop.events(), format!("completed {ONE} 20.00"));
}

#[test]
fn page_and_backend_report_one_payment() {
    let (page, backend) = (MailContent { token: "ETH", ..PAID }, MailContent { token: "ethereum", ..PAID });
    for (first, second) in [(page, backend), (backend, page)] {
        for session in [ONE, ""] {
            let shop = Shop::open();
            assert_eq!(shop.import(MailContent { session, ..first }), outcome("event", ""));
            assert_eq!(shop.import(MailContent { session, mail: 2, ..second }), outcome("duplicate", ""));
            assert_eq!(shop.home.ask("SELECT group_concat(token) FROM events"), first.token);
            assert_eq!(shop.deliveries(), if session.is_empty() { "held" } else { "pending" });
            let other = MailContent { session, mail: 3, token: "binancecoin", ..PAID };
            assert_eq!(shop.import(other), outcome("quarantined", "conflict"));
        }
    }
}

#[test]
fn a_registered_token_matches_its_other_name() {
    for (registered, paid, reason) in
        [("ETH", "ethereum", ""), ("ethereum", "SETH", ""), ("BNB", "ethereum", "conflict")]
    {
        let shop = Shop::open();
        shop.home.data(&["session", "add", ONE, "--amount", "20", "--token", registered]);
        assert_eq!(shop.import(MailContent { token: paid, ..PAID }), outcome("event", reason));
        assert_eq!(shop.deliveries(), if reason.is_empty() { "pending" } else { "held" }, "{registered} {paid}");
    }
    let shop = Shop::open();
    shop.home.data(&["session", "add", ONE, "--token", "ETH"]);
    shop.home.data(&["session", "add", ONE, "--token", "ethereum"]);
    assert_eq!(shop.home.ask("SELECT token FROM sessions"), "ETH");
    assert!(!shop.home.run(&["session", "add", ONE, "--token", "BNB"]).status.success());
}

#[test]
fn the_same_hash_on_another_chain_is_held() {
    for session in [ONE, TWO, ""] {
        let shop = Shop::open();
        assert_eq!(shop.import(PAID), outcome("event", ""));
        shop.mark_delivered();
        assert_eq!(
            shop.import(MailContent { mail: 2, chain: "Polygon", session, ..PAID }),
            outcome("event", "conflict")
        );
        assert_eq!(shop.deliveries(), "delivered held");
        assert_eq!(shop.import(MailContent { mail: 3, ..PAID }), outcome("duplicate", ""));
        assert_eq!(shop.import(MailContent { mail: 4, chain: "Polygon", session, ..PAID }), outcome("duplicate", ""));
    }
}

#[test]
fn a_second_payment_of_a_session_is_held() {
    let shop = Shop::open();
    assert_eq!(shop.import(PAID), outcome("event", ""));
    shop.mark_delivered();
    assert_eq!(shop.import(MailContent { mail: 2, hash: 2, ..PAID }), outcome("event", "conflict"));
    assert_eq!(shop.deliveries(), "delivered held");
    assert!(shop.holds().starts_with("conflict"), "{}", shop.holds());
    let status: Value = serde_json::from_slice(&shop.home.run(&["status", "--json"]).stdout).unwrap();
    assert!(status["attention"].to_string().contains("conflict"), "{status}");
}

#[test]
fn a_failure_after_a_completed_payment_is_held() {
    let shop = Shop::open();
    let failure = MailContent { status: "failed", hash: 2, ..PAID };
    assert_eq!(shop.import(PAID), outcome("event", ""));
    assert_eq!(shop.import(MailContent { mail: 2, ..failure }), outcome("event", "conflict"));
    assert_eq!(shop.deliveries(), "pending held");

    let shop = Shop::open();
    assert_eq!(shop.import(failure), outcome("event", ""));
    assert_eq!(shop.import(MailContent { mail: 2, ..PAID }), outcome("event", ""));
    assert_eq!(shop.deliveries(), "pending pending", "an attempt failed, the next one paid");
    assert_eq!(shop.home.ask("SELECT status FROM payments"), "completed");
}

#[test]
fn a_late_pending_mail_changes_nothing() {
    let shop = Shop::open();
    assert_eq!(shop.import(PAID), outcome("event", ""));
    assert_eq!(shop.import(MailContent { mail: 2, status: "pending", ..PAID }), outcome("event", ""));
    assert_eq!(shop.deliveries(), "pending");
    assert_eq!(shop.home.ask("SELECT status FROM payments"), "completed");
}
