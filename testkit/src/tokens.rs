//! A token endpoint (RFC 6749) with token introspection for mail servers (RFC 7662). It records its requests.
//!
//! It issues tokens by device code (RFC 8628) at `/device`, and by redirect with PKCE (RFC 7636) at `/authorize`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The credentials that a client must send.
pub const REFRESH_TOKEN: &str = "1//refresh+token&of=shop";
pub const CLIENT_SECRET: &str = "client secret/%";

/// The user of the tokens.
pub const USER: &str = "payments@shop.example";

/// The state of the endpoint, and its next responses.
#[derive(Default)]
pub struct EndpointState {
    /// A response that is sent instead of tokens.
    pub instead: Option<Answer>,
    /// `expires_in`, in seconds.
    pub lifetime: u64,
    /// Whether each response has a new refresh token and revokes the old one.
    pub rotates: bool,
    /// The valid refresh token.
    pub refresh_token: String,
    /// The received forms.
    pub asked: Vec<HashMap<String, String>>,
    /// The issued access tokens, oldest first.
    pub given: Vec<String>,
    /// The access tokens that are valid.
    pub good: Vec<String>,
    /// The access tokens that a mail server has introspected.
    pub shown: Vec<String>,
    /// Whether the client has no secret.
    pub is_public: bool,
    /// Whether an authorization returns no refresh token.
    pub is_online: bool,
    /// The errors for the next polls of a device code. After these errors, a poll gets a token.
    pub device_errors: Vec<&'static str>,
    /// The times of the polls of a device code.
    pub polled: Vec<Instant>,
    /// The query of the last visit to `/authorize`.
    pub visited: HashMap<String, String>,
    /// Whether the user denies the authorization at `/authorize`.
    pub refuses: bool,
    /// Whether the endpoint holds its responses back until [`Endpoint::release`].
    pub holds: bool,
    released: Arc<Notify>,
}

