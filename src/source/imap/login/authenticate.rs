//! LOGIN or AUTHENTICATE PLAIN with a password; AUTHENTICATE with an access token (OAUTHBEARER, XOAUTH2).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use async_imap::imap_proto::{Capability, Response, ResponseCode};

use super::super::connection::{Connection, PendingCommand, ResponseTimeout, ServerResponse, quoted, response_code};
use super::super::error::{Error, Result};
use super::super::settings::ImapSettings;
use super::refusal;
use crate::secret;

/// The longest literal that a client may send without waiting for a continuation request, if the server has LITERAL- (RFC 7888).
const LITERAL_MINUS: usize = 4096;

/// The timeout of CAPABILITY after a refused login.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// A SASL mechanism that takes an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    /// OAUTHBEARER (RFC 7628).
    OAuthBearer,
    /// XOAUTH2, the mechanism of Google and Microsoft from before RFC 7628.
    XOAuth2,
}

/// The capabilities of the server that matter for the login.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LoginCapabilities {
    /// LOGINDISABLED: clients must not send LOGIN (RFC 3501, 6.2.3).
    login_disabled: bool,
    plain: bool,
    oauthbearer: bool,
    xoauth2: bool,
    /// SASL-IR: the first SASL response may be part of the command (RFC 4959).
    initial_response: bool,
    /// LITERAL+: the client may send a literal of any length without waiting for a continuation request (RFC 7888).
    literal_plus: bool,
    /// LITERAL-: the client may send a literal of up to 4,096 bytes without waiting for a continuation request (RFC 7888).
    literal_minus: bool,
}

impl LoginCapabilities {
    /// The capabilities in a response or in its response code; `None` if the response lists no capabilities.
    pub(super) fn from_response(response: &Response<'_>) -> Option<Self> {
        let list = match (response, response_code(response)) {
            (Response::Capabilities(list), _) | (_, Some(ResponseCode::Capabilities(list))) => list,
            _ => return None,
        };
        let mut offered = LoginCapabilities::default();
        for capability in list {
            match capability {
                Capability::Auth(name) => match name.to_ascii_uppercase().as_str() {
                    "PLAIN" => offered.plain = true,
                    "OAUTHBEARER" => offered.oauthbearer = true,
                    "XOAUTH2" => offered.xoauth2 = true,
                    _ => {}
                },
                Capability::Atom(word) => match word.to_ascii_uppercase().as_str() {
                    "LOGINDISABLED" => offered.login_disabled = true,
                    "SASL-IR" => offered.initial_response = true,
                    "LITERAL+" => offered.literal_plus = true,
                    "LITERAL-" => offered.literal_minus = true,
                    _ => {}
                },
                Capability::Imap4rev1 => {}
            }
        }
        Some(offered)
    }

    async fn request(connection: &mut Connection, timeout: ResponseTimeout) -> Result<Self> {
        let mut offered = None;
        let pending = connection.send("CAPABILITY", "CAPABILITY").await?;
        connection
            .finish(&pending, timeout, |response| offered = LoginCapabilities::from_response(response).or(offered))
            .await?;
        Ok(offered.unwrap_or_default())
    }
}

/// Logs in with a password. `offered`: the capabilities in the greeting; `None` if the greeting lists none.
///
/// LOGIN works on most servers. So if the greeting lists no capabilities, LOGIN is tried first. The capabilities are requested
/// only if the user or the password is not ASCII, or after a refused LOGIN.
pub(super) async fn with_password(
    connection: &mut Connection,
    user: &str,
    password: &SecretString,
    offered: Option<LoginCapabilities>,
    timeout: ResponseTimeout,
) -> Result<()> {
    let password = password.expose_secret();
    if [user, password].iter().any(|text| text.contains(['\r', '\n', '\0'])) {
        return Err(Error::Login("the user or the password contains a line break or a NUL".into()));
    }
    let is_ascii = user.is_ascii() && password.is_ascii();
    let offered = match offered {
        None if is_ascii => {
            let refused = match login(connection, user, password, LoginCapabilities::default(), timeout).await {
                Err(refused @ (Error::Login(_) | Error::LoginDeferred { .. })) => refused,
                done => return done,
            };
            // If the server has disabled LOGIN, the refusal does not mean that the password is wrong.
            match LoginCapabilities::request(connection, ResponseTimeout::within(AFTER_REFUSAL)).await {
                Ok(offered) if offered.login_disabled => offered,
                _ => return Err(refused),
            }
        }
        None => LoginCapabilities::request(connection, timeout).await?,
        Some(offered) => offered,
    };
    match offered {
        LoginCapabilities { plain: true, .. } if offered.login_disabled || !is_ascii => {
            plain(connection, user, password, offered, timeout).await
        }
        LoginCapabilities { login_disabled: false, .. } => login(connection, user, password, offered, timeout).await,
        _ => Err(Error::NoLogin(
            "the server has disabled LOGIN (LOGINDISABLED) and does not offer AUTH=PLAIN; set `tls` to \"implicit\" or \
             \"starttls\", or use `[account.oauth2]` instead of `password`",
        )),
    }
}

