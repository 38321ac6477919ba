//! `[[chain]]`: the configuration of one chain on which the merchant is paid.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use serde::{Deserialize, Deserializer, de};
use tokio_rustls::rustls::ClientConfig;

use super::amount::Discount;
use super::configured::Chain;
use super::hex::Address;
use super::rpc::Node;
use crate::model::fold_chain;
use crate::secret;
use crate::telemetry::NodeRequests;
use crate::units::HumanDuration;

/// The most blocks in which one look searches for logs.
pub(super) const MOST_BLOCKS: u64 = 500;

/// One `[[chain]]` table. Deserialization checks the form of each value; [`ChainSettings::check`] checks the other rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [[chain]]")]
pub struct ChainSettings {
    /// The chain's name in Resmic's mails.
    pub name: String,
    /// The sources of the nodes' URLs, which are secrets. All nodes must report the same arrival.
    pub nodes: Vec<NodeSource>,
    /// The merchant's wallets.
    #[serde(deserialize_with = "wallets")]
    pub wallets: Vec<Address>,
    /// The rule for when a block is final.
    #[serde(default, rename = "final")]
    pub finality: Finality,
    /// The largest discount that the merchant gives with a coupon.
    #[serde(default)]
    pub discount: Discount,
    /// How much older than the Date of its mail a transaction may be.
    #[serde(default = "default_window")]
    pub window: HumanDuration,
    /// How long an event is held after its mail was stored and the money arrived, so that a contradicting mail can arrive.
    #[serde(default = "default_settle")]
    pub settle: HumanDuration,
    /// Whether the nodes answer `debug_traceTransaction`.
    #[serde(default)]
    pub trace: bool,
    /// The most blocks for one call of `eth_getLogs`. After an error that a smaller range may prevent, the next calls use half as
    /// many blocks.
    #[serde(default = "default_log_range")]
    pub log_range: u64,
    /// How long an event waits for the chain. After this time, the event needs review.
    #[serde(default = "default_give_up_after")]
    pub give_up_after: HumanDuration,
    /// The chain's id (EIP-155). A chain that is not built in needs this key.
    pub id: Option<u64>,
    /// The names of the native coin, in addition to the built-in names of a built-in chain.
    #[serde(default)]
    pub native: Vec<String>,
    /// Tokens by symbol, in addition to the built-in tokens. A token replaces a built-in token with the same symbol.
    #[serde(default)]
    pub tokens: BTreeMap<String, TokenSettings>,
}

/// One token of `[chain.tokens]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: { contract = \"0x…\", decimals = 6 }")]
pub struct TokenSettings {
    /// The token's contract on this chain.
    #[serde(deserialize_with = "written_address")]
    pub contract: Address,
    /// How many decimals the token's amounts have.
    pub decimals: u8,
    /// Whether one unit of the token is worth one dollar by design. By default, this is true for the symbols of known
    /// stablecoins.
    pub dollar: Option<bool>,
}

/// The source of a node's URL. The URL is a secret, because the URLs of providers contain a key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    // This text replaces serde's error, which would quote a URL that a person wrote into the configuration by mistake.
    expecting = "expected { credential = \"name\" }, { file = \"path\" }, { env = \"NAME\" } or { command = [\"program\"] }; \
                 a node's URL is a secret, so the configuration itself must not contain it"
)]
pub enum NodeSource {
    /// The source of the URL, in the syntax of all secrets in the configuration.
    Secret(secret::SecretSource),
}

impl NodeSource {
    /// The source of the secret URL.
    #[must_use]
    pub fn source(&self) -> &secret::SecretSource {
        let NodeSource::Secret(source) = self;
        source
    }

    /// Resolves a relative path against the folder `base`.
    pub fn resolve(&mut self, base: &Path) {
        let NodeSource::Secret(source) = self;
        source.resolve_path(base);
    }
}

/// The rule that decides when a block is final.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Finality {
    /// A block is final when it is not newer than the block that the node tags as `finalized`.
    #[default]
    Finalized,
    /// A block is final when it is not newer than the block that the node tags as `safe`.
    Safe,
    /// A block is final when this number of blocks exists, counted from the block itself. With 1, the newest block is final.
    Depth(u64),
}

