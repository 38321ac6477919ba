//! Authentication-Results (RFC 8601): what the merchant's own receiving server found.
//!
//! Only the topmost field of a configured server counts: servers put theirs on top, and remove what came in under
//! their name (RFC 8601, 5). Fields of other servers are their business, and anybody could have written them.

use mail_auth::AuthenticatedMessage;
use mail_auth::common::headers::Header as Parsed;
use mail_auth::dkim::Signature;

use super::dkim::{LOOKED_AT, SIGNATURES, covered};
use super::header::Header;
use super::{is_aligned, untrusted};
use crate::model::{Covered, Proof, Trust, Verdict, printable};

/// Looks for the word of one of `servers` that a signature of the From's organisation is valid.
pub(super) fn prove(mail: &[u8], header: &Header<'_>, from: &str, servers: &[String]) -> Verdict {
    let fields = header.all("authentication-results").map(String::from_utf8_lossy);
    let mut own = fields.filter(|value| servers.iter().any(|id| names(value, id)));
    let Some(value) = own.next() else {
        return untrusted(format!("it has no Authentication-Results of {}", servers.join(" or ")));
    };
    // One that is cut off by what its sender wrote into it does not let one below it speak.
    let Some(field) = Field::read(&value) else {
        return untrusted("the Authentication-Results of its server cannot be read");
    };
    let passed = field.results.iter().filter(|r| r.method == "dkim" && r.result == "pass");
    let aligned = passed.filter_map(|r| Some((r, r.domain()?))).filter(|(_, domain)| is_aligned(domain, from));
    let mut refusal = format!("{} found no valid DKIM signature of {from}", printable(&field.server, 100));
    for (result, domain) in aligned.take(SIGNATURES) {
        let selector = result.property("header.s");
        match covers(mail, header, &domain, selector) {
            Ok(covers) => {
                return Verdict::Believed(Proof {
                    trust: Trust::AuthenticationResults,
                    domain: Some(printable(&domain, 253)),
                    selector: selector.map(|s| printable(s, 253)),
                    covers,
                    to: Vec::new(),
                });
            }
            Err(words) => refusal = words,
        }
    }
    untrusted(refusal)
}

/// Whether a field is in a server's name, also if the rest of it cannot be read.
fn names(value: &str, server: &str) -> bool {
    let whole = Field::read(value).map(|field| field.server);
    let first = || value.split([';', '(']).next().and_then(|start| start.split_whitespace().next());
    whole.as_deref().or_else(first).is_some_and(|name| name.trim_matches('"').eq_ignore_ascii_case(server))
}

/// What the signature that the server speaks of covers. If it is no longer in the mail, nothing is known but that the
/// server believed the sender: then From and To are taken at its word, and nothing else.
///
/// Of several it may speak of any: a forger can add one that names whatever is there, and the server speaks of the genuine
/// one. So what one of them does not sign is not covered.
fn covers(mail: &[u8], header: &Header<'_>, domain: &str, selector: Option<&str>) -> Result<Covered, String> {
    if header.count("dkim-signature") == 0 {
        let plain = header.count("to") <= 1 && header.signable("to") == header.count("to");
        let least = || Covered::Only(vec!["from".into(), "to".into()]);
        return if plain { Ok(least()) } else { Err("it has more than one To, or an odd one".into()) };
    }
    let message = AuthenticatedMessage::parse(mail).ok_or("it cannot be taken apart")?;
    if message.dkim_headers.len() > LOOKED_AT {
        return Err(format!("it has more than {LOOKED_AT} DKIM signatures"));
    }
    let of = printable(domain, 100);
    if message.errors.iter().any(|unread| tag(unread.value, "d").is_some_and(|d| d.eq_ignore_ascii_case(domain))) {
        return Err(format!("a signature of {of} is in it that cannot be read, or signs a part of the body only"));
    }
    let its = message.dkim_headers.iter().filter(|signed| {
        let signature = &signed.header;
        signature.d.eq_ignore_ascii_case(domain) && selector.is_none_or(|s| s.eq_ignore_ascii_case(&signature.s))
    });
    // Also nothing of the body is a part of it (l=0).
    let names = |signed: &Parsed<'_, Signature>| match tag(signed.value, "l") {
        Some(_) => Vec::new(),
        None => covered(&signed.header.h, header),
    };
    let by_all = its.map(names).reduce(|some, others| some.into_iter().filter(|name| others.contains(name)).collect());
    let by_all = by_all.ok_or_else(|| format!("the signature of {of} that its server speaks of is not in it"))?;
    if ["from", "to"].iter().all(|name| by_all.iter().any(|n| n == name)) {
        Ok(Covered::Only(by_all))
    } else {
        Err(format!("a signature of {of} does not sign From and To, or a part of the body only"))
    }
}

