//! A fake of the merchant's handler, for tests without an async runtime. It counts the requests for each event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::receiver::{Receiver, ReceiverAnswer, Request, status};

/// The requests that the callback received for one event.
#[derive(Debug, Clone, Default)]
pub struct EventPosts {
    /// The different bodies.
    pub bodies: Vec<Vec<u8>>,
    /// The number of requests.
    pub posted: usize,
    /// How often the callback accepted the event. The response may have been lost on its way to the program.
    pub accepted: usize,
}

/// The callback's reaction to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandlerReply {
    Accept,
    /// Accepts the event; the response follows after this time.
    AcceptLate(Duration),
    Refuse,
    /// Closes the connection without a response.
    HangUp,
}

/// A running callback; dropping it closes the port.
pub struct Callback {
    address: SocketAddr,
    posts: Arc<Mutex<BTreeMap<String, EventPosts>>>,
    runtime: Option<Runtime>,
}

impl Callback {
    /// Starts a callback that accepts everything.
    pub fn start() -> Callback {
        Callback::replying(|_, _| HandlerReply::Accept)
    }

    /// Starts a callback that calls `reply` for each request, with the request's number (from 0) and the number of earlier
    /// requests for the same event.
    pub fn replying(reply: impl Fn(usize, usize) -> HandlerReply + Send + Sync + 'static) -> Callback {
        let posts: Arc<Mutex<BTreeMap<String, EventPosts>>> = Arc::default();
        let keep = posts.clone();
        let receiver = Receiver::new(move |n, request| {
            let reply = record(&mut keep.lock().unwrap(), request, |before| reply(n, before));
            match reply {
                HandlerReply::Accept => status(200),
                HandlerReply::AcceptLate(wait) => ReceiverAnswer::Slowly(wait),
                HandlerReply::Refuse => status(503),
                HandlerReply::HangUp => ReceiverAnswer::Close,
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = runtime.block_on(receiver.listen());
        Callback { address, posts, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/payment-webhook", self.address)
    }

    /// The requests so far, by `Idempotency-Key`.
    pub fn posts(&self) -> BTreeMap<String, EventPosts> {
        self.posts.lock().unwrap().clone()
    }

    /// The events with more than one request, each with the number of its requests.
    pub fn repeated(&self) -> BTreeMap<String, usize> {
        self.posts().into_iter().filter(|(_, posts)| posts.posted > 1).map(|(key, posts)| (key, posts.posted)).collect()
    }
}

fn record(
    posts: &mut BTreeMap<String, EventPosts>,
    request: &Request,
    reply: impl Fn(usize) -> HandlerReply,
) -> HandlerReply {
    let key = request.header("idempotency-key").unwrap_or_default().to_owned();
    let event = posts.entry(key).or_default();
    let reply = reply(event.posted);
    event.posted += 1;
    event.accepted += usize::from(matches!(reply, HandlerReply::Accept | HandlerReply::AcceptLate(_)));
    if !event.bodies.contains(&request.body) {
        event.bodies.push(request.body.clone());
    }
    reply
}

impl Drop for Callback {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
