//! DKIM (RFC 6376), checked by us: a signature of the From's organisation over From, To and the whole body.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use mail_auth::common::crypto::Algorithm;
use mail_auth::common::headers::Header as Parsed;
use mail_auth::dkim::{Canonicalization, Signature};
use mail_auth::{AuthenticatedMessage, DkimResult, DnsError, Error};

use super::dns::{KeyFlags, Resolver};
use super::header::{Header, has_lone_cr};
use super::{is_aligned, untrusted};
use crate::model::{Covered, Proof, Reason, ReasonCode, Trust, Verdict, printable};

/// How many signatures of the right domain are tried. Each may cost a question to DNS, which its sender chooses.
pub(super) const SIGNATURES: usize = 4;
/// The most signatures that are looked at, and the most fields that one may name: each name is held against each field.
/// Anybody can write some that are of the right domain; careful senders name forty.
pub(super) const LOOKED_AT: usize = 50;
const NAMES: usize = 500;
/// How far ahead a signature's clock may be, in seconds.
const AHEAD: i64 = 86_400;

/// Looks for a signature that proves the mail to be from `from`'s organisation.
pub(super) async fn prove(
    mail: &[u8],
    header: &Header<'_>,
    from: &str,
    resolver: &Resolver,
    now: Timestamp,
) -> Verdict {
    let mail = with_crlf(mail);
    let Some(mut message) = AuthenticatedMessage::parse(&mail) else { return untrusted("it cannot be taken apart") };
    hash_without_blank_end(&mut message);
    if message.dkim_headers.len() > LOOKED_AT {
        return untrusted(format!("it has more than {LOOKED_AT} DKIM signatures"));
    }
    // mail-auth leaves it out of the body that it checks, and the white space before it; who reads the mail sees it.
    if has_lone_cr(message.raw_body()) {
        return untrusted("its body has a CR without an LF, which no signature covers");
    }
    let mut refusals = Vec::new();
    let unreadable = message.errors.len();
    let mut left = SIGNATURES;
    message.dkim_headers.retain(|signed| {
        let refusal = fits(signed, header, from, now).err();
        let tried = refusal.is_none() && left > 0;
        left -= usize::from(tried);
        refusals.extend(refusal);
        tried
    });
    if message.dkim_headers.is_empty() {
        return untrusted(match (refusals.into_iter().next(), unreadable) {
            (Some(words), _) => words,
            (None, 0) => "it has no DKIM signature".into(),
            (None, _) => "its DKIM signature cannot be read, or signs a part of the body only (l=)".into(),
        });
    }
    // Each signature's own verdict; one that holds is enough.
    let mut undecided = None;
    for output in resolver.verify(&message).await {
        let Some(signature) = output.signature() else { continue };
        match (output.result(), temporary(output.result())) {
            (DkimResult::Pass, _) => match resolver.key_flags(signature).await {
                Ok(KeyFlags { testing: false }) => return believed(signature, header),
                Ok(KeyFlags { testing: true }) => refusals.push(format!("{} is in test mode (t=y)", key_of(signature))),
                Err(words) => undecided = Some(words),
            },
            (_, Some(words)) => undecided = Some(format!("asking for {}: {words}", key_of(signature))),
            (result, None) => refusals.push(format!("{} does not verify: {}", of(signature), in_words(result))),
        }
    }
    match undecided {
        Some(words) => Verdict::Undecided(Reason::new(ReasonCode::Dns, printable(&words, 300))),
        None => untrusted(refusals.into_iter().next_back().unwrap_or_else(|| "no DKIM signature verifies".into())),
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

/// What can be said of a signature before it is checked. In words, why it proves nothing here.
fn fits(signed: &Parsed<'_, Signature>, header: &Header<'_>, from: &str, now: Timestamp) -> Result<(), String> {
    let signature = &signed.header;
    let no = |why: &str| Err(format!("{} {why}", of(signature)));
    if !is_aligned(&signature.d, from) {
        return no(&format!("is of another organisation than its From, {from}"));
    }
    if signature.a == Algorithm::RsaSha1 {
        return no("is by SHA-1, which proves nothing any more (RFC 8301)");
    }
    if signature.l > 0 {
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
    let now = now.as_second();
    if signature.x > 0 && i64::try_from(signature.x).unwrap_or(i64::MAX) <= now {
        return no("has expired");
    }
    if i64::try_from(signature.t).unwrap_or(i64::MAX) > now + AHEAD {
        return no("is from the future");
    }
    // i= is an address in d= or below it (RFC 6376, 3.5).
    let identity = signature.identity().rsplit_once('@').map_or("", |(_, d)| d).to_ascii_lowercase();
    let below = identity.is_empty() || identity == signature.d || identity.ends_with(&format!(".{}", signature.d));
    if below { Ok(()) } else { no("names an identity outside of its domain (i=)") }
}

/// The fields that a signature speaks for: all of a name, or none. One that was added under a signed name, above the
/// signed one, is what most programs show; so a name that is there more often than it is signed is not covered.
///
/// One that names more fields than anybody would speaks for none.
pub(super) fn covered(signed: &[String], header: &Header<'_>) -> Vec<String> {
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

fn believed(signature: &Signature, header: &Header<'_>) -> Verdict {
    Verdict::Believed(Proof {
        trust: Trust::Dkim,
        domain: Some(printable(&signature.d, 253)),
        selector: Some(printable(&signature.s, 253)),
        covers: Covered::Only(covered(&signature.h, header)),
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
