//! Parses the response bodies of Resmic's API. A body with an undocumented form is an error.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::model::printable;

/// The longest accepted text of a field, in bytes. The longest real text is a Solana signature of 88 characters.
const LONGEST_TEXT: usize = 200;
/// The most characters of a message of Resmic's server that an error keeps.
pub(super) const MAX_MESSAGE: usize = 200;

/// The id of a payment session at Resmic. The id is a UUID, so its text is safe in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// The nil UUID. No session has this id.
    pub const NIL: SessionId = SessionId(Uuid::nil());
}

impl FromStr for SessionId {
    type Err = String;

    /// Parses a UUID with hyphens, in upper or lower case. Other forms of a UUID are refused.
    fn from_str(text: &str) -> Result<Self, String> {
        let id = Some(text).filter(|t| t.len() == 36).and_then(|t| Uuid::try_parse(t).ok());
        id.map(SessionId).ok_or_else(|| {
            let example = "591abe63-aa61-411d-a419-0b546729bbd0";
            format!("{:?} is no session id; expected a UUID such as {example}", printable(text, 60))
        })
    }
}

impl fmt::Display for SessionId {
    /// Writes the UUID with hyphens, in lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The value of `payment_status` in Resmic's answer about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentStatus {
    /// `Completed`: the session is paid.
    Completed,
    /// `Failed`: the session will not be paid.
    Failed,
    /// `initiated`: the session is not paid yet. An expired session keeps this status.
    Initiated,
    /// Any other word, with unprintable characters replaced. The case matters: `completed` is not `Completed`.
    Other(String),
}

impl PaymentStatus {
    fn parse(word: &str) -> Self {
        match word {
            "Completed" => PaymentStatus::Completed,
            "Failed" => PaymentStatus::Failed,
            "initiated" => PaymentStatus::Initiated,
            other => PaymentStatus::Other(printable(other, 60)),
        }
    }
}

impl fmt::Display for PaymentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PaymentStatus::Completed => "Completed",
            PaymentStatus::Failed => "Failed",
            PaymentStatus::Initiated => "initiated",
            PaymentStatus::Other(word) => word,
        })
    }
}

impl<'de> Deserialize<'de> for PaymentStatus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|word| PaymentStatus::parse(&word))
    }
}

/// The answer of `payment-status`. An optional field is `None` if it is absent, `null` or an empty text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatusAnswer {
    /// The id of the session. The parser has checked that the request was about the same session.
    pub session_id: SessionId,
    /// The payment status of the session.
    pub payment_status: PaymentStatus,
    /// The amount of the session in US dollars: plain decimal digits, as Resmic sent them. Resmic does not document whether a
    /// coupon reduces this amount.
    #[serde(default, deserialize_with = "amount")]
    pub amount: Option<String>,
    /// When the session was created at Resmic.
    #[serde(default, rename = "created_at_utc", deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
    /// When Resmic changed the status of the session.
    #[serde(default, deserialize_with = "moment")]
    pub updated_at: Option<Timestamp>,
    /// The address of a wallet. Resmic's documentation and source code disagree about the owner of this wallet, so no decision
    /// may depend on the address.
    #[serde(default, deserialize_with = "optional_text")]
    pub wallet_address: Option<String>,
    /// Whether the payer used a coupon.
    #[serde(default)]
    pub is_coupon_applied: Option<bool>,
}

/// The answer of `transaction-details`. An optional field is `None` if it is absent, `null` or an empty text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TransactionDetails {
    /// The id of the session. The parser has checked that the request was about the same session.
    pub session_id: SessionId,
    /// The hash of the payment's transaction, as Resmic sent it.
    #[serde(default, deserialize_with = "optional_text")]
    pub transaction_hash: Option<String>,
    /// The name of the payment's chain, as Resmic sent it.
    #[serde(default, deserialize_with = "optional_text")]
    pub blockchain: Option<String>,
    /// The name of the paid token, as Resmic sent it.
    #[serde(default, deserialize_with = "optional_text")]
    pub token: Option<String>,
    /// The address of the payer's wallet, as Resmic sent it.
    #[serde(default, deserialize_with = "optional_text")]
    pub from_wallet_address: Option<String>,
    /// The amount of the payment in US dollars: plain decimal digits, as Resmic sent them.
    #[serde(default, deserialize_with = "amount")]
    pub amount: Option<String>,
}

/// Why the body of a response is not a usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// The body is not JSON, has another structure or a wrong type, reports no success, or its `status` is not the HTTP status.
    #[error("{0}")]
    Malformed(String),
    /// The answer is about another session than the request.
    #[error("the answer is about session {answered}, and the request was about session {requested}")]
    OtherSession {
        /// The session of the request.
        requested: SessionId,
        /// The session of the answer.
        answered: SessionId,
    },
}

/// The JSON object in the body of every answer. The answer itself is in `data`. Unknown keys are ignored.
#[derive(Deserialize)]
pub(super) struct ApiResponse<'a> {
    status: u16,
    success: bool,
    #[serde(default)]
    message: serde_json::Value,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

