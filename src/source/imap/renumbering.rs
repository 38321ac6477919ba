//! Whether the UIDs of a mailbox still mean the same mails as before.

use async_imap::imap_proto::Response;
use jiff::{SignedDuration, Timestamp};

use super::account::ResumePoint;
use super::connection::{Connection, ResponseTimeout};
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::mailbox::{FINGERPRINT_UIDS, MailboxStatus};
use super::timing::Timing;
use super::uid_search::highest_uid;
use crate::model::SyncPosition;

/// How far the clock of a mail server may be ahead of this machine's clock.
const MAX_CLOCK_LEAD: SignedDuration = SignedDuration::from_hours(24);

/// Whether the UIDs up to the cursor still mean the mails that were read.
///
/// The UIDs mean other mails if UIDVALIDITY changed. The UIDs also mean other mails if UIDNEXT is not above the cursor, because
/// then the server was restored from a backup. After a restore, new mails may have raised UIDNEXT above the cursor again. So the
/// INTERNALDATEs of the last [`FINGERPRINT_UIDS`] UIDs are compared with the stored dates. A different date under a known UID
/// shows another mail. A UID is unknown if it belongs to a mail of another sender in a shared mailbox. Under an unknown UID, a
/// date that is newer than all known dates shows another mail. All these dates come from the server, so its clock need not be
/// right. COPY and MOVE keep the date of a mail, but they give it a new UID.
///
/// An event's id is derived from its content, so it is harmless to read a mailbox again. The mailbox is read again only once for
/// each renumbering, because the new position excludes the fingerprints from before the renumbering.
pub(super) async fn uids_are_unchanged(
    connection: &mut Connection,
    status: &mut MailboxStatus,
    known: &ResumePoint,
    timing: &Timing,
    now: Timestamp,
) -> Result<bool> {
    let SyncPosition { uid_validity, last_uid, newest_at, .. } = known.position;
    status.newest_at = newest_at;
    let (uid_validity, last_uid) = (uid_validity.0, last_uid.0);
    if uid_validity != status.uid_validity || status.uid_next.is_some_and(|next| last_uid >= next) {
        return Ok(false);
    }
    if last_uid == 0 {
        return Ok(true);
    }
    let first = last_uid.saturating_sub(FINGERPRINT_UIDS - 1).max(1);
    let set = format!("{first}:{last_uid}");
    let pending = connection.send("UID FETCH", &format!("UID FETCH {set} (UID INTERNALDATE)")).await?;
    let mut is_changed = false;
    let timeout = ResponseTimeout::streaming(timing.mail, timing.answer);
    let on_response = |response: &Response<'_>| match FetchedMail::from_response(response) {
        Some(mail) => {
            is_changed |= mail.uid <= last_uid && is_another_mail(&mail, known, now);
            status.record_date(&mail, now);
        }
        None => status.record(response),
    };
    match connection.finish(&pending, timeout, on_response).await {
        // If all requested mails are gone, no UID means another mail, although some servers refuse the FETCH.
        Err(Error::Refused { .. })
            if highest_uid(connection, &set, timing.answer, |response| status.record(response)).await? == Some(0) => {}
        answered => answered?,
    }
    Ok(!is_changed)
}

/// Whether the INTERNALDATE of `mail` shows that its UID belonged to another mail when this UID was read.
fn is_another_mail(mail: &FetchedMail, known: &ResumePoint, now: Timestamp) -> bool {
    // The stored date of an undelivered mail may be missing, so the dates of such a mail are not compared.
    if known.undelivered.iter().any(|(uid, _)| *uid == mail.uid) {
        return false;
    }
    // Dovecot reports 1970 for a mail that is removed during the FETCH, so this date proves nothing.
    let Some(at) = mail.received_at.filter(|at| *at != Timestamp::UNIX_EPOCH) else { return false };
    // A UID can have two stored dates, if the server once pushed a mail under a wrong UID. One matching date is enough.
    let mut dates = known.uid_fingerprints.iter().filter(|(uid, _)| *uid == mail.uid).peekable();
    if dates.peek().is_some() {
        return !dates.any(|(_, date)| date.as_second() == at.as_second());
    }
    known.position.newest_at.is_some_and(|newest| credible_date(mail, now).is_some_and(|at| at > newest))
}

/// The INTERNALDATE, unless it is too far in the future. An APPEND can set any date: a mail dated 2038 must not make all mails
/// before that year look old.
pub(super) fn credible_date(mail: &FetchedMail, now: Timestamp) -> Option<Timestamp> {
    mail.received_at.filter(|at| at.duration_since(now) <= MAX_CLOCK_LEAD)
}
