//! Finding and opening a mailbox.

use async_imap::imap_proto::{MailboxDatum, NameAttribute, Response, ResponseCode, StatusAttribute};

use super::account::Known;
use super::connect::Offers;
use super::error::{Error, Result};
use super::fetch::Item;
use super::utf7;
use super::wire::{Wire, code, quoted};

/// An open mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selected {
    /// Its numbering (RFC 3501, 2.3.1.1).
    pub(super) uid_validity: u32,
    /// The UID of the next mail, at least.
    pub(super) uid_next: u32,
    /// How many mails are in it.
    pub(super) exists: u32,
    /// How many of them were announced, and not looked for yet.
    pub(super) fresh: u32,
    /// The server has begun another numbering since.
    pub(super) renumbered: bool,
}

impl Selected {
    /// Takes note of an untagged answer that is about the mailbox.
    pub(super) fn note(&mut self, response: &Response<'_>) {
        match (response, code(response)) {
            (Response::MailboxData(MailboxDatum::Exists(n)), _) => {
                self.fresh = self.fresh.saturating_add(n.saturating_sub(self.exists));
                self.exists = *n;
            }
            (_, Some(ResponseCode::UidValidity(n))) => self.renumbered |= *n != self.uid_validity,
            (Response::Expunge(_), _) => self.exists = self.exists.saturating_sub(1),
            (_, Some(ResponseCode::UidNext(n))) => self.uid_next = self.uid_next.max(*n),
            (Response::MailboxData(MailboxDatum::Status { status, .. }), _) => {
                let other = |s: &_| matches!(s, StatusAttribute::UidValidity(n) if *n != self.uid_validity);
                self.renumbered |= status.iter().any(other);
            }
            _ => {}
        }
    }
}

/// The name of the mailbox that `wanted` stands for: itself, or for `\Junk` the one so marked; `None` if none is.
/// Here and in the database a name is what a person reads; over the wire it goes in modified UTF-7.
pub(super) async fn resolve(wire: &mut Wire, offers: Offers, wanted: &str) -> Result<Option<String>> {
    if !wanted.starts_with('\\') {
        return Ok(Some(wanted.to_owned()));
    }
    // Without SPECIAL-USE some servers (Dovecot before 2.0.16, Courier) still mark what a plain LIST shows.
    let list = if offers.special_use { "LIST \"\" \"*\" RETURN (SPECIAL-USE)" } else { "LIST \"\" \"*\"" };
    let mut found = None;
    wire.command("LIST", list, |response| {
        let Response::MailboxData(MailboxDatum::List(mailbox)) = response else { return };
        let marked =
            mailbox.name_attributes.iter().any(|a| attribute(a).is_some_and(|a| a.eq_ignore_ascii_case(wanted)));
        if marked && found.is_none() {
            found = Some(utf7::decode(&mailbox.name).unwrap_or_else(|| mailbox.name.to_string()));
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
pub(super) async fn select(wire: &mut Wire, name: &str, writable: bool) -> Result<Selected> {
    let quoted_name = quoted(&utf7::encode(name))
        .ok_or_else(|| Error::Refused { command: "SELECT", words: "the mailbox's name holds a line break".into() })?;
    let (mut validity, mut next, mut exists) = (None, None, 0);
    let command = if writable { "SELECT" } else { "EXAMINE" };
    wire.command(command, &format!("{command} {quoted_name}"), |response| match (response, code(response)) {
        (_, Some(ResponseCode::UidValidity(n))) => validity = Some(*n),
        (_, Some(ResponseCode::UidNext(n))) => next = Some(*n),
        (Response::MailboxData(MailboxDatum::Exists(n)), _) => exists = *n,
        _ => {}
    })
    .await?;
    let uid_validity = validity.ok_or_else(|| Error::Protocol(format!("no UIDVALIDITY in answer to {command}")))?;
    let uid_next = match next {
        Some(n) => n,
        // Courier: what is only ever opened for reading has another UIDVALIDITY each time, and new mails are numbered
        // anew, perhaps in another order. (SELECT leaves them unseen too, if no longer recent.)
        None if !writable => return Box::pin(select(wire, name, true)).await,
        // Some servers leave UIDNEXT out of SELECT, which RFC 3501 allows.
        None => status_uid_next(wire, &quoted_name).await?,
    };
    Ok(Selected { uid_validity, uid_next, exists, fresh: 0, renumbered: false })
}

/// Whether the numbers still mean the mails that they meant.
///
/// Another UIDVALIDITY: they do not, so all is read anew. A UIDNEXT that has fallen means the same, whatever the server
/// says: it was restored from a backup. So does another mail in the place of one that was read. Event ids make reading
/// anew harmless.
pub(super) async fn is_same(wire: &mut Wire, selected: &mut Selected, known: &Known) -> Result<bool> {
    if known.uid_validity != selected.uid_validity || known.last_uid >= selected.uid_next {
        return Ok(false);
    }
    let Some((uid, received_at)) = known.landmark else { return Ok(true) };
    let mut another = false;
    wire.command("UID FETCH", &format!("UID FETCH {uid} (UID INTERNALDATE)"), |response| {
        match Item::read(response) {
            // One that is gone proves nothing.
            Some(item) if item.uid == uid => {
                another |= item.received_at.is_some_and(|at| at.as_second() != received_at.as_second());
            }
            _ => selected.note(response),
        }
    })
    .await?;
    Ok(!another)
}

async fn status_uid_next(wire: &mut Wire, quoted_name: &str) -> Result<u32> {
    let mut next = None;
    wire.command("STATUS", &format!("STATUS {quoted_name} (UIDNEXT)"), |response| {
        if let Response::MailboxData(MailboxDatum::Status { status, .. }) = response {
            next = status.iter().find_map(|s| if let StatusAttribute::UidNext(n) = s { Some(*n) } else { None });
        }
    })
    .await?;
    next.ok_or_else(|| Error::Protocol("no UIDNEXT, neither in SELECT nor in STATUS".into()))
}
