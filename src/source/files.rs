//! Mails from files: .eml, .emlx, mbox, Maildir, standard input. One at a time, however many there are.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow::{self, Continue};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mbox;
use crate::model::printable;

/// A mail that was found.
pub struct Found {
    /// Where: the file, with a number behind it for a mail in an mbox.
    pub name: String,
    /// The message, cut at the size asked for.
    pub bytes: Vec<u8>,
    /// Its whole size.
    pub size: u64,
}

/// What cannot be read, and why. A file's name is whose who made it, and may be made for a terminal.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", printable(&path.to_string_lossy(), 500))]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Who takes what is found, and what could not be read; and says whether to go on.
pub type Each<'a> = &'a mut dyn FnMut(Result<Found, Error>) -> ControlFlow<()>;

/// Hands each mail in `path` to `each`: a mail in a file (also Apple Mail's `.emlx`), the mails of an mbox (a file that begins with
/// `From `), of a Maildir (a folder with `cur` and `new`), of the `.eml`, `.emlx` and `.mbox` files in a folder and below
/// it, or of `-`, standard input. At most `max_size` bytes are kept of each. What cannot be read keeps nothing else back.
pub fn read(path: &Path, max_size: u64, each: Each<'_>) -> ControlFlow<()> {
    if path == Path::new("-") {
        let read = read_stream(BufReader::new(io::stdin().lock()), path, max_size, each);
        return read.unwrap_or_else(|source| each(Err(Error { path: path.to_owned(), source })));
    }
    match fs::metadata(path) {
        Ok(of) if of.is_dir() => read_folder(path, max_size, &mut Vec::new(), each),
        _ => read_file(path, max_size, each),
    }
}

fn read_file(path: &Path, max_size: u64, each: Each<'_>) -> ControlFlow<()> {
    let read = File::open(path).and_then(|file| read_stream(BufReader::new(file), path, max_size, each));
    read.unwrap_or_else(|source| each(Err(Error { path: path.to_owned(), source })))
}

/// `within`: the folders that this one is in, by device and inode. A link may lead back to one of them.
fn read_folder(folder: &Path, max_size: u64, within: &mut Vec<(u64, u64)>, each: Each<'_>) -> ControlFlow<()> {
    let (itself, paths) = match content(folder) {
        Ok(content) => content,
        Err(source) => return each(Err(Error { path: folder.to_owned(), source })),
    };
    if within.contains(&itself) {
        return Continue(());
    }
    within.push(itself);
    let is_maildir = folder.join("cur").is_dir() && folder.join("new").is_dir();
    let in_maildir = folder.file_name().is_some_and(|n| n == "cur" || n == "new")
        && folder.parent().is_some_and(|f| f.join("cur").is_dir() && f.join("new").is_dir());
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_mail = in_maildir && !name.starts_with('.') || has_extension(&path, &["eml", "emlx", "mbox"]);
        match fs::metadata(&path) {
            // What is being delivered is not there yet (maildir(5)).
            Ok(of) if of.is_dir() && is_maildir && name == "tmp" => {}
            Ok(of) if of.is_dir() => read_folder(&path, max_size, within, each)?,
            // A pipe that nobody writes into would never end.
            Ok(of) if is_mail && of.is_file() => read_file(&path, max_size, each)?,
            Err(source) if is_mail => each(Err(Error { path, source }))?,
            _ => {}
        }
    }
    within.pop();
    Continue(())
}

/// Which folder it is, and what is in it, in the order of their names: a Maildir's begin with the time of delivery.
fn content(folder: &Path) -> io::Result<((u64, u64), Vec<PathBuf>)> {
    let of = fs::metadata(folder)?;
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(((of.dev(), of.ino()), paths))
}

fn has_extension(path: &Path, any: &[&str]) -> bool {
    path.extension().is_some_and(|has| any.iter().any(|extension| has.eq_ignore_ascii_case(extension)))
}

fn read_stream(mut input: impl BufRead, path: &Path, max_size: u64, each: Each<'_>) -> io::Result<ControlFlow<()>> {
    let mut start = Vec::new();
    input.by_ref().take(START).read_to_end(&mut start)?;
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start);
    let (announced, start) = emlx_size(start).map_or((None, start), |(size, behind)| (Some(size), behind));
    let mut input = start.chain(input);
    if start.starts_with(b"From ") {
        return mbox::read(input, path, max_size, each);
    }
    // An mbox may have no mail in it.
    if start.is_empty() && announced.is_none() && has_extension(path, &["mbox"]) {
        return Ok(Continue(()));
    }
    let mut bytes = Vec::new();
    let size = announced.unwrap_or(u64::MAX);
    let kept = input.by_ref().take(size.min(max_size)).read_to_end(&mut bytes)? as u64;
    let rest = io::copy(&mut input.by_ref().take(size.saturating_sub(kept)), &mut io::sink())?;
    if announced.is_some() {
        check_emlx_end(input, kept + rest, size)?;
    }
    Ok(each(Ok(Found { name: path.display().to_string(), bytes, size: kept + rest })))
}

/// How much of a file says what kind it is.
const START: u64 = 64;

/// U+FEFF in UTF-8, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The size of the mail in an `.emlx` file, and what stands behind the line that states it. Apple Mail writes the number of
/// bytes, padded with spaces, then the mail, then a property list.
fn emlx_size(start: &[u8]) -> Option<(u64, &[u8])> {
    let end = start.iter().position(|b| *b == b'\n')?;
    let line = std::str::from_utf8(start.get(..end)?).ok()?.trim_end();
    let is_number = !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit());
    let size = line.parse().ok().filter(|_| is_number)?;
    Some((size, start.get(end + 1..)?))
}

