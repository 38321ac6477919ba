//! A chain: its built-in values, combined with its configuration.

use std::time::Duration;

use super::amount::{Discount, MOST_DECIMALS};
use super::catalog::{BUILT_IN, BuiltIn, NOT_EVM, is_dollar};
use super::hex::Address;
use super::settings::{ChainSettings, Finality, MOST_BLOCKS, Problem, wrong};
use crate::model::{fold_chain, same_token};

/// The decimals of every native coin.
const NATIVE_DECIMALS: u8 = 18;
/// The assumed block time of a chain that is not built in.
const ASSUMED_BLOCK_TIME: Duration = Duration::from_secs(12);

/// A coin of a chain: the native coin, or a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coin {
    /// The coin's symbol in the configuration or in the catalog of built-in chains.
    pub symbol: String,
    /// The token's contract. `None`: the chain's native coin.
    pub contract: Option<Address>,
    /// How many decimals the coin's amounts have.
    pub decimals: u8,
    /// Whether one unit of the coin is worth one dollar by design.
    pub dollar: bool,
}

/// A chain: its built-in values, combined with its `[[chain]]` table. [`Chain`] contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name: Resmic's spelling for a built-in chain, otherwise the configured name.
    pub name: String,
    /// The chain id of EIP-155.
    pub id: u64,
    /// The time between two blocks. The first pause between two looks at an event has this length, but at least two seconds.
    pub block_time: Duration,
    /// The native coin's names; the first is its symbol.
    pub native: Vec<String>,
    /// The tokens: first the configured tokens, then the built-in tokens.
    pub tokens: Vec<Coin>,
    /// The merchant's wallets.
    pub wallets: Vec<Address>,
    /// The number of nodes, all of which must agree.
    pub nodes: usize,
    /// The rule for when a block is final.
    pub finality: Finality,
    /// The largest discount that the merchant gives with a coupon.
    pub discount: Discount,
    /// How much older than the Date of its mail a transaction may be.
    pub window: Duration,
    /// How long an event is held after its mail was stored and the money arrived, so that a contradicting mail can arrive.
    pub settle: Duration,
    /// Whether the nodes answer `debug_traceTransaction`.
    pub trace: bool,
    /// The most blocks for one call of `eth_getLogs`.
    pub log_range: u64,
    /// How long an event waits for the chain. After this time, the event needs review.
    pub give_up_after: Duration,
}

impl Chain {
    /// The coin that a mail calls `name`. First, `name` is compared with the symbols of the tokens, then with all names of the
    /// native coin, then with the other names of the tokens.
    #[must_use]
    pub fn coin(&self, name: &str) -> Option<Coin> {
        let by_symbol = self.tokens.iter().find(|token| token.symbol.eq_ignore_ascii_case(name));
        let native = || {
            let symbol = self.native.first()?;
            let is_named = self.native.iter().any(|native| same_token(native, name));
            is_named.then(|| Coin { symbol: symbol.clone(), contract: None, decimals: NATIVE_DECIMALS, dollar: false })
        };
        let by_other_name = || self.tokens.iter().find(|token| same_token(&token.symbol, name)).cloned();
        by_symbol.cloned().or_else(native).or_else(by_other_name)
    }

    /// Whether an address is one of the merchant's wallets.
    #[must_use]
    pub fn is_ours(&self, address: Address) -> bool {
        self.wallets.contains(&address)
    }
}

