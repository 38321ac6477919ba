//! Gets a refresh token: by device code (RFC 8628), or by a redirect to this machine with PKCE (RFC 8252, RFC 7636).

mod device;
mod loopback;

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;

pub use device::DeviceCode;
pub use loopback::Loopback;

use crate::http::{self, Destination, Url};
use crate::model::printable;
use crate::secret;
use crate::source::imap::OAuthSettings;

/// The maximum length of an endpoint's message in an error, in characters.
const MAX_MESSAGE: usize = 200;
/// The maximum length of a refresh token, in bytes.
const LONGEST_TOKEN: usize = 16 * 1024;
/// The host of Google's token endpoint, and Google's authorization endpoint.
const GOOGLE: (&str, &str) = ("oauth2.googleapis.com", "https://accounts.google.com/o/oauth2/v2/auth");
/// Hosts of Microsoft's token endpoints. The URL of the device authorization endpoint differs from the token endpoint only in the
/// last segment of the path.
const MICROSOFT: [&str; 3] =
    ["login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn"];

/// The method to get a refresh token, with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationWay {
    /// The person enters a code on any device. The URL is the device authorization endpoint.
    Device(Url),
    /// The person's browser is redirected to this machine. The URL is the authorization endpoint.
    Browser(Url),
}

impl AuthorizationWay {
    /// Returns the method that `settings` names, or the usual method of the provider to which the token endpoint belongs.
    ///
    /// # Errors
    /// A message for the operator, if `settings` names no method and the provider is not known.
    pub fn from_settings(settings: &OAuthSettings) -> Result<Self, String> {
        let token_url = &settings.token_url;
        if let Some(url) = &settings.device_url {
            return Ok(AuthorizationWay::Device(url.clone()));
        }
        if let Some(url) = &settings.auth_url {
            return Ok(AuthorizationWay::Browser(url.clone()));
        }
        if token_url.host.eq_ignore_ascii_case(GOOGLE.0) {
            return GOOGLE.1.parse().map(AuthorizationWay::Browser);
        }
        if MICROSOFT.iter().any(|host| token_url.host.eq_ignore_ascii_case(host))
            && let Some(folder) = token_url.to_string().strip_suffix("/token")
        {
            return format!("{folder}/devicecode").parse().map(AuthorizationWay::Device);
        }
        Err(format!(
            "the way to a refresh token at {} is not known; set device_url or auth_url, from the provider's documentation",
            token_url.host
        ))
    }
}

/// A client of the provider's endpoints.
pub struct OAuthClient {
    token_url: Url,
    client_id: String,
    client_secret: Option<SecretString>,
    scope: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

/// A response of the device authorization endpoint or the token endpoint (RFC 6749, 5; RFC 8628, 3.2).
#[derive(Default, Deserialize)]
struct Reply {
    device_code: Option<String>,
    user_code: Option<String>,
    #[serde(alias = "verification_url")]
    verification_uri: Option<String>,
    /// A number of seconds, as a JSON number or a string.
    expires_in: Option<serde_json::Value>,
    interval: Option<serde_json::Value>,
    refresh_token: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Why an endpoint returned no token.
#[derive(Debug, PartialEq, Eq)]
enum Denial {
    /// There is no usable answer, but a later answer may be usable. The text is a message for the operator.
    Passing(String),
    /// An error code, and a message for the operator. The code is empty if the endpoint sent none.
    Code(String, String),
}

impl OAuthClient {
    /// A client with the account's settings and its client secret. `tls` is required for https.
    #[must_use]
    pub fn new(settings: &OAuthSettings, client_secret: Option<SecretString>, tls: Option<Arc<ClientConfig>>) -> Self {
        let (token_url, client_id) = (settings.token_url.clone(), settings.client_id.clone());
        OAuthClient { token_url, client_id, client_secret, scope: settings.scope.clone(), tls }
    }

    /// Posts a form to an endpoint of the provider. Errors leave out the secrets of the form.
    async fn post(&self, url: &Url, form: &[(&str, &str)]) -> Result<Reply, Denial> {
        let tls = self.tls.clone().filter(|_| url.tls);
        // Without TLS, only loopback addresses are allowed, even if DNS returns other addresses.
        let destination = Destination::Net { url: url.clone(), allow_remote: url.tls, tls };
        let answer = http::post_form(&destination, url, form).await;
        let answer = answer.map_err(|message| Denial::Passing(format!("{url}: {message}")))?;
        let reply: Option<Reply> = serde_json::from_slice(&answer.body).ok();
        let status = answer.status;
        match reply {
            Some(reply) if status.is_success() && reply.error.is_none() => Ok(reply),
            Some(Reply { error: Some(code), error_description, .. }) => {
                let description = error_description.map(|text| format!(": {}", text.trim())).unwrap_or_default();
                let message = without_secrets(printable(&format!("{code}{description}"), MAX_MESSAGE), form);
                Err(Denial::Code(code.clone(), format!("{url} answered {status} ({message}); {}", advice(&code))))
            }
            _ if status.is_server_error() || status.is_success() => {
                Err(Denial::Passing(format!("{url} answered {status} without a JSON object")))
            }
            _ => Err(Denial::Code(String::new(), format!("{url} answered {status}; check the URL"))),
        }
    }

