//! Finding and opening a mailbox.

use async_imap::imap_proto::{AttributeValue, MailboxDatum, NameAttribute, Response, ResponseCode, StatusAttribute};

use jiff::{SignedDuration, Timestamp};

use super::account::ResumePoint;
use super::connection::{Connection, ResponseTimeout, quoted, response_code};
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::login::Capabilities;
use super::timing::Timing;
use super::utf7;
use crate::model::SyncPosition;

/// How many of the last numbers that were read are looked at when a mailbox is opened again. New mails under old numbers
/// lie right below the cursor; each mail costs some seventy bytes of the answer.
pub const FINGERPRINT_UIDS: u32 = 200;
/// How far a server's clock may be ahead of ours.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// An open mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MailboxStatus {
    /// Its numbering (RFC 3501, 2.3.1.1).
    pub(super) uid_validity: u32,
    /// The UID of the next mail, at least; `None` if the server does not say.
    pub(super) uid_next: Option<u32>,
    /// How many mails are in it.
    pub(super) exists: u32,
    /// How many of them were announced, and not looked for yet.
    pub(super) fresh: u32,
    /// The server has begun another numbering since.
    pub(super) renumbered: bool,
    /// How many FETCH responses could not be parsed and named no UID.
    pub(super) unreadable: usize,
    /// When the server took the newest mail of which that was asked here: of the last [`FINGERPRINT_UIDS`] numbers, at least.
    pub(super) newest_at: Option<Timestamp>,
}

impl MailboxStatus {
    /// Takes note of when a mail came.
    pub(super) fn saw(&mut self, item: &FetchedMail, now: Timestamp) {
        self.newest_at = self.newest_at.max(credible(item, now));
    }

    /// Takes note of an untagged answer that is about the mailbox.
    pub(super) fn note(&mut self, response: &Response<'_>) {
        match (response, response_code(response)) {
            (Response::MailboxData(MailboxDatum::Exists(n)), _) => {
                self.fresh = self.fresh.saturating_add(n.saturating_sub(self.exists));
                self.exists = *n;
            }
            (_, Some(ResponseCode::UidValidity(n))) => self.renumbered |= *n != self.uid_validity,
            // imap-proto takes `UID ?` for an unknown item.
            (Response::Fetch(_, items), _) if items.is_empty() || items.contains(&AttributeValue::Unknown) => {
                self.unreadable += 1;
            }
            (Response::Expunge(_), _) => self.exists = self.exists.saturating_sub(1),
            (_, Some(ResponseCode::UidNext(n))) => self.uid_next = self.uid_next.max(uid_next(*n)),
            (Response::MailboxData(MailboxDatum::Status { status, .. }), _) => {
                let other = |s: &_| matches!(s, StatusAttribute::UidValidity(n) if *n != self.uid_validity);
                self.renumbered |= status.iter().any(other);
            }
            _ => {}
        }
    }
}

/// A mailbox's name: as a person reads it, here and in the database, and as it goes over the wire. That is modified UTF-7,
/// but some servers name a mailbox in another way, and know it by no other name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MailboxName {
    pub(super) name: String,
    pub(super) connection: String,
}

impl MailboxName {
    fn from_settings(name: &str) -> Self {
        MailboxName { name: name.to_owned(), connection: utf7::encode(name) }
    }

    fn from_server(connection: &str) -> Self {
        MailboxName {
            name: utf7::decode(connection).unwrap_or_else(|| connection.to_owned()),
            connection: connection.to_owned(),
        }
    }
}

/// The name of the mailbox that `wanted` stands for: itself, or for `\Junk` the one so marked; `None` if none is.
pub(super) async fn find_mailbox(
    connection: &mut Connection,
    capabilities: Capabilities,
    wanted: &str,
) -> Result<Option<MailboxName>> {
    if !wanted.starts_with('\\') {
        return Ok(Some(MailboxName::from_settings(wanted)));
    }
    // Without SPECIAL-USE some servers (Dovecot before 2.0.16, Courier) still mark what a plain LIST shows.
    const PLAIN: &str = "LIST \"\" \"*\"";
    if !capabilities.special_use {
        return find_marked(connection, PLAIN, wanted).await;
    }
    match find_marked(connection, "LIST \"\" \"*\" RETURN (SPECIAL-USE)", wanted).await {
        // Announced and refused (Proton Bridge).
        Err(Error::Refused { .. }) => find_marked(connection, PLAIN, wanted).await,
        found => found,
    }
}

