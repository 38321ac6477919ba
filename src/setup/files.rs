//! Creates files that are either complete or absent, and never overwrites a file. Also replaces a secret file atomically.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Files and folders that were created together. All these files and folders are removed on drop, unless [`NewFiles::keep`] is
/// called.
#[derive(Debug, Default)]
pub struct NewFiles {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl NewFiles {
    /// Creates a folder and its missing parents, each with mode 0755. Existing folders stay unchanged.
    ///
    /// # Errors
    /// An error of the system.
    pub fn create_folder(&mut self, folder: &Path) -> io::Result<()> {
        let absent: Vec<_> = folder.ancestors().take_while(|path| !is_here(path)).collect();
        for path in absent.into_iter().rev() {
            DirBuilder::new().mode(0o755).create(path)?;
            self.folders.push(path.to_owned());
            // The daemon runs as another user and reads the configuration in this folder. The umask may have removed the
            // permissions that the daemon needs.
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Creates a file with this mode and content. Another process sees the whole file or none.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the file exists; the existing file is not changed. Other errors are errors of the
    /// operating system.
    pub fn create_file(&mut self, path: &Path, mode: u32, content: &str) -> io::Result<()> {
        let (part, mut file) = unfinished(path, mode)?;
        // link(2) fails if the file exists; rename(2) would replace it.
        let linked = fill(&mut file, mode, content).and_then(|()| fs::hard_link(&part, path));
        let removed = fs::remove_file(&part);
        linked?;
        self.files.push(path.to_owned());
        removed
    }

    /// Keeps the files and folders, which then also survive a power cut.
    ///
    /// # Errors
    /// An error of the system, after which all new files and folders are removed.
    pub fn keep(mut self) -> io::Result<()> {
        for folder in self.files.iter().chain(&self.folders).map(|path| folder_of(path)) {
            File::open(folder)?.sync_all()?;
        }
        self.files.clear();
        self.folders.clear();
        Ok(())
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        // An error cannot be reported here. A folder stays if another program has put a file into it.
        for file in self.files.drain(..) {
            let _ = fs::remove_file(file);
        }
        for folder in self.folders.drain(..).rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A secret file (0600) that will take the place of `path`. If this value is dropped without [`Replacement::commit`], the file at
/// `path` is unchanged.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    part: PathBuf,
    file: File,
}

impl Replacement {
    /// Creates the new file under a temporary name, with the owner of the existing file. So a folder without write permission,
    /// and an owner that cannot be kept, are detected early.
    ///
    /// # Errors
    /// An error of the system.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let (part, file) = unfinished(path, 0o600)?;
        let replacement = Replacement { path: path.to_owned(), part, file };
        replacement.match_owner()?;
        Ok(replacement)
    }

    fn match_owner(&self) -> io::Result<()> {
        let Ok(older) = fs::metadata(&self.path) else { return Ok(()) };
        let changed = fchown(&self.file, Some(older.uid()), Some(older.gid()));
        // The mode gives the group no permission, so only the user matters.
        if older.uid() == self.file.metadata()?.uid() { Ok(()) } else { changed }
    }

    /// Writes the content and replaces the older file.
    ///
    /// # Errors
    /// An error of the system. The older file still exists after an error, unless only the sync of the folder has failed.
    pub fn commit(mut self, content: &str) -> io::Result<()> {
        fill(&mut self.file, 0o600, content)?;
        fs::rename(&self.part, &self.path)?;
        File::open(folder_of(&self.path))?.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit, the temporary name does not exist.
        let _ = fs::remove_file(&self.part);
    }
}

/// Creates a temporary file next to `path`. The name of this file begins with a dot, so that the unit does not load it as a
/// credential.
fn unfinished(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let part = folder_of(path).join(format!(".{name}.{}.part", std::process::id()));
    let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(&part);
    let file = create().or_else(|error| match error.kind() {
        // A killed process with the same id has left this file.
        io::ErrorKind::AlreadyExists => fs::remove_file(&part).and_then(|()| create()),
        _ => Err(error),
    })?;
    Ok((part, file))
}

fn fill(file: &mut File, mode: u32, content: &str) -> io::Result<()> {
    // The umask may have removed permissions.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// The folder of a file; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a folder exists; the empty path is the current folder.
fn is_here(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn new_files_have_their_modes_and_stay() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/mailhook");
        let mut new = NewFiles::default();
        new.create_folder(&folder).unwrap();
        new.create_file(&folder.join("secret"), 0o600, "s\n").unwrap();
        new.create_file(&folder.join("config.toml"), 0o644, "c\n").unwrap();
        new.keep().unwrap();
        assert_eq!(names(&folder), ["config.toml", "secret"]);
        assert_eq!((mode(&folder.join("secret")), mode(&folder.join("config.toml"))), (0o600, 0o644));
        assert_eq!(fs::read_to_string(folder.join("secret")).unwrap(), "s\n");
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("secret");
        fs::write(&path, "older").unwrap();
        let mut new = NewFiles::default();
        let error = new.create_file(&path, 0o600, "newer").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop(new);
        assert_eq!(fs::read_to_string(&path).unwrap(), "older");
        assert_eq!(names(root.path()), ["secret"]);
        let link = root.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(NewFiles::default().create_file(&link, 0o600, "x").is_err(), "a link counts as a file");
    }

    #[test]
    fn files_that_are_not_kept_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let mut new = NewFiles::default();
        new.create_folder(&root.path().join("a/b")).unwrap();
        new.create_file(&root.path().join("a/b/secret"), 0o600, "s").unwrap();
        drop(new);
        assert_eq!(names(root.path()), Vec::<String>::new());
    }

    #[test]
    fn a_replacement_changes_nothing_until_its_commit() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("token");
        fs::write(&path, "older").unwrap();
        drop(Replacement::begin(&path).unwrap());
        assert_eq!((names(root.path()), fs::read_to_string(&path).unwrap()), (vec!["token".into()], "older".into()));
        Replacement::begin(&path).unwrap().commit("newer\n").unwrap();
        assert_eq!((names(root.path()), fs::read_to_string(&path).unwrap()), (vec!["token".into()], "newer\n".into()));
        assert_eq!(mode(&path), 0o600);
        assert!(Replacement::begin(&root.path().join("no/token")).is_err());
    }

    #[test]
    fn a_replacement_keeps_the_owner_or_fails() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("token");
        fs::write(&path, "older").unwrap();
        if std::os::unix::fs::chown(&path, Some(1234), Some(2345)).is_ok() {
            Replacement::begin(&path).unwrap().commit("newer\n").unwrap();
            let newer = fs::metadata(&path).unwrap();
            assert_eq!((newer.uid(), newer.gid()), (1234, 2345));
        } else {
            // Without root, no owner can be changed. So the older file becomes a link to `/`, which belongs to root.
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/", &path).unwrap();
            assert_eq!(Replacement::begin(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(names(root.path()), ["token"]);
        }
    }
}
