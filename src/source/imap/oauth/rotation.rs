//! Which refresh token is shown to the endpoint: the newest that is known, and the one that was configured if that has
//! ended.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::endpoint::{TokenEndpoint, TokenGrant};
use super::token_file::TokenFile;
use super::token_lock::TokenLock;
use super::{OAuthSettings, TokenFailure};

/// How many tokens are tried at most: the file may hold another each time, if another process logs in too.
const TRIES: usize = 5;

/// The refresh tokens of one grant.
pub(super) struct RefreshTokens {
    /// What a person has given us.
    configured: SecretString,
    /// Where its newest successor is kept, for a later start and for other processes.
    file: TokenFile,
    /// The newest that we were given.
    newest: Option<SecretString>,
    /// It could be kept. Else it is newer than what is in the file.
    is_stored: bool,
    /// Those that had ended when another one was granted: shown again, one of them may be taken for a thief's.
    ended: Vec<SecretString>,
    /// That the endpoint replaces it was told.
    announced: bool,
}

impl RefreshTokens {
    /// Of settings, with the secret read; the file is in `folder`.
    pub(super) fn new(settings: &OAuthSettings, configured: SecretString, folder: &Path) -> Self {
        let file = TokenFile::new(folder, &configured, settings);
        RefreshTokens { configured, file, newest: None, is_stored: true, ended: Vec::new(), announced: false }
    }

    /// Asks for an access token, and keeps the refresh token that came with it.
    pub(super) async fn request(&mut self, endpoint: &TokenEndpoint) -> Result<TokenGrant, TokenFailure> {
        let _lock = TokenLock::acquire(self.file.path()).await;
        let (mut tried, mut first) = (Vec::new(), None);
        // Read again before each try: another process may have been faster, and have ended the one that we had read.
        while let Some(token) = self.next_candidate(&tried).await {
            match endpoint.request(&token).await {
                // What is said of the newest is what a person has to know.
                Err(failure @ TokenFailure::Ended(_)) => first = first.or(Some(failure)),
                answer => {
                    if answer.is_ok() && !tried.is_empty() {
                        self.ended = tried;
                    }
                    if let Some(new) = answer.as_ref().ok().and_then(|granted| granted.refresh_token.as_ref())
                        && !is_equal(new, &token)
                    {
                        self.store_newest(new.clone()).await;
                    }
                    return answer;
                }
            }
            tried.push(token);
        }
        Err(first.unwrap_or_else(|| TokenFailure::Ended("there is no refresh token".into())))
    }

    /// The best one that was not tried yet; one that had ended when it was tried last, after all others.
    async fn next_candidate(&self, tried: &[SecretString]) -> Option<SecretString> {
        if tried.len() >= TRIES {
            return None;
        }
        let (file, memory) = (self.file.read().await, self.newest.clone());
        let known = if self.is_stored { [file, memory] } else { [memory, file] };
        let known = known.into_iter().flatten().chain([self.configured.clone()]);
        let is_one_of = |those: &[SecretString], token: &SecretString| those.iter().any(|other| is_equal(other, token));
        let (ended, good): (Vec<_>, Vec<_>) =
            known.filter(|token| !is_one_of(tried, token)).partition(|token| is_one_of(&self.ended, token));
        good.into_iter().chain(ended).next()
    }

