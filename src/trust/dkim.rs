//! DKIM (RFC 6376), checked by us: a signature of the From's organisation over From, To and the whole body.

use std::borrow::Cow;
use std::collections::HashMap;

use mail_auth::common::crypto::{Algorithm, HashAlgorithm};
use mail_auth::common::headers::Header as Parsed;
use mail_auth::dkim::{Canonicalization, Signature};
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, DnsError, Error};

use super::dns::Resolver;
use super::header::{Header, has_lone_cr};
use super::{Subject, is_aligned, untrusted};
use crate::model::{Authenticity, Proof, Reason, ReasonCode, SignedHeaders, Trust, printable};

/// How many signatures of the right domain are tried. Each may cost a question to DNS, which its sender chooses.
const SIGNATURES: usize = 4;
/// The most signatures that are looked at, and the most fields that one may name: each name is held against each field.
/// Anybody can write some that are of the right domain; careful senders name forty.
pub(super) const LOOKED_AT: usize = 50;
const NAMES: usize = 500;

/// Which signatures may prove a mail, and how much of each is verified.
pub(super) enum Check<'a> {
    /// Any signature, all of it.
    Whole,
    /// Those that the server found valid, without the body: `b=` must match the signed fields and the stated `bh=`.
    Header(&'a [super::auth_results::Passed]),
}

/// Looks for a signature that proves the mail to be from its From's organisation.
pub(super) async fn prove(mail: &Subject<'_>, check: &Check<'_>, resolver: &Resolver) -> Authenticity {
    let bytes = with_crlf(mail.bytes);
    let Some(mut message) = AuthenticatedMessage::parse(&bytes) else { return untrusted("it cannot be taken apart") };
    hash_without_blank_end(&mut message);
    if message.dkim_headers.len() > LOOKED_AT {
        return untrusted(format!("it has more than {LOOKED_AT} DKIM signatures"));
    }
    // mail-auth leaves it out of the body that it checks, and the white space before it; who reads the mail sees it.
    if has_lone_cr(message.raw_body()) {
        return untrusted("its body has a CR without an LF, which no signature covers");
    }
    let mut refusals = keep_fitting(&mut message, mail, check);
    if message.dkim_headers.is_empty() {
        return untrusted(match (refusals.into_iter().next(), message.errors.len()) {
            (Some(words), _) => words,
            (None, 0) => "it has no DKIM signature".into(),
            (None, _) => "its DKIM signature cannot be read, or signs a part of the body only (l=)".into(),
        });
    }
    set_aside(&mut message, check);
    // Each signature's own verdict; one that holds is enough.
    let mut undecided = None;
    for output in resolver.verify(&message).await {
        let Some(signature) = output.signature() else { continue };
        match judged(&output, signature, mail, resolver).await {
            Found::Valid => return believed(signature, mail.header),
            Found::Invalid(words) => refusals.push(words),
            Found::Unknown(words) => undecided = Some(words),
        }
    }
    match undecided {
        Some(words) => Authenticity::TempError(Reason::new(ReasonCode::Dns, printable(&words, 300))),
        None => untrusted(refusals.into_iter().next_back().unwrap_or_else(|| "no DKIM signature verifies".into())),
    }
}

/// Drops the signatures that prove nothing whatever their keys are. In words, why.
fn keep_fitting(message: &mut AuthenticatedMessage<'_>, mail: &Subject<'_>, check: &Check<'_>) -> Vec<String> {
    let mut refusals = Vec::new();
    let mut left = SIGNATURES;
    message.dkim_headers.retain(|signed| {
        let refusal = fits(signed, mail, check).err();
        let tried = refusal.is_none() && left > 0;
        left -= usize::from(tried);
        refusals.extend(refusal);
        tried
    });
    refusals
}

/// Disables two checks of mail-auth. It verifies `b=` over the raw field, so changes of the parsed signature do not matter.
fn set_aside(message: &mut AuthenticatedMessage<'_>, check: &Check<'_>) {
    let hashes = &message.body_hashes;
    for signed in &mut message.dkim_headers {
        let signature = &mut signed.header;
        // mail-auth compares x= with this machine's clock. `fits` has compared it with the time of receipt.
        signature.x = 0;
        let algorithm = HashAlgorithm::from(signature.a);
        let its = |(canonical, hash, length, _): &&(Canonicalization, HashAlgorithm, u64, Vec<u8>)| {
            (*canonical, *hash, *length) == (signature.cb, algorithm, signature.l)
        };
        // mail-auth compares bh= with the hash of the present body.
        if let (Check::Header(_), Some((.., hash))) = (check, hashes.iter().find(its)) {
            signature.bh.clone_from(hash);
        }
    }
}

/// What became of one signature.
enum Found {
    Valid,
    Invalid(String),
    /// To be checked again later.
    Unknown(String),
}

async fn judged(output: &DkimOutput<'_>, signature: &Signature, mail: &Subject<'_>, resolver: &Resolver) -> Found {
    match (output.result(), temporary(output.result())) {
        (DkimResult::Pass, _) => {}
        (_, Some(words)) => return Found::Unknown(format!("asking for {}: {words}", key_of(signature))),
        (result, None) => return Found::Invalid(format!("{} does not verify: {}", of(signature), in_words(result))),
    }
    match resolver.key_record(signature).await.map(|key| key.objection()) {
        Err(words) => Found::Unknown(words),
        Ok(Some(words)) => Found::Invalid(format!("{} {words}", key_of(signature))),
        // Either clock may be wrong, so nothing is decided.
        Ok(None) if mail.clock.is_behind(signature) => {
            Found::Unknown(format!("{} was made later than this machine's clock says", of(signature)))
        }
        Ok(None) => Found::Valid,
    }
}

