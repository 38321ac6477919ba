//! Mails from files: .eml, mbox, Maildir, standard input. One at a time, however many there are.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A mail that was found.
pub struct Found {
    /// Where: the file, with a number behind it for a mail in an mbox.
    pub name: String,
    /// The message, cut at the size asked for.
    pub bytes: Vec<u8>,
    /// Its whole size.
    pub size: u64,
}

/// What cannot be read, and why.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Hands each mail in `path` to `each`: a mail in a file of its own, the mails of an mbox (a file that begins with
/// `From `), of a Maildir (a folder with `cur` and `new`), of the `.eml` and `.mbox` files in a folder and below it,
/// or of `-`, standard input. At most `max_size` bytes are kept of each.
///
/// # Errors
/// [`Error`] for what cannot be read; what was found before it has been handed over.
pub fn read<E: From<Error>>(path: &Path, max_size: u64, each: &mut dyn FnMut(Found) -> Result<(), E>) -> Result<(), E> {
    let error = |source| Error { path: path.to_owned(), source };
    if path == Path::new("-") {
        return read_stream(BufReader::new(io::stdin().lock()), path, max_size, each);
    }
    if fs::metadata(path).map_err(error)?.is_dir() {
        return read_folder(path, max_size, each);
    }
    read_stream(BufReader::new(File::open(path).map_err(error)?), path, max_size, each)
}

fn read_folder<E: From<Error>>(
    folder: &Path,
    max_size: u64,
    each: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let error = |source| Error { path: folder.to_owned(), source };
    let is_maildir = folder.join("cur").is_dir() && folder.join("new").is_dir();
    let in_maildir = folder.file_name().is_some_and(|n| n == "cur" || n == "new")
        && folder.parent().is_some_and(|f| f.join("cur").is_dir() && f.join("new").is_dir());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        paths.push(entry.map_err(error)?.path());
    }
    // In the order of their names: a Maildir's begin with the time of delivery.
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_dir() {
            // What is being delivered is not there yet (maildir(5)).
            if !(is_maildir && name == "tmp") {
                read_folder(&path, max_size, each)?;
            }
        } else if in_maildir && !name.starts_with('.') || matches!(extension, "eml" | "mbox") {
            read(&path, max_size, each)?;
        }
    }
    Ok(())
}

fn read_stream<E: From<Error>>(
    mut input: impl BufRead,
    path: &Path,
    max_size: u64,
    each: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let error = |source| Error { path: path.to_owned(), source };
    let start = input.fill_buf().map_err(error)?;
    if start.starts_with(b"From ") {
        return read_mbox(input, path, max_size, each);
    }
    let mut bytes = Vec::new();
    let kept = input.by_ref().take(max_size).read_to_end(&mut bytes).map_err(error)?;
    let rest = io::copy(&mut input, &mut io::sink()).map_err(error)?;
    each(Found { name: path.display().to_string(), bytes, size: kept as u64 + rest })
}

/// Mails between lines that begin with `From ` after an empty line; a quoted `>From ` loses one `>` ("mboxrd").
fn read_mbox<E: From<Error>>(
    mut input: impl BufRead,
    path: &Path,
    max_size: u64,
    each: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let error = |source| Error { path: path.to_owned(), source };
    let mut mail = Gathering { bytes: Vec::new(), size: 0, max_size };
    let (mut number, mut after_empty) = (0, true);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without end must not fill the memory: it is taken in pieces, of which only the first may be a separator.
        let read = input.by_ref().take(LINE).read_until(b'\n', &mut line).map_err(error)?;
        let begins = after_empty && line.starts_with(b"From ");
        if (begins || read == 0) && number > 0 {
            each(mail.finish(format!("{}:{number}", path.display())))?;
        }
        if read == 0 {
            return Ok(());
        }
        if begins {
            number += 1;
            after_empty = false;
            continue;
        }
        after_empty = matches!(line.as_slice(), b"\n" | b"\r\n");
        let quoted = line
            .iter()
            .position(|b| *b != b'>')
            .is_some_and(|n| n > 0 && line.get(n..).is_some_and(|l| l.starts_with(b"From ")));
        mail.add(line.get(usize::from(quoted)..).unwrap_or_default());
    }
}

/// The longest piece of a line that is looked at at once.
const LINE: u64 = 64 * 1024;

/// A mail that is being put together.
struct Gathering {
    bytes: Vec<u8>,
    size: u64,
    max_size: u64,
}

impl Gathering {
    fn add(&mut self, line: &[u8]) {
        let room = usize::try_from(self.max_size).unwrap_or(usize::MAX).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(line.get(..room.min(line.len())).unwrap_or_default());
        self.size += line.len() as u64;
    }

    /// The mail, without the empty line that an mbox puts behind it.
    fn finish(&mut self, name: String) -> Found {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut size = std::mem::take(&mut self.size);
        if size == bytes.len() as u64 {
            let end =
                [&b"\r\n\r\n"[..], b"\n\n"].into_iter().find(|end| bytes.ends_with(end)).map_or(0, |end| end.len() / 2);
            bytes.truncate(bytes.len() - end);
            size -= end as u64;
        }
        Found { name, bytes, size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(path: &Path, max_size: u64) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        read::<Error>(path, max_size, &mut |f| {
            found.push((String::from_utf8(f.bytes).unwrap(), f.size));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn an_mbox_is_split_where_a_mail_begins_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.mbox");
        let text =
            "From a@b Wed\nSubject: 1\n\n>From me\n>>From you\nFrom here on\n\nFrom c@d Thu\nSubject: 2\n\nbody\n\n";
        fs::write(&path, text).unwrap();
        let mails = all(&path, 1000);
        assert_eq!(mails[0].0, "Subject: 1\n\nFrom me\n>From you\nFrom here on\n");
        assert_eq!(mails[1].0, "Subject: 2\n\nbody\n");
    }

    #[test]
    fn a_maildir_is_its_cur_and_new_and_a_folder_its_eml_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cur", "new", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("1.x:2,S"), name).unwrap();
        }
        fs::write(folder.path().join("a.eml"), "eml").unwrap();
        fs::write(folder.path().join("notes.txt"), "no mail").unwrap();
        let mut mails: Vec<_> = all(folder.path(), 1000).into_iter().map(|(text, _)| text).collect();
        mails.sort();
        assert_eq!(mails, ["cur", "eml", "new"]);
    }

    #[test]
    fn what_is_too_large_is_cut_and_says_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.eml");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(all(&path, 4), [("0123".to_owned(), 10)]);
    }
}
