//! An LMTP client that delivers mails (RFC 2033).

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

/// Delivers mails over one connection and returns the time at which the server accepted the last one.
pub fn deliver<'a>(port: u16, recipient: &str, mails: impl IntoIterator<Item = &'a [u8]>) -> Instant {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut lmtp = Lmtp { input: BufReader::new(stream.try_clone().unwrap()), output: stream };
    lmtp.expect_reply("220");
    lmtp.command("LHLO test", "250");
    let mut at = Instant::now();
    for mail in mails {
        lmtp.command("MAIL FROM:<no-reply@resmic.com>", "250");
        lmtp.command(&format!("RCPT TO:<{recipient}>"), "250");
        lmtp.command("DATA", "354");
        let stuffed = stuff(mail);
        lmtp.output.write_all(&stuffed).unwrap();
        lmtp.expect_reply("250");
        at = Instant::now();
    }
    lmtp.command("QUIT", "221");
    at
}

/// Ends lines in CRLF and doubles a dot at the start of a line (RFC 5321, 4.5.2).
fn stuff(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len() + 64);
    for line in mail.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").map_or(line, |l| l.strip_suffix(b"\r").unwrap_or(l));
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

struct Lmtp {
    input: BufReader<TcpStream>,
    output: TcpStream,
}

impl Lmtp {
    fn command(&mut self, line: &str, want: &str) {
        self.output.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        self.expect_reply(want);
    }

    fn expect_reply(&mut self, want: &str) {
        loop {
            let mut line = String::new();
            self.input.read_line(&mut line).unwrap();
            assert!(line.starts_with(want), "LMTP: {want} expected, {line:?} came");
            if line.as_bytes().get(3) != Some(&b'-') {
                return;
            }
        }
    }
}
