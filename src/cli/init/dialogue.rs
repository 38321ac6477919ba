//! Gets the answers to the questions of `init`, each from a flag, from the person, or from a default.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::super::output::message;
use super::super::{UsageError, terminal};
use crate::secret::SecretSource;

/// The most bytes of a secret that are read from standard input.
const LONGEST_SECRET: u64 = 64 * 1024;

/// Gets the answers to the questions of `init` from flags, or from a person.
pub(super) struct Dialogue {
    /// Whether the dialogue asks a person on the terminal. Otherwise, a missing flag means the default, or is an error if there
    /// is no default.
    pub(super) asks: bool,
}

/// A question of `init`.
pub(super) struct DialogueQuestion<'a> {
    /// The flag that has the answer.
    pub(super) flag: &'a str,
    /// The value of this flag, if it was given.
    pub(super) given: Option<&'a str>,
    /// The question for the person.
    pub(super) prompt: &'a str,
    /// The answer if the person only presses Enter, or if there is no person.
    pub(super) default: Option<&'a str>,
}

impl Dialogue {
    /// Gets the answer to `question`, which `check` must accept: from the flag, from the person, or from the default.
    pub(super) async fn text(
        &self,
        question: DialogueQuestion<'_>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> anyhow::Result<String> {
        let DialogueQuestion { flag, given, prompt, default } = question;
        if let Some(given) = given {
            check(given).map_err(|wrong| UsageError(format!("{flag} {given:?}: {wrong}")))?;
            return Ok(given.to_owned());
        }
        if !self.asks {
            return default.map(str::to_owned).ok_or_else(|| missing(flag).into());
        }
        let prompt = match default {
            Some(default) => format!("{prompt} [{default}]: "),
            None => format!("{prompt}: "),
        };
        loop {
            let typed = terminal::ask(&prompt).await?;
            let answer = if typed.is_empty() { default.unwrap_or_default() } else { &typed };
            match check(answer) {
                Ok(()) => return Ok(answer.to_owned()),
                Err(wrong) => message(&format!("  {wrong}")),
            }
        }
    }

    /// Asks for yes or no. `default` is the answer if the person only presses Enter, or if there is no person.
    pub(super) async fn confirm(&self, question: &str, default: bool) -> anyhow::Result<bool> {
        if !self.asks {
            return Ok(default);
        }
        loop {
            let answer = terminal::ask(&format!("{question} [{}]: ", if default { "Y/n" } else { "y/N" })).await?;
            match answer.to_ascii_lowercase().as_str() {
                "" => return Ok(default),
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => message("  expected y or n"),
            }
        }
    }

    /// Gets a secret, from the file that a flag names or from the person.
    pub(super) async fn secret(&self, flag: &str, file: Option<&Path>, prompt: &str) -> anyhow::Result<SecretString> {
        if let Some(file) = file {
            return secret_from(flag, file).await;
        }
        if !self.asks {
            return Err(missing(flag).into());
        }
        loop {
            let secret = terminal::ask_secret(&format!("{prompt} (not shown): ")).await?;
            if !secret.expose_secret().is_empty() {
                return Ok(secret);
            }
            message("  expected a secret");
        }
    }
}

/// Reads a secret from `file`, or from standard input if `file` is `-`. The secret does not contain the last line break.
pub(super) async fn secret_from(flag: &str, file: &Path) -> anyhow::Result<SecretString> {
    if file != Path::new("-") {
        let read = SecretSource::File(file.to_owned()).load().await;
        return Ok(read.map_err(|missing| UsageError(format!("{flag}: {missing}")))?);
    }
    let read = || std::io::read_to_string(std::io::Read::take(std::io::stdin().lock(), LONGEST_SECRET + 1));
    let text = tokio::task::spawn_blocking(read).await??;
    if text.len() as u64 > LONGEST_SECRET {
        return Err(UsageError(format!("{flag}: standard input is longer than {} KiB", LONGEST_SECRET / 1024)).into());
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(UsageError(format!("{flag}: standard input is empty")).into()) } else { Ok(text.into()) }
}

/// Creates the error for a missing flag, if there is no person who could answer.
pub(super) fn missing(flag: &str) -> UsageError {
    UsageError(format!("{flag} is missing; without a terminal, or with --yes, init asks no question"))
}
