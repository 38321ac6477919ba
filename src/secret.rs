//! Loads secrets from the sources that the configuration names. The secrets never appear in the configuration or in logs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

/// The folders from which the packaged unit loads credentials. The first list is for unencrypted credentials. The second list
/// is for encrypted credentials (systemd-creds(1)), and has the ending of the file names for each folder.
const PLAIN_FOLDERS: [&str; 2] = ["/etc/resmic-mailhook", "/etc/credstore"];
const ENCRYPTED_FOLDERS: [(&str, &str); 2] = [("/etc/resmic-mailhook", ".cred"), ("/etc/credstore.encrypted", "")];
/// The unit loads the whole folder `/etc/resmic-mailhook` under this id. systemd then puts the id and `_` before the name
/// of each file (systemd.exec(5), `LoadCredential=`).
const FOLDER_ID: &str = "resmic-mailhook";
/// The timeout of a command that prints a secret.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// The source of a secret: `{ credential = "name" }`, `{ file = "path" }`, `{ env = "NAME" }` or
/// `{ command = ["program", "argument"] }`. The secret is the whole content of this source, without the last line break.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// A systemd credential, in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), `LoadCredential=`).
    Credential(String),
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// The output of a program, which runs without a shell.
    Command(Vec<String>),
}

/// Parses the source of a secret. By mistake, an operator may write the secret itself into the configuration. The error of
/// `serde` would quote that secret, but the error of this function does not.
///
/// # Errors
/// The error of the deserializer, without the value.
pub fn deserialize_source<'de, D: Deserializer<'de>>(from: D) -> Result<SecretSource, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected { credential = \"name\" }, { file = \"path\" }, { env = \"NAME\" } or { command = [\"program\"] }; \
                     the configuration itself must not contain a secret"
    )]
    enum SecretTable {
        Source(SecretSource),
    }
    let SecretTable::Source(source) = SecretTable::deserialize(from)?;
    Ok(source)
}

/// Does the same as [`deserialize_source`] for a key that may be absent.
///
/// # Errors
/// The error of the deserializer, without the value.
pub fn deserialize_optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretSource>, D::Error> {
    deserialize_source(from).map(Some)
}

/// Why a secret cannot be loaded. The text names the source, but never contains the secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(String);

/// Removes a secret from the message of a server that received the secret.
///
/// A message that ends with `…` was truncated, perhaps in the middle of the secret. So the beginning of the secret is also
/// removed from the end of a truncated message, if at least four bytes of the secret are there.
pub(crate) fn redact(message: String, secret: &str) -> String {
    let message = message.replace(secret, "(secret)");
    let Some(truncated) = message.strip_suffix('…') else { return message };
    let mut prefixes = (4..=secret.len()).rev().filter_map(|end| secret.get(..end));
    match prefixes.find_map(|prefix| truncated.strip_suffix(prefix)) {
        Some(before) => format!("{before}(secret)…"),
        None => message,
    }
}

impl SecretSource {
    /// Loads the secret.
    ///
    /// # Errors
    /// [`SecretError`] if the secret does not exist, is empty, or is not UTF-8, or if a command fails or exceeds its timeout.
    pub async fn load(&self) -> Result<SecretString, SecretError> {
        let text = match self {
            SecretSource::Credential(name) => match locate_credential(name)? {
                CredentialFile::Plain(path) => read_file(&path, &format!("credential {name:?}"))?,
                CredentialFile::Encrypted(path) => run_command(&decrypt_command(name, &path)).await?,
            },
            SecretSource::File(path) => read_file(path, "secret file")?,
            SecretSource::Env(name) => std::env::var(name)
                .map_err(|_| SecretError(format!("environment variable {name} is not set, or not UTF-8")))?,
            SecretSource::Command(command) => run_command(command).await?,
        };
        let value = text.strip_suffix('\n').unwrap_or(&text);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(SecretError(format!("{self} is empty")));
        }
        Ok(SecretString::from(value))
    }

    /// The file to which a new secret can be written: the file that is read now, or the file that the unit will load.
    ///
    /// # Errors
    /// [`SecretError`], with advice, for a secret that is encrypted, in a variable, or printed by a program.
    pub fn file(&self) -> Result<PathBuf, SecretError> {
        match self {
            SecretSource::File(path) => Ok(path.clone()),
            SecretSource::Credential(name) => plain_file(Path::new("/"), name),
            SecretSource::Env(_) | SecretSource::Command(_) => {
                Err(SecretError(format!("{self}: a new secret can only be written to a file; use {{ file = \"…\" }}")))
            }
        }
    }

    /// Resolves a relative path against the folder `base`. A program's name without a slash stays unchanged, because the program
    /// is searched in `$PATH`.
    pub fn resolve_path(&mut self, base: &Path) {
        match self {
            SecretSource::File(path) => *path = base.join(&*path),
            SecretSource::Command(command) => {
                for program in command.iter_mut().take(1).filter(|program| program.contains('/')) {
                    *program = base.join(&*program).to_string_lossy().into_owned();
                }
            }
            SecretSource::Credential(_) | SecretSource::Env(_) => {}
        }
    }
}

