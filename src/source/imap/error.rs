//! What can go wrong on the way to a mailbox, told apart because each asks for something else.

use std::fmt;
use std::time::Duration;

use async_imap::imap_proto::Status;

use crate::model::printable;

/// Why a connection ended. The connection is thrown away on every one of them.
#[derive(Debug)]
pub enum Error {
    /// The host has no address, or the resolver did not answer.
    Dns(String, std::io::Error),
    /// No TCP connection.
    Connect(String, std::io::Error),
    /// The certificate or the handshake.
    Tls(String, std::io::Error),
    /// The server refused the credentials: a person has to do something.
    Login(String),
    /// The server refused the login and did not say that the credentials are wrong.
    LoginDeferred {
        /// The command.
        command: &'static str,
        /// The server's words.
        words: String,
    },
    /// The server offers no way to log in that the account can use.
    NoLogin(&'static str),
    /// The token endpoint gave no token, and will not: a person has to do something.
    TokenRefused(String),
    /// The token endpoint gave no token, for now.
    Token {
        /// Its words, or what went wrong on the way.
        words: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// A tagged NO or BAD: the command and the server's words.
    Refused {
        /// The command.
        command: &'static str,
        /// The server's words.
        words: String,
    },
    /// The server ended the connection, and says why.
    Bye(String),
    /// The connection ended or broke.
    Lost(std::io::Error),
    /// No answer in time.
    Timeout {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The server does not keep to the protocol.
    Protocol(String),
    /// How far the mailbox was read cannot be learned.
    ResumePoint(String),
    /// Nobody takes the mails any more: the program is ending.
    Closing,
}

/// The result of a step on the way.
pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn refused(command: &'static str, status: &Status, words: Option<&str>) -> Self {
        let words = format!("{status:?} {}", printable(words.unwrap_or(""), 200));
        Error::Refused { command, words: words.trim().to_owned() }
    }

    /// A read or write that failed.
    pub(super) fn io(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::InvalidData => Error::Protocol(printable(&error.to_string(), 200)),
            kind => Error::Lost(kind.into()),
        }
    }

    /// Whether trying again soon is of no use: the credentials have to change.
    #[must_use]
    pub fn needs_new_credentials(&self) -> bool {
        matches!(self, Error::Login(_) | Error::TokenRefused(_))
    }

    /// How long to wait at least, because somebody asked for it.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Error::Token { retry_after, .. } = self { *retry_after } else { None }
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
            Error::Login(words) => write!(f, "login refused: {words}; check `user` and `password` (or `oauth2`)"),
            Error::LoginDeferred { command, words } => write!(
                f,
                "{command} refused: {words}; the credentials may be right, so the daemon retries soon; if this does not end, ask \
                 the mail provider about limits and blocked logins"
            ),
            Error::NoLogin(advice) => write!(f, "no way to log in: {advice}"),
            Error::TokenRefused(words) => write!(
                f,
                "no access token, and asking again will not help: {words}; check `oauth2`; if the refresh token has \
                 ended, run `resmic-mailhook authorize` for this account, and restart the daemon"
            ),
            Error::Token { words, .. } => write!(f, "no access token for now: {words}"),
            Error::Refused { command, words } => write!(f, "{command} refused: {words}"),
            Error::Bye(words) => write!(f, "the server said goodbye: {words}"),
            Error::Lost(e) => write!(f, "connection lost: {e}"),
            Error::Timeout { command, seconds } => write!(f, "no answer to {command} within {seconds} s"),
            Error::Protocol(words) => write!(f, "the server breaks the protocol: {words}"),
            Error::ResumePoint(words) => write!(f, "cannot learn how far the mailbox was read: {words}"),
            Error::Closing => f.write_str("ending"),
        }
    }
}

impl std::error::Error for Error {}
