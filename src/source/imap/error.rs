//! The errors of a connection. Each kind needs a different reaction.

use std::fmt;
use std::time::Duration;

use async_imap::imap_proto::Status;

use super::throttling::SuggestedPause;
use crate::model::printable;

/// Why a connection or a command failed. The connection is used again only after [`Error::Refused`].
#[derive(Debug)]
pub enum Error {
    /// The host has no address, or DNS did not answer.
    Dns(String, std::io::Error),
    /// The TCP connection failed.
    Connect(String, std::io::Error),
    /// The TLS handshake failed, or the certificate is invalid.
    Tls(String, std::io::Error),
    /// The server refused the credentials, or they contain a line break or a NUL. The operator must act.
    Login(String),
    /// The server refused the login and did not say that the credentials are wrong.
    LoginDeferred {
        /// The name of the refused command.
        command: &'static str,
        /// The text of the server's response.
        message: String,
    },
    /// The server offers no login mechanism that the account can use.
    NoLogin(&'static str),
    /// The token endpoint refused the request for a token permanently. The operator must act.
    TokenRefused(String),
    /// The token endpoint returned no token, but a later request may succeed.
    Token {
        /// The error text of the endpoint, or why the endpoint did not answer.
        message: String,
        /// The pause that the endpoint asked for with `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The server answered a command with a tagged NO or BAD.
    Refused {
        /// The name of the refused command.
        command: &'static str,
        /// The text of the server's response.
        message: String,
    },
    /// The server sent a NO, BAD or BYE whose text asks for a pause. Neither the command nor a mail is the cause.
    Throttled {
        /// The text of the server's response.
        message: String,
        /// The pause that the server asks for.
        pause: SuggestedPause,
    },
    /// The server ended the connection with a BYE that has this text.
    Bye(String),
    /// The connection was closed or broke.
    Lost(std::io::Error),
    /// The server did not answer in time.
    Timeout {
        /// The name of the command without an answer.
        command: &'static str,
        /// How long this program waited for the answer, in seconds.
        seconds: u64,
    },
    /// The server violates the protocol.
    Protocol(String),
    /// The stored cursor of the mailbox cannot be read from the database.
    ResumePoint(String),
    /// The daemon is ending, so `ingest` receives no more reports of this watcher.
    Closing,
}

/// The result of an IMAP operation.
pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates the error for a tagged NO or BAD with this text.
    pub(super) fn refused(command: &'static str, status: &Status, text: Option<&str>) -> Self {
        let text = text.unwrap_or("");
        let message = format!("{status:?} {}", printable(text, 200)).trim().to_owned();
        match SuggestedPause::from_text(text) {
            Some(pause) => Error::Throttled { message, pause },
            None => Error::Refused { command, message },
        }
    }

    /// Creates the error for a BYE with this text.
    pub(super) fn bye(text: Option<&str>) -> Self {
        let text = text.unwrap_or("");
        let message = printable(text, 200);
        match SuggestedPause::from_text(text) {
            Some(pause) => Error::Throttled { message, pause },
            None => Error::Bye(message),
        }
    }

    /// Creates the error for a failed read or write of the connection.
    pub(super) fn io(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::InvalidData => Error::Protocol(printable(&error.to_string(), 200)),
            kind => Error::Lost(kind.into()),
        }
    }

    /// Whether an early retry is useless, because the credentials must change first.
    #[must_use]
    pub fn needs_new_credentials(&self) -> bool {
        matches!(self, Error::Login(_) | Error::TokenRefused(_))
    }

    /// The pause that the mail server or the token endpoint asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Token { retry_after, .. } => *retry_after,
            Error::Throttled { pause, .. } => Some(pause.duration()),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Dns(host, e) => write!(f, "unknown host {host}: {e}; check `host` and the machine's DNS"),
            Error::Connect(peer, e) => {
                write!(f, "cannot connect to {peer}: {e}; check `host` and `port`, and that the server runs")
            }
            Error::Tls(host, e) => {
                write!(f, "TLS with {host} failed: {e}; check `tls`, and `ca_file` for a private certificate")
            }
            Error::Login(message) => write!(f, "login refused: {message}; check `user` and `password` (or `oauth2`)"),
            Error::LoginDeferred { command, message } => write!(
                f,
                "{command} refused: {message}; the credentials may be right, so the daemon retries soon; if this does not end, ask \
                 the mail provider about limits and blocked logins"
            ),
            Error::NoLogin(advice) => write!(f, "no way to log in: {advice}"),
            Error::TokenRefused(message) => write!(
                f,
                "token endpoint refused: {message}; check `oauth2`; if the refresh token has \
                 ended, run `resmic-mailhook authorize` for this account, and restart the daemon"
            ),
            Error::Token { message, .. } => write!(f, "no access token: {message}"),
            // The name may be wrong, or the account may not open this mailbox.
            Error::Refused { command: command @ ("SELECT" | "EXAMINE"), message } => {
                write!(f, "{command} refused: {message}; check `mailboxes` of this account")
            }
            Error::Refused { command, message } => write!(f, "{command} refused: {message}"),
            Error::Throttled { message, pause } => write!(
                f,
                "the server throttles this account: {message}; the daemon waits for {} s; if this repeats, connect fewer programs to \
                 the account",
                pause.duration().as_secs()
            ),
            Error::Bye(message) => write!(f, "the server ended the connection (BYE): {message}"),
            Error::Lost(e) => write!(f, "connection lost: {e}"),
            Error::Timeout { command, seconds } => write!(f, "no answer to {command} within {seconds} s"),
            Error::Protocol(message) => write!(f, "the server violates the protocol: {message}"),
            Error::ResumePoint(message) => write!(f, "cannot read the mailbox's cursor from the database: {message}"),
            Error::Closing => f.write_str("ending"),
        }
    }
}

impl std::error::Error for Error {}
