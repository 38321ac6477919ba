//! A callback for tests that are not asynchronous: counts what came, by event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::receiver::{Answer, Receiver, Request, status};

/// What came for one event.
#[derive(Debug, Clone, Default)]
pub struct Came {
    /// Each different body.
    pub bodies: Vec<Vec<u8>>,
    /// How often it was posted.
    pub posted: usize,
    /// How often it was accepted; what the program heard of that is another question.
    pub accepted: usize,
}

/// What the callback does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Accept,
    /// It has accepted; the answer takes this long to leave.
    AcceptLate(Duration),
    Refuse,
    /// It hangs up without a word.
    HangUp,
}

/// A running callback; it ends with this value.
pub struct Callback {
    address: SocketAddr,
    came: Arc<Mutex<BTreeMap<String, Came>>>,
    runtime: Option<Runtime>,
}

impl Callback {
    /// Accepts everything.
    pub fn start() -> Callback {
        Callback::that(|_, _| Reply::Accept)
    }

    /// Does what `reply` says, by the number of the request, and by how often its event came before.
    pub fn that(reply: impl Fn(usize, usize) -> Reply + Send + Sync + 'static) -> Callback {
        let came: Arc<Mutex<BTreeMap<String, Came>>> = Arc::default();
        let keep = came.clone();
        let receiver = Receiver::new(move |n, request| {
            let reply = note(&mut keep.lock().unwrap(), request, |before| reply(n, before));
            match reply {
                Reply::Accept => status(200),
                Reply::AcceptLate(wait) => Answer::Slowly(wait),
                Reply::Refuse => status(503),
                Reply::HangUp => Answer::Close,
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = runtime.block_on(receiver.listen());
        Callback { address, came, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/payment-webhook", self.address)
    }

    /// What came, by `Idempotency-Key`.
    pub fn came(&self) -> BTreeMap<String, Came> {
        self.came.lock().unwrap().clone()
    }

    /// The events that came more than once, and how often.
    pub fn repeated(&self) -> BTreeMap<String, usize> {
        self.came().into_iter().filter(|(_, came)| came.posted > 1).map(|(key, came)| (key, came.posted)).collect()
    }
}

fn note(came: &mut BTreeMap<String, Came>, request: &Request, reply: impl Fn(usize) -> Reply) -> Reply {
    let key = request.header("idempotency-key").unwrap_or_default().to_owned();
    let of = came.entry(key).or_default();
    let reply = reply(of.posted);
    of.posted += 1;
    of.accepted += usize::from(matches!(reply, Reply::Accept | Reply::AcceptLate(_)));
    if !of.bodies.contains(&request.body) {
        of.bodies.push(request.body.clone());
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
