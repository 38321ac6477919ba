//! The token endpoint: one POST with a refresh token, and the parser of its answer (RFC 6749, 5 and 6).

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;

use super::{OAuthSettings, TokenFailure};
use crate::http::{self, Destination, FormAnswer, Url};
use crate::model::printable;
use crate::secret;

/// The most characters of the endpoint's message in an error.
const MAX_MESSAGE: usize = 200;
/// The error code of an invalid or expired refresh token.
const ENDED: &str = "invalid_grant";
/// Error codes of temporary failures.
const TEMPORARY_ERRORS: [&str; 3] = ["temporarily_unavailable", "server_error", "slow_down"];

/// The token endpoint, with the identity of the client.
pub(super) struct TokenEndpoint {
    destination: Destination,
    url: Url,
    client_id: String,
    client_secret: Option<SecretString>,
    scope: Option<String>,
}

/// A successful answer of the token endpoint.
#[derive(Debug)]
pub(super) struct TokenGrant {
    pub(super) access_token: SecretString,
    pub(super) expires_in: Option<Duration>,
    /// The new refresh token, which replaces the refresh token in the request; `None` if the endpoint keeps the old one.
    pub(super) refresh_token: Option<SecretString>,
}

/// The fields of the token endpoint's answers, both of successful answers and of errors (RFC 6749, 5.1 and 5.2).
#[derive(Default, Deserialize)]
struct TokenFields {
    access_token: Option<String>,
    token_type: Option<String>,
    /// The lifetime in seconds, as a number. Some endpoints send a string.
    expires_in: Option<serde_json::Value>,
    refresh_token: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

impl TokenEndpoint {
    pub(super) fn new(
        settings: &OAuthSettings,
        client_secret: Option<SecretString>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Self {
        let url = settings.token_url.clone();
        let (client_id, scope) = (settings.client_id.clone(), settings.scope.clone());
        let tls = tls.filter(|_| url.tls);
        // Without TLS, only addresses of this machine are allowed, whatever DNS returns.
        let destination = Destination::Net { url: url.clone(), allow_remote: url.tls, tls };
        TokenEndpoint { destination, url, client_id, client_secret, scope }
    }

    /// Requests an access token.
    pub(super) async fn request(&self, refresh_token: &SecretString) -> Result<TokenGrant, TokenFailure> {
        let mut form = vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose_secret()),
            ("client_id", self.client_id.as_str()),
        ];
        form.extend(self.client_secret.as_ref().map(|secret| ("client_secret", secret.expose_secret())));
        form.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        let answer = http::post_form(&self.destination, &self.url, &form).await;
        let answer = answer.map_err(|message| TokenFailure::Temporary(format!("{}: {message}", self.url), None))?;
        let secrets = [Some(refresh_token), self.client_secret.as_ref()];
        parse_response(answer)
            .map_err(|failure| failure.with_url(&self.url).without_secrets(secrets.into_iter().flatten()))
    }
}

/// Parses an answer of the token endpoint.
fn parse_response(answer: FormAnswer) -> Result<TokenGrant, TokenFailure> {
    let FormAnswer { status, retry_after, location, body } = answer;
    let fields: Option<TokenFields> = serde_json::from_slice(&body).ok();
    let is_json = fields.is_some();
    let fields = fields.unwrap_or_default();
    if let (true, Some(token)) = (status.is_success(), fields.access_token) {
        return parse_grant(token.into(), fields.token_type, fields.expires_in.as_ref(), fields.refresh_token);
    }
    let message = match (&fields.error, &fields.error_description) {
        (Some(error), Some(description)) => format!("{status}: {error}: {}", description.trim()),
        (Some(error), None) => format!("{status}: {error}"),
        _ if status.is_redirection() => {
            format!("{status}: a redirect to {:?}, which is not followed", location.unwrap_or_default())
        }
        _ if status.is_success() && is_json => "its answer has no access_token".to_owned(),
        _ if status.is_success() => "its answer is no JSON object".to_owned(),
        _ => status.to_string(),
    };
    let is_retried =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    let is_temporary = match &fields.error {
        Some(error) => is_retried || status.is_server_error() || TEMPORARY_ERRORS.contains(&error.as_str()),
        // A page of a proxy or captive portal, for example with status 200, does not mean that the credentials are wrong.
        None => is_retried || status.is_server_error() || status.is_success() || status.is_informational(),
    };
    let message = printable(&message, MAX_MESSAGE);
    Err(match fields.error.as_deref() {
        _ if is_temporary => TokenFailure::Temporary(message, retry_after),
        Some(ENDED) => TokenFailure::Ended(message),
        _ => TokenFailure::Refused(message),
    })
}

fn parse_grant(
    access_token: SecretString,
    kind: Option<String>,
    expires_in: Option<&serde_json::Value>,
    refresh_token: Option<String>,
) -> Result<TokenGrant, TokenFailure> {
    if let Some(kind) = kind.filter(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(TokenFailure::Refused(format!("its token is of the type {:?}, not Bearer", printable(&kind, 40))));
    }
    let text = access_token.expose_secret();
    // RFC 6750 (2.1) limits the characters of a token. A control character could end a field of the SASL response.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(TokenFailure::Temporary("its access_token has invalid characters".into(), None));
    }
    let seconds = expires_in.and_then(|value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()));
    let refresh_token = refresh_token.filter(|token| !token.is_empty()).map(SecretString::from);
    Ok(TokenGrant { access_token, expires_in: seconds.map(Duration::from_secs), refresh_token })
}