impl std::fmt::Display for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SecretSource::Credential(name) => write!(f, "credential {name:?}"),
            SecretSource::File(path) => write!(f, "file {}", path.display()),
            SecretSource::Env(name) => write!(f, "environment variable {name}"),
            // The arguments are not shown, because they may be secrets.
            SecretSource::Command(command) => write!(f, "command {:?}", command.first().map_or("", String::as_str)),
        }
    }
}

/// The file of a credential.
#[derive(Debug, PartialEq, Eq)]
enum CredentialFile {
    Plain(PathBuf),
    Encrypted(PathBuf),
}

fn check_name(name: &str) -> Result<(), SecretError> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(SecretError(format!("credential {name:?}: a credential's name is a file name, without slashes")));
    }
    Ok(())
}

/// The file of an unencrypted credential below `root`. The file may be absent.
fn plain_file(root: &Path, name: &str) -> Result<PathBuf, SecretError> {
    check_name(name)?;
    match find_credential(root, name) {
        Some(CredentialFile::Plain(path)) => Ok(path),
        Some(CredentialFile::Encrypted(path)) => Err(SecretError(format!(
            "credential {name:?}: {} is encrypted, and the unit would prefer it to a new file; remove it and its drop-in first",
            path.display()
        ))),
        None => Ok(root.join(PLAIN_FOLDERS[0].trim_start_matches('/')).join(name)),
    }
}

fn locate_credential(name: &str) -> Result<CredentialFile, SecretError> {
    check_name(name)?;
    if let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        return loaded(Path::new(&folder), name).map(CredentialFile::Plain).ok_or_else(|| {
            SecretError(format!(
                "credential {name:?}: it is not in $CREDENTIALS_DIRECTORY ({}); put it into {}/{name} and restart the unit, or \
                 add it to the container's secrets",
                folder.display(),
                PLAIN_FOLDERS[0]
            ))
        });
    }
    // If an operator runs this program in a shell, systemd has not set `$CREDENTIALS_DIRECTORY`, so the secret is read from the
    // unit's files.
    find_credential(Path::new("/"), name).ok_or_else(|| {
        SecretError(format!(
            "credential {name:?}: there is no {}/{name}, and $CREDENTIALS_DIRECTORY, which systemd sets for a unit, is not \
             set; outside of systemd use {{ file = \"…\" }}",
            PLAIN_FOLDERS[0]
        ))
    })
}

/// The file of a credential in systemd's folder. A drop-in loads the credential under its own name. A file of
/// `/etc/resmic-mailhook` gets the prefix [`FOLDER_ID`] and `_`.
fn loaded(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(format!("{FOLDER_ID}_{name}"))].into_iter().find(|path| path.exists())
}

/// The first existing file of a credential below `root`.
fn find_credential(root: &Path, name: &str) -> Option<CredentialFile> {
    let at =
        |folder: &str, file: String| Some(root.join(folder.trim_start_matches('/')).join(file)).filter(|p| p.exists());
    let plain = PLAIN_FOLDERS.iter().find_map(|folder| at(folder, name.to_owned()).map(CredentialFile::Plain));
    plain.or_else(|| {
        ENCRYPTED_FOLDERS
            .iter()
            .find_map(|(folder, end)| at(folder, format!("{name}{end}")).map(CredentialFile::Encrypted))
    })
}

fn decrypt_command(name: &str, file: &Path) -> [String; 5] {
    let command = ["systemd-creds", "decrypt", &format!("--name={name}"), &file.to_string_lossy(), "-"];
    command.map(str::to_owned)
}

fn read_file(path: &Path, kind: &str) -> Result<String, SecretError> {
    std::fs::read_to_string(path).map_err(|e| SecretError(format!("{kind}: cannot read {}: {e}", path.display())))
}

