//! Servers whose Debian packages conflict with Dovecot's. `make servers` unpacks them into target/tools/servers.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the programs of a package and the libraries that the system lacks.
pub fn unpacked_folder(package: &str) -> PathBuf {
    let folder = crate::project().join("target/tools/servers").join(package);
    assert!(folder.is_dir(), "no {}; `make servers`", folder.display());
    folder
}

/// A command for a program in this folder, with its libraries in the search path.
pub fn command_in(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(folder.join(name));
    command.env("LD_LIBRARY_PATH", folder);
    command
}

/// Copies the programs into `to`. A server that gives up its root rights could not read them in root's home directory.
pub fn copy_programs(package: &str, to: &Path) -> PathBuf {
    let copy = to.join("programs");
    let status = Command::new("cp").arg("-r").arg(unpacked_folder(package)).arg(&copy).status().unwrap();
    assert!(status.success(), "cannot copy {package}");
    copy
}
