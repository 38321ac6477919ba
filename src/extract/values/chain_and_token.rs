//! Parses the names of chains and tokens.

use crate::model;

/// The symbols of the tokens that Resmic supports. Other tokens are accepted, too.
const TOKEN_SYMBOLS: [&str; 21] = [
    "ETH", "SETH", "WETH", "BNB", "TBNB", "MATIC", "XDC", "OP", "DAI", "USDT", "USDC", "BUSD", "USDe", "BTC", "WBTC",
    "DOGE", "PUSH", "STARK", "SOL", "NIBI", "TRUMP",
];

/// Whether this is the symbol of a token that Resmic supports, or the name that Resmic's backend writes for a token.
pub(crate) fn is_known_token(name: &str) -> bool {
    TOKEN_SYMBOLS.contains(&name) || model::is_token_name(name)
}

/// Parses a chain's name, and returns the webhook's spelling.
pub(crate) fn parse_blockchain(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '.' | '_'));
    // A token's symbol is refused as the name of a chain. The longer token names of Resmic's backend are not refused, because
    // some of these names are also names of chains: `ethereum`, `nibiru`.
    if TOKEN_SYMBOLS.contains(&text) {
        return Err(format!("{text:?} is a token's symbol, not a chain's name"));
    }
    if fits && text.len() <= 40 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(model::spell_chain(text))
    } else {
        Err(format!("{text:?} is not a chain's name"))
    }
}

/// Parses a token's name, and keeps its spelling.
pub(crate) fn parse_token(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+'));
    if !is_known_token(text) && model::KNOWN_CHAINS.contains(&model::spell_chain(text).as_str()) {
        return Err(format!("{text:?} is a chain's name, not a token's symbol"));
    }
    let is_short = text.len() <= 20 || model::is_token_name(text);
    if fits && is_short && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a token's symbol"))
    }
}

/// The family of a chain, which determines the form of transaction hashes and wallet addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainFamily {
    Evm,
    Starknet,
    Solana,
    Unknown,
}

/// Returns the family of the chain with the name `chain`, in the webhook's spelling.
pub(crate) fn chain_family(chain: Option<&str>) -> ChainFamily {
    match chain {
        Some("Starknet") => ChainFamily::Starknet,
        Some("Solana") => ChainFamily::Solana,
        Some(chain) if model::KNOWN_CHAINS.contains(&chain) => ChainFamily::Evm,
        _ => ChainFamily::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_are_not_tokens() {
        assert!(parse_blockchain("ETH").is_err() && parse_blockchain("Avalanche").is_ok());
        assert!(parse_token("Ethereum").is_err() && parse_token("usdc").is_ok() && parse_token("BNB").is_ok());
        for name in ["Polygon", "SEPOLIA", "Solana", "STARKNET", "bnb-chain", "xdc network", "base"] {
            assert!(parse_token(name).is_err(), "{name}");
        }
        for name in ["ethereum", "solana", "Bitcoin", "xdce-crowd-sale", "ethereum-push-notification-service"] {
            assert_eq!(parse_token(name).as_deref(), Ok(name));
        }
        assert_eq!(parse_blockchain("ethereum").as_deref(), Ok("Ethereum"));
        assert_eq!(parse_blockchain("nibiru").as_deref(), Ok("nibiru"));
    }
}
