//! TCP or TLS for IMAP, without Nagle's algorithm and delayed acknowledgements, and with a limit for each response.

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

/// The timeout of the name lookup, and of the connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The timeout of a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(20);

/// TCP keepalive: the idle time before the first probe, the time between probes, and the number of unanswered probes. With these
/// values, the kernel closes a dead connection after two minutes, also if the connection died while this machine was suspended.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_RETRIES: u32 = 3;

/// The byte stream of a connection.
pub(super) struct Transport {
    stream: ByteStream,
    /// The most bytes of one response, and so of one literal.
    response_limit: usize,
    /// How many bytes may be read before the current response must be complete.
    bytes_left: usize,
    framing: Framing,
    last_byte_at: Instant,
    /// Collects the written bytes between [`Self::cork`] and [`Self::uncork`], so that the kernel can send several commands in
    /// one packet.
    corked: Option<Vec<u8>>,
}

enum ByteStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects to `host`: tries the addresses of the host one after another, until one accepts the connection.
    pub(super) async fn connect(host: &str, port: u16) -> Result<Self> {
        let peer = format!("{host}:{port}");
        let dns_error = |e| Error::Dns(host.to_owned(), e);
        let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port)));
        let addresses: Vec<_> =
            lookup.await.map_err(|_| dns_error(io::ErrorKind::TimedOut.into()))?.map_err(dns_error)?.collect();
        let mut last_error = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in addresses {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Transport::with_options(tcp).map_err(|e| Error::Connect(peer, e)),
                Ok(Err(e)) => last_error = e,
                Err(_) => last_error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Error::Connect(peer, last_error))
    }

    fn with_options(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(Transport {
            stream: ByteStream::Plain(tcp),
            response_limit: usize::MAX,
            bytes_left: usize::MAX,
            framing: Framing::default(),
            last_byte_at: Instant::now(),
            corked: None,
        })
    }

    /// Starts TLS.
    pub(super) async fn secure(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        let tls_error = |e| Error::Tls(host.to_owned(), e);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| tls_error(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let ByteStream::Plain(tcp) = self.stream else {
            return Err(Error::Protocol("STARTTLS inside TLS".into()));
        };
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = tokio::time::timeout(TLS_TIMEOUT, handshake)
            .await
            .map_err(|_| tls_error(io::ErrorKind::TimedOut.into()))?
            .map_err(tls_error)?;
        Ok(Transport { stream: ByteStream::Tls(Box::new(stream)), framing: Framing::default(), ..self })
    }

    /// Allows this many bytes for the next response. A read beyond this limit fails.
    pub(super) fn allow(&mut self, bytes: usize) {
        (self.response_limit, self.bytes_left) = (bytes, bytes);
    }

    /// When the last bytes arrived.
    pub(super) fn last_byte_at(&self) -> Instant {
        self.last_byte_at
    }

    /// Collects written bytes until [`Transport::uncork`].
    pub(super) fn cork(&mut self) {
        self.corked.get_or_insert_default();
    }

    /// Returns the bytes that were written since [`Transport::cork`], and ends the collecting.
    pub(super) fn uncork(&mut self) -> Vec<u8> {
        self.corked.take().unwrap_or_default()
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            ByteStream::Plain(tcp) => tcp,
            ByteStream::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Makes the kernel send TCP acknowledgements without delay (TCP_QUICKACK). Linux resets this option, so each read sets it
    /// again. Cyrus waits for the acknowledgement of the `EXISTS` before it sends more. A delayed acknowledgement takes 40 ms.
    fn acknowledge(&self) {
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(self.tcp()).set_tcp_quickack(true);
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a response without end")
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.bytes_left == 0 {
            return Poll::Ready(Err(too_long()));
        }
        let before = buf.filled().len();
        ready!(match &mut this.stream {
            ByteStream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            ByteStream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        })?;
        let received = buf.filled().get(before..).unwrap_or_default();
        this.bytes_left = this.bytes_left.saturating_sub(received.len());
        if !this.framing.allows(received, this.response_limit) {
            return Poll::Ready(Err(too_long()));
        }
        this.last_byte_at = Instant::now();
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
        f.debug_struct("Transport").field("peer", &self.tcp().peer_addr().ok()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dead_connections_are_found_within_two_minutes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let transport = Transport::connect("127.0.0.1", listener.local_addr().unwrap().port()).await.unwrap();
        let socket = SockRef::from(transport.tcp());
        assert!(socket.keepalive().unwrap());
        let (after, every) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        let longest = after + every * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(longest, Duration::from_secs(120));
    }
}
