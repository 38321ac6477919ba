//! A file system of a few megabytes, so that a test can fill it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small tmpfs, mounted over a folder; dropping it unmounts it.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts a tmpfs over this folder. The tmpfs hides the files in the folder.
    pub fn over(folder: &Path, megabytes: u32) -> SmallDisk {
        let options = format!("size={megabytes}m,mode=0777");
        as_root(&["mount", "-t", "tmpfs", "-o", &options, "mailhook-test", folder.to_str().unwrap()]);
        SmallDisk { at: folder.to_owned() }
    }

    /// Fills the file system to the last byte.
    pub fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.ballast()).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while ballast.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Frees the space that [`SmallDisk::fill`] used.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        as_root(&["umount", "-l", self.at.to_str().unwrap()]);
    }
}

fn as_root(command: &[&str]) {
    let id = Command::new("id").arg("-u").output().unwrap();
    let mut command: Vec<_> = command.to_vec();
    if id.stdout != b"0\n" {
        command.splice(0..0, ["sudo", "-n"]);
    }
    let done = Command::new(command[0]).args(&command[1..]).output();
    let done = done.unwrap_or_else(|e| panic!("cannot run {command:?}: {e}; this test needs root, or sudo"));
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {errors}; this test needs root, or sudo without a password");
}
