//! A running watcher and the receiver of its reports, which checks at each report that the cursor has skipped no mail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use resmic_mailhook::model::{Availability, MailboxState, SyncPosition};
use resmic_mailhook::source::imap::{
    self, Account, Batch, Credentials, ImapSettings, Login, ResumePoint, Timing, WatcherReport,
};
use tokio::sync::{Semaphore, mpsc, watch};

use super::scripted::{PATIENCE, Scripted};

/// The stored cursor: `(UIDVALIDITY, last UID)`.
type Cursor = Arc<Mutex<Option<(u32, u32)>>>;

/// What a database would store in addition: the position after the last batch, each mail with its row number, and the mails
/// that have a row without bytes.
#[derive(Default)]
struct StoredState {
    position: Option<SyncPosition>,
    rows: Vec<(i64, (u32, u32), Timestamp)>,
    undelivered: BTreeSet<(u32, u32)>,
}

impl StoredState {
    /// The resume point that the program would read from a database with this cursor.
    fn resume_point(&self, cursor: (u32, u32)) -> ResumePoint {
        let position = self.position.filter(|r| (r.uid_validity.0, r.last_uid.0) == cursor).unwrap_or(cursor.into());
        let is_landmark =
            |row: i64, uid: u32| row > position.renumbered_after && uid.abs_diff(cursor.1) < imap::FINGERPRINT_UIDS;
        let rows =
            self.rows.iter().filter(|(row, (v, uid), _)| *v == cursor.0 && *uid <= cursor.1 && is_landmark(*row, *uid));
        let uid_fingerprints = rows.map(|(_, (_, uid), at)| (*uid, *at)).collect();
        let undelivered =
            self.undelivered.iter().filter(|(v, _)| *v == cursor.0).map(|(_, uid)| (*uid, None)).collect();
        ResumePoint { position, uid_fingerprints, last_row: self.rows.len() as i64, undelivered }
    }
}

/// A watcher and its reports so far.
pub struct Watching {
    reports: mpsc::Receiver<WatcherReport>,
    server: Option<Scripted>,
    pub cursor: Cursor,
    stored: Arc<Mutex<StoredState>>,
    /// The mails that the watcher handed over, by UIDVALIDITY and UID: the bytes, and how often they were handed over.
    pub handed: BTreeMap<(u32, u32), (Vec<u8>, usize)>,
    /// All mails that were handed over, in order.
    mails: Vec<Vec<u8>>,
    /// The reported size of each mail.
    pub sizes: BTreeMap<(u32, u32), u64>,
    /// Whether commits are delayed until [`Watching::commit`].
    pub busy: bool,
    waiting: Vec<(tokio::sync::oneshot::Sender<Vec<u32>>, Vec<u32>)>,
    /// Whether cursors are discarded instead of stored.
    pub forgetful: bool,
    /// The mails that have a row without bytes.
    pub undelivered: BTreeSet<(u32, u32)>,
    /// The reports about mails without bytes, in order.
    pub availability: Vec<(u32, Availability)>,
    /// UIDs that the cursor may pass although their mails were not handed over.
    pub old: BTreeSet<u32>,
    /// Each reported state, with its error.
    pub states: Vec<(MailboxState, Option<String>)>,
    /// The number of reported round trips.
    pub seen: usize,
    shutdown: watch::Sender<bool>,
    pub task: tokio::task::JoinHandle<()>,
}

/// The settings of an account at the scripted server, with more lines of configuration.
pub fn settings(port: u16, more: &str) -> ImapSettings {
    let mailboxes = if more.contains("mailboxes") { "" } else { "mailboxes = [\"INBOX\"]\n" };
    let text = format!(
        "name = \"shop\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nuser = \"shop@example\"\n\
         password = {{ env = \"NONE\" }}\n{mailboxes}{more}"
    );
    toml::from_str(&text).unwrap()
}

