//! Servers that Debian does not let stand beside Dovecot: `make servers` unpacks their packages into target/tools/servers.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the programs of a package are, each beside the libraries that the system lacks.
pub fn unpacked(package: &str) -> PathBuf {
    let folder = crate::project().join("target/tools/servers").join(package);
    assert!(folder.is_dir(), "no {}; `make servers`", folder.display());
    folder
}

/// A command that finds its libraries.
pub fn program(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(folder.join(name));
    command.env("LD_LIBRARY_PATH", folder);
    command
}

/// A copy where everybody may go: a server that gives up root could not reach a home of root's.
pub fn copied(package: &str, to: &Path) -> PathBuf {
    let copy = to.join("programs");
    let status = Command::new("cp").arg("-r").arg(unpacked(package)).arg(&copy).status().unwrap();
    assert!(status.success(), "cannot copy {package}");
    copy
}