impl TokenFailure {
    fn message_mut(&mut self) -> &mut String {
        match self {
            TokenFailure::Refused(message) | TokenFailure::Ended(message) | TokenFailure::Temporary(message, _) => {
                message
            }
        }
    }

    /// Puts the URL of the token endpoint before the error message.
    fn with_url(mut self, url: &Url) -> Self {
        *self.message_mut() = format!("{url}: {}", self.message_mut());
        self
    }

    /// Removes `secrets` from the error message, because the endpoint may have quoted them, plain or percent-encoded.
    fn without_secrets<'a>(mut self, secrets: impl Iterator<Item = &'a SecretString>) -> Self {
        for secret in secrets.map(ExposeSecret::expose_secret) {
            for spelling in [secret, &http::encode_value(secret)] {
                *self.message_mut() = secret::redact(std::mem::take(self.message_mut()), spelling);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;

    fn answer(status: u16, body: &str) -> FormAnswer {
        let status = StatusCode::from_u16(status).unwrap();
        FormAnswer { status, retry_after: None, location: None, body: Bytes::from(body.to_owned()) }
    }

    #[test]
    fn lifetimes_are_numbers_or_strings() {
        for (lifetime, seconds) in [("3599", Some(3599)), ("\"3599\"", Some(3599)), ("null", None), ("-1", None)] {
            let body = format!("{{\"access_token\":\"t\",\"token_type\":\"bearer\",\"expires_in\":{lifetime}}}");
            let granted = parse_response(answer(200, &body)).unwrap();
            assert_eq!(granted.expires_in.map(|d| d.as_secs()), seconds, "{lifetime}");
            assert!(granted.refresh_token.is_none());
        }
        let bare = parse_response(answer(200, "{\"access_token\":\"t\",\"refresh_token\":\"new\"}")).unwrap();
        assert_eq!(bare.refresh_token.unwrap().expose_secret(), "new");
    }

    #[test]
    fn permanent_and_temporary_failures_differ() {
        let refused = [
            (401, "{\"error\":\"invalid_client\"}"),
            (400, "{\"error\":\"invalid_scope\"}"),
            (404, "not here"),
            (302, ""),
            (200, "{\"access_token\":\"t\",\"token_type\":\"mac\"}"),
        ];
        for (status, body) in refused {
            let failure = parse_response(answer(status, body)).unwrap_err();
            assert!(matches!(failure, TokenFailure::Refused(_)), "{status} {body}: {failure:?}");
        }
        let temporary = [
            (503, "<html>"),
            (500, "{\"error\":\"server_error\"}"),
            (429, "{\"error\":\"invalid_request\"}"),
            (400, "{\"error\":\"temporarily_unavailable\"}"),
            (200, "<html>Please log in to the Wi-Fi</html>"),
            (200, "{}"),
            (200, "{\"access_token\":\"a\\r\\nA1 LOGOUT\"}"),
        ];
        for (status, body) in temporary {
            let failure = parse_response(answer(status, body)).unwrap_err();
            assert!(matches!(failure, TokenFailure::Temporary(..)), "{status} {body}: {failure:?}");
        }
        let ended = "{\"error\":\"invalid_grant\",\"error_description\":\"Token has been expired or revoked.\"}";
        let failure = parse_response(answer(400, ended)).unwrap_err();
        assert_eq!(
            failure,
            TokenFailure::Ended("400 Bad Request: invalid_grant: Token has been expired or revoked.".into())
        );
    }

    #[test]
    fn quoted_secrets_are_removed() {
        let url: Url = "https://login.example/token".parse().unwrap();
        let secret = SecretString::from("s3cret".to_owned());
        let refused = parse_response(answer(
            400,
            "{\"error\":\"invalid_grant\",\"error_description\":\"unknown s3cret\\u001b[31m\"}",
        ));
        let failure = refused.unwrap_err().with_url(&url).without_secrets([&secret].into_iter());
        let message = "https://login.example/token: 400 Bad Request: invalid_grant: unknown (secret) [31m";
        assert_eq!(failure, TokenFailure::Ended(message.into()));
        let slashed: SecretString = "1//0g s3cret".to_owned().into();
        let redirect =
            FormAnswer { location: Some("https://x/?refresh_token=1%2F%2F0g+s3cret&x=1".into()), ..answer(302, "") };
        let mut failure = parse_response(redirect).unwrap_err().without_secrets([&slashed].into_iter());
        let message = "302 Found: a redirect to \"https://x/?refresh_token=(secret)&x=1\", which is not followed";
        assert_eq!(failure.message_mut(), message);
        let long: SecretString = "s3cret".repeat(100).into();
        let body =
            format!("{{\"error\":\"invalid_grant\",\"error_description\":\"unknown {}\"}}", long.expose_secret());
        let mut failure = parse_response(answer(400, &body)).unwrap_err().without_secrets([&long].into_iter());
        assert_eq!(failure.message_mut(), "400 Bad Request: invalid_grant: unknown (secret)…", "cut");
    }
}
