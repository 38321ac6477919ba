//! A real EVM node on loopback (anvil, with unlocked accounts), and the contracts that tests deploy on it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tiny_keccak::{Hasher, Keccak};

use super::process::Process;

/// The chain id of Sepolia.
pub const SEPOLIA: &str = "11155111";
/// The gas limit of each transaction, which is more than any test needs. Without a limit, anvil would estimate the gas. The
/// estimate fails for a transaction that reverts, and a test needs such a transaction in a block.
const GAS: &str = "0x300000";

/// A running anvil (an EVM node). Dropping it ends the process. All blocks except the last four are final.
pub struct Anvil {
    pub port: u16,
    pub accounts: Vec<String>,
    _process: Process,
}

impl Anvil {
    pub fn start() -> Anvil {
        Anvil::start_with(SEPOLIA, &[])
    }

    /// Starts anvil with another chain id and more command-line arguments.
    pub fn start_with(chain_id: &str, arguments: &[&str]) -> Anvil {
        let mut command = Command::new(program());
        command.args(["--port", "0", "--slots-in-an-epoch", "2", "--chain-id", chain_id]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("anvil does not start");
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let process = Process::adopt(child, "anvil");
        let listening = output.find_map(|line| line.strip_prefix("Listening on ")?.rsplit(':').next()?.parse().ok());
        let port = listening.expect("anvil has ended before it listened");
        // anvil writes a line for each call, and would block when the pipe is full. So a thread reads the pipe.
        std::thread::spawn(move || output.for_each(drop));
        let mut anvil = Anvil { port, accounts: Vec::new(), _process: process };
        anvil.accounts = serde_json::from_value(anvil.call("eth_accounts", json!([]))).unwrap();
        anvil
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a call that must succeed and returns its result.
    pub fn call(&self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Makes a call and returns the whole response, which may be an error.
    pub fn ask(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        serde_json::from_slice(&post(self.port, &body)).unwrap()
    }

    /// Sends a transaction, waits until it is mined, and returns its hash.
    pub fn send(&self, from: &str, to: Option<&str>, value: u128, data: &str) -> String {
        let mut transaction = json!({"from": from, "value": format!("{value:#x}"), "data": data, "gas": GAS});
        if let Some(to) = to {
            transaction["to"] = to.into();
        }
        let hash = self.call("eth_sendTransaction", json!([transaction]));
        self.receipt(hash.as_str().unwrap());
        hash.as_str().unwrap().to_owned()
    }

    /// Waits for the receipt of a transaction.
    pub fn receipt(&self, hash: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let receipt = self.call("eth_getTransactionReceipt", json!([hash]));
            if !receipt.is_null() {
                return receipt;
            }
            assert!(Instant::now() < deadline, "{hash} is not mined");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Deploys a contract of tests/it/chain/contracts and returns its address.
    pub fn deploy(&self, name: &str, arguments: &[&str]) -> String {
        let path = crate::project().join(format!("tests/it/chain/contracts/{name}.hex"));
        let code = std::fs::read_to_string(path).unwrap();
        let code = format!("0x{}{}", code.trim(), encode_words(arguments));
        let hash = self.send(&self.accounts[9], None, 0, &code);
        self.receipt(&hash)["contractAddress"].as_str().unwrap().to_owned()
    }

    /// Mines empty blocks.
    pub fn mine(&self, blocks: u64) {
        self.call("anvil_mine", json!([format!("{blocks:#x}")]));
    }

    /// Removes the newest blocks with their transactions, and mines the same number of empty blocks.
    pub fn reorganise(&self, depth: u64) {
        self.call("anvil_reorg", json!([depth, []]));
    }
}

/// Posts JSON to a node on this machine and returns the body of the response.
pub fn post(port: u16, body: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "POST / HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("no HTTP answer") + 4;
    answer.split_off(at)
}

/// ABI-encodes a call: the selector of the function, then its arguments.
pub fn calldata(signature: &str, arguments: &[&str]) -> String {
    let mut hash = [0; 32];
    let mut keccak = Keccak::v256();
    keccak.update(signature.as_bytes());
    keccak.finalize(&mut hash);
    format!("0x{}{}", data_encoding::HEXLOWER.encode(&hash[..4]), encode_words(arguments))
}

/// Encodes addresses (with 0x) and decimal numbers, each as a word of 32 bytes.
fn encode_words(arguments: &[&str]) -> String {
    let word = |argument: &&str| match argument.strip_prefix("0x") {
        Some(hex) => format!("{hex:0>64}"),
        None => format!("{:064x}", argument.parse::<u128>().unwrap()),
    };
    arguments.iter().map(word).collect()
}

/// Whether anvil is installed. `make anvil` installs it.
pub fn is_installed() -> bool {
    path().exists()
}

fn program() -> PathBuf {
    let path = path();
    assert!(path.exists(), "no {}: `make anvil`", path.display());
    path
}

fn path() -> PathBuf {
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let package = format!("node_modules/@foundry-rs/anvil-linux-{machine}/bin/anvil");
    crate::project().join("tests/anvil").join(machine).join(package)
}
