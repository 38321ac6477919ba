//! Parses amounts, and finds dollar amounts in sentences.

use std::sync::LazyLock;

use regex::Regex;

use super::chain_and_token::is_known_token;

/// An amount: its digits and its currency, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) digits: String,
    pub(crate) currency: Option<String>,
}

static AMOUNT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?x)^ (?P<before> US\$ | \$ | USD )? [\ ]?
          (?P<whole> [0-9]{1,3} (?: , [0-9]{3} )+ | [0-9]{1,27} ) (?: \. (?P<fraction> [0-9]{1,30} ) )?
          [\ ]? (?P<after> US\$ | \$ | [A-Za-z][A-Za-z0-9]{1,11} )? $",
    )
    .ok()
});

/// Parses an amount in the en-US form that Resmic writes: `$20`, `20 USD`, `1,250.50`, `20.00 DAI`. Other forms are
/// refused as doubtful: `1.250,50`, `1e-7`, a plus or minus, another currency, an empty text.
pub(crate) fn parse_amount(text: &str) -> Result<Amount, String> {
    let refuse = |why: &str| Err(format!("{text:?} is not a clear amount: {why}"));
    let Some(found) = AMOUNT.as_ref().and_then(|r| r.captures(text.trim())) else {
        return refuse("expected digits like 1250.50, with $ or USD or a token's symbol");
    };
    let part = |name: &str| found.name(name).map(|m| m.as_str());
    let whole = part("whole").unwrap_or_default();
    let (before, after, fraction) = (part("before"), part("after"), part("fraction"));
    if whole.contains(',') && fraction.is_none() && before.is_none() && !after.is_some_and(is_dollar) {
        return refuse("the comma may separate thousands or decimals");
    }
    if whole.len() > 1 && whole.starts_with('0') {
        return refuse("it begins with a zero");
    }
    let digits = whole.replace(',', "") + &fraction.map(|f| format!(".{f}")).unwrap_or_default();
    if digits.bytes().all(|b| matches!(b, b'0' | b'.')) {
        return refuse("it is zero");
    }
    let currency = match (before.is_some() || after.is_some_and(is_dollar), after) {
        (true, Some(other)) if !is_dollar(other) => return refuse("it has two currencies"),
        (true, _) => Some("USD".to_owned()),
        // An unknown currency can be the symbol of a token. `ConsistencyCheck` compares the currency with the token field.
        (false, Some(token)) if is_known_token(token) || is_symbol_not_currency(token) => Some(token.to_owned()),
        (false, Some(_)) => return refuse("it has an unknown currency"),
        (false, None) => None,
    };
    Ok(Amount { digits, currency })
}

/// Whether a word has only capitals and digits and is not a national currency (ISO 4217).
fn is_symbol_not_currency(word: &str) -> bool {
    const NATIONAL_CURRENCIES: [&str; 30] = [
        "EUR", "GBP", "JPY", "CNY", "INR", "CHF", "CAD", "AUD", "NZD", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "RON",
        "TRY", "RUB", "UAH", "BRL", "MXN", "ARS", "ZAR", "KRW", "SGD", "HKD", "THB", "IDR", "AED", "ILS",
    ];
    word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) && !NATIONAL_CURRENCIES.contains(&word)
}

static DOLLARS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?:US\$|\$|\bUSD) ?([0-9][0-9.,]*)|\b([0-9][0-9.,]*) ?(?:USD\b|US\$|\$)").ok());

/// The dollar amounts in a sentence, as digits. Amounts that [`parse_amount`] refuses are left out.
pub(crate) fn dollar_amounts(text: &str) -> Vec<String> {
    let Some(pattern) = DOLLARS.as_ref() else { return Vec::new() };
    let matches = pattern.captures_iter(text).filter_map(|found| found.get(1).or_else(|| found.get(2)));
    let amounts = matches.filter_map(|m| parse_amount(&format!("${}", m.as_str().trim_end_matches(['.', ',']))).ok());
    amounts.map(|amount| amount.digits).collect()
}

fn is_dollar(word: &str) -> bool {
    matches!(word, "$" | "US$" | "USD")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, Option<String>)> {
        parse_amount(text).ok().map(|a| (a.digits, a.currency))
    }

    #[test]
    fn amounts_stay_as_written_or_are_refused() {
        let usd = Some("USD".to_owned());
        assert_eq!(parsed("$20"), Some(("20".into(), usd.clone())));
        assert_eq!(parsed("20 USD"), Some(("20".into(), usd.clone())));
        assert_eq!(parsed("USD 20.00"), Some(("20.00".into(), usd.clone())));
        assert_eq!(parsed("$1,250.50"), Some(("1250.50".into(), usd.clone())));
        assert_eq!(parsed("$1,250"), Some(("1250".into(), usd)));
        assert_eq!(parsed("1,250.50"), Some(("1250.50".into(), None)));
        assert_eq!(parsed("20.00 DAI"), Some(("20.00".into(), Some("DAI".into()))));
        assert_eq!(parsed("20.00 PEPE"), Some(("20.00".into(), Some("PEPE".into()))));
        for doubtful in [
            "1.250,50",
            "1e-7",
            "1,25",
            "1,250",
            "-5",
            "+5",
            "NaN",
            "0x14",
            "20 EUR",
            "€20",
            "",
            "$",
            ".5",
            "5.",
            "007",
            "0",
            "$0.00",
            "$20 DAI",
            "12,34,567",
            "1 250",
            "２０",
            "20$30",
            "20 30",
            "99999999999999999999999999999",
            "$20 or $30",
        ] {
            assert_eq!(parsed(doubtful), None, "{doubtful}");
        }
    }

    #[test]
    fn dollar_amounts_are_found_in_sentences() {
        assert_eq!(dollar_amounts("Paymet received $1,250.50 (via Resmic)"), ["1250.50"]);
        assert_eq!(dollar_amounts("Payment of 20 USD received. $20."), ["20", "20"]);
        assert_eq!(dollar_amounts("Payment received"), Vec::<String>::new());
    }
}
