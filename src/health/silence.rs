//! Finds two problems that cause no error: no notification arrives, or notifications arrive and cannot be parsed.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Mailbox;
use crate::db::{AccountRow, RecentParses};
use crate::model::{MailboxState, iso};
use crate::units::count;

/// Fewer unparsed notifications than this number are no problem, because single mails may have an unusual layout.
const FEWEST_UNPARSED: i64 = 3;

/// An account that the configuration names.
#[derive(Debug, Clone)]
pub struct WatchedAccount {
    /// The account's name.
    pub account: String,
    /// If the account gets no proven notification for longer than this time, this is a problem. `None`: there is no limit.
    pub quiet: Option<Duration>,
}

/// The notifications of an account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountHealth {
    /// The account's name.
    pub account: String,
    /// When the newest proven notification was received.
    pub last_notification_at: Option<String>,
    /// Whether there was no proven notification for longer than `quiet`.
    pub quiet: bool,
    /// Whether `quiet` is configured.
    #[serde(skip)]
    pub is_limited: bool,
}

/// Whether the newest notifications could be parsed.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ParsingHealth {
    /// How many of the newest proven notifications were checked, at most ten.
    pub checked: i64,
    /// How many of the checked notifications could not be parsed.
    pub unparsed: i64,
}

/// Returns the health of each account, and adds a problem to `attention` for each account that is silent for longer than `quiet`.
///
/// A silence begins at the last notification, or at the first start with this account if that is later. So a new account is not
/// silent. While the daemon still reads an account's mailboxes, the account is not silent either, because these mailboxes may
/// contain a notification.
pub(super) fn accounts(
    expected: &[WatchedAccount],
    rows: &[AccountRow],
    is_reading: impl Fn(&str) -> bool,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> Vec<AccountHealth> {
    let health = |watched: &WatchedAccount| {
        let row = rows.iter().find(|row| row.account == watched.account);
        let age = row.and_then(silent_since).map(|since| age(since, now));
        let silent = age.zip(watched.quiet).filter(|(age, limit)| age > limit && !is_reading(&watched.account));
        let last_notification_at = row.and_then(|row| row.last_notification_at).map(iso);
        attention.extend(silent.map(|(age, _)| {
            let name = &watched.account;
            let since = if last_notification_at.is_some() { "for" } else { "since its first start, for" };
            format!(
                "account {name}: no proven notification {since} {}, longer than `quiet`: check that Resmic still sends to this \
                 account, and look for its mails in the mailbox's other folders",
                in_words(age)
            )
        }));
        AccountHealth {
            account: watched.account.clone(),
            last_notification_at,
            quiet: silent.is_some(),
            is_limited: watched.quiet.is_some(),
        }
    };
    expected.iter().map(health).collect()
}

/// Whether a running daemon is still connecting to an account's mailboxes or fetching their mails.
pub(super) fn is_reading(mailboxes: &[Mailbox], account: &str) -> bool {
    let unfinished = [MailboxState::Connecting, MailboxState::Syncing].map(MailboxState::as_str);
    mailboxes.iter().any(|mailbox| mailbox.account == account && unfinished.contains(&mailbox.state.as_str()))
}

fn silent_since(row: &AccountRow) -> Option<Timestamp> {
    row.last_notification_at.max(row.watched_since)
}

/// The time from `since` to `now`; zero if `since` is in the future.
fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn in_words(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => count(seconds, "second"),
        120..7_200 => count(seconds / 60, "minute"),
        7_200..172_800 => count(seconds / 3_600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

/// Adds a problem if at least three and more than half of the newest notifications could not be parsed. After so many failures,
/// Resmic has probably changed the layout of its mails.
pub(super) fn parsing(recent: RecentParses, attention: &mut Vec<String>) -> ParsingHealth {
    let RecentParses { checked, unparsed } = recent;
    if unparsed >= FEWEST_UNPARSED && unparsed * 2 > checked {
        attention.push(format!(
            "{unparsed} of the last {checked} proven mails could not be parsed, so the template may have changed: `mails --outcome \
             quarantined` shows what they lack; add the new labels to [extract.labels] or install a newer version, then run \
             `reparse --outcome quarantined`"
        ));
    }
    ParsingHealth { checked, unparsed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_741_145_760 + second).unwrap()
    }

    /// The problems of an account with `quiet = "1d"` at the hour `now`. All times are hours.
    fn problems(watched_since: Option<i64>, last: Option<i64>, now: i64, is_reading: bool) -> Vec<String> {
        let expected = [WatchedAccount { account: "shop".into(), quiet: Some(Duration::from_secs(86_400)) }];
        let hours = |hours: Option<i64>| hours.map(|hours| at(hours * HOUR));
        let (watched_since, last_notification_at) = (hours(watched_since), hours(last));
        let row = AccountRow { account: "shop".into(), watched_since, last_notification_at };
        let mut attention = Vec::new();
        let health = accounts(&expected, &[row], |_| is_reading, at(now * HOUR), &mut attention);
        assert_eq!(health[0].quiet, !attention.is_empty());
        attention
    }

    #[test]
    fn silence_counts_from_the_later_time() {
        assert!(problems(Some(0), None, 24, false).is_empty(), "exactly a day");
        assert!(problems(Some(0), None, 25, false)[0].contains("since its first start, for 25 hours"));
        assert!(problems(Some(0), Some(10), 34, false).is_empty());
        assert!(problems(Some(0), Some(10), 35, false)[0].contains("notification for 25 hours, longer"));
        assert!(problems(Some(100), Some(10), 124, false).is_empty(), "it is watched since later");
        assert!(problems(None, Some(10), 60, false)[0].contains("for 2 days"), "only imported");
        assert!(problems(None, None, 1_000, false).is_empty(), "the daemon was never started");
        assert!(problems(Some(0), Some(90), 60, false).is_empty(), "the clock was set back");
        assert!(problems(Some(0), Some(10), 35, true).is_empty(), "its mails are being read");
    }

    #[test]
    fn silence_is_normal_without_quiet() {
        let expected = [WatchedAccount { account: "shop".into(), quiet: None }];
        let row = AccountRow { account: "shop".into(), watched_since: Some(at(0)), last_notification_at: None };
        let mut attention = Vec::new();
        let health = accounts(&expected, &[row], |_| false, at(10_000 * HOUR), &mut attention);
        assert!(attention.is_empty() && !health[0].quiet && !health[0].is_limited);
        assert!(!accounts(&expected, &[], |_| false, at(0), &mut attention)[0].quiet);
    }

    #[test]
    fn most_of_the_last_mails_must_be_unparsed() {
        let is_problem = |checked, unparsed| {
            let mut attention = Vec::new();
            parsing(RecentParses { checked, unparsed }, &mut attention);
            !attention.is_empty()
        };
        assert!(is_problem(10, 6) && is_problem(10, 10) && is_problem(3, 3) && is_problem(5, 3));
        assert!(!is_problem(10, 5) && !is_problem(2, 2) && !is_problem(1, 1) && !is_problem(6, 3) && !is_problem(0, 0));
    }
}
