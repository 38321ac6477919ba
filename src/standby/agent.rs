//! Holds or watches the lease for as long as the process runs. It carries out the steps of the [`LeaseMachine`] at a NATS server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::bucket::LeaseBucket;
use super::lease_value::{ConfigurationHashes, LeaseValue};
use super::machine::{LeaseMachine, Member, Step, WriteResult};
use super::standby_file::{Report, StandbyFile};
use super::view::{LeaseState, LeaseView};
use crate::backoff::Backoff;
use crate::boot_clock::BootInstant;
use crate::heartbeat::Heartbeat;
use crate::nats::{NatsConnection, NatsServers};
use crate::sending_permit::SendingPermit;

/// The longest pause between two heartbeats of the agent.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After this time without a heartbeat, the agent counts as stuck. The time is long, because a connect may try several servers.
pub const AGENT_HEARTBEAT: Duration = Duration::from_secs(3 * 60);
/// After this number of requests in a row without a valid answer, the agent opens a new connection, because another server may
/// answer.
const FAILURES: u32 = 2;
/// The pauses between attempts to connect: for the host that has the lease, and for a standby.
const HOLDER_RETRY: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(1) };
const STANDBY_RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(5) };

/// Where the lease is.
#[derive(Debug)]
pub struct LeasePlace {
    /// The servers.
    pub servers: NatsServers,
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub name: String,
}

/// A handle on the agent. The agent ends when all handles are dropped.
#[derive(Debug, Clone)]
pub struct LeaseAgent {
    view: watch::Receiver<LeaseView>,
    sends_until: watch::Receiver<BootInstant>,
    commands: mpsc::UnboundedSender<LeaseCommand>,
}

#[derive(Debug)]
pub(crate) enum LeaseCommand {
    Opened { term: u64, last_mail_id: i64 },
    LastMail(i64),
    Configuration(ConfigurationHashes),
    Release { pause: Duration, failure: Option<String>, done: oneshot::Sender<()> },
}

impl LeaseAgent {
    /// Starts the agent. It connects in the background.
    #[must_use]
    pub fn start(place: LeasePlace, member: Member, mut file: StandbyFile, heartbeat: Heartbeat) -> Self {
        let (view, seen) = watch::channel(LeaseView::default());
        let (sends_until, permit) = watch::channel(BootInstant::default());
        let (send, commands) = mpsc::unbounded_channel();
        let (known_bucket, known) = file.known();
        // A command may read the file before the first server has answered.
        file.write(&Report::new(&LeaseView::default(), &known_bucket, &known));
        let machine = LeaseMachine::new(member, known);
        let place = Arc::new(place);
        let driver = Driver {
            place,
            machine,
            known_bucket,
            file,
            view,
            sends_until,
            commands,
            heartbeat,
            problem: None,
            released: None,
        };
        tokio::spawn(driver.run());
        LeaseAgent { view: seen, sends_until: permit, commands: send }
    }

    /// The view of the lease, and its changes. A renewal does not wake the receiver.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LeaseView> {
        self.view.clone()
    }

    /// The permission to begin attempts. It ends after two thirds of the lease, unless the lease is renewed.
    #[must_use]
    pub fn permit(&self) -> SendingPermit {
        SendingPermit::until(self.sends_until.clone())
    }

    /// Reports that the database was opened in this term, so that this host becomes active. `last_mail_id`: the last `mails.id`
    /// of the database.
    pub fn report_opened(&self, term: u64, last_mail_id: i64) {
        self.send(LeaseCommand::Opened { term, last_mail_id });
    }

    /// Reports the last `mails.id` of the open database.
    pub fn report_last_mail(&self, last_mail_id: i64) {
        self.send(LeaseCommand::LastMail(last_mail_id));
    }

    /// Reports the configuration after a reload.
    pub fn report_configuration(&self, hashes: ConfigurationHashes) {
        self.send(LeaseCommand::Configuration(hashes));
    }

    /// Releases the lease, and returns when the release is stored or the lease has ended. This host does not take the lease again
    /// before `pause` is over or another host was active. `failure`: why this host could not take over.
    pub async fn release(&self, pause: Duration, failure: Option<String>) {
        let (done, released) = oneshot::channel();
        self.send(LeaseCommand::Release { pause, failure, done });
        // An error means that the agent has ended.
        let _ = released.await;
    }

    fn send(&self, command: LeaseCommand) {
        // An error means that the agent has ended; see [`LeaseAgent::ended`].
        let _ = self.commands.send(command);
    }

    /// Returns when the agent has ended. While a handle exists, only a panic ends the agent.
    pub async fn ended(&self) {
        let mut view = self.view.clone();
        while view.changed().await.is_ok() {}
    }

    /// Returns when this host no longer has the lease of this term, also if this host has got the lease again in a later term.
    /// This function reads the clock at least once a second, because timers do not run while the machine sleeps.
    pub async fn lost(&self, term: u64) {
        let mut view = self.view.clone();
        loop {
            let ends = {
                let view = view.borrow_and_update();
                if !view.is_held_since(term, BootInstant::now()) {
                    return;
                }
                view.ends.unwrap_or_default()
            };
            let left = ends.since(BootInstant::now()).min(Duration::from_secs(1));
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = sleep(left) => {}
            }
        }
    }
}

