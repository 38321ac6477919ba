//! Parses JetStream's answer to a publish. Pure.
//!
//! Any program that subscribes to the subject can answer first, and servers sometimes acknowledge a message that they have not
//! stored. So an answer proves that the message is stored only if it names a sequence number and the expected stream.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::model::printable;

/// The error code of a publish to a subject that has a message already (nats-server, `JSStreamWrongLastSequenceErrF`).
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// The error code of a stream that is full, or whose files cannot be written (`JSStreamStoreFailedF`). The answer also has the
/// code [`UNAVAILABLE`], although this error does not pass by itself.
const STORE_FAILED: u64 = 10077;
/// The code of errors that pass by themselves: no leader, no quorum, no resources.
const UNAVAILABLE: u64 = 503;
/// The number of characters after which an error message of a server is cut off.
const MAX_MESSAGE: usize = 200;
/// The longest answer that is parsed, in bytes. An event and the configuration of a stream are far shorter.
const MAX_ANSWER: usize = 1 << 20;

/// JetStream's answer to a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishAnswer {
    /// The expected stream has stored the message under this sequence number.
    Stored(u64),
    /// The subject has a message already, so this one was not stored.
    SubjectTaken,
    /// The stream has not stored the message, and gives the reason. `passes`: a later attempt may succeed without a change.
    Refused {
        /// The reason.
        reason: String,
        /// Whether the NATS server is only temporarily unavailable.
        passes: bool,
    },
    /// The answer does not prove that the expected stream has stored the message. The message may be stored.
    Unproven(String),
    /// There was no answer. The message may be stored.
    NoAnswer(String),
    /// The message was not sent, for this reason.
    NotSent(String),
}

impl PublishAnswer {
    /// Parses the body of an answer to a message for `stream`.
    #[must_use]
    pub fn parse(body: &[u8], stream: &str) -> Self {
        let answer: Acknowledgement = match parse_object(body) {
            Ok(answer) => answer,
            Err(reason) => {
                let begin = body.get(..MAX_MESSAGE * 4).unwrap_or(body);
                let text = printable(&String::from_utf8_lossy(begin), MAX_MESSAGE);
                return PublishAnswer::Unproven(format!(
                    "{text:?} is no acknowledgement: {reason}; another program may answer on the subject"
                ));
            }
        };
        if let Some(error) = answer.error {
            return error.refusal();
        }
        let found = answer.stream.unwrap_or_default();
        match answer.seq {
            Some(sequence) if sequence > 0 && found == stream => PublishAnswer::Stored(sequence),
            _ if found == stream => {
                PublishAnswer::Unproven("the acknowledgement has no sequence number, so nothing is stored".into())
            }
            _ => PublishAnswer::Unproven(format!(
                "the acknowledgement is of stream {:?}, not of {stream:?}",
                printable(&found, MAX_MESSAGE)
            )),
        }
    }
}
#[derive(Deserialize)]
struct Acknowledgement {
    error: Option<ApiError>,
    stream: Option<String>,
    seq: Option<u64>,
}

/// The error in an answer of JetStream.
#[derive(Deserialize)]
pub(super) struct ApiError {
    pub(super) code: Option<u64>,
    pub(super) err_code: Option<u64>,
    description: Option<String>,
}

impl ApiError {
    pub(super) fn text(&self) -> String {
        printable(self.description.as_deref().unwrap_or("no reason"), MAX_MESSAGE)
    }

    fn refusal(&self) -> PublishAnswer {
        if self.err_code == Some(WRONG_LAST_SEQUENCE) {
            return PublishAnswer::SubjectTaken;
        }
        let code = self.err_code.or(self.code).unwrap_or_default();
        let reason = format!("the stream refuses the message: {} ({code})", self.text());
        let passes = self.code == Some(UNAVAILABLE) && self.err_code != Some(STORE_FAILED);
        PublishAnswer::Refused { reason, passes }
    }
}

/// Returns an error if an answer is too long to be parsed or copied.
pub(super) fn check_length(body: &[u8]) -> Result<(), String> {
    if body.len() > MAX_ANSWER { Err(format!("it has more than {} MiB", MAX_ANSWER >> 20)) } else { Ok(()) }
}

/// Parses an answer, which must be a JSON object. Unknown members are skipped and need no memory. (`serde_json::Value` needs 32
/// bytes for each two bytes of `[0,0,0]`.) A derived `Deserialize` would also accept an array.
pub(super) fn parse_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    check_length(body)?;
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".into());
    }
    serde_json::from_slice(body).map_err(|error| printable(&error.to_string(), MAX_MESSAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> PublishAnswer {
        PublishAnswer::parse(body.as_bytes(), "PAID")
    }

    #[test]
    fn a_sequence_of_the_expected_stream_is_stored() {
        assert_eq!(parse(r#"{"stream":"PAID","seq":7}"#), PublishAnswer::Stored(7));
        assert_eq!(parse(r#"{"stream":"PAID","seq":18446744073709551615}"#), PublishAnswer::Stored(u64::MAX));
        let taken =
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"stream":"PAID","seq":0}"#;
        assert_eq!(parse(taken), PublishAnswer::SubjectTaken);
    }

    #[test]
    fn other_acknowledgements_prove_nothing() {
        for body in [
            "",
            "+OK",
            "{}",
            "[]",
            "null",
            "\u{1b}[31m",
            r#"{"stream":"PAID"}"#,
            r#"{"stream":"PAID","seq":0}"#,
            r#"{"stream":"PAID","seq":0,"duplicate":true}"#,
            r#"{"stream":"PAID","seq":-1}"#,
            r#"{"stream":"PAID","seq":"7"}"#,
            r#"{"stream":"PAID","seq":1.5}"#,
            r#"{"stream":"OTHER","seq":7}"#,
            r#"{"stream":"paid","seq":7}"#,
            r#"{"seq":7}"#,
            r#"{"stream":"PAID","seq":7"#,
            r#"{"stream":"OTHER","stream":"PAID","seq":7}"#,
            r#"[null,"PAID",7]"#,
            r#"{"error":"x","stream":"PAID","seq":9}"#,
        ] {
            assert!(matches!(parse(body), PublishAnswer::Unproven(_)), "{body}: {:?}", parse(body));
        }
    }

    #[test]
    fn unknown_members_are_skipped() {
        let body = format!(r#"{{"seq":7,"more":[{}0],"stream":"PAID"}}"#, "0,".repeat(100_000));
        assert_eq!(parse(&body), PublishAnswer::Stored(7));
    }

    #[test]
    fn a_long_answer_is_not_parsed() {
        // The body would be an acknowledgement if it were parsed.
        let body = format!(r#"{{"stream":"PAID","seq":7}}{}"#, " ".repeat(MAX_ANSWER));
        let PublishAnswer::Unproven(reason) = parse(&body) else { panic!("it was parsed") };
        assert!(reason.contains("more than 1 MiB") && reason.len() < 1000, "{reason}");
    }

    #[test]
    fn refusals_name_the_reason() {
        let refused = |code: u64, err_code: u64| {
            let body = format!(
                r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"no\u001b"}},"stream":"PAID","seq":9}}"#
            );
            match parse(&body) {
                PublishAnswer::Refused { reason, passes } => (reason.contains(&format!("no  ({err_code})")), passes),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(400, 10_158), (true, false));
        assert_eq!(refused(400, 10_164), (true, false));
        assert_eq!(refused(503, 10_008), (true, true));
        assert_eq!(refused(503, 10_077), (true, false));
        assert!(matches!(parse(r#"{"error":{},"stream":"PAID","seq":9}"#), PublishAnswer::Refused { .. }));
    }
}
