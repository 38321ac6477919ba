//! The pause that a throttling server asks for.
//!
//! IMAP has no field for such a pause. Exchange and Microsoft 365 write it into the text of a NO, a BAD or a BYE:
//! `NO Request is throttled. Suggested Backoff Time: 299961 milliseconds`. The usual pause is five minutes. A client that
//! continues at once is throttled for longer.

use std::time::Duration;

/// The words before the number of milliseconds in the text of a response.
const LABEL: &str = "suggested backoff time:";
/// The unit after the number in the text of a response.
const UNIT: &str = "milliseconds";

/// The pause that a server has asked for. This pause is longer than zero, and has no upper limit, because the watcher pauses for
/// an hour at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuggestedPause(Duration);

impl SuggestedPause {
    /// Parses the text of a response, which may come from a hostile server. `None` if the text asks for no pause.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (_, rest) = text.split_once(LABEL)?;
        let rest = rest.trim_start();
        let (number, unit) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit())?)?;
        let millis: u64 = number.parse().ok().filter(|millis| *millis > 0)?;
        unit.trim_start().starts_with(UNIT).then_some(SuggestedPause(Duration::from_millis(millis)))
    }

    /// The length of the pause.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_exchange_is_parsed() {
        let millis = |text: &str| SuggestedPause::from_text(text).map(|pause| pause.duration().as_millis());
        assert_eq!(millis("Request is throttled. Suggested Backoff Time: 299961 milliseconds"), Some(299_961));
        assert_eq!(millis("[THROTTLED] request is THROTTLED. suggested backoff time:5 Milliseconds."), Some(5));
        for text in [
            "",
            "Request is throttled.",
            "[THROTTLED] Suggested Backoff Time",
            "Suggested Backoff Time: soon",
            "Suggested Backoff Time: 0 milliseconds",
            "Suggested Backoff Time: -5 milliseconds",
            "Suggested Backoff Time: 299961",
            "Suggested Backoff Time: 5 minutes",
            "Suggested Backoff Time: 99999999999999999999999 milliseconds",
            "Suggested Backoff Time: \u{663} milliseconds",
        ] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
