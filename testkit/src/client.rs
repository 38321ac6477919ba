//! Another IMAP client, which changes the mailbox while the daemon watches it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An authenticated connection. It panics if the server refuses a command.
pub struct Client {
    input: BufReader<TcpStream>,
    output: TcpStream,
    commands: usize,
}

impl Client {
    pub fn login(port: u16, user: &str) -> Client {
        let output = TcpStream::connect(("127.0.0.1", port)).unwrap();
        output.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { input: BufReader::new(output.try_clone().unwrap()), output, commands: 0 };
        client.read_line();
        client.command(&format!("LOGIN \"{user}\" \"{}\"", super::dovecot::PASSWORD));
        client
    }

    /// Sends a command and returns everything up to its tagged OK.
    pub fn command(&mut self, command: &str) -> String {
        let tag = self.send(command);
        self.wait_for_tag(&tag, command)
    }

    /// Appends a mail to a mailbox.
    pub fn append(&mut self, mailbox: &str, mail: &[u8]) {
        let command = format!("APPEND {mailbox} {{{}}}", mail.len());
        let tag = self.send(&command);
        let line = self.read_line();
        assert!(line.starts_with('+'), "{command}: {line}");
        self.output.write_all(&[mail, b"\r\n"].concat()).unwrap();
        self.wait_for_tag(&tag, &command);
    }

    fn send(&mut self, command: &str) -> String {
        self.commands += 1;
        let tag = format!("c{}", self.commands);
        self.output.write_all(format!("{tag} {command}\r\n").as_bytes()).unwrap();
        tag
    }

    fn wait_for_tag(&mut self, tag: &str, command: &str) -> String {
        let mut received = String::new();
        loop {
            let line = self.read_line();
            received += &line;
            if let Some(answer) = line.strip_prefix(tag) {
                assert!(answer.starts_with(" OK"), "{command}: {received}");
                return received;
            }
        }
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        let read = self.input.read_line(&mut line).unwrap();
        assert!(read > 0, "the server has hung up");
        line
    }
}
