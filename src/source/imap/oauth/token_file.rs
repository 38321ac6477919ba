//! A refresh token that outlives the process: in a file beside the database, because a token endpoint may replace the
//! one that was configured (RFC 6749, 6) and let it end.

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

/// The most of a refresh token that is kept. Microsoft's have about 2,000 characters.
const MAX_LENGTH: usize = 16 * 1024;
/// How many names that somebody else has are passed by.
const MAX_NAMES: usize = 100;
/// Makes the names of unfinished files differ within the process; its number does among others, but for what one of the
/// same number has left behind.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// The file. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct TokenFile(Arc<Path>);

impl TokenFile {
    /// The file in `folder` for the newest successor of a configured token. Who configures another token, endpoint or
    /// client begins afresh; no name that a person chose becomes a path.
    pub(super) fn new(folder: &Path, configured: &SecretString, settings: &OAuthSettings) -> Self {
        let mut sum = digest::Context::new(&digest::SHA256);
        for part in [configured.expose_secret(), &settings.token_url.to_string(), &settings.client_id] {
            sum.update(&part.len().to_be_bytes());
            sum.update(part.as_bytes());
        }
        TokenFile(folder.join(format!("oauth-{}", HEXLOWER.encode(sum.finish().as_ref()))).into())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The token that is kept; `None` if there is none, or what is there is none, which is said.
    pub(super) async fn read(&self) -> Option<SecretString> {
        let file = self.clone();
        let found = run_blocking(move || read_token(&file.0)).await;
        found.unwrap_or_else(|error| {
            tracing::warn!("cannot use the refresh token that is kept in {}: {error}; it is ignored", self.0.display());
            None
        })
    }

    /// Keeps this one in place of what was kept. When it is done, it outlasts a power cut.
    ///
    /// # Errors
    /// What the system says; what was kept is still there.
    pub(super) async fn write(&self, token: &SecretString) -> io::Result<()> {
        let (file, token) = (self.clone(), token.clone());
        run_blocking(move || write_token(&file.0, &token)).await
    }
}

/// Where waiting for a disk holds up nobody.
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

/// The characters of RFC 6749, A.17, and not too many.
fn check_characters(text: &str) -> io::Result<&str> {
    let is_token = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(|b| matches!(b, b' '..=b'~'));
    if is_token { Ok(text) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "this is no refresh token")) }
}

fn write_token(path: &Path, token: &SecretString) -> io::Result<()> {
    let text = check_characters(token.expose_secret())?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `check --connect` comes before the first start, which makes it.
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (part, file) = create_part_file(path)?;
    let whole = write_part_file(file, text, folder).and_then(|()| fs::rename(&part, path));
    // Nothing may be left of one that did not get its name: the disk may be full.
    whole.inspect_err(|_| drop(fs::remove_file(&part)))?;
    File::open(folder)?.sync_all()
}

/// A new file that nobody else can read, under a name of its own: one that two wrote at once would be nobody's token.
fn create_part_file(path: &Path) -> io::Result<(PathBuf, File)> {
    let new = || {
        let number = PARTS.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map(|file| (part, file))
    };
    let is_taken = |made: &io::Result<_>| matches!(made, Err(e) if e.kind() == io::ErrorKind::AlreadyExists);
    (1..MAX_NAMES).map(|_| new()).find(|made| !is_taken(made)).unwrap_or_else(new)
}

fn write_part_file(mut file: File, token: &str, folder: &Path) -> io::Result<()> {
    match_owner(&file, folder);
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()
}

