//! The raw header: its fields as they stand, and who a mail is from and to.
//!
//! Parsers disagree about what is odd, and a forger lives on that: mail-parser takes the last of two Froms, and
//! `Fr om:` for one. So the fields are counted here, on the bytes, and what is odd about a From is refused.

use mail_parser::{Address, MessageParser};

/// A mail's header fields, in their order.
pub(super) struct Header<'a> {
    fields: Vec<HeaderField<'a>>,
    /// There are more than are looked at.
    is_truncated: bool,
    /// A line of it is no field's and not the empty one: some programs see its end there, or behind it.
    is_malformed: bool,
}

struct HeaderField<'a> {
    /// As it stands before the colon.
    name: &'a [u8],
    /// What stands behind it, folds and all.
    value: &'a [u8],
}

/// The most fields that are looked at.
const MAX_FIELDS: usize = 2_000;

impl<'a> Header<'a> {
    /// Reads up to the first empty line (RFC 5322, 2.1), and not to one that only looks empty: who checks the signature reads
    /// on there, as far as the To that is signed.
    pub(super) fn parse(mail: &'a [u8]) -> Self {
        let mut fields: Vec<HeaderField<'a>> = Vec::new();
        let mut rest = mail;
        let (mut is_truncated, mut is_malformed) = (false, false);
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |n| n + 1);
            let (line, after) = rest.split_at(end);
            if matches!(line, b"\n" | b"\r\n") {
                break;
            }
            rest = after;
            if line.starts_with(b" ") || line.starts_with(b"\t") {
                match fields.last_mut() {
                    Some(field) => field.value = between(mail, field.value, line),
                    None => is_malformed = true,
                }
                continue;
            }
            if fields.len() == MAX_FIELDS {
                is_truncated = true;
                break;
            }
            let colon = line.iter().position(|b| *b == b':');
            let (name, value) = line.split_at(colon.unwrap_or(line.len()));
            is_malformed |= colon.is_none() || name.trim_ascii().is_empty();
            fields.push(HeaderField { name, value: value.strip_prefix(b":").unwrap_or_default() });
        }
        Header { fields, is_truncated, is_malformed }
    }

    /// How many fields have this name (in lower case).
    pub(super) fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|f| f.is(name)).count()
    }

    /// How many fields have this name (in lower case) for who checks a signature. None, if there is one that readers see
    /// otherwise: `To :` is found by no name that is signed, and what is written with a lone CR is signed without it.
    pub(super) fn count_signable(&self, name: &str) -> usize {
        let like = self.fields.iter().filter(|f| f.looks_like(name));
        let is_as_signed =
            |f: &HeaderField<'_>| f.name.eq_ignore_ascii_case(name.as_bytes()) && !hides_characters(f.value);
        if like.clone().all(is_as_signed) { like.count() } else { 0 }
    }

    /// Whether there is a field that some program takes for one of this name (in lower case).
    pub(super) fn has_lookalike(&self, name: &str) -> bool {
        self.fields.iter().any(|f| f.looks_like(name))
    }

    /// The values of the fields with this name that stand above the first field named `mark`.
    pub(super) fn all_above(&self, name: &str, mark: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().take_while(move |f| !f.is(mark)).filter(move |f| f.is(name)).map(|f| f.value)
    }

    /// The values of the fields with this name, from the top.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |f| f.is(name)).map(|f| f.value)
    }

    /// The one sender.
    ///
    /// # Errors
    /// In words, what is odd about it.
    pub(super) fn from(&self) -> Result<String, String> {
        // DKIM signs from the bottom: below the last that is looked at there may be the To that is signed, and above
        // it one that a forger wrote.
        if self.is_truncated {
            return Err(format!("its header has more than {MAX_FIELDS} fields"));
        }
        if self.is_malformed {
            return Err("it cannot be told where its header ends".into());
        }
        // Also what some parser might take for a From.
        let like_from = self.fields.iter().filter(|f| f.looks_like("from")).count();
        match (self.count("from"), like_from) {
            (0, _) => return Err("it has no From".into()),
            (1, 1) => {}
            _ => return Err("it has more than one From".into()),
        }
        let value = self.all("from").next().unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        if count_at_signs(&text) != 1 || text.chars().filter(|c| *c == '<').count() > 1 {
            return Err("its From does not name one plain address".into());
        }
        match addresses_or_group(value) {
            Some((only, false)) if only.len() == 1 => only.into_iter().next().filter(|a| is_unambiguous(a)),
            _ => None,
        }
        .ok_or_else(|| "its From does not name one plain address".to_owned())
    }
}