async fn run_command(command: &[String]) -> Result<String, SecretError> {
    let (program, arguments) = command.split_first().ok_or_else(|| SecretError("command: names no program".into()))?;
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(COMMAND_TIMEOUT, child)
        .await
        .map_err(|_| SecretError(format!("command {program:?}: no answer within {} s", COMMAND_TIMEOUT.as_secs())))?
        .map_err(|e| SecretError(format!("command {program:?}: cannot run it: {e}")))?;
    if !output.status.success() {
        return Err(SecretError(format!("command {program:?}: {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|_| SecretError(format!("command {program:?}: its output is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn secrets_lose_their_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "two\nlines\n").unwrap();
        assert_eq!(SecretSource::File(path).load().await.unwrap().expose_secret(), "two\nlines");
        let echo = SecretSource::Command(vec!["printf".into(), "%s".into(), "x y".into()]);
        assert_eq!(echo.load().await.unwrap().expose_secret(), "x y");
    }

    #[test]
    fn relative_paths_start_at_the_configuration() {
        let program = |name: &str| SecretSource::Command(vec![name.into(), "a/b".into()]);
        for (mut source, resolved) in [
            (SecretSource::File("s".into()), SecretSource::File("/srv/s".into())),
            (program("bin/s"), program("/srv/bin/s")),
            (program("/bin/s"), program("/bin/s")),
            (program("pass"), program("pass")),
            (SecretSource::Command(Vec::new()), SecretSource::Command(Vec::new())),
        ] {
            source.resolve_path(Path::new("/srv"));
            assert_eq!(source, resolved);
        }
    }

    #[test]
    fn a_shell_finds_the_units_credentials() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
            path
        };
        assert_eq!(find_credential(root.path(), "k"), None);
        let encrypted = put("etc/credstore.encrypted/k");
        assert_eq!(find_credential(root.path(), "k"), Some(CredentialFile::Encrypted(encrypted)));
        let next_to_config = put("etc/resmic-mailhook/k.cred");
        assert_eq!(find_credential(root.path(), "k"), Some(CredentialFile::Encrypted(next_to_config)));
        let plain = put("etc/credstore/k");
        assert_eq!(find_credential(root.path(), "k"), Some(CredentialFile::Plain(plain)));
        let first = put("etc/resmic-mailhook/k");
        assert_eq!(find_credential(root.path(), "k"), Some(CredentialFile::Plain(first)));
    }

    #[test]
    fn a_credential_has_its_name_or_the_folders() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(loaded(folder.path(), "k"), None);
        let with_prefix = folder.path().join("resmic-mailhook_k");
        std::fs::write(&with_prefix, "x").unwrap();
        assert_eq!(loaded(folder.path(), "k"), Some(with_prefix));
        // An operator's drop-in names one credential on purpose, so the file that it loads takes precedence.
        let single = folder.path().join("k");
        std::fs::write(&single, "x").unwrap();
        assert_eq!(loaded(folder.path(), "k"), Some(single));
    }

    #[test]
    fn a_new_secret_goes_where_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/resmic-mailhook");
        assert_eq!(plain_file(root.path(), "k").unwrap(), etc.join("k"));
        let store = root.path().join("etc/credstore");
        std::fs::create_dir_all(&store).unwrap();
        std::fs::write(store.join("k"), "x").unwrap();
        assert_eq!(plain_file(root.path(), "k").unwrap(), store.join("k"));
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("e.cred"), "x").unwrap();
        let message = plain_file(root.path(), "e").unwrap_err().to_string();
        assert!(message.contains("e.cred is encrypted"), "{message}");
        assert!(plain_file(root.path(), "../k").is_err());
        assert_eq!(SecretSource::File("/srv/k".into()).file().unwrap(), Path::new("/srv/k"));
        assert!(SecretSource::Env("K".into()).file().is_err());
    }

    #[tokio::test]
    async fn errors_name_the_place_only() {
        let message = SecretSource::File("/nowhere/s".into()).load().await.unwrap_err().to_string();
        assert!(message.contains("/nowhere/s"), "{message}");
        let message =
            SecretSource::Command(vec!["false".into(), "s3cret".into()]).load().await.unwrap_err().to_string();
        assert!(message.contains("false") && !message.contains("s3cret"), "{message}");
        let message = SecretSource::Credential("../x".into()).load().await.unwrap_err().to_string();
        assert!(message.contains("without slashes"), "{message}");
    }
}
