//! Parses single values by their form and, where there is one, by their checksum. Doubtful values are refused with a
//! reason.

use std::sync::LazyLock;

use regex::Regex;
use tiny_keccak::{Hasher, Keccak};

use crate::model::{self, Status};

/// A value, or the reason why it is doubtful.
pub(super) type Doubt<T> = Result<T, String>;

/// The symbols of Resmic's tokens. Other tokens are kept as written.
const KNOWN_SYMBOLS: [&str; 21] = [
    "ETH", "SETH", "WETH", "BNB", "TBNB", "MATIC", "XDC", "OP", "DAI", "USDT", "USDC", "BUSD", "USDe", "BTC", "WBTC",
    "DOGE", "PUSH", "STARK", "SOL", "NIBI", "TRUMP",
];

/// An amount: its digits and its currency, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) digits: String,
    pub(super) currency: Option<String>,
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
/// doubtful: `1.250,50`, `1e-7`, a plus or minus, another currency, an empty text.
pub(super) fn amount(text: &str) -> Doubt<Amount> {
    let doubt = |why: &str| Err(format!("{text:?} is no amount that can be trusted: {why}"));
    let Some(found) = AMOUNT.as_ref().and_then(|r| r.captures(text.trim())) else {
        return doubt("expected digits like 1250.50, with $ or USD or a token's symbol");
    };
    let part = |name: &str| found.name(name).map(|m| m.as_str());
    let whole = part("whole").unwrap_or_default();
    let (before, after, fraction) = (part("before"), part("after"), part("fraction"));
    if whole.contains(',') && fraction.is_none() && before.is_none() && !after.is_some_and(is_dollar) {
        return doubt("the comma may stand for thousands or for decimals");
    }
    if whole.len() > 1 && whole.starts_with('0') {
        return doubt("it begins with a zero");
    }
    let digits = whole.replace(',', "") + &fraction.map(|f| format!(".{f}")).unwrap_or_default();
    if digits.bytes().all(|b| matches!(b, b'0' | b'.')) {
        return doubt("it is nothing");
    }
    let currency = match (before.is_some() || after.is_some_and(is_dollar), after) {
        (true, Some(other)) if !is_dollar(other) => return doubt("it names two currencies"),
        (true, _) => Some("USD".to_owned()),
        // An unknown currency can be the token's symbol. `agree` compares it with the token field.
        (false, Some(token)) if is_known_token(token) || is_symbol(token) => Some(token.to_owned()),
        (false, Some(_)) => return doubt("it names a currency that is not known"),
        (false, None) => None,
    };
    Ok(Amount { digits, currency })
}

/// Whether this is a symbol of a Resmic token, or the name that Resmic's backend writes.
pub(super) fn is_known_token(name: &str) -> bool {
    KNOWN_SYMBOLS.contains(&name) || model::is_token_name(name)
}

/// Whether a word has only capitals and digits and is not a national currency (ISO 4217).
fn is_symbol(word: &str) -> bool {
    const MONEY: [&str; 30] = [
        "EUR", "GBP", "JPY", "CNY", "INR", "CHF", "CAD", "AUD", "NZD", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "RON",
        "TRY", "RUB", "UAH", "BRL", "MXN", "ARS", "ZAR", "KRW", "SGD", "HKD", "THB", "IDR", "AED", "ILS",
    ];
    word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) && !MONEY.contains(&word)
}

static DOLLARS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?:US\$|\$|\bUSD) ?([0-9][0-9.,]*)|\b([0-9][0-9.,]*) ?(?:USD\b|US\$|\$)").ok());

/// The dollar amounts in a sentence, as digits. Amounts in other forms are left out.
pub(super) fn dollars(text: &str) -> Vec<String> {
    let Some(pattern) = DOLLARS.as_ref() else { return Vec::new() };
    let said = pattern.captures_iter(text).filter_map(|found| found.get(1).or_else(|| found.get(2)));
    let plain = said.filter_map(|m| amount(&format!("${}", m.as_str().trim_end_matches(['.', ',']))).ok());
    plain.map(|amount| amount.digits).collect()
}

fn is_dollar(word: &str) -> bool {
    matches!(word, "$" | "US$" | "USD")
}