/// Sends LOGIN. A quoted string contains only ASCII, so a user or a password with other characters is sent as a literal.
async fn login(
    connection: &mut Connection,
    user: &str,
    password: &str,
    offered: LoginCapabilities,
    timeout: ResponseTimeout,
) -> Result<()> {
    let quoted_password = quoted(password).unwrap_or_default();
    let secrets = [quoted_password.as_str(), password];
    // A literal that must wait for a continuation request (`+`) of the server is a separate element of `parts`.
    let mut parts = vec!["LOGIN".to_owned()];
    for text in [user, password] {
        let at_once = offered.literal_plus || (offered.literal_minus && text.len() <= LITERAL_MINUS);
        let Some(last) = parts.last_mut() else { continue };
        match quoted(text).filter(|_| text.is_ascii()) {
            Some(quoted) => last.push_str(&format!(" {quoted}")),
            None if at_once => last.push_str(&format!(" {{{}+}}\r\n{text}", text.len())),
            None => {
                last.push_str(&format!(" {{{}}}", text.len()));
                parts.push(text.to_owned());
            }
        }
    }
    let mut parts = parts.into_iter();
    let pending = connection.send("LOGIN", &parts.next().unwrap_or_default()).await?;
    converse(connection, &pending, timeout, parts, &secrets).await
}

/// Logs in with AUTHENTICATE PLAIN (RFC 4616).
async fn plain(
    connection: &mut Connection,
    user: &str,
    password: &str,
    offered: LoginCapabilities,
    timeout: ResponseTimeout,
) -> Result<()> {
    let response = STANDARD.encode(format!("\0{user}\0{password}"));
    let secrets = [response.as_str(), password];
    if offered.initial_response {
        let pending = connection.send("AUTHENTICATE", &format!("AUTHENTICATE PLAIN {response}")).await?;
        return converse(connection, &pending, timeout, std::iter::empty(), &secrets).await;
    }
    let pending = connection.send("AUTHENTICATE", "AUTHENTICATE PLAIN").await?;
    converse(connection, &pending, timeout, std::iter::once(response.clone()), &secrets).await
}

/// Sends the next of `lines` after each continuation request (`+`) of the server, until the tagged OK of `pending`.
async fn converse(
    connection: &mut Connection,
    pending: &PendingCommand,
    timeout: ResponseTimeout,
    mut lines: impl Iterator<Item = String>,
    secrets: &[&str],
) -> Result<()> {
    loop {
        match connection.read_response(pending, timeout, |_| ()).await.map_err(|error| classify(error, secrets))? {
            ServerResponse::Done => return Ok(()),
            ServerResponse::Data(()) => {}
            ServerResponse::Continue => match lines.next() {
                Some(line) => connection.write_line("login", &line).await?,
                None => return Err(Error::Protocol("sent more `+` than the login has lines".into())),
            },
        }
    }
}

