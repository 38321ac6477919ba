//! A TCP proxy in front of a real server, which disturbs its connections on command, and notes when the server sends.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// How many pieces each direction buffers, and the largest size of a piece in bytes.
const PIECES: usize = 256;
const PIECE: usize = 16 * 1024;

/// A direction of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the program to the server.
    ToServer = 0,
    /// From the server to the program.
    ToClient = 1,
}

/// The faults of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFaults {
    /// Bytes wait until the fault is over.
    pub stalled: bool,
    /// Bytes and the end of the stream are dropped.
    pub swallows: bool,
    /// Each byte is written separately.
    pub single_bytes: bool,
    /// The latency of this direction.
    pub delay: Duration,
}

/// A fault that happens once, to all open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disconnect {
    /// FIN to both sides.
    Cut,
    /// RST to both sides.
    Reset,
    /// Bytes of both sides are dropped from now on, without FIN or RST, as when a router forgets a connection.
    Forget,
}

/// A running proxy; dropping it ends its connections.
pub struct Proxy {
    pub port: u16,
    shared: Arc<ProxyState>,
    runtime: Option<Runtime>,
}

struct ProxyState {
    server: u16,
    links: [watch::Sender<LinkFaults>; 2],
    disconnect: watch::Sender<Option<Disconnect>>,
    refuses: watch::Sender<bool>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    affected: watch::Sender<usize>,
    first_piece: Mutex<Option<std::time::Instant>>,
}

