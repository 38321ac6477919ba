//! A thousand open sessions at ten requests a minute: the real loop's step, the real client and database, an API on
//! loopback, and a clock that the test advances.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use resmic_mailhook::db::{ResmicRules, Store, StoreSettings};
use resmic_mailhook::inquire::{Inquirer, Turn};
use resmic_mailhook::model::{
    Envelope, Event, Examined, Judgement, Matching, Origin, PaymentDetails, RawMail, Status, iso,
};
use resmic_mailhook::payments::ExaminedMail;
use resmic_mailhook::resmic::{ResmicClient, ResmicSettings};
use testkit::resmic_api::{API_KEY, ResmicApi, Session, USER_ID};
use tokio::runtime::Runtime;

use crate::inquire::{HASH, id};

const RATE: u32 = 10;
/// The requests in a minute that are not reserved for events.
const BACKGROUND: usize = 7;
const MINUTE: Duration = Duration::from_secs(60);
const DETAILS: &str = "/api/v1/makepayment/transaction-details";
const STATUS: &str = "/api/v1/makepayment/payment-status";

/// A database, an API, and a clock.
struct PaceSetup {
    runtime: Runtime,
    api: ResmicApi,
    store: Store,
    inquirer: Inquirer,
    folder: tempfile::TempDir,
    now: Instant,
    /// When each request was sent.
    sent_at: Vec<Instant>,
}

