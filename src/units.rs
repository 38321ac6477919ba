//! Durations and sizes as they are written in the configuration: `9m`, `1 MiB`. Counts as they are shown: `1 event`, `2 events`.

use std::fmt;
use std::str::FromStr;

use crate::configured_text::configured_text;

/// A duration of at most a hundred years: a whole number, and one of the units `ms`, `s`, `m`, `h` and `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub std::time::Duration);

/// A number of bytes: a whole number, and one of the units `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` and `GB`, or no unit for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

configured_text!(HumanDuration, "a duration in quotes, for example \"9m\"");
configured_text!(ByteSize, "a size in quotes, for example \"1 MiB\"");

/// Splits `9m` or `1 MiB` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = number_and_unit(text).and_then(|(number, unit)| {
            let millis = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            // A hundred years can be added to any time without overflow.
            number.checked_mul(millis).filter(|ms| *ms <= 36_500 * 86_400_000)
        });
        parsed.map(|ms| HumanDuration(std::time::Duration::from_millis(ms))).ok_or_else(|| {
            "expected a duration: a whole number and a unit, of ms, s, m, h and d, for example \"9m\"".into()
        })
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = number_and_unit(text).and_then(|(number, unit)| {
            let factor = match unit {
                "" | "B" => 1,
                "kB" => 1_000,
                "MB" => 1_000_000,
                "GB" => 1_000_000_000,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                _ => return None,
            };
            number.checked_mul(factor)
        });
        parsed.map(ByteSize).ok_or_else(|| {
            "expected a size: a whole number and a unit, of B, KiB, MiB and GiB, for example \"1 MiB\"".into()
        })
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")]
            .iter()
            .find(|(n, _)| ms >= *n && ms.is_multiple_of(*n))
        {
            Some((n, unit)) => write!(f, "{}{unit}", ms / n),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// A count with its noun, in the singular or the plural: "1 delivery", "2 deliveries".
#[must_use]
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    // A negative count does not occur.
    let number = number.try_into().unwrap_or_default();
    let ends_in_y = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match (number, ends_in_y) {
        (1, _) => format!("{number} {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_counted_in_the_singular() {
        assert_eq!([count(1_u32, "event"), count(1_i64, "delivery")], ["1 event", "1 delivery"]);
        assert_eq!([count(0_usize, "mail"), count(2_u64, "delivery")], ["0 mails", "2 deliveries"]);
        assert_eq!(count(2_u8, "day"), "2 days");
    }

    #[test]
    fn durations_and_sizes_are_parsed() {
        assert_eq!("9m".parse::<HumanDuration>().unwrap().0.as_secs(), 540);
        assert_eq!("3 d".parse::<HumanDuration>().unwrap().0.as_secs(), 259_200);
        assert_eq!("1 MiB".parse::<ByteSize>().unwrap().0, 1_048_576);
        assert_eq!("512".parse::<ByteSize>().unwrap().0, 512);
        for bad in ["", "9", "9 minutes", "-1s", "1.5h", "99999999999999999999s", "1000000d"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
        assert!("1 TB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn durations_print_as_they_are_written() {
        for text in ["9m", "3d", "10s", "250ms", "90m"] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().to_string(), text);
        }
    }
}
