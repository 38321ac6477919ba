//! Payments that a chain must confirm, with the real program, a real EVM node, and a handler.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::anvil::{Anvil, calldata};
use testkit::daemon::{Daemon, Home, account, forward};
use testkit::node::{NodeReply, ScriptedNode};
use testkit::paid::Paid;
use testkit::random::Random;
use testkit::receiver::{Receiver, Request, status};

const SOON: Duration = Duration::from_secs(30);
const UNITS: u128 = 20_000_000;

/// A shop with a node, a token, and a handler. The module `three_holds` uses this type, too.
pub(crate) struct Shop {
    pub(crate) anvil: Anvil,
    token: String,
    receiver: Receiver,
    pub(crate) home: Home,
}

impl Shop {
    /// Creates a shop. `chain` and `target` are additional lines of its `[[chain]]` and its `[[forward]]`.
    async fn open(chain: &str, target: &str) -> Shop {
        let anvil = Anvil::start();
        let (node, wallet) = (anvil.url(), anvil.accounts[0].clone());
        Shop::with(anvil, |token| sepolia(&[&node], &wallet, token, chain), target).await
    }

    pub(crate) async fn with(anvil: Anvil, chain: impl FnOnce(&str) -> String, target: &str) -> Shop {
        let token = anvil.deploy("Token", &["6"]);
        let mint = calldata("mint(address,uint256)", &[&anvil.accounts[1], "1000000000000"]);
        anvil.send(&anvil.accounts[1], Some(&token), 0, &mint);
        let receiver = Receiver::new(|_, _| status(200));
        let address = receiver.listen().await;
        let home = Home::new(&format!(
            "{}[trust]\naccept = [\"none\"]\n[dns]\nservers = [\"127.0.0.1:1\"]\n{}{}",
            account(1, ""),
            forward(&format!("http://{address}/hook"), target),
            chain(&token)
        ));
        Shop { anvil, token, receiver, home }
    }

    /// Pays in the token, and returns the transaction hash.
    fn pay(&self, to: &str, units: u128) -> String {
        let data = calldata("transfer(address,uint256)", &[to, &units.to_string()]);
        self.anvil.send(&self.anvil.accounts[1], Some(&self.token), 0, &data)
    }

    pub(crate) fn pay_shop(&self) -> String {
        self.pay(&self.anvil.accounts[0], UNITS)
    }

    pub(crate) fn mail(&self, session: u32, hash: &str) -> Paid {
        Paid::new(session, hash, &self.anvil.accounts[1])
    }

    /// Imports a mail, and returns its outcome and the id of its event.
    pub(crate) fn receive(&self, mail: &Paid) -> (String, String) {
        let file = self.home.folder.path().join(format!("{}.{}.eml", mail.hash, mail.session));
        std::fs::write(&file, mail.mail()).unwrap();
        let printed = self.home.data(&["import", "--json", file.to_str().unwrap()]);
        let imported: Value = serde_json::from_str(&printed).unwrap();
        let event = imported["event_id"].as_str().unwrap_or_default().to_owned();
        (imported["outcome"].as_str().unwrap().to_owned(), event)
    }

    pub(crate) fn state_is(&self, event: &str, want: &str) {
        let sql = "coalesce(substr(reason, 1, instr(reason, ':') - 1), '')";
        self.home.until(
            &format!("SELECT trim(state || ' ' || {sql}) FROM confirmations WHERE event_id = '{event}'"),
            want,
            SOON,
        );
    }

    pub(crate) fn delivery_is(&self, event: &str, want: &str) {
        self.home.until(&format!("SELECT state FROM deliveries WHERE event_id = '{event}'"), want, SOON);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.receiver.requests()
    }
}

