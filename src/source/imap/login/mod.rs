//! Connects to the server of an account, and logs in.

use std::sync::Arc;

use async_imap::imap_proto::{Capability, Response, Status};
use secrecy::SecretString;
use tokio_rustls::rustls::ClientConfig;

use super::connection::{Connection, ResponseTimeout};
use super::error::{Error, Result};
use super::oauth::AccessTokens;
use super::settings::{ImapSettings, Tls};
use super::timing::Timing;
use super::transport::Transport;

mod authenticate;
mod refusal;

use authenticate::LoginCapabilities;

/// Everything an account needs to log in, in addition to its settings.
#[derive(Clone)]
pub struct Login {
    /// The TLS configuration; `None` for an account without TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// The password or the access tokens.
    pub credentials: Credentials,
}

/// A password or access tokens. `Debug` shows neither.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A password.
    Password(SecretString),
    /// Access tokens.
    OAuth2(AccessTokens),
}

impl Credentials {
    /// Waits for the answer to a running token request before the program ends, at most three seconds. The answer can contain the
    /// only valid refresh token.
    pub async fn wait_for_refresh(&self) {
        if let Credentials::OAuth2(tokens) = self {
            tokens.wait_for_refresh().await;
        }
    }
}

/// The capabilities of the server that this program uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// IDLE (RFC 2177).
    pub(super) idle: bool,
    /// NOTIFY (RFC 5465).
    pub(super) notify: bool,
    /// SPECIAL-USE (RFC 6154).
    pub(super) special_use: bool,
    /// MOVE (RFC 6851).
    pub(super) moves: bool,
    /// UIDPLUS (RFC 4315).
    pub(super) uidplus: bool,
    /// ID (RFC 2971). NetEase (163.com, 126.com) opens a mailbox only after the client has sent an ID.
    pub(super) id: bool,
}

/// Connects to the mail server and logs in. Returns the connection, and the capabilities that the server lists after the login.
pub(super) async fn connect(
    settings: &ImapSettings,
    login: &Login,
    timing: &Timing,
) -> Result<(Connection, Capabilities)> {
    let tokens = match &login.credentials {
        Credentials::Password(password) => {
            return log_in(settings, login, LoginSecret::Password(password), timing).await;
        }
        Credentials::OAuth2(tokens) => tokens,
    };
    loop {
        let token = tokens.get().await?;
        let login_result = log_in(settings, login, LoginSecret::AccessToken(&token.secret), timing).await;
        match &login_result {
            Err(Error::Login(_)) => {}
            // The refusal has no clear cause. The cached token may have been revoked, so the next attempt requests a new token.
            Err(Error::LoginDeferred { message, .. }) if token.was_cached && !refusal::is_temporary(message) => {
                tokens.drop_refused(&token).await;
                return login_result;
            }
            _ => return login_result,
        }
        tokens.drop_refused(&token).await;
        // If the refused token was new, another new token would be refused, too. A cached token may have been revoked, so a new
        // token is tried immediately.
        if !token.was_cached {
            return login_result;
        }
    }
}

/// The password or access token for one login.
#[derive(Clone, Copy)]
enum LoginSecret<'a> {
    Password(&'a SecretString),
    AccessToken(&'a SecretString),
}

async fn log_in(
    settings: &ImapSettings,
    login: &Login,
    secret: LoginSecret<'_>,
    timing: &Timing,
) -> Result<(Connection, Capabilities)> {
    let mut transport = Transport::connect(&settings.host, settings.port()).await?;
    if let (Tls::Implicit, Some(tls)) = (settings.tls, &login.tls) {
        transport = transport.secure(&settings.host, tls.clone()).await?;
    }
    let timeout = ResponseTimeout::within(timing.login);
    let logging_in = async {
        let (mut connection, offered) =
            read_greeting(Connection::new(transport, timing.answer), settings, login, timeout).await?;
        match secret {
            LoginSecret::Password(password) => {
                authenticate::with_password(&mut connection, &settings.user, password, offered, timeout).await?;
            }
            LoginSecret::AccessToken(token) => {
                authenticate::with_token(&mut connection, settings, token, timeout).await?
            }
        }
        Ok::<_, Error>(connection)
    };
    let timed_out = |_| Error::Timeout { command: "login", seconds: timing.login.as_secs() };
    let mut connection = tokio::time::timeout(timing.login, logging_in).await.map_err(timed_out)??;
    connection.expect_literal(settings.max_size.0);
    let capabilities = read_capabilities(&mut connection).await?;
    if capabilities.id {
        connection.send_with_next(concat!(
            "ID (\"name\" \"",
            env!("CARGO_PKG_NAME"),
            "\" \"version\" \"",
            env!("CARGO_PKG_VERSION"),
            "\")"
        ));
    }
    Ok((connection, capabilities))
}

/// Reads the greeting, and starts TLS if the settings say so. Returns the capabilities of the greeting, but `None` after
/// STARTTLS, because an attacker could have changed a greeting without TLS.
async fn read_greeting(
    mut connection: Connection,
    settings: &ImapSettings,
    login: &Login,
    timeout: ResponseTimeout,
) -> Result<(Connection, Option<LoginCapabilities>)> {
    let greeted = connection.read_greeting(timeout, |response| match response {
        Response::Data { status: Status::Ok, .. } => Ok(LoginCapabilities::from_response(response)),
        // PREAUTH does not show which user is logged in. Without TLS, an attacker between client and server can send a PREAUTH
        // (RFC 9051, 11.1).
        Response::Data { status: Status::PreAuth, .. } => {
            Err(Error::Protocol("PREAUTH: the connection is already logged in; check `host` and `port`".into()))
        }
        _ => Err(Error::Protocol("no greeting; is this an IMAP port, and `tls` right?".into())),
    });
    let offered = greeted.await??;
    let (Tls::Starttls, Some(tls)) = (settings.tls, &login.tls) else { return Ok((connection, offered)) };
    let pending = connection.send("STARTTLS", "STARTTLS").await?;
    connection.finish(&pending, timeout, |_| ()).await.map_err(|error| match error {
        Error::Refused { message, .. } => {
            Error::Tls(settings.host.clone(), std::io::Error::other(format!("STARTTLS: {message}")))
        }
        other => other,
    })?;
    Ok((connection.secure(&settings.host, tls.clone()).await?, None))
}

/// Requests the capabilities after the login, because servers list only a few of them before the login.
async fn read_capabilities(connection: &mut Connection) -> Result<Capabilities> {
    let mut capabilities = Capabilities::default();
    connection
        .command("CAPABILITY", "CAPABILITY", |response| {
            let Response::Capabilities(list) = response else { return };
            for capability in list {
                let Capability::Atom(word) = capability else { continue };
                match word.to_ascii_uppercase().as_str() {
                    "IDLE" => capabilities.idle = true,
                    "NOTIFY" => capabilities.notify = true,
                    "SPECIAL-USE" => capabilities.special_use = true,
                    "MOVE" => capabilities.moves = true,
                    "UIDPLUS" => capabilities.uidplus = true,
                    "ID" => capabilities.id = true,
                    _ => {}
                }
            }
        })
        .await?;
    Ok(capabilities)
}
