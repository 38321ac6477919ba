//! Parses an Authentication-Results field (RFC 8601, 2.2).

/// One Authentication-Results field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AuthResultsField {
    /// The name of the server that wrote the field. Microsoft's fields do not name their server.
    pub(super) server: Option<String>,
    /// The results in the field, without those that cannot be parsed.
    pub(super) results: Vec<MethodResult>,
}

/// One result in the field: `method=value` with its properties, such as `dkim=pass header.d=resmic.com`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MethodResult {
    pub(super) method: String,
    pub(super) value: String,
    properties: Vec<(String, String)>,
}

impl MethodResult {
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The domain of `header.i`, the identity of the signer (AUID).
    pub(super) fn identity(&self) -> Option<&str> {
        self.property("header.i").and_then(|i| i.rsplit_once('@')).map(|(_, domain)| domain)
    }

    /// The signing domain: `header.d`, or the domain of `header.i`.
    pub(super) fn domain(&self) -> Option<&str> {
        self.property("header.d").or(self.identity()).filter(|domain| !domain.is_empty())
    }
}

impl AuthResultsField {
    /// Parses a field's value (RFC 8601, 2.2); `None` if the value does not follow the grammar.
    pub(super) fn parse(value: &str) -> Option<AuthResultsField> {
        let tokens = tokenize(value)?;
        let statements = || tokens.split(|t| *t == FieldToken::Mark(';'));
        let results = |skipped: usize| statements().skip(skipped).filter_map(MethodResult::parse).collect();
        match statements().next()? {
            [FieldToken::Word(server)] => Some(AuthResultsField { server: Some(server.clone()), results: results(1) }),
            // The version of the field's format follows the server's name. There is only version 1.
            [FieldToken::Word(server), FieldToken::Word(version)] if version == "1" => {
                Some(AuthResultsField { server: Some(server.clone()), results: results(1) })
            }
            first => MethodResult::parse(first).map(|_| AuthResultsField { server: None, results: results(0) }),
        }
    }
}

impl MethodResult {
    fn parse(statement: &[FieldToken]) -> Option<MethodResult> {
        let (method, rest) = match statement {
            [FieldToken::Word(method), FieldToken::Mark('='), rest @ ..] => (method, rest),
            // The version of the method follows a slash. There is only version 1.
            [
                FieldToken::Word(method),
                FieldToken::Mark('/'),
                FieldToken::Word(version),
                FieldToken::Mark('='),
                rest @ ..,
            ] if version == "1" => (method, rest),
            _ => return None,
        };
        let (FieldToken::Word(result), mut rest) = rest.split_first()? else { return None };
        let mut properties = Vec::new();
        while let [FieldToken::Word(name), FieldToken::Mark('='), FieldToken::Word(value), after @ ..] = rest {
            properties.push((name.to_ascii_lowercase(), value.clone()));
            rest = after;
        }
        // A remaining token violates the grammar, so the whole result is skipped.
        rest.is_empty().then(|| MethodResult {
            method: method.to_ascii_lowercase(),
            value: result.to_ascii_lowercase(),
            properties,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldToken {
    Word(String),
    Mark(char),
}

/// Splits a field's value into words and the marks `;`, `=` and `/`, without comments. A quoted string is a word. `None` if a
/// quoted string or a comment does not end.
fn tokenize(value: &str) -> Option<Vec<FieldToken>> {
    let mut tokens = Vec::new();
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => skip_comment(&mut chars)?,
            '"' => tokens.push(FieldToken::Word(quoted_string(&mut chars)?)),
            ';' | '=' | '/' => tokens.push(FieldToken::Mark(c)),
            c => {
                let mut word = String::from(c);
                // Servers write the base64 of `header.b` without quotes, although it may end with `=`.
                if tokens.last() == Some(&FieldToken::Mark('=')) {
                    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | '"' | ';')) {
                        word.push(c);
                    }
                    tokens.push(FieldToken::Word(word));
                    continue;
                }
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | '"' | ';' | '=')) {
                    // A slash ends the name of a method. In any other word, a slash is part of the word.
                    if c == '/' && is_method(&word) {
                        tokens.push(FieldToken::Word(std::mem::take(&mut word)));
                        tokens.push(FieldToken::Mark('/'));
                        continue;
                    }
                    word.push(c);
                }
                if !word.is_empty() {
                    tokens.push(FieldToken::Word(word));
                }
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

fn quoted_string(chars: &mut impl Iterator<Item = char>) -> Option<String> {
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

    fn dkim(value: &str) -> Vec<(String, Option<String>)> {
        let results = AuthResultsField::parse(value).unwrap().results.into_iter().filter(|r| r.method == "dkim");
        results.map(|r| (r.value.clone(), r.domain().map(str::to_owned))).collect()
    }

    #[test]
    fn fields_of_real_servers_are_parsed() {
        let github = [("pass".to_owned(), Some("github.com".to_owned()))];
        for field in [
            // Fields as Exchange Online and outlook.com write them. outlook.com puts the receiving domain between the statements.
            " spf=pass (sender IP is 192.0.2.25)\r\n smtp.mailfrom=github.com; dkim=pass (signature was verified)\r\n header.d=github.com;dmarc=pass action=none header.from=github.com;compauth=pass reason=100\r\n",
            " spf=pass (sender IP is 192.0.2.25)\r\n smtp.mailfrom=github.com; hotmail.com; dkim=pass (signature was\r\n verified) header.d=github.com;hotmail.com; dmarc=pass action=none\r\n header.from=github.com;\r\n",
            // Fields as Gmail, Rspamd and OpenDKIM write them.
            " mx.google.com;\r\n       dkim=pass header.i=@github.com header.s=pf2023 header.b=a/b+c;\r\n       spf=pass (google.com: domain of a@github.com designates 192.0.2.25 as permitted sender) smtp.mailfrom=a@github.com;\r\n       dmarc=pass (p=REJECT sp=REJECT dis=NONE) header.from=github.com",
            " mx.shop.example;\r\n\tdkim=pass header.d=github.com header.s=pf2023 header.b=\"a/b+c\";\r\n\tdmarc=pass (policy=reject) header.from=github.com",
            " mx.shop.example/0C5B13F980; dkim=pass (2048-bit key; unprotected) header.d=github.com header.i=@github.com header.a=rsa-sha256 header.s=pf2023 header.b=abcd;\r\n\tdkim-atps=neutral",
        ] {
            assert_eq!(dkim(field), github, "{field}");
        }
        let server = |value: &str| AuthResultsField::parse(value).unwrap().server;
        assert_eq!(server("mx.shop.example/0C5B13F980; none").as_deref(), Some("mx.shop.example/0C5B13F980"));
        assert_eq!(server("spf=pass smtp.mailfrom=a.example; dkim=none"), None);
    }

    #[test]
    fn broken_fields_are_not_parsed() {
        for field in
            ["", ";", "mx.shop.example 2; dkim=pass", "mx (", "mx; spf=\"a", "a b c; dkim=pass", "spf=; dkim=pass"]
        {
            assert_eq!(AuthResultsField::parse(field), None, "{field}");
        }
    }
}
