//! The daemon compares the mails with Resmic's API: the real program, a fake API, and a callback.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::daemon::{Home, account, forward};
use testkit::paid::Paid;
use testkit::receiver::{Receiver, Request, status};
use testkit::resmic_api::{API_KEY, Mood, ResmicApi, Session, USER_ID};
use tokio::runtime::Runtime;

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const HASH: &str = "0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";
const WALLET: &str = "0x056397760b973BfB921Bc10Be9DA5034B1e921d7";
const DETAILS: &str = "/api/v1/makepayment/transaction-details";

/// A shop with a callback and an API. `api_events` uses it, too.
pub(crate) struct Shop {
    pub(crate) api: ResmicApi,
    receiver: Receiver,
    pub(crate) home: Home,
    _runtime: Runtime,
}

impl Shop {
    /// Creates a shop with these lines in `[resmic]`, and with these tables.
    pub(crate) fn open(resmic: &str, keys: &str) -> Shop {
        let api = ResmicApi::start();
        let table = format!("{}{keys}", api.table(resmic));
        Shop::with(api, &table)
    }

    fn with(api: ResmicApi, tables: &str) -> Shop {
        let receiver = Receiver::new(|_, _| status(200));
        let runtime = Runtime::new().unwrap();
        let address = runtime.block_on(receiver.listen());
        let home = Home::new(&format!(
            "{}[trust]\naccept = [\"none\"]\n[dns]\nservers = [\"127.0.0.1:1\"]\n{}{tables}",
            account(1, ""),
            forward(&format!("http://{address}/hook"), "statuses = [\"completed\", \"failed\"]"),
        ));
        std::fs::write(home.folder.path().join("api-key"), API_KEY).unwrap();
        std::fs::write(home.folder.path().join("user-id"), USER_ID).unwrap();
        Shop { api, receiver, home, _runtime: runtime }
    }

    /// Registers a session that was created this many minutes ago.
    pub(crate) fn register(&self, session: u32, minutes: u32) {
        self.change(&format!(
            "INSERT INTO sessions (session_id, order_ref, amount, created_at)
             VALUES ('{}', 'order-{session}', '20', datetime('now', '-{minutes} minutes'))",
            id(session)
        ));
    }

    /// Changes the database, as another program does.
    fn change(&self, sql: &str) {
        let database = rusqlite::Connection::open(self.home.database()).unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database.execute_batch(sql).unwrap();
    }

    /// Sets the times of all sessions back, so that every pause is over.
    pub(crate) fn let_time_pass(&self) {
        self.change(
            "UPDATE session_inquiries SET next_ask_at = '2025-01-01T00:00:00.000Z',
               first_after_expiry = '2025-01-01T00:00:00.000Z',
               completed_since = CASE WHEN completed_since IS NULL THEN NULL ELSE '2025-01-01T00:00:00.000Z' END",
        );
    }

    /// Stores a mail, and returns its outcome and its event.
    pub(crate) fn receive(&self, mail: &Paid) -> (String, String) {
        let file = self.home.folder.path().join(format!("{}.{}.eml", mail.hash, mail.session));
        std::fs::write(&file, mail.mail()).unwrap();
        let imported: Value =
            serde_json::from_str(&self.home.data(&["import", "--json", file.to_str().unwrap()])).unwrap();
        let event = imported["event_id"].as_str().unwrap_or_default().to_owned();
        (imported["outcome"].as_str().unwrap().to_owned(), event)
    }

    pub(crate) fn delivered(&self) -> Vec<Value> {
        self.receiver.requests().iter().map(|r: &Request| serde_json::from_slice(&r.body).unwrap()).collect()
    }

    pub(crate) fn delivery_is(&self, event: &str, want: &str) {
        self.home.until(&format!("SELECT state FROM deliveries WHERE event_id = '{event}'"), want, SOON);
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.home.run(&["status", "--json"]).stdout).unwrap()
    }

    pub(crate) fn attention(&self) -> String {
        self.status()["attention"].to_string()
    }
}

pub(crate) fn id(session: u32) -> String {
    format!("591abe63-aa61-411d-a419-{session:012x}")
}

pub(crate) fn mail(session: u32) -> Paid {
    Paid { token: "DAI", ..Paid::new(session, HASH, WALLET) }
}

