//! Stores mails in the table `mails`. One SQLite transaction commits mails, their events, their deliveries and the cursor, so
//! that no mail is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use ring::digest;
use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::events::{self, Admitted};
use super::undelivered::{self, RowsOfUid};
use crate::db::{Cursor, EMPTY_SHA256, Result, Store, StoreSettings, advance, current_time, record_notification};
use crate::model::{
    Envelope, Examined, Judgement, Outcome, RawMail, Reason, SignedHeaders, Trust, TrustProof, Undelivered, iso,
};

/// A mail with the result of its examination.
#[derive(Debug, Clone)]
pub struct ExaminedMail {
    /// The mail.
    pub mail: RawMail,
    /// The result of the mail's examination.
    pub examined: Examined,
    /// The SHA-256 of the mail's bytes, in hex.
    sha256: String,
    /// `Some` if the server has delivered no bytes of the mail.
    undelivered: Option<Undelivered>,
}

impl ExaminedMail {
    /// Creates an examined mail. The SHA-256 is computed here, because this function runs on several threads, and only one thread
    /// writes the database.
    #[must_use]
    pub fn new(mail: RawMail, examined: Examined) -> Self {
        let sha256 = HEXLOWER.encode(digest::digest(&digest::SHA256, &mail.bytes).as_ref());
        ExaminedMail { mail, examined, sha256, undelivered: None }
    }

    /// Creates an [`ExaminedMail`] for a mail whose bytes the server did not deliver.
    #[must_use]
    pub fn undelivered(undelivered: Undelivered) -> Self {
        let Undelivered { origin, size, received_at, .. } = undelivered.clone();
        let judgement = Judgement::Quarantined(undelivered.reason());
        ExaminedMail {
            mail: RawMail { origin, bytes: Vec::new(), size, received_at },
            examined: Examined { judgement, proof: None, envelope: Envelope::default() },
            sha256: EMPTY_SHA256.to_owned(),
            undelivered: Some(undelivered),
        }
    }

    /// Whether the server has delivered the mail's bytes.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.undelivered.is_none()
    }
}

/// The result of storing one mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The id of the mail's row in `mails`. `None`: the mail was stored before, or gets no row.
    pub mail_id: Option<i64>,
    /// The outcome of the mail.
    pub outcome: Outcome,
    /// The reason for the outcome.
    pub reason: Option<Reason>,
    /// The id of the event that the mail made or repeats.
    pub event_id: Option<String>,
    /// The id of the session that the mail names, or that was found for the mail's event.
    pub session_id: Option<String>,
}

impl Store {
    /// Stores mails and moves the mailbox's cursor, in one SQLite transaction. Returns after the commit.
    ///
    /// A mail that is already stored gets no second row. A mail with a UID is compared by its UID and its bytes, an imported mail
    /// by its account and its bytes.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. After an error, nothing is stored, and the caller may retry.
    pub async fn record(
        &self,
        entries: impl Into<Arc<[ExaminedMail]>>,
        cursor: Option<Cursor>,
    ) -> Result<Vec<Recorded>> {
        let (settings, entries) = (self.settings.clone(), entries.into());
        let recorded = self.write(move |tx| record_all(tx, &settings, &entries, cursor.as_ref())).await?;
        if recorded.iter().any(|r| r.event_id.is_some()) {
            self.wake_outbox();
        }
        if recorded.iter().any(|r| r.outcome == Outcome::Deferred) {
            self.deferrals.send_modify(|n| *n = n.wrapping_add(1));
        }
        Ok(recorded)
    }
}

fn record_all(
    tx: &Connection,
    settings: &Arc<StoreSettings>,
    entries: &[ExaminedMail],
    cursor: Option<&Cursor>,
) -> Result<Vec<Recorded>> {
    let recorded = entries.iter().map(|entry| record_one(tx, settings, entry)).collect::<Result<Vec<_>>>()?;
    record_notifications(tx, entries, &recorded)?;
    if let Some(cursor) = cursor {
        advance(tx, cursor)?;
    }
    Ok(recorded)
}

/// Writes into the table `accounts` when each account received its newest proven notification of this batch.
fn record_notifications(tx: &Connection, entries: &[ExaminedMail], recorded: &[Recorded]) -> Result<()> {
    let now = Timestamp::now();
    let mut newest = BTreeMap::<&str, Timestamp>::new();
    for (ExaminedMail { mail, examined, .. }, recorded) in entries.iter().zip(recorded) {
        let is_new = recorded.mail_id.is_some();
        if is_new && is_proven_notification(recorded.outcome, examined.proof.as_ref()) {
            let at = time_received(mail.received_at, examined.envelope.sent_at, now);
            newest.entry(&mail.origin.account).and_modify(|newest| *newest = at.max(*newest)).or_insert(at);
        }
    }
    newest.into_iter().try_for_each(|(account, at)| record_notification(tx, account, at))
}

/// Whether a mail with this outcome and this proof is a proven notification. With `accept = ["none"]`, every notification counts
/// as proven. A mail that only an operator has released does not count as proven.
pub(super) fn is_proven_notification(outcome: Outcome, proof: Option<&TrustProof>) -> bool {
    matches!(outcome, Outcome::Event | Outcome::Duplicate) && proof.is_some_and(|proof| proof.trust != Trust::Operator)
}

/// The time at which the server received a mail. If this time is unknown, as for an imported mail, returns the Date of the mail.
/// Without a Date, returns `now`. Also returns `now` instead of a time in the future, because until that time the daemon would
/// not notice that notifications are missing.
pub(super) fn time_received(by_server: Option<Timestamp>, date: Option<Timestamp>, now: Timestamp) -> Timestamp {
    by_server.or(date).map_or(now, |at| at.min(now))
}

