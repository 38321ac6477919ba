//! A fake of Resmic's API. Its [`Mood`] decides the answers, and it records each request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::receiver::{Receiver, ReceiverAnswer, Request};

/// The credentials that the API accepts.
pub const API_KEY: &str = "rk_live_7d3cf0a1e5b94c62";
pub const USER_ID: &str = "9c0f3f0e-merchant-4711";

/// The id of the first session that the API creates.
pub const CREATED: &str = "7b0c1de2-52f4-4c1a-9d0a-000000000001";

/// How the API answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Mood {
    /// As documented.
    Documented,
    /// An error envelope: the HTTP status, and the number in `status`.
    Refuses(u16, u16),
    /// 429, with this `Retry-After`.
    Limits(Option<&'static str>),
    /// An HTML page with this HTTP status.
    Html(u16),
    /// The right answer with this number in `status`.
    EnvelopeStatus(u16),
    /// The right answer with `success: false`.
    NotSuccess,
    /// The right answer, with another session's id.
    OtherSession,
    /// The right answer with more keys in it.
    UnknownKeys,
    /// The right answer, with another value for this key of `data`.
    Value(&'static str, Value),
    /// A redirect to this URL.
    Redirects(String),
    /// An error that quotes all header fields of the request.
    Quotes(u16),
    /// No answer, on an open connection.
    Silent,
    /// A closed connection.
    HangsUp,
    /// An answer of this many bytes.
    Long(usize),
    /// An answer without an end.
    Endless,
}

/// A session at Resmic: the `data` of the answers about its status and about its transaction, without the `session_id`.
#[derive(Debug, Clone)]
pub struct Session {
    pub status: Value,
    /// `None`: there is no transaction.
    pub details: Option<Value>,
}

impl Session {
    pub fn initiated(amount: &str) -> Session {
        let status = json!({
            "created_at_utc": "2025-03-05T03:30:00.000Z", "updated_at": "2025-03-05T03:30:00.000Z", "amount": amount,
            "payment_status": "initiated", "wallet_address": null, "is_coupon_applied": false,
        });
        Session { status, details: None }
    }

    pub fn failed(amount: &str) -> Session {
        let mut session = Session::initiated(amount);
        session.status["payment_status"] = "Failed".into();
        session.status["updated_at"] = "2025-03-05T03:36:41.250Z".into();
        session
    }

    pub fn completed(amount: &str, hash: &str) -> Session {
        let mut session = Session::failed(amount);
        session.status["payment_status"] = "Completed".into();
        session.details = Some(json!({
            "transaction_hash": hash, "blockchain": "Sepolia", "token": "DAI",
            "from_wallet_address": "0x056397760b973BfB921Bc10Be9DA5034B1e921d7",
        }));
        session
    }
}

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    pub path: String,
    pub session: String,
}

struct ApiState {
    mood: Mood,
    sessions: HashMap<String, Session>,
}

/// A running API; dropping it closes the port.
pub struct ResmicApi {
    address: SocketAddr,
    state: Arc<Mutex<ApiState>>,
    receiver: Receiver,
    runtime: Option<Runtime>,
}

