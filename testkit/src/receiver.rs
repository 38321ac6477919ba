//! A fake of the merchant's handler, for asynchronous tests. It records its requests, and a script decides the responses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One received request.
#[derive(Debug, Clone)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The callback's response to a request.
#[derive(Debug, Clone)]
pub enum ReceiverAnswer {
    /// Sends these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Sends nothing and keeps the connection open.
    Hang,
    /// Sends these bytes and keeps the connection open.
    Unended(&'static str),
    /// Sends status 500 and an endless body.
    Endless,
    /// Closes the connection without a response.
    Close,
    /// Sends status 200 after this time.
    Slowly(std::time::Duration),
}

pub fn status(status: u16) -> ReceiverAnswer {
    ReceiverAnswer::Bytes(format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n").into_bytes())
}

type ReceiverScript = Arc<dyn Fn(usize, &Request) -> ReceiverAnswer + Send + Sync>;

#[derive(Clone)]
pub struct Receiver {
    seen: Arc<Mutex<Vec<Request>>>,
    count: Arc<watch::Sender<usize>>,
    script: ReceiverScript,
}

impl Receiver {
    /// Creates a callback that answers request n (from 0) with `script(n, request)`.
    pub fn new(script: impl Fn(usize, &Request) -> ReceiverAnswer + Send + Sync + 'static) -> Self {
        Receiver { seen: Arc::default(), count: Arc::new(watch::Sender::new(0)), script: Arc::new(script) }
    }

    /// Listens on a free port of loopback.
    pub async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.serve(listener);
        address
    }

    pub fn serve(&self, listener: TcpListener) -> tokio::task::JoinHandle<()> {
        let receiver = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let receiver = receiver.clone();
                tokio::spawn(async move { receiver.serve_connection(stream).await });
            }
        })
    }

    /// The number of requests so far.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `n` requests have come.
    pub async fn wait_for(&self, n: usize) -> Vec<Request> {
        let mut count = self.count.subscribe();
        let came = tokio::time::timeout(std::time::Duration::from_secs(60), count.wait_for(|c| *c >= n)).await;
        assert!(came.is_ok(), "only {} of {n} requests came", self.requests().len());
        self.requests()
    }

    pub async fn serve_connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut stream = BufReader::new(stream);
        let Some(request) = read_request(&mut stream).await else { return };
        let n = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(request.clone());
            seen.len()
        };
        self.count.send_replace(n);
        // The client may have closed the connection.
        let _ = answer(&mut stream, (self.script)(n - 1, &request)).await;
    }
}

async fn read_request(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut field = String::new();
        stream.read_line(&mut field).await.ok()?;
        let Some((name, value)) = field.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = Request { line: line.trim_end().to_owned(), headers, body: Vec::new() };
    let length = request.header("content-length").map_or(0, |n| n.parse().unwrap());
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), answer: ReceiverAnswer) -> std::io::Result<()> {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    match answer {
        ReceiverAnswer::Bytes(bytes) => stream.write_all(&bytes).await?,
        ReceiverAnswer::Hang => std::future::pending().await,
        ReceiverAnswer::Unended(text) => {
            stream.write_all(text.as_bytes()).await?;
            std::future::pending().await
        }
        ReceiverAnswer::Close => {}
        ReceiverAnswer::Slowly(wait) => {
            tokio::time::sleep(wait).await;
            stream.write_all(OK).await?;
        }
        ReceiverAnswer::Endless => {
            stream.write_all(b"HTTP/1.1 500 Oh\r\n\r\nfirst line\n").await?;
            loop {
                stream.write_all(&[b'x'; 65_536]).await?;
            }
        }
    }
    stream.shutdown().await
}
