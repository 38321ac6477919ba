//! `[resmic]`: the configuration of the access to Resmic's API.

use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::http::Url;
use crate::secret;

/// The URL of the API that Resmic hosts, which is the default of `url`.
const HOSTED: &str = "https://api.resmic.com";
/// The largest accepted value of `rate`.
const MOST_REQUESTS: u32 = 600;

/// The table `[resmic]` of the configuration. Without this table, the daemon sends no request to Resmic.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: the keys below [resmic]")]
pub struct ResmicSettings {
    /// The merchant's API key.
    #[serde(deserialize_with = "secret::deserialize_source")]
    pub api_key: secret::SecretSource,
    /// The merchant's user id at Resmic.
    #[serde(deserialize_with = "secret::deserialize_source")]
    pub user_id: secret::SecretSource,
    /// The URL of the API: https, or http on this machine. The path of this URL is a prefix of the path of every request.
    #[serde(default = "hosted", deserialize_with = "url")]
    pub url: Url,
    /// The most requests to the API in a minute.
    #[serde(default = "default_rate")]
    pub rate: u32,
    /// Whether a completed event is delivered only when Resmic reports its session as `Completed`.
    #[serde(default)]
    pub require: bool,
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Url, D::Error> {
    String::deserialize(from)?.parse().map_err(|e| serde::de::Error::custom(format!("{e}; the default is {HOSTED:?}")))
}

fn hosted() -> Url {
    use hyper::http::uri::{Authority, PathAndQuery};
    let authority = Authority::from_static("api.resmic.com");
    Url { tls: true, host: authority.host().to_owned(), port: 443, authority, path: PathAndQuery::from_static("/") }
}

fn default_rate() -> u32 {
    10
}

impl ResmicSettings {
    /// Checks the values that deserialization does not check.
    ///
    /// # Errors
    /// The configuration key with the wrong value, and the problem.
    pub fn check(&self) -> Result<(), (String, String)> {
        check_url(&self.url).map_err(|message| ("url".to_owned(), message))?;
        if self.rate == 0 || self.rate > MOST_REQUESTS {
            return Err(("rate".into(), format!("expected 1 to {MOST_REQUESTS} requests a minute")));
        }
        Ok(())
    }

    /// Resolves relative paths of the secrets against the folder `base`.
    pub fn resolve(&mut self, base: &Path) {
        self.api_key.resolve_path(base);
        self.user_id.resolve_path(base);
    }
}

/// Checks the URL of the API. Plain http is allowed only to this machine, because a header field contains the API key.
pub(super) fn check_url(url: &Url) -> Result<(), String> {
    if !url.tls && !url.is_loopback() {
        return Err(format!("{:?} is another machine, so the URL must begin with https://", url.host));
    }
    if url.path.query().is_some() {
        return Err("expected a URL without a query".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: &str = "api_key = { credential = \"resmic-api-key\" }\nuser_id = { env = \"ID\" }\n";

    fn parse(text: &str) -> Result<ResmicSettings, String> {
        let settings: ResmicSettings = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        settings.check().map_err(|(key, message)| format!("{key}: {message}"))?;
        Ok(settings)
    }

    #[test]
    fn secrets_alone_are_enough() {
        let settings = parse(SECRETS).unwrap();
        assert_eq!((settings.url.clone(), settings.rate, settings.require), (HOSTED.parse().unwrap(), 10, false));
        assert_eq!(settings.api_key, secret::SecretSource::Credential("resmic-api-key".into()));
        let settings_with_all_keys =
            parse(&format!("{SECRETS}url = \"http://127.0.0.1:8080/pay\"\nrate = 50\nrequire = true")).unwrap();
        assert_eq!(
            (settings_with_all_keys.url.path.as_str(), settings_with_all_keys.rate, settings_with_all_keys.require),
            ("/pay", 50, true)
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (key, expected) in [
            ("url = \"http://api.resmic.com\"", "url: \"api.resmic.com\" is another machine"),
            ("url = \"http://10.0.0.1/\"", "url: "),
            ("url = \"https://api.resmic.com/?a=1\"", "url: expected a URL without a query"),
            ("url = \"api.resmic.com\"", "https://api.resmic.com"),
            ("rate = 0", "rate: expected 1 to 600"),
            ("rate = 601", "rate: expected 1 to 600"),
            ("rate = \"10\"", "expected u32"),
            ("require = 1", "expected a boolean"),
            ("colour = \"red\"", "unknown field `colour`"),
        ] {
            let message = parse(&format!("{SECRETS}{key}")).unwrap_err();
            assert!(message.contains(expected), "{key}: {message}");
        }
        assert!(parse("api_key = { env = \"K\" }").unwrap_err().contains("user_id"));
    }

    #[test]
    fn inline_key_is_refused_and_not_quoted() {
        for inline in ["api_key = \"rk_s3cret\"", "api_key = { rk_s3cret = \"x\" }"] {
            let message = parse(&format!("{inline}\nuser_id = {{ env = \"ID\" }}")).unwrap_err();
            assert!(message.contains("must not contain a secret") && !message.contains("s3cret"), "{message}");
        }
    }
}