impl<'a> ApiResponse<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, AnswerError> {
        serde_json::from_slice(body).map_err(|e| {
            let problem = if looks_like_html(body) { "it is an HTML page".to_owned() } else { json_message(&e) };
            AnswerError::Malformed(format!("the answer is no envelope: {problem}"))
        })
    }

    /// Whether the body reports a failure with a `status` from 400 to 499. In a failure, the number in `status` often differs
    /// from the HTTP status, so the two numbers are not compared.
    pub(super) fn is_failure(&self) -> bool {
        !self.success && (400..500).contains(&self.status)
    }

    /// Returns the text of the key `message`, with unprintable characters replaced. `None`: the text is missing or empty.
    pub(super) fn message(&self) -> Option<String> {
        self.message.as_str().map(|text| printable(text.trim(), MAX_MESSAGE)).filter(|text| !text.is_empty())
    }
}

fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// Returns the message of an error of serde_json, with unprintable characters replaced, because the message may quote a value
/// from the server.
fn json_message(error: &serde_json::Error) -> String {
    printable(&error.to_string(), MAX_MESSAGE)
}

/// Parses the answer of `payment-status` to a request about the session `requested`.
pub(super) fn parse_status(http: u16, body: &[u8], requested: SessionId) -> Result<StatusAnswer, AnswerError> {
    let answer: StatusAnswer = parse_data(http, body)?;
    same_session(requested, answer.session_id)?;
    Ok(answer)
}

/// Parses the answer of `transaction-details` to a request about the session `requested`.
pub(super) fn parse_details(http: u16, body: &[u8], requested: SessionId) -> Result<TransactionDetails, AnswerError> {
    let details: TransactionDetails = parse_data(http, body)?;
    same_session(requested, details.session_id)?;
    Ok(details)
}

fn parse_data<'a, T: Deserialize<'a>>(http: u16, body: &'a [u8]) -> Result<T, AnswerError> {
    let envelope = ApiResponse::parse(body)?;
    if !envelope.success {
        let message = envelope.message().unwrap_or_default();
        return Err(AnswerError::Malformed(format!("HTTP {http} with success false: {message:?}")));
    }
    if envelope.status != http {
        let message = format!("HTTP {http} with status {} in the envelope", envelope.status);
        return Err(AnswerError::Malformed(message));
    }
    let data = envelope.data.ok_or_else(|| AnswerError::Malformed("the envelope has no data".into()))?;
    serde_json::from_str(data.get()).map_err(|e| AnswerError::Malformed(format!("data: {}", json_message(&e))))
}

fn same_session(requested: SessionId, answered: SessionId) -> Result<(), AnswerError> {
    if requested == answered { Ok(()) } else { Err(AnswerError::OtherSession { requested, answered }) }
}

/// Parses a text that may become a value of an event. An empty text becomes `None`. A text with more than `LONGEST_TEXT` bytes,
/// with unprintable characters or with spaces at its ends is an error.
fn optional_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?.filter(|text| !text.is_empty());
    match &text {
        Some(t) if t.len() > LONGEST_TEXT => Err(de::Error::custom("a text is too long")),
        Some(t) if printable(t, LONGEST_TEXT) != *t || t.trim() != t => {
            Err(de::Error::custom("a text has characters that are not printable, or spaces at its ends"))
        }
        _ => Ok(text),
    }
}

/// Parses an ISO 8601 time, which must have an offset from UTC.
fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let moment = optional_text(from)?
        .map(|text| text.parse().map_err(|_| de::Error::custom("expected an ISO 8601 time in UTC")));
    moment.transpose()
}

/// Parses an amount in plain decimal digits, as PostgreSQL prints a DECIMAL. Zero is refused, because a payment is never zero.
fn amount<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let amount = optional_text(from)?;
    match &amount {
        Some(digits) if !is_amount(digits) => Err(de::Error::custom("amount: expected plain decimal digits")),
        _ => Ok(amount),
    }
}