/// An account with a valid password.
fn account(settings: ImapSettings, timing: Timing) -> Account {
    Account {
        settings,
        login: Login { tls: None, credentials: Credentials::Password("secret".to_owned().into()) },
        is_candidate: Box::new(|header| header.windows(10).any(|w| w == b"resmic.com")),
        pace: Arc::new(Semaphore::new(4)),
        timing,
        quirks: resmic_mailhook::source::imap::Quirks::default(),
    }
}

/// Short timeouts for tests.
pub fn quick() -> Timing {
    Timing {
        answer: Duration::from_secs(1),
        login: Duration::from_secs(2),
        refetch: Duration::from_millis(50),
        retry: resmic_mailhook::backoff::Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) },
        ..Timing::default()
    }
}

/// Watches a dedicated mailbox. The IDLE is renewed once a minute.
pub fn dedicated(server: &Scripted) -> Watching {
    Watching::start(server, settings(server.port, "dedicated = true\nidle_renew = \"1m\""), quick())
}

impl Watching {
    pub fn start(server: &Scripted, settings: ImapSettings, timing: Timing) -> Self {
        let mut watching = Self::from_cursor(settings, timing, Cursor::default());
        watching.server = Some(server.clone());
        watching
    }

    /// Watches the first mailbox of an account, from this cursor on.
    pub fn from_cursor(settings: ImapSettings, timing: Timing, cursor: Cursor) -> Self {
        let wanted = settings.mailboxes[0].clone();
        Self::with_account(account(settings, timing), wanted, cursor)
    }

    pub fn with_account(account: Account, wanted: String, cursor: Cursor) -> Self {
        let (out, reports) = mpsc::channel(8);
        let (shutdown, ending) = watch::channel(false);
        let stored = Arc::<Mutex<StoredState>>::default();
        let (known, more) = (cursor.clone(), stored.clone());
        let cursors: imap::LoadResumePoint = Box::new(move |_| {
            let cursor = *known.lock().unwrap();
            let known = cursor.map(|cursor| more.lock().unwrap().resume_point(cursor));
            Box::pin(async move { Ok(known) })
        });
        let task = tokio::spawn(imap::watch(Arc::new(account), wanted, cursors, out, ending));
        Watching {
            reports,
            server: None,
            cursor,
            stored,
            handed: BTreeMap::new(),
            mails: Vec::new(),
            sizes: BTreeMap::new(),
            busy: false,
            waiting: Vec::new(),
            forgetful: false,
            undelivered: BTreeSet::new(),
            availability: Vec::new(),
            old: BTreeSet::new(),
            states: Vec::new(),
            seen: 0,
            shutdown,
            task,
        }
    }

    /// Waits for the next report and records it.
    async fn handle_next_report(&mut self) {
        match self.reports.recv().await {
            Some(WatcherReport::Mails(batch)) => self.take_batch(batch),
            Some(WatcherReport::State { state, seen, error, .. }) => {
                self.states.push((state, error));
                self.seen += usize::from(seen);
            }
            Some(WatcherReport::Found { .. }) => {}
            None => panic!("the watcher has ended by itself"),
        }
    }

    fn take_batch(&mut self, batch: Batch) {
        let mut uids = Vec::new();
        for mail in batch.mails {
            let key = mail.origin.uid.map(|(validity, uid)| (validity.0, uid.0)).unwrap();
            uids.push(key.1);
            self.sizes.insert(key, mail.size);
            let entry = self.handed.entry(key).or_insert_with(|| (mail.bytes.clone(), 0));
            if entry.1 == 0 {
                let rows = &mut self.stored.lock().unwrap().rows;
                rows.extend(mail.received_at.map(|at| (rows.len() as i64 + 1, key, at)));
            }
            entry.1 += 1;
            self.undelivered.remove(&key);
            self.mails.push(mail.bytes);
        }
        for mail in batch.undelivered {
            let (validity, uid) = mail.origin.uid.unwrap();
            let key = (validity.0, uid.0);
            self.availability.push((key.1, mail.state));
            match mail.state {
                Availability::Listed => self.undelivered.insert(key),
                Availability::Gone | Availability::Foreign => self.undelivered.remove(&key),
            };
        }
        self.stored.lock().unwrap().undelivered.clone_from(&self.undelivered);
        if let Some(position) = batch.cursor {
            let cursor = (position.uid_validity.0, position.last_uid.0);
            self.assert_cursor_rule(cursor);
            if !self.forgetful {
                self.stored.lock().unwrap().position = Some(position);
                *self.cursor.lock().unwrap() = Some(cursor);
            }
        }
        self.waiting.extend(batch.done.map(|done| (done, uids)));
        if !self.busy {
            self.commit();
        }
    }

