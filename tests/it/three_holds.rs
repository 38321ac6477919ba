//! `[resmic] require = true` together with a `[[chain]]`: the two holds are independent, and a delivery needs both to be clear.
//!
//! The database transaction that records an answer also releases the delivery. So if one snapshot shows `confirmed` and a held
//! delivery, the answer did not release the delivery.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::anvil::Anvil;
use testkit::daemon::Daemon;
use testkit::resmic_api::{API_KEY, ResmicApi, Session, USER_ID};
use tokio::runtime::Runtime;

use crate::confirm::{Shop, sepolia};
use crate::inquire::id;

const SOON: Duration = Duration::from_secs(30);

/// A shop, its API, its daemon, and a payment for session 1 that waits for the chain and for Resmic.
struct Waiting {
    shop: Shop,
    api: ResmicApi,
    daemon: Daemon,
    event: String,
    hash: String,
    /// The runtime of the callback.
    _runtime: Runtime,
}

impl Waiting {
    fn start() -> Waiting {
        let (anvil, api, runtime) = (Anvil::start(), ResmicApi::start(), Runtime::new().unwrap());
        let (node, wallet) = (anvil.url(), anvil.accounts[0].clone());
        let tables = |token: &str| {
            sepolia(&[&node], &wallet, token, "settle = \"0s\"") + &api.table("require = true\nrate = 600")
        };
        let shop = runtime.block_on(Shop::with(anvil, tables, ""));
        std::fs::write(shop.home.folder.path().join("api-key"), API_KEY).unwrap();
        std::fs::write(shop.home.folder.path().join("user-id"), USER_ID).unwrap();
        api.set_session(&id(1), Session::initiated("20"));
        let daemon = shop.home.start();
        let hash = shop.pay_shop();
        let (_, event) = shop.receive(&shop.mail(1, &hash));
        let waiting = Waiting { shop, api, daemon, event, hash, _runtime: runtime };
        waiting.shop.state_is(&waiting.event, "waiting fresh");
        waiting.holds_are("waiting waiting held");
        waiting.shop.home.until("SELECT reason LIKE '%initiated%' FROM clearances", "1", SOON);
        waiting
    }

    /// Waits until the chain, Resmic and the delivery have these states in one snapshot.
    fn holds_are(&self, want: &str) {
        let sql = "SELECT c.state || ' ' || r.state || ' ' || d.state FROM confirmations c
                   JOIN clearances r USING (event_id) JOIN deliveries d USING (event_id)";
        self.shop.home.until(sql, want, SOON);
    }

    fn chain_confirms(&self) {
        self.shop.anvil.mine(5);
    }

    fn resmic_confirms(&self, hash: &str) {
        let mut session = Session::completed("20", hash);
        session.details.as_mut().unwrap()["token"] = "USDC".into();
        self.api.set_session(&id(1), session);
    }

    fn ends(self, chain: &str) {
        let requests = self.shop.requests();
        assert_eq!(requests.len(), 1, "delivered once");
        assert_eq!(requests[0].header("x-mailhook-chain"), Some(chain));
        assert_eq!(self.daemon.end(), Some(0));
    }

    fn check_session(&self) -> Value {
        serde_json::from_str(&self.shop.home.data(&["session", "check", "--json", &id(1)])).unwrap()
    }
}

#[test]
fn chain_first_then_resmic() {
    let payment = Waiting::start();
    payment.chain_confirms();
    payment.holds_are("confirmed waiting held");
    payment.resmic_confirms(&payment.hash);
    payment.holds_are("confirmed confirmed delivered");
    payment.ends("confirmed");
}

#[test]
fn resmic_first_then_chain() {
    let payment = Waiting::start();
    payment.resmic_confirms(&payment.hash);
    payment.holds_are("waiting confirmed held");
    payment.chain_confirms();
    payment.holds_are("confirmed confirmed delivered");
    payment.ends("confirmed");
}

#[test]
fn a_contradiction_of_resmic_outlasts_the_chain() {
    let payment = Waiting::start();
    payment.resmic_confirms(&payment.hash.replace("0x", "0x1")[..66]);
    payment.holds_are("waiting doubtful held");
    payment.chain_confirms();
    payment.holds_are("confirmed doubtful held");
    assert_eq!(payment.shop.requests().len(), 0);
    payment.shop.home.data(&["confirm", "--vouch", &payment.event]);
    payment.holds_are("confirmed operator delivered");
    payment.ends("confirmed");
}

#[test]
fn a_vouched_payment_waits_for_neither() {
    let payment = Waiting::start();
    let refused = payment.shop.home.run(&["deliveries", "retry", "1"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.contains("`confirm EVENT_ID --vouch`"), "{error}");
    let vouched: Value =
        serde_json::from_str(&payment.shop.home.data(&["confirm", "--vouch", "--json", &payment.event])).unwrap();
    assert_eq!((&vouched["before"], &vouched["released"]), (&json!("waiting"), &json!(1)));
    payment.holds_are("operator operator delivered");
    payment.ends("operator");
}

#[test]
fn session_check_names_each_hold() {
    let payment = Waiting::start();
    let checked = payment.check_session();
    assert_eq!(checked["held_event_id"], json!(payment.event));
    let reason = checked["held_reason"].as_str().unwrap();
    assert!(reason.starts_with("Resmic: waiting: Resmic says \"initiated\""), "{reason}");
    assert!(reason.contains("; chain: waiting: fresh: "), "{reason}");
    payment.chain_confirms();
    payment.holds_are("confirmed waiting held");
    let reason = payment.check_session()["held_reason"].to_string();
    assert!(reason.contains("initiated") && !reason.contains("chain"), "{reason}");
    let printed = payment.shop.home.data(&["session", "check", &id(1)]);
    assert!(printed.contains("\nheld_reason          Resmic: waiting: "), "{printed}");
    payment.resmic_confirms(&payment.hash);
    payment.holds_are("confirmed confirmed delivered");
    let checked = payment.check_session();
    assert_eq!((&checked["held_event_id"], &checked["held_reason"]), (&Value::Null, &Value::Null));
    payment.ends("confirmed");
}
