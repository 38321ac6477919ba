//! The data items that a FETCH requests, and the mails in FETCH responses.

use std::borrow::Cow;

use async_imap::imap_proto::{AttributeValue, MessageSection, Response, SectionPath};
use jiff::Timestamp;

use super::settings::ImapSettings;

/// The items for a shared mailbox, where the From field decides which mails are fetched.
///
/// The field is limited to 16 KiB. A From field of megabytes could exceed the limit of a response, and end each connection.
const SENDERS: &str = "UID BODY.PEEK[HEADER.FIELDS (FROM)]<0.16384>";
/// UID, INTERNALDATE and From, for UIDs whose INTERNALDATE is stored as a fingerprint (see [`renumbering`](super::renumbering)).
const HEADERS: &str = "UID INTERNALDATE BODY.PEEK[HEADER.FIELDS (FROM)]<0.16384>";

/// Which data items a FETCH requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchKind {
    /// The UID.
    Listing,
    /// UID and INTERNALDATE.
    Dates,
    /// UID and From.
    Senders,
    /// UID, From and INTERNALDATE.
    Headers,
    /// The whole mail, up to `max_size`.
    Body,
}

impl FetchKind {
    /// The items in IMAP syntax. PEEK leaves the mail unseen.
    pub(super) fn items(self, settings: &ImapSettings) -> Cow<'static, str> {
        match self {
            FetchKind::Listing => "UID".into(),
            FetchKind::Dates => "UID INTERNALDATE".into(),
            FetchKind::Senders => SENDERS.into(),
            FetchKind::Headers => HEADERS.into(),
            // BODY.PEEK requests one byte more than `max_size`. If fewer bytes than requested arrive, the body is complete, even
            // if RFC822.SIZE differs.
            FetchKind::Body => {
                let bytes = settings.max_size.0.saturating_add(1);
                format!("UID INTERNALDATE RFC822.SIZE BODY.PEEK[]<0.{bytes}>").into()
            }
        }
    }
}

/// The data of one mail in a FETCH response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FetchedMail {
    pub(super) uid: u32,
    pub(super) size: Option<u64>,
    pub(super) received_at: Option<Timestamp>,
    pub(super) header: Option<Vec<u8>>,
    pub(super) body: Option<Vec<u8>>,
}

impl FetchedMail {
    /// Whether the response has neither header nor body.
    pub(super) fn is_listing(&self) -> bool {
        self.body.is_none() && self.header.is_none()
    }

    /// The size of header and body, in bytes.
    pub(super) fn bytes(&self) -> usize {
        [&self.header, &self.body].into_iter().flatten().map(Vec::len).sum()
    }

    /// Adds the data of another response about the same mail. `other` may have less data, for example only changed flags.
    pub(super) fn merge(&mut self, other: FetchedMail) {
        self.size = other.size.or(self.size);
        self.received_at = other.received_at.or(self.received_at);
        self.header = other.header.or(self.header.take());
        self.body = other.body.or(self.body.take());
    }

    /// The data of an untagged FETCH; `None` for other responses, and for a FETCH without a UID, such as a change of flags.
    pub(super) fn from_response(response: &Response<'_>) -> Option<FetchedMail> {
        let Response::Fetch(_, attributes) = response else { return None };
        let mut mail = FetchedMail { uid: 0, size: None, received_at: None, header: None, body: None };
        for attribute in attributes {
            match attribute {
                AttributeValue::Uid(uid) => mail.uid = *uid,
                AttributeValue::Rfc822Size(size) => mail.size = Some(u64::from(*size)),
                AttributeValue::InternalDate(date) => mail.received_at = internal_date(date),
                // Dovecot sends NIL as the body, and a size of 0, for a mail that is removed during the FETCH.
                AttributeValue::BodySection { section: None, data, .. } => {
                    mail.body = data.as_deref().map(<[u8]>::to_vec);
                }
                AttributeValue::BodySection {
                    section: Some(SectionPath::Full(MessageSection::Header)), data, ..
                } => {
                    mail.header = Some(data.as_deref().unwrap_or_default().to_vec());
                }
                _ => {}
            }
        }
        // Some servers send an empty string for a mail that is removed during the FETCH (RFC 2180, 4.1). iCloud also sends an
        // empty string for an existing mail. So an empty body counts as not delivered, unless RFC822.SIZE is 0. An empty header
        // is no header, because a header contains at least the empty line (RFC 3501, 6.4.5).
        if mail.body.as_ref().is_some_and(Vec::is_empty) && mail.size != Some(0) {
            mail.body = None;
        }
        mail.header = mail.header.filter(|header| !header.is_empty());
        (mail.uid != 0).then_some(mail)
    }
}

/// Parses an INTERNALDATE, for example `17-Jul-1996 02:44:25 -0700`. A day of one digit follows a space (RFC 3501,
/// `date-day-fixed`).
fn internal_date(text: &str) -> Option<Timestamp> {
    Timestamp::strptime("%d-%b-%Y %H:%M:%S %z", text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_dates_keep_their_zone() {
        let at = internal_date("17-Jul-1996 02:44:25 -0700").unwrap();
        assert_eq!(at.to_string(), "1996-07-17T09:44:25Z");
        assert_eq!(internal_date(" 7-Jul-1996 02:44:25 +0000").unwrap().to_string(), "1996-07-07T02:44:25Z");
        assert_eq!(internal_date("yesterday"), None);
    }

    #[test]
    fn flag_updates_are_no_mails() {
        let raw =
            b"* 3 FETCH (UID 9 RFC822.SIZE 5 INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" BODY[]<0> {5}\r\nhello)\r\n";
        let (_, response) = Response::parse(raw).unwrap();
        let mail = FetchedMail::from_response(&response).unwrap();
        assert_eq!((mail.uid, mail.size, mail.body.as_deref()), (9, Some(5), Some(&b"hello"[..])));
        let (_, response) = Response::parse(b"* 3 FETCH (FLAGS (\\Seen))\r\n").unwrap();
        assert_eq!(FetchedMail::from_response(&response), None);
    }
}
