//! Finds and selects a mailbox.

use async_imap::imap_proto::{AttributeValue, MailboxDatum, NameAttribute, Response, ResponseCode, StatusAttribute};
use jiff::Timestamp;

use super::connection::{Connection, quoted, response_code};
use super::error::{Error, Result};
use super::fetch::FetchedMail;
use super::login::Capabilities;
use super::renumbering::credible_date;
use super::utf7;

/// When a mailbox is opened, the INTERNALDATEs of this number of UIDs, up to the cursor, are compared with the dates in the
/// database. After the server was restored from a backup, new mails get the UIDs just below the cursor. Each UID adds about
/// seventy bytes to the server's answer.
pub const FINGERPRINT_UIDS: u32 = 200;

/// The state of the selected mailbox, as the server reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MailboxStatus {
    /// UIDVALIDITY (RFC 3501, 2.3.1.1).
    pub(super) uid_validity: u32,
    /// The highest UIDNEXT reported; `None` if the server reports none.
    pub(super) uid_next: Option<u32>,
    /// The number of mails in the mailbox, from `EXISTS`.
    pub(super) exists: u32,
    /// How many mails the server has announced with `EXISTS`, and no FETCH has requested yet.
    pub(super) announced: u32,
    /// The UIDVALIDITY has changed since SELECT.
    pub(super) is_renumbered: bool,
    /// How many FETCH responses could not be parsed and named no UID.
    pub(super) unparsed_fetches: usize,
    /// The newest INTERNALDATE of a mail, except dates too far in the future. When the mailbox is opened, this is the date from
    /// the database. A FETCH response with a newer date replaces it.
    pub(super) newest_at: Option<Timestamp>,
}

impl MailboxStatus {
    /// Sets `newest_at` to the INTERNALDATE of `mail`, if that date is newer, and not too far in the future.
    pub(super) fn record_date(&mut self, mail: &FetchedMail, now: Timestamp) {
        self.newest_at = self.newest_at.max(credible_date(mail, now));
    }

    /// Updates this status from a response of the server about the mailbox.
    pub(super) fn record(&mut self, response: &Response<'_>) {
        match (response, response_code(response)) {
            (Response::MailboxData(MailboxDatum::Exists(n)), _) => {
                self.announced = self.announced.saturating_add(n.saturating_sub(self.exists));
                self.exists = *n;
            }
            (_, Some(ResponseCode::UidValidity(n))) => self.is_renumbered |= *n != self.uid_validity,
            // imap-proto returns `Unknown` for a UID that it cannot parse.
            (Response::Fetch(_, items), _) if items.is_empty() || items.contains(&AttributeValue::Unknown) => {
                self.unparsed_fetches += 1;
            }
            (Response::Expunge(_), _) => self.exists = self.exists.saturating_sub(1),
            (_, Some(ResponseCode::UidNext(n))) => self.uid_next = self.uid_next.max(valid_uid_next(*n)),
            (Response::MailboxData(MailboxDatum::Status { status, .. }), _) => {
                let is_other = |s: &_| matches!(s, StatusAttribute::UidValidity(n) if *n != self.uid_validity);
                self.is_renumbered |= status.iter().any(is_other);
            }
            _ => {}
        }
    }

    /// Returns how many mails the server has announced, and sets this number to 0.
    pub(super) fn take_announced(&mut self) -> usize {
        std::mem::take(&mut self.announced) as usize
    }

    /// Sets `announced` to `count`: the number of announced mails that have not arrived yet.
    pub(super) fn announce_again(&mut self, count: usize) {
        self.announced = u32::try_from(count).unwrap_or(u32::MAX);
    }
}

/// The name of a mailbox, as people read it and as the server writes it. Servers encode names in modified UTF-7. Some servers
/// send names that are not valid modified UTF-7, and accept only these names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MailboxName {
    /// The name as people read it, in the configuration and the database.
    pub(super) display: String,
    /// The name as the server writes it.
    pub(super) encoded: String,
}

impl MailboxName {
    fn from_settings(name: &str) -> Self {
        MailboxName { display: name.to_owned(), encoded: utf7::encode(name) }
    }

    fn from_server(encoded: &str) -> Self {
        let display = utf7::decode(encoded).unwrap_or_else(|| encoded.to_owned());
        MailboxName { display, encoded: encoded.to_owned() }
    }
}

/// Returns the name of the mailbox `wanted`. If `wanted` is a special-use attribute such as `\Junk`, returns the name of the
/// mailbox with this attribute, or `None` if no mailbox has the attribute.
pub(super) async fn find_mailbox(
    connection: &mut Connection,
    capabilities: Capabilities,
    wanted: &str,
) -> Result<Option<MailboxName>> {
    if !wanted.starts_with('\\') {
        return Ok(Some(MailboxName::from_settings(wanted)));
    }
    // Some servers without SPECIAL-USE (Dovecot before 2.0.16, Courier) still report the attributes in a plain LIST.
    const PLAIN: &str = "LIST \"\" \"*\"";
    if !capabilities.special_use {
        return find_with_attribute(connection, PLAIN, wanted).await;
    }
    match find_with_attribute(connection, "LIST \"\" \"*\" RETURN (SPECIAL-USE)", wanted).await {
        // Proton Bridge lists the capability SPECIAL-USE but refuses `RETURN (SPECIAL-USE)`.
        Err(Error::Refused { .. }) => find_with_attribute(connection, PLAIN, wanted).await,
        found => found,
    }
}

