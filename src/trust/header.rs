//! Parses the raw header of a mail, and finds its sender and its recipients.
//!
//! Parsers disagree about malformed headers, and forgers use the differences. mail-parser, for example, takes the last of two
//! From fields, and treats `Fr om:` as From. So this module counts the fields in the raw bytes, and rejects every ambiguous From.

use mail_parser::{Address, MessageParser};

/// The header fields of a mail, in the order of the mail.
pub(super) struct Header<'a> {
    fields: Vec<HeaderField<'a>>,
    /// The mail has more than [`MAX_FIELDS`] fields.
    is_truncated: bool,
    /// A line of the header is not a valid field. Programs disagree about whether the header ends before or after an invalid
    /// line.
    is_malformed: bool,
}

struct HeaderField<'a> {
    /// All bytes before the colon.
    name: &'a [u8],
    /// All bytes after the colon, including folded lines.
    value: &'a [u8],
}

/// The UTF-8 byte order mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The mail without a byte order mark in front of its first field.
///
/// Some proxies put a byte order mark before the mail, for example email-oauth2-proxy in front of Microsoft 365. No signature
/// includes this mark, because the name of a field is ASCII (RFC 5322, 2.2). If the mark stayed, parsers would take it as a part
/// of the first field's name. A mark at any other place stays, because it may be signed.
pub(super) fn without_byte_order_mark(mail: &[u8]) -> &[u8] {
    mail.strip_prefix(BYTE_ORDER_MARK).unwrap_or(mail)
}

/// The most header fields of a mail that are parsed.
const MAX_FIELDS: usize = 2_000;

impl<'a> Header<'a> {
    /// Parses the header, up to the first empty line (RFC 5322, 2.1).
    ///
    /// A line of white space does not end the header. mail-auth also continues after a line of white space, and may find the
    /// signed To below that line.
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

    /// Returns the number of header fields with this name (in lower case).
    pub(super) fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|f| f.is(name)).count()
    }

    /// The number of fields with this name (in lower case) that a signature can include.
    ///
    /// The number is 0 if a signature check and a mail program may see a field with this name differently. For example, no name
    /// in `h=` matches `To :`, and a CR without an LF is left out of the hash.
    pub(super) fn count_signable(&self, name: &str) -> usize {
        let similar = self.fields.iter().filter(|f| f.looks_like(name));
        let is_as_signed =
            |f: &HeaderField<'_>| f.name.eq_ignore_ascii_case(name.as_bytes()) && !hides_characters(f.value);
        if similar.clone().all(is_as_signed) { similar.count() } else { 0 }
    }

    /// Whether some program may treat one of the fields as a field with this name (in lower case).
    pub(super) fn has_lookalike(&self, name: &str) -> bool {
        self.fields.iter().any(|f| f.looks_like(name))
    }

    /// The values of the fields with this name above the first field named `mark`.
    pub(super) fn all_above(&self, name: &str, mark: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().take_while(move |f| !f.is(mark)).filter(move |f| f.is(name)).map(|f| f.value)
    }

    /// The values of the fields with this name, from the top.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |f| f.is(name)).map(|f| f.value)
    }

    /// Returns the address of the mail's only sender, from its only From field.
    ///
    /// # Errors
    /// The reason why the sender is ambiguous.
    pub(super) fn from(&self) -> Result<String, String> {
        // DKIM selects fields from the bottom. So the signed To may be among the fields that were not parsed, and a forged To
        // among the parsed fields.
        if self.is_truncated {
            return Err(format!("its header has more than {MAX_FIELDS} fields"));
        }
        if self.is_malformed {
            return Err("the end of its header is ambiguous".into());
        }
        // `like_from` also counts fields that only some parsers treat as From, such as `Fr om`.
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

    /// Whether the field's name is `name`, if white space and invisible characters in the field's name are ignored.
    fn looks_like(&self, name: &str) -> bool {
        let seen = self.name.iter().filter(|byte| byte.is_ascii_graphic()).map(u8::to_ascii_lowercase);
        seen.eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
    }
}

/// Whether mail-auth hashes this value without some of its characters: a form feed, a CR without an LF, or the white space before
/// this CR. Mail programs show these characters as white space or as a line break.
fn hides_characters(value: &[u8]) -> bool {
    value.contains(&b'\x0c') || has_lone_cr(value)
}

/// Whether a text has a CR without an LF, which mail servers must not transmit (RFC 5321, 2.3.8).
pub(super) fn has_lone_cr(text: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', text).any(|at| text.get(at + 1) != Some(&b'\n'))
}

/// The slice from the start of `first` to the end of `last`, both of which are parts of `whole`.
fn between<'a>(whole: &'a [u8], first: &'a [u8], last: &'a [u8]) -> &'a [u8] {
    let offset = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    whole.get(offset(first)..offset(last) + last.len()).unwrap_or(first)
}

/// Returns the number of `@` in a field's value, outside of quoted strings and comments.
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

/// Returns the addresses that mail-parser finds in a field's value.
pub(super) fn addresses(value: &[u8]) -> Vec<String> {
    addresses_or_group(value).map(|(list, _)| list).unwrap_or_default()
}

