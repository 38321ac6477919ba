//! Signed addresses: `payments+ORDER.MAC@shop.example` names an order, and only the holder of the key can make such an address.
//!
//! The addresses survive mail systems that convert local parts to lower case. docs/sessions.md describes the format for the
//! programmer of a shop.

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// The longest local part, in bytes (RFC 5321, 4.5.3.1.1).
const LONGEST_LOCAL_PART: usize = 64;

/// The longest address, in bytes (RFC 5321, 4.5.3.1.3, without the angle brackets).
const LONGEST_ADDRESS: usize = 254;

/// The MAC is computed over this prefix and the order reference. So a MAC that another program makes with the same key is not
/// valid in an address.
const MAC_DOMAIN: &[u8] = b"resmic-mailhook address\n";

/// The length of a signature, in bytes. An attacker would have to send up to 2^80 mails to guess a signature. In base32, a
/// signature takes 16 of the 64 characters of a local part.
const MAC_BYTES: usize = 10;

/// In an address, a base32-encoded order reference begins with this character.
const ENCODED: char = '_';

/// Makes and checks the signed addresses of one mailbox, with one key. `Debug` does not show the key.
#[derive(Debug, Clone)]
pub struct SignedAddresses {
    /// The local part of the mailbox's address, in lower case.
    local: String,
    domain: String,
    key: hmac::Key,
}

/// The result of [`SignedAddresses::lookup`]: the order that the addresses in a signed To header name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderLookup {
    /// The To header has the signed address of this order reference.
    Order(String),
    /// An address in the To header has the form of a signed address, but its MAC is wrong, or its order reference cannot be
    /// decoded.
    WrongMac,
    /// The To header has the signed addresses of several orders.
    Several,
    /// The To header has no signed address of this mailbox.
    Nothing,
}

impl SignedAddresses {
    /// Stores `mailbox` and the key, to make and check signed addresses. A signed address is the address `mailbox` with a `+`
    /// tag, which contains an order reference and its MAC.
    ///
    /// # Errors
    ///
    /// A message, if no `+` tag can be added to the address `mailbox`.
    pub fn new(mailbox: &str, key: &SecretString) -> Result<Self, String> {
        check_mailbox(mailbox)?;
        let (local, domain) = mailbox.rsplit_once('@').unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
        Ok(SignedAddresses { local: local.to_ascii_lowercase(), domain: domain.to_ascii_lowercase(), key })
    }

    /// Returns the signed address of an order. The merchant sends this address to Resmic as the `webhook_url` of the session.
    ///
    /// # Errors
    ///
    /// A message, if the order reference is empty or too long for an address.
    pub fn address_for(&self, order_ref: &str) -> Result<String, String> {
        if order_ref.is_empty() {
            return Err("the order reference must not be empty".into());
        }
        let mac = base32(&self.mac(order_ref));
        let local = format!("{}+{}.{mac}", self.local, encode(order_ref));
        if local.len() > LONGEST_LOCAL_PART {
            return Err(format!(
                "the order reference is too long: the address would have {} characters before the @, and mail allows \
                 {LONGEST_LOCAL_PART}; choose a shorter one (lower-case letters, digits, - and _ need the least room)",
                local.len()
            ));
        }
        let address = format!("{local}@{}", self.domain);
        if address.len() > LONGEST_ADDRESS {
            return Err(format!("the address would be longer than the {LONGEST_ADDRESS} characters that mail allows"));
        }
        Ok(address)
    }

    /// Returns the order that the *signed* To header of a mail names. Logs a warning if the addresses in this header name several
    /// orders, or if the addresses name no order and one address has a wrong MAC.
    #[must_use]
    pub fn order_of(&self, signed_to: &[String]) -> Option<String> {
        match self.lookup(signed_to) {
            OrderLookup::Order(order_ref) => return Some(order_ref),
            OrderLookup::WrongMac => {
                tracing::warn!("a mail was sent to a signed address with a wrong MAC; it names no order")
            }
            OrderLookup::Several => tracing::warn!("a mail was sent to the addresses of several orders; it names none"),
            OrderLookup::Nothing => {}
        }
        None
    }

