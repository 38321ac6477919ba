//! Identifies the file at a path by its device and inode.

use std::path::Path;

/// The device and inode of a file; `None` if there is no file. This function does not open the file, because closing it would
/// release SQLite's locks (sqlite.org/howtocorrupt.html, 2.2).
pub(super) fn file_id(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(|metadata| Some((metadata.dev(), metadata.ino()))),
    }
}
