//! The checkouts in examples/: each one creates a session, registers it, and accepts its event.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use resmic_mailhook::payments::SignedAddresses;
use testkit::daemon::{Home, SECRET, account, binary};
use testkit::process::Process;
use testkit::resmic_api::{API_KEY, CREATED, Mood, ResmicApi, USER_ID};

const MAILBOX: &str = "payments@shop.example";
const WALLET: &str = "0x056397760b973BfB921Bc10Be9DA5034B1e921d7";

/// A running checkout with the daemon's database and a fake of Resmic's API.
struct Shop {
    port: u16,
    api: ResmicApi,
    home: Home,
    _process: Process,
}

impl Shop {
    /// Starts a checkout. The checkout prints its port, or `started`, in the first line.
    fn start(program: &'static str, package: &str, arguments: &[&str], port: u16) -> Shop {
        let (home, api) = (Home::new(&account(1, "")), ResmicApi::start());
        let folders = std::env::var_os("PATH").unwrap();
        let folders = [binary().parent().unwrap().to_owned()].into_iter().chain(std::env::split_paths(&folders));
        let mut command = Command::new(program);
        command.args(arguments).current_dir(home.folder.path()).env("PORT", "0");
        command.env("PATH", std::env::join_paths(folders).unwrap());
        command.env("RESMIC_MAILHOOK_CONFIG", home.folder.path().join("config.toml")).env("MAILHOOK_PASSWORD", "x");
        command.env("RESMIC_URL", api.url()).env("RESMIC_API_KEY", API_KEY).env("RESMIC_USER_ID", USER_ID);
        command.env("WALLET", WALLET).env("MAILBOX", MAILBOX).env("ADDRESS_KEY", SECRET).env("WEBHOOK_SECRET", SECRET);
        command.env("ORDERS", home.folder.path().join("orders.json"));
        let (mine, theirs) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}; `apt-get install {package}`"));
        drop(command);
        let mut lines = BufReader::new(mine).lines();
        let first = lines.next().unwrap().unwrap();
        let printed = first.strip_prefix("listening on ").and_then(|port| port.parse().ok());
        assert!(printed.is_some() || first.ends_with("started"), "{program} says {first:?}");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("{program}: {line}")));
        Shop { port: printed.unwrap_or(port), api, home, _process: Process::adopt(child, program) }
    }

    /// Returns the whole response to a request. HTTP/1.0 has no chunked encoding.
    fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head =
            format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n{fields}\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Posts an event as the daemon does, and returns the status.
    fn deliver(&self, body: &str, secret: &str) -> String {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let signature = data_encoding::HEXLOWER.encode(ring::hmac::sign(&key, body.as_bytes()).as_ref());
        let fields = format!("Content-Type: application/json\r\nX-Signature: {signature}\r\n");
        self.ask("POST", "/payment-webhook", &fields, body)[9..12].to_owned()
    }

    fn state(&self) -> String {
        self.ask("GET", "/order/1001", "", "").rsplit("\r\n").next().unwrap().trim().to_owned()
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/checkout").join(name)
}

fn completed(session: &str, amount: &str) -> String {
    format!(
        "{{\"session_id\":\"{session}\",\"amount\":\"{amount}\",\"blockchain\":\"Polygon\",\"token\":\"USDC\",\
         \"from_wallet_address\":\"{WALLET}\",\"transaction_hash\":\"0x{:064x}\",\"txTime\":\"Mar 5, 2025, 03:36\",\"status\":true}}",
        1
    )
}

/// Runs a purchase from the order to the event.
fn assert_sells(shop: &Shop) {
    let ours = SignedAddresses::new(MAILBOX, &SECRET.into()).unwrap();
    shop.api.set_mood(Mood::Refuses(403, 403));
    assert_eq!(&shop.ask("POST", "/checkout/1001", "", "")[9..12], "502", "Resmic refuses");
    shop.api.set_mood(Mood::Documented);
    let answer = shop.ask("POST", "/checkout/1001", "", "");
    assert_eq!(&answer[9..12], "303", "{answer}");
    assert!(answer.contains(&format!("ocation: https://pay.resmic.com/{CREATED}\r\n")), "{answer}");
    let created = shop.api.created();
    let created = created.last().unwrap();
    assert_eq!(created["webhook_url"], ours.address_for("order-1001-2").unwrap());
    assert_eq!((created["amount"].as_f64(), created["wallet_address"].as_str()), (Some(20.5), Some(WALLET)));
    let registered = shop.home.ask("SELECT session_id || ' ' || order_ref || ' ' || amount FROM sessions");
    assert_eq!(registered, format!("{CREATED} order-1001-2 20.50"));
    assert_eq!(shop.state(), "open");
    assert_eq!(shop.deliver(&completed(CREATED, "20.50"), "another secret"), "401");
    assert_eq!(shop.deliver(&completed(&CREATED.replace('7', "8"), "20.50"), SECRET), "404");
    assert_eq!(shop.state(), "open");
    let failed = format!("{{\"session_id\":\"{CREATED}\",\"txTime\":\"Mar 5, 2025, 03:36\",\"status\":false}}");
    assert_eq!((shop.deliver(&failed, SECRET), shop.state()), ("200".into(), "failed".into()));
    assert_eq!((shop.deliver(&completed(CREATED, "1"), SECRET), shop.state()), ("200".into(), "review".into()));
    assert_eq!((shop.deliver(&completed(CREATED, "20.5"), SECRET), shop.state()), ("200".into(), "paid".into()));
    assert_eq!((shop.deliver(&failed, SECRET), shop.state()), ("200".into(), "paid".into()));
}

/// Checks the syntax of a file with the language's own tool.
fn check_syntax(program: &str, arguments: &[&str], name: &str) {
    let mut command = Command::new(program);
    command.args(arguments).arg(script(name)).env("PYTHONPYCACHEPREFIX", std::env::temp_dir());
    let output = command.output().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn node_checkout_sells() {
    check_syntax("node", &["--check"], "checkout.js");
    assert_sells(&Shop::start("node", "nodejs", &[script("checkout.js").to_str().unwrap()], 0));
}

#[test]
fn python_checkout_sells() {
    check_syntax("python3", &["-m", "py_compile"], "checkout.py");
    assert_sells(&Shop::start("python3", "python3", &[script("checkout.py").to_str().unwrap()], 0));
}

#[test]
fn php_checkout_sells() {
    check_syntax("php", &["-l"], "checkout.php");
    // PHP's server does not accept port 0.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_sells(&Shop::start(
        "php",
        "php-cli",
        &["-S", &format!("127.0.0.1:{port}"), script("checkout.php").to_str().unwrap()],
        port,
    ));
}
