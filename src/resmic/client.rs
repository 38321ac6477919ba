//! The HTTP client of Resmic's API. Each request is one GET, and an answer with an undocumented form is an error.
//!
//! The API key and the user id are sent only in header fields of requests. Errors, log lines and `Debug` contain neither of the
//! two.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, header};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use super::answer::{
    AnswerError, ApiResponse, MAX_MESSAGE, SessionId, StatusAnswer, TransactionDetails, parse_details, parse_status,
};
use super::settings::{ResmicSettings, check_url};
use crate::http::{self, Destination, Url};
use crate::model::printable;
use crate::secret::redact;
use crate::telemetry::ResmicRequests;

/// The time limit of one request, from the lookup of the host to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest accepted response body, in bytes.
const LONGEST_ANSWER: usize = 256 * 1024;

/// A user id with fewer bytes is not removed from messages of the server, because a number such as 7 occurs in many messages.
const SHORTEST_USER_ID: usize = 4;

const STATUS_PATH: &str = "/api/v1/makepayment/payment-status";
const DETAILS_PATH: &str = "/api/v1/makepayment/transaction-details";

/// A client of Resmic's API, with the merchant's key.
pub struct ResmicClient {
    destination: Destination,
    url: Url,
    api_key: Credential,
    user_id: Credential,
    timeout: Duration,
    requests: ResmicRequests,
}

/// A secret, and the header value that contains it.
struct Credential {
    secret: SecretString,
    header: HeaderValue,
}

impl Credential {
    fn new(secret: SecretString) -> Result<Self, String> {
        let text = secret.expose_secret();
        let header = Some(text).filter(|t| t.bytes().all(|b| b.is_ascii_graphic())).map(HeaderValue::from_str);
        let Some(Ok(mut header)) = header else {
            return Err("expected printable ASCII characters without spaces".into());
        };
        header.set_sensitive(true);
        Ok(Credential { secret, header })
    }
}

impl fmt::Debug for ResmicClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResmicClient").field("host", &self.url.host).finish_non_exhaustive()
    }
}

/// The error of a request to Resmic's API. The server's messages in these errors are printable, short, and contain no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The server refused the request with HTTP 401 or 403.
    #[error("Resmic refuses the key: {0}; check api_key and user_id of [resmic]")]
    Unauthorized(String),
    /// HTTP 404 with JSON from Resmic. Resmic's published backend also sends 404 when its database fails.
    #[error("Resmic does not find the session: {0}")]
    NotFound(String),
    /// The server answered with HTTP 429: too many requests.
    #[error("Resmic limits the rate of requests: {message}; set a lower rate in [resmic]")]
    RateLimited {
        /// `Retry-After`.
        retry_after: Option<Duration>,
        /// The server's message.
        message: String,
    },
    /// HTTP 5xx.
    #[error("Resmic's API fails: {message}")]
    Server {
        /// `Retry-After`.
        retry_after: Option<Duration>,
        /// The server's message.
        message: String,
    },
    /// There is no connection to the API, no complete answer in time, or an answer that is too long.
    #[error("cannot reach Resmic's API: {0}")]
    Unreachable(String),
    /// The answer is not as documented: a redirect, HTML, another structure, or a `status` that is not the HTTP status.
    #[error("Resmic's API sent a malformed answer: {0}")]
    Malformed(String),
    /// The answer is about another session than the request.
    #[error("Resmic's API answered about session {answered}, not about session {requested}")]
    OtherSession {
        /// The session of the request.
        requested: SessionId,
        /// The session of the answer.
        answered: SessionId,
    },
}

impl ApiError {
    /// Whether the error concerns every session, so that other requests must wait, too.
    #[must_use]
    pub fn concerns_all_sessions(&self) -> bool {
        match self {
            ApiError::Unauthorized(_)
            | ApiError::RateLimited { .. }
            | ApiError::Server { .. }
            | ApiError::Unreachable(_) => true,
            ApiError::NotFound(_) | ApiError::Malformed(_) | ApiError::OtherSession { .. } => false,
        }
    }

    /// Returns the pause that the server demands in `Retry-After`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::RateLimited { retry_after, .. } | ApiError::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether only an operator can solve the problem behind this error.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        matches!(self, ApiError::Unauthorized(_))
    }

    /// Returns the value of the label `outcome` for this error in the metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            ApiError::Unauthorized(_) => "unauthorized",
            ApiError::NotFound(_) => "not-found",
            ApiError::RateLimited { .. } => "rate-limited",
            ApiError::Server { .. } => "server",
            ApiError::Unreachable(_) => "unreachable",
            ApiError::Malformed(_) => "malformed",
            ApiError::OtherSession { .. } => "other-session",
        }
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Malformed(message) => ApiError::Malformed(message),
            AnswerError::OtherSession { requested, answered } => ApiError::OtherSession { requested, answered },
        }
    }
}