impl<'de> Deserialize<'de> for Finality {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"finalized\", \"safe\" or a number of blocks from 1 to 100000")]
        enum FinalityValue {
            Tag(Tag),
            #[serde(deserialize_with = "depth")]
            Depth(u64),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Tag {
            Finalized,
            Safe,
        }
        Ok(match FinalityValue::deserialize(from)? {
            FinalityValue::Tag(Tag::Finalized) => Finality::Finalized,
            FinalityValue::Tag(Tag::Safe) => Finality::Safe,
            FinalityValue::Depth(blocks) => Finality::Depth(blocks),
        })
    }
}

impl std::fmt::Display for Finality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finality::Finalized => f.write_str("finalized"),
            Finality::Safe => f.write_str("safe"),
            Finality::Depth(blocks) => blocks.fmt(f),
        }
    }
}

fn depth<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let blocks = u64::deserialize(from)?;
    if (1..=100_000).contains(&blocks) { Ok(blocks) } else { Err(de::Error::custom("out of range")) }
}

fn written_address<'de, D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
    Address::parse(&String::deserialize(from)?).map_err(de::Error::custom)
}

fn wallets<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Address>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| Address::parse(text).map_err(de::Error::custom)).collect()
}

fn default_window() -> HumanDuration {
    HumanDuration(StdDuration::from_secs(2 * 3600))
}

fn default_settle() -> HumanDuration {
    HumanDuration(StdDuration::from_secs(120))
}

fn default_log_range() -> u64 {
    10
}

fn default_give_up_after() -> HumanDuration {
    HumanDuration(StdDuration::from_secs(86_400))
}

/// The configuration key with the wrong value, and the problem.
pub(super) type Problem = (String, String);

pub(super) fn wrong<T>(key: impl Into<String>, message: impl Into<String>) -> Result<T, Problem> {
    Err((key.into(), message.into()))
}

