//! Decides whether a mail is Resmic's. A mail of Resmic has an allowed From, a valid proof, and one of the account's addresses in
//! its To.
//!
//! The result depends on the bytes of the mail, on DNS, on the settings and on the clock. The caller passes the bytes as they
//! were received. A byte order mark before the first field is ignored. For a mail that is not Resmic's, the result is
//! [`Authenticity::Rejected`], not an error. The room `extract` parses the text of the mail.
//!
//! - `header` parses the raw header, and finds the sender and the recipients.
//! - `dkim` verifies DKIM signatures. `clock` compares the times in a signature with the current time.
//! - `auth_results` uses the result of the merchant's own receiving server. `authserv` finds the header fields of that server,
//!   and `auth_results_field` parses them.
//! - `dns` looks up DKIM keys. `name_servers` chooses the DNS servers, and `key_record` parses the records of keys.

mod auth_results;
mod auth_results_field;
mod authserv;
mod clock;
mod dkim;
pub mod dns;
mod header;
mod key_record;
pub mod mail_servers;
mod name_servers;

pub use clock::Clock;
use serde::Deserialize;

use crate::catch_panic::{catch_panic, catch_panic_async};
use crate::configured_text::configured_text;
use crate::model::{Authenticity, Reason, ReasonCode, SignedHeaders, Trust, TrustProof};
use dns::Resolver;
use header::Header;

/// `[trust]`: the senders and the proofs that are accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: the keys below [trust]")]
pub struct TrustSettings {
    /// Domains that Resmic sends from. The domain of a mail's From must be equal to one of these, apart from case.
    pub from: Vec<String>,
    /// The accepted kinds of proof. One valid proof is enough.
    pub accept: Vec<Accept>,
    /// The names (authserv-id) of the merchant's own receiving servers in Authentication-Results.
    pub authserv_ids: Vec<String>,
    /// Whether the result of the receiving server is enough if the mail has no DKIM signature.
    pub signatures_removed: bool,
}

impl Default for TrustSettings {
    fn default() -> Self {
        TrustSettings {
            from: vec!["resmic.com".into()],
            accept: vec![Accept::Dkim],
            authserv_ids: Vec::new(),
            signatures_removed: false,
        }
    }
}

/// A kind of proof that a mail is Resmic's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// A DKIM signature that this program verifies (RFC 6376).
    Dkim,
    /// A DKIM signature that the merchant's receiving server verified (RFC 8601).
    AuthenticationResults,
    /// No proof is required. The value `none` is for tests only.
    None,
}

configured_text!(Accept, "\"dkim\", \"authentication-results\" or \"none\"",
    "dkim" => Dkim, "authentication-results" => AuthenticationResults, "none" => None);

impl TrustSettings {
    /// Checks the values of the settings.
    ///
    /// # Errors
    /// The name of the setting whose value is wrong, and an explanation.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, message: String| Err((key.to_owned(), message));
        if self.from.is_empty() {
            return wrong("from", "expected the domains that Resmic sends from, like [\"resmic.com\"]".into());
        }
        if let Some(bad) = self.from.iter().find(|d| !is_domain(d)) {
            return wrong("from", format!("{bad:?} is no domain in its ASCII form, like \"resmic.com\""));
        }
        if self.accept.is_empty() {
            return wrong(
                "accept",
                "expected at least one of \"dkim\", \"authentication-results\" and \"none\"".into(),
            );
        }
        if self.accept.contains(&Accept::AuthenticationResults) && self.authserv_ids.is_empty() {
            return wrong(
                "authserv_ids",
                "expected the names of your own receiving servers, since accept has \"authentication-results\"".into(),
            );
        }
        if let Some(bad) = self.authserv_ids.iter().find(|id| !authserv::is_valid(id)) {
            let examples = "\"mx.shop.example\", \"*.fastmail.com\" or \"microsoft-365\"";
            return wrong("authserv_ids", format!("{bad:?} is no server's name, like {examples}"));
        }
        Ok(())
    }

    /// Whether mails are trusted without proof.
    #[must_use]
    pub fn accepts_unproven(&self) -> bool {
        self.accept.contains(&Accept::None)
    }

    fn allows(&self, domain: &str) -> bool {
        self.from.iter().any(|allowed| allowed.eq_ignore_ascii_case(domain))
    }
}

fn is_domain(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(label)
}

/// An account's own addresses. A mail to other addresses is rejected, even if Resmic sent it.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    addresses: Vec<String>,
}

