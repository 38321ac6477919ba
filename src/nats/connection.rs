//! One connection to a NATS server.
//!
//! async-nats connects again by itself after a connection was lost, and then sends the messages that it had not sent before. But
//! a [`NatsConnection`] that is lost stays lost. The caller drops the lost connection, calls [`NatsServers::connect`], and knows
//! that nothing was sent between the two connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, Message, Request, RequestErrorKind, ServerAddr,
    Statistics,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig};

use super::url::NatsUrl;
use crate::catch_panic::catch_panic_async;
use crate::loopback::is_loopback;
use crate::model::printable;

/// A server that sends nothing for this time is pinged. After two pings without an answer, the connection is lost.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit for a connection to one address of a server, including the login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for its answer, if the request names no other timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The sizes of the buffers of async-nats. The defaults are for thousands of messages at once.
const QUEUED_COMMANDS: usize = 256;
const READ_BUFFER: u16 = 16 * 1024;
/// The largest message that a server may send, in bytes. async-nats has no limit, and collects a message in a buffer that
/// doubles. A message that is complete before the next check of its size is not noticed. So the buffer has at most twice these
/// 16 MiB and the bytes that arrive between two checks: in `REQUEST_SIZE_CHECK` while a request waits, in `SIZE_CHECK` otherwise.
/// Before the login, the bytes cannot be counted, and `CONNECT_TIMEOUT` is the only limit.
const MAX_MESSAGE: u64 = 16 << 20;
/// How many messages of one subscription may wait. Further messages are dropped.
const QUEUED_MESSAGES: usize = 64;
/// How often the size of an incomplete message is checked. The interval is long, because an idle daemon should sleep.
const SIZE_CHECK: Duration = Duration::from_secs(5);
/// How often the size of an incomplete message is checked while a request waits for its answer.
const REQUEST_SIZE_CHECK: Duration = Duration::from_millis(100);
/// The number of characters after which an error message of a server is cut off.
const MAX_ERROR_LENGTH: usize = 200;

/// The advice for a server that cannot be reached.
const CHECK_SERVERS: &str = "check `nats`, and that a NATS server runs there";

/// How this program logs in to a NATS server.
pub(super) enum NatsLogin {
    /// No login, or only a client certificate.
    None,
    Password {
        user: String,
        password: SecretString,
    },
    Token(SecretString),
}

/// The NATS servers of one configuration table, with the login and the TLS configuration. `Debug` prints the URLs only.
pub struct NatsServers {
    pub(super) urls: Vec<NatsUrl>,
    pub(super) allow_remote: bool,
    pub(super) login: NatsLogin,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) ping_interval: Duration,
}

impl std::fmt::Debug for NatsServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NatsServers").field(&self.urls).finish_non_exhaustive()
    }
}

/// Prints the URLs, separated by commas.
impl std::fmt::Display for NatsServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<_> = self.urls.iter().map(NatsUrl::to_string).collect();
        f.write_str(&urls.join(", "))
    }
}

impl NatsServers {
    /// Changes the time after which a silent server is pinged, which is 5 seconds by default. After two pings without an answer,
    /// the connection is lost.
    #[must_use]
    pub fn with_ping_interval(self, ping_interval: Duration) -> Self {
        NatsServers { ping_interval, ..self }
    }

    /// Whether messages may travel unencrypted to another machine.
    #[must_use]
    pub fn is_cleartext_remote(&self) -> bool {
        self.allow_remote && self.urls.iter().any(|url| !url.tls && !url.is_loopback())
    }
}

/// Why no connection could be opened. The text names the servers, and is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// The configuration or the server's rules do not allow the connection. This error does not pass by itself.
    #[error("{0}")]
    NotAllowed(String),
    /// No server can be reached now.
    #[error("{0}")]
    Unreachable(String),
}

impl NatsServers {
    /// Connects to one of the servers and logs in. The function tries each server at most once, and tries no other server after a
    /// refused login.
    ///
    /// # Errors
    /// [`NatsError`], with the error of the last attempt.
    pub async fn connect(&self) -> Result<NatsConnection, NatsError> {
        let addresses = self.addresses().await?;
        let shared = Arc::<Shared>::default();
        let (ended, lost) = watch::channel(false);
        let seen = shared.clone();
        // async-nats tries each server at most once. After the connection is lost, it tries to log in again, at most once for
        // each server. The callback refuses these logins, and then the task of async-nats ends.
        let options = self.options(shared.clone()).max_reconnects(addresses.len()).event_callback(move |event| {
            seen.note(&event);
            if matches!(event, Event::Disconnected | Event::Closed) {
                ended.send_replace(true);
            }
            std::future::ready(())
        });
        // Before the login, async-nats parses the server's lines in this task, and some lines make it panic: `-ERR` without a
        // text, or a message of almost 2^64 bytes. The first line is not encrypted, even with TLS, so any machine on the way can
        // send it. After the login, async-nats parses in another task, and a panic of that task only ends the connection.
        let Some(connected) = catch_panic_async(Box::pin(options.connect(addresses))).await else {
            return Err(NatsError::Unreachable(format!(
                "cannot connect to {self}: the server sends no NATS protocol; {CHECK_SERVERS}"
            )));
        };
        let client = connected.map_err(|error| self.explain(&error))?;
        shared.is_used.store(true, Ordering::Relaxed);
        Ok(NatsConnection { client, shared, lost })
    }

