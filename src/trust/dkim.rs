//! Verifies DKIM signatures (RFC 6376). A mail needs a signature that includes From, To and the whole body. This signature must
//! be of the organisation whose domain is in the From field.

use std::borrow::Cow;
use std::collections::HashMap;

use mail_auth::common::crypto::{Algorithm, HashAlgorithm};
use mail_auth::common::headers::Header as Parsed;
use mail_auth::dkim::{Canonicalization, Signature};
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, DnsError, Error};

use super::dns::Resolver;
use super::header::{Header, has_lone_cr};
use super::{Candidate, is_aligned, untrusted};
use crate::model::{Authenticity, Reason, ReasonCode, SignedHeaders, Trust, TrustProof, printable};

/// The most signatures of one mail that are verified. Each signature may need a DNS lookup of a name that the sender has chosen.
const MAX_VERIFIED: usize = 4;
/// The most signatures of a mail, and the most header fields that a signature may name (`h=`). Each name is compared with each
/// field, and a forger can write signatures with many names. Large senders name about forty fields.
pub(super) const MAX_SIGNATURES: usize = 50;
const MAX_SIGNED_NAMES: usize = 500;

/// The DKIM signatures that may prove a mail, and the part of each signature that is verified.
pub(super) enum VerifiedPart<'a> {
    /// Any signature may prove the mail. The signature is verified over the header fields (`b=`) and over the body (`bh=`).
    Everything,
    /// Only a signature that the receiving server found valid may prove the mail. The signature is verified over the header
    /// fields: `b=` must match the signed fields and the given `bh=`. The body is not compared with `bh=`.
    Header(&'a [super::auth_results::PassedSignature]),
}

/// Trusts a mail that has a valid DKIM signature by the organisation whose domain is in the From field.
pub(super) async fn authenticate(mail: &Candidate<'_>, part: &VerifiedPart<'_>, resolver: &Resolver) -> Authenticity {
    let bytes = with_crlf(mail.bytes);
    let Some(mut message) = AuthenticatedMessage::parse(&bytes) else { return untrusted("it cannot be parsed") };
    rehash_without_blank_end(&mut message);
    if message.dkim_headers.len() > MAX_SIGNATURES {
        return untrusted(format!("it has more than {MAX_SIGNATURES} DKIM signatures"));
    }
    // mail-auth leaves a CR without an LF, and the white space before this CR, out of the hash of the body. Mail programs show
    // both.
    if has_lone_cr(message.raw_body()) {
        return untrusted("its body has a CR without an LF, which cannot be signed");
    }
    let mut rejections = drop_unusable(&mut message, mail, part);
    if message.dkim_headers.is_empty() {
        return untrusted(match (rejections.into_iter().next(), message.errors.len()) {
            (Some(reason), _) => reason,
            (None, 0) => "it has no DKIM signature".into(),
            (None, _) => "its DKIM signature cannot be parsed, or signs a part of the body only (l=)".into(),
        });
    }
    disable_library_checks(&mut message, part);
    // One valid signature is enough to prove the mail.
    let mut temp_error = None;
    for output in resolver.verify(&message).await {
        let Some(signature) = output.signature() else { continue };
        match check_key_and_time(&output, signature, mail, resolver).await {
            SignatureResult::Valid => return trusted(signature, mail.header),
            SignatureResult::Invalid(reason) => rejections.push(reason),
            SignatureResult::TempError(reason) => temp_error = Some(reason),
        }
    }
    match temp_error {
        Some(reason) => Authenticity::TempError(Reason::new(ReasonCode::Dns, printable(&reason, 300))),
        None => untrusted(rejections.into_iter().next_back().unwrap_or_else(|| "no DKIM signature verifies".into())),
    }
}

/// Removes the signatures that prove nothing, even with a valid key, and returns the reasons. Also removes the usable signatures
/// after the first [`MAX_VERIFIED`].
fn drop_unusable(message: &mut AuthenticatedMessage<'_>, mail: &Candidate<'_>, part: &VerifiedPart<'_>) -> Vec<String> {
    let mut rejections = Vec::new();
    let mut remaining = MAX_VERIFIED;
    message.dkim_headers.retain(|signed| {
        let rejection = check_without_key(signed, mail, part).err();
        let tried = rejection.is_none() && remaining > 0;
        remaining -= usize::from(tried);
        rejections.extend(rejection);
        tried
    });
    rejections
}