/// Parses the value of a status field: a word, a sign, or both if they agree.
pub(super) fn status(text: &str) -> Doubt<Status> {
    let (sign, word) = (sign(text)?, super::labels::fold(text));
    match (sign, status_word(&word)) {
        (Some(sign), Ok(word)) if sign == word => Ok(word),
        (Some(_), Ok(_)) => Err(format!("{text:?} has a sign for another status than its words")),
        (Some(sign), Err(_)) if word.is_empty() => Ok(sign),
        (None, Ok(word)) => Ok(word),
        (_, Err(())) => Err(format!("{text:?} is no status")),
    }
}

/// The status of the signs in a text, if there are any. Several signs must agree.
pub(super) fn sign(text: &str) -> Doubt<Option<Status>> {
    let signs = text.chars().filter_map(|c| match c {
        '✅' | '✔' | '✓' | '☑' => Some(Status::Completed),
        '❌' | '✖' | '✗' | '✘' => Some(Status::Failed),
        '⏳' | '⌛' => Some(Status::Pending),
        _ => None,
    });
    let mut signs: Vec<Status> = signs.collect();
    signs.dedup();
    match signs.as_slice() {
        [] => Ok(None),
        [sign] => Ok(Some(*sign)),
        _ => Err(format!("{text:?} has signs for several statuses")),
    }
}

fn status_word(word: &str) -> Result<Status, ()> {
    match word {
        "completed" | "complete" | "paid" | "success" | "successful" | "succeeded" | "confirmed" | "received"
        | "true" | "paymentreceived" | "paymentcompleted" | "paymentsuccessful" => Ok(Status::Completed),
        "failed" | "failure" | "expired" | "cancelled" | "canceled" | "declined" | "rejected" | "false"
        | "paymentfailed" | "unsuccessful" => Ok(Status::Failed),
        "pending"
        | "processing"
        | "inprogress"
        | "awaitingpayment"
        | "awaitingconfirmation"
        | "unconfirmed"
        | "paymentpending" => Ok(Status::Pending),
        _ => Err(()),
    }
}

/// Parses a session id, a UUID (RFC 9562) with hyphens.
pub(super) fn session_id(text: &str) -> Doubt<String> {
    let text = text.trim();
    match uuid::Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 && !id.is_nil() && !id.is_max() => Ok(id.to_string()),
        _ => Err(format!("{text:?} is no session id (a UUID)")),
    }
}

/// Parses a chain's name, and returns the webhook's spelling.
pub(super) fn blockchain(text: &str) -> Doubt<String> {
    let text = text.trim();
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '.' | '_'));
    // Some of the backend's names for tokens are chains, too: `ethereum`, `nibiru`.
    if KNOWN_SYMBOLS.contains(&text) {
        return Err(format!("{text:?} is a token's symbol and no chain's name"));
    }
    if fits && text.len() <= 40 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(model::spell_chain(text))
    } else {
        Err(format!("{text:?} is no chain's name"))
    }
}

/// Parses a token's name, and keeps its spelling.
pub(super) fn token(text: &str) -> Doubt<String> {
    let text = text.trim();
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+'));
    if !is_known_token(text) && model::KNOWN_CHAINS.contains(&model::spell_chain(text).as_str()) {
        return Err(format!("{text:?} is a chain's name and no token's symbol"));
    }
    let is_short = text.len() <= 20 || model::is_token_name(text);
    if fits && is_short && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no token's symbol"))
    }
}

/// The form of a chain's hashes and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Evm,
    Starknet,
    Solana,
    Unknown,
}

/// The family of a chain in the webhook's spelling.
pub(super) fn family(chain: Option<&str>) -> Family {
    match chain {
        Some("Starknet") => Family::Starknet,
        Some("Solana") => Family::Solana,
        Some(chain) if model::KNOWN_CHAINS.contains(&chain) => Family::Evm,
        _ => Family::Unknown,
    }
}