    fn options(&self, shared: Arc<Shared>) -> ConnectOptions {
        let mut auth = Auth::new();
        match &self.login {
            NatsLogin::None => {}
            NatsLogin::Password { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.expose_secret().to_owned());
            }
            NatsLogin::Token(token) => auth.token = Some(token.expose_secret().to_owned()),
        }
        // async-nats calls this function for each login.
        let options = ConnectOptions::with_auth_callback(move |_| {
            let is_reconnect = shared.is_used.load(Ordering::Relaxed);
            std::future::ready(if is_reconnect {
                Err(AuthError::new("this connection was lost"))
            } else {
                Ok(auth.clone())
            })
        });
        let options = options
            .name("resmic-mailhook")
            .ping_interval(self.ping_interval)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .client_capacity(QUEUED_COMMANDS)
            .subscription_capacity(QUEUED_MESSAGES)
            .read_buffer_capacity(READ_BUFFER)
            // A server announces the other addresses of its cluster. async-nats would send the login to these addresses without
            // TLS.
            .ignore_discovered_servers();
        match &self.tls {
            Some(tls) => options.tls_client_config(ClientConfig::clone(tls)),
            None => options,
        }
    }

    /// Returns the addresses of the servers for async-nats. Without `allow_remote`, the host of an unencrypted server is resolved
    /// here, and only its loopback addresses are used.
    async fn addresses(&self) -> Result<Vec<ServerAddr>, NatsError> {
        let (mut addresses, mut problem) = (Vec::new(), None);
        for url in &self.urls {
            if url.tls || self.allow_remote {
                addresses.push(url.to_string());
                continue;
            }
            match local_addresses(url).await {
                Ok(local) => addresses.extend(local),
                Err(error) => problem = Some(error),
            }
        }
        if let (true, Some(problem)) = (addresses.is_empty(), problem) {
            return Err(problem);
        }
        let parsed = addresses.iter().map(|address| address.parse::<ServerAddr>());
        parsed.collect::<Result<_, _>>().map_err(|e| NatsError::NotAllowed(format!("cannot connect to {self}: {e}")))
    }

    fn explain(&self, error: &async_nats::ConnectError) -> NatsError {
        let detail = printable(&error.to_string(), MAX_ERROR_LENGTH);
        match (error.kind(), tls_error(error)) {
            (ConnectErrorKind::AuthorizationViolation, _) => {
                let advice = self.login.advice();
                NatsError::NotAllowed(format!("cannot log in to {self}: the server refuses the login; {advice}"))
            }
            (_, Some(rustls::Error::AlertReceived(alert))) if is_about_certificate(*alert) => {
                NatsError::NotAllowed(format!(
                    "cannot log in to {self}: the server refuses the client certificate, or needs one (TLS alert {alert:?}); check \
                     client_certificate"
                ))
            }
            (_, Some(rustls::Error::InvalidCertificate(_))) => NatsError::NotAllowed(format!(
                "cannot connect to {self}: {detail}; check ca_file, and the names in the certificate of the server"
            )),
            (ConnectErrorKind::Tls, _) => {
                NatsError::NotAllowed(format!("cannot connect to {self}: {detail}; {CHECK_SERVERS}"))
            }
            _ => NatsError::Unreachable(format!("cannot connect to {self}: {detail}; {CHECK_SERVERS}")),
        }
    }
}

impl NatsLogin {
    /// What an operator should do if a server refuses the login.
    fn advice(&self) -> &'static str {
        match self {
            NatsLogin::Password { .. } => "check user and password",
            NatsLogin::Token(_) => "check token",
            NatsLogin::None => "set user and password, token, or client_certificate",
        }
    }
}

/// Finds the error of a failed TLS handshake, which async-nats returns inside an I/O error; `None` if the cause was another one.
fn tls_error(error: &async_nats::ConnectError) -> Option<&rustls::Error> {
    let io = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    io.get_ref()?.downcast_ref()
}

/// Whether a server sends this alert because of the client's certificate (RFC 8446, section 6.2). A server in Go also sends
/// `bad_certificate` if the client has no certificate.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// Looks up the host of an unencrypted server, and returns the host's loopback addresses as URLs.
async fn local_addresses(url: &NatsUrl) -> Result<Vec<String>, NatsError> {
    let found = lookup_host((url.host.as_str(), url.port)).await;
    let found =
        found.map_err(|e| NatsError::Unreachable(format!("cannot look up {:?}: {e}; {CHECK_SERVERS}", url.host)))?;
    let (local, others): (Vec<_>, Vec<_>) = found.partition(|address| is_loopback(address.ip()));
    match others.first() {
        Some(other) if local.is_empty() => Err(NatsError::NotAllowed(format!(
            "{:?} is {}, which is no loopback address, and nats:// is not encrypted; use tls://, or set allow_remote",
            url.host,
            other.ip()
        ))),
        _ => Ok(local.iter().map(|address| format!("nats://{address}")).collect()),
    }
}

