//! Calculates amounts in integers, without floating point: a decimal text, less a discount, in a token's smallest units.

use std::str::FromStr;

use crate::configured_text::configured_text;

/// A discount of 100 %, in millionths.
const WHOLE: u32 = 1_000_000;
/// The most decimals that a token may have. 10 to the power of this number fits into 128 bits.
pub(super) const MOST_DECIMALS: u8 = 30;

/// The largest discount that a merchant gives: at least `0%`, and less than `100%`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discount {
    millionths: u32,
}

configured_text!(Discount, "a percentage in quotes, for example \"12.5%\"");

impl FromStr for Discount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.strip_suffix('%').and_then(|number| {
            let (digits, scale) = digits(number)?;
            // A percent is ten thousand millionths.
            let millionths = digits.checked_mul(10_u128.checked_pow(4_u32.checked_sub(scale)?)?)?;
            u32::try_from(millionths).ok().filter(|millionths| *millionths < WHOLE)
        });
        parsed
            .map(|millionths| Discount { millionths })
            .ok_or_else(|| "expected a percentage from \"0%\" to less than \"100%\", for example \"12.5%\"".into())
    }
}

impl TryFrom<String> for Discount {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The digits of a plain decimal number, and how many digits follow the decimal point.
fn digits(number: &str) -> Option<(u128, u32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}").parse().ok()?;
    Some((digits, u32::try_from(fraction.len()).ok()?))
}

/// Returns the smallest sufficient amount in the token's smallest units: `floor(amount × (1 − discount) × 10^decimals) − 1`. One
/// unit is subtracted because a payer's wallet may round. `None`: `amount` is not a plain decimal number, or is too large for 128
/// bits.
#[must_use]
pub(super) fn least(amount: &str, discount: Discount, decimals: u8) -> Option<u128> {
    let (digits, scale) = digits(amount)?;
    let (share, share_scale) = if discount.millionths == 0 { (1, 0) } else { (WHOLE - discount.millionths, 6) };
    let scaled = digits.checked_mul(share.into())?;
    let (up, down) = (u32::from(decimals), scale.checked_add(share_scale)?);
    let units = if up >= down {
        scaled.checked_mul(10_u128.checked_pow(up - down)?)?
    } else {
        // If the divisor does not fit into 128 bits, the quotient is zero.
        10_u128.checked_pow(down - up).map_or(0, |divisor| scaled / divisor)
    };
    Some(units.saturating_sub(1))
}

/// Converts smallest units to a plain decimal number: 12500000 with 6 decimals is `12.5`.
#[must_use]
pub(super) fn format_units(units: u128, decimals: u8) -> String {
    let digits = format!("{units:0>width$}", width = usize::from(decimals) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(decimals));
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn discount(text: &str) -> Discount {
        text.parse().unwrap()
    }

    #[test]
    fn discounts_are_percentages_below_a_hundred() {
        assert_eq!(discount("0%"), Discount::default());
        assert_eq!(discount("12.5%").millionths, 125_000);
        assert_eq!(discount("99.9999%").millionths, 999_999);
        for bad in ["", "%", "5", "-5%", "100%", "0.00001%", "1e1%", "5 %", ".5%", "5.%", "١%"] {
            assert!(bad.parse::<Discount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_least_amount_is_exact() {
        assert_eq!(least("20", discount("0%"), 6), Some(19_999_999));
        assert_eq!(least("1999.990", discount("0%"), 18), Some(1_999_990_000_000_000_000_000 - 1));
        assert_eq!(least("20", discount("10%"), 6), Some(17_999_999));
        // 0.333333 × 0.875 = 0.291666375, rounded down to 291666 units, less one unit.
        assert_eq!(least("0.333333", discount("12.5%"), 6), Some(291_665));
        assert_eq!(least("0.0000001", discount("0%"), 6), Some(0));
        assert_eq!(least("1", discount("0%"), 0), Some(0));
    }

    #[test]
    fn an_invalid_amount_is_refused() {
        for bad in ["", "-1", "1e3", "1,000", "0x1", "1.", ".1", "9".repeat(40).as_str(), "9".repeat(30).as_str()] {
            assert_eq!(least(bad, Discount::default(), 18), None, "{bad}");
        }
    }

    #[test]
    fn units_print_as_a_plain_decimal() {
        assert_eq!(format_units(12_500_000, 6), "12.5");
        assert_eq!(format_units(20_000_000, 6), "20");
        assert_eq!(format_units(1, 18), "0.000000000000000001");
        assert_eq!(format_units(0, 0), "0");
        assert_eq!(format_units(42, 0), "42");
    }

    proptest! {
        #[test]
        fn least_never_exceeds_the_amount(whole in 0_u64..10_u64.pow(12), cents in 0_u32..100, percent in 0_u32..100) {
            let amount = format!("{whole}.{cents:02}");
            let reduced = least(&amount, discount(&format!("{percent}%")), 6).unwrap();
            let exact = (u128::from(whole) * 100 + u128::from(cents)) * u128::from(100 - percent) * 100;
            prop_assert_eq!(reduced, exact.saturating_sub(1));
        }

        #[test]
        fn no_text_makes_amounts_panic(text in ".{0,60}", decimals in 0..=MOST_DECIMALS) {
            let _ = least(&text, Discount::default(), decimals);
            let _ = text.parse::<Discount>();
        }

        #[test]
        fn formatted_units_read_back(units in 0..10_u128.pow(36), decimals in 0..=MOST_DECIMALS) {
            let (digits, scale) = digits(&format_units(units, decimals)).unwrap();
            prop_assert_eq!(digits * 10_u128.pow(u32::from(decimals) - scale), units);
        }
    }
}
