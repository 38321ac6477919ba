//! Mails from files: .eml, .emlx, mbox, Maildir, standard input. Only one mail at a time is in memory.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow::{self, Continue};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mbox;
use crate::model::printable;

/// A mail in a file.
pub struct FileMail {
    /// The path of the file. In an mbox, the number of the mail follows: `box.mbox:2`.
    pub name: String,
    /// The message, cut after the `max_size` bytes of [`read_mails`].
    pub bytes: Vec<u8>,
    /// The full size of the message in bytes; more than `bytes.len()` if the message was cut.
    pub size: u64,
}

/// A file or folder that cannot be read, and why. The error text has no control characters, because a file name may contain
/// escape sequences for a terminal.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", printable(&path.to_string_lossy(), 500))]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The callback for each mail and each error. `ControlFlow::Break` ends the reading.
pub type OnMail<'a> = &'a mut dyn FnMut(Result<FileMail, Error>) -> ControlFlow<()>;

/// Calls `on_mail` with each mail in `path`, which may be:
///
/// - a file with one mail, also Apple Mail's `.emlx`
/// - an mbox, a file that begins with `From `
/// - a Maildir, a folder with `cur` and `new`
/// - another folder: all Maildirs, and all `.eml`, `.emlx` and `.mbox` files, in it and below it
/// - `-`, standard input
///
/// At most `max_size` bytes of each mail are kept. After an error in one file, the other files are still read.
pub fn read_mails(path: &Path, max_size: u64, on_mail: OnMail<'_>) -> ControlFlow<()> {
    if path == Path::new("-") {
        let read = read_stream(BufReader::new(io::stdin().lock()), path, max_size, on_mail);
        return read.unwrap_or_else(|source| on_mail(Err(Error { path: path.to_owned(), source })));
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => read_folder(path, max_size, &mut Vec::new(), on_mail),
        _ => read_file(path, max_size, on_mail),
    }
}

fn read_file(path: &Path, max_size: u64, on_mail: OnMail<'_>) -> ControlFlow<()> {
    let read = File::open(path).and_then(|file| read_stream(BufReader::new(file), path, max_size, on_mail));
    read.unwrap_or_else(|source| on_mail(Err(Error { path: path.to_owned(), source })))
}

/// Reads a folder. `outer` has the device and inode of each folder that contains this folder, because a symbolic link can lead
/// back to such a folder.
fn read_folder(folder: &Path, max_size: u64, outer: &mut Vec<(u64, u64)>, on_mail: OnMail<'_>) -> ControlFlow<()> {
    let (id, paths) = match list_folder(folder) {
        Ok(listed) => listed,
        Err(source) => return on_mail(Err(Error { path: folder.to_owned(), source })),
    };
    if outer.contains(&id) {
        return Continue(());
    }
    outer.push(id);
    let is_maildir = folder.join("cur").is_dir() && folder.join("new").is_dir();
    let in_maildir = folder.file_name().is_some_and(|n| n == "cur" || n == "new")
        && folder.parent().is_some_and(|f| f.join("cur").is_dir() && f.join("new").is_dir());
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_mail = in_maildir && !name.starts_with('.') || has_extension(&path, &["eml", "emlx", "mbox"]);
        match fs::metadata(&path) {
            // Mails in `tmp` are incomplete (maildir(5)).
            Ok(metadata) if metadata.is_dir() && is_maildir && name == "tmp" => {}
            Ok(metadata) if metadata.is_dir() => read_folder(&path, max_size, outer, on_mail)?,
            // Reading a pipe without a writer would never end.
            Ok(metadata) if is_mail && metadata.is_file() => read_file(&path, max_size, on_mail)?,
            Err(source) if is_mail => on_mail(Err(Error { path, source }))?,
            _ => {}
        }
    }
    outer.pop();
    Continue(())
}

/// The device and inode of a folder, and the sorted paths in it. Names in a Maildir begin with the time of delivery, so the mails
/// of a Maildir are read in the order of delivery.
fn list_folder(folder: &Path) -> io::Result<((u64, u64), Vec<PathBuf>)> {
    let metadata = fs::metadata(folder)?;
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(((metadata.dev(), metadata.ino()), paths))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|extension| own.eq_ignore_ascii_case(extension)))
}