/// The status, more header fields, and the body.
type Answer = (u16, Vec<(&'static str, String)>, String);

type Shared = Arc<(Mutex<EndpointState>, Condvar)>;

/// A running endpoint; clones share it.
#[derive(Clone)]
pub struct Endpoint {
    pub port: u16,
    state: Shared,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Endpoint {
    pub fn start() -> Endpoint {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = EndpointState { lifetime: 3600, refresh_token: REFRESH_TOKEN.into(), ..EndpointState::default() };
        let endpoint =
            Endpoint { port, state: Arc::new((Mutex::new(state), Condvar::new())), runtime: Arc::new(runtime) };
        endpoint.listen(listener, None);
        endpoint
    }

    /// Also serves TLS on another port, and returns that port.
    pub fn start_tls(&self, certificate: &Path, key: &Path) -> u16 {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        self.listen(listener, Some(TlsAcceptor::from(Arc::new(config))));
        port
    }

    fn listen(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        // A clone of the endpoint in a task of its runtime would keep that runtime alive.
        let state = self.state.clone();
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (state.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut EndpointState) -> T) -> T {
        change(&mut self.state.0.lock().unwrap())
    }

    /// Waits until the state satisfies a condition.
    pub fn until(&self, limit: Duration, mut holds: impl FnMut(&EndpointState) -> bool) {
        let state = self.state.0.lock().unwrap();
        let (_state, waited) = self.state.1.wait_timeout_while(state, limit, |state| !holds(state)).unwrap();
        assert!(!waited.timed_out(), "the endpoint was not asked within {limit:?}");
    }

    /// Sends this response instead of tokens from now on.
    pub fn answer_instead(&self, status: u16, fields: &[(&'static str, &str)], body: &str) {
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.change(|state| state.instead = Some((status, fields, body.to_owned())));
    }

    /// Sends tokens again.
    pub fn answer_with_tokens(&self) {
        self.change(|state| state.instead = None);
    }

    /// Sends the held responses, and holds no further ones.
    pub fn release(&self) {
        self.change(|state| {
            state.holds = false;
            state.released.notify_waiters();
        });
    }

    /// The number of token requests.
    pub fn asked(&self) -> usize {
        self.change(|state| state.asked.len())
    }

    /// The secrets that must not occur in logs, output or the database.
    pub fn secrets(&self) -> Vec<String> {
        let given = self.change(|state| state.given.clone());
        given.into_iter().chain([REFRESH_TOKEN.into(), CLIENT_SECRET.into(), self.refresh_token()]).collect()
    }

    pub fn refresh_token(&self) -> String {
        self.change(|state| state.refresh_token.clone())
    }

    /// The introspection endpoint for mail servers.
    pub fn introspection_url(&self) -> String {
        format!("http://127.0.0.1:{}/introspect", self.port)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Shared) {
    let service = service_fn(move |request| answer(state.clone(), request));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(state: Shared, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let form = if method == "GET" { form(&query) } else { form(&String::from_utf8_lossy(&body)) };
    let (status, fields, body) = respond(&state, &method, &path, form).await;
    let mut response = Response::builder().status(status).header("Content-Type", "application/json");
    for (name, value) in fields {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(Bytes::from(body))).unwrap())
}

async fn respond(state: &Shared, method: &str, path: &str, form: HashMap<String, String>) -> Answer {
    let (answer, held) = {
        let (mut state, changed) = (state.0.lock().unwrap(), &state.1);
        // Subscribe while the lock is held, so that no release is missed.
        let held = state.holds.then(|| state.released.clone().notified_owned());
        let answer = match (method, path) {
            ("POST", "/token") if form["grant_type"] == "refresh_token" => state.grant(form),
            ("POST", "/token") => state.grant_first(&form),
            ("POST", "/device") => state.device_code(&form),
            ("GET", "/authorize") => state.visit(form),
            ("POST", "/introspect") => (200, Vec::new(), state.introspect(&form)),
            _ => (404, Vec::new(), String::new()),
        };
        changed.notify_all();
        (answer, held)
    };
    if let Some(held) = held {
        held.await;
    }
    answer
}

/// The codes of a device authorization: one for the user, one for the program.
pub const USER_CODE: &str = "WDJB-MJHT";
pub const DEVICE_CODE: &str = "device code/%";
/// The authorization code of a redirect.
pub const CODE: &str = "4/code+&%";

fn refused(error: &str) -> Answer {
    (400, Vec::new(), serde_json::json!({"error": error, "error_description": "as the test wants it"}).to_string())
}

impl EndpointState {
    fn device_code(&mut self, form: &HashMap<String, String>) -> Answer {
        if form.get("client_id").is_none_or(|id| id != "shop") {
            return refused("invalid_client");
        }
        let answer = serde_json::json!({
            "device_code": DEVICE_CODE, "user_code": USER_CODE, "verification_uri": "https://login.example/device",
            "expires_in": 900, "interval": 1,
        });
        (200, Vec::new(), answer.to_string())
    }

    /// A visit of the browser to `/authorize`, which redirects at once.
    fn visit(&mut self, query: HashMap<String, String>) -> Answer {
        let outcome = if self.refuses {
            "error=access_denied&error_description=not+today".to_owned()
        } else {
            format!("code={}", CODE.replace('%', "%25").replace('+', "%2B").replace('&', "%26"))
        };
        let location = format!("{}?{outcome}&state={}", query["redirect_uri"], query["state"]);
        self.visited = query;
        (302, vec![("Location", location)], String::new())
    }

    /// Issues the first refresh token of an authorization.
    fn grant_first(&mut self, form: &HashMap<String, String>) -> Answer {
        let value = |key: &str| form.get(key).map(String::as_str).unwrap_or_default();
        let secret =
            if self.is_public { !form.contains_key("client_secret") } else { value("client_secret") == CLIENT_SECRET };
        if value("client_id") != "shop" || !secret {
            return refused("invalid_client");
        }
        if value("grant_type") == "urn:ietf:params:oauth:grant-type:device_code" {
            self.polled.push(Instant::now());
            if !self.device_errors.is_empty() {
                return refused(self.device_errors.remove(0));
            }
            if value("device_code") != DEVICE_CODE {
                return refused("invalid_grant");
            }
        } else {
            let sum = ::ring::digest::digest(&::ring::digest::SHA256, value("code_verifier").as_bytes());
            let is_proven = self.visited["code_challenge"] == URL_SAFE_NO_PAD.encode(sum)
                && self.visited["code_challenge_method"] == "S256"
                && self.visited["redirect_uri"] == value("redirect_uri");
            if value("grant_type") != "authorization_code" || value("code") != CODE || !is_proven {
                return refused("invalid_grant");
            }
        }
        let mut answer = serde_json::json!({"access_token": "access-of-authorization", "token_type": "Bearer"});
        if !self.is_online {
            answer["refresh_token"] = self.refresh_token.clone().into();
        }
        (200, Vec::new(), answer.to_string())
    }

    fn grant(&mut self, form: HashMap<String, String>) -> Answer {
        let is = |key: &str, value: &str| form.get(key).is_some_and(|v| v == value);
        let is_known = is("grant_type", "refresh_token")
            && is("refresh_token", &self.refresh_token)
            && is("client_id", "shop")
            && (self.is_public || is("client_secret", CLIENT_SECRET));
        self.asked.push(form);
        if let Some(instead) = &self.instead {
            return instead.clone();
        }
        if !is_known {
            return (400, Vec::new(), "{\"error\": \"invalid_grant\"}".into());
        }
        let token =
            format!("access-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &self.given.len().to_be_bytes()));
        self.given.push(token.clone());
        self.good.push(token.clone());
        let mut answer =
            serde_json::json!({"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime});
        if self.rotates {
            self.refresh_token = format!("{REFRESH_TOKEN}-{}", self.given.len());
            answer["refresh_token"] = self.refresh_token.clone().into();
        }
        (200, Vec::new(), answer.to_string())
    }

    fn introspect(&mut self, form: &HashMap<String, String>) -> String {
        let token = form.get("token").cloned().unwrap_or_default();
        let active = self.good.contains(&token);
        self.shown.push(token);
        serde_json::json!({"active": active, "username": USER}).to_string()
    }
}

fn form(text: &str) -> HashMap<String, String> {
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.into(), decoded(value))).collect()
}

fn decoded(value: &str) -> String {
    let mut bytes = value.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(out).unwrap()
}
