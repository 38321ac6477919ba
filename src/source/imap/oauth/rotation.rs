//! Chooses the refresh token for a request: the newest known token, or the configured token if the newest has expired.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::endpoint::{TokenEndpoint, TokenGrant};
use super::token_file::TokenFile;
use super::token_lock::TokenLock;
use super::{OAuthSettings, TokenFailure};

/// The most refresh tokens tried to get one access token. The token file can contain another refresh token at each try, if
/// another process requests access tokens, too.
pub(super) const TRIES: u32 = 5;

/// The refresh tokens of one grant.
pub(super) struct RefreshTokens {
    /// The refresh token of the configuration.
    configured: SecretString,
    /// The file with the newest replacement of the configured token, for later starts and other processes.
    file: TokenFile,
    /// The newest refresh token that this process received.
    newest: Option<SecretString>,
    /// `newest` is stored in the file. Otherwise, `newest` is newer than the refresh token in the file.
    is_stored: bool,
    /// Refresh tokens that had expired when another refresh token worked. Expired refresh tokens are tried last, because an
    /// endpoint may treat the second use of a refresh token as theft.
    ended: Vec<SecretString>,
    /// The log already shows that the endpoint replaces the refresh token.
    announced: bool,
}

impl RefreshTokens {
    /// `configured`: the refresh token of the settings. `folder`: the folder of the token file.
    pub(super) fn new(settings: &OAuthSettings, configured: SecretString, folder: &Path) -> Self {
        let file = TokenFile::new(folder, &configured, settings);
        RefreshTokens { configured, file, newest: None, is_stored: true, ended: Vec::new(), announced: false }
    }