impl ChainSettings {
    /// Checks the rules that deserialization does not check.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), Problem> {
        self.chain().map(drop)
    }

    /// Checks rules that concern several chains.
    ///
    /// # Errors
    /// The configuration key with the wrong value, such as `chain[1].name`, and the problem.
    pub fn check_all(all: &[ChainSettings]) -> Result<(), Problem> {
        let mut known: Vec<Chain> = Vec::new();
        for (n, settings) in all.iter().enumerate() {
            let chain = settings.chain().map_err(|(key, message)| (format!("chain[{n}].{key}"), message))?;
            if known.iter().any(|other| fold_chain(&other.name) == fold_chain(&chain.name)) {
                return wrong(format!("chain[{n}].name"), "another [[chain]] has this name; names must differ");
            }
            if known.iter().any(|other| other.id == chain.id) {
                return wrong(format!("chain[{n}].id"), "another [[chain]] has this id; ids must differ");
            }
            known.push(chain);
        }
        Ok(())
    }

    /// Reads the URLs of the nodes, which are secrets, and creates a client for each node. `tls` is for https URLs. The clients
    /// count their calls in `requests`.
    ///
    /// # Errors
    /// The configuration key with the wrong value, such as `nodes[0]`, and the problem. Neither contains the URL.
    pub async fn open_nodes(
        &self,
        tls: Option<&Arc<ClientConfig>>,
        requests: &NodeRequests,
    ) -> Result<Vec<Node>, Problem> {
        let mut nodes: Vec<Node> = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let key = || format!("nodes[{n}]");
            let url = node.source().load().await.map_err(|missing| (key(), missing.to_string()))?;
            let node = Node::new(&url, tls.cloned()).map_err(|message| (key(), message))?;
            // The answers of one node always agree with each other.
            if nodes.iter().any(|other| other.has_url_of(&node)) {
                return wrong(key(), "this is the URL of another node in this list; expected independent nodes");
            }
            nodes.push(node.counted_in(requests, &self.name));
        }
        Ok(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "\nnodes = [{ env = \"N\" }]\nwallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]\n";

    fn parse_chain(text: &str) -> Result<Chain, String> {
        let settings: ChainSettings = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        settings.chain().map_err(|(key, message)| format!("{key}: {message}"))
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let chain = parse_chain(&format!("name = \"POLYGON\"{REST}")).unwrap();
        assert_eq!((chain.name.as_str(), chain.id, chain.nodes), ("Polygon", 137, 1));
        assert_eq!((chain.finality, chain.discount), (Finality::Finalized, Discount::default()));
        assert_eq!((chain.window.as_secs(), chain.settle.as_secs()), (7200, 120));
        assert_eq!((chain.trace, chain.log_range, chain.give_up_after.as_secs()), (false, 10, 86_400));
    }

    #[test]
    fn every_key_is_read() {
        let chain = parse_chain(
            "name = \"Polygon\"\nnodes = [{ credential = \"a\" }, { command = [\"pass\", \"b\"] }]\n\
             wallets = [\"0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed\"]\nfinal = 20\ndiscount = \"10%\"\nwindow = \"1h\"\n\
             settle = \"0s\"\ntrace = true\nlog_range = 500\ngive_up_after = \"2d\"\nid = 137\nnative = [\"POL\"]\n\
             [tokens]\nUSDC = { contract = \"0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359\", decimals = 6, dollar = true }\n\
             SHOP = { contract = \"0x3c499c542cef5e3811e1192ce70d8cc03d5c3360\", decimals = 0 }",
        )
        .unwrap();
        assert_eq!((chain.finality, chain.nodes, chain.trace), (Finality::Depth(20), 2, true));
        let usdc = chain.coin("usdc").unwrap();
        assert!(
            usdc.dollar && usdc.contract == Some(Address::parse("0x3c499c542cef5e3811e1192ce70d8cc03d5c3359").unwrap())
        );
        assert!(!chain.coin("SHOP").unwrap().dollar);
        assert_eq!(chain.tokens.iter().filter(|token| token.symbol == "USDC").count(), 1);
        assert_eq!(chain.coin("POL").unwrap().symbol, "MATIC");
        assert!(chain.coin("DAI").unwrap().dollar, "a built-in token stays beside the configured ones");
        assert_eq!(chain.coin("PEPE"), None);
    }

    #[test]
    fn each_coin_is_known_under_all_its_names() {
        let coin = |chain: &str, name: &str| parse_chain(&format!("name = \"{chain}\"{REST}")).unwrap().coin(name);
        for (chain, name, symbol, is_native) in [
            ("Ethereum", "ethereum", "ETH", true),
            ("Ethereum", "WETH", "ETH", true),
            ("Ethereum", "matic-network", "MATIC", false),
            ("Ethereum", "Bitcoin", "WBTC", false),
            ("Ethereum", "BUSDT", "BUSD", false),
            ("Polygon", "matic-network", "MATIC", true),
            ("Polygon", "ethereum", "ETH", false),
            ("BNB-Chain", "TBNB", "BNB", true),
            ("Sepolia", "ETH", "SETH", true),
            ("XDC-Network", "xdce-crowd-sale", "XDC", true),
        ] {
            let found = coin(chain, name).unwrap_or_else(|| panic!("{chain} {name}"));
            assert_eq!((found.symbol.as_str(), found.contract.is_none()), (symbol, is_native), "{chain} {name}");
        }
    }

    #[test]
    fn an_unknown_chain_needs_its_id() {
        let chain =
            parse_chain(&format!("name = \"Gnosis\"\nid = 100\nnative = [\"XDAI\", \"xdai\"]\nfinal = \"safe\"{REST}"))
                .unwrap();
        assert_eq!((chain.id, chain.finality, chain.coin("xdai").unwrap().decimals), (100, Finality::Safe, 18));
        assert!(
            parse_chain(&format!("name = \"Gnosis\"{REST}")).unwrap_err().starts_with("id: Gnosis is not built in")
        );
    }

    #[test]
    fn a_wrong_key_is_named() {
        let wallet = "\nnodes = [{ env = \"N\" }]\n";
        for (table, expected) in [
            (format!("name = \"Solana\"{REST}"), "name: Solana is no EVM chain"),
            (format!("name = \"\"{REST}"), "name: "),
            (format!("name = \"Polygon\"\nid = 1{REST}"), "id: the id of Polygon is 137"),
            (format!("name = \"Polygon\"\ncolour = 1{REST}"), "colour"),
            (format!("name = \"Polygon\"\nfinal = 0{REST}"), "number of blocks"),
            (format!("name = \"Polygon\"\nfinal = \"latest\"{REST}"), "\"finalized\", \"safe\""),
            (format!("name = \"Polygon\"\ndiscount = \"100%\"{REST}"), "percentage"),
            (format!("name = \"Polygon\"\ndiscount = 0.1{REST}"), "a percentage in quotes"),
            (format!("name = \"Polygon\"\nwindow = \"0s\"{REST}"), "window: "),
            (format!("name = \"Polygon\"\nlog_range = 501{REST}"), "log_range: "),
            (format!("name = \"Polygon\"\nnative = [\"\"]{REST}"), "native[0]: "),
            (format!("name = \"Polygon\"{wallet}wallets = []"), "wallets: "),
            (
                format!("name = \"Polygon\"{wallet}wallets = [\"0x0000000000000000000000000000000000000000\"]"),
                "wallets[0]: ",
            ),
            (format!("name = \"Polygon\"{wallet}wallets = [\"0x5AaEb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]"), "EIP-55"),
            (format!("name = \"Polygon\"{wallet}wallets = [\"0x9238\"]"), "40 hexadecimal"),
            (
                "name = \"Polygon\"\nnodes = []\nwallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]".into(),
                "nodes: ",
            ),
            (
                format!(
                    "name = \"Polygon\"{REST}[tokens]\nX = {{ contract = \"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\", decimals = 6 }}"
                ),
                "tokens.X.contract",
            ),
            (
                format!(
                    "name = \"Polygon\"{REST}[tokens]\nX = {{ contract = \"0x3c499c542cef5e3811e1192ce70d8cc03d5c3359\", decimals = 31 }}"
                ),
                "tokens.X.decimals",
            ),
            (
                format!(
                    "name = \"Polygon\"{REST}[tokens]\nX = {{ contract = \"0x3c499c542cef5e3811e1192ce70d8cc03d5c3359\" }}"
                ),
                "decimals",
            ),
        ] {
            let message = parse_chain(&table).unwrap_err();
            assert!(message.contains(expected), "{table}: {message}");
        }
    }

    #[test]
    fn a_plain_url_is_refused_and_not_quoted() {
        let message =
            parse_chain("name = \"Polygon\"\nnodes = [\"https://node.example/v2/s3cret\"]\nwallets = []").unwrap_err();
        assert!(message.contains("a node's URL is a secret") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn chains_differ_in_name_and_id() {
        let settings = |name: &str, id: &str| toml::from_str(&format!("name = \"{name}\"{id}{REST}")).unwrap();
        let check = |all: &[ChainSettings]| ChainSettings::check_all(all);
        assert!(check(&[settings("Polygon", ""), settings("Base", "")]).is_ok());
        assert_eq!(check(&[settings("Polygon", ""), settings("polygon", "")]).unwrap_err().0, "chain[1].name");
        assert_eq!(check(&[settings("Polygon", ""), settings("Mine", "\nid = 137")]).unwrap_err().0, "chain[1].id");
    }

    #[tokio::test]
    async fn a_node_is_not_configured_twice() {
        let opened = async |second: &str| {
            let node = |url: &str| format!("{{ command = [\"echo\", \"{url}\"] }}");
            let nodes = format!("nodes = [{}, {}]", node("http://localhost:1/v2/s3cret"), node(second));
            let settings: ChainSettings =
                toml::from_str(&format!("name = \"Polygon\"{REST}").replace("nodes = [{ env = \"N\" }]", &nodes))
                    .unwrap();
            settings.open_nodes(None, &NodeRequests::default()).await.map(|nodes| nodes.len())
        };
        let (key, message) = opened("http://localhost:1/v2/s3cret").await.unwrap_err();
        assert!(key == "nodes[1]" && message.contains("independent") && !message.contains("s3cret"), "{message}");
        for other in ["http://localhost:2/v2/s3cret", "http://localhost:1/v2/other"] {
            assert_eq!(opened(other).await.unwrap(), 2, "{other}");
        }
    }

    #[tokio::test]
    async fn the_url_of_a_node_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let mut settings: ChainSettings =
            toml::from_str("name = \"Polygon\"\nnodes = [{ file = \"url\" }]\nwallets = [\"0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed\"]")
                .unwrap();
        settings.nodes[0].resolve(folder.path());
        std::fs::write(&path, "http://127.0.0.1:1/v2/s3cret\n").unwrap();
        let nodes = settings.open_nodes(None, &NodeRequests::default()).await.unwrap();
        assert_eq!(nodes[0].host(), "127.0.0.1");
        assert!(!format!("{nodes:?} {settings:?}").contains("s3cret"));
        for bad in ["http://node.example/v2/s3cret", "s3cret", "https://s3cret@node.example/", "ws://127.0.0.1/s3cret"]
        {
            std::fs::write(&path, bad).unwrap();
            let (key, message) = settings.open_nodes(None, &NodeRequests::default()).await.unwrap_err();
            assert!(key == "nodes[0]" && !message.contains("s3cret"), "{key}: {message}");
        }
    }
}