/// What root writes (`check --connect`) is the daemon's, whose the folder is: it could not read it.
fn match_owner(file: &File, folder: &Path) {
    if let (Ok(folder), Ok(own)) = (folder.metadata(), file.metadata())
        && (folder.uid(), folder.gid()) != (own.uid(), own.gid())
    {
        // Who is not root must not, and the file is their own.
        let _ = fchown(file, Some(folder.uid()), Some(folder.gid()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, client: &str) -> OAuthSettings {
        let rest = "refresh_token = { env = \"R\" }";
        toml::from_str(&format!("token_url = \"{url}\"\nclient_id = \"{client}\"\n{rest}")).unwrap()
    }

    fn token_file(folder: &Path, configured: &str) -> TokenFile {
        TokenFile::new(folder, &configured.to_owned().into(), &settings("https://login.example/token", "shop"))
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_newest_is_kept_for_its_owner_alone_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let cached = token_file(&folder.path().join("not/yet"), "first");
        assert!(cached.read().await.is_none());
        assert!(names(folder.path()).is_empty(), "reading makes nothing");
        for token in ["second", "third\\\"'~ !"] {
            cached.write(&token.to_owned().into()).await.unwrap();
            assert_eq!(cached.read().await.unwrap().expose_secret(), token);
            assert_eq!(fs::metadata(&cached.0).unwrap().mode() & 0o7777, 0o600);
        }
        let inside = cached.0.parent().unwrap();
        assert_eq!(fs::metadata(inside).unwrap().mode() & 0o777, 0o700);
        assert_eq!(names(inside).len(), 1, "{:?}", names(inside));
    }

    #[tokio::test]
    async fn it_belongs_to_whom_the_folder_belongs() {
        let folder = tempfile::tempdir().unwrap();
        // Only root can give a folder away; for anybody else it is theirs, and so is the file.
        let _ = std::os::unix::fs::chown(folder.path(), Some(1234), Some(2345));
        let cached = token_file(folder.path(), "first");
        cached.write(&"second".to_owned().into()).await.unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|of| (of.uid(), of.gid())).unwrap();
        assert_eq!(owner(&cached.0), owner(folder.path()));
    }

    #[tokio::test]
    async fn what_was_kept_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cached = token_file(folder.path(), "first");
        cached.write(&"second".to_owned().into()).await.unwrap();
        let mut open = File::open(&cached.0).unwrap();
        // Left behind by one that was killed, and had the same number.
        for number in PARTS.load(Ordering::Relaxed)..PARTS.load(Ordering::Relaxed) + 5 {
            let part = cached.0.with_extension(format!("{}-{number}.part", std::process::id()));
            fs::write(part, "half a tok").unwrap();
        }
        cached.write(&"third".to_owned().into()).await.unwrap();
        let mut before = String::new();
        open.read_to_string(&mut before).unwrap();
        assert_eq!(before, "second\n", "who had it open reads what it was");
        assert_eq!(cached.read().await.unwrap().expose_secret(), "third");
    }

    #[tokio::test]
    async fn what_is_no_token_is_neither_read_nor_written() {
        let folder = tempfile::tempdir().unwrap();
        let cached = token_file(folder.path(), "first");
        let long = "x".repeat(MAX_LENGTH + 1);
        for garbage in ["", "\n", "two\nlines\n", "tab\t", "caf\u{e9}", "\0", &long, &format!("{long}\n")] {
            fs::write(&cached.0, garbage).unwrap();
            assert!(cached.read().await.is_none(), "{garbage:?}");
            let text = garbage.strip_suffix('\n').unwrap_or(garbage);
            assert!(cached.write(&text.to_owned().into()).await.is_err(), "{garbage:?}");
            assert_eq!(fs::read_to_string(&cached.0).unwrap(), garbage, "it is left as it was");
        }
        fs::write(&cached.0, b"\xff\xfe").unwrap();
        assert!(cached.read().await.is_none());
        fs::remove_file(&cached.0).unwrap();
        fs::create_dir(&cached.0).unwrap();
        assert!(cached.read().await.is_none());
        assert!(cached.write(&"second".to_owned().into()).await.is_err(), "a folder is not replaced");
        assert_eq!(names(folder.path()).len(), 1, "nothing is left: {:?}", names(folder.path()));
        fs::remove_dir(&cached.0).unwrap();
        let longest = "x".repeat(MAX_LENGTH);
        cached.write(&longest.clone().into()).await.unwrap();
        assert_eq!(cached.read().await.unwrap().expose_secret(), longest);
    }

    #[test]
    fn another_grant_is_another_file_and_shows_nothing_of_it() {
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
