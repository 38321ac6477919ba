//! Is this Resmic's? From, proof, addressed to us.
//!
//! A result is data, not an error: it is a function of the mail's untouched bytes, of DNS answers and of the rules.
//! Nothing here reads what the mail *says*; that is `extract`'s.
//!
//! `header` knows the raw header and who a mail is from and to. `dkim` verifies signatures, `clock` compares their times.
//! `results` decides by what the merchant's own server found: `authserv` knows that server's fields, `field` parses them.
//! `dns` looks up keys at the name servers that `asked` knows, and `key` parses the records.

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
use crate::model::{Authenticity, Proof, Reason, ReasonCode, SignedHeaders, Trust};
use dns::Resolver;
use header::Header;

/// `[trust]`: whose mail may be believed, and on what proof.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustSettings {
    /// Domains that Resmic sends from; a mail's From domain must be one of them, to the letter.
    pub from: Vec<String>,
    /// The proofs that are accepted; any one of them is enough.
    pub accept: Vec<Accept>,
    /// The names that the merchant's own receiving servers put into Authentication-Results.
    pub authserv_ids: Vec<String>,
    /// Believe that server also about a mail that carries no DKIM signature at all.
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

/// A kind of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// A DKIM signature that we check (RFC 6376).
    Dkim,
    /// The merchant's receiving server checked one (RFC 8601).
    AuthenticationResults,
    /// None is asked for: a without_proof.
    None,
}

impl TrustSettings {
    /// What a type cannot say.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, words: String| Err((key.to_owned(), words));
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
            let like = "\"mx.shop.example\", \"*.fastmail.com\" or \"microsoft-365\"";
            return wrong("authserv_ids", format!("{bad:?} is no server's name, like {like}"));
        }
        Ok(())
    }

    /// Whether mails are believed without proof.
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

/// The addresses that are recipients: a mail to somebody else is not for us, however genuine.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    addresses: Vec<String>,
}

impl Recipients {
    /// These addresses; case and `+` tags do not matter.
    pub fn new(addresses: impl IntoIterator<Item = String>) -> Self {
        Recipients { addresses: addresses.into_iter().map(|a| normalize_address(&a)).collect() }
    }

    fn contain(&self, address: &str) -> bool {
        self.addresses.contains(&normalize_address(address))
    }
}

/// An address for comparing: lower case, and without what stands behind a `+`.
fn normalize_address(address: &str) -> String {
    let low = address.to_lowercase();
    match low.rsplit_once('@') {
        Some((local, domain)) => format!("{}@{domain}", local.split('+').next().unwrap_or_default()),
        None => low,
    }
}

/// Whether a mail may be Resmic's, by its header's From fields: one of them has an allowed domain. For sifting a
/// shared mailbox; nothing is believed by it.
#[must_use]
pub fn is_candidate(header: &[u8], settings: &TrustSettings) -> bool {
    // Nearly all of a shared mailbox is somebody else's: what does not so much as hold the letters is not taken apart.
    if !settings.from.iter().any(|domain| contains_ignoring_case(header, domain)) {
        return false;
    }
    let header = Header::parse(header);
    header.all("from").any(|from| header::addresses(from).iter().any(|a| settings.allows(header::domain(a))))
}

/// Whether these letters may stand there, in whatever case.
fn contains_ignoring_case(header: &[u8], letters: &str) -> bool {
    header.windows(letters.len().max(1)).any(|place| place.eq_ignore_ascii_case(letters.as_bytes()))
        || may_split_address(header)
}

/// Whether there is what an address may be broken by, and is read without: a comment, a backslash, a line's end within `<>`
/// (RFC 5322, 4.4).
fn may_split_address(header: &[u8]) -> bool {
    let addresses =
        || header.split(|byte| *byte == b'<').skip(1).filter_map(|rest| rest.split(|byte| *byte == b'>').next());
    memchr::memchr2(b'(', b'\\', header).is_some() || addresses().any(|address| address.contains(&b'\n'))
}

/// Judges a mail: may it be believed, and how much of it?
///
/// `clock` has the times for a signature's own times. Bounded in time by the resolver's limits.
pub async fn authenticate(
    mail: &[u8],
    recipients: &Recipients,
    settings: &TrustSettings,
    resolver: &Resolver,
    clock: impl Into<Clock>,
) -> Authenticity {
    let judging = catch_panic_async(authenticate_inner(mail, recipients, settings, resolver, clock.into()));
    judging.await.unwrap_or_else(|| untrusted("it could not be taken apart"))
}