#[test]
fn failed_session_becomes_a_failed_event() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::failed("20"));
    shop.register(1, 41);
    let want = "failed resmic resmic 2025-03-05T03:36:00.000Z order-1";
    let sql =
        "SELECT status || ' ' || source || ' ' || session_source || ' ' || tx_time || ' ' || order_ref FROM events";
    shop.home.until(sql, want, SOON);
    shop.home.until("SELECT state FROM deliveries", "delivered", SOON);
    let body = &shop.delivered()[0];
    assert_eq!((&body["status"], &body["session_id"]), (&json!(false), &json!(id(1))));
    assert_eq!(shop.api.requests().len(), 1);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn initiated_session_fails_at_the_second_inquiry() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::initiated("20"));
    shop.api.set_session(&id(2), Session::initiated("20"));
    shop.register(1, 41);
    shop.register(2, 5);
    shop.home.until(
        "SELECT asks FROM session_inquiries WHERE next_ask_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '50 minutes')",
        "1",
        SOON,
    );
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "0");
    assert_eq!(shop.api.requests().len(), 1, "the other session has not expired");
    shop.change("UPDATE session_inquiries SET next_ask_at = '2025-01-01T00:00:00.000Z', first_after_expiry = '2025-01-01T00:00:00.000Z' WHERE asks = 1");
    shop.home.until("SELECT status FROM events", "failed", SOON);
    drop(daemon);
}

#[test]
fn missing_mail_becomes_an_event_after_ten_minutes() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    shop.register(1, 41);
    shop.home.until("SELECT status FROM session_inquiries", "Completed", SOON);
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "0");
    assert!(
        shop.attention().contains("1 session completed at Resmic, and the mail is missing"),
        "{}",
        shop.attention()
    );
    assert_eq!(shop.status()["resmic"]["missing_mails"], 1);
    shop.let_time_pass();
    shop.home.until("SELECT status || ' ' || source || ' ' || amount FROM events", "completed resmic 20", SOON);
    let event = shop.home.ask("SELECT event_id FROM events");
    shop.delivery_is(&event, "delivered");
    let shown: Value = serde_json::from_str(&shop.home.data(&["show", "--json", &event])).unwrap();
    assert_eq!((&shown["source"], &shown["session_source"]), (&json!("resmic"), &json!("resmic")));
    // The mail arrives late, and states another time.
    assert_eq!(shop.receive(&mail(1)), ("duplicate".into(), event.clone()));
    assert_eq!(shop.receive(&mail(0)), ("duplicate".into(), event));
    assert_eq!(shop.delivered().len(), 1);
    assert!(!shop.attention().contains("Resmic"), "{}", shop.attention());
    drop(daemon);
}

#[test]
fn incomplete_details_need_review() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    let mut session = Session::completed("20", HASH);
    session.details.as_mut().unwrap()["from_wallet_address"] = Value::Null;
    shop.api.set_session(&id(1), session);
    shop.register(1, 41);
    shop.home.until("SELECT status FROM session_inquiries", "Completed", SOON);
    shop.let_time_pass();
    shop.home.until("SELECT reason LIKE 'unreadable: %from_wallet_address' FROM session_inquiries", "1", SOON);
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "0");
    assert!(shop.attention().contains(&format!("`session check {}`", id(1))), "{}", shop.attention());
    drop(daemon);
}

#[test]
fn mail_in_time_ends_the_questions() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    shop.register(1, 5);
    shop.home.until("SELECT count(*) FROM session_inquiries", "1", SOON);
    let (_, event) = shop.receive(&mail(1));
    shop.delivery_is(&event, "delivered");
    shop.let_time_pass();
    shop.home.until("SELECT next_ask_at FROM session_inquiries", "NULL", SOON);
    assert_eq!(shop.api.requests(), []);
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "1");
    drop(daemon);
}

#[test]
fn hash_finds_the_exact_session() {
    let shop = Shop::open("", "[sessions]\nmatch = true\n");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    for session in [1, 2, 3] {
        let hash = if session == 2 { HASH.into() } else { HASH.replace("a4", &format!("b{session}")) };
        shop.api.set_session(&id(session), Session::completed("20", &hash));
        shop.register(session, 5);
    }
    let (_, event) = shop.receive(&mail(0));
    shop.delivery_is(&event, "delivered");
    assert_eq!(
        shop.home.ask("SELECT session_id || ' ' || session_source || ' ' || order_ref FROM events"),
        format!("{} resmic order-2", id(2))
    );
    let asked = shop.api.requests();
    assert!(asked.iter().all(|asked| asked.path == DETAILS), "{asked:?}");
    assert_eq!(asked.len(), 3, "each session once");
    assert_eq!(shop.delivered()[0]["session_id"], id(2));
    drop(daemon);
}

