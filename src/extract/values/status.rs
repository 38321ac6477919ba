//! Parses the status of a payment: a word, a sign such as `✅`, or both.

use crate::model::{Status, fold_name};

/// Parses the value of a status field: a word, a sign, or both if they agree.
pub(crate) fn parse_status(text: &str) -> Result<Status, String> {
    let (sign, word) = (status_of_signs(text)?, fold_name(text));
    match (sign, status_of_word(&word)) {
        (Some(sign), Ok(word)) if sign == word => Ok(word),
        (Some(_), Ok(_)) => Err(format!("{text:?} has a sign that contradicts its words")),
        (Some(sign), Err(_)) if word.is_empty() => Ok(sign),
        (None, Ok(word)) => Ok(word),
        (_, Err(())) => Err(format!("{text:?} is not a status")),
    }
}

/// Returns the status that the signs in a text show, such as `✅`; `None` without signs. Signs of two statuses are an error.
pub(crate) fn status_of_signs(text: &str) -> Result<Option<Status>, String> {
    let signs = text.chars().filter_map(|c| match c {
        '✅' | '✔' | '✓' | '☑' => Some(Status::Completed),
        '❌' | '✖' | '✗' | '✘' => Some(Status::Failed),
        '⏳' | '⌛' => Some(Status::Pending),
        _ => None,
    });
    let mut signs: Vec<Status> = signs.collect();
    signs.dedup();
    match signs.as_slice() {
        [] => Ok(None),
        [sign] => Ok(Some(*sign)),
        _ => Err(format!("{text:?} has signs for several statuses")),
    }
}

fn status_of_word(word: &str) -> Result<Status, ()> {
    match word {
        "completed" | "complete" | "paid" | "success" | "successful" | "succeeded" | "confirmed" | "received"
        | "true" | "paymentreceived" | "paymentcompleted" | "paymentsuccessful" => Ok(Status::Completed),
        "failed" | "failure" | "expired" | "cancelled" | "canceled" | "declined" | "rejected" | "false"
        | "paymentfailed" | "unsuccessful" => Ok(Status::Failed),
        "pending"
        | "processing"
        | "inprogress"
        | "awaitingpayment"
        | "awaitingconfirmation"
        | "unconfirmed"
        | "paymentpending" => Ok(Status::Pending),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_word_or_a_sign() {
        for (text, expected) in [
            ("✅", Status::Completed),
            (" ✔\u{fe0f} ", Status::Completed),
            ("✅ Completed", Status::Completed),
            ("❌", Status::Failed),
            ("Failed ❌", Status::Failed),
            ("⏳ pending", Status::Pending),
            ("🎉 Paid!", Status::Completed),
        ] {
            assert_eq!(parse_status(text), Ok(expected), "{text}");
        }
        for text in ["✅ Failed", "❌ Paid", "✅ ❌", "✅ ⏳ ✅", "✅ On hold", "❎", "🟢", "", "✅ or not"]
        {
            assert!(parse_status(text).is_err(), "{text}");
        }
    }
}
