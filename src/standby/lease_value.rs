//! The value of the lease in the bucket. The value names the host that has the lease, the version of that host's program, and the
//! host with the newest database.
//!
//! Other versions of this program read the value, so members of this JSON object may be added, but not removed. A value that
//! cannot be parsed counts as the value of another host that is active.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hashes::ConfigurationHashes;

/// The longest lease (TTL of a bucket) that this program accepts.
pub(super) const LONGEST_LEASE: Duration = Duration::from_secs(10 * 60);
/// The longest lease value that is parsed, in bytes.
const MAX_VALUE: usize = 4 * 1024;
/// The longest text in a lease value, in bytes.
const MAX_TEXT: usize = 128;

/// The value under the key of the lease, as the holder of the lease wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseValue {
    /// The holder's host.
    pub host: String,
    /// Random; it identifies the holder's process.
    pub process: String,
    /// Identifies the standby file in the holder's state folder. One daemon at a time has the lock of this file.
    pub home: String,
    /// The number of this write. Each process counts its attempts to write, from 1.
    pub count: u64,
    /// Whether the holder takes over, is active, or has released the lease.
    pub stage: LeaseStage,
    /// `standby release` sets this: the holder must release the lease.
    #[serde(default)]
    pub release: bool,
    /// The length of the lease in milliseconds.
    pub lease_ms: u64,
    /// The holder's version of this program.
    pub version: String,
    /// The schema that the holder's program knows (`PRAGMA user_version`).
    pub schema: i64,
    /// Hashes of the holder's configuration.
    pub configuration: ConfigurationHashes,
    /// The host with the newest database; `None` if the holder does not certainly know that host. A reader of `None` keeps what
    /// it knows itself.
    pub data: Option<DataOwner>,
}

/// The stage of the holder of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseStage {
    /// The holder fetches and opens the database.
    TakingOver,
    /// The holder watches the mailboxes and delivers.
    Active,
    /// The holder has stopped and has released the lease, so another host may take the lease at once.
    Released,
}

/// The host with the newest database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOwner {
    /// The name of the host in the lease.
    pub host: String,
    /// Identifies the host's standby file, as [`LeaseValue::home`] does.
    pub home: String,
    /// The last `mails.id` in the host's database when the host wrote this value.
    pub last_mail_id: i64,
}

impl LeaseValue {
    /// Parses a lease value from the bucket; `None` if the bytes are not a value that this version knows.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let value: LeaseValue = serde_json::from_slice(bytes.get(..bytes.len().min(MAX_VALUE + 1))?).ok()?;
        (bytes.len() <= MAX_VALUE && value.is_plain()).then_some(value)
    }

    /// Whether each text of the value has at most [`MAX_TEXT`] bytes, all of them visible ASCII characters.
    fn is_plain(&self) -> bool {
        let LeaseValue { host, process, home, version, configuration, data, .. } = self;
        let owner = data.iter().flat_map(|owner| [&owner.host, &owner.home]);
        let mut texts = [host, process, home, version].into_iter().chain(configuration.texts()).chain(owner);
        texts.all(|text| text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    /// Returns the value as JSON, for the key in the bucket.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // The serialization cannot fail, because the value has only maps with text keys.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The length of the lease that the holder counts after this write.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// Whether the host that wrote this value may still have the lease.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.stage != LeaseStage::Released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value() -> LeaseValue {
        LeaseValue {
            host: "a".into(),
            process: "0123".into(),
            home: "4567".into(),
            count: 3,
            stage: LeaseStage::TakingOver,
            release: false,
            lease_ms: 20_000,
            version: "0.1.0".into(),
            schema: 1,
            configuration: ConfigurationHashes::new(&toml::Table::new()),
            data: Some(DataOwner { host: "b".into(), home: "89ab".into(), last_mail_id: 5 }),
        }
    }

    #[test]
    fn a_value_survives_the_bucket() {
        assert_eq!(LeaseValue::parse(&value().to_bytes()), Some(value()));
        let with_later_key = String::from_utf8(value().to_bytes()).unwrap().replacen('{', "{\"later\":[1],", 1);
        assert_eq!(LeaseValue::parse(with_later_key.as_bytes()), Some(value()), "keys of later versions are skipped");
        assert!(
            with_later_key.contains("\"stage\":\"taking-over\"") && with_later_key.contains("\"last_mail_id\":5"),
            "{with_later_key}"
        );
    }

    #[test]
    fn foreign_values_are_not_parsed() {
        let with_host = |host: &str| LeaseValue { host: host.into(), ..value() }.to_bytes();
        for bytes in [b"".to_vec(), b"{}".to_vec(), b"a".to_vec(), with_host("a b"), with_host("a\n"), with_host("ä")]
        {
            assert_eq!(LeaseValue::parse(&bytes), None, "{bytes:?}");
        }
        assert_eq!(LeaseValue::parse(&with_host(&"a".repeat(MAX_TEXT + 1))), None);
        let mut long = value().to_bytes();
        long.extend(vec![b' '; MAX_VALUE]);
        assert_eq!(LeaseValue::parse(&long), None);
    }
}
