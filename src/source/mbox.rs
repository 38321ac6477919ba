//! Mails from an mbox: one file, in which a line that begins with `From ` precedes each mail.

use std::io::{self, BufRead, Read as _};
use std::ops::ControlFlow::{self, Continue};
use std::path::Path;
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::files::{FileMail, OnMail};

/// Calls `on_mail` with each mail of an mbox. A line that begins with `From ` and follows an empty line separates mails. Some
/// programs leave out this empty line. Without the empty line, a `From ` line separates mails only if it has an address and a
/// date, and a header field follows. A quoted `>From ` loses one `>` ("mboxrd").
pub(super) fn read_mbox(
    mut input: impl BufRead,
    path: &Path,
    max_size: u64,
    on_mail: OnMail<'_>,
) -> io::Result<ControlFlow<()>> {
    let mut mail = PartialMail { bytes: Vec::new(), size: 0, max_size };
    // `after_empty`: the previous line was empty. `after_line`: the previous piece contained the end of its line.
    let (mut number, mut after_empty, mut after_line) = (0, true, true);
    let (mut line, mut postmark) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        // A line without an end must not fill the memory, so a long line is read in pieces.
        let read = input.by_ref().take(MAX_PIECE).read_until(b'\n', &mut line)?;
        let is_separator = after_empty && line.starts_with(b"From ");
        let is_first_field = !postmark.is_empty() && is_field(&line);
        if !is_first_field {
            mail.push_line(&postmark);
        }
        postmark.clear();
        if (is_separator || is_first_field || read == 0)
            && number > 0
            && on_mail(Ok(mail.finish(format!("{}:{number}", path.display())))).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        if read == 0 {
            return Ok(Continue(()));
        }
        number += u64::from(is_separator || is_first_field);
        if is_separator {
            after_empty = false;
        } else if after_line && is_postmark(&line) {
            after_empty = false;
            postmark.extend_from_slice(&line);
        } else {
            after_empty = after_line && matches!(line.as_slice(), b"\n" | b"\r\n");
            mail.push_line(line.get(usize::from(after_line && is_quoted(&line))..).unwrap_or_default());
        }
        after_line = line.ends_with(b"\n");
    }
}

/// A separator line with sender and date: `From no-reply@resmic.com Wed Mar  5 03:36:41 2025`, perhaps with a time zone.
static POSTMARK: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?x-u)^From\ (\S+|\x22[^\x22]*\x22@\S+)\ +(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\ +
          (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\ +[0-9]{1,2}\ +[0-9]{2}:[0-9]{2}(:[0-9]{2})?
          (\ +([A-Z]{1,5}|[+-][0-9]{4}))*\ +[0-9]{4}(\ +([A-Z]{1,5}|[+-][0-9]{4}))?\s*$",
    )
    .ok()
});

fn is_postmark(line: &[u8]) -> bool {
    line.starts_with(b"From ") && line.len() <= 500 && POSTMARK.as_ref().is_some_and(|pattern| pattern.is_match(line))
}

/// Whether a line begins a header field (RFC 5322, 2.2).
fn is_field(line: &[u8]) -> bool {
    let name = line.iter().position(|b| *b == b':').and_then(|end| line.get(..end)).unwrap_or_default();
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

fn is_quoted(line: &[u8]) -> bool {
    let quotes = line.iter().take_while(|b| **b == b'>').count();
    quotes > 0 && line.get(quotes..).is_some_and(|rest| rest.starts_with(b"From "))
}

/// The most bytes of a line that one read returns.
const MAX_PIECE: u64 = 64 * 1024;

/// A mail whose lines are still being read.
struct PartialMail {
    bytes: Vec<u8>,
    size: u64,
    max_size: u64,
}

impl PartialMail {
    fn push_line(&mut self, line: &[u8]) {
        let space = usize::try_from(self.max_size).unwrap_or(usize::MAX).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(line.get(..space.min(line.len())).unwrap_or_default());
        self.size += line.len() as u64;
    }

    /// Returns the collected mail. Removes the empty line that follows each mail in an mbox, unless the mail was cut at
    /// `max_size`.
    fn finish(&mut self, name: String) -> FileMail {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut size = std::mem::take(&mut self.size);
        if size == bytes.len() as u64 {
            let end =
                [&b"\r\n\r\n"[..], b"\n\n"].into_iter().find(|end| bytes.ends_with(end)).map_or(0, |end| end.len() / 2);
            bytes.truncate(bytes.len() - end);
            size -= end as u64;
        }
        FileMail { name, bytes, size }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::files;
    use super::*;

    fn read_all(path: &Path, max_size: u64) -> Vec<(String, u64)> {
        let mut mails = Vec::new();
        let flow = files::read_mails(path, max_size, &mut |result| {
            let mail = result.map_err(|error| error.to_string()).unwrap();
            mails.push((String::from_utf8(mail.bytes).unwrap(), mail.size));
            Continue(())
        });
        assert!(flow.is_continue());
        mails
    }

    #[test]
    fn an_mbox_is_split_at_separators_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.mbox");
        let text =
            "From a@b Wed\nSubject: 1\n\n>From me\n>>From you\nFrom here on\n\nFrom c@d Thu\nSubject: 2\n\nbody\n\n";
        fs::write(&path, text).unwrap();
        let mails = read_all(&path, 1000);
        assert_eq!(mails[0].0, "Subject: 1\n\nFrom me\n>From you\nFrom here on\n");
        assert_eq!(mails[1].0, "Subject: 2\n\nbody\n");
    }

    #[test]
    fn long_lines_stay_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.mbox");
        let long = "x".repeat(MAX_PIECE as usize);
        let body = format!("Subject: 1\n\n{long}>From me\n{long}\nFrom here on\n");
        fs::write(&path, format!("From a@b Wed\n{body}\n")).unwrap();
        assert_eq!(read_all(&path, 1 << 20), [(body.clone(), body.len() as u64)]);
    }

    #[test]
    fn an_mbox_may_lack_empty_lines_between_mails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.mbox");
        for postmark in [
            "From a@b Wed Mar  5 03:36:41 2025",
            "From - Wed Mar 05 03:36:41 2025",
            "From \"a b\"@c Wed Mar  5 03:36 UTC 2025",
            "From 17@xxx Wed Mar 05 03:36:41 +0000 2025",
            "From a@b Wed Mar  5 03:36:41 2025 +0000\r",
        ] {
            let two_mails = format!("{postmark}\nSubject: 1\n\nbody\n{postmark}\nSubject: 2\n\nbody");
            fs::write(&path, &two_mails).unwrap();
            let mails: Vec<String> = read_all(&path, 1000).into_iter().map(|(mail, _)| mail).collect();
            assert_eq!(mails, ["Subject: 1\n\nbody\n", "Subject: 2\n\nbody"], "{postmark}");
            for inside in [
                format!("text\n{postmark}\nSubject 2\n"),
                format!("text\n{postmark}\n{postmark}\n\nSubject: 2\n"),
                format!("text\n{postmark}"),
                "text\nFrom here on\nSubject: 2\n".to_owned(),
                "text\nFrom a@b Wed\nSubject: 2\n".to_owned(),
            ] {
                let body = format!("Subject: 1\n\n{inside}");
                fs::write(&path, format!("{postmark}\n{body}")).unwrap();
                assert_eq!(read_all(&path, 1000), [(body.clone(), body.len() as u64)], "{inside}");
            }
        }
    }
}
