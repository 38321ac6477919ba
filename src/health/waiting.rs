//! The mails, events and deliveries that wait for an operator.

use super::Expected;
use crate::db::{self, StoreReader};
use crate::units::count;

/// Returns a line of advice, with a count, for each kind of mails, events and deliveries that wait for an operator.
pub(super) fn waiting(reader: &StoreReader, expected: &Expected) -> db::Result<Vec<String>> {
    let accounts: Vec<_> = expected.mailboxes.iter().map(|watched| watched.account.as_str()).collect();
    let backlog = reader.backlog(&expected.targets, &accounts)?;
    let lines = [
        (
            backlog.quarantined,
            "quarantined: `mails --outcome quarantined` shows why, `mails release ID` releases one or says what to do",
            "mail",
        ),
        (
            backlog.undelivered,
            "listed by the mail server and not delivered: `mails --outcome quarantined` shows the UID; look at the mail with another mail program. The daemon fetches it again at each renewal",
            "mail",
        ),
        (
            backlog.conflicting,
            "held because of a conflict: `show EVENT_ID` shows the conflict, `session assign EVENT_ID SESSION_ID` releases the event",
            "event",
        ),
        (
            backlog.unresolved,
            "held without a session: `session assign EVENT_ID SESSION_ID`, or register the session",
            "event",
        ),
        (
            backlog.dead,
            "given up: `deliveries --state dead` shows why, `deliveries retry --dead` retries them",
            "delivery",
        ),
        (
            backlog.orphaned,
            "for a target that the configuration no longer has: put its [[forward]] back under that name",
            "delivery",
        ),
        (
            backlog.unjudged,
            "deferred, of an account that the configuration no longer has: put the account back under that name",
            "mail",
        ),
        (
            backlog.doubtful,
            "contradicted by the chain: `confirm EVENT_ID --explain` shows why, `confirm EVENT_ID --vouch` releases one",
            "event",
        ),
        (
            backlog.unproven,
            "held because the chain proves nothing: `confirm EVENT_ID` shows why, `confirm EVENT_ID --vouch` releases one",
            "event",
        ),
    ];
    Ok(lines.into_iter().filter(|(n, ..)| *n > 0).map(|(n, text, noun)| counted(n, noun, text)).collect())
}

/// A count with its noun and a text: "2 deliveries given up".
pub(super) fn counted(n: i64, noun: &str, text: &str) -> String {
    format!("{} {text}", count(n, noun))
}
