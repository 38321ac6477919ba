//! The hexadecimal values of JSON-RPC: quantities without leading zeros, and data of a fixed length.
//!
//! See the [execution API's encoding rules](https://ethereum.org/developers/docs/apis/json-rpc/#conventions).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use tiny_keccak::{Hasher, Keccak};

/// 32 bytes: the hash of a transaction or a block, a topic of a log, or a value that a contract returns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// 20 bytes: an account or a contract.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 20]);

/// Parses a quantity of Ethereum's JSON-RPC API, such as `0x41`, of at most 128 bits. No amount, block number or time needs more
/// bits.
///
/// # Errors
/// A message that does not quote the text.
pub(super) fn quantity(text: &str) -> Result<u128, String> {
    let digits = text.strip_prefix("0x").ok_or("a quantity begins with 0x")?;
    // `from_str_radix` would accept a sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a quantity has hexadecimal digits after 0x".into());
    }
    if digits.len() > 1 && digits.starts_with('0') {
        return Err("a quantity has no leading zeros".into());
    }
    u128::from_str_radix(digits, 16).map_err(|_| "a quantity is larger than 128 bits".into())
}

/// Parses data of Ethereum's JSON-RPC API: `0x` and an even number of hexadecimal digits.
///
/// # Errors
/// A message that does not quote the text.
pub(super) fn data(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").ok_or("data begins with 0x")?;
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .map_err(|_| "data has an even number of hexadecimal digits after 0x".into())
}

fn exact<const N: usize>(text: &str) -> Result<[u8; N], String> {
    data(text)?.try_into().map_err(|other: Vec<u8>| format!("expected {N} bytes, not {}", other.len()))
}

/// The value of a 32-byte word, if it fits into 128 bits.
#[must_use]
pub(super) fn word(bytes: &[u8]) -> Option<u128> {
    let (high, low) = bytes.split_first_chunk::<16>()?;
    let low: [u8; 16] = low.try_into().ok()?;
    (*high == [0; 16]).then(|| u128::from_be_bytes(low))
}

impl Hash {
    /// Pads an address with leading zeros to a word of 32 bytes, as in the topics of a log.
    #[must_use]
    pub fn of_address(address: Address) -> Self {
        let mut word = [0; 32];
        for (to, from) in word.iter_mut().skip(12).zip(address.0) {
            *to = from;
        }
        Hash(word)
    }

    /// Returns the address in the last 20 bytes of a 32-byte word. `None`: the other bytes of the word are not zero.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        let (zeros, address) = self.0.split_first_chunk::<12>()?;
        (*zeros == [0; 12]).then_some(())?;
        Some(Address(address.try_into().ok()?))
    }
}

impl FromStr for Hash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        exact(text).map(Hash)
    }
}

impl Address {
    /// The zero address. The zero address has no private key, so tokens that are sent to the zero address are lost.
    pub const ZERO: Address = Address([0; 20]);

    /// Parses an address from a configuration or a mail. If the address has letters of both cases, the case of the letters is a
    /// checksum (EIP-55).
    ///
    /// # Errors
    /// A message that does not quote the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected an address: 0x and 40 hexadecimal digits";
        let address = exact(text).map(Address).map_err(|_| EXPECTED.to_owned())?;
        let digits = text.get(2..).unwrap_or_default();
        let has = |test: fn(&u8) -> bool| digits.as_bytes().iter().any(test);
        let is_mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
        if is_mixed && address.checksummed() != text {
            return Err("the address has a wrong checksum (EIP-55); copy it again from the wallet".into());
        }
        Ok(address)
    }

    /// The address in mixed case, with its checksum (EIP-55).
    #[must_use]
    pub fn checksummed(&self) -> String {
        let digits = data_encoding::HEXLOWER.encode(&self.0);
        let hash = keccak(digits.as_bytes());
        let nibbles = hash.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let cased = digits.chars().zip(nibbles).map(|(c, n)| if n >= 8 { c.to_ascii_uppercase() } else { c });
        format!("0x{}", cased.collect::<String>())
    }
}

/// Keccak-256.
fn keccak(bytes: &[u8]) -> [u8; 32] {
    let mut keccak = Keccak::v256();
    let mut hash = [0; 32];
    keccak.update(bytes);
    keccak.finalize(&mut hash);
    hash
}

impl FromStr for Address {
    type Err = String;
    /// Parses an address from a node. The case of the letters in this address has no meaning.
    fn from_str(text: &str) -> Result<Self, String> {
        exact(text).map(Address)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.checksummed())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses a JSON string with `parse`.
fn deserialize_text<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).map_err(de::Error::custom)
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize_text(from, str::parse)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize_text(from, str::parse)
    }
}

/// A JSON string that is a quantity of at most 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity(pub u128);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize_text(from, |text| quantity(text).map(Quantity))
    }
}

/// For `deserialize_with`: a quantity of at most 64 bits.
pub(super) fn u64_quantity<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let Quantity(value) = Quantity::deserialize(from)?;
    u64::try_from(value).map_err(|_| de::Error::custom("a quantity is larger than 64 bits"))
}

/// For `deserialize_with`: data of any length.
pub(super) fn any_data<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    deserialize_text(from, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_parsed_exactly_or_refused() {
        assert_eq!(quantity("0x0"), Ok(0));
        assert_eq!(quantity("0x1aF"), Ok(431));
        assert_eq!(quantity(&format!("0x{}", "f".repeat(32))), Ok(u128::MAX));
        for bad in ["", "0", "0x", "0x00", "0x01", "1", "-0x1", "0x-1", "0x+1", "0X1", "0xg", " 0x1", "0x1 "] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
        assert!(quantity(&format!("0x1{}", "0".repeat(32))).unwrap_err().contains("128 bits"));
    }

    #[test]
    fn hashes_and_addresses_have_an_exact_length() {
        let hash = format!("0x{}", "aB".repeat(32));
        assert_eq!(hash.parse::<Hash>().unwrap().to_string(), hash.to_lowercase());
        for bad in ["0x", "0xab", &hash[..65], &format!("{hash}ab"), &hash[2..]] {
            assert!(bad.parse::<Hash>().is_err() && bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_in_mixed_case_has_a_checksum() {
        let good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert_eq!(Address::parse(good).unwrap().to_string(), good);
        assert_eq!(Address::parse(&good.to_lowercase()), Address::parse(good));
        assert!(Address::parse(&good.replace("5aA", "5Aa")).unwrap_err().contains("EIP-55"));
        assert!(Address::parse("0x9238").unwrap_err().contains("40 hexadecimal digits"));
    }

    #[test]
    fn a_word_is_an_address_or_a_value() {
        let address = Address([7; 20]);
        assert_eq!(Hash::of_address(address).address(), Some(address));
        assert_eq!(Hash([1; 32]).address(), None);
        let mut value = [0; 32];
        value[31] = 9;
        assert_eq!(word(&value), Some(9));
        value[15] = 1;
        assert_eq!(word(&value), None);
        assert_eq!(word(&value[1..]), None);
    }
}