/// Disables two checks of mail-auth by changing the parsed signature. mail-auth verifies `b=` over the raw field, which
/// does not change.
fn disable_library_checks(message: &mut AuthenticatedMessage<'_>, part: &VerifiedPart<'_>) {
    let hashes = &message.body_hashes;
    for signed in &mut message.dkim_headers {
        let signature = &mut signed.header;
        // mail-auth would compare x= with this machine's clock. `check_without_key` has compared it with the receipt time.
        signature.x = 0;
        let algorithm = HashAlgorithm::from(signature.a);
        let is_of_signature = |(canonical, hash, length, _): &&(Canonicalization, HashAlgorithm, u64, Vec<u8>)| {
            (*canonical, *hash, *length) == (signature.cb, algorithm, signature.l)
        };
        // For `VerifiedPart::Header`, the body must not be compared with bh=. mail-auth always compares bh= with the hash of the
        // body. So this function writes the hash of the body into bh=.
        if let (VerifiedPart::Header(_), Some((.., hash))) = (part, hashes.iter().find(is_of_signature)) {
            signature.bh.clone_from(hash);
        }
    }
}

/// The result of verifying one signature.
enum SignatureResult {
    Valid,
    Invalid(String),
    /// DNS did not answer, or a clock is wrong. The mail is authenticated again later.
    TempError(String),
}

async fn check_key_and_time(
    output: &DkimOutput<'_>,
    signature: &Signature,
    mail: &Candidate<'_>,
    resolver: &Resolver,
) -> SignatureResult {
    match (output.result(), dns_failure(output.result())) {
        (DkimResult::Pass, _) => {}
        (_, Some(reason)) => {
            return SignatureResult::TempError(format!("looking up {}: {reason}", describe_key(signature)));
        }
        (result, None) => {
            return SignatureResult::Invalid(format!("{} does not verify: {}", describe(signature), explain(result)));
        }
    }
    match resolver.key_record(signature).await.map(|key| key.rejection()) {
        Err(reason) => SignatureResult::TempError(reason),
        Ok(Some(reason)) => SignatureResult::Invalid(format!("{} {reason}", describe_key(signature))),
        // The key is valid, but t= is in the future, so the clock of the sender or of this machine is wrong.
        Ok(None) if mail.clock.is_behind(signature) => {
            SignatureResult::TempError(format!("{} is from the future by this machine's clock", describe(signature)))
        }
        Ok(None) => SignatureResult::Valid,
    }
}

/// Returns the mail with CRLF at the end of each line, because a mail is signed with CRLF. In a Maildir, lines end with LF.
fn with_crlf(mail: &[u8]) -> Cow<'_, [u8]> {
    let is_bare = |at: &usize| at.checked_sub(1).and_then(|before| mail.get(before)) != Some(&b'\r');
    let mut converted = Vec::new();
    let mut copied = 0;
    for at in memchr::memchr_iter(b'\n', mail).filter(is_bare) {
        converted.extend_from_slice(mail.get(copied..at).unwrap_or_default());
        converted.push(b'\r');
        copied = at;
    }
    if copied == 0 && converted.is_empty() {
        return Cow::Borrowed(mail);
    }
    converted.extend_from_slice(mail.get(copied..).unwrap_or_default());
    Cow::Owned(converted)
}

/// Corrects mail-auth's hash of a relaxed body. Lines of white space at the end of the body must be ignored (RFC 6376, 3.4.4),
/// but mail-auth includes them.
fn rehash_without_blank_end(message: &mut AuthenticatedMessage<'_>) {
    let body = message.raw_message.get(message.body_offset()..).unwrap_or_default();
    let end = body.iter().rposition(|byte| !b" \t\r\n".contains(byte)).map_or(0, |last| last + 1);
    let (text, blank) = body.split_at(end);
    if !blank.iter().any(|byte| b" \t".contains(byte)) {
        return;
    }
    for (canonical, algorithm, length, hash) in &mut message.body_hashes {
        if *canonical == Canonicalization::Relaxed {
            *hash = algorithm.hash(canonical.canonical_body(text, *length)).as_ref().to_vec();
        }
    }
}

/// Checks everything in a signature that can be checked without the key. The error is the reason why a signature proves nothing.
fn check_without_key(
    field: &Parsed<'_, Signature>,
    mail: &Candidate<'_>,
    part: &VerifiedPart<'_>,
) -> Result<(), String> {
    let (signature, header) = (&field.header, mail.header);
    let reject = |why: &str| Err(format!("{} {why}", describe(signature)));
    if !is_aligned(&signature.d, mail.from) {
        return reject(&format!("is of another organisation than its From, {}", mail.from));
    }
    if let VerifiedPart::Header(passed) = part
        && !passed.iter().any(|passed| passed.matches(signature))
    {
        return reject("is not the one that its server found valid");
    }
    if signature.a == Algorithm::RsaSha1 {
        return reject("uses SHA-1, which proves nothing (RFC 8301)");
    }
    // With l=0, nothing of the body is signed, but mail-auth treats l=0 like a missing l=.
    if has_tag(field.value, "l") {
        return reject("signs a part of the body only (l=)");
    }
    if signature.h.len() > MAX_SIGNED_NAMES {
        return reject("names more fields than a mail has");
    }
    let signed = fully_signed_names(&signature.h, header);
    for name in ["from", "to"] {
        if !signed.iter().any(|signed| signed == name) {
            return reject(&format!("does not sign every {name} field"));
        }
    }
    if signature.h.iter().filter(|h| h.eq_ignore_ascii_case("from")).count() < header.count("from") {
        return reject("does not sign every from field");
    }
    if mail.clock.has_expired(signature) {
        return reject("has expired");
    }
    // The domain of i= is d= or a subdomain of it (RFC 6376, 3.5).
    let identity = signature.identity().rsplit_once('@').map_or("", |(_, d)| d).to_ascii_lowercase();
    let is_within = identity.is_empty() || identity == signature.d || identity.ends_with(&format!(".{}", signature.d));
    if is_within { Ok(()) } else { reject("names an identity outside of its domain (i=)") }
}

