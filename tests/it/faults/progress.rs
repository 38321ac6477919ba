//! The watchdog gets its keep-alive only while the watcher makes progress.

use std::sync::Arc;

use super::*;
use resmic_mailhook::app;
use resmic_mailhook::config::Config;
use resmic_mailhook::db::Store;
use resmic_mailhook::heartbeat::Heartbeats;
use resmic_mailhook::ingest::Ingest;
use resmic_mailhook::source::imap::{self, Account, Credentials, LoadResumePoint, Login};
use resmic_mailhook::telemetry::PushLatency;
use resmic_mailhook::trust::dns::Resolver;
use testkit::daemon::{Home, account};
use tokio::sync::{Semaphore, mpsc, watch};

/// The time without progress after which this watcher is late.
const USUAL: Duration = Duration::from_secs(3);

/// Starts a watcher and its ingest as the daemon does, and returns their heartbeat. `pace` is the number of simultaneous
/// connection attempts.
fn start_watcher(
    server: &Scripted,
    home: &Home,
    timing: Timing,
    pace: usize,
    usual: Duration,
) -> (Heartbeats, watch::Sender<bool>) {
    let config = Config::read(&home.folder.path().join("config.toml")).unwrap();
    let store = Store::open(app::store_settings(&config)).unwrap();
    let resolver = Arc::new(Resolver::new(&config.dns).unwrap());
    let rules = Arc::new(app::rules_without_account(&config));
    let account = Account {
        settings: testkit::watching::settings(server.port, "dedicated = true\nidle_renew = \"1s\""),
        login: Login { tls: None, credentials: Credentials::Password("secret".to_owned().into()) },
        is_candidate: Box::new(|_| true),
        pace: Arc::new(Semaphore::new(pace)),
        timing,
        quirks: resmic_mailhook::source::imap::Quirks::default(),
    };
    let cursors: LoadResumePoint = Box::new(|_| Box::pin(async { Ok(None) }));
    let (out, reports) = mpsc::channel(8);
    let (shutdown, ending) = watch::channel(false);
    let heartbeats = Heartbeats::default();
    let ingest = Ingest { account: "shop".into(), rules, resolver, store, latency: PushLatency::default() };
    tokio::spawn(ingest.run(reports, heartbeats.begin("watching", usual)));
    tokio::spawn(imap::watch(Arc::new(account), "INBOX".into(), cursors, out, ending));
    (heartbeats, shutdown)
}

#[tokio::test]
async fn the_watchdog_notices_a_watcher_that_hangs() {
    let server = Scripted::start().await;
    let home = Home::new(&account(server.port, ""));
    // Without timeouts, the watcher hangs at the fourth renewal.
    let endless = Duration::from_secs(3600);
    let (heartbeats, _shutdown) =
        start_watcher(&server, &home, Timing { answer: endless, mail: endless, ..quick() }, 1, USUAL);
    once(&server, "DONE", 4, &[Step::Mute]);
    let began = std::time::Instant::now();
    server.until("the fourth renewal", |state| state.count("DONE") == 4).await;
    assert!(began.elapsed() > USUAL, "longer than it may be silent");
    assert!(heartbeats.late().is_empty(), "each renewal was a sign of life");
    let late = async {
        while heartbeats.late().is_empty() {
            tokio::time::sleep(ms(50)).await;
        }
    };
    tokio::time::timeout(USUAL * 2, late).await.unwrap();
    assert_eq!(heartbeats.late(), ["watching"]);
}

#[tokio::test]
async fn waiting_for_a_connection_slot_is_progress() {
    let server = Scripted::start().await;
    let home = Home::new(&account(server.port, ""));
    let (heartbeats, _shutdown) = start_watcher(&server, &home, quick(), 0, Duration::ZERO);
    let in_time = async {
        while !heartbeats.late().is_empty() {
            tokio::time::sleep(ms(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), in_time).await.unwrap();
    assert_eq!(server.connections(), 0);
}
