//! Registers sessions and lists them.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use serde::Serialize;

use super::reconcile::{self, Reconciled};
use super::sessions::{parse_session_id, registered_session, text_column};
use crate::db::{Error, PAGE, Result, Store, StoreReader};
use crate::model::{self, RegisteredSession, iso, same_amount};

/// The values with which a session is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionRegistration {
    /// Resmic's id of the session, a UUID.
    pub session_id: String,
    /// The merchant's order reference.
    pub order_ref: Option<String>,
    /// The amount in US dollars, as decimal text.
    pub amount: Option<String>,
    /// The chain on which the customer must pay.
    pub blockchain: Option<String>,
    /// The token in which the customer must pay.
    pub token: Option<String>,
    /// The time until which the session can be paid.
    pub expires_at: Option<Timestamp>,
}

/// A row of the table `sessions`, with the status of the session's payment in the view `payments`. The view `payments` shows the
/// completed event of the session, or else the newest event.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct SessionRow {
    pub session_id: String,
    pub order_ref: Option<String>,
    pub amount: Option<String>,
    pub blockchain: Option<String>,
    pub token: Option<String>,
    pub created_at: String,
    pub expires_at: Option<String>,
    /// The status in the view `payments`; `None`: there is no event of this session.
    pub status: Option<String>,
    /// The id of the event whose status is in `status`.
    pub event_id: Option<String>,
}

impl Store {
    /// Inserts a session into `sessions`, then reconciles all sessions in `sessions_to_reconcile` with their events. If the
    /// session is registered already, adds its missing values, and replaces its expiry if `new` has an expiry.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a value is not valid, [`Error::Refused`] if the session is registered with other values.
    pub async fn session_add(&self, new: SessionRegistration) -> Result<Reconciled> {
        let new = new.checked()?;
        let settings = self.settings.clone();
        let reconciled = self
            .write(move |tx| {
                if let Some(known) = registered_session(tx, &new.session_id)? {
                    new.agrees_with(&known)?;
                }
                let is_new = insert(tx, &new)?;
                let rematched =
                    if is_new { Reconciled::default() } else { reconcile::rematch(tx, &settings, &new.session_id)? };
                Ok(rematched.and(reconcile::reconcile_all(tx, &settings)?))
            })
            .await?;
        self.wake_outbox();
        Ok(reconciled)
    }
}

impl StoreReader {
    /// Passes the newest `limit` registered sessions to `on_row`, or all if there is no limit. The oldest session comes first.
    /// Returns whether older sessions were left out.
    ///
    /// # Errors
    ///
    /// An error of SQLite, or the first error that `on_row` returns.
    pub fn sessions<E: From<Error>>(
        &self,
        limit: Option<u32>,
        mut on_row: impl FnMut(SessionRow) -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        let newest = "SELECT CAST(created_at AS BLOB), rowid FROM sessions ORDER BY created_at DESC, rowid DESC LIMIT 1 OFFSET ?1";
        let before = limit.map(|limit| self.query_one(newest, &[&limit], read_position)).transpose()?.flatten();
        let (left_out, mut left) = (before.is_some(), limit.map_or(usize::MAX, |limit| limit as usize));
        let mut after = before.unwrap_or((Vec::new(), i64::MIN));
        while left > 0 {
            let rows = i64::try_from(left.min(PAGE)).unwrap_or(i64::MAX);
            let page = self.query_all(SESSIONS_PAGE, &[&after.0, &after.1, &rows], |row| {
                Ok((read_position(row)?, session_row(row)?))
            })?;
            let is_last = page.len() < PAGE;
            for (position, session) in page {
                after = position;
                left = left.saturating_sub(1);
                on_row(session)?;
            }
            if is_last {
                break;
            }
        }
        Ok(left_out)
    }
}

/// Selects the sessions after the position `(?1, ?2)` in the order of registration. The position is (`created_at`, `rowid`).
pub(super) const SESSIONS_PAGE: &str = "
    SELECT CAST(s.created_at AS BLOB), s.rowid, s.*, p.status, p.event_id
    FROM sessions s LEFT JOIN payments p ON p.session_id = s.session_id
    WHERE (s.created_at, s.rowid) > (CAST(?1 AS TEXT), ?2) ORDER BY s.created_at, s.rowid LIMIT ?3";

