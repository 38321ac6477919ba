//! The file of the newest refresh token, next to the database. A token endpoint may replace the configured token and then reject
//! the old one (RFC 6749, 6).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use ring::digest;
use secrecy::{ExposeSecret, SecretString};

use super::OAuthSettings;

/// The longest refresh token, in bytes. Microsoft's refresh tokens have about 2,000 bytes.
const MAX_LENGTH: usize = 16 * 1024;
/// How many names are tried for a temporary file.
const MAX_NAMES: usize = 100;
/// The number of the next temporary file. This number and the process id make the file's name unique, except for files that a
/// killed process with the same id left behind.
static PART_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The file with the newest refresh token. A clone shares the path.
#[derive(Debug, Clone)]
pub(super) struct TokenFile(Arc<Path>);

impl TokenFile {
    /// The file in `folder` for the newest replacement of a configured token. Another configured token, endpoint or client has
    /// another file. The name of the file is a hash, so no configured text becomes a path.
    pub(super) fn new(folder: &Path, configured: &SecretString, settings: &OAuthSettings) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        for input in [configured.expose_secret(), &settings.token_url.to_string(), &settings.client_id] {
            hash.update(&input.len().to_be_bytes());
            hash.update(input.as_bytes());
        }
        TokenFile(folder.join(format!("oauth-{}", HEXLOWER.encode(hash.finish().as_ref()))).into())
    }

    /// The path of the token file.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the stored refresh token; `None` if there is no file. A file without a valid refresh token is logged and ignored.
    pub(super) async fn read(&self) -> Option<SecretString> {
        let file = self.clone();
        let found = run_blocking(move || read_token(&file.0)).await;
        found.unwrap_or_else(|error| {
            tracing::warn!("cannot use the refresh token in {}: {error}; ignoring it", self.0.display());
            None
        })
    }

    /// Replaces the stored refresh token. When this method returns without an error, the new token survives a power cut.
    ///
    /// # Errors
    /// The I/O error. The file is unchanged after an error, unless only the fsync of the folder failed.
    pub(super) async fn write(&self, token: &SecretString) -> io::Result<()> {
        let (file, token) = (self.clone(), token.clone());
        run_blocking(move || write_token(&file.0, &token)).await
    }
}

/// Runs file operations on a thread where they may block.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn read_token(path: &Path) -> io::Result<Option<SecretString>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = String::new();
    file.take(MAX_LENGTH as u64 + 2).read_to_string(&mut text)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    check_characters(text).map(|text| Some(SecretString::from(text)))
}

/// Returns the text if it is a refresh token (RFC 6749, A.17) of acceptable length.
fn check_characters(text: &str) -> io::Result<&str> {
    let is_token = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~'));
    if is_token { Ok(text) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "it contains no refresh token")) }
}

fn write_token(path: &Path, token: &SecretString) -> io::Result<()> {
    let text = check_characters(token.expose_secret())?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `check --connect` may run before the first start of the daemon, which creates the folder.
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (part, file) = create_part_file(path)?;
    let written = write_part_file(file, text, folder).and_then(|()| fs::rename(&part, path));
    // Remove the temporary file after an error: the disk may be full.
    written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    File::open(folder)?.sync_all()
}

/// Creates a temporary file with mode 0600 and a unique name, so that two processes never write the same file.
fn create_part_file(path: &Path) -> io::Result<(PathBuf, File)> {
    let create = || {
        let number = PART_NUMBER.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map(|file| (part, file))
    };
    let is_taken = |result: &io::Result<_>| matches!(result, Err(e) if e.kind() == io::ErrorKind::AlreadyExists);
    (1..MAX_NAMES).map(|_| create()).find(|result| !is_taken(result)).unwrap_or_else(create)
}

fn write_part_file(mut file: File, token: &str, folder: &Path) -> io::Result<()> {
    if let Err(error) = match_owner(&file, folder) {
        // The token is stored although the file has the wrong owner, because the endpoint may reject the older token.
        tracing::warn!(
            "cannot give the new refresh token to the owner of {}: {error}; change the owner of the newest oauth-… file there, so \
             that the daemon can read it",
            folder.display()
        );
    }
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()
}

