//! `[standby]`: the settings of a daemon that shares its database with daemons on other hosts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::nats::{NatsServers, NatsSettings, NatsUrl};
use crate::secret::{self, SecretSource};

/// The longest name of a host, a bucket or a database.
const LONGEST_NAME: usize = 64;

/// The `[standby]` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "StandbyTable")]
pub struct StandbySettings {
    servers: NatsSettings,
    /// The key-value bucket with the lease. The TTL of this bucket is the length of the lease.
    pub bucket: String,
    /// The name of the shared database, which is the key in the bucket.
    pub name: String,
    host: Option<String>,
    /// The program that fetches a copy of the shared database before this host opens the database.
    pub restore: Option<RestoreSettings>,
}

/// All keys of the table `[standby]`. The keys of [`NatsSettings`] are repeated here, because serde's `flatten` would accept
/// unknown keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [standby]")]
struct StandbyTable {
    nats: Vec<NatsUrl>,
    #[serde(default)]
    allow_remote: bool,
    user: Option<String>,
    password: Option<SecretSource>,
    #[serde(default, deserialize_with = "secret::deserialize_optional")]
    token: Option<SecretSource>,
    client_certificate: Option<PathBuf>,
    #[serde(default, deserialize_with = "secret::deserialize_optional")]
    client_key: Option<SecretSource>,
    ca_file: Option<PathBuf>,
    bucket: String,
    name: String,
    host: Option<String>,
    restore: Option<RestoreSettings>,
}

impl From<StandbyTable> for StandbySettings {
    fn from(table: StandbyTable) -> Self {
        let servers = NatsSettings {
            servers: table.nats,
            allow_remote: table.allow_remote,
            user: table.user,
            password: table.password,
            token: table.token,
            client_certificate: table.client_certificate,
            client_key: table.client_key,
            ca_file: table.ca_file,
        };
        StandbySettings { servers, bucket: table.bucket, name: table.name, host: table.host, restore: table.restore }
    }
}

/// The key `restore` of `[standby]`: the program that fetches a copy of the shared database.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "RestoreValue")]
pub struct RestoreSettings {
    /// The program and its arguments, which are not passed to a shell.
    pub command: Vec<String>,
}

/// The value of `restore` in the configuration file. A derived `Deserialize` would also accept a list, and would name neither the
/// key `command` nor an example.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected { command = [\"program\", \"argument\"] }")]
enum RestoreValue {
    Table(RestoreTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestoreTable {
    command: Vec<String>,
}

impl From<RestoreValue> for RestoreSettings {
    fn from(RestoreValue::Table(RestoreTable { command }): RestoreValue) -> Self {
        RestoreSettings { command }
    }
}

/// The configuration key with the wrong value, and the problem.
type KeyProblem = (String, String);

impl StandbySettings {
    /// Checks the values of the table `[standby]`.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), KeyProblem> {
        self.servers.check()?;
        for (key, value) in [("bucket", &self.bucket), ("name", &self.name)] {
            if !is_name(value, "-_") {
                return Err((key.into(), format!("expected 1 to {LONGEST_NAME} of A-Z, a-z, 0-9, - and _")));
            }
        }
        if self.host.as_ref().is_some_and(|host| !is_name(host, "-_.")) {
            return Err(("host".into(), format!("expected 1 to {LONGEST_NAME} of A-Z, a-z, 0-9, -, _ and .")));
        }
        let program = self.restore.as_ref().map(|restore| restore.command.first());
        match program {
            Some(None) => Err(("restore.command".into(), "names no program".into())),
            Some(Some(program)) if program.is_empty() => Err(("restore.command".into(), "names no program".into())),
            _ => Ok(()),
        }
    }

    /// Resolves relative paths against the folder `base`. A program name without a slash stays unchanged, so that the program is
    /// searched in `$PATH`.
    pub fn resolve(&mut self, base: &Path) {
        self.servers.resolve(base);
        let command = self.restore.iter_mut().flat_map(|restore| restore.command.first_mut());
        for program in command.filter(|program| program.contains('/')) {
            *program = base.join(&*program).to_string_lossy().into_owned();
        }
    }

    /// This host's name in the lease: the key `host`, or the name of the machine.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn host(&self) -> Result<String, KeyProblem> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if is_name(&name, "-_.") {
            return Ok(name);
        }
        Err((
            "host".into(),
            "the name of this machine has other characters than A-Z, a-z, 0-9, -, _ and .; set a name".into(),
        ))
    }

    /// Reads the secrets and certificates for the NATS servers, and does not connect.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub async fn load_servers(&self) -> Result<NatsServers, KeyProblem> {
        self.servers.load().await
    }
}

/// Whether a name has 1 to 64 characters, each of them an ASCII letter, an ASCII digit or one of `others`.
fn is_name(name: &str, others: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &str) -> Result<StandbySettings, String> {
        let text = format!("nats = [\"nats://127.0.0.1\"]\nbucket = \"leases\"\nname = \"shop\"\n{keys}");
        let settings: StandbySettings = toml::from_str(&text).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, message)| format!("{key}: {message}"))?;
        Ok(settings)
    }

    #[test]
    fn the_host_has_a_default() {
        assert_eq!(parse("host = \"a\"").unwrap().host().unwrap(), "a");
        let machine = std::process::Command::new("uname").arg("-n").output().unwrap().stdout;
        assert_eq!(parse("").unwrap().host().unwrap(), String::from_utf8(machine).unwrap().trim());
    }

    #[test]
    fn errors_name_the_wrong_key() {
        for (keys, message) in [
            ("host = \"\"", "host: expected 1 to 64"),
            ("host = \"a b\"", "host: expected"),
            ("restore = { command = [] }", "restore.command: names no program"),
            ("restore = { command = [\"\"] }", "restore.command: names no program"),
            ("restore = { command = [\"x\"], shell = true }", "expected { command = "),
            ("user = \"x\"", "user: expected a `password`"),
            ("colour = \"red\"", "colour"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.contains(message), "{keys}: {error}");
        }
        for (key, value) in [("bucket", "a.b"), ("bucket", ""), ("name", "a>"), ("name", "*")] {
            let (bucket, name) = if key == "bucket" { (value, "n") } else { ("b", value) };
            let text = format!("nats = [\"nats://127.0.0.1\"]\nbucket = \"{bucket}\"\nname = \"{name}\"");
            assert_eq!(toml::from_str::<StandbySettings>(&text).unwrap().check().unwrap_err().0, key);
        }
    }

    #[test]
    fn relative_programs_start_at_the_configuration() {
        let resolved = |command: &str| {
            let mut settings = parse(&format!("restore = {{ command = [{command}] }}")).unwrap();
            settings.resolve(Path::new("/srv"));
            settings.restore.unwrap().command
        };
        assert_eq!(resolved("\"bin/fetch\", \"a/b\""), ["/srv/bin/fetch", "a/b"]);
        assert_eq!(resolved("\"litestream\""), ["litestream"]);
        assert_eq!(resolved("\"/bin/fetch\""), ["/bin/fetch"]);
    }
}
