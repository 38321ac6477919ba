//! The agent: a task that gets, renews or watches the lease for as long as the process runs. The [`Driver`] is this task. A
//! [`LeaseAgent`] is a handle, which sends commands to the task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::announcements::Subscription;
use super::connection::LeasePlace;
use super::driver::{Driver, LeaseCommand};
use super::hashes::ConfigurationHashes;
use super::machine::{LeaseMachine, Member};
use super::restore::watch_restore;
use super::standby_file::{Report, StandbyFile};
use super::view::LeaseView;
use crate::boot_clock::BootInstant;
use crate::heartbeat::Heartbeat;
use crate::sending_permit::SendingPermit;

/// After this time without a heartbeat, the agent counts as stuck. The time is long, because a connect may try several servers.
pub const AGENT_HEARTBEAT: Duration = Duration::from_secs(3 * 60);

/// A handle on the task of the agent (`Driver`). The task ends when all handles are dropped.
#[derive(Debug, Clone)]
pub struct LeaseAgent {
    view: watch::Receiver<LeaseView>,
    sends_until: watch::Receiver<BootInstant>,
    commands: mpsc::UnboundedSender<LeaseCommand>,
}

impl LeaseAgent {
    /// Starts the task of the agent. The task connects to a NATS server in the background. `restore`: the restore command, whose
    /// program is checked once a minute.
    #[must_use]
    pub fn start(
        place: LeasePlace,
        member: Member,
        mut file: StandbyFile,
        restore: Option<Vec<String>>,
        heartbeat: Heartbeat,
    ) -> Self {
        let (view, seen) = watch::channel(LeaseView::unread());
        let (sends_until, permit) = watch::channel(BootInstant::default());
        let (send, commands) = mpsc::unbounded_channel();
        let (known_bucket, known) = file.known();
        // A command such as `status` may read the standby file before the first NATS server has answered.
        file.write(&Report::new(&LeaseView::unread(), &known_bucket, &known));
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
            write_problem: None,
            subscription: Subscription::default(),
            restore_problem: watch_restore(restore),
            subject: String::new(),
            released: None,
        };
        tokio::spawn(driver.run());
        LeaseAgent { view: seen, sends_until: permit, commands: send }
    }

    /// Returns a receiver of the [`LeaseView`]. A renewal of the lease does not wake this receiver.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LeaseView> {
        self.view.clone()
    }

    /// Returns the permission to begin attempts. The permission ends after two thirds of the lease, unless the lease is renewed.
    #[must_use]
    pub fn permit(&self) -> SendingPermit {
        SendingPermit::until(self.sends_until.clone())
    }

    /// Reports that the database was opened in `term` ([`LeaseView::term`]), so that this host becomes active. `last_mail_id`:
    /// the last `mails.id` of the database.
    pub fn report_opened(&self, term: u64, last_mail_id: i64) {
        self.send(LeaseCommand::Opened { term, last_mail_id });
    }

    /// Reports the last `mails.id` of the open database to the agent, which writes the id into the lease.
    pub fn report_last_mail(&self, last_mail_id: i64) {
        self.send(LeaseCommand::LastMail(last_mail_id));
    }

    /// Reports the hashes of the configuration to the agent, at the start and after each reload.
    pub fn report_configuration(&self, hashes: ConfigurationHashes) {
        self.send(LeaseCommand::Configuration(hashes));
    }

    /// Releases the lease, and returns when the release is stored or the lease has ended. This host then leaves the lease to
    /// others until `pause` is over, or until another host becomes active. `failure`: why this host could not take over. Without a
    /// failure, the pause also ends when another host has taken the lease.
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

    /// Returns when the task of the agent has ended. While a [`LeaseAgent`] exists, only a panic ends this task.
    pub async fn ended(&self) {
        let mut view = self.view.clone();
        while view.changed().await.is_ok() {}
    }

    /// Returns when this host no longer has the lease of `term`, also if this host has got the lease again in a later term. This
    /// function reads the clock at least once a second, because timers do not run while the machine sleeps.
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

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream;
    use futures_util::FutureExt;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::heartbeat::Heartbeats;
    use crate::standby::view::NOT_READ;
    use crate::standby::{LeaseState, StandbySettings};

    const BUCKET: &str = "leases";
    /// A duration that is longer than any test.
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

    /// Starts a NATS server that sends each client an endless message. Returns the URL of this server, and the number of endless
    /// messages that have begun.
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
    /// An error means that the client has closed the connection.
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
        // The content of the key cannot be parsed, so the content counts as the lease of another host.
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

    /// Starts the agent of a host, and returns the folder of its standby file, too.
    async fn start(url: String) -> (LeaseAgent, tempfile::TempDir) {
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
        let heartbeat = Heartbeats::default().begin("agent", AGENT_HEARTBEAT);
        (LeaseAgent::start(place, member, file, None, heartbeat), folder)
    }

    #[tokio::test]
    async fn an_unread_lease_is_not_free() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (agent, folder) = start(format!("nats://{}", silent.local_addr().unwrap())).await;
        let reported = StandbyFile::read(&folder.path().join("standby.json")).unwrap().unwrap().view();
        for view in [agent.watch().borrow().clone(), reported] {
            assert_eq!((view.state, view.problem.as_deref()), (LeaseState::Standby, Some(NOT_READ)));
        }
    }

    #[tokio::test]
    async fn commands_do_not_postpone_the_size_check() {
        let (url, mut floods) = flooding_server().await;
        let (agent, _folder) = start(url).await;
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