impl HeaderField<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes())
    }

    /// With white space and what cannot be seen left out.
    fn looks_like(&self, name: &str) -> bool {
        let seen = self.name.iter().filter(|byte| byte.is_ascii_graphic()).map(u8::to_ascii_lowercase);
        seen.eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
    }
}

/// Whether there is what mail-auth leaves out of a signed field, with the white space before it, and a reader takes for white
/// space or a line's end: a form feed, a CR that no LF follows.
fn hides_characters(value: &[u8]) -> bool {
    value.contains(&b'\x0c') || has_lone_cr(value)
}

/// Whether there is a CR that no LF follows. No mail server passes one on (RFC 5321, 2.3.8).
pub(super) fn has_lone_cr(text: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', text).any(|at| text.get(at + 1) != Some(&b'\n'))
}

/// The slice from the start of `first` to the end of `last`, both of which are parts of `whole`.
fn between<'a>(whole: &'a [u8], first: &'a [u8], last: &'a [u8]) -> &'a [u8] {
    let offset = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    whole.get(offset(first)..offset(last) + last.len()).unwrap_or(first)
}

/// How many `@` stand outside of quoted strings and comments.
fn count_at_signs(text: &str) -> usize {
    let (mut count, mut quoted, mut depth, mut escaped) = (0, false, 0_usize, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            '@' if !quoted && depth == 0 => count += 1,
            _ => {}
        }
    }
    count
}

/// The addresses in a field's value.
pub(super) fn addresses(value: &[u8]) -> Vec<String> {
    addresses_or_group(value).map(|(list, _)| list).unwrap_or_default()
}

/// The plain addresses in a field's value, to the letter of RFC 5322 and no further: a mail is for us by them. What parsers
/// make of `<"x>, payments@shop.example, <y"@evil.tld>`, which is one address at evil.tld, is not what its sender has signed.
pub(super) fn plain_addresses(value: &[u8]) -> Vec<String> {
    let text = mask_quoted(&String::from_utf8_lossy(value));
    let listed = text.split([',', ';']).filter_map(|one| {
        // What stands before a colon is a group's name.
        let one = one.rsplit(':').next().unwrap_or_default().trim();
        let address = match one.split_once('<') {
            Some((_, angle)) => angle.strip_suffix('>')?.trim(),
            None => one,
        };
        let (local, domain) = address.split_once('@')?;
        let fits = |part: &str| {
            let odd = |c: char| c.is_whitespace() || c.is_control() || "\"()<>@[\\]".contains(c);
            !part.is_empty() && !part.contains(odd)
        };
        (fits(local) && fits(domain)).then(|| address.to_owned())
    });
    listed.collect()
}

/// A field's value with a `"` for each quoted string, a `[` for each literal, and a space for each comment.
pub(super) fn mask_quoted(text: &str) -> String {
    let (mut mask_quoted, mut end, mut depth, mut escaped) = (String::new(), None, 0_usize, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if end.is_some() || depth > 0 => escaped = true,
            _ if end.is_some() => end = end.filter(|end| *end != c),
            '(' => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                mask_quoted.push(' ');
            }
            _ if depth > 0 => {}
            '"' | '[' => {
                end = Some(if c == '[' { ']' } else { c });
                mask_quoted.push(c);
            }
            c => mask_quoted.push(c),
        }
    }
    mask_quoted
}

/// The addresses, and whether they are in a group (RFC 5322, 3.4).
fn addresses_or_group(value: &[u8]) -> Option<(Vec<String>, bool)> {
    let mail = [b"From:".as_slice(), value, b"\r\n\r\n"].concat();
    let message = MessageParser::new().parse_headers(mail.as_slice())?;
    let all = message.from()?.iter().filter_map(|a| a.address.as_deref().map(str::to_owned)).collect();
    Some((all, matches!(message.from()?, Address::Group(_))))
}

