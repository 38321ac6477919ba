//! The links of the documents work in the repository and in the package, the README names tests that exist, and docs/json.md
//! agrees with the output.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use resmic_mailhook::boot_clock::BootInstant;
use resmic_mailhook::standby::{KnownData, LeaseView, Report, StandbyFile};
use serde_json::{Map, Value};
use testkit::daemon::{Home, account, forward};

/// The folder of the documents in the package.
const INSTALLED: &str = "usr/share/doc/resmic-mailhook/";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let files_in = |folder: &str| fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = files_in(".")
        .chain(files_in("docs"))
        .chain(files_in("docs/decisions"))
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The anchor that GitHub derives from a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(|c: char| !c.is_alphanumeric() && !" -_".contains(c), "");
    kept.trim().replace(' ', "-")
}

/// The links of a document: the file and the anchor in it.
fn links(document: &Path) -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string(document).unwrap();
    let link = Regex::new(r"\]\(([^)#]*)#?([^)]*)\)").unwrap();
    let ours = link.captures_iter(&text).filter(|c| !c[1].starts_with("http"));
    let link_end = |c: regex::Captures<'_>| {
        let file = if c[1].is_empty() { document.to_owned() } else { document.parent().unwrap().join(&c[1]) };
        (file.canonicalize().unwrap_or_else(|e| panic!("{}: {}: {e}", document.display(), &c[0])), c[2].to_owned())
    };
    ours.map(link_end).collect()
}

#[test]
fn every_link_has_a_target() {
    for document in documents() {
        for (file, place) in links(&document) {
            let headings = if place.is_empty() { String::new() } else { fs::read_to_string(&file).unwrap() };
            let mut headings =
                headings.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#')));
            assert!(place.is_empty() || headings.any(|h| h == place), "{}: #{place}", document.display());
        }
    }
}

#[test]
fn every_document_is_in_the_summary() {
    let summary = root().join("docs/SUMMARY.md").canonicalize().unwrap();
    let mut listed: Vec<_> = links(&summary).into_iter().map(|(file, _)| file).collect();
    let mut documents: Vec<_> = documents().iter().map(|path| path.canonicalize().unwrap()).collect();
    documents.retain(|path| *path != summary);
    listed.sort();
    documents.sort();
    assert_eq!(listed, documents);
}

#[test]
fn compose_file_starts_this_version() {
    let compose = fs::read_to_string(root().join("contrib/container/compose.yml")).unwrap();
    assert!(
        compose.contains(&format!("image: localhost/resmic-mailhook:{}\n", env!("CARGO_PKG_VERSION"))),
        "{compose}"
    );
}

#[test]
fn links_work_in_the_package() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let folder = |path: &str| path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    // The files that have the same relative path in the package as in the repository.
    let same: Vec<String> = assets
        .iter()
        .filter_map(|asset| Some((asset[0].as_str()?, asset[1].as_str()?.strip_prefix(INSTALLED)?)))
        .filter(|(from, to)| folder(from.trim_end_matches("**/*")) == folder(to))
        .map(|(from, _)| from.replace("**/*", "*"))
        .collect();
    let is_there = |file: &Path| {
        let path = file.strip_prefix(root().canonicalize().unwrap()).unwrap().to_str().unwrap().to_owned();
        let lies = |from: &String| match from.split_once('*') {
            Some((before, after)) => path.starts_with(before) && path.ends_with(after.trim_end_matches('*')),
            None => *from == path,
        };
        same.iter().any(|from| lies(from) || file.is_dir() && from.starts_with(&format!("{path}/")))
    };
    for document in documents() {
        assert!(is_there(&document.canonicalize().unwrap()), "{}", document.display());
        for (file, _) in links(&document) {
            assert!(is_there(&file), "{}: {} is not in the package", document.display(), file.display());
        }
    }
}

/// Whether a test exists: `chain::attacks::one_sum_pays_one_event` is in tests/it/chain/attacks.rs.
fn is_test(path: &str) -> bool {
    let (module, name) = path.rsplit_once("::").unwrap();
    let test = Regex::new(&format!(r"#\[(tokio::)?test\b[^\]]*\]\s*(#\[[^\]]*\]\s*)*(async )?fn {name}\(")).unwrap();
    let module = root().join("tests/it").join(module.replace("::", "/"));
    let file = [module.with_extension("rs"), module.join("mod.rs")].into_iter().find(|file| file.exists());
    file.is_some_and(|file| test.is_match(&fs::read_to_string(file).unwrap()))
}