/// An HTTP response.
struct HttpAnswer {
    status: StatusCode,
    retry_after: Option<Duration>,
    location: Option<String>,
    body: Bytes,
}

impl ResmicClient {
    /// Creates a client of Resmic's API. `tls` has the system's root certificates, and is required for an https URL.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem. Neither contains a secret.
    pub fn new(
        settings: &ResmicSettings,
        api_key: SecretString,
        user_id: SecretString,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, (String, String)> {
        let url = settings.url.clone();
        check_url(&url).map_err(|message| ("url".to_owned(), message))?;
        if url.tls && tls.is_none() {
            return Err(("url".into(), "https is not possible without root certificates".into()));
        }
        let api_key = Credential::new(api_key).map_err(|message| ("api_key".to_owned(), message))?;
        let user_id = Credential::new(user_id).map_err(|message| ("user_id".to_owned(), message))?;
        // Without TLS, the client connects only to loopback addresses, even if DNS returns other addresses.
        let destination = Destination::Net { url: url.clone(), allow_remote: url.tls, tls: tls.filter(|_| url.tls) };
        let requests = ResmicRequests::default();
        Ok(ResmicClient { destination, url, api_key, user_id, timeout: TIMEOUT, requests })
    }

    /// Changes the time limit of a request, which is ten seconds by default.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes this client count its requests in `requests`, for the metrics.
    #[must_use]
    pub fn counted_in(mut self, requests: &ResmicRequests) -> Self {
        self.requests = requests.clone();
        self
    }

    /// Returns the host of the API's URL, for messages.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.url.host
    }

    /// Asks Resmic's API for the payment status of a session.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn payment_status(&self, session: SessionId) -> Result<StatusAnswer, ApiError> {
        self.ask(STATUS_PATH, session, parse_status).await
    }

    /// Asks Resmic's API for the transaction of a session.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn transaction_details(&self, session: SessionId) -> Result<TransactionDetails, ApiError> {
        self.ask(DETAILS_PATH, session, parse_details).await
    }

    /// Checks that Resmic accepts the API key, with a request about a session that cannot exist.
    ///
    /// # Errors
    /// [`ApiError`]. The answer that this session does not exist counts as a success.
    pub async fn check_key(&self) -> Result<(), ApiError> {
        match self.payment_status(SessionId::NIL).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends one request about a session, parses the answer, and counts the request for the metrics.
    async fn ask<T>(
        &self,
        path: &str,
        session: SessionId,
        parse: impl FnOnce(u16, &[u8], SessionId) -> Result<T, AnswerError>,
    ) -> Result<T, ApiError> {
        let answer = self.get(path, session).await.and_then(|answer| {
            self.without_secrets(accept(&answer).and_then(|http| Ok(parse(http, &answer.body, session)?)))
        });
        self.requests.count(answer.as_ref().map_or_else(|error| error.kind(), |_| "ok"));
        answer
    }

    async fn get(&self, path: &str, session: SessionId) -> Result<HttpAnswer, ApiError> {
        let deadline = Instant::now() + self.timeout;
        let request = self.request(path, session).map_err(|e| ApiError::Unreachable(e.to_string()))?;
        let exchange = async {
            let stream = self.destination.connect(deadline).await?;
            http::exchange(stream, request, receive).await?
        };
        let answer = timeout_at(deadline, exchange).await;
        let answer = answer.map_err(|_| format!("no answer within {}", crate::units::HumanDuration(self.timeout)));
        let unreachable = |message| ApiError::Unreachable(format!("{}: {message}", self.url.host));
        self.without_secrets(answer.and_then(|answer| answer).map_err(unreachable))
    }

    fn request(&self, path: &str, session: SessionId) -> hyper::http::Result<Request<Full<Bytes>>> {
        let prefix = self.url.path.path().trim_end_matches('/');
        Request::builder()
            .uri(format!("{prefix}{path}?session_id={session}"))
            .header(header::HOST, self.url.authority.as_str())
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("resmic-mailhook/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json")
            .header(HeaderName::from_static("x-api-key"), self.api_key.header.clone())
            .header(HeaderName::from_static("x-user-id"), self.user_id.header.clone())
            .body(Full::new(Bytes::new()))
    }

    /// Removes the API key and the user id from an error message, because the server may have quoted the request.
    fn without_secrets<T>(&self, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        let clean = |message: String| {
            let message = redact(message, self.api_key.secret.expose_secret());
            match self.user_id.secret.expose_secret() {
                // A number such as 7 is not a secret, and occurs in many messages.
                short if short.len() < SHORTEST_USER_ID => message,
                user_id => redact(message, user_id),
            }
        };
        answer.map_err(|error| match error {
            ApiError::Unauthorized(message) => ApiError::Unauthorized(clean(message)),
            ApiError::NotFound(message) => ApiError::NotFound(clean(message)),
            ApiError::RateLimited { retry_after, message } => {
                ApiError::RateLimited { retry_after, message: clean(message) }
            }
            ApiError::Server { retry_after, message } => ApiError::Server { retry_after, message: clean(message) },
            ApiError::Unreachable(message) => ApiError::Unreachable(clean(message)),
            ApiError::Malformed(message) => ApiError::Malformed(clean(message)),
            other @ ApiError::OtherSession { .. } => other,
        })
    }
}