    async fn store_newest(&mut self, token: SecretString) {
        let written = self.file.write(&token).await;
        self.is_stored = written.is_ok();
        self.newest = Some(token);
        match written {
            Ok(()) if std::mem::replace(&mut self.announced, true) => {}
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

fn is_equal(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const GRANTED: &str = "200 OK\r\n\r\n{\"access_token\":\"a\"}";
    const REPLACED: &str = "200 OK\r\n\r\n{\"access_token\":\"a\",\"refresh_token\":\"given\"}";
    const ENDED: &str = "400 Bad Request\r\n\r\n{\"error\":\"invalid_grant\"}";

    /// An endpoint that answers each token as it is told to, and the tokens of a grant there, the first of which is
    /// configured.
    fn grant(
        folder: &Path,
        mut answer: impl FnMut(&str) -> &'static str + Send + 'static,
    ) -> (TokenEndpoint, RefreshTokens, TokenFile) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let (mut request, mut buffer) = (String::new(), [0; 4096]);
                while !request.ends_with("&client_id=shop") {
                    let n = stream.read(&mut buffer).unwrap();
                    request += std::str::from_utf8(&buffer[..n]).unwrap();
                }
                let (_, token) = request.rsplit_once("&refresh_token=").unwrap();
                let said = answer(token.split_once('&').unwrap().0);
                stream.write_all(format!("HTTP/1.1 {said}").as_bytes()).unwrap();
            }
        });
        let settings = format!("token_url = \"{url}\"\nclient_id = \"shop\"\nrefresh_token = {{ env = \"R\" }}");
        let settings: OAuthSettings = toml::from_str(&settings).unwrap();
        let refresh = RefreshTokens::new(&settings, "configured".to_owned().into(), folder);
        let file = refresh.file.clone();
        (TokenEndpoint::new(&settings, None, None), refresh, file)
    }

    fn token(text: &str) -> SecretString {
        text.to_owned().into()
    }

    #[tokio::test]
    async fn one_that_another_process_was_given_meanwhile_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let (asked, shown) = std::sync::mpsc::channel();
        let (replaces, path) = std::sync::mpsc::channel::<std::path::PathBuf>();
        let (endpoint, mut refresh, file) = grant(folder.path(), move |token| {
            asked.send(token.to_owned()).unwrap();
            if token == "newest" {
                return GRANTED;
            }
            // Another process has shown it first, and keeps what it got for it.
            std::fs::write(path.recv().unwrap(), "newest\n").unwrap();
            ENDED
        });
        file.write(&token("old")).await.unwrap();
        replaces.send(file.path().to_owned()).unwrap();
        refresh.request(&endpoint).await.unwrap();
        assert_eq!(shown.try_iter().collect::<Vec<_>>(), ["old", "newest"], "and the configured one is left alone");
    }

    #[tokio::test]
    async fn two_that_ask_at_once_show_each_token_once() {
        let folder = tempfile::tempdir().unwrap();
        let (asked, shown) = std::sync::mpsc::channel();
        let (endpoint, mut one, file) = grant(folder.path(), move |token| {
            asked.send(token.to_owned()).unwrap();
            if token == "old" { REPLACED } else { GRANTED }
        });
        file.write(&token("old")).await.unwrap();
        let mut other = RefreshTokens {
            configured: token("configured"),
            file,
            newest: None,
            is_stored: true,
            ended: Vec::new(),
            announced: false,
        };
        let (first, second) = tokio::join!(one.request(&endpoint), other.request(&endpoint));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(shown.try_iter().collect::<Vec<_>>(), ["old", "given"]);
    }

    #[tokio::test]
    async fn one_that_has_ended_is_not_shown_each_time_before_one_that_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let (asked, shown) = std::sync::mpsc::channel();
        let (good, is_good) = std::sync::mpsc::channel();
        let mut answers = Vec::new();
        let (endpoint, mut refresh, file) = grant(folder.path(), move |token| {
            asked.send(token.to_owned()).unwrap();
            answers.extend(is_good.try_iter());
            if answers.last() == Some(&token.to_owned()) { GRANTED } else { ENDED }
        });
        file.write(&token("kept")).await.unwrap();
        let mut asked_for = async |good_one: &str| {
            good.send(good_one.to_owned()).unwrap();
            refresh.request(&endpoint).await.unwrap();
            shown.try_iter().collect::<Vec<_>>()
        };
        assert_eq!(asked_for("configured").await, ["kept", "configured"]);
        assert_eq!(asked_for("configured").await, ["configured"]);
        assert_eq!(asked_for("kept").await, ["configured", "kept"], "it is not given up");
        file.write(&token("newest")).await.unwrap();
        assert_eq!(asked_for("newest").await, ["newest"], "of another process");
    }

    #[tokio::test]
    async fn a_file_that_always_has_another_is_not_followed_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let (replaces, path) = std::sync::mpsc::channel::<std::path::PathBuf>();
        let mut path_of = None;
        let mut count = 0;
        let (endpoint, mut refresh, file) = grant(folder.path(), move |_| {
            count += 1;
            let path = path_of.get_or_insert_with(|| path.recv().unwrap());
            std::fs::write(path, format!("another-{count}")).unwrap();
            ENDED
        });
        replaces.send(file.path().to_owned()).unwrap();
        let failure = refresh.request(&endpoint).await.unwrap_err();
        assert!(matches!(failure, TokenFailure::Ended(_)), "{failure:?}");
        assert_eq!(file.read().await.unwrap().expose_secret(), format!("another-{TRIES}"));
    }

    #[tokio::test]
    async fn one_that_cannot_be_kept_goes_before_an_older_one_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let (asked, shown) = std::sync::mpsc::channel();
        let (endpoint, mut refresh, file) = grant(folder.path(), move |token| {
            asked.send(token.to_owned()).unwrap();
            if token == "configured" { REPLACED } else { GRANTED }
        });
        std::fs::create_dir(file.path()).unwrap();
        refresh.request(&endpoint).await.unwrap();
        std::fs::remove_dir(file.path()).unwrap();
        file.write(&token("old")).await.unwrap();
        refresh.request(&endpoint).await.unwrap();
        assert_eq!(shown.try_iter().collect::<Vec<_>>(), ["configured", "given"]);
    }

    #[tokio::test]
    async fn what_is_no_refusal_of_the_token_leads_to_no_other() {
        for said in ["503 Service Unavailable\r\n\r\n", "401 Unauthorized\r\n\r\n{\"error\":\"invalid_client\"}"] {
            let folder = tempfile::tempdir().unwrap();
            let (asked, shown) = std::sync::mpsc::channel();
            let (endpoint, mut refresh, file) = grant(folder.path(), move |token| {
                asked.send(token.to_owned()).unwrap();
                said
            });
            file.write(&token("newest")).await.unwrap();
            refresh.request(&endpoint).await.unwrap_err();
            assert_eq!(shown.try_iter().collect::<Vec<_>>(), ["newest"]);
        }
    }
}