fn read_stream(
    mut input: impl BufRead,
    path: &Path,
    max_size: u64,
    on_mail: OnMail<'_>,
) -> io::Result<ControlFlow<()>> {
    let mut start = Vec::new();
    input.by_ref().take(PREFIX).read_to_end(&mut start)?;
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start);
    let (emlx_size, start) = parse_emlx_size(start).map_or((None, start), |(size, rest)| (Some(size), rest));
    let mut input = start.chain(input);
    if start.starts_with(b"From ") {
        return mbox::read_mbox(input, path, max_size, on_mail);
    }
    // An empty `.mbox` file contains no mail. Every other empty file is one mail of zero bytes.
    if start.is_empty() && emlx_size.is_none() && has_extension(path, &["mbox"]) {
        return Ok(Continue(()));
    }
    let mut bytes = Vec::new();
    let size = emlx_size.unwrap_or(u64::MAX);
    let kept = input.by_ref().take(size.min(max_size)).read_to_end(&mut bytes)? as u64;
    let skipped = io::copy(&mut input.by_ref().take(size.saturating_sub(kept)), &mut io::sink())?;
    if emlx_size.is_some() {
        check_emlx_end(input, kept + skipped, size)?;
    }
    Ok(on_mail(Ok(FileMail { name: path.display().to_string(), bytes, size: kept + skipped })))
}

/// How many bytes at the start of a file show its format: an mbox, an `.emlx` file, or one mail.
const PREFIX: u64 = 64;

/// U+FEFF in UTF-8, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The size of the mail in an `.emlx` file, and the bytes after the line with the size. Apple Mail writes the number of
/// bytes, padded with spaces, then the mail, then a property list.
fn parse_emlx_size(start: &[u8]) -> Option<(u64, &[u8])> {
    let end = start.iter().position(|b| *b == b'\n')?;
    let line = std::str::from_utf8(start.get(..end)?).ok()?.trim_end();
    if line.is_empty() || !line.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((line.parse().ok()?, start.get(end + 1..)?))
}

