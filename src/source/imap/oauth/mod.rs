//! Access tokens instead of a password (RFC 6749). An access token is requested with a refresh token, cached in memory while it
//! is valid, and shared by all mailboxes of an account.

mod endpoint;
mod rotation;
mod token_file;
mod token_lock;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;

use super::error::Error;
use crate::http::Url;
use crate::secret;
use endpoint::TokenEndpoint;
use rotation::RefreshTokens;

/// An access token is replaced this long before it expires, because a login takes time and clocks differ.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// The lifetime of an access token if the endpoint's answer has no `expires_in`. RFC 6749 (5.1) recommends `expires_in`, but does
/// not require it.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long the program waits, before it ends, for the answer to a running token request. Without `[standby]`, the loops of the
/// program have longer to end (`DRAIN` in `app`). With `[standby]`, the program waits again after it has released the lease.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(3);

/// The settings of the table `oauth2` of an `[[account]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct OAuthSettings {
    /// The URL of the token endpoint (RFC 6749, 3.2).
    pub token_url: Url,
    /// The client identifier of this application.
    pub client_id: String,
    /// The client secret, if the endpoint requires one.
    pub client_secret: Option<secret::SecretSource>,
    /// The refresh token that the authorization of this application has returned.
    pub refresh_token: secret::SecretSource,
    /// The requested scope. The default is the scope of the authorization.
    pub scope: Option<String>,
    /// The device authorization endpoint (RFC 8628), for the command `authorize`.
    pub device_url: Option<Url>,
    /// The authorization endpoint (RFC 6749, 3.1), for the command `authorize`.
    pub auth_url: Option<Url>,
}

impl OAuthSettings {
    /// Checks whether the values of these settings can be used.
    ///
    /// # Errors
    /// The key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: &str| Err((format!("oauth2.{key}"), message.to_owned()));
        let is_open = |url: &Url| !url.tls && !url.is_loopback();
        if is_open(&self.token_url) {
            return wrong("token_url", "expected https://: a refresh token must not be read on the way");
        }
        for (key, url) in [("device_url", &self.device_url), ("auth_url", &self.auth_url)] {
            if url.as_ref().is_some_and(is_open) {
                return wrong(key, "expected https://: an authorization must not be read on the way");
            }
        }
        if self.device_url.is_some() && self.auth_url.is_some() {
            return wrong("auth_url", "expected either `device_url` or `auth_url`, not both");
        }
        if self.client_id.is_empty() {
            return wrong("client_id", "expected the identifier that the provider gave to this application");
        }
        Ok(())
    }

    /// The client secret, if there is one, and the refresh token.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = &mut secret::SecretSource> {
        self.client_secret.iter_mut().chain([&mut self.refresh_token])
    }
}

/// The access token and the refresh tokens of an account. All clones share one state. `Debug` shows no token.
#[derive(Clone)]
pub struct AccessTokens(Arc<SharedTokens>);

struct SharedTokens {
    endpoint: TokenEndpoint,
    state: Arc<Mutex<TokenState>>,
}

struct TokenState {
    refresh: RefreshTokens,
    cached: Option<CachedToken>,
    /// The number of access tokens received so far.
    count: u64,
    /// When and why the last token request failed; `None` if it succeeded.
    failed: Option<(Instant, TokenFailure)>,
    /// No token request is sent before this time, because the endpoint asked for a pause.
    retry_at: Option<Instant>,
}

struct CachedToken {
    secret: SecretString,
    until: Instant,
}

/// An access token.
pub(super) struct AccessToken {
    pub(super) secret: SecretString,
    /// The access token comes from the cache. If the mail server refuses a cached token, a new token may work.
    pub(super) was_cached: bool,
    number: u64,
}

/// Why a token request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TokenFailure {
    /// The endpoint refused the request permanently, or its token is no Bearer token. The operator must act.
    Refused(String),
    /// The refresh token is invalid or expired. The operator must act if no other refresh token is left.
    Ended(String),
    /// A later request may succeed. The duration is the pause that the endpoint asked for.
    Temporary(String, Option<Duration>),
}

impl AccessTokens {
    /// `folder`: the folder for the token file. The file is created when the endpoint replaces the configured refresh token.
    #[must_use]
    pub fn new(
        settings: &OAuthSettings,
        client_secret: Option<SecretString>,
        refresh_token: SecretString,
        folder: &Path,
        tls: Option<Arc<ClientConfig>>,
    ) -> Self {
        let endpoint = TokenEndpoint::new(settings, client_secret, tls);
        let refresh = RefreshTokens::new(settings, refresh_token, folder);
        let state = TokenState { refresh, cached: None, count: 0, failed: None, retry_at: None };
        AccessTokens(Arc::new(SharedTokens { endpoint, state: Arc::new(Mutex::new(state)) }))
    }

