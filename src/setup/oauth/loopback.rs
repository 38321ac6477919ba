//! The authorization code grant with a redirect to this machine (RFC 8252, 7.3), PKCE (RFC 7636) and `state`.
//!
//! A browser on another machine cannot reach this machine, so a person with such a browser pastes the URL of the redirect.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ring::digest;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::{Denial, GOOGLE, MAX_MESSAGE, OAuthClient, advice};
use crate::http::{self, Url};
use crate::model::printable;
use crate::setup::random_hex;

/// The person must finish the authorization in the browser within this time.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The time limit of a connection from a browser, and the most connections at the same time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 16;

/// One authorization that waits until the provider redirects the browser to this machine.
pub struct Loopback {
    listener: TcpListener,
    redirect_uri: String,
    state: String,
    verifier: SecretString,
}

/// The content of a redirect that belongs to this authorization.
#[derive(Debug, PartialEq, Eq)]
enum Redirect {
    Code(String),
    /// The provider refused the authorization. The text is a message for the operator.
    Refused(String),
}

impl Loopback {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn listen() -> Result<Self, String> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.map_err(|e| format!("cannot listen on 127.0.0.1: {e}"))?;
        let address = listener.local_addr().map_err(|e| format!("cannot listen on 127.0.0.1: {e}"))?;
        let redirect_uri = format!("http://{address}/");
        Ok(Loopback { listener, redirect_uri, state: random_hex()?, verifier: random_hex()?.into() })
    }

    /// The URL to which the provider redirects the browser.
    #[must_use]
    pub fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    /// The URL of the page that the person opens. `user` is the login name of the mailbox, which only Google's page gets.
    #[must_use]
    pub fn page(&self, client: &OAuthClient, auth_url: &Url, user: &str) -> String {
        let hash = digest::digest(&digest::SHA256, self.verifier.expose_secret().as_bytes());
        let challenge = URL_SAFE_NO_PAD.encode(hash);
        let mut query = vec![
            ("response_type", "code"),
            ("client_id", client.client_id.as_str()),
            ("redirect_uri", self.redirect_uri.as_str()),
            ("state", self.state.as_str()),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ];
        query.extend(client.scope.as_deref().map(|scope| ("scope", scope)));
        if client.token_url.host.eq_ignore_ascii_case(GOOGLE.0) {
            // Google gives a refresh token only with `access_type` and `prompt`.
            query.extend([("access_type", "offline"), ("prompt", "consent"), ("login_hint", user)]);
        }
        let separator = if auth_url.path.query().is_some() { '&' } else { '?' };
        format!("{auth_url}{separator}{}", http::encode_form(&query))
    }

    /// Waits until the browser follows the redirect, or the person pastes the redirect's URL into `pasted`. Then gets the refresh
    /// token from the provider, and returns this token. If a pasted text is not the URL, `notice` gets a message for the person.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn wait(
        self,
        client: &OAuthClient,
        mut pasted: mpsc::Receiver<String>,
        notice: impl Fn(&str),
    ) -> Result<SecretString, String> {
        let Loopback { listener, redirect_uri, state, verifier } = self;
        let (redirect_sender, mut redirects) = mpsc::channel(1);
        let serving = tokio::spawn(serve(listener, state.clone().into(), redirect_sender));
        let paste = async {
            while let Some(text) = pasted.recv().await {
                match pasted_redirect(&text, &state) {
                    Some(redirect) => return redirect,
                    None => notice("this is not the URL of the redirect; paste the whole address of the browser"),
                }
            }
            // Standard input has ended, but a browser may still follow the redirect.
            std::future::pending().await
        };
        let redirect = tokio::select! {
            Some(redirect) = redirects.recv() => redirect,
            redirect = paste => redirect,
            () = sleep(PATIENCE) => Redirect::Refused(format!("no redirect within {} minutes", PATIENCE.as_secs() / 60)),
        };
        let tokens = match redirect {
            Redirect::Refused(message) => Err(message),
            Redirect::Code(code) => {
                let grant = [
                    ("grant_type", "authorization_code"),
                    ("code", code.as_str()),
                    ("redirect_uri", redirect_uri.as_str()),
                    ("code_verifier", verifier.expose_secret()),
                ];
                client.ask_for_tokens(&grant).await.map_err(Denial::message)
            }
        };
        serving.abort();
        tokens
    }
}

