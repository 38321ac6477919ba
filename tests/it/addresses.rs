//! The programs in docs/sessions.md, which create signed addresses, must produce the same addresses as the crate.

use std::process::Command;

use resmic_mailhook::payments::SignedAddresses;

const MAILBOX: &str = "payments@shop.example";
const KEY: &str = "a key, with ümlaut";

const ORDERS: [&str; 14] = [
    "1001",
    "order-1001",
    "order_7",
    "-",
    "_7",
    "Order",
    "a.b",
    "a+b@c",
    "Größe 5",
    "日本",
    "\"'\\$x",
    "line\n",
    "1001\n",
    "$&",
];

/// The first code block in this language in docs/sessions.md.
fn program(language: &str) -> String {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sessions.md")).unwrap();
    let (_, rest) = document.split_once(&format!("```{language}\n")).expect("the document has such a program");
    let program = rest.split_once("```").unwrap().0;
    assert!(program.lines().filter(|line| !line.trim().is_empty()).count() <= 11, "too long for a page: {program}");
    program.to_owned()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap()
}

/// Runs a program and returns its standard output, or its errors if it fails.
fn run(command: &str, package: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command).args(arguments).output();
    let output =
        output.unwrap_or_else(|e| panic!("{command} is needed for this test ({e}): apt-get install {package}"));
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)),
    }
}

/// Compares a program with the crate. `ask` runs the program so that it prints a list of addresses as JSON.
fn assert_same_addresses(ask: impl Fn(&[&str]) -> Result<String, String>) {
    let ours = SignedAddresses::new(MAILBOX, &KEY.into()).unwrap();
    let expected: Vec<String> = ORDERS.iter().map(|order| ours.address_for(order).unwrap()).collect();
    let printed: Vec<String> = serde_json::from_str(&ask(&ORDERS).unwrap()).unwrap();
    assert_eq!(printed, expected);
    for address in &printed {
        assert!(ours.order_of(&[address.to_uppercase()]).is_some());
    }
    let long = "x".repeat(39);
    assert!(ours.address_for(&long).is_err());
    assert!(ask(&[&long]).unwrap_err().contains("order reference too long"));
    assert!(ask(&[&long[1..]]).is_ok());
}

#[test]
fn node_makes_the_same_addresses() {
    assert_same_addresses(|orders| {
        let last = format!(
            "console.log(JSON.stringify({}.map((o) => addressFor(o, {}, {}))))",
            json(&orders),
            json(&MAILBOX),
            json(&KEY)
        );
        run("node", "nodejs", &["-e", &(program("js") + &last)])
    });
}

#[test]
fn python_makes_the_same_addresses() {
    assert_same_addresses(|orders| {
        let last = format!(
            "import json; print(json.dumps([address_for(o, {}, {}) for o in {}]))",
            json(&MAILBOX),
            json(&KEY),
            json(&orders)
        );
        run("python3", "python3", &["-c", &(program("python") + &last)])
    });
}

#[test]
fn php_makes_the_same_addresses() {
    assert_same_addresses(|orders| {
        let given = json(&(orders, MAILBOX, KEY));
        let last = "[$orders, $mailbox, $key] = json_decode($argv[1]);
            echo json_encode(array_map(fn($o) => address_for($o, $mailbox, $key), $orders));";
        run("php", "php-cli", &["-d", "display_errors=stderr", "-r", &(program("php") + last), &given])
    });
}