    /// Finds the order that the addresses in a signed To header name.
    #[must_use]
    pub fn lookup(&self, signed_to: &[String]) -> OrderLookup {
        signed_to.iter().map(|address| self.lookup_one(address)).fold(OrderLookup::Nothing, |a, b| match (a, b) {
            (OrderLookup::Order(a), OrderLookup::Order(b)) if a != b => OrderLookup::Several,
            (OrderLookup::Several, _) | (_, OrderLookup::Several) => OrderLookup::Several,
            (OrderLookup::Order(order), _) | (_, OrderLookup::Order(order)) => OrderLookup::Order(order),
            (OrderLookup::WrongMac, _) | (_, OrderLookup::WrongMac) => OrderLookup::WrongMac,
            (OrderLookup::Nothing, OrderLookup::Nothing) => OrderLookup::Nothing,
        })
    }

    fn lookup_one(&self, address: &str) -> OrderLookup {
        let address = address.to_ascii_lowercase();
        let tag = address
            .rsplit_once('@')
            .filter(|(_, domain)| *domain == self.domain)
            .and_then(|(local, _)| local.strip_prefix(&self.local)?.strip_prefix('+'));
        let Some((order, mac)) = tag.and_then(|tag| tag.rsplit_once('.')) else { return OrderLookup::Nothing };
        match decode(order) {
            Some(order_ref) if self.is_signed(&order_ref, mac) => OrderLookup::Order(order_ref),
            _ => OrderLookup::WrongMac,
        }
    }

    fn is_signed(&self, order_ref: &str, mac: &str) -> bool {
        let given_mac = from_base32(mac).unwrap_or_default();
        self.mac(order_ref).as_slice().ct_eq(&given_mac).into()
    }

    fn mac(&self, order_ref: &str) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(MAC_DOMAIN);
        context.update(order_ref.as_bytes());
        context.sign().as_ref().iter().copied().take(MAC_BYTES).collect()
    }
}

/// Encodes an order reference for an address. A reference of lower-case letters, digits, `-` and `_` stays unchanged, unless it
/// begins with `_`. Any other reference becomes `_` and the base32 of its UTF-8 bytes.
fn encode(order_ref: &str) -> String {
    if is_plain(order_ref) { order_ref.to_owned() } else { format!("{ENCODED}{}", base32(order_ref.as_bytes())) }
}

fn decode(order: &str) -> Option<String> {
    match order.strip_prefix(ENCODED) {
        Some(encoded) => String::from_utf8(from_base32(encoded)?).ok().filter(|order_ref| !order_ref.is_empty()),
        None => is_plain(order).then(|| order.to_owned()),
    }
}

fn is_plain(order_ref: &str) -> bool {
    let stays = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    !order_ref.is_empty() && !order_ref.starts_with(ENCODED) && order_ref.chars().all(stays)
}

/// Base32 of RFC 4648, section 6, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    BASE32_NOPAD_NOCASE.decode(text.as_bytes()).ok()
}

