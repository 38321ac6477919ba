//! The table `accounts`: since when the daemon watches each account, and when the account's last proven notification was
//! received.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::{Result, Store, StoreReader, current_time, parse_time};
use crate::model::iso;

/// How many of the newest proven notifications [`StoreReader::recent_parses`] counts at most.
const NEWEST: i64 = 10;

/// A row of `accounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// The account's name.
    pub account: String,
    /// When the daemon first started with this account; `None`: the daemon has never watched the account.
    pub watched_since: Option<Timestamp>,
    /// When the newest proven notification of the account was received; `None`: no such notification is known.
    pub last_notification_at: Option<Timestamp>,
}

/// How many of the newest proven notifications could not be parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecentParses {
    /// The number of notifications that were checked, at most ten.
    pub checked: i64,
    /// How many of these notifications are quarantined because they could not be parsed.
    pub unparsed: i64,
}

impl Store {
    /// Writes the current time into `accounts.watched_since` of these accounts. A time that is already there stays.
    ///
    /// # Errors
    ///
    /// [`super::Error`].
    pub async fn watch_accounts(&self, names: Vec<String>) -> Result<()> {
        self.write(move |tx| {
            let now = current_time();
            for name in &names {
                tx.prepare_cached(
                    "INSERT INTO accounts (account, watched_since) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET watched_since = excluded.watched_since WHERE watched_since IS NULL",
                )?
                .execute(params![name, now])?;
            }
            Ok(())
        })
        .await
    }
}

/// Sets `accounts.last_notification_at` of this account to `at`, unless the column has a later time.
pub(crate) fn record_notification(tx: &Connection, account: &str, at: Timestamp) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO accounts (account, last_notification_at) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET last_notification_at = excluded.last_notification_at
         WHERE last_notification_at IS NULL OR last_notification_at < excluded.last_notification_at",
    )?
    .execute(params![account, iso(at)])?;
    Ok(())
}

impl StoreReader {
    /// All rows of `accounts`: one row for each account that was watched or got a proven notification.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn accounts(&self) -> Result<Vec<AccountRow>> {
        self.query_all("SELECT * FROM accounts ORDER BY account", &[], account_row)
    }

    /// How many of the newest proven notifications could not be parsed. Three kinds of mails are left out: mails that are no
    /// notification, mails whose only proof is the release by an operator, and quarantined mails without bytes.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn recent_parses(&self) -> Result<RecentParses> {
        // Each SELECT of the UNION reads the newest rows of one outcome from an index, and skips mails that an operator
        // released. But the third SELECT includes a mail that was quarantined again after its release, if the row has a
        // `trust_domain`, because a signature had proven the mail before the release.
        let of_outcome = |outcome: &str| {
            format!(
                "SELECT * FROM (SELECT id, 0 AS unparsed FROM mails INDEXED BY mails_by_outcome
                   WHERE outcome = '{outcome}' AND trust IS NOT NULL AND trust <> 'operator' ORDER BY id DESC LIMIT {NEWEST})"
            )
        };
        let is_code = |code: &str| format!("reason >= '{code}:' AND reason < '{code};'");
        let codes = ["unreadable", "malformed", "too-large"].map(is_code).join(" OR ");
        let sql = format!(
            "SELECT count(*), coalesce(sum(unparsed), 0) FROM (SELECT unparsed FROM ({} UNION ALL {} UNION ALL
               SELECT * FROM (SELECT id, {codes} AS unparsed FROM mails INDEXED BY mails_proven_to_review
                 WHERE outcome = 'quarantined' AND trust IS NOT NULL AND raw IS NOT NULL
                   AND (trust <> 'operator' OR trust_domain IS NOT NULL) ORDER BY id DESC LIMIT {NEWEST}))
             ORDER BY id DESC LIMIT {NEWEST})",
            of_outcome("event"),
            of_outcome("duplicate"),
        );
        let found =
            self.query_one(&sql, &[], |row| Ok(RecentParses { checked: row.get(0)?, unparsed: row.get(1)? }))?;
        Ok(found.unwrap_or_default())
    }
}

fn account_row(row: &Row) -> rusqlite::Result<AccountRow> {
    Ok(AccountRow {
        account: row.get("account")?,
        watched_since: parse_time(row.get("watched_since")?),
        last_notification_at: parse_time(row.get("last_notification_at")?),
    })
}