#[test]
fn one_hash_of_two_sessions_decides_nothing() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    for session in [1, 2] {
        shop.api.set_session(&id(session), Session::completed("20", HASH));
        shop.register(session, 5);
    }
    let (_, event) = shop.receive(&mail(0));
    shop.home.until("SELECT result FROM session_searches", "ambiguous", SOON);
    shop.delivery_is(&event, "held");
    assert_eq!(shop.home.ask("SELECT session_id FROM events"), "NULL");
    drop(daemon);
}

#[test]
fn session_registered_late_is_asked_about() {
    let shop = Shop::open("", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    let (_, event) = shop.receive(&mail(0));
    shop.home.until("SELECT result FROM session_searches", "none", SOON);
    assert_eq!(shop.api.requests(), []);
    shop.register(1, 0);
    shop.delivery_is(&event, "delivered");
    assert_eq!(shop.home.ask("SELECT session_source FROM events"), "resmic");
    drop(daemon);
}

#[test]
fn require_holds_until_completed() {
    let shop = Shop::open("require = true", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::initiated("20"));
    let (_, event) = shop.receive(&mail(1));
    shop.home.until("SELECT reason IS NOT NULL AND state = 'waiting' FROM clearances", "1", SOON);
    shop.delivery_is(&event, "held");
    shop.api.set_session(&id(1), Session::completed("20", HASH));
    shop.delivery_is(&event, "delivered");
    assert_eq!(shop.home.ask("SELECT state FROM clearances"), "confirmed");
    assert_eq!(shop.delivered().len(), 1);
    drop(daemon);
}

#[test]
fn contradiction_holds_until_a_person_vouches() {
    let shop = Shop::open("require = true", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::completed("20", &HASH.replace("a4", "b4")));
    let (_, event) = shop.receive(&mail(1));
    shop.home.until("SELECT state FROM clearances", "doubtful", SOON);
    shop.delivery_is(&event, "held");
    assert!(shop.attention().contains("1 event contradicted by Resmic"), "{}", shop.attention());
    shop.home.data(&["confirm", "--vouch", &event]);
    shop.delivery_is(&event, "delivered");
    assert_eq!(shop.home.ask("SELECT state FROM clearances"), "operator");
    drop(daemon);
}

#[test]
fn retry_after_stops_the_questions() {
    let shop = Shop::open("", "");
    shop.api.set_mood(Mood::Limits(Some("3600")));
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    for session in 1..4 {
        shop.api.set_session(&id(session), Session::failed("20"));
        shop.register(session, 41);
    }
    shop.home.until("SELECT last_error LIKE '%limits the rate%' FROM resmic_api", "1", SOON);
    shop.home.until(
        "SELECT count(*) FROM session_inquiries WHERE next_ask_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '50 minutes')",
        "1",
        SOON,
    );
    shop.home.until("SELECT count(*) FROM sessions_to_reconcile", "0", SOON);
    assert_eq!(shop.api.requests().len(), 1);
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "0");
    drop(daemon);
}

#[test]
fn rate_is_never_exceeded() {
    let shop = Shop::open("rate = 5", "");
    shop.home.data(&["import", testkit::daemon::samples().join("malformed").to_str().unwrap()]);
    for session in 1..200 {
        shop.api.set_session(&id(session), Session::failed("20"));
        shop.register(session, 41);
    }
    let daemon = shop.home.start();
    // A third of the five requests, rounded down, is reserved for events. So the other four ask about sessions.
    shop.home.until("SELECT count(*) FROM events WHERE source = 'resmic'", "4", SOON);
    shop.home.until("SELECT count(*) FROM sessions_to_reconcile", "0", SOON);
    assert_eq!(shop.api.requests().len(), 4);
    drop(daemon);
}

#[test]
fn kill_between_question_and_answer_loses_nothing() {
    let shop = Shop::open("", "");
    shop.api.set_mood(Mood::Silent);
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.api.set_session(&id(1), Session::failed("20"));
    shop.register(1, 41);
    shop.api.wait_for(1);
    daemon.kill();
    assert_eq!(shop.home.ask("SELECT asks FROM session_inquiries"), "0");
    shop.api.set_mood(Mood::Documented);
    let daemon = shop.home.start();
    shop.home.until("SELECT group_concat(status) FROM events", "failed", SOON);
    shop.home.until("SELECT state FROM deliveries", "delivered", SOON);
    assert_eq!(shop.delivered().len(), 1);
    drop(daemon);
}