impl Recipients {
    /// Creates the list from `addresses`. When addresses are compared, case and the tag after a `+` are ignored.
    pub fn new(addresses: impl IntoIterator<Item = String>) -> Self {
        Recipients { addresses: addresses.into_iter().map(|a| normalize_address(&a)).collect() }
    }

    fn contain(&self, address: &str) -> bool {
        self.addresses.contains(&normalize_address(address))
    }
}

/// Returns an address in the form for comparing: in lower case, without the tag after a `+`.
fn normalize_address(address: &str) -> String {
    let lowercase = address.to_lowercase();
    match lowercase.rsplit_once('@') {
        Some((local, domain)) => format!("{}@{domain}", local.split('+').next().unwrap_or_default()),
        None => lowercase,
    }
}

/// Whether one of the From fields has an address of an allowed domain. In a shared mailbox, only mails with an allowed domain in
/// From are fetched. From may be forged, so a candidate is not proven.
#[must_use]
pub fn is_candidate(header: &[u8], settings: &TrustSettings) -> bool {
    // Most mails of a shared mailbox do not contain the domain at all, so their header need not be parsed.
    if !settings.from.iter().any(|domain| may_contain(header, domain)) {
        return false;
    }
    let header = Header::parse(header::without_byte_order_mark(header));
    header.all("from").any(|from| header::addresses(from).iter().any(|a| settings.allows(header::domain(a))))
}

/// Whether the header may contain this domain, in upper or lower case. Other characters, such as a comment, may split the domain.
fn may_contain(header: &[u8], domain: &str) -> bool {
    header.windows(domain.len().max(1)).any(|window| window.eq_ignore_ascii_case(domain.as_bytes()))
        || may_split_address(header)
}

/// Whether the header has characters that may split an address without being a part of the address: a comment, a backslash,
/// or a line break within `<>` (RFC 5322, 4.4).
fn may_split_address(header: &[u8]) -> bool {
    let addresses =
        || header.split(|byte| *byte == b'<').skip(1).filter_map(|rest| rest.split(|byte| *byte == b'>').next());
    memchr::memchr2(b'(', b'\\', header).is_some() || addresses().any(|address| address.contains(&b'\n'))
}

/// Decides whether a mail is Resmic's, and which header fields are signed.
///
/// The times in a signature are compared with `clock`. The timeouts of `resolver` limit how long this function takes. A panic in
/// a library rejects the mail.
pub async fn authenticate(
    mail: &[u8],
    recipients: &Recipients,
    settings: &TrustSettings,
    resolver: &Resolver,
    clock: impl Into<Clock>,
) -> Authenticity {
    let authentication = catch_panic_async(authenticate_inner(mail, recipients, settings, resolver, clock.into()));
    authentication.await.unwrap_or_else(|| untrusted("it cannot be parsed"))
}

async fn authenticate_inner(
    mail: &[u8],
    recipients: &Recipients,
    settings: &TrustSettings,
    resolver: &Resolver,
    clock: Clock,
) -> Authenticity {
    let mail = header::without_byte_order_mark(mail);
    let header = Header::parse(mail);
    let from = match header.from() {
        Ok(from) => from,
        Err(problem) => return untrusted(problem),
    };
    let domain = header::domain(&from);
    if !settings.allows(domain) {
        return untrusted(format!("its From is {from}, and {domain} is not an allowed domain"));
    }
    let candidate = Candidate { bytes: mail, header: &header, from: domain, clock };
    let mut rejection = None;
    for accept in &settings.accept {
        let result = match accept {
            Accept::Dkim => dkim::authenticate(&candidate, &dkim::VerifiedPart::Everything, resolver).await,
            Accept::AuthenticationResults => auth_results::authenticate(&candidate, settings, resolver).await,
            Accept::None => Authenticity::Trusted(unproven()),
        };
        match result {
            Authenticity::Trusted(proof) => return addressed_to(recipients, &header, proof),
            // The next kind of proof may be valid. If no proof is valid, a temporary error takes precedence over a rejection.
            Authenticity::TempError(reason) => rejection = Some(Authenticity::TempError(reason)),
            Authenticity::Rejected(reason) => rejection = rejection.or(Some(Authenticity::Rejected(reason))),
        }
    }
    rejection.unwrap_or_else(|| untrusted("no proof is accepted"))
}

/// A mail that is being authenticated.
struct Candidate<'a> {
    bytes: &'a [u8],
    header: &'a Header<'a>,
    /// The domain of the mail's From.
    from: &'a str,
    clock: Clock,
}

