//! Parses times in three forms that are unambiguous: the webhook's, ISO 8601 and RFC 2822.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::Offset;
use regex::{Captures, Regex};

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

// With `-u`, an expression matches only ASCII letters and digits. Programs write times in ASCII, and expressions with
// all Unicode digits would take a megabyte.
static WEBHOOK: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i-u)^(?P<month>[a-z]{3}) (?P<day>\d{1,2}), (?P<year>\d{4}),? (?P<hour>\d{1,2}):(?P<minute>\d{2})(?: (?P<zone>UTC|GMT))?$").ok()
});
static ISO: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?-u)^(?P<year>\d{4})-(?P<number>\d{2})-(?P<day>\d{2})[T ](?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d{1,9})?)?(?: ?(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}))?$",
    )
    .ok()
});
static MAIL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i-u)^(?:(?:mon|tue|wed|thu|fri|sat|sun), ?)?(?P<day>\d{1,2}) (?P<month>[a-z]{3}) (?P<year>\d{4}) (?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))? (?P<zone>UTC|GMT|[+-]\d{4})(?: \([A-Z]+\))?$",
    )
    .ok()
});

/// Parses `Mar 5, 2025, 03:36` (UTC, as the webhook writes it), ISO 8601 (UTC if no zone is given), or RFC 2822 with a
/// zone.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let forms = [(&WEBHOOK, true), (&ISO, false), (&MAIL, false)];
    let time = forms.iter().find_map(|(form, accepts_hour_24)| {
        let found = form.as_ref()?.captures(&text)?;
        Some(to_timestamp(&found, *accepts_hour_24))
    });
    time.flatten().ok_or_else(|| format!("{text:?} is not an unambiguous time"))
}

fn to_timestamp(found: &Captures<'_>, accepts_hour_24: bool) -> Option<Timestamp> {
    let part = |name: &str| found.name(name).map(|m| m.as_str());
    let number = |name: &str| part(name).map_or(Some(0), |t| t.parse::<i16>().ok());
    let month = match part("month") {
        Some(name) => 1 + MONTHS.iter().position(|m| name.eq_ignore_ascii_case(m))? as i8,
        None => i8::try_from(number("number")?).ok()?,
    };
    let small = |name: &str| number(name).and_then(|n| i8::try_from(n).ok());
    let mut hour = small("hour")?;
    // Some Node versions print the first hour of a day as hour 24 of that day ("h24").
    if accepts_hour_24 && hour == 24 {
        hour = 0;
    }
    let year = number("year").filter(|y| (2009..2200).contains(y))?;
    let date = Date::new(year, month, small("day")?).ok()?;
    let local =
        DateTime::new(date.year(), date.month(), date.day(), hour, small("minute")?, small("second")?, 0).ok()?;
    let zone = parse_offset(part("zone").unwrap_or("UTC"))?;
    zone.to_timestamp(local).ok()
}

fn parse_offset(zone: &str) -> Option<Offset> {
    if matches!(zone.to_ascii_uppercase().as_str(), "Z" | "UTC" | "GMT") {
        return Some(Offset::UTC);
    }
    let digits: String = zone.chars().filter(char::is_ascii_digit).collect();
    let (hours, minutes) = (digits.get(..2)?.parse::<i32>().ok()?, digits.get(2..4)?.parse::<i32>().ok()?);
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    if hours > 14 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> Option<String> {
        parse_time(text).ok().map(|t| t.to_string())
    }

    #[test]
    fn three_forms_of_time_are_parsed() {
        let at = Some("2025-03-05T03:36:00Z".to_owned());
        assert_eq!(utc("Mar 5, 2025, 03:36"), at);
        assert_eq!(utc("2025-03-05T03:36:00.000Z"), at);
        assert_eq!(utc("2025-03-05 03:36"), at);
        assert_eq!(utc("2025-03-05T05:36:00+02:00"), at);
        assert_eq!(utc("Wed, 05 Mar 2025 04:36:00 +0100"), at);
        assert_eq!(utc("Wed, 5 Mar 2025 03:36:00 GMT"), at);
    }

    #[test]
    fn hour_24_is_midnight_of_that_day() {
        assert_eq!(utc("Mar 5, 2025, 24:05").as_deref(), Some("2025-03-05T00:05:00Z"));
    }

    #[test]
    fn ambiguous_times_are_refused() {
        for text in [
            "",
            "05/03/2025",
            "Mar 5, 2025",
            "5 Mar 2025 03:36:00",
            "Wed, 05 Mar 2025 03:36:00 XST",
            "Feb 30, 2025, 03:36",
            "Mar 5, 2025, 25:00",
            "2025-03-05T24:05:00Z",
            "1741145760",
            "Mar 5, 2025, 3:36 PM",
            "2025-13-01T00:00:00Z",
        ] {
            assert_eq!(utc(text), None, "{text}");
        }
    }
}
