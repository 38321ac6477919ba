//! Authenticates a mail by Authentication-Results (RFC 8601) of the merchant's own receiving server.
//!
//! SPF checkers and content filters copy MAIL FROM and HELO into comments of an Authentication-Results field without escapes. So
//! a forger can write statements into the field. Therefore this module relies on the server's result only for the body. The
//! header fields are verified here, with the signature that the server found valid.

use mail_auth::dkim::Signature;

use super::auth_results_field::{AuthResultsField, MethodResult};
use super::dkim::{self, MAX_SIGNATURES, VerifiedPart};
use super::dns::Resolver;
use super::header::Header;
use super::{Candidate, TrustSettings, authserv, is_aligned, untrusted};
use crate::model::{Authenticity, SignedHeaders, Trust, TrustProof, printable};

/// A DKIM signature that the receiving server found valid, as an Authentication-Results field identifies the signature.
pub(super) struct PassedSignature {
    /// The value of `header.d`, the signing domain, in lower case.
    domain: Option<String>,
    /// The domain of `header.i`, which is equal to `d=` or a subdomain of it.
    identity: Option<String>,
    /// The value of `header.s`, the selector of the key.
    selector: Option<String>,
}

/// Trusts a mail with a DKIM signature that the receiving server found valid. The signature must be by the organisation whose
/// domain is in the From field. The signature's `b=` is verified over the header fields.
pub(super) async fn authenticate(mail: &Candidate<'_>, settings: &TrustSettings, resolver: &Resolver) -> Authenticity {
    let passed = authserv::own_fields(mail.header, &settings.authserv_ids).and_then(|f| passed(&f, mail.from));
    let passed = match passed {
        Ok(passed) => passed,
        Err(reason) => return untrusted(reason),
    };
    if !mail.header.has_lookalike("dkim-signature") {
        return without_signature(mail.header, &passed, settings);
    }
    match dkim::authenticate(mail, &VerifiedPart::Header(&passed), resolver).await {
        Authenticity::Trusted(proof) => {
            Authenticity::Trusted(TrustProof { trust: Trust::AuthenticationResults, ..proof })
        }
        verdict => verdict,
    }
}

/// Returns the signatures of the organisation with the domain `from` that the receiving server found valid.
///
/// # Errors
/// The reason, if the server found no valid signature of that organisation. A field with results for the organisation, but
/// without a valid signature, is an error, even if another field has a valid signature.
fn passed(fields: &[AuthResultsField], from: &str) -> Result<Vec<PassedSignature>, String> {
    let mut passed = Vec::new();
    for field in fields {
        let about: Vec<_> = field.results.iter().filter(|result| is_about(result, from)).collect();
        let valid: Vec<_> = about.iter().filter_map(|result| PassedSignature::from_result(result)).collect();
        if valid.is_empty() && !about.is_empty() {
            passed.clear();
            break;
        }
        passed.extend(valid);
    }
    passed.truncate(MAX_SIGNATURES);
    let server = fields.first().and_then(|field| field.server.as_deref()).unwrap_or("its server");
    let none = || format!("{} found no valid DKIM signature of {from}", printable(server, 100));
    if passed.is_empty() { Err(none()) } else { Ok(passed) }
}

/// Whether this result may be about a DKIM signature of the organisation with the domain `from`. A result without a domain may be
/// about any signature, unless the result is `dkim=none`.
fn is_about(result: &MethodResult, from: &str) -> bool {
    let aligned = result.domain().map_or(result.value != "none", |domain| is_aligned(domain, from));
    result.method == "dkim" && aligned
}

impl PassedSignature {
    fn from_result(result: &MethodResult) -> Option<PassedSignature> {
        result.domain().filter(|_| result.value == "pass")?;
        Some(PassedSignature {
            domain: result.property("header.d").map(str::to_ascii_lowercase),
            identity: result.identity().map(str::to_ascii_lowercase),
            selector: result.property("header.s").map(str::to_owned),
        })
    }

    /// Whether the receiving server's result may be about `signature`.
    pub(super) fn matches(&self, signature: &Signature) -> bool {
        let signer = signature.d.to_ascii_lowercase();
        let of_domain = match (&self.domain, &self.identity) {
            (Some(domain), _) => *domain == signer,
            (None, Some(identity)) => *identity == signer || identity.ends_with(&format!(".{signer}")),
            (None, None) => false,
        };
        of_domain && self.selector.as_ref().is_none_or(|s| s.eq_ignore_ascii_case(&signature.s))
    }
}