/// The digits behind `0x`, if there is nothing else.
fn hex(text: &str) -> Option<&str> {
    text.strip_prefix("0x").filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether all digits are zero, which is no transaction and no address.
fn is_nothing(digits: &str) -> bool {
    digits.bytes().all(|b| b == b'0')
}

/// The number of bytes that a base58 text encodes.
pub(super) fn base58_bytes(text: &str) -> Option<usize> {
    // The longest value, 64 bytes, has 88 characters.
    if text.len() > 90 { None } else { bs58::decode(text).into_vec().ok().map(|bytes| bytes.len()) }
}

/// Parses a transaction hash of this family. Hexadecimal is returned in lower case.
pub(super) fn hash(text: &str, family: Family) -> Doubt<String> {
    let text = text.trim();
    let evm = hex(text).is_some_and(|d| d.len() == 64 && !is_nothing(d));
    let starknet = hex(text).is_some_and(|d| d.len() <= 64 && !is_nothing(d));
    let solana = || base58_bytes(text) == Some(64);
    let fits = match family {
        Family::Evm => evm,
        Family::Starknet => starknet,
        Family::Solana => solana(),
        Family::Unknown => evm || solana(),
    };
    match fits {
        true if hex(text).is_some() => Ok(text.to_ascii_lowercase()),
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no transaction hash{}", of_family(family))),
    }
}

/// Parses a hash or an address of any chain.
pub(super) fn any(read: impl Fn(&str, Family) -> Doubt<String>, text: &str) -> Doubt<String> {
    read(text, Family::Unknown).or_else(|_| read(text, Family::Starknet))
}

/// Whether a word is a transaction hash of any chain. Starknet's hashes can be a little shorter, without leading zeros.
pub(super) fn is_transaction(word: &str) -> bool {
    word.len() >= 60 && any(hash, word).is_ok()
}

/// Parses an address of this family and keeps its spelling. A mixed-case EVM address must pass EIP-55.
pub(super) fn wallet(text: &str, family: Family) -> Doubt<String> {
    let text = text.trim();
    // XDC writes `xdc` in place of `0x`.
    let plain = match text.strip_prefix("xdc") {
        Some(digits) if matches!(family, Family::Evm | Family::Unknown) => format!("0x{digits}"),
        _ => text.to_owned(),
    };
    let evm = hex(&plain).filter(|d| d.len() == 40 && !is_nothing(d));
    let starknet = hex(text).is_some_and(|d| d.len() <= 64 && !is_nothing(d));
    let solana = || base58_bytes(text) == Some(32);
    let fits = match family {
        Family::Evm => evm.is_some(),
        Family::Starknet => starknet,
        Family::Solana => solana(),
        Family::Unknown => evm.is_some() || solana(),
    };
    if !fits {
        return Err(format!("{text:?} is no wallet address{}", of_family(family)));
    }
    match evm {
        Some(digits) if family != Family::Starknet && !checksum_holds(digits) => {
            Err(format!("{text:?} does not have the checksum of its letters (EIP-55)"))
        }
        _ => Ok(text.to_owned()),
    }
}

fn of_family(family: Family) -> &'static str {
    match family {
        Family::Evm => " of an EVM chain",
        Family::Starknet => " of Starknet",
        Family::Solana => " of Solana",
        Family::Unknown => "",
    }
}