/// Returns the value that takes the place of a proof if `accept = ["none"]`. All header fields count as signed.
fn unproven() -> TrustProof {
    TrustProof { trust: Trust::None, domain: None, selector: None, signed_headers: SignedHeaders::All, to: Vec::new() }
}

/// Trusts a proven mail if its signed To contains one of the account's addresses.
fn addressed_to(recipients: &Recipients, header: &Header<'_>, mut proof: TrustProof) -> Authenticity {
    if !proof.signed_headers.contains("to") {
        return untrusted("its To is not signed");
    }
    proof.to = header.all("to").flat_map(header::plain_addresses).collect();
    if proof.to.iter().any(|address| recipients.contain(address)) {
        return Authenticity::Trusted(proof);
    }
    let named: Vec<_> = header.all("to").flat_map(header::addresses).collect();
    let message = format!("it is addressed to {}, which is none of the account's addresses", list(&named));
    Authenticity::Rejected(Reason::new(ReasonCode::NotOurs, message))
}

/// Returns the addresses of a mail's To fields. These fields may be forged.
#[must_use]
pub fn to_addresses(mail: &[u8]) -> Vec<String> {
    let mail = header::without_byte_order_mark(mail);
    catch_panic(|| Header::parse(mail).all("to").flat_map(header::plain_addresses).collect()).unwrap_or_default()
}

fn list(addresses: &[String]) -> String {
    if addresses.is_empty() {
        "nobody".into()
    } else {
        addresses.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
    }
}

fn untrusted(message: impl AsRef<str>) -> Authenticity {
    Authenticity::Rejected(Reason::new(ReasonCode::Untrusted, message))
}

