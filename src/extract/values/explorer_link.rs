//! Links to block explorers. A link to a block explorer confirms the chain and the transaction, but never the amount.

use super::identifiers::is_transaction_hash;

/// The hosts of explorers, with their chains.
const EXPLORERS: [(&str, &str); 20] = [
    ("etherscan.io", "Ethereum"),
    ("sepolia.etherscan.io", "Sepolia"),
    ("optimistic.etherscan.io", "Optimism"),
    ("polygonscan.com", "Polygon"),
    ("bscscan.com", "BNB-Chain"),
    ("basescan.org", "Base"),
    ("xdcscan.com", "XDC-Network"),
    ("xdcscan.io", "XDC-Network"),
    ("explorer.xinfin.network", "XDC-Network"),
    ("explorer.xdc.network", "XDC-Network"),
    ("starkscan.co", "Starknet"),
    ("voyager.online", "Starknet"),
    ("solscan.io", "Solana"),
    ("explorer.solana.com", "Solana"),
    ("solana.fm", "Solana"),
    ("optimism.blockscout.com", "Optimism"),
    ("eth.blockscout.com", "Ethereum"),
    ("base.blockscout.com", "Base"),
    ("polygon.blockscout.com", "Polygon"),
    ("eth-sepolia.blockscout.com", "Sepolia"),
];

/// Returns the chain and the transaction hash of a link to a known explorer. The hash keeps its spelling and is not checked.
pub(crate) fn parse_explorer_link(link: &str) -> Option<(&'static str, String)> {
    let rest = link.trim().strip_prefix("https://").or_else(|| link.trim().strip_prefix("http://"))?;
    let (host, path) = rest.split_once('/')?;
    let host = host.to_ascii_lowercase();
    let host = host.strip_prefix("www.").unwrap_or(&host);
    let (_, chain) = EXPLORERS.iter().find(|(known, _)| *known == host)?;
    Some((chain, segment_after_tx(path)?.to_owned()))
}

/// The transaction hash after `/tx/`, `/txs/` or `/transaction/` in a link to any host. `None` if the link has no such hash.
pub(crate) fn transaction_in_link(link: &str) -> Option<String> {
    let (_, path) = link.split_once("://")?;
    segment_after_tx(path).filter(|part| is_transaction_hash(part)).map(str::to_owned)
}

fn segment_after_tx(path: &str) -> Option<&str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    parts.find(|p| matches!(*p, "tx" | "txs" | "transaction"))?;
    parts.next()
}

/// The hexadecimal numbers with this many digits in a link, also inside the escaped target of a redirect.
pub(crate) fn hex_numbers_in_link(link: &str, digits: usize) -> Vec<String> {
    let starts = link.match_indices("0x").map(|(at, mark)| link.get(at + mark.len()..).unwrap_or_default());
    let numbers = starts.map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    });
    numbers.filter(|number| number.len() == digits).map(|number| format!("0x{number}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_explorers_give_a_transaction() {
        assert_eq!(parse_explorer_link("https://sepolia.etherscan.io/tx/0xab?x"), Some(("Sepolia", "0xab".into())));
        assert_eq!(parse_explorer_link("https://www.bscscan.com/tx/0xab"), Some(("BNB-Chain", "0xab".into())));
        assert_eq!(parse_explorer_link("https://etherscan.io.evil.example/tx/0xab"), None);
        assert_eq!(parse_explorer_link("https://etherscan.io/address/0xab"), None);
        assert_eq!(parse_explorer_link("javascript:alert(1)"), None);
    }
}
