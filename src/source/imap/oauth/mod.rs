//! Access tokens in place of a password (RFC 6749): asked for with a refresh token, kept in memory for as long as they
//! are valid, and shared by all mailboxes of an account.

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

/// How long before its end a token is not used any more: a login takes its time, and clocks differ.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// How long a token is kept whose end is not told (RFC 6749, 5.1, recommends to tell).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long an answer that is on its way is waited for at the end: less than the loops have for closing.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(3);

/// `[[account]] oauth2`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct OAuthSettings {
    /// Where tokens are to be had.
    pub token_url: Url,
    /// Who we are there.
    pub client_id: String,
    /// And how we prove it, if we must.
    pub client_secret: Option<secret::SecretSource>,
    /// What we were given when a person agreed.
    pub refresh_token: secret::SecretSource,
    /// What the token is to be good for; by default what was agreed to.
    pub scope: Option<String>,
    /// The device authorization endpoint (RFC 8628), for `authorize`.
    pub device_url: Option<Url>,
    /// The authorization endpoint (RFC 6749, 3.1), for `authorize`.
    pub auth_url: Option<Url>,
}

impl OAuthSettings {
    /// Whether the values can be used.
    ///
    /// # Errors
    /// The key to look at, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, words: &str| Err((format!("oauth2.{key}"), words.to_owned()));
        let is_open = |url: &Url| !url.tls && !url.is_loopback();
        if is_open(&self.token_url) {
            return wrong("token_url", "expected https://: a refresh token must not be read on the way");
        }
        for (key, url) in [("device_url", &self.device_url), ("auth_url", &self.auth_url)] {
            if url.as_ref().is_some_and(is_open) {
                return wrong(key, "expected https://: an authorization must not be read on the way");
            }
        }
        if self.client_id.is_empty() {
            return wrong("client_id", "expected the identifier that the provider gave to this application");
        }
        Ok(())
    }

    /// Its secrets.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = &mut secret::SecretSource> {
        self.client_secret.iter_mut().chain([&mut self.refresh_token])
    }
}

/// An account's tokens. Cheap to clone; clones share what they know. Shows nothing of it.
#[derive(Clone)]
pub struct AccessTokens(Arc<SharedTokens>);

struct SharedTokens {
    endpoint: TokenEndpoint,
    state: Arc<Mutex<TokenState>>,
}

struct TokenState {
    refresh: RefreshTokens,
    cached: Option<CachedToken>,
    /// How many tokens there were.
    count: u64,
    /// What went wrong last, and when.
    failed: Option<(Instant, TokenFailure)>,
    /// The endpoint asked not to be asked before.
    retry_at: Option<Instant>,
}

struct CachedToken {
    secret: SecretString,
    until: Instant,
}

/// An access token.
pub(super) struct AccessToken {
    pub(super) secret: SecretString,
    /// It was there already: if it is refused, a new one may be accepted.
    pub(super) was_cached: bool,
    number: u64,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TokenFailure {
    /// A person has to do something.
    Refused(String),
    /// So they have, if this was the last refresh token that there is: it is not good, or not any more.
    Ended(String),
    /// It may be better soon.
    Temporary(String, Option<Duration>),
}

impl AccessTokens {
    /// Makes one of its settings and its secrets. A refresh token that the endpoint replaces is kept in `folder`; until
    /// then nothing is written.
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

    /// A token to log in with: the one there is, or a new one. Who asks while another asks already gets what that
    /// one gets, be it a failure.
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
        if let Some((until, (_, TokenFailure::Temporary(words, _)))) = state.retry_at.zip(state.failed.as_ref())
            && Instant::now() < until
        {
            return Err(TokenFailure::Temporary(words.clone(), Some(until - Instant::now())).into());
        }
        let inner = self.0.clone();
        // On its own: if nobody waits for the answer any more, the refresh token in it may still be the only good one.
        let asking = tokio::spawn(async move {
            let answer = state.refresh.request(&inner.endpoint).await;
            state.apply(answer)
        });
        // Why not is told by its place alone: what a panic says may have a token in it.
        let broken = || TokenFailure::Temporary("asking for it has failed".into(), None);
        asking.await.unwrap_or_else(|_| Err(broken())).map_err(Error::from)
    }

    /// Returns when no answer of the endpoint is on its way any more, or after some time.
    pub(super) async fn wait_for_refresh(&self) {
        if self.0.state.try_lock().is_ok() {
            return;
        }
        tracing::debug!("waiting for the token endpoint: a new refresh token may be on its way");
        if timeout(CLOSING_TIMEOUT, self.0.state.lock()).await.is_err() {
            tracing::warn!("the token endpoint has not answered; if it has replaced the refresh token, that is lost");
        }
    }

    /// The server refused this token: it is not used again.
    pub(super) async fn drop_refused(&self, token: &AccessToken) {
        let mut state = self.0.state.lock().await;
        // Another mailbox may have a new one already.
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
            TokenFailure::Refused(words) | TokenFailure::Ended(words) => Error::TokenRefused(words),
            TokenFailure::Temporary(words, retry_after) => Error::Token { words, retry_after },
        }
    }
}

impl std::fmt::Debug for AccessTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(table: &str) -> Result<OAuthSettings, String> {
        let settings: OAuthSettings = toml::from_str(table).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, words)| format!("{key}: {words}"))?;
        Ok(settings)
    }

    #[test]
    fn a_refresh_token_travels_in_the_clear_on_this_machine_only() {
        let rest = "client_id = \"c\"\nrefresh_token = { env = \"R\" }";
        for url in ["https://login.example/token", "http://127.0.0.1:8080/token", "http://localhost/token"] {
            read(&format!("token_url = \"{url}\"\n{rest}")).unwrap();
        }
        for url in ["http://login.example/token", "http://10.0.0.1/token", "http://localhost.example/token"] {
            let words = read(&format!("token_url = \"{url}\"\n{rest}")).unwrap_err();
            assert!(words.contains("oauth2.token_url: expected https"), "{words}");
        }
        for key in ["device_url", "auth_url"] {
            let with = |url: &str| read(&format!("token_url = \"https://x/\"\n{key} = \"{url}\"\n{rest}"));
            with("https://login.example/authorize?tenant=1").unwrap();
            assert!(with("http://login.example/").unwrap_err().contains(&format!("oauth2.{key}: expected https")));
        }
        assert!(read(&format!("token_url = \"https://x/\"\nrefresh = 1\n{rest}")).unwrap_err().contains("refresh"));
        assert!(read("token_url = \"https://x/\"\nclient_id = \"\"\nrefresh_token = { env = \"R\" }").is_err());
    }
}