fn record_one(tx: &Connection, settings: &StoreSettings, entry: &ExaminedMail) -> Result<Recorded> {
    let RowsOfUid { same, without_bytes } = undelivered::of_uid(tx, &entry.mail, &entry.sha256)?;
    if let (Some(mail), None) = (&entry.undelivered, &same) {
        return undelivered::record(tx, mail, without_bytes);
    }
    if let Some(event_id) = recorded_before(tx, entry, same)? {
        if let Some(id) = without_bytes {
            undelivered::close(tx, id, event_id.as_deref())?;
        }
        return Ok(Recorded { mail_id: None, outcome: Outcome::Duplicate, reason: None, event_id, session_id: None });
    }
    if let Some(id) = without_bytes {
        undelivered::remove(tx, id)?;
    }
    let admitted = match &entry.examined.judgement {
        Judgement::Event(event) => events::admit(tx, settings, event)?,
        Judgement::Ignored(reason) => Admitted::without_event(Outcome::Ignored, reason),
        Judgement::Quarantined(reason) => Admitted::without_event(Outcome::Quarantined, reason),
        Judgement::Deferred(reason) => Admitted::without_event(Outcome::Deferred, reason),
    };
    let mail_id = insert(tx, without_bytes, entry, &admitted)?;
    let Admitted { outcome, reason, event_id, session_id } = admitted;
    Ok(Recorded { mail_id: Some(mail_id), outcome, reason, event_id, session_id })
}

/// Returns the event id in the row that this mail already has. The outer `None`: the mail was not stored before. A mail comes
/// again if the program ends after a commit, before the caller has the result, or if an import runs twice. The stored mail and
/// the new mail must also have the same bytes, because a server that was restored from a backup may give the UID of a stored mail
/// to another mail.
fn recorded_before(
    tx: &Connection,
    entry: &ExaminedMail,
    same_uid: Option<Option<String>>,
) -> Result<Option<Option<String>>> {
    if entry.mail.origin.uid.is_some() {
        return Ok(same_uid);
    }
    let imported = tx
        .prepare_cached("SELECT event_id FROM mails WHERE account = ?1 AND sha256 = ?2 AND uid IS NULL")?
        .query_row(params![entry.mail.origin.account, entry.sha256], |row| row.get(0));
    Ok(imported.optional()?)
}

/// Inserts the mail into `mails`. `id`: the id of the row that the mail had before its bytes arrived.
fn insert(tx: &Connection, id: Option<i64>, entry: &ExaminedMail, admitted: &Admitted) -> Result<i64> {
    let ExaminedMail { mail, examined, sha256, .. } = entry;
    let Envelope { message_id, sender, recipient, subject, sent_at } = &examined.envelope;
    let proof = examined.proof.as_ref();
    tx.prepare_cached(
        "INSERT OR FAIL INTO mails (account, mailbox, uid_validity, uid, message_id, sender, recipient, subject, sent_at,
           received_at, size, sha256, raw, outcome, reason, trust, event_id, trust_domain, trust_selector, trust_covers,
           trust_to, judged_at, next_judgement_at)
         VALUES (:account, :mailbox, :uid_validity, :uid, :message_id, :sender, :recipient, :subject, :sent_at,
           :received_at, :size, :sha256, :raw, :outcome, :reason, :trust, :event_id, :trust_domain, :trust_selector,
           :trust_covers, :trust_to, :judged_at, :next_judgement_at)",
    )?
    .execute(named_params! {
        ":account": mail.origin.account,
        ":mailbox": mail.origin.mailbox,
        ":uid_validity": mail.origin.uid.map(|(validity, _)| validity),
        ":uid": mail.origin.uid.map(|(_, uid)| uid),
        ":message_id": message_id,
        ":sender": sender,
        ":recipient": recipient,
        ":subject": subject,
        ":sent_at": sent_at.map(iso),
        ":received_at": mail.received_at.map(iso),
        ":size": i64::try_from(mail.size).unwrap_or(i64::MAX),
        ":sha256": sha256,
        ":raw": mail.bytes,
        ":outcome": admitted.outcome.as_str(),
        ":reason": admitted.reason.as_ref().map(Reason::to_string),
        ":trust": proof.map(|p| p.trust.as_str()),
        ":event_id": admitted.event_id,
        ":trust_domain": proof.and_then(|p| p.domain.as_deref()),
        ":trust_selector": proof.and_then(|p| p.selector.as_deref()),
        ":trust_covers": proof.map(covers),
        ":trust_to": proof.map(|p| p.to.join(" ")),
        ":judged_at": current_time(),
        ":next_judgement_at": (admitted.outcome == Outcome::Deferred).then(soon),
    })?;
    let new = tx.last_insert_rowid();
    if let Some(id) = id {
        tx.prepare_cached("UPDATE mails SET id = ?2 WHERE id = ?1")?.execute(params![new, id])?;
    }
    Ok(id.unwrap_or(new))
}

/// Returns the time of the next examination of a mail that was just deferred.
fn soon() -> String {
    iso(Timestamp::now() + jiff::SignedDuration::from_secs(60))
}

/// Returns the names of the signed header fields, as the column `trust_covers` stores them.
pub(super) fn covers(proof: &TrustProof) -> String {
    match &proof.signed_headers {
        SignedHeaders::All => "*".into(),
        SignedHeaders::Only(names) => names.join(" "),
    }
}
