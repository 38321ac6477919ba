//! The space that is left on the database's disk.

use std::path::Path;

/// If the disk has fewer free bytes than this, the next commits may fail.
pub const LOW_SPACE: u64 = 1 << 20;

/// The bytes that an unprivileged process may still write to the file system of `path`; `None` if the
/// system does not say.
pub(super) fn free_space(path: &Path) -> Option<u64> {
    // Before the database file is created, only its folder exists.
    let disk = [path, path.parent()?].into_iter().find_map(|path| rustix::fs::statvfs(path).ok())?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}