impl Proxy {
    /// Starts a proxy in front of this loopback port.
    pub fn in_front_of(server: u16) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(ProxyState {
            server,
            links: [watch::Sender::default(), watch::Sender::default()],
            disconnect: watch::Sender::default(),
            refuses: watch::Sender::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            affected: watch::Sender::default(),
            first_piece: Mutex::default(),
        });
        runtime.spawn(shared.clone().serve(listener));
        Proxy { port, shared, runtime: Some(runtime) }
    }

    /// Changes the faults of a direction for open and for new connections.
    pub fn set(&self, direction: Direction, change: impl FnOnce(&mut LinkFaults)) {
        self.shared.links[direction as usize].send_modify(change);
    }

    /// Changes the faults of both directions.
    pub fn set_both(&self, change: impl Fn(&mut LinkFaults)) {
        self.set(Direction::ToServer, &change);
        self.set(Direction::ToClient, &change);
    }

    /// Sets whether the proxy closes new connections at once.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.send_replace(refuses);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.refuse(false);
        self.set_both(|link| *link = LinkFaults::default());
        self.shared.affected.send_replace(0);
    }

    /// Ends the open connections with a FIN.
    pub fn cut(&self) {
        self.shared.disconnect.send_replace(Some(Disconnect::Cut));
    }

    /// Ends the open connections with an RST.
    pub fn reset(&self) {
        self.shared.disconnect.send_replace(Some(Disconnect::Reset));
    }

    /// Leaves the open connections half open: their bytes are dropped. New connections work.
    pub fn forget(&self) {
        self.shared.disconnect.send_replace(Some(Disconnect::Forget));
    }

    /// Waits until the current fault has dropped or stalled bytes. Before that, the fault has had no effect.
    pub fn until_affected(&self, limit: Duration) {
        let mut affected = self.shared.affected.subscribe();
        let waiting = async { tokio::time::timeout(limit, affected.wait_for(|affected| *affected > 0)).await.is_ok() };
        assert!(self.runtime.as_ref().unwrap().block_on(waiting), "nothing was said on the link for {limit:?}");
    }

    /// Waits until there were more than `before` connections.
    pub fn until_reconnected(&self, before: usize, limit: Duration) {
        let deadline = std::time::Instant::now() + limit;
        while self.accepted() <= before {
            assert!(std::time::Instant::now() < deadline, "the program did not come back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The time at which the server sent its first bytes since the last call of this function.
    pub fn take_first_piece(&self) -> Option<std::time::Instant> {
        self.shared.first_piece.lock().unwrap().take()
    }

    /// The number of connections so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl ProxyState {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // Subscribe before the connection is counted. A test that has seen the count may call [`Proxy::cut`] at once, even
            // before the proxy is connected to the server.
            let disconnect = self.disconnect.subscribe();
            self.accepted.fetch_add(1, Ordering::SeqCst);
            if *self.refuses.borrow() {
                continue;
            }
            let shared = self.clone();
            tokio::spawn(async move {
                shared.open.fetch_add(1, Ordering::SeqCst);
                // If the server is down, the client's connection is closed.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await {
                    shared.connection(client, server, disconnect).await;
                }
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    async fn connection(
        &self,
        client: TcpStream,
        server: TcpStream,
        mut disconnect: watch::Receiver<Option<Disconnect>>,
    ) {
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        let disconnect = tokio::select! {
            _ = async {
                tokio::join!(
                    self.pump(Direction::ToServer, &mut client_in, &mut server_out),
                    self.pump(Direction::ToClient, &mut server_in, &mut client_out)
                )
            } => return,
            _ = disconnect.changed() => *disconnect.borrow_and_update(),
        };
        match disconnect {
            Some(Disconnect::Forget) => {
                // Continue to read, so that no write of either side fails.
                tokio::join!(drain(&mut client_in), drain(&mut server_in));
            }
            Some(Disconnect::Reset) => {
                for half in [&client_in, &server_in] {
                    let _ = SockRef::from(half.as_ref()).set_linger(Some(Duration::ZERO));
                }
            }
            Some(Disconnect::Cut) | None => {
                let _ = tokio::join!(client_out.shutdown(), server_out.shutdown());
            }
        }
    }
}

impl ProxyState {
    /// Copies one direction until its end.
    ///
    /// Each piece has the time at which it was read, and is written when its delay is over. So a delay does not reduce the
    /// throughput, and the pieces stay in order.
    async fn pump(&self, direction: Direction, input: &mut OwnedReadHalf, output: &mut OwnedWriteHalf) {
        let (pieces, arriving) = mpsc::channel(PIECES);
        let link = self.links[direction as usize].subscribe();
        tokio::join!(self.read_pieces(direction, input, pieces), self.write_pieces(arriving, output, link));
    }

    async fn read_pieces(
        &self,
        direction: Direction,
        input: &mut OwnedReadHalf,
        pieces: mpsc::Sender<(Instant, Vec<u8>)>,
    ) {
        let mut link = self.links[direction as usize].subscribe();
        let mut buffer = vec![0; PIECE];
        loop {
            // A stalled direction does not read either, so that the sender's TCP window becomes full.
            let _ = link.wait_for(|link| !link.stalled).await;
            let read = input.read(&mut buffer).await.unwrap_or(0);
            let swallows = link.borrow().swallows;
            match read {
                // The end of the stream is dropped, too.
                0 if swallows => return std::future::pending().await,
                0 => return,
                _ if swallows => {
                    self.affected.send_modify(|affected| *affected += 1);
                    continue;
                }
                _ => {}
            }
            if direction == Direction::ToClient {
                self.first_piece.lock().unwrap().get_or_insert_with(std::time::Instant::now);
            }
            if pieces.send((Instant::now(), buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    }

    async fn write_pieces(
        &self,
        mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
        output: &mut OwnedWriteHalf,
        mut link: watch::Receiver<LinkFaults>,
    ) {
        while let Some((read_at, piece)) = pieces.recv().await {
            let now = *link.borrow();
            sleep_until(read_at + now.delay).await;
            if link.borrow().stalled {
                self.affected.send_modify(|affected| *affected += 1);
                let _ = link.wait_for(|link| !link.stalled).await;
            }
            let size = if now.single_bytes { 1 } else { piece.len() };
            for part in piece.chunks(size) {
                if output.write_all(part).await.is_err() {
                    return;
                }
            }
        }
        let _ = output.shutdown().await;
    }
}

/// Reads to the end of the stream.
async fn drain(input: &mut OwnedReadHalf) {
    let mut buffer = vec![0; PIECE];
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
