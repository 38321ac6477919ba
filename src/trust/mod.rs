//! Is this Resmic's? From, proof, addressed to us.
//!
//! A verdict is data, not an error: it is a function of the mail's untouched bytes, of DNS answers
//! and of the rules. Nothing here reads what the mail *says*; that is `extract`'s.

use serde::Deserialize;

use crate::model::{Reason, Trust};

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

/// What the judge found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be believed.
    Believed(Proof),
    /// It may not: `untrusted` or `not-ours`.
    Refused(Reason),
    /// DNS did not answer; ask again later.
    Undecided(Reason),
}

/// Why a mail may be believed, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The kind of proof.
    pub trust: Trust,
    /// The signing domain (`d=`), if a signature is the proof.
    pub domain: Option<String>,
    /// The signature's selector (`s=`).
    pub selector: Option<String>,
    /// The header fields that the proof covers.
    pub covers: Covered,
    /// The addresses of the covered To, as written.
    pub to: Vec<String>,
}

/// Which header fields a proof speaks for. A field that it does not cover is nobody's word, and is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Covered {
    /// All of them: no proof was asked for, or a person vouches.
    All,
    /// Those named, in lower case (a signature's `h=`).
    Only(Vec<String>),
}

impl Covered {
    /// Whether the field `name` (in lower case) is covered.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Covered::All => true,
            Covered::Only(names) => names.iter().any(|n| n == name),
        }
    }
}
