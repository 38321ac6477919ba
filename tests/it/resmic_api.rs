//! The client of Resmic's API, with a fake API that can fail in several ways.

use std::time::{Duration, Instant};

use resmic_mailhook::model::{PaymentDetails, RegisteredSession, Status};
use resmic_mailhook::resmic::{
    ApiError, AskedSession, Clearance, Finding, PaymentStatus, PaymentsOfSession, PreviousInquiries, ResmicClient,
    ResmicSettings, SessionChoice, SessionId, StatusAnswer, TransactionDetails, choose_session, clear_delivery,
    reconcile,
};
use serde_json::json;
use testkit::resmic_api::{API_KEY, ApiRequest, Mood, ResmicApi, Session, USER_ID};

const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
const TX: &str = "0xa43df332c8d376fc14ffc992c4b87e04a5707a3bc7a92ec4eef7b90c66388db2";

/// A fake API with one completed session.
fn api() -> ResmicApi {
    let api = ResmicApi::start();
    api.set_session(SESSION, Session::completed("20", TX));
    api
}

fn client(api: &ResmicApi, key: &str) -> ResmicClient {
    let settings: toml::Table = api.table("").parse().unwrap();
    let settings: ResmicSettings = settings["resmic"].clone().try_into().unwrap();
    ResmicClient::new(&settings, key.to_owned().into(), USER_ID.to_owned().into(), None).unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn session() -> SessionId {
    SESSION.parse().unwrap()
}

fn status(api: &ResmicApi) -> Result<StatusAnswer, ApiError> {
    wait(client(api, API_KEY).payment_status(session()))
}

fn details(api: &ResmicApi) -> Result<TransactionDetails, ApiError> {
    wait(client(api, API_KEY).transaction_details(session()))
}

/// Sets the behaviour of the fake API, and returns the error. Both kinds of request must return the same error.
fn error_of(api: &ResmicApi, mood: Mood) -> ApiError {
    api.set_mood(mood);
    let error = status(api).unwrap_err();
    assert_eq!(details(api).unwrap_err(), error);
    error
}

#[test]
fn documented_answers_are_parsed() {
    let api = api();
    let status = status(&api).unwrap();
    assert_eq!((status.payment_status, status.amount.as_deref()), (PaymentStatus::Completed, Some("20")));
    let details = details(&api).unwrap();
    assert_eq!((details.transaction_hash.as_deref(), details.blockchain.as_deref()), (Some(TX), Some("Sepolia")));
    let path = |name: &str| ApiRequest { path: format!("/api/v1/makepayment/{name}"), session: SESSION.into() };
    assert_eq!(api.requests(), [path("payment-status"), path("transaction-details")]);
}

#[test]
fn unknown_keys_are_ignored() {
    let api = api();
    let plain = (status(&api).unwrap(), details(&api).unwrap());
    api.set_mood(Mood::UnknownKeys);
    assert_eq!((status(&api).unwrap(), details(&api).unwrap()), plain);
}

#[test]
fn credentials_are_checked_without_a_session() {
    let api = ResmicApi::start();
    assert_eq!(wait(client(&api, API_KEY).check_key()), Ok(()));
    let error = wait(client(&api, "rk_of_somebody_else").check_key()).unwrap_err();
    assert!(matches!(&error, ApiError::Unauthorized(message) if message.contains("Invalid API key")), "{error}");
    assert!(error.needs_person() && error.to_string().contains("check api_key and user_id of [resmic]"), "{error}");
}

#[test]
fn http_errors_have_their_kinds() {
    let api = api();
    for (mood, kind) in [
        (Mood::Refuses(401, 401), "unauthorized"),
        (Mood::Refuses(403, 400), "unauthorized"),
        (Mood::Refuses(404, 404), "not-found"),
        (Mood::Refuses(404, 400), "not-found"),
        (Mood::Refuses(404, 200), "malformed"),
        (Mood::Refuses(400, 400), "malformed"),
        (Mood::Refuses(500, 500), "server"),
        (Mood::Html(200), "malformed"),
        (Mood::Html(404), "malformed"),
        (Mood::Html(503), "server"),
        (Mood::EnvelopeStatus(404), "malformed"),
        (Mood::EnvelopeStatus(201), "malformed"),
        (Mood::NotSuccess, "malformed"),
        (Mood::OtherSession, "other-session"),
        (Mood::HangsUp, "unreachable"),
        (Mood::Endless, "unreachable"),
    ] {
        let error = error_of(&api, mood.clone());
        assert_eq!(error.kind(), kind, "{mood:?}: {error}");
    }
}

#[test]
fn rate_limit_reports_retry_after() {
    let api = api();
    assert_eq!(error_of(&api, Mood::Limits(Some("37"))).retry_after(), Some(Duration::from_secs(37)));
    for nothing in [None, Some("soon")] {
        let error = error_of(&api, Mood::Limits(nothing));
        assert!(matches!(error, ApiError::RateLimited { retry_after: None, .. }), "{error}");
    }
}

#[test]
fn redirect_is_not_followed() {
    let (api, other) = (api(), ResmicApi::start());
    let error = error_of(&api, Mood::Redirects(other.url()));
    assert!(matches!(&error, ApiError::Malformed(message) if message.contains("not followed")), "{error}");
    assert!(other.requests().is_empty());
}

#[test]
fn long_answers_are_not_read() {
    let api = api();
    let error = error_of(&api, Mood::Long(300 * 1024)).to_string();
    assert!(error.contains("incomplete or too long"), "{error}");
    assert_eq!(error_of(&api, Mood::Long(200 * 1024)).kind(), "malformed");
}

#[test]
fn silence_ends_with_the_timeout() {
    let api = api();
    api.set_mood(Mood::Silent);
    let (client, began) = (client(&api, API_KEY).with_timeout(Duration::from_millis(300)), Instant::now());
    let error = wait(client.payment_status(session())).unwrap_err();
    assert_eq!(error.to_string(), "cannot reach Resmic's API: 127.0.0.1: no answer within 300ms");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn quoted_secrets_are_removed() {
    let api = api();
    for http in [400, 401, 404, 429, 500] {
        let error = error_of(&api, Mood::Quotes(http));
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("(secret)") && !shown.contains(API_KEY) && !shown.contains(USER_ID), "{shown}");
    }
    api.set_mood(Mood::Value("payment_status", json!({ API_KEY: USER_ID })));
    api.set_session(SESSION, Session::failed("20"));
    let error = status(&api).unwrap_err().to_string();
    assert!(!error.contains(API_KEY) && !error.contains(USER_ID), "{error}");
    api.set_mood(Mood::Value("updated_at", json!(API_KEY)));
    let error = status(&api).unwrap_err().to_string();
    assert!(error.contains("malformed") && !error.contains(API_KEY), "{error}");
}

#[test]
fn wrong_types_are_malformed() {
    let api = api();
    for (key, value) in [
        ("payment_status", json!(true)),
        ("payment_status", json!(null)),
        ("amount", json!(20)),
        ("amount", json!("20 USD")),
        ("updated_at", json!("Mar 5, 2025, 03:36")),
        ("session_id", json!("591abe63")),
    ] {
        api.set_mood(Mood::Value(key, value.clone()));
        let error = status(&api).unwrap_err();
        assert_eq!(error.kind(), "malformed", "{key} {value}: {error}");
    }
    api.set_mood(Mood::Value("transaction_hash", json!(["0xab"])));
    assert_eq!(details(&api).unwrap_err().kind(), "malformed");
}

#[test]
fn unknown_statuses_do_not_complete_a_payment() {
    let api = api();
    let event = PaymentDetails {
        session_id: Some(SESSION.into()),
        transaction_hash: Some(TX.into()),
        ..PaymentDetails::new(Status::Completed)
    };
    let clear = |api: &ResmicApi| {
        let (status, details) = (status(api), details(api));
        clear_delivery(&event, status.as_ref(), details.as_ref())
    };
    assert_eq!(clear(&api), Clearance::Clear);
    for word in ["completed", "COMPLETED", "Complete", "Completed ", "paid"] {
        api.set_mood(Mood::Value("payment_status", json!(word)));
        assert!(matches!(clear(&api), Clearance::Wait(_)), "{word}");
    }
    for mood in [Mood::OtherSession, Mood::NotSuccess, Mood::EnvelopeStatus(404), Mood::Html(200), Mood::HangsUp] {
        api.set_mood(mood.clone());
        assert!(matches!(clear(&api), Clearance::Wait(_)), "{mood:?}");
    }
    api.set_mood(Mood::Value("transaction_hash", json!("0xab")));
    assert!(matches!(clear(&api), Clearance::Contradicts(_)));
}

#[test]
fn session_is_found_by_its_transaction() {
    let api = api();
    let other = "6a1abe63-aa61-411d-a419-0b546729bbd0";
    api.set_session(other, Session::completed("20", &TX.replace('a', "b")));
    let client = client(&api, API_KEY);
    let answers: Vec<_> =
        [other, SESSION].map(|id| wait(client.transaction_details(id.parse().unwrap())).unwrap()).into();
    let event = PaymentDetails { transaction_hash: Some(TX.into()), ..PaymentDetails::new(Status::Completed) };
    assert_eq!(choose_session(&event, &answers), SessionChoice::Exact(session()));
}

#[test]
fn no_error_is_a_payment() {
    let api = api();
    let registered = RegisteredSession {
        session_id: SESSION.into(),
        order_ref: None,
        amount: None,
        blockchain: None,
        token: None,
        created_at: "2025-03-05T03:30:00Z".parse().unwrap(),
        expires_at: None,
    };
    let long_ago = Some(registered.created_at);
    let asked = AskedSession { id: session(), registered };
    let inquiries = PreviousInquiries { first_after_expiry: long_ago, completed_since: long_ago };
    let judge = |api: &ResmicApi| {
        let (status, details) = (status(api), details(api));
        let (now, known) = ("2025-03-06T00:00:00Z".parse().unwrap(), PaymentsOfSession::default());
        reconcile(&asked, &known, inquiries, status.as_ref(), Some(details.as_ref()), now)
    };
    assert!(matches!(judge(&api), Finding::CompletedEvent(_)));
    for mood in [
        Mood::Refuses(401, 401),
        Mood::Refuses(404, 400),
        Mood::Limits(Some("10")),
        Mood::Html(200),
        Mood::Html(502),
        Mood::EnvelopeStatus(500),
        Mood::NotSuccess,
        Mood::OtherSession,
        Mood::Value("payment_status", json!("failed")),
        Mood::Value("transaction_hash", json!("")),
        Mood::Value("amount", json!("1e3")),
        Mood::HangsUp,
    ] {
        api.set_mood(mood.clone());
        let finding = judge(&api);
        let is_undecided = matches!(finding, Finding::Wait { .. } | Finding::NeedsReview { .. });
        assert!(is_undecided, "{mood:?}: {finding:?}");
    }
}
