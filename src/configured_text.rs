//! Values that the configuration has as text, such as a duration or one of a few words.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Implements `Deserialize` for a type that the configuration has as text. If the value is no text, the error is "expected " and
/// the given form. A derived implementation would expect "a string", without an example.
///
/// The type implements `TryFrom<String>`, or the macro call lists the word of each variant.
macro_rules! configured_text {
    ($type:ty, $form:literal) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                $crate::configured_text::deserialize_text(from, $form, <$type>::try_from)
            }
        }
    };
    ($type:ident, $form:literal, $($text:literal => $variant:ident),+ $(,)?) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                $crate::configured_text::deserialize_text(from, $form, |text| match text.as_str() {
                    $($text => Ok($type::$variant),)+
                    _ => Err(concat!("expected ", $form).into()),
                })
            }
        }
    };
}

pub(crate) use configured_text;

/// Deserializes a text, and parses it with `parse`. `form`: what the text must be, for the error about a value of another type.
///
/// # Errors
/// The error of `parse`, or "expected " and `form`.
pub fn deserialize_text<'de, D: Deserializer<'de>, T>(
    from: D,
    form: &'static str,
    parse: fn(String) -> Result<T, String>,
) -> Result<T, D::Error> {
    from.deserialize_string(TextVisitor { form, parse })
}

struct TextVisitor<T> {
    form: &'static str,
    parse: fn(String) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.form)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text.to_owned()).map_err(E::custom)
    }
}