impl ResmicApi {
    pub fn start() -> ResmicApi {
        let state = Arc::new(Mutex::new(ApiState { mood: Mood::Documented, sessions: HashMap::new() }));
        let answers = state.clone();
        let receiver = Receiver::new(move |_, request| answers.lock().unwrap().answer(request));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = runtime.block_on(receiver.listen());
        ResmicApi { address, state, receiver, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The table `[resmic]` for this API. The credentials are in the files `api-key` and `user-id`.
    pub fn table(&self, keys: &str) -> String {
        format!(
            "[resmic]\nurl = \"{}\"\napi_key = {{ file = \"api-key\" }}\nuser_id = {{ file = \"user-id\" }}\n{keys}\n",
            self.url()
        )
    }

    pub fn set_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    pub fn set_session(&self, id: &str, session: Session) {
        self.state.lock().unwrap().sessions.insert(id.to_owned(), session);
    }

    /// The bodies of the requests that created a session, oldest first.
    pub fn created(&self) -> Vec<Value> {
        let requests = self.receiver.requests();
        requests
            .iter()
            .filter(|r| r.line.starts_with("POST "))
            .map(|r| serde_json::from_slice(&r.body).unwrap())
            .collect()
    }

    /// The requests, oldest first.
    pub fn requests(&self) -> Vec<ApiRequest> {
        self.receiver.requests().iter().map(api_request).collect()
    }

    /// Waits until this many requests have come.
    pub fn wait_for(&self, count: usize) -> Vec<ApiRequest> {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(self.receiver.wait_for(count)).iter().map(api_request).collect()
    }
}

impl Drop for ResmicApi {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn api_request(request: &Request) -> ApiRequest {
    let path_and_query = request.line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let session = query.strip_prefix("session_id=").unwrap_or_default();
    ApiRequest { path: path.to_owned(), session: session.to_owned() }
}

impl ApiState {
    fn answer(&mut self, request: &Request) -> ReceiverAnswer {
        let ApiRequest { path, session } = api_request(request);
        if request.header("x-api-key") != Some(API_KEY) || request.header("x-user-id") != Some(USER_ID) {
            return failure(401, 401, "Invalid API key");
        }
        if request.line.starts_with("POST /api/v1/makepayment ") && self.mood == Mood::Documented {
            return self.create(request);
        }
        let data = self.find_data(&path, &session);
        match (&self.mood, data) {
            (Mood::Refuses(http, status), _) => failure(*http, *status, "refused"),
            (Mood::Limits(after), _) => {
                let field = after.map_or_else(String::new, |after| format!("Retry-After: {after}\r\n"));
                respond(429, &field, "Too many requests, please try again later.")
            }
            (Mood::Html(http), _) => respond(*http, "Content-Type: text/html\r\n", "<!doctype html><h1>A page</h1>"),
            (Mood::Redirects(to), _) => respond(302, &format!("Location: {to}\r\n"), ""),
            (Mood::Quotes(http), _) => failure(*http, *http, &format!("{:?}", request.headers)),
            (Mood::Silent, _) => ReceiverAnswer::Hang,
            (Mood::HangsUp, _) => ReceiverAnswer::Close,
            (Mood::Long(bytes), _) => respond(200, "", &" ".repeat(*bytes)),
            (Mood::Endless, _) => ReceiverAnswer::Endless,
            (_, None) => failure(404, 400, "Session not found"),
            (mood, Some(data)) => self.success(mood, data),
        }
    }

    /// Creates a session. The first one is CREATED, and each later one has the next number.
    fn create(&mut self, request: &Request) -> ReceiverAnswer {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let id = format!("{}{:012}", &CREATED[..24], self.sessions.len() + 1);
        self.sessions.insert(id.clone(), Session::initiated(&body["amount"].to_string()));
        let data = json!({"session_id": id, "payment_url": format!("https://pay.resmic.com/{id}")});
        let envelope =
            json!({"status": 200, "success": true, "message": "Sessions created successfully", "data": data});
        respond(200, "Content-Type: application/json\r\n", &envelope.to_string())
    }

    fn find_data(&self, path: &str, session: &str) -> Option<Value> {
        let known = self.sessions.get(session)?;
        let mut data = match path {
            "/api/v1/makepayment/payment-status" => known.status.clone(),
            "/api/v1/makepayment/transaction-details" => known.details.clone()?,
            _ => return None,
        };
        data["session_id"] = session.into();
        Some(data)
    }

    fn success(&self, mood: &Mood, mut data: Value) -> ReceiverAnswer {
        match mood {
            Mood::OtherSession => data["session_id"] = "00000000-0000-4000-8000-000000000000".into(),
            Mood::UnknownKeys => data["network_fee"] = json!({"amount": 1.5e-3, "unit": ["gwei"]}),
            Mood::Value(key, value) => data[*key] = value.clone(),
            _ => {}
        }
        let mut envelope = json!({"status": 200, "success": true, "message": "Session reterived", "data": data});
        match mood {
            Mood::EnvelopeStatus(status) => envelope["status"] = (*status).into(),
            Mood::NotSuccess => envelope["success"] = false.into(),
            Mood::UnknownKeys => envelope["version"] = 2.into(),
            _ => {}
        }
        respond(200, "Content-Type: application/json\r\n", &envelope.to_string())
    }
}

fn failure(http: u16, status: u16, message: &str) -> ReceiverAnswer {
    let envelope = json!({"status": status, "success": false, "message": message});
    respond(http, "Content-Type: application/json\r\n", &envelope.to_string())
}

fn respond(http: u16, fields: &str, body: &str) -> ReceiverAnswer {
    ReceiverAnswer::Bytes(
        format!("HTTP/1.1 {http} Said\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
            .into_bytes(),
    )
}
