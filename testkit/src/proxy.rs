//! A line that misbehaves on command: a TCP proxy in front of a real server.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// How many pieces are on the line at once in each direction, and how large each is at most.
const PIECES: usize = 256;
const PIECE: usize = 16 * 1024;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the program says.
    ToServer = 0,
    /// What the server says.
    ToClient = 1,
}

/// How one direction behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Line {
    /// Nothing gets through; it waits.
    pub stalled: bool,
    /// Nothing gets through; it is lost, and so is the end of the stream.
    pub swallows: bool,
    /// Each byte leaves on its own.
    pub single_bytes: bool,
    /// How long everything takes.
    pub delay: Duration,
}

/// What happens, once, to the connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// FIN to both sides.
    Cut,
    /// RST to both sides.
    Reset,
    /// Both sides talk to nobody from now on, and are not told: as when a router forgets a connection.
    Forget,
}

/// A running proxy; everything ends with it.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    server: u16,
    lines: [watch::Sender<Line>; 2],
    order: watch::Sender<Option<Order>>,
    refuses: watch::Sender<bool>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    hit: watch::Sender<usize>,
}

impl Proxy {
    /// In front of this port of loopback.
    pub fn before(server: u16) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server,
            lines: [watch::Sender::default(), watch::Sender::default()],
            order: watch::Sender::default(),
            refuses: watch::Sender::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            hit: watch::Sender::default(),
        });
        runtime.spawn(shared.clone().serve(listener));
        Proxy { port, shared, runtime: Some(runtime) }
    }

    /// Changes how a direction behaves, for connections that are open and for those to come.
    pub fn set(&self, way: Way, change: impl FnOnce(&mut Line)) {
        self.shared.lines[way as usize].send_modify(change);
    }

    /// The same for both directions.
    pub fn set_both(&self, change: impl Fn(&mut Line)) {
        self.set(Way::ToServer, &change);
        self.set(Way::ToClient, &change);
    }

    /// Whether who connects is hung up on.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.send_replace(refuses);
    }

    /// Everything gets through again.
    pub fn heal(&self) {
        self.refuse(false);
        self.set_both(|line| *line = Line::default());
        self.shared.hit.send_replace(0);
    }

    /// Ends the connections there are, with a FIN.
    pub fn cut(&self) {
        self.shared.order.send_replace(Some(Order::Cut));
    }

    /// Ends them with an RST.
    pub fn reset(&self) {
        self.shared.order.send_replace(Some(Order::Reset));
    }

    /// Leaves them half open: what is said on them is lost. New ones are as good as ever.
    pub fn forget(&self) {
        self.shared.order.send_replace(Some(Order::Forget));
    }

    /// Waits until something was lost or held back since all was well: until then a fault has done nothing.
    pub fn until_hit(&self, limit: Duration) {
        let mut hit = self.shared.hit.subscribe();
        let waiting = async { tokio::time::timeout(limit, hit.wait_for(|hit| *hit > 0)).await.is_ok() };
        assert!(self.runtime.as_ref().unwrap().block_on(waiting), "nothing was said on the line for {limit:?}");
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many there are.
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

impl Shared {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // Whoever is counted hears every order from then on, also while the server is still being reached.
            let order = self.order.subscribe();
            self.accepted.fetch_add(1, Ordering::SeqCst);
            if *self.refuses.borrow() {
                continue;
            }
            let shared = self.clone();
            tokio::spawn(async move {
                shared.open.fetch_add(1, Ordering::SeqCst);
                // A server that is away ends the connection: its client is hung up on.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await {
                    shared.connection(client, server, order).await;
                }
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    async fn connection(&self, client: TcpStream, server: TcpStream, mut order: watch::Receiver<Option<Order>>) {
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        let [to_server, to_client] = self.lines.each_ref().map(watch::Sender::subscribe);
        let order = tokio::select! {
            _ = async {
                tokio::join!(
                    self.pump(&mut client_in, &mut server_out, to_server),
                    self.pump(&mut server_in, &mut client_out, to_client)
                )
            } => return,
            _ = order.changed() => *order.borrow_and_update(),
        };
        match order {
            Some(Order::Forget) => {
                // Read on, so that neither side's writes ever fail.
                tokio::join!(drain(&mut client_in), drain(&mut server_in));
            }
            Some(Order::Reset) => {
                for half in [&client_in, &server_in] {
                    let _ = SockRef::from(half.as_ref()).set_linger(Some(Duration::ZERO));
                }
            }
            Some(Order::Cut) | None => {
                let _ = tokio::join!(client_out.shutdown(), server_out.shutdown());
            }
        }
    }
}

impl Shared {
    /// Carries one direction to its end.
    ///
    /// A delay line: what is read is stamped, and written when its time has come; so a delay costs no throughput, and
    /// nothing overtakes.
    async fn pump(&self, input: &mut OwnedReadHalf, output: &mut OwnedWriteHalf, line: watch::Receiver<Line>) {
        let (pieces, arriving) = mpsc::channel(PIECES);
        tokio::join!(self.take_in(input, pieces, line.clone()), self.give_out(arriving, output, line));
    }

    async fn take_in(
        &self,
        input: &mut OwnedReadHalf,
        pieces: mpsc::Sender<(Instant, Vec<u8>)>,
        mut line: watch::Receiver<Line>,
    ) {
        let mut buffer = vec![0; PIECE];
        loop {
            // Whoever stalls does not read either: in the end the sender's window is full.
            let _ = line.wait_for(|line| !line.stalled).await;
            let read = input.read(&mut buffer).await.unwrap_or(0);
            let swallows = line.borrow().swallows;
            match read {
                // The end is lost as well; the other side never hears of it.
                0 if swallows => return std::future::pending().await,
                0 => return,
                _ if swallows => {
                    self.hit.send_modify(|hit| *hit += 1);
                    continue;
                }
                _ => {}
            }
            if pieces.send((Instant::now(), buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    }

    async fn give_out(
        &self,
        mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
        output: &mut OwnedWriteHalf,
        mut line: watch::Receiver<Line>,
    ) {
        while let Some((read_at, piece)) = pieces.recv().await {
            let now = *line.borrow();
            sleep_until(read_at + now.delay).await;
            if line.borrow().stalled {
                self.hit.send_modify(|hit| *hit += 1);
                let _ = line.wait_for(|line| !line.stalled).await;
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

/// Reads until there is no more.
async fn drain(input: &mut OwnedReadHalf) {
    let mut buffer = vec![0; PIECE];
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
