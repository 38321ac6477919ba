//! Three private NATS servers that form a cluster, of the version that `make nats-server` installs into target/tools.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::nats_server::NatsServer;
use super::process::free_port;

const NODES: usize = 3;
/// How long a cluster may take to elect its leaders.
const LIMIT: Duration = Duration::from_secs(60);
/// The pause between two requests. A server does not announce a new leader, so [`NatsCluster::until`] polls.
const PAUSE: Duration = Duration::from_millis(50);

/// The current server from PyPI: Debian's is too old for a cluster.
pub fn current_server() -> PathBuf {
    let program = crate::project().join("target/tools/nats-server/bin/nats-server");
    assert!(program.exists(), "no {}; `make nats-server`", program.display());
    program
}

/// A cluster. Dropping it ends its servers.
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
}

impl NatsCluster {
    pub fn start() -> NatsCluster {
        let ports: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let routes: Vec<String> = ports.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
        let node = |(n, port)| {
            let settings = format!(
                "server_name: n{n}\ncluster {{ name: mailhook, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
                routes.join(", ")
            );
            NatsServer::start_program(&current_server(), &settings)
        };
        NatsCluster { nodes: ports.into_iter().enumerate().map(node).collect() }
    }

    /// The URLs of all servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(NatsServer::url).collect()
    }

    /// Sends SIGKILL to a server.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Kills all servers, and then starts them again.
    pub fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(NatsServer::kill);
        self.nodes.iter_mut().for_each(NatsServer::restart);
    }

    /// Repeats a request to the JetStream API until `wanted` returns a value for an answer, and returns that value.
    pub async fn until<T>(&self, subject: &str, request: Value, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        let mut last = String::new();
        while Instant::now() < deadline {
            for node in &self.nodes {
                match ask(&node.url(), subject, &request).await {
                    Ok(answer) => match wanted(&answer) {
                        Some(found) => return found,
                        None => last = answer.to_string(),
                    },
                    Err(error) => last = error.to_string(),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("{subject}: {last}");
    }

    /// Creates a stream with a replica on each server.
    pub async fn create_stream(&self, name: &str, subjects: &[&str]) {
        let config = json!({ "deny_delete": true, "deny_purge": true });
        self.create(name, subjects, config).await;
    }

    /// Creates a key-value bucket with a replica on each server, as `nats kv add --history=1` does.
    pub async fn create_bucket(&self, bucket: &str, ttl: Duration) {
        let nanos = u64::try_from(ttl.as_nanos()).unwrap();
        let config = json!({
            "max_age": nanos, "duplicate_window": nanos, "max_msgs_per_subject": 1, "allow_rollup_hdrs": true,
            "deny_delete": true,
        });
        self.create(&format!("KV_{bucket}"), &[&format!("$KV.{bucket}.>")], config).await;
    }

    async fn create(&self, name: &str, subjects: &[&str], mut config: Value) {
        let common = json!({
            "name": name, "subjects": subjects, "storage": "file", "retention": "limits", "discard": "new",
            "allow_direct": true, "num_replicas": NODES,
        });
        config.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        let is_created = |answer: &Value| answer.get("error").is_none().then_some(());
        self.until(&format!("STREAM.CREATE.{name}"), config, is_created).await;
    }

    /// Waits until a stream has a leader, and returns it.
    pub async fn leader(&self, stream: &str) -> usize {
        let number = |answer: &Value| answer["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok();
        self.until(&format!("STREAM.INFO.{stream}"), json!({}), number).await
    }

    /// Waits until each replica of a stream is complete.
    pub async fn until_current(&self, stream: &str) {
        let is_current = |answer: &Value| {
            let replicas = answer["cluster"]["replicas"].as_array()?;
            let current =
                replicas.iter().filter(|replica| replica["current"] == true && replica["offline"] != true).count();
            (current == NODES - 1).then_some(())
        };
        self.until(&format!("STREAM.INFO.{stream}"), json!({}), is_current).await;
    }

    /// How many messages a stream has.
    pub async fn count(&self, stream: &str) -> u64 {
        let messages = |answer: &Value| answer["state"]["messages"].as_u64();
        self.until(&format!("STREAM.INFO.{stream}"), json!({}), messages).await
    }
}

async fn ask(url: &str, subject: &str, request: &Value) -> Result<Value, Box<dyn std::error::Error>> {
    let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(2)));
    let client = options.connect(url).await?;
    let answer = client.request(format!("$JS.API.{subject}"), request.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}