/// Checks that an `.emlx` file has the mail whole and that the mail ends where the first line says: a part of a mail must not
/// pass for the mail.
fn check_emlx_end(input: impl Read, read: u64, size: u64) -> io::Result<()> {
    let mut behind = Vec::new();
    input.take(START).read_to_end(&mut behind)?;
    let behind = behind.trim_ascii_start();
    let is_list = [&b"<?xml"[..], b"<!DOCTYPE", b"<plist"].iter().any(|mark| behind.starts_with(mark));
    if read == size && (behind.is_empty() || is_list) {
        return Ok(());
    }
    let words = format!("the mail in it has not the {size} bytes that its first line states");
    Err(io::Error::new(io::ErrorKind::InvalidData, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mails, and the names of what could not be read.
    fn found(path: &Path, max_size: u64) -> (Vec<(String, u64)>, Vec<String>) {
        let (mut mails, mut errors) = (Vec::new(), Vec::new());
        let all = read(path, max_size, &mut |found| {
            match found {
                Ok(mail) => mails.push((String::from_utf8(mail.bytes).unwrap(), mail.size)),
                Err(error) => errors.push(error.to_string()),
            }
            Continue(())
        });
        assert!(all.is_continue());
        (mails, errors)
    }

    fn all(path: &Path, max_size: u64) -> Vec<(String, u64)> {
        let (mails, errors) = found(path, max_size);
        assert!(errors.is_empty(), "{errors:?}");
        mails
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

    #[test]
    fn a_folder_is_read_once_whatever_leads_back_to_it_and_nothing_is_waited_for() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (path, below) = (folder.path(), folder.path().join("below"));
        fs::create_dir(&below).unwrap();
        fs::write(path.join("A.EML"), "shouted").unwrap();
        fs::write(below.join("b.eml"), "below").unwrap();
        for back in [path.join("again"), path.join("and again"), below.join("up"), below.join("up again")] {
            symlink(path, back).unwrap();
        }
        let pipe = std::process::Command::new("mkfifo").arg(path.join("pipe.eml")).status().unwrap();
        assert!(pipe.success());
        assert_eq!(all(path, 1000), [("shouted".into(), 7), ("below".into(), 5)]);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_keeps_nothing_else_back() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.eml", "z.eml"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join("gone\u{1b}[31m.eml")).unwrap();
        let (mails, errors) = found(folder.path(), 1000);
        assert_eq!(mails, [("a.eml".into(), 5), ("z.eml".into(), 5)]);
        assert!(errors.len() == 1 && errors[0].contains("gone [31m.eml: No such file"), "{errors:?}");
        assert!(read(folder.path(), 1000, &mut |_| ControlFlow::Break(())).is_break());
    }

    /// As Apple Mail writes it.
    fn emlx(size: usize, mail: &str, behind: &str) -> String {
        format!("{size:<10}\n{mail}{behind}")
    }

    const LIST: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\"></plist>\n";

    #[test]
    fn an_emlx_file_has_one_mail_and_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nFrom me\n1234\n";
        for (name, text) in [
            ("a.emlx", emlx(mail.len(), mail, LIST)),
            ("b.partial.emlx", emlx(mail.len(), mail, "")),
            ("c.eml", emlx(mail.len(), mail, &format!("\n{LIST}"))),
            ("d.EMLX", emlx(mail.len(), mail, LIST).replacen('\n', "\r\n", 1)),
            ("e.emlx", mail.to_owned()),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(all(folder.path(), 1000), vec![(mail.to_owned(), mail.len() as u64); 5]);
        assert_eq!(all(&folder.path().join("a.emlx"), 9), [(mail[..9].to_owned(), mail.len() as u64)]);
    }

    #[test]
    fn an_emlx_file_with_a_wrong_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nAmount: $20.50\n";
        for (name, text) in [
            ("a.emlx", emlx(mail.len() - 4, mail, LIST)),
            ("b.emlx", emlx(mail.len() + LIST.len() + 1, mail, LIST)),
            ("c.emlx", emlx(mail.len() + 5, mail, LIST)),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let (mails, errors) = found(folder.path(), 1000);
        assert_eq!((mails.len(), errors.len()), (0, 3), "{errors:?}");
        assert!(errors[0].contains("a.emlx: the mail in it has not the 23 bytes"), "{errors:?}");
    }

    #[test]
    fn byte_order_marks_are_not_part_of_mails() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "Subject: 1\n\nx\n";
        for (name, text) in [
            ("a.eml", mail.to_owned()),
            ("b.emlx", emlx(mail.len(), mail, LIST)),
            ("c.mbox", format!("From a@b Wed\n{mail}\n")),
        ] {
            fs::write(folder.path().join(name), format!("\u{feff}{text}")).unwrap();
        }
        assert_eq!(all(folder.path(), 1000), vec![(mail.to_owned(), mail.len() as u64); 3]);
    }

    #[test]
    fn an_mbox_may_have_no_mail_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mails) in [("drafts.mbox", 0), ("empty.eml", 1)] {
            fs::write(folder.path().join(name), "").unwrap();
            assert_eq!(all(&folder.path().join(name), 1000).len(), mails, "{name}");
        }
    }
}
