//! `config.toml` and the documentation agree with the keys and values that the program accepts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use resmic_mailhook::config::Config;

/// Each table: its name in the documentation, and a file with an unknown key in it.
const TABLES: &[(&str, &str)] = &[
    ("", "zz = 1"),
    ("store", "[store]\nzz = 1"),
    ("account", "[[account]]\nzz = 1"),
    ("account.oauth2", "[[account]]\n[account.oauth2]\nzz = 1"),
    ("trust", "[trust]\nzz = 1"),
    ("dns", "[dns]\nzz = 1"),
    ("extract", "[extract]\nzz = 1"),
    ("extract.labels", "[extract.labels]\nzz = 1"),
    ("sessions", "[sessions]\nzz = 1"),
    ("forward", "[[forward]]\nzz = 1"),
    ("chain", "[[chain]]\nzz = 1"),
    ("standby", "[standby]\nzz = 1"),
    ("telemetry", "[telemetry]\nzz = 1"),
];

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn parse_config(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, text).unwrap();
    Config::read(&path).map_err(|e| e.to_string())
}

/// The keys of a table. The program lists them in its error about an unknown key.
fn keys(file: &str) -> BTreeSet<String> {
    let error = parse_config(file).unwrap_err();
    let expected = error.split_once("expected").unwrap_or_else(|| panic!("{error}")).1;
    let keys: BTreeSet<_> =
        Regex::new("`([A-Za-z0-9_]+)`").unwrap().captures_iter(expected).map(|c| c[1].to_owned()).collect();
    assert!(!keys.is_empty(), "{error}");
    keys
}

#[test]
fn the_example_is_accepted_with_its_optional_keys() {
    let text = fs::read_to_string(root("config.toml")).unwrap();
    let config = parse_config(&text).unwrap();
    assert_eq!((config.accounts.len(), config.forwards.len()), (1, 1));
    let optional = Regex::new(r"(?m)^# ([a-z_]+ = )").unwrap();
    assert!(optional.find_iter(&text).count() >= 4);
    let config = parse_config(&optional.replace_all(&text, "$1")).unwrap();
    assert!(config.telemetry.metrics.is_some() && config.sessions.address.is_some());
}

#[test]
fn access_tokens_replace_the_password_in_the_example() {
    let text = fs::read_to_string(root("config.toml")).unwrap();
    let indented =
        Regex::new(r"(?m)^#   (\[account\.oauth2\]|(?:token_url|device_url|auth_url|client_id|client_secret|refresh_token|scope) = .*)$")
            .unwrap();
    assert_eq!(indented.find_iter(&text).count(), 8);
    let both = indented.replace_all(&text, "$1");
    assert!(parse_config(&both).unwrap_err().contains("account[0].oauth2: expected either `password` or `oauth2`"));
    let without_password = Regex::new("(?m)^password = .*$").unwrap().replace(&both, "").into_owned();
    let error = parse_config(&without_password).unwrap_err();
    assert!(
        error.contains("account[0].oauth2.auth_url: expected either `device_url` or `auth_url`, not both"),
        "{error}"
    );
    for key in ["device_url", "auth_url"] {
        let one_way = Regex::new(&format!("(?m)^{key} = .*$")).unwrap().replace(&without_password, "").into_owned();
        let config = parse_config(&one_way).unwrap();
        assert!(config.accounts[0].oauth2.is_some() && config.accounts[0].password.is_none());
    }
}

#[test]
fn the_example_of_a_chain_is_accepted() {
    let text = fs::read_to_string(root("config.toml")).unwrap();
    let (before, rest) = text.split_once("# [[chain]]\n").unwrap();
    let (chain, after) = rest.split_once("\n\n").unwrap();
    let chain = Regex::new("(?m)^#   ").unwrap().replace_all(chain, "").into_owned();
    // These two keys are for chains that are not built in.
    let chain = chain.replace("id = 11155111\nnative = [\"SETH\", \"ethereum\"]\n", "");
    let config = parse_config(&format!("{before}[[chain]]\n{chain}\n\n{after}")).unwrap();
    let minimal = "[[chain]]\nname = \"Polygon\"\nnodes = [{ credential = \"polygon-node\" }]\n\
        wallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]\n[chain.tokens]\n\
        USDC = { contract = \"0x3c499c542cef5e3811e1192ce70d8cc03d5c3359\", decimals = 6, dollar = true }\n";
    let chain_of = |config: &Config| config.chains[0].chain().unwrap();
    assert_eq!(chain_of(&config), chain_of(&parse_config(minimal).unwrap()), "the example says the defaults");
}

