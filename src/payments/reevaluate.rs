//! Reads the stored mails that are examined again, and stores the new results. A mail is examined again if a person releases it,
//! if the rules have changed, or after it was deferred.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{self, Admitted};
use super::matching::SessionSource;
use super::record::{covers, is_proven_notification, time_received};
use super::stored_events;
use crate::db::{
    Error, Result, Store, StoreReader, StoreSettings, current_time, optional, parse_time, record_notification,
    where_clause,
};
use crate::model::{
    Event, Examined, Judgement, Origin, Outcome, RawMail, Reason, SignedHeaders, TrustProof, Uid, UidValidity, iso,
};

/// A mail of the table `mails`, with the result of its most recent examination.
#[derive(Debug, Clone)]
pub struct StoredMail {
    /// The id of the mail's row in `mails`.
    pub id: i64,
    /// The mail.
    pub mail: RawMail,
    /// The stored proof that authenticated the mail, if there is one.
    pub proof: Option<TrustProof>,
    /// The stored outcome of the mail.
    pub outcome: Outcome,
    /// The reason for the outcome, as the stored text.
    pub reason: Option<String>,
    /// How often the outcome of the mail was decided.
    pub judgements: u32,
}

/// The changes that a new examination of a stored mail has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reevaluation {
    /// The outcome, the reason and the event of the mail are unchanged.
    Same,
    /// The mail has another outcome, reason or event.
    Outcome {
        /// The new outcome.
        outcome: Outcome,
        /// The new reason.
        reason: Option<Reason>,
        /// The id of the event that the mail made or repeats.
        event_id: Option<String>,
    },
    /// The event of the mail has new values. No delivery of this event was attempted before.
    Event(String),
    /// The event of the mail is unchanged, although the new examination has another result. The reason is one of these: a
    /// delivery was attempted, an operator chose another session, the event would have another id, or the mail would have no
    /// event.
    Kept(String),
}

impl Store {
    /// Stores the result of a new examination of the mail `id`, in one SQLite transaction. The transaction also stores or updates
    /// the mail's event and the event's deliveries. `next`: the time at which a mail that stays deferred is examined again.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the mail does not exist.
    pub async fn reevaluate(&self, id: i64, examined: Examined, next: Option<Timestamp>) -> Result<Reevaluation> {
        let settings = self.settings.clone();
        let change = self.write(move |tx| reevaluate(tx, &settings, id, &examined, next)).await?;
        self.wake_outbox();
        Ok(change)
    }
}

