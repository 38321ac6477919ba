//! The device authorization grant (RFC 8628): the person enters a short code in a browser on any device.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep};

use super::{Denial, OAuthClient, seconds};
use crate::http::Url;
use crate::model::printable;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The pause between two requests to the token endpoint if the device authorization endpoint names no pause (RFC 8628, 3.2), and
/// the limits of a pause.
const USUAL_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// The answer `slow_down` makes the pause longer by this time (RFC 8628, 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// The authorization fails after this number of consecutive requests without a usable answer.
const PATIENCE: u32 = 5;
/// The lifetime of a code if the endpoint names no lifetime, and the longest lifetime.
const USUAL_LIFETIME: Duration = Duration::from_secs(15 * 60);
const LONGEST_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A code from the device authorization endpoint, which the person must enter on a page of the provider.
pub struct DeviceCode {
    /// The code that the person enters.
    pub user_code: String,
    /// The page on which the person enters the code.
    pub verification_uri: String,
    /// The lifetime of the code.
    pub expires_in: Duration,
    device_code: SecretString,
    interval: Duration,
}

/// The pace of the requests to the token endpoint.
struct PollPace {
    interval: Duration,
    /// The number of consecutive requests without a usable answer.
    unanswered: u32,
}

impl DeviceCode {
    /// Asks the device authorization endpoint for a code.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn request(client: &OAuthClient, device_url: &Url) -> Result<Self, String> {
        let mut form = vec![("client_id", client.client_id.as_str())];
        form.extend(client.scope.as_deref().map(|scope| ("scope", scope)));
        let reply = client.post(device_url, &form).await.map_err(Denial::message)?;
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

    /// Waits until the person has entered the code. Returns the refresh token.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn wait(&self, client: &OAuthClient) -> Result<SecretString, String> {
        let deadline = Instant::now() + self.expires_in;
        let mut pace = PollPace { interval: self.interval, unanswered: 0 };
        loop {
            if Instant::now() + pace.interval >= deadline {
                return Err("the code has expired; run authorize again".to_owned());
            }
            sleep(pace.interval).await;
            let grant = [("grant_type", GRANT_TYPE), ("device_code", self.device_code.expose_secret())];
            match client.ask_for_tokens(&grant).await {
                Ok(token) => return Ok(token),
                Err(denial) if pace.goes_on(&denial) => {}
                Err(denial) => return Err(denial.message()),
            }
        }
    }
}

impl PollPace {
    /// Adjusts the pace to an answer without a token. Returns whether another request may follow.
    fn goes_on(&mut self, denial: &Denial) -> bool {
        self.unanswered = if matches!(denial, Denial::Passing(_)) { self.unanswered + 1 } else { 0 };
        self.interval = match denial {
            Denial::Code(code, _) if code == "authorization_pending" => self.interval,
            Denial::Code(code, _) if code == "slow_down" => self.interval + SLOWER,
            Denial::Code(..) => return false,
            // RFC 8628, 3.5: after a timeout, the client must poll less often.
            Denial::Passing(_) => self.interval * 2,
        }
        .min(LONGEST_INTERVAL);
        self.unanswered < PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(code: &str) -> Denial {
        Denial::Code(code.into(), String::new())
    }

    #[test]
    fn an_answer_decides_about_the_next_question() {
        for (interval, answer, next_interval) in
            [(5, "authorization_pending", 5), (5, "slow_down", 10), (58, "slow_down", 60)]
        {
            let mut pace = PollPace { interval: Duration::from_secs(interval), unanswered: 0 };
            assert!(pace.goes_on(&code(answer)), "{answer}");
            assert_eq!(pace.interval.as_secs(), next_interval, "{answer}");
        }
        for answer in ["access_denied", "expired_token", "invalid_client", ""] {
            assert!(!PollPace { interval: USUAL_INTERVAL, unanswered: 0 }.goes_on(&code(answer)), "{answer}");
        }
    }

    #[test]
    fn polling_slows_down_and_ends() {
        let mut pace = PollPace { interval: Duration::from_secs(5), unanswered: 0 };
        let silent = Denial::Passing("timeout".into());
        let mut pauses = Vec::new();
        while pace.goes_on(&silent) {
            pauses.push(pace.interval.as_secs());
        }
        assert_eq!(pauses, [10, 20, 40, 60]);
        // A usable answer sets the count of requests without a usable answer to zero.
        assert!(pace.goes_on(&code("authorization_pending")) && pace.goes_on(&silent));
    }
}