/// Returns the result for a mail without a DKIM-Signature field. With `signatures_removed`, the statement of the receiving server
/// is the only proof, and From and To count as signed.
fn without_signature(header: &Header<'_>, passed: &[PassedSignature], settings: &TrustSettings) -> Authenticity {
    if !settings.signatures_removed {
        return untrusted(
            "its server found a valid DKIM signature, but the mail has none to verify \
             ([trust] signatures_removed is for servers that remove them)",
        );
    }
    if header.count("to") > 1 || header.count_signable("to") != header.count("to") {
        return untrusted("it has more than one To, or a malformed one");
    }
    let first = passed.first();
    Authenticity::Trusted(TrustProof {
        trust: Trust::AuthenticationResults,
        domain: first.and_then(|p| p.domain.as_ref().or(p.identity.as_ref())).map(|domain| printable(domain, 253)),
        selector: first.and_then(|p| p.selector.as_ref()).map(|selector| printable(selector, 253)),
        signed_headers: SignedHeaders::Only(vec!["from".into(), "to".into()]),
        to: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of signatures of resmic.com that mx.shop.example found valid, according to these header fields.
    fn count_passed(fields: &str) -> Result<usize, String> {
        let ids = ["mx.shop.example".to_owned()];
        let header = format!("{fields}\r\nFrom: no-reply@resmic.com\r\n\r\n");
        authserv::own_fields(&Header::parse(header.as_bytes()), &ids)
            .and_then(|fields| passed(&fields, "resmic.com"))
            .map(|passed| passed.len())
    }

    #[test]
    fn own_servers_results_are_found() {
        for field in [
            "Authentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: MX.shop.example 1; spf=fail; dkim/1=pass (good; \"x\" (nested)) header.i=@mail.resmic.com\r\n\theader.s=s1 header.b=ab/+=",
            "authentication-results: \"mx.shop.example\"; dkim=fail reason=\"bad; dkim=pass\" header.d=x.example; dkim=pass\r\n reason=\"a b\" header.d=RESMIC.com",
            "Authentication-Results: other.example; dkim=fail\r\nAuthentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example; dmarc=pass header.from=resmic.com\r\nAuthentication-Results: mx.shop.example; spf=pass smtp.mailfrom=resmic.com; dkim=none\r\nAuthentication-Results: mx.shop.example; dkim=fail header.d=other.example; dkim=pass header.d=resmic.com",
        ] {
            assert_eq!(count_passed(field), Ok(1), "{field}");
        }
    }

    #[test]
    fn other_results_are_ignored() {
        for field in [
            "Authentication-Results: other.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example; dkim=pass header.d=evil.tld",
            "Authentication-Results: mx.shop.example; dkim=fail header.d=resmic.com",
            "Authentication-Results: mx.shop.example; none",
            "Authentication-Results: mx.shop.example; spf=pass smtp.mailfrom=resmic.com",
            "Authentication-Results: mx.shop.example; dkim/2=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example 2; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example (; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example; dkim=fail (x) reason=\"; dkim=pass header.d=resmic.com\"",
            "Authentication-Results: mx.shop.example; dkim=none (dkim=pass header.d=resmic.com)",
            "Authentication-Results: mx.shop.example; dkim=fail header.d=resmic.com\r\nAuthentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example; dkim=pass header.d=resmic.com\r\nAuthentication-Results: mx.shop.example; dkim=permerror (bad message)",
            "Authentication-Results: mx.shop.example; spf=pass\r\nAuthentication-Results: other.example; spf=pass\r\nAuthentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: mx.shop.example; dkim=pass",
            "X: y",
        ] {
            assert!(count_passed(field).is_err(), "{field}");
        }
    }

    #[test]
    fn results_match_one_signature() {
        let signature = |d: &str| {
            let text = format!("v=1; a=rsa-sha256; d={d}; s=s1; h=from; bh=YQ==; b=YQ==\r\n");
            Signature::parse(text.as_bytes()).unwrap()
        };
        let passed = |properties: &str| {
            let field = AuthResultsField::parse(&format!("mx; dkim=pass {properties}")).unwrap();
            PassedSignature::from_result(field.results.first().unwrap()).unwrap()
        };
        assert!(passed("header.d=Resmic.com header.s=S1").matches(&signature("resmic.com")));
        assert!(passed("header.i=@mail.resmic.com").matches(&signature("resmic.com")));
        assert!(passed("header.i=a@resmic.com").matches(&signature("resmic.com")));
        assert!(!passed("header.i=@resmic.com").matches(&signature("mail.resmic.com")));
        assert!(!passed("header.i=@evilresmic.com").matches(&signature("resmic.com")));
        assert!(!passed("header.d=mail.resmic.com header.i=@resmic.com").matches(&signature("resmic.com")));
        assert!(!passed("header.d=resmic.com header.s=s2").matches(&signature("resmic.com")));
    }
}