/// Parses a redirect from the query of its URL. `None` if the query does not belong to this authorization, or has neither a code
/// nor an error.
fn redirect(query: &str, state: &str) -> Option<Redirect> {
    if http::query_value(query, "state").as_deref() != Some(state) {
        return None;
    }
    if let Some(code) = http::query_value(query, "code").filter(|code| !code.is_empty()) {
        return Some(Redirect::Code(code));
    }
    let error = http::query_value(query, "error")?;
    let description = http::query_value(query, "error_description").map(|text| format!(": {text}")).unwrap_or_default();
    let message = printable(&format!("{error}{description}"), MAX_MESSAGE);
    Some(Redirect::Refused(format!("the provider refused ({message}); {}", advice(&error))))
}

/// Parses the redirect from a text that a person pasted.
fn pasted_redirect(text: &str, state: &str) -> Option<Redirect> {
    let (_, query) = text.trim().split_once('?')?;
    redirect(query.split('#').next().unwrap_or_default(), state)
}

async fn serve(listener: TcpListener, state: Arc<str>, redirect_sender: mpsc::Sender<Redirect>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (state, redirect_sender) = (state.clone(), redirect_sender.clone());
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, serve_one(stream, state, redirect_sender)).await;
                    drop(permit);
                });
            }
            // `accept` fails, for example, if the process has no free file descriptor.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_one(stream: TcpStream, state: Arc<str>, redirect_sender: mpsc::Sender<Redirect>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let redirect = request.uri().query().and_then(|query| redirect(query, &state));
        let redirect_sender = redirect_sender.clone();
        async move {
            let (status, text) = match &redirect {
                Some(Redirect::Code(_)) => (StatusCode::OK, "Done. You can close this page.\n"),
                Some(Redirect::Refused(_)) => (StatusCode::OK, "Refused. The terminal says more.\n"),
                None => (StatusCode::NOT_FOUND, "This is not the expected redirect.\n"),
            };
            if let Some(redirect) = redirect {
                // Only the first redirect is used.
                let _ = redirect_sender.try_send(redirect);
            }
            Ok::<_, Infallible>(response(status, text))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn response(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    // The URL of this page contains the code, so the page must not be cached, and its URL must not be sent as a referrer.
    for (name, value) in [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_with_another_state_is_ignored() {
        assert_eq!(redirect("code=c&state=mine", "mine"), Some(Redirect::Code("c".into())));
        for query in ["code=c", "code=c&state=other", "state=mine", "code=&state=mine", "code=c&state=mine2", ""] {
            assert_eq!(redirect(query, "mine"), None, "{query}");
        }
    }

    #[test]
    fn a_refusal_is_fit_for_a_terminal() {
        let query = "error=access_denied&error_description=no%1b%5b31m+way&state=s";
        let Some(Redirect::Refused(message)) = redirect(query, "s") else { panic!("no refusal") };
        assert!(message.contains("access_denied: no") && !message.contains('\u{1b}'), "{message:?}");
        assert!(message.ends_with("run authorize again"), "{message}");
    }

    #[test]
    fn a_pasted_url_is_a_redirect() {
        let url = " http://127.0.0.1:4711/?state=s&code=4%2F0A&scope=https://mail.google.com/#\r\n";
        assert_eq!(pasted_redirect(url, "s"), Some(Redirect::Code("4/0A".into())));
        assert_eq!(pasted_redirect("4/0A", "s"), None);
    }

    #[tokio::test]
    async fn the_page_has_the_challenge_of_the_verifier() {
        let settings = "token_url = \"https://oauth2.googleapis.com/token\"\nclient_id = \"c d\"\nscope = \"x y\"\n\
            refresh_token = { env = \"R\" }";
        let client = OAuthClient::new(&toml::from_str(settings).unwrap(), None, None);
        let mut authorization = Loopback::listen().await.unwrap();
        // RFC 7636, appendix B.
        authorization.verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned().into();
        let page =
            authorization.page(&client, &"https://login.example/auth?tenant=1".parse().unwrap(), "p@shop.example");
        let query = page.strip_prefix("https://login.example/auth?tenant=1&").unwrap();
        let value = |key: &str| http::query_value(query, key).unwrap();
        assert_eq!(value("code_challenge"), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert_eq!(
            (value("client_id"), value("scope"), value("login_hint")),
            ("c d".into(), "x y".into(), "p@shop.example".into())
        );
        assert_eq!(value("redirect_uri"), authorization.redirect_uri());
        assert_eq!(value("state").len(), 64);
        assert!(!page.contains("dBjftJeZ4CVP"));
    }
}
