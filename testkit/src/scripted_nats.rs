//! A scripted NATS server. It sends answers that a test cannot get from a real server.
//!
//! It has one stream, which is fit for payments. A script decides the answer to each publish. A read of the stream returns a
//! message that the script has stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

/// The stream's name and the beginning of its subjects.
pub const STREAM: &str = "PAID";
pub const PREFIX: &str = "shop.paid";

/// A message that was published.
#[derive(Debug, Clone)]
pub struct Published {
    pub subject: String,
    /// The header section, as text.
    pub headers: String,
    pub body: Vec<u8>,
    /// The number of the connection, from 1.
    pub connection: usize,
}

impl Published {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// The answer to a publish.
#[derive(Debug, Clone)]
pub enum NatsAnswer {
    /// A message with this body.
    Body(String),
    /// A message with only this status, such as 503.
    Status(u16),
    /// These bytes, in place of any message.
    Raw(Vec<u8>),
    /// No answer.
    Silence,
    /// The end of the connection.
    Close,
    /// The message is stored under this sequence number, and nothing is answered.
    StoreSilently(u64),
    /// The message is stored under this sequence number and acknowledged.
    Store(u64),
}

impl NatsAnswer {
    /// The error with which a stream refuses a message.
    pub fn error(code: u64, err_code: u64) -> NatsAnswer {
        let error = json!({"code": code, "err_code": err_code, "description": "refused by the test"});
        NatsAnswer::Body(json!({"error": error, "stream": STREAM, "seq": 0}).to_string())
    }
}

type NatsScript = Arc<dyn Fn(usize, &Published) -> NatsAnswer + Send + Sync>;

/// The scripted server. It ends with the runtime of the test.
#[derive(Clone)]
pub struct ScriptedNats {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    script: NatsScript,
    published: Mutex<Vec<Published>>,
    count: watch::Sender<usize>,
    /// The stored message of each subject: its sequence number and its body.
    stored: Mutex<HashMap<String, (u64, Vec<u8>)>>,
    /// How many clients have logged in.
    logins: watch::Sender<usize>,
    /// The values that replace those of the stream's configuration.
    changes: Value,
}

impl ScriptedNats {
    /// Starts a server that answers publish n (from 0) with `script(n, message)`.
    pub async fn start(script: impl Fn(usize, &Published) -> NatsAnswer + Send + Sync + 'static) -> ScriptedNats {
        ScriptedNats::start_with(json!({}), script).await
    }

    /// Does the same as [`ScriptedNats::start`], but `changes` replaces values of the stream's configuration.
    pub async fn start_with(
        changes: Value,
        script: impl Fn(usize, &Published) -> NatsAnswer + Send + Sync + 'static,
    ) -> ScriptedNats {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            script: Arc::new(script),
            published: Mutex::default(),
            count: watch::Sender::new(0),
            stored: Mutex::default(),
            logins: watch::Sender::new(0),
            changes,
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let shared = serving.clone();
                tokio::spawn(async move {
                    let (read, write) = stream.into_split();
                    // The client may close the connection at any time.
                    let _ = Client { read: BufReader::new(read), write, subscriptions: Vec::new(), number: 0, shared }
                        .serve()
                        .await;
                });
            }
        });
        ScriptedNats { port, shared }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn published(&self) -> Vec<Published> {
        self.shared.published.lock().unwrap().clone()
    }

    /// Stores a message, as another client would.
    pub fn store(&self, subject: &str, sequence: u64, body: &[u8]) {
        self.shared.stored.lock().unwrap().insert(subject.to_owned(), (sequence, body.to_vec()));
    }

    /// Waits until this many messages were published.
    pub async fn until_published(&self, n: usize) -> Vec<Published> {
        until(&self.shared.count, n, "messages").await;
        self.published()
    }

    /// Waits until this many clients have logged in.
    pub async fn until_logins(&self, n: usize) {
        until(&self.shared.logins, n, "logins").await;
    }
}

async fn until(counter: &watch::Sender<usize>, n: usize, what: &str) {
    let mut count = counter.subscribe();
    let came = tokio::time::timeout(Duration::from_secs(60), count.wait_for(|c| *c >= n)).await;
    assert!(came.is_ok(), "only {} of {n} {what} came", *counter.borrow());
}

/// A connected client.
struct Client {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    /// The subject and the id of each subscription.
    subscriptions: Vec<(String, String)>,
    number: usize,
    shared: Arc<Shared>,
}

