//! The tokens of IMAP, with any white space between them: atoms, strings, literals and parentheses.

use std::borrow::Cow;

pub(super) fn parse_number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// The value of an item in a response.
pub(super) enum Value<'a> {
    Atom(&'a [u8]),
    /// The content of a quoted string, without the backslashes that escape characters.
    Quoted(Vec<u8>),
    Literal(&'a [u8]),
    /// The text between parentheses.
    Group(&'a [u8]),
}

impl Value<'_> {
    /// The bytes of a string; `None` for an atom such as NIL, and for a group.
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Value::Quoted(bytes) => Some(bytes),
            Value::Literal(bytes) => Some(bytes.to_vec()),
            Value::Atom(_) | Value::Group(_) => None,
        }
    }

    /// The text of an atom or a quoted string; `None` for a literal or a group.
    pub(super) fn as_number_text(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Value::Quoted(bytes) => Some(Cow::Borrowed(bytes)),
            Value::Atom(bytes) => Some(Cow::Borrowed(bytes)),
            Value::Literal(_) | Value::Group(_) => None,
        }
    }
}

/// The part of a response that is not parsed yet.
pub(super) struct LenientInput<'a>(pub(super) &'a [u8]);

impl<'a> LenientInput<'a> {
    /// Skips `word`, in upper or lower case; `None` if other bytes follow.
    pub(super) fn skip_word(&mut self, word: &[u8]) -> Option<()> {
        let start = self.0.get(..word.len())?;
        start.eq_ignore_ascii_case(word).then(|| self.take_bytes(word.len()))??;
        Some(())
    }

    pub(super) fn take_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Skips spaces and line breaks.
    pub(super) fn skip_blanks(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }

    /// Returns and skips the bytes before the first byte that is in `ends`; `None` if there is no such byte.
    fn take_until(&mut self, ends: &[u8]) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| ends.contains(byte))?;
        self.take_bytes(length)
    }

    pub(super) fn take_atom(&mut self) -> Option<&'a [u8]> {
        self.take_until(b" ()[]\"{\r\n").filter(|atom| !atom.is_empty())
    }

    /// Parses `[section]<origin>`. `Some(None)`: the next byte is no `[`. `None`: the section is incomplete.
    #[allow(clippy::option_option)]
    pub(super) fn take_section(&mut self) -> Option<Option<&'a [u8]>> {
        if self.skip_word(b"[").is_none() {
            return Some(None);
        }
        let section = self.take_until(b"]\r\n")?;
        self.skip_word(b"]")?;
        if self.skip_word(b"<").is_some() {
            self.take_until(b">\r\n")?;
            self.skip_word(b">")?;
        }
        Some(Some(section))
    }

    pub(super) fn take_value(&mut self) -> Option<Value<'a>> {
        match self.0 {
            [b'"', ..] => self.take_quoted().map(Value::Quoted),
            [b'(', ..] => self.take_group().map(Value::Group),
            [b'{', ..] | [b'~', b'{', ..] => self.take_literal().map(Value::Literal),
            _ => self.take_atom().map(Value::Atom),
        }
    }

    fn take_quoted(&mut self) -> Option<Vec<u8>> {
        self.skip_word(b"\"")?;
        let mut text = Vec::new();
        loop {
            text.extend(self.take_until(b"\"\\\r\n")?);
            match self.take_bytes(1)? {
                b"\"" => return Some(text),
                b"\\" => text.extend(self.take_bytes(1)?),
                _ => return None,
            }
        }
    }

    /// Parses a literal, or a literal8 (RFC 3516).
    fn take_literal(&mut self) -> Option<&'a [u8]> {
        let _ = self.skip_word(b"~");
        self.skip_word(b"{")?;
        let length = parse_number(self.take_until(b"}\r\n")?)?;
        self.skip_word(b"}\r\n")?;
        self.take_bytes(usize::try_from(length).ok()?)
    }

    /// Skips a pair of parentheses, which may contain other pairs. Returns the text between the outer parentheses.
    fn take_group(&mut self) -> Option<&'a [u8]> {
        let whole = self.0;
        let mut open = 0_u32;
        loop {
            match self.0.first()? {
                b'"' => {
                    self.take_quoted()?;
                    continue;
                }
                b'{' => {
                    self.take_literal()?;
                    continue;
                }
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            self.take_bytes(1)?;
            if open == 0 {
                let length = whole.len() - self.0.len();
                return whole.get(1..length - 1);
            }
        }
    }
}
