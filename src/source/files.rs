//! Mails from files: .eml, mbox, Maildir, standard input. One at a time, however many there are.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow::{self, Continue};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// Hands each mail in `path` to `each`: a mail in a file of its own, the mails of an mbox (a file that begins with
/// `From `), of a Maildir (a folder with `cur` and `new`), of the `.eml` and `.mbox` files in a folder and below it,
/// or of `-`, standard input. At most `max_size` bytes are kept of each. What cannot be read keeps nothing else back.
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
        let is_mail = in_maildir && !name.starts_with('.') || has_extension(&path, &["eml", "mbox"]);
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
    let start = input.fill_buf()?;
    if start.starts_with(b"From ") {
        return read_mbox(input, path, max_size, each);
    }
    // An mbox may have no mail in it.
    if start.is_empty() && has_extension(path, &["mbox"]) {
        return Ok(Continue(()));
    }
    let mut bytes = Vec::new();
    let kept = input.by_ref().take(max_size).read_to_end(&mut bytes)?;
    let rest = io::copy(&mut input, &mut io::sink())?;
    Ok(each(Ok(Found { name: path.display().to_string(), bytes, size: kept as u64 + rest })))
}

/// Mails between lines that begin with `From ` after an empty line; a quoted `>From ` loses one `>` ("mboxrd").
fn read_mbox(mut input: impl BufRead, path: &Path, max_size: u64, each: Each<'_>) -> io::Result<ControlFlow<()>> {
    let mut mail = Gathering { bytes: Vec::new(), size: 0, max_size };
    // Of what was read last: whether it was an empty line, and whether it was a line's end.
    let (mut number, mut after_empty, mut after_line) = (0, true, true);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without end must not fill the memory: it is taken in pieces, of which only the first may be a separator.
        let read = input.by_ref().take(LINE).read_until(b'\n', &mut line)?;
        let begins = after_empty && line.starts_with(b"From ");
        if (begins || read == 0)
            && number > 0
            && each(Ok(mail.finish(format!("{}:{number}", path.display())))).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        if read == 0 {
            return Ok(Continue(()));
        }
        if begins {
            number += 1;
            after_empty = false;
            continue;
        }
        after_empty = after_line && matches!(line.as_slice(), b"\n" | b"\r\n");
        let quoted = after_line
            && line
                .iter()
                .position(|b| *b != b'>')
                .is_some_and(|n| n > 0 && line.get(n..).is_some_and(|l| l.starts_with(b"From ")));
        after_line = line.ends_with(b"\n");
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
    fn a_line_that_is_taken_in_pieces_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.mbox");
        let long = "x".repeat(LINE as usize);
        let body = format!("Subject: 1\n\n{long}>From me\n{long}\nFrom here on\n");
        fs::write(&path, format!("From a@b Wed\n{body}\n")).unwrap();
        assert_eq!(all(&path, 1 << 20), [(body.clone(), body.len() as u64)]);
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

    #[test]
    fn an_mbox_may_have_no_mail_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mails) in [("drafts.mbox", 0), ("empty.eml", 1)] {
            fs::write(folder.path().join(name), "").unwrap();
            assert_eq!(all(&folder.path().join(name), 1000).len(), mails, "{name}");
        }
    }
}