/// Whether two domains belong to one organisation according to the public suffix list (relaxed alignment, RFC 7489, 3.1.1).
fn is_aligned(signer: &str, from: &str) -> bool {
    let (signer, from) = (signer.to_ascii_lowercase(), from.to_ascii_lowercase());
    let organisation = |domain: &str| psl::domain_str(domain).map(str::to_owned);
    signer == from || organisation(&signer).is_some_and(|o| Some(o) == organisation(&from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn without_proof() -> TrustSettings {
        TrustSettings { accept: vec![Accept::None], ..TrustSettings::default() }
    }

    async fn authenticity(header: &str) -> Authenticity {
        let mail = format!("{header}\r\n\r\nbody\r\n");
        let recipients = Recipients::new(["Payments@shop.example".to_owned()]);
        let resolver = Resolver::new(&dns::DnsSettings::default()).unwrap();
        authenticate(mail.as_bytes(), &recipients, &without_proof(), &resolver, Timestamp::now()).await
    }

    #[tokio::test]
    async fn allowed_sender_and_recipient_are_trusted() {
        for header in [
            "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example",
            "from: no-reply@RESMIC.com\r\nTO: a@b.example, Shop <payments+order.mac@SHOP.example>",
            "From: =?utf-8?q?Resmic?=\r\n <no-reply@resmic.com>\r\nTo: payments@shop.example",
            "From: \"a@b, c\" <no-reply@resmic.com>\r\nTo: payments@shop.example",
            "From: no-reply@resmic.com\r\nTo: Shops: <a@b.example>,\r\n\tShop, Inc. < payments@shop.example >;",
            "From: no-reply@resmic.com\r\nTo: \"a\\\" (, <b\" <a@b.example>,payments@shop.example\r\n (the \\) shop)",
        ] {
            assert!(matches!(authenticity(header).await, Authenticity::Trusted(_)), "{header}");
        }
    }

    #[tokio::test]
    async fn lookalikes_of_resmic_are_rejected() {
        for from in [
            "From: no-reply@resmic.com.evil.tld",
            "From: no-reply@evil.tld",
            "From: \"no-reply@resmic.com\" <x@evil.tld>",
            "From: no-reply@resmic.com <x@evil.tld>",
            "From: x@evil.tld (no-reply@resmic.com)",
            "From: no-reply@resmic.com, x@evil.tld",
            "From: x@evil.tld\r\nFrom: no-reply@resmic.com",
            "From: no-reply@resmic.com\r\nFrom: no-reply@resmic.com",
            "From: no-reply@resmic.com\r\nFr om: x@evil.tld",
            "From : x@evil.tld\r\nFrom: no-reply@resmic.com",
            "From: Resmic: no-reply@resmic.com;",
            "From: no-reply@xn--resmc-2ta.com",
            "From: no-reply@resmic.com.",
            "From: no-reply@sub.resmic.com",
            "From: =?utf-8?q?no-reply=40resmic.com?=",
            "From: =?utf-8?q?x=40evil.tld,?= no-reply@resmic.com@evil.tld",
            "From: <no-reply@resmic.com> <x@evil.tld>",
            "From: no-reply@res\u{43c}ic.com",
            "From: ",
            "Sender: no-reply@resmic.com",
        ] {
            let header = format!("{from}\r\nTo: payments@shop.example");
            let result = authenticity(&header).await;
            let Authenticity::Rejected(reason) = &result else { panic!("{from}: {result:?}") };
            assert_eq!(reason.code, ReasonCode::Untrusted, "{from}: {reason}");
        }
    }

    #[tokio::test]
    async fn mails_to_other_addresses_are_rejected() {
        for to in [
            "To: other@shop.example",
            "To: payments@shop.example.evil.tld",
            "Cc: payments@shop.example",
            "To: \"payments@shop.example\" <x@y.example>",
            // Each To field below has one address at evil.tld, or no address.
            "To: <\"x >,payments@shop.example,<y\"@evil.tld>",
            "To: Shop <\"x\\\">,payments@shop.example,<y\"@evil.tld>",
            "To: payments@shop.example\r\n .evil.tld",
            "To: payments@shop.example (x) .evil.tld",
            "To: payments@shop.example\r\n x",
            "To: <x@[>,payments@shop.example,<]>",
            "To: payments@shop.example: x@evil.tld;",
            "To: \"x, payments@shop.example",
            "To: (x, payments@shop.example",
        ] {
            let header = format!("From: no-reply@resmic.com\r\n{to}");
            let Authenticity::Rejected(reason) = authenticity(&header).await else { panic!("{to}") };
            assert_eq!(reason.code, ReasonCode::NotOurs, "{to}");
        }
    }

    #[test]
    fn alignment_follows_the_public_suffix_list() {
        assert!(is_aligned("mail.resmic.com", "resmic.com") && is_aligned("resmic.com", "pay.resmic.com"));
        assert!(!is_aligned("com", "resmic.com") && !is_aligned("co.uk", "shop.co.uk"));
        assert!(!is_aligned("evilresmic.com", "resmic.com") && !is_aligned("a.co.uk", "b.co.uk"));
    }

    #[test]
    fn candidates_have_an_allowed_from() {
        let settings = TrustSettings::default();
        assert!(is_candidate(b"From: Resmic <a@resmic.com>\r\n\r\n", &settings));
        assert!(is_candidate(b"From: x@y.example\r\nFrom: a@resmic.com\r\n\r\n", &settings));
        assert!(!is_candidate(b"From: \"resmic.com\" <a@resmic.com.evil.tld>\r\n\r\n", &settings));
        assert!(is_candidate(b"From: a@ReSMic.COM\r\n\r\n", &settings));
        assert!(!is_candidate(b"From: resmic.com@y.example\r\n\r\n", &settings));
        for broken in ["resmic.\r\n com", "res\r\n\tmic.com", "resmic(a mail).com", "resmic\\.com"] {
            assert!(is_candidate(format!("From: Resmic <a@{broken}>\r\n\r\n").as_bytes(), &settings), "{broken}");
        }
        assert!(is_candidate(b"\xef\xbb\xbfFrom: a@resmic.com\r\n\r\n", &settings), "a byte order mark");
        assert!(!is_candidate(b"", &settings));
    }

    #[test]
    fn settings_that_prove_nothing_are_rejected() {
        let key = |settings: TrustSettings| settings.check().unwrap_err().0;
        assert_eq!(key(TrustSettings { from: vec![], ..TrustSettings::default() }), "from");
        assert_eq!(key(TrustSettings { from: vec!["a@b.c".into()], ..TrustSettings::default() }), "from");
        assert_eq!(key(TrustSettings { accept: vec![], ..TrustSettings::default() }), "accept");
        assert_eq!(
            key(TrustSettings { accept: vec![Accept::AuthenticationResults], ..TrustSettings::default() }),
            "authserv_ids"
        );
        let server = |id: &str| TrustSettings { authserv_ids: vec![id.into()], ..TrustSettings::default() };
        for id in ["", "mx shop", "*", "*.com", "*.co.uk", "mx.*.example", "*mx.shop.example", "*.*.shop.example"] {
            assert_eq!(key(server(id)), "authserv_ids", "{id:?}");
        }
        for id in ["mx.shop.example", "mail-in", "*.fastmail.com", "*.mx.fastmail.com", "microsoft-365"] {
            assert!(server(id).check().is_ok(), "{id}");
        }
        assert!(TrustSettings::default().check().is_ok());
    }
}
