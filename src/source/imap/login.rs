//! Proving who we are: LOGIN with a password, or AUTHENTICATE with an access token (OAUTHBEARER, XOAUTH2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use async_imap::imap_proto::{Capability, Response};

use super::error::{Error, Result};
use super::settings::Settings;
use super::wire::{Heard, Wait, Wire, quoted};
use crate::secret;

/// A SASL mechanism that takes an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    /// RFC 7628.
    OAuthBearer,
    /// What Google and Microsoft had before there was a standard.
    XOAuth2,
}

/// What the server offers for a login with a token.
#[derive(Debug, Clone, Copy, Default)]
struct Sasl {
    oauthbearer: bool,
    xoauth2: bool,
    /// The first response may stand in the command (RFC 4959).
    initial_response: bool,
}

/// Logs in with a password.
pub(super) async fn with_password(wire: &mut Wire, user: &str, password: &SecretString, wait: Wait) -> Result<()> {
    let secret = password.expose_secret();
    let (Some(user), Some(password)) = (quoted(user), quoted(secret)) else {
        return Err(Error::Login("the user or the password holds a line break".into()));
    };
    let sent = wire.send("LOGIN", &format!("LOGIN {user} {password}")).await?;
    wire.finish(&sent, wait, |_| ()).await.map_err(|e| judged(e, &[&password, secret]))
}

/// Logs in with an access token.
pub(super) async fn with_token(wire: &mut Wire, settings: &Settings, token: &SecretString, wait: Wait) -> Result<()> {
    let offers = offers(wire, wait).await?;
    let mechanism = match offers {
        Sasl { oauthbearer: true, .. } => Mechanism::OAuthBearer,
        Sasl { xoauth2: true, .. } => Mechanism::XOAuth2,
        _ => return Err(Error::Login("the server offers neither OAUTHBEARER nor XOAUTH2".into())),
    };
    let response = STANDARD.encode(mechanism.response(settings, token.expose_secret()));
    let secrets = [token.expose_secret(), response.as_str()];
    let mut command = format!("AUTHENTICATE {}", mechanism.name());
    if offers.initial_response {
        command = format!("{command} {response}");
    }
    let sent = wire.send("AUTHENTICATE", &command).await?;
    // A `+` asks for the response, and after that it brings an error that has to be acknowledged before the NO comes.
    let mut answers = vec![mechanism.acknowledgement()];
    if !offers.initial_response {
        answers.push(&response);
    }
    loop {
        match wire.hear(&sent, wait, |_| ()).await.map_err(|e| judged(e, &secrets))? {
            Heard::Done => return Ok(()),
            Heard::Data(()) => {}
            Heard::Continue => match answers.pop() {
                Some(answer) => wire.say("AUTHENTICATE", answer).await?,
                None => return Err(Error::Protocol("AUTHENTICATE has no end".into())),
            },
        }
    }
}

async fn offers(wire: &mut Wire, wait: Wait) -> Result<Sasl> {
    let mut offers = Sasl::default();
    let sent = wire.send("CAPABILITY", "CAPABILITY").await?;
    wire.finish(&sent, wait, |response| {
        let Response::Capabilities(list) = response else { return };
        for capability in list {
            match capability {
                Capability::Auth(name) if name.eq_ignore_ascii_case("OAUTHBEARER") => offers.oauthbearer = true,
                Capability::Auth(name) if name.eq_ignore_ascii_case("XOAUTH2") => offers.xoauth2 = true,
                Capability::Atom(word) if word.eq_ignore_ascii_case("SASL-IR") => offers.initial_response = true,
                _ => {}
            }
        }
    })
    .await?;
    Ok(offers)
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::OAuthBearer => "OAUTHBEARER",
            Mechanism::XOAuth2 => "XOAUTH2",
        }
    }

    fn response(self, settings: &Settings, token: &str) -> String {
        let user = &settings.user;
        match self {
            Mechanism::OAuthBearer => {
                // RFC 5801, 4: a name in this header has no comma and no equals sign.
                let user = user.replace('=', "=3D").replace(',', "=2C");
                let (host, port) = (&settings.host, settings.port());
                format!("n,a={user},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01")
            }
            Mechanism::XOAuth2 => format!("user={user}\x01auth=Bearer {token}\x01\x01"),
        }
    }

    /// What the error of a server is answered with.
    fn acknowledgement(self) -> &'static str {
        match self {
            // One \x01 (RFC 7628, 3.2.3).
            Mechanism::OAuthBearer => "AQ==",
            Mechanism::XOAuth2 => "",
        }
    }
}

/// What a refusal to let us in means. Servers have quoted what they were sent.
fn judged(error: Error, secrets: &[&str]) -> Error {
    let without = |words| secrets.iter().fold(words, |words, secret| secret::left_out(words, secret));
    match error {
        Error::Refused { command, words } if is_passing(&words) => Error::Refused { command, words: without(words) },
        Error::Refused { words, .. } => Error::Login(without(words)),
        Error::Bye(words) => Error::Bye(without(words)),
        other => other,
    }
}

/// A refusal that says nothing about the credentials: by its code (RFC 5530), or by the words of those who send none,
/// such as Gmail with its fifteen connections, and Exchange.
fn is_passing(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let codes = ["[unavailable]", "[inuse]", "[limit]", "[serverbug]", "[contactadmin]"];
    let phrases = ["simultaneous connections", "too many connections", "server unavailable", "try again later"];
    codes.iter().chain(&phrases).any(|sign| words.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(user: &str) -> Settings {
        toml::from_str(&format!("name = \"shop\"\nhost = \"server.example.com\"\nport = 143\nuser = \"{user}\""))
            .unwrap()
    }

    #[test]
    fn a_response_is_as_rfc_7628_and_google_write_it() {
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
    fn a_refusal_is_the_credentials_unless_the_server_says_otherwise() {
        let refused = |words: &str| Error::Refused { command: "LOGIN", words: words.to_owned() };
        assert!(judged(refused("No [AUTHENTICATIONFAILED] Invalid credentials"), &[]).needs_a_person());
        assert!(!judged(refused("No [UNAVAILABLE] Temporary authentication failure"), &[]).needs_a_person());
    }

    #[test]
    fn what_a_server_quotes_of_a_secret_is_left_out_wherever_it_was_cut_off() {
        let token: String = ('a'..='z').cycle().take(1_500).collect();
        let words = format!("No your token {token} is wrong");
        for length in [words.len(), 200, 20, 18] {
            let words = crate::model::printable(&words, length);
            let refused = Error::Refused { command: "AUTHENTICATE", words: words.clone() };
            for said in [judged(refused, &[&token]), judged(Error::Bye(words), &[&token])].map(|e| e.to_string()) {
                assert!(said.contains("your token (secret)") && !said.contains("abcd"), "{length}: {said}");
            }
        }
        let others = judged(Error::Bye("closed for a…".into()), &["abc", &token]).to_string();
        assert!(others.ends_with("closed for a…"), "{others}");
    }
}