/// Checks that the mail in an `.emlx` file has the size that the first line states, and that nothing except a property list
/// follows. An incomplete mail must not be parsed.
fn check_emlx_end(input: impl Read, read: u64, size: u64) -> io::Result<()> {
    let mut rest = Vec::new();
    input.take(PREFIX).read_to_end(&mut rest)?;
    let rest = rest.trim_ascii_start();
    let is_property_list = [&b"<?xml"[..], b"<!DOCTYPE", b"<plist"].iter().any(|mark| rest.starts_with(mark));
    if read == size && (rest.is_empty() || is_property_list) {
        return Ok(());
    }
    let message = format!("the mail does not have the {size} bytes that the first line states");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `path` with [`read_mails`]. Returns the text and the size of each mail, and the text of each error.
    fn mails_and_errors(path: &Path, max_size: u64) -> (Vec<(String, u64)>, Vec<String>) {
        let (mut mails, mut errors) = (Vec::new(), Vec::new());
        let flow = read_mails(path, max_size, &mut |result| {
            match result {
                Ok(mail) => mails.push((String::from_utf8(mail.bytes).unwrap(), mail.size)),
                Err(error) => errors.push(error.to_string()),
            }
            Continue(())
        });
        assert!(flow.is_continue());
        (mails, errors)
    }

    fn read_all(path: &Path, max_size: u64) -> Vec<(String, u64)> {
        let (mails, errors) = mails_and_errors(path, max_size);
        assert!(errors.is_empty(), "{errors:?}");
        mails
    }

    #[test]
    fn folders_and_maildirs_are_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cur", "new", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("1.x:2,S"), name).unwrap();
        }
        fs::write(folder.path().join("a.eml"), "eml").unwrap();
        fs::write(folder.path().join("notes.txt"), "no mail").unwrap();
        let mut mails: Vec<_> = read_all(folder.path(), 1000).into_iter().map(|(text, _)| text).collect();
        mails.sort();
        assert_eq!(mails, ["cur", "eml", "new"]);
    }

    #[test]
    fn large_files_are_cut_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.eml");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read_all(&path, 4), [("0123".to_owned(), 10)]);
    }

    #[test]
    fn symlink_loops_and_pipes_are_skipped() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (path, below) = (folder.path(), folder.path().join("below"));
        fs::create_dir(&below).unwrap();
        fs::write(path.join("A.EML"), "shouted").unwrap();
        fs::write(below.join("b.eml"), "below").unwrap();
        for link in [path.join("again"), path.join("and again"), below.join("up"), below.join("up again")] {
            symlink(path, link).unwrap();
        }
        let pipe = std::process::Command::new("mkfifo").arg(path.join("pipe.eml")).status().unwrap();
        assert!(pipe.success());
        assert_eq!(read_all(path, 1000), [("shouted".into(), 7), ("below".into(), 5)]);
    }

    #[test]
    fn an_unreadable_file_does_not_stop_others() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.eml", "z.eml"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join("gone\u{1b}[31m.eml")).unwrap();
        let (mails, errors) = mails_and_errors(folder.path(), 1000);
        assert_eq!(mails, [("a.eml".into(), 5), ("z.eml".into(), 5)]);
        assert!(errors.len() == 1 && errors[0].contains("gone [31m.eml: No such file"), "{errors:?}");
        assert!(read_mails(folder.path(), 1000, &mut |_| ControlFlow::Break(())).is_break());
    }

    /// The content of an `.emlx` file as Apple Mail writes it: the size in a first line, the mail, and `rest`.
    fn emlx(size: usize, mail: &str, rest: &str) -> String {
        format!("{size:<10}\n{mail}{rest}")
    }

    const PROPERTY_LIST: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\"></plist>\n";

    #[test]
    fn an_emlx_file_has_one_mail() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nFrom me\n1234\n";
        for (name, text) in [
            ("a.emlx", emlx(mail.len(), mail, PROPERTY_LIST)),
            ("b.partial.emlx", emlx(mail.len(), mail, "")),
            ("c.eml", emlx(mail.len(), mail, &format!("\n{PROPERTY_LIST}"))),
            ("d.EMLX", emlx(mail.len(), mail, PROPERTY_LIST).replacen('\n', "\r\n", 1)),
            ("e.emlx", mail.to_owned()),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(read_all(folder.path(), 1000), vec![(mail.to_owned(), mail.len() as u64); 5]);
        assert_eq!(read_all(&folder.path().join("a.emlx"), 9), [(mail[..9].to_owned(), mail.len() as u64)]);
    }

    #[test]
    fn an_emlx_file_with_wrong_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nAmount: $20.50\n";
        for (name, text) in [
            ("a.emlx", emlx(mail.len() - 4, mail, PROPERTY_LIST)),
            ("b.emlx", emlx(mail.len() + PROPERTY_LIST.len() + 1, mail, PROPERTY_LIST)),
            ("c.emlx", emlx(mail.len() + 5, mail, PROPERTY_LIST)),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let (mails, errors) = mails_and_errors(folder.path(), 1000);
        assert_eq!((mails.len(), errors.len()), (0, 3), "{errors:?}");
        assert!(errors[0].contains("a.emlx: the mail does not have the 23 bytes"), "{errors:?}");
    }

    #[test]
    fn byte_order_marks_are_not_part_of_mails() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nx\n";
        for (name, text) in [
            ("a.eml", mail.to_owned()),
            ("b.emlx", emlx(mail.len(), mail, PROPERTY_LIST)),
            ("c.mbox", format!("From a@b Wed\n{mail}\n")),
        ] {
            fs::write(folder.path().join(name), format!("\u{feff}{text}")).unwrap();
        }
        assert_eq!(read_all(folder.path(), 1000), vec![(mail.to_owned(), mail.len() as u64); 3]);
    }

    #[test]
    fn an_mbox_may_have_no_mail_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mails) in [("drafts.mbox", 0), ("empty.eml", 1)] {
            fs::write(folder.path().join(name), "").unwrap();
            assert_eq!(read_all(&folder.path().join(name), 1000).len(), mails, "{name}");
        }
    }
}