/// Returns the first mailbox with the attribute `wanted` in the answer to the LIST `command`.
async fn find_with_attribute(connection: &mut Connection, command: &str, wanted: &str) -> Result<Option<MailboxName>> {
    let mut found = None;
    let has_attribute = |a: &NameAttribute<'_>| attribute_name(a).is_some_and(|a| a.eq_ignore_ascii_case(wanted));
    connection
        .command("LIST", command, |response| {
            let Response::MailboxData(MailboxDatum::List(mailbox)) = response else { return };
            if found.is_none() && mailbox.name_attributes.iter().any(has_attribute) {
                found = Some(MailboxName::from_server(&mailbox.name));
            }
        })
        .await?;
    Ok(found)
}

fn attribute_name<'a>(attribute: &'a NameAttribute<'_>) -> Option<&'a str> {
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

/// Opens a mailbox with SELECT if `writable`, because the setting `after` changes mails. Otherwise opens the mailbox read-only
/// with EXAMINE, and with SELECT only if EXAMINE does not work.
pub(super) async fn select(connection: &mut Connection, name: &MailboxName, writable: bool) -> Result<MailboxStatus> {
    let quoted_name = quoted(&name.encoded).ok_or_else(|| Error::Refused {
        command: "SELECT",
        message: "the mailbox's name contains a line break".into(),
    })?;
    let (mut validity, mut next, mut exists) = (None, None, 0);
    let command = if writable { "SELECT" } else { "EXAMINE" };
    let line = format!("{command} {quoted_name}");
    let opened = connection.command(command, &line, |response| match (response, response_code(response)) {
        (_, Some(ResponseCode::UidValidity(n))) => validity = Some(*n),
        (_, Some(ResponseCode::UidNext(n))) => next = valid_uid_next(*n),
        (Response::MailboxData(MailboxDatum::Exists(n)), _) => exists = *n,
        _ => {}
    });
    match opened.await {
        // Some small servers know only SELECT, not EXAMINE. If the mailbox does not exist, the server refuses the SELECT, too.
        Err(Error::Refused { .. }) if !writable => return Box::pin(select(connection, name, true)).await,
        opened => opened?,
    }
    // If a mailbox is opened only with EXAMINE, Courier gives it a new UIDVALIDITY each time, and its new mails get new UIDs.
    // Courier's answer to EXAMINE has no UIDNEXT. A SELECT makes the UIDs permanent; the mails stay unseen, but lose `\Recent`.
    // Xeams leaves UIDVALIDITY out of its answer to EXAMINE.
    if !writable && (validity.is_none() || next.is_none()) {
        return Box::pin(select(connection, name, true)).await;
    }
    // RFC 3501 allows a server to leave UIDNEXT out of its answer to SELECT.
    if validity.is_none() || next.is_none() {
        let items = if validity.is_none() { "UIDNEXT UIDVALIDITY" } else { "UIDNEXT" };
        let status = request_status(connection, &quoted_name, items).await?;
        (validity, next) = (validity.or(status.0), next.or(status.1));
    }
    let no_uids = || Error::Protocol("no UIDVALIDITY, neither in SELECT nor in STATUS".into());
    let uid_validity = validity.ok_or_else(no_uids)?;
    Ok(MailboxStatus {
        uid_validity,
        uid_next: next,
        exists,
        announced: 0,
        is_renumbered: false,
        unparsed_fetches: 0,
        newest_at: None,
    })
}

/// The reported UIDNEXT; `None` for 0, which some servers report instead of an unknown UIDNEXT. UIDs begin at 1 (RFC 3501,
/// 2.3.1.1).
fn valid_uid_next(reported: u32) -> Option<u32> {
    Some(reported).filter(|next| *next > 0)
}

/// Requests `items` with STATUS. Returns UIDVALIDITY and UIDNEXT, each `None` if the server does not report it.
async fn request_status(
    connection: &mut Connection,
    quoted_name: &str,
    items: &str,
) -> Result<(Option<u32>, Option<u32>)> {
    let (mut validity, mut uid_next) = (None, None);
    let command = format!("STATUS {quoted_name} ({items})");
    let answered = connection.command("STATUS", &command, |response| {
        let Response::MailboxData(MailboxDatum::Status { status, .. }) = response else { return };
        for attribute in status {
            match attribute {
                StatusAttribute::UidValidity(n) => validity = Some(*n),
                StatusAttribute::UidNext(n) => uid_next = valid_uid_next(*n),
                _ => {}
            }
        }
    });
    match answered.await {
        // Some servers refuse STATUS for the selected mailbox, because clients SHOULD NOT send it (RFC 3501, 6.3.10).
        Ok(()) | Err(Error::Refused { .. }) => Ok((validity, uid_next)),
        Err(error) => Err(error),
    }
}
