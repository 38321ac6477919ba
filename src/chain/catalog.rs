//! The chains and tokens that the program knows without configuration.
//!
//! The contracts and decimals are from Resmic's published payment page, and were compared with a public token list. If the page
//! and the list disagree about the decimals of a token, this file has the true decimals. A merchant can configure other tokens.

use std::time::Duration;

/// A chain that the program knows without configuration.
#[derive(Debug)]
pub(super) struct BuiltIn {
    /// Resmic's name for the chain.
    pub(super) name: &'static str,
    /// The chain id of EIP-155.
    pub(super) id: u64,
    pub(super) block_time: Duration,
    /// The names of the native coin, which has 18 decimals on every chain.
    pub(super) native: &'static [&'static str],
    /// The tokens: the symbol, the contract and the decimals of each token.
    pub(super) tokens: &'static [(&'static str, &'static str, u8)],
}

/// The symbols of stablecoins. One unit of a stablecoin is worth one dollar by design, so an amount of a stablecoin can be
/// compared with an amount in dollars in a mail.
const DOLLARS: [&str; 5] = ["USDT", "USDC", "DAI", "BUSD", "USDe"];

/// Chains of Resmic whose nodes do not have Ethereum's JSON-RPC API.
pub(super) const NOT_EVM: [&str; 2] = ["Solana", "Starknet"];

/// Whether one unit of the token `symbol` is worth one dollar by design.
pub(super) fn is_dollar(symbol: &str) -> bool {
    DOLLARS.iter().any(|dollar| dollar.eq_ignore_ascii_case(symbol))
}

pub(super) const BUILT_IN: [BuiltIn; 7] = [
    BuiltIn {
        name: "Ethereum",
        id: 1,
        block_time: Duration::from_secs(12),
        native: &["ETH"],
        tokens: &[
            ("USDT", "0xdAC17F958D2ee523a2206206994597C13D831ec7", 6),
            ("USDC", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", 6),
            ("DAI", "0x6b175474e89094c44da98b954eedeac495271d0f", 18),
            ("BUSD", "0x4fabb145d64652a948d72533023f6e7a623c7c53", 18),
            ("WBTC", "0x2260FAC5E5542a773Aa44fBCfeDf7C193bc2C599", 8),
            ("MATIC", "0x7D1AfA7B718fb893dB30A3aBc0Cfc608AaCfeBB0", 18),
        ],
    },
    BuiltIn {
        name: "Polygon",
        id: 137,
        block_time: Duration::from_secs(2),
        native: &["MATIC"],
        tokens: &[
            ("USDT", "0xc2132D05D31c914a87C6611C10748AEb04B58e8F", 6),
            // The contract of USDC.e, which is USDC from a bridge.
            ("USDC", "0x2791Bca1f2de4661ED88A30C99A7a9449Aa84174", 6),
            ("DAI", "0x8f3Cf7ad23Cd3CaDbD9735AFf958023239c6A063", 18),
            ("WBTC", "0x1BFD67037B42Cf73acF2047067bd4F2C47D9BfD6", 8),
            ("ETH", "0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619", 18),
        ],
    },
    BuiltIn {
        name: "BNB-Chain",
        id: 56,
        block_time: Duration::from_millis(750),
        native: &["BNB"],
        tokens: &[
            ("USDT", "0x55d398326f99059fF775485246999027B3197955", 18),
            ("USDC", "0x8ac76a51cc950d9822d68b83fe1ad97b32cd580d", 18),
            ("BUSD", "0xe9e7cea3dedca5984780bafc599bd69add087d56", 18),
            ("DAI", "0x1af3f329e8be154074d8769d1ffa4ee058b1dbc3", 18),
            ("MATIC", "0xCC42724C6683B7E57334c4E856f4c9965ED682bD", 18),
            ("ETH", "0x2170Ed0880ac9A755fd29B2688956BD959F933F8", 18),
        ],
    },
    BuiltIn {
        name: "Optimism",
        id: 10,
        block_time: Duration::from_secs(2),
        native: &["ETH"],
        tokens: &[
            ("USDT", "0x94b008aA00579c1307B0EF2c499aD98a8ce58e58", 6),
            // The contract of USDC.e, which is USDC from a bridge.
            ("USDC", "0x7F5c764cBc14f9669B88837ca1490cCa17c31607", 6),
            ("WBTC", "0x68f180fcCe6836688e9084f035309E29Bf0A2095", 8),
            ("DAI", "0xDA10009cBd5D07dd0CeCc66161FC93D7c9000da1", 18),
            ("OP", "0x4200000000000000000000000000000000000042", 18),
        ],
    },
    BuiltIn {
        name: "Base",
        id: 8453,
        block_time: Duration::from_secs(2),
        native: &["ETH"],
        tokens: &[
            ("USDC", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", 6),
            ("DAI", "0x50c5725949A6F0c72E6C4a641F24049A917DB0Cb", 18),
        ],
    },
    BuiltIn { name: "Sepolia", id: 11_155_111, block_time: Duration::from_secs(12), native: &["SETH"], tokens: &[] },
    BuiltIn { name: "XDC-Network", id: 50, block_time: Duration::from_secs(2), native: &["XDC"], tokens: &[] },
];

#[cfg(test)]
mod tests {
    use super::super::Address;
    use super::*;
    use crate::model::KNOWN_CHAINS;

    #[test]
    fn built_in_contracts_are_valid_addresses() {
        for chain in &BUILT_IN {
            for (symbol, contract, decimals) in chain.tokens {
                let address = Address::parse(contract).unwrap_or_else(|e| panic!("{} {symbol}: {e}", chain.name));
                assert_ne!(address, Address::ZERO);
                assert!([6, 8, 18].contains(decimals));
            }
        }
    }

    #[test]
    fn known_chains_are_built_in_or_not_evm() {
        for name in KNOWN_CHAINS {
            let built_in = BUILT_IN.iter().any(|chain| chain.name == name);
            assert!(built_in != NOT_EVM.contains(&name), "{name}");
        }
    }

    #[test]
    fn dollar_tokens_are_known_in_any_case() {
        assert!(is_dollar("USDe") && is_dollar("usdc") && !is_dollar("ETH"));
    }
}