impl ChainSettings {
    /// Combines this configuration with the built-in values of the chain.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn chain(&self) -> Result<Chain, Problem> {
        self.check_nodes_and_wallets()?;
        self.check_numbers()?;
        let built_in = self.built_in()?;
        let (id, native) = self.id_and_native(built_in)?;
        Ok(Chain {
            name: built_in.map_or_else(|| self.name.clone(), |chain| chain.name.to_owned()),
            id,
            block_time: built_in.map_or(ASSUMED_BLOCK_TIME, |chain| chain.block_time),
            native,
            tokens: self.tokens(built_in)?,
            wallets: self.wallets.clone(),
            nodes: self.nodes.len(),
            finality: self.finality,
            discount: self.discount,
            window: self.window.0,
            settle: self.settle.0,
            trace: self.trace,
            log_range: self.log_range,
            give_up_after: self.give_up_after.0,
        })
    }

    fn check_nodes_and_wallets(&self) -> Result<(), Problem> {
        if self.nodes.is_empty() {
            return wrong("nodes", "expected at least one node");
        }
        if self.wallets.is_empty() {
            return wrong("wallets", "expected at least one wallet: where the money of this chain arrives");
        }
        for (n, wallet) in self.wallets.iter().enumerate() {
            if *wallet == Address::ZERO {
                return wrong(format!("wallets[{n}]"), "the zero address is no wallet");
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), Problem> {
        if self.window.0.is_zero() {
            return wrong("window", "expected more than nothing, for example \"2h\"");
        }
        if self.give_up_after.0.is_zero() {
            return wrong("give_up_after", "expected more than nothing, for example \"1d\"");
        }
        if !(1..=MOST_BLOCKS).contains(&self.log_range) {
            return wrong("log_range", format!("expected a number of blocks from 1 to {MOST_BLOCKS}"));
        }
        Ok(())
    }

    fn built_in(&self) -> Result<Option<&'static BuiltIn>, Problem> {
        let name = fold_chain(&self.name);
        if name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return wrong("name", "expected the chain's name as Resmic writes it, for example \"Polygon\"");
        }
        if NOT_EVM.iter().any(|other| fold_chain(other) == name) {
            return wrong("name", format!("{} is no EVM chain; its payments cannot be looked up", self.name));
        }
        Ok(BUILT_IN.iter().find(|chain| fold_chain(chain.name) == name))
    }

    fn id_and_native(&self, built_in: Option<&BuiltIn>) -> Result<(u64, Vec<String>), Problem> {
        for (n, name) in self.native.iter().enumerate() {
            check_symbol(&format!("native[{n}]"), name)?;
        }
        let Some(chain) = built_in else {
            return match self.id {
                Some(id) if id > 0 => Ok((id, self.native.clone())),
                Some(_) => wrong("id", "expected a chain id, which is at least 1"),
                None => wrong("id", format!("{} is not built in: expected its chain id (EIP-155)", self.name)),
            };
        };
        if self.id.is_some_and(|id| id != chain.id) {
            return wrong("id", format!("the id of {} is {}; it is built in", chain.name, chain.id));
        }
        let native = chain.native.iter().map(|name| (*name).to_owned()).chain(self.native.iter().cloned());
        Ok((chain.id, native.collect()))
    }

    fn tokens(&self, built_in: Option<&BuiltIn>) -> Result<Vec<Coin>, Problem> {
        let mut tokens: Vec<Coin> = Vec::new();
        for (symbol, token) in &self.tokens {
            let key = format!("tokens.{symbol}");
            check_symbol(&key, symbol)?;
            if token.decimals > MOST_DECIMALS {
                return wrong(format!("{key}.decimals"), format!("expected 0 to {MOST_DECIMALS}"));
            }
            if token.contract == Address::ZERO || self.wallets.contains(&token.contract) {
                return wrong(format!("{key}.contract"), "expected the token's contract, which is no wallet");
            }
            if tokens.iter().any(|other| other.symbol.eq_ignore_ascii_case(symbol)) {
                return wrong(key, "another token has this symbol in another case; symbols must differ");
            }
            tokens.push(Coin {
                symbol: symbol.clone(),
                contract: Some(token.contract),
                decimals: token.decimals,
                dollar: token.dollar.unwrap_or_else(|| is_dollar(symbol)),
            });
        }
        for (symbol, contract, decimals) in built_in.map_or(&[] as &[_], |chain| chain.tokens) {
            let is_configured = tokens.iter().any(|token| token.symbol.eq_ignore_ascii_case(symbol));
            if let (false, Ok(contract)) = (is_configured, Address::parse(contract)) {
                tokens.push(Coin {
                    symbol: (*symbol).to_owned(),
                    contract: Some(contract),
                    decimals: *decimals,
                    dollar: is_dollar(symbol),
                });
            }
        }
        Ok(tokens)
    }
}

fn check_symbol(key: &str, symbol: &str) -> Result<(), Problem> {
    if symbol.is_empty() || symbol.len() > 64 || !symbol.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong(key, "expected 1 to 64 visible ASCII characters");
    }
    Ok(())
}
