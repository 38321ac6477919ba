//! A [`Claim`] has the statements of a mail about a payment, as text. A [`Question`] has the same statements as parsed values,
//! which the nodes of a chain can check.

use jiff::Timestamp;

use super::amount;
use super::configured::{Chain, Coin};
use super::hex::{Address, Hash};
use super::verdict::{ConfirmationCode, ConfirmationReason};
use crate::model::{Event, fold_chain, printable, same_token};

/// A reason quotes at most this number of characters of a value in a mail.
const KEPT_VALUE: usize = 40;

/// The statements of a mail about a completed payment, which the nodes of a chain shall check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The chain's name.
    pub blockchain: Option<String>,
    /// The token's name.
    pub token: Option<String>,
    /// The hash of the payer's transaction.
    pub transaction_hash: Option<String>,
    /// The payer's wallet.
    pub from_wallet_address: Option<String>,
    /// The payment's amount.
    pub amount: Option<String>,
    /// The currency of `amount`: `USD` or the symbol of a token. `None`: US dollars.
    pub currency: Option<String>,
    /// The mail's Date. Without a Date, the time at which the server received the mail. Without both, the time at which the event
    /// was stored.
    pub sent_at: Timestamp,
    /// When the merchant registered the session. `None`: the payment may be older than the registration, or no session is
    /// registered.
    pub registered_at: Option<Timestamp>,
    /// The time since which the event has waited for the chain.
    pub waits_since: Timestamp,
}

impl Claim {
    /// Creates the claim of an event. The fields of [`Claim`] explain `sent_at`, `registered_at` and `waits_since`.
    #[must_use]
    pub fn from_event(
        event: &Event,
        sent_at: Timestamp,
        registered_at: Option<Timestamp>,
        waits_since: Timestamp,
    ) -> Self {
        let payment = event.payment.clone();
        Claim {
            blockchain: payment.blockchain,
            token: payment.token,
            transaction_hash: payment.transaction_hash,
            from_wallet_address: payment.from_wallet_address,
            amount: payment.amount,
            currency: payment.currency,
            sent_at,
            registered_at,
            waits_since,
        }
    }
}

/// A claim with parsed values, which the nodes of a chain can check.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The configured chain that the mail names.
    pub chain: &'a Chain,
    /// The coin that the mail names.
    pub coin: Coin,
    /// The hash of the payer's transaction.
    pub hash: Hash,
    /// The payer's wallet.
    pub payer: Address,
    /// The smallest sufficient amount, in the coin's smallest units. `None`: the coin has no fixed dollar price, so the amount
    /// is not compared.
    pub least: Option<u128>,
    /// The amount as it is written in the mail.
    pub amount: Option<String>,
    /// The mail's Date, or the time that replaces it in [`Claim::sent_at`].
    pub sent_at: Timestamp,
    /// The same time as [`Claim::registered_at`].
    pub registered_at: Option<Timestamp>,
    /// The time since which the event has waited for the chain.
    pub waits_since: Timestamp,
}

impl<'a> Question<'a> {
    /// Parses the values of a claim, and finds its chain in `chains` and its coin on that chain.
    ///
    /// # Errors
    /// The reason why nodes cannot check the claim: `no-node`, `no-token` or `no-hash`.
    pub fn new(claim: &Claim, chains: &'a [Chain]) -> Result<Self, ConfirmationReason> {
        let name = claim.blockchain.as_deref().unwrap_or_default();
        let chain = chains.iter().find(|chain| fold_chain(&chain.name) == fold_chain(name));
        let chain = chain.ok_or_else(|| {
            unproven(ConfirmationCode::NoNode, format!("no [[chain]] is configured for {}", quoted(name)))
        })?;
        let token = claim.token.as_deref().unwrap_or_default();
        let coin = chain.coin(token).ok_or_else(|| {
            let message =
                format!("the token {} is not known on {}; add it to [chain.tokens]", quoted(token), chain.name);
            unproven(ConfirmationCode::NoToken, message)
        })?;
        let hash = value(claim.transaction_hash.as_deref(), "transaction hash", str::parse)?;
        let payer = value(claim.from_wallet_address.as_deref(), "payer's wallet", Address::parse)?;
        let least = least(claim, chain, &coin)?;
        let Claim { amount, sent_at, registered_at, waits_since, .. } = claim.clone();
        Ok(Question { chain, coin, hash, payer, least, amount, sent_at, registered_at, waits_since })
    }
}

fn unproven(code: ConfirmationCode, message: String) -> ConfirmationReason {
    ConfirmationReason::new(code, message)
}

fn quoted(value: &str) -> String {
    format!("{:?}", printable(value, KEPT_VALUE))
}