/// The first mailbox that this LIST shows with the attribute.
async fn find_marked(connection: &mut Connection, list: &str, wanted: &str) -> Result<Option<MailboxName>> {
    let mut found = None;
    connection
        .command("LIST", list, |response| {
            let Response::MailboxData(MailboxDatum::List(mailbox)) = response else { return };
            let marked =
                mailbox.name_attributes.iter().any(|a| attribute(a).is_some_and(|a| a.eq_ignore_ascii_case(wanted)));
            if marked && found.is_none() {
                found = Some(MailboxName::from_server(&mailbox.name));
            }
        })
        .await?;
    Ok(found)
}

fn attribute<'a>(attribute: &'a NameAttribute<'_>) -> Option<&'a str> {
    Some(match attribute {
        NameAttribute::All => "\\All",
        NameAttribute::Archive => "\\Archive",
        NameAttribute::Drafts => "\\Drafts",
        NameAttribute::Flagged => "\\Flagged",
        NameAttribute::Junk => "\\Junk",
        NameAttribute::Sent => "\\Sent",
        NameAttribute::Trash => "\\Trash",
        NameAttribute::Extension(word) => word,
        _ => return None,
    })
}

/// Opens a mailbox: for reading only, unless `writable`, or the server keeps its numbers only so.
pub(super) async fn select(connection: &mut Connection, named: &MailboxName, writable: bool) -> Result<MailboxStatus> {
    let quoted_name = quoted(&named.connection)
        .ok_or_else(|| Error::Refused { command: "SELECT", words: "the mailbox's name holds a line break".into() })?;
    let (mut validity, mut next, mut exists) = (None, None, 0);
    let command = if writable { "SELECT" } else { "EXAMINE" };
    connection
        .command(command, &format!("{command} {quoted_name}"), |response| match (response, response_code(response)) {
            (_, Some(ResponseCode::UidValidity(n))) => validity = Some(*n),
            (_, Some(ResponseCode::UidNext(n))) => next = uid_next(*n),
            (Response::MailboxData(MailboxDatum::Exists(n)), _) => exists = *n,
            _ => {}
        })
        .await?;
    // Courier: what is only ever opened for reading has another UIDVALIDITY each time, and new mails are numbered
    // anew, perhaps in another order. (SELECT leaves them unseen too, if no longer recent.) It leaves UIDNEXT out then;
    // Xeams leaves UIDVALIDITY out.
    if !writable && (validity.is_none() || next.is_none()) {
        return Box::pin(select(connection, named, true)).await;
    }
    // Some servers leave UIDNEXT out of SELECT, which RFC 3501 allows.
    if validity.is_none() || next.is_none() {
        let items = if validity.is_none() { "UIDNEXT UIDVALIDITY" } else { "UIDNEXT" };
        let status = status(connection, &quoted_name, items).await?;
        (validity, next) = (validity.or(status.0), next.or(status.1));
    }
    let lacks = || Error::Protocol("no UIDVALIDITY, neither in SELECT nor in STATUS".into());
    let uid_validity = validity.ok_or_else(lacks)?;
    Ok(MailboxStatus {
        uid_validity,
        uid_next: next,
        exists,
        fresh: 0,
        renumbered: false,
        unreadable: 0,
        newest_at: None,
    })
}

/// When the server took a mail; `None` for a date that no clock can be wrong by. (An APPEND may bring any: one from the
/// year 2038 must not make all that comes until then look old.)
fn credible(item: &FetchedMail, now: Timestamp) -> Option<Timestamp> {
    item.received_at.filter(|at| at.duration_since(now) <= AHEAD)
}