impl PaceSetup {
    fn new() -> PaceSetup {
        let (api, runtime, folder) = (ResmicApi::start(), Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(StoreSettings {
            path: folder.path().join("m.db"),
            targets: Vec::new(),
            matching: Matching { enabled: false, window: Duration::from_secs(2_700) },
            chains: Vec::new(),
            resmic: Some(ResmicRules { require: false }),
        })
        .unwrap();
        let settings: toml::Table = api.table("").parse().unwrap();
        let settings: ResmicSettings = settings["resmic"].clone().try_into().unwrap();
        let client = ResmicClient::new(&settings, API_KEY.to_owned().into(), USER_ID.to_owned().into(), None).unwrap();
        let inquirer = Inquirer::new(store.clone(), client, RATE);
        PaceSetup { runtime, api, store, inquirer, folder, now: Instant::now(), sent_at: Vec::new() }
    }

    /// Registers sessions with these numbers, oldest first, with a second between them. The last one is `age` seconds old.
    fn register(&self, numbers: RangeInclusive<u32>, age: u32, amount: &str) {
        let mut database = rusqlite::Connection::open(self.folder.path().join("m.db")).unwrap();
        let transaction = database.transaction().unwrap();
        for n in numbers.clone() {
            let created_at = Timestamp::now() - SignedDuration::from_secs(i64::from(age + numbers.end() - n));
            let sql = "INSERT INTO sessions (session_id, amount, created_at) VALUES (?1, ?2, ?3)";
            transaction.execute(sql, (id(n), amount, iso(created_at))).unwrap();
        }
        transaction.commit().unwrap();
        self.runtime.block_on(self.store.reconcile()).unwrap();
    }

    /// Stores a mail about a payment that names no session.
    fn receive(&self, hash: &str) {
        let payment = PaymentDetails {
            amount: Some("20".into()),
            blockchain: Some("Sepolia".into()),
            transaction_hash: Some(hash.into()),
            ..PaymentDetails::new(Status::Completed)
        };
        let event = Event { payment, header_time: Some(Timestamp::now()), order_ref: None };
        let examined =
            Examined { judgement: Judgement::Event(Box::new(event)), proof: None, envelope: Envelope::default() };
        let origin = Origin { account: "shop".into(), mailbox: "import".into(), uid: None };
        let mail = RawMail { origin, bytes: hash.into(), size: hash.len() as u64, received_at: None };
        self.runtime.block_on(self.store.record(vec![ExaminedMail::new(mail, examined)], None)).unwrap();
    }

    fn ask(&mut self) -> Turn {
        let now = self.now;
        self.runtime.block_on(self.inquirer.ask_next(|| now)).unwrap()
    }

    /// Asks until `limit` requests are sent, or no question is due. If the pace demands a pause, the clock is set to its end.
    /// Returns the time of the next question that is not due yet.
    fn ask_all(&mut self, limit: usize) -> Option<Timestamp> {
        while self.sent_at.len() < limit {
            match self.ask() {
                Turn::Asked => self.sent_at.push(self.now),
                Turn::Paced(at) => {
                    assert!(at > self.now && at <= self.now + MINUTE, "{:?}", at - self.now);
                    self.now = at;
                }
                Turn::Idle(next) => return next,
            }
        }
        None
    }

    /// The paths and sessions of the requests. Checks that the time of each request was noted.
    fn asked(&self) -> Vec<(String, String)> {
        let asked: Vec<_> = self.api.requests().into_iter().map(|request| (request.path, request.session)).collect();
        assert_eq!(asked.len(), self.sent_at.len(), "one request in each turn");
        asked
    }

    /// Checks that no minute has more than `limit` of the requests from `first` on.
    fn check_rate(&self, first: usize, limit: usize) {
        let sent = &self.sent_at[first..];
        let crowded = sent.windows(limit + 1).find(|w| w[limit] - w[0] < MINUTE);
        assert!(crowded.is_none(), "{} requests in {:?}", limit + 1, crowded.map(|w| w[limit] - w[0]));
    }

    fn count(&self, sql: &str) -> i64 {
        let database = rusqlite::Connection::open(self.folder.path().join("m.db")).unwrap();
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

/// The questions about these sessions, each with this path.
fn questions(path: &str, sessions: impl Iterator<Item = u32>) -> Vec<(String, String)> {
    sessions.map(|n| (path.to_owned(), id(n))).collect()
}

#[test]
fn thousand_candidates_are_each_asked_once() {
    let mut setup = PaceSetup::new();
    setup.register(1..=1_000, 60, "20");
    // Resmic names the transaction for the oldest session, about which the program asks last.
    setup.api.set_session(&id(1), Session::completed("20", HASH));
    setup.receive(HASH);
    let began = setup.now;
    setup.ask_all(usize::MAX);
    assert_eq!(setup.asked(), questions(DETAILS, (1..=1_000).rev()), "the newest first, each once");
    setup.check_rate(0, RATE as usize);
    assert_eq!(setup.now - began, MINUTE * 99, "and no slower than allowed");
    assert_eq!(setup.count("SELECT session_source = 'resmic' AND session_id LIKE '%000000000001' FROM events"), 1);
}

#[test]
fn new_events_repeat_the_questions() {
    let mut setup = PaceSetup::new();
    setup.register(1..=30, 60, "20");
    setup.api.set_session(&id(7), Session::completed("20", HASH));
    setup.receive(&HASH.replace("0xa4", "0xb4"));
    setup.ask_all(usize::MAX);
    assert_eq!(setup.asked(), questions(DETAILS, (1..=30).rev()));
    setup.ask_all(usize::MAX);
    assert_eq!(setup.asked().len(), 30, "nothing is new");
    // Session 7 has a transaction, which does not change. Each of the others may have been paid meanwhile.
    setup.receive(HASH);
    setup.ask_all(usize::MAX);
    let mut asked_again: Vec<u32> = (1..=30).rev().collect();
    asked_again.retain(|n| *n != 7);
    assert_eq!(setup.asked()[30..], questions(DETAILS, asked_again.into_iter()));
    setup.check_rate(0, RATE as usize);
    assert_eq!(setup.count("SELECT count(*) FROM events WHERE session_source = 'resmic'"), 1);
}

#[test]
fn thousand_expired_sessions_are_each_asked_once() {
    let mut setup = PaceSetup::new();
    // The newest session expired a minute ago.
    setup.register(1..=1_000, 41 * 60, "20");
    let still_initiated = |n: u32| n.is_multiple_of(20);
    for n in 1..=1_000 {
        let session = if still_initiated(n) { Session::initiated("20") } else { Session::failed("20") };
        setup.api.set_session(&id(n), session);
    }
    let began = setup.now;
    let next = setup.ask_all(usize::MAX).unwrap();
    // The session that has been due for the longest time comes first. If the newest session came first, the program might never
    // ask about an old one.
    assert_eq!(setup.asked(), questions(STATUS, 1..=1_000));
    setup.check_rate(0, BACKGROUND);
    assert_eq!(setup.now - began, MINUTE * 142);
    assert_eq!(setup.count("SELECT count(*) FROM events WHERE source = 'resmic' AND status = 'failed'"), 950);
    let hour = Timestamp::now() + SignedDuration::from_mins(59);
    assert!(next > hour, "the sessions that are still initiated are asked about in an hour: {next}");
    assert_eq!(setup.count("SELECT max(asks) FROM session_inquiries"), 1);
}

#[test]
fn an_event_goes_before_thousand_expired_sessions() {
    let mut setup = PaceSetup::new();
    setup.register(1..=997, 41 * 60, "7");
    setup.register(998..=1_000, 0, "20");
    setup.ask_all(BACKGROUND);
    assert!(matches!(setup.ask(), Turn::Paced(_)), "the rest of this minute is reserved for events");
    setup.receive(HASH);
    for _ in 998..=1_000 {
        assert_eq!(setup.ask(), Turn::Asked);
        setup.sent_at.push(setup.now);
    }
    assert_eq!(setup.asked()[BACKGROUND..], questions(DETAILS, (998..=1_000).rev()));
    setup.ask_all(100);
    setup.check_rate(0, RATE as usize);
    let mut times = BTreeMap::<_, usize>::new();
    setup.asked().into_iter().for_each(|question| *times.entry(question).or_default() += 1);
    assert!(times.values().all(|n| *n == 1), "{times:?}");
}
