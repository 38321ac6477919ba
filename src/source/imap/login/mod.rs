//! From an account's settings to a logged-in connection.

use std::sync::Arc;

use async_imap::imap_proto::{Capability, Response, Status};
use secrecy::SecretString;
use tokio_rustls::rustls::ClientConfig;

use super::connection::{Wait, Wire};
use super::error::{Error, Result};
use super::oauth::Tokens;
use super::settings::{Settings, Tls};
use super::timing::Timing;
use super::transport::Net;

mod authenticate;
mod refusal;

use authenticate::Offered;

/// What an account needs to log in, beside its settings.
#[derive(Clone)]
pub struct Login {
    /// How TLS is done; `None` for an account without TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// What proves who we are.
    pub credentials: Credentials,
}

/// What proves who we are. Shows nothing of it.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A password.
    Password(SecretString),
    /// Access tokens.
    OAuth2(Tokens),
}

impl Credentials {
    /// Returns when the program may end: a token that is asked for may come with the only good refresh token.
    pub(super) async fn settle(&self) {
        if let Credentials::OAuth2(tokens) = self {
            tokens.settle().await;
        }
    }
}

/// What the server offers of what we can use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offers {
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
    /// ID (RFC 2971). NetEase (163.com, 126.com) opens no mailbox before a client has sent one.
    pub(super) id: bool,
}

/// Connects and logs in.
pub(super) async fn connect(settings: &Settings, login: &Login, timing: &Timing) -> Result<(Wire, Offers)> {
    let tokens = match &login.credentials {
        Credentials::Password(password) => return begin(settings, login, Proof::Password(password), timing).await,
        Credentials::OAuth2(tokens) => tokens,
    };
    loop {
        let token = tokens.get().await?;
        let begun = begin(settings, login, Proof::Token(&token.secret), timing).await;
        match &begun {
            Err(Error::Login(_)) => {}
            // The words do not say why. The next attempt gets a new token: this one may have been withdrawn.
            Err(Error::LoginDeferred { words, .. }) if token.was_kept && !refusal::is_temporary(words) => {
                tokens.drop_refused(&token).await;
                return begun;
            }
            _ => return begun,
        }
        tokens.drop_refused(&token).await;
        // One that was just given would be refused again; one that was kept may have been withdrawn.
        if !token.was_kept {
            return begun;
        }
    }
}

/// What is shown to the server.
#[derive(Clone, Copy)]
enum Proof<'a> {
    Password(&'a SecretString),
    Token(&'a SecretString),
}

async fn begin(settings: &Settings, login: &Login, proof: Proof<'_>, timing: &Timing) -> Result<(Wire, Offers)> {
    let mut net = Net::connect(&settings.host, settings.port()).await?;
    if let (Tls::Implicit, Some(tls)) = (settings.tls, &login.tls) {
        net = net.secure(&settings.host, tls.clone()).await?;
    }
    let wait = Wait::of(timing.login);
    let steps = async {
        let (mut wire, offered) = greet(Wire::new(net, timing.answer), settings, login, wait).await?;
        match proof {
            Proof::Password(password) => {
                authenticate::with_password(&mut wire, &settings.user, password, offered, wait).await?;
            }
            Proof::Token(token) => authenticate::with_token(&mut wire, settings, token, wait).await?,
        }
        Ok::<_, Error>(wire)
    };
    let silent = |_| Error::Silent { command: "login", seconds: timing.login.as_secs() };
    let mut wire = tokio::time::timeout(timing.login, steps).await.map_err(silent)??;
    wire.expect_literal(settings.max_size.0);
    let offers = capabilities(&mut wire).await?;
    if offers.id {
        wire.send_with_next(concat!(
            "ID (\"name\" \"",
            env!("CARGO_PKG_NAME"),
            "\" \"version\" \"",
            env!("CARGO_PKG_VERSION"),
            "\")"
        ));
    }
    Ok((wire, offers))
}

/// Reads the greeting, and goes on in TLS where that is asked for. With the wire it returns the capabilities that the
/// greeting named: those before TLS do not count.
async fn greet(mut wire: Wire, settings: &Settings, login: &Login, wait: Wait) -> Result<(Wire, Option<Offered>)> {
    let greeted = wire.greeting(wait, |response| match response {
        Response::Data { status: Status::Ok, .. } => Ok(Offered::read(response)),
        // As whom? And in the clear it would be somebody between us and the server (RFC 9051, 11.1).
        Response::Data { status: Status::PreAuth, .. } => {
            Err(Error::Protocol("PREAUTH: somebody is logged in already; check `host` and `port`".into()))
        }
        _ => Err(Error::Protocol("no greeting; is this an IMAP port, and `tls` right?".into())),
    });
    let offered = greeted.await??;
    let (Tls::Starttls, Some(tls)) = (settings.tls, &login.tls) else { return Ok((wire, offered)) };
    let sent = wire.send("STARTTLS", "STARTTLS").await?;
    wire.finish(&sent, wait, |_| ()).await.map_err(|error| match error {
        Error::Refused { words, .. } => {
            Error::Tls(settings.host.clone(), std::io::Error::other(format!("STARTTLS: {words}")))
        }
        other => other,
    })?;
    Ok((wire.secure(&settings.host, tls.clone()).await?, None))
}

/// Asked after the login: before it, servers keep most of it back.
async fn capabilities(wire: &mut Wire) -> Result<Offers> {
    let mut offers = Offers::default();
    wire.command("CAPABILITY", "CAPABILITY", |response| {
        let Response::Capabilities(list) = response else { return };
        for capability in list {
            let Capability::Atom(word) = capability else { continue };
            match word.to_ascii_uppercase().as_str() {
                "IDLE" => offers.idle = true,
                "NOTIFY" => offers.notify = true,
                "SPECIAL-USE" => offers.special_use = true,
                "MOVE" => offers.moves = true,
                "UIDPLUS" => offers.uidplus = true,
                "ID" => offers.id = true,
                _ => {}
            }
        }
    })
    .await?;
    Ok(offers)
}