#[test]
fn the_example_of_a_standby_is_accepted() {
    let text = fs::read_to_string(root("config.toml")).unwrap();
    let (before, rest) = text.split_once("# [standby]\n").unwrap();
    let (standby, after) = rest.split_once("\n\n").unwrap();
    let standby = Regex::new("(?m)^#   ").unwrap().replace_all(standby, "").into_owned();
    let config = |standby: &str| parse_config(&format!("{before}[standby]\n{standby}\n\n{after}"));
    assert!(config(&standby).unwrap_err().contains("standby.token: expected either"));
    let without_token = Regex::new("(?m)^token = .*$").unwrap().replace(&standby, "").into_owned();
    let found = config(&without_token).unwrap().standby.unwrap();
    assert_eq!((found.bucket.as_str(), found.name.as_str()), ("resmic-leases", "shop"));
    assert_eq!(found.host(), Ok("a".to_owned()));
    for key in ["password", "token", "client_key"] {
        let line = format!("{key} = \"hunter2\"");
        let error = config(&Regex::new(&format!("(?m)^{key} = .*$")).unwrap().replace(&standby, &line)).unwrap_err();
        assert!(error.contains("standby") && !error.contains("hunter2"), "{error}");
    }
    let error = config(&without_token.replace("tls://n1.example", "nats://192.0.2.1")).unwrap_err();
    assert!(error.contains("standby.nats: 192.0.2.1 is not a loopback address"), "{error}");
}

#[test]
fn a_confirmation_needs_a_chain() {
    let forward = "[[forward]]\nname = \"shop\"\nurl = \"http://127.0.0.1:1/\"\nsecret = { env = \"S\" }\n";
    let chain = "[[chain]]\nname = \"Base\"\nnodes = [{ env = \"N\" }]\nwallets = [\"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\"]\n";
    for word in ["require", "tell"] {
        let error = parse_config(&format!("{forward}confirm = \"{word}\"\n")).unwrap_err();
        assert!(error.contains("config.toml:5: forward[0].confirm: needs a [[chain]]"), "{error}");
        assert!(parse_config(&format!("{forward}confirm = \"{word}\"\n{chain}")).is_ok());
    }
    let error = parse_config(&format!("{chain}nodes = 1\n")).unwrap_err();
    assert!(error.contains("config.toml:5: "), "{error}");
    let error = parse_config(&chain.replace("{ env = \"N\" }", "\"https://node.example/hunter2\"")).unwrap_err();
    assert!(error.contains("chain[0].nodes") && !error.contains("hunter2"), "{error}");
}

#[test]
fn targets_of_a_stream_have_separate_subjects() {
    let target = |name: &str, keys: &str| {
        format!(
            "[[forward]]\nname = \"{name}\"\nnats = [\"nats://127.0.0.1\"]\nstream = \"PAID\"\nsecret = {{ env = \"S\" }}\n{keys}\n"
        )
    };
    let first = target("one", "subject = \"shop.paid\"\nstatuses = [\"completed\"]");
    let error = parse_config(&(first.clone() + &target("two", "subject = \"shop.paid\""))).unwrap_err();
    assert!(error.contains("forward[1].subject: target one publishes under the same subjects"), "{error}");
    for keys in ["subject = \"shop.other\"", "subject = \"shop.paid\"\nstatuses = [\"failed\"]"] {
        parse_config(&(first.clone() + &target("two", keys))).unwrap();
    }
}