async fn receive(response: Response<Incoming>) -> Result<HttpAnswer, String> {
    let status = response.status();
    let retry_after =
        http::header_text(&response, header::RETRY_AFTER).and_then(|value| http::retry_after(&value, Timestamp::now()));
    let location = http::header_text(&response, header::LOCATION);
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|e| format!("{status}: the answer is incomplete or too long: {e}"))?.to_bytes();
    Ok(HttpAnswer { status, retry_after, location, body })
}

/// Returns the HTTP status if it is 200, so that the body may be an answer. Each other status is an error.
fn accept(answer: &HttpAnswer) -> Result<u16, ApiError> {
    let HttpAnswer { status, retry_after, location, body } = answer;
    let envelope = ApiResponse::parse(body).ok();
    let message = match envelope.as_ref().and_then(ApiResponse::message) {
        Some(message) => format!("{status}: {message}"),
        None => status.to_string(),
    };
    Err(match *status {
        StatusCode::OK => return Ok(status.as_u16()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ApiError::Unauthorized(message),
        StatusCode::TOO_MANY_REQUESTS => ApiError::RateLimited { retry_after: *retry_after, message },
        _ if status.is_server_error() => ApiError::Server { retry_after: *retry_after, message },
        // A 404 from a proxy or for a wrong URL is not a statement about the session. So only a 404 with Resmic's JSON counts as
        // `NotFound`.
        StatusCode::NOT_FOUND if envelope.as_ref().is_some_and(ApiResponse::is_failure) => ApiError::NotFound(message),
        _ if status.is_redirection() => {
            let location = printable(location.as_deref().unwrap_or_default(), MAX_MESSAGE);
            ApiError::Malformed(format!("{status}: a redirect to {location:?}, which is not followed"))
        }
        _ => ApiError::Malformed(message),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "rk_live_s3cret";
    const USER: &str = "user-4711";

    fn client(api_key: &str, user_id: &str) -> Result<ResmicClient, (String, String)> {
        let settings = "api_key = { env = \"K\" }\nuser_id = { env = \"U\" }\nurl = \"http://127.0.0.1:1/base/\"";
        let settings: ResmicSettings = toml::from_str(settings).unwrap();
        ResmicClient::new(&settings, api_key.to_owned().into(), user_id.to_owned().into(), None)
    }

    fn session() -> SessionId {
        "591abe63-aa61-411d-a419-0b546729bbd0".parse().unwrap()
    }

    #[test]
    fn request_has_key_and_session() {
        let request = client(KEY, USER).unwrap().request(STATUS_PATH, session()).unwrap();
        let path = "/base/api/v1/makepayment/payment-status?session_id=591abe63-aa61-411d-a419-0b546729bbd0";
        assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("GET", path));
        assert_eq!([&request.headers()["x-api-key"], &request.headers()["x-user-id"]], [KEY, USER]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let client = client(KEY, USER).unwrap();
        let request = client.request(STATUS_PATH, session()).unwrap();
        let shown = format!("{client:?} {request:?}");
        assert!(shown.contains("127.0.0.1") && !shown.contains(KEY) && !shown.contains(USER), "{shown}");
    }

    #[test]
    fn secret_that_breaks_a_header_is_refused() {
        for bad in ["two\r\nlines", "sp ace", "é"] {
            let (key, message) = client(bad, USER).unwrap_err();
            assert!(key == "api_key" && !message.contains(bad), "{message}");
            assert_eq!(client(KEY, bad).unwrap_err().0, "user_id");
        }
    }

    #[test]
    fn https_needs_roots() {
        let settings: ResmicSettings = toml::from_str("api_key = { env = \"K\" }\nuser_id = { env = \"U\" }").unwrap();
        let client_without_tls = ResmicClient::new(&settings, "k".to_owned().into(), "u".to_owned().into(), None);
        assert_eq!(client_without_tls.unwrap_err().0, "url");
    }
}
