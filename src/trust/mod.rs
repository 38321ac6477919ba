//! Is this Resmic's? From, proof, addressed to us.
//!
//! A verdict is data, not an error: it is a function of the mail's untouched bytes, of DNS answers
//! and of the rules. Nothing here reads what the mail *says*; that is `extract`'s.

use serde::Deserialize;

pub use crate::model::{Covered, Proof, Verdict};

/// `[trust]`: whose mail may be believed, and on what proof.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Domains that Resmic sends from; a mail's From domain must be one of them.
    pub from: Vec<String>,
    /// The proofs that are accepted; any one of them is enough.
    pub accept: Vec<Accept>,
    /// The names by which the merchant's own receiving servers sign Authentication-Results.
    pub authserv_ids: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { from: vec!["resmic.com".into()], accept: vec![Accept::Dkim], authserv_ids: Vec::new() }
    }
}

/// A kind of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// A DKIM signature that we check (RFC 6376).
    Dkim,
    /// The merchant's receiving server checked one (RFC 8601).
    AuthenticationResults,
    /// None is asked for: a laboratory.
    None,
}

/// The addresses that are ours: a mail to somebody else is not for us, however genuine.
#[derive(Debug, Clone, Default)]
pub struct Ours {
    /// Mailbox addresses, lower case, without `+` tags.
    pub addresses: Vec<String>,
}

// ---- placeholder below ----
pub mod dns {
    //! placeholder
    use serde::Deserialize;
    /// placeholder
    #[derive(Debug, Clone, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Settings {
        /// placeholder
        pub servers: Vec<String>,
    }
    /// placeholder
    pub struct Resolver;
    impl Resolver {
        /// placeholder
        pub fn new(_: &Settings) -> anyhow::Result<Self> {
            Ok(Resolver)
        }
    }
    /// placeholder
    pub async fn explore(_: &Resolver, _: &str) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}
impl Settings {
    /// placeholder
    pub fn check(&self) -> Result<(), (String, String)> {
        Ok(())
    }
    /// placeholder
    pub fn asks_no_proof(&self) -> bool {
        self.accept.contains(&Accept::None)
    }
}
impl Ours {
    /// placeholder
    pub fn new(addresses: impl Iterator<Item = String>) -> Self {
        Ours { addresses: addresses.collect() }
    }
}
/// placeholder
pub fn is_candidate(header: &[u8], s: &Settings) -> bool {
    let t = String::from_utf8_lossy(header);
    s.from.iter().any(|d| t.contains(d))
}
/// placeholder
pub async fn judge(_: &[u8], _: &Ours, _: &Settings, _: &dns::Resolver, _: jiff::Timestamp) -> Verdict {
    Verdict::Believed(Proof {
        trust: crate::model::Trust::None,
        domain: None,
        selector: None,
        covers: Covered::All,
        to: vec![],
    })
}