fn reevaluate(
    tx: &Connection,
    settings: &StoreSettings,
    id: i64,
    examined: &Examined,
    next: Option<Timestamp>,
) -> Result<Reevaluation> {
    let (outcome, reason, stored_event_id): (String, Option<String>, Option<String>) = tx
        .query_row("SELECT outcome, reason, event_id FROM mails WHERE id = ?1", params![id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?
        .ok_or_else(|| Error::Refused(format!("no mail {id}")))?;
    match stored_event_id {
        Some(event_id) if outcome == Outcome::Event.as_str() => {
            return reevaluate_event(tx, settings, &event_id, examined);
        }
        // This mail is a duplicate. The event of a duplicate belongs to another mail, so the new examination does not change the
        // event.
        Some(_) => return Ok(Reevaluation::Same),
        None => {}
    }
    let admitted = match &examined.judgement {
        Judgement::Event(event) => events::admit(tx, settings, event)?,
        Judgement::Ignored(reason) => Admitted::without_event(Outcome::Ignored, reason),
        Judgement::Quarantined(reason) => Admitted::without_event(Outcome::Quarantined, reason),
        Judgement::Deferred(reason) => Admitted::without_event(Outcome::Deferred, reason),
    };
    let Admitted { outcome: new, reason: new_reason, event_id, .. } = admitted;
    let proof = examined.proof.as_ref();
    let next = if new == Outcome::Deferred { next.map(iso) } else { None };
    tx.execute(
        "UPDATE mails SET outcome = ?2, reason = ?3, event_id = ?4, trust = coalesce(?5, trust),
           trust_domain = coalesce(?6, trust_domain), trust_selector = coalesce(?7, trust_selector),
           trust_covers = coalesce(?8, trust_covers), trust_to = coalesce(?9, trust_to), judged_at = ?10,
           judgements = judgements + 1, next_judgement_at = ?11
         WHERE id = ?1",
        params![
            id,
            new.as_str(),
            new_reason.as_ref().map(Reason::to_string),
            event_id,
            proof.map(|p| p.trust.as_str()),
            proof.and_then(|p| p.domain.as_deref()),
            proof.and_then(|p| p.selector.as_deref()),
            proof.map(covers),
            proof.map(|p| p.to.join(" ")),
            current_time(),
            next,
        ],
    )?;
    if is_proven_notification(new, proof) {
        let (account, by_server): (String, Option<String>) =
            tx.query_row("SELECT account, received_at FROM mails WHERE id = ?1", params![id], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let at = time_received(parse_time(by_server), examined.envelope.sent_at, Timestamp::now());
        record_notification(tx, &account, at)?;
    }
    if outcome == new.as_str() && reason == new_reason.as_ref().map(Reason::to_string) {
        return Ok(Reevaluation::Same);
    }
    Ok(Reevaluation::Outcome { outcome: new, reason: new_reason, event_id })
}

/// Updates the stored event of a mail, because a new examination may extract more values from the mail. The event stays unchanged
/// for the reasons of [`Reevaluation::Kept`].
fn reevaluate_event(
    tx: &Connection,
    settings: &StoreSettings,
    event_id: &str,
    examined: &Examined,
) -> Result<Reevaluation> {
    let Judgement::Event(new) = &examined.judgement else { return Ok(Reevaluation::Kept(event_id.to_owned())) };
    let (known, source) = tx.query_row("SELECT * FROM events WHERE event_id = ?1", params![event_id], |row| {
        Ok((stored_events::event_from_row(row)?, row.get::<_, Option<String>>("session_source")?))
    })?;
    // Keep the stored values that this mail lacks. The session and the order may come from the registration, and other values
    // from another report of the payment.
    let new = Event::clone(new).or(known.clone());
    if new == known {
        return Ok(Reevaluation::Same);
    }
    let was_attempted: bool = tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM deliveries WHERE event_id = ?1 AND attempts > 0)",
        params![event_id],
        |row| row.get(0),
    )?;
    // If the mail contradicts the session that an operator chose, only an operator can resolve the contradiction.
    let is_overruled = source.as_deref() == Some(SessionSource::Operator.as_str())
        && new.payment.session_id.as_deref() != known.payment.session_id.as_deref();
    if was_attempted || is_overruled || new.id().map(|id| id.to_string()).as_deref() != Some(event_id) {
        return Ok(Reevaluation::Kept(event_id.to_owned()));
    }
    events::refill(tx, settings, event_id, &new, None)?;
    Ok(Reevaluation::Event(event_id.to_owned()))
}

/// A deferred mail is examined again after at most an hour. So a `next_judgement_at` that is more than two hours in the future
/// was written while the clock was ahead.
const FURTHEST: SignedDuration = SignedDuration::from_hours(2);

impl StoreReader {
    /// Returns the ids of the mails whose bytes are stored, the oldest first. If `outcome` is given, returns only mails with this
    /// outcome.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn mails_with_raw(&self, outcome: Option<Outcome>) -> Result<Vec<i64>> {
        let word = outcome.map(Outcome::as_str);
        let (condition, parameters) = where_clause(&[("outcome = ?", optional(&word))]);
        let sql = format!("SELECT id FROM (SELECT id, raw FROM mails {condition}) WHERE raw IS NOT NULL ORDER BY id");
        self.query_all(&sql, &parameters, |r| r.get(0))
    }

    /// Returns the ids of the deferred mails that are due for a new examination at `at`. Also returns the deferred mails whose
    /// `next_judgement_at` was written while the clock was ahead.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn deferred_mails(&self, at: Timestamp) -> Result<Vec<i64>> {
        let (at, astray) = (iso(at), iso(at + FURTHEST));
        let sql =
            "SELECT id FROM mails WHERE outcome = 'deferred' AND (next_judgement_at <= ?1 OR next_judgement_at > ?2)
             ORDER BY next_judgement_at";
        self.query_all(sql, &[&at, &astray], |r| r.get(0))
    }

    /// Returns the first time after `at` at which a deferred mail becomes due for a new examination.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn next_deferred(&self, at: Timestamp) -> Result<Option<Timestamp>> {
        let at = iso(at);
        let sql = "SELECT min(next_judgement_at) FROM mails WHERE outcome = 'deferred' AND next_judgement_at > ?1";
        Ok(self.query_one(sql, &[&at], |r| r.get(0))?.and_then(parse_time))
    }

    /// Reads the mail with this id from the table `mails`. `None`: the mail has no row, or the row has no bytes.
    ///
    /// # Errors
    ///
    /// An error of SQLite.
    pub fn stored_mail(&self, id: i64) -> Result<Option<StoredMail>> {
        self.query_one("SELECT * FROM mails WHERE id = ?1 AND raw IS NOT NULL", &[&id], read_stored_mail)
    }
}

fn read_stored_mail(row: &Row) -> rusqlite::Result<StoredMail> {
    let uid: (Option<UidValidity>, Option<Uid>) = (row.get("uid_validity")?, row.get("uid")?);
    let origin = Origin { account: row.get("account")?, mailbox: row.get("mailbox")?, uid: uid.0.zip(uid.1) };
    let size: i64 = row.get("size")?;
    let mail = RawMail {
        origin,
        bytes: row.get("raw")?,
        size: u64::try_from(size).unwrap_or_default(),
        received_at: parse_time(row.get("received_at")?),
    };
    let outcome: String = row.get("outcome")?;
    Ok(StoredMail {
        id: row.get("id")?,
        mail,
        proof: proof(row)?,
        // The CHECK of the column `outcome` allows only the words of `Outcome`.
        outcome: outcome.parse().unwrap_or(Outcome::Quarantined),
        reason: row.get("reason")?,
        judgements: row.get("judgements")?,
    })
}

fn proof(row: &Row) -> rusqlite::Result<Option<TrustProof>> {
    let split_words = |text: Option<String>| {
        text.unwrap_or_default().split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let Some(trust) = row.get::<_, Option<String>>("trust")?.and_then(|t| t.parse().ok()) else { return Ok(None) };
    let covers: Option<String> = row.get("trust_covers")?;
    Ok(Some(TrustProof {
        trust,
        domain: row.get("trust_domain")?,
        selector: row.get("trust_selector")?,
        signed_headers: if covers.as_deref() == Some("*") {
            SignedHeaders::All
        } else {
            SignedHeaders::Only(split_words(covers))
        },
        to: split_words(row.get("trust_to")?),
    }))
}