/// A tag of a signature (RFC 6376, 3.2), without its white space.
fn tag(signature: &[u8], name: &str) -> Option<String> {
    let text: String = String::from_utf8_lossy(signature).split_whitespace().collect();
    let mut tags = text.split(';').filter_map(|tag| tag.split_once('='));
    tags.find(|(its, _)| its.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
}

/// One Authentication-Results field.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    server: String,
    results: Vec<Outcome>,
}

/// One `method=result` with its properties.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    method: String,
    result: String,
    properties: Vec<(String, String)>,
}

impl Outcome {
    fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The domain that signed: `header.d`, else that of `header.i`.
    fn domain(&self) -> Option<String> {
        let identity = || self.property("header.i").and_then(|i| i.rsplit_once('@')).map(|(_, domain)| domain);
        self.property("header.d").or_else(identity).map(str::to_ascii_lowercase).filter(|d| !d.is_empty())
    }
}

impl Field {
    /// Reads a field's value (RFC 8601, 2.2); `None` if it is none that we understand.
    fn read(value: &str) -> Option<Field> {
        let tokens = tokens(value)?;
        let mut statements = tokens.split(|t| *t == Token::Mark(';'));
        let server = match statements.next()? {
            [Token::Word(server)] => server,
            // A version of the field's format; only 1 is known.
            [Token::Word(server), Token::Word(version)] if version == "1" => server,
            _ => return None,
        };
        Some(Field { server: server.clone(), results: statements.filter_map(Outcome::read).collect() })
    }
}

impl Outcome {
    fn read(statement: &[Token]) -> Option<Outcome> {
        let (method, rest) = match statement {
            [Token::Word(method), Token::Mark('='), rest @ ..] => (method, rest),
            // A method's version; only 1 is known.
            [Token::Word(method), Token::Mark('/'), Token::Word(version), Token::Mark('='), rest @ ..]
                if version == "1" =>
            {
                (method, rest)
            }
            _ => return None,
        };
        let (Token::Word(result), mut rest) = rest.split_first()? else { return None };
        let mut properties = Vec::new();
        while let [Token::Word(name), Token::Mark('='), Token::Word(value), after @ ..] = rest {
            properties.push((name.to_ascii_lowercase(), value.clone()));
            rest = after;
        }
        // What is left over is not of this grammar: nobody knows what it says.
        rest.is_empty().then(|| Outcome {
            method: method.to_ascii_lowercase(),
            result: result.to_ascii_lowercase(),
            properties,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(char),
}

/// Words and marks, without comments; a quoted string is a word. `None` if a quote or a comment does not end.
fn tokens(value: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => skip_comment(&mut chars)?,
            '"' => tokens.push(Token::Word(quoted(&mut chars)?)),
            ';' | '=' | '/' => tokens.push(Token::Mark(c)),
            c => {
                let mut word = String::from(c);
                // Servers write a signature's base64 as it is, its padding too.
                if tokens.last() == Some(&Token::Mark('=')) {
                    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | '"' | ';')) {
                        word.push(c);
                    }
                    tokens.push(Token::Word(word));
                    continue;
                }
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | '"' | ';' | '=')) {
                    // A slash ends a method's name, and is a part of anything else.
                    if c == '/' && is_method(&word) {
                        tokens.push(Token::Word(std::mem::take(&mut word)));
                        tokens.push(Token::Mark('/'));
                        continue;
                    }
                    word.push(c);
                }
                tokens.extend((!word.is_empty()).then_some(Token::Word(word)));
            }
        }
    }
    Some(tokens)
}

fn is_method(word: &str) -> bool {
    ["dkim", "spf", "dmarc", "arc", "iprev", "auth", "domainkeys", "sender-id", "adsp", "dkim-adsp", "dnswl", "bimi"]
        .iter()
        .any(|method| method.eq_ignore_ascii_case(word))
}

