//! The transaction that promise 1 depends on: mails, their events, their deliveries and the cursor are committed
//! together.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use ring::digest;
use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::events::{self, Admitted};
use crate::db::{Cursor, Result, Store, StoreSettings, advance, current_time};
use crate::model::{Covered, Envelope, Examined, Judgement, Outcome, Proof, RawMail, Reason, iso};

/// A mail with the result of its examination.
#[derive(Debug, Clone)]
pub struct ExaminedMail {
    /// The mail.
    pub mail: RawMail,
    /// The result of its examination.
    pub examined: Examined,
    /// SHA-256 of its bytes, in hex.
    sha256: String,
}

impl ExaminedMail {
    /// An examined mail. The digest is computed here, on many threads, and not on the one writer thread.
    #[must_use]
    pub fn new(mail: RawMail, examined: Examined) -> Self {
        let sha256 = HEXLOWER.encode(digest::digest(&digest::SHA256, &mail.bytes).as_ref());
        ExaminedMail { mail, examined, sha256 }
    }
}

/// How a mail was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The id of its row; `None` if the mail was recorded before.
    pub mail_id: Option<i64>,
    /// Its outcome.
    pub outcome: Outcome,
    /// The reason for the outcome.
    pub reason: Option<Reason>,
    /// The event that it made or repeats.
    pub event_id: Option<String>,
    /// That event's session, if this mail shows it.
    pub session_id: Option<String>,
}

impl Store {
    /// Records mails and moves the cursor, in one transaction; returns after the commit.
    ///
    /// A mail that is already stored (the same bytes under the same UID, or from an import) gets no second row.
    ///
    /// # Errors
    ///
    /// [`crate::db::Error`]. Then nothing was recorded, and the caller may retry.
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
    if let Some(cursor) = cursor {
        advance(tx, cursor)?;
    }
    Ok(recorded)
}

fn record_one(tx: &Connection, settings: &StoreSettings, entry: &ExaminedMail) -> Result<Recorded> {
    if let Some(recorded) = recorded_before(tx, &entry.mail, &entry.sha256)? {
        return Ok(recorded);
    }
    let admitted = match &entry.examined.judgement {
        Judgement::Event(event) => events::admit(tx, settings, event)?,
        Judgement::Ignored(reason) => Admitted::without_event(Outcome::Ignored, reason),
        Judgement::Quarantined(reason) => Admitted::without_event(Outcome::Quarantined, reason),
        Judgement::Deferred(reason) => Admitted::without_event(Outcome::Deferred, reason),
    };
    let mail_id = insert(tx, entry, &admitted)?;
    let Admitted { outcome, reason, event_id, session_id } = admitted;
    Ok(Recorded { mail_id: Some(mail_id), outcome, reason, event_id, session_id })
}

/// Finds the row of a mail that comes again: after a crash between commit and reply, or by a second import. The bytes
/// are compared, too: a server that was restored from a backup gives a used UID to another mail.
fn recorded_before(tx: &Connection, mail: &RawMail, sha256: &str) -> Result<Option<Recorded>> {
    let known = |event_id: Option<String>| Recorded {
        mail_id: None,
        outcome: Outcome::Duplicate,
        reason: None,
        event_id,
        session_id: None,
    };
    let found = match mail.origin.uid {
        Some((validity, uid)) => tx
            .prepare_cached(
                "SELECT event_id FROM mails
                 WHERE account = ?1 AND mailbox = ?2 AND uid_validity = ?3 AND uid = ?4 AND sha256 = ?5",
            )?
            .query_row(params![mail.origin.account, mail.origin.mailbox, validity, uid, sha256], |row| row.get(0)),
        None => tx
            .prepare_cached("SELECT event_id FROM mails WHERE account = ?1 AND sha256 = ?2 AND uid IS NULL")?
            .query_row(params![mail.origin.account, sha256], |row| row.get(0)),
    };
    Ok(found.optional()?.map(known))
}

fn insert(tx: &Connection, entry: &ExaminedMail, admitted: &Admitted) -> Result<i64> {
    let ExaminedMail { mail, examined, sha256 } = entry;
    let Envelope { message_id, sender, recipient, subject, sent_at } = &examined.envelope;
    let proof = examined.proof.as_ref();
    tx.prepare_cached(
        "INSERT INTO mails (account, mailbox, uid_validity, uid, message_id, sender, recipient, subject, sent_at,
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
    Ok(tx.last_insert_rowid())
}

/// When a mail that was just deferred is examined again for the first time.
fn soon() -> String {
    iso(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60))
}

/// The signed header fields, as they are stored.
pub(super) fn covers(proof: &Proof) -> String {
    match &proof.covers {
        Covered::All => "*".into(),
        Covered::Only(names) => names.join(" "),
    }
}