async fn authenticate_inner(
    mail: &[u8],
    recipients: &Recipients,
    settings: &TrustSettings,
    resolver: &Resolver,
    clock: Clock,
) -> Authenticity {
    let header = Header::parse(mail);
    let from = match header.from() {
        Ok(from) => from,
        Err(words) => return untrusted(words),
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
            // Another proof may hold; a temporary error outweighs a rejection.
            Authenticity::TempError(reason) => rejection = Some(Authenticity::TempError(reason)),
            Authenticity::Rejected(reason) => rejection = rejection.or(Some(Authenticity::Rejected(reason))),
        }
    }
    rejection.unwrap_or_else(|| untrusted("no proof is accepted"))
}

/// A mail whose proof is looked for.
struct Candidate<'a> {
    bytes: &'a [u8],
    header: &'a Header<'a>,
    /// Its From's domain.
    from: &'a str,
    clock: Clock,
}

/// Without a proof everything is taken as it stands.
fn unproven() -> Proof {
    Proof { trust: Trust::None, domain: None, selector: None, signed_headers: SignedHeaders::All, to: Vec::new() }
}

/// A proven mail is for us, if the To that the proof covers says so.
fn addressed_to(recipients: &Recipients, header: &Header<'_>, mut proof: Proof) -> Authenticity {
    if !proof.signed_headers.contains("to") {
        return untrusted("the proof does not cover its To");
    }
    proof.to = header.all("to").flat_map(header::plain_addresses).collect();
    if proof.to.iter().any(|address| recipients.contain(address)) {
        return Authenticity::Trusted(proof);
    }
    let named: Vec<_> = header.all("to").flat_map(header::addresses).collect();
    let words = format!("it is addressed to {}, which is none of the account's addresses", list(&named));
    Authenticity::Rejected(Reason::new(ReasonCode::NotOurs, words))
}

/// The addresses of a mail's To, whoever put them there.
#[must_use]
pub fn to_addresses(mail: &[u8]) -> Vec<String> {
    catch_panic(|| Header::parse(mail).all("to").flat_map(header::plain_addresses).collect()).unwrap_or_default()
}

fn list(addresses: &[String]) -> String {
    if addresses.is_empty() {
        "nobody".into()
    } else {
        addresses.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
    }
}

fn untrusted(words: impl AsRef<str>) -> Authenticity {
    Authenticity::Rejected(Reason::new(ReasonCode::Untrusted, words))
}

/// Whether two domains belong to one organisation (RFC 7489, 3.1.1: relaxed alignment), by the public suffix list.
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
    async fn one_allowed_sender_to_us_is_believed() {
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
    async fn whoever_only_looks_like_resmic_is_refused() {
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
    async fn a_mail_to_somebody_else_is_not_ours() {
        for to in [
            "To: other@shop.example",
            "To: payments@shop.example.evil.tld",
            "Cc: payments@shop.example",
            "To: \"payments@shop.example\" <x@y.example>",
            // Each is one address at evil.tld, or none.
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
    fn alignment_is_by_organisation_not_by_suffix() {
        assert!(is_aligned("mail.resmic.com", "resmic.com") && is_aligned("resmic.com", "pay.resmic.com"));
        assert!(!is_aligned("com", "resmic.com") && !is_aligned("co.uk", "shop.co.uk"));
        assert!(!is_aligned("evilresmic.com", "resmic.com") && !is_aligned("a.co.uk", "b.co.uk"));
    }

    #[test]
    fn a_candidate_has_an_allowed_domain_in_its_from() {
        let settings = TrustSettings::default();
        assert!(is_candidate(b"From: Resmic <a@resmic.com>\r\n\r\n", &settings));
        assert!(is_candidate(b"From: x@y.example\r\nFrom: a@resmic.com\r\n\r\n", &settings));
        assert!(!is_candidate(b"From: \"resmic.com\" <a@resmic.com.evil.tld>\r\n\r\n", &settings));
        assert!(is_candidate(b"From: a@ReSMic.COM\r\n\r\n", &settings));
        assert!(!is_candidate(b"From: resmic.com@y.example\r\n\r\n", &settings));
        for broken in ["resmic.\r\n com", "res\r\n\tmic.com", "resmic(a mail).com", "resmic\\.com"] {
            assert!(is_candidate(format!("From: Resmic <a@{broken}>\r\n\r\n").as_bytes(), &settings), "{broken}");
        }
        assert!(!is_candidate(b"", &settings));
    }

    #[test]
    fn settings_that_prove_nothing_are_refused() {
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
        for id in ["mx.shop.example", "mailin", "*.fastmail.com", "*.mx.fastmail.com", "microsoft-365"] {
            assert!(server(id).check().is_ok(), "{id}");
        }
        assert!(TrustSettings::default().check().is_ok());
    }
}