/// A mail with the line ends that it was signed with. In a file they may be those of the system: a Maildir's are.
fn with_crlf(mail: &[u8]) -> Cow<'_, [u8]> {
    let bare = |at: &usize| at.checked_sub(1).and_then(|before| mail.get(before)) != Some(&b'\r');
    let mut whole = Vec::new();
    let mut rest = 0;
    for at in memchr::memchr_iter(b'\n', mail).filter(bare) {
        whole.extend_from_slice(mail.get(rest..at).unwrap_or_default());
        whole.push(b'\r');
        rest = at;
    }
    if rest == 0 && whole.is_empty() {
        return Cow::Borrowed(mail);
    }
    whole.extend_from_slice(mail.get(rest..).unwrap_or_default());
    Cow::Owned(whole)
}

/// Lines of white space at a body's end count for nothing where it is relaxed (RFC 6376, 3.4.4); mail-auth counts them.
fn hash_without_blank_end(message: &mut AuthenticatedMessage<'_>) {
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

/// Checks all that needs no key. The error says in words why the signature proves nothing.
fn fits(signed: &Parsed<'_, Signature>, mail: &Subject<'_>, check: &Check<'_>) -> Result<(), String> {
    let (signature, header) = (&signed.header, mail.header);
    let no = |why: &str| Err(format!("{} {why}", of(signature)));
    if !is_aligned(&signature.d, mail.from) {
        return no(&format!("is of another organisation than its From, {}", mail.from));
    }
    if let Check::Header(passed) = check
        && !passed.iter().any(|passed| passed.is_of(signature))
    {
        return no("is not the one that its server found valid");
    }
    if signature.a == Algorithm::RsaSha1 {
        return no("is by SHA-1, which proves nothing any more (RFC 8301)");
    }
    // mail-auth takes l=0, which signs nothing of the body, for no l= at all.
    if has_tag(signed.value, "l") {
        return no("signs a part of the body only (l=)");
    }
    if signature.h.len() > NAMES {
        return no("names more fields than a mail has");
    }
    let covered = covered(&signature.h, header);
    for name in ["from", "to"] {
        if !covered.iter().any(|c| c == name) {
            return no(&format!("does not sign every {name} field"));
        }
    }
    if signature.h.iter().filter(|h| h.eq_ignore_ascii_case("from")).count() < header.count("from") {
        return no("does not sign every from field");
    }
    if mail.clock.has_expired(signature) {
        return no("has expired");
    }
    // i= is an address in d= or below it (RFC 6376, 3.5).
    let identity = signature.identity().rsplit_once('@').map_or("", |(_, d)| d).to_ascii_lowercase();
    let below = identity.is_empty() || identity == signature.d || identity.ends_with(&format!(".{}", signature.d));
    if below { Ok(()) } else { no("names an identity outside of its domain (i=)") }
}

/// Whether a signature has this tag (RFC 6376, 3.2).
fn has_tag(signature: &[u8], name: &str) -> bool {
    let tags = signature.split(|byte| *byte == b';').filter_map(|tag| tag.split(|byte| *byte == b'=').next());
    tags.map(<[u8]>::trim_ascii).any(|tag| tag.eq_ignore_ascii_case(name.as_bytes()))
}

/// The fields that a signature speaks for: all of a name, or none. One that was added under a signed name, above the
/// signed one, is what most programs show; so a name that is there more often than it is signed is not covered.
///
/// One that names more fields than anybody would speaks for none.
fn covered(signed: &[String], header: &Header<'_>) -> Vec<String> {
    if signed.len() > NAMES {
        return Vec::new();
    }
    let names: Vec<String> = signed.iter().map(|name| name.to_ascii_lowercase()).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    names.iter().for_each(|name| *times.entry(name).or_default() += 1);
    // In their order, and each once.
    let of_all =
        |name: &&String| times.remove(name.as_str()).is_some_and(|times| (1..=times).contains(&header.signable(name)));
    names.iter().filter(of_all).cloned().collect()
}

fn believed(signature: &Signature, header: &Header<'_>) -> Authenticity {
    Authenticity::Trusted(Proof {
        trust: Trust::Dkim,
        domain: Some(printable(&signature.d, 253)),
        selector: Some(printable(&signature.s, 253)),
        signed_headers: SignedHeaders::Only(covered(&signature.h, header)),
        to: Vec::new(),
    })
}

fn of(signature: &Signature) -> String {
    format!("the DKIM signature of {} (selector {})", printable(&signature.d, 100), printable(&signature.s, 100))
}

fn key_of(signature: &Signature) -> String {
    format!("the key {}._domainkey.{}", printable(&signature.s, 100), printable(&signature.d, 100))
}

/// In words, what kept DNS from answering; `None` if it did answer.
fn temporary(result: &DkimResult) -> Option<String> {
    match result {
        DkimResult::TempError(error) => Some(error.to_string()),
        // "Not found" has to be said by the domain's own servers; a server that failed or refuses says nothing.
        DkimResult::PermError(Error::Dns(DnsError::RecordNotFound(code))) if !super::dns::is_an_answer(*code) => {
            Some(format!("the server answered {code}"))
        }
        _ => None,
    }
}

fn in_words(result: &DkimResult) -> String {
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
    fn a_name_is_covered_if_all_fields_of_it_are_signed() {
        let header = Header::read(b"From: a\r\nTo: b\r\nX: 1\r\nX: 2\r\nY: 1\r\nY: 2\r\n\r\n");
        let signed = |names: &str| names.split(':').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(covered(&signed("TO:from:x:y:Y:to:z"), &header), ["to", "from", "y"]);
        let many = format!("from:to{}", ":x".repeat(NAMES));
        assert_eq!(covered(&signed(&many), &header), Vec::<String>::new());
    }
}