fn is_amount(text: &str) -> bool {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    text.len() <= 40
        && is_digits(whole)
        && fraction.is_none_or(is_digits)
        && (whole == "0" || !whole.starts_with('0'))
        && text.bytes().any(|b| (b'1'..=b'9').contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";

    fn session() -> SessionId {
        SESSION.parse().unwrap()
    }

    fn enveloped(data: &str) -> String {
        format!("{{\"status\":200,\"success\":true,\"message\":\"Session reterived\",\"data\":{data}}}")
    }

    fn status(data: &str) -> Result<StatusAnswer, AnswerError> {
        parse_status(200, enveloped(data).as_bytes(), session())
    }

    #[test]
    fn documented_status_is_parsed_exactly() {
        let answer = status(&format!(
            "{{\"session_id\":\"{SESSION}\",\"created_at_utc\":\"2025-03-05T03:30:00.123Z\",\
             \"updated_at\":\"2025-03-05T03:36:59.999Z\",\"amount\":\"20.50\",\"payment_status\":\"Completed\",\
             \"wallet_address\":\"0x056397760b973BfB921Bc10Be9DA5034B1e921d7\",\"is_coupon_applied\":false,\
             \"something_new\":[1,{{}}]}}"
        ));
        let answer = answer.unwrap();
        assert_eq!((answer.payment_status, answer.amount.as_deref()), (PaymentStatus::Completed, Some("20.50")));
        assert_eq!(answer.updated_at, Some("2025-03-05T03:36:59.999Z".parse().unwrap()));
        assert_eq!(answer.is_coupon_applied, Some(false));
    }

    #[test]
    fn case_of_payment_status_matters() {
        let word = |word: &str| {
            status(&format!("{{\"session_id\":\"{SESSION}\",\"payment_status\":\"{word}\"}}")).unwrap().payment_status
        };
        assert_eq!(word("Failed"), PaymentStatus::Failed);
        assert_eq!(word("initiated"), PaymentStatus::Initiated);
        for other in ["completed", "FAILED", "Initiated", "", "paid\\u001b[31m"] {
            assert!(matches!(word(other), PaymentStatus::Other(_)), "{other}");
        }
    }

    #[test]
    fn missing_details_are_absent_and_wrong_types_malformed() {
        let details = |data: &str| parse_details(200, enveloped(data).as_bytes(), session());
        let bare = details(&format!("{{\"session_id\":\"{SESSION}\",\"transaction_hash\":null,\"token\":\"\"}}"));
        let bare = bare.unwrap();
        assert_eq!((bare.transaction_hash, bare.token, bare.blockchain), (None, None, None));
        for bad in [
            "\"transaction_hash\":7".to_owned(),
            "\"token\":[\"DAI\"]".into(),
            "\"blockchain\":\"a\\u0000b\"".into(),
            "\"token\":\" DAI\"".into(),
            "\"amount\":20".into(),
            "\"amount\":\"2e1\"".into(),
            "\"amount\":\"-20\"".into(),
            "\"amount\":\"0.00\"".into(),
            "\"amount\":\"020\"".into(),
            "\"token\":\"DAI\",\"token\":\"USDC\"".into(),
            format!("\"token\":\"{}\"", "x".repeat(LONGEST_TEXT + 1)),
        ] {
            let answer = details(&format!("{{\"session_id\":\"{SESSION}\",{bad}}}"));
            assert!(matches!(answer, Err(AnswerError::Malformed(_))), "{bad}: {answer:?}");
        }
    }

    #[test]
    fn other_shapes_are_malformed() {
        let good = format!("{{\"session_id\":\"{SESSION}\",\"payment_status\":\"Completed\"}}");
        let envelope = enveloped(&good);
        assert!(parse_status(200, envelope.as_bytes(), session()).is_ok());
        for (body, expected) in [
            ("<!doctype html><p>502".to_owned(), "HTML"),
            (String::new(), "EOF"),
            ("[]".into(), "no envelope"),
            (good, "missing field"),
            (envelope.replace("true", "false"), "success false"),
            (envelope.replace("true", "\"true\""), "no envelope"),
            (envelope.replace("200", "404"), "status 404"),
            (envelope.replace("200", "\"200\""), "no envelope"),
            (enveloped("null"), "no data"),
            (enveloped("[]"), "data: "),
            (envelope.replace(SESSION, "591abe63"), "no session id"),
            (envelope.replace("\"Completed\"", "1"), "data: "),
            (envelope.replace("Completed\"", "Completed\",\"updated_at\":\"yesterday\""), "data: "),
            (envelope.replace("Completed\"", "Completed\",\"updated_at\":\"2025-03-05T03:36:00\""), "data: "),
            (envelope.replace("Completed\"", "Completed\",\"payment_status\":\"Failed\""), "duplicate"),
            (envelope.replace("\"success\"", "\"success\":false,\"success\""), "duplicate"),
        ] {
            let error = parse_status(200, body.as_bytes(), session()).unwrap_err();
            assert!(matches!(&error, AnswerError::Malformed(w) if w.contains(expected)), "{body}: {error}");
        }
    }

    #[test]
    fn answer_about_another_session_is_refused() {
        let other = SESSION.replace('5', "6");
        let body = enveloped(&format!("{{\"session_id\":\"{other}\",\"payment_status\":\"Completed\"}}"));
        let error = parse_status(200, body.as_bytes(), session()).unwrap_err();
        assert_eq!(error, AnswerError::OtherSession { requested: session(), answered: other.parse().unwrap() });
        let same = body.replace(&other, &SESSION.to_uppercase());
        assert!(parse_status(200, same.as_bytes(), session()).is_ok());
    }

    #[test]
    fn session_id_is_a_hyphenated_uuid() {
        for bad in ["", "591abe63aa61411da4190b546729bbd0", "../x", "591abe63-aa61-411d-a419-0b546729bbd0&x=1"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
        assert_eq!(SESSION.to_uppercase().parse::<SessionId>().unwrap().to_string(), SESSION);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), http in any::<u16>()) {
            let _ = parse_status(http, &body, session());
            let _ = parse_details(http, &body, session());
        }
    }
}
