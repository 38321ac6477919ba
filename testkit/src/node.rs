//! A scripted JSON-RPC node, which answers each call with the result of a function.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

/// An HTTP response.
pub struct NodeReply {
    pub status: &'static str,
    pub fields: String,
    pub body: Vec<u8>,
}

impl NodeReply {
    pub fn new(status: &'static str, fields: &str, body: impl Into<Vec<u8>>) -> NodeReply {
        NodeReply { status, fields: fields.to_owned(), body: body.into() }
    }

    /// A response with a JSON body and status 200.
    pub fn json(body: &Value) -> NodeReply {
        NodeReply::new("200 OK", "", body.to_string())
    }

    /// The JSON-RPC result of the call `id`.
    pub fn result(id: &Value, result: Value) -> NodeReply {
        NodeReply::json(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    /// The JSON-RPC error of the call `id`.
    pub fn error(id: &Value, code: i64, message: &str) -> NodeReply {
        NodeReply::json(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}))
    }
}

/// Returns the response to a request. `None`: the node does not respond.
type NodeScript = dyn Fn(&Value) -> Option<NodeReply> + Send + Sync;

/// A running node; dropping it closes the port.
pub struct ScriptedNode {
    pub port: u16,
    is_over: Arc<AtomicBool>,
}

impl ScriptedNode {
    pub fn start(script: impl Fn(&Value) -> Option<NodeReply> + Send + Sync + 'static) -> ScriptedNode {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let (script, over): (Arc<NodeScript>, _) = (Arc::new(script), is_over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let script = script.clone();
                std::thread::spawn(move || answer(stream, &*script));
            }
        });
        ScriptedNode { port, is_over }
    }

    /// Starts a node that forwards calls to the node at `port` and lets `change` alter the responses.
    pub fn altering(port: u16, change: impl Fn(&Value, &mut Value) + Send + Sync + 'static) -> ScriptedNode {
        ScriptedNode::start(move |request| {
            let mut answer = serde_json::from_slice(&super::anvil::post(port, &request.to_string())).unwrap();
            change(request, &mut answer);
            Some(NodeReply::json(&answer))
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for ScriptedNode {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // This connection wakes the listener, so that it sees the flag.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(mut stream: TcpStream, script: &NodeScript) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let Some(request) = read_request(&stream) else { return };
    match script(&request) {
        Some(reply) => {
            let head = format!(
                "HTTP/1.1 {}\r\n{}Content-Length: {}\r\nConnection: close\r\n\r\n",
                reply.status,
                reply.fields,
                reply.body.len()
            );
            // The client may have closed the connection in the middle of a long body.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply.body));
        }
        // Waits until the client closes the connection.
        None => drop(stream.read(&mut [0])),
    }
}

fn read_request(stream: &TcpStream) -> Option<Value> {
    let mut input = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}