/// EIP-55: if an address has letters of both cases, the hash of the address determines the case of each letter.
fn checksum_holds(digits: &str) -> bool {
    let has = |test: fn(&u8) -> bool| digits.as_bytes().iter().any(test);
    if !(has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase)) {
        return true;
    }
    let mut keccak = Keccak::v256();
    let mut sum = [0; 32];
    keccak.update(digits.to_ascii_lowercase().as_bytes());
    keccak.finalize(&mut sum);
    let nibbles = sum.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .bytes()
        .zip(nibbles)
        .all(|(digit, nibble)| !digit.is_ascii_alphabetic() || digit.is_ascii_uppercase() == (nibble >= 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, Option<String>)> {
        amount(text).ok().map(|a| (a.digits, a.currency))
    }

    #[test]
    fn amounts_are_read_as_written_or_refused() {
        let usd = Some("USD".to_owned());
        assert_eq!(read("$20"), Some(("20".into(), usd.clone())));
        assert_eq!(read("20 USD"), Some(("20".into(), usd.clone())));
        assert_eq!(read("USD 20.00"), Some(("20.00".into(), usd.clone())));
        assert_eq!(read("$1,250.50"), Some(("1250.50".into(), usd.clone())));
        assert_eq!(read("$1,250"), Some(("1250".into(), usd)));
        assert_eq!(read("1,250.50"), Some(("1250.50".into(), None)));
        assert_eq!(read("20.00 DAI"), Some(("20.00".into(), Some("DAI".into()))));
        assert_eq!(read("20.00 PEPE"), Some(("20.00".into(), Some("PEPE".into()))));
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
            assert_eq!(read(doubtful), None, "{doubtful}");
        }
    }

    #[test]
    fn a_sentence_names_its_dollars() {
        assert_eq!(dollars("Paymet received $1,250.50 (via Resmic)"), ["1250.50"]);
        assert_eq!(dollars("Payment of 20 USD received. $20."), ["20", "20"]);
        assert_eq!(dollars("Payment received"), Vec::<String>::new());
    }

    #[test]
    fn a_status_is_a_word_or_a_sign() {
        for (text, want) in [
            ("✅", Status::Completed),
            (" ✔\u{fe0f} ", Status::Completed),
            ("✅ Completed", Status::Completed),
            ("❌", Status::Failed),
            ("Failed ❌", Status::Failed),
            ("⏳ pending", Status::Pending),
            ("🎉 Paid!", Status::Completed),
        ] {
            assert_eq!(status(text), Ok(want), "{text}");
        }
        for text in ["✅ Failed", "❌ Paid", "✅ ❌", "✅ ⏳ ✅", "✅ On hold", "❎", "🟢", "", "✅ or not"]
        {
            assert!(status(text).is_err(), "{text}");
        }
    }

    #[test]
    fn chains_and_tokens_are_not_taken_for_one_another() {
        assert!(blockchain("ETH").is_err() && blockchain("Avalanche").is_ok());
        assert!(token("Ethereum").is_err() && token("usdc").is_ok() && token("BNB").is_ok());
        for name in ["Polygon", "SEPOLIA", "Solana", "STARKNET", "bnb-chain", "xdc network", "base"] {
            assert!(token(name).is_err(), "{name}");
        }
        for name in ["ethereum", "solana", "Bitcoin", "xdce-crowd-sale", "ethereum-push-notification-service"] {
            assert_eq!(token(name).as_deref(), Ok(name));
        }
        assert_eq!(blockchain("ethereum").as_deref(), Ok("Ethereum"));
        assert_eq!(blockchain("nibiru").as_deref(), Ok("nibiru"));
    }

    #[test]
    fn a_mixed_case_address_carries_its_checksum() {
        let good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert!(wallet(good, Family::Evm).is_ok());
        assert!(wallet(&good.to_lowercase(), Family::Evm).is_ok());
        assert!(wallet(&good.replace("5aA", "5Aa"), Family::Evm).is_err());
        assert!(wallet("0x056397760b973BfB921Bc10Be9DA5034B1e921d7", Family::Unknown).is_ok());
    }

    #[test]
    fn hashes_have_the_shape_of_their_chain() {
        let evm = format!("0x{}", "aB".repeat(32));
        assert_eq!(hash(&evm, Family::Evm).unwrap(), evm.to_lowercase());
        assert!(hash(&evm, Family::Solana).is_err());
        assert!(hash(&evm[..65], Family::Evm).is_err());
        assert!(hash(&format!("0x{}", "0".repeat(64)), Family::Evm).is_err());
        assert!(hash("0x4ab", Family::Starknet).is_ok());
        assert!(hash("0x4ab", Family::Unknown).is_err());
        let solana = bs58::encode([7_u8; 64]).into_string();
        assert!(hash(&solana, Family::Solana).is_ok() && hash(&solana, Family::Evm).is_err());
        assert!(wallet(&bs58::encode([7_u8; 32]).into_string(), Family::Solana).is_ok());
        assert!(hash("0xa43d…8db2", Family::Evm).is_err());
    }

    #[test]
    fn a_session_is_a_uuid_and_nothing_like_one() {
        assert_eq!(session_id("591ABE63-aa61-411d-a419-0b546729bbd0").unwrap(), "591abe63-aa61-411d-a419-0b546729bbd0");
        for bad in ["591abe63aa61411da4190b546729bbd0", "{591abe63-aa61-411d-a419-0b546729bbd0}", "591abe63", ""] {
            assert!(session_id(bad).is_err(), "{bad}");
        }
    }
}
