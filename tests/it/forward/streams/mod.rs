//! Deliveries to JetStream, with Debian's nats-server, and with a scripted server for answers that a real server does not send.

mod connection;
mod deliver;
mod false_answers;
mod losses;
mod program;
mod replay;
mod unfit;
mod verify;

use super::*;
use serde_json::{Value, json};
use testkit::nats_server::NatsServer;

const STREAM: &str = "PAID";

/// The settings of a target for the stream of this server.
fn paid_stream(url: &str, keys: &str) -> ForwardSettings {
    settings(&format!("name = \"stream\"\nnats = [\"{url}\"]\nstream = \"{STREAM}\"\nsubject = \"shop.paid\"\n{keys}"))
}

/// A server with a stream that is fit for payments.
async fn server_with_stream() -> NatsServer {
    let server = NatsServer::start();
    create_stream(&server, json!({})).await;
    server
}

async fn create_stream(server: &NatsServer, changes: Value) {
    server.create_stream(STREAM, &["shop.paid.>"], changes).await;
}

/// Lets the server lose its files, as a power failure does that comes before the files are on the disk. The forwarder must be
/// running.
async fn lose_all(server: &mut NatsServer, setup: &ForwarderSetup) {
    server.stop();
    std::fs::remove_dir_all(server.folder.path().join("jetstream")).unwrap();
    server.restart();
    setup.until_sql("SELECT problems FROM streams", "does not exist").await;
    create_stream(server, json!({})).await;
}

/// A message of the stream.
#[derive(Debug, Clone)]
struct Stored {
    subject: String,
    headers: String,
    body: Vec<u8>,
}

impl Stored {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// All messages of the stream, in their order.
async fn messages(server: &NatsServer) -> Vec<Stored> {
    let client = server.client().await;
    let info = server.api(&format!("STREAM.INFO.{STREAM}"), json!({})).await;
    let mut found = Vec::new();
    for sequence in info["state"]["first_seq"].as_u64().unwrap()..=info["state"]["last_seq"].as_u64().unwrap() {
        let request = json!({ "seq": sequence }).to_string();
        let answer = client.request(format!("$JS.API.STREAM.MSG.GET.{STREAM}"), request.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        let decode = |key: &str| {
            let text = answer["message"][key].as_str().unwrap_or_default();
            data_encoding::BASE64.decode(text.as_bytes()).unwrap()
        };
        found.push(Stored {
            subject: answer["message"]["subject"].as_str().unwrap().to_owned(),
            headers: String::from_utf8(decode("hdrs")).unwrap(),
            body: decode("data"),
        });
    }
    found
}

/// Changes the configuration of the stream.
async fn update_stream(server: &NatsServer, changes: Value) {
    let mut config = server.api(&format!("STREAM.INFO.{STREAM}"), json!({})).await["config"].clone();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    server.api(&format!("STREAM.UPDATE.{STREAM}"), config).await;
}

impl ForwarderSetup {
    /// Lets a connected forwarder read the configuration of its stream several times a second.
    fn inspect_often(&mut self) {
        self.sending.inspection_interval = Duration::from_millis(200);
    }

    /// The results of all attempts, in their order.
    fn results(&self) -> Vec<String> {
        let sql = self.sql();
        let mut statement = sql.prepare("SELECT result FROM attempts ORDER BY delivery_id, attempt").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Waits until a query of the database returns `want`.
    async fn until_sql(&self, query: &str, want: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
        loop {
            let has: rusqlite::Result<rusqlite::types::Value> = self.sql().query_row(query, [], |row| row.get(0));
            let has = format!("{has:?}");
            if has.contains(want) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{query}: {has} and not {want:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Changes the time of the acknowledgements to this many minutes from now, as an expression of SQL.
    fn age(&self, minutes: &str) {
        let sql = format!(
            "UPDATE deliveries SET delivered_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ({minutes}) || ' minutes');
             UPDATE deliveries SET acknowledged_at = delivered_at"
        );
        self.sql().execute_batch(&sql).unwrap();
    }

    /// Waits until the target is connected.
    async fn until_connected(&self) {
        self.until_sql("SELECT state FROM streams", "\"connected\"").await;
    }
}