/// Logs in with an access token.
pub(super) async fn with_token(
    connection: &mut Connection,
    settings: &ImapSettings,
    token: &SecretString,
    timeout: ResponseTimeout,
) -> Result<()> {
    let offered = LoginCapabilities::request(connection, timeout).await?;
    let mechanism = match offered {
        LoginCapabilities { oauthbearer: true, .. } => Mechanism::OAuthBearer,
        LoginCapabilities { xoauth2: true, .. } => Mechanism::XOAuth2,
        _ => {
            return Err(Error::NoLogin(
                "the server offers neither OAUTHBEARER nor XOAUTH2; use `password` instead of `[account.oauth2]`",
            ));
        }
    };
    let response = STANDARD.encode(mechanism.response(settings, token.expose_secret()));
    let secrets = [token.expose_secret(), response.as_str()];
    // The server's first continuation request (`+`) asks for the SASL response. A second continuation request contains an
    // error. The server sends the NO only after the client has acknowledged this error.
    let acknowledgement = mechanism.acknowledgement().to_owned();
    let mut command = format!("AUTHENTICATE {}", mechanism.name());
    if offered.initial_response {
        command = format!("{command} {response}");
        let pending = connection.send("AUTHENTICATE", &command).await?;
        return converse(connection, &pending, timeout, std::iter::once(acknowledgement), &secrets).await;
    }
    let pending = connection.send("AUTHENTICATE", &command).await?;
    converse(connection, &pending, timeout, [response.clone(), acknowledgement].into_iter(), &secrets).await
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::OAuthBearer => "OAUTHBEARER",
            Mechanism::XOAuth2 => "XOAUTH2",
        }
    }

    fn response(self, settings: &ImapSettings, token: &str) -> String {
        let user = &settings.user;
        match self {
            Mechanism::OAuthBearer => {
                // A user name in the GS2 header contains no comma and no equals sign (RFC 5801, 4).
                let user = user.replace('=', "=3D").replace(',', "=2C");
                let (host, port) = (&settings.host, settings.port());
                format!("n,a={user},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01")
            }
            Mechanism::XOAuth2 => format!("user={user}\x01auth=Bearer {token}\x01\x01"),
        }
    }

    /// The line that acknowledges the error in a continuation request (`+`; RFC 3501, 7.5) of the server.
    fn acknowledgement(self) -> &'static str {
        match self {
            // One byte `\x01` in base64 (RFC 7628, 3.2.3).
            Mechanism::OAuthBearer => "AQ==",
            Mechanism::XOAuth2 => "",
        }
    }
}

/// Converts a refusal of a login command into [`Error::Login`] or [`Error::LoginDeferred`]. Some servers quote the password or
/// token, so `secrets` are removed from the error text.
fn classify(error: Error, secrets: &[&str]) -> Error {
    let secrets = secrets.iter().filter(|secret| !secret.is_empty());
    let redacted = |message| secrets.fold(message, |message, secret| secret::redact(message, secret));
    match error {
        Error::Refused { message, .. } if refusal::is_about_credentials(&message) => Error::Login(redacted(message)),
        Error::Refused { command, message } => Error::LoginDeferred { command, message: redacted(message) },
        Error::Throttled { message, pause } => Error::Throttled { message: redacted(message), pause },
        Error::Bye(message) => Error::Bye(redacted(message)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(user: &str) -> ImapSettings {
        toml::from_str(&format!("name = \"shop\"\nhost = \"server.example.com\"\nport = 143\nuser = \"{user}\""))
            .unwrap()
    }

    #[test]
    fn sasl_responses_match_rfc_7628_and_google() {
        // RFC 7628, 4.1.
        let response = Mechanism::OAuthBearer
            .response(&settings("user@example.com"), "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==");
        let expected = "n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01";
        assert_eq!(response, expected);
        let response = Mechanism::OAuthBearer.response(&settings("a,b=c"), "t");
        assert!(response.starts_with("n,a=a=2Cb=3Dc,\x01"), "{response:?}");
        // https://developers.google.com/workspace/gmail/imap/xoauth2-protocol
        let response = Mechanism::XOAuth2
            .response(&settings("someuser@example.com"), "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg");
        let expected = "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ==";
        assert_eq!(STANDARD.encode(response), expected);
        assert_eq!(STANDARD.decode(Mechanism::OAuthBearer.acknowledgement()).unwrap(), b"\x01");
    }

    #[test]
    fn quoted_secrets_are_removed_even_if_cut() {
        let token: String = ('a'..='z').cycle().take(1_500).collect();
        let message = format!("No your token {token} is wrong");
        for length in [message.len(), 200, 20, 18] {
            let message = crate::model::printable(&message, length);
            let refused = Error::Refused { command: "AUTHENTICATE", message: message.clone() };
            for error in [classify(refused, &[&token]), classify(Error::Bye(message), &[&token])].map(|e| e.to_string())
            {
                assert!(error.contains("your token (secret)") && !error.contains("abcd"), "{length}: {error}");
            }
        }
        let unchanged = classify(Error::Bye("closed for a…".into()), &["abc", &token]).to_string();
        assert!(unchanged.ends_with("closed for a…"), "{unchanged}");
    }
}
