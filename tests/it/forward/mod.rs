//! The forwarder and sessions, with handlers of every kind.

mod deliver;
mod hostile;
mod matching;
mod outage;
mod sessions;
mod streams;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use resmic_mailhook::db::{self, DeliveryRow, Store};
use resmic_mailhook::forward::{self, ForwardSettings, Sending, Target};
use resmic_mailhook::model::Matching;
use resmic_mailhook::model::{
    AttemptResult, Envelope, Event, Examined, Judgement, Origin, PaymentDetails, RawMail, Status, Uid, UidValidity,
};
use resmic_mailhook::payments::ExaminedMail;
use secrecy::SecretString;
use tokio::sync::watch;

/// A store in a temporary folder, and a forwarder that runs until [`ForwarderSetup::stop`].
struct ForwarderSetup {
    folder: Arc<tempfile::TempDir>,
    store: Store,
    settings: Vec<ForwardSettings>,
    sending: Sending,
    running: Option<(watch::Sender<bool>, tokio::task::JoinHandle<db::Result<()>>)>,
}

fn settings(table: &str) -> ForwardSettings {
    toml::from_str(&format!("secret = {{ env = \"S\" }}\n{table}")).unwrap()
}

/// The settings of a target named `shop`.
fn shop(address: impl std::fmt::Display, keys: &str) -> ForwardSettings {
    settings(&format!("name = \"shop\"\nurl = \"http://{address}/hook\"\n{keys}"))
}

fn open(folder: &tempfile::TempDir, settings: &[ForwardSettings]) -> Store {
    Store::open(db::StoreSettings {
        path: folder.path().join("m.db"),
        targets: settings.iter().map(ForwardSettings::target).collect(),
        matching: Matching { enabled: false, window: Duration::from_secs(2700) },
        chains: Vec::new(),
        resmic: None,
    })
    .unwrap()
}

impl ForwarderSetup {
    fn new(settings: Vec<ForwardSettings>) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        ForwarderSetup { store: open(&folder, &settings), folder, settings, sending: Sending::default(), running: None }
    }

    fn start(&mut self) {
        self.start_with("secret");
    }

    fn start_with(&mut self, secret: &str) {
        let secret = SecretString::from(secret);
        let load = |s: &ForwardSettings| Target::load(s.clone(), secret.clone()).now_or_never().unwrap().unwrap();
        let targets = self.settings.iter().map(load).collect();
        let (stop, stopped) = watch::channel(false);
        let watching = {
            let (store, stopped) = (self.store.clone(), stopped.clone());
            async move { store.watch_changes(stopped).await }
        };
        let forwarding = forward::run_permitted(self.store.clone(), targets, self.sending.clone(), stopped);
        self.running = Some((stop, tokio::spawn(async { tokio::try_join!(watching, forwarding).map(drop) })));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(true).unwrap();
        task.await.unwrap().unwrap();
    }

    async fn record(&self, events: Vec<Event>) {
        static UID: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let entries = events.into_iter().map(|event| {
            let uid = UID.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let origin =
                Origin { account: "shop".into(), mailbox: "INBOX".into(), uid: Some((UidValidity(7), Uid(uid))) };
            let bytes = format!("mail {uid}").into_bytes();
            let mail = RawMail { origin, size: bytes.len() as u64, bytes, received_at: None };
            let judgement = Judgement::Event(Box::new(event));
            ExaminedMail::new(mail, Examined { judgement, proof: None, envelope: Envelope::default() })
        });
        self.store.record(entries.collect::<Vec<_>>(), None).await.unwrap();
    }

    fn deliveries(&self) -> Vec<DeliveryRow> {
        let mut rows = Vec::new();
        let push = |d| {
            rows.push(d);
            Ok::<_, db::Error>(())
        };
        self.store.reader().unwrap().deliveries(None, None, push).unwrap();
        rows
    }

    /// Waits until the deliveries satisfy a condition.
    async fn until(&self, what: &str, holds: impl Fn(&[DeliveryRow]) -> bool) -> Vec<DeliveryRow> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        loop {
            let now = self.deliveries();
            if holds(&now) {
                return now;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {what}: {now:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all deliveries are in this state.
    async fn until_all(&self, state: &str) -> Vec<DeliveryRow> {
        self.until(state, |rows| rows.iter().all(|d| d.state.as_str() == state)).await
    }

    /// A direct connection to the database.
    fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join("m.db")).unwrap()
    }
}

fn session(n: u32) -> String {
    format!("591abe63-aa61-411d-a419-{n:012}")
}

/// A completed payment of session `session_number`, with transaction `n`.
fn paid(session_number: Option<u32>, n: u32) -> Event {
    let payment = PaymentDetails {
        session_id: session_number.map(session),
        amount: Some("20".into()),
        blockchain: Some("Sepolia".into()),
        token: Some("DAI".into()),
        transaction_hash: Some(format!("0x{n:064x}")),
        ..PaymentDetails::new(Status::Completed)
    };
    Event { payment, header_time: Some("2025-03-05T03:36:00Z".parse().unwrap()), order_ref: None }
}

/// A failed payment of session `session_number`, at minute `n`.
fn failed(session_number: u32, n: i64) -> Event {
    let at = jiff::Timestamp::from_second(1_741_000_000 / 60 * 60 + 60 * n).unwrap();
    let payment = PaymentDetails {
        session_id: Some(session(session_number)),
        tx_time: Some(at),
        ..PaymentDetails::new(Status::Failed)
    };
    Event { payment, header_time: None, order_ref: None }
}