/// Returns the addresses in a field's value. Addresses that contain a quoted string, a domain literal or a comment are left out.
/// `addressed_to` compares the result with the account's addresses.
///
/// The value is parsed strictly by RFC 5322: `<"x>, payments@shop.example, <y"@evil.tld>` is one address at evil.tld, although
/// lenient parsers find three addresses.
pub(super) fn plain_addresses(value: &[u8]) -> Vec<String> {
    let text = mask_quoted(&String::from_utf8_lossy(value));
    let listed = text.split([',', ';']).filter_map(|entry| {
        // The name of a group of addresses ends with a colon (RFC 5322, 3.4).
        let entry = entry.rsplit(':').next().unwrap_or_default().trim();
        let address = match entry.split_once('<') {
            Some((_, angle)) => angle.strip_suffix('>')?.trim(),
            None => entry,
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

/// Returns a field's value with `"` for each quoted string, `[` for each domain literal, and a space for each comment.
pub(super) fn mask_quoted(text: &str) -> String {
    let (mut masked, mut end, mut depth, mut escaped) = (String::new(), None, 0_usize, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if end.is_some() || depth > 0 => escaped = true,
            _ if end.is_some() => end = end.filter(|end| *end != c),
            '(' => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                masked.push(' ');
            }
            _ if depth > 0 => {}
            '"' | '[' => {
                end = Some(if c == '[' { ']' } else { c });
                masked.push(c);
            }
            c => masked.push(c),
        }
    }
    masked
}

/// Returns the addresses that mail-parser finds in a field's value, and whether they are in a group (RFC 5322, 3.4).
fn addresses_or_group(value: &[u8]) -> Option<(Vec<String>, bool)> {
    let mail = [b"From:".as_slice(), value, b"\r\n\r\n"].concat();
    let message = MessageParser::new().parse_headers(mail.as_slice())?;
    let all = message.from()?.iter().filter_map(|a| a.address.as_deref().map(str::to_owned)).collect();
    Some((all, matches!(message.from()?, Address::Group(_))))
}

/// Whether every parser finds the same local part and domain in this address.
fn is_unambiguous(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let fits = |c: char| c.is_ascii_graphic() && !"\"(),:;<>@[\\]".contains(c);
    !local.is_empty() && local.chars().all(fits) && !local.contains("=?") && super::is_domain(domain)
}

/// Returns the domain of an address: the part after the last `@`.
pub(super) fn domain(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_fields_count_once() {
        let header = Header::parse(b"A: 1\r\n 2\r\nB:3\r\na : 4\r\n\r\nA: 5\r\n");
        assert_eq!(header.count("a"), 2);
        let values: Vec<_> = header.all("a").map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        assert_eq!(values, [" 1\r\n 2\r\n", " 4\r\n"]);
    }

    #[test]
    fn white_space_lines_continue_the_header() {
        // Exim adds SpamAssassin's report in this form.
        let header = Header::parse(b"X-Spam-Report: a\r\n \r\n\tb\r\nFrom: a@resmic.com\r\n\r\nFrom: b\r\n");
        assert_eq!(header.from().unwrap(), "a@resmic.com");
        let error_of = |line: &str| {
            let mail = format!("From: a@resmic.com\r\n{line}From: a@resmic.com\n\n");
            Header::parse(mail.as_bytes()).from().unwrap_err()
        };
        for line in [" \r\n", "\t\n", " \x0b\r\n"] {
            assert_eq!(error_of(line), "it has more than one From", "{line:?}");
        }
        for line in ["\x0c\n", "\r\r\n", "\x0c \r\n"] {
            assert_eq!(error_of(line), "the end of its header is ambiguous", "{line:?}");
        }
    }

    #[test]
    fn ambiguous_header_ends_have_no_sender() {
        let lines = [
            "", " ", "\t", "X: 1", " 2", "x", ":", ": x", " :", "\x0b", "\0", " \x0c", "\x0c:", "é", "Cc: \"a",
            "Cc: (a",
        ];
        let lines: Vec<_> = lines.iter().flat_map(|l| ["\r\n", "\n", "\r"].map(|end| format!("{l}{end}"))).collect();
        let mut accepted = 0;
        for (first, second) in lines.iter().flat_map(|first| lines.iter().map(move |second| (first, second))) {
            for top in ["", "To: payments@shop.example\r\n"] {
                let mail = format!("{top}{first}{second}From: a@resmic.com\r\nDate: 1\r\n\r\nX: 1\r\n\r\nX: 2\r\n");
                let header = Header::parse(mail.as_bytes());
                if header.from().is_err() {
                    continue;
                }
                accepted += 1;
                let signed = mail_auth::AuthenticatedMessage::parse(mail.as_bytes()).unwrap();
                let parsed = MessageParser::new().parse(mail.as_bytes()).unwrap();
                let body_offset = parsed.root_part().raw_body_offset() as usize;
                assert_eq!(
                    (body_offset, header.fields.len()),
                    (signed.body_offset(), signed.headers.len()),
                    "{mail:?}"
                );
            }
        }
        assert!(accepted > 500, "only {accepted}");
    }

    #[test]
    fn headers_above_the_limit_have_no_sender() {
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
