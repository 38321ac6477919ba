//! The health of the watched mailboxes.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Expected;
use crate::db::{self, MailboxRow, StoreReader};
use crate::model::{MailboxState, same_mailbox};
use crate::units::count;

/// How much longer than `idle_renew` a mailbox may be without a completed round trip.
const SLACK: Duration = Duration::from_secs(5 * 60);

/// A mailbox that the configuration names.
#[derive(Debug, Clone)]
pub struct WatchedMailbox {
    /// The account's name.
    pub account: String,
    /// A mailbox's name, or a special-use attribute (`\Junk`).
    pub wanted: String,
    /// The `idle_renew` of the account.
    pub renew: Duration,
}

/// A watched mailbox.
#[derive(Debug, Clone, Serialize)]
pub struct Mailbox {
    /// The account's name.
    pub account: String,
    /// The mailbox's name.
    pub mailbox: String,
    /// The state of the task that watches the mailbox.
    pub state: String,
    /// The time of the last completed round trip to the IMAP server.
    pub last_seen_at: Option<String>,
    /// The error that the task reported with `state`, if there was one.
    pub last_error: Option<String>,
}

impl From<MailboxRow> for Mailbox {
    fn from(row: MailboxRow) -> Self {
        let MailboxRow { account, mailbox, state, last_seen_at, last_error, .. } = row;
        Mailbox { account, mailbox, state, last_seen_at, last_error }
    }
}

/// Returns the watched mailboxes that have a row in the table `mailboxes`, and adds the problems of all watched mailboxes to
/// `attention`.
pub(super) fn mailboxes(
    reader: &StoreReader,
    expected: &Expected,
    running: bool,
    now: Timestamp,
    attention: &mut Vec<String>,
) -> db::Result<Vec<Mailbox>> {
    let mut mailboxes = Vec::new();
    for (watched, row) in pair(&expected.mailboxes, reader.mailboxes()?) {
        match row {
            None => attention.push(never_reached(watched)),
            Some(row) => {
                attention.extend(problem(watched, &row, running, now));
                mailboxes.push(Mailbox::from(row));
            }
        }
    }
    Ok(mailboxes)
}

/// Pairs each configured mailbox with its row of the table `mailboxes`. For a special-use attribute, the row has the mailbox's
/// real name, which is not in the configuration. So a special-use mailbox gets the newest of the account's remaining rows. The
/// rows that are left belong to mailboxes that were watched earlier.
fn pair(expected: &[WatchedMailbox], mut rows: Vec<MailboxRow>) -> Vec<(&WatchedMailbox, Option<MailboxRow>)> {
    rows.sort_by(|a, b| b.last_seen_at.cmp(&a.last_seen_at));
    let mut named: Vec<_> =
        expected.iter().map(|watched| (watched, remove_first(&mut rows, |row| is_watched_as(watched, row)))).collect();
    for (watched, row) in &mut named {
        if row.is_none() && watched.wanted.starts_with('\\') {
            *row = remove_first(&mut rows, |row| row.account == watched.account);
        }
    }
    named
}

fn is_watched_as(watched: &WatchedMailbox, row: &MailboxRow) -> bool {
    row.account == watched.account && same_mailbox(&row.mailbox, &watched.wanted)
}

fn remove_first(rows: &mut Vec<MailboxRow>, which: impl Fn(&MailboxRow) -> bool) -> Option<MailboxRow> {
    rows.iter().position(which).map(|n| rows.remove(n))
}

fn never_reached(watched: &WatchedMailbox) -> String {
    let WatchedMailbox { account, wanted, .. } = watched;
    format!("mailbox {account}/{wanted} was never reached: run `resmic-mailhook check --connect`")
}

/// The problem of a mailbox. Without a running daemon, an old round trip is no problem.
fn problem(watched: &WatchedMailbox, row: &MailboxRow, running: bool, now: Timestamp) -> Option<String> {
    let name = format!("mailbox {}/{}", row.account, row.mailbox);
    if row.state == MailboxState::Failed.as_str() {
        let error = row.last_error.as_deref().unwrap_or("unknown error");
        return Some(format!("{name}: {error}"));
    }
    let seen: Timestamp = row.last_seen_at.as_deref()?.parse().ok()?;
    // If the server has no mailbox with the special-use attribute, the watcher asks the server again only once an hour.
    let is_absent = row.mailbox.starts_with('\\');
    let limit = if is_absent { Duration::from_secs(2 * 3600) } else { watched.renew } + SLACK;
    let age = Duration::try_from(now.duration_since(seen)).unwrap_or_default();
    if !running || age <= limit {
        return None;
    }
    let minutes = count(age.as_secs() / 60, "minute");
    Some(format!("{name}: no completed round trip for {minutes}; restart the daemon if this stays"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Uid, UidValidity};

    fn watched(wanted: &str) -> WatchedMailbox {
        WatchedMailbox { account: "shop".into(), wanted: wanted.into(), renew: Duration::from_secs(540) }
    }

    fn row(mailbox: &str, state: &str, seen: &str) -> MailboxRow {
        MailboxRow {
            account: "shop".into(),
            mailbox: mailbox.into(),
            uid_validity: Some(UidValidity(1)),
            last_uid: Some(Uid(1)),
            state: state.into(),
            last_seen_at: Some(seen.into()),
            last_error: None,
        }
    }

    #[test]
    fn rows_of_unwatched_mailboxes_are_ignored() {
        let expected = [watched("INBOX"), watched("\\Junk")];
        let rows = vec![
            row("Old", "failed", "2025-03-05T03:00:00.000Z"),
            row("Spam", "idle", "2025-03-05T04:00:00.000Z"),
            row("inbox", "idle", "2025-03-05T04:00:00.000Z"),
        ];
        let names: Vec<_> = pair(&expected, rows).into_iter().filter_map(|(_, row)| Some(row?.mailbox)).collect();
        assert_eq!(names, ["inbox", "Spam"]);
    }

    #[test]
    fn an_old_round_trip_is_a_problem() {
        let now = "2025-03-05T04:00:00Z".parse().unwrap();
        let problem = |row: &MailboxRow, running| problem(&watched("INBOX"), row, running, now);
        assert_eq!(problem(&row("INBOX", "idle", "2025-03-05T03:47:00.000Z"), true), None);
        assert!(problem(&row("INBOX", "idle", "2025-03-05T03:45:00.000Z"), true).unwrap().contains("15 minutes"));
        assert_eq!(problem(&row("INBOX", "idle", "2025-03-05T03:45:00.000Z"), false), None);
        assert!(problem(&row("INBOX", "failed", "2025-03-05T03:59:59.000Z"), true).is_some());
    }
}