/// Gives the file to the owner of the folder. Otherwise the daemon could not read a file that root writes with `check --connect`.
fn match_owner(file: &File, folder: &Path) -> io::Result<()> {
    let (owner, own) = (folder.metadata()?, file.metadata()?);
    if (owner.uid(), owner.gid()) == (own.uid(), own.gid()) {
        return Ok(());
    }
    let changed = fchown(file, Some(owner.uid()), Some(owner.gid()));
    // The file's mode 0600 gives the group no permission, so a wrong group is no error.
    if owner.uid() == own.uid() { Ok(()) } else { changed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, client: &str) -> OAuthSettings {
        let other_keys = "refresh_token = { env = \"R\" }";
        toml::from_str(&format!("token_url = \"{url}\"\nclient_id = \"{client}\"\n{other_keys}")).unwrap()
    }

    fn token_file(folder: &Path, configured: &str) -> TokenFile {
        TokenFile::new(folder, &configured.to_owned().into(), &settings("https://login.example/token", "shop"))
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn only_the_owner_reads_the_newest_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = token_file(&folder.path().join("not/yet"), "first");
        assert!(file.read().await.is_none());
        assert!(names(folder.path()).is_empty(), "reading makes nothing");
        for token in ["second", "third\\\"'~ !"] {
            file.write(&token.to_owned().into()).await.unwrap();
            assert_eq!(file.read().await.unwrap().expose_secret(), token);
            assert_eq!(fs::metadata(&file.0).unwrap().mode() & 0o7777, 0o600);
        }
        let parent = file.0.parent().unwrap();
        assert_eq!(fs::metadata(parent).unwrap().mode() & 0o777, 0o700);
        assert_eq!(names(parent).len(), 1, "{:?}", names(parent));
    }

    #[tokio::test]
    async fn the_file_has_the_folders_owner() {
        let folder = tempfile::tempdir().unwrap();
        // Only root can change the owner. Other users own both the folder and the file.
        let _ = std::os::unix::fs::chown(folder.path(), Some(1234), Some(2345));
        let file = token_file(folder.path(), "first");
        file.write(&"second".to_owned().into()).await.unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid())).unwrap();
        assert_eq!(owner(&file.0), owner(folder.path()));
    }

    #[test]
    fn an_owner_that_cannot_be_set_is_reported() {
        let file = tempfile::tempfile().unwrap();
        // Only root can give a file to root.
        let matched = match_owner(&file, Path::new("/"));
        assert_eq!(matched.is_ok(), file.metadata().unwrap().uid() == 0, "{matched:?}");
    }

    #[tokio::test]
    async fn the_file_is_replaced_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let file = token_file(folder.path(), "first");
        file.write(&"second".to_owned().into()).await.unwrap();
        let mut open = File::open(&file.0).unwrap();
        // These files are like the temporary files that a killed process with the same id leaves behind.
        for number in PART_NUMBER.load(Ordering::Relaxed)..PART_NUMBER.load(Ordering::Relaxed) + 5 {
            let part = file.0.with_extension(format!("{}-{number}.part", std::process::id()));
            fs::write(part, "half a tok").unwrap();
        }
        file.write(&"third".to_owned().into()).await.unwrap();
        let mut before = String::new();
        open.read_to_string(&mut before).unwrap();
        assert_eq!(before, "second\n", "an open file keeps the old token");
        assert_eq!(file.read().await.unwrap().expose_secret(), "third");
    }

    #[tokio::test]
    async fn invalid_tokens_are_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = token_file(folder.path(), "first");
        let long = "x".repeat(MAX_LENGTH + 1);
        for garbage in ["", "\n", "two\nlines\n", "tab\t", "caf\u{e9}", "\0", &long, &format!("{long}\n")] {
            fs::write(&file.0, garbage).unwrap();
            assert!(file.read().await.is_none(), "{garbage:?}");
            let text = garbage.strip_suffix('\n').unwrap_or(garbage);
            assert!(file.write(&text.to_owned().into()).await.is_err(), "{garbage:?}");
            assert_eq!(fs::read_to_string(&file.0).unwrap(), garbage, "it is left as it was");
        }
        fs::write(&file.0, b"\xff\xfe").unwrap();
        assert!(file.read().await.is_none());
        fs::remove_file(&file.0).unwrap();
        fs::create_dir(&file.0).unwrap();
        assert!(file.read().await.is_none());
        assert!(file.write(&"second".to_owned().into()).await.is_err(), "a folder is not replaced");
        assert_eq!(names(folder.path()).len(), 1, "nothing is left: {:?}", names(folder.path()));
        fs::remove_dir(&file.0).unwrap();
        let longest = "x".repeat(MAX_LENGTH);
        file.write(&longest.clone().into()).await.unwrap();
        assert_eq!(file.read().await.unwrap().expose_secret(), longest);
    }

    #[test]
    fn each_grant_has_its_own_file() {
        let at = |token: &str, url, client| {
            TokenFile::new(Path::new("/f"), &token.to_owned().into(), &settings(url, client))
        };
        let url = "https://login.example/token";
        let first = at("s3cret/../../x", url, "shop");
        assert_eq!(first.0, at("s3cret/../../x", url, "shop").0);
        let others = [
            at("s3cret", url, "shop"),
            at("s3cret/../../x", "https://login.example/v2", "shop"),
            at("s3cret/../../x", url, "p"),
        ];
        for other in &others {
            assert_ne!(first.0, other.0);
        }
        assert_eq!(first.0.parent().unwrap(), Path::new("/f"));
        let name = first.0.file_name().unwrap().to_str().unwrap();
        assert!(name.strip_prefix("oauth-").is_some_and(|hex| hex.len() == 64), "{name}");
        assert!(!format!("{first:?}").contains("s3cret"));
    }
}
