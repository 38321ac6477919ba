//! The bytes under IMAP: TCP or TLS, prompt in both directions, and no more of them than was asked for.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::error::{Error, Result};
use super::response_buffer::Framing;

/// How long the name may take, and how long one address is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may be quiet before the kernel probes it, how often it then probes, and how many probes may stay
/// unanswered. Together two minutes: no dead connection is kept for longer, also after the machine was suspended.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_RETRIES: u32 = 3;

/// A connection's bytes.
pub(super) struct Transport {
    stream: ByteStream,
    /// How many bytes may be read for one answer, and so for one literal.
    most: usize,
    /// How many of them may still be read before the answer that is awaited must be complete.
    allowance: usize,
    framing: Framing,
    /// When bytes came last.
    heard_at: Instant,
    /// While set, what is written stays here, so that several commands leave as one packet.
    corked: Option<Vec<u8>>,
}

enum ByteStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects to the first address of the host that answers.
    pub(super) async fn connect(host: &str, port: u16) -> Result<Self> {
        let peer = format!("{host}:{port}");
        let dns = |e| Error::Dns(host.to_owned(), e);
        let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port)));
        let addresses: Vec<_> = lookup.await.map_err(|_| dns(io::ErrorKind::TimedOut.into()))?.map_err(dns)?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in addresses {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Transport::prompt(tcp).map_err(|e| Error::Connect(peer, e)),
                Ok(Err(e)) => last = e,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Error::Connect(peer, last))
    }

    fn prompt(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(Transport {
            stream: ByteStream::Plain(tcp),
            most: usize::MAX,
            allowance: usize::MAX,
            framing: Framing::default(),
            heard_at: Instant::now(),
            corked: None,
        })
    }

    /// Goes on in TLS.
    pub(super) async fn secure(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        let tls = |e| Error::Tls(host.to_owned(), e);
        let name =
            ServerName::try_from(host.to_owned()).map_err(|e| tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let ByteStream::Plain(tcp) = self.stream else {
            return Err(Error::Protocol("TLS is begun inside TLS".into()));
        };
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = tokio::time::timeout(TLS_TIMEOUT, handshake)
            .await
            .map_err(|_| tls(io::ErrorKind::TimedOut.into()))?
            .map_err(tls)?;
        Ok(Transport { stream: ByteStream::Tls(Box::new(stream)), framing: Framing::default(), ..self })
    }

    /// Allows so many bytes for the next answer: a server that sends more is cut off.
    pub(super) fn allow(&mut self, bytes: usize) {
        (self.most, self.allowance) = (bytes, bytes);
    }

    /// When bytes came last.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Holds back what is written until [`Transport::uncork`].
    pub(super) fn cork(&mut self) {
        self.corked.get_or_insert_default();
    }

    /// What was held back, to be written.
    pub(super) fn uncork(&mut self) -> Vec<u8> {
        self.corked.take().unwrap_or_default()
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            ByteStream::Plain(tcp) => tcp,
            ByteStream::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Acknowledges at once what was just read. Linux forgets this setting, so it is renewed with every
    /// read: Cyrus waits for the acknowledgement of the `EXISTS` before it sends on, 40 ms otherwise.
    fn acknowledge(&self) {
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(self.tcp()).set_tcp_quickack(true);
    }
}

fn without_end() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer without end")
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.allowance == 0 {
            return Poll::Ready(Err(without_end()));
        }
        let before = buf.filled().len();
        ready!(match &mut this.stream {
            ByteStream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            ByteStream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        })?;
        let came = buf.filled().get(before..).unwrap_or_default();
        this.allowance = this.allowance.saturating_sub(came.len());
        if !this.framing.allows(came, this.most) {
            return Poll::Ready(Err(without_end()));
        }
        this.heard_at = Instant::now();
        this.acknowledge();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(held) = &mut self.corked {
            held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        match &mut self.stream {
            ByteStream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            ByteStream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.corked.is_some() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            ByteStream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            ByteStream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ByteStream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            ByteStream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("peer", &self.tcp().peer_addr().ok()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dead_connections_are_found_within_two_minutes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let net = Transport::connect("127.0.0.1", listener.local_addr().unwrap().port()).await.unwrap();
        let socket = SockRef::from(net.tcp());
        assert!(socket.keepalive().unwrap());
        let (after, every) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        let longest = after + every * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(longest, Duration::from_secs(120));
    }
}