/// Whether a signature has this tag (RFC 6376, 3.2).
fn has_tag(signature: &[u8], name: &str) -> bool {
    let tags = signature.split(|byte| *byte == b';').filter_map(|tag| tag.split(|byte| *byte == b'=').next());
    tags.map(<[u8]>::trim_ascii).any(|tag| tag.eq_ignore_ascii_case(name.as_bytes()))
}

/// Returns the names in `h=` for which the signature includes every field of the mail. The names keep the order of `h=`.
///
/// DKIM signs the fields with one name from the bottom, and most mail programs show the topmost field. A forger can add an
/// unsigned field at the top. So a name is left out if the mail has more fields with this name than `h=` lists. The result is
/// empty if the signature names more than [`MAX_SIGNED_NAMES`] fields.
fn fully_signed_names(signed: &[String], header: &Header<'_>) -> Vec<String> {
    if signed.len() > MAX_SIGNED_NAMES {
        return Vec::new();
    }
    let names: Vec<String> = signed.iter().map(|name| name.to_ascii_lowercase()).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        *times.entry(name).or_default() += 1;
    }
    // `remove` returns the count of a name only once, so the result has each name once.
    let is_fully_signed = |name: &&String| {
        times.remove(name.as_str()).is_some_and(|times| (1..=times).contains(&header.count_signable(name)))
    };
    names.iter().filter(is_fully_signed).cloned().collect()
}

fn trusted(signature: &Signature, header: &Header<'_>) -> Authenticity {
    Authenticity::Trusted(TrustProof {
        trust: Trust::Dkim,
        domain: Some(printable(&signature.d, 253)),
        selector: Some(printable(&signature.s, 253)),
        signed_headers: SignedHeaders::Only(fully_signed_names(&signature.h, header)),
        to: Vec::new(),
    })
}

fn describe(signature: &Signature) -> String {
    format!("the DKIM signature of {} (selector {})", printable(&signature.d, 100), printable(&signature.s, 100))
}

fn describe_key(signature: &Signature) -> String {
    format!("the key {}._domainkey.{}", printable(&signature.s, 100), printable(&signature.d, 100))
}

/// Returns the reason why DNS did not answer the lookup of a key; `None` if DNS answered.
fn dns_failure(result: &DkimResult) -> Option<String> {
    match result {
        DkimResult::TempError(error) => Some(error.to_string()),
        // `RecordNotFound` is an answer only with NOERROR and NXDOMAIN. With other codes, the server has failed or refused.
        DkimResult::PermError(Error::Dns(DnsError::RecordNotFound(code))) if !super::dns::is_answer(*code) => {
            Some(format!("the server answered {code}"))
        }
        _ => None,
    }
}

fn explain(result: &DkimResult) -> String {
    use mail_auth::dkim::DkimError;
    match result {
        DkimResult::Neutral(Error::Dkim(DkimError::FailedBodyHashMatch)) => "the body was changed".into(),
        DkimResult::PermError(Error::Dns(DnsError::RecordNotFound(_))) => "its key is not in DNS".into(),
        DkimResult::Neutral(e) | DkimResult::Fail(e) | DkimResult::PermError(e) | DkimResult::TempError(e) => {
            e.to_string()
        }
        DkimResult::Pass | DkimResult::None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_signed_if_every_field_is() {
        let header = Header::parse(b"From: a\r\nTo: b\r\nX: 1\r\nX: 2\r\nY: 1\r\nY: 2\r\n\r\n");
        let signed = |names: &str| names.split(':').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(fully_signed_names(&signed("TO:from:x:y:Y:to:z"), &header), ["to", "from", "y"]);
        let many = format!("from:to{}", ":x".repeat(MAX_SIGNED_NAMES));
        assert_eq!(fully_signed_names(&signed(&many), &header), Vec::<String>::new());
    }
}