impl Client {
    async fn serve(mut self) -> std::io::Result<()> {
        let info = json!({"server_id": "T", "server_name": "test", "version": "2.12.0", "headers": true, "jetstream": true,
            "max_payload": 1_048_576, "proto": 1, "host": "127.0.0.1", "port": 4222});
        self.write.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.read.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["CONNECT", ..] => {
                    self.shared.logins.send_modify(|n| *n += 1);
                    self.number = *self.shared.logins.borrow();
                }
                ["PING", ..] => self.write.write_all(b"PONG\r\n").await?,
                ["SUB", subject, .., id] => self.subscriptions.push((subject.to_owned(), id.to_owned())),
                ["PUB", subject, reply, size] => self.read_message(subject, reply, 0, size).await?,
                ["HPUB", subject, reply, head, size] => {
                    self.read_message(subject, reply, head.parse().unwrap(), size).await?;
                }
                _ => {}
            }
        }
    }

    async fn read_message(&mut self, subject: &str, reply: &str, head: usize, size: &str) -> std::io::Result<()> {
        let (subject, reply) = (subject.to_owned(), reply.to_owned());
        let mut bytes = vec![0; size.parse::<usize>().unwrap() + 2];
        self.read.read_exact(&mut bytes).await?;
        bytes.truncate(bytes.len() - 2);
        let body = bytes.split_off(head);
        if let Some(request) = subject.strip_prefix("$JS.API.") {
            return self.answer_api(request, &reply, &body).await;
        }
        let message = Published { subject, headers: String::from_utf8(bytes).unwrap(), body, connection: self.number };
        let n = {
            let mut published = self.shared.published.lock().unwrap();
            published.push(message.clone());
            published.len()
        };
        let answer = (self.shared.script)(n - 1, &message);
        self.answer(&reply, &message, answer).await?;
        self.shared.count.send_replace(n);
        Ok(())
    }

    async fn answer(&mut self, reply: &str, message: &Published, answer: NatsAnswer) -> std::io::Result<()> {
        match answer {
            NatsAnswer::Body(body) => self.send(reply, "", body.as_bytes()).await,
            NatsAnswer::Status(status) => self.send(reply, &format!("NATS/1.0 {status}\r\n\r\n"), b"").await,
            NatsAnswer::Raw(bytes) => self.write.write_all(&bytes).await,
            NatsAnswer::Silence => Ok(()),
            NatsAnswer::Close => Err(std::io::ErrorKind::ConnectionReset.into()),
            NatsAnswer::StoreSilently(sequence) => {
                self.keep(message, sequence);
                Ok(())
            }
            NatsAnswer::Store(sequence) => {
                self.keep(message, sequence);
                self.send(reply, "", json!({"stream": STREAM, "seq": sequence}).to_string().as_bytes()).await
            }
        }
    }

    fn keep(&self, message: &Published, sequence: u64) {
        let entry = (sequence, message.body.clone());
        self.shared.stored.lock().unwrap().insert(message.subject.clone(), entry);
    }

    async fn answer_api(&mut self, api_subject: &str, reply: &str, body: &[u8]) -> std::io::Result<()> {
        let direct = format!("DIRECT.GET.{STREAM}.");
        if api_subject == format!("STREAM.INFO.{STREAM}") {
            return self.send(reply, "", self.info().to_string().as_bytes()).await;
        }
        if let Some(subject) = api_subject.strip_prefix(&direct) {
            return match self.stored(subject) {
                Some((sequence, body)) => {
                    let head = format!(
                        "NATS/1.0\r\nNats-Stream: {STREAM}\r\nNats-Subject: {subject}\r\nNats-Sequence: {sequence}\r\n\r\n"
                    );
                    self.send(reply, &head, &body).await
                }
                None => self.send(reply, "NATS/1.0 404 Message Not Found\r\n\r\n", b"").await,
            };
        }
        if api_subject == format!("STREAM.MSG.GET.{STREAM}") {
            use base64::Engine;
            let request: Value = serde_json::from_slice(body).unwrap();
            let subject = request["last_by_subj"].as_str().unwrap();
            let answer = match self.stored(subject) {
                Some((sequence, body)) => {
                    let data = base64::engine::general_purpose::STANDARD.encode(body);
                    json!({"message": {"subject": subject, "seq": sequence, "data": data}})
                }
                None => json!({"error": {"code": 404, "err_code": 10037, "description": "no message found"}}),
            };
            return self.send(reply, "", answer.to_string().as_bytes()).await;
        }
        let error = json!({"error": {"code": 404, "err_code": 10059, "description": "stream not found"}});
        self.send(reply, "", error.to_string().as_bytes()).await
    }

    fn info(&self) -> Value {
        let mut config = json!({
            "name": STREAM, "subjects": [format!("{PREFIX}.>")], "retention": "limits", "storage": "file",
            "discard": "new", "max_msgs": -1, "max_bytes": -1, "max_age": 0, "num_replicas": 1, "deny_delete": true,
            "deny_purge": true, "allow_direct": true,
        });
        for (key, value) in self.shared.changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let messages = self.shared.stored.lock().unwrap().len();
        json!({"config": config, "state": {"messages": messages}})
    }

    fn stored(&self, subject: &str) -> Option<(u64, Vec<u8>)> {
        self.shared.stored.lock().unwrap().get(subject).cloned()
    }

    /// Sends a message to the subscription that a reply subject belongs to.
    async fn send(&mut self, subject: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
        let matches = |pattern: &str| {
            pattern == subject || pattern.strip_suffix('*').is_some_and(|begin| subject.starts_with(begin))
        };
        let Some((_, id)) = self.subscriptions.iter().find(|(pattern, _)| matches(pattern)) else { return Ok(()) };
        let size = head.len() + body.len();
        let line = if head.is_empty() {
            format!("MSG {subject} {id} {size}\r\n")
        } else {
            format!("HMSG {subject} {id} {} {size}\r\n", head.len())
        };
        let message = [line.as_bytes(), head.as_bytes(), body, b"\r\n"].concat();
        self.write.write_all(&message).await
    }
}
