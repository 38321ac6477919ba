//! Parses JSON objects and JavaScript object literals in text: `{"amount": "20"}`, `{ amount: '20', status: true, }`.

use std::ops::Range;

/// A key of an object with its value, spelled as in the mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectPair {
    pub(crate) key: String,
    pub(crate) value: ObjectValue,
}

/// A value in an object that is neither an object nor an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ObjectValue {
    /// The content of a string.
    Text(String),
    /// A word without quotes, spelled as in the mail: `true`, `false`, or a number. A number is never converted to a float.
    Bare(String),
    /// `null` or `undefined`.
    Absent,
}

/// The most opening braces in one text that are tried as the start of an object.
const MAX_OBJECTS: usize = 64;
/// The deepest nesting of an object that is parsed. An array counts as two levels.
const MAX_DEPTH: usize = 16;

/// A JSON or JavaScript object: its byte range in the text, and its pairs, including the pairs of inner objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParsedObject {
    pub(crate) span: Range<usize>,
    pub(crate) pairs: Vec<ObjectPair>,
}

/// Finds the JSON objects and JavaScript object literals in a text.
pub(crate) fn parse_objects(text: &str) -> Vec<ParsedObject> {
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..MAX_OBJECTS {
        let Some(start) = text.get(at..).and_then(|rest| rest.find('{')).map(|n| at + n) else { break };
        let mut parser = ObjectParser { text, at: start, pairs: Vec::new() };
        match parser.parse_object(0) {
            Some(()) => {
                at = parser.at;
                found.push(ParsedObject { span: start..at, pairs: parser.pairs });
            }
            None => at = start + 1,
        }
    }
    found
}

/// Parses one object from position `at` of `text`. `None` from a method means that the text is not an object.
struct ObjectParser<'a> {
    text: &'a str,
    at: usize,
    pairs: Vec<ObjectPair>,
}

impl<'a> ObjectParser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Skips white space and the character `c`. Returns `None` if another character follows the white space.
    fn accept(&mut self, c: char) -> Option<()> {
        self.skip_space();
        if !self.rest().starts_with(c) {
            return None;
        }
        self.at += c.len_utf8();
        Some(())
    }

    fn parse_object(&mut self, depth: usize) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.accept('{')?;
        loop {
            if self.accept('}').is_some() {
                return Some(());
            }
            let key = self.parse_key()?;
            self.accept(':')?;
            self.parse_value(Some(&key), depth)?;
            if self.accept(',').is_none() {
                return self.accept('}');
            }
        }
    }

    fn parse_array(&mut self, key: Option<&str>, depth: usize) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.accept('[')?;
        loop {
            if self.accept(']').is_some() {
                return Some(());
            }
            self.parse_value(key, depth + 1)?;
            if self.accept(',').is_none() {
                return self.accept(']');
            }
        }
    }

    fn parse_value(&mut self, key: Option<&str>, depth: usize) -> Option<()> {
        self.skip_space();
        match self.rest().chars().next()? {
            '{' => self.parse_object(depth + 1),
            '[' => self.parse_array(key, depth + 1),
            '"' | '\'' => {
                let text = self.parse_string()?;
                self.push_pair(key, ObjectValue::Text(text));
                Some(())
            }
            _ => {
                let word = self.parse_word()?;
                self.push_pair(
                    key,
                    if matches!(word, "null" | "undefined") {
                        ObjectValue::Absent
                    } else {
                        ObjectValue::Bare(word.to_owned())
                    },
                );
                Some(())
            }
        }
    }

    fn push_pair(&mut self, key: Option<&str>, value: ObjectValue) {
        if let Some(key) = key {
            self.pairs.push(ObjectPair { key: key.to_owned(), value });
        }
    }

    fn parse_key(&mut self) -> Option<String> {
        self.skip_space();
        if self.rest().starts_with(['"', '\'']) { self.parse_string() } else { self.parse_word().map(str::to_owned) }
    }

    /// Parses a number, a keyword, or a key without quotes.
    fn parse_word(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.' | '-' | '+')))
            .unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).filter(|word| !word.is_empty())
    }

    /// Parses a quoted string with the escapes of JSON. Returns `None` if the string contains a line break.
    fn parse_string(&mut self) -> Option<String> {
        let mut chars = self.rest().char_indices();
        let (_, quote) = chars.next()?;
        let mut out = String::new();
        while let Some((n, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += n + c.len_utf8();
                    return Some(out);
                }
                '\n' | '\r' => return None,
                '\\' => out.push(parse_escape(&mut chars)?),
                c => out.push(c),
            }
        }
        None
    }
}

fn parse_escape(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    Some(match chars.next()?.1 {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'u' => parse_unicode_escape(chars)?,
        c @ ('"' | '\'' | '\\' | '/') => c,
        _ => return None,
    })
}

/// Parses the four digits after `\u`. A character outside of the Basic Multilingual Plane has a second escape (RFC
/// 8259, 7).
fn parse_unicode_escape(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    let first = parse_utf_16_unit(chars)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first);
    }
    if chars.next()?.1 != '\\' || chars.next()?.1 != 'u' {
        return None;
    }
    let second = parse_utf_16_unit(chars).filter(|second| (0xdc00..0xe000).contains(second))?;
    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
}

fn parse_utf_16_unit(chars: &mut std::str::CharIndices<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit * 16 + chars.next()?.1.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let pairs = parse_objects(text).into_iter().flat_map(|object| object.pairs);
        pairs
            .map(|p| {
                let value = match p.value {
                    ObjectValue::Text(t) | ObjectValue::Bare(t) => t,
                    ObjectValue::Absent => "-".into(),
                };
                (p.key, value)
            })
            .collect()
    }

    #[test]
    fn json_and_javascript_objects_are_parsed() {
        let expected = [("amount".to_owned(), "20".to_owned()), ("status".to_owned(), "true".to_owned())];
        assert_eq!(pairs(r#"x {"amount":"20","status":true} y"#), expected);
        assert_eq!(pairs("{ amount: '20', status: true, }"), expected);
        assert_eq!(pairs("{\n  'amount' : \"20\",\n data: { status: true } }"), expected);
    }

    #[test]
    fn numbers_stay_as_written() {
        assert_eq!(
            pairs(r#"{"amount": 20.50, "b": 1e-7, "c": null, "d": "\u0041\/"}"#)
                .iter()
                .map(|p| p.1.as_str())
                .collect::<Vec<_>>(),
            ["20.50", "1e-7", "-", "A/"]
        );
    }

    #[test]
    fn surrogate_pairs_are_joined_and_lone_ones_refused() {
        let expected = [("shop".to_owned(), "a😀z".to_owned()), ("amount".to_owned(), "20".to_owned())];
        assert_eq!(pairs(r#"{"shop":"a\ud83d\uDE00z","amount":"20"}"#), expected);
        for half in [r"\ud83d", r"\ud83dx", r"\ud83d\n", r"\ud83d\u0041", r"\ude00", r"\u+041", r"\u00"] {
            assert_eq!(pairs(&format!("{{\"shop\":\"{half}\",\"amount\":\"20\"}}")), [], "{half}");
        }
    }

    #[test]
    fn unclosed_braces_take_linear_time() {
        assert_eq!(pairs("{ a } { b: } function() { return 1; }"), []);
        assert_eq!(pairs(&"{".repeat(100_000)), []);
        assert_eq!(pairs(&"{a:".repeat(100_000)), []);
    }
}