#[test]
fn every_promise_has_tests_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("## Four promises").unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| **")).take(4).collect();
    let name = Regex::new("`([a-z0-9_]+(?:::[a-z0-9_]+)+)`").unwrap();
    for promise in ["Nothing is lost", "Nothing is invented", "Nothing is paid twice", "It is there at once"] {
        let row = rows.iter().find(|row| row.contains(promise)).unwrap_or_else(|| panic!("{promise} is no row"));
        let tests: Vec<_> = name.captures_iter(row).map(|c| c[1].to_owned()).collect();
        assert!(tests.len() > 1, "{promise}: {tests:?}");
        for test in tests {
            assert!(is_test(&test), "{promise}: there is no test {test}");
        }
    }
}

const SESSION: &str = "591abe63-aa61-411d-a419-0b546729bbd0";
const PAYMENT: &str = "From: no-reply@resmic.com\r\nTo: payments@shop.example\r\nSubject: Payment received\r\n\r\n\
    Status: completed\r\nSession ID: 591abe63-aa61-411d-a419-0b546729bbd0\r\nAmount: $20\r\n\
    Transaction Hash: 0x1111111111111111111111111111111111111111111111111111111111111111\r\n";

/// The tables of a document by heading: each key with its type.
fn keys(document: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let row = Regex::new(r"^\| `(\w+)` \| ([a-z ]+) \|").unwrap();
    let (mut tables, mut heading) = (BTreeMap::<_, BTreeMap<_, _>>::new(), String::new());
    for line in fs::read_to_string(root().join(document)).unwrap().lines() {
        if let Some(title) = line.strip_prefix('#') {
            heading = title.trim_start_matches('#').trim().replace('`', "");
        } else if let Some(c) = row.captures(line) {
            tables.entry(heading.clone()).or_default().insert(c[1].to_owned(), c[2].to_owned());
        }
    }
    tables
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

#[test]
fn json_keys_and_types_match_the_documentation() {
    let labels = "[trust]\naccept = [\"none\"]\n[extract.labels]\nsession_id = [\"Session ID\"]\n";
    let home = Home::new(&account(1, &format!("{labels}{}", forward("http://127.0.0.1:1/", ""))));
    let mail = home.folder.path().join("mail.eml");
    fs::write(&mail, PAYMENT).unwrap();
    let mail = mail.to_str().unwrap();
    let mut tables = keys("docs/json.md");
    let mut compare = |heading: &str, object: &Map<String, Value>| {
        let documented = tables.remove(heading).unwrap_or_else(|| panic!("{heading} is not in docs/json.md"));
        let real: Vec<_> = object.keys().collect();
        assert_eq!(documented.keys().collect::<Vec<_>>(), real, "{heading}");
        for (key, kind) in documented {
            let real = type_of(&object[&key]);
            assert!(
                kind.split(" or ").any(|kind| kind == real),
                "{heading}: {key} is {real}, and documented as {kind}"
            );
        }
    };
    // `status` exits with 1 if it needs attention, so the exit code is not checked.
    let printed = |arguments: &[&str]| -> Map<String, Value> {
        let output = home.run(arguments);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}"))
    };
    let parsed = printed(&["parse", "--json", mail]);
    compare("parse --json", &parsed);
    compare("The event of parse --json", parsed["event"].as_object().unwrap());
    let imported = printed(&["import", "--json", mail]);
    compare("import --json", &imported);
    home.data(&["session", "add", SESSION, "--amount", "20"]);
    compare("session list --json", &printed(&["session", "list", "--json"]));
    let event = printed(&["events", "--json"]);
    compare("events --json", &event);
    let deliveries = printed(&["deliveries", "--json"]);
    compare("deliveries --json", &deliveries);
    let mails = printed(&["mails", "--json"]);
    compare("mails --json", &mails);
    let mut whole = printed(&["show", "--json", imported["event_id"].as_str().unwrap()]);
    assert_eq!([&whole["mails"], &whole["deliveries"]], [&Value::from(vec![mails]), &Value::from(vec![deliveries])]);
    whole.retain(|key, value| event.get(key) != Some(value));
    compare("show --json", &whole);
    let sqlite = rusqlite::Connection::open(home.database()).unwrap();
    sqlite.execute("INSERT INTO mailboxes (account, mailbox) VALUES ('shop', 'INBOX')", []).unwrap();
    let status = printed(&["status", "--json"]);
    compare("status --json", &status);
    compare("The mailboxes of status --json", status["mailboxes"][0].as_object().unwrap());
    compare("The accounts of status --json", status["accounts"][0].as_object().unwrap());
    compare("The parsing of status --json", status["parsing"].as_object().unwrap());
    sqlite.execute("INSERT INTO chains (chain_id, name, nodes) VALUES (11155111, 'Sepolia', '127.0.0.1')", []).unwrap();
    let chain = "[[chain]]\nname = \"Sepolia\"\nnodes = [{ command = [\"echo\", \"http://127.0.0.1:1\"] }]\n\
        wallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]\n[chain.tokens]\n\
        DAI = { contract = \"0x3c499c542cef5e3811e1192ce70d8cc03d5c3359\", decimals = 6 }\n";
    let file = home.folder.path().join("config.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + chain).unwrap();
    let status = printed(&["status", "--json"]);
    compare("The chains of status --json", status["chains"][0].as_object().unwrap());
    let stream = "INSERT INTO streams (target, stream, state, servers, changed_at) VALUES ('stream', 'PAID', 'connecting', 'x', 'now')";
    sqlite.execute(stream, []).unwrap();
    let nats = "[[forward]]\nname = \"stream\"\nnats = [\"nats://127.0.0.1:1\"]\nstream = \"PAID\"\nsubject = \"shop.paid\"\n\
        secret = { env = \"MAILHOOK_SECRET\" }\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + nats).unwrap();
    let status = printed(&["status", "--json"]);
    compare("The streams of status --json", status["streams"][0].as_object().unwrap());
    // No API answers here, but the keys are the same.
    let resmic = "[resmic]\nurl = \"http://127.0.0.1:1\"\napi_key = { command = [\"echo\", \"key\"] }\n\
        user_id = { command = [\"echo\", \"user\"] }\n";
    let text_before = fs::read_to_string(&file).unwrap();
    fs::write(&file, text_before.clone() + resmic).unwrap();
    let status = printed(&["status", "--json"]);
    compare("The resmic of status --json", status["resmic"].as_object().unwrap());
    compare("session check --json", &printed(&["session", "check", "--json", SESSION]));
    fs::write(&file, text_before).unwrap();
    // This mail reports a payment that a chain must confirm. The node of this chain does not answer.
    let paid = PAYMENT.replace("0x1111", "0x2222").replace("0b546729bbd0", "0b546729bbd1")
        + "Blockchain: Sepolia\r\nToken: DAI\r\nFrom Wallet: 0x056397760b973BfB921Bc10Be9DA5034B1e921d7\r\n";
    fs::write(mail, paid).unwrap();
    let event = printed(&["import", "--json", mail])["event_id"].as_str().unwrap().to_owned();
    let shown = printed(&["show", "--json", &event]);
    compare("The confirmation of events --json", shown["confirmation"].as_object().unwrap());
    let looked = printed(&["confirm", "--json", &event]);
    assert_eq!(looked["state"], "waiting");
    compare("confirm --json", &looked);
    compare("confirm --vouch --json", &printed(&["confirm", "--vouch", "--json", &event]));
    sqlite.execute("UPDATE mails SET outcome = 'ignored', event_id = NULL WHERE id = 1", []).unwrap();
    compare("reparse --json", &printed(&["reparse", "--json"]));
    // From here on, this host is a standby.
    let standby = "[standby]\nnats = [\"nats://127.0.0.1:1\"]\nbucket = \"leases\"\nname = \"shop\"\nhost = \"a\"\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + standby).unwrap();
    let mut report = StandbyFile::lock(&StandbyFile::path(home.folder.path(), "shop", "a")).unwrap();
    let view = LeaseView { ends: Some(BootInstant::now()), ..LeaseView::default() };
    report.write(&Report::new(&view, "", &KnownData::default()));
    let status = printed(&["status", "--json"]);
    assert_eq!(status["role"]["state"], "standby");
    compare("The role of status --json", status["role"].as_object().unwrap());
    assert!(tables.is_empty(), "nothing is printed with these: {tables:?}");
}