fn value<T>(
    text: Option<&str>,
    kind: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ConfirmationReason> {
    let fail = |message| unproven(ConfirmationCode::NoHash, message);
    let text = text.ok_or_else(|| fail(format!("the mail has no {kind}")))?;
    parse(text).map_err(|e| fail(format!("the {kind} {} cannot be looked up: {e}", quoted(text))))
}

/// Calculates [`Question::least`]. An amount in dollars is compared only if one unit of the coin is worth one dollar. An amount
/// in units of the coin is always compared.
fn least(claim: &Claim, chain: &Chain, coin: &Coin) -> Result<Option<u128>, ConfirmationReason> {
    let fail = |message| unproven(ConfirmationCode::NoToken, message);
    match claim.currency.as_deref().filter(|currency| !currency.eq_ignore_ascii_case("USD")) {
        None if !coin.dollar => return Ok(None),
        Some(currency) if !same_token(currency, &coin.symbol) => {
            let message = format!("the amount is in {}, the payment in {}", quoted(currency), coin.symbol);
            return Err(fail(message));
        }
        _ => {}
    }
    let amount = claim.amount.as_deref().ok_or_else(|| fail("the mail has no amount to compare".into()))?;
    let least = amount::least(amount, chain.discount, coin.decimals);
    least.map(Some).ok_or_else(|| fail(format!("the amount {} cannot be compared", quoted(amount))))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chain::ChainSettings;

    pub(in crate::chain) const PAYER: Address = Address([0xaa; 20]);
    pub(in crate::chain) const SHOP: Address = Address([0x55; 20]);
    pub(in crate::chain) const TX: Hash = Hash([0x11; 32]);

    pub(in crate::chain) fn chain(keys: &str) -> Chain {
        let text =
            format!("name = \"Polygon\"\nnodes = [{{ env = \"N\" }}]\nwallets = [\"0x{}\"]\n{keys}", "55".repeat(20));
        toml::from_str::<ChainSettings>(&text).unwrap().chain().unwrap()
    }

    pub(in crate::chain) fn claim(token: &str) -> Claim {
        Claim {
            blockchain: Some("POLYGON".into()),
            token: Some(token.into()),
            transaction_hash: Some(TX.to_string()),
            from_wallet_address: Some(PAYER.to_string()),
            amount: Some("20".into()),
            currency: Some("USD".into()),
            sent_at: "2025-03-05T03:36:00Z".parse().unwrap(),
            registered_at: None,
            waits_since: "2025-03-05T03:36:05Z".parse().unwrap(),
        }
    }

    fn reason(change: impl FnOnce(&mut Claim)) -> String {
        let mut claim = claim("USDC");
        change(&mut claim);
        Question::new(&claim, &[chain("")])
            .map(|q| format!("{:?}", q.least))
            .unwrap_or_else(|reason| reason.to_string())
    }

    #[test]
    fn an_uncheckable_claim_has_its_reason() {
        assert!(reason(|c| c.blockchain = Some("Solana".into())).starts_with("no-node: "));
        assert!(reason(|c| c.blockchain = None).starts_with("no-node: "));
        assert!(reason(|c| c.token = Some("x".repeat(5_000))).starts_with("no-token: the token \"xxx"));
        assert!(reason(|c| c.token = Some("x".repeat(5_000))).len() < 200);
        assert!(reason(|c| c.token = None).starts_with("no-token: "));
        assert_eq!(reason(|c| c.transaction_hash = None), "no-hash: the mail has no transaction hash");
        assert!(reason(|c| c.transaction_hash = Some("5x".into())).starts_with("no-hash: "));
        assert_eq!(reason(|c| c.from_wallet_address = None), "no-hash: the mail has no payer's wallet");
    }

    #[test]
    fn amounts_are_in_dollars_or_coins() {
        assert_eq!(reason(|_| ()), "Some(19999999)");
        assert_eq!(reason(|c| c.currency = None), "Some(19999999)");
        assert_eq!(reason(|c| c.currency = Some("USDC".into())), "Some(19999999)");
        assert_eq!(reason(|c| c.token = Some("MATIC".into())), "None");
        let in_coin = |c: &mut Claim| (c.token, c.currency) = (Some("MATIC".into()), Some("MATIC".into()));
        assert_eq!(reason(in_coin), format!("Some({})", 20 * 10_u128.pow(18) - 1));
        assert!(reason(|c| c.currency = Some("ETH".into())).starts_with("no-token: the amount is in \"ETH\""));
        assert!(reason(|c| c.amount = None).starts_with("no-token: "));
        assert!(reason(|c| c.amount = Some("9".repeat(50))).starts_with("no-token: "));
    }
}