fn skip_comment(chars: &mut impl Iterator<Item = char>) -> Option<()> {
    let mut depth = 1;
    while depth > 0 {
        match chars.next()? {
            '\\' => drop(chars.next()?),
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
    }
    Some(())
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => text.push(chars.next()?),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: &str = "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\n";

    fn verdict(fields: &str) -> Verdict {
        let mail = format!("{fields}{FROM}\r\nbody\r\n");
        let servers = ["mx.shop.example".to_owned()];
        prove(mail.as_bytes(), &Header::read(mail.as_bytes()), "resmic.com", &servers)
    }

    #[test]
    fn the_word_of_our_server_is_believed() {
        for field in [
            "Authentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
            "Authentication-Results: MX.shop.example 1; spf=fail; dkim/1=pass (good; \"x\" (nested)) header.i=@mail.resmic.com\r\n\theader.s=s1 header.b=ab/+=",
            "authentication-results: \"mx.shop.example\"; dkim=fail reason=\"bad; dkim=pass\" header.d=x.example; dkim=pass\r\n reason=\"a b\" header.d=RESMIC.com",
            "Authentication-Results: other.example; dkim=fail\r\nAuthentication-Results: mx.shop.example; dkim=pass header.d=resmic.com",
        ] {
            assert!(matches!(verdict(&format!("{field}\r\n")), Verdict::Believed(_)), "{field}");
        }
    }

    #[test]
    fn nobody_elses_word_is() {
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
            "Authentication-Results: mx.shop.example; dkim=pass",
            "X: y",
        ] {
            assert!(matches!(verdict(&format!("{field}\r\n")), Verdict::Refused(_)), "{field}");
        }
    }

    #[test]
    fn one_of_our_server_that_cannot_be_read_does_not_let_one_below_it_speak() {
        let forged = "Authentication-Results: mx.shop.example; dkim=pass header.d=resmic.com\r\n";
        for top in ["mx.shop.example; spf=fail smtp.mailfrom=\"a", "mx.shop.example 2; dkim=fail", "mx.shop.example (a"]
        {
            let verdict = verdict(&format!("Authentication-Results: {top}\r\n{forged}"));
            assert!(matches!(verdict, Verdict::Refused(_)), "{top}: {verdict:?}");
        }
        let others = verdict(&format!("Authentication-Results: mx.other.example; spf=\"a\r\n{forged}"));
        assert!(matches!(others, Verdict::Believed(_)), "{others:?}");
    }

    #[test]
    fn a_signature_that_is_there_must_sign_from_and_to() {
        let word = "Authentication-Results: mx.shop.example; dkim=pass header.d=resmic.com header.s=s1\r\n";
        let signature = |h: &str| {
            format!(
                "DKIM-Signature: v=1; a=rsa-sha256; d=resmic.com; s=s1; c=relaxed/relaxed; h={h}; bh=abcd; b=abcd\r\n"
            )
        };
        let Verdict::Believed(proof) = verdict(&format!("{word}{}", signature("from:to:date"))) else { panic!() };
        assert_eq!(proof.covers, Covered::Only(vec!["from".into(), "to".into()]));
        assert!(matches!(verdict(&format!("{word}{}", signature("from:subject"))), Verdict::Refused(_)));
        let other = signature("from:to").replace("s=s1", "s=s2");
        assert!(matches!(verdict(&format!("{word}{other}")), Verdict::Refused(_)));
    }

    #[test]
    fn a_signature_that_a_forger_added_does_not_say_what_is_signed() {
        let word = "Authentication-Results: mx.shop.example; dkim=fail header.d=resmic.com header.s=s1; dkim=pass header.d=resmic.com header.s=s1\r\n";
        let signature = |h: &str, more: &str| {
            format!("DKIM-Signature: v=1; a=rsa-sha256; d=resmic.com; s=s1; {more}h={h}; bh=abcd; b=abcd\r\n")
        };
        let genuine = signature("from:to:date", "");
        // FROM has a To below this one, which is the one that the genuine signature signs.
        let forged = |genuine: &str| format!("{word}{}To: x@evil.tld\r\n{genuine}", signature("from:to:to:date", ""));
        let others = [
            genuine.as_str(),
            &signature("from:subject", ""),
            &signature("from:to:to", "l = 0; "),
            &signature("from:to:to", "l=9; "),
        ];
        for genuine in others {
            assert!(matches!(verdict(&forged(genuine)), Verdict::Refused(_)), "{genuine}");
        }
        let both = format!("{word}{}{genuine}", signature("from:to:subject", ""));
        let Verdict::Believed(proof) = verdict(&both) else { panic!() };
        assert_eq!(proof.covers, Covered::Only(vec!["from".into(), "to".into()]));
        let odd = verdict(&format!("{word}To : x@evil.tld\r\n"));
        assert!(matches!(odd, Verdict::Refused(_)), "{odd:?}");
    }

    #[test]
    fn any_signature_that_the_server_found_valid_may_sign_from_and_to() {
        let word = "Authentication-Results: mx.shop.example; dkim=pass header.d=mail.resmic.com; dkim=pass header.d=resmic.com\r\n";
        let signature =
            |d: &str, h: &str| format!("DKIM-Signature: v=1; a=rsa-sha256; d={d}; s=s1; h={h}; bh=abcd; b=abcd\r\n");
        let fields = [word, &signature("mail.resmic.com", "from"), &signature("resmic.com", "from:to")].concat();
        assert!(matches!(verdict(&fields), Verdict::Believed(_)));
    }
}
