//! The device authorization grant (RFC 8628): the person enters a short code in a browser on any device.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep};

use super::{Denial, OAuthClient, seconds};
use crate::http::Url;
use crate::model::printable;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The pause between questions if the endpoint names none (RFC 8628, 3.2), and its limits.
const USUAL_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// Added to the pause after `slow_down` (RFC 8628, 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// The lifetime of a code if the endpoint names none, and its limit.
const USUAL_LIFETIME: Duration = Duration::from_secs(15 * 60);
const LONGEST_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A code that waits for the person.
pub struct DeviceCode {
    /// The code to enter.
    pub user_code: String,
    /// The page on which it is entered.
    pub verification_uri: String,
    /// Its lifetime.
    pub expires_in: Duration,
    device_code: SecretString,
    interval: Duration,
}

/// What an answer of the token endpoint means for the next question.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Ask(Duration),
    Stop,
}

impl DeviceCode {
    /// Asks the device authorization endpoint for a code.
    ///
    /// # Errors
    /// In words, for the operator.
    pub async fn request(client: &OAuthClient, device_url: &Url) -> Result<Self, String> {
        let mut form = vec![("client_id", client.client_id.as_str())];
        form.extend(client.scope.as_deref().map(|scope| ("scope", scope)));
        let reply = client.post(device_url, &form).await.map_err(Denial::words)?;
        let lifetime = seconds(reply.expires_in.as_ref()).unwrap_or(USUAL_LIFETIME).min(LONGEST_LIFETIME);
        let interval = seconds(reply.interval.as_ref()).unwrap_or(USUAL_INTERVAL);
        match (reply.device_code, reply.user_code, reply.verification_uri) {
            (Some(device_code), Some(user_code), Some(uri)) => Ok(DeviceCode {
                user_code: printable(&user_code, 100),
                verification_uri: printable(&uri, 500),
                expires_in: lifetime,
                device_code: device_code.into(),
                interval: interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL),
            }),
            _ => Err(format!("{device_url}: its answer has no device code; check device_url")),
        }
    }

    /// Waits until the person has entered the code; the refresh token.
    ///
    /// # Errors
    /// In words, for the operator.
    pub async fn wait(&self, client: &OAuthClient) -> Result<SecretString, String> {
        let deadline = Instant::now() + self.expires_in;
        let mut interval = self.interval;
        loop {
            if Instant::now() + interval >= deadline {
                return Err("the code has expired; run authorize again".to_owned());
            }
            sleep(interval).await;
            let grant = [("grant_type", GRANT_TYPE), ("device_code", self.device_code.expose_secret())];
            match client.ask_for_tokens(&grant).await {
                Ok(token) => return Ok(token),
                Err(denial) => match next(&denial, interval) {
                    Next::Ask(pause) => interval = pause,
                    Next::Stop => return Err(denial.words()),
                },
            }
        }
    }
}

fn next(denial: &Denial, interval: Duration) -> Next {
    match denial {
        Denial::Code(code, _) if code == "authorization_pending" => Next::Ask(interval),
        Denial::Code(code, _) if code == "slow_down" => Next::Ask((interval + SLOWER).min(LONGEST_INTERVAL)),
        Denial::Code(..) => Next::Stop,
        // RFC 8628, 3.5: after a timeout, ask less often.
        Denial::Passing(_) => Next::Ask((interval * 2).min(LONGEST_INTERVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_decides_about_the_next_question() {
        let after =
            |code: &str, interval| next(&Denial::Code(code.into(), String::new()), Duration::from_secs(interval));
        let ask = |pause| Next::Ask(Duration::from_secs(pause));
        assert_eq!(after("authorization_pending", 5), ask(5));
        assert_eq!(after("slow_down", 5), ask(10));
        assert_eq!(after("slow_down", 58), ask(60));
        for code in ["access_denied", "expired_token", "invalid_client", ""] {
            assert_eq!(after(code, 5), Next::Stop, "{code}");
        }
        assert_eq!(next(&Denial::Passing("timeout".into()), Duration::from_secs(5)), ask(10));
    }
}