    /// Requests an access token. If the answer contains a new refresh token, stores this refresh token in the token file.
    pub(super) async fn request(&mut self, endpoint: &TokenEndpoint) -> Result<TokenGrant, TokenFailure> {
        let _lock = TokenLock::acquire(self.file.path()).await;
        let (mut tried, mut first) = (Vec::new(), None);
        // The token file is read before each try, because another process may have replaced the refresh token meanwhile.
        while let Some(token) = self.next_candidate(&tried).await {
            match endpoint.request(&token).await {
                // The refresh token that is most likely valid is tried first. The error about this token helps the operator most.
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

    /// The newest refresh token that was not tried yet. The tokens in `ended` come last.
    async fn next_candidate(&self, tried: &[SecretString]) -> Option<SecretString> {
        if tried.len() >= TRIES as usize {
            return None;
        }
        let (file, memory) = (self.file.read().await, self.newest.clone());
        let candidates = if self.is_stored { [file, memory] } else { [memory, file] };
        let candidates = candidates.into_iter().flatten().chain([self.configured.clone()]);
        let is_one_of =
            |tokens: &[SecretString], token: &SecretString| tokens.iter().any(|other| is_equal(other, token));
        let (ended, good): (Vec<_>, Vec<_>) =
            candidates.filter(|token| !is_one_of(tried, token)).partition(|token| is_one_of(&self.ended, token));
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
                "the token endpoint has replaced the refresh token, and the new one cannot be written to {}: {error}; it is \
                 used while this process runs. Check free space and permissions of the folder: after a restart only the old \
                 token is left, and it may have expired (docs/mail-providers.md)",
                self.file.path().display()
            ),
        }
    }
}

fn is_equal(first: &SecretString, second: &SecretString) -> bool {
    first.expose_secret() == second.expose_secret()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const GRANTED: &str = "200 OK\r\n\r\n{\"access_token\":\"a\"}";
    const REPLACED: &str = "200 OK\r\n\r\n{\"access_token\":\"a\",\"refresh_token\":\"given\"}";
    const ENDED: &str = "400 Bad Request\r\n\r\n{\"error\":\"invalid_grant\"}";

    /// Starts an endpoint that answers each refresh token with `answer`. Returns the endpoint, the refresh tokens of one grant at
    /// this endpoint, and the token file.
    fn start_endpoint(
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
                let response = answer(token.split_once('&').unwrap().0);
                stream.write_all(format!("HTTP/1.1 {response}").as_bytes()).unwrap();
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
    async fn a_token_of_another_process_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let (requested, requests) = std::sync::mpsc::channel();
        let (send_path, path) = std::sync::mpsc::channel::<std::path::PathBuf>();
        let (endpoint, mut refresh, file) = start_endpoint(folder.path(), move |token| {
            requested.send(token.to_owned()).unwrap();
            if token == "newest" {
                return GRANTED;
            }
            // Another process has used the refresh token first, and stored the new refresh token.
            std::fs::write(path.recv().unwrap(), "newest\n").unwrap();
            ENDED
        });
        file.write(&token("old")).await.unwrap();
        send_path.send(file.path().to_owned()).unwrap();
        refresh.request(&endpoint).await.unwrap();
        assert_eq!(requests.try_iter().collect::<Vec<_>>(), ["old", "newest"], "and the configured one is left alone");
    }

    #[tokio::test]
    async fn concurrent_requests_use_each_token_once() {
        let folder = tempfile::tempdir().unwrap();
        let (requested, requests) = std::sync::mpsc::channel();
        let (endpoint, mut first_process, file) = start_endpoint(folder.path(), move |token| {
            requested.send(token.to_owned()).unwrap();
            if token == "old" { REPLACED } else { GRANTED }
        });
        file.write(&token("old")).await.unwrap();
        let mut second_process = RefreshTokens {
            configured: token("configured"),
            file,
            newest: None,
            is_stored: true,
            ended: Vec::new(),
            announced: false,
        };
        let (first, second) = tokio::join!(first_process.request(&endpoint), second_process.request(&endpoint));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(requests.try_iter().collect::<Vec<_>>(), ["old", "given"]);
    }

    #[tokio::test]
    async fn expired_tokens_are_tried_last() {
        let folder = tempfile::tempdir().unwrap();
        let (requested, requests) = std::sync::mpsc::channel();
        let (set_good, good_tokens) = std::sync::mpsc::channel();
        let mut answers = Vec::new();
        let (endpoint, mut refresh, file) = start_endpoint(folder.path(), move |token| {
            requested.send(token.to_owned()).unwrap();
            answers.extend(good_tokens.try_iter());
            if answers.last() == Some(&token.to_owned()) { GRANTED } else { ENDED }
        });
        file.write(&token("kept")).await.unwrap();
        let mut tokens_tried = async |good_token: &str| {
            set_good.send(good_token.to_owned()).unwrap();
            refresh.request(&endpoint).await.unwrap();
            requests.try_iter().collect::<Vec<_>>()
        };
        assert_eq!(tokens_tried("configured").await, ["kept", "configured"]);
        assert_eq!(tokens_tried("configured").await, ["configured"]);
        assert_eq!(tokens_tried("kept").await, ["configured", "kept"], "it is not given up");
        file.write(&token("newest")).await.unwrap();
        assert_eq!(tokens_tried("newest").await, ["newest"], "of another process");
    }

    #[tokio::test]
    async fn tries_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let (send_path, path) = std::sync::mpsc::channel::<std::path::PathBuf>();
        let mut path_of = None;
        let mut count = 0;
        let (endpoint, mut refresh, file) = start_endpoint(folder.path(), move |_| {
            count += 1;
            let path = path_of.get_or_insert_with(|| path.recv().unwrap());
            std::fs::write(path, format!("another-{count}")).unwrap();
            ENDED
        });
        send_path.send(file.path().to_owned()).unwrap();
        let failure = refresh.request(&endpoint).await.unwrap_err();
        assert!(matches!(failure, TokenFailure::Ended(_)), "{failure:?}");
        assert_eq!(file.read().await.unwrap().expose_secret(), format!("another-{TRIES}"));
    }

    #[tokio::test]
    async fn an_unstored_token_precedes_an_older_file() {
        let folder = tempfile::tempdir().unwrap();
        let (requested, requests) = std::sync::mpsc::channel();
        let (endpoint, mut refresh, file) = start_endpoint(folder.path(), move |token| {
            requested.send(token.to_owned()).unwrap();
            if token == "configured" { REPLACED } else { GRANTED }
        });
        std::fs::create_dir(file.path()).unwrap();
        refresh.request(&endpoint).await.unwrap();
        std::fs::remove_dir(file.path()).unwrap();
        file.write(&token("old")).await.unwrap();
        refresh.request(&endpoint).await.unwrap();
        assert_eq!(requests.try_iter().collect::<Vec<_>>(), ["configured", "given"]);
    }

    #[tokio::test]
    async fn other_errors_try_no_other_token() {
        for response in ["503 Service Unavailable\r\n\r\n", "401 Unauthorized\r\n\r\n{\"error\":\"invalid_client\"}"] {
            let folder = tempfile::tempdir().unwrap();
            let (requested, requests) = std::sync::mpsc::channel();
            let (endpoint, mut refresh, file) = start_endpoint(folder.path(), move |token| {
                requested.send(token.to_owned()).unwrap();
                response
            });
            file.write(&token("newest")).await.unwrap();
            refresh.request(&endpoint).await.unwrap_err();
            assert_eq!(requests.try_iter().collect::<Vec<_>>(), ["newest"]);
        }
    }
}