    /// Returns the cached access token, or requests a new access token. Concurrent callers share one request and its result, also
    /// if the request fails.
    pub(super) async fn get(&self) -> Result<AccessToken, Error> {
        let asked = Instant::now();
        let mut state = self.0.state.clone().lock_owned().await;
        if let Some(cached) = state.cached.as_ref().filter(|cached| Instant::now() < cached.until) {
            return Ok(AccessToken { secret: cached.secret.clone(), was_cached: true, number: state.count });
        }
        state.cached = None;
        if let Some((at, failure)) = &state.failed
            && *at >= asked
        {
            return Err(failure.clone().into());
        }
        if let Some((until, (_, TokenFailure::Temporary(message, _)))) = state.retry_at.zip(state.failed.as_ref())
            && Instant::now() < until
        {
            return Err(TokenFailure::Temporary(message.clone(), Some(until - Instant::now())).into());
        }
        let inner = self.0.clone();
        // The request runs in a separate task. The answer can contain the only valid refresh token, which must be stored even if
        // the caller is dropped.
        let refreshing = tokio::spawn(async move {
            let answer = state.refresh.request(&inner.endpoint).await;
            state.apply(answer)
        });
        // If the task panics, the text of the panic is not used, because it may contain a token.
        let broken = || TokenFailure::Temporary("the token request failed".into(), None);
        refreshing.await.unwrap_or_else(|_| Err(broken())).map_err(Error::from)
    }

    /// Waits until no token request is running, at most three seconds.
    pub(super) async fn wait_for_refresh(&self) {
        if self.0.state.try_lock().is_ok() {
            return;
        }
        tracing::debug!("waiting for the token endpoint, whose answer may contain a new refresh token");
        if timeout(CLOSING_TIMEOUT, self.0.state.lock()).await.is_err() {
            tracing::warn!(
                "the token endpoint did not answer before the end; if it has replaced the refresh token, the new one is lost"
            );
        }
    }

    /// Empties the cache if it contains this token, which the mail server has refused.
    pub(super) async fn drop_refused(&self, token: &AccessToken) {
        let mut state = self.0.state.lock().await;
        // Another mailbox may have requested a new token meanwhile, and this token must stay in the cache.
        if state.count == token.number {
            state.cached = None;
        }
    }
}

impl TokenState {
    fn apply(&mut self, answer: Result<endpoint::TokenGrant, TokenFailure>) -> Result<AccessToken, TokenFailure> {
        let now = Instant::now();
        let granted = answer.inspect_err(|failure| {
            self.retry_at = match failure {
                TokenFailure::Temporary(_, asked) => asked.and_then(|pause| now.checked_add(pause)),
                TokenFailure::Refused(_) | TokenFailure::Ended(_) => None,
            };
            self.failed = Some((now, failure.clone()));
        })?;
        (self.failed, self.retry_at) = (None, None);
        self.count += 1;
        let lifetime = granted.expires_in.map_or(DEFAULT_LIFETIME, |lifetime| lifetime.saturating_sub(EXPIRY_MARGIN));
        let secret = granted.access_token;
        self.cached = now.checked_add(lifetime).map(|until| CachedToken { secret: secret.clone(), until });
        tracing::debug!(good_for_s = lifetime.as_secs(), "got an access token");
        Ok(AccessToken { secret, was_cached: false, number: self.count })
    }
}

impl From<TokenFailure> for Error {
    fn from(failure: TokenFailure) -> Self {
        match failure {
            TokenFailure::Refused(message) | TokenFailure::Ended(message) => Error::TokenRefused(message),
            TokenFailure::Temporary(message, retry_after) => Error::Token { message, retry_after },
        }
    }
}

impl std::fmt::Debug for AccessTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessTokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_settings(table: &str) -> Result<OAuthSettings, String> {
        let settings: OAuthSettings = toml::from_str(table).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, message)| format!("{key}: {message}"))?;
        Ok(settings)
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        let other_keys = "client_id = \"c\"\nrefresh_token = { env = \"R\" }";
        for url in ["https://login.example/token", "http://127.0.0.1:8080/token", "http://localhost/token"] {
            parse_settings(&format!("token_url = \"{url}\"\n{other_keys}")).unwrap();
        }
        for url in ["http://login.example/token", "http://10.0.0.1/token", "http://localhost.example/token"] {
            let message = parse_settings(&format!("token_url = \"{url}\"\n{other_keys}")).unwrap_err();
            assert!(message.contains("oauth2.token_url: expected https"), "{message}");
        }
        for key in ["device_url", "auth_url"] {
            let with =
                |url: &str| parse_settings(&format!("token_url = \"https://x/\"\n{key} = \"{url}\"\n{other_keys}"));
            with("https://login.example/authorize?tenant=1").unwrap();
            assert!(with("http://login.example/").unwrap_err().contains(&format!("oauth2.{key}: expected https")));
        }
        assert!(
            parse_settings(&format!("token_url = \"https://x/\"\nrefresh = 1\n{other_keys}"))
                .unwrap_err()
                .contains("refresh")
        );
        assert!(
            parse_settings("token_url = \"https://x/\"\nclient_id = \"\"\nrefresh_token = { env = \"R\" }").is_err()
        );
    }
}