/// Reads the position of a session in the order of registration: `created_at` and `rowid`. Other programs write `created_at`, so
/// this text may be invalid UTF-8.
fn read_position(row: &Row) -> rusqlite::Result<(Vec<u8>, i64)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn session_row(row: &Row) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        session_id: text_column(row, "session_id")?.unwrap_or_default(),
        order_ref: text_column(row, "order_ref")?,
        amount: text_column(row, "amount")?,
        blockchain: text_column(row, "blockchain")?,
        token: text_column(row, "token")?,
        created_at: text_column(row, "created_at")?.unwrap_or_default(),
        expires_at: text_column(row, "expires_at")?,
        status: row.get("status")?,
        event_id: row.get("event_id")?,
    })
}

impl SessionRegistration {
    /// Checks the values, and returns them as they are stored in the table `sessions`.
    fn checked(self) -> Result<Self> {
        let amount = self.amount.map(|text| text.trim().to_owned());
        if let Some(text) = amount.as_deref().filter(|text| !is_decimal(text)) {
            return Err(Error::Value(format!("amount {text:?}: expected US dollars in decimal digits, such as 19.99")));
        }
        // An empty value is probably an unset variable of a script. Without its order reference, no signed address finds the
        // session.
        for (name, value) in
            [("order reference", &self.order_ref), ("blockchain", &self.blockchain), ("token", &self.token)]
        {
            if value.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err(Error::Value(format!("the {name} is empty; expected a text, or leave it out")));
            }
        }
        let trimmed = |text: Option<String>| text.map(|t| t.trim().to_owned());
        Ok(SessionRegistration {
            session_id: parse_session_id(&self.session_id)?,
            // The order reference stays unchanged, because it is the merchant's text.
            order_ref: self.order_ref,
            amount,
            blockchain: trimmed(self.blockchain).map(|chain| model::spell_chain(&chain)),
            token: trimmed(self.token),
            expires_at: self.expires_at,
        })
    }

    fn agrees_with(&self, known: &RegisteredSession) -> Result<()> {
        let differs = |a: &Option<String>, b: &Option<String>, same: fn(&str, &str) -> bool| {
            a.as_deref().zip(b.as_deref()).is_some_and(|(a, b)| !same(a, b))
        };
        let exactly = |a: &str, b: &str| a == b;
        let field = if differs(&self.order_ref, &known.order_ref, exactly) {
            "order reference"
        } else if differs(&self.amount, &known.amount, same_amount) {
            "amount"
        } else if differs(&self.blockchain, &known.blockchain, |a, b| model::fold_chain(a) == model::fold_chain(b)) {
            "blockchain"
        } else if differs(&self.token, &known.token, model::same_token) {
            "token"
        } else {
            return Ok(());
        };
        Err(Error::Refused(format!(
            "session {} is already registered with another {field}; nothing was changed",
            self.session_id
        )))
    }
}

fn is_decimal(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 80 && digits(whole) && digits(fraction)
}

/// Inserts a session into `sessions`, or adds missing values and a new expiry to its row. Returns whether the row is new or has
/// changed.
fn insert(tx: &Connection, new: &SessionRegistration) -> Result<bool> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO sessions (session_id, order_ref, amount, blockchain, token, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET order_ref = coalesce(order_ref, excluded.order_ref),
           amount = coalesce(amount, excluded.amount), blockchain = coalesce(blockchain, excluded.blockchain),
           token = coalesce(token, excluded.token), expires_at = coalesce(excluded.expires_at, expires_at)
         WHERE coalesce(order_ref, excluded.order_ref) IS NOT order_ref OR coalesce(amount, excluded.amount) IS NOT amount
           OR coalesce(blockchain, excluded.blockchain) IS NOT blockchain OR coalesce(token, excluded.token) IS NOT token
           OR coalesce(excluded.expires_at, expires_at) IS NOT expires_at",
    )?;
    let end = new.expires_at.map(iso);
    let parameters = params![new.session_id, new.order_ref, new.amount, new.blockchain, new.token, end];
    Ok(statement.execute(parameters)? > 0)
}
