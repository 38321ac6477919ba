//! Which refresh token is shown to the endpoint: the newest that is known, and the one that was configured if that has
//! ended.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::endpoint::{Endpoint, Granted};
use super::lasting::Lasting;
use super::turn::Turn;
use super::{Failure, Settings};

/// How many tokens are tried at most: the file may hold another each time, if another process logs in too.
const TRIES: usize = 5;

/// The refresh tokens of one grant.
pub(super) struct Refresh {
    /// What a person has given us.
    configured: SecretString,
    /// Where its newest successor is kept, for a later start and for other processes.
    file: Lasting,
    /// The newest that we were given.
    newest: Option<SecretString>,
    /// It could be kept. Else it is newer than what is in the file.
    is_kept: bool,
    /// That the endpoint replaces it was told.
    told: bool,
}

impl Refresh {
    /// Of settings, with the secret read; the file is in `folder`.
    pub(super) fn new(settings: &Settings, configured: SecretString, folder: &Path) -> Self {
        let file = Lasting::new(folder, &configured, settings);
        Refresh { configured, file, newest: None, is_kept: true, told: false }
    }

    /// Asks for an access token, and keeps the refresh token that came with it.
    pub(super) async fn ask(&mut self, endpoint: &Endpoint) -> Result<Granted, Failure> {
        let _turn = Turn::at(self.file.path()).await;
        let (mut tried, mut first) = (Vec::new(), None);
        // Read again before each try: another process may have been faster, and have ended the one that we had read.
        while let Some(token) = self.next(&tried).await {
            match endpoint.ask(&token).await {
                // What is said of the newest is what a person has to know.
                Err(failure @ Failure::Ended(_)) => first = first.or(Some(failure)),
                answer => {
                    if let Some(new) = answer.as_ref().ok().and_then(|granted| granted.refresh_token.as_ref())
                        && !same(new, &token)
                    {
                        self.replace(new.clone()).await;
                    }
                    return answer;
                }
            }
            tried.push(token);
        }
        Err(first.unwrap_or_else(|| Failure::Ended("there is no refresh token".into())))
    }

    /// The best one that was not tried yet.
    async fn next(&self, tried: &[SecretString]) -> Option<SecretString> {
        if tried.len() >= TRIES {
            return None;
        }
        let (file, memory) = (self.file.read().await, self.newest.clone());
        let known = if self.is_kept { [file, memory] } else { [memory, file] };
        let mut known = known.into_iter().flatten().chain([self.configured.clone()]);
        known.find(|token| !tried.iter().any(|other| same(other, token)))
    }

    async fn replace(&mut self, token: SecretString) {
        let written = self.file.write(&token).await;
        self.is_kept = written.is_ok();
        self.newest = Some(token);
        match written {
            Ok(()) if std::mem::replace(&mut self.told, true) => {}
            Ok(()) => {
                tracing::info!(
                    "the token endpoint has replaced the refresh token; the new one is in {}",
                    self.file.path().display()
                );
            }
            Err(error) => tracing::warn!(
                "the token endpoint has replaced the refresh token, and the new one cannot be kept in {}: {error}; it is \
                 used for as long as this process runs. See that there is room and the folder can be written: if the old \
                 one ends with it, a restart needs a new one (docs/mail-providers.md)",
                self.file.path().display()
            ),
        }
    }
}

fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}
