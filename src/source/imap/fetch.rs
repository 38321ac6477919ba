//! How mails are asked for, and how the answers are read.

use std::borrow::Cow;

use async_imap::imap_proto::{AttributeValue, MessageSection, Response, SectionPath};
use jiff::Timestamp;

use super::settings::ImapSettings;

/// The header fields by which a shared mailbox is sifted.
///
/// Cut off where no address of Resmic's can be: a From field of megabytes must not stop a mailbox.
const SENDERS: &str = "UID BODY.PEEK[HEADER.FIELDS (FROM)]<0.16384>";
/// And what is known of each of the last mails.
const HEADERS: &str = "UID INTERNALDATE BODY.PEEK[HEADER.FIELDS (FROM)]<0.16384>";

/// What is asked of a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchKind {
    /// That it is there.
    Listing,
    /// And since when.
    Dates,
    /// Who it is from.
    Senders,
    /// And since when.
    Headers,
    /// All of it.
    Body,
}

impl FetchKind {
    /// The items of the FETCH. PEEK: reading a mail leaves it unseen.
    pub(super) fn items(self, settings: &ImapSettings) -> Cow<'static, str> {
        match self {
            FetchKind::Listing => "UID".into(),
            FetchKind::Dates => "UID INTERNALDATE".into(),
            FetchKind::Senders => SENDERS.into(),
            FetchKind::Headers => HEADERS.into(),
            // One byte more than is kept: a body that does not fill this is complete, whatever RFC822.SIZE says.
            FetchKind::Body => {
                let bytes = settings.max_size.0.saturating_add(1);
                format!("UID INTERNALDATE RFC822.SIZE BODY.PEEK[]<0.{bytes}>").into()
            }
        }
    }
}

/// What the server says of one mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FetchedMail {
    pub(super) uid: u32,
    pub(super) size: Option<u64>,
    pub(super) received_at: Option<Timestamp>,
    pub(super) header: Option<Vec<u8>>,
    pub(super) body: Option<Vec<u8>>,
}

impl FetchedMail {
    /// Says no more than that the mail is there.
    pub(super) fn is_listing(&self) -> bool {
        self.body.is_none() && self.header.is_none()
    }

    /// How many bytes of the mail it holds.
    pub(super) fn bytes(&self) -> usize {
        [&self.header, &self.body].into_iter().flatten().map(Vec::len).sum()
    }

    /// Takes over what another answer says of the same mail. One may say less than another did: that a flag has changed.
    pub(super) fn merge(&mut self, other: FetchedMail) {
        self.size = other.size.or(self.size);
        self.received_at = other.received_at.or(self.received_at);
        self.header = other.header.or(self.header.take());
        self.body = other.body.or(self.body.take());
    }

    /// Reads an untagged FETCH; `None` if it is none, or names no UID (a flag that somebody changed).
    pub(super) fn from_response(response: &Response<'_>) -> Option<FetchedMail> {
        let Response::Fetch(_, attributes) = response else { return None };
        let mut item = FetchedMail { uid: 0, size: None, received_at: None, header: None, body: None };
        for attribute in attributes {
            match attribute {
                AttributeValue::Uid(uid) => item.uid = *uid,
                AttributeValue::Rfc822Size(size) => item.size = Some(u64::from(*size)),
                AttributeValue::InternalDate(date) => item.received_at = internal_date(date),
                // NIL, with a size of 0: Dovecot's answer for a mail that was removed while we asked.
                AttributeValue::BodySection { section: None, data, .. } => {
                    item.body = data.as_deref().map(<[u8]>::to_vec);
                }
                AttributeValue::BodySection {
                    section: Some(SectionPath::Full(MessageSection::Header)), data, ..
                } => {
                    item.header = Some(data.as_deref().unwrap_or_default().to_vec());
                }
                _ => {}
            }
        }
        // Other servers send an empty string for such a mail (RFC 2180, 4.1), and iCloud for one that is there. Of a header the
        // server would send the empty line at least (RFC 3501, 6.4.5).
        if item.body.as_ref().is_some_and(Vec::is_empty) && item.size != Some(0) {
            item.body = None;
        }
        item.header = item.header.filter(|header| !header.is_empty());
        (item.uid != 0).then_some(item)
    }
}

/// INTERNALDATE: `17-Jul-1996 02:44:25 -0700`, the day padded with a space (RFC 3501, `date-day-fixed`).
fn internal_date(text: &str) -> Option<Timestamp> {
    Timestamp::strptime("%d-%b-%Y %H:%M:%S %z", text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_date_is_read_with_its_zone() {
        let at = internal_date("17-Jul-1996 02:44:25 -0700").unwrap();
        assert_eq!(at.to_string(), "1996-07-17T09:44:25Z");
        assert_eq!(internal_date(" 7-Jul-1996 02:44:25 +0000").unwrap().to_string(), "1996-07-07T02:44:25Z");
        assert_eq!(internal_date("yesterday"), None);
    }

    #[test]
    fn a_fetch_is_read_and_a_flag_update_is_none() {
        let raw =
            b"* 3 FETCH (UID 9 RFC822.SIZE 5 INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" BODY[]<0> {5}\r\nhello)\r\n";
        let (_, response) = Response::parse(raw).unwrap();
        let item = FetchedMail::from_response(&response).unwrap();
        assert_eq!((item.uid, item.size, item.body.as_deref()), (9, Some(5), Some(&b"hello"[..])));
        let (_, response) = Response::parse(b"* 3 FETCH (FLAGS (\\Seen))\r\n").unwrap();
        assert_eq!(FetchedMail::from_response(&response), None);
    }
}
