//! Confirmation of payments by a real EVM node and by misbehaving nodes.

mod attacks;
mod honest;
mod misbehaving;
mod nodes;

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use resmic_mailhook::chain::{
    Chain, ChainSettings, Claim, Confirmation, ConfirmationState, Hash, Node, Observation, Question, judge,
    look_at_node,
};
use secrecy::SecretString;
use testkit::anvil::{Anvil, calldata};

/// The amount in the mail, in units of a token with six decimals.
const UNITS: u128 = 20_000_000;

/// A node with a token, a factory of temporary wallets, and accounts for a merchant, a payer and a stranger.
struct ChainSetup {
    anvil: Anvil,
    token: String,
    wallets: String,
}

impl ChainSetup {
    fn new() -> ChainSetup {
        ChainSetup::with(Anvil::start(), "6")
    }

    fn with(anvil: Anvil, decimals: &str) -> ChainSetup {
        let (token, wallets) = (anvil.deploy("Token", &[decimals]), anvil.deploy("Wallets", &[]));
        let setup = ChainSetup { anvil, token, wallets };
        for account in [setup.payer(), setup.stranger()] {
            setup.send(account, &setup.token, "mint(address,uint256)", &[account, "1000000000000000000000000"]);
        }
        setup
    }

    fn shop(&self) -> &str {
        &self.anvil.accounts[0]
    }

    fn payer(&self) -> &str {
        &self.anvil.accounts[1]
    }

    fn stranger(&self) -> &str {
        &self.anvil.accounts[2]
    }

    /// Calls a function of a contract and returns the transaction hash.
    fn send(&self, from: &str, to: &str, signature: &str, arguments: &[&str]) -> String {
        self.anvil.send(from, Some(to), 0, &calldata(signature, arguments))
    }

    /// Pays in the token and returns the transaction hash.
    fn pay(&self, from: &str, to: &str, units: u128) -> String {
        self.send(from, &self.token, "transfer(address,uint256)", &[to, &units.to_string()])
    }

    /// Pays in the native coin and returns the transaction hash.
    fn pay_native(&self, from: &str, to: &str, units: u128) -> String {
        self.anvil.send(from, Some(to), units, "0x")
    }

    /// Deploys the temporary wallet of `salt`, which pays out to `client`.
    fn create_wallet(&self, salt: &str, client: &str) {
        self.send(self.stranger(), &self.wallets, "create(bytes32,address)", &[salt, client]);
    }

    /// The address of a temporary wallet, which may be deployed or not.
    fn wallet(&self, salt: &str) -> String {
        let data = calldata("addressOf(bytes32)", &[salt]);
        let word = self.anvil.call("eth_call", serde_json::json!([{"to": self.wallets, "data": data}, "latest"]));
        format!("0x{}", &word.as_str().unwrap()[26..])
    }

    /// Deploys a temporary wallet that pays out to the shop, and returns its address.
    fn wallet_of_shop(&self, salt: &str) -> String {
        self.create_wallet(salt, self.shop());
        self.wallet(salt)
    }

    /// Makes a temporary wallet pay out its tokens. Anyone may call this.
    fn withdraw(&self, wallet: &str) -> String {
        self.send(self.stranger(), wallet, "withdrawToken(address)", &[&self.token])
    }

    /// Makes a temporary wallet pay out its native coin.
    fn withdraw_native(&self, wallet: &str) -> String {
        self.send(self.stranger(), wallet, "withdrawNative()", &[])
    }

    /// The `[[chain]]` of this setup, with more lines of configuration.
    fn chain(&self, keys: &str) -> Chain {
        self.chain_with(keys, 6)
    }

    fn chain_with(&self, keys: &str, decimals: u8) -> Chain {
        let text = format!(
            "name = \"Sepolia\"\nnodes = [{{ env = \"UNUSED\" }}]\nwallets = [\"{}\"]\n{keys}\n\
             [tokens]\nUSDC = {{ contract = \"{}\", decimals = {decimals} }}\n",
            self.shop(),
            self.token
        );
        toml::from_str::<ChainSettings>(&text).unwrap().chain().unwrap()
    }

    /// The claim in a genuine mail: the payer paid with this transaction.
    fn claim(&self, token: &str, hash: &str) -> Claim {
        Claim {
            blockchain: Some("SEPOLIA".into()),
            token: Some(token.into()),
            transaction_hash: Some(hash.into()),
            from_wallet_address: Some(self.payer().into()),
            amount: Some("20".into()),
            currency: Some("USD".into()),
            sent_at: Timestamp::now(),
            registered_at: None,
            waits_since: Timestamp::now(),
        }
    }

    /// Mines until all transactions so far are final.
    fn finalise(&self) {
        self.anvil.mine(5);
    }

    fn node(&self) -> Node {
        node_at(&self.anvil.url())
    }

    /// Confirms a claim with the node of this setup.
    async fn ask(&self, chain: &Chain, claim: &Claim) -> Confirmation {
        ask(chain, claim, &[self.node()]).await
    }

    /// Finalises, confirms a claim, and returns the reason code or `confirmed`.
    async fn code(&self, chain: &Chain, claim: &Claim) -> String {
        self.finalise();
        code(&self.ask(chain, claim).await)
    }
}

fn node_at(url: &str) -> Node {
    Node::new(&SecretString::from(url), None).unwrap()
}

async fn look_at(chain: &Chain, claim: &Claim, nodes: &[Node]) -> Vec<Observation> {
    let chains = [chain.clone()];
    let question = Question::new(claim, &chains).unwrap();
    let mut seen = Vec::new();
    for node in nodes {
        seen.push(look_at_node(node, &question).await);
    }
    seen
}

async fn ask(chain: &Chain, claim: &Claim, nodes: &[Node]) -> Confirmation {
    ask_with_claimed(chain, claim, nodes, &|_, _| false).await
}

/// Confirms a claim; `is_claimed` names the arrivals that already pay other events.
async fn ask_with_claimed(
    chain: &Chain,
    claim: &Claim,
    nodes: &[Node],
    is_claimed: &dyn Fn(Hash, i64) -> bool,
) -> Confirmation {
    let mut chain = chain.clone();
    chain.nodes = nodes.len();
    let chains = [chain];
    let seen = look_at(&chains[0], claim, nodes).await;
    judge(&Question::new(claim, &chains).unwrap(), &seen, Timestamp::now(), is_claimed)
}

fn code(confirmation: &Confirmation) -> String {
    match &confirmation.outcome {
        Ok(_) => "confirmed".into(),
        Err(reason) => reason.code.to_string(),
    }
}

static AN_HOUR: LazyLock<SignedDuration> = LazyLock::new(|| SignedDuration::from_hours(1));

const NATIVE: u128 = 7_000_000_000_000_000;

fn is_confirmed(confirmation: &Confirmation) -> bool {
    confirmation.state() == ConfirmationState::Confirmed
}
