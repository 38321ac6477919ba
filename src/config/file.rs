//! Finds the line and the key of an error in a configuration file. The errors do not quote a value that may be a secret.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Error;

/// The keys whose value is the source of a secret.
const SECRETS: [&str; 10] = [
    "password",
    "secret",
    "key",
    "client_secret",
    "refresh_token",
    "nodes",
    "api_key",
    "user_id",
    "token",
    "client_key",
];

/// The file of a configuration: its path and its content.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) content: String,
}

impl ConfigFile {
    /// The error for a wrong value at `key`, with the line of the key.
    pub(super) fn wrong(&self, key: &str, message: String) -> Error {
        let span = DeTable::parse(&self.content).ok().and_then(|table| span_of(table.get_ref(), key));
        self.error_at(span.map_or(0, |s| s.start), key.to_owned(), message)
    }

    /// Creates a `ConfigFile` from bytes that are not UTF-8. Replacement characters take the place of the invalid bytes.
    pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Self {
        ConfigFile { path: path.to_owned(), content: String::from_utf8_lossy(bytes).into_owned() }
    }

    pub(super) fn not_utf8(&self, error: &std::str::Utf8Error) -> Error {
        let at = error.valid_up_to();
        let key = self.key_before(at).unwrap_or_else(|| "configuration".into());
        self.error_at(at, key, "expected UTF-8; the editor has saved the file in another encoding".into())
    }

    /// Converts an error of the `toml` library. The result does not quote the line of the file, because the line may contain a
    /// secret.
    pub(super) fn explain(&self, error: &toml::de::Error) -> Error {
        let at = error.span().map_or(0, |span| span.start);
        let (table, broken) = DeTable::parse_recoverable(&self.content);
        let full_key = key_at(table.get_ref(), at).or_else(|| self.key_before(at)).unwrap_or_default();
        let secret = secret_key(&full_key);
        // The message for a syntax error in TOML quotes no value, so it needs no replacement.
        let message = if secret.is_some() && broken.is_empty() {
            "expected { credential = \"name\" }, { file = \"path\" }, { env = \"NAME\" } or { command = [\"program\"] }; \
             the configuration itself must not contain a secret"
                .to_owned()
        } else {
            crate::model::printable(&in_plain_words(without_value(error.message())), 300)
        };
        let key = secret.unwrap_or(&full_key);
        self.error_at(at, if key.is_empty() { "configuration".into() } else { key.to_owned() }, message)
    }

    /// The key on the line of `offset`, as written. The caller needs this key if the parsed table has no key at the position of
    /// the error: after a syntax error or a duplicate key, or in a file that is not UTF-8.
    fn key_before(&self, offset: usize) -> Option<String> {
        let begin = self.content.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
        let key = self.content.get(begin..)?.lines().next()?.split_once('=')?.0.trim();
        let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        Some(key).filter(|key| !key.is_empty() && key.chars().all(is_key)).map(str::to_owned)
    }

    fn error_at(&self, offset: usize, key: String, message: String) -> Error {
        let line = 1 + self.content.bytes().take(offset).filter(|b| *b == b'\n').count();
        Error::Wrong { path: self.path.clone(), line, key, message }
    }
}

/// The beginning of the path `key`, up to the first name in [`SECRETS`]. The rest is cut off, because TOML may parse a secret
/// without quotes as a key.
fn secret_key(key: &str) -> Option<&str> {
    let mut ends = key.match_indices('.').map(|(dot, _)| dot).chain([key.len()]).filter_map(|end| key.get(..end));
    ends.find(|key| SECRETS.contains(&key.rsplit('.').next().unwrap_or_default()))
}

/// The message of the `toml` library without the quoted value, because a secret may have been written at a wrong key.
fn without_value(message: &str) -> &str {
    let quotes =
        ["invalid type: ", "invalid value: ", "invalid length "].iter().any(|begin| message.starts_with(begin));
    let expected = if quotes { message.rfind(", expected ") } else { None };
    expected.and_then(|at| message.get(at + 2..)).unwrap_or(message)
}