/// Whether the numbers still mean the mails that they meant.
///
/// Another UIDVALIDITY: they do not, so all is read anew. A UIDNEXT that has fallen means the same, whatever the server
/// says: it was restored from a backup. If by now so many new mails have come that UIDNEXT is past our cursor, they are
/// seen among the last numbers that were read: another mail is in the place of one that we know, or one that we do not
/// know (of somebody else, in a shared mailbox) is newer than any of the last that were read. Only the server's clock is
/// asked. A COPY or a MOVE keeps the date, and gives a number of its own.
///
/// Event ids make reading anew harmless. It is done once for each finding: what was found is noted, and by then what was
/// recorded under the old numbers is no landmark any more.
pub(super) async fn uids_are_unchanged(
    connection: &mut Connection,
    selected: &mut MailboxStatus,
    known: &ResumePoint,
    timing: &Timing,
    now: Timestamp,
) -> Result<bool> {
    let SyncPosition { uid_validity, last_uid, newest_at, .. } = known.position;
    selected.newest_at = newest_at;
    let (uid_validity, last_uid) = (uid_validity.0, last_uid.0);
    if uid_validity != selected.uid_validity || selected.uid_next.is_some_and(|next| last_uid >= next) {
        return Ok(false);
    }
    if last_uid == 0 {
        return Ok(true);
    }
    let first = last_uid.saturating_sub(FINGERPRINT_UIDS - 1).max(1);
    let sent = connection.send("UID FETCH", &format!("UID FETCH {first}:{last_uid} (UID INTERNALDATE)")).await?;
    let mut another = false;
    connection
        .finish(&sent, ResponseTimeout::streaming(timing.mail, timing.answer), |response| {
            match FetchedMail::from_response(response) {
                Some(item) => {
                    another |= item.uid <= last_uid && is_another(&item, known, now);
                    selected.saw(&item, now);
                }
                None => selected.note(response),
            }
        })
        .await?;
    Ok(!another)
}

/// Whether this mail, under a number that was read, is not the one that was read. One that is gone proves nothing (Dovecot
/// says 1970 of one that is removed while we ask), and two may have been recorded under one number: the server has pushed
/// one of them under a wrong one.
fn is_another(item: &FetchedMail, known: &ResumePoint, now: Timestamp) -> bool {
    // The date of a mail that was not delivered may never have been seen.
    if known.undelivered.iter().any(|(uid, _)| *uid == item.uid) {
        return false;
    }
    let Some(at) = item.received_at.filter(|at| *at != Timestamp::UNIX_EPOCH) else { return false };
    let mut recorded = known.uid_fingerprints.iter().filter(|(uid, _)| *uid == item.uid).peekable();
    if recorded.peek().is_some() {
        return !recorded.any(|(_, then)| then.as_second() == at.as_second());
    }
    known.position.newest_at.is_some_and(|newest| credible(item, now).is_some_and(|at| at > newest))
}

/// A UIDNEXT. Some servers report 0, which no mail can have (RFC 3501, 2.3.1.1): they do not know it.
fn uid_next(reported: u32) -> Option<u32> {
    Some(reported).filter(|next| *next > 0)
}

/// The UIDVALIDITY and the UIDNEXT that STATUS says.
async fn status(connection: &mut Connection, quoted_name: &str, items: &str) -> Result<(Option<u32>, Option<u32>)> {
    let (mut validity, mut next) = (None, None);
    let command = format!("STATUS {quoted_name} ({items})");
    let asked = connection.command("STATUS", &command, |response| {
        let Response::MailboxData(MailboxDatum::Status { status, .. }) = response else { return };
        for attribute in status {
            match attribute {
                StatusAttribute::UidValidity(n) => validity = Some(*n),
                StatusAttribute::UidNext(n) => next = uid_next(*n),
                _ => {}
            }
        }
    });
    match asked.await {
        // RFC 3501 (6.3.10) lets a server refuse this for the mailbox that is selected.
        Ok(()) | Err(Error::Refused { .. }) => Ok((validity, next)),
        Err(error) => Err(error),
    }
}