pub(crate) fn sepolia(nodes: &[&str], wallet: &str, token: &str, keys: &str) -> String {
    // The URL is the output of a command, as with a password manager.
    let nodes: Vec<_> = nodes.iter().map(|url| format!("{{ command = [\"echo\", \"{url}\"] }}")).collect();
    format!(
        "[[chain]]\nname = \"Sepolia\"\nnodes = [{}]\nwallets = [\"{wallet}\"]\n{keys}\n\
         [chain.tokens]\nUSDC = {{ contract = \"{token}\", decimals = 6 }}\n",
        nodes.join(", ")
    )
}

/// Removes the `[[chain]]` from the configuration file. Returns the previous text of the file.
fn remove_chain(shop: &Shop) -> String {
    let file = shop.home.folder.path().join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.split("[[chain]]").next().unwrap()).unwrap();
    config
}

fn ends_well(daemon: Daemon) {
    assert_eq!(daemon.end(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_payment_is_delivered_once_with_headers() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.state_is(&event, "waiting fresh");
    shop.delivery_is(&event, "held");
    shop.anvil.mine(5);
    shop.state_is(&event, "confirmed");
    shop.delivery_is(&event, "delivered");
    let [request] = &shop.requests()[..] else { panic!("delivered once") };
    assert_eq!(request.header("x-mailhook-chain"), Some("confirmed"));
    assert_eq!(request.header("x-mailhook-received"), Some("20 USDC"));
    assert_eq!(request.header("x-mailhook-arrival"), Some(hash.as_str()));
    let arrivals = shop.home.ask("SELECT tx || ' ' || log || ' ' || event_id FROM arrivals");
    assert_eq!(arrivals, format!("{hash} 0 {event}"));
    assert_eq!(shop.home.ask("SELECT confirmation FROM payments"), "confirmed");
    let shown: Value = serde_json::from_str(&shop.home.data(&["show", "--json", &event])).unwrap();
    assert_eq!(shown["confirmation"]["received"], "20");
    let status: Value = serde_json::from_slice(&shop.home.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["confirmations"]["confirmed"], &status["chains"][0]["name"]), (&json!(1), &json!("Sepolia")));
    assert_eq!(status["chains"][0]["nodes"], json!(["127.0.0.1"]));
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_of_another_merchant_is_not_delivered() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let daemon = shop.home.start();
    let elsewhere = shop.pay(&shop.anvil.accounts[3], UNITS);
    let (_, stranger) = shop.receive(&shop.mail(1, &elsewhere));
    let (_, invented) = shop.receive(&shop.mail(2, &format!("0x{:064x}", 0xbad)));
    let (_, no_chain) = shop.receive(&Paid { chain: "BASE", ..shop.mail(3, &format!("0x{:064x}", 3)) });
    let (_, no_token) = shop.receive(&Paid { token: "PEPE", ..shop.mail(4, &format!("0x{:064x}", 4)) });
    let short = shop.pay(&shop.anvil.accounts[0], UNITS / 2);
    let (_, short) = shop.receive(&shop.mail(5, &short));
    shop.anvil.mine(5);
    shop.state_is(&stranger, "waiting unarrived");
    shop.state_is(&invented, "waiting unseen");
    shop.state_is(&no_chain, "unproven no-node");
    shop.state_is(&no_token, "unproven no-token");
    shop.state_is(&short, "doubtful short");
    // With the same configuration, an honest payment is confirmed.
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, honest) = shop.receive(&shop.mail(6, &hash));
    shop.delivery_is(&honest, "delivered");
    assert_eq!(shop.requests().len(), 1);
    assert_eq!(shop.home.ask("SELECT count(*) FROM deliveries WHERE state = 'held'"), "5");
    let status: Value = serde_json::from_slice(&shop.home.run(&["status", "--json"]).stdout).unwrap();
    let attention = status["attention"].to_string();
    assert!(attention.contains("1 event contradicted by the chain"), "{attention}");
    assert!(attention.contains("2 events held because the chain proves nothing"), "{attention}");
    assert!(!attention.contains("without a session"), "{attention}");
    let vouched = shop.home.data(&["confirm", "--vouch", &short]);
    assert!(vouched.contains("deliveries released: 1"), "{vouched}");
    shop.delivery_is(&short, "delivered");
    assert_eq!(shop.requests()[1].header("x-mailhook-chain"), Some("operator"));
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_claim_does_not_block_its_session() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let daemon = shop.home.start();
    let (_, fake) = shop.receive(&shop.mail(1, &format!("0x{:064x}", 0xbad)));
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, honest) = shop.receive(&shop.mail(1, &hash));
    shop.delivery_is(&honest, "delivered");
    shop.delivery_is(&fake, "held");
    // A second real payment for the session needs review.
    let second = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, second) = shop.receive(&Paid { amount: "20.00", ..shop.mail(1, &second) });
    shop.state_is(&second, "confirmed");
    shop.delivery_is(&second, "held");
    assert_eq!(shop.requests().len(), 1);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_before_an_added_chain_holds() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let config = remove_chain(&shop);
    let (_, invented) = shop.receive(&shop.mail(1, &format!("0x{:064x}", 0xbad)));
    std::fs::write(shop.home.folder.path().join("config.toml"), config).unwrap();
    let sqlite = rusqlite::Connection::open(shop.home.database()).unwrap();
    sqlite.busy_timeout(SOON).unwrap();
    let refuse = "CREATE TRIGGER refused BEFORE INSERT ON confirmations BEGIN SELECT RAISE(ABORT, 'refused'); END";
    sqlite.execute_batch(refuse).unwrap();
    let daemon = shop.home.start();
    daemon.says_often("cannot hold and release deliveries", 2, SOON);
    assert_eq!(shop.requests().len(), 0);
    sqlite.execute_batch("DROP TRIGGER refused").unwrap();
    shop.delivery_is(&invented, "held");
    assert_eq!(shop.requests().len(), 0);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_claim_holds_both_events() {
    let shop = Shop::open("settle = \"1h\"", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, thief) = shop.receive(&shop.mail(1, &hash));
    shop.state_is(&thief, "waiting fresh");
    let (outcome, _) = shop.receive(&shop.mail(2, &hash));
    assert_eq!(outcome, "quarantined");
    let hold = shop.home.ask(&format!("SELECT hold FROM events WHERE event_id = '{thief}'"));
    assert!(hold.starts_with("conflict: another mail claims the same transaction: session_id"), "{hold}");
    // The chain and a conflict both hold this event. The release of one hold leaves the other.
    let vouched = shop.home.run(&["confirm", "--vouch", "--json", &thief]);
    let vouched: Value = serde_json::from_slice(&vouched.stdout).unwrap();
    assert_eq!((&vouched["before"], &vouched["released"], &vouched["held"]), (&json!("waiting"), &json!(0), &json!(1)));
    assert_eq!(shop.requests().len(), 0);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn settle_delays_a_confirmation() {
    let shop = Shop::open("settle = \"4s\"", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let began = std::time::Instant::now();
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.delivery_is(&event, "delivered");
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_claims_of_one_arrival_are_both_doubtful() {
    let shop = Shop::open("settle = \"5s\"", "").await;
    // A pays B in one transaction, and B pays the shop in another. Each transaction has a genuine mail.
    let wallet = shop.anvil.accounts[4].clone();
    let first = shop.pay(&wallet, UNITS);
    let data = calldata("transfer(address,uint256)", &[&shop.anvil.accounts[0], &UNITS.to_string()]);
    let second = shop.anvil.send(&wallet, Some(&shop.token), 0, &data);
    shop.anvil.mine(5);
    let (_, first_event) = shop.receive(&shop.mail(1, &first));
    let (_, second_event) = shop.receive(&Paid { wallet, ..shop.mail(2, &second) });
    let daemon = shop.home.start();
    shop.state_is(&first_event, "doubtful claimed");
    shop.state_is(&second_event, "doubtful claimed");
    assert_eq!(shop.requests().len(), 0);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn confirm_tell_delivers_at_once_unconfirmed() {
    let shop = Shop::open("settle = \"0s\"", "confirm = \"tell\"").await;
    let daemon = shop.home.start();
    let (_, event) = shop.receive(&shop.mail(1, &format!("0x{:064x}", 0xbad)));
    shop.delivery_is(&event, "delivered");
    let requests = shop.requests();
    assert_eq!(requests[0].header("x-mailhook-chain"), Some("waiting"));
    assert_eq!(requests[0].header("x-mailhook-arrival"), None);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_and_chain_hold_independently() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let daemon = shop.home.start();
    let session = "591abe63-aa61-411d-a419-0b546729bbd0";
    let unresolved = |hash: &str| shop.receive(&shop.mail(0, hash)).1;
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let confirmed = unresolved(&hash);
    shop.state_is(&confirmed, "confirmed");
    shop.delivery_is(&confirmed, "held");
    let invented = unresolved(&format!("0x{:064x}", 0xbad));
    let assign = |event: &str, session: &str| shop.home.data(&["session", "assign", event, session]);
    assert!(assign(&invented, "591abe63-aa61-411d-a419-0b546729bbd1").contains("deliveries released: 0"));
    shop.delivery_is(&invented, "held");
    // The new session may change the result, so the daemon looks at the chain again before it releases the delivery.
    assign(&confirmed, session);
    shop.delivery_is(&confirmed, "delivered");
    assert_eq!(shop.requests().len(), 1);
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_lose_and_double_nothing() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let random = Random::from_environment();
    let count = 12;
    for n in 1..=count {
        let hash = shop.pay_shop();
        shop.receive(&shop.mail(n, &hash));
        shop.anvil.mine(5);
        let daemon = shop.home.start();
        std::thread::sleep(random.moment(Duration::from_millis(700)));
        daemon.kill();
    }
    let daemon = shop.home.start();
    let limit = Duration::from_secs(90);
    shop.home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", &count.to_string(), limit);
    assert_eq!(shop.home.ask("SELECT count(*) FROM confirmations WHERE state = 'confirmed'"), count.to_string());
    assert_eq!(
        shop.home.ask("SELECT count(DISTINCT event_id) || ' ' || count(*) FROM arrivals"),
        format!("{count} {count}")
    );
    let mut bodies: Vec<_> = shop.requests().iter().map(|r| r.text().to_owned()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), count as usize, "each payment has one body");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_before_finality_unconfirms() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.state_is(&event, "waiting fresh");
    shop.anvil.reorganise(1);
    shop.state_is(&event, "waiting unseen");
    shop.anvil.mine(6);
    shop.delivery_is(&event, "held");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_after_confirmation_is_reported() {
    let shop = Shop::open("settle = \"0s\"\nfinal = 1", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.delivery_is(&event, "delivered");
    shop.anvil.reorganise(1);
    shop.anvil.mine(6);
    shop.state_is(&event, "doubtful lost");
    shop.delivery_is(&event, "delivered");
    daemon.says("nothing was taken back", SOON);
    let status = String::from_utf8(shop.home.run(&["status"]).stdout).unwrap();
    assert!(status.contains("1 event contradicted by the chain"), "{status}");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_confirmation_by_depth_stays() {
    let shop = Shop::open("settle = \"0s\"\nfinal = 1", "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.delivery_is(&event, "delivered");
    shop.anvil.mine(6);
    shop.home.until("SELECT count(*) FROM confirmations WHERE next_look_at IS NULL", "1", SOON);
    shop.state_is(&event, "confirmed");
    ends_well(daemon);
}

/// A node that forwards calls to `anvil`, and lets `change` alter the answers.
fn lying(anvil: &Anvil, change: impl Fn(&str, &mut Value) + Send + Sync + 'static) -> ScriptedNode {
    let port = anvil.port;
    ScriptedNode::start(move |call| {
        let mut answer: Value = serde_json::from_slice(&testkit::anvil::post(port, &call.to_string())).unwrap();
        change(call["method"].as_str().unwrap(), &mut answer);
        Some(NodeReply::json(&answer))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lying_node_of_two_confirms_nothing() {
    let anvil = Anvil::start();
    let liar = lying(&anvil, |method, answer| {
        // The changed receipt shows twice the amount.
        if method == "eth_getTransactionReceipt" && !answer["result"].is_null() {
            answer["result"]["logs"][0]["data"] = json!(format!("0x{:064x}", 2 * UNITS));
        }
    });
    let (urls, wallet) = ([anvil.url(), format!("http://127.0.0.1:{}", liar.port)], anvil.accounts[0].clone());
    let chain = |token: &str| sepolia(&[&urls[0], &urls[1]], &wallet, token, "settle = \"0s\"");
    let shop = Shop::with(anvil, chain, "").await;
    let daemon = shop.home.start();
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.state_is(&event, "waiting disagree");
    shop.delivery_is(&event, "held");
    let explained = shop.home.data(&["confirm", "--explain", &event]);
    assert!(explained.contains("eth_getTransactionReceipt") && explained.contains("disagree:"), "{explained}");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_chain_is_refused() {
    let anvil = Anvil::start_with("1", &[]);
    let (node, wallet) = (anvil.url(), anvil.accounts[0].clone());
    let shop = Shop::with(anvil, |token| sepolia(&[&node], &wallet, token, ""), "").await;
    let checked = shop.home.run(&["check", "--connect"]);
    let printed = String::from_utf8(checked.stdout).unwrap();
    assert!(printed.contains("FAILED: 127.0.0.1 is a node of chain 1, not of Sepolia"), "{printed}");
    let daemon = shop.home.start();
    daemon.says("is a node of chain 1", SOON);
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, event) = shop.receive(&shop.mail(1, &hash));
    shop.state_is(&event, "waiting node");
    let status: Value = serde_json::from_slice(&shop.home.run(&["status", "--json"]).stdout).unwrap();
    assert!(status["attention"].to_string().contains("1 event waits for its nodes"), "{status}");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_tests_each_node() {
    let anvil = Anvil::start();
    let (node, wallet) = (anvil.url(), anvil.accounts[0].clone());
    let chain = |token: &str| {
        sepolia(&[&node], &wallet, token, "trace = true\nfinal = 2").replace("decimals = 6", "decimals = 18")
    };
    let shop = Shop::with(anvil, chain, "").await;
    shop.anvil.mine(3);
    let printed = String::from_utf8(shop.home.run(&["check", "--connect"]).stdout).unwrap();
    assert!(printed.contains("chain Sepolia: 127.0.0.1: chain 11155111; newest block"), "{printed}");
    assert!(printed.contains(", 1 block behind (final = 2)"), "{printed}");
    assert!(printed.contains("has 6 decimals, and [chain.tokens] has `decimals = 18`"), "{printed}");
    assert!(printed.contains("it answers debug_traceTransaction"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_names_a_wrong_token_address() {
    let anvil = Anvil::start();
    let (node, wallet, stranger) = (anvil.url(), anvil.accounts[0].clone(), anvil.accounts[1].clone());
    let shop = Shop::with(anvil, |_| sepolia(&[&node], &wallet, &stranger, ""), "").await;
    let printed = String::from_utf8(shop.home.run(&["check", "--connect"]).stdout).unwrap();
    let expected = "FAILED: 127.0.0.1: USDC: there is no token contract at ";
    assert!(printed.contains(expected) && printed.contains("; correct [chain.tokens]"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_doubts_a_wrong_node_path() {
    let anvil = Anvil::start();
    let node = ScriptedNode::start(|_| Some(NodeReply::new("404 Not Found", "", "not here")));
    let (url, wallet) = (format!("{}/v3/s3cret-key", node.url()), anvil.accounts[0].clone());
    let shop = Shop::with(anvil, |token| sepolia(&[&url], &wallet, token, ""), "").await;
    let printed = String::from_utf8(shop.home.run(&["check", "--connect"]).stdout).unwrap();
    let expected = "127.0.0.1: eth_chainId: error 404: Not Found; check the node's URL";
    assert!(printed.contains(expected) && !printed.contains("s3cret"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_reports_unanswered_traces() {
    let anvil = Anvil::start();
    let node = ScriptedNode::altering(anvil.port, |request, answer| {
        if request["method"] == "debug_traceTransaction" {
            *answer = json!({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32005, "message": "too many"}});
        }
    });
    let (url, wallet) = (node.url(), anvil.accounts[0].clone());
    let shop = Shop::with(anvil, |token| sepolia(&[&url], &wallet, token, "trace = true"), "").await;
    let checked = shop.home.run(&["check", "--connect"]);
    let printed = String::from_utf8(checked.stdout).unwrap() + &String::from_utf8(checked.stderr).unwrap();
    assert!(
        printed.contains("127.0.0.1: trace = true, but debug_traceTransaction: the node throttles us"),
        "{printed}"
    );
    assert!(!printed.contains("it answers debug_traceTransaction"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_node_is_healthy_at_first() {
    let anvil = Anvil::start();
    let node = ScriptedNode::start(|_| Some(NodeReply::new("429 Too Many Requests", "Retry-After: 1\r\n", "")));
    let (url, wallet) = (format!("http://127.0.0.1:{}/v2/s3cret-key", node.port), anvil.accounts[0].clone());
    let shop = Shop::with(anvil, |token| sepolia(&[&url], &wallet, token, ""), "").await;
    let daemon = shop.home.start();
    let (_, event) = shop.receive(&shop.mail(1, &format!("0x{:064x}", 1)));
    shop.state_is(&event, "waiting node");
    let status = || String::from_utf8(shop.home.run(&["status", "--json"]).stdout).unwrap();
    assert!(status().contains("throttles us") && !status().contains("wait for its nodes"), "{}", status());
    let sqlite = rusqlite::Connection::open(shop.home.database()).unwrap();
    sqlite.busy_timeout(SOON).unwrap();
    sqlite
        .execute("UPDATE confirmations SET waits_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-11 minutes')", [])
        .unwrap();
    assert!(status().contains("1 event waits for its nodes"), "{}", status());
    let log = daemon.log();
    ends_well(daemon);
    let everything = status() + &log + &shop.home.ask("SELECT group_concat(last_error || nodes) FROM chains");
    assert!(!everything.contains("s3cret-key"), "{everything}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_chain_nothing_changes() {
    let anvil = Anvil::start();
    let shop = Shop::with(anvil, |_| String::new(), "").await;
    let daemon = shop.home.start();
    let (_, event) = shop.receive(&shop.mail(1, &format!("0x{:064x}", 0xbad)));
    shop.delivery_is(&event, "delivered");
    assert!(shop.requests()[0].header("x-mailhook-chain").is_none());
    assert_eq!(shop.home.ask("SELECT (SELECT count(*) FROM confirmations) + (SELECT count(*) FROM chains)"), "0");
    let printed = String::from_utf8(shop.home.run(&["confirm", &event]).stderr).unwrap();
    assert!(printed.contains("no [[chain]] is configured"), "{printed}");
    ends_well(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_chain_holds_earlier_events() {
    let shop = Shop::open("settle = \"0s\"", "").await;
    let config = remove_chain(&shop);
    let hash = shop.pay_shop();
    shop.anvil.mine(5);
    let (_, honest) = shop.receive(&shop.mail(1, &hash));
    let (_, invented) = shop.receive(&shop.mail(2, &format!("0x{:064x}", 0xbad)));
    shop.delivery_is(&invented, "pending");
    std::fs::write(shop.home.folder.path().join("config.toml"), config).unwrap();
    let daemon = shop.home.start();
    shop.delivery_is(&honest, "delivered");
    shop.delivery_is(&invented, "held");
    assert_eq!(shop.requests().len(), 1);
    ends_well(daemon);
}
