//! The floor of the measurements: a minimal IMAP client on a socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use testkit::dovecot::PASSWORD;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An authenticated connection with INBOX selected.
pub(crate) struct BareClient {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
    buffer: Vec<u8>,
}

impl BareClient {
    pub(crate) fn plain(port: u16, user: &str) -> BareClient {
        BareClient::open(Box::new(socket(port)), user)
    }

    pub(crate) fn tls(port: u16, ca: &Path, user: &str) -> BareClient {
        let config = resmic_mailhook::tls::client_config(Some(ca)).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(Arc::clone(&config), name).unwrap();
        BareClient::open(Box::new(StreamOwned::new(tls, socket(port))), user)
    }

    fn open(stream: Box<dyn Stream>, user: &str) -> BareClient {
        let mut raw = BareClient { stream, received: Vec::new(), buffer: vec![0; 64 * 1024] };
        raw.until(b"* OK");
        raw.command(&format!("LOGIN \"{user}\" \"{PASSWORD}\""));
        raw.command("EXAMINE INBOX");
        raw
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
        self.stream.flush().unwrap();
    }

    /// Reads until `mark` has arrived, and discards everything up to it.
    fn until(&mut self, mark: &[u8]) {
        loop {
            if self.received.windows(mark.len()).any(|w| w == mark) {
                // The next mark may begin with the line break before a response, as in `\r\nzq7 OK`. So a line break is kept.
                self.received.clear();
                self.received.extend_from_slice(b"\r\n");
                return;
            }
            // Only the last bytes can be a part of the mark.
            let known = self.received.len().saturating_sub(mark.len());
            self.received.drain(..known);
            let read = self.stream.read(&mut self.buffer).unwrap();
            assert!(read > 0, "the server has closed the connection");
            self.received.extend_from_slice(&self.buffer[..read]);
        }
    }

    /// Sends a command and discards the responses up to its tagged OK.
    pub(crate) fn command(&mut self, command: &str) {
        self.send(&format!("zq7 {command}\r\n"));
        self.until(b"\r\nzq7 OK");
    }

    /// Starts an IDLE.
    pub(crate) fn idle(&mut self) {
        self.send("zi7 IDLE\r\n");
        self.until(b"+ idling");
    }

    /// Waits for the announcement of a new mail and returns its time.
    pub(crate) fn wait_for_exists(&mut self) -> Instant {
        self.until(b" EXISTS\r\n");
        Instant::now()
    }

    /// Ends the IDLE and fetches the mails from this UID on, in one write. Returns the time at which the last byte arrived.
    pub(crate) fn fetch_body(&mut self, uid: usize) -> Instant {
        self.send(&format!("DONE\r\nzb7 UID FETCH {uid}:* (BODY.PEEK[])\r\n"));
        self.until(b"\r\nzb7 OK");
        Instant::now()
    }

    /// Ends the IDLE.
    pub(crate) fn done(&mut self) {
        self.send("DONE\r\n");
        self.until(b"zi7 OK");
    }
}

fn socket(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}