/// The state that the callbacks of async-nats share with the connection.
#[derive(Debug, Default)]
struct Shared {
    /// Whether the connection was opened. After the opening, async-nats must not log in again.
    is_used: AtomicBool,
    /// Whether the server has sent a message that is too large while a request was waiting.
    is_flooded: watch::Sender<bool>,
    last_error: Mutex<Option<String>>,
    /// The subject of the last subscription that the server refused.
    refused: watch::Sender<Option<String>>,
}

impl Shared {
    fn note(&self, event: &Event) {
        if let Event::ServerError(error) = event {
            let error = printable(&error.to_string(), MAX_ERROR_LENGTH);
            tracing::debug!(error, "the NATS server reports an error");
            if let Some(subject) = refused_subscription(&error) {
                self.refused.send_replace(Some(subject.to_owned()));
            }
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }
}

/// The subject in the server's error about a subscription that it does not permit; `None` if `error` is another error.
fn refused_subscription(error: &str) -> Option<&str> {
    let (_, rest) = error.split_once("Permissions Violation for Subscription to \"")?;
    rest.split_once('"').map(|(subject, _)| subject)
}

/// A connection that was opened by [`NatsServers::connect`]. A connection that is lost stays lost.
#[derive(Debug)]
pub struct NatsConnection {
    client: Client,
    shared: Arc<Shared>,
    lost: watch::Receiver<bool>,
}

impl NatsConnection {
    /// The client, for requests and for the JetStream context of async-nats. A clone of the client keeps the connection open
    /// after the [`NatsConnection`] is dropped.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the connection was lost, or must be dropped because the server sent a message that is too large.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        // The sender is dropped when the task of async-nats ends.
        let has_ended = self.lost.has_changed().is_err();
        has_ended
            || *self.lost.borrow()
            || *self.shared.is_flooded.borrow()
            || self.client.connection_state() != State::Connected
    }

    /// Returns when the connection is lost, or must be dropped because the server sends a message that is too large. The future
    /// counts the bytes that the server sends, and a new future begins to count from zero. So a loop must not create a new future
    /// in each iteration.
    pub async fn lost(&self) {
        let (mut lost, mut flooded) = (self.lost.clone(), self.shared.is_flooded.subscribe());
        tokio::select! {
            _ = lost.wait_for(|lost| *lost) => {}
            _ = flooded.wait_for(|flooded| *flooded) => {}
            () = too_large_message(self.client.statistics(), SIZE_CHECK) => {}
        }
    }

    /// Sends a request and waits for its answer. If the server sends a message that is too large meanwhile, the connection counts
    /// as lost.
    pub(super) async fn request(&self, subject: String, request: Request) -> Result<Message, RequestErrorKind> {
        tokio::select! {
            answer = self.client.send_request(subject, request) => answer.map_err(|error| error.kind()),
            () = too_large_message(self.client.statistics(), REQUEST_SIZE_CHECK) => {
                self.shared.is_flooded.send_replace(true);
                Err(RequestErrorKind::Other)
            }
        }
    }

    /// Why a request on this lost connection has no answer.
    pub(super) fn why_lost(&self) -> String {
        if *self.shared.is_flooded.borrow() { too_large_text() } else { "the connection was lost".into() }
    }

    /// The last error that the server reported on this connection, such as a missing permission. A publish or a request that
    /// the server does not allow has no other answer.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a receiver of the subject of the last subscription that the server refused. The receiver wakes at each refusal,
    /// also at a refusal that came before this call.
    #[must_use]
    pub fn refused_subscriptions(&self) -> watch::Receiver<Option<String>> {
        let mut refused = self.shared.refused.subscribe();
        refused.mark_changed();
        refused
    }
}

/// Returns when the server sends a message that is too large. async-nats collects a whole message in memory.
async fn too_large_message(statistics: Arc<Statistics>, interval: Duration) {
    let counts = || (statistics.in_messages.load(Ordering::Relaxed), statistics.in_bytes.load(Ordering::Relaxed));
    let mut complete = counts();
    loop {
        sleep(interval).await;
        let current = counts();
        if current.0 != complete.0 {
            complete = current;
        } else if current.1.saturating_sub(complete.1) > MAX_MESSAGE {
            tracing::warn!("{}; connecting again", too_large_text());
            return;
        }
    }
}

fn too_large_text() -> String {
    format!("the NATS server sends a message of more than {} MiB", MAX_MESSAGE >> 20)
}