/// Checks that a `+` tag can be added to an address: its local part is a dot-atom (RFC 5322) without a tag, and is short enough.
///
/// # Errors
/// A message about the problem.
pub fn check_mailbox(mailbox: &str) -> Result<(), String> {
    const EXPECTED: &str = "expected a plain address such as \"payments@shop.example\", without a + tag";
    let (local, domain) = mailbox.rsplit_once('@').ok_or(EXPECTED)?;
    let is_atom = |part: &str, extra: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let is_valid = local.split('.').all(|part| is_atom(part, "!#$%&'*/=?^_`{|}~-"))
        && domain.split('.').all(|part| is_atom(part, "-"));
    // The local part must have room for the shortest tag: an order reference of one character and its MAC.
    let fits = local.len() + "+o.".len() + MAC_BYTES * 8 / 5 <= LONGEST_LOCAL_PART && mailbox.len() <= 190;
    match (is_valid, fits) {
        (false, _) => Err(EXPECTED.into()),
        (true, false) => Err("too long: no order reference would fit into its addresses".into()),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours() -> SignedAddresses {
        SignedAddresses::new("Payments@Shop.example", &SecretString::from("a key for tests only")).unwrap()
    }

    fn order_of(address: &str) -> OrderLookup {
        ours().lookup(&[address.to_owned()])
    }

    #[test]
    fn addresses_name_their_order_and_stay_valid() {
        let address = ours().address_for("order-1001").unwrap();
        assert_eq!(
            address, "payments+order-1001.bsvig6htwkncksk4@shop.example",
            "addresses given to Resmic must stay valid"
        );
        assert_eq!(order_of(&address), OrderLookup::Order("order-1001".into()));
        assert_eq!(order_of(&address.to_uppercase()), OrderLookup::Order("order-1001".into()));
        let address = ours().address_for("Größe/5 #7").unwrap();
        assert!(address.starts_with("payments+_"), "{address}");
        assert_eq!(order_of(&address), OrderLookup::Order("Größe/5 #7".into()));
    }

    #[test]
    fn a_wrong_mac_names_no_order() {
        let cheap = ours().address_for("cheap").unwrap();
        for forged in
            [cheap.replace("cheap", "dear"), cheap.replacen('.', ".a", 1), "payments+dear.@shop.example".into()]
        {
            assert_eq!(order_of(&forged), OrderLookup::WrongMac, "{forged}");
        }
        let other = SignedAddresses::new("payments@shop.example", &SecretString::from("another key")).unwrap();
        assert_eq!(order_of(&other.address_for("cheap").unwrap()), OrderLookup::WrongMac);
        for nothing in
            ["payments@shop.example", "payments+news@shop.example", "+cheap.x@shop.example", "", "@", "a@b+c.d"]
        {
            assert_eq!(order_of(nothing), OrderLookup::Nothing, "{nothing}");
        }
        assert_eq!(order_of(&cheap.replace("shop.example", "shop.example.evil.example")), OrderLookup::Nothing);
        assert_eq!(order_of(&format!("x{cheap}")), OrderLookup::Nothing);
    }

    #[test]
    fn two_orders_are_ambiguous_and_forgeries_are_ignored() {
        let (a, b) = (ours().address_for("a").unwrap(), ours().address_for("b").unwrap());
        let named = |addresses: &[&String]| ours().lookup(&addresses.iter().map(|s| (*s).clone()).collect::<Vec<_>>());
        assert_eq!(named(&[&a, &b]), OrderLookup::Several);
        assert_eq!(named(&[&a, &b, &a]), OrderLookup::Several);
        assert_eq!(named(&[&a.replace("+a", "+c"), &a, &a]), OrderLookup::Order("a".into()));
        assert_eq!(named(&[]), OrderLookup::Nothing);
    }

    #[test]
    fn an_order_that_does_not_fit_is_refused() {
        let message = ours().address_for(&"x".repeat(40)).unwrap_err();
        assert!(message.contains("too long") && message.contains("66 characters"), "{message}");
        ours().address_for(&"x".repeat(38)).unwrap();
        assert!(ours().address_for("").is_err());
        for wrong in
            ["", "shop.example", "a b@shop.example", "a+b@shop.example", "a@", "@b", "a..b@c", "ä@b", "\"a\"@b"]
        {
            assert!(check_mailbox(wrong).is_err(), "{wrong}");
        }
        assert!(check_mailbox(&format!("{}@b.example", "x".repeat(60))).unwrap_err().contains("too long"));
    }

    #[test]
    fn the_key_is_not_shown() {
        assert!(!format!("{:?}", ours()).contains("tests only"));
    }

    proptest! {
        #[test]
        fn every_order_reference_round_trips(order_ref in "\\PC{1,12}", cut in any::<prop::sample::Index>()) {
            if let Ok(address) = ours().address_for(&order_ref) {
                prop_assert_eq!(order_of(&address.to_lowercase()), OrderLookup::Order(order_ref));
                let (local, _) = address.split_once('@').unwrap();
                prop_assert!(local.len() <= 64 && local.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'.' | b'-' | b'_')));
                // If one character of an address is missing, the address names no order.
                let at = cut.index(address.len());
                let broken = format!("{}{}", &address[..at], &address[at + 1..]);
                prop_assert!(!matches!(order_of(&broken), OrderLookup::Order(_)));
            }
        }

        #[test]
        fn any_to_header_is_handled(header in ".*") {
            prop_assert!(!matches!(order_of(&header), OrderLookup::Order(_)));
        }
    }
}