#[cfg(test)]
impl LeaseAgent {
    /// A handle without an agent: the test sends the views and receives the commands.
    pub(crate) fn with_view(view: watch::Receiver<LeaseView>) -> (Self, mpsc::UnboundedReceiver<LeaseCommand>) {
        let (send, commands) = mpsc::unbounded_channel();
        let sends_until = watch::channel(BootInstant::default()).1;
        (LeaseAgent { view, sends_until, commands: send }, commands)
    }
}

/// An open connection to the bucket of the lease.
pub(super) struct LeaseConnection {
    pub(super) nats: NatsConnection,
    pub(super) bucket: LeaseBucket,
    pub(super) announcements: Subscriber,
}

struct Driver {
    place: Arc<LeasePlace>,
    machine: LeaseMachine,
    /// The creation time of the bucket whose revisions the machine knows (`LeaseBucket::created`).
    known_bucket: String,
    file: StandbyFile,
    view: watch::Sender<LeaseView>,
    sends_until: watch::Sender<BootInstant>,
    commands: mpsc::UnboundedReceiver<LeaseCommand>,
    heartbeat: Heartbeat,
    problem: Option<String>,
    released: Option<oneshot::Sender<()>>,
}

impl Driver {
    /// Runs until all handles are dropped.
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let opening = open_connection(self.place.clone());
            let Some(opened) = self.while_offline(opening).await else { return };
            match opened {
                Ok(connection) => {
                    failures = 0;
                    self.set_problem(None);
                    if !self.serve(connection).await {
                        return;
                    }
                    let lost = format!("the connection to {} was lost", self.place.servers);
                    self.set_problem(Some(self.problem.clone().unwrap_or(lost)));
                }
                Err(problem) => {
                    failures += 1;
                    self.set_problem(Some(problem));
                }
            }
            let retry = if self.machine.is_holder() { HOLDER_RETRY } else { STANDBY_RETRY };
            if self.while_offline(sleep(retry.pause(failures))).await.is_none() {
                return;
            }
        }
    }

    /// Waits for `work`, and meanwhile executes commands and notices the end of the lease. `None`: all handles were dropped.
    async fn while_offline<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            self.heartbeat.beat();
            let now = BootInstant::now();
            self.machine.tick(now);
            self.publish();
            let wait = self.machine.ends_at().map_or(LONGEST_SLEEP, |ends| ends.since(now).min(LONGEST_SLEEP));
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.commands.recv() => self.execute(command?),
                () = sleep(wait) => {}
            }
        }
    }

    /// Carries out the machine's steps until the connection is lost, or `FAILURES` requests in a row have no valid answer.
    /// False if all handles were dropped.
    async fn serve(&mut self, connection: LeaseConnection) -> bool {
        let LeaseConnection { nats, bucket, mut announcements } = connection;
        let lost = nats.lost();
        tokio::pin!(lost);
        let now = BootInstant::now();
        let created = bucket.created();
        if created != self.known_bucket {
            self.machine.forget_revision();
            self.known_bucket = created;
        }
        self.machine.set_lease(bucket.lease());
        self.machine.connected(now);
        let mut failures = 0;
        while !nats.is_lost() && failures < FAILURES {
            self.heartbeat.beat();
            let step = self.machine.next_step(BootInstant::now());
            self.publish();
            match step {
                Step::Read => {
                    let answered = self.read(&bucket).await;
                    failures = if answered { 0 } else { failures + 1 };
                }
                Step::Write { expected, value } => {
                    let answered = self.write(&bucket, expected, value).await;
                    failures = if answered { 0 } else { failures + 1 };
                }
                Step::Wait(until) => {
                    let wait = until.since(BootInstant::now()).min(LONGEST_SLEEP);
                    tokio::select! {
                        biased;
                        command = self.commands.recv() => match command {
                            Some(command) => self.execute(command),
                            None => return false,
                        },
                        announced = announcements.next() => match announced {
                            Some(message) => self.hear(&mut announcements, message),
                            None => return true,
                        },
                        () = &mut lost => return true,
                        () = sleep(wait) => {}
                    }
                }
            }
        }
        true
    }

    /// Reads the key. False if there is no valid answer.
    async fn read(&mut self, bucket: &LeaseBucket) -> bool {
        let read = bucket.read().await;
        let now = BootInstant::now();
        self.set_problem(read.as_ref().err().map(ToString::to_string));
        match read {
            Ok(entry) => self.machine.on_read(now, entry),
            Err(_) => {
                self.machine.on_read_failure(now);
                return false;
            }
        }
        true
    }

    /// Writes the key. False if there is no valid answer.
    async fn write(&mut self, bucket: &LeaseBucket, expected: u64, value: LeaseValue) -> bool {
        let sent = BootInstant::now();
        let (result, problem) = bucket.write(expected, &value).await;
        self.set_problem(problem.map(|problem| problem.to_string()));
        self.machine.on_write(BootInstant::now(), sent, &value, result);
        result != WriteResult::Unknown
    }

    /// Passes an announcement to the machine. If several announcements wait, only the last of them matters.
    fn hear(&mut self, announcements: &mut Subscriber, first: async_nats::Message) {
        let mut last = first;
        while let Some(Some(message)) = announcements.next().now_or_never() {
            last = message;
        }
        self.machine.on_announcement(BootInstant::now(), LeaseValue::parse(&last.payload));
    }

    fn execute(&mut self, command: LeaseCommand) {
        let now = BootInstant::now();
        match command {
            LeaseCommand::Opened { term, last_mail_id } => self.machine.opened(now, term, last_mail_id),
            LeaseCommand::LastMail(last_mail_id) => self.machine.note_last_mail(now, last_mail_id),
            LeaseCommand::Configuration(hashes) => self.machine.set_configuration(hashes),
            LeaseCommand::Release { pause, failure, done } => {
                self.machine.release(now, pause, failure);
                self.released = Some(done);
            }
        }
    }

    fn set_problem(&mut self, problem: Option<String>) {
        match (&self.problem, &problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                tracing::warn!("the lease cannot be read or written: {problem}; trying again");
            }
            (Some(_), None) => tracing::info!("the lease can be read and written again"),
            _ => {}
        }
        self.problem = problem;
    }

    /// Publishes the machine's state, if it has changed.
    fn publish(&mut self) {
        let mut view = self.machine.view();
        view.problem = self.problem.clone().or(view.problem);
        // The end of the permission is published first, because a receiver of the view may begin attempts at once.
        let sends_until = self.machine.sends_until();
        self.sends_until.send_if_modified(|before| std::mem::replace(before, sends_until) != sends_until);
        if *self.view.borrow() != view {
            log_change(&self.view.borrow(), &view);
            self.file.write(&Report::new(&view, &self.known_bucket, self.machine.known()));
            // A renewal wakes no receiver. A receiver that needs the end of the lease reads it from the view.
            self.view.send_if_modified(|before| {
                let is_renewal = view.is_renewal_of(before);
                *before = view;
                !is_renewal
            });
        }
        if !self.machine.is_holder()
            && let Some(released) = self.released.take()
        {
            // The receiver may have stopped waiting.
            let _ = released.send(());
        }
    }
}