    /// Posts a grant to the token endpoint, and returns the refresh token.
    async fn ask_for_tokens(&self, grant: &[(&str, &str)]) -> Result<SecretString, Denial> {
        let mut form = grant.to_vec();
        form.push(("client_id", &self.client_id));
        form.extend(self.client_secret.as_ref().map(|secret| ("client_secret", secret.expose_secret())));
        let reply = self.post(&self.token_url, &form).await?;
        let missing = || {
            let message = "it gave no refresh token; the scope may need offline_access, or the application may have to ask for \
                         offline access";
            Denial::Code(String::new(), format!("{}: {message}", self.token_url))
        };
        let token = reply.refresh_token.filter(|token| !token.is_empty()).ok_or_else(missing)?;
        // A refresh token has only printable ASCII characters (RFC 6749, A.17).
        if token.len() > LONGEST_TOKEN || !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            let message =
                format!("{}: its refresh token is too long, or has characters that none can have", self.token_url);
            return Err(Denial::Code(String::new(), message));
        }
        Ok(token.into())
    }
}

impl Denial {
    fn message(self) -> String {
        match self {
            Denial::Passing(message) | Denial::Code(_, message) => message,
        }
    }
}

/// Removes the secrets of a form from a message.
fn without_secrets(message: String, form: &[(&str, &str)]) -> String {
    const SECRETS: [&str; 4] = ["client_secret", "code", "code_verifier", "device_code"];
    let secrets = form.iter().filter(|(key, value)| SECRETS.contains(key) && !value.is_empty());
    secrets
        .fold(message, |message, (_, value)| secret::redact(secret::redact(message, value), &http::encode_value(value)))
}

/// Advice for an error code (RFC 6749, 4.1.2.1 and 5.2; RFC 8628, 3.5).
fn advice(code: &str) -> &'static str {
    match code {
        "invalid_client" => "check client_id and client_secret",
        "invalid_grant" | "bad_verification_code" => "the code is wrong or has expired; run authorize again",
        "unauthorized_client" | "unsupported_grant_type" => {
            "the application may not use this way; at Microsoft, allow public client flows"
        }
        "invalid_scope" => "check scope, and the permissions of the application",
        "access_denied" | "authorization_declined" => "the person or an administrator refused; run authorize again",
        "expired_token" | "code_expired" => "the code has expired; run authorize again",
        "server_error" | "temporarily_unavailable" => "run authorize again in a few minutes",
        _ => "check [account.oauth2], and the application at the provider",
    }
}

/// Deserializes seconds that are a number or a text.
fn seconds(value: Option<&serde_json::Value>) -> Option<Duration> {
    let value = value?;
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(table: &str) -> Result<AuthorizationWay, String> {
        let other_keys = "client_id = \"c\"\nrefresh_token = { env = \"R\" }";
        AuthorizationWay::from_settings(&toml::from_str(&format!("{table}\n{other_keys}")).unwrap())
    }

    #[test]
    fn the_way_follows_the_token_endpoint() {
        let microsoft =
            way("token_url = \"https://login.microsoftonline.com/shop.example/oauth2/v2.0/token\"").unwrap();
        let url = "https://login.microsoftonline.com/shop.example/oauth2/v2.0/devicecode";
        assert_eq!(microsoft, AuthorizationWay::Device(url.parse().unwrap()));
        let google = way("token_url = \"https://oauth2.googleapis.com/token\"").unwrap();
        let url = "https://accounts.google.com/o/oauth2/v2/auth";
        assert_eq!(google, AuthorizationWay::Browser(url.parse().unwrap()));
        let own = "token_url = \"https://login.example/token\"";
        assert!(way(own).unwrap_err().contains("set device_url or auth_url"));
        let auth = way(&format!("{own}\nauth_url = \"https://login.example/auth\"")).unwrap();
        assert_eq!(auth, AuthorizationWay::Browser("https://login.example/auth".parse().unwrap()));
        let device = way(&format!("{own}\ndevice_url = \"https://login.example/device\"")).unwrap();
        assert!(matches!(device, AuthorizationWay::Device(_)));
    }

    #[test]
    fn a_secret_of_the_form_is_left_out() {
        let form = [("grant_type", "code"), ("code", "4/0A b"), ("client_secret", "")];
        let message = without_secrets("no grant for 4/0A b, 4%2F0A+b".to_owned(), &form);
        assert_eq!(message, "no grant for (secret), (secret)");
    }

    #[test]
    fn seconds_are_a_number_or_a_text() {
        for (json, expected) in [("5", Some(5)), ("\"900\"", Some(900)), ("-1", None), ("null", None), ("1.5", None)] {
            let value = serde_json::from_str(json).unwrap();
            assert_eq!(seconds(Some(&value)).map(|d| d.as_secs()), expected, "{json}");
        }
    }
}
