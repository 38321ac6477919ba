//! Questions to a person on a terminal. The questions go to standard error, like all messages.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;

/// The most bytes of an answer that are read.
const LONGEST_ANSWER: u64 = 16 * 1024;

/// Standard input ended before the person answered.
#[derive(Debug, thiserror::Error)]
#[error("the input has ended")]
pub(super) struct InputEnded;

/// Whether standard input is a terminal, so that a person can answer.
pub(super) fn is_here() -> bool {
    io::stdin().is_terminal()
}

/// Asks the person a question. Returns the answer without the spaces around it.
pub(super) async fn ask(prompt: &str) -> anyhow::Result<String> {
    show(prompt)?;
    Ok(read_line().await?.trim().to_owned())
}

/// Asks the person for a secret. The terminal does not show the typed characters.
pub(super) async fn ask_secret(prompt: &str) -> anyhow::Result<SecretString> {
    let hidden = Hidden::begin().context("the terminal cannot hide a secret")?;
    show(prompt)?;
    let answer = read_line().await;
    drop(hidden);
    // The terminal did not show the line break after the secret either, so print one.
    show("\n")?;
    Ok(answer?.trim_end_matches(['\n', '\r']).into())
}

fn show(text: &str) -> io::Result<()> {
    let mut out = io::stderr().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Reads a line of standard input in another thread, so that the program can handle a signal meanwhile.
async fn read_line() -> anyhow::Result<String> {
    let read = || {
        let mut line = String::new();
        io::Read::take(io::stdin().lock(), LONGEST_ANSWER).read_line(&mut line).map(|_| line)
    };
    let line = tokio::task::spawn_blocking(read).await??;
    if line.is_empty() { Err(InputEnded.into()) } else { Ok(line) }
}

/// Switches the echo of the terminal off until this value is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &silent)?;
        Ok(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // `tcsetattr` fails only if the terminal no longer exists.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