/// Logs a change of the state or of the holder.
fn log_change(before: &LeaseView, after: &LeaseView) {
    let host = |view: &LeaseView| view.holder.as_ref().map(|holder| holder.host.clone());
    let (holder_before, holder) = (host(before), host(after));
    match (before.state, after.state) {
        (old, new) if old == new => {
            if let (LeaseState::Standby, Some(holder)) = (new, holder.filter(|_| holder_before != host(after))) {
                tracing::info!(holder, "standing by");
            }
        }
        (_, LeaseState::TakingOver) => tracing::info!("this host has the lease and takes over"),
        (_, LeaseState::Active) => tracing::info!("this host is active"),
        (_, LeaseState::Waiting) => {
            let failure = after.failure.as_deref().unwrap_or_default();
            tracing::error!("this host cannot take over: {failure}; it tries again later");
        }
        (LeaseState::Active | LeaseState::TakingOver, LeaseState::Standby) if after.is_releasing => {
            tracing::info!("this host releases the lease");
        }
        (LeaseState::Active | LeaseState::TakingOver, LeaseState::Standby) => {
            tracing::warn!(holder, "this host has lost the lease; it stops and stands by");
        }
        (_, LeaseState::Standby) => tracing::info!(holder, "standing by"),
    }
}

/// Connects and opens the bucket.
pub(super) async fn open_connection(place: Arc<LeasePlace>) -> Result<LeaseConnection, String> {
    let nats = place.servers.connect().await.map_err(|error| error.to_string())?;
    let bucket = LeaseBucket::open(nats.client().clone(), &place.bucket, &place.name).await;
    let bucket = bucket.map_err(|error| explain(&nats, error.to_string()))?;
    let announcements = bucket.announcements().await;
    let announcements = announcements.map_err(|error| explain(&nats, error.to_string()))?;
    Ok(LeaseConnection { nats, bucket, announcements })
}