#[test]
fn mailboxes_are_unique_and_move_needs_a_target() {
    let account = "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n\
        password = { credential = \"imap-password\" }\n";
    for (line, expected) in [
        (
            "mailboxes = [\"INBOX\", \"Orders\", \"inbox\"]",
            "config.toml:6: account[0].mailboxes: \"inbox\" is named twice",
        ),
        ("mailboxes = [\"\\\\Junk\", \"\\\\junk\"]", "is named twice"),
        ("after = { move = \"\" }", "config.toml:6: account[0].after: expected a mailbox's name"),
        ("after = { move = \"\\\\Trash\" }", "expected a mailbox's name"),
        ("after = { move = \"a\\nb\" }", "expected a mailbox's name"),
    ] {
        let error = parse_config(&format!("{account}{line}\n")).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
    let case_matters = "mailboxes = [\"Orders\", \"orders\"]\nafter = { move = \"Done\" }";
    assert!(parse_config(&format!("{account}{case_matters}\n")).is_ok());
}

#[test]
fn with_restore_the_move_target_is_watched() {
    let config = |after: &str, restore: &str| {
        parse_config(&format!(
            "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n\
             password = {{ credential = \"imap-password\" }}\n{after}\n\
             [standby]\nnats = [\"nats://127.0.0.1\"]\nbucket = \"leases\"\nname = \"shop\"\n{restore}\n"
        ))
    };
    let restore = "restore = { command = [\"fetch\"] }";
    let moves = "after = { move = \"Resmic\" }";
    let error = config(moves, restore).unwrap_err();
    let expected =
        "config.toml:6: account[0].after: with `restore` in [standby], add \"Resmic\" to `mailboxes` of this account";
    assert!(error.contains(expected), "{error}");
    let watched = |name: &str| format!("{moves}\nmailboxes = [\"INBOX\", {name:?}]");
    assert!(config(&watched("resmic"), restore).is_err(), "other names than INBOX depend on the case");
    for (after, restore) in [
        (watched("Resmic").as_str(), restore),
        ("after = { move = \"inbox\" }", restore),
        ("after = \"seen\"", restore),
        (moves, ""),
    ] {
        config(after, restore).unwrap();
    }
}

#[test]
fn errors_show_line_and_key() {
    let account = "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n\
        password = { credential = \"imap-password\" }\n";
    for (line, expected) in [
        ("port = abc", "config.toml:6: account[0].port: "),
        ("dedicated = yes", "config.toml:6: account[0].dedicated: "),
        ("tls = none", "config.toml:6: account[0].tls: "),
        ("max_size = \"1 MiB", "config.toml:6: max_size: "),
        ("user = \"payments@shop.example\"", "config.toml:6: user: duplicate key"),
        ("port = 0", "config.toml:6: account[0].port: expected a port, from 1 to 65535"),
        ("port = \"993\"", "config.toml:6: account[0].port: expected a port, from 1 to 65535, without quotes"),
        ("mailboxes = \"INBOX\"", "config.toml:6: account[0].mailboxes: expected a list, in brackets"),
        ("[telemetry]\nmetrics = 9464", "config.toml:7: telemetry.metrics: expected an address and a port"),
        (
            "[telemetry]\nmetrics = \"localhost:9464\"",
            "config.toml:7: telemetry.metrics: expected an address, no name,",
        ),
        ("dedicated = \"true\"", "config.toml:6: account[0].dedicated: expected true or false"),
        ("recipients = [\"shop\"]", "config.toml:6: account[0].recipients: \"shop\" is no address"),
        ("recipients = [\"@shop.example\"]", "config.toml:6: account[0].recipients: "),
        (
            "recipients = [\"a@shop.example\", \"Shop <b@shop.example>\"]",
            "config.toml:6: account[0].recipients: \"Shop",
        ),
        ("[store]\npath = \"\"", "config.toml:7: store.path: expected a path"),
        ("start = 5", "config.toml:6: account[0].start: expected \"all\", \"now\" or a date"),
        ("start = \"2025-03-05T03:36:00\"", "config.toml:6: account[0].start: expected \"all\", \"now\" or a date"),
        ("start = 2025-03-05T03:36:00Z", "config.toml:6: account[0].start: expected \"all\", \"now\" or a date"),
    ] {
        let error = parse_config(&format!("{account}{line}\n")).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn errors_name_the_expected_form() {
    let library =
        Regex::new(r"\b(struct|variant|newtype|tuple|sequence|map|string|boolean|field|wanted|invalid|[ui]\d+)\b")
            .unwrap();
    let values = ["1", "-1", "1.5", "true", "\"zz\"", "[\"zz\"]", "[1]", "{ zz = 1 }", "2025-01-01"];
    for (name, file) in TABLES {
        for key in keys(file) {
            for value in values {
                let Err(error) = parse_config(&file.replace("zz = 1", &format!("{key} = {value}"))) else { continue };
                let message = error.split_once(": ").unwrap().1;
                assert!(!library.is_match(message), "[{name}] {key} = {value}: {error}");
            }
        }
    }
    for (file, expected) in [
        ("[[account]]\nafter = \"move\"", "account[0].after: expected \"leave\", \"seen\" or { move = \"Resmic\" }"),
        ("[[account]]\nmax_size = 1", "account[0].max_size: expected a size in quotes, for example \"1 MiB\""),
        ("[[account]]\nidle_renew = 9", "account[0].idle_renew: expected a duration in quotes, for example \"9m\""),
        ("[[account]]\ntls = true", "account[0].tls: expected \"implicit\", \"starttls\" or \"none\""),
        ("[standby]\nrestore = \"x\"", "standby.restore: expected { command = [\"program\", \"argument\"] }"),
        ("[standby]\nrestore = [\"x\"]", "standby.restore: expected { command = [\"program\", \"argument\"] }"),
        ("trust = 1", "trust: expected a table: the keys below [trust]"),
    ] {
        let error = parse_config(file).unwrap_err();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

#[test]
fn invalid_utf8_is_reported_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    for (text, expected) in [
        (&b"[[account]]\nname = \"B\xf6rse\"\n"[..], "config.toml:2: name: expected UTF-8"),
        (b"# f\xfcr den Laden\n[[account]]\n", "config.toml:1: configuration: expected UTF-8"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn host_is_a_name_or_an_address() {
    let parse_with_host = |host: &str| {
        parse_config(&format!(
            "[[account]]\nname = \"shop\"\nhost = {host:?}\nuser = \"payments@shop.example\"\npassword = {{ env = \"A\" }}\n"
        ))
    };
    for host in ["", " ", "imap.example.com:993", "imaps://imap.example.com", "imap.example.com ", "[::1]", "a@b"] {
        let error = parse_with_host(host).unwrap_err();
        assert!(error.contains("config.toml:3: account[0].host: expected a host name"), "{host:?}: {error}");
    }
    for host in ["imap.example.com", "localhost", "mail", "127.0.0.1", "::1", "imap_1.example.com."] {
        assert!(parse_with_host(host).is_ok(), "{host}");
    }
}

#[test]
fn start_accepts_a_toml_date() {
    let start = |value: &str| {
        let config = parse_config(&format!(
            "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n\
             password = {{ credential = \"imap-password\" }}\nstart = {value}\n"
        ));
        format!("{:?}", config.unwrap().accounts[0].start)
    };
    assert_eq!(start("2025-03-05"), start("\"2025-03-05\""));
    assert_ne!(start("2025-03-05"), start("\"all\""));
}

#[test]
fn errors_do_not_quote_values_of_secrets() {
    let account = "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n";
    for line in [
        "password = \"hunter2\"",
        "password = hunter2",
        "password = \"hunter2",
        "password = { credential = hunter2 }",
        "password = { env = [\"hunter2\"] }",
        "oauth2 = \"hunter2\"",
        "oauth2 = { token_url = \"https://u:hunter2@login.example/\", client_id = \"a\", refresh_token = { env = \"A\" } }",
        "password = { env = \"A\" }\n[sessions]\naddress = \"hunter2\"",
        "password = { env = \"A\" }\npassword = \"hunter2\"",
        "password = { \"hunter2\" }",
        "password = { hunter2 = 1 }",
    ] {
        let error = parse_config(&format!("{account}{line}\n")).unwrap_err();
        assert!(error.contains("config.toml:") && !error.contains("hunter2"), "{line}: {error}");
    }
}

/// The tables that contain secrets, each with the keys of its secrets.
const SECRETS: [(&str, &[&str]); 7] = [
    ("[[account]]", &["password"]),
    ("[account.oauth2]", &["client_secret", "refresh_token"]),
    ("[sessions.address]", &["key"]),
    ("[[forward]]", &["secret", "password", "token", "client_key"]),
    ("[[chain]]", &["nodes"]),
    ("[resmic]", &["api_key", "user_id"]),
    ("[standby]", &["password", "token", "client_key"]),
];

#[test]
fn no_syntax_makes_an_error_quote_a_secret() {
    for (table, keys) in SECRETS {
        let account = if table == "[account.oauth2]" { "[[account]]\n" } else { "" };
        for key in keys {
            for line in [
                format!("{key} = \"hunter2\""),
                format!("{key} = hunter2"),
                format!("{key} = [\"hunter2\"]"),
                format!("{key} = {{ hunter2 }}"),
                format!("{key} = {{ hunter2 = 1 }}"),
                format!("{key}.hunter2 = 1\n{key}.hunter2 = 1"),
            ] {
                let error = parse_config(&format!("{account}{table}\n{line}\n")).unwrap_err();
                assert!(error.contains("config.toml:") && !error.contains("hunter2"), "{table} {line}: {error}");
            }
        }
    }
}

#[test]
fn the_table_of_secrets_is_complete() {
    let field =
        Regex::new(r"(?m)^    (?:pub )?(\w+): (?:Option<|Vec<)?(?:secret::)?(?:SecretSource|NodeSource)\b").unwrap();
    let mut found = 0;
    for file in sources(&root("src")) {
        for name in field.captures_iter(&fs::read_to_string(&file).unwrap()).map(|c| c[1].to_owned()) {
            assert!(SECRETS.iter().any(|(_, keys)| keys.contains(&name.as_str())), "{name} in {}", file.display());
            found += 1;
        }
    }
    assert!(found >= 12, "{found}");
}

/// The Rust files in a folder and the folders in it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The TOML blocks of a page, each with the line before it.
fn snippets(page: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root(page)).unwrap();
    let block = Regex::new(r"(?ms)^([^\n]*)\n\n?```toml\n(.*?)^```").unwrap();
    block.captures_iter(&text).map(|c| (c[1].to_owned(), c[2].to_owned())).collect()
}

#[test]
fn examples_for_mail_providers_are_accepted() {
    let snippets = snippets("docs/mail-providers.md");
    assert!(snippets.len() >= 6, "{snippets:?}");
    let (mut passwords, mut tokens) = (0, 0);
    for (before, snippet) in snippets {
        let config = parse_config(&snippet).unwrap_or_else(|error| panic!("after {before:?}: {error}"));
        for account in &config.accounts {
            passwords += usize::from(account.password.is_some());
            tokens += usize::from(account.oauth2.is_some());
        }
    }
    assert!(passwords >= 4 && tokens >= 2, "{passwords} {tokens}");
}

#[test]
fn the_example_shows_the_defaults() {
    let text = fs::read_to_string(root("config.toml")).unwrap();
    let example = parse_config(&text).unwrap();
    let minimal = "[[account]]\nname = \"shop\"\nhost = \"imap.example.com\"\nuser = \"payments@shop.example\"\n\
        password = { credential = \"imap-password\" }\n[[forward]]\nname = \"shop\"\n\
        url = \"http://127.0.0.1:3000/payment-webhook\"\nsecret = { credential = \"webhook-secret\" }\n";
    let default = parse_config(minimal).unwrap();
    let account = |config: &Config| format!("{:?} {}", config.accounts[0], config.accounts[0].port());
    let without_port = |text: String| text.replace("port: Some(993)", "port: None");
    assert_eq!(without_port(account(&example)), without_port(account(&default)));
    assert_eq!(format!("{:?}", example.forwards), format!("{:?}", default.forwards));
    for (example, default) in [
        (format!("{:?}", example.trust), format!("{:?}", default.trust)),
        (format!("{:?}", example.dns), format!("{:?}", default.dns)),
        (format!("{:?}", example.extract), format!("{:?}", default.extract)),
        (format!("{:?}", example.sessions), format!("{:?}", default.sessions)),
        (format!("{:?}", example.telemetry), format!("{:?}", default.telemetry)),
    ] {
        assert_eq!(example, default);
    }
}

#[test]
fn example_and_documentation_have_every_key() {
    let example = fs::read_to_string(root("config.toml")).unwrap();
    let docs = fs::read_to_string(root("docs/configuration.md")).unwrap();
    let row = Regex::new(r"(?m)^\| `([A-Za-z0-9_]+)` \|").unwrap();
    for (table, file) in TABLES {
        let known = keys(file);
        if !table.is_empty() {
            let section =
                docs.split("\n## ").find(|s| s.lines().next().is_some_and(|l| l.contains(&format!("[{table}]"))));
            let section = section.unwrap_or_else(|| panic!("docs/configuration.md has no section [{table}]"));
            let documented: BTreeSet<_> = row.captures_iter(section).map(|c| c[1].to_owned()).collect();
            // A nested table has its own section.
            let own = |key: &&String| !TABLES.iter().any(|(t, _)| **t == format!("{table}.{key}"));
            assert_eq!(documented, known.iter().filter(own).cloned().collect(), "docs/configuration.md, [{table}]");
        }
        for key in known {
            let written = Regex::new(&format!(r"(?m)^(# +)?(\[+([a-z]+\.)?{key}[.\]]|{key} = )")).unwrap();
            assert!(written.is_match(&example), "config.toml does not have {key} of [{table}]");
        }
    }
}