/// Nothing in it that could be read in two ways.
fn is_unambiguous(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let fits = |c: char| c.is_ascii_graphic() && !"\"(),:;<>@[\\]".contains(c);
    !local.is_empty() && local.chars().all(fits) && !local.contains("=?") && super::is_domain(domain)
}

/// What stands behind the last `@`.
pub(super) fn domain(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_unfolded_and_counted_as_they_stand() {
        let header = Header::parse(b"A: 1\r\n 2\r\nB:3\r\na : 4\r\n\r\nA: 5\r\n");
        assert_eq!(header.count("a"), 2);
        let values: Vec<_> = header.all("a").map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        assert_eq!(values, [" 1\r\n 2\r\n", " 4\r\n"]);
    }

    #[test]
    fn a_line_of_white_space_ends_no_header() {
        // Exim puts SpamAssassin's report into the header so.
        let header = Header::parse(b"X-Spam-Report: a\r\n \r\n\tb\r\nFrom: a@resmic.com\r\n\r\nFrom: b\r\n");
        assert_eq!(header.from().unwrap(), "a@resmic.com");
        let two = |line: &str| {
            let mail = format!("From: a@resmic.com\r\n{line}From: a@resmic.com\n\n");
            Header::parse(mail.as_bytes()).from().unwrap_err()
        };
        for line in [" \r\n", "\t\n", " \x0b\r\n"] {
            assert_eq!(two(line), "it has more than one From", "{line:?}");
        }
        for line in ["\x0c\n", "\r\r\n", "\x0c \r\n"] {
            assert_eq!(two(line), "it cannot be told where its header ends", "{line:?}");
        }
    }

    #[test]
    fn where_the_parsers_do_not_agree_that_a_header_ends_nobody_is_its_sender() {
        let lines = [
            "", " ", "\t", "X: 1", " 2", "x", ":", ": x", " :", "\x0b", "\0", " \x0c", "\x0c:", "é", "Cc: \"a",
            "Cc: (a",
        ];
        let lines: Vec<_> = lines.iter().flat_map(|l| ["\r\n", "\n", "\r"].map(|end| format!("{l}{end}"))).collect();
        let mut believed = 0;
        for (first, second) in lines.iter().flat_map(|first| lines.iter().map(move |second| (first, second))) {
            for top in ["", "To: payments@shop.example\r\n"] {
                let mail = format!("{top}{first}{second}From: a@resmic.com\r\nDate: 1\r\n\r\nX: 1\r\n\r\nX: 2\r\n");
                let header = Header::parse(mail.as_bytes());
                if header.from().is_err() {
                    continue;
                }
                believed += 1;
                let signed = mail_auth::AuthenticatedMessage::parse(mail.as_bytes()).unwrap();
                let read = MessageParser::new().parse(mail.as_bytes()).unwrap();
                let read = read.root_part().raw_body_offset() as usize;
                assert_eq!((read, header.fields.len()), (signed.body_offset(), signed.headers.len()), "{mail:?}");
            }
        }
        assert!(believed > 500, "only {believed}");
    }

    #[test]
    fn what_is_signed_is_not_hidden_below_the_last_field_that_is_looked_at() {
        let top = "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\n";
        let signed = "From: no-reply@resmic.com\r\nTo: other@shop.example\r\n\r\n";
        let mail = |fields: usize| format!("{top}{}{signed}", "X: 1\r\n".repeat(fields));
        assert_eq!(Header::parse(mail(1).as_bytes()).from().unwrap_err(), "it has more than one From");
        assert_eq!(
            Header::parse(mail(MAX_FIELDS).as_bytes()).from().unwrap_err(),
            "its header has more than 2000 fields"
        );
        let plain = format!("{top}{}\r\n", "X: 1\r\n 2\r\n".repeat(MAX_FIELDS - 2));
        assert_eq!(Header::parse(plain.as_bytes()).from().unwrap(), "no-reply@resmic.com");
    }
}