/// Adds the last error of the connection to `error`. A server that does not permit a request sends no answer, only an error of
/// the connection.
fn explain(connection: &NatsConnection, error: String) -> String {
    match connection.last_error() {
        Some(reported) => format!("{error}; the server reports: {reported}"),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::heartbeat::Heartbeats;
    use crate::standby::StandbySettings;

    const BUCKET: &str = "leases";
    /// A time that does not pass during a test.
    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_lease_taken_again_is_lost() {
        let ends = Some(BootInstant::now().plus(LONG));
        let active = LeaseView { state: LeaseState::Active, ends, term: 1, ..LeaseView::default() };
        let (view, seen) = watch::channel(active.clone());
        let (agent, _commands) = LeaseAgent::with_view(seen);
        let mut lost = Box::pin(agent.lost(1));
        assert!(lost.as_mut().now_or_never().is_none());
        // If two changes follow each other, a receiver may see only the last one.
        view.send(LeaseView { state: LeaseState::Standby, ends: None, ..active.clone() }).unwrap();
        view.send(LeaseView { state: LeaseState::TakingOver, term: 2, ..active }).unwrap();
        lost.await;
    }

    /// Starts a NATS server that floods its clients. Returns its URL, and the number of the floods that have begun.
    async fn flooding_server() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let (floods, count) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(flood(BufReader::new(stream), floods.clone()));
            }
        });
        (url, count)
    }

    /// Answers a client until the client has read the lease of another host. Then the server begins a message that does not end.
    /// An error is the end of the connection.
    async fn flood(mut stream: BufReader<TcpStream>, floods: watch::Sender<usize>) -> std::io::Result<()> {
        let config = stream::Config {
            name: format!("KV_{BUCKET}"),
            max_age: LONG,
            max_messages_per_subject: 1,
            num_replicas: 1,
            ..stream::Config::default()
        };
        let time = "2026-01-01T00:00:00Z";
        let state = json!({"messages": 1, "bytes": 1, "first_seq": 1, "first_ts": time, "last_seq": 1, "last_ts": time,
            "consumer_count": 0});
        let info = json!({"config": config, "created": time, "state": state});
        // The content is unknown, so it counts as the lease of another host.
        let lease = json!({"message": {"subject": "", "seq": 1, "data": "eA==", "time": time}});
        stream.write_all(b"INFO {\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576}\r\n").await?;
        let (mut line, mut inbox) = (String::new(), String::new());
        while !line.contains("STREAM.MSG.GET") {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["PING"] => stream.write_all(b"PONG\r\n").await?,
                ["SUB", subject, id] if subject.starts_with("_INBOX") => inbox = id.to_owned(),
                ["PUB", subject, reply, size] => {
                    let mut body = vec![0; size.parse::<usize>().unwrap() + 2];
                    stream.read_exact(&mut body).await?;
                    let answer = if subject.contains("STREAM.INFO") { &info } else { &lease }.to_string();
                    let message = format!("MSG {reply} {inbox} {}\r\n{answer}\r\n", answer.len());
                    stream.write_all(message.as_bytes()).await?;
                }
                _ => {}
            }
        }
        floods.send_modify(|n| *n += 1);
        stream.write_all(b"MSG x 0 9999999999999\r\n").await?;
        loop {
            stream.write_all(&[b'x'; 1 << 20]).await?;
            sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn commands_do_not_postpone_the_size_check() {
        let (url, mut floods) = flooding_server().await;
        let settings = format!("nats = [\"{url}\"]\nbucket = \"{BUCKET}\"\nname = \"shop\"");
        let servers = toml::from_str::<StandbySettings>(&settings).unwrap().load_servers().await.unwrap();
        // With the default interval, unanswered pings would also end the connection, and the size check would not be tested.
        let servers = servers.with_ping_interval(LONG);
        let place = LeasePlace { servers, bucket: BUCKET.into(), name: "shop".into() };
        let folder = tempfile::tempdir().unwrap();
        let file = StandbyFile::lock(&folder.path().join("standby.json")).unwrap();
        let member = Member {
            host: "a".into(),
            process: "p".into(),
            home: "h".into(),
            version: "0".into(),
            schema: 1,
            configuration: ConfigurationHashes::default(),
        };
        let agent = LeaseAgent::start(place, member, file, Heartbeats::default().begin("agent", AGENT_HEARTBEAT));
        let commands = async {
            loop {
                agent.report_last_mail(1);
                sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            again = timeout(Duration::from_secs(30), floods.wait_for(|count| *count > 1)) => assert!(again.is_ok()),
            () = commands => {}
        }
    }
}