#[test]
fn misbehaving_api_makes_no_event() {
    let shop = Shop::open("rate = 600", "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    for (session, mood) in [
        Mood::Html(200),
        Mood::EnvelopeStatus(404),
        Mood::NotSuccess,
        Mood::OtherSession,
        Mood::Value("payment_status", "completed".into()),
        Mood::Redirects("http://127.0.0.1:1/".into()),
        Mood::Refuses(404, 400),
    ]
    .into_iter()
    .enumerate()
    {
        let session = u32::try_from(session).unwrap() + 1;
        shop.api.set_mood(mood.clone());
        shop.api.set_session(&id(session), Session::completed("20", HASH));
        shop.register(session, 41);
        let asks = |n: u32| {
            let sql = format!("SELECT asks FROM session_inquiries WHERE session_id = '{}'", id(session));
            shop.home.until(&sql, &n.to_string(), SOON);
        };
        asks(1);
        shop.change(&format!(
            "UPDATE session_inquiries SET next_ask_at = '2025-01-01T00:00:00.000Z', first_after_expiry = '2025-01-01T00:00:00.000Z'
             WHERE session_id = '{}'",
            id(session)
        ));
        asks(2);
        let reason =
            shop.home.ask(&format!("SELECT reason FROM session_inquiries WHERE session_id = '{}'", id(session)));
        assert!(reason.starts_with("unreadable: "), "{mood:?}: {reason}");
    }
    assert_eq!(shop.home.ask("SELECT count(*) FROM events"), "0");
    drop(daemon);
}

#[test]
fn nothing_is_asked_without_resmic() {
    let api = ResmicApi::start();
    api.set_session(&id(1), Session::failed("20"));
    let shop = Shop::with(api, "");
    let daemon = shop.home.start();
    shop.home.until("SELECT count(*) FROM sessions", "0", SOON);
    shop.register(1, 41);
    let (_, event) = shop.receive(&mail(0));
    shop.delivery_is(&event, "held");
    shop.home.until("SELECT count(*) FROM sessions_to_reconcile", "0", SOON);
    let tables = "SELECT (SELECT count(*) FROM session_inquiries) + (SELECT count(*) FROM session_searches) + (SELECT count(*) FROM clearances)";
    assert_eq!(shop.home.ask(tables), "0");
    assert_eq!(shop.api.requests(), []);
    assert_eq!(shop.status()["resmic"], Value::Null);
    let output = shop.home.run(&["session", "check", &id(1)]);
    assert_eq!(output.status.code(), Some(2));
    drop(daemon);
}

#[test]
fn commands_ask_and_print() {
    let shop = Shop::open("rate = 600", "");
    shop.receive(&Paid { amount: "7", ..mail(9) });
    shop.api.set_session(&id(1), Session::failed("20"));
    shop.api.set_session(&id(2), Session::completed("20", HASH));
    shop.register(1, 5);
    shop.register(2, 5);
    let checked: Value = serde_json::from_str(&shop.home.data(&["session", "check", "--json", &id(2)])).unwrap();
    assert_eq!((&checked["payment_status"], &checked["transaction_hash"]), (&json!("Completed"), &json!(HASH)));
    assert_eq!(checked["finding"], "mail-missing");
    let printed = shop.home.data(&["reconcile", "--json"]);
    let found: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), 2, "{printed}");
    assert!(found.iter().any(|f| f["session_id"] == id(1) && f["finding"] == "event"), "{printed}");
    assert_eq!(shop.home.ask("SELECT group_concat(status) FROM events WHERE source = 'resmic'"), "failed");
    let check = shop.home.run(&["check", "--connect"]);
    let check = String::from_utf8(check.stdout).unwrap();
    assert!(check.contains("resmic: 127.0.0.1 accepts the key"), "{check}");
    shop.api.set_mood(Mood::Quotes(401));
    let check = shop.home.run(&["check", "--connect"]);
    let (printed, log) = (String::from_utf8(check.stdout).unwrap(), String::from_utf8(check.stderr).unwrap());
    assert!(printed.contains("resmic: FAILED") && !printed.contains(API_KEY) && !log.contains(API_KEY), "{printed}");
}