    /// Confirms the waiting mails as committed.
    pub fn commit(&mut self) {
        for (done, uids) in self.waiting.drain(..) {
            let _ = done.send(uids);
        }
    }

    /// The cursor rule: each of Resmic's mails below the cursor was handed over or has a row.
    fn assert_cursor_rule(&self, (validity, last): (u32, u32)) {
        let Some(server) = &self.server else { return };
        let state = server.state();
        if state.uid_validity != validity {
            return;
        }
        for (uid, bytes) in state.mails.iter().filter(|(uid, _)| *uid <= last && !self.old.contains(uid)) {
            let ours = bytes.windows(10).any(|w| w == b"resmic.com");
            let known = self.handed.contains_key(&(validity, *uid)) || self.undelivered.contains(&(validity, *uid));
            assert!(known || !ours, "the cursor passed {uid} on its way to {last}\n{}", state.lines.join("\n"));
        }
    }

    /// Handles reports until a condition holds.
    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                self.handle_next_report().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let lines = self.server.as_ref().map(|s| s.state().lines.join("\n")).unwrap_or_default();
            panic!("it did not happen in time: {what}\nstates: {:?}\n{lines}", self.states);
        }
    }

    /// Handles reports until the stored cursor is at this UIDVALIDITY and UID.
    pub async fn until_cursor(&mut self, validity: u32, uid: u32) {
        let what = format!("the cursor {validity}:{uid}");
        self.until(&what, |w| *w.cursor.lock().unwrap() == Some((validity, uid))).await;
    }

    /// How often a mail with this subject was handed over, under any UID.
    pub fn times(&self, subject: &str) -> usize {
        let line = format!("Subject: {subject}\r\n").into_bytes();
        let has_subject = |bytes: &[u8]| bytes.windows(line.len()).any(|w| w == line);
        self.mails.iter().filter(|bytes| has_subject(bytes)).count()
    }

    /// Waits for a mail and returns how long that took.
    pub async fn mail(&mut self, subject: &str) -> Duration {
        let began = std::time::Instant::now();
        self.until(&format!("the mail {subject}"), |w| w.times(subject) > 0).await;
        began.elapsed()
    }

    /// Waits for the next report of this state and returns its error.
    pub async fn state(&mut self, state: MailboxState) -> Option<String> {
        self.states.clear();
        self.until(&format!("state {state:?}"), |w| w.states.iter().any(|(s, _)| *s == state)).await;
        self.states.iter().find(|(s, _)| *s == state).and_then(|(_, error)| error.clone())
    }

    pub async fn idle(&mut self) {
        self.state(MailboxState::Idle).await;
    }

    /// Handles reports until the server's state satisfies a condition.
    pub async fn while_server(&mut self, what: &str, holds: impl FnMut(&super::scripted::ServerState) -> bool) {
        let server = self.server.clone().unwrap();
        let mut seen = std::pin::pin!(server.until(what, holds));
        loop {
            tokio::select! {
                () = &mut seen => return,
                () = self.handle_next_report() => {}
            }
        }
    }

    /// Handles reports for this time.
    pub async fn listen(&mut self, time: Duration) {
        let _ = tokio::time::timeout(time, async {
            loop {
                self.handle_next_report().await;
            }
        })
        .await;
    }

    /// Stops the watcher and waits for its end.
    pub async fn end(mut self) {
        self.shutdown.send(true).unwrap();
        while self.reports.recv().await.is_some() {}
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}