/// Parts of the messages of the `toml` library, each with the plainer text that replaces it. The library has no error codes, so a
/// test checks that its messages contain these parts.
const PLAIN: [(&str, &str); 13] = [
    ("expected u16", "expected a port, from 1 to 65535, without quotes"),
    ("expected u8", "expected a whole number without quotes, such as 6"),
    ("expected u32", "expected a whole number without quotes, such as 10"),
    ("expected u64", "expected a whole number without quotes, such as 10"),
    ("expected a string", "expected a text in quotes: \"…\""),
    ("expected a boolean", "expected true or false, without quotes"),
    ("expected a map", "expected a table, in braces: { … }"),
    ("expected a sequence", "expected a list, in brackets: [\"…\"]"),
    ("expected path string", "expected a path"),
    ("expected socket address", "expected an address and a port, for example \"127.0.0.1:9464\""),
    ("invalid socket address syntax", "expected an address, no name, and a port, for example \"127.0.0.1:9464\""),
    ("unknown field", "unknown key"),
    ("missing field", "missing key"),
];

fn in_plain_words(message: &str) -> String {
    PLAIN.iter().fold(message.to_owned(), |message, (library, ours)| message.replace(library, ours))
}

/// The path of the innermost key whose name or value is at `offset`.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    let within = |span: Range<usize>| span.start <= offset && offset < span.end.max(span.start + 1);
    for (key, value) in table {
        if within(key.span()) {
            return Some(key.get_ref().to_string());
        }
        if let Some(rest) = value_at(value, offset) {
            return Some(format!("{}{rest}", key.get_ref()));
        }
    }
    None
}

/// Returns the path from `value` to the key at `offset`; `None` if `offset` is not inside `value`.
fn value_at(value: &Spanned<DeValue<'_>>, offset: usize) -> Option<String> {
    let span = value.span();
    let end_of_key = || (span.start <= offset && offset < span.end.max(span.start + 1)).then(String::new);
    match value.get_ref() {
        DeValue::Table(table) => key_at(table, offset).map(|rest| format!(".{rest}")).or_else(end_of_key),
        DeValue::Array(array) => {
            let inner =
                array.iter().enumerate().find_map(|(n, v)| value_at(v, offset).map(|rest| format!("[{n}]{rest}")));
            inner.or_else(end_of_key)
        }
        _ => end_of_key(),
    }
}

/// The position of a key in the file, or of the innermost existing table that should contain the key.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(a, b)| (a, Some(b)));
    let (name, index) = match first.split_once('[') {
        Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
        None => (first, None),
    };
    let (found_key, mut value) = table.iter().find(|(k, _)| k.get_ref().as_ref() == name)?;
    let mut span = found_key.span();
    if let (DeValue::Array(array), Some(n)) = (value.get_ref(), index) {
        value = array.get(n)?;
        span = value.span();
    }
    match (value.get_ref(), rest) {
        (DeValue::Table(inner), Some(rest)) => span_of(inner, rest).or(Some(span)),
        _ => Some(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn messages_of_the_library_are_unchanged() {
        let message = |text: &str| toml::from_str::<Config>(text).unwrap_err().message().to_owned();
        let files = [
            "[[account]]\nport = \"s3cret\"",
            "[[chain]]\ntokens.A.decimals = \"s3cret\"",
            "[resmic]\nrate = \"s3cret\"",
            "[[chain]]\nlog_range = \"s3cret\"",
            "[[account]]\nname = 1",
            "[[account]]\ndedicated = \"s3cret\"",
            "[[chain]]\ntokens = \"s3cret\"",
            "[[account]]\nmailboxes = \"s3cret\"",
            "[store]\npath = 1",
            "[telemetry]\nmetrics = 1",
            "[telemetry]\nmetrics = \"s3cret:1\"",
            "zz = 1",
            "[standby]",
        ];
        for (file, (part, _)) in files.into_iter().zip(PLAIN) {
            let message = message(file);
            assert!(message.contains(part), "{file}: {message}");
            assert!(!without_value(&message).contains("s3cret"), "{file}: {message}");
        }
        let wrong_type = message(files[0]);
        assert_eq!(wrong_type, "invalid type: string \"s3cret\", expected u16", "`without_value` needs this form");
    }
}
