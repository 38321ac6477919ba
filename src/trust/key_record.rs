//! A DKIM key record in DNS (RFC 6376, 3.6.1), and the uses that its domain allows.

use std::sync::Arc;

use mail_auth::Txt;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::resolver::UnwrapTxtRecord;
use mail_auth::common::verify::DomainKey;

/// The value of mail-auth's flag for `t=y`, whose constant is private. A test with a `t=y` key in DNS fails if the value changes.
const TESTING: u64 = 0x10;

/// Flags that this module adds to the flags of mail-auth. The flags of mail-auth do not distinguish a list without `email` or
/// `sha256` from a missing list.
const CHECKED: u64 = 1 << 63;
const NOT_FOR_EMAIL: u64 = 1 << 62;
const NOT_FOR_SHA256: u64 = 1 << 61;

/// A DKIM key whose tags `s=` and `h=` were checked.
pub(super) struct KeyRecord(Arc<DomainKey>);

impl KeyRecord {
    /// Returns the reason why signatures with this key prove nothing; `None` if a signature with this key can prove a mail.
    pub(super) fn rejection(&self) -> Option<&'static str> {
        [
            (TESTING, "is in test mode (t=y)"),
            (NOT_FOR_EMAIL, "is for another use than mail (s=)"),
            (NOT_FOR_SHA256, "is not for SHA-256 (h=)"),
        ]
        .into_iter()
        .find_map(|(flag, reason)| self.0.has_flag(flag).then_some(reason))
    }
}

/// Whether this module parsed a key record; true for records that are not keys. mail-auth also parses keys itself, and the keys
/// that it has parsed lack the flags of this module.
pub(super) fn is_checked(record: &Txt) -> bool {
    !matches!(record, Txt::DomainKey(key) if !key.has_flag(CHECKED))
}

impl TxtRecordParser for KeyRecord {
    fn parse(record: &[u8]) -> mail_auth::Result<Self> {
        let mut key = DomainKey::parse(record)?;
        key.f |= CHECKED;
        let text = String::from_utf8_lossy(record);
        if !allows(&text, "s", &["*", "email"]) {
            key.f |= NOT_FOR_EMAIL;
        }
        if !allows(&text, "h", &["sha256"]) {
            key.f |= NOT_FOR_SHA256;
        }
        Ok(KeyRecord(Arc::new(key)))
    }
}

impl From<KeyRecord> for Txt {
    fn from(record: KeyRecord) -> Self {
        Txt::DomainKey(record.0)
    }
}

impl UnwrapTxtRecord for KeyRecord {
    fn unwrap_txt(record: Txt) -> mail_auth::Result<Arc<Self>> {
        DomainKey::unwrap_txt(record).map(|key| Arc::new(KeyRecord(key)))
    }
}

/// Whether the list in the tag `tag` of a key record contains one of `wanted`. A record without the tag allows everything.
fn allows(record: &str, tag: &str, wanted: &[&str]) -> bool {
    let tags = record.split(';').filter_map(|tag| tag.split_once('='));
    let mut lists = tags.filter(|(name, _)| name.trim().eq_ignore_ascii_case(tag)).map(|(_, list)| list);
    lists.all(|list| list.split(':').any(|item| wanted.iter().any(|w| item.trim().eq_ignore_ascii_case(w))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_lists_must_contain_the_use() {
        let mail = |record: &str| allows(record, "s", &["*", "email"]);
        for record in ["", "v=DKIM1; k=rsa; p=s", "s=email", " s = other : EMAIL ;p=", "S=*; h=sha1", "n=s=tlsrpt; p="]
        {
            assert!(mail(record), "{record}");
        }
        for record in ["s=tlsrpt", "v=DKIM1;s=tlsrpt:other;p=", "s=", "s=email; s=tlsrpt", "S=email2", "s=email other"]
        {
            assert!(!mail(record), "{record}");
        }
    }
}
